"""Spearman's rank correlation, and its interval by the bootstrap over networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Correlation", "correlate", "spearman"]


class Correlation(NamedTuple):
    """Spearman's rho of `number` pairs, and the limits that 95 % of the bootstrap's samples are within."""

    rho: float
    low: float
    high: float
    number: int
    failed: int


def spearman(scores: np.ndarray, errors: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Correlates the ranks of two (N,) samples, each pair taken as often as `counts` (..., N) says; ties share a rank.

    It is NaN where all scores or all errors are equal.
    """
    counts = np.ones(len(scores)) if counts is None else counts
    ranks = []
    for values in (scores, errors):
        # The rank of a value is the number of those below it, and half of those equal to it.
        below = (values < values[:, None]) + 0.5 * (values == values[:, None])
        rank = counts @ below.T
        ranks.append(rank - (counts * rank).sum(-1, keepdims=True) / counts.sum(-1, keepdims=True))
    one, other = ranks
    variances = (counts * one**2).sum(-1) * (counts * other**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts * one * other).sum(-1) / np.sqrt(variances)


def correlate(
    scores: Sequence[float | None], errors: Sequence[float], samples: int = 2000, seed: int = 0
) -> Correlation:
    """Correlates scores with errors over networks; the interval is that of percentiles over resampled networks.

    A score that failed, None or not finite, ranks below all others, as in a search; all that failed are tied.
    """
    values = np.array([np.nan if score is None else score for score in scores], dtype=float)
    failed = ~np.isfinite(values)
    values[failed] = -np.inf
    number = len(values)
    if number < 2:
        return Correlation(np.nan, np.nan, np.nan, number, int(failed.sum()))
    counts = np.random.default_rng(seed).multinomial(number, [1 / number] * number, size=samples)
    resampled = spearman(values, np.asarray(errors, dtype=float), counts)
    # A sample of few networks can have no two different ones.
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (np.nan, np.nan)
    rho = float(spearman(values, np.asarray(errors, dtype=float)))
    return Correlation(rho, float(low), float(high), number, int(failed.sum()))
