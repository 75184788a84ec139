"""The defaults of torch as a score needs them, whatever the user's program has set around a search."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["plain_defaults"]

_lock = threading.Lock()
# How many threads need float32 now, and what the default was before the first of them.
_users, _before = 0, torch.float32


@contextmanager
def plain_defaults(device: torch.device | str = "cpu") -> Iterator[None]:
    """Makes new tensors float32 on the CPU, and switches autocast and inference mode off, until its end.

    Otherwise a score would depend on what its record does not say, and differ from that of a worker process.

    Args:
        device: Where scores are computed.
    """
    kind = torch.device(device).type
    with ExitStack() as undo:
        undo.enter_context(_float32_by_default())
        # Each only where it is needed: they cost time.
        # A tensor is asked: get_default_device() of torch 2.6 does not see `with torch.device(…)`.
        if torch.empty(0).device.type != "cpu":
            undo.enter_context(torch.device("cpu"))
        if torch.is_autocast_enabled(kind):
            undo.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            undo.enter_context(torch.inference_mode(False))
        yield


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Sets the default type, which all threads of a process share, until the last of them is done."""
    global _users, _before
    with _lock:
        if not _users:
            _before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                torch.set_default_dtype(_before)
