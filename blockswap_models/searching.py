"""The search: sample genomes within a budget, score each, refine the leaders, rank them (paper, section 4)."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .budgets import Budget, BudgetError
from .candidates import HALVING, Candidate
from .data import Minibatch, noise_minibatch, tensor_minibatch
from .genome import Genome, GenomeError
from .record import Record
from .score import Score, fisher_by_block, fisher_potential
from .space import SearchSpace
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
    budget: Budget | None,
    samples: int = 1000,
    seed: int = 0,
    *,
    genomes: Iterable[Genome | str] | None = None,
    data: Minibatch | tuple[torch.Tensor, torch.Tensor] | None = None,
    batch_size: int = 32,
    score: Score = fisher_potential,
    draws: int = 1,
    refine: int = 0,
    workers: int = 1,
    executor: Executor | None = None,
    device: torch.device | str = "cpu",
    record: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Iterable[Any], int, int], Iterable[Any]] | None = None,
) -> SearchResult:
    """Samples genomes within a budget, scores each on one minibatch, and ranks them.

    The minibatch is `batch_size` images of 1/f noise, or `data`: one of `dataset_minibatch`, or a pair of tensors. Each
    of `draws` initialises the weights anew; each round of `refine` gives the best quarter four times the draws. A score
    depends on the seed, the genome and the draw, never on order or worker. Where `genomes` are given, exactly these are
    scored, each once, and none is sampled; they too must fit the budget, unless it is None. `workers` are processes on
    this machine, of one thread each; any `executor` takes their place. With a `record` each score is written as it
    comes, and `resume` goes on with it. `progress` wraps the iterable of scores, given how many there are and are done.

    Raises BudgetError where no genome fits or a given one does not, GenomeError for one that is not of this space,
    RecordError for a record of another search, SearchError where no score is finite, WorkerError where workers died.
    """
    space = SearchSpace(space) if isinstance(space, str) else space
    for name, value in {"samples": samples, "draws": draws, "workers": workers, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value}")
    for name, value in {"seed": seed, "refine": refine}.items():
        if value < 0:
            raise ValueError(f"{name} is 0 or more, not {value}")
    budget = Budget(params=(0, None)) if budget is None else budget
    chosen = space.sample(samples, budget, seed) if genomes is None else _given(space, budget, genomes)
    if data is None:
        data = noise_minibatch(space, batch_size, seed)
    elif not isinstance(data, Minibatch):
        data = tensor_minibatch(space, *data)
    images = data.images.to(device).contiguous(memory_format=torch.channels_last)
    shared = Shared(_Job(space, images, data.labels.to(device), score, seed, device))
    with ExitStack() as stack:
        kept = stack.enter_context(
            Record(record, _describe(space, budget, seed, data, score), resume) if record is not None else nullcontext()
        )
        if executor is None and workers > 1 and torch.device(device).type == "cpu":
            executor = stack.enter_context(local_workers(min(workers, len(chosen)), shared))
        rows: dict[tuple[str, int], dict[str, Any]] = kept.scores if kept else {}
        order = list(chosen)
        ranked: list[Candidate] = []
        for each_round in range(refine + 1):
            leaders = order[: max(1, len(chosen) // HALVING**each_round)]
            wanted = range(draws * HALVING**each_round)
            tasks = [(genome, draw) for draw in wanted for genome in leaders if (genome, draw) not in rows]
            results: Iterable[dict[str, Any]] = map_in_order(shared, tasks, executor)
            total = len(leaders) * len(wanted)
            for row in progress(results, total, total - len(tasks)) if progress and tasks else results:
                kept.add(row) if kept else rows.update({(row["genome"], row["draw"]): row})
            scored = [Candidate.of_rows([rows[genome, draw] for draw in wanted]) for genome in leaders]
            # Ties, and scores that are not finite, keep their order.
            scored.sort(key=lambda each: -each.score if math.isfinite(each.score) else math.inf)
            ranked[: len(scored)] = scored
            order[: len(scored)] = [each.genome for each in scored]
    if not math.isfinite(ranked[0].score):
        raise SearchError(f"none of {len(ranked)} scores is finite; look at the data, or choose another score")
    return SearchResult(space, budget, tuple(ranked))


def _given(space: SearchSpace, budget: Budget, genomes: Iterable[Genome | str]) -> list[Genome]:
    """Reads genomes that are to be scored; raises GenomeError or BudgetError for one that does not fit."""
    found: dict[Genome, None] = {}
    for number, text in enumerate(genomes, start=1):
        try:
            genome = space.layout.fit(text)
            cost = space.cost(genome)
        except GenomeError as error:
            raise GenomeError(f"genome {number} of those to score: {error}") from None
        if not budget.fits(cost):
            raise BudgetError(f"genome {number} of those to score, {genome}, has {cost}; the budget is {budget}")
        found[genome] = None
    if not found:
        raise ValueError("no genomes to score; give at least one, or leave genomes out to have them sampled")
    return list(found)


def _describe(space: SearchSpace, budget: Budget, seed: int, data: Minibatch, score: Score) -> dict[str, Any]:
    """All that genomes and scores depend on; not their number, so that a search can be extended."""
    return {
        "space": space.layout.name,
        "types": " ".join(map(str, space.types)),
        "input_size": list(space.input_size),
        "num_classes": space.num_classes,
        "budget": {name: [low, high if math.isfinite(high) else None] for name, (low, high) in budget.windows.items()},
        "seed": seed,
        "data": data.source,
        "score": getattr(score, "__name__", type(score).__name__),
        **({} if space.latency is None else {"latency_table": space.latency.digest}),
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
        if cost.latency is not None:
            row["latency"] = cost.latency
        return row if blocks is None else {**row, "blocks": blocks}
