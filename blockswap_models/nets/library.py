"""A library of trained blocks: for each position of a network, block types that were trained to stand in for its block.

The folder holds `library.json`, what it is of; `original.safetensors`, the network that was imitated; `errors.jsonl`,
the table of errors, one line a part; and a file of tensors for each part.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.utils import unwrap_model
from torch import nn

from ..errors import BlockSwapError
from ..files import JsonLineError, read_json_lines
from ..genome import BlockType, Genome
from ..layout import NetworkLayout, Position
from ..messages import quote

__all__ = ["BlockLibrary", "LibraryError", "tensor_name", "weights_digest"]

KIND = "blockswap library"
HOW_TO_FINISH = "finish it by train_library(…, resume=True) or 'blockswap library'"


class LibraryError(BlockSwapError):
    """A library of blocks that cannot be read, or is of another network, data or types."""


def weights_digest(model: nn.Module) -> str:
    """Names the weights of a network by a hash of their names and values, as they are without a wrapper."""
    digest = hashlib.sha256()
    for name, value in unwrap_model(model).state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256 {digest.hexdigest()[:16]}"


def tensor_name(index: int, block: BlockType | str, name: str) -> str:
    """Names a tensor of a trained block in the file of its part."""
    return f"{index}/{block}/{name}"


@dataclass(frozen=True)
class BlockLibrary:
    """The trained blocks of a folder.

    Args:
        folder: The folder.
        header: What the library is of: network, hash of its weights, layout, block types, data and settings.
        errors: The error of each block type at each position, counted from 0: the mean square of what it computes
            differently from the block it stands in for, over the variance of what that block adds to its shortcut;
            infinite where it did not learn at that rate.
        files: The file that holds the tensors of each of them.

    Raises:
        LibraryError: The folder holds no library.

    Example:
        ```python
        library = BlockLibrary.load("lib")
        student = swap(model, "3xK/4xB2/6xG8/3xK", library=library)
        ```
    """

    folder: Path
    header: Mapping[str, Any]
    errors: Mapping[tuple[int, str], float]
    files: Mapping[tuple[int, str], str]

    @classmethod
    def load(cls, folder: str | Path) -> BlockLibrary:
        """Reads the library of a folder.

        Args:
            folder: The folder that `train_library` or `blockswap library` wrote, finished or not.

        Returns:
            The library.

        Raises:
            LibraryError: The folder holds no library.
        """
        folder = Path(folder)
        try:
            header = json.loads((folder / "library.json").read_bytes())
            if header["kind"] != KIND:
                raise ValueError
            rows = read_json_lines(folder / "errors.jsonl")[0] if (folder / "errors.jsonl").exists() else []
            errors = {
                (each["block"] - 1, each["type"]): math.inf if each["error"] is None else float(each["error"])
                for row in rows
                for each in row["blocks"]
            }
            files = {(each["block"] - 1, each["type"]): str(row["file"]) for row in rows for each in row["blocks"]}
        except OSError as error:
            raise LibraryError(
                f"no library in {quote(str(folder))}: {error.strerror}; use a folder that 'blockswap library' wrote"
            ) from None
        except (JsonLineError, LookupError, TypeError, ValueError) as error:
            raise LibraryError(
                f"{quote(str(folder))} holds no library of blocks; use a folder that 'blockswap library' wrote"
            ) from error
        return cls(folder, header, errors, files)

    @property
    def layout(self) -> NetworkLayout:
        """The layout of the network that was imitated."""
        fields: dict[str, Any] = {
            key: tuple(each) if isinstance(each, list) else each for key, each in self.header["layout"].items()
        }
        fields["places"] = tuple(Position(**each) for each in fields["places"])
        return NetworkLayout(**fields)

    def require(self, model: nn.Module) -> None:
        """Checks that the library is of a network with these weights.

        Args:
            model: The network.

        Raises:
            LibraryError: It is of another one.
        """
        if (digest := weights_digest(model)) != self.header["weights"]:
            raise LibraryError(
                f"the library {quote(str(self.folder))} is of a {self.header['network']} with other weights "
                f"({self.header['weights']}, not {digest}); use the network that it was trained from"
            )

    def original_state(self) -> dict[str, torch.Tensor]:
        """Reads the weights of the network that was imitated; raises LibraryError where they cannot be read."""
        path = self.folder / "original.safetensors"
        try:
            return safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError):
            raise _unreadable(path) from None

    def error(self, index: int, block: BlockType) -> float:
        """Looks up the error of a type at a position, from 0; that of a kept block is 0.

        Args:
            index: Number of the block.
            block: The block type.

        Returns:
            The error.

        Raises:
            LibraryError: The library has no such block.
        """
        if self.is_kept(index, block):
            return 0.0
        known = self._known(index, block)
        return self.errors[index, known]

    def has(self, index: int, block: BlockType) -> bool:
        """Whether there is such a block, or it is the original's own."""
        try:
            self.error(index, block)
        except LibraryError:
            return False
        return True

    @property
    def is_unfinished(self) -> bool:
        """Whether it was killed, so that there are blocks which it has yet to train."""
        return not all(
            self.has(index, block)
            for index, place in enumerate(self._places)
            for block, _ in place.distinct(self._types)
        )

    @cached_property
    def _places(self) -> tuple[Position, ...]:
        return self.layout.places

    @cached_property
    def _types(self) -> list[BlockType]:
        return [BlockType.parse(each) for each in self.header["types"]]

    @cached_property
    def _own(self) -> tuple[BlockType, ...]:
        """The types of the original's own blocks, where it has a genome."""
        own = self.header.get("genome")
        return () if own is None else Genome(own).blocks

    def _known(self, index: int, block: BlockType) -> str:
        """The name under which a structure is in the library."""
        place = self._places[index]
        structure = place.structure(block)
        for at, name in self.errors:
            if at == index and structure is not None and place.structure(BlockType.parse(name)) == structure:
                return name
        where = f"stage {place.stage}, block {place.block} '{block}'"
        if structure is not None and structure in map(place.structure, self._types):
            raise LibraryError(
                f"{where}: not yet in the library {quote(str(self.folder))}, which is unfinished; {HOW_TO_FINISH}"
            )
        raise LibraryError(
            f"{where}: not in the library {quote(str(self.folder))}, whose types are {', '.join(self.header['types'])}"
        )

    def is_kept(self, index: int, block: BlockType) -> bool:
        """Whether a type at a position is the original's own block, by whatever name, which keeps its weights."""
        if block.family == "K":
            return True
        place = self._places[index]
        return bool(self._own) and place.structure(block) == place.structure(self._own[index])

    def state(self, index: int, block: BlockType) -> dict[str, torch.Tensor]:
        """Reads the tensors of a trained block.

        Args:
            index: Number of the block, from 0.
            block: The block type.

        Returns:
            Its state dict.

        Raises:
            LibraryError: The library has no such block.
        """
        name = self._known(index, block)
        prefix = tensor_name(index, name, "")
        path = self.folder / self.files[index, name]
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return {
                    key.removeprefix(prefix): file.get_tensor(key)
                    for key in list(file.keys())
                    if key.startswith(prefix)
                }
        except (OSError, safetensors.SafetensorError):
            raise _unreadable(path) from None


def _unreadable(path: Path) -> LibraryError:
    return LibraryError(f"cannot read {quote(str(path))}: it is missing or damaged; train the library anew")
