"""What do weights of one data set gain on another? Fine-tuning against random weights, at the same length.

    python -m benchmarks.weights.finetune --data path/to/imagenet_284 --out runs/finetune
    python -m benchmarks.weights.finetune --cifar path/to/cifar10 --name blockswap_resnet34_3m --size 64 \\
        --images 200 --test-images 200 --epochs 10 --batch-size 50 --out runs/finetune_cifar

Takes the first ten classes of a folder that have enough images, at the size of the network: a few images of each to
train on and others of the same classes to measure; or those of CIFAR-10, measured on test images. A network is trained
so many epochs from its pretrained weights, by the recipe `finetune`; from these with the stem and the first stages
frozen; and from random weights, by the same recipe without `layer_decay`, at two learning rates. All have a new
classifier and the same images in the same order. `--name` takes any network that has weights. Stopped at any moment,
the same command goes on; what is finished is printed again.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.task import ClassificationTask
from torch import nn

import blockswap_models  # noqa: F401
from benchmarks.lib.images import Images, cifar_images, noise_images
from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import require_model, run_script
from benchmarks.lib.trained import finished
from blockswap_models.data.cifar import CifarLoader
from blockswap_models.data.folders import DataError
from blockswap_models.training.loaders import cifar_training_loader
from blockswap_models.training.loop import train
from blockswap_models.training.recipes import RECIPES, Recipe

# What is changed in the recipe, by the name of the run, and whether the run starts from the pretrained weights.
RUNS: dict[str, tuple[bool, dict[str, Any]]] = {
    "pretrained": (True, {}),
    "pretrained, 2 stages frozen": (True, {"freeze": "2"}),
    "random, lr 0.1": (False, {"layer_decay": None, "lr": 0.1}),
    "random": (False, {"layer_decay": None}),
}
Labelled = tuple[torch.Tensor, torch.Tensor]


def classes_of(folder: Path, classes: int, number: int) -> list[list[Path]]:
    """Lists the images of the first classes of a folder that have as many as it takes; raises DataError."""
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}; use a folder whose folder 'train' has one folder of images a class (--data)"
        )
    every = [sorted(each.iterdir()) for each in sorted(folder.iterdir()) if each.is_dir()]
    enough = [files for files in every if len(files) >= number][:classes]
    if len(enough) < classes:
        raise DataError(f"{folder} has {len(enough)} classes with {number} images or more; use fewer images or classes")
    return enough


def read(classes: list[list[Path]], first: int, number: int, size: int) -> Labelled:
    """Reads `number` images, from the `first` on, of each of so many classes, resized to squares of a size."""
    images, labels = [], []
    for label, files in enumerate(classes):
        for path in files[first : first + number]:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def choose(images: torch.Tensor, labels: torch.Tensor, classes: int, number: int, size: int) -> Labelled:
    """Chooses the first images of each of the first classes, and resizes them to squares of a size."""
    chosen = torch.cat([(labels == label).nonzero()[:number, 0] for label in range(classes)])
    small = images[chosen].float()
    resized = F.interpolate(small, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)
    return resized.round().byte(), labels[chosen]


def images_of(options: argparse.Namespace) -> Images:
    """Reads the images to train on, and those to measure."""
    if options.smoke:
        return noise_images(options.batch_size)
    if options.cifar is not None:
        cifar = cifar_images(options.cifar)
        there = int(cifar.train[1].max()) + 1
        if options.classes > there:
            raise DataError(f"CIFAR-10 has {there} classes, not {options.classes} (--classes)")
        return Images(
            choose(*cifar.train, options.classes, options.images, options.size),
            choose(*cifar.test, options.classes, options.test_images, options.size),
        )
    if options.data is None:
        raise DataError("no images; use --data FOLDER or --cifar FOLDER")
    classes = classes_of(options.data / "train", options.classes, options.images + options.test_images)
    return Images(
        read(classes, 0, options.images, options.size),
        read(classes, options.images, options.test_images, options.size),
    )


def fit(options: argparse.Namespace, pretrained: bool, recipe: Recipe, images: Images, folder: Path) -> dict[str, Any]:
    """Trains a network, or goes on, unless that is done; returns the summary of the run."""
    arguments = {
        "model": options.name,
        "pretrained": pretrained,
        # Those of a name change from one version of the package to the next.
        "weights": timm.models.get_pretrained_cfg(options.name).tag if pretrained else None,
        "data": str(options.data) if options.cifar is None else "torch/cifar10",
        "classes": options.classes,
        "images_a_class": options.images,
        "test_images_a_class": options.test_images,
        "image_size": options.size,
    }
    if done := finished(folder, {**asdict(recipe), "seed": options.seed, **arguments}):
        return done
    torch.manual_seed(options.seed)
    model = timm.create_model(options.name, pretrained=pretrained, num_classes=options.classes)
    # Other classes, though perhaps as many.
    model.reset_classifier(options.classes)
    model = model.to(memory_format=torch.channels_last)
    cfg = model.pretrained_cfg
    same = {"mean": cfg["mean"], "std": cfg["std"], "channels_last": True}
    cropped = replace(recipe, padding=options.size // 8)
    loader = cifar_training_loader(*images.train, cropped, seed=options.seed, **same)
    return train(
        ClassificationTask(model, nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing), verbose=False),
        loader,
        CifarLoader(*images.test, 100, **same),
        recipe,
        folder,
        seed=options.seed,
        arguments=arguments,
        resume=(folder / "log.jsonl").exists(),
        test_every=recipe.epochs,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--data", type=Path, help="a folder whose folder 'train' has one folder of images a class")
    places.add_argument("--cifar", metavar="FOLDER", help="the folder of CIFAR-10, in its place")
    parser.add_argument("--out", default="runs/finetune", help="the folder of the runs (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=tuple(RUNS), default=tuple(RUNS), metavar="RUN")
    parser.add_argument("--name", default="blockswap_wrn40_2_404k", help="the network (%(default)s)")
    parser.add_argument("--classes", type=int, default=10, help="classes, the first of the folder (%(default)s)")
    parser.add_argument("--images", type=int, default=20, help="images a class to train on (%(default)s)")
    parser.add_argument("--test-images", type=int, default=30, help="images a class to measure (%(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each run (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=20, help="images a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="one step on noise, of a small network of random weights")
    run_script(parser, run, name="blockswap_wrn16_1", only=["random"], classes=10, epochs=1, batch_size=8, threads=1)


def run(options: argparse.Namespace) -> None:
    for name in ("classes", "images", "test_images", "size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1")
    weights = any(RUNS[name][0] for name in options.only)
    require_model(options.name, weights)
    torch.set_num_threads(options.threads)
    images = images_of(options)
    tag = timm.models.get_pretrained_cfg(options.name).tag if weights else ""
    network = ".".join(filter(None, (options.name.partition(".")[0], tag)))
    print(
        f"{versions()}, {processor()}, {options.threads} thread\n{network}: {options.classes} classes, "
        f"{len(images.train[1])} images to train on and {len(images.test[1])} others, {options.size} px, "
        f"{options.epochs} epochs, seed {options.seed}\n\n{'weights':28}{'error, %':>9}{'seconds':>9}"
    )
    for name in options.only:
        pretrained, changes = RUNS[name]
        recipe = replace(RECIPES["finetune"], epochs=options.epochs, batch_size=options.batch_size, **changes)
        folder = Path(options.out) / name.replace(" ", "-").replace(",", "")
        summary = fit(options, pretrained, recipe, images, folder)
        print(f"{name:28}{summary['top1_error']:9.2f}{summary['seconds']:9.0f}", flush=True)


if __name__ == "__main__":
    main()
