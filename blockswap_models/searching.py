"""The search: sample genomes within a budget, score each, refine the leaders, rank them (paper, section 4)."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .budgets import Budget
from .candidates import HALVING, Candidate
from .data import Minibatch, noise_minibatch, tensor_minibatch
from .genome import Genome
from .record import Record
from .score import Score, fisher_by_block, fisher_potential
from .space import SearchSpace
from .strategies import STRATEGIES
from .workers import Shared, local_workers, map_in_order

__all__ = ["Candidate", "SearchError", "SearchResult", "search"]

_drawing = threading.Lock()


class SearchError(RuntimeError):
    """A search that cannot give an answer; its record keeps what was scored."""


@dataclass(frozen=True)
class SearchResult:
    """The candidates of a search from best to worst: first those that were refined most, last those without a score."""

    space: SearchSpace
    budget: Budget
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The candidate with the highest score of those that were refined most."""
        return self.candidates[0]

    @property
    def rivals(self) -> int | None:
        """How many others are within the uncertainty of the best; None where one draw cannot tell."""
        best = self.best
        if math.isnan(best.spread):
            return None
        return sum(
            each.score * max(each.spread, 1.0) >= best.score / best.spread
            for each in self.candidates[1:]
            if len(each.draws) == len(best.draws)
        )


def search(
    space: SearchSpace | str,
    budget: Budget,
    samples: int = 1000,
    seed: int = 0,
    *,
    data: Minibatch | tuple[torch.Tensor, torch.Tensor] | None = None,
    batch_size: int = 32,
    score: Score = fisher_potential,
    strategy: str = "random",
    draws: int = 1,
    refine: int = 0,
    workers: int = 1,
    executor: Executor | None = None,
    device: torch.device | str = "cpu",
    record: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Iterable[Any], int, int], Iterable[Any]] | None = None,
) -> SearchResult:
    """Chooses genomes within a budget, scores each on one minibatch, and ranks them.

    The `strategy` "random" draws them uniformly; "surrogate" draws a hundred so, and then takes, fifty at a time, the
    best by a model of the scores so far. The minibatch is `batch_size` images of 1/f noise, or `data`: one of
    `dataset_minibatch`, or a pair of tensors. Each of `draws` initialises the weights anew; each round of `refine`
    gives the best quarter four times the draws. A score depends on the seed, the genome and the draw, never on order or
    worker. `workers` are processes on this machine, of one thread each; any `executor` takes their place. With a
    `record` each score is written as it comes, and `resume` goes on with it. `progress` wraps the iterable of scores,
    given how many there are and are done; it is called for each round.

    Raises BudgetError where no genome fits, RecordError for a record of another search, SearchError where no score is
    finite, WorkerError where workers died.
    """
    space = SearchSpace(space) if isinstance(space, str) else space
    for name, value in {"samples": samples, "draws": draws, "workers": workers, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value}")
    for name, value in {"seed": seed, "refine": refine}.items():
        if value < 0:
            raise ValueError(f"{name} is 0 or more, not {value}")
    if strategy not in STRATEGIES:
        raise ValueError(f"there is no strategy {strategy!r}; write {' or '.join(map(repr, STRATEGIES))}")
    propose = STRATEGIES[strategy]
    genomes = propose(space, budget, seed, [], samples)
    if data is None:
        data = noise_minibatch(space, batch_size, seed)
    elif not isinstance(data, Minibatch):
        data = tensor_minibatch(space, *data)
    images = data.images.to(device).contiguous(memory_format=torch.channels_last)
    shared = Shared(_Job(space, images, data.labels.to(device), score, seed, device))
    with ExitStack() as stack:
        described = {**_describe(space, budget, seed, data, score), "strategy": strategy}
        kept = stack.enter_context(Record(record, described, resume) if record is not None else nullcontext())
        if executor is None and workers > 1 and torch.device(device).type == "cpu":
            executor = stack.enter_context(local_workers(min(workers, len(genomes)), shared))
        rows: dict[tuple[str, int], dict[str, Any]] = kept.scores if kept else {}

        def evaluate(genomes: Sequence[Genome], number: int, before: int, planned: int) -> list[Candidate]:
            """Scores genomes by so many draws; of the genomes planned, so many were scored before."""
            tasks = [(genome, draw) for draw in range(number) for genome in genomes if (genome, draw) not in rows]
            results: Iterable[dict[str, Any]] = map_in_order(shared, tasks, executor)
            if progress and tasks:
                results = progress(results, planned * number, (before + len(genomes)) * number - len(tasks))
            for row in results:
                kept.add(row) if kept else rows.update({(row["genome"], row["draw"]): row})
            return [Candidate.of_rows([rows[genome, draw] for draw in range(number)]) for genome in genomes]

        ranked: list[Candidate] = []
        # All random genomes are one round, which is shorter than asked for where fewer fit.
        planned = len(genomes) if strategy == "random" else samples
        while genomes:
            ranked += evaluate(genomes, draws, len(ranked), planned)
            left = samples - len(ranked)
            genomes = propose(space, budget, seed, ranked, left) if left else []
        ranked.sort(key=_best_first)
        for each_round in range(1, refine + 1):
            leaders = [each.genome for each in ranked[: max(1, len(ranked) // HALVING**each_round)]]
            ranked[: len(leaders)] = sorted(
                evaluate(leaders, draws * HALVING**each_round, 0, len(leaders)), key=_best_first
            )
    if not math.isfinite(ranked[0].score):
        raise SearchError(f"none of {len(ranked)} scores is finite; look at the data, or choose another score")
    return SearchResult(space, budget, tuple(ranked))


def _best_first(each: Candidate) -> float:
    """Sorts scores; ties, and scores that are not finite, keep their order."""
    return -each.score if math.isfinite(each.score) else math.inf


def _describe(space: SearchSpace, budget: Budget, seed: int, data: Minibatch, score: Score) -> dict[str, Any]:
    """All that random genomes and scores depend on; not their number, so that a search can be extended."""
    return {
        "space": space.layout.name,
        "types": " ".join(map(str, space.types)),
        "input_size": list(space.input_size),
        "num_classes": space.num_classes,
        "budget": {name: [low, high if math.isfinite(high) else None] for name, (low, high) in budget.windows.items()},
        "seed": seed,
        "data": data.source,
        "score": getattr(score, "__name__", type(score).__name__),
    }


@dataclass(frozen=True)
class _Job:
    """What all scores of a search share."""

    space: SearchSpace
    images: torch.Tensor
    labels: torch.Tensor
    score: Score
    seed: int
    device: torch.device | str

    def __call__(self, task: tuple[Genome, int]) -> dict[str, Any]:
        genome, draw = task
        digest = hashlib.sha256(f"weights/{self.seed}/{genome}/{draw}".encode()).digest()
        # The random numbers of torch are the process's, also where the workers are threads.
        with _drawing, torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            # A branch that starts at zero has no Fisher potential.
            model = self.space.build(genome, **({} if self.space.layout.preact else {"zero_init_last": False}))
        model.to(self.device)
        if self.score is fisher_potential:
            blocks = fisher_by_block(model, self.images, self.labels)
            value = sum(blocks)
        else:
            blocks, value = None, float(self.score(model, self.images, self.labels))
        cost = self.space.cost(genome)
        row = {"genome": genome, "params": cost.params, "macs": cost.macs, "draw": draw, "score": value}
        return row if blocks is None else {**row, "blocks": blocks}
