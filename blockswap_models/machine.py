"""What this machine offers: processors, devices, memory, writable files.

This module imports the standard library only; its functions import what else they need.
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

__all__ = ["computes_bfloat16", "default_workers", "find_device", "keep_memory", "require_writable", "threads_set"]


def default_workers(most: int | None = None) -> int:
    """Counts the processors that this process may use, within its CPU affinity and the limits of its container.

    Args:
        most: An upper limit.

    Returns:
        At least 1, and at most `most`.
    """
    import loky

    return loky.cpu_count() if most is None else min(most, loky.cpu_count())


def computes_bfloat16() -> bool:
    """Says whether the CPU has instructions for bfloat16, without which it is many times slower than float32."""
    import torch

    # Not every version of torch can say both.
    known = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
    return any(each() for each in known)


def find_device(name: torch.device | str | None = None) -> torch.device:
    """Finds a device by name, and checks that it exists.

    Args:
        name: `cpu`, `cuda` or `cuda:1`; by default `cuda` if there is a GPU, else `cpu`.

    Returns:
        The device.

    Raises:
        ValueError: The name is unknown, or the machine has no such device.
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
    elif device.type == "meta":
        raise ValueError("the device meta computes nothing; use cpu or cuda")
    else:
        try:
            torch.empty(0, device=device)
        # Each kind of device has errors of its own.
        except Exception:
            raise ValueError(f"there is no device {device} here; use cpu or cuda") from None
    return device


def keep_memory() -> None:
    """Keeps freed memory for the next tensor instead of giving it back to the system, which costs time (glibc only)."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    set_option(trim_threshold, 2**31 - 1)
    set_option(top_pad, 2**26)
    set_option(mmap_threshold, 2**25)


def require_writable(path: str | Path) -> None:
    """Checks that a file can be written, before long work begins; leaves no file behind.

    Args:
        path: The file, which may exist.

    Raises:
        ValueError: It cannot be written, and why.
    """
    path = Path(path)
    new = not os.path.lexists(path)
    try:
        # Opened for appending, so that its content stays.
        with open(path, "ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise ValueError(f"cannot write '{path}': {error.strerror}; use a file in a folder that exists") from None


@contextmanager
def threads_set(number: int | None) -> Iterator[None]:
    """Sets torch's number of threads, and restores it at the end; None changes nothing.

    On one thread sums have a fixed order, and processes do not compete for cores.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
