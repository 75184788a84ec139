"""Minibatches from worker processes, which pass through shared memory; that can be too small."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from timm.data.loader import fast_collate
from torch.utils.data import get_worker_info

from .errors import DataError

__all__ = ["collate_shared", "full_memory_told", "into_shared_memory", "memory_told"]

Minibatch = TypeVar("Minibatch")

# How torch reports that shared memory is full: by an exception in the worker, or by the signal that killed it.
_SIGNS = ("unable to write to file </torch_", "shared memory", "Bus error", "bus error")


def collate_shared(samples: Sequence[Any], collate: Callable[[Sequence[Any]], Any] = fast_collate) -> Any:
    """Puts images and labels together, as timm or `collate` does, and into shared memory for another process.

    A DataLoader does so by itself, but in a thread whose errors are lost: if memory is too small, it waits for ever.
    """
    batch = collate(samples)
    into_shared_memory(*batch)
    return batch


def into_shared_memory(*tensors: torch.Tensor) -> None:
    """Puts tensors into shared memory for another process, in a process of a loader; elsewhere does nothing."""
    if get_worker_info() is not None:
        for each in tensors:
            each.share_memory_()


def memory_told(loader: Iterable[Minibatch]) -> Iterator[Minibatch]:
    """Yields the minibatches of a loader, and says what to do where shared memory is too small for them.

    Raises:
        DataError: The processes that read images ran out of shared memory.
    """
    with full_memory_told():
        yield from loader


@contextmanager
def full_memory_told() -> Iterator[None]:
    """Says what to do where shared memory is too small for what is put into it.

    Raises:
        DataError: It is too small.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS):
            raise
        raise DataError(
            f"the processes that read images ran out of shared memory{_size()}; use fewer (workers=), or 0 for none, "
            "or give the container more, as 'docker run --shm-size 2g' does"
        ) from None


def _size() -> str:
    try:
        return f" (/dev/shm has {shutil.disk_usage('/dev/shm').total / 2**20:,.0f} MB)"
    except OSError:
        return ""
