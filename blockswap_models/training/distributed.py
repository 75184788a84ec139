"""The processes of a training that `torchrun` starts: joining them, which of them this is, and waiting for all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

__all__ = ["barrier", "process_group", "rank_and_size"]


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that `torchrun` started, where it did, and leaves them at the end; gives its own device."""
    if _of_environment("WORLD_SIZE", 1) > 1:
        if device.type == "cuda":
            device = torch.device("cuda", _of_environment("LOCAL_RANK", 0))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _of_environment(name: str, otherwise: int) -> int:
    """Reads a number that `torchrun` sets; where a shell or a container leaves it empty, it is not set."""
    text = os.environ.get(name, "").strip()
    try:
        return int(text or otherwise)
    except ValueError:
        raise ValueError(f"{name} is '{text}' in the environment, not a number; unset it, or use torchrun") from None


def rank_and_size() -> tuple[int, int]:
    """Says which process this is, from 0, and of how many."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Waits until all processes are here."""
    if dist.is_initialized():
        dist.barrier()
