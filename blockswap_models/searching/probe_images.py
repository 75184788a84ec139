"""Minibatches for the search: 1/f noise, images of any timm or torchvision dataset, or the user's own tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import Dataset, IterableDataset

from ..data.cifar import normalize
from ..data.facts import holdout_of
from ..data.folders import DataError, dataset_text, find_dataset, names_in, open_dataset
from ..data.holdout import HoldOut
from ..data.images import ImageError, image_mode, in_mode
from ..messages import counted
from .plain_defaults import plain_defaults

__all__ = [
    "CHANNELS_FIRST",
    "ImageSpec",
    "Minibatch",
    "affordable_batches",
    "dataset_minibatch",
    "noise_minibatch",
    "tensor_minibatch",
    "user_minibatch",
]


class ImageSpec(Protocol):
    """What images are made for: a search space, or networks of any kind."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""

    @property
    def num_classes(self) -> int:
        """The number of classes of their labels."""

    @property
    def data_config(self) -> dict[str, Any]:
        """How they are normalised and cropped, as a timm cfg."""


@dataclass(frozen=True)
class Minibatch:
    """Normalised images (N, C, H, W) with labels (N,), and where they come from, as text that identifies them.

    They are one minibatch, or several of one size: `num_batches`. `about` is what the record of a search says of their
    dataset, for those who train on it.
    """

    images: torch.Tensor
    labels: torch.Tensor
    source: str
    num_batches: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The images and labels of one of the minibatches."""
        size = len(self.images) // self.num_batches
        return self.images[index * size : (index + 1) * size], self.labels[index * size : (index + 1) * size]


# A search takes so many minibatches in turn, or as many as have so many numbers in all.
_MOST_BATCHES, _MOST_NUMBERS = 16, 20_000_000
CHANNELS_FIRST = "put the channels first, as images.transpose(0, 3, 1, 2) of numpy does"
# How whoever has images in memory makes a network of more classes.
_MORE_CLASSES = "SearchSpace(…, num_classes={}) or more"


def affordable_batches(space: ImageSpec, batch_size: int) -> int:
    """How many minibatches a search takes in turn: enough to average over, few enough to travel to workers."""
    return max(1, min(_MOST_BATCHES, _MOST_NUMBERS // (batch_size * math.prod(space.input_size))))


def noise_minibatch(space: ImageSpec, batch_size: int = 32, seed: int = 0, num_batches: int = 1) -> Minibatch:
    """Makes images of 1/f noise, whose spectrum is that of natural images, with random labels."""
    with plain_defaults():
        return _noise_minibatch(space, batch_size, seed, num_batches)


def _noise_minibatch(space: ImageSpec, batch_size: int, seed: int, num_batches: int) -> Minibatch:
    if space.num_classes < 1:
        raise DataError("the network has no classes, which a score needs; use one with a head, such as num_classes=10")
    generator = torch.Generator().manual_seed(_data_seed(seed))
    channels, height, width = space.input_size
    number = num_batches * batch_size
    shape = (number, channels, height, width)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    spectrum = torch.fft.rfft2(white) / frequency
    spectrum[..., 0, 0] = 0
    pink = torch.fft.irfft2(spectrum, s=(height, width))
    images = (pink / pink.std(dim=(1, 2, 3), keepdim=True)).float()
    labels = torch.randint(space.num_classes, (number,), generator=generator)
    return Minibatch(images, labels, f"1/f noise, {_sizes(batch_size, num_batches)}", num_batches)


def dataset_minibatch(
    space: ImageSpec,
    name: str,
    root: str | Path | None = None,
    batch_size: int = 32,
    seed: int = 0,
    split: str = "train",
    num_batches: int = 1,
    holdout: HoldOut | None = None,
    fewer: bool = False,
) -> Minibatch:
    """Draws images, without augmentation, from a dataset that timm can open.

    Images of other modes than the network takes are converted: to grey for one channel, to RGB for three, to RGB and
    opacity for four. For those that cannot be read others are drawn, with a warning that names them.

    Args:
        space: The search space, which says the size of images and the number of classes; those of a folder are
            `len(classes_of(name, root))`.
        name: A timm name such as `torch/cifar10`, `hfds/…` or `wds/…`; or `folder`, for images in one folder a class;
            or such a folder itself; or `coco`, where the label of an image is the category of its largest object.
        root: The folder of a dataset with a name.
        batch_size: Images in a minibatch.
        seed: What the images that are drawn depend on.
        split: The split, in any case.
        num_batches: So many minibatches, or as many as there are images for, but at least one.
        holdout: Which images are held out for validation, for a folder without splits; none where None.
        fewer: Whether a minibatch has all images that can be read, where these are fewer than `batch_size`.

    Returns:
        The minibatches.

    Raises:
        DataError: There is no such dataset or split, or it does not fit the network.
    """
    name = str(name)
    about: dict[str, Any] = {"data": name, "data_dir": None if root is None else str(root)}
    name, root = find_dataset(name, root)
    dataset = open_dataset(name, root, split, input_img_mode=image_mode(space.input_size[0]), holdout=holdout)
    dataset.transform = _transform(space)
    images, labels, batch_size = _draw(dataset, dataset_text(name, root), batch_size, num_batches, seed, fewer)
    num_batches = len(images) // batch_size
    if holdout is not None:
        about |= {"val_share": holdout.share, "val_seed": holdout.seed}
    names = names_in(dataset)
    if names is not None and len(names) == space.num_classes:
        about["label_names"] = list(names)
    minibatch = _checked(space, images, labels, f"{name}, {_sizes(batch_size, num_batches)}", num_batches)
    return replace(minibatch, about=about)


def tensor_minibatch(space: ImageSpec, images: Any, labels: Any) -> Minibatch:
    """Takes the user's own images with their labels, all as one minibatch.

    Args:
        space: The search space, whose networks take images of its `input_size`.
        images: (N, C, H, W), tensors or numpy arrays: uint8, which are scaled and normalised as the network's cfg says,
            or floats that are normalised already.
        labels: (N,), of any type of integers.

    Returns:
        The minibatch.

    Raises:
        DataError: Images or labels do not fit the network, or the images are in another range.
    """
    images, labels = _sized(space, images, labels)
    if images.numel() > _MOST_NUMBERS and len(images) > 1:
        raise DataError(
            f"{len(images):,} images are one minibatch here, which takes too much memory; use some of them, or a "
            "torch.utils.data.TensorDataset of them, from which minibatches are drawn"
        )
    images = _normalised(space, images)
    return _checked(space, images, labels, f"tensors, {len(images)} images", advice=_MORE_CLASSES)


def user_minibatch(space: ImageSpec, data: Any, batch_size: int = 32, seed: int = 0) -> Minibatch:
    """Takes images in any form that a search does.

    Args:
        space: The search space, whose networks take images of its `input_size`.
        data: A Minibatch; a folder of images, as `dataset_minibatch` takes it, of which a fifth of each class is held
            out where it has no splits; a pair of images and labels, as
            `tensor_minibatch` takes them, which are one minibatch; a dataset of torch, of pairs of an image and a
            label, from which images are drawn; or a DataLoader, or other iterable of pairs of images and labels, whose
            first images are taken. An image of PIL is resized and normalised as the network's cfg says.
        batch_size: The number of images of a minibatch drawn from a dataset or loader.
        seed: What images are drawn by.

    Returns:
        One minibatch, or as many as a search takes in turn.

    Raises:
        DataError: The data do not fit the network, or cannot be read so.
    """
    if isinstance(data, Minibatch):
        if data.images.shape[1:] != space.input_size:
            raise DataError(_size_message(space, data.images))
        _check_labels(space, data.labels, _MORE_CLASSES)
        return data
    if isinstance(data, (str, Path)):
        number = affordable_batches(space, batch_size)
        # As training does, which measures on what is held out.
        holdout = holdout_of(str(data))
        return dataset_minibatch(space, str(data), None, batch_size, seed, num_batches=number, holdout=holdout)
    # A list of two minibatches is no pair of images and labels.
    if isinstance(data, (tuple, list)) and len(data) == 2 and not _is_minibatch(data[0]):
        return tensor_minibatch(space, *data)
    kind = type(data).__name__
    number = affordable_batches(space, batch_size) * batch_size
    if isinstance(data, Dataset):
        if isinstance(data, IterableDataset):
            items = list(islice(data, number))
            there = len(items)
        else:
            there = len(data)  # type: ignore[arg-type]  # torch's Dataset has no __len__ of its own
            number = min(number, there // batch_size * batch_size)
            chosen = np.random.default_rng(_data_seed(seed)).choice(there, number, replace=False)
            items = [data[int(index)] for index in chosen]
        pairs = [_alone(space, *_pair(item, kind)) for item in items]
        as_pictures = any(isinstance(image, Image.Image) for image, _ in items)
    elif isinstance(data, Iterable) and not isinstance(data, Mapping):
        pairs, there, as_pictures = [], 0, False
        for item in data:
            pairs.append(_sized(space, *_pair(item, kind)))
            there += len(pairs[-1][1])
            if there >= number:
                break
    else:
        raise DataError(f"data are a pair of images and labels, a dataset, a loader or a folder of images, not {kind}")
    num_batches = min(number, there) // batch_size
    if not num_batches:
        raise DataError(
            f"the {kind} has {counted(there, 'image')}" + (f"; use a batch_size of at most {there}" if there else "")
        )
    images, labels = (torch.cat(each)[: num_batches * batch_size] for each in zip(*pairs, strict=True))
    # Looked at together: one image alone may be brighter than the mean throughout.
    images = images if as_pictures else _normalised(space, images)
    return _checked(space, images, labels, f"{kind}, {_sizes(batch_size, num_batches)}", num_batches, _MORE_CLASSES)


def _is_minibatch(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and all(hasattr(each, "shape") for each in item)


def _pair(item: Any, kind: str) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(f"the {kind} gives {type(item).__name__}, not pairs of images and labels; have it give pairs")
    return item[0], item[1]


def _alone(space: ImageSpec, image: Any, label: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes tensors of one image and its label, as if they were a minibatch."""
    image = _transform(space)(image) if isinstance(image, Image.Image) else _tensor(image, "images")
    return _sized(space, image[None], _tensor(label, "labels").reshape(-1))


def _sized(space: ImageSpec, images: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes tensors of images and labels; raises DataError for those of another shape, or labels of another type."""
    images, labels = _tensor(images, "images"), _tensor(labels, "labels")
    if images.shape[1:] != space.input_size:
        raise DataError(_size_message(space, images))
    if not len(images):
        raise DataError(f"there are no images: their shape is {tuple(images.shape)}; use one or more")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"labels are whole numbers, one an image, not {_dtype(labels)}; use the numbers of the classes")
    if labels.shape != images.shape[:1]:
        raise DataError(f"labels are (N,), one an image, not {tuple(labels.shape)} for images {tuple(images.shape)}")
    return images, labels.long()


def _tensor(value: Any, what: str) -> torch.Tensor:
    try:
        # A copy: torch takes no array of numpy that runs backwards, and warns of one that must not be written to.
        return torch.as_tensor(np.array(value, order="C") if isinstance(value, np.ndarray) else value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{what} are tensors or numpy arrays of numbers, not {type(value).__name__}") from None


def _transform(space: ImageSpec) -> Callable[[Image.Image], torch.Tensor]:
    """What makes a tensor of an image of PIL, as the network's cfg says."""
    channels = space.input_size[0]
    mode = image_mode(channels)
    config = space.data_config
    names = ("mean", "std", "crop_pct", "interpolation")
    transform = create_transform(input_size=space.input_size, **{name: config[name] for name in names})

    def tensor_of(image: Image.Image) -> torch.Tensor:
        try:
            tensor: torch.Tensor = transform(in_mode(image, mode))
        except ImageError as error:
            raise DataError(f"an image of the dataset cannot be used: {error}") from None
        return tensor

    return tensor_of


def _normalised(space: ImageSpec, images: torch.Tensor) -> torch.Tensor:
    """Normalises images of uint8, and sees that others are normalised; raises DataError where they are not."""
    config = space.data_config
    mean, std = config["mean"], config["std"]
    if images.dtype == torch.uint8:
        return normalize(images, mean, std)
    if not images.is_floating_point():
        raise DataError(f"images are uint8, or floats that are normalised, not {_dtype(images)}; use uint8")
    advice = f"use uint8, which is normalised here, or (x - mean) / std of x in 0 to 1, with mean {mean} and std {std}"
    low, high = images.min().item(), images.max().item()
    if math.isnan(low):
        raise DataError(
            f"images have {counted(int(images.isnan().sum()), 'value')} that are NaN; use images without any"
        )
    # Other means than the network's, and what augmentation adds, do not reach so far.
    farthest = 4 * max(1.0, *(max(m, 1 - m) / s for m, s in zip(mean, std, strict=True)))
    if max(-low, high) > farthest:
        raise DataError(f"images of floats run from {low:g} to {high:g}, so they are not normalised; {advice}")
    # Interpolation may go a little beyond.
    if -0.1 <= low < high <= 1.1 and all(mean):
        raise DataError(f"images of floats run from {low:g} to {high:g}, scaled but not normalised; {advice}")
    return images if images.dtype in (torch.float32, torch.float64) else images.float()


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _size_message(space: ImageSpec, images: torch.Tensor) -> str:
    """Says why images are not of the size of a space, and what to use."""
    channels, height, width = space.input_size
    wanted, given = f"(N, {channels}, {height}, {width})", tuple(images.shape)
    if images.ndim != 4:
        return f"images are {wanted}, not {given}" + ("; use images[:, None] for grey ones" if images.ndim == 3 else "")
    if given[3] == channels != given[1]:
        return f"images are {wanted}, not {given}; {CHANNELS_FIRST}"
    own = {
        "in_chans": (channels, given[1]),
        "image_size": ((height, width), given[2] if given[2] == given[3] else given[2:]),
    }
    other = [f"{name}={new}" for name, (old, new) in own.items() if old not in (new, (new, new))]
    return f"images are {wanted} in this space, not {given}; use SearchSpace(…, {', '.join(other)}), or other images"


def _draw(
    dataset: Any, name: str, batch_size: int, num_batches: int, seed: int, fewer: bool
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Draws images with their labels, and says how many a minibatch has."""
    damaged = False
    if not isinstance(dataset, IterableDataset):
        there = len(dataset)
        batch_size = min(batch_size, there) if fewer else batch_size
        number = min(num_batches, there // batch_size) * batch_size
        generator = np.random.default_rng(_data_seed(seed))
        chosen = generator.choice(there, number, replace=False)
        items = [item for index in chosen if (item := dataset[int(index)]) is not None]
        if len(items) < number:
            # An item of None is an image that cannot be read.
            others = generator.permutation(np.setdiff1d(np.arange(there), chosen))
            good = (item for index in others if (item := dataset[int(index)]) is not None)
            items += islice(good, number - len(items))
            dataset.warn()
            there, damaged = min(there, len(items)), True
    else:
        items = list(islice(dataset, num_batches * batch_size))
        there = len(items)
    if fewer and there:
        batch_size = min(batch_size, there)
    del items[len(items) // batch_size * batch_size :]
    if not items:
        those = " that can be read" if damaged else ""
        advice = f"; use a batch_size= of at most {there}" if there else ""
        raise DataError(f"{name} has {counted(there, 'image')}{those}{advice}")
    return torch.stack([image for image, _ in items]), torch.tensor([int(label) for _, label in items]), batch_size


def _sizes(batch_size: int, num_batches: int) -> str:
    return f"{batch_size} images" if num_batches == 1 else f"{num_batches} minibatches of {batch_size} images"


def _checked(
    space: ImageSpec,
    images: torch.Tensor,
    labels: torch.Tensor,
    source: str,
    num_batches: int = 1,
    advice: str = "num_classes={} or more",
) -> Minibatch:
    """Makes a minibatch; raises DataError for labels beyond the network's classes, with advice on their number."""
    _check_labels(space, labels, advice)
    digest = hashlib.sha256(images.cpu().contiguous().numpy().tobytes() + labels.cpu().contiguous().numpy().tobytes())
    return Minibatch(images, labels, f"{source}, sha256 {digest.hexdigest()[:16]}", num_batches)


def _check_labels(space: ImageSpec, labels: torch.Tensor, advice: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= space.num_classes:
        raise DataError(
            f"labels run from {low} to {high}, but the network has {space.num_classes} classes; use "
            + (advice.format(high + 1) if low >= 0 else "labels from 0 on")
        )


def _data_seed(seed: int) -> int:
    """A seed for the data that shares no random numbers with the genomes or the weights."""
    return int.from_bytes(hashlib.sha256(f"data/{seed}".encode()).digest()[:6], "big")
