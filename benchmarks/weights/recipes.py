"""What each part of the short recipe is worth: complete short runs that differ in one part.

    python -m benchmarks.weights.recipes --data-dir path/to/cifar10 --out runs/recipes

Trains one network, WRN-16-1 unless `--name` says otherwise, for `--epochs` epochs of CIFAR-10 without a teacher: by the
recipe `cifar10-30` at that length, and then once for each variant, in which one part is taken out or changed. All runs
have the same seed, so the same first weights and the same order of images. Each is a complete schedule: the errors of
an unfinished one say nothing. Stopped at any moment, the same command goes on; what is finished is printed again.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.task import ClassificationTask
from torch import nn

import blockswap_models  # noqa: F401
from benchmarks.lib.images import Images, cifar_images, noise_images
from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import require_model, run_script
from benchmarks.lib.trained import finished
from blockswap_models.data.cifar import CifarLoader
from blockswap_models.machine import keep_memory
from blockswap_models.messages import counted
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


def fit(name: str, recipe: Recipe, images: Images, folder: Path, seed: int, amp: str | None) -> dict[str, Any]:
    """Trains a network by a recipe, or goes on, unless that is done; returns the summary of the run."""
    arguments = {"model": name, "amp": amp}
    if done := finished(folder, {**asdict(recipe), "seed": seed, **arguments}):
        return done
    torch.manual_seed(seed)
    model = timm.create_model(name).to(memory_format=torch.channels_last)
    return train(
        ClassificationTask(model, nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing), verbose=False),
        cifar_training_loader(*images.train, recipe, seed=seed, channels_last=True),
        CifarLoader(*images.test, 500, channels_last=True),
        recipe,
        folder,
        seed=seed,
        arguments=arguments,
        resume=(folder / "log.jsonl").exists(),
        dtype=getattr(torch, amp or "float32"),
        test_every=recipe.epochs,
    )


def main() -> None:
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
    run_script(parser, run, epochs=2, only=tuple(VARIANTS)[:2], threads=1)


def run(options: argparse.Namespace) -> None:
    if options.data_dir is None and not options.smoke:
        raise ValueError("training needs the folder of CIFAR-10; use --data-dir")
    require_model(options.name)
    torch.set_num_threads(options.threads)
    keep_memory()
    images = noise_images(128) if options.smoke else cifar_images(options.data_dir)
    print(
        f"{versions()}; {processor()}; {counted(options.threads, 'thread')}\n{options.name}, {options.epochs} epochs, "
        f"{options.amp or 'float32'}, seed {options.seed}\n\n{'variant':22}{'error, %':>9}{'seconds':>9}"
    )
    for variant in options.only:
        recipe = replace(RECIPES[BASE], epochs=options.epochs, **VARIANTS[variant])
        folder = Path(options.out) / variant.replace(" ", "-").replace(",", "").replace("'", "")
        summary = fit(options.name, recipe, images, folder, options.seed, options.amp)
        print(f"{variant:22}{summary['top1_error']:9.2f}{summary['seconds']:9.0f}", flush=True)


if __name__ == "__main__":
    main()
