"""Which blocks of a library to join: those of the smallest sum of errors within a budget, and of these the best joined.

Under one cost the best genomes are found by dynamic programming over totals, under several by an integer programme.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..budget import Budget, BudgetError, BudgetLike, Cost
from ..genome import Genome
from ..messages import quote
from ..nets.library import HOW_TO_FINISH, BlockLibrary
from ..nets.swap import swap
from ..zoo.cards import file_digest
from .candidates import Candidate, ScoredDraw, rank
from .cost_table import CostTable
from .latency import LatencyTable
from .probe_images import Minibatch
from .record import Record
from .scoring import budget_windows, describe_space
from .search import SearchResult
from .space import SearchSpace

__all__ = ["BlockChoice", "best_by_errors", "joined_accuracy", "search_library", "space_of_library"]

# Seconds of the integer programme for one genome.
_SECONDS = 60


@dataclass(frozen=True)
class BlockChoice:
    """A genome of a library.

    Attributes:
        genome: The genome.
        cost: Its cost.
        error: The sum of its blocks' errors.
        bound: No genome within the budget that stands after it in the order of errors has a smaller sum; where it is
            below `error`, the solver stopped before it could tell.
    """

    genome: Genome
    cost: Cost
    error: float
    bound: float

    @property
    def gap(self) -> float:
        """By how much the sum may be larger than the smallest, as a share of it."""
        return 0.0 if self.error <= self.bound else (self.error - self.bound) / self.error


def space_of_library(model: nn.Module, library: BlockLibrary, latency: LatencyTable | None = None) -> SearchSpace:
    """Makes the search space of a library's blocks, and of those that the network has itself (K).

    Args:
        model: The network that was imitated.
        library: Its library.
        latency: Measured times of the network with these block types.

    Returns:
        The space.

    Raises:
        LibraryError: The library is of other weights.

    Warns:
        UserWarning: The library is unfinished, so that types are left out where it has yet to train them.
    """
    library.require(model)
    if library.is_unfinished:
        warnings.warn(
            f"the library {quote(str(library.folder))} is unfinished: blocks that it has yet to train are left out; "
            + HOW_TO_FINISH,
            UserWarning,
            stacklevel=2,
        )
    trained = dict.fromkeys(block for _, block in library.errors)
    return SearchSpace(model, ["K", *trained], latency=latency)


def best_by_errors(space: SearchSpace, budget: Budget, library: BlockLibrary, number: int = 50) -> list[BlockChoice]:
    """Finds the genomes within a budget that have the smallest sums of errors, exactly.

    Args:
        space: The space of the library's blocks.
        budget: The budget.
        library: The library.
        number: How many genomes.

    Returns:
        The genomes, from the smallest sum; fewer where fewer fit.

    Raises:
        BudgetError: None fits.
        LibraryError: The library lacks a block of the space.
    """
    errors = [
        np.array([library.error(index, block) if library.has(index, block) else np.inf for block, _ in options])
        for index, options in enumerate(space.options)
    ]
    found = _by_table(space, budget, errors) if len(budget.windows) == 1 else _by_programme(space, budget, errors)
    chosen = list(islice(found, number))
    if not chosen:
        raise BudgetError(f"no genome of the library meets {budget}")
    return chosen


def _by_table(space: SearchSpace, budget: Budget, errors: Sequence[np.ndarray]) -> Iterator[BlockChoice]:
    """Lists genomes by their sum of errors: a best-first search whose bounds are those of the dynamic programme."""
    name, window = space.exact_cost(budget)
    table = space.cost_table(name, window)
    if table.last < table.first:
        return
    least = _least(table, errors)
    order = table.first + np.argsort(least[0][table.first :], kind="stable")
    number = count()
    roots = iter(int(total) for total in order if np.isfinite(least[0][total]))
    root = next(roots, None)
    heap: list[tuple[float, int, float, int, tuple[int, ...]]] = []
    while heap or root is not None:
        # A total joins when its bound is the smallest.
        while root is not None and (not heap or least[0][root] <= heap[0][0]):
            heapq.heappush(heap, (float(least[0][root]), next(number), 0.0, root, ()))
            root = next(roots, None)
        _, _, spent, left, picks = heapq.heappop(heap)
        if len(picks) == len(errors):
            genome, cost = space.decode(picks)
            # Steps of a table that is not exact lead just outside.
            if budget.fits(cost):
                yield BlockChoice(genome, cost, spent, spent)
            continue
        place = len(picks)
        for pick, (steps, error) in enumerate(zip(table.steps[place], errors[place], strict=True)):
            if steps <= left and np.isfinite(rest := least[place + 1][left - steps]):
                total = spent + float(error)
                heapq.heappush(heap, (total + float(rest), next(number), total, left - steps, (*picks, pick)))


def _least(table: CostTable, errors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The smallest sum of errors of the blocks from i on that spend exactly t steps, as `least[i][t]`."""
    least = [np.full(table.last + 1, np.inf)]
    least[0][0] = 0
    for steps, values in zip(reversed(table.steps), reversed(errors), strict=True):
        grown = np.full(table.last + 1, np.inf)
        for spend, value in zip(steps, values, strict=True):
            if spend <= table.last:
                np.minimum(grown[spend:], least[0][: table.last + 1 - spend] + value, out=grown[spend:])
        least.insert(0, grown)
    return least


def _by_programme(space: SearchSpace, budget: Budget, errors: Sequence[np.ndarray]) -> Iterator[BlockChoice]:
    """Lists genomes by their sum of errors, each by an integer programme (HiGHS) that excludes those before it."""
    fixed, options = space.option_costs
    values = np.concatenate(errors)
    places = np.repeat(np.arange(len(errors)), list(map(len, errors)))
    usable = np.isfinite(values)
    constraints = [LinearConstraint((places == np.arange(len(errors))[:, None]).astype(float), 1, 1)]
    for name, (low, high) in budget.windows.items():
        costs = np.array([getattr(cost, name) for each in options for cost in each], float)
        start = getattr(fixed, name)
        if name == "size":
            high += space.size_slack
        # In shares of the window's end, so that the solver's tolerance means the same for each cost.
        scale = high if np.isfinite(high) else max(low, 1.0)
        constraints.append(LinearConstraint(costs[None] / scale, (low - start) / scale, (high - start) / scale))
    while True:
        solved = milp(
            np.where(usable, values, 0.0),
            integrality=np.ones(len(values), dtype=np.int64),
            bounds=Bounds(0, usable.astype(float)),
            constraints=constraints,
            options={"time_limit": _SECONDS, "mip_rel_gap": 0.0},
        )
        if solved.x is None:
            return
        chosen = np.flatnonzero(solved.x > 0.5)
        picks = [int(choice - np.flatnonzero(places == place)[0]) for place, choice in enumerate(chosen)]
        genome, cost = space.decode(picks)
        excluded = np.zeros((1, len(values)))
        excluded[0, chosen] = 1
        constraints.append(LinearConstraint(excluded, -np.inf, len(errors) - 1))
        if budget.fits(cost):
            yield BlockChoice(genome, cost, float(values[chosen].sum()), float(solved.mip_dual_bound))


def joined_accuracy(model: nn.Module, images: Minibatch) -> float:
    """Measures the share of images, in percent, that a network of joined blocks classifies correctly.

    The statistics of BN are measured anew on the same images: what comes before a block is no longer the original's.

    Args:
        model: The network, whose statistics of BN change.
        images: Images and labels.

    Returns:
        The accuracy.
    """
    device = next(model.parameters()).device
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    for each in norms:
        each.reset_running_stats()
        each.momentum = None
    batches = [images.batch(index) for index in range(images.num_batches)]
    with torch.no_grad():
        model.eval()
        for each in norms:
            each.train()
        for inputs, _ in batches:
            model(inputs.to(device))
        model.eval()
        right = sum(int((model(inputs.to(device)).argmax(1).cpu() == labels).sum()) for inputs, labels in batches)
    return 100 * right / sum(len(labels) for _, labels in batches)


def search_library(
    model: nn.Module,
    library: BlockLibrary,
    budget: BudgetLike,
    images: Minibatch,
    number: int = 50,
    *,
    latency: LatencyTable | None = None,
    record: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> SearchResult:
    """Chooses blocks of a library: of the genomes with the smallest sums of errors the one that is best when joined.

    Args:
        model: The network that was imitated.
        library: Its library.
        budget: The budget.
        images: Labelled images on which joined networks are measured, such as 1,000.
        number: Genomes to join.
        latency: Measured times of the network with these block types, for a budget of latency.
        record: A file, to which the accuracy of each genome is written as it comes.
        resume: Whether to continue that file.
        progress: Wraps the genomes, as tqdm does.

    Returns:
        The genomes by their accuracy in percent when joined, which is their score.

    Raises:
        BudgetError: No genome fits.
        LibraryError: The library is of other weights.
        RecordError: The record is of another search, or cannot be written.

    Example:
        ```python
        library = BlockLibrary.load("lib")
        images = dataset_minibatch(space_of_library(model, library), "torch/cifar10", "data", 250, num_batches=4)
        best = search_library(model, library, Budget(params=400_000), images).best
        student = swap(model, best.genome, library=library)
        ```
    """
    space, budget = space_of_library(model, library, latency).resolve(budget)
    choices = best_by_errors(space, budget, library, number)
    described = {
        **describe_space(space),
        "budget": budget_windows(budget),
        "asked": budget.as_json(),
        "library": file_digest(library.folder / "errors.jsonl"),
        "data": images.source,
        "score": "joined accuracy",
        "dtype": "float32",
        "strategy": "library",
        **({} if space.latency is None else {"latency_table": space.latency.digest}),
        "about": {**images.about, "library": str(library.folder)},
    }
    scored: dict[Genome, ScoredDraw] = {}
    with ExitStack() as stack:
        kept = None if record is None else stack.enter_context(Record(record, described, resume))
        for each in progress(choices) if progress else choices:
            draw = None if kept is None else kept.draws.get((each.genome, 0))
            if draw is None:
                joined = swap(model, each.genome, library=library)
                draw = ScoredDraw(each.genome, each.cost, 0, joined_accuracy(joined, images))
                if kept is not None:
                    kept.add(draw)
            scored[each.genome] = draw
    # Of equal ones the smaller sum of errors stands first.
    ranked = rank(Candidate.of_draws([each]) for each in scored.values())
    return SearchResult(space, budget, tuple(ranked), draws=tuple(scored.values()), searched=described)
