"""Files that are whole at any moment: written at once, or by lines of JSON of which only the last can be cut off.

This module needs the standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from .messages import quote

__all__ = ["JsonLineError", "append_json_line", "json_line", "read_json_lines", "write_atomic"]


def write_atomic(path: str | Path, content: bytes, error: Callable[[str], Exception] = OSError) -> None:
    """Writes a file, whole or not at all; an older one stays until the new one is on the disk.

    Args:
        path: The file.
        content: What is written.
        error: Makes the exception from its message where the file cannot be written, on a full disk for one.

    Raises:
        OSError: The file cannot be written; or what `error` makes.
    """
    path = Path(path)
    # One name for all attempts: what a killed process left is written over by the next.
    partial = path.with_name(f"{path.name}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as fault:
        # Where the folder itself is the fault, there is nothing to remove.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(fault, OSError):
            raise error(f"cannot write {quote(str(path))}: {fault.strerror or fault}") from None
        raise


class JsonLineError(ValueError):
    """A line of a file that is not a JSON object."""

    def __init__(self, path: str | Path, number: int) -> None:
        super().__init__(f"line {number} of {path} is not a JSON object")
        self.number = number


def json_line(value: Mapping[str, Any]) -> bytes:
    """Writes an object as one line, which no other can follow on the same one; raises ValueError for NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"


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
        The objects, and what follows the last line end: the start of a line at which a process was killed, or nothing.

    Raises:
        JsonLineError: A whole line is something else.
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
