"""Layouts: the stages, widths and strides of a residual network, whose blocks a genome fills.

This module needs the standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .genome import BlockType, Conv, Genome, GenomeError, _listed, _quote

__all__ = ["Layout", "Position"]

_NAME = re.compile(r"(?:blockswap_)?(?:wrn([0-9]{1,3})_([0-9]{1,2})|resnet([0-9]{1,3}))(?:_[0-9]+[km])?")
Structure = tuple[str, tuple[Conv, ...]]
_RESNET_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@dataclass(frozen=True)
class Position:
    """The place of one block: its stage and number (from 1), channels in and out, and stride."""

    stage: int
    block: int
    in_chs: int
    out_chs: int
    stride: int

    def structure(self, block: BlockType) -> Structure | None:
        """What makes the network of a block type here; None where its widths do not divide."""
        try:
            # Two families can share their convolutions, but not what stands between them.
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

    `preact` is the order within a block: BN and ReLU before each convolution (WideResNet) or after it (ResNet).
    """

    name: str
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    stem_chs: int
    preact: bool
    input_size: tuple[int, int, int]
    num_classes: int

    @classmethod
    def wide_resnet(cls, depth: int, widen: int) -> Layout:
        """WRN-depth-widen for 32x32 images (Zagoruyko and Komodakis, 2016); raises ValueError for another depth."""
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
        """ResNet-18 or ResNet-34 for 224x224 images (He et al., 2016); raises ValueError for another depth."""
        if depth not in _RESNET_DEPTHS:
            raise ValueError(f"there is no ResNet-{depth} of basic blocks here; write resnet18 or resnet34")
        return cls(
            f"blockswap_resnet{depth}", _RESNET_DEPTHS[depth], (64, 128, 256, 512), 64, False, (3, 224, 224), 1000
        )

    @classmethod
    def named(cls, name: str) -> Layout:
        """Finds the layout of a name such as `wrn40_2`, `blockswap_resnet34` or `resnet34_3m`; raises ValueError."""
        if match := _NAME.fullmatch(name):
            depth, widen, resnet_depth = match.groups()
            return cls.resnet(int(resnet_depth)) if resnet_depth else cls.wide_resnet(int(depth), int(widen))
        raise ValueError(f"unknown network {_quote(name)}; write wrn40_2, resnet34 or another name of 'blockswap list'")

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
        """Returns the genome if this layout can carry it; raises GenomeError with the place where it cannot."""
        genome = Genome(genome)
        if genome.depths != self.depths:
            raise GenomeError(
                f"{self.name} has stages of {_listed(self.depths)} blocks; this genome has {_listed(genome.depths)}"
            )
        for place, block in zip(self.positions, genome.blocks, strict=True):
            try:
                block.convs(place.in_chs, place.out_chs, place.stride)
            except GenomeError as error:
                raise GenomeError(f"stage {place.stage}, block {place.block} '{block}': {error}") from None
        return genome
