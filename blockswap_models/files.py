"""Files that are complete at any moment: written atomically, or as JSON lines of which only the last can be cut off.

This module needs the standard library only, and filelock where a file is locked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .messages import quote

__all__ = [
    "JsonLineError",
    "append_json_line",
    "encode_json",
    "json_line",
    "locked",
    "make_folder",
    "read_json_lines",
    "write_atomic",
]


def write_atomic(path: str | Path, content: bytes, error: Callable[[str], Exception] = OSError) -> None:
    """Writes a file completely or not at all; an existing file stays until the new one is on disk.

    Args:
        path: The file.
        content: The bytes to write.
        error: Makes the exception from its message if the file cannot be written, for example on a full disk.

    Raises:
        OSError: The file cannot be written; or what `error` makes.
    """
    path = Path(path)
    # One name for all attempts: the next one overwrites what a killed process left.
    partial = path.with_name(f"{path.name}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as fault:
        # If the folder itself is the problem, there is nothing to remove.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(fault, OSError):
            raise error(f"cannot write {quote(str(path))}: {fault.strerror or fault}") from None
        raise


@contextmanager
def locked(path: str | Path, taken: Exception, remove: bool = False) -> Iterator[None]:
    """Keeps other processes out by a file that is locked; the system releases it of a process that is killed.

    Some network file systems have no locks, and a folder may be read-only, which is told when it is written: nobody is
    kept out there.

    Args:
        path: The file, in a folder that exists.
        taken: What is raised where another process has locked it.
        remove: Whether the file is removed at the end.

    Raises:
        Exception: What is given, where another process has locked the file.
    """
    # What only reads need not load it.
    from filelock import FileLock, Timeout

    lock = FileLock(path, blocking=False, thread_local=False)
    try:
        # A lock on a file that its last holder removes meanwhile would keep nobody out.
        while True:
            before = _identity(path)
            lock.acquire()
            if before is not None and before == _identity(path):
                break
            lock.release()
    except Timeout:
        raise taken from None
    except (NotImplementedError, OSError):
        pass
    try:
        yield
    finally:
        # While it is locked, so that nobody else has locked what is removed.
        left = lock.is_locked and remove and not _is_removed(path)
        lock.release()
        if left:
            # Windows removes no open file, also not one that the next holder has opened.
            _is_removed(path)


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What tells a file from another of the same name; None where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_removed(path: str | Path) -> bool:
    """Removes a file, and says whether it is gone."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError:
        return False
    return True


def make_folder(path: str | Path, error: Callable[[str], Exception] = OSError) -> None:
    """Makes a folder, and those that it lies in, unless it is there.

    Args:
        path: The folder.
        error: Makes the exception from its message if it cannot be made.

    Raises:
        OSError: The folder cannot be made; or what `error` makes.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise error(f"cannot make the folder {quote(str(path))}: {fault.strerror or fault}") from None


class JsonLineError(ValueError):
    """A line of a file that is not a JSON object."""

    def __init__(self, path: str | Path, number: int) -> None:
        super().__init__(f"line {number} of {path} is not a JSON object")
        self.number = number


def json_line(value: Mapping[str, Any]) -> bytes:
    """Encodes an object as one line of JSON; raises ValueError for NaN."""
    return encode_json(value, allow_nan=False) + b"\n"


def encode_json(value: Any, **options: Any) -> bytes:
    """Encodes a value as JSON that people can read.

    Args:
        value: The value.
        **options: Arguments of `json.dumps`.

    Returns:
        UTF-8; all in ASCII where there is text that UTF-8 cannot have, as in names of files of another encoding.
    """
    try:
        return json.dumps(value, ensure_ascii=False, **options).encode()
    except UnicodeEncodeError:
        return json.dumps(value, **options).encode()


def append_json_line(file: BinaryIO, value: Mapping[str, Any]) -> None:
    """Adds an object to an open file; it is on the disk when this returns."""
    file.write(json_line(value))
    file.flush()
    os.fsync(file.fileno())


def read_json_lines(path: str | Path) -> tuple[list[dict[str, Any]], bytes]:
    """Reads a file of one JSON object a line.

    Args:
        path: The file.

    Returns:
        The objects, and the bytes after the last newline: the start of a line whose writer was killed, or nothing.

    Raises:
        JsonLineError: A complete line is not a JSON object.
        OSError: The file cannot be read.
    """
    content = Path(path).read_bytes()
    whole = content.rfind(b"\n") + 1
    values = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise JsonLineError(path, number)
        values.append(value)
    return values, content[whole:]
