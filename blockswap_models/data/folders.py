"""Finds and opens datasets: folders of images, and what timm and torchvision can open."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_dataset
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key

from ..messages import quote
from .coco import CocoLabels
from .errors import DataError
from .holdout import HoldOut
from .images import ImageFiles, InMode, image_extensions, walk_images
from .splits import find_split, known_split, splits_in

__all__ = [
    "DataError",
    "classes_of",
    "dataset_text",
    "find_dataset",
    "is_dataset",
    "names_in",
    "names_of",
    "number_by",
    "open_dataset",
    "plain_name",
    "require_outside",
]

# Datasets of torchvision that have these two splits; timm takes any name but train's for the second.
_TRAIN_AND_TEST = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")

# Where timm finds datasets by name.
_SOURCES = ("torch", "hfds", "hfids", "tfds", "wds")
# Names of a folder of images. torchvision's reader has other rules than this one, and is not used.
_FOLDER = ("folder", "torch/folder", "torch/image_folder")


def find_dataset(name: str, root: str | Path | None) -> tuple[str, str]:
    """Finds which dataset is meant, and the folder that holds it.

    Args:
        name: A name of timm's, `coco`, `folder`, or a folder itself.
        root: The folder that holds the dataset, unless the name is a folder.

    Returns:
        The name of the dataset and its folder.

    Raises:
        DataError: There is no such folder, or no such dataset.
    """
    if root is None and Path(name).is_dir():
        # COCO does not have one folder per class.
        name, root = "coco" if any(Path(name).glob("annotations/instances_*2017.json")) else "folder", name
    if root is None and (name.lower() == "coco" or name.lower().partition("/")[0] in _SOURCES):
        raise DataError(f"{name} needs the folder that holds it (root=)")
    if root is None:
        raise DataError(f"no folder {quote(name)}; use a folder of images, or torch/cifar10 and its folder (root=)")
    if not is_dataset(name):
        # timm would read any other name as a folder without splits: the images of training would be those of testing.
        known = ", ".join(f"{each}/…" for each in _SOURCES)
        raise DataError(f"unknown dataset {quote(name)}; use folder, coco, {known}, or a folder without root=")
    if not Path(root).is_dir():
        raise DataError(f"no data folder {quote(str(root))}; use the one in which {name} is (root=)")
    return "folder" if name.lower() in _FOLDER else name, str(root)


def is_dataset(name: str) -> bool:
    """Whether a name is that of a dataset, or of a kind of them, and not of a folder of images."""
    source, _, inner = name.lower().partition("/")
    return name.lower() in (*_FOLDER, "coco") or (source in _SOURCES and bool(inner))


def plain_name(name: str | Path, root: str | Path | None = None) -> str:
    """Writes a dataset as it is remembered: a folder without what its path may have or not, such as a last slash.

    Args:
        name: As for `find_dataset`.
        root: As for `find_dataset`.
    """
    return str(Path(name)) if root is None and Path(name).is_dir() else str(name)


def require_outside(out: str | Path, images: str | Path) -> None:
    """Sees that what is written does not become a class of a folder of images.

    Args:
        out: The folder that is to be written.
        images: The folder of images.

    Raises:
        DataError: It is that folder, or lies in it.
    """
    if Path(out).resolve().is_relative_to(Path(images).resolve()):
        raise DataError(
            f"the folder {quote(str(out))} would be a class of the images in {quote(str(images))}; use one that is not "
            "among them"
        )


def dataset_text(name: str, root: str | Path) -> str:
    """Names a dataset in a message: by its folder, where that is all that it has."""
    return quote(str(root)) if name == "folder" else name


def classes_of(name: str, root: str | Path | None = None, split: str | None = "train") -> tuple[str, ...] | None:
    """Lists the classes of a folder of images, as their labels count them.

    Those of the training images number the classes of every split, and an empty folder is a class too.

    Args:
        name: As for `find_dataset`.
        root: As for `find_dataset`.
        split: The split, for a folder that has no training images.

    Returns:
        The names of the classes in order, or None where the dataset is not a folder of images.

    Raises:
        DataError: There is no such folder or split, it has no classes, or it is not clear what these are.
    """
    name, root = find_dataset(name, root)
    if name != "folder":
        return None
    folder = find_split(root, split)
    classes = tuple(_classes(root, folder, flat=True)[0])
    if not classes:
        raise DataError(f"no folders of classes in {quote(str(folder))}; use a folder of one folder a class (data=)")
    return classes


def names_of(name: str, root: str | Path | None = None, split: str | None = "train") -> tuple[str, ...] | None:
    """Lists the names of the classes of any dataset, as its labels count them.

    Args:
        name: As for `find_dataset`.
        root: As for `find_dataset`.
        split: The split, for a folder that has no training images.

    Returns:
        The names; None where the dataset does not say them, would have to be streamed, or cannot be opened, of which
        whoever reads its images says why.

    Raises:
        DataError: There is no such folder.
    """
    name, root = find_dataset(name, root)
    if name == "folder":
        return classes_of(name, root, split)
    if name.lower().partition("/")[0] not in ("torch", "hfds"):
        return None
    with suppress(DataError):
        # The names are the same in each split, and this is smaller than the training images.
        return names_in(open_dataset(name, root, None))
    return None


def names_in(dataset: Any) -> tuple[str, ...] | None:
    """Lists the names of the classes of a dataset that `open_dataset` opened.

    Args:
        dataset: The dataset.

    Returns:
        The names in the order of the labels; None where the dataset does not say them, or has several for a class.
    """
    numbers = getattr(dataset, "class_to_idx", None) or getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if not numbers:
        return None
    names = sorted(numbers, key=lambda name: int(numbers[name]))
    return tuple(names) if [numbers[name] for name in names] == list(range(len(names))) else None


def open_dataset(
    name: str,
    root: str,
    split: str | None,
    *,
    input_img_mode: str = "RGB",
    replace: bool = False,
    holdout: HoldOut | None = None,
    **kwargs: Any,
) -> Any:
    """Opens a dataset; nothing is downloaded.

    Folders of images and COCO are read here, all else by timm.

    Args:
        name: The name that `find_dataset` gives.
        root: The folder that holds it.
        split: The split, or None for the validation split, or the test split where a folder has no other.
        input_img_mode: How images are read, in the terms of Pillow.
        replace: Whether the next good image takes the place of a damaged one; an item is None otherwise.
        holdout: For a folder without splits: which images are those of validation, and not of training. All images
            are those of any split where None.
        **kwargs: More arguments of timm's `create_dataset`.

    Returns:
        The dataset; an `ImageFiles` where each image is a file.

    Raises:
        DataError: It cannot be opened.
    """
    try:
        if name == "folder":
            reader = _folder_reader(root, find_split(root, split), kwargs.get("class_map"))
            if holdout is not None and not splits_in(root):
                held = holdout.held_out([path for path, _ in reader.samples], root)
                training = known_split(split or "validation") == "train"
                reader.samples = [sample for sample in reader.samples if (sample[0] in held) != training]
                if not reader.samples:
                    raise DataError(
                        f"each class of {quote(root)} has one image only, so that none is left to validate on; use two "
                        "images a class or more"
                    )
            return ImageFiles(root, reader, input_img_mode, replace)
        split = "validation" if split is None else split
        if name.lower() == "coco":
            return CocoLabels(root, split, input_img_mode, replace)
        source, _, inner = name.lower().partition("/")
        if source == "torch" and (known := known_split(split)):
            split = "validation" if known == "val" else known
        elif source == "torch" and inner in _TRAIN_AND_TEST:
            raise DataError(f"{name} has no split {quote(split)}; use train or test (split=)")
        dataset = create_dataset(name, root=root, split=split, download=False, input_img_mode=input_img_mode, **kwargs)
    except DataError:
        raise
    except (RuntimeError, ValueError, AssertionError, ImportError, OSError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if "download" in reason:
            # Of torchvision, whose advice is an argument that nothing here has.
            reason = "it is not whole, as torchvision unpacks it, in this folder"
        raise DataError(f"no dataset {name} in {quote(root)}: {reason}") from None
    if type(dataset) is ImageDataset:
        return ImageFiles(root, dataset.reader, input_img_mode, replace)
    return InMode(dataset, input_img_mode) if source == "torch" else dataset


def number_by(names: Sequence[str], dataset: ImageFiles, root: str | Path) -> None:
    """Numbers the classes of a folder as a network does that has names for its classes.

    A folder with none of these names, such as one of numbers, keeps the order of its own.

    Args:
        names: The names of the network's classes.
        dataset: The dataset of the folder, which is changed.
        root: The folder, for the message.

    Raises:
        DataError: The network knows some of the classes, and not all.
    """
    own, numbers = dataset.reader.class_to_idx, {name: number for number, name in enumerate(names)}
    strange = _in_order(set(own) - set(numbers))
    if len(strange) == len(own) or own == numbers:
        return
    if strange:
        known = next(name for name in own if name in numbers)
        raise DataError(
            f"the class {quote(strange[0])} of {quote(str(root))} is none of the network's {len(names):,}, which knows "
            f"{quote(known)}; use images of its classes alone"
        )
    of_labels = {label: numbers[name] for name, label in own.items()}
    dataset.reader.samples = [(path, of_labels[label]) for path, label in dataset.reader.samples]
    dataset.reader.class_to_idx = numbers


def _folder_reader(root: str, folder: Path, class_map: str | None) -> ReaderImageFolder:
    """Opens a folder of classes with timm, without what is hidden, with the numbers of the training images."""
    numbers: dict[str, int] = {}
    numbering: str | Path = folder
    if class_map is None:
        names, numbering = _classes(root, folder)
        numbers = {name: number for number, name in enumerate(names)}
    if class_map is not None or numbering != folder:
        # timm leaves out a folder that cannot be read; to list the classes is to see it.
        deque(walk_images(folder), maxlen=0)
    try:
        reader = ReaderImageFolder(str(folder), input_key=";".join(image_extensions()))
        paths = [path for path, _ in reader.samples if not _is_hidden(path, folder)]
    except RuntimeError:
        paths = []
    if not paths:
        raise DataError(f"no images in {quote(str(folder))}; use a folder of one folder a class (data=)")
    outside = [path for path in paths if Path(path).parent == folder]
    if outside:
        raise DataError(
            f"{len(outside):,} of {len(paths):,} images lie outside of the folders of classes, such as "
            f"{quote(outside[0])}; use a folder of one folder a class (data=)"
        )
    _require_own_names(folder, {os.path.dirname(path) for path in paths})
    if class_map is not None:
        try:
            numbers, numbering = load_class_map(class_map, str(folder)), class_map
        except (AssertionError, AttributeError, OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
            raise DataError(
                f"cannot read the class map {quote(class_map)}: {reason}; use a .txt file with a name a line "
                "(class_map=)"
            ) from None
        if numbers.get("") == max(numbers.values(), default=None):
            # Empty lines at the end of the file.
            numbers.pop("", None)
    labels = [os.path.basename(os.path.dirname(path)) for path in paths]
    strange = _in_order(set(labels) - set(numbers))
    if strange:
        more = f", nor {len(strange) - 1:,} more" if len(strange) > 1 else ""
        raise DataError(
            f"the class {quote(strange[0])} of {quote(str(folder))} is none of the {len(numbers):,} of "
            f"{quote(str(numbering))}{more}"
        )
    # By name too, for names that differ in case only: their order would be that of the file system.
    reader.samples = sorted(
        ((path, numbers[label]) for path, label in zip(paths, labels, strict=True)),
        key=lambda sample: (natural_key(sample[0]), sample[0]),
    )
    reader.class_to_idx = numbers
    return reader


def _classes(root: str | Path, folder: Path, flat: bool = False) -> tuple[list[str], Path]:
    """Lists the classes, in the order of their labels, and the folder that defines them.

    `flat` refuses classes in classes, which timm reads as classes of their own.
    """
    places = [Path(root)]
    if folder == Path(root):
        # A folder of test images that is given without the dataset that it belongs to, perhaps by a link.
        whole = (each for each in (folder.resolve(), folder.absolute()) if known_split(each.name) in ("val", "test"))
        places = [each.parent for each in whole] or places
    for place in places:
        try:
            kinds = {known_split(each.name) for each in splits_in(place)}
        except (DataError, OSError):
            continue
        if "train" in kinds:
            # The one that training would use.
            folder = find_split(place, "train")
    return _class_names(folder, flat), folder


def _class_names(folder: Path, flat: bool) -> list[str]:
    """Lists the names of the folders with images in a folder, and of those with nothing, in timm's order."""
    classes, with_images = [], set()
    for path, folders, images in walk_images(folder):
        if Path(path) == folder or (folders and not images):
            continue
        if not images and any(not each.startswith(".") for each in os.listdir(path)):
            raise DataError(
                f"the folder {quote(path)} has files, but no images, and would be a class; use another place for it, "
                "or empty it where it is a class without images"
            )
        outer = next((str(each) for each in Path(path).parents if str(each) in with_images), None)
        if flat and outer is not None:
            raise DataError(
                f"the folder {quote(path)} lies in {quote(outer)}, which has images too, and would be another class; "
                "use a folder of one folder a class (data=)"
            )
        classes.append(path)
        if images:
            with_images.add(str(Path(path)))
    _require_own_names(folder, classes)
    return _in_order(map(os.path.basename, classes))


def _require_own_names(folder: Path, classes: Iterable[str]) -> None:
    """Sees that no two folders of classes have one name: they would be one class."""
    places: dict[str, str] = {}
    for path in sorted(classes):
        name = os.path.basename(path)
        if name in places:
            raise DataError(
                f"the folders {quote(places[name])} and {quote(path)} would be one class {quote(name)} of "
                f"{quote(str(folder))}; use a folder of one folder a class, each with a name of its own (data=)"
            )
        places[name] = path


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (natural_key(name), name))


def _is_hidden(path: str, folder: Path) -> bool:
    return any(part.startswith(".") for part in Path(path).relative_to(folder).parts)
