"""CondenseNet for CIFAR (Huang et al., 2018, arXiv:1711.09224): a dense network that learns its group convolutions.

Each 1x1 convolution starts with all its inputs. In three stages over the first half of training each group of its
outputs gives up a quarter of its inputs, until it has a quarter left; for inference it then becomes a selection of
channels and a group convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.task import ClassificationTask
from torch import nn

__all__ = ["CondenseNet", "CondensingTask", "LearnedGroupConv", "condensenet_86"]

# Of that paper's ImageNet networks.
_LASSO = 1e-5


class LearnedGroupConv(nn.Module):
    """BN, ReLU and a 1x1 convolution of which each group of outputs learns which inputs it needs.

    `mask`, (groups, in), has the inputs that each group still has.
    """

    def __init__(self, in_chs: int, out_chs: int, groups: int = 4, condensation: int = 4) -> None:
        super().__init__()
        if out_chs % groups or in_chs % groups or in_chs % condensation:
            raise ValueError(
                f"{in_chs} to {out_chs} channels do not divide into {groups} groups and {condensation} shares of inputs"
            )
        self.bn, self.act = nn.BatchNorm2d(in_chs), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.groups, self.condensation = groups, condensation
        self.register_buffer("mask", torch.ones(groups, in_chs, dtype=torch.bool))

    @property
    def stages_done(self) -> int:
        """How often its inputs were pruned."""
        return int((~self.mask[0]).sum()) * self.condensation // self.conv.in_channels

    def _by_group(self) -> torch.Tensor:
        """The weights that are left, (groups, outputs of a group, in), and zeros."""
        return self.conv.weight.view(self.groups, -1, self.conv.in_channels) * self.mask[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in, H, W) to (N, out, H, W)."""
        return F.conv2d(self.act(self.bn(x)), self._by_group().view_as(self.conv.weight))

    @torch.no_grad()
    def condense(self) -> None:
        """Prunes, in each group, a share of all inputs: those with the smallest L1 norm of weights (section 3.2)."""
        norms = self._by_group().abs().sum(dim=1).masked_fill(~self.mask, torch.inf)
        smallest = norms.topk(self.conv.in_channels // self.condensation, largest=False).indices
        self.mask.scatter_(1, smallest, False)

    def lasso(self) -> torch.Tensor:
        """Sums the L2 norms of what each group has from each input (section 3.2)."""
        # The square root has no slope at zero, where the pruned inputs are.
        return self._by_group().square().sum(dim=1).clamp(min=1e-12).sqrt().sum()

    def converted(self) -> nn.Sequential:
        """Makes the form for inference, with the same outputs; raises ValueError before the last stage is done."""
        if self.stages_done != self.condensation - 1:
            raise ValueError(
                f"{self.stages_done} of {self.condensation - 1} stages of condensation are done; train to the end first"
            )
        kept = self.mask.nonzero()[:, 1]
        conv = nn.Conv2d(len(kept), self.conv.out_channels, 1, groups=self.groups, bias=False)
        weight = self.conv.weight.detach().view(self.groups, -1, self.conv.in_channels)
        chosen = kept.view(self.groups, 1, -1).expand(-1, weight.shape[1], -1)
        conv.weight = nn.Parameter(weight.gather(2, chosen).view_as(conv.weight))
        return nn.Sequential(copy.deepcopy(self.bn), copy.deepcopy(self.act), _Index(kept), conv)


class _Index(nn.Module):
    """Selects channels, any of them more than once."""

    def __init__(self, channels: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("channels", channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(1, self.channels)


class _Permute(nn.Module):
    """Deals the channels of each group out to all groups that follow."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        return x.view(batch, self.groups, -1, height, width).transpose(1, 2).reshape(x.shape)


class _DenseLayer(nn.Sequential):
    """A learned 1x1 and a group 3x3 convolution, whose outputs are added to the channels that came in."""

    def __init__(self, in_chs: int, growth: int, groups: int, condensation: int, bottleneck: int) -> None:
        middle = bottleneck * growth
        super().__init__(
            LearnedGroupConv(in_chs, middle, groups, condensation),
            _Permute(groups),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, growth, 3, padding=1, groups=groups, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, super().forward(x)], dim=1)


class CondenseNet(nn.Module):
    """Stages of dense layers with average pooling between them, each stage with a growth rate of its own (section 4.1).

    For images of 32x32.
    """

    def __init__(
        self,
        depths: Sequence[int],
        growths: Sequence[int],
        num_classes: int = 10,
        groups: int = 4,
        condensation: int = 4,
        bottleneck: int = 4,
    ) -> None:
        super().__init__()
        width = 2 * growths[0]
        self.num_classes, self.condensation = num_classes, condensation
        features: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
        for stage, (depth, growth) in enumerate(zip(depths, growths, strict=True)):
            if stage:
                features.append(nn.AvgPool2d(2))
            for _ in range(depth):
                features.append(_DenseLayer(width, growth, groups, condensation, bottleneck))
                width += growth
        self.features = nn.Sequential(*features, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (N, 3, 32, 32) to logits (N, num_classes)."""
        return self.fc(self.features(x).mean(dim=(2, 3)))

    def learned(self) -> list[LearnedGroupConv]:
        """Lists the learned group convolutions, from first to last."""
        return [module for module in self.modules() if isinstance(module, LearnedGroupConv)]

    def condense_to(self, stage: int) -> None:
        """Condenses every learned group convolution up to a stage."""
        for layer in self.learned():
            for _ in range(layer.stages_done, stage):
                layer.condense()

    def schedule(self) -> Callable[[float], None]:
        """Makes what condenses the network as training goes on: told, before each step, which share of it is done.

        The stages of condensation end at equal distances over the first half of training (section 3.2).
        """
        stages, last = self.condensation - 1, -1

        def at_step(share: float) -> None:
            nonlocal last
            due = min(stages, int(share * 2 * stages))
            # To ask the layers how far they are costs time, on a GPU.
            if due != last:
                self.condense_to(due)
                last = due

        return at_step

    def converted(self) -> CondenseNet:
        """Makes the network for inference: standard convolutions, and the same outputs to rounding."""
        other = copy.deepcopy(self)
        for layer in other.features:
            if isinstance(layer, _DenseLayer):
                layer[0] = layer[0].converted()
        return other


def condensenet_86() -> CondenseNet:
    """CondenseNet-86 for CIFAR-10: three stages of 14 layers of two convolutions, stem and classifier."""
    return CondenseNet((14, 14, 14), (8, 16, 32))


class CondensingTask(ClassificationTask):
    """Trains a CondenseNet by labels and group lasso; with a teacher, by its outputs too, as Born-Again Networks do.

    That is cross-entropy with the probabilities of the teacher, a trained network of the same kind (Furlanello et al.,
    2018, equation 3).
    """

    def __init__(self, model: CondenseNet, teacher: nn.Module | None = None, lasso: float = _LASSO, **kwargs: Any):
        super().__init__(model, **kwargs)
        self.model, self.lasso = model, lasso
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> CondensingTask:
        """Sets the mode of the network; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Computes `loss` on a minibatch, its parts, and `output`, the logits."""
        result = super().forward(input, target)
        parts = {"task_loss": result["loss"]}
        parts["lasso_loss"] = self.lasso * torch.stack([layer.lasso() for layer in self.model.learned()]).sum()
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(input).softmax(dim=1)
            parts["born_again_loss"] = F.cross_entropy(result["output"].float(), wanted.float())
        return {"loss": torch.stack(list(parts.values())).sum(), "output": result["output"], **parts}
