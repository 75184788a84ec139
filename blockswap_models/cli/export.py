"""`blockswap export`: a network as a file that other programs run."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from .evaluate import say_which
from .parameters import exclusive, model_argument, model_options, out_file, subcommand
from .tables import print_json, print_table

if TYPE_CHECKING:
    from ..export import Exported

__all__ = ["FORMAT_NAMES", "export_"]

# The keys of `export.FORMATS`, which needs torch.
FORMAT_NAMES = ("onnx", "torch.export", "torchscript")
_RANDOM = "random: this network has learned nothing; use --checkpoint FILE for weights"


@subcommand("export", "a network as a file of ONNX, torch.export or TorchScript")
@model_argument
@out_file("a new .onnx, .pt2 (torch.export) or .ts file")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMAT_NAMES),
    help="what to write [default: told by the ending of the file]",
)
@model_options("its own, where it has any")
@click.option("--image-size", type=int, help="height and width of the images [default: the model's own]")
@click.option(
    "--fold/--no-fold",
    default=True,
    help="fold BN into the convolution before it, where there is one, as ONNX's exporter always does",
)
def export_(as_json: bool, **arguments: Any) -> None:
    """Writes a network as a file, and prints what is in it."""
    options = SimpleNamespace(**arguments)
    if options.image_size is not None and options.image_size < 1:
        raise ValueError(f"image_size is at least 1 pixel, not {options.image_size}")
    exclusive("checkpoint", "pretrained")

    from ..data.statistics import model_data_config
    from ..export import export_model, format_of
    from ..training.models import has_weights, make_model

    # Before the network is made.
    format_of(options.out, options.file_format)
    pretrained = options.pretrained
    if pretrained is None:
        pretrained = options.checkpoint is None and has_weights(options.name, options.genome)
    model = make_model(
        options.name,
        pretrained=pretrained,
        checkpoint=options.checkpoint,
        genome=options.genome,
        num_classes=options.num_classes,
        in_chans=options.in_chans,
    )
    size = model_data_config(model)["input_size"]
    if options.image_size is not None:
        size = (size[0], options.image_size, options.image_size)
    result = export_model(model, options.out, options.file_format, input_size=size, fold=options.fold)
    say_which(options.name, options.genome)
    weights = options.checkpoint or ("pretrained" if pretrained else "random")
    if as_json:
        print_json({"model": options.name, "weights": weights, **asdict(result)})
        return
    _print(result, _RANDOM if weights == "random" else weights)


def _print(result: Exported, weights: str) -> None:
    def numbers(values: tuple[float, ...]) -> str:
        return ", ".join(f"{each:g}" for each in values)

    folded = f"{result.folded} of {result.batchnorms} folded into convolutions"
    rows = [
        ("format", result.format if result.opset is None else f"{result.format}, opset {result.opset}"),
        ("size", f"{result.bytes:,} bytes"),
        ("model", result.name),
        *([] if result.genome is None else [("genome", result.genome)]),
        ("weights", weights),
        ("images", f"any number of {'x'.join(map(str, result.input_size))}, normalised before"),
        ("mean, std", f"{numbers(result.mean)}; {numbers(result.std)}"),
        ("BN", folded if result.folded else f"{result.batchnorms}, none folded"),
        ("difference", f"{result.difference:.1e} at most from PyTorch, in batches of 1 and 3"),
    ]
    print_table(("file", result.file), rows)
