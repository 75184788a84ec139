"""Spearman's rank correlation, and its interval by the bootstrap over networks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Correlation", "correlate", "spearman"]


class Correlation(NamedTuple):
    """Spearman's rho of `number` pairs, `failed` of them without a score, and its 95 % interval."""

    rho: float
    low: float
    high: float
    number: int
    failed: int


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Correlates the ranks of two samples; ties share a rank, and the result is NaN where all values are equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(one, other).statistic)


def correlate(
    scores: Sequence[float | None], errors: Sequence[float], samples: int = 2000, seed: int = 0
) -> Correlation:
    """Correlates scores with errors over networks; the interval is the percentile bootstrap's.

    A score that failed, None or not finite, ranks below all others, as in a search; all that failed are tied.
    """
    values = np.array([np.nan if score is None else score for score in scores], dtype=float)
    failed = ~np.isfinite(values)
    values[failed] = -np.inf
    number = len(values)
    if number < 2:
        return Correlation(np.nan, np.nan, np.nan, number, int(failed.sum()))
    with warnings.catch_warnings():
        # A sample of few networks can have no two different ones.
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        resampled = stats.bootstrap(
            (values, np.asarray(errors, dtype=float)),
            _spearman_along,
            n_resamples=samples,
            paired=True,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (np.nan, np.nan)
    return Correlation(spearman(values, errors), float(low), float(high), number, int(failed.sum()))


def _spearman_along(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    """Correlates the ranks of many samples at once, which `spearmanr` cannot: Pearson's correlation of the ranks."""
    return stats.pearsonr(stats.rankdata(one, axis=axis), stats.rankdata(other, axis=axis), axis=axis).statistic
