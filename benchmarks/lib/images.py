"""The images that benchmarks train and test on: CIFAR-10, a part of it, or noise of its shape."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.io import write_png

from blockswap_models.data.cifar import read_cifar
from blockswap_models.data.folders import DataError

__all__ = ["ALL_IMAGES", "Images", "cifar_images", "noise_images", "write_noise"]

ALL_IMAGES = 50_000


class Images(NamedTuple):
    """Images of CIFAR's shape, uint8 (N, 3, 32, 32), and labels (N,), to train and to test on."""

    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


def noise_images(number: int) -> Images:
    """Draws white noise with random labels, which needs no data."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (number, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (number,), generator=generator)
    return Images((images, labels), (images, labels))


def write_noise(folder: Path, *, classes: int, number: int, size: int) -> None:
    """Writes folders `train` and `val` of white noise, each with so many images of each class."""
    generator = torch.Generator().manual_seed(0)
    for split, label in product(("train", "val"), range(classes)):
        place = folder / split / str(label)
        place.mkdir(parents=True)
        for each in range(number):
            image = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=generator)
            write_png(image, f"{place}/{each}.png")


def cifar_images(root: str | Path, number: int | None = None) -> Images:
    """Reads CIFAR-10, or a part of it: `number` training images, evenly spaced, and the same share of the test images.

    Raises DataError.
    """
    whole = Images(read_cifar(root, "cifar10", True), read_cifar(root, "cifar10", False))
    if number is None:
        return whole
    there = len(whole.train[1])
    if not 1 <= number <= there:
        raise DataError(f"CIFAR-10 has {there:,} training images, not {number:,}; use 1 to {there} (--images)")

    def part(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = max(1, len(labels) * number // there)
        chosen = torch.arange(wanted) * len(labels) // wanted
        return images[chosen], labels[chosen]

    return Images(part(*whole.train), part(*whole.test))
