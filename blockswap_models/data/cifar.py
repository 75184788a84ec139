"""CIFAR-10 and CIFAR-100, kept on the device and augmented there, for training and evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torchvision.datasets import CIFAR10, CIFAR100

from ..layout import Layout
from ..messages import quote
from .errors import DataError
from .statistics import data_config

__all__ = ["CIFAR_CLASSES", "CifarLoader", "Draws", "augment", "draw", "normalize", "read_cifar"]

CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
_DATASETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_MEAN, _STD = (data_config(Layout.named("wrn40_2"))[key] for key in ("mean", "std"))


def read_cifar(root: str | Path, name: str = "cifar10", train: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads CIFAR from its folder.

    Args:
        root: The folder, as torchvision unpacks it.
        name: `cifar10` or `cifar100`.
        train: Whether to read the training images or the test images.

    Returns:
        Images, uint8 (N, 3, 32, 32), and labels (N,).

    Raises:
        DataError: There is no such dataset in the folder, or it is damaged.
    """
    if name not in _DATASETS:
        raise DataError(f"no CIFAR data set {quote(name)}; use {' or '.join(_DATASETS)}")
    dataset_class = _DATASETS[name]
    try:
        dataset = dataset_class(str(root), train=train, download=False)
    except (RuntimeError, OSError):
        raise DataError(
            f"no whole {dataset_class.__name__} in {quote(str(root))}; "
            f"use the folder that holds {dataset_class.base_folder}, as torchvision unpacks it"
        ) from None
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)


class Draws(NamedTuple):
    """What is drawn for each of N images, in the order in which it is applied.

    crops: row and column of the crop in the padded image, (N, 2).
    flips: whether the image is flipped left to right, (N,).
    centres: row and column of the centre of the square that Cutout hides, in the image that results, (N, 2).
    """

    crops: torch.Tensor
    flips: torch.Tensor
    centres: torch.Tensor


def draw(
    number: int, size: tuple[int, int], padding: int = 4, flip: bool = True, generator: torch.Generator | None = None
) -> Draws:
    """Draws the augmentation of a number of images; crops, flips and centres are uniform."""
    height, width = size
    crops = torch.randint(2 * padding + 1, (number, 2), generator=generator)
    flips = torch.randint(2, (number,), generator=generator).bool() & flip
    rows = torch.randint(height, (number,), generator=generator)
    columns = torch.randint(width, (number,), generator=generator)
    return Draws(crops, flips, torch.stack([rows, columns], dim=1))


def augment(
    images: torch.Tensor,
    draws: Draws,
    padding: int = 4,
    cutout: int = 16,
    mean: Sequence[float] | torch.Tensor = _MEAN,
    std: Sequence[float] | torch.Tensor = _STD,
) -> torch.Tensor:
    """Crops, flips and normalises images, uint8 (N, C, H, W), and hides a square of each (Cutout), as drawn.

    Images are padded with black, as torchvision's `RandomCrop(32, padding=4)` does; a hidden square has the mean
    colour, and may reach over the border, as in DeVries and Taylor's code (arXiv:1708.04552). `cutout=0` hides nothing.
    Returns float32 with the memory format channels_last.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    down, across = (torch.arange(size, device=images.device) for size in (height, width))
    rows = draws.crops[:, :1] + down
    columns = draws.crops[:, 1:] + torch.where(draws.flips[:, None], width - 1 - across, across)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    # Indices on both sides of a slice put the channels last: (N, H, W, C).
    pixels = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    normalized = normalize(pixels, mean, std)
    if cutout:
        hidden_rows, hidden_columns = (
            (centre[:, None] - cutout // 2 <= place) & (place < centre[:, None] - cutout // 2 + cutout)
            for place, centre in ((down, draws.centres[:, 0]), (across, draws.centres[:, 1]))
        )
        normalized.masked_fill_((hidden_rows[:, :, None] & hidden_columns[:, None, :])[:, None], 0)
    return normalized


def normalize(
    images: torch.Tensor, mean: Sequence[float] | torch.Tensor = _MEAN, std: Sequence[float] | torch.Tensor = _STD
) -> torch.Tensor:
    """Turns images, uint8 (N, C, H, W), into float32, normalised by mean and standard deviation."""
    shift, scale = (
        torch.as_tensor(each, dtype=torch.float32, device=images.device).view(-1, 1, 1) for each in (mean, std)
    )
    return images.float().div_(255).sub_(shift).div_(scale)


class CifarLoader:
    """Minibatches of images and labels that are kept on a device: what `read_cifar` reads, or part of it.

    Training means shuffled, augmented, and without the last minibatch unless it is full (`drop_last`). An iteration
    gives the epoch that `set_epoch` named last, as with torch's samplers: images, order and augmentation depend on
    the seed and the epoch, not on the device, the size of minibatches or the number of processes.

    The process of a `rank` takes every `world_size`-th image of the common order. So the shards
    have no image twice and miss none, and the minibatches of one step together are that of one process with
    `world_size` times the batch size. Without `drop_last` a process may have a minibatch more than another.

    Args:
        images: The images, uint8 (N, 3, H, W).
        labels: Their classes (N,).
        batch_size: Images in a minibatch.
        training: Whether images are shuffled and augmented.
        padding: Border that is added for the random crop.
        flip: True flips an image with probability 1/2; 'alternate' flips half of the images in the first epoch, and
            each image in every other epoch (arXiv:2404.00498).
        cutout: Side of the hidden square; 0 hides nothing.
        size: Side to which images are resized, after augmentation.
        drop_last: Whether a last minibatch that is not full is left out; in training it is, unless said otherwise.
        mean: Mean of the normalisation.
        std: Standard deviation of the normalisation.
        seed: Seed of order and augmentation.
        rank: Number of this process.
        world_size: Number of processes.
        device: The device that the images lie on.
        dtype: Type of the minibatches.
        channels_last: Whether minibatches are in channels_last.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        batch_size: int = 128,
        *,
        training: bool = False,
        padding: int = 4,
        flip: bool | str = True,
        cutout: int = 16,
        size: int | None = None,
        drop_last: bool | None = None,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise DataError(
                "images are uint8 (N, C, H, W) and labels (N,), "
                f"not {images.dtype} {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if batch_size < 1:
            raise DataError(f"a minibatch has at least 1 image, not {batch_size}")
        if not 0 <= rank < world_size:
            raise DataError(f"the rank of one of {world_size} processes is 0 to {world_size - 1}, not {rank}")
        self.images, self.labels = images.to(device), labels.to(device)
        self.batch_size, self.training = batch_size, training
        self.padding, self.flip, self.cutout, self.size = padding, flip, cutout, size
        self.drop_last = training if drop_last is None else drop_last
        self.mean, self.std = tuple(mean), tuple(std)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.epoch = 0
        if not len(self):
            raise DataError(
                f"{len(images)} images make no minibatch of {batch_size} for {world_size} processes; "
                "use a smaller batch_size, or drop_last=False"
            )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.images) // self.world_size // self.batch_size
        return -(-len(range(self.rank, len(self.images), self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        device = self.images.device
        # Here, so that no minibatch copies them to the device.
        mean, std = (torch.tensor(each, device=device) for each in (self.mean, self.std))
        order, draws = self._epoch()
        order = order[self.rank :: self.world_size].to(device)
        if draws is not None:
            draws = Draws(*(each.to(device) for each in draws))
        for step in range(len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            if draws is None:
                images = normalize(self.images[chosen], mean, std)
            else:
                of_chosen = Draws(*(each[chosen] for each in draws))
                images = augment(self.images[chosen], of_chosen, self.padding, self.cutout, mean, std)
            if self.size not in (None, images.shape[-1]):
                images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
            yield images.to(self.dtype).contiguous(memory_format=self.memory_format), self.labels[chosen]

    def _epoch(self) -> tuple[torch.Tensor, Draws | None]:
        """Draws the order of all images and the augmentation of each: on the CPU, so that all devices have the same."""
        number, (height, width) = len(self.images), self.images.shape[-2:]
        if not self.training:
            return torch.arange(number), None
        generator = self._generator(str(self.epoch))
        order = torch.randperm(number, generator=generator)
        draws = draw(number, (height, width), self.padding, bool(self.flip), generator)
        if self.flip == "alternate":
            first = torch.randint(2, (number,), generator=self._generator("flips")).bool()
            draws = draws._replace(flips=first ^ bool(self.epoch % 2))
        return order, draws

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"cifar/{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
