"""Image files: which can be read, how they are read, and a dataset that finds the damaged ones."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import Dataset
from tqdm import tqdm

from ..messages import quote
from .errors import DataError

__all__ = [
    "ImageError",
    "ImageFiles",
    "InMode",
    "fit_shape",
    "image_extensions",
    "image_mode",
    "in_mode",
    "read_image",
    "walk_images",
]

_logger = logging.getLogger(__name__)

# Pillow's mode for images of each number of channels.
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image_mode(channels: int) -> str:
    """Returns Pillow's mode in which images are read for a network.

    Args:
        channels: The channels that the network takes.

    Raises:
        DataError: Image files do not have this number of channels.
    """
    if channels not in IMAGE_MODES:
        raise DataError(
            f"images in files have 1, 3 or 4 channels, but the network takes {channels}; in Python, use tensors: "
            "search(data=(images, labels)), or a loader of your own"
        )
    return IMAGE_MODES[channels]


class InMode(Dataset):
    """A dataset of torchvision whose images are converted to another mode of Pillow."""

    def __init__(self, dataset: Any, mode: str) -> None:
        self.dataset, self.mode = dataset, mode
        self.transform: Any = None
        self.class_to_idx = getattr(dataset, "class_to_idx", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = self.dataset[index]
        image = in_mode(image, self.mode)
        return image if self.transform is None else self.transform(image), label


# What Pillow knows by name, but does not decode without other programs.
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
# If this many images in a row are damaged, something other than the images is wrong.
_MOST_IN_A_ROW = 100
# An image that is more times as long as wide is cut; one with a shorter side is enlarged for random crops.
_LONGEST, _LEAST_TO_CROP = 64, 4


class ImageError(OSError):
    """An image file that cannot be read; the message says why, without its name."""


def image_extensions() -> tuple[str, ...]:
    """Lists the extensions of the image files that Pillow decodes.

    Returns:
        The extensions in lower case, each with its dot.
    """
    formats = Image.registered_extensions()
    return tuple(end for end, kind in formats.items() if kind in Image.OPEN and kind not in _NOT_DECODED)


def walk_images(folder: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks a folder of images, without what is hidden.

    Args:
        folder: The folder. Links in it are followed, but not to a folder that they lie in.

    Yields:
        The path of a folder, the names of the folders in it, and those of its images, as `os.walk` does.

    Raises:
        DataError: A folder cannot be read; its images would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read the folder {quote(str(error.filename))}: {error.strerror or error}") from None

    extensions = image_extensions()
    for path, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [each for each in folders if not each.startswith(".") and not _leads_back(folder, path, each)]
        yield path, folders, [each for each in files if not each.startswith(".") and each.lower().endswith(extensions)]


def _leads_back(folder: str | Path, path: str, name: str) -> bool:
    """Whether a folder is a link to one on the way from `folder` to it, which a walk would find again without end."""
    place = os.path.join(path, name)
    if not os.path.islink(place):
        return False
    target = os.path.realpath(place)
    way = itertools.takewhile(lambda each: each != Path(folder).parent, (Path(path), *Path(path).parents))
    return any(each.resolve().is_relative_to(target) for each in way)


def fit_shape(image: Image.Image, least: int = 1) -> Image.Image:
    """Makes an image fit for timm's transforms, which most images are.

    Args:
        image: The image.
        least: The least side in pixels: a random crop of an image of a pixel or two can have none, and timm makes a
            black image of it.

    Returns:
        The image; the middle of one that is over 64 times as long as wide, since resizing its shorter side would take
        gigabytes; enlarged without a new colour where a side is too short.
    """
    short, long = sorted(image.size)
    if long > _LONGEST * short:
        width, height = (min(side, _LONGEST * short) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    if short < least:
        factor = -(-least // short)
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    return image


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts an image to 8 bits a channel.

    Grey images of 16 bits are scaled; Pillow's `convert` would clip them at 255.

    Args:
        image: The image.
        mode: Pillow's mode: `L`, `RGB` or `RGBA`.

    Returns:
        The image, in that mode.

    Raises:
        ImageError: Its values have no known range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise ImageError("its values have 32 bits and no known range; use 8 or 16 bits")
    return image.convert(mode)


def read_image(file: IO[bytes] | str, mode: str) -> Image.Image:
    """Reads an image with 8 bits a channel, as `in_mode` makes it.

    Args:
        file: The open file, or its path.
        mode: Pillow's mode: `L`, `RGB` or `RGBA`.

    Returns:
        The image.

    Raises:
        ImageError: The file is damaged, or no image.
    """
    try:
        with Image.open(file) as image:
            return in_mode(image, mode)
    except (ImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("it is no image that Pillow knows") from None
    # Pillow has no error of its own for damaged files: OSError, SyntaxError, struct.error and more are seen.
    except Exception as error:
        # What the system says of a file it says with the file's name.
        said = getattr(error, "strerror", None) or str(error)
        raise ImageError((said.splitlines() or [type(error).__name__])[0]) from error


class ImageFiles(ImageDataset):
    """timm's dataset of image files, which never replaces a damaged image silently.

    timm reads the next image in place of one that it cannot read, also in evaluation, and fails at some kinds of
    damage. Here the item of a damaged image is None or, with `replace` (for training), the next good image.
    `damaged` has a flag for each image, which processes of a loader share after `damaged.share_memory_()`.
    """

    def __init__(self, root: str, reader: Reader, input_img_mode: str = "RGB", replace: bool = False) -> None:
        super().__init__(root, reader=reader, input_img_mode=input_img_mode)
        self.replace = replace
        self.damaged = torch.zeros(len(self), dtype=torch.bool)

    def __getitem__(self, index: int) -> tuple[Any, int] | None:
        if not 0 <= index < len(self):
            raise IndexError(index)
        for place in range(index, index + _MOST_IN_A_ROW):
            place %= len(self)
            try:
                image, label = self._load(place)
            except ImageError as error:
                self.damaged[place] = True
                reason = error
                if self.replace:
                    continue
                return None
            try:
                return image if self.transform is None else self.transform(image), label
            except Exception as error:
                raise DataError(f"{quote(self._name(place))}: {error}") from error
        raise DataError(
            f"{_MOST_IN_A_ROW} images in a row cannot be read, from {quote(self._name(index))} on: {reason}"
        )

    def listed(self) -> list[tuple[str, int]] | None:
        """Lists the files by their paths in the folder, with their labels, as they are numbered.

        Returns:
            The files; None of a dataset that is no folder of them.
        """
        if not isinstance(self.reader, ReaderImageFolder):
            return None
        start = len(os.path.join(self.reader.root, ""))
        return [(path[start:], label) for path, label in self.reader.samples]

    def damage(self) -> tuple[str, ...]:
        """Lists the damaged images among those that were read.

        Returns:
            The names of their files.
        """
        return tuple(self._name(int(index)) for index in self.damaged.nonzero())

    def warn(self) -> None:
        """Logs one warning that names the damaged images among those that were read."""
        indices, names = self.damaged.nonzero().flatten().tolist(), self.damage()
        if not names:
            return
        told = [quote(name) for name in names[:3]] + ["…"] * (len(names) > 3)
        try:
            self._load(indices[0])
        except ImageError as error:
            told[0] += f" ({error})"
        done = "read others in place of" if self.replace else "left out"
        # Not in the middle of a progress bar.
        with tqdm.external_write_mode(file=sys.stderr):
            _logger.warning(
                f"{done} {len(names):,} image{'s'[: len(names) > 1]} that cannot be read: {', '.join(told)}"
            )

    def _load(self, index: int) -> tuple[Image.Image, int]:
        try:
            file, label, *_ = self.reader[index]
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from error
        with file:
            image = fit_shape(read_image(file, self.input_img_mode), _LEAST_TO_CROP if self.replace else 1)
        return image, -1 if label is None else label

    def _name(self, index: int) -> str:
        # Not every image of a dataset of the Hugging Face Hub has a file of its own.
        return self.reader.filename(index, absolute=True) or f"image {index}"
