"""Spearman's rank correlation, also at an equal third value, and its interval by the bootstrap over networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Correlation", "correlate", "correlate_given", "share_below", "spearman"]


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
    values, failed = _values(scores)
    if len(values) < 2:
        return Correlation(np.nan, np.nan, np.nan, len(values), failed)
    low, high = _interval((values, np.asarray(errors, dtype=float)), _spearman_along, samples, seed)
    return Correlation(spearman(values, errors), low, high, len(values), failed)


def correlate_given(
    scores: Sequence[float | None],
    errors: Sequence[float],
    given: Sequence[float],
    samples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """Correlates scores with errors at an equal third value, such as MACs: the partial rank correlation.

    Scores that failed and the interval are those of `correlate`. The result is NaN for fewer than four networks, and
    where scores or errors have the same ranks as the third value.
    """
    values, failed = _values(scores)
    if len(values) < 4:
        return Correlation(np.nan, np.nan, np.nan, len(values), failed)
    data = (values, np.asarray(errors, dtype=float), np.asarray(given, dtype=float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        rho = float(_partial_along(*data, axis=-1))
    low, high = _interval(data, _partial_along, samples, seed)
    return Correlation(rho, low, high, len(values), failed)


def share_below(
    scores: Sequence[float | None],
    others: Sequence[float | None],
    errors: Sequence[float],
    samples: int = 2000,
    seed: int = 0,
) -> float:
    """Says in which share of samples of the networks, with replacement, scores have a lower rho than others have.

    Half of those in which both have the same count.
    """
    drawn = np.random.default_rng(seed).integers(0, len(errors), (samples, len(errors)))
    values = np.asarray(errors, dtype=float)[drawn]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        one, other = (_spearman_along(_values(each)[0][drawn], values, axis=-1) for each in (scores, others))
    differences = (other - one)[np.isfinite(other - one)]
    return float((np.sign(differences) / 2 + 0.5).mean()) if len(differences) else np.nan


def _values(scores: Sequence[float | None]) -> tuple[np.ndarray, int]:
    """Makes scores that failed the lowest of all; says how many there are."""
    values = np.array([np.nan if score is None else score for score in scores], dtype=float)
    failed = ~np.isfinite(values)
    values[failed] = -np.inf
    return values, int(failed.sum())


def _interval(
    data: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], samples: int, seed: int
) -> tuple[float, float]:
    """Finds the 95 % interval of a statistic of paired values, by percentiles."""
    with warnings.catch_warnings():
        # A sample of few networks can have no two different ones.
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        resampled = stats.bootstrap(
            tuple(data),
            statistic,
            n_resamples=samples,
            paired=True,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (np.nan, np.nan)
    return float(low), float(high)


def _spearman_along(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    """Correlates the ranks of many samples at once, which `spearmanr` cannot: Pearson's correlation of the ranks."""
    return stats.pearsonr(stats.rankdata(one, axis=axis), stats.rankdata(other, axis=axis), axis=axis).statistic


def _partial_along(one: np.ndarray, other: np.ndarray, given: np.ndarray, axis: int) -> np.ndarray:
    """Correlates the ranks of many samples at once, after what a third value explains of them."""
    both, first, second = (_spearman_along(*pair, axis) for pair in ((one, other), (one, given), (other, given)))
    unexplained = (1 - first**2) * (1 - second**2)
    # Where it explains all, rounding leaves a rest that means nothing.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(unexplained > 1e-9, (both - first * second) / np.sqrt(unexplained), np.nan)
