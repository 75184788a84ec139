"""Registers a user's own networks, a layout with a genome, with timm, as the zoo's are."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from typing import Any

from timm.models import PretrainedCfg, generate_default_cfgs, is_model, register_model
from torch import nn

from ..data.statistics import data_config
from ..genome import Genome
from ..layout import Layout, add_layout
from ..messages import quote
from .blockswap import COMMON, create
from .genomes import GENOMES

__all__ = ["register"]

# timm looks for the cfg of an entry here.
default_cfgs: dict[str, Any] = {}
# What was registered, by name: a cell of a notebook may run twice.
_entries: dict[str, tuple[Layout, Genome, dict[str, Any]]] = {}
# What follows from the layout, and must not be set in a cfg.
_OF_LAYOUT = ("architecture", "tag", "input_size", "num_classes", "pool_size", "first_conv", "classifier")


def register(layout: Layout | str, genome: Genome | str | None = None, **cfg: Any) -> None:
    """Registers a network with timm, under its layout's name; its blocks are those of the genome, or all standard ones.

    From then on `timm.create_model`, `SearchSpace`, `search` and `Layout.named` know the name. A program that loads
    what `save_pretrained` wrote must register the same network first.

    Args:
        layout: The layout, or the name of a Wide ResNet or ResNet such as `wrn28_10`.
        genome: The blocks; standard ones by default.
        **cfg: Fields of timm's `PretrainedCfg`, such as `mean`, `std` and `crop_pct`, or `file`, for weights of this
            genome.

    Raises:
        ValueError: The name is taken by another network; the same one may be registered again.
        TypeError: `PretrainedCfg` has no such field, or it follows from the layout.
        GenomeError: The genome does not fit.

    Example:
        ```python
        register(Layout.custom("my_net", depths=(2, 3, 2), channels=(32, 64, 96)))
        model = timm.create_model("my_net", genome="2xS/3xG4/2xB2")
        ```
    """
    layout = Layout.named(layout)
    name, genome = layout.name, layout.fit(layout.original if genome is None else genome)
    known = _known_layout(name)
    if (layout, genome, cfg) == _entries.get(name, (known, GENOMES.get(name), {})):
        return
    if is_model(name) or known not in (None, layout):
        raise ValueError(f"the name {quote(name)} is taken by another network; give the layout another one")
    default_cfgs.update(generate_default_cfgs({name: _full(layout, cfg)}))

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, genome, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{layout}, with the blocks {genome} where no others are given."
    add_layout(layout)
    _entries[name] = layout, genome, cfg
    register_model(entry)
    # timm adds the name of an entry, but nothing in this module goes by it.
    __all__.remove(name)


def _known_layout(name: str) -> Layout | None:
    """The layout that a name already has."""
    with suppress(ValueError):
        return Layout.named(name)
    return None


def _full(layout: Layout, cfg: dict[str, Any]) -> dict[str, Any]:
    """The cfg of a layout with the user's fields; raises TypeError or ValueError."""
    known = {field.name for field in fields(PretrainedCfg)}
    for key in cfg:
        if key in _OF_LAYOUT:
            raise TypeError(f"register takes no {key!r}: it follows from the layout")
        if key not in known:
            raise TypeError(f"register takes no {key!r}; it takes what timm's PretrainedCfg has, such as crop_pct=")
    channels, height, width = layout.input_size
    usual = data_config(layout, channels)
    for key in ("mean", "std"):
        if len(cfg.get(key, usual[key])) != channels:
            raise ValueError(f"images of {channels} channels have as many numbers in {key}, not {quote(cfg[key])}")
    return {
        **{key: usual[key] for key in ("mean", "std", "crop_pct", "interpolation")},
        **{key: COMMON[key] for key in ("first_conv", "classifier")},
        "input_size": layout.input_size,
        "num_classes": layout.num_classes,
        "pool_size": layout.pool_size(height, width),
        **cfg,
    }
