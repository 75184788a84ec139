"""The processes that `torchrun` starts for a training run: their group, rank and barrier."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["barrier", "process_group", "rank_and_size"]


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the process group if `torchrun` started this process, and leaves it at the end; yields the device."""
    if _of_environment("WORLD_SIZE", 1) > 1:
        if device.type == "cuda":
            device = torch.device("cuda", _of_environment("LOCAL_RANK", 0))
            torch.cuda.set_device(device)
        # The others wait while one evaluates, which may take longer than the ten minutes that NCCL allows.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=6))
    try:
        yield device
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _of_environment(name: str, otherwise: int) -> int:
    """Reads a number that `torchrun` sets; empty, as some shells and containers leave it, means not set."""
    text = os.environ.get(name, "").strip()
    try:
        return int(text or otherwise)
    except ValueError:
        raise ValueError(f"{name} is '{text}' in the environment, not a number; unset it, or use torchrun") from None


def rank_and_size() -> tuple[int, int]:
    """Returns the rank of this process, from 0, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Waits until all processes have reached this point."""
    if dist.is_initialized():
        dist.barrier()
