"""`blockswap make`: from a folder of images to a network in files, in one command."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import click

from ..budget import Budget
from ..machine import default_workers
from .errors import advise_when_interrupted, as_options, given_words
from .parameters import AMOUNT, FOLDER, LATENCY, device_option, subcommand
from .tables import in_megas, print_json, print_table

__all__ = ["make_"]


@subcommand("make", "a network for a folder of images: teacher, search, training and export")
@click.option("--data", required=True, help="a folder of one folder a class, or of train and val that have these")
@click.option("--params", type=AMOUNT, help="a budget of parameters, such as 1m")
@click.option("--macs", type=AMOUNT, help="a budget of multiply-accumulates, such as 60m")
@click.option("--latency", type=LATENCY, help="a budget of time, such as ..4ms, measured on this machine")
@click.option("--tolerance", type=float, default=0.025, help="fraction by which a cost may differ from an amount alone")
@click.option(
    "--out", type=FOLDER, required=True, metavar="FOLDER", help="the folder of the network: new, or one to resume"
)
@click.option(
    "--network",
    metavar="NETWORK",
    help="the network whose blocks are replaced [default: wrn40_2 up to 48 pixels, resnet18 up to 96, else resnet34; "
    "fewer than 5,000 images that train their teacher count as 96 pixels at most]",
)
@click.option(
    "--teacher",
    metavar="MODEL",
    default="train",
    help="'train' has the network itself learn the images first; or a model with weights, its folder, or a file of "
    "weights of the network",
)
@click.option(
    "--image-size", type=int, help="side of the images in pixels [default: read from the images, as --network says]"
)
@click.option("--in-chans", type=int, help="channels of the images [default: read from the images]")
@click.option("--samples", type=int, default=100, help="genomes to score")
@click.option("--epochs", type=int, help="epochs of each training [default: by the number of images]")
@click.option("--batch-size", type=int, help="images a step [default: by the number of images]")
@click.option(
    "--val-share",
    type=float,
    metavar="SHARE",
    help="share of each class that is held out, for a folder without splits [default: 0.2]",
)
@click.option("--seed", type=int, default=0, help="seed of all that is drawn")
@click.option(
    "--workers", type=int, default=default_workers, show_default="one a core", help="processes that score or read"
)
@click.option(
    "--dtype",
    type=click.Choice(("auto", "float32", "bfloat16")),
    default="auto",
    help="precision of training; auto is bfloat16 where the device computes in it, else float32",
)
@device_option
def make_(as_json: bool, **arguments: Any) -> None:
    """Makes a network, and prints what it is and where."""
    options = SimpleNamespace(**arguments)
    amounts = {
        name: given.value for name in ("params", "macs", "latency") if (given := getattr(options, name)) is not None
    }
    if not amounts:
        raise ValueError("a network needs a budget; use --params 1m, or --macs 60m, or --latency 4ms")
    budget = Budget(**amounts, tolerance=options.tolerance)
    advise_when_interrupted("continue with the same command")

    from ..making import make
    from ..training.models import is_folder

    made = make(
        options.data,
        options.out,
        budget,
        network=options.network,
        teacher=options.teacher,
        image_size=options.image_size,
        in_chans=options.in_chans,
        samples=options.samples,
        epochs=options.epochs,
        batch_size=options.batch_size,
        val_share=options.val_share,
        seed=options.seed,
        dtype=options.dtype,
        workers=options.workers,
        device=options.device,
        command=["blockswap", *given_words()],
        say=lambda text: click.echo(as_options(text, click.get_current_context().command), err=True),
        progress=True,
    )
    if as_json:
        print_json(asdict(made))
        return
    size = "x".join(map(str, made.input_size))
    rows = [
        ("model", f"{made.model} {made.genome}"),
        ("cost", f"{made.params:,} parameters, {in_megas(made.macs)} multiply-accumulates"),
        ("images", f"{size}, {len(made.classes):,} classes"),
        ("top-1 error", f"{made.top1_error:.2f} % of {made.images:,} images that it did not learn from"),
        *([("top-5 error", f"{made.top5_error:.2f} %")] if len(made.classes) > 5 else []),
        *([] if made.teacher_error is None else [("teacher", f"top-1 error {made.teacher_error:.2f} %")]),
        ("speed", f"{made.images_per_second:,.0f} images/s, with reading them"),
        ("training", f"{made.seconds:,.0f} s"),
        ("ONNX", made.onnx),
        *([] if made.picture is None else [("picture", made.picture)]),
    ]
    print_table(("folder", made.folder), rows)
    # A name of timm is that of its network, also where a folder has it.
    folder = made.folder if is_folder(made.folder) else os.path.join(os.curdir, made.folder)
    print(f"\nload it: timm.create_model({f'local-dir:{made.folder}'!r}, pretrained=True)")
    print(f"try it: {shlex.join(['blockswap', 'predict', folder])} IMAGE")
