"""How images are normalised and cropped: as those of CIFAR-10, of ImageNet, or as an entry of the user says."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg, is_model

from ..layout import Layout

__all__ = ["CIFAR10", "IMAGENET", "data_config"]

CIFAR10 = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}
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

    An entry of the user's has its own. Images that are not of three channels are normalised by the mean of the three.
    """
    config = CIFAR10 if layout.preact else IMAGENET
    if is_model(layout.name) and layout.is_known:
        config = get_pretrained_cfg(layout.name).to_dict()
    if len(config["mean"]) == channels:
        return config
    return {**config, **{key: (round(fmean(config[key]), 4),) * channels for key in ("mean", "std")}}
