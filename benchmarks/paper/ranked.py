"""Rankings of networks before or early in training, kept in a file, so that none is computed twice."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.lib.trained import TEACHER, Trainer
from blockswap_models import Genome, SearchSpace
from blockswap_models.budget import Cost
from blockswap_models.searching.candidates import Candidate
from blockswap_models.searching.fisher import Score, fisher_by_block
from blockswap_models.searching.probe_images import Minibatch
from blockswap_models.searching.rankings import SCORES, after
from blockswap_models.searching.scorer import Scorer

__all__ = ["RANKINGS", "Scores", "describe", "fisher_log", "score_all"]


def fisher_log(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Sums the logarithms of the Fisher potential of all blocks, so that none outweighs the others."""
    blocks = fisher_by_block(model, images, labels)
    return sum(map(math.log, blocks)) if min(blocks) > 0 else -math.inf


# Parameters and MACs are in the records of the networks.
RANKINGS: dict[str, Score] = {
    **{name: score for name, score in SCORES.items() if name not in ("params", "macs")},
    "fisher-log": fisher_log,
}


class Scores:
    """A file of JSON lines, each with a score of a genome and all that it depends on; None is one that failed."""

    KEY = ("genome", "ranking", "minibatches", "draw", "seed", "data")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[tuple[Any, ...], float | None] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                # Empty, or cut off when the benchmark was killed.
                continue
            self.values[tuple(row[name] for name in self.KEY)] = row["score"]

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds scores, each with the names of KEY and `score`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            for row in rows:
                row = {**row, "score": row["score"] if math.isfinite(row["score"]) else None}
                # The end of a line comes first, so that one that was cut off spoils no other.
                file.write("\n" + json.dumps(row))
                self.values[tuple(row[name] for name in self.KEY)] = row["score"]
            file.flush()
            os.fsync(file.fileno())

    def of(self, genome: str, ranking: str, minibatches: int, draws: int, seed: int, data: str) -> float | None:
        """Averages the draws as a search does: the geometric mean, or the mean where one is not above 0.

        Raises KeyError where one has not been computed.
        """
        values = [self.values[genome, ranking, minibatches, draw, seed, data] for draw in range(draws)]
        numbers = tuple(math.nan if value is None else value for value in values)
        # Its cost is of no account here.
        score = Candidate(Genome(genome), Cost(0, 0), numbers).score
        return score if math.isfinite(score) else None


def score_all(
    scores: Scores, trainer: Trainer, genomes: Sequence[str], minibatches: Sequence[int], draws: int, seed: int
) -> None:
    """Computes the scores that the file lacks.

    A draw has new weights, which depend on the genome and the seed too, and new minibatches: the first of a training,
    of the recipe's size and augmented. "After n minibatches" is after n - 1 steps, on the last. All rankings are of the
    same network, which is trained once.
    """
    space, data = SearchSpace(TEACHER), describe(trainer)
    tasks = [
        (number, draw, genome, missing)
        for draw in range(draws)
        for number in minibatches
        for genome in genomes
        if (missing := [each for each in RANKINGS if (genome, each, number, draw, seed, data) not in scores.values])
    ]
    images: tuple[torch.Tensor, ...] = ()
    held = None
    for number, draw, genome, missing in tqdm(tasks, "scoring", unit=" networks", disable=None):
        if held != (number, draw):
            held, images = (number, draw), trainer.minibatches(number, seed * 1000 + draw)
            scorer = Scorer(space, Minibatch(*images, source=data), seed=seed, device=trainer.device)
        model = scorer.network(Genome(genome), draw).to(trainer.device)
        found = after(_all(missing), number)(model, *images)
        key = {"genome": genome, "minibatches": number, "draw": draw, "seed": seed, "data": data}
        scores.add({**key, "ranking": name, "score": value} for name, value in found.items())


def describe(trainer: Trainer) -> str:
    """Says which images scores are computed on."""
    return f"{trainer.source}, {len(trainer.images.train[1])} images, minibatches of {trainer.recipe.batch_size}"


def _all(names: Sequence[str]) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], dict[str, float]]:
    """Makes the measure of several rankings at once, so that a network is trained once for all of them."""

    def measure(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        return {name: float(RANKINGS[name](model, images, labels)) for name in names}

    return measure
