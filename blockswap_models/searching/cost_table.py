"""Exact counts of the choices that meet a window of one cost, and uniform draws of them, and of those that meet two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import gcd

import numpy as np

__all__ = ["CostTable", "JointTable"]

# Counts beyond 64 bits are kept in limbs of 40, so that hundreds of them can be added before a carry.
_LIMB = 40
# Longer tables take seconds and gigabytes. Draws keep one of them for each block, a count one in all.
_LONGEST, LONGEST_OF_COUNT = 2_500_000, 16_000_000
# Enough that few draws of a rounded table are outside the window.
_ROUNDED = 500_000
# Counts are added up in parts that stay in the cache: many times faster.
_CACHED = 1 << 15
# Numbers in all tables of two costs together, which are some 100 MB.
_JOINT = 12_000_000
# Samples are drawn in chunks of a fixed size, so that the first n of a longer list are the same.
_CHUNK = 1024


class CostTable:
    """Counts of the genomes by their total of one cost, from which they are drawn uniformly.

    `fixed` is the cost of stem and head, `totals` are those of each option at each position, `spellings` the numbers of
    block types that each option stands for. Totals are counted in steps of their common divisor above the smallest.
    `steps` are those of each option at each position; totals from `first` to `last` steps are within the window.

    If the divisor is so small that there would be more steps than `longest`, the steps are made longer, each option is
    rounded down, and the table is not `exact`: it counts and draws all genomes within the window and some just outside.
    """

    def __init__(
        self,
        fixed: int,
        totals: Sequence[Sequence[int]],
        spellings: Sequence[Sequence[int]],
        window: tuple[float, float],
        longest: int | None = None,
    ) -> None:
        self._spellings = spellings
        least = fixed + sum(map(min, totals))
        most = fixed + sum(map(max, totals))
        excess = [[value - min(values) for value in values] for values in totals]
        step = gcd(*(value for values in excess for value in values)) or 1
        low, high = max(window[0], least), min(window[1], most)
        self.last = int((high - least) // step) if high >= least else -1
        self.exact = self.last <= (longest or _LONGEST)
        self.steps = [[value // step for value in values] for values in excess]
        self.first = int(-((least - low) // step)) if low > least else 0
        if not self.exact:
            rounded = _Rounded(fixed, totals, window, _ROUNDED)
            self.steps, self.first, self.last = rounded.steps, rounded.first, rounded.last

    def count(self, distinct: bool = True) -> int:
        """Counts the genomes within the window, in exact integers."""
        if self.last < self.first:
            return 0
        limbs = np.zeros((1, self.last + 1), dtype=np.int64)
        limbs[0, 0] = 1
        for steps, spellings in zip(self.steps, self._spellings, strict=True):
            grown = np.zeros((len(limbs) + 1, self.last + 1), dtype=np.int64)
            for start in range(0, self.last + 1, _CACHED):
                end = min(start + _CACHED, self.last + 1)
                for spend, times in zip(steps, spellings, strict=True):
                    if (begin := max(start, spend)) < end:
                        grown[:-1, begin:end] += (1 if distinct else times) * limbs[:, begin - spend : end - spend]
            for limb in range(len(grown) - 1):
                grown[limb + 1] += grown[limb] >> _LIMB
                grown[limb] &= (1 << _LIMB) - 1
            limbs = grown if grown[-1].any() else grown[:-1]
        within = limbs[:, self.first :].astype(object)
        return sum(int(total) << (_LIMB * limb) for limb, total in enumerate(within.sum(axis=1)))

    @cached_property
    def _ways(self) -> list[np.ndarray]:
        """The number of choices for the blocks from i on that spend exactly t steps, as `_ways[i][t]`."""
        # Double precision: sums of positive numbers, so that each probability is right to about 1e-15.
        ways = [np.zeros(self.last + 1)]
        ways[0][0] = 1
        for steps in reversed(self.steps):
            grown = np.zeros(self.last + 1)
            for spend in steps:
                if spend <= self.last:
                    grown[spend:] += ways[0][: self.last + 1 - spend]
            ways.insert(0, grown)
        return ways

    def draw(self, seed: int) -> Iterator[np.ndarray]:
        """Draws chunks of choices (number, blocks), uniformly among the genomes within the window."""
        cumulated = np.cumsum(self._ways[0][self.first :])
        chunk = 0
        while True:
            random = np.random.default_rng([seed, 0, chunk])
            points = random.random(_CHUNK) * cumulated[-1]
            left = self.first + np.searchsorted(cumulated, points, side="right").clip(max=_last_positive(cumulated))
            picks = np.empty((_CHUNK, len(self.steps)), dtype=np.int64)
            for position, steps in enumerate(self.steps):
                after = left[:, None] - np.array(steps)[None, :]
                weights = np.where(after >= 0, self._ways[position + 1][np.maximum(after, 0)], 0.0)
                picks[:, position] = _pick(np.cumsum(weights, axis=1), random)
                left = np.take_along_axis(after, picks[:, position, None], axis=1)[:, 0]
            yield picks
            chunk += 1

    def every(self) -> Iterator[tuple[int, ...]]:
        """Lists the choices of every genome within the window."""

        def extend(position: int, spent: int) -> Iterator[tuple[int, ...]]:
            if position == len(self.steps):
                yield ()
                return
            for pick, spend in enumerate(self.steps[position]):
                total = spent + spend
                if total <= self.last and self._reachable(position + 1, total):
                    for rest in extend(position + 1, total):
                        yield (pick, *rest)

        return extend(0, 0)

    def _reachable(self, position: int, spent: int) -> bool:
        start = max(self.first - spent, 0)
        return bool(self._ways[position][start : self.last + 1 - spent].any())


class JointTable:
    """Draws genomes by two costs at once, for windows that few genomes meet both of.

    Both costs are counted in steps so long that a grid of all pairs of totals stays small, and each option is rounded
    down: the table holds all genomes within both windows, and some just outside. Arguments are those of `CostTable`,
    for each of the two costs.
    """

    def __init__(
        self,
        fixed: tuple[int, int],
        totals: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
        windows: tuple[tuple[float, float], tuple[float, float]],
    ) -> None:
        number = len(totals[0])
        # More steps for the first cost, which usually has the narrower window.
        seconds = int((_JOINT / (number + 1) / 2) ** 0.5)
        first, second = (_Rounded(*axis) for axis in zip(fixed, totals, windows, (2 * seconds, seconds), strict=True))
        self.steps = [np.array(pair).T for pair in zip(first.steps, second.steps, strict=True)]
        self._first, self._last = (first.first, second.first), (first.last, second.last)
        self._met = min(self._last) >= 0
        self.total = float(self._within(0).sum()) if self._met else 0.0

    @cached_property
    def _ways(self) -> list[np.ndarray]:
        """The number of choices for the blocks from i on that spend exactly (s, t) steps, as `_ways[i][s, t]`."""
        shape = self._last[0] + 1, self._last[1] + 1
        ways = [np.zeros(shape)]
        ways[0][0, 0] = 1
        for steps in reversed(self.steps):
            grown = np.zeros(shape)
            for one, other in steps:
                if one < shape[0] and other < shape[1]:
                    grown[one:, other:] += ways[0][: shape[0] - one, : shape[1] - other]
            ways.insert(0, grown)
        return ways

    def _within(self, position: int, spent: tuple[int, int] = (0, 0)) -> np.ndarray:
        """The ways of the blocks from a position on that end within both windows, where so many steps are spent."""
        starts = [max(first - each, 0) for first, each in zip(self._first, spent, strict=True)]
        ends = [last + 1 - each for last, each in zip(self._last, spent, strict=True)]
        return self._ways[position][starts[0] : ends[0], starts[1] : ends[1]]

    def draw(self, seed: int) -> Iterator[np.ndarray]:
        """Draws chunks of choices (number, blocks), uniformly among the genomes of the table."""
        within = self._within(0)
        cumulated = np.cumsum(within.ravel())
        chunk = 0
        while True:
            random = np.random.default_rng([seed, 2, chunk])
            points = random.random(_CHUNK) * cumulated[-1]
            place = np.searchsorted(cumulated, points, side="right").clip(max=_last_positive(cumulated))
            left = np.stack(np.unravel_index(place, within.shape), axis=1) + np.array(self._first)
            picks = np.empty((_CHUNK, len(self.steps)), dtype=np.int64)
            for position, steps in enumerate(self.steps):
                # (chunk, options, 2)
                after = left[:, None] - steps[None]
                there = np.maximum(after, 0)
                ways = self._ways[position + 1][there[..., 0], there[..., 1]]
                weights = np.where((after >= 0).all(axis=-1), ways, 0.0)
                picks[:, position] = _pick(np.cumsum(weights, axis=1), random)
                left = after[np.arange(_CHUNK), picks[:, position]]
            yield picks
            chunk += 1

    def every(self) -> Iterator[tuple[int, ...]]:
        """Lists the choices of every genome of the table."""

        def extend(position: int, spent: tuple[int, int]) -> Iterator[tuple[int, ...]]:
            if position == len(self.steps):
                yield ()
                return
            for pick, (one, other) in enumerate(self.steps[position].tolist()):
                total = spent[0] + one, spent[1] + other
                if all(map(int.__le__, total, self._last)) and self._within(position + 1, total).any():
                    for rest in extend(position + 1, total):
                        yield (pick, *rest)

        return extend(0, (0, 0)) if self._met else iter(())


class _Rounded:
    """One cost in at most so many steps, each option rounded down: `steps`, and the `first` and `last` of a window."""

    def __init__(self, fixed: int, totals: Sequence[Sequence[int]], window: tuple[float, float], number: int) -> None:
        least = fixed + sum(map(min, totals))
        low, high = max(window[0], least), min(window[1], fixed + sum(map(max, totals)))
        step = int((high - least) // number) + 1 if high >= least else 1
        self.steps = [[(value - min(values)) // step for value in values] for values in totals]
        self.last = int((high - least) // step) if high >= least else -1
        # Each block may have lost almost a step by rounding.
        self.first = max(0, int(-((least - low) // step)) - len(totals)) if low > least else 0


def _pick(cumulated: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draws one index for each row, with probabilities given as running sums."""
    points = random.random(len(cumulated)) * cumulated[:, -1]
    return np.minimum((cumulated <= points[:, None]).sum(axis=1), _last_positive(cumulated))


def _last_positive(cumulated: np.ndarray) -> np.ndarray:
    """The last index that has a probability, for a draw that rounds up to the whole sum."""
    return (cumulated < cumulated[..., -1:]).sum(axis=-1)
