"""`blockswap library`: trains block types to stand in for the blocks of a trained network."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..genome import SEARCH_TYPES, BlockType
from ..messages import quote
from ..progress import progress_bar
from ..training.recipes import RECIPES
from .errors import advise_when_interrupted, without_warning
from .parameters import FOLDER, TYPES, dataset_options, device_option, holdout_options, reader_option, subcommand
from .tables import print_json, print_table

if TYPE_CHECKING:
    from ..nets.library import BlockLibrary

__all__ = ["library_"]


def _bytes(ctx: click.Context, param: click.Parameter, text: str) -> int:
    """Reads an amount of memory."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s?([mg])b?", text.lower())
    if not match:
        raise click.BadParameter(f"{quote(text)} is no amount of memory; use 500m or 4g")
    return int(float(match[1]) * {"m": 2**20, "g": 2**30}[match[2]])


@subcommand("library", "train block types to stand in for the blocks of a trained network")
@click.argument("network", metavar="NETWORK", help="a trained CNN of timm or the zoo, such as resnet34 or wrn40_2")
@click.option("--teacher-checkpoint", metavar="FILE", help="its weights [default: its pretrained ones]")
@click.option("--num-classes", type=int, help="classes of its weights [default: the network's own]")
@click.option("--in-chans", type=int, help="channels of its images [default: the network's own]")
@dataset_options
@holdout_options()
@click.option("--out", type=FOLDER, required=True, metavar="FOLDER", help="where the library goes")
@click.option("--resume", is_flag=True, help="resume the library in that folder")
@click.option("--types", type=TYPES, help="block types, such as S,G4,W1 [default: the paper's 23]")
@click.option("--steps", type=int, default=300, help="minibatches that each block learns from")
@click.option("--batch-size", type=int, default=64, help="images in a minibatch")
@click.option("--lr", type=float, default=0.03, help="highest learning rate of Adam")
@click.option("--memory", default="4g", callback=_bytes, help="what is trained at a time, such as 500m or 4g")
@click.option("--seed", type=int, default=0, help="seed of weights and images")
@device_option
@reader_option
@click.option("--checkpoint-minutes", type=float, default=5.0, metavar="M", help="minutes between checkpoints")
def library_(
    network: str,
    teacher_checkpoint: str | None,
    num_classes: int | None,
    in_chans: int | None,
    data: str,
    data_dir: str | None,
    val_share: float | None,
    val_seed: int,
    out: str,
    resume: bool,
    types: list[BlockType] | None,
    steps: int,
    batch_size: int,
    lr: float,
    memory: int,
    seed: int,
    device: str | None,
    workers: int,
    checkpoint_minutes: float,
    as_json: bool,
) -> None:
    """Trains a library of blocks, and prints the errors."""
    from ..data.facts import holdout_of, holdout_text
    from ..data.folders import classes_of, plain_name
    from ..machine import find_device, keep_memory
    from ..training.library import has_random_weights, train_library
    from ..training.loaders import training_loader
    from ..training.models import has_weights, make_model
    from ..zoo.cards import MissingWeightsError
    from ..zoo.find import find_model

    where = find_device(device)
    if where.type == "cpu":
        keep_memory()
    if teacher_checkpoint is None and not has_weights(network):
        raise MissingWeightsError(find_model(network), "use teacher_checkpoint=FILE for weights of your own")
    model = make_model(network, checkpoint=teacher_checkpoint, num_classes=num_classes, in_chans=in_chans).to(where)
    data = plain_name(data, data_dir)
    classes = classes_of(data, data_dir)
    known = getattr(model, "num_classes", 0)
    if classes is not None and len(classes) != known and teacher_checkpoint is None:
        raise ValueError(
            f"{quote(data)} has {len(classes):,} classes, but {network} was trained on {known:,}; use the images that "
            "it was trained on, or teacher_checkpoint=FILE for weights of these classes"
        )
    # As a training and a search do, which have this library's blocks judged on what is held out.
    holdout = holdout_of(data, data_dir, val_share, val_seed)
    name = "cifar10" if data.lower().startswith("torch/cifar") else "imagenet"
    recipe = replace(RECIPES[name], batch_size=batch_size, cutout=0)
    loader = training_loader(model, data, data_dir, recipe, holdout=holdout, seed=seed, device=where, workers=workers)
    images = data
    if holdout is not None:
        click.echo(holdout_text(data, data_dir, holdout), err=True)
        images = f"{data}, without {holdout.share:g} of each class by seed {holdout.seed}"
    advise_when_interrupted("continue with the same command and --resume")
    if has_random_weights(model):
        click.echo(f"{network} has random weights: there is nothing to imitate; use trained ones", err=True)
    with without_warning(".* to imitate has random weights"):
        library = train_library(
            model,
            loader,
            out,
            data=images,
            types=SEARCH_TYPES if types is None else types,
            steps=steps,
            lr=lr,
            memory=memory,
            seed=seed,
            resume=resume,
            checkpoint_minutes=checkpoint_minutes,
            progress=lambda taken: progress_bar(taken, "step"),
        )
    if as_json:
        rows = [
            {"block": at + 1, "type": block, "error": error if math.isfinite(error) else None}
            for (at, block), error in library.errors.items()
        ]
        print_json({"network": library.header["network"], "folder": out, "errors": rows})
        return
    _print_errors(library, Path(out))


def _print_errors(library: BlockLibrary, folder: Path) -> None:
    by_type: dict[str, dict[int, float]] = defaultdict(dict)
    for (index, block), error in library.errors.items():
        by_type[block][index] = error
    places = library.layout.places
    print(f"{library.header['network']}: relative error of each block type by stage.block\n")
    rows = [
        (block, *(f"{errors[index]:.3f}" if index in errors else "" for index in range(len(places))))
        for block, errors in by_type.items()
    ]
    print_table(("type", *(f"{p.stage}.{p.block}" for p in places)), rows, right=range(1, len(places) + 1))
    print(f"\nlibrary: {folder}")
