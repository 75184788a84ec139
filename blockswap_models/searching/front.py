"""Searches at several budgets that share what they learn, and the Pareto front of score against cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from ..budget import Budget, BudgetError, BudgetLike
from ..counts import require_counts
from ..genome import Genome
from .candidates import Candidate, candidates_of, common_cost, comparable, estimated, pareto, rank_within
from .fisher import Score
from .probe_images import Minibatch
from .rankings import images_of, score_named
from .scoring import Progress, Scoring, budget_windows, check_numbers, describe, make_scorer, scores_of_refinement
from .search import SearchResult, require_scores, space_named
from .space import SearchSpace
from .strategies import strategy_named

__all__ = ["Front", "budgets_along", "search_front"]


@dataclass(frozen=True)
class Front:
    """What a search at several budgets found.

    Attributes:
        cost: The cost that the budgets are of: `params`, `macs`, `latency` or `size`.
        results: What was found within each budget, in the order of the budgets. A genome that fits two of them is in
            both.
        candidates: The Pareto front, from the cheapest to the dearest: each has a higher score than all cheaper ones.
            Where scores are the means of their own draws, it holds genomes with the most draws only.
    """

    cost: str
    results: tuple[SearchResult, ...]
    candidates: tuple[Candidate, ...]


def search_front(
    space: SearchSpace | str,
    budgets: Sequence[BudgetLike],
    samples: int = 1000,
    seed: int = 0,
    *,
    cost: str | None = None,
    data: Minibatch | tuple[Any, Any] | Iterable[Any] | None = None,
    batch_size: int | None = None,
    score: Score | str | None = None,
    strategy: str = "surrogate",
    draws: int = 1,
    refine: int = 3,
    workers: int = 1,
    executor: Executor | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    record: str | Path | None = None,
    resume: bool = False,
    progress: bool | Progress | None = None,
) -> Front:
    """Searches at several budgets in one run, and finds the Pareto front of score against cost.

    Scores are shared: the additive model of the surrogate strategy is fitted to those of all budgets, and a genome that
    fits several budgets is scored once. The leaders of each budget are refined.

    Args:
        space: A search space, or the name of a network such as `wrn40_2`.
        budgets: The budgets, all of the same costs; the front is along the one in which they differ. `budgets_along`
            makes some.
        samples: Genomes to score for each budget.
        seed: Seed of genomes, weights and noise.
        cost: The cost that the front is along: by default the first in which the budgets differ.
        data: Images and labels, as for `search`.
        batch_size: Images in a minibatch: by default 8, and 32 for scores that need more.
        score: A name or a function, as for `search`.
        strategy: "surrogate" or "random", as for `search`; only the first learns from one budget for another.
        draws: Draws of the weights for each genome.
        refine: Rounds of refinement within each budget, as for `search`.
        workers: Processes on this machine, of one thread each.
        executor: Any executor, which takes the place of `workers`.
        device: Where to score.
        dtype: Precision of scores; the fastest for this score by default.
        record: A file, to which each score is written as it comes.
        resume: Whether to continue that file; all that it holds is ranked.
        progress: As for `search`.

    Returns:
        The front, and the ranking within each budget.

    Raises:
        BudgetError: No genome fits one of the budgets, or they are not of the same costs.
        RecordError: The record is of another search, or cannot be written.
        SearchError: No score is finite, or all are 0.
        WorkerError: Workers died.

    Example:
        ```python
        front = search_front("wrn40_2", ["200k", "400k", "800k"], samples=100, workers=2)
        for candidate in front.candidates:
            print(candidate.cost, candidate.score, candidate.genome)
        ```
    """
    if isinstance(space, str):
        space = space_named(space, data)
    score = score_named(score, space.has_relus)
    batch_size = images_of(score) if batch_size is None else batch_size
    check_numbers(samples=samples, draws=draws, workers=workers, batch_size=batch_size, seed=seed, refine=refine)
    propose = strategy_named(strategy)
    wanted: list[Budget] = []
    for each in [budgets] if isinstance(budgets, str) else budgets:
        # The space of the first budget of a size is that of all.
        space, budget = space.resolve(each)
        wanted.append(budget)
    given, cost = cost, common_cost(wanted)
    if given not in (None, *wanted[0].windows):
        raise BudgetError(f"the budgets are not of {given}; use cost={cost!r}, or leave it out")
    # Before any score: a budget that cannot be met is refused before there is a record.
    chosen = [propose(space, budget, seed, [], samples) for budget in wanted]
    scorer = make_scorer(space, data, batch_size, score, seed, device, dtype, executor)
    described = describe(
        scorer,
        strategy,
        {
            "budgets": [budget_windows(budget) for budget in wanted],
            "asked": [budget.as_json() for budget in wanted],
            # Where the budgets themselves do not say it.
            **({} if given in (None, cost) else {"along": given}),
        },
    )
    cost = given or cost
    with Scoring(scorer, workers, executor, record, resume, described, progress) as scoring:
        planned = [len(each) if strategy == "random" else samples for each in chosen]
        scoring.total = sum(each * draws + scores_of_refinement(each, draws, refine) for each in planned)
        proposed = [0] * len(wanted)
        candidates: dict[Genome, Candidate] = {}
        while any(chosen):
            # One of each budget in turn: from the first hundred a strategy learns how much scores differ.
            turns = dict.fromkeys(genome for turn in zip_longest(*chosen) for genome in turn if genome is not None)
            new = [genome for genome in turns if genome not in candidates]
            candidates.update((each.genome, each) for each in scoring.candidates(new, draws, draws, "scoring"))
            for place, budget in enumerate(wanted):
                proposed[place] += len(chosen[place])
                # All random genomes are one round, and where a budget has no more genomes, others go on.
                left = samples - proposed[place] if chosen[place] and strategy != "random" else 0
                chosen[place] = propose(space, budget, seed, comparable(candidates.values()), left) if left else []
        for budget in wanted:
            within = [each for each in candidates.values() if budget.fits(each.cost)]
            scoring.refined(within, draws, refine, f"{budget}, ")
    # Of all scores in the record, so that it and the result name the same winners.
    found = estimated(candidates_of(scoring.draws))
    rankings = rank_within(wanted, found)
    for budget, ranked in zip(wanted, rankings, strict=True):
        require_scores(ranked, score, f" within {budget}")
    results = []
    for budget, own in zip(wanted, rankings, strict=True):
        genomes = {each.genome for each in own}
        draws_of = tuple(draw for draw in scoring.draws if draw.genome in genomes)
        searched = describe(scorer, strategy, {"budget": budget_windows(budget), "asked": budget.as_json()})
        results.append(SearchResult(space, budget, tuple(own), draws=draws_of, searched=searched))
    return Front(cost, tuple(results), pareto(found, cost))


def budgets_along(
    space: SearchSpace, cost: str, number: int = 6, tolerance: float = 0.025, within: BudgetLike | None = None
) -> list[Budget]:
    """Spreads budgets of one cost evenly, by factors, from the cheapest genome of a space to the dearest.

    Args:
        space: The search space.
        cost: `params`, `macs`, `latency` or `size`.
        number: Number of budgets.
        tolerance: The width of each window, as of a `Budget`.
        within: A budget of other costs, which all genomes meet: the cheapest and the dearest of those are the ends.

    Returns:
        The budgets, from the smallest to the largest, in numbers of two digits, each with the other costs; fewer where
        two would be the same, or where no genome meets one.

    Raises:
        BudgetError: There is no such cost, or there are no measured latencies; or no genome meets any budget.

    Example:
        ```python
        budgets = budgets_along(SearchSpace("wrn40_2"), "params", 4)  # 130k, 290k, 660k, 1.5m
        ```
    """
    require_counts(number=number)
    others: dict[str, Any] = {}
    if within is not None:
        space, budget = space.resolve(within)
        others = {name: window for name, window in budget.windows.items() if name != cost}
    least, most = space.range(cost)
    if others:
        least = _reach(space, least, most, lambda amount: {**others, cost: (None, amount)})
        most = _reach(space, most, least, lambda amount: {**others, cost: (amount, None)})
    centres = (least * (most / least) ** ((place + 0.5) / number) for place in range(number))
    # In a narrow range two may be the same.
    digits = dict.fromkeys(int(float(f"{each:.1e}")) if cost != "latency" else float(f"{each:.1e}") for each in centres)
    arguments: list[dict[str, Any]] = [{cost: amount, **others} for amount in digits]
    budgets = [Budget(**each, tolerance=tolerance) for each in arguments]
    met = [each for each in budgets if _is_met(space, each)]
    if not met:
        # Which says what can be met.
        space.sample(1, budgets[0])
    return met


def _is_met(space: SearchSpace, budget: BudgetLike) -> bool:
    try:
        space.sample(1, budget)
    except BudgetError:
        return False
    return True


def _reach(space: SearchSpace, best: float, worst: float, window: Callable[[float], dict[str, Any]]) -> float:
    """Finds the first amount on the way from `best` to `worst` of which a genome meets the window, within 1 %."""
    if _is_met(space, window(best)):
        return best
    while max(best, worst) > 1.01 * min(best, worst):
        middle = (best * worst) ** 0.5
        best, worst = (best, middle) if _is_met(space, window(middle)) else (middle, worst)
    return worst
