"""How images are normalised and cropped, by layout or network; always with as many numbers as channels."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_input_data_config
from timm.models import get_pretrained_cfg, is_model
from timm.utils import unwrap_model
from torch import nn

from ..layout import Layout

__all__ = [
    "CIFAR10",
    "CIFAR10_NAMES",
    "IMAGENET",
    "config_from_json",
    "data_config",
    "fixed_size",
    "for_channels",
    "label_names",
    "model_data_config",
]

CIFAR10 = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}


def data_config(layout: Layout, channels: int = 3) -> dict[str, Any]:
    """The normalisation and crop of a layout, as in a timm cfg: CIFAR-10's if pre-activation, else ImageNet's.

    A registered entry has its own.

    Args:
        layout: The layout of the network that takes the images.
        channels: How many channels the images have.

    Returns:
        A timm cfg, fitted to the channels by `for_channels`.
    """
    config = CIFAR10 if layout.preact else IMAGENET
    if is_model(layout.name) and layout.is_known and (own := get_pretrained_cfg(layout.name)) is not None:
        config = own.to_dict()
    return for_channels(config, channels)


def for_channels(config: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Fits a timm cfg to images of another number of channels.

    Args:
        config: A cfg, as timm has it.
        channels: How many channels the images have.

    Returns:
        A copy whose sizes have these channels. Where it has another number of means or standard deviations, each
        channel gets the mean of them.
    """
    fitted = dict(config)
    for key in ("input_size", "test_input_size", "min_input_size"):
        if fitted.get(key):
            fitted[key] = (channels, *fitted[key][1:])
    for key in ("mean", "std"):
        if fitted.get(key) and len(fitted[key]) != channels:
            # As many digits as those of CIFAR-10 and ImageNet have.
            fitted[key] = (float(f"{fmean(fitted[key]):.4g}"),) * channels
    return fitted


def config_from_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Restores a timm cfg that was written as JSON, which makes lists of its tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def fixed_size(model: nn.Module) -> tuple[int, int] | None:
    """Returns the only size of images that a network takes, as most transformers do.

    Args:
        model: The network, any of timm's.

    Returns:
        Height and width in pixels; None where it takes other sizes too.
    """
    network: Any = unwrap_model(model)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    patches = getattr(network, "patch_embed", None)
    if not cfg.get("fixed_input_size") or not getattr(patches, "strict_img_size", True):
        return None
    height, width = getattr(patches, "img_size", None) or cfg["input_size"][-2:]
    return height, width


def label_names(model: nn.Module) -> tuple[str, ...] | None:
    """Lists the names of a network's classes that its timm configuration has; None where it names others or none."""
    network = unwrap_model(model)
    names = (getattr(network, "pretrained_cfg", None) or {}).get("label_names")
    # timm also takes them by number, some left out.
    if names is None or isinstance(names, Mapping) or len(names) != getattr(network, "num_classes", None):
        return None
    return tuple(names)


def model_data_config(model: nn.Module) -> dict[str, Any]:
    """Returns how images are preprocessed for a network, any of timm's.

    A network that was made with other `in_chans` than its weights have keeps timm's cfg of the latter. This goes by the
    channels that it takes.

    Args:
        model: The network, also within what `torch.compile` or distributed training wraps around it.

    Returns:
        `input_size` (C, H, W), `interpolation`, `crop_pct`, `crop_mode`, and C numbers each of `mean` and `std`.
    """
    model = unwrap_model(model)
    own = getattr(model, "pretrained_cfg", None) or {}
    config = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, **own}
    channels = getattr(model, "in_chans", (config.get("input_size") or (3,))[0])
    return resolve_input_data_config(model, pretrained_cfg=for_channels(config, channels))
