"""Search spaces: exactly how many genomes fit a budget, what can be met, and uniform samples of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np
import torch

from .budgets import Budget, BudgetError, Cost
from .cost import count_parts
from .genome import SEARCH_TYPES, BlockType, Conv, Genome, GenomeError
from .layouts import Layout, Position
from .networks import build, residual_blocks

__all__ = ["SearchSpace"]

# Counts beyond 64 bits are kept in limbs of 40, so that hundreds of them can be added before a carry.
_LIMB = 40
# Samples are drawn in chunks of a fixed size, so that the first n of a longer list are the same.
_CHUNK = 1024
_STANDARD = BlockType("S")


class SearchSpace:
    """All genomes of one layout whose blocks come from `types` (the paper's 23 by default).

    A type that does not divide the widths at some position is left out there. Two types that give the same network at a
    position, such as `G16` and `W2` on 32 channels, are one option; the first one's name is used.
    """

    def __init__(
        self,
        layout: Layout | str,
        types: Iterable[BlockType | str] = SEARCH_TYPES,
        num_classes: int | None = None,
        in_chans: int | None = None,
        image_size: int | None = None,
    ) -> None:
        self.layout = Layout.named(layout) if isinstance(layout, str) else layout
        self.types = tuple(each if isinstance(each, BlockType) else BlockType.parse(each) for each in types)
        if not self.types:
            raise GenomeError("a search space needs block types; write at least one, such as 'S'")
        self.num_classes = self.layout.num_classes if num_classes is None else num_classes
        channels, height, width = self.layout.input_size
        self.input_size = (in_chans or channels, image_size or height, image_size or width)
        self._options = [_distinct(self.types, place) for place in self.layout.positions]
        for place, options in zip(self.layout.positions, self._options, strict=True):
            if not options:
                raise GenomeError(
                    f"stage {place.stage}, block {place.block} of {self.layout.name}: none of "
                    f"{', '.join(map(str, self.types))} divides its {place.in_chs} to {place.out_chs} channels"
                )

    def __repr__(self) -> str:
        return f"SearchSpace({self.layout.name!r}, {len(self.types)} block types)"

    # -- costs -------------------------------------------------------------------------------------------------------

    @cached_property
    def _costs(self) -> tuple[Cost, list[list[Cost]]]:
        """What stem and head cost, and what each option costs at each position."""
        # Within a stage, all blocks after the first are alike: two of each stage tell everything.
        short = replace(self.layout, depths=tuple(min(depth, 2) for depth in self.layout.depths))
        by_place: dict[tuple[Position, BlockType], Cost] = {}
        for block in dict.fromkeys((_STANDARD, *self.types)):
            fitting = [block if _structure(block, place) else _STANDARD for place in short.positions]
            model = self.build(Genome.from_blocks(fitting, short.depths), short, device="meta").eval()
            blocks = residual_blocks(model)
            total, *parts = count_parts(model, [model, *blocks], torch.empty(1, *self.input_size, device="meta"))
            if block == _STANDARD:
                fixed = total - sum(parts, Cost(0, 0))
            by_place.update(zip(zip(short.positions, fitting, strict=True), parts, strict=True))
        options = [
            [by_place[replace(place, block=min(place.block, 2)), block] for block, _ in blocks]
            for place, blocks in zip(self.layout.positions, self._options, strict=True)
        ]
        return fixed, options

    def build(self, genome: Genome | str, layout: Layout | None = None, **kwargs: Any) -> torch.nn.Module:
        """Builds the network of a genome, for this space's classes and channels; arguments as of the network."""
        return build(layout or self.layout, genome, num_classes=self.num_classes, in_chans=self.input_size[0], **kwargs)

    def cost(self, genome: Genome | str) -> Cost:
        """Counts a genome of this space: stem, head and the sum over its blocks."""
        genome = self.layout.fit(genome)
        total, options = self._costs
        for place, block, costs, choices in zip(
            self.layout.positions, genome.blocks, options, self._options, strict=True
        ):
            structure = _structure(block, place)
            known = [
                cost for cost, (each, _) in zip(costs, choices, strict=True) if _structure(each, place) == structure
            ]
            if not known:
                raise GenomeError(
                    f"stage {place.stage}, block {place.block} '{block}': not in this search space of "
                    f"{', '.join(map(str, self.types))}"
                )
            total = total + known[0]
        return total

    def range(self, cost: str = "params") -> tuple[int, int]:
        """The smallest and the largest total of a cost (`params` or `macs`) over all genomes."""
        fixed, options = self._costs
        totals = [[getattr(each, cost) for each in costs] for costs in options]
        start = getattr(fixed, cost)
        return start + sum(map(min, totals)), start + sum(map(max, totals))

    # -- counting ----------------------------------------------------------------------------------------------------

    def count(self, budget: Budget | None = None, distinct: bool = True) -> int:
        """Counts the genomes that fit a budget, exactly: distinct networks, or spellings with `distinct=False`.

        A budget names one cost: how many fit several at once is known only from samples (see `sample`).
        """
        if budget is None:
            total = 1
            for options in self._options:
                total *= sum(1 if distinct else spellings for _, spellings in options)
            return total
        name, window = self._exact_cost(budget)
        if len(budget.windows) > 1:
            raise BudgetError("genomes are counted exactly for one cost; write a budget of params or of macs")
        return _Table(self, name, window).count(distinct)

    def _exact_cost(self, budget: Budget) -> tuple[str, tuple[float, float]]:
        """The cost of a budget that is met exactly, by counting: the first that it names."""
        return next(iter(budget.windows.items()))

    # -- sampling ----------------------------------------------------------------------------------------------------

    def sample(self, number: int, budget: Budget | None = None, seed: int = 0) -> list[Genome]:
        """Draws distinct networks that fit a budget, uniformly and without replacement.

        The first genomes of a longer list are those of a shorter one with the same seed. Returns all there are where
        fewer than `number` fit; raises BudgetError, with the range that can be met, where none does. One cost of the
        budget is met by construction, further ones by rejection.
        """
        budget = Budget(params=(0, None)) if budget is None else budget
        return self.sample_stated(number, budget, seed)[0]

    def sample_stated(self, number: int, budget: Budget, seed: int = 0) -> tuple[list[Genome], float]:
        """Draws as `sample` does, and states which share of the draws met the further costs of the budget."""
        if number < 1:
            raise ValueError(f"a sample has at least 1 genome, not {number}")
        name, window = self._exact_cost(budget)
        self._check_reach(budget)
        table = _Table(self, name, window)
        total = table.count()
        if not total:
            raise BudgetError(self._unmet(budget, name))
        listable = total <= 100_000
        found: dict[Genome, None] = {}
        tried = met = 0
        for draws in table.draw(seed):
            for picks in draws:
                tried += 1
                genome, cost = self._decode(picks)
                if budget.fits(cost):
                    met += 1
                    found[genome] = None
                    if len(found) == min(number, total):
                        return list(found), met / tried
            # Where all can be listed, the number does not say when, so that longer samples start as shorter ones.
            if tried > (total if listable else 200 * max(number, 500)):
                break
        if listable:
            # Few fit, and most are found: list them all, in an order drawn from the seed.
            rest = [self._decode(picks) for picks in table.every()]
            np.random.default_rng([seed, 1]).shuffle(rest)
            fitting = [genome for genome, cost in rest if budget.fits(cost)]
            found.update(dict.fromkeys(fitting))
            met, tried = len(fitting), total
        if not found:
            raise BudgetError(f"{self._unmet(budget, name)}: none of {tried:,} genomes that meet its {name} do")
        return list(found)[:number], met / tried

    def _decode(self, picks: Sequence[int]) -> tuple[Genome, Cost]:
        total, options = self._costs
        blocks = []
        for pick, costs, choices in zip(picks, options, self._options, strict=True):
            total = total + costs[pick]
            blocks.append(choices[pick][0])
        return Genome.from_blocks(blocks, self.layout.depths), total

    def _check_reach(self, budget: Budget) -> None:
        for name, (low, high) in budget.windows.items():
            least, most = self.range(name)
            if high < least or low > most:
                raise BudgetError(self._unmet(budget, name))

    def _unmet(self, budget: Budget, name: str) -> str:
        least, most = self.range(name)
        return (
            f"no genome of {self.layout.name} meets {budget}; with these block types its {name} "
            f"run from {least:,} to {most:,}"
        )


class _Table:
    """Counts of the genomes by their total of one cost, from which they are drawn uniformly.

    Totals are counted in steps of their common divisor above the smallest. `ways[i][t]` is the number of choices for
    the blocks from i on that spend exactly t steps.
    """

    def __init__(self, space: SearchSpace, name: str, window: tuple[float, float]) -> None:
        fixed, options = space._costs
        totals = [[getattr(cost, name) for cost in costs] for costs in options]
        self._spellings = [[spellings for _, spellings in each] for each in space._options]
        least = getattr(fixed, name) + sum(map(min, totals))
        most = getattr(fixed, name) + sum(map(max, totals))
        excess = [[value - min(values) for value in values] for values in totals]
        step = gcd(*(value for values in excess for value in values)) or 1
        self._steps = [[value // step for value in values] for values in excess]
        low, high = max(window[0], least), min(window[1], most)
        self._first = int(-((least - low) // step)) if low > least else 0
        self._last = int((high - least) // step) if high >= least else -1

    def count(self, distinct: bool = True) -> int:
        """Counts the genomes within the window, in exact integers."""
        if self._last < self._first:
            return 0
        limbs = np.zeros((1, self._last + 1), dtype=np.int64)
        limbs[0, 0] = 1
        for steps, spellings in zip(self._steps, self._spellings, strict=True):
            limbs = np.concatenate([limbs, np.zeros((1, limbs.shape[1]), dtype=np.int64)])
            grown = np.zeros_like(limbs)
            for spend, times in zip(steps, spellings, strict=True):
                if spend <= self._last:
                    grown[:, spend:] += (1 if distinct else times) * limbs[:, : self._last + 1 - spend]
            for limb in range(len(grown) - 1):
                grown[limb + 1] += grown[limb] >> _LIMB
                grown[limb] &= (1 << _LIMB) - 1
            limbs = grown if grown[-1].any() else grown[:-1]
        within = limbs[:, self._first :].astype(object)
        return sum(int(total) << (_LIMB * limb) for limb, total in enumerate(within.sum(axis=1)))

    @cached_property
    def _ways(self) -> list[np.ndarray]:
        # Double precision: sums of positive numbers, so that each probability is right to about 1e-15.
        ways = [np.zeros(self._last + 1)]
        ways[0][0] = 1
        for steps in reversed(self._steps):
            grown = np.zeros(self._last + 1)
            for spend in steps:
                if spend <= self._last:
                    grown[spend:] += ways[0][: self._last + 1 - spend]
            ways.insert(0, grown)
        return ways

    def draw(self, seed: int) -> Iterator[np.ndarray]:
        """Draws chunks of choices (number, blocks), uniformly among the genomes within the window."""
        cumulated = np.cumsum(self._ways[0][self._first :])
        chunk = 0
        while True:
            random = np.random.default_rng([seed, 0, chunk])
            points = random.random(_CHUNK) * cumulated[-1]
            left = self._first + np.searchsorted(cumulated, points, side="right").clip(max=_last_positive(cumulated))
            picks = np.empty((_CHUNK, len(self._steps)), dtype=np.int64)
            for position, steps in enumerate(self._steps):
                after = left[:, None] - np.array(steps)[None, :]
                weights = np.where(after >= 0, self._ways[position + 1][np.maximum(after, 0)], 0.0)
                picks[:, position] = _pick(np.cumsum(weights, axis=1), random)
                left = np.take_along_axis(after, picks[:, position, None], axis=1)[:, 0]
            yield picks
            chunk += 1

    def every(self) -> Iterator[tuple[int, ...]]:
        """Lists the choices of every genome within the window."""

        def extend(position: int, spent: int) -> Iterator[tuple[int, ...]]:
            if position == len(self._steps):
                yield ()
                return
            for pick, spend in enumerate(self._steps[position]):
                total = spent + spend
                if total <= self._last and self._reachable(position + 1, total):
                    for rest in extend(position + 1, total):
                        yield (pick, *rest)

        return extend(0, 0)

    def _reachable(self, position: int, spent: int) -> bool:
        start = max(self._first - spent, 0)
        return bool(self._ways[position][start : self._last + 1 - spent].any())


def _pick(cumulated: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draws one index for each row, with probabilities given as running sums."""
    points = random.random(len(cumulated)) * cumulated[:, -1]
    return np.minimum((cumulated <= points[:, None]).sum(axis=1), _last_positive(cumulated))


def _last_positive(cumulated: np.ndarray) -> np.ndarray:
    """The last index that has a probability, for a draw that rounds up to the whole sum."""
    return (cumulated < cumulated[..., -1:]).sum(axis=-1)


def _structure(block: BlockType, place: Position) -> tuple[str, tuple[Conv, ...]] | None:
    """What makes the network of a block at a position; None where its widths do not divide."""
    try:
        # Two families can share their convolutions, but not what stands between them.
        return block.family, block.convs(place.in_chs, place.out_chs, place.stride)
    except GenomeError:
        return None


def _distinct(types: Sequence[BlockType], place: Position) -> list[tuple[BlockType, int]]:
    """Lists the different networks that the types give at a position, each with its number of spellings."""
    spellings: dict[object, list[BlockType]] = {}
    for block in dict.fromkeys(types):
        if structure := _structure(block, place):
            spellings.setdefault(structure, []).append(block)
    return [(blocks[0], len(blocks)) for blocks in spellings.values()]
