"""Candidates of a search: genomes with their costs and scores.

This module needs the standard library only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..budget import Cost
from ..genome import Genome

__all__ = ["HALVING", "Candidate", "median_shares"]

# Each round of refinement keeps the best of this many, and gives each of them this many times the draws.
HALVING = 4


@dataclass(frozen=True)
class Candidate:
    """A scored genome.

    Attributes:
        genome: The genome.
        cost: Its cost.
        scores: The score of each draw of its weights.
        shares: The share of each block in the score, where the score has parts.
    """

    genome: Genome
    cost: Cost
    draws: tuple[float, ...]
    shares: tuple[float, ...] | None = None

    @classmethod
    def of_rows(cls, rows: Sequence[dict[str, Any]]) -> Candidate:
        """Makes a candidate of the rows of a record, one a draw; a score that was not finite is null there."""
        genome = Genome(rows[0]["genome"])
        scores = tuple(math.nan if row["score"] is None else float(row["score"]) for row in rows)
        parts = [[part / sum(row["blocks"]) for part in row["blocks"]] for row in rows if sum(row.get("blocks") or [0])]
        shares = tuple(sum(each) / len(parts) for each in zip(*parts, strict=True)) if parts else None
        if shares is not None and len(shares) != len(genome.blocks):
            raise ValueError(f"{len(shares)} scores by block of {genome}")
        return cls(genome, _cost(rows[0]), scores, shares)

    @property
    def score(self) -> float:
        """The geometric mean of the draws, NaN where one is not finite: from draw to draw scores differ by factors."""
        if not all(map(math.isfinite, self.draws)):
            return math.nan
        if len(self.draws) == 1 or min(self.draws) <= 0:
            return sum(self.draws) / len(self.draws)
        return math.exp(sum(map(math.log, self.draws)) / len(self.draws))

    @property
    def spread(self) -> float:
        """By what factor the score is uncertain: exp of the standard error of its logarithm; NaN for a single draw."""
        if len(self.draws) < 2 or not all(map(math.isfinite, self.draws)) or min(self.draws) <= 0:
            return math.nan
        return math.exp(statistics.stdev(map(math.log, self.draws)) / math.sqrt(len(self.draws)))

    def as_json(self) -> dict[str, Any]:
        """What JSON holds of it, which knows no NaN."""
        return {
            "genome": self.genome,
            "params": self.cost.params,
            "macs": self.cost.macs,
            **({} if self.cost.latency is None else {"latency": self.cost.latency}),
            "score": self.score if math.isfinite(self.score) else None,
            "draws": len(self.draws),
            "spread": None if math.isnan(self.spread) else self.spread,
        }


def _cost(row: dict[str, Any]) -> Cost:
    latency = row.get("latency")
    return Cost(int(row["params"]), int(row["macs"]), None if latency is None else float(latency))


def median_shares(candidates: Iterable[Candidate]) -> tuple[float, ...] | None:
    """The median over candidates of the share of each block; None where no candidate has shares."""
    parts = [each.shares for each in candidates if each.shares]
    return tuple(statistics.median(each) for each in zip(*parts, strict=True)) if parts else None
