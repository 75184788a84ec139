"""Strategies of the search: which genomes to score next, given the scores so far.

A strategy is a pure function, so that a resumed search proposes the same genomes. It works in
rounds of fixed size: more samples are more rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..budget import Budget
from ..genome import Genome
from .candidates import Candidate
from .space import SearchSpace

__all__ = [
    "ROUND",
    "START",
    "STRATEGIES",
    "Planner",
    "Strategy",
    "log_scores",
    "new_genomes",
    "option_numbers",
    "strategy_named",
    "surrogate",
    "uniform",
]

# Genomes that are drawn uniformly before a strategy uses scores, and genomes in each round after that.
START = 100
ROUND = 50

# The next genomes to score, `number` at most: (space, budget, seed, scored, number) -> genomes. None of them is among
# the scored, which are in the order in which they were proposed, and none where no others fit the budget.
Strategy = Callable[[SearchSpace, Budget, int, Sequence[Candidate], int], list[Genome]]


def uniform(space: SearchSpace, budget: Budget, seed: int, scored: Sequence[Candidate], number: int) -> list[Genome]:
    """Draws genomes uniformly from those within the budget, whatever the scores (the paper)."""
    return space.sample(len(scored) + number, budget, seed)[len(scored) :]


# The share of the variance of random genomes' scores that the fit leaves to noise.
_NOISE = 0.1
# How often the prices of further costs are changed before a draw of the coefficients is discarded.
_PRICINGS = 10


def surrogate(space: SearchSpace, budget: Budget, seed: int, scored: Sequence[Candidate], number: int) -> list[Genome]:
    """Finds the best genomes of an additive model of the log score, fitted to all scores (Thompson sampling).

    The model is a ridge regression on the types of the blocks. Each genome is the best within the budget for one draw
    of the coefficients, from their posterior distribution: certain blocks recur, uncertain ones vary.
    """
    if not scored:
        return space.sample(min(number, START), budget, seed)
    random = np.random.default_rng([seed, 2, len(scored)])
    planner = Planner(space, budget)
    draws = _coefficients(space, scored, random)
    # Some draws lead to genomes that are known already.
    return new_genomes(space, budget, seed, scored, (planner.best(next(draws)) for _ in range(3 * ROUND)))[:number]


def _coefficients(space: SearchSpace, scored: Sequence[Candidate], random: np.random.Generator) -> Iterator[np.ndarray]:
    """Draws what each type adds to the score at each position, given the scores."""
    groups = _groups(space)
    ends = np.cumsum([0, *map(len, space.options)])
    onehot = np.zeros((len(scored), ends[-1]))
    for row, each in zip(onehot, scored, strict=True):
        row[ends[:-1] + option_numbers(space, each.genome)] = 1
    features, values = onehot @ groups, log_scores(scored)
    # The prior is that of random genomes: those that were chosen since are alike.
    start = features[:START]
    variance = values[:START].var() or 1.0
    ridge = _NOISE * ((start - start.mean(0)) ** 2).sum(1).mean() or 1.0
    # The last column is the level of all scores; it is so large that its coefficient is hardly penalised.
    features = np.hstack([features, np.full((len(scored), 1), 1e3)])
    root = np.linalg.inv(np.linalg.cholesky(features.T @ features + ridge * np.eye(features.shape[1])))
    mean = root.T @ (root @ (features.T @ values))
    while True:
        deviation = root.T @ random.standard_normal(len(mean))
        drawn = groups @ (mean + math.sqrt(_NOISE * variance) * deviation)[:-1]
        # Rounded to integers, so that last digits that differ between machines make no difference.
        yield np.rint(drawn * (1e6 / math.sqrt(variance)))


def _groups(space: SearchSpace) -> np.ndarray:
    """The groups (columns) that each choice (rows: those of the first position, then of the second, …) belongs to.

    A type at one position is seen too seldom to be judged alone: it shares a coefficient with its family at that
    position, and others with its type and family anywhere.
    """
    memberships = [
        (("type", str(block)), ("family", block.family), ("family", block.family, place), ("type", str(block), place))
        for place, options in enumerate(space.options)
        for block, _ in options
    ]
    columns = {group: column for column, group in enumerate(dict.fromkeys(sum(memberships, ())))}
    groups = np.zeros((len(memberships), len(columns)))
    for row, each in zip(groups, memberships, strict=True):
        row[[columns[group] for group in each]] = 1
    return groups


class Planner:
    """Finds the genome within a budget that has the largest sum of values, one for each type at each position.

    For a budget of one cost it is the best of all, by dynamic programming over totals as they are counted for sampling.
    Further costs are given prices, and the best genome for these prices is brought within the budget by the best
    exchange of two blocks: it is close to the best of all.
    """

    def __init__(self, space: SearchSpace, budget: Budget) -> None:
        self._space, self._budget = space, budget
        name, window = space.exact_cost(budget)
        self._table = space.cost_table(name, window)
        self._others = {other: within for other, within in budget.windows.items() if other != name}
        fixed, options = space.option_costs
        self._fixed = {each: getattr(fixed, each) for each in budget.windows}
        # One entry for each choice: those of the first position, then of the second, …
        self._costs = {
            each: np.array([getattr(cost, each) for costs in options for cost in costs], float)
            for each in budget.windows
        }
        self._places = np.repeat(np.arange(len(options)), list(map(len, options)))
        self._starts = np.cumsum([0, *map(len, options[:-1])])
        self._prices = dict.fromkeys(self._others, 0.0)

    def best(self, values: np.ndarray) -> Genome | None:
        """Finds the best genome; None where no prices and exchanges bring it within the budget.

        `values` has one entry for each choice: those of the first position, then of the second, …
        """
        steps = {name: (values.std() or 1.0) / (self._costs[name].std() or 1.0) for name in self._others}
        went = dict.fromkeys(self._others, 0)
        prices = dict(self._prices)
        best, most = None, -math.inf
        for _ in range(_PRICINGS):
            priced = values - sum(price * self._costs[name] for name, price in prices.items())
            picks = self._best_picks(np.split(priced, self._starts[1:]))
            genome, cost = self._space.decode(picks)
            if self._budget.fits(cost) and not any(prices.values()):
                return genome
            exchanged = self._exchange(self._starts + picks, values)
            if exchanged is not None and (value := values[exchanged].sum()) > most:
                genome, exchanged_cost = self._space.decode(exchanged - self._starts)
                if self._budget.fits(exchanged_cost):
                    # The next values are likely to be similar.
                    best, most, self._prices = genome, value, dict(prices)
            if self._budget.fits(cost):
                break
            if not self._others:
                # Steps that are not exact led just outside, and an exchange back.
                break
            for name, (low, high) in self._others.items():
                total = getattr(cost, name)
                if way := int(total > high) - int(total < low):
                    steps[name] *= 1.5 if went[name] == way else 0.4 if went[name] else 1
                    prices[name] += way * steps[name]
                    went[name] = way
        return best

    def _exchange(self, choices: np.ndarray, values: np.ndarray) -> np.ndarray | None:
        """Finds the best change of at most two choices that is within all windows."""
        now = choices[self._places]
        gains = values - values[now]
        fits = self._places[:, None] != self._places
        for name, (low, high) in self._budget.windows.items():
            costs = self._costs[name]
            change = costs - costs[now]
            total = self._fixed[name] + costs[choices].sum() + change[:, None] + change
            fits &= (low <= total) & (total <= high)
        if not fits.any():
            return None
        pair = np.unravel_index(np.where(fits, gains[:, None] + gains, -np.inf).argmax(), fits.shape)
        exchanged = choices.copy()
        exchanged[self._places[list(pair)]] = pair
        return exchanged

    def _best_picks(self, values: Sequence[np.ndarray]) -> list[int]:
        table = self._table
        # best[i][t] is the largest value of the blocks from i on that spend exactly t steps.
        best = [np.full(table.last + 1, -np.inf)]
        best[0][0] = 0
        for steps, gains in zip(reversed(table.steps), reversed(values), strict=True):
            grown = np.full(table.last + 1, -np.inf)
            for spend, gain in zip(steps, gains, strict=True):
                if spend <= table.last:
                    np.maximum(grown[spend:], best[0][: table.last + 1 - spend] + gain, out=grown[spend:])
            best.insert(0, grown)
        left = table.first + int(best[0][table.first :].argmax())
        picks = []
        for steps, gains, rest in zip(table.steps, values, best[1:], strict=True):
            after = left - np.array(steps)
            reached = np.where(after >= 0, rest[np.maximum(after, 0)] + gains, -np.inf)
            picks.append(int(reached.argmax()))
            left = int(after[picks[-1]])
        return picks


# -- what strategies share -------------------------------------------------------------------------------------------


def option_numbers(space: SearchSpace, genome: Genome) -> np.ndarray:
    """The number of each block among the options of its position."""
    return np.array(
        [
            [each for each, _ in options].index(block)
            for block, options in zip(genome.blocks, space.options, strict=True)
        ]
    )


def log_scores(scored: Sequence[Candidate]) -> np.ndarray:
    """Logarithms of scores, or scores where some are not positive; those that are not finite count as the worst."""
    scores = np.array([each.score for each in scored])
    finite = np.isfinite(scores)
    scores = np.where(finite, scores, scores[finite].min() if finite.any() else 0.0)
    return np.log(scores) if scores.min() > 0 else scores


def new_genomes(
    space: SearchSpace, budget: Budget, seed: int, scored: Sequence[Candidate], proposed: Iterator[Genome | None]
) -> list[Genome]:
    """Takes a round of genomes which are not scored yet from those proposed, and fills it with random ones."""
    seen = {each.genome for each in scored}
    found: dict[Genome, None] = {}
    for genome in proposed:
        if genome is not None and genome not in seen:
            found[genome] = None
            if len(found) == ROUND:
                return list(found)
    for genome in space.sample(len(seen) + ROUND, budget, seed):
        if len(found) < ROUND and genome not in seen:
            found[genome] = None
    return list(found)


STRATEGIES: dict[str, Strategy] = {"random": uniform, "surrogate": surrogate}


def strategy_named(name: str) -> Strategy:
    """Finds a strategy; raises ValueError for an unknown name."""
    if name not in STRATEGIES:
        raise ValueError(f"there is no strategy {name!r}; use {' or '.join(map(repr, STRATEGIES))}")
    return STRATEGIES[name]
