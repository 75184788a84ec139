"""The subcommand `blockswap export`: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..genome import Genome, _quote
from .commands import _print_table
from .evaluate import _add_model_options, _known, _model

if TYPE_CHECKING:
    from ..export import Exported

__all__ = ["FORMAT_NAMES", "add_export", "run_export"]

# The keys of `export.FORMATS`, which needs torch.
FORMAT_NAMES = ("onnx", "torch.export", "torchscript")
_RANDOM = "random: this network has learned nothing; write --checkpoint FILE for weights"


def add_export(subcommands: Any) -> argparse.ArgumentParser:
    """Adds the subcommand to those of `blockswap`."""
    command = subcommands.add_parser("export", help="a network as a file of ONNX, torch.export or TorchScript")
    command.add_argument("name", metavar="MODEL", help="a model of timm or the zoo, local-dir:FOLDER or hf-hub:NAME")
    command.add_argument("--out", required=True, metavar="FILE", help="a new .onnx, .pt2 (torch.export) or .ts file")
    command.add_argument("--format", choices=FORMAT_NAMES, help="what to write (told by the ending of the file)")
    _add_model_options(command, "its own, where it has any")
    command.add_argument("--image-size", type=int, help="height and width of the images (the model's own)")
    command.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fold BN into the convolution before it, where there is one, as ONNX's exporter always does (%(default)s)",
    )
    command.set_defaults(run=run_export)
    return command


def run_export(options: argparse.Namespace) -> None:
    """Writes a network as a file, and prints what is in it."""
    out = Path(options.out)
    if out.exists():
        raise ValueError(f"there is {_quote(options.out)} already; write another --out, or delete it")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"no folder {_quote(str(out.parent))}; write --out with a file in a folder that exists")
    if options.image_size is not None and options.image_size < 1:
        raise ValueError(f"images have at least 1 pixel, not {options.image_size} (--image-size)")
    if options.checkpoint is not None and options.pretrained:
        raise ValueError("weights are a checkpoint's or pretrained; leave out --checkpoint or --pretrained")

    from timm.data import resolve_model_data_config

    from ..export import export_model, format_of
    from ..training.evaluate import load_weights

    # Before the network is made.
    format_of(out, options.format)
    if options.pretrained is None and options.checkpoint is None:
        options.pretrained = _has_weights(options)
    model = _model(options)
    if options.checkpoint is not None:
        load_weights(model, options.checkpoint)
    size = resolve_model_data_config(model)["input_size"]
    if options.image_size is not None:
        size = (size[0], options.image_size, options.image_size)
    result = export_model(model, out, options.format, input_size=size, fold=options.fold)
    weights = options.checkpoint or ("random" if options.pretrained is False else "pretrained")
    if options.json:
        print(json.dumps({"model": options.name, "weights": weights, **asdict(result)}, indent=1))
        return
    _print(result, _RANDOM if weights == "random" else weights)


def _has_weights(options: argparse.Namespace) -> bool:
    """Says whether there are weights of this very network, genome and all."""
    import timm

    from ..zoo.genomes import GENOMES

    name = _known(options.name)
    if ":" in name:
        return True
    own = GENOMES.get(name.partition(".")[0])
    return timm.is_model_pretrained(name) and (options.genome is None or own is None or Genome(options.genome) == own)


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
    _print_table(("file", result.file), rows)
