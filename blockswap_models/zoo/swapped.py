"""The entry `swapped` of timm: any network of timm with other blocks, known by its name and genome.

So what `save_pretrained` writes of such a network is loaded by `timm.create_model("local-dir:…")`, as any other folder.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, register_model, resolve_pretrained_cfg
from torch import nn

from ..genome import Genome

__all__: list[str] = []


@register_model
def swapped(
    pretrained: bool = False, network: str = "resnet50", genome: Genome | str | None = None, **kwargs: Any
) -> nn.Module:
    """Any network of timm with the blocks of a genome; with weights of timm where it keeps its own, if pretrained."""
    # Here: these modules import timm, and this one is imported as soon as timm is.
    from ..nets.swap import find_blocks, layout_of, swap
    from .blockswap import weights_named

    whole = weights_named(**kwargs)
    name, _, tag = network.partition(".")
    cache_dir, overlay = kwargs.pop("cache_dir", None), kwargs.pop("pretrained_cfg_overlay", None)
    cfg: Any = kwargs.pop("pretrained_cfg", None) or tag or None
    # A tag of this entry is one of the network's.
    network = f"{name}.{cfg}" if isinstance(cfg, str) else network
    size = {"input_size": resolve_pretrained_cfg(name, cfg, overlay).input_size}

    def make(**arguments: Any) -> nn.Module:
        model = timm.create_model(
            network,
            pretrained=pretrained and not whole,
            pretrained_cfg_overlay=size if whole else {**(overlay or {}), **size},
            cache_dir=cache_dir,
            **arguments,
        )
        return swap(model, layout_of(model, find_blocks(model)).original if genome is None else genome)

    features: dict[str, Any] = {}
    if kwargs.get("features_only"):
        # Families of timm differ in how many maps there are, and in the modules that make them.
        with torch.device("meta"):
            made: Any = timm.create_model(network, features_only=True)
        features = {"feature_cls": "getter", "out_indices": tuple(made.feature_info.out_indices)}
    model: Any = build_model_with_cfg(
        make,
        name,
        pretrained and whole,
        pretrained_cfg=cfg,
        pretrained_cfg_overlay=overlay,
        cache_dir=cache_dir,
        feature_cfg=features,
        **kwargs,
    )
    # That of a folder names this entry.
    model.pretrained_cfg["architecture"] = name
    model._model_args = {"network": name, "genome": str(getattr(model, "genome", genome))}
    return model
