"""The training images of a dataset, augmented as a recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.data import create_loader
from torch import nn
from torch.utils.data import IterableDataset

from ..counts import require_counts
from ..data.cifar import CIFAR_CLASSES, CifarLoader, read_cifar
from ..data.folders import DataError, dataset_text, find_dataset, names_in, number_by, open_dataset
from ..data.holdout import HoldOut
from ..data.images import image_mode
from ..data.loader import ImageLoader
from ..data.shared_memory import collate_shared
from ..data.splits import known_split, splits_in
from ..data.statistics import label_names, model_data_config
from ..messages import quote
from .evaluate import SizedMinibatches, check_classes
from .recipes import Recipe

Loader = TypeVar("Loader", bound=SizedMinibatches)

__all__ = ["GrowingLoader", "cifar_training_loader", "require_splits", "training_loader"]


def training_loader(
    model: nn.Module,
    data: str,
    root: str | Path | None,
    recipe: Recipe,
    *,
    holdout: HoldOut | None = None,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    workers: int = 4,
) -> SizedMinibatches:
    """Opens the training images of a dataset.

    CIFAR at its own size is kept on the device, cropped, flipped and with Cutout; all else goes through timm's
    loader: a crop of random size, flipped at random.

    Args:
        model: The model that the images are for.
        data: As of `evaluation_loader`.
        root: As of `evaluation_loader`.
        recipe: Size of minibatches, and augmentation.
        holdout: Which images are not for training, for a folder without splits; such a folder is refused where None.
        seed: Seed of order and augmentation.
        rank: Number of this process.
        world_size: Number of processes that train together; each gets its share.
        device: The device that images go to.
        channels_last: Whether images are in channels_last.
        workers: Processes that read images.

    Returns:
        The minibatches.

    Raises:
        DataError: There is no such dataset, or it does not fit the model or the processes.
    """
    if recipe.batch_size % world_size:
        raise DataError(
            f"a batch of {recipe.batch_size} does not divide between {world_size} processes; "
            f"use batch_size={-(-recipe.batch_size // world_size) * world_size}"
        )
    recipe = replace(recipe, batch_size=recipe.batch_size // world_size)
    data, root = find_dataset(data, root)
    config = model_data_config(model)
    source, _, cifar = data.lower().partition("/")
    if source == "torch" and cifar in CIFAR_CLASSES and config["input_size"] == (3, 32, 32):
        check_classes(model, data, CIFAR_CLASSES[cifar], advice="")
        images, labels = read_cifar(root, cifar)
        images, labels = images.to(device), labels.to(device)

        return cifar_training_loader(
            images,
            labels,
            recipe,
            mean=config["mean"],
            std=config["std"],
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=device,
            channels_last=channels_last,
        )
    if recipe.flip == "alternate":
        raise DataError("every other epoch can flip only CIFAR at its own size; use flip=random")

    # Loaders of small and of whole images warn once together.
    told: set[str] = set()

    def load(size: int) -> SizedMinibatches:
        scaled = {**config, "input_size": (config["input_size"][0], size, size)}
        return _timm_loader(
            model, data, root, recipe, scaled, seed, torch.device(device), world_size, workers, told, holdout
        )

    return _growing(load, config["input_size"][-1], recipe)


def cifar_training_loader(
    images: torch.Tensor, labels: torch.Tensor, recipe: Recipe, image_size: int | None = None, **options: Any
) -> CifarLoader | GrowingLoader:
    """Makes the minibatches of a training on images of CIFAR, augmented as a recipe says.

    Args:
        images: Images of uint8, (N, channels, height, width).
        labels: Their labels, (N,).
        recipe: Size of minibatches, and augmentation.
        image_size: Side of the images that training ends with; their own where None.
        **options: Of `CifarLoader`, such as `seed` and `device`.

    Returns:
        The minibatches.

    Raises:
        DataError: Images and labels do not fit each other, or the processes.
    """

    def load(size: int | None) -> CifarLoader:
        return CifarLoader(
            images,
            labels,
            recipe.batch_size,
            training=True,
            padding=recipe.padding,
            flip="alternate" if recipe.flip == "alternate" else True,
            cutout=recipe.cutout,
            size=size,
            **options,
        )

    return _growing(load, image_size, recipe)


def _growing(load: Callable[[Any], Loader], image_size: int | None, recipe: Recipe) -> Loader | GrowingLoader:
    """Makes the loader of a size, after one of small images where the recipe begins with these."""
    whole = load(image_size)
    return GrowingLoader(load(recipe.small_size), whole, recipe.small_epochs) if recipe.small_epochs else whole


class GrowingLoader:
    """Minibatches of a loader of small images for the first epochs, and of another loader for the rest."""

    def __init__(self, small: SizedMinibatches, whole: SizedMinibatches, small_epochs: int) -> None:
        self.small, self.whole, self.small_epochs = small, whole, small_epochs
        self.loader = small

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0, of the next iteration."""
        self.loader = self.small if epoch < self.small_epochs else self.whole
        # One that draws by the epoch would draw the same in all.
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)

    @property
    def sampler(self) -> Any:
        """The sampler of the epoch's loader, if any: processes that train together seed it."""
        return getattr(self.loader, "sampler", None)

    @property
    def batch_sampler(self) -> Any:
        """The sampler of minibatches of the epoch's loader, if any."""
        return getattr(self.loader, "batch_sampler", None)

    @property
    def dataset(self) -> Any:
        """The dataset of the epoch's loader, if any: a stream defines the order of its epochs."""
        return getattr(self.loader, "dataset", None)

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self.loader)


def _timm_loader(
    model: nn.Module,
    data: str,
    root: str,
    recipe: Recipe,
    config: dict[str, Any],
    seed: int,
    device: torch.device,
    world_size: int,
    workers: int,
    told: set[str],
    holdout: HoldOut | None,
) -> SizedMinibatches:
    require_counts(0, DataError, workers=workers)
    if data == "folder":
        require_splits(root, holdout)
    dataset = open_dataset(
        data,
        root,
        "train",
        batch_size=recipe.batch_size,
        input_img_mode=image_mode(config["input_size"][0]),
        replace=True,
        holdout=holdout,
        # These are for streams, which shuffle by themselves; to all others timm gives a sampler.
        is_training=True,
        seed=seed,
    )
    names = label_names(model)
    if data == "folder" and names is not None and set(names) == set(names_in(dataset) or ()):
        # As in an evaluation. Other names are those of classes that the network is to forget.
        number_by(names, dataset, root)
    if isinstance(dataset, IterableDataset):
        _check_stream(dataset, data, world_size, workers)
    index = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    if index:
        check_classes(model, dataset_text(data, root), max(index.values()) + 1, advice="")
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=recipe.batch_size,
        is_training=True,
        scale=(recipe.crop_scale, 1.0),
        color_jitter=0.0,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=workers,
        collate_fn=collate_shared,
        distributed=world_size > 1,
        pin_memory=device.type == "cuda",
        device=device,
        # Persistent workers would carry their random numbers into the next epoch; a resumed run has new workers.
        persistent_workers=False,
    )
    if not len(loader):
        most = len(dataset) // world_size * world_size
        each = f" for each of {world_size} processes" if world_size > 1 else ""
        raise DataError(
            f"{len(dataset):,} images make no minibatch of {recipe.batch_size:,}{each}; use batch_size={most} or less"
        )
    return ImageLoader(loader, dataset, workers, told, training=True)


def require_splits(root: str | Path, holdout: HoldOut | None = None) -> None:
    """Sees that a folder of images has some to train on and others to test on.

    Args:
        root: The folder.
        holdout: What is held out of a folder without splits.

    Raises:
        DataError: It has not.
    """
    there = {known_split(folder.name) for folder in splits_in(root)}
    if not there and holdout is not None:
        return
    # A folder without splits would be used for both training and testing.
    for name, kinds in {"train": {"train"}, "val or test": {"val", "test"}}.items():
        if not there & kinds:
            raise DataError(
                f"no folder {name} in {quote(str(root))}; training wants folders train and val or test of images"
            )


def _check_stream(dataset: Any, data: str, world_size: int, workers: int) -> None:
    """Checks that a stream has an order for each epoch, and a shard for each process that reads it."""
    reader = dataset.reader
    if not hasattr(reader, "set_epoch"):
        raise DataError(f"{data} is a stream, whose images have no order to resume; use a dataset that is not")
    shards = len(getattr(getattr(reader, "split_info", None), "filenames", ()))
    readers = max(1, workers) * world_size
    if 0 < shards < readers:
        raise DataError(
            f"{data} has {shards} shards for {readers} processes that read them; use workers="
            f"{shards // world_size or 1}" + (f" and {shards} processes or fewer" if shards < world_size else "")
        )
