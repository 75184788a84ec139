"""The search: sample genomes within a budget, score each, keep a record, return them ranked (paper, section 4)."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from .budgets import Budget, Cost
from .data import Minibatch, noise_minibatch, tensor_minibatch
from .genome import Genome
from .record import Record
from .score import Score, fisher_by_block, fisher_potential
from .space import SearchSpace

__all__ = ["Candidate", "SearchError", "SearchResult", "search"]


class SearchError(RuntimeError):
    """A search that cannot give an answer; its record keeps what was scored."""


@dataclass(frozen=True)
class Candidate:
    """A scored genome: its cost, the score of each draw of its weights, and the share of each block in the score.

    `score` is the geometric mean over the draws, NaN where one of them was not finite.
    """

    genome: Genome
    cost: Cost
    draws: tuple[float, ...]
    shares: tuple[float, ...] | None = None

    @property
    def score(self) -> float:
        """The geometric mean of the draws: scores of one network differ by factors from draw to draw."""
        if len(self.draws) == 1:
            return self.draws[0]
        if not all(draw > 0 for draw in self.draws):
            return math.nan if any(map(math.isnan, self.draws)) else sum(self.draws) / len(self.draws)
        return math.exp(sum(map(math.log, self.draws)) / len(self.draws))


@dataclass(frozen=True)
class SearchResult:
    """The candidates of a search from best to worst; those without a finite score stand last."""

    space: SearchSpace
    budget: Budget
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The candidate with the highest score."""
        return self.candidates[0]


def search(
    space: SearchSpace | str,
    budget: Budget,
    samples: int = 1000,
    seed: int = 0,
    *,
    data: Minibatch | tuple[torch.Tensor, torch.Tensor] | None = None,
    batch_size: int = 32,
    score: Score = fisher_potential,
    draws: int = 1,
    workers: int = 1,
    device: torch.device | str = "cpu",
    record: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Iterable[Any], int, int], Iterable[Any]] | None = None,
) -> SearchResult:
    """Samples genomes within a budget, scores each on one minibatch, and ranks them.

    The minibatch is `batch_size` images of 1/f noise, or `data`: one of `dataset_minibatch`, or a pair of tensors. Each
    of `draws` initialises the weights anew. A score depends on the seed, the genome and the draw, never on order or
    worker. `workers` are processes of one thread each (on a CPU). With a `record` each score is written as it comes,
    and `resume` goes on with it. `progress` wraps the iterable of scores, given how many there are and are done.

    Raises BudgetError where no genome fits, RecordError for a record of another search, SearchError where no score is
    finite.
    """
    space = SearchSpace(space) if isinstance(space, str) else space
    for name, value in {"samples": samples, "draws": draws, "workers": workers, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value}")
    if seed < 0:
        raise ValueError(f"a seed is 0 or more, not {seed}")
    genomes = space.sample(samples, budget, seed)
    if data is None:
        data = noise_minibatch(space, batch_size, seed)
    elif not isinstance(data, Minibatch):
        data = tensor_minibatch(space, *data)
    description = _describe(space, budget, seed, data, score)
    with Record(record, description, resume) if record is not None else nullcontext() as kept:
        rows: dict[tuple[str, int], dict[str, Any]] = kept.scores if kept else {}
        tasks = [(genome, draw) for draw in range(draws) for genome in genomes if (genome, draw) not in rows]
        images = data.images.to(device).contiguous(memory_format=torch.channels_last)
        job = _Job(space, images, data.labels.to(device), score, seed, device)
        results = _run(job, tasks, workers)
        total = len(genomes) * draws
        for row in progress(results, total, total - len(tasks)) if progress else results:
            kept.add(row) if kept else rows.update({(row["genome"], row["draw"]): row})
    candidates = [_candidate(space, genome, [rows[genome, draw] for draw in range(draws)]) for genome in genomes]
    # Ties, and scores that are not finite, keep the order of the samples.
    candidates.sort(key=lambda each: -each.score if math.isfinite(each.score) else math.inf)
    if not math.isfinite(candidates[0].score):
        raise SearchError(f"none of {len(candidates)} scores is finite; look at the data, or choose another score")
    return SearchResult(space, budget, tuple(candidates))


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
        with torch.random.fork_rng(devices=[]):
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


def _candidate(space: SearchSpace, genome: Genome, rows: list[dict[str, Any]]) -> Candidate:
    scores = tuple(math.nan if row["score"] is None else row["score"] for row in rows)
    blocks = [row["blocks"] for row in rows if row.get("blocks") and row["score"]]
    shares = None
    if blocks:
        shares = tuple(sum(each[i] / sum(each) for each in blocks) / len(blocks) for i in range(len(blocks[0])))
    return Candidate(genome, space.cost(genome), scores, shares)


def _run(job: _Job, tasks: list[tuple[Genome, int]], workers: int) -> Iterator[dict[str, Any]]:
    """Scores the tasks and yields their rows in order."""
    workers = min(workers, len(tasks))
    if workers <= 1 or torch.device(job.device).type != "cpu":
        with _one_thread():
            yield from map(job, tasks)
        return
    context = multiprocessing.get_context()
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job,))
    try:
        yield from pool.map(_work, tasks)
    except BrokenProcessPool:
        raise SearchError(
            "a worker died, perhaps for want of memory; go on (--resume) with fewer (--workers)"
        ) from None
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes on one thread, so that sums are taken in one order and workers do not fight for cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_job: _Job | None = None


def _start_worker(job: _Job) -> None:
    global _job
    _job = job
    torch.set_num_threads(1)
    # Ctrl-C is for the parent, which ends its workers; where it was killed, they end by themselves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(task: tuple[Genome, int]) -> dict[str, Any]:
    if _job is None:
        raise RuntimeError(f"worker {os.getpid()} was not started with a job")
    return _job(task)
