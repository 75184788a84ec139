"""The images that benchmarks train and test on: CIFAR-10, a part of it, or noise of its shape."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from blockswap_models.data.cifar import read_cifar
from blockswap_models.data.folders import DataError

__all__ = ["ALL_IMAGES", "Images", "cifar_images", "noise_images"]

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
