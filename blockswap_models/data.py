"""Minibatches for the search: 1/f noise, images of any timm or torchvision dataset, or the user's own tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset, create_transform

from .genome import _quote
from .space import SearchSpace
from .zoo import data_config

__all__ = ["DataError", "Minibatch", "dataset_minibatch", "noise_minibatch", "tensor_minibatch"]


class DataError(ValueError):
    """Data that cannot be read or does not fit the network: says what is wrong and what to write."""


@dataclass(frozen=True)
class Minibatch:
    """Normalised images (N, C, H, W) with labels (N,), and where they come from, as text that identifies them."""

    images: torch.Tensor
    labels: torch.Tensor
    source: str


def noise_minibatch(space: SearchSpace, batch_size: int = 32, seed: int = 0) -> Minibatch:
    """Makes images of 1/f noise, whose spectrum is that of natural images, with random labels."""
    generator = torch.Generator().manual_seed(_data_seed(seed))
    channels, height, width = space.input_size
    shape = (batch_size, channels, height, width)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    spectrum = torch.fft.rfft2(white) / frequency
    spectrum[..., 0, 0] = 0
    pink = torch.fft.irfft2(spectrum, s=(height, width))
    images = (pink / pink.std(dim=(1, 2, 3), keepdim=True)).float()
    labels = torch.randint(space.num_classes, (batch_size,), generator=generator)
    return Minibatch(images, labels, f"1/f noise, {batch_size} images")


def dataset_minibatch(
    space: SearchSpace,
    name: str,
    root: str | Path | None = None,
    batch_size: int = 32,
    seed: int = 0,
    split: str = "train",
) -> Minibatch:
    """Draws images, without augmentation, from a dataset that timm can open; raises DataError.

    `name` is a timm name such as `torch/cifar10`, `hfds/…` or `wds/…`, with its folder in `root`; or `folder`, for
    images in one folder a class in `root`; or such a folder itself.
    """
    if root is None and Path(name).is_dir():
        name, root = "folder", name
    if root is None:
        raise DataError(
            f"no folder {_quote(name)}; write a folder of images, or torch/cifar10 and its folder (--data-dir)"
        )
    if not Path(root).is_dir():
        raise DataError(f"no data folder {_quote(str(root))}; write the folder that holds {name} (--data-dir)")
    try:
        dataset = create_dataset("" if name == "folder" else name, root=str(root), split=split, download=False)
    except (RuntimeError, ValueError, AssertionError, ImportError, OSError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"no dataset {name} in {_quote(str(root))}: {reason}") from None
    config = data_config(space.layout)
    dataset.transform = create_transform(
        input_size=space.input_size,
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
    )
    images, labels = _draw(dataset, name, batch_size, seed)
    if images.shape[1] != space.input_size[0]:
        raise DataError(f"{name} has images of {images.shape[1]} channels, but the network takes {space.input_size[0]}")
    return _checked(space, images, labels, f"{name}, {batch_size} images")


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


def _draw(dataset: Any, name: str, number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    if hasattr(dataset, "__getitem__"):
        if len(dataset) < number:
            raise DataError(
                f"{name} has {len(dataset)} images; write a batch size of at most {len(dataset)} (--batch-size)"
            )
        chosen = np.random.default_rng(_data_seed(seed)).choice(len(dataset), number, replace=False)
        items = [dataset[int(index)] for index in chosen]
    else:
        items = list(islice(dataset, number))
        if len(items) < number:
            raise DataError(
                f"{name} has {len(items)} images; write a batch size of at most {len(items)} (--batch-size)"
            )
    return torch.stack([image for image, _ in items]), torch.tensor([int(label) for _, label in items])


def _checked(space: SearchSpace, images: torch.Tensor, labels: torch.Tensor, source: str) -> Minibatch:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= space.num_classes:
        raise DataError(
            f"labels run from {low} to {high}, but the network has {space.num_classes} classes; "
            f"write --num-classes {high + 1} or more"
        )
    digest = hashlib.sha256(images.cpu().contiguous().numpy().tobytes() + labels.cpu().contiguous().numpy().tobytes())
    return Minibatch(images, labels, f"{source}, sha256 {digest.hexdigest()[:16]}")


def _data_seed(seed: int) -> int:
    """A seed for the data that shares no random numbers with the genomes or the weights."""
    return int.from_bytes(hashlib.sha256(f"data/{seed}".encode()).digest()[:6], "big")
