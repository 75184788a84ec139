"""`blockswap pack` and `blockswap push`: packs the weights of a training run with a card, and publishes them."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ..files import encode_json, make_folder, write_atomic
from ..messages import quote
from ..zoo.cards import WeightsError, check_weights, make_card, read_card, shipped, training_command
from .evaluate import measure
from .parameters import FOLDER, device_option, exclusive, reader_option, subcommand
from .tables import print_json, print_table

if TYPE_CHECKING:
    from torch import nn

__all__ = ["pack", "push"]

_DTYPE = "float16"


@subcommand("pack", "make weights in half precision, with a card, from a training run")
@click.argument(
    "run_folder",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="the folder of a finished run of 'blockswap train'",
)
@click.option("--tag", required=True, help="the tag of the weights, such as at_cifar10")
@click.option("--data-dir", metavar="FOLDER", help="the folder of the dataset, on which their error is measured")
@click.option(
    "--image-size",
    type=int,
    help="side of the images on which the weights are measured, and of a network with them [default: that of the run]",
)
@click.option("--out", type=FOLDER, required=True, metavar="FOLDER", help="where MODEL.TAG.safetensors and .json go")
@click.option("--note", metavar="TEXT", help="what a user must know first of all, such as what it was trained on")
@reader_option
@device_option
def pack(as_json: bool, **arguments: Any) -> None:
    """Writes the parameters of a run in half precision, and their card with the errors of both precisions."""
    options = SimpleNamespace(**arguments)
    folder: Path = options.run_folder
    from ..training.run_folder import read_summary

    summary = read_summary(folder)
    if not options.tag or {".", "/", os.sep, " "} & set(options.tag):
        raise ValueError(f"a tag has no dots, slashes or spaces; {quote(options.tag)} has, or is empty (--tag)")

    from ..training.models import of_summary

    model: Any = of_summary(summary)
    # The network's own name, also where training started from a folder or a repository.
    name = f"{model.pretrained_cfg['architecture']}.{options.tag}"
    weights, card = (Path(options.out) / f"{name}.{suffix}" for suffix in ("safetensors", "json"))
    for path in (weights, card):
        if path.exists():
            raise WeightsError(f"there is {quote(str(path))} already; use another --tag or --out, or delete it")
    # Before minutes of measuring.
    if weights.parent.exists() and not weights.parent.is_dir():
        raise WeightsError(f"{quote(options.out)} is a file; use a folder (--out)")

    import safetensors.torch
    import torch

    from ..data.folders import is_dataset
    from ..data.holdout import HoldOut
    from ..data.statistics import model_data_config
    from ..machine import find_device, keep_memory
    from ..nets.cost import count
    from ..training.evaluate import evaluation_loader, load_weights

    device = find_device(options.device)
    if device.type == "cpu":
        keep_memory()
    if "command" not in summary:
        raise WeightsError(f"the run in {quote(str(folder))} does not say its command; train it with this version")
    load_weights(model, folder / "model.safetensors")
    exact = copy.deepcopy(model)
    _halve(model)
    content = safetensors.torch.save(
        {key: each.clone(memory_format=torch.contiguous_format) for key, each in model.state_dict().items()},
        {"format": "pt"},
    )
    # The numbers in the file are tested.
    model.float().to(device)
    if not all(each.isfinite().all() for each in model.parameters()):
        raise WeightsError(f"the weights of {quote(str(folder))} are too large for {_DTYPE}, or not finite")
    share = summary.get("val_share")
    # A folder of images may lie elsewhere now.
    moved = options.data_dir is not None and not is_dataset(summary["data"])
    loader = evaluation_loader(
        model,
        "folder" if moved else summary["data"],
        options.data_dir,
        workers=options.workers,
        holdout=None if share is None else HoldOut(share, summary["val_seed"]),
        image_size=options.image_size,
    )
    if options.image_size is not None:
        # What the run measured is of its own size.
        tested = measure(exact.to(device), loader, torch.float32)
        size = (model_data_config(model)["input_size"][0], options.image_size, options.image_size)
        summary |= {"top1_error": tested.top1_error, "top5_error": tested.top5_error}
        summary |= {"input_size": size, "macs": count(model, size).macs}
    tested = measure(model, loader, torch.float32)
    errors = {"top1_error": tested.top1_error, "top5_error": tested.top5_error}
    # Weights of timm under another tag may be of images that are made in another way.
    summary["data_config"] = {key: each for key, each in model_data_config(model).items() if key != "input_size"}
    made = make_card(name, summary, content, _DTYPE, errors, training_command(summary), options.note)
    make_folder(weights.parent, WeightsError)
    write_atomic(weights, content, WeightsError)
    write_atomic(card, encode_json(made, indent=1) + b"\n", WeightsError)
    if as_json:
        print_json(made)
        return
    rows = [
        ("card", card),
        ("size", f"{len(content):,} bytes"),
        ("top-1 error", f"{tested.top1_error:.2f} %, {summary['top1_error']:.2f} % in float32"),
    ]
    if summary["num_classes"] > 5:
        rows.append(("top-5 error", f"{tested.top5_error:.2f} %, {summary['top5_error']:.2f} % in float32"))
    print_table(("weights", str(weights)), rows)


@subcommand("push", "put weights into a folder that timm reads, or on the Hugging Face Hub")
@click.argument("name", metavar="WEIGHTS", help="MODEL.TAG of the zoo, or the .json card that 'pack' made")
@click.option("--repo", metavar="USER/NAME", help="the repository on the Hub; made where there is none")
@click.option("--out", type=FOLDER, metavar="FOLDER", help="a new folder, and nothing goes to the Hub")
@click.option("--private", is_flag=True, help="make the repository private")
def push(as_json: bool, **arguments: Any) -> None:
    """Writes the folder of a network with weights, and puts it on the Hub where it is asked for."""
    options = SimpleNamespace(**arguments)
    exclusive("repo", "out")
    if options.repo is None and options.out is None:
        raise click.UsageError("Missing option '--repo' or '--out'.", click.get_current_context())
    if options.out is not None and Path(options.out).exists():
        if not Path(options.out).is_dir():
            raise ValueError(f"{quote(options.out)} is a file; use a new folder (--out)")
        if any(Path(options.out).iterdir()):
            raise ValueError(f"{quote(options.out)} is not empty; use a new folder (--out)")
    if options.private and options.repo is None:
        raise ValueError("--private is for a repository on the Hub; use --repo USER/NAME")
    if options.repo is not None and options.repo.count("/") != 1:
        raise ValueError(f"a repository is USER/NAME, not {quote(options.repo)} (--repo)")
    weights = _packed(options.name)
    card = read_card(weights.with_suffix(".json"))
    check_weights(weights)
    if card["genome"] is None:
        raise WeightsError(
            f"{card['name']} is a network of timm with its own blocks; use timm.models.push_to_hf_hub for it"
        )
    model = _model_of(card, weights)
    _halve(model)

    from ..zoo.blockswap import save_pretrained

    if options.out is not None:
        save_pretrained(model, options.out, card=card)
        _print_place(options.out, f"local-dir:{options.out}", as_json)
        return

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, card=card, source=f"hf-hub:{options.repo}")
        _upload(folder, options.repo, options.private)
    _print_place(options.repo, f"hf-hub:{options.repo}", as_json)


def _print_place(place: str, name: str, as_json: bool) -> None:
    """Says where weights are now, and how they are loaded."""
    load = f"timm.create_model({name!r}, pretrained=True)"
    if as_json:
        print_json({"place": place, "load": load})
    else:
        print(f"{place}: {load}")


def _packed(name: str) -> Path:
    """Finds the weights of the zoo by name and tag, or those beside a card."""
    if name.endswith(".json"):
        return Path(name).with_suffix(".safetensors")
    there = shipped()
    for candidate in (name, f"blockswap_{name}"):
        if candidate in there:
            return there[candidate]
    listed = f"one of {', '.join(there)}" if there else "the card of weights that 'blockswap pack' made"
    raise WeightsError(f"no weights {quote(name)} in the zoo; use {listed}")


def _halve(model: nn.Module) -> None:
    """Halves the precision of the parameters; statistics of BN are few, and can be beyond the range of float16."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half()


def _model_of(card: dict[str, Any], weights: Path) -> nn.Module:
    from ..data.statistics import config_from_json
    from ..training.evaluate import load_weights
    from ..zoo.find import create_network, find_model

    name = card["name"].partition(".")[0]
    # Of a name that the zoo has too, the card says whose it is.
    name = name if card.get("swapped") else find_model(name)
    size, overlay = card.get("input_size"), config_from_json(card.get("data_config", {}))
    own: dict[str, Any] = {}
    if size is not None:
        overlay["input_size"] = tuple(size)
        own["in_chans"] = size[0]
    if overlay:
        overlay["tag"] = card["name"].partition(".")[2]
        own["pretrained_cfg_overlay"] = overlay
    model: Any = create_network(name, card["genome"], num_classes=card["num_classes"], **own)
    if "label_names" in card:
        model.pretrained_cfg["label_names"] = card["label_names"]
    load_weights(model, weights)
    return model


def _upload(folder: str, repository: str, private: bool) -> None:
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights and their card")
    except Exception as error:
        # Of the network, of HTTP, of a missing or wrong token: the Hub has its own for each.
        raise WeightsError(f"the Hub did not take {repository}: {str(error).splitlines()[0]}") from error
