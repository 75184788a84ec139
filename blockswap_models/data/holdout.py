"""Which images of a folder of classes are held out for validation, where it has no folders of splits.

No file is moved: that an image is held out follows from the seed and its path in the folder.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError

__all__ = ["HoldOut"]


@dataclass(frozen=True)
class HoldOut:
    """A share of the images of each class that is held out for validation, drawn by a seed.

    Args:
        share: The share, above 0 and below 1. A class of two images or more has at least one on either side.
        seed: Seed of the draw.

    Raises:
        DataError: The share is out of its range.

    Example:
        ```python
        HoldOut(0.5).held_out(["photos/cat/0.png", "photos/cat/1.png"], "photos")
        ```
    """

    share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise DataError(f"the share of images held out is above 0 and below 1, not {self.share} (val_share=)")

    def held_out(self, paths: Iterable[str], root: str | Path) -> set[str]:
        """Says which images are held out.

        Args:
            paths: The images, each in the folder of its class.
            root: The folder that has the classes.

        Returns:
            The paths of those that are held out; a class of one image has none.
        """
        classes: dict[Path, list[str]] = defaultdict(list)
        for path in paths:
            classes[Path(path).parent].append(path)
        chosen: set[str] = set()
        for own in classes.values():
            number = min(len(own) - 1, max(1, round(self.share * len(own))))
            chosen |= set(sorted(own, key=lambda path: self._draw(path, root))[:number])
        return chosen

    def _draw(self, path: str, root: str | Path) -> bytes:
        """A number that is random by the seed and the path within the folder, wherever that lies."""
        place = Path(path).relative_to(root).as_posix()
        # Names of files need not be UTF-8.
        return hashlib.sha256(f"held out/{self.seed}/{place}".encode(errors="surrogateescape")).digest()
