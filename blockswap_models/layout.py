"""Layouts: the stages, widths and strides of a residual network, whose blocks a genome fills.

This module needs the standard library only.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .genome import BlockType, Conv, Genome, GenomeError
from .messages import did_you_mean, listed, quote

__all__ = ["RANDOM_WEIGHTS", "Layout", "NetworkLayout", "Position", "add_layout"]

_NAME = re.compile(r"(?:blockswap_)?(?:wrn([0-9]{1,3})_([0-9]{1,2})|resnet([0-9]{1,3}))(?:_[0-9]+[km])?")
# What is said of the weights of a network that was given by its name.
RANDOM_WEIGHTS = "random weights"
Structure = tuple[str, tuple[Conv, ...]]
_RESNET_DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
# The forward of timm's ResNet names four stages, and its stem has 64 channels.
_RESNET_STAGES, _RESNET_STEM = 4, 64
# Suggested for names that are like them.
_STANDARD_NAMES = (
    *(f"wrn{depth}_{widen}" for depth in (16, 22, 28, 40) for widen in (1, 2, 4, 8, 10)),
    *(f"resnet{depth}" for depth in _RESNET_DEPTHS),
)
# The layouts of registered entries, by name.
_registered: dict[str, Layout] = {}


@dataclass(frozen=True)
class Position:
    """The place of one block: its stage and number (from 1), channels in and out, and stride.

    `kept` says that the block of a given network stands there, which the type K keeps.
    """

    stage: int
    block: int
    in_chs: int
    out_chs: int
    stride: int
    kept: bool = False

    def structure(self, block: BlockType) -> Structure | None:
        """What defines the network of a block type here; None if its widths do not divide."""
        if self.kept and block.family == "K":
            return "K", ()
        try:
            # Two families can have the same convolutions, but differ in the layers between them.
            return block.family, block.convs(self.in_chs, self.out_chs, self.stride)
        except GenomeError:
            return None

    def distinct(self, types: Iterable[BlockType]) -> list[tuple[BlockType, int]]:
        """Lists the different networks that the types give here, each with its number of spellings."""
        spellings: dict[Structure, list[BlockType]] = {}
        for block in dict.fromkeys(types):
            if structure := self.structure(block):
                spellings.setdefault(structure, []).append(block)
        return [(blocks[0], len(blocks)) for blocks in spellings.values()]


@dataclass(frozen=True)
class Layout:
    """A residual network without its block types: `depths` blocks in stages of `channels`, after a stem of `stem_chs`.

    Every stage but the first halves the images. Use `Layout.named` or `Layout.custom` to make one.

    Args:
        name: Letters, digits and `_`.
        depths: Blocks in each stage.
        channels: Output channels of each stage.
        stem_chs: Output channels of the stem.
        preact: Whether BN and ReLU come before each convolution (Wide ResNet) or after it (ResNet).
        input_size: Channels, height and width of the images.
        num_classes: Classes.

    Raises:
        ValueError: Neither network can have these stages.
    """

    name: str
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    stem_chs: int
    preact: bool
    input_size: tuple[int, int, int]
    num_classes: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_]+", str(self.name)):
            raise ValueError(f"a network's name is letters, digits and '_', such as 'my_net', not {quote(self.name)}")
        for name in ("depths", "channels", "input_size"):
            object.__setattr__(self, name, self._whole(name, getattr(self, name)))
        for name in ("stem_chs", "num_classes"):
            object.__setattr__(self, name, self._whole(name, (getattr(self, name),))[0])
        if len(self.depths) != len(self.channels):
            raise ValueError(
                f"{self.name} has depths {self.depths} and channels {self.channels}; use as many of each, one a stage"
            )
        if len(self.input_size) != 3:
            raise ValueError(f"the input_size of {self.name} is (channels, height, width), not {self.input_size}")
        stages = len(self.depths)
        if not self.preact and (stages, self.stem_chs) != (_RESNET_STAGES, _RESNET_STEM):
            raise ValueError(
                "a post-activation network has 4 stages after a stem of 64 channels, as timm's ResNet; "
                f"{self.name} has {stages} after {self.stem_chs}; use preact=True for other numbers"
            )

    def _whole(self, name: str, numbers: Sequence[int]) -> tuple[int, ...]:
        try:
            whole = tuple(map(operator.index, numbers))
        except TypeError:
            whole = ()
        if not whole or min(whole) < 1:
            given = numbers[0] if name in ("stem_chs", "num_classes") else numbers
            raise ValueError(f"the {name} of {self.name}: whole numbers from 1 up, not {quote(given)}")
        return whole

    def __repr__(self) -> str:
        channels, height, width = self.input_size
        stages = ", ".join(f"{depth}x{chs}" for depth, chs in zip(self.depths, self.channels, strict=True))
        order = "pre" if self.preact else "post"
        return (
            f"Layout({self.name}: stem {self.stem_chs}, stages of blocks x channels {stages}, {order}-activation, "
            f"{channels}x{height}x{width} images, {self.num_classes} classes)"
        )

    def _repr_html_(self) -> str:
        """Shows the stages as a table, in a notebook."""
        channels, height, width = self.input_size
        title, last = self._last_column()
        rows = [
            (stage, depth, chs, each)
            for stage, (depth, chs, each) in enumerate(zip(self.depths, self.channels, last, strict=True), start=1)
        ]
        head = "".join(f"<th>{title}</th>" for title in ("stage", "blocks", "channels", title))
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        order = "before" if self.preact else "after"
        return (
            f"<div><b>{self.name}</b>: images {channels}x{height}x{width}, {self.num_classes} classes, a stem of "
            f"{self.stem_chs} channels, BN and ReLU {order} convolutions"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _last_column(self) -> tuple[str, list[str]]:
        """Title and cells of what a notebook shows last of each stage: height and width of its maps."""
        _, height, width = self.input_size
        first = 1 if self.preact else 4
        reductions = [first << stage for stage in range(len(self.depths))]
        return "size", [f"{-(-height // each)}x{-(-width // each)}" for each in reductions]

    @classmethod
    def custom(
        cls,
        name: str,
        depths: Sequence[int],
        channels: Sequence[int],
        *,
        preact: bool = True,
        stem_chs: int | None = None,
        input_size: Sequence[int] | None = None,
        num_classes: int | None = None,
    ) -> Layout:
        """Makes a layout of any stages; defaults are those of WRN-40-2 or, with `preact=False`, of ResNet-34.

        Args:
            name: A name of letters, digits and `_`, for `register`.
            depths: Blocks in each stage.
            channels: Output channels of each stage.
            preact: Whether BN and ReLU come before each convolution (Wide ResNet) or after it (ResNet).
            stem_chs: Output channels of the stem.
            input_size: Channels, height and width of the images.
            num_classes: Classes.

        Returns:
            The layout.

        Raises:
            ValueError: The network cannot have these stages.

        Example:
            ```python
            Layout.custom("my_net", depths=(2, 3, 2), channels=(32, 64, 96), num_classes=200)
            ```
        """
        usual = cls.wide_resnet(40, 2) if preact else cls.resnet(34)
        return cls(
            name,
            depths,  # type: ignore[arg-type]  # any sequences: the layout makes tuples of them
            channels,  # type: ignore[arg-type]
            usual.stem_chs if stem_chs is None else stem_chs,
            preact,
            usual.input_size if input_size is None else input_size,  # type: ignore[arg-type]
            usual.num_classes if num_classes is None else num_classes,
        )

    @classmethod
    def wide_resnet(cls, depth: int, widen: int) -> Layout:
        """Makes WRN-depth-widen for 32x32 images (Zagoruyko and Komodakis, 2016).

        Args:
            depth: 6n + 4, such as 16 or 40.
            widen: Factor of the channels.

        Returns:
            The layout.

        Raises:
            ValueError: There is no network of this depth.
        """
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            raise ValueError(
                f"there is no WRN-{depth}-{widen}: its depth is 6n + 4, such as 16, 22, 28 or 40, "
                "and its width at least 1"
            )
        depths = ((depth - 4) // 6,) * 3
        channels = (16 * widen, 32 * widen, 64 * widen)
        return cls(f"blockswap_wrn{depth}_{widen}", depths, channels, 16, True, (3, 32, 32), 10)

    @classmethod
    def resnet(cls, depth: int) -> Layout:
        """Makes ResNet-10, 18 or 34 for 224x224 images (He et al., 2016).

        Args:
            depth: 10, 18 or 34.

        Returns:
            The layout.

        Raises:
            ValueError: There is no network of this depth.
        """
        if depth not in _RESNET_DEPTHS:
            raise ValueError(
                f"there is no ResNet-{depth} of basic blocks; use resnet10, resnet18 or resnet34, "
                "or Layout.custom in Python"
            )
        return cls(
            f"blockswap_resnet{depth}", _RESNET_DEPTHS[depth], (64, 128, 256, 512), 64, False, (3, 224, 224), 1000
        )

    @classmethod
    def named(cls, name: Layout | str) -> Layout:
        """Finds a layout by its name.

        Args:
            name: Such as `wrn40_2`, `resnet34_3m` or a registered name; a layout stands for itself.

        Returns:
            The layout.

        Raises:
            ValueError: The name is unknown.
        """
        if isinstance(name, Layout):
            return name
        if match := _NAME.fullmatch(name):
            depth, widen, resnet_depth = match.groups()
            return cls.resnet(int(resnet_depth)) if resnet_depth else cls.wide_resnet(int(depth), int(widen))
        if name in _registered:
            return _registered[name]
        advice = did_you_mean(
            name.lower(), [*_STANDARD_NAMES, *_registered], "use wrn40_2, resnet34 or another name of 'blockswap list'"
        )
        raise ValueError(f"unknown network {quote(name)}; {advice}")

    @property
    def reduction(self) -> int:
        """How many times smaller than the images the last feature map is, in height and in width."""
        return 2 ** (len(self.depths) - 1) * (1 if self.preact else 4)

    def pool_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the last feature map of images of a size."""
        return -(-height // self.reduction), -(-width // self.reduction)

    @property
    def is_known(self) -> bool:
        """Whether its name means this layout in this process: the name of a WRN, a ResNet or a registered entry."""
        try:
            return Layout.named(self.name) == self
        except ValueError:
            return False

    @property
    def is_standard(self) -> bool:
        """Whether its name means this layout in every process, registered or not."""
        return self.is_known and _NAME.fullmatch(self.name) is not None

    @property
    def original(self) -> Genome:
        """The genome of the original network: the standard block everywhere."""
        return Genome("/".join(f"{depth}xS" for depth in self.depths))

    @property
    def positions(self) -> tuple[Position, ...]:
        """The place of every block, in order."""
        return tuple(self._positions())

    def _positions(self) -> Iterator[Position]:
        in_chs = self.stem_chs
        for stage, (depth, out_chs) in enumerate(zip(self.depths, self.channels, strict=True), start=1):
            for block in range(1, depth + 1):
                yield Position(stage, block, in_chs, out_chs, 2 if stage > 1 and block == 1 else 1)
                in_chs = out_chs

    def fit(self, genome: Genome | str) -> Genome:
        """Checks that a genome fits this layout.

        Args:
            genome: The genome, or its text.

        Returns:
            The genome.

        Raises:
            GenomeError: It does not fit; the message says where.
        """
        genome = Genome(genome)
        if genome.depths != self.depths:
            raise GenomeError(
                f"{self.name} has stages of {listed(self.depths)} blocks; this genome has {listed(genome.depths)}"
            )
        for place, block in zip(self.positions, genome.blocks, strict=True):
            if place.kept and block.family == "K":
                continue
            try:
                block.convs(place.in_chs, place.out_chs, place.stride)
            except GenomeError as error:
                raise GenomeError(f"stage {place.stage}, block {place.block} '{block}': {error}") from None
        return genome


@dataclass(frozen=True, repr=False)
class NetworkLayout(Layout):
    """The layout of a given network: the places of its blocks as they were found. `block_network` makes one.

    Args:
        places: The place of every block, in order.

    Raises:
        ValueError: There are no places.
    """

    places: tuple[Position, ...] = ()

    def __post_init__(self) -> None:
        if not self.places:
            raise ValueError(f"{self.name} has no blocks")

    @classmethod
    def of_places(
        cls,
        name: str,
        places: Sequence[Position],
        *,
        preact: bool,
        input_size: tuple[int, int, int],
        num_classes: int,
    ) -> NetworkLayout:
        """Makes the layout of blocks in order; depths and channels are theirs."""
        last = {place.stage: place for place in places}
        return cls(
            re.sub(r"[^A-Za-z0-9_]", "_", name),
            tuple(place.block for place in last.values()),
            tuple(place.out_chs for place in last.values()),
            places[0].in_chs if places else 1,
            preact,
            input_size,
            num_classes,
            tuple(places),
        )

    @property
    def reduction(self) -> int:
        """How many times smaller the last feature map is than the first block's input."""
        return math.prod(place.stride for place in self.places)

    def _last_column(self) -> tuple[str, list[str]]:
        # How much smaller the stem makes the images is not known.
        strides = dict.fromkeys((place.stage for place in self.places), 1)
        for place in self.places:
            strides[place.stage] *= place.stride
        return "stride", [str(stride) for stride in strides.values()]

    @property
    def is_known(self) -> bool:
        """Never: a name alone does not say where the blocks of a network are."""
        return False

    @property
    def original(self) -> Genome:
        """The genome of the network as it was given: every block kept."""
        return Genome("/".join(f"{depth}xK" for depth in self.depths))

    def _positions(self) -> Iterator[Position]:
        return iter(self.places)


def add_layout(layout: Layout) -> None:
    """Makes the name of a layout known to `Layout.named`."""
    _registered[layout.name] = layout
