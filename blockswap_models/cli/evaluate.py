"""`blockswap evaluate`: the error of a model on a dataset."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ..progress import progress_bar
from .parameters import (
    dataset_options,
    device_option,
    exclusive,
    holdout_options,
    model_argument,
    model_options,
    reader_option,
    refuse_given,
    subcommand,
)
from .tables import print_json, print_table

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..training.evaluate import Evaluation, Minibatches

__all__ = ["evaluate_", "measure", "say_which"]


@subcommand("evaluate", "top-1 and top-5 error of any timm model on any dataset")
@model_argument
@dataset_options
@click.option("--split", help="the split [default: validation, or test where a folder has no other]")
@click.option("--class-map", metavar="FILE", help="the names of all classes, for a folder of some of them")
@holdout_options("nothing, and all images are measured")
@click.option("--images", type=int, metavar="N", help="so many images, evenly spaced [default: all]")
@model_options("its own, unless there is a checkpoint")
@click.option("--batch-size", type=int, default=256, help="images in a minibatch")
@click.option("--image-size", type=int, help="side of the images in pixels [default: the model's own]")
@click.option("--crop-pct", type=float, metavar="SHARE", help="the middle that is seen [default: the model's own]")
@reader_option
@device_option
@click.option("--dtype", type=click.Choice(("float32", "bfloat16", "float16")), default="float32", help="precision")
def evaluate_(as_json: bool, **arguments: Any) -> None:
    """Measures the error of a model, and prints it."""
    options = SimpleNamespace(**arguments)
    exclusive("checkpoint", "pretrained")
    if options.val_share is None:
        refuse_given(["val_seed"], "is of what --val-share holds out; use both")

    import torch

    from ..data.facts import holdout_of
    from ..machine import find_device, keep_memory
    from ..training.evaluate import evaluation_loader
    from ..training.models import is_folder, make_model
    from ..training.run_folder import WEIGHTS

    device = find_device(options.device)
    if device.type == "cpu":
        keep_memory()
    model = make_model(
        options.name,
        pretrained=options.pretrained is not False,
        checkpoint=options.checkpoint,
        genome=options.genome,
        num_classes=options.num_classes,
        in_chans=options.in_chans,
    ).to(device)
    loader = evaluation_loader(
        model,
        options.data,
        options.data_dir,
        options.split,
        options.batch_size,
        options.images,
        options.class_map,
        options.workers,
        # All images of a folder without splits, unless it is said.
        None
        if options.val_share is None
        else holdout_of(options.data, options.data_dir, options.val_share, options.val_seed),
        image_size=options.image_size,
        crop_pct=options.crop_pct,
    )
    result = measure(model, loader, getattr(torch, options.dtype))
    say_which(options.name, options.genome)
    own = str(Path(options.name) / WEIGHTS) if is_folder(options.name) else "pretrained"
    weights = options.checkpoint or ("random" if options.pretrained is False else own)
    if as_json:
        report = {
            "model": options.name,
            "weights": weights,
            "data": options.data,
            "split": _split(options),
            **asdict(result),
            "device": str(device),
            "dtype": options.dtype,
        }
        print_json(report)
        return
    rows = [
        ("weights", weights),
        ("data", f"{options.data}, {_split(options)}"),
        ("images", f"{result.images:,}"),
        ("top-1 error", f"{result.top1_error:.2f} %"),
        # Of five classes one of the first five is always right.
        *([("top-5 error", f"{result.top5_error:.2f} %")] if getattr(model, "num_classes", 6) > 5 else []),
        *([("damaged", f"{len(result.damaged):,} left out")] if result.damaged else []),
        ("time", f"{result.seconds:,.1f} s, {result.images / result.seconds:,.0f} images/s, {device}, {options.dtype}"),
    ]
    print_table(("model", options.name), rows)


def _split(options: SimpleNamespace) -> str:
    """Names the split that was measured: the one asked for, or the one that was found."""
    from ..data.folders import find_dataset
    from ..data.splits import find_split

    name, root = find_dataset(options.data, options.data_dir)
    if options.split is not None:
        return str(options.split)
    if name != "folder":
        # torchvision's CIFAR has no other images than those of training and of the test.
        return "test" if name.lower().startswith("torch/cifar") else "validation"
    if options.val_share is not None:
        return "held out"
    found = find_split(root, None)
    return "all images" if found == Path(root) else found.name


def measure(model: nn.Module, loader: Minibatches, dtype: torch.dtype) -> Evaluation:
    """Measures the error of a model with a progress bar."""
    from ..training.evaluate import evaluate

    return evaluate(model, loader, dtype, lambda minibatches: progress_bar(minibatches, "minibatch"))


def say_which(name: str, genome: str | None = None) -> None:
    """Says on stderr which network was taken, where timm and the zoo both have one of that name, or a folder has it."""
    from ..training.models import is_folder
    from ..zoo.find import find_model, which_was_taken

    if is_folder(name):
        return
    if said := which_was_taken(name, find_model(name, genome)):
        click.echo(said, err=True)
