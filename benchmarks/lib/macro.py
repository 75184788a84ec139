"""NAS-Bench-Macro (Su et al., 2021): its table of trained networks, and its networks built from our block types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from blockswap_models.genome import BlockType, Conv, Genome
from blockswap_models.nets.blocks import ResidualBlock

__all__ = ["DEPTHS", "MacroNetwork", "TrainedNetwork", "genome_of", "read_table"]

DEPTHS = (2, 3, 3)
CHANNELS = (64, 128, 256)
STEM, HEAD = 32, 1280
# What the digits of the table stand for.
TYPES = {"0": "I", "1": "M3", "2": "M6K5"}


class TrainedNetwork(NamedTuple):
    """A network of the table: its digits, our genome, the mean test accuracy of three trainings, and costs."""

    digits: str
    genome: Genome
    accuracy: float
    params: int
    macs: int

    @property
    def layers(self) -> int:
        """How many of its eight layers are no identity."""
        return len(self.digits) - self.digits.count("0")


def read_table(path: str | Path) -> list[TrainedNetwork]:
    """Reads the table, in the order of its digits."""
    table = json.loads(Path(path).read_text())
    return [
        TrainedNetwork(digits, genome_of(digits), row["mean_acc"], row["params"], row["flops"])
        for digits, row in sorted(table.items())
    ]


def genome_of(digits: str) -> Genome:
    """Translates the digits of the table, such as 00212012."""
    return Genome.from_blocks([TYPES[each] for each in digits], DEPTHS)


class LinearBlock(ResidualBlock):
    """The convolutions of a block type as MobileNetV2 arranges them: each with BN, and a ReLU after all but the last.

    There is a shortcut only where it needs no projection, and no ReLU after the addition.
    """

    branch_end = "branch"

    def __init__(self, convs: Sequence[Conv]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for conv in convs:
            layers += [*_conv_norm(conv), nn.ReLU(inplace=True)]
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut = convs[0].in_chs == convs[-1].out_chs and all(conv.stride == 1 for conv in convs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in, H, W) to (N, out, H / stride, W / stride)."""
        return x + self.branch(x) if self.shortcut else self.branch(x)


class LinearIdentity(ResidualBlock):
    """No branch: the input as it is, or its projection by a 1x1 convolution and BN where a stage begins."""

    branch_end = None

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        same = in_chs == out_chs and stride == 1
        self.shortcut = nn.Sequential(*([] if same else _conv_norm(Conv(in_chs, out_chs, 1, stride))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in, H, W) to (N, out, H / stride, W / stride)."""
        return self.shortcut(x)


class MacroNetwork(nn.Module):
    """A network of NAS-Bench-Macro for 32x32 images of ten classes: each of its three stages halves the resolution."""

    def __init__(self, genome: Genome | str) -> None:
        super().__init__()
        self.genome = Genome(genome)
        self.stem = nn.Sequential(*_conv_norm(Conv(3, STEM, 3)), nn.ReLU(inplace=True))
        blocks: list[nn.Module] = []
        in_chs = STEM
        for stage, out_chs in zip(self.genome.stages, CHANNELS, strict=True):
            for number, block in enumerate(stage):
                blocks.append(_block(block, in_chs, out_chs, 1 if number else 2))
                in_chs = out_chs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv_norm(Conv(in_chs, HEAD, 1)), nn.ReLU(inplace=True))
        self.fc = nn.Linear(HEAD, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (N, 3, H, W) to logits (N, 10)."""
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _block(block: BlockType, in_chs: int, out_chs: int, stride: int) -> ResidualBlock:
    if block.family == "I":
        return LinearIdentity(in_chs, out_chs, stride)
    return LinearBlock(block.convs(in_chs, out_chs, stride))


def _conv_norm(conv: Conv) -> tuple[nn.Module, nn.Module]:
    layer = nn.Conv2d(
        conv.in_chs, conv.out_chs, conv.kernel, conv.stride, conv.kernel // 2, groups=conv.groups, bias=False
    )
    return layer, nn.BatchNorm2d(conv.out_chs)
