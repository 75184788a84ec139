"""What a folder of images says of itself: classes, number and size of images, and their channels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from ..messages import quote
from .errors import DataError
from .folders import classes_of, find_dataset, open_dataset
from .holdout import HoldOut
from .images import ImageError, read_image
from .splits import splits_in

__all__ = ["ImageFacts", "facts_of_folder", "holdout_of", "holdout_text", "image_facts"]

# So many images, evenly spaced, are looked at for size and channels.
_LOOKED_AT = 64
_GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F", "LA")


@dataclass(frozen=True)
class ImageFacts:
    """What a folder of images says of itself.

    Attributes:
        classes: The names of the classes in order.
        images: How many images there are.
        fewest: How many images the smallest class has.
        channels: 1 where all images that were looked at are grey, else 3.
        size: The median height and width of the images that were looked at.
    """

    classes: tuple[str, ...]
    images: int
    fewest: int
    channels: int
    size: tuple[int, int]

    def suitable_size(self, own: int) -> int:
        """Says which side images should have for a network, so that none need be enlarged much.

        Args:
            own: The side that the network has by itself, in pixels.

        Returns:
            That side, or the largest multiple of 32 about as large as the images, where they are smaller.
        """
        return min(own, max(32, round(min(self.size) / 32) * 32))

    def sizes(self, own: tuple[int, int, int]) -> dict[str, int]:
        """Says what a network should be made for, so that it fits these images.

        Args:
            own: Channels, height and width of the images that the network takes by itself.

        Returns:
            `num_classes`; and `in_chans` and `image_size` where they are smaller than the network's own.
        """
        channels, height, width = own
        sizes = {"num_classes": len(self.classes)}
        if self.channels < channels:
            sizes["in_chans"] = self.channels
        if (side := self.suitable_size(height)) < height == width:
            sizes["image_size"] = side
        return sizes


def image_facts(
    name: str, root: str | Path | None = None, split: str = "train", holdout: HoldOut | None = None
) -> ImageFacts | None:
    """Reads what a folder of images says of itself; of the images some headers are read, and one of each class.

    Args:
        name: As for `find_dataset`.
        root: As for `find_dataset`.
        split: The split that is looked at.
        holdout: Which images are held out, for a folder without splits.

    Returns:
        The facts, or None where the dataset is no folder of images.

    Raises:
        DataError: There is no such folder or split, it has one class only, or no image of a class can be read.
    """
    name, folder = find_dataset(name, root)
    if name != "folder":
        return None
    classes = classes_of(name, folder, split)
    assert classes is not None
    if len(classes) < 2:
        raise DataError(f"{quote(folder)} has one class only, {quote(classes[0])}; use a folder of two classes or more")
    samples = open_dataset(name, folder, split, holdout=holdout).reader.samples
    of_classes: dict[int, list[str]] = defaultdict(list)
    for path, label in samples:
        of_classes[label].append(path)
    looks = [_look(samples[place * len(samples) // _LOOKED_AT][0]) for place in range(min(_LOOKED_AT, len(samples)))]
    if len(samples) < _LOOKED_AT:
        looks = [_look(path) for path, _ in samples]
    good = [each for each in looks if each is not None]
    if not good:
        raise DataError(f"no image of {quote(folder)} can be read, such as {quote(samples[0][0])}; use other files")
    for label, paths in of_classes.items():
        if not any(map(_can_be_read, paths)):
            raise DataError(
                f"no image of the class {quote(classes[label])} of {quote(folder)} can be read, such as "
                f"{quote(paths[0])}; use other files"
            )
    size = (round(median(height for _, height, _ in good)), round(median(width for _, _, width in good)))
    channels = 1 if all(grey for grey, _, _ in good) else 3
    return ImageFacts(classes, len(samples), min(map(len, of_classes.values())), channels, size)


def facts_of_folder(data: object) -> ImageFacts | None:
    """Reads what the folder of images says of itself that a program is given as `data`; None for other data.

    Raises:
        DataError: As `image_facts`.
    """
    return image_facts(str(data), holdout=holdout_of(str(data))) if isinstance(data, (str, Path)) else None


def _look(path: str) -> tuple[bool, int, int] | None:
    """Says whether an image is grey, and its height and width; None for one that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.mode in _GREY, image.height, image.width
    # Pillow has no error of its own for damaged files.
    except Exception:
        return None


def _can_be_read(path: str) -> bool:
    """Whether all of an image can be read: that of a truncated file has its header."""
    try:
        read_image(path, "RGB")
    except ImageError:
        return False
    return True


def holdout_of(
    name: str, root: str | Path | None = None, share: float | None = None, seed: int = 0, usual: float = 0.2
) -> HoldOut | None:
    """Says which images of a dataset are held out: of a folder without splits a share, of others none.

    Args:
        name: As for `find_dataset`.
        root: As for `find_dataset`.
        share: The share of each class, the usual one where None.
        seed: Seed of the draw.
        usual: The usual share.

    Raises:
        DataError: There is no such folder, the share is out of its range, or the dataset has splits of its own.
    """
    name, folder = find_dataset(name, root)
    if name == "folder" and not splits_in(folder):
        return HoldOut(usual if share is None else share, seed)
    if share is not None:
        raise DataError(f"{quote(folder)} has splits of its own; leave out val_share=")
    return None


def holdout_text(name: str, root: str | Path | None, holdout: HoldOut) -> str:
    """Says in one line how a folder without splits is divided."""
    name, folder = find_dataset(name, root)
    train, held = (len(open_dataset(name, folder, split, holdout=holdout)) for split in ("train", "validation"))
    return (
        f"{folder} has no folders of splits: {train:,} of its {train + held:,} images train and {held:,} are held out "
        f"for validation, {holdout.share:.0%} of each class by seed {holdout.seed}; no file is moved"
    )
