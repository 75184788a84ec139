"""Residual blocks: one block type becomes one module, pre-activation (WideResNet) or post-activation (ResNet).

Each block takes its own skeleton from its own type: two convolutions for S, G, W and D, a bottleneck of three for B and
M, none for I. In G, W and D the place of a convolution is taken by two of them, a grouped or depthwise 3x3 and a
pointwise one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..genome import BlockType, Conv

__all__ = [
    "IdentityBlock",
    "PostActBasic",
    "PostActBottleneck",
    "PreActBasic",
    "PreActBottleneck",
    "ResidualBlock",
    "build_block",
]


class ResidualBlock(nn.Module):
    """A residual block: a branch that is added to a shortcut.

    `branch_end` names the module whose output is added to the shortcut, where the Fisher potential is measured; None
    where there is no branch.
    `norm_acts` names each norm of which an activation is the one user, with that activation.
    `dilations` are those of the first and the second 3x3 in its place, also where the block has one 3x3 only.
    `has_own_projection` says that its `downsample` is its own, of which a block in its place gets no copy.
    """

    branch_end: str | None
    norm_acts: tuple[tuple[str, str], ...] = ()
    # Without a type, which TorchScript could not read.
    dilations = (1, 1)
    has_own_projection = False

    def zero_init_last(self) -> None:
        """Starts the branch at zero, where its last layer is a norm."""
        if self.branch_end is None:
            return
        weight = getattr(self.get_submodule(self.branch_end), "weight", None)
        if weight is not None and weight.ndim == 1:
            nn.init.zeros_(weight)


class IdentityBlock(ResidualBlock):
    """A block without a branch: its output is its input, in a pre-activation and in a post-activation network."""

    branch_end = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (N, in, H, W) as it is."""
        return x


class PreActBasic(ResidualBlock):
    """BN, ReLU, convolution, twice; the shortcut is the input, or a 1x1 convolution of the activated input."""

    branch_end = "conv2"
    norm_acts = (("bn1", "act1"), ("bn2", "act2"))

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self.bn1, self.act1, self.conv1 = parts.norms[0], parts.act(), parts.convs[0]
        self.bn2, self.act2, self.conv2 = parts.norms[1], parts.act(), parts.convs[1]
        self.shortcut = parts.shortcut
        self.act_projected = parts.act_projected
        self.drop_path = parts.drop_path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in, H, W) to (N, out, H / stride, W / stride)."""
        branch = self.act1(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(branch)
        if self.act_projected is not None:
            branch = self.act_projected(x)
        branch = self.conv1(branch)
        branch = self.conv2(self.act2(self.bn2(branch)))
        return x + self.drop_path(branch)


class PreActBottleneck(ResidualBlock):
    """BN, ReLU, convolution, three times: 1x1, 3x3, 1x1; in an inverted bottleneck a last BN."""

    branch_end = "bn4"
    norm_acts = (("bn1", "act1"), ("bn2", "act2"), ("bn3", "act3"))

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self.bn1, self.act1, self.conv1 = parts.norms[0], parts.act(), parts.convs[0]
        self.bn2, self.act2, self.conv2 = parts.norms[1], parts.act(), parts.convs[1]
        self.bn3, self.act3, self.conv3 = parts.norms[2], parts.act(), parts.convs[2]
        self.bn4 = parts.norms[3] if len(parts.norms) > 3 else nn.Identity()
        self.shortcut = parts.shortcut
        self.drop_path = parts.drop_path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in, H, W) to (N, out, H / stride, W / stride)."""
        branch = self.act1(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(branch)
        branch = self.conv1(branch)
        branch = self.conv2(self.act2(self.bn2(branch)))
        branch = self.bn4(self.conv3(self.act3(self.bn3(branch))))
        return x + self.drop_path(branch)


class PostActBasic(ResidualBlock):
    """Convolution, BN, ReLU, twice, the last ReLU after the addition; torchvision's and timm's names."""

    branch_end = "bn2"
    norm_acts = (("bn1", "act1"),)

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = parts.convs[0], parts.norms[0], parts.act()
        self.conv2, self.bn2, self.act2 = parts.convs[1], parts.norms[1], parts.last_act()
        self.downsample = parts.shortcut
        self.skip = parts.skip
        self.act_projected = parts.act_projected
        self.drop_path = parts.drop_path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in, H, W) to (N, out, H / stride, W / stride)."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        if self.act_projected is not None:
            x = self.act_projected(shortcut)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        # Where nothing is added, stochastic depth would leave nothing.
        if self.skip:
            x = self.drop_path(x) + shortcut
        return self.act2(x)


class PostActBottleneck(ResidualBlock):
    """Convolution, BN, ReLU, three times: 1x1, 3x3, 1x1, the last ReLU after the addition."""

    branch_end = "bn3"
    norm_acts = (("bn1", "act1"), ("bn2", "act2"))

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = parts.convs[0], parts.norms[0], parts.act()
        self.conv2, self.bn2, self.act2 = parts.convs[1], parts.norms[1], parts.act()
        self.conv3, self.bn3, self.act3 = parts.convs[2], parts.norms[2], parts.last_act()
        self.downsample = parts.shortcut
        self.skip = parts.skip
        self.drop_path = parts.drop_path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in, H, W) to (N, out, H / stride, W / stride)."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        # Where nothing is added, stochastic depth would leave nothing.
        if self.skip:
            x = self.drop_path(x) + shortcut
        return self.act3(x)


class _Parts:
    """The layers of one block, made from the list of its convolutions."""

    def __init__(
        self,
        block: BlockType,
        in_chs: int,
        convs: Sequence[Conv],
        preact: bool,
        shortcut: nn.Module | None,
        dilations: tuple[int, int],
        drop_path: nn.Module | None,
        act_layer: Callable[..., nn.Module],
        norm_layer: Callable[..., nn.Module],
        dd: dict[str, Any],
        act_last: bool,
        skip: bool,
    ) -> None:
        self._act_layer, self._norm_layer, self._dd = act_layer, norm_layer, dd
        self._act_last, self.skip = act_last, skip
        self._rates = iter(dilations)
        self._direct = block.family == "D"
        # G, W and D put two convolutions in the place of one.
        size = 2 if len(convs) == 4 else 1
        units = [convs[start : start + size] for start in range(0, len(convs), size)]
        self.convs = [self._unit(unit) for unit in units]
        # A norm stands before each unit in a pre-activation block, after each unit in a post-activation block.
        if preact:
            widths = [in_chs, *(unit[0].in_chs for unit in units[1:])]
            if block.family == "M":
                widths.append(convs[-1].out_chs)
        else:
            widths = [unit[-1].out_chs for unit in units]
        self.norms = [norm_layer(width, **dd) for width in widths]
        self.shortcut = shortcut
        # DARTS' separable convolution starts with a ReLU; after a projection there is none yet.
        self.act_projected = act_layer(inplace=False) if self._direct and shortcut is not None else None
        self.drop_path = drop_path or nn.Identity()

    def act(self) -> nn.Module:
        """A ReLU that may overwrite its input, which is always the output of a norm or an addition."""
        return self._act_layer(inplace=True)

    def last_act(self) -> nn.Module:
        """The activation after the addition, where there is one."""
        return self.act() if self._act_last else nn.Identity()

    def _conv(self, conv: Conv) -> nn.Module:
        rate = next(self._rates) if conv.kernel > 1 else 1
        return nn.Conv2d(
            conv.in_chs,
            conv.out_chs,
            conv.kernel,
            stride=conv.stride,
            padding=rate * (conv.kernel // 2),
            dilation=rate,
            groups=conv.groups,
            bias=False,
            **self._dd,
        )

    def _unit(self, convs: Sequence[Conv]) -> nn.Module:
        if len(convs) == 1:
            return self._conv(convs[0])
        between = [] if self._direct else [self._norm_layer(convs[0].out_chs, **self._dd), self.act()]
        return nn.Sequential(self._conv(convs[0]), *between, self._conv(convs[1]))


def build_block(
    block: BlockType,
    in_chs: int,
    out_chs: int,
    stride: int = 1,
    *,
    preact: bool,
    downsample: nn.Module | None = None,
    dilations: tuple[int, int] = (1, 1),
    drop_path: nn.Module | None = None,
    act_layer: Callable[..., nn.Module] = nn.ReLU,
    norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
    act_last: bool = True,
    skip: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ResidualBlock:
    """Builds one residual block; raises GenomeError where its widths do not divide.

    `dilations` are those of the first and the second 3x3. A post-activation block is handed its `downsample`, as in
    timm; a pre-activation block that is handed none makes its own shortcut where the widths differ. A post-activation
    block has no activation after the addition without `act_last`, and no addition without `skip`, as the linear
    bottlenecks of MobileNets.
    """
    dd: dict[str, Any] = {"device": device, "dtype": dtype}
    convs = block.convs(in_chs, out_chs, stride)
    if not convs:
        return IdentityBlock()
    if preact and downsample is None and (in_chs != out_chs or stride != 1):
        downsample = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False, **dd)
    parts = _Parts(
        block, in_chs, convs, preact, downsample, dilations, drop_path, act_layer, norm_layer, dd, act_last, skip
    )
    kinds = (PreActBasic, PostActBasic) if len(parts.convs) == 2 else (PreActBottleneck, PostActBottleneck)
    made: ResidualBlock = kinds[not preact](parts)
    made.dilations = dilations
    return made
