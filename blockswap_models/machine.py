"""What this machine has for a program: processors, a device, memory, files that can be written.

This module needs the standard library only, until a function that is called needs more.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["default_workers", "find_device", "keep_memory", "require_writable", "threads_set"]


def default_workers(most: int | None = None) -> int:
    """Counts the processors that this process may use, within its CPU affinity and the limits of its container.

    Args:
        most: A number of processes beyond which more are of no use.

    Returns:
        At least 1, and at most `most`.
    """
    import loky

    return loky.cpu_count() if most is None else min(most, loky.cpu_count())


def find_device(name: torch.device | str | None = None) -> torch.device:
    """Finds a device by name, and sees that it is there.

    Args:
        name: Such as `cpu`, `cuda` or `cuda:1`; where it is left out, `cuda` where there is a GPU, else `cpu`.

    Returns:
        The device.

    Raises:
        ValueError: The name is unknown, or the machine has no such GPU.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"unknown device '{name}'; use cpu, cuda or cuda:1") from None
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not there:
            raise ValueError("there is no CUDA device here; use the device cpu")
        if device.index is not None and device.index >= there:
            raise ValueError(f"there is no device {device} here; use one of cuda:0 to cuda:{there - 1}")
    return device


def keep_memory() -> None:
    """Keeps freed memory for the next tensor, where the C library is glibc: to get it anew costs time."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    set_option(trim_threshold, 2**31 - 1)
    set_option(top_pad, 2**26)
    set_option(mmap_threshold, 2**25)


def require_writable(path: str | Path) -> None:
    """Sees that a file can be written, before the work whose result it is to hold; leaves no file behind.

    Args:
        path: The file, which may exist.

    Raises:
        ValueError: It cannot be written, and why.
    """
    path = Path(path)
    new = not os.path.lexists(path)
    try:
        # Opened for more, so that what is there stays.
        with open(path, "ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise ValueError(f"cannot write '{path}': {error.strerror}; use a file in a folder that exists") from None


@contextmanager
def threads_set(number: int | None) -> Iterator[None]:
    """Runs torch with so many threads, and then with as many as before; None changes nothing.

    On one thread sums are taken in one order, and processes beside each other do not fight for cores.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
