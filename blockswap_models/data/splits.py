"""The splits of a dataset: their names, and the folders that hold them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..messages import quote
from .errors import DataError

__all__ = ["find_split", "folders_in", "known_split", "splits_in"]

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_KNOWN = {name: split for split, names in _NAMES.items() for name in names}


def known_split(name: str) -> str | None:
    """Returns the split that a name means, in upper or lower case.

    Args:
        name: The name that a user gives or a folder has.

    Returns:
        `train`, `val` or `test`, or None for any other name.
    """
    return _KNOWN.get(name.lower())


def folders_in(root: str | Path) -> list[Path]:
    """Lists the folders in a folder, by name, without hidden ones.

    Args:
        root: The folder.

    Returns:
        Their paths.

    Raises:
        DataError: The folder must not be read.
    """
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError as error:
        raise DataError(f"cannot read the folder {quote(str(root))}: {error.strerror}") from None


def splits_in(root: str | Path) -> list[Path]:
    """Finds the folders of splits in a folder of images.

    A folder with the name of a split is one if it holds folders (the classes), or if the folders beside it have names
    of splits too. Else it is a class, such as that of trains.

    Args:
        root: The folder that may have splits.

    Returns:
        The folders of all splits; none where the folder has classes.

    Raises:
        DataError: It is not clear whether a folder is a split or a class.
    """
    folders = folders_in(root)
    named = [folder for folder in folders if known_split(folder.name)]
    nested = [folder for folder in named if folders_in(folder)]
    if not nested and len(named) < len(folders):
        return []
    if len(named) == 1:
        # Beside the classes `bus` and `car` even a `train` of several folders would be a class.
        flat = [folder.name for folder in folders if folder not in named and _has_files(folder)]
        if flat:
            raise DataError(
                f"{quote(named[0].name)} in {quote(str(root))} may be a split or a class, for {quote(flat[0])} "
                f"beside it has files too; rename it, or use the folder {quote(str(named[0]))} itself"
            )
    return named


def find_split(root: str | Path, split: str | None) -> Path:
    """Finds the images of a split in a folder of images.

    Args:
        root: The folder: of splits, or of classes, which are then those of any split.
        split: The name of the split in any case: its folder may have another name of the same meaning, such as `val`
            for `validation`. None is the validation split, or the test split where there is no other.

    Returns:
        The folder that holds the classes.

    Raises:
        DataError: There is no such split.
    """
    there = splits_in(root)
    if split is None:
        kinds = {known_split(folder.name) for folder in there}
        split = "test" if "test" in kinds and "val" not in kinds else "validation"
    if not there:
        if known_split(split) is None:
            raise DataError(
                f"no split {quote(split)} in {quote(str(root))}, which has no folders of splits; use train, "
                "validation or test (split=)"
            )
        return Path(root)
    # A split of a name of its own, such as `holdout`, beside those with known names.
    own = [folder for folder in folders_in(root) if folder in there or folders_in(folder)]
    for found in (
        [folder for folder in own if folder.name == split],
        [folder for folder in own if folder.name.lower() == split.lower()],
        [folder for folder in there if known_split(folder.name) == known_split(split)],
    ):
        if len(found) > 1:
            names = " and ".join(folder.name for folder in found)
            raise DataError(f"{names} in {quote(str(root))} are both the split {quote(split)}; use one (split=)")
        if found:
            return found[0]
    names = " or ".join(folder.name for folder in there)
    raise DataError(f"no split {quote(split)} in {quote(str(root))}; use {names} (split=)")


def _has_files(folder: Path) -> bool:
    with suppress(OSError), os.scandir(folder) as entries:
        return any(entry.is_file() and not entry.name.startswith(".") for entry in entries)
    return False
