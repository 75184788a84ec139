"""Finds models by the names that people use: those of timm, and those of the zoo with or without `blockswap_`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..genome import BlockType, Genome
from ..layout import Layout
from ..messages import did_you_mean, quote
from .blockswap import SWAPPED
from .register import register

__all__ = [
    "create_network",
    "find_model",
    "has_genome",
    "has_source",
    "is_all_kept",
    "require_model",
    "swaps",
    "which_was_taken",
]

_PREFIX = "blockswap_"
_KEEP = BlockType("K")
_SOURCES = ("local-dir", "hf-hub", "hf_hub")
_ADVICE = "see 'blockswap list' and timm.list_models()"


def find_model(name: str, genome: str | None = None) -> str:
    """Finds the name under which timm has a model.

    A name that both timm and the zoo have, such as `resnet34`, is timm's; with a genome it is the zoo's, unless the
    genome keeps a block (K), which only a network of timm has. A WRN or ResNet that is not in the zoo is registered.

    Args:
        name: A model of timm, one of the zoo with or without `blockswap_`, `local-dir:FOLDER` or `hf-hub:NAME`.
        genome: The block types that the model is to have.

    Raises:
        ValueError: There is no such model, or it has a genome of its own.
    """
    if has_source(name):
        if genome is not None:
            raise ValueError(f"{name} has a genome of its own; leave out genome=, or use a model of 'blockswap list'")
        return name
    ours = f"{_PREFIX}{name}"
    keeps = genome is not None and _KEEP in Genome(genome).blocks
    if genome is not None and not keeps and "." not in name and timm.is_model(ours):
        return ours
    for candidate in (name, ours):
        if timm.is_model(candidate):
            return candidate
    with suppress(ValueError):
        layout = Layout.named(name)
        # The name of a student, such as wrn40_2_404k, is more than that of its layout.
        if name.removeprefix(_PREFIX) == layout.name.removeprefix(_PREFIX):
            register(layout)
            return layout.name
    if Path(name).is_file():
        advice = (
            "train it first by 'blockswap train'"
            if name.endswith(".jsonl")
            else ("use the folder of the network or of its run, or the model's name with checkpoint=")
        )
        kind = "the record of a search" if name.endswith(".jsonl") else "a file"
        raise ValueError(f"{quote(name)} is {kind}, not a model; {advice}")
    if "/" in name or name in (".", ".."):
        raise ValueError(f"no folder {quote(name)}; use the folder of a network or of a run, or the name of a model")
    names = timm.list_models()
    short = [each.removeprefix(_PREFIX) for each in names if each.startswith(_PREFIX)]
    raise ValueError(f"unknown model {quote(name)}; {did_you_mean(name.lower(), [*names, *short], _ADVICE)}")


def has_source(name: str) -> bool:
    """Whether a name says where its network is: in a folder (`local-dir:`), or on the Hugging Face Hub (`hf-hub:`)."""
    source, colon, _ = name.partition(":")
    return bool(colon) and source.lower() in _SOURCES


def swaps(name: str, genome: Genome | str | None) -> bool:
    """Whether a genome takes the place of blocks of timm's: in a found model that is none of the zoo."""
    return genome is not None and not has_source(name) and not has_genome(name)


def is_all_kept(genome: Genome | str) -> bool:
    """Whether a genome keeps every block of a network, so that this is as timm has it."""
    return set(Genome(genome).blocks) == {_KEEP}


def create_network(name: str, genome: Genome | str | None = None, **kwargs: Any) -> nn.Module:
    """Makes a network by the name that `find_model` found; in one of timm, the blocks of a genome replace its own.

    Args:
        name: The name.
        genome: The block types.
        **kwargs: Arguments of timm's `create_model`.
    """
    if swaps(name, genome):
        kwargs["network"], name = name, SWAPPED
    model: nn.Module = timm.create_model(name, genome=genome, **kwargs)
    return model


def which_was_taken(name: str, found: str) -> str | None:
    """Says which network a name stands for, where timm and the zoo both have one of that name, or a folder has it."""
    ours = f"{_PREFIX}{name}"
    if Path(name).is_dir():
        return f"{name} is the network {found}, not the folder; use ./{name} for what is in that"
    if "." in name or has_source(name) or not (timm.is_model(name) and timm.is_model(ours)):
        return None
    if found == ours:
        return f"{name} with a genome is {ours} of the zoo, not timm's {name}"
    return f"{name} is timm's network; the zoo's is {ours}"


def has_genome(name: str) -> bool:
    """Whether a model of timm is one of the zoo or was registered by `register`."""
    return timm.model_entrypoint(name).__module__.startswith(f"{__name__.partition('.')[0]}.")


def require_model(name: str) -> None:
    """Raises ValueError unless timm has a model of exactly that name."""
    if not has_source(name) and not timm.is_model(name):
        ours = f"{_PREFIX}{name}"
        # The zoo's network is a better suggestion than the closest name in timm.
        found = timm.is_model(ours)
        advice = f"did you mean {quote(ours)}?" if found else did_you_mean(name, timm.list_models(), _ADVICE)
        raise ValueError(f"unknown model {quote(name)}; {advice}")
