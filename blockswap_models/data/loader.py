"""Minibatches from timm's loader without damaged images, and errors of its processes in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from timm.data.loader import fast_collate
from torch.utils.data import Dataset, Sampler

from .errors import DataError
from .images import ImageFiles
from .shared_memory import full_memory_told, memory_told

__all__ = ["ImageLoader", "collate_good", "plain_errors"]


def collate_good(samples: list[tuple[Any, int] | None], channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes a minibatch of the images that could be read.

    Args:
        samples: Images of 8 bits with their labels; None for a damaged one.
        channels: The channels of the images.

    Returns:
        The images and the labels, as timm's `fast_collate` makes them; without any where all are damaged.
    """
    good = [sample for sample in samples if sample is not None]
    if good:
        return fast_collate(good)
    # timm takes the mean of each channel out of these too.
    return torch.zeros(0, channels, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)


def plain_errors(loader: Iterable[Any]) -> Iterator[Any]:
    """Passes on the minibatches of a loader, and its errors in one line.

    Args:
        loader: A loader of torch or timm.

    Yields:
        Its minibatches.

    Raises:
        DataError: An error in a process of the loader: its cause, without the traceback that torch makes of it.
    """
    minibatches = iter(loader)
    while True:
        try:
            minibatch = next(minibatches)
        except StopIteration:
            return
        except Exception as error:
            first, *lines = str(error.args[0] if error.args else "").strip().splitlines() or [""]
            if not (first.startswith("Caught ") and " in DataLoader worker process " in first):
                raise
            kind = first.split()[1]
            # The last line of a traceback without indentation has the error, by its full name.
            cause = next(line for line in reversed(lines) if line.partition(":")[0].rpartition(".")[2] == kind)
            message = cause.partition(": ")[2]
            if kind not in ("DataError", "ImageError"):
                message = f"cannot read the images: {kind}{message and ': '}{message}"
            raise DataError(message) from error
        yield minibatch


class ImageLoader:
    """A loader of timm's that says which images were damaged, and why its processes failed.

    Its processes mark the damaged images in memory that they share, and after each pass a warning names them. Loaders
    for training that share one set `told` warn once altogether; others warn of images that they have not named before.
    """

    def __init__(
        self, loader: Any, images: Dataset, workers: int, told: set[str] | None = None, training: bool = False
    ) -> None:
        self.loader, self.images = loader, images
        self.told, self.training = set() if told is None else told, training
        if workers and isinstance(images, ImageFiles):
            with full_memory_told():
                images.damaged.share_memory_()

    @property
    def dataset(self) -> Dataset:
        """The dataset that timm's loader reads."""
        return self.loader.dataset

    @property
    def sampler(self) -> Sampler:
        """What gives the order of the images."""
        return self.loader.sampler

    @property
    def batch_sampler(self) -> Any:
        """What gives the images of each minibatch."""
        return self.loader.batch_sampler

    @property
    def damaged(self) -> tuple[str, ...]:
        """The names of the damaged files among those that were read."""
        return self.images.damage() if isinstance(self.images, ImageFiles) else ()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in plain_errors(memory_told(self.loader)):
            if len(labels):
                yield images, labels
        new = set(self.damaged) - self.told
        if isinstance(self.images, ImageFiles) and new and not (self.training and self.told):
            self.told |= new
            self.images.warn()
