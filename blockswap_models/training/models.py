"""Makes a model of timm or the zoo with the weights that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..genome import Genome
from ..messages import quote
from ..zoo.cards import MissingWeightsError
from ..zoo.find import find_model
from ..zoo.genomes import GENOMES
from .evaluate import load_weights

__all__ = ["has_weights", "make_model"]


def make_model(
    name: str,
    *,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    genome: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """Makes a model with trained weights, or random ones.

    Args:
        name: What `find_model` takes.
        pretrained: Whether to load the model's own weights, where no checkpoint is given.
        checkpoint: A file of weights, as of `load_weights`.
        genome: Block types, for a model of the zoo.
        num_classes: Number of classes; the model's own where None.
        in_chans: Number of input channels; the model's own where None.

    Raises:
        ValueError: There is no such model, or there are no such weights of it.
    """
    full = find_model(name, genome)
    pretrained = pretrained and checkpoint is None
    if pretrained and ":" not in full and not timm.is_model_pretrained(full):
        weights = timm.list_models(f"{full.partition('.')[0]}.*", pretrained=True)
        instead = f"use {weights[0]}" if weights else "use checkpoint=FILE, or pretrained=False for random weights"
        raise MissingWeightsError(full, instead)
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "genome": genome}
    model: Any = timm.create_model(full, pretrained=pretrained, **arguments)
    trained = model.pretrained_cfg.get("num_classes")
    if pretrained and trained is not None and trained != model.num_classes:
        raise ValueError(
            f"the pretrained weights of {full} are for {trained} classes, not {model.num_classes}; "
            "leave out num_classes=, or use checkpoint=FILE"
        )
    if checkpoint is not None:
        if Path(checkpoint).is_dir():
            raise ValueError(
                f"the checkpoint {quote(str(checkpoint))} is a folder; use a file in it, or local-dir:FOLDER in place "
                "of the model"
            )
        load_weights(model, checkpoint)
    return model


def has_weights(name: str, genome: str | None = None) -> bool:
    """Says whether there are pretrained weights of this very network, genome and all."""
    full = find_model(name, genome)
    if ":" in full:
        return True
    own = GENOMES.get(full.partition(".")[0])
    return timm.is_model_pretrained(full) and (genome is None or own is None or Genome(genome) == own)
