"""`blockswap predict`: what a network sees in images."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ..counts import require_counts
from ..progress import progress_bar
from .evaluate import say_which
from .parameters import (
    device_option,
    exclusive,
    model_argument,
    model_options,
    reader_option,
    subcommand,
)
from .tables import print_json, print_table

if TYPE_CHECKING:
    from ..prediction import Prediction

__all__ = ["predict_"]

# From so many minibatches on, a bar says how far it is.
_LONG = 4


@subcommand("predict", "the classes that a network sees in images, by name")
@model_argument
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", help="image files, or folders of them")
@click.option("--top", type=int, default=5, help="classes of each image")
@click.option("--csv", "as_csv", is_flag=True, help="print CSV, a line an image")
@model_options("its own, unless there is a checkpoint")
@click.option("--batch-size", type=int, default=64, help="images in a minibatch")
@reader_option
@device_option
def predict_(as_json: bool, **arguments: Any) -> None:
    """Prints the most probable classes of images."""
    options = SimpleNamespace(**arguments)
    exclusive("checkpoint", "pretrained")
    require_counts(top=options.top, batch_size=options.batch_size)
    require_counts(0, workers=options.workers)
    if as_json and options.as_csv:
        raise ValueError("--csv and --json exclude each other; leave one of them out")

    from ..machine import find_device
    from ..prediction import images_in, iter_predictions
    from ..training.models import make_model

    files = images_in(options.images)
    model = make_model(
        options.name,
        pretrained=options.pretrained is not False,
        checkpoint=options.checkpoint,
        genome=options.genome,
        num_classes=options.num_classes,
        in_chans=options.in_chans,
    ).to(find_device(options.device))
    say_which(options.name, options.genome)
    long = len(files) > _LONG * options.batch_size
    minibatches = math.ceil(len(files) / options.batch_size) if long else 0
    predictions = iter_predictions(
        model,
        # Not the files by their names: of a folder, one that has gone is left out.
        options.images,
        top=options.top,
        batch_size=options.batch_size,
        # Starting processes takes longer than reading a few images.
        workers=options.workers if long else 0,
        progress=(lambda batches: progress_bar(batches, "minibatch", minibatches)) if long else None,
    )
    if options.as_csv:
        _print_csv(predictions)
    elif as_json:
        print_json([asdict(each) for each in predictions])
    else:
        rows = [
            (each.image if rank == 1 else "", rank, name, f"{probability:.1%}")
            for each in predictions
            for rank, (name, probability) in enumerate(zip(each.names, each.probabilities, strict=True), start=1)
        ]
        print_table(("image", "rank", "class", "probability"), rows, right=(1, 3))


def _print_csv(predictions: Iterable[Prediction]) -> None:
    """Prints each line as it comes, so that nothing is lost where the command is stopped."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for number, each in enumerate(predictions):
        if not number:
            ranks = range(1, len(each.names) + 1)
            writer.writerow(["image", *(f"{key}{rank}" for rank in ranks for key in ("class", "probability"))])
        pairs = zip(each.names, each.probabilities, strict=True)
        writer.writerow([each.image, *(value for name, each_p in pairs for value in (name, f"{each_p:.6f}"))])
        sys.stdout.flush()
