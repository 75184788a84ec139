"""Detection: torchvision's Mask R-CNN and feature pyramid on any genome and on any timm network with features."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Format, freeze_batch_norm_2d
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureInfo, FeatureListNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from .data.statistics import model_data_config
from .genome import Genome
from .nets.copies import plain_copy
from .nets.networks import WideResNet
from .zoo.cards import MissingWeightsError
from .zoo.find import create_network, is_all_kept, require_model, swaps

__all__ = ["FPNBackbone", "fpn_backbone", "mask_rcnn"]

# torchvision's anchors have 32 pixels at stride 4, and so on, in three shapes; its heads see levels 4 to 32.
_ANCHOR_STRIDES, _ANCHOR_SHAPES = 8, (0.5, 1.0, 2.0)
_LEAST_STRIDE = 4
# Of networks with pretrained weights, as torchvision has it.
_TRAINABLE_LAYERS = 3


class FPNBackbone(nn.Module):
    """The stages of a network and torchvision's feature pyramid on them: what its detectors take as a backbone.

    The maps are called `0`, `1`, … from fine to coarse, and after them come those of the extra block (`pool`).

    Args:
        body: A network that returns feature maps, with timm's `feature_info`.
        out_channels: Channels of the maps.
        extra_blocks: Makes further maps of the coarsest; LastLevelMaxPool by default.

    Attributes:
        strides: The strides of all maps.
    """

    # For TorchScript, which then reads what is for the answer of this body alone.
    __constants__ = ["by_name"]  # noqa: RUF012  # TorchScript wants a list

    def __init__(self, body: nn.Module, out_channels: int = 256, extra_blocks: ExtraFPNBlock | None = None) -> None:
        super().__init__()
        info: Any = body.feature_info
        channels, strides = info.channels(), info.reduction()
        self.body = body
        self.channels_last = Format(getattr(body, "output_fmt", None) or "NCHW") == Format.NHWC
        # Some give them by name.
        self.by_name = getattr(body, "return_dict", type(body) is FeatureDictNet)
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks or LastLevelMaxPool())
        like = next((each for each in body.parameters() if each.is_floating_point()), None)
        if like is not None:
            self.fpn.to(like.device, like.dtype)
        self.out_channels = out_channels
        more = len(_names(self.fpn, channels)) - len(strides)
        self.strides = [*strides, *(strides[-1] * 2**power for power in range(1, more + 1))]
        self.levels = [str(level) for level in range(len(strides))]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps images (N, C, H, W) to maps by name, each (N, out_channels, H / stride, W / stride)."""
        maps: dict[str, torch.Tensor] = {}
        made = list(self.body(x).values()) if self.by_name else self.body(x)
        for level, each in enumerate(made):
            maps[str(level)] = each.permute(0, 3, 1, 2) if self.channels_last else each
        return self.fpn(maps)


def _names(fpn: FeaturePyramidNetwork, channels: Sequence[int]) -> list[str]:
    """Names the maps that a pyramid makes; how many its extra block adds, only the block knows."""
    number = len(channels)
    like = next(fpn.parameters())
    maps = {str(level): like.new_zeros(1, each, *[2 ** (number - level)] * 2) for level, each in enumerate(channels)}
    with torch.no_grad():
        return list(fpn(maps))


def fpn_backbone(
    name_or_model: str | nn.Module,
    genome: Genome | str | None = None,
    *,
    pretrained: bool = False,
    norm_layer: Callable[..., nn.Module] | None = None,
    trainable_layers: int | None = None,
    returned_layers: Sequence[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
    out_channels: int = 256,
    **kwargs: Any,
) -> FPNBackbone:
    """Makes a backbone for torchvision's detectors from a name of timm or the zoo, or from a network (a copy of it).

    The arguments are those of torchvision's `resnet_fpn_backbone`.

    Args:
        name_or_model: A name, or a network, which is copied.
        genome: The blocks, for a name of the zoo; or for one of timm, whose blocks they replace.
        pretrained: Whether to load the weights of the name, timm's or the zoo's; of a network, whether its weights are
            trained ones.
        norm_layer: Takes the place of each BN, whose numbers it inherits. FrozenBatchNorm2d where pretrained, else BN
            stays.
        trainable_layers: How many layers train, counted from the last; a layer is the stem or a stage. 3 where
            pretrained, else all. In the others all weights are fixed, and BN is a FrozenBatchNorm2d, whatever the
            `norm_layer`.
        returned_layers: The levels to use, by their number in the network's `feature_info`: for a ResNet 1 to 4, which
            is the default. For others it is the last level of each stride from 4 on, or from 2 on where the largest is
            4, as in a Wide ResNet, which is for images of 64 to 128 pixels.
        extra_blocks: Makes further maps of the coarsest; LastLevelMaxPool by default.
        out_channels: Channels of the maps.
        **kwargs: Arguments of `timm.create_model`.

    Returns:
        The backbone.

    Raises:
        MissingWeightsError: Pretrained weights are asked for of a network of timm whose blocks are to be replaced.
        TypeError: The network gives no features.
        ValueError: The name is unknown, or there are no such layers.

    Example:
        ```python
        backbone = fpn_backbone("blockswap_resnet34_3m")
        FasterRCNN(backbone, num_classes=91)
        ```
    """
    if "out_indices" in kwargs:
        raise ValueError(f"levels are returned_layers here; use returned_layers={kwargs['out_indices']}")
    if isinstance(name_or_model, str):
        body, info = _of_name(name_or_model, genome, pretrained, returned_layers, kwargs)
    else:
        if genome is not None or kwargs:
            given = ", ".join(["genome"] * (genome is not None) + list(kwargs))
            raise ValueError(f"a network has been made already; leave out {given}, or use a name in its place")
        body, info = _of_network(plain_copy(name_or_model), returned_layers)
    layers = info.out_indices[-1] + 1
    if trainable_layers is None:
        trainable_layers = min(_TRAINABLE_LAYERS, layers) if pretrained else layers
    if not 0 <= trainable_layers <= layers:
        raise ValueError(f"trainable layers are 0 to {layers} for this network, not {trainable_layers}")
    _freeze(body, info, layers - trainable_layers)
    norm_layer = FrozenBatchNorm2d if norm_layer is None and pretrained else norm_layer
    if norm_layer is FrozenBatchNorm2d:
        # timm's keeps epsilon, and the activation where BN has one.
        freeze_batch_norm_2d(body)
    elif norm_layer not in (None, nn.BatchNorm2d):
        _replace_norms(body, norm_layer)
    return FPNBackbone(body, out_channels, extra_blocks)


def mask_rcnn(
    name_or_model: str | nn.Module,
    num_classes: int = 91,
    genome: Genome | str | None = None,
    *,
    pretrained_backbone: bool = False,
    norm_layer: Callable[..., nn.Module] | None = None,
    trainable_backbone_layers: int | None = None,
    returned_layers: Sequence[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """Makes torchvision's Mask R-CNN, as `maskrcnn_resnet50_fpn` does, on any network that `fpn_backbone` takes.

    Images are normalised as the network wants them, and anchors are eight strides wide: torchvision's, for strides of 4
    to 64.

    Args:
        name_or_model: A name of timm or the zoo, or a network, which is copied.
        num_classes: Classes, the background included: for COCO 91, as torchvision counts.
        genome: The blocks, for a name of the zoo; or for one of timm, whose blocks they replace.
        pretrained_backbone: `pretrained` of `fpn_backbone`.
        norm_layer: As of `fpn_backbone`.
        trainable_backbone_layers: `trainable_layers` of `fpn_backbone`.
        returned_layers: As of `fpn_backbone`.
        extra_blocks: As of `fpn_backbone`.
        **kwargs: Arguments of torchvision's `MaskRCNN`, such as `min_size`.

    Returns:
        The detector.

    Raises:
        TypeError: `MaskRCNN` has no such argument, or the network gives no features.
        ValueError: The name is unknown, or there are no such layers.

    Example:
        ```python
        model = mask_rcnn("blockswap_resnet34", 91, genome="3xG4/4xG4/6xG4/3xG4", min_size=640)
        losses = model.train()(images, targets)
        ```
    """
    known = {
        name for each in (MaskRCNN, FasterRCNN, GeneralizedRCNNTransform) for name in inspect.signature(each).parameters
    }
    if unknown := kwargs.keys() - known:
        raise TypeError(f"mask_rcnn has no argument {', '.join(sorted(unknown))}; see torchvision's MaskRCNN")
    # None is torchvision's word for what is not given, which is the network's own here.
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    predictors = [f"{head}_predictor" for head in ("box", "mask")]
    given = [name for name in predictors if name in kwargs]
    if len(given) == 1:
        (missing,) = set(predictors) - set(given)
        raise ValueError(f"{given[0]} has classes of its own; use {missing} too, for the same classes, or neither")
    backbone = fpn_backbone(
        name_or_model,
        genome,
        pretrained=pretrained_backbone,
        norm_layer=norm_layer,
        trainable_layers=trainable_backbone_layers,
        returned_layers=returned_layers,
        extra_blocks=extra_blocks,
    )
    config = model_data_config(backbone.body)
    kwargs.setdefault("image_mean", list(config["mean"]))
    kwargs.setdefault("image_std", list(config["std"]))
    if "rpn_anchor_generator" not in kwargs:
        sizes = tuple((_ANCHOR_STRIDES * stride,) for stride in backbone.strides)
        kwargs["rpn_anchor_generator"] = AnchorGenerator(sizes, (_ANCHOR_SHAPES,) * len(sizes))
    for head, size in {"box": 7, "mask": 14}.items():
        if f"{head}_roi_pool" not in kwargs:
            kwargs[f"{head}_roi_pool"] = MultiScaleRoIAlign(backbone.levels, output_size=size, sampling_ratio=2)
    # With its own predictor a head says itself how many classes there are.
    return MaskRCNN(backbone, None if given else num_classes, **kwargs)


def _of_name(
    name: str, genome: Genome | str | None, pretrained: bool, wanted: Sequence[int] | None, kwargs: dict[str, Any]
) -> tuple[nn.Module, FeatureInfo]:
    require_model(name)
    if pretrained and genome is not None and swaps(name, genome) and not is_all_kept(genome):
        raise MissingWeightsError(
            f"{name} with other blocks, {genome}", "leave out pretrained weights, or use a network that was trained"
        )
    with torch.device("meta"):
        body: Any = create_network(name, genome, features_only=True, **kwargs)
    levels = _levels(body.feature_info.info, wanted)
    body = create_network(name, genome, pretrained=pretrained, features_only=True, out_indices=levels, **kwargs)
    return body, body.feature_info


def _of_network(model: nn.Module, wanted: Sequence[int] | None) -> tuple[nn.Module, FeatureInfo]:
    info = getattr(model, "feature_info", None)
    if isinstance(info, FeatureInfo):
        if wanted is not None and tuple(wanted) != tuple(info.out_indices):
            raise ValueError(f"this network returns layers {list(info.out_indices)}; leave out returned_layers")
        return model, info
    if not info:
        raise TypeError(f"a backbone is a network of timm or the name of one; {type(model).__name__} has no features")
    levels = _levels(info, wanted)
    children = dict(model.named_children())
    staged = isinstance(model, WideResNet)
    body: Any
    if staged or all(info[level]["module"] in children for level in levels):
        # As torchvision takes them, which TorchScript can read.
        output_fmt = getattr(model, "output_fmt", "NCHW")
        body = FeatureListNet(model, levels, output_fmt=output_fmt, flatten_sequential=staged)
    elif hasattr(model, "forward_intermediates"):
        body = FeatureGetterNet(model, levels)
    else:
        raise TypeError(f"{type(model).__name__} gives no features; use its name, or make it with features_only=True")
    # As timm does where it makes features itself.
    body.pretrained_cfg = getattr(model, "pretrained_cfg", None) or {}
    if hasattr(model, "in_chans"):
        body.in_chans = model.in_chans
    return body, body.feature_info


def _levels(info: Sequence[dict[str, Any]], wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Chooses levels: those wanted, or the last one of each stride."""
    last = len(info) - 1
    if wanted is not None:
        if not wanted or not 0 <= min(wanted) <= max(wanted) <= last:
            raise ValueError(f"returned layers are 0 to {last} for this network, not {list(wanted)}")
        return tuple(sorted(wanted))
    by_stride = {each["reduction"]: level for level, each in enumerate(info)}
    least = _LEAST_STRIDE if max(by_stride) > _LEAST_STRIDE else _LEAST_STRIDE // 2
    if max(by_stride) < least:
        raise ValueError(
            f"this network has no level of stride {least} or more; use one of more stages, or returned_layers=[{last}]"
        )
    return tuple(level for stride, level in by_stride.items() if stride >= least)


def _freeze(body: nn.Module, info: FeatureInfo, layers: int) -> None:
    """Fixes the weights and the BN of the first layers of a network, whose modules stand in the order of their use."""
    if not layers:
        return
    # timm writes some of the dots as underscores, and may put the network one level deeper.
    names = [name.removeprefix("model.").replace(".", "_") + "_" for name, _ in body.named_modules()]
    end = info.info[layers - 1]["module"].replace(".", "_") + "_"
    places = [place for place, name in enumerate(names) if name.startswith(end)]
    if layers == info.out_indices[-1] + 1:
        places = [len(names) - 1]
    if not places:
        raise ValueError(
            f"{type(body).__name__} does not say which modules its layers have; train all of them, or none"
        )
    fixed = list(body.modules())[: places[-1] + 1]
    for module in fixed:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and any(child is each for each in fixed):
                module.add_module(name, freeze_batch_norm_2d(child))


def _replace_norms(module: nn.Module, norm_layer: Callable[..., nn.Module]) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm):
            norm = norm_layer(child.num_features)
            like = next(chain(child.parameters(), child.buffers()), None)
            if like is not None:
                norm.to(like.device, like.dtype)
            # Where a network starts a branch at zero, the new norm does too.
            norm.load_state_dict(child.state_dict(), strict=False)
            norm.train(child.training)
            for own, parameter in norm.named_parameters():
                parameter.requires_grad_(getattr(child, own, parameter).requires_grad)
            module.add_module(
                name, nn.Sequential(norm, child.drop, child.act) if isinstance(child, BatchNormAct2d) else norm
            )
        else:
            _replace_norms(child, norm_layer)
