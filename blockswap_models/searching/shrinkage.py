"""Surer scores: what the scores of all genomes say about each, weighed against its own draws.

The score of one draw of the weights is noise by a third, and the best of many noisy scores is too high. But genomes
have blocks in common. An additive model of the logarithm of the score predicts it from the types of the blocks, at
their place and anywhere; each genome also differs from that by a part of its own. The estimate is the posterior mean of
both (a mixed model, or best linear unbiased prediction, as breeders of animals have it): a genome of one draw is moved
far to the prediction, one of 64 draws hardly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from ..genome import Genome

__all__ = ["FEWEST", "Estimate", "estimates", "features"]

# Genomes without which there is no model, and repeated draws without which their noise is not known.
FEWEST = 20
_REPEATS = 10
# Shares of the variance between genomes that the model may have; the likeliest is taken.
_SHARES = np.linspace(0.05, 0.95, 10)
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
    centre = float(np.average(own, weights=numbers))
    centred = own - centre
    # Those of one draw have not been chosen for their scores, but there may be few of them.
    between = max(float((centred**2 - noise / numbers).mean()), _LEAST * float((centred**2).mean()))
    # Matrices are so small that threads gain nothing, and on a busy machine they wait for each other for a minute.
    with threadpool_limits(1, "blas"):
        model = _Model(features(genomes), centred, numbers)
        share = max(_SHARES, key=lambda each: model.likelihood(between * each, between * (1 - each), noise))
        means, deviations = model.posterior(between * share, between * (1 - share), noise)
    return [Estimate(centre + float(mean), float(each)) for mean, each in zip(means, deviations, strict=True)]


def features(genomes: Sequence[Genome]) -> np.ndarray:
    """Describes genomes by the types of their blocks, at their place and anywhere (genomes, features).

    Both halves weigh alike. Columns are centred, since what all genomes have in common is no difference between them,
    and scaled so that the rows have a mean square sum of 1.
    """
    types = {block: number for number, block in enumerate(dict.fromkeys(b for each in genomes for b in each.blocks))}
    places = len(genomes[0].blocks)
    at_place = np.zeros((len(genomes), places * len(types)))
    anywhere = np.zeros((len(genomes), len(types)))
    for row, genome in enumerate(genomes):
        at_place[row, [place * len(types) + types[block] for place, block in enumerate(genome.blocks)]] = 1
        for block, number in Counter(genome.blocks).items():
            anywhere[row, types[block]] = number
    found = []
    for part in (at_place, anywhere):
        part -= part.mean(0)
        scale = math.sqrt(float(np.square(part).sum(1).mean()) * 2)
        # Where all genomes have the same types, there is nothing to tell them apart.
        found.append(part / scale if scale else part)
    both = np.concatenate(found, axis=1)
    return both[:, both.any(0)]


class _Model:
    """y = features x coefficients + own + noise / number of draws, all of them Gaussian."""

    def __init__(self, given: np.ndarray, y: np.ndarray, numbers: np.ndarray) -> None:
        self.given, self.y, self.numbers = given, y, numbers
        # Genomes of as many draws are as noisy: with these sums no likelihood needs all genomes.
        self.groups = []
        for number in np.unique(numbers):
            rows, values = given[numbers == number], y[numbers == number]
            self.groups.append((int(number), len(rows), rows.T @ rows, rows.T @ values, float(values @ values)))

    def _solved(self, additive: float, own: float, noise: float) -> tuple[np.ndarray, np.ndarray, float]:
        """The factor of the coefficients' precision, their mean, and the logarithm of the likelihood."""
        precision = np.eye(self.given.shape[1]) / additive
        weighted = np.zeros(self.given.shape[1])
        log_determinant, squares = 0.0, 0.0
        for number, count, products, values, square in self.groups:
            variance = own + noise / number
            precision += products / variance
            weighted += values / variance
            log_determinant += count * math.log(variance)
            squares += square / variance
        factor = np.linalg.cholesky(precision)
        mean = np.linalg.solve(factor.T, np.linalg.solve(factor, weighted))
        log_determinant += 2 * float(np.log(factor.diagonal()).sum()) + len(weighted) * math.log(additive)
        return factor, mean, -(log_determinant + squares - float(weighted @ mean)) / 2

    def likelihood(self, additive: float, own: float, noise: float) -> float:
        """The logarithm of the likelihood of the draws, up to what no variance changes."""
        return self._solved(additive, own, noise)[2]

    def posterior(self, additive: float, own: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the standard deviation of each genome's score, given all draws."""
        factor, coefficients, _ = self._solved(additive, own, noise)
        predicted = self.given @ coefficients
        of_draws = noise / self.numbers
        weight = own / (own + of_draws)
        # How uncertain the prediction is: the square of each row through the factor.
        spread = np.square(np.linalg.solve(factor, self.given.T)).sum(0)
        variance = (1 - weight) ** 2 * spread + weight * of_draws
        return predicted + weight * (self.y - predicted), np.sqrt(variance)
