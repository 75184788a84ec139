"""What a search finds: the score of each draw, the candidates that draws make up, and their ranking.

This module needs the standard library only, and numpy where scores are estimated.
"""

from __future__ import annotations

import functools
import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..budget import Budget, BudgetError, Cost
from ..genome import Genome

__all__ = [
    "ETA",
    "Candidate",
    "Scored",
    "ScoredDraw",
    "candidates_of",
    "common_cost",
    "comparable",
    "draws_of_front",
    "estimated",
    "median_shares",
    "pareto",
    "rank",
    "rank_by_own",
    "rank_within",
    "sum_ranks",
]

# Each round of refinement keeps the best of this many, and gives each of them this many times the draws.
ETA = 4
# The scores that are sums over blocks, by their names in a sum of ranks: that whose blocks a draw has comes first.
_WITH_BLOCKS = ("fisher", "fisher-balanced")


@dataclass(frozen=True)
class ScoredDraw:
    """The score of a genome with one draw of its weights, and the part of each block in it where it has parts.

    For a sum of ranks the score is NaN, since it depends on the other candidates (`sum_ranks`), and `parts` has the
    score of each part by name.
    """

    genome: Genome
    cost: Cost
    draw: int
    score: float
    blocks: tuple[float, ...] | None = None
    parts: Mapping[str, float] | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ScoredDraw:
        """Reads a row of a record; raises KeyError, TypeError or ValueError for anything else."""
        latency, size, score, blocks = row.get("latency"), row.get("size"), row["score"], row.get("blocks")
        genome = _genome(row["genome"])
        if blocks is not None and len(blocks) != len(genome.blocks):
            raise ValueError(f"{len(blocks)} scores by block of {genome}")
        return cls(
            genome,
            Cost(
                int(row["params"]),
                int(row["macs"]),
                None if latency is None else float(latency),
                None if size is None else int(size),
            ),
            int(row["draw"]),
            math.nan if score is None else float(score),
            None if blocks is None else tuple(map(float, blocks)),
            _read_parts(row.get("parts")),
        )

    def to_json(self) -> dict[str, Any]:
        """Makes the row of a record; what is not finite is null there, since JSON knows no NaN."""
        row = {
            "genome": self.genome,
            "params": self.cost.params,
            "macs": self.cost.macs,
            "draw": self.draw,
            "score": self.score if math.isfinite(self.score) else None,
        }
        if self.cost.latency is not None:
            row["latency"] = self.cost.latency
        if self.cost.size is not None:
            row["size"] = self.cost.size
        if self.blocks is not None:
            row["blocks"] = self.blocks if all(map(math.isfinite, self.blocks)) else None
        if self.parts is not None:
            row["parts"] = {name: value if math.isfinite(value) else None for name, value in self.parts.items()}
        return row

    @property
    def shares(self) -> tuple[float, ...] | None:
        """The share of each block in the score; None where there is none that means something."""
        if self.blocks is None or not all(map(math.isfinite, self.blocks)) or not sum(self.blocks):
            return None
        total = sum(self.blocks)
        return tuple(part / total for part in self.blocks)


@functools.lru_cache(maxsize=10_000)
def _genome(text: str) -> Genome:
    """Reads a genome, of which a record has a row for each draw."""
    return Genome(text)


def _read_parts(parts: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Reads the parts of a row; raises TypeError or ValueError for anything else."""
    if parts is None:
        return None
    if not isinstance(parts, Mapping):
        raise TypeError(f"parts are an object, not {type(parts).__name__}")
    return {name: math.nan if value is None else float(value) for name, value in parts.items()}


class Scored:
    """What was scored: a genome or a whole network, with its cost and the score of each draw."""

    cost: Cost
    scores: tuple[float, ...]
    parts: tuple[Mapping[str, float], ...] | None
    geometric: bool

    @property
    def score(self) -> float:
        """The geometric mean of the draws, NaN where one is not finite: from draw to draw scores differ by factors.

        It is the arithmetic mean where a draw is not above zero, here or of another candidate in the same ranking.
        """
        if not all(map(math.isfinite, self.scores)):
            return math.nan
        if len(self.scores) == 1 or not self.geometric or min(self.scores) <= 0:
            return sum(self.scores) / len(self.scores)
        return math.exp(sum(map(math.log, self.scores)) / len(self.scores))

    @property
    def standard_error_factor(self) -> float:
        """The uncertainty of the score as a factor, exp of the standard error of its logarithm; NaN for one draw."""
        if len(self.scores) < 2 or not self.geometric or not all(0 < each < math.inf for each in self.scores):
            return math.nan
        return math.exp(statistics.stdev(map(math.log, self.scores)) / math.sqrt(len(self.scores)))


AnyScored = TypeVar("AnyScored", bound=Scored)


@dataclass(frozen=True)
class Candidate(Scored):
    """A scored genome.

    Attributes:
        genome: The genome.
        cost: Its cost.
        scores: The score of each draw of its weights.
        shares: The share of each block in the score, where the score has parts.
        parts: For a sum of ranks, the scores that are ranked, by name, for each draw.
        geometric: Whether the score is the geometric mean of the draws (`comparable`).
        estimate: The score, and its uncertainty as a factor, by the draws of all candidates (`estimated`); None where
            the score is the mean of its own draws.
    """

    genome: Genome
    cost: Cost
    scores: tuple[float, ...]
    shares: tuple[float, ...] | None = None
    parts: tuple[Mapping[str, float], ...] | None = None
    geometric: bool = True
    estimate: tuple[float, float] | None = None

    @property
    def score(self) -> float:
        """The estimate where there is one, or else the mean of the draws."""
        return super().score if self.estimate is None else self.estimate[0]

    @property
    def standard_error_factor(self) -> float:
        """The uncertainty of the score as a factor; NaN where it is not known."""
        return super().standard_error_factor if self.estimate is None else self.estimate[1]

    @property
    def shares_of(self) -> str:
        """Names what `shares` are of: the score, or the Fisher potential in a sum of ranks."""
        named = self.parts[0] if self.parts else ()
        return next((name for name in _WITH_BLOCKS if name in named), "the score")

    @classmethod
    def of_draws(cls, draws: Sequence[ScoredDraw]) -> Candidate:
        """Makes a candidate of the scores of one genome."""
        parts = [shares for each in draws if (shares := each.shares) is not None]
        shares = tuple(sum(each) / len(parts) for each in zip(*parts, strict=True)) if parts else None
        ranked = tuple(each.parts for each in draws if each.parts is not None) or None
        return cls(draws[0].genome, draws[0].cost, tuple(each.score for each in draws), shares, ranked)

    def as_json(self) -> dict[str, Any]:
        """The candidate for JSON, which has no NaN."""
        return {
            "genome": self.genome,
            "params": self.cost.params,
            "macs": self.cost.macs,
            **({} if self.cost.latency is None else {"latency": self.cost.latency}),
            **({} if self.cost.size is None else {"size": self.cost.size}),
            "score": self.score if math.isfinite(self.score) else None,
            "draws": len(self.scores),
            "spread": None if math.isnan(self.standard_error_factor) else self.standard_error_factor,
        }


def rank(candidates: Iterable[AnyScored]) -> list[AnyScored]:
    """Sorts candidates from best to worst: by estimates where there are any; those without a score are last.

    Sums of ranks are those among these candidates. Of equal sums the first of their scores decides; other ties keep
    their order.
    """
    return _best_first(estimated(candidates))


def rank_by_own(candidates: Iterable[AnyScored]) -> list[AnyScored]:
    """Sorts candidates by their own draws: those with most refinement first, those without a score last.

    The best of many scores of one draw are too high.
    """
    return _most_refined_first(
        replace(each, estimate=None) if isinstance(each, Candidate) else each for each in comparable(candidates)
    )


def _best_first(candidates: Iterable[AnyScored]) -> list[AnyScored]:
    """Sorts comparable candidates: by estimates where there are any."""
    candidates = list(candidates)
    if not any(isinstance(each, Candidate) and each.estimate for each in candidates):
        return _most_refined_first(candidates)
    return sorted(candidates, key=lambda each: (-each.score if math.isfinite(each.score) else math.inf, _tie(each)))


def _tie(each: Scored) -> float:
    """What decides between equal sums of ranks: the first score that is ranked, the highest first."""
    if not each.parts:
        return 0.0
    first = statistics.fmean(next(iter(parts.values())) for parts in each.parts)
    return -first if math.isfinite(first) else math.inf


def _most_refined_first(candidates: Iterable[AnyScored]) -> list[AnyScored]:
    """Sorts comparable candidates without estimates."""
    candidates = list(candidates)
    fewest = min((len(each.scores) for each in candidates), default=1)

    def place(each: AnyScored) -> tuple[bool, int, float, float]:
        if not math.isfinite(each.score):
            return True, 0, 0.0, 0.0
        # A draw that others still lack is no round of refinement.
        return False, -int(math.log(len(each.scores) / fewest, ETA) + 1e-9), -each.score, _tie(each)

    return sorted(candidates, key=place)


def candidates_of(draws: Iterable[ScoredDraw]) -> list[Candidate]:
    """Makes the candidates of scores, in the order in which each genome came first."""
    by_genome: dict[Genome, dict[int, ScoredDraw]] = {}
    for each in draws:
        by_genome.setdefault(each.genome, {})[each.draw] = each
    return [Candidate.of_draws([scored[draw] for draw in sorted(scored)]) for scored in by_genome.values()]


def comparable(candidates: Iterable[AnyScored]) -> list[AnyScored]:
    """Makes scores comparable: sums of ranks are those among these candidates, and all means are of one kind."""
    candidates = sum_ranks(candidates)
    # A geometric mean beside an arithmetic one, which is larger, would be ranked too low.
    geometric = all(value > 0 for each in candidates for value in each.scores if math.isfinite(value))
    return [
        each if each.geometric == geometric else replace(each, geometric=geometric)  # type: ignore[type-var]
        for each in candidates
    ]


def estimated(candidates: Iterable[AnyScored]) -> list[AnyScored]:
    """Makes scores comparable, and estimates those of genomes from the draws of all (`shrinkage`).

    Scores stay the means of their own draws where there are few genomes, or no genome has several draws; and estimates
    stay as they are.
    """
    candidates = list(candidates)
    if any(isinstance(each, Candidate) and each.estimate for each in candidates):
        return candidates
    candidates = comparable(candidates)
    known = [each for each in candidates if isinstance(each, Candidate) and math.isfinite(each.score)]
    # Most rankings of one draw need no numpy.
    if not any(len(each.scores) > 1 for each in known):
        return candidates
    genomes = [each.genome for each in known]
    found: list[tuple[float, float]] | None = None
    if any(each.parts for each in known):
        found = _estimated_sums(genomes, [each.parts or () for each in known])
    else:
        in_logs = known[0].geometric
        if intervals := _intervals(genomes, [each.scores for each in known], in_logs):
            found = [(score, high / score if in_logs else math.nan) for _, score, high in intervals]
    if found is None:
        return candidates
    by_genome = dict(zip(genomes, found, strict=True))
    return [
        replace(each, estimate=by_genome[each.genome])
        if isinstance(each, Candidate) and each.genome in by_genome
        else each
        for each in candidates
    ]


def _intervals(
    genomes: Sequence[Genome], draws: Sequence[Sequence[float]], in_logs: bool
) -> list[tuple[float, float, float]] | None:
    """Estimates scores: each between the ends of its interval of one standard deviation; None where there is no model.

    In logarithms, scores differ by factors.
    """
    from .shrinkage import estimates

    found = estimates(genomes, [list(map(math.log, each)) for each in draws] if in_logs else draws)
    if found is None:
        return None
    ends = [(each.mean - each.deviation, each.mean, each.mean + each.deviation) for each in found]
    return [(math.exp(low), math.exp(middle), math.exp(high)) for low, middle, high in ends] if in_logs else ends


def _estimated_sums(
    genomes: Sequence[Genome], parts: Sequence[Sequence[Mapping[str, float]]]
) -> list[tuple[float, float]] | None:
    """Estimates sums of ranks: each part by its own draws, which may be noisier than those of another.

    Ranks are then those of the estimates. None where no part has a model.
    """
    of_parts = []
    for name in parts[0][0]:
        draws = [[each[name] for each in of_genome] for of_genome in parts]
        in_logs = min(map(min, draws)) > 0
        of_parts.append((draws, _intervals(genomes, draws, in_logs)))
    if not any(intervals for _, intervals in of_parts):
        return None
    ranks = []
    for draws, intervals in of_parts:
        # Without noise, the draws are what they are.
        known = intervals or [(mean, mean, mean) for mean in map(statistics.fmean, draws)]
        among = sorted(middle for _, middle, _ in known)
        ranks.append([[_rank_share(among, each) for each in interval] for interval in known])
    found = []
    for of_genome in zip(*ranks, strict=True):
        score = _mean_share(middle for _, middle, _ in of_genome)
        deviation = math.hypot(*((high - low) / 2 for low, _, high in of_genome)) / len(of_genome)
        found.append((score, 1 + deviation / score))
    return found


def _rank_share(among: Sequence[float], value: float) -> float:
    """The share of sorted values that a value is not below; ties have the mean."""
    return (bisect_left(among, value) + bisect_right(among, value) + 1) / (2 * len(among))


def _mean_share(shares: Iterable[float]) -> float:
    """The mean of rank shares; equal sums of ranks have equal means, of whatever shares they are."""
    return round(statistics.fmean(shares), 12)


def sum_ranks(candidates: Iterable[AnyScored]) -> list[AnyScored]:
    """Scores candidates by the mean of the ranks of their parts among them; those without parts stay as they are.

    A rank is a share: 1 is that of the best of the candidates and 1/n that of the worst; ties have the mean. All draws
    are ranked among the first draws of all candidates, so that those which were refined keep their scale: a later draw
    that is better than all of them has a little more than 1. A draw of which a part is not finite has no score.
    """
    candidates = list(candidates)
    firsts: dict[str, list[float]] = {}
    for each in candidates:
        for name, value in each.parts[0].items() if each.parts else ():
            firsts.setdefault(name, []).append(value)
    for name, values in firsts.items():
        firsts[name] = sorted(filter(math.isfinite, values))

    def share(name: str, value: float) -> float:
        among = firsts[name]
        if not math.isfinite(value) or not among:
            return math.nan
        return _rank_share(among, value)

    return [
        each
        if each.parts is None
        else replace(  # type: ignore[type-var]  # each that is scored is a dataclass
            each, scores=tuple(_mean_share(share(*part) for part in parts.items()) for parts in each.parts)
        )
        for each in candidates
    ]


def median_shares(candidates: Iterable[Candidate]) -> tuple[float, ...] | None:
    """The median over candidates of the share of each block; None where no candidate has shares."""
    parts = [each.shares for each in candidates if each.shares]
    return tuple(statistics.median(each) for each in zip(*parts, strict=True)) if parts else None


# -- several budgets -------------------------------------------------------------------------------------------------


def common_cost(budgets: Sequence[Budget]) -> str:
    """Names the cost that a front is along: the first in which its budgets differ."""
    if not budgets:
        raise BudgetError("a front needs budgets; use budgets=['200k', '400k']")
    first, *others = (budget.windows for budget in budgets)
    for budget, windows in zip(budgets[1:], others, strict=True):
        if windows.keys() != first.keys():
            raise BudgetError(f"budgets of a front are of the same costs; {budgets[0]} is not, beside {budget}")
    return next((name for name in first if any(each[name] != first[name] for each in others)), next(iter(first)))


def rank_within(budgets: Sequence[Budget], candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Ranks the candidates that fit each budget, by scores among, and estimates from, those of all budgets.

    A genome so has one score, whichever budget it fits, and the best within a budget is the best on the front.
    """
    candidates = estimated(candidates)
    return [_best_first(each for each in candidates if budget.fits(each.cost)) for budget in budgets]


def pareto(candidates: Iterable[Candidate], cost: str) -> tuple[Candidate, ...]:
    """Finds those that have a higher score than all cheaper ones, from the cheapest to the dearest.

    Where scores are not estimated, only genomes of the most draws count: one of fewer can be high by chance.
    """
    finite = [each for each in candidates if math.isfinite(each.score)]
    most = max((len(each.scores) for each in finite if not each.estimate), default=0)
    front: list[Candidate] = []
    for each in sorted(finite, key=lambda one: (getattr(one.cost, cost), -one.score)):
        sure = each.estimate is not None or len(each.scores) == most
        if sure and (not front or each.score > front[-1].score):
            front.append(each)
    return tuple(front)


def draws_of_front(front: Sequence[Candidate]) -> int | None:
    """How many draws each genome of a Pareto front has; None where scores are estimated, and numbers may differ."""
    return len(front[0].scores) if front and not front[0].estimate else None
