"""Exact counts of the choices that meet a window of one cost, and uniform draws of them, and of those that meet two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import gcd
from operator import add, le
from typing import NamedTuple

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
# Numbers of choices beyond this power of two are kept in units of it.
_UNIT = 512


class _Axis(NamedTuple):
    """One cost, counted in steps above the smallest total.

    `steps` are those of each option at each position; totals from `first` to `last` steps are within the window.
    """

    steps: list[list[int]]
    first: int
    last: int

    @classmethod
    def of(
        cls, fixed: int, totals: Sequence[Sequence[int]], window: tuple[float, float], most: int | None = None
    ) -> _Axis:
        """Counts in steps of the common divisor of all totals; or in at most so many, each option rounded down."""
        least = fixed + sum(map(min, totals))
        low, high = max(window[0], least), min(window[1], fixed + sum(map(max, totals)))
        excess = [[value - min(values) for value in values] for values in totals]
        if most is None:
            step = gcd(*(value for values in excess for value in values)) or 1
        else:
            step = int((high - least) // most) + 1 if high >= least else 1
        first = int(-((least - low) // step)) if low > least else 0
        return cls(
            [[value // step for value in values] for values in excess],
            # Each block may have lost almost a step by rounding.
            first if most is None else max(0, first - len(totals)),
            int((high - least) // step) if high >= least else -1,
        )


class _Table:
    """Draws and lists the choices that are within the windows of one or more costs, by the numbers of ways to do so."""

    # Tables of several kinds draw other numbers from one seed.
    _stream: int

    def __init__(self, *axes: _Axis) -> None:
        self._first, self._last = [axis.first for axis in axes], [axis.last for axis in axes]
        # (options, costs) at each position.
        self._steps = [np.array(each).T for each in zip(*(axis.steps for axis in axes), strict=True)]

    @property
    def _ways(self) -> list[np.ndarray]:
        """The numbers of choices for the blocks from i on, `_ways[i]`, by the steps of each cost that they spend.

        In units of their own at each position where they are many; at the first of 2 to the power of `_grown[1]`.
        """
        return self._grown[0]

    @cached_property
    def _grown(self) -> tuple[list[np.ndarray], int]:
        # Double precision: sums of positive numbers, so that each probability is right to about 1e-15.
        shape = tuple(last + 1 for last in self._last)
        ways = [np.zeros(shape)]
        ways[0].flat[0] = 1
        power = 0
        for steps in reversed(self._steps):
            grown = np.zeros(shape)
            for spend in steps.tolist():
                if all(each < size for each, size in zip(spend, shape, strict=True)):
                    before = tuple(slice(size - each) for each, size in zip(spend, shape, strict=True))
                    grown[tuple(slice(each, None) for each in spend)] += ways[0][before]
            if grown.max() > 2.0**_UNIT:
                # Some 200 blocks have more choices than a number of double precision can be.
                grown, power = np.ldexp(grown, -_UNIT), power + _UNIT
            ways.insert(0, grown)
        return ways, power

    def _within(self, position: int, spent: Sequence[int]) -> np.ndarray:
        """The ways of the blocks from a position on that end within all windows, where so many steps are spent."""
        windows = zip(self._first, self._last, spent, strict=True)
        return self._ways[position][tuple(slice(max(first - s, 0), last + 1 - s) for first, last, s in windows)]

    def _all_within(self) -> np.ndarray:
        return self._within(0, [0] * len(self._last))

    def draw(self, seed: int) -> Iterator[np.ndarray]:
        """Draws chunks of choices (number, blocks), uniformly among the genomes within the windows."""
        within = self._all_within()
        cumulated = np.cumsum(within.ravel())
        chunk = 0
        while True:
            random = np.random.default_rng([seed, self._stream, chunk])
            points = random.random(_CHUNK) * cumulated[-1]
            place = np.searchsorted(cumulated, points, side="right").clip(max=_last_positive(cumulated))
            left = np.stack(np.unravel_index(place, within.shape), axis=1) + np.array(self._first)
            picks = np.empty((_CHUNK, len(self._steps)), dtype=np.int64)
            for position, steps in enumerate(self._steps):
                # (chunk, options, costs)
                after = left[:, None] - steps[None]
                ways = self._ways[position + 1][tuple(np.moveaxis(np.maximum(after, 0), -1, 0))]
                weights = np.where((after >= 0).all(axis=-1), ways, 0.0)
                picks[:, position] = _pick(np.cumsum(weights, axis=1), random)
                left = after[np.arange(_CHUNK), picks[:, position]]
            yield picks
            chunk += 1

    def every(self) -> Iterator[tuple[int, ...]]:
        """Lists the choices of every genome within the windows."""

        def extend(position: int, spent: list[int]) -> Iterator[tuple[int, ...]]:
            if position == len(self._steps):
                yield ()
                return
            for pick, spend in enumerate(self._steps[position].tolist()):
                total = [*map(add, spent, spend)]
                if all(map(le, total, self._last)) and self._within(position + 1, total).any():
                    for rest in extend(position + 1, total):
                        yield (pick, *rest)

        return extend(0, [0] * len(self._last))


class CostTable(_Table):
    """Counts of the genomes by their total of one cost, from which they are drawn uniformly.

    `fixed` is the cost of stem and head, `totals` are those of each option at each position, `spellings` the numbers of
    block types that each option stands for. Totals are counted in steps of their common divisor above the smallest.
    `steps` are those of each option at each position; totals from `first` to `last` steps are within the window.

    If the divisor is so small that there would be more steps than `longest`, the steps are made longer, each option is
    rounded down, and the table is not `exact`: it counts and draws all genomes within the window and some just outside.
    """

    _stream = 0

    def __init__(
        self,
        fixed: int,
        totals: Sequence[Sequence[int]],
        spellings: Sequence[Sequence[int]],
        window: tuple[float, float],
        longest: int | None = None,
    ) -> None:
        self._spellings = spellings
        axis = _Axis.of(fixed, totals, window)
        self.exact = axis.last <= (longest or _LONGEST)
        if not self.exact:
            axis = _Axis.of(fixed, totals, window, _ROUNDED)
        super().__init__(axis)
        self.steps, self.first, self.last = axis

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


class JointTable(_Table):
    """Draws genomes by two costs at once, for windows that few genomes meet both of.

    Both costs are counted in steps so long that a grid of all pairs of totals stays small, and each option is rounded
    down: the table holds all genomes within both windows, and some just outside. Arguments are those of `CostTable`,
    for each of the two costs; `total` is the number of genomes.
    """

    _stream = 2

    def __init__(
        self,
        fixed: tuple[int, int],
        totals: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
        windows: tuple[tuple[float, float], tuple[float, float]],
    ) -> None:
        # More steps for the first cost, which usually has the narrower window.
        seconds = int((_JOINT / (len(totals[0]) + 1) / 2) ** 0.5)
        super().__init__(*map(_Axis.of, fixed, totals, windows, (2 * seconds, seconds)))
        total = float(self._all_within().sum()) if min(self._last) >= 0 else 0.0
        with np.errstate(over="ignore"):
            self.total = float(np.ldexp(total, self._grown[1])) if total else 0.0


def _pick(cumulated: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draws one index for each row, with probabilities given as running sums."""
    points = random.random(len(cumulated)) * cumulated[:, -1]
    return np.minimum((cumulated <= points[:, None]).sum(axis=1), _last_positive(cumulated))


def _last_positive(cumulated: np.ndarray) -> np.ndarray:
    """The last index that has a probability, for a draw that rounds up to the whole sum."""
    return (cumulated < cumulated[..., -1:]).sum(axis=-1)
