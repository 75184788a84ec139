"""Makes a model of timm or the zoo with the weights that are asked for."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from safetensors import SafetensorError
from torch import nn

from ..counts import require_counts
from ..errors import BlockSwapError
from ..files import encode_json
from ..genome import Genome
from ..messages import quote
from ..zoo.cards import MissingWeightsError
from ..zoo.find import create_network, find_model, has_source, is_all_kept, swaps
from ..zoo.genomes import GENOMES
from .evaluate import load_weights
from .run_folder import WEIGHTS, read_summary

__all__ = ["CONFIG", "create", "has_weights", "is_folder", "is_run", "make_model", "of_summary"]

# What timm writes into the folder of a network, and a run does not.
CONFIG = "config.json"


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
        name: What `find_model` takes; or the folder of a run, or one that `save_pretrained` wrote.
        pretrained: Whether to load the model's own weights, where no checkpoint is given.
        checkpoint: A file of weights, as of `load_weights`.
        genome: Block types, for a model of the zoo; or for one of timm, whose blocks they replace but for those that
            they keep (K).
        num_classes: Number of classes; the model's own where None.
        in_chans: Number of input channels; the model's own where None.

    Raises:
        ValueError: There is no such model, or there are no such weights of it.
    """
    # Without classes it is a network without its head, for timm.
    require_counts(num_classes=num_classes or None, in_chans=in_chans)
    if is_folder(name):
        if is_run(name):
            return _of_run(Path(name), pretrained, checkpoint, genome, num_classes, in_chans)
        name = f"local-dir:{name}"
    full = find_model(name, genome)
    pretrained = pretrained and checkpoint is None
    if pretrained and not has_source(full) and not timm.is_model_pretrained(full):
        weights = timm.list_models(f"{full.partition('.')[0]}.*", pretrained=True)
        instead = f"use {weights[0]}" if weights else "use checkpoint=FILE, or pretrained=False for random weights"
        raise MissingWeightsError(full, instead)
    if pretrained and genome is not None and swaps(full, genome) and not is_all_kept(genome):
        raise MissingWeightsError(
            f"{full} with other blocks, {genome}",
            "use checkpoint=FILE, or the folder of its training run in place of the name, or pretrained=False for "
            "random weights",
        )
    model: Any = create(full, genome, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans)
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


def create(name: str, genome: Genome | str | None = None, **kwargs: Any) -> nn.Module:
    """Makes a network as `create_network` does, and says which folder of a network is damaged.

    Args:
        name: The name that `find_model` found.
        genome: The block types.
        **kwargs: Arguments of timm's `create_model`.

    Raises:
        ValueError: The folder holds no network that can be loaded.
    """
    try:
        return create_network(name, genome, **kwargs)
    except BlockSwapError:
        raise
    except (KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        source, _, folder = name.partition(":")
        if source != "local-dir":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, KeyError):
            reason = f"its {CONFIG} has no {error}"
        elif reason.startswith("Error(s) in loading state_dict"):
            reason = f"its weights are of another network than its {CONFIG} says"
        raise ValueError(
            f"cannot load the network in {quote(folder)}: {reason}; use a folder that 'blockswap make' or "
            "save_pretrained wrote"
        ) from None


def has_weights(name: str, genome: str | None = None) -> bool:
    """Says whether there are pretrained weights of this very network, genome and all."""
    if is_folder(name):
        return True
    full = find_model(name, genome)
    if has_source(full):
        return True
    if genome is not None and swaps(full, genome):
        return timm.is_model_pretrained(full) and is_all_kept(genome)
    own = GENOMES.get(full.partition(".")[0])
    return timm.is_model_pretrained(full) and (genome is None or own is None or Genome(genome) == own)


def is_folder(name: str) -> bool:
    """Says whether a name is that of a folder of a network, and not of a model."""
    return not has_source(name) and Path(name).is_dir() and not timm.is_model(name)


def is_run(name: str) -> bool:
    """Says whether a name is that of the folder of a training run."""
    return is_folder(name) and not (Path(name) / CONFIG).is_file()


def of_summary(summary: dict[str, Any]) -> nn.Module:
    """Makes the network of a run, with random weights, from what the run wrote to `summary.json`."""
    size = tuple(summary["input_size"])
    name = summary["model"]
    own: dict[str, Any] = {"num_classes": summary["num_classes"], "in_chans": size[0]}
    own["pretrained_cfg_overlay"] = {"input_size": size}
    if (config := summary.get("config")) is not None:
        # It started from a folder, which may be gone, or have another network by now.
        with TemporaryDirectory() as place:
            (Path(place) / CONFIG).write_bytes(encode_json(config))
            model: Any = create(f"local-dir:{place}", **own)
    else:
        # A repository has its own genome.
        genome = None if has_source(name) else summary.get("genome")
        # Of a name that the zoo has too, only the run knows whose it was.
        model = create(name if summary.get("swapped") else find_model(name, genome), genome, **own)
    names = summary.get("label_names")
    if names is not None and len(names) == summary["num_classes"]:
        model.pretrained_cfg["label_names"] = list(names)
    return model


def _of_run(
    folder: Path,
    pretrained: bool,
    checkpoint: str | Path | None,
    genome: str | None,
    num_classes: int | None,
    in_chans: int | None,
) -> nn.Module:
    """Makes the network of a run, with the weights that it ended with; raises ValueError for what it is not."""
    summary = read_summary(folder)
    told = {"genome": genome, "num_classes": num_classes, "in_chans": in_chans}
    own = {**summary, "in_chans": summary["input_size"][0]}
    for key, value in told.items():
        if value is not None and str(value) != str(own.get(key)):
            raise ValueError(f"the network of {quote(str(folder))} has {key}={own.get(key)}; leave out {key}={value}")
    model = of_summary(summary)
    if pretrained or checkpoint is not None:
        load_weights(model, folder / WEIGHTS if checkpoint is None else checkpoint, own_genome=True)
    return model
