"""Finds and opens datasets: folders of images, and what timm and torchvision can open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.data import create_dataset

from ..messages import quote
from .coco import CocoLabels

__all__ = ["IMAGE_MODES", "DataError", "find_dataset", "open_dataset"]

# How an image of so many channels is read, in the terms of PIL.
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class DataError(ValueError):
    """Data that cannot be read or does not fit the network: says what is wrong and what to write."""


def find_dataset(name: str, root: str | Path | None) -> tuple[str, str]:
    """Says which dataset is meant, and the folder that holds it: `name` may be a folder itself; raises DataError."""
    if root is None and Path(name).is_dir():
        # One folder a class is not how COCO lies.
        name, root = "coco" if any(Path(name).glob("annotations/instances_*2017.json")) else "folder", name
    if root is None:
        raise DataError(f"no folder {quote(name)}; use a folder of images, or torch/cifar10 and its folder (root=)")
    if not Path(root).is_dir():
        raise DataError(f"no data folder {quote(str(root))}; use the folder that holds {name} (root=)")
    return name, str(root)


def open_dataset(name: str, root: str, split: str, **kwargs: Any) -> Any:
    """Opens a dataset with timm, arguments as of its `create_dataset`; nothing is downloaded; raises DataError.

    `coco` is read here, for timm does not have it.
    """
    try:
        if name.lower() == "coco":
            return CocoLabels(root, split)
        return create_dataset("" if name == "folder" else name, root=root, split=split, download=False, **kwargs)
    except (RuntimeError, ValueError, AssertionError, ImportError, OSError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"no dataset {name} in {quote(root)}: {reason}") from None
