"""The scores of one search: read from its record or computed by workers, and recorded as they come."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..budget import Budget
from ..counts import require_counts
from ..genome import Genome
from ..layout import Layout
from ..machine import find_device
from ..progress import is_watched
from .candidates import ETA, Candidate, ScoredDraw, rank
from .fisher import Score
from .probe_images import Minibatch, affordable_batches, noise_minibatch, user_minibatch
from .rankings import is_fast_in_bfloat16, name_of, needs_float32
from .record import Record
from .score_bar import ScoreBar
from .scorer import Scorer, fast_dtype
from .space import SearchSpace
from .workers import Shared, WorkerError, local_workers, map_in_order

__all__ = [
    "Progress",
    "Scoring",
    "budget_windows",
    "check_numbers",
    "describe",
    "describe_space",
    "make_scorer",
    "scores_of_refinement",
]

# Called for each round with its scores, the number of scores of the search, how many are done, and the round's name.
Progress = Callable[[Iterable[Any], int, int, str], Iterable[Any]]


def check_numbers(*, seed: int, refine: int, **counts: int) -> None:
    """Raises TypeError or ValueError for what is no whole number, or is too small; counts are at least 1."""
    require_counts(**counts)
    require_counts(0, seed=seed, refine=refine)


def make_scorer(
    space: SearchSpace,
    data: Minibatch | tuple[Any, Any] | Iterable[Any] | str | Path | None,
    batch_size: int,
    score: Score,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype | None,
    executor: Executor | None,
) -> Scorer:
    """Makes the scorer of a search's arguments; see `search` for what they mean."""
    # A record cannot have numbers of numpy, and small ones overflow.
    batch_size, seed = operator.index(batch_size), operator.index(seed)
    if data is None:
        data = noise_minibatch(space, batch_size, seed, affordable_batches(space, batch_size))
    else:
        data = user_minibatch(space, data, batch_size, seed)
    # Another process may have other devices.
    device = find_device(device) if executor is None else torch.device(device)
    if dtype is None:
        dtype = fast_dtype(device) if is_fast_in_bfloat16(score) else torch.float32
    elif dtype != torch.float32 and needs_float32(score):
        raise ValueError(f"the score {name_of(score)} is computed in float32; use dtype=float32")
    return Scorer(space, data, score, seed, device, dtype)


class Scoring:
    """Scores genomes for a search, once each: a context manager, which holds the record and the workers.

    Args:
        scorer: What scores.
        workers: Processes on this machine.
        executor: Any executor, which takes the place of `workers`.
        record: The file of scores.
        resume: Whether to continue that file.
        described: The header of the record.
        progress: See `search`.
    """

    def __init__(
        self,
        scorer: Scorer,
        workers: int,
        executor: Executor | None,
        record: str | Path | None,
        resume: bool,
        described: dict[str, Any],
        progress: bool | Progress | None,
    ) -> None:
        self._shared = Shared(scorer)
        self._workers, self._executor = workers, executor
        show = progress is True or (progress is None and is_watched())
        self._progress = ScoreBar() if show else progress if callable(progress) else None
        self._local = executor is None and workers > 1 and torch.device(scorer.device).type == "cpu"
        if self._local or executor is not None:
            # Before there is a record: what cannot be sent to workers is refused here.
            assert self._shared.content
        self._record = None if record is None else Record(record, described, resume)
        self._scored: dict[tuple[Genome, int], ScoredDraw] = self._record.draws if self._record else {}
        # The number of scores of the search, as far as it is known, and the number that is done.
        self.total = self._finished = 0
        self._stack = ExitStack()

    def __enter__(self) -> Scoring:
        if self._record:
            self._stack.enter_context(self._record)
        if isinstance(self._progress, ScoreBar):
            self._stack.enter_context(self._progress)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def draws(self) -> tuple[ScoredDraw, ...]:
        """All scores so far, as they came."""
        return tuple(self._scored.values())

    def candidates(self, genomes: Sequence[Genome], number: int, new: int, round_name: str) -> list[Candidate]:
        """Scores genomes up to a number of draws, of which some are new in this round."""
        tasks = [(genome, draw) for draw in range(number) for genome in genomes if (genome, draw) not in self._scored]
        if tasks and self._local and self._executor is None:
            # A search that was done before it was resumed needs none.
            self._executor = self._stack.enter_context(local_workers(self._workers))
        scored = map_in_order(self._shared, tasks, self._executor, cancel=not self._local)
        results: Iterable[ScoredDraw] = scored
        self._finished += len(genomes) * new
        if self._progress and tasks:
            results = self._progress(results, self.total, max(0, self._finished - len(tasks)), round_name)
        try:
            # Closed at once, also where its error is kept: it gives the threads of this process back.
            with closing(scored):
                for each in results:
                    if self._record:
                        self._record.add(each)
                    self._scored[each.genome, each.draw] = each
        except WorkerError:
            if self._scored:
                raise
            raise WorkerError(
                "a worker died before the first score, perhaps out of memory; use fewer workers="
            ) from None
        return [Candidate.of_draws([self._scored[genome, draw] for draw in range(number)]) for genome in genomes]

    def refined(self, candidates: Sequence[Candidate], draws: int, refine: int, of: str = "") -> list[Candidate]:
        """Gives the best more draws, round by round, and ranks all; `of` begins the names of the rounds."""
        # In the order in which they were proposed, as the record has them: so ties are ranked alike.
        by_genome = {each.genome: each for each in candidates}
        ranked = rank(candidates)
        for each_round in range(1, refine + 1):
            leaders = [each.genome for each in ranked[: max(1, len(ranked) // ETA**each_round)]]
            number = draws * ETA**each_round
            round_name = f"{of}refining, round {each_round} of {refine}"
            refined = self.candidates(leaders, number, number - number // ETA, round_name)
            by_genome.update({each.genome: each for each in refined})
            ranked = rank(by_genome.values())
        return ranked


def scores_of_refinement(planned: int, draws: int, refine: int) -> int:
    """Counts the scores that `Scoring.refined` adds to those of so many genomes."""
    # Genomes and draws of each round; a quarter of the draws are those of the round before.
    rounds = [(max(1, planned // ETA**each), draws * ETA**each) for each in range(1, refine + 1)]
    return sum(leaders * (number - number // ETA) for leaders, number in rounds)


def describe(scorer: Scorer, strategy: str, within: dict[str, Any]) -> dict[str, Any]:
    """All that genomes and scores depend on; not their number, so that a search can be extended.

    `within` is what the record says of the budget, or of several.
    """
    space = scorer.space
    return {
        **describe_space(space),
        **within,
        "seed": scorer.seed,
        "data": scorer.data.source,
        "score": name_of(scorer.score),
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "strategy": strategy,
        **({} if space.latency is None else {"latency_table": space.latency.digest}),
        "versions": {"blockswap_models": __version__, "torch": torch.__version__},
        # What a run that trains on the same data must know; scores do not depend on it.
        **({"about": dict(scorer.data.about)} if scorer.data.about else {}),
    }


def describe_space(space: SearchSpace) -> dict[str, Any]:
    """What a record says of the networks that are searched."""
    return {
        # Of a network that timm has by name, with its tag, by which it makes its images.
        "space": space.layout.name if space.network is None else space.network.name or space.layout.name,
        # Of the user's own, the name alone does not say it.
        **({} if space.layout.is_standard else {"layout": _as_json(space.layout)}),
        **({} if space.network is None else {"network": space.network.weights}),
        "types": " ".join(map(str, space.types)),
        "input_size": list(space.input_size),
        "num_classes": space.num_classes,
    }


def budget_windows(budget: Budget) -> dict[str, list[float | None]]:
    """What a record says of a budget: the window of each cost, whose open end is null."""
    return {name: [low, high if math.isfinite(high) else None] for name, (low, high) in budget.windows.items()}


def _as_json(layout: Layout) -> dict[str, Any]:
    return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(layout).items()}
