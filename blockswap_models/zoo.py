"""The zoo: the entries registered with timm, their genomes and their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, save_for_hf
from timm.utils import unwrap_model
from torch import nn

from .genome import Genome, GenomeError
from .layouts import Layout
from .networks import ResNet, WideResNet

__all__ = ["GENOMES", "PAPER_ERRORS", "data_config", "save_pretrained"]

GENOMES: dict[str, Genome] = {
    name: Genome(text)
    for name, text in {
        "blockswap_wrn40_2": "6xS/6xS/6xS",
        "blockswap_wrn40_1": "6xS/6xS/6xS",
        "blockswap_wrn16_2": "2xS/2xS/2xS",
        "blockswap_wrn16_1": "2xS/2xS/2xS",
        "blockswap_wrn40_2_811k": "B4,S,B2G16,G4,G8,B4/G4,S,G16,G2,S,W16/W8,2xG2,B2W8,B2W4,G8",
        "blockswap_wrn40_2_556k": "W16,B2W8,G2,W1,W16,W4/B4,B2W16,G4,W8,B2G2,B2G4/W2,G2,W16,W2,W16,W2",
        "blockswap_wrn40_2_404k": "S,W16,W1,G2,B2,G8/W2,W16,G8,G16,W8,G4/2xW4,B2G4,2xW8,B2W16",
        "blockswap_wrn40_2_289k": "G16,G2,W4,G2,B2G8,B4/G2,B2,B2W4,W8,G16,B2G16/W2,B2W16,W4,B2W8,B2W2,B2W8",
        "blockswap_wrn40_2_217k": "2xB2G16,B4,W1,B2W16,W1/B2G8,B2,B2W2,W16,B2W4,B2W8/W2,B2G16,B2G8,B2G16,B2G8,B2W4",
        "blockswap_wrn40_2_162k": "B2G2,B2W16,B4W8,2xW1,B2G4/2xW4,W2,B4W2,B2G8,B2W4/B2W16,B4W2,B4W8,B2W2,B4W4,B4",
        "blockswap_resnet34": "3xS/4xS/6xS/3xS",
        "blockswap_resnet18": "2xS/2xS/2xS/2xS",
        "blockswap_resnet34_8m": "B2W4,W4,B2G8/S,B2W4,B2W16,B2W8/S,B2G2,B2G8,B2G4,G4,S/S,W1,B2W8",
        "blockswap_resnet34_3m": "G8,2xB2W2/S,G2,W2,B2/G16,B2G16,B2W16,W4,B2G2,B2G8/B2W2,W4,B2G4",
    }.items()
}

# Top-1 test errors in percent that the paper reports (Tables 2 and 3), trained there, not here.
PAPER_ERRORS: dict[str, str] = {
    "blockswap_wrn40_2": "3.96",
    "blockswap_wrn40_1": "4.57",
    "blockswap_wrn16_2": "4.78",
    "blockswap_wrn16_1": "7.32",
    "blockswap_wrn40_2_811k": "3.79 ± 0.01",
    "blockswap_wrn40_2_556k": "4.17 ± 0.22",
    "blockswap_wrn40_2_404k": "4.21 ± 0.13",
    "blockswap_wrn40_2_289k": "4.45 ± 0.18",
    "blockswap_wrn40_2_217k": "4.68 ± 0.37",
    "blockswap_wrn40_2_162k": "5.17 ± 0.00",
    "blockswap_resnet34": "26.73",
    "blockswap_resnet18": "29.18",
    "blockswap_resnet34_8m": "26.24",
    "blockswap_resnet34_3m": "29.57",
}

_COMMON = {
    "license": "mit",
    "origin_url": "https://openreview.net/forum?id=SklkDkSFPB",
    "paper_name": "BlockSwap: Fisher-guided Block Substitution for Network Compression on a Budget",
    "paper_ids": "arXiv:1906.04113",
    "first_conv": "conv1",
    "classifier": "fc",
}
_CIFAR10 = {
    **_COMMON,
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}
_IMAGENET = {
    **_COMMON,
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}


def data_config(layout: Layout) -> dict[str, Any]:
    """The image size, normalisation and crop of a layout, as in a timm cfg: CIFAR-10's for a WRN, else ImageNet's."""
    return _CIFAR10 if layout.preact else _IMAGENET


default_cfgs = generate_default_cfgs({name: _CIFAR10 if "wrn" in name else _IMAGENET for name in GENOMES})


def _create(name: str, pretrained: bool, genome: Genome | str | None = None, **kwargs: Any) -> nn.Module:
    layout = Layout.named(name)
    own = GENOMES[name]
    genome = layout.fit(own if genome is None else genome)
    source = _genome_of_weights(own, **kwargs)
    if pretrained and source is not None and genome != source:
        raise GenomeError(
            f"{name} has pretrained weights for the genome '{source}' only, not for '{genome}'; write pretrained=False"
        )
    features = {"out_indices": tuple(range(len(layout.depths) + 1))}
    model = build_model_with_cfg(
        WideResNet if layout.preact else ResNet,
        name,
        pretrained,
        feature_cfg=features,
        layout=layout,
        genome=genome,
        **kwargs,
    )
    # timm adds the arguments of create_model to these, and saves them all: so any genome comes back from config.json.
    model._model_args = {"genome": genome}
    return model


def _genome_of_weights(
    own: Genome,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    pretrained_model_args: dict[str, Any] | None = None,
    **_: Any,
) -> Genome | None:
    """Says which genome the weights have that timm would load; None if only whoever hands them in knows."""
    if saved := (pretrained_model_args or {}).get("genome"):
        return Genome(saved)
    # A cfg handed in whole, or another place for the weights.
    places = [(pretrained_cfg_overlay or {}).get(key) for key in ("state_dict", "file", "url", "hf_hub_id")]
    if not isinstance(pretrained_cfg, (str, type(None))) or any(places):
        return None
    return own


def save_pretrained(model: nn.Module, directory: str | Path, **kwargs: Any) -> None:
    """Saves weights (safetensors) and config.json; `timm.create_model('local-dir:…')` makes the same network from them.

    What `torch.compile` or distributed training has wrapped is saved without the wrapper. Further arguments go to
    timm's `save_for_hf`.
    """
    model = unwrap_model(model)
    genome = getattr(model, "genome", None)
    if genome is None or not hasattr(model, "pretrained_cfg"):
        raise TypeError(f"save_pretrained takes a network of the zoo, made by timm, not {type(model).__name__}")
    model_args = {**kwargs.pop("model_args", {}), "genome": genome}
    save_for_hf(model, str(directory), model_args=model_args, **{"safe_serialization": True, **kwargs})


@register_model
def blockswap_wrn40_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-40-2 for CIFAR-10 with any genome; the original network where none is given."""
    return _create("blockswap_wrn40_2", pretrained, **kwargs)


@register_model
def blockswap_wrn40_1(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-40-1 for CIFAR-10 with any genome; the original network where none is given."""
    return _create("blockswap_wrn40_1", pretrained, **kwargs)


@register_model
def blockswap_wrn16_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-16-2 for CIFAR-10 with any genome; the original network where none is given."""
    return _create("blockswap_wrn16_2", pretrained, **kwargs)


@register_model
def blockswap_wrn16_1(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-16-1 for CIFAR-10 with any genome; the original network where none is given."""
    return _create("blockswap_wrn16_1", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_811k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 811 K parameters."""
    return _create("blockswap_wrn40_2_811k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_556k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 556 K parameters."""
    return _create("blockswap_wrn40_2_556k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_404k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 404 K parameters."""
    return _create("blockswap_wrn40_2_404k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_289k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 289 K parameters."""
    return _create("blockswap_wrn40_2_289k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_217k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 217 K parameters."""
    return _create("blockswap_wrn40_2_217k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_162k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 162 K parameters."""
    return _create("blockswap_wrn40_2_162k", pretrained, **kwargs)


@register_model
def blockswap_resnet34(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-34 for ImageNet with any genome; the original network where none is given."""
    return _create("blockswap_resnet34", pretrained, **kwargs)


@register_model
def blockswap_resnet18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 for ImageNet with any genome; the original network where none is given."""
    return _create("blockswap_resnet18", pretrained, **kwargs)


@register_model
def blockswap_resnet34_8m(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The paper's ResNet-34 student of 8.2 M parameters."""
    return _create("blockswap_resnet34_8m", pretrained, **kwargs)


@register_model
def blockswap_resnet34_3m(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The paper's ResNet-34 student of 3.1 M parameters."""
    return _create("blockswap_resnet34_3m", pretrained, **kwargs)
