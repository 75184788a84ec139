"""What each part of the short recipe is worth: complete short runs that differ in one part.

    python -m benchmarks.weights.recipes --data-dir path/to/cifar10 --out runs/recipes

Trains one network, WRN-16-1 unless `--name` says otherwise, for `--epochs` epochs of CIFAR-10 without a teacher: by the
recipe `cifar10-30` at that length, and then once for each variant, in which one part is taken out or changed. All runs
have the same seed, so the same first weights and the same order of images. Each is a complete schedule: the errors of
an unfinished one say nothing. Stopped at any moment, the same command goes on; what is finished is printed again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.task import ClassificationTask
from torch import nn

import blockswap_models  # noqa: F401
from benchmarks.lib.report import processor, versions
from blockswap_models.data.cifar import CifarLoader, read_cifar
from blockswap_models.machine import keep_memory
from blockswap_models.messages import counted
from blockswap_models.searching.probe_images import noise_minibatch
from blockswap_models.searching.space import SearchSpace
from blockswap_models.training.loaders import cifar_training_loader
from blockswap_models.training.loop import train
from blockswap_models.training.recipes import RECIPES, Recipe

BASE = "cifar10-30"
# What is changed, by name; the first changes nothing.
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "lr 0.05": {"lr": 0.05},
    "lr 0.2": {"lr": 0.2},
    "batch 32, lr 0.05": {"batch_size": 32, "lr": 0.05},
    "batch 128, lr 0.2": {"batch_size": 128, "lr": 0.2},
    "weight decay 0.001": {"weight_decay": 1e-3},
    "weight decay 0.00025": {"weight_decay": 2.5e-4},
    "random flips": {"flip": "random"},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "Cutout 8": {"cutout": 8},
    "all decays": {"decay_norm": True},
    "plain momentum": {"nesterov": False},
    "cosine": {"schedule": "cosine"},
    "warm-up 0.2": {"warmup": 0.2},
    "average of 2 epochs": {"average_epochs": 2},
    "whole images": {"small_size": 0},
    "the paper's": {
        **{name: getattr(RECIPES["cifar10"], name) for name in ("batch_size", "lr", "nesterov", "decay_norm")},
        **{"schedule": "cosine", "flip": "random", "cutout": 16, "small_size": 0},
    },
}


def run(
    name: str, recipe: Recipe, data: tuple[torch.Tensor, ...], folder: Path, seed: int, amp: str | None
) -> dict[str, Any]:
    """Trains a network by a recipe, or goes on, and returns the summary of the run."""
    if (folder / "summary.json").exists():
        return json.loads((folder / "summary.json").read_text())
    images, labels, test_images, test_labels = data

    torch.manual_seed(seed)
    model = timm.create_model(name).to(memory_format=torch.channels_last)
    return train(
        ClassificationTask(model, nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing), verbose=False),
        cifar_training_loader(images, labels, recipe, seed=seed, channels_last=True),
        CifarLoader(test_images, test_labels, 500, channels_last=True),
        recipe,
        folder,
        seed=seed,
        arguments={"model": name, "amp": amp},
        resume=(folder / "log.jsonl").exists(),
        dtype=getattr(torch, amp or "float32"),
        test_every=recipe.epochs,
    )


def main() -> None:
    """Reads the options, trains, and prints a line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="the folder of CIFAR-10")
    parser.add_argument("--out", default="runs/recipes", help="the folder of the runs (%(default)s)")
    parser.add_argument("--name", default="blockswap_wrn16_1", help="the network (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each run (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", choices=["bfloat16"], help="precision of autocast (float32)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--smoke", action="store_true", help="two variants on noise in the place of CIFAR-10")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    if options.smoke:
        minibatch = noise_minibatch(SearchSpace("wrn16_1"), 128, options.seed)
        pixels = (minibatch.images * 50 + 128).clamp(0, 255).byte()
        data: tuple[torch.Tensor, ...] = (pixels, minibatch.labels) * 2
        options.epochs, options.only, options.out = 2, tuple(VARIANTS)[:2], tempfile.mkdtemp()
    else:
        data = (*read_cifar(options.data_dir), *read_cifar(options.data_dir, train=False))
    print(
        f"{versions()}; {processor()}; {counted(options.threads, 'thread')}\n{options.name}, {options.epochs} epochs, "
        f"{options.amp or 'float32'}, seed {options.seed}\n\n{'variant':22}{'error, %':>9}{'seconds':>9}"
    )
    for variant in options.only:
        recipe = replace(RECIPES[BASE], epochs=options.epochs, **VARIANTS[variant])
        folder = Path(options.out) / variant.replace(" ", "-").replace(",", "").replace("'", "")
        summary = run(options.name, recipe, data, folder, options.seed, options.amp)
        print(f"{variant:22}{summary['top1_error']:9.2f}{summary['seconds']:9.0f}", flush=True)


if __name__ == "__main__":
    main()
