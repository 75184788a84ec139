"""Latency tables: the measured time of every block type at every shape, which adds up to that of any genome.

This module needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BlockSwapError
from ..files import write_atomic
from ..genome import BlockType, Genome, GenomeError
from ..layout import Layout, NetworkLayout, Position, Structure

__all__ = ["LatencyError", "LatencyTable", "Shape"]

_KIND = "blockswap latency table"
# The slowest network is no more units than this, so that genomes are counted by their latency in little time; a
# measurement is far less exact.
_MOST_UNITS = 100_000


class LatencyError(BlockSwapError):
    """A latency table that cannot be read, or is of another network."""


class Shape(NamedTuple):
    """What a block's time depends on: channels in and out, stride, and the size of its input."""

    in_chs: int
    out_chs: int
    stride: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.in_chs} to {self.out_chs}, {self.height}x{self.width}{f'/{self.stride}' * (self.stride > 1)}"


@dataclass(frozen=True)
class LatencyTable:
    """The seconds that stem, head and each block type at each shape take for one minibatch, in evaluation mode.

    `profile` measures one. Times are rounded to a power of ten nanoseconds, 1e-5 to 1e-4 of the slowest network.

    Args:
        layout: The network.
        input_size: Channels, height and width of the images.
        num_classes: Classes of the measured networks.
        batch_size: Images in the minibatch.
        device: Type of the device, such as `cpu`.
        threads: Threads of the measurement.
        about: Hardware and versions.
        stem: Seconds of the stem.
        head: Seconds of the head.
        shapes: The shape of each block, from first to last.
        blocks: Seconds of each block type at each shape.

    Raises:
        LatencyError: Times are missing, or are not numbers from 0 up.

    Example:
        ```python
        profile(SearchSpace("wrn40_2"), threads=1).save("table.json")
        space = SearchSpace("wrn40_2", latency=LatencyTable.load("table.json"))
        ```
    """

    layout: Layout
    input_size: tuple[int, int, int]
    num_classes: int
    batch_size: int
    device: str
    threads: int
    about: Mapping[str, str]
    stem: float
    head: float
    shapes: tuple[Shape, ...]
    blocks: Mapping[Shape, Mapping[BlockType, float]]

    def __post_init__(self) -> None:
        places = [(place.in_chs, place.out_chs, place.stride) for place in self.layout.positions]
        if places != [shape[:3] for shape in self.shapes] or not set(self.shapes) <= self.blocks.keys():
            raise LatencyError(f"a latency table of {self.layout.name} needs the times of each of its blocks")
        times = [self.stem, self.head, *(each for by_type in self.blocks.values() for each in by_type.values())]
        if not all(isinstance(each, (int, float)) and 0 <= each < math.inf for each in times):
            raise LatencyError("a latency table holds seconds, each a number from 0 up")
        if not all(map(self.blocks.get, self.shapes)):
            raise LatencyError("a latency table needs the time of at least one block type at each shape")
        self._round()

    def _round(self) -> None:
        for digits in range(9, -9, -1):
            stem, head = round(self.stem, digits), round(self.head, digits)
            blocks = {
                shape: {block: round(each, digits) for block, each in by_type.items()}
                for shape, by_type in self.blocks.items()
            }
            # Of the rounded times, so that rounding them again changes nothing.
            if stem + head + sum(max(blocks[shape].values()) for shape in self.shapes) <= _MOST_UNITS * 10.0**-digits:
                break
        for name, value in {"stem": stem, "head": head, "blocks": blocks}.items():
            object.__setattr__(self, name, value)
        # Not a field: block types of other names that give the same network.
        known: list[dict[Structure | None, float]] = [
            {place.structure(block): each for block, each in blocks[shape].items()}
            for place, shape in zip(self.layout.positions, self.shapes, strict=True)
        ]
        object.__setattr__(self, "_known", known)

    @property
    def types(self) -> tuple[BlockType, ...]:
        """The block types that were measured anywhere."""
        return tuple(dict.fromkeys(block for by_type in self.blocks.values() for block in by_type))

    @property
    def digest(self) -> str:
        """Names the table by its content."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()[:16]

    def of_block(self, index: int, block: BlockType) -> float:
        """Looks up the seconds of a block type at a position.

        Args:
            index: Number of the block, from 0.
            block: The block type.

        Returns:
            Seconds for one minibatch.

        Raises:
            GenomeError: The type was not measured there.
        """
        place = self.layout.positions[index]
        structure = place.structure(block)
        if structure is None or structure not in self._known[index]:  # type: ignore[attr-defined]
            raise GenomeError(
                f"stage {place.stage}, block {place.block} '{block}': not in the latency table, which has "
                f"{', '.join(map(str, self.types))}; measure one with more types="
            )
        return self._known[index][structure]  # type: ignore[attr-defined]

    def latency(self, genome: Genome | str) -> float:
        """Adds up the seconds of a genome: stem, blocks and head.

        Args:
            genome: The genome.

        Returns:
            Seconds for one minibatch.

        Raises:
            GenomeError: The genome does not fit, or has a block type that was not measured.
        """
        blocks = self.layout.fit(genome).blocks
        parts = [self.of_block(index, block) for index, block in enumerate(blocks)]
        return round(self.stem + self.head + sum(parts), 9)

    def require(self, layout: Layout, input_size: tuple[int, int, int]) -> None:
        """Checks that the table is of these networks; the number of classes may differ.

        Args:
            layout: The network.
            input_size: Channels, height and width of the images.

        Raises:
            LatencyError: It is not.
        """

        def text(layout: Layout, size: tuple[int, int, int]) -> str:
            return f"{layout.name} at {'x'.join(map(str, size))}"

        there, here = text(self.layout, self.input_size), text(layout, input_size)
        if there == here and replace(self.layout, num_classes=layout.num_classes) != layout:
            here = f"another {layout.name}"
        if there != here:
            raise LatencyError(f"the latency table is of {there}, not of {here}; measure one of these networks")

    # -- files -------------------------------------------------------------------------------------------------------

    def content(self) -> dict[str, Any]:
        """The content of the file, for JSON."""
        rows = []
        for shape, by_type in self.blocks.items():
            row = shape._asdict()
            row["blocks"] = [number for number, each in enumerate(self.shapes, start=1) if each == shape]
            rows.append({**row, "seconds": {str(block): each for block, each in by_type.items()}})
        return {
            "kind": _KIND,
            "layout": asdict(self.layout),
            "input_size": self.input_size,
            "num_classes": self.num_classes,
            "batch_size": self.batch_size,
            "device": self.device,
            "threads": self.threads,
            "about": dict(self.about),
            "stem": self.stem,
            "head": self.head,
            "shapes": rows,
        }

    def save(self, path: str | Path) -> None:
        """Writes the table to a JSON file, completely or not at all; an existing file is replaced.

        Args:
            path: The file.

        Raises:
            LatencyError: The file cannot be written.
        """
        write_atomic(path, (json.dumps(self.content(), indent=1) + "\n").encode(), LatencyError)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Reads a table that `save` or `blockswap profile` wrote.

        Args:
            path: The file.

        Returns:
            The table.

        Raises:
            LatencyError: The file cannot be read, or is not a latency table.
        """
        try:
            content = json.loads(Path(path).read_bytes())
            if content["kind"] != _KIND:
                raise ValueError
            return cls._of(content)
        except OSError as error:
            raise LatencyError(f"cannot read the latency table {path}: {error.strerror}") from None
        except LatencyError as error:
            raise LatencyError(f"{path}: {error}") from None
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
            raise LatencyError(
                f"{path} is not a latency table; use one that LatencyTable.save or 'blockswap profile' wrote"
            ) from None

    @classmethod
    def _of(cls, content: dict[str, Any]) -> LatencyTable:
        fields: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in content["layout"].items()
        }
        if "places" in fields:
            fields["places"] = tuple(Position(**each) for each in fields["places"])
        layout = (NetworkLayout if "places" in fields else Layout)(**fields)
        by_number: dict[int, Shape] = {}
        blocks = {}
        for row in content["shapes"]:
            shape = Shape(*(int(row[name]) for name in Shape._fields))
            blocks[shape] = {BlockType.parse(block): each for block, each in row["seconds"].items()}
            if by_number.keys() & set(row["blocks"]):
                raise ValueError("a block of two shapes")
            by_number.update(dict.fromkeys(row["blocks"], shape))
        channels, height, width = map(int, content["input_size"])
        return cls(
            layout,
            (channels, height, width),
            int(content["num_classes"]),
            int(content["batch_size"]),
            str(content["device"]),
            int(content["threads"]),
            {str(name): str(each) for name, each in content["about"].items()},
            content["stem"],
            content["head"],
            tuple(by_number[number] for number in range(1, len(by_number) + 1)),
            blocks,
        )
