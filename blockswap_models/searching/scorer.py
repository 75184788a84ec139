"""What all scores of a search share, and how one of them is computed."""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..genome import Genome
from ..machine import computes_bfloat16
from .candidates import ScoredDraw
from .fisher import Score, fisher_potential
from .one_pass import compute_scores
from .plain_defaults import plain_defaults
from .probe_images import Minibatch
from .rankings import SCORES, RankSum, parts_of
from .space import SearchSpace

__all__ = ["Scorer", "fast_dtype", "own_random_numbers", "seeded", "weights_seed"]

# The random numbers of torch are the process's, also where workers are threads.
_drawing = threading.Lock()


def fast_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """The type in which Fisher potentials are found fastest: bfloat16 on a CPU that computes in it, else float32."""
    fast = torch.device(device).type == "cpu" and computes_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def weights_seed(seed: int, name: str, draw: int) -> int:
    """The seed of the weights of a draw of a network, which its genome or name says."""
    digest = hashlib.sha256(f"weights/{seed}/{name}/{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes the random numbers of torch on the CPU those of a seed, for one thread at a time, and reverts it."""
    with _drawing, torch.random.fork_rng(devices=[]):
        # Of the CPU alone: torch.manual_seed would set those of a GPU too, which the fork does not give back.
        torch.default_generator.manual_seed(seed)
        yield


def own_random_numbers(score: Score, seed: int, name: str, draw: int) -> AbstractContextManager[None]:
    """Gives a score of the user's own the random numbers of a network and draw, in the place of the process's."""
    if any(score is each for each in SCORES.values()):
        # These draw none, and may run in several threads at once.
        return nullcontext()
    return seeded(weights_seed(seed, f"{name}/score", draw))


@dataclass(frozen=True)
class Scorer:
    """Scores a genome with weights of its own draw; the same numbers in every process, and in any order."""

    space: SearchSpace
    data: Minibatch
    score: Score = fisher_potential
    seed: int = 0
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    # What only this thread can use: it does not travel to workers.
    _own: threading.local = field(default_factory=threading.local, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_own"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _own=threading.local())

    def __call__(self, task: tuple[Genome, int]) -> ScoredDraw:
        """Scores a genome with one draw of its weights."""
        with plain_defaults(self.device):
            return self._scored(*task)

    def _scored(self, genome: Genome, draw: int) -> ScoredDraw:
        model = self.network(genome, draw)
        images, labels = self.minibatch(draw)
        cost = self.space.cost(genome)
        own = functools.partial(own_random_numbers, seed=self.seed, name=genome, draw=draw)
        values, blocks = compute_scores(parts_of(self.score), model, images, labels, own)
        if isinstance(self.score, RankSum):
            return ScoredDraw(genome, cost, draw, math.nan, blocks, values)
        return ScoredDraw(genome, cost, draw, values[""], blocks)

    def network(self, genome: Genome, draw: int) -> nn.Module:
        """Makes the network that is scored, on the CPU, whose random numbers are the same everywhere."""
        with seeded(self.seed_of(genome, draw)):
            return self.space.build_active(genome)

    def seed_of(self, genome: Genome, draw: int) -> int:
        """The seed of the weights of a draw."""
        return weights_seed(self.seed, genome, draw)

    def minibatch(self, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The images and labels of a draw, as they are computed with: each draw takes the next part of the data."""
        if not hasattr(self._own, "batches"):
            self._own.batches = {}
        batch = draw % self.data.num_batches
        if batch not in self._own.batches:
            images, labels = self.data.batch(batch)
            if images.is_inference():
                # Made in inference mode, where no gradient passes through them.
                images = images.clone()
            images = images.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
            self._own.batches[batch] = images, labels.to(self.device)
        return self._own.batches[batch]
