"""Minibatches for the search: 1/f noise, images of any timm or torchvision dataset, or the user's own tensors."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch.utils.data import IterableDataset

from ..data.folders import IMAGE_MODES, DataError, find_dataset, open_dataset
from ..data.statistics import data_config
from .space import SearchSpace

__all__ = [
    "Minibatch",
    "affordable_parts",
    "dataset_minibatch",
    "noise_minibatch",
    "tensor_minibatch",
]


@dataclass(frozen=True)
class Minibatch:
    """Normalised images (N, C, H, W) with labels (N,), and where they come from, as text that identifies them.

    They are one minibatch, or several of one size: `parts`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    source: str
    parts: int = 1

    def part(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The images and labels of one of the minibatches."""
        size = len(self.images) // self.parts
        return self.images[index * size : (index + 1) * size], self.labels[index * size : (index + 1) * size]


# A search takes so many minibatches in turn, or as many as have so many numbers in all.
_MOST_PARTS, _MOST_NUMBERS = 16, 20_000_000


def affordable_parts(space: SearchSpace, batch_size: int) -> int:
    """How many minibatches a search takes in turn: enough to average over, few enough to travel to workers."""
    return max(1, min(_MOST_PARTS, _MOST_NUMBERS // (batch_size * math.prod(space.input_size))))


def noise_minibatch(space: SearchSpace, batch_size: int = 32, seed: int = 0, parts: int = 1) -> Minibatch:
    """Makes images of 1/f noise, whose spectrum is that of natural images, with random labels."""
    generator = torch.Generator().manual_seed(_data_seed(seed))
    channels, height, width = space.input_size
    number = parts * batch_size
    shape = (number, channels, height, width)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    spectrum = torch.fft.rfft2(white) / frequency
    spectrum[..., 0, 0] = 0
    pink = torch.fft.irfft2(spectrum, s=(height, width))
    images = (pink / pink.std(dim=(1, 2, 3), keepdim=True)).float()
    labels = torch.randint(space.num_classes, (number,), generator=generator)
    return Minibatch(images, labels, f"1/f noise, {_sizes(batch_size, parts)}", parts)


def dataset_minibatch(
    space: SearchSpace,
    name: str,
    root: str | Path | None = None,
    batch_size: int = 32,
    seed: int = 0,
    split: str = "train",
    parts: int = 1,
) -> Minibatch:
    """Draws images, without augmentation, from a dataset that timm can open; raises DataError.

    They are `parts` minibatches, or as many as the dataset has images for, but at least one. Images of other modes than
    the network takes are converted: to grey for one channel, to RGB for three, to RGB and opacity for four.
    `name` is a timm name such as `torch/cifar10`, `hfds/…` or `wds/…`, with its folder in `root`; or `folder`, for
    images in one folder a class in `root`; or such a folder itself; or `coco`, with its folder in `root`, where the
    label of an image is the category of its largest object.
    """
    name, root = find_dataset(name, root)
    channels = space.input_size[0]
    if channels not in IMAGE_MODES:
        raise DataError(
            f"images in files have 1, 3 or 4 channels, but the network takes {channels}; in Python, hand tensors to "
            "search(data=(images, labels))"
        )
    mode = IMAGE_MODES[channels]
    dataset = open_dataset(name, root, split, input_img_mode=mode)
    config = data_config(space.layout, channels)
    transform = create_transform(
        input_size=space.input_size,
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
    )
    # The datasets of torchvision have modes of their own.
    dataset.transform = lambda image: transform(image.convert(mode))
    images, labels = _draw(dataset, name, batch_size, parts, seed)
    parts = len(images) // batch_size
    return _checked(space, images, labels, f"{name}, {_sizes(batch_size, parts)}", parts)


def tensor_minibatch(space: SearchSpace, images: torch.Tensor, labels: torch.Tensor) -> Minibatch:
    """Takes images (N, C, H, W), normalised, with labels (N,); raises DataError where they do not fit the network."""
    if (
        images.ndim != 4
        or images.shape[1] != space.input_size[0]
        or labels.shape != images.shape[:1]
        or not len(labels)
    ):
        raise DataError(
            f"images are (N, {space.input_size[0]}, H, W) and labels (N,), "
            f"not {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    return _checked(space, images.detach(), labels.detach(), f"tensors, {len(images)} images")


def _draw(dataset: Any, name: str, batch_size: int, parts: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(dataset, IterableDataset):
        there = len(dataset)
        number = min(parts, there // batch_size) * batch_size
        chosen = np.random.default_rng(_data_seed(seed)).choice(there, number, replace=False)
        items = [dataset[int(index)] for index in chosen]
    else:
        items = list(islice(dataset, parts * batch_size))
        there = len(items)
        del items[there // batch_size * batch_size :]
    if not items:
        raise DataError(f"{name} has {there} images; use a batch_size= of at most {there}")
    return torch.stack([image for image, _ in items]), torch.tensor([int(label) for _, label in items])


def _sizes(batch_size: int, parts: int) -> str:
    return f"{batch_size} images" if parts == 1 else f"{parts} minibatches of {batch_size} images"


def _checked(space: SearchSpace, images: torch.Tensor, labels: torch.Tensor, source: str, parts: int = 1) -> Minibatch:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= space.num_classes:
        raise DataError(
            f"labels run from {low} to {high}, but the network has {space.num_classes} classes; "
            f"use num_classes={high + 1} or more"
        )
    digest = hashlib.sha256(images.cpu().contiguous().numpy().tobytes() + labels.cpu().contiguous().numpy().tobytes())
    return Minibatch(images, labels, f"{source}, sha256 {digest.hexdigest()[:16]}", parts)


def _data_seed(seed: int) -> int:
    """A seed for the data that shares no random numbers with the genomes or the weights."""
    return int.from_bytes(hashlib.sha256(f"data/{seed}".encode()).digest()[:6], "big")
