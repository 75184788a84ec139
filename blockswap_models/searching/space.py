"""Search spaces: exactly how many genomes fit a budget, what can be met, and uniform samples of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from ..budget import UNMEASURED, Budget, BudgetError, BudgetLike, Cost, amount_text
from ..counts import require_counts
from ..data.statistics import data_config, model_data_config
from ..genome import SEARCH_TYPES, BlockType, Genome, GenomeError
from ..layout import Layout, NetworkLayout, Position
from ..nets.cost import count, count_parts
from ..nets.networks import build, residual_blocks
from ..nets.stored import StoredTensor, file_size, most_bytes, stored_tensors
from ..nets.swap import BlockNetwork
from .cost_table import LONGEST_OF_COUNT, CostTable, JointTable
from .latency import LatencyTable
from .rankings import has_relus

__all__ = ["SearchSpace"]

_STANDARD, _KEEP = BlockType("S"), BlockType("K")
_NANO = 1_000_000_000
# So many genomes are listed rather than drawn until all were.
_LISTED = 100_000
# Where after so many draws fewer than this share met the further costs of a budget, two costs are met at once.
_TRIED, _RARE = 8192, 0.01


@lru_cache(maxsize=1024)
def _costs_of_type(
    layout: Layout, block: BlockType, num_classes: int, input_size: tuple[int, int, int]
) -> tuple[Cost, tuple[Cost, ...]]:
    """Counts stem and head, and each block of a network of one type, or a standard block where it does not divide."""
    fitting = [block if place.structure(block) else _STANDARD for place in layout.positions]
    genome = Genome.from_blocks(fitting, layout.depths)
    model = build(layout, genome, num_classes=num_classes, in_chans=input_size[0], device="meta").eval()
    x = torch.empty(1, *input_size, device="meta")
    total, *parts = count_parts(model, [model, *residual_blocks(model)], x)
    return total - sum(parts, Cost(0, 0)), tuple(parts)


class SearchSpace:
    """All genomes of one layout, or of one network of timm, whose blocks come from a set of types.

    A type that does not divide the widths at some position is left out there. Two types that give the same network at a
    position, such as `G16` and `W2` on 32 channels, are one option; the first one's name is used.

    Args:
        layout: A layout, or a name such as `wrn40_2`, `resnet34` or a registered one; or, for `swap`, a network of
            timm, or the name of one that is no layout, such as `resnet50`, with random weights.
        types: The block types to choose from; by default the paper's 23, and for a network also K, which keeps a block.
        num_classes: Classes; the layout's own by default.
        in_chans: Channels of the images; the layout's own by default.
        image_size: Side of the images, or height and width; the layout's own by default.
        latency: Measured times; costs then have a latency, and budgets may name it.

    Attributes:
        has_sizes: Whether costs have the size of the weights file; `sized` is such a space.
        options: The options of each position, from first to last: block types, each with the number of types that it
            stands for.
        network: The network whose blocks are swapped; None for a layout.

    Raises:
        SplitError: The network does not split into blocks.
        GenomeError: There is no such type, or none of them fits some position.
        LatencyError: The table is of other networks.
        ValueError: The layout is unknown, or a number is below 1.

    Example:
        ```python
        space = SearchSpace("wrn40_2", num_classes=100)
        space.count(Budget(params=400_000))
        space.sample(10, Budget(params=400_000))
        ```
    """

    def __init__(
        self,
        layout: Layout | str | nn.Module,
        types: Iterable[BlockType | str] | None = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        latency: LatencyTable | None = None,
    ) -> None:
        # Such as numbers of numpy, which a record could not have.
        num_classes, in_chans = (None if each is None else operator.index(each) for each in (num_classes, in_chans))
        if image_size is not None:
            height, width = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
            image_size = operator.index(height), operator.index(width)
        self.network = _network(layout, num_classes, in_chans, image_size)
        self.layout = Layout.named(layout) if self.network is None else self.network.layout  # type: ignore[arg-type]
        if types is None:
            types = SEARCH_TYPES if self.network is None else (_KEEP, *SEARCH_TYPES)
        parsed = (each if isinstance(each, BlockType) else BlockType.parse(each) for each in types)
        self.types = tuple(dict.fromkeys(parsed))
        if not self.types:
            raise GenomeError("a search space needs block types; use at least one, such as 'S'")
        self.num_classes = self.layout.num_classes if num_classes is None else num_classes
        channels, *size = self.layout.input_size
        size = size if image_size is None else [*image_size]
        channels = channels if in_chans is None else in_chans
        # A network may have no head, and so no classes of its own.
        require_counts(num_classes=num_classes, in_chans=channels, image_size=min(size))
        height, width = size
        self.input_size = (channels, height, width)
        self.options = [place.distinct(self.types) for place in self.layout.positions]
        for place, options in zip(self.layout.positions, self.options, strict=True):
            if not options:
                raise GenomeError(
                    f"stage {place.stage}, block {place.block} of {self.layout.name}: none of "
                    f"{', '.join(map(str, self.types))} divides its {place.in_chs} to {place.out_chs} channels"
                )
        self.latency = latency
        self.has_sizes = False
        if latency is not None:
            latency.require(self.layout, self.input_size)
            for index, options in enumerate(self.options):
                for block, _ in options:
                    latency.of_block(index, block)

    def __repr__(self) -> str:
        return f"SearchSpace({self.layout.name!r}, {len(self.types)} block types)"

    # -- budgets -----------------------------------------------------------------------------------------------------

    def resolve(self, budget: BudgetLike | None) -> tuple[SearchSpace, Budget]:
        """Makes numbers of a budget in percent of the original network, and a sized space where it names a size.

        Args:
            budget: The budget; None allows everything.

        Returns:
            This space, or `sized`, and the budget in numbers.

        Raises:
            BudgetError: It cannot be read, or is a share of a latency that is not known.
        """
        budget = Budget(params=(0, None)) if budget is None else Budget.of(budget)
        space = self.sized if budget.size is not None else self
        if not budget.is_share:
            return space, budget
        try:
            return space, budget.of_original(space.original_cost)
        except BudgetError:
            if self.latency is None:
                raise
            raise BudgetError(
                f"a latency in percent is of {self.layout.name}, whose blocks the table does not have; give it in "
                "milliseconds, or measure a table with them"
            ) from None

    @cached_property
    def sized(self) -> SearchSpace:
        """The same space, with costs that have the size of the weights file: counting it takes a little longer."""
        if self.has_sizes:
            return self
        space = copy(self)
        space.__dict__.pop("option_costs", None)
        space.__dict__.pop("original_cost", None)
        space.has_sizes = True
        return space

    @cached_property
    def original_cost(self) -> Cost:
        """What the original network costs: each block is standard, classes and channels are this space's."""
        model = self.build(self.layout.original, device="meta")
        cost = count(model, self.input_size) if self.network is None else self.network.cost
        if self.has_sizes:
            cost = replace(cost, size=file_size(stored_tensors(model)))
        if (table := self.latency) is not None:
            blocks = enumerate(self.layout.original.blocks)
            # A table of some block types may lack those of the original.
            with suppress(GenomeError):
                seconds = table.stem + table.head + sum(table.of_block(index, each) for index, each in blocks)
                cost = replace(cost, latency=round(seconds, 9))
        return cost

    # -- costs -------------------------------------------------------------------------------------------------------

    @cached_property
    def option_costs(self) -> tuple[Cost, list[list[Cost]]]:
        """What stem and head cost, and what each option costs at each position."""
        if self.network is None:
            fixed, options = self._layout_costs()
        else:
            count_option = self.network.option_cost
            fixed = self.network.fixed
            options = [[count_option(index, block) for block, _ in each] for index, each in enumerate(self.options)]
        if self.has_sizes:
            stem, tensors = self._stored
            digits = len(str(self._longest_data))
            fixed = replace(fixed, size=most_bytes(stem, digits) + file_size([]) + 7)
            options = [
                [replace(cost, size=most_bytes(own, digits)) for cost, own in zip(costs, place, strict=True)]
                for costs, place in zip(options, tensors, strict=True)
            ]
        if (table := self.latency) is not None:
            fixed = replace(fixed, latency=round(table.stem + table.head, 9))
            options = [
                [
                    replace(cost, latency=table.of_block(index, block))
                    for cost, (block, _) in zip(costs, blocks, strict=True)
                ]
                for index, (costs, blocks) in enumerate(zip(options, self.options, strict=True))
            ]
        return fixed, options

    def _layout_costs(self) -> tuple[Cost, list[list[Cost]]]:
        # Within a stage, all blocks after the first are alike, so two per stage are enough.
        short = replace(self.layout, depths=tuple(min(depth, 2) for depth in self.layout.depths))
        by_place: dict[tuple[Position, BlockType], Cost] = {}
        for block in dict.fromkeys((_STANDARD, *self.types)):
            rest, parts = _costs_of_type(short, block, self.num_classes, self.input_size)
            if block == _STANDARD:
                fixed = rest
            by_place.update({(place, block): cost for place, cost in zip(short.positions, parts, strict=True)})
        options = [
            [by_place[replace(place, block=min(place.block, 2)), block] for block, _ in blocks]
            for place, blocks in zip(self.layout.positions, self.options, strict=True)
        ]
        return fixed, options

    @cached_property
    def _stored(self) -> tuple[list[StoredTensor], list[list[list[StoredTensor]]]]:
        """What the weights file holds of stem and head, and of each option at each position."""
        original = self.layout.original
        model = self.build(original, device="meta")
        names = [f"{name}." for name in self._block_names(model)]
        stem = [each for each in stored_tensors(model) if not each.name.startswith(tuple(names))]
        by_place: dict[tuple[int, BlockType], list[StoredTensor]] = {}
        for block in dict.fromkeys(block for options in self.options for block, _ in options):
            places = [place for place, options in enumerate(self.options) if block in dict(options)]
            blocks = [block if place in places else own for place, own in enumerate(original.blocks)]
            model = self.build(Genome.from_blocks(blocks, self.layout.depths), device="meta")
            for place in places:
                by_place[place, block] = stored_tensors(model.get_submodule(names[place][:-1]), names[place])
        return stem, [[by_place[place, block] for block, _ in options] for place, options in enumerate(self.options)]

    def _block_names(self, model: nn.Module) -> list[str]:
        """The names of the blocks of a network of this space."""
        if self.network is not None:
            return [each.name for each in self.network.blocks]
        names = {id(module): name for name, module in model.named_modules()}
        return [names[id(block)] for block in residual_blocks(model)]

    @cached_property
    def _longest_data(self) -> int:
        """The bytes of the largest file, but for its header."""
        stem, tensors = self._stored
        return sum(each.data for each in stem) + sum(max(sum(e.data for e in own) for own in at) for at in tensors)

    @property
    def size_slack(self) -> int:
        """The bytes by which the sizes of options may add up to more than the file has.

        Each option counts the most digits that an offset can have.
        """
        stem, tensors = self._stored
        number = len(stem) + sum(max(map(len, at)) for at in tensors)
        return 2 * number * (len(str(self._longest_data)) - 1) + 16

    def _size(self, picks: Sequence[int]) -> int:
        """The bytes of the weights file of a genome, of which the option at each position is given."""
        stem, tensors = self._stored
        return file_size([*stem, *(each for pick, at in zip(picks, tensors, strict=True) for each in at[pick])])

    def build(self, genome: Genome | str, layout: Layout | None = None, **kwargs: Any) -> nn.Module:
        """Builds the network of a genome, with random weights.

        Args:
            genome: The genome.
            layout: Another layout than the space's.
            **kwargs: Arguments of the network, such as `device`.

        Returns:
            The network, for this space's classes and channels.

        Raises:
            GenomeError: The genome does not fit.
        """
        if self.network is not None:
            return self.network.build(genome, **kwargs)
        return build(layout or self.layout, genome, num_classes=self.num_classes, in_chans=self.input_size[0], **kwargs)

    def build_active(self, genome: Genome | str) -> nn.Module:
        """Builds the network of a genome for a score: no branch with random weights starts at zero.

        Args:
            genome: The genome.

        Returns:
            The network.

        Raises:
            GenomeError: The genome does not fit.
        """
        if self.network is not None:
            return self.network.build_active(genome)
        arguments: dict[str, Any] = {} if self.layout.preact else {"zero_init_last": False}
        return self.build(genome, **arguments)

    @property
    def has_relus(self) -> bool:
        """Whether all activations of the network are ReLUs, as those of all layouts, which the score NASWOT needs."""
        return self.network is None or has_relus(self.network.model)

    @property
    def data_config(self) -> dict[str, Any]:
        """How the network wants its images, as a timm cfg: mean, standard deviation, crop and interpolation."""
        if self.network is not None:
            return model_data_config(self.network.model)
        return data_config(self.layout, self.input_size[0])

    def cost(self, genome: Genome | str) -> Cost:
        """Counts a genome of this space: stem, head and the sum over its blocks.

        Args:
            genome: The genome.

        Returns:
            Its cost, with a latency where the space has a table of them.

        Raises:
            GenomeError: The genome is not of this space.
        """
        return self.decode(self._picks(self.layout.fit(genome)))[1]

    def _picks(self, genome: Genome) -> list[int]:
        """The number of the option at each position; raises GenomeError for a block that is not among them."""
        picks = []
        for place, block, choices in zip(self.layout.positions, genome.blocks, self.options, strict=True):
            structure = place.structure(block)
            known = [pick for pick, (each, _) in enumerate(choices) if place.structure(each) == structure]
            if not known:
                raise GenomeError(
                    f"stage {place.stage}, block {place.block} '{block}': not in this search space of "
                    f"{', '.join(map(str, self.types))}"
                )
            picks.append(known[0])
        return picks

    def range(self, cost: str = "params") -> tuple[float, float]:
        """Finds the smallest and the largest total of a cost over all genomes.

        Args:
            cost: `params`, `macs`, `latency` or `size`.

        Returns:
            Both totals.

        Raises:
            BudgetError: There are no measured latencies.
        """
        if cost == "size":
            totals = self.sized._totals(cost)[1]
            ends = ([each.index(pick(each)) for each in totals] for pick in (min, max))
            smallest, largest = map(self.sized._size, ends)
            return smallest, largest
        fixed, totals = self._totals(cost)
        least, most = fixed + sum(map(min, totals)), fixed + sum(map(max, totals))
        return (least / _NANO, most / _NANO) if cost == "latency" else (least, most)

    def _totals(self, name: str) -> tuple[int, list[list[int]]]:
        """One cost of stem and head, and of each option at each position, as integers: latencies in nanoseconds."""
        if name == "latency" and self.latency is None:
            raise BudgetError(UNMEASURED)
        fixed, options = self.option_costs
        scale = _NANO if name == "latency" else 1
        return round(getattr(fixed, name) * scale), [
            [round(getattr(each, name) * scale) for each in costs] for costs in options
        ]

    def cost_table(self, name: str, window: tuple[float, float], longest: int | None = None) -> CostTable:
        """Makes the table by which genomes within a window of one cost are counted and drawn."""
        fixed, totals = self._totals(name)
        spellings = [[number for _, number in each] for each in self.options]
        return CostTable(fixed, totals, spellings, self._whole_window(name, window), longest)

    def joint_table(self, budget: Budget) -> JointTable:
        """Makes the table by which genomes within the first two windows of a budget are drawn."""
        (one, first), (other, second) = list(budget.windows.items())[:2]
        costs = self._totals(one), self._totals(other)
        return JointTable(
            (costs[0][0], costs[1][0]),
            (costs[0][1], costs[1][1]),
            (self._whole_window(one, first), self._whole_window(other, second)),
        )

    def _whole_window(self, name: str, window: tuple[float, float]) -> tuple[float, float]:
        """A window of a cost in the integers of `_totals`."""
        if name == "latency":
            # The product of a decimal fraction and 1e9 is not exact.
            return round(window[0] * _NANO, 3), round(window[1] * _NANO, 3)
        return (window[0], window[1] + self.size_slack) if name == "size" else window

    # -- counting ----------------------------------------------------------------------------------------------------

    def count(self, budget: BudgetLike | None = None, distinct: bool = True) -> int:
        """Counts the genomes that fit a budget, exactly.

        Args:
            budget: A budget of one cost; None counts all genomes.
            distinct: Whether genomes that build the same network count once.

        Returns:
            Their number.

        Raises:
            BudgetError: The budget names several costs, or a size, or a cost with too many different totals, as MACs at
                image sizes that the strides do not divide; `estimate` takes these.
        """
        if budget is None:
            total = 1
            for options in self.options:
                total *= sum(1 if distinct else spellings for _, spellings in options)
            return total
        budget = self.resolve(budget)[1]
        name, window = self.exact_cost(budget)
        if len(budget.windows) > 1 or name == "size":
            raise BudgetError("genomes are counted for one of params, macs and latency; use SearchSpace.estimate")
        table = self.cost_table(name, window, LONGEST_OF_COUNT)
        if not table.exact:
            raise BudgetError(
                f"{name} of {self.layout.name} at {'x'.join(map(str, self.input_size))} are too many different numbers "
                "to count genomes exactly; take an image size that the strides divide, or SearchSpace.estimate"
            )
        return table.count(distinct)

    def estimate(self, budget: BudgetLike, samples: int = 1000, seed: int = 0) -> tuple[int, int]:
        """Estimates how many networks fit a budget of any costs.

        Args:
            budget: The budget.
            samples: Networks to draw for the estimate.
            seed: Seed of the draws.

        Returns:
            The estimate, and the number of networks that it was made from.

        Raises:
            BudgetError: No network fits.
        """
        space, budget = self.resolve(budget)
        found, share = space.sample_with_acceptance(samples, budget, seed)
        return round(space.cost_table(*space.exact_cost(budget)).count() * share), len(found)

    def exact_cost(self, budget: Budget) -> tuple[str, tuple[float, float]]:
        """Names the cost of a budget that is met exactly, by counting, and its window: the first that it names."""
        return next(iter(budget.windows.items()))

    # -- sampling ----------------------------------------------------------------------------------------------------

    def sample(self, number: int, budget: BudgetLike | None = None, seed: int = 0) -> list[Genome]:
        """Draws distinct networks that fit a budget, uniformly and without replacement.

        The first genomes of a longer list are those of a shorter one with the same seed. One cost of the budget is met
        by construction, further ones by rejection; where few meet two, both are met by construction, nearly.

        Args:
            number: Number of genomes.
            budget: The budget; None draws from all genomes.
            seed: Seed of the draws.

        Returns:
            The genomes; where there are fewer than `number`, all that fit, or almost all.

        Raises:
            BudgetError: None fits; the message says what can be met.
            ValueError: The number is below 1.
        """
        space, budget = self.resolve(budget)
        return space.sample_with_acceptance(number, budget, seed)[0]

    def sample_with_acceptance(self, number: int, budget: Budget, seed: int = 0) -> tuple[list[Genome], float]:
        """Draws as `sample` does, and returns the share of draws that met the whole budget, further costs included.

        The budget is in numbers, and the space is sized if it names a size; `resolve` makes both.
        """
        if number < 1:
            raise ValueError(f"a sample has at least 1 genome, not {number}")
        name, window = self.exact_cost(budget)
        self._check_reach(budget)
        table = self.cost_table(name, window)
        total = table.count()
        if not total:
            raise BudgetError(self._unmet(budget, name))
        listable = total <= _LISTED
        wanted, most = min(number, total), total if listable else 200 * max(number, 500)

        def is_rare(tried: int, met: int) -> bool:
            return not listable and len(budget.windows) > 1 and tried >= _TRIED and met < _RARE * tried

        found: dict[Genome, None] = {}
        # Where all can be listed, the number does not say when, so that longer samples start as shorter ones.
        tried, met = self._draw_fitting(
            table, wanted, budget, seed, found, lambda tried, met: tried > most or is_rare(tried, met)
        )
        if len(found) < wanted and is_rare(tried, met):
            return self._sampled_jointly(number, budget, seed, found, total)
        if len(found) < wanted and listable:
            # Few fit, and most are found: list them all, in an order drawn from the seed.
            tried, met = self._list_fitting(table, budget, [seed, 1], found)
        if not found:
            met_first = "meet" if table.exact else "come near"
            raise BudgetError(f"{self._unmet(budget, name)}: none of {tried:,} genomes that {met_first} its {name} do")
        return list(found)[:number], met / tried

    def _sampled_jointly(
        self, number: int, budget: Budget, seed: int, found: dict[Genome, None], total: int
    ) -> tuple[list[Genome], float]:
        """Goes on as `sample_with_acceptance` where few of the `total` genomes that meet the first cost meet more.

        `found` are those that were drawn already.
        """
        table, most = self.joint_table(budget), 200 * max(number, 500)
        if table.total <= _LISTED:
            tried, met = self._list_fitting(table, budget, [seed, 3], found)
        else:
            tried, met = self._draw_fitting(table, number, budget, seed, found, lambda tried, _: tried > most)
        if not found:
            near_by = f": none of {tried:,} genomes that come near do" if tried else ""
            raise BudgetError(f"{self._unmet(budget, self.exact_cost(budget)[0])}{near_by}")
        return list(found)[:number], met / max(tried, 1) * table.total / total

    def _draw_fitting(
        self,
        table: CostTable | JointTable,
        number: int,
        budget: Budget,
        seed: int,
        found: dict[Genome, None],
        is_enough: Callable[[int, int], bool],
    ) -> tuple[int, int]:
        """Draws until `found` has so many genomes that fit, or enough were drawn; returns how many, and how many fit.

        What is enough is asked after each chunk, by these numbers.
        """
        tried = met = 0
        for draws in table.draw(seed):
            for genome, cost in map(self.decode, draws):
                tried += 1
                if budget.fits(cost):
                    met += 1
                    found[genome] = None
                    if len(found) == number:
                        return tried, met
            if is_enough(tried, met):
                break
        return tried, met

    def _list_fitting(
        self, table: CostTable | JointTable, budget: Budget, seed: list[int], found: dict[Genome, None]
    ) -> tuple[int, int]:
        """Adds all genomes of a table that fit, in an order by a seed; returns how many it has, and how many fit."""
        listed = [self.decode(picks) for picks in table.every()]
        np.random.default_rng(seed).shuffle(listed)
        fitting = [genome for genome, cost in listed if budget.fits(cost)]
        found.update(dict.fromkeys(fitting))
        return len(listed), len(fitting)

    def decode(self, picks: Sequence[int]) -> tuple[Genome, Cost]:
        """Makes the genome, with its cost, of the number of an option at each position."""
        total, options = self.option_costs
        blocks = []
        for pick, costs, choices in zip(picks, options, self.options, strict=True):
            total = total + costs[pick]
            blocks.append(choices[pick][0])
        if self.has_sizes:
            total = replace(total, size=self._size(picks))
        return Genome.from_blocks(blocks, self.layout.depths), total

    def _check_reach(self, budget: Budget) -> None:
        for name, (low, high) in budget.windows.items():
            least, most = self.range(name)
            if high < least or low > most:
                raise BudgetError(self._unmet(budget, name))

    def _unmet(self, budget: Budget, name: str) -> str:
        least, most = self.range(name)
        run = "run" if name in ("params", "macs") else "runs"
        return (
            f"no genome of {self.layout.name} meets {budget}; with these block types its {name} "
            f"{run} from {amount_text(name, least)} to {amount_text(name, most)}"
        )


def _network(
    network: Layout | str | nn.Module,
    num_classes: int | None,
    in_chans: int | None,
    size: tuple[int, int] | None,
) -> BlockNetwork | None:
    """Makes the network whose blocks are swapped, of what is no layout and no name of one."""
    if isinstance(network, NetworkLayout):
        raise ValueError(f"a layout of {network.name} does not make the network; use SearchSpace(model)")
    if isinstance(network, Layout):
        return None
    if isinstance(network, str):
        try:
            Layout.named(network)
            return None
        except ValueError:
            if not timm.is_model(network.partition(".")[0]):
                raise
    require_counts(num_classes=num_classes, in_chans=in_chans, image_size=None if size is None else min(size))
    return BlockNetwork(network, num_classes, in_chans, size)
