"""Surer scores: what the scores of all genomes say about each, weighed against its own draws.

The score of one draw of the weights is noise by a third, and the best of many noisy scores is too high. But genomes
have blocks in common. An additive model of the logarithm of the score predicts it from the type of the block at each
place, and from how often each type occurs; each genome also differs from that by a part of its own. How much each place
matters, and how much the part of its own, is found by the greatest likelihood: in a Fisher potential, the first blocks
of the stages have nearly all. The estimate is the posterior mean (a mixed model; the best linear unbiased prediction of
those who breed animals; automatic relevance determination of MacKay, 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from ..genome import Genome

__all__ = ["FEWEST", "Estimate", "estimates", "features"]

# Genomes without which there is no model, and repeated draws without which their noise is not known.
FEWEST = 20
_REPEATS = 10
# Updates of the variances, and the change of estimates, in standard deviations of a draw, that ends them.
_UPDATES = 20
_SETTLED = 0.01
# The least share of the variance of means that is not noise.
_LEAST = 0.1


@dataclass(frozen=True)
class Estimate:
    """What a genome's score is, and how far that may be off: both in the units of its draws, such as logarithms."""

    mean: float
    deviation: float


def estimates(genomes: Sequence[Genome], draws: Sequence[Sequence[float]]) -> list[Estimate] | None:
    """Estimates what each genome's draws would be on the mean of very many.

    Args:
        genomes: The genomes, of one network.
        draws: The scores of each, or their logarithms, all finite; genomes may differ in their number.

    Returns:
        The estimates; None where genomes or repeated draws are too few to say how noisy draws are, and where draws do
        not differ, so that there is nothing to estimate.

    Example:
        ```python
        found = estimates(genomes, [[math.log(each) for each in scores] for scores in of_each])
        ```
    """
    numbers = np.array([len(each) for each in draws])
    repeats = int((numbers - 1).sum())
    if len(genomes) < FEWEST or repeats < _REPEATS:
        return None
    own = np.array([math.fsum(each) / len(each) for each in draws])
    noise = sum(math.fsum((value - mean) ** 2 for value in each) for each, mean in zip(draws, own, strict=True))
    noise /= repeats
    # Rounding is no noise.
    if noise <= 1e-12 * float(np.square(own).mean()):
        return None
    # All weigh alike: those of many draws were chosen for their scores.
    centre = float(own.mean())
    centred = own - centre
    between = max(float((centred**2 - noise / numbers).mean()), _LEAST * float((centred**2).mean()))
    # Matrices are so small that threads gain nothing, and on a busy machine they wait for each other for a minute.
    with threadpool_limits(1, "blas"):
        means, deviations = _posterior(*features(genomes), centred, numbers, between, noise)
    return [Estimate(centre + float(mean), float(each)) for mean, each in zip(means, deviations, strict=True)]


def features(genomes: Sequence[Genome]) -> tuple[np.ndarray, np.ndarray]:
    """Describes genomes by the type of the block at each place, and by how often each type occurs.

    Columns are centred, since what all genomes have in common is no difference between them.

    Returns:
        The features (genomes, features), and the group of each (features,): its place, or the last for all types.
    """
    types = {block: number for number, block in enumerate(dict.fromkeys(b for each in genomes for b in each.blocks))}
    numbers = np.array([[types[block] for block in each.blocks] for each in genomes])
    at_place = numbers[:, :, None] == np.arange(len(types))
    given = np.concatenate([at_place.reshape(len(genomes), -1), at_place.sum(1)], axis=1).astype(float)
    given -= given.mean(0)
    groups = np.repeat(np.arange(numbers.shape[1] + 1), len(types))
    # Where all genomes have the same types, there is nothing to tell them apart.
    differ = given.any(0)
    return given[:, differ], groups[differ]


def _posterior(
    given: np.ndarray, groups: np.ndarray, y: np.ndarray, numbers: np.ndarray, between: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fits y = given x coefficients + own + noise / numbers; returns the mean and deviation of y without its noise.

    The variance of the coefficients of each group, and of what is each genome's own, are those of greatest likelihood,
    by the fixed point of MacKay: the sum of squares by the number of coefficients that the data determine.
    """
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups)
    spreads = np.array([np.square(given[:, groups == group]).sum(1).mean() for group in range(len(sizes))])
    # At first all groups explain as much, and genomes' own parts a tenth.
    variances = 0.9 * between / (len(sizes) * spreads) if len(sizes) else spreads
    least, own = 1e-9 * variances, 0.1 * between
    of_draws = noise / numbers
    # Genomes of as many draws are as noisy: their sums need not be made anew.
    sums = [(each, given[numbers == each].T @ given[numbers == each]) for each in np.unique(numbers)]
    means = np.zeros(len(y))
    for _ in range(_UPDATES):
        before, precision = means, np.diag(1 / variances[groups])
        for number, products in sums:
            precision += products / (own + noise / number)
        covariance = np.linalg.inv(precision)
        coefficients = covariance @ (given.T @ (y / (own + of_draws)))
        predicted = given @ coefficients
        weight = own / (own + of_draws)
        left = weight * (y - predicted)
        means = predicted + left
        # How uncertain the prediction is.
        spread = np.einsum("ij,ij->i", given @ covariance, given)
        deviations = np.sqrt((1 - weight) ** 2 * spread + weight * of_draws)
        if np.abs(means - before).max() < _SETTLED * math.sqrt(noise):
            break
        determined = sizes - np.bincount(groups, covariance.diagonal(), len(sizes)) / variances
        squares = np.bincount(groups, np.square(coefficients), len(sizes))
        variances = np.maximum(squares / np.maximum(determined, 1e-6), least)
        of_left = len(y) - float(((1 - weight) + weight**2 * spread / own).sum())
        own = max(float(np.square(left).sum()) / max(of_left, 1e-6), 1e-6 * between)
    return means, deviations
