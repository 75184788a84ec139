"""The subcommand `blockswap evaluate`: its options, and what it prints."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..genome import _quote
from ..layout import Layout
from .commands import _print_table

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..training.evaluate import Evaluation, Minibatches

__all__ = ["add_evaluate", "run_evaluate"]


def add_evaluate(subcommands: Any) -> argparse.ArgumentParser:
    """Adds the subcommand to those of `blockswap`."""
    command = subcommands.add_parser("evaluate", help="top-1 and top-5 error of any timm model on any dataset")
    command.add_argument("name", metavar="MODEL", help="a model of timm or the zoo, local-dir:FOLDER or hf-hub:NAME")
    command.add_argument("--data", required=True, help="torch/cifar10 or another timm dataset, or a folder of images")
    command.add_argument("--data-dir", help="the folder of the dataset")
    command.add_argument("--split", default="validation", help="the split of the dataset (%(default)s)")
    command.add_argument("--class-map", metavar="FILE", help="the names of all classes, for a folder of some of them")
    command.add_argument("--images", type=int, metavar="N", help="so many images, evenly spaced (all)")
    _add_model_options(command, "its own, unless there is a checkpoint")
    command.add_argument("--batch-size", type=int, default=256, help="images in a minibatch (%(default)s)")
    command.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read images")
    command.add_argument("--device", help="where to evaluate (cuda where there is a GPU, else cpu)")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="precision (%(default)s)"
    )
    command.set_defaults(run=run_evaluate)
    return command


def run_evaluate(options: argparse.Namespace) -> None:
    """Measures the error of a model, and prints it."""
    if options.checkpoint is not None and options.pretrained:
        raise ValueError("weights are a checkpoint's or pretrained; leave out --checkpoint or --pretrained")
    if options.checkpoint is not None and Path(options.checkpoint).is_dir():
        raise ValueError(
            f"the checkpoint {_quote(options.checkpoint)} is a folder; write a file in it, or local-dir:FOLDER in "
            "place of the model"
        )

    import torch

    from ..searching.workers import keep_memory
    from ..training.evaluate import evaluation_loader, load_weights

    device = _device(options.device)
    if device.type == "cpu":
        keep_memory()
    model = _model(options)
    if options.checkpoint is not None:
        load_weights(model, options.checkpoint)
    model.to(device)
    loader = evaluation_loader(
        model,
        options.data,
        options.data_dir,
        options.split,
        options.batch_size,
        options.images,
        options.class_map,
        options.workers,
    )
    result = _measure(model, loader, getattr(torch, options.dtype))
    weights = options.checkpoint or ("random" if options.pretrained is False else "pretrained")
    if options.json:
        report = {
            "model": options.name,
            "weights": weights,
            "data": options.data,
            "split": options.split,
            **asdict(result),
            "device": str(device),
            "dtype": options.dtype,
        }
        print(json.dumps(report, indent=1))
        return
    rows = [
        ("weights", weights),
        ("data", f"{options.data}, {options.split}"),
        ("images", f"{result.images:,}"),
        ("top-1 error", f"{result.top1_error:.2f} %"),
        ("top-5 error", f"{result.top5_error:.2f} %"),
        ("time", f"{result.seconds:,.1f} s, {result.images / result.seconds:,.0f} images/s, {device}, {options.dtype}"),
    ]
    _print_table(("model", options.name), rows)


def _measure(model: nn.Module, loader: Minibatches, dtype: torch.dtype) -> Evaluation:
    from tqdm import tqdm

    from ..training.evaluate import evaluate

    interval = 0.5 if sys.stderr.isatty() else 30
    return evaluate(
        model, loader, dtype, lambda batches: tqdm(batches, unit="minibatch", mininterval=interval, dynamic_ncols=True)
    )


def _device(name: str | None) -> torch.device:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"unknown device {_quote(str(name))}; write cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; write --device cpu")
    return device


def _add_model_options(command: argparse.ArgumentParser, default: str) -> None:
    """Adds what `_model` reads beside the name; `default` says which weights there are without --pretrained."""
    command.add_argument("--checkpoint", metavar="FILE", help="the weights: .safetensors, or torch with tensors only")
    command.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        help=f"the model's own weights, or random ones ({default})",
    )
    command.add_argument("--genome", help="block types, for a model of the zoo (its own)")
    command.add_argument("--num-classes", type=int, help="classes (the model's own)")
    command.add_argument("--in-chans", type=int, help="input channels (the model's own)")


def _model(options: argparse.Namespace) -> nn.Module:
    import timm

    name, pretrained = _known(options.name), options.checkpoint is None and options.pretrained is not False
    local = ":" in name
    if pretrained and not local and not timm.is_model_pretrained(name):
        weights = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        instead = f"write {weights[0]}" if weights else "write --checkpoint FILE, or --no-pretrained for random weights"
        raise ValueError(f"{name} has no pretrained weights; {instead}")
    arguments = {"num_classes": options.num_classes, "in_chans": options.in_chans, "genome": options.genome}
    if options.genome is not None and not name.startswith("blockswap_"):
        raise ValueError(f"{name} has no genome; leave out --genome, or write a model of 'blockswap list'")
    model = timm.create_model(name, pretrained=pretrained, **arguments)
    trained = model.pretrained_cfg.get("num_classes")
    if pretrained and trained is not None and trained != model.num_classes:
        raise ValueError(
            f"the pretrained weights of {name} are for {trained} classes, not {model.num_classes}; "
            "leave out --num-classes, or write --checkpoint FILE"
        )
    return model


def _known(name: str) -> str:
    """Finds the model in timm: one of timm's own goes before one of the zoo without its `blockswap_`.

    A WRN or ResNet that the zoo has not is registered.
    """
    import timm

    from ..zoo.register import register

    if ":" in name:
        return name
    for candidate in (name, f"blockswap_{name}"):
        if timm.is_model(candidate):
            return candidate
    with suppress(ValueError):
        layout = Layout.named(name)
        # A named student is more than its layout.
        if name.removeprefix("blockswap_") == layout.name.removeprefix("blockswap_"):
            register(layout)
            return layout.name
    names = timm.list_models()
    names += [each.removeprefix("blockswap_") for each in names if each.startswith("blockswap_")]
    close = difflib.get_close_matches(name, names, n=1)
    advice = f"did you mean {_quote(close[0])}?" if close else "see 'blockswap list' and timm.list_models()"
    raise ValueError(f"unknown model {_quote(name)}; {advice}")
