"""The genome language: one block type for each residual block of a network, as text.

    genome = stage *("/" stage)
    stage  = run *("," run)
    run    = [count "x"] type
    type   = "S" | "G" g | "W" w | "B" b | "B" b "G" g | "B" b "W" w | "M" e | "M" e "K" k | "D" | "I" | "K"

This module needs the standard library only.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from .errors import BlockSwapError
from .messages import listed, quote

__all__ = ["SEARCH_TYPES", "BlockType", "Conv", "Genome", "GenomeError"]

_TYPE = re.compile(r"S|D|I|K|[GW][0-9]+|M[0-9]+(?:K[0-9]+)?|B[0-9]+(?:[GW][0-9]+)?")
_RUN = re.compile(r"(?:([0-9]+)\s*x\s*)?(.*)", re.DOTALL)
# Runs as they are written elsewhere: 3XS, 3*S, Sx3.
_OTHER_RUN = re.compile(r"([0-9]+)\s*[X*×](.*)|(.*)[xX*×]\s*([0-9]+)", re.DOTALL)
# No network that anyone trains has more blocks in a run or more channels than these digits can say.
_MAX_DIGITS = 4
_MAX_BLOCKS = 9999


class GenomeError(BlockSwapError):
    """A genome that cannot be read, or does not fit the network: says what is wrong, where, and what to use."""


@dataclass(frozen=True)
class Conv:
    """One convolution of a block's branch, without a bias."""

    in_chs: int
    out_chs: int
    kernel: int
    stride: int = 1
    groups: int = 1


@dataclass(frozen=True, repr=False)
class BlockType:
    """One type of residual block (paper, section 3.1 and Table 5).

    Args:
        family: S (standard), G (grouped and pointwise), B (bottleneck), M (inverted bottleneck), D (DARTS separable
            convolution), I (identity: no branch at all) or K (keep: the block that a given network has, weights and
            all).
        factor: Contraction of a bottleneck, or expansion of an inverted one.
        groups: Groups of a grouped 3x3 convolution.
        width: Channels in each group, in place of `groups`.
        kernel: Height and width of the depthwise convolution of an inverted bottleneck.

    Raises:
        GenomeError: There is no such type.

    Example:
        ```python
        BlockType.parse("B2G4").convs(in_chs=32, out_chs=64, stride=2)
        ```
    """

    family: str
    factor: int = 1
    groups: int | None = None
    width: int | None = None
    kernel: int = 3

    def __post_init__(self) -> None:
        # A type is what its text says: BlockType("W", width=4), say, would be spelled W4 and built as something else.
        sizes = self.family, self.factor, self.groups, self.width, self.kernel
        if _sizes(str(self)) != sizes:
            # The kernel is seldom given.
            given = f"BlockType({', '.join(map(repr, sizes if self.kernel != 3 else sizes[:-1]))})"
            raise GenomeError(f"there is no {given}; read one from text, such as BlockType.parse('B2G4')")

    @classmethod
    def parse(cls, text: str) -> BlockType:
        """Reads one block type, such as `B2G4`.

        Args:
            text: The block type.

        Returns:
            The block type.

        Raises:
            GenomeError: There is no such type.
        """
        if not isinstance(text, str):
            raise GenomeError(f"a block type is text such as 'B2G4', not {type(text).__name__}")
        return _block_type(str(text))

    def __str__(self) -> str:
        head = f"{self.family}{self.factor}" if self.family in "BM" else self.family if self.family in "SDIK" else ""
        tail = f"G{self.groups}" if self.groups else f"W{self.width}" if self.width else ""
        return head + tail + (f"K{self.kernel}" if self.kernel != 3 else "")

    def __repr__(self) -> str:
        return f"BlockType.parse({str(self)!r})"

    def convs(self, in_chs: int, out_chs: int, stride: int = 1) -> tuple[Conv, ...]:
        """Lists the convolutions of the block's branch, in order.

        Two blocks of a family with the same convolutions are the same network, however they are spelled.

        Args:
            in_chs: Input channels of the block.
            out_chs: Output channels of the block.
            stride: Stride of the block.

        Returns:
            The convolutions; an identity has none.

        Raises:
            GenomeError: A number of channels does not divide, or an identity would have to change its input.
        """
        if self.family == "I":
            if in_chs != out_chs or stride != 1:
                raise GenomeError(
                    "an identity changes neither channels nor resolution, "
                    f"and this block goes from {in_chs} to {out_chs} channels with stride {stride}"
                )
            return ()
        if self.family == "K":
            raise GenomeError("K keeps the block of a given network; use swap(model, …), or 'S' for a standard block")
        if self.family == "S":
            return Conv(in_chs, out_chs, 3, stride), Conv(out_chs, out_chs, 3)
        if self.family == "G":
            return (
                Conv(in_chs, in_chs, 3, stride, self._groups_of(in_chs)),
                Conv(in_chs, out_chs, 1),
                Conv(out_chs, out_chs, 3, 1, self._groups_of(out_chs)),
                Conv(out_chs, out_chs, 1),
            )
        if self.family == "B":
            if out_chs % self.factor:
                raise GenomeError(f"its {out_chs} channels do not divide by {self.factor}")
            mid = out_chs // self.factor
            grouped = Conv(mid, mid, 3, stride, self._groups_of(mid) if self.groups or self.width else 1)
            return Conv(in_chs, mid, 1), grouped, Conv(mid, out_chs, 1)
        if self.family == "M":
            mid = in_chs * self.factor
            return Conv(in_chs, mid, 1), Conv(mid, mid, self.kernel, stride, mid), Conv(mid, out_chs, 1)
        # D works on the projected input where the widths differ, so that it never changes width or stride itself.
        depthwise, pointwise = Conv(out_chs, out_chs, 3, 1, out_chs), Conv(out_chs, out_chs, 1)
        return depthwise, pointwise, depthwise, pointwise

    def _groups_of(self, chs: int) -> int:
        if self.width is not None:
            if chs % self.width:
                raise GenomeError(f"its 3x3 works on {chs} channels, which do not split into groups of {self.width}")
            return chs // self.width
        if self.groups is None or chs % self.groups:
            raise GenomeError(f"its 3x3 works on {chs} channels, which do not split into {self.groups} groups")
        return self.groups


class Genome(str):
    """The canonical text of a genome, with its block types by stage.

    It is a string (no spaces, longest runs, no `1x`), so it goes wherever text goes: JSON, a shell, `genome=` of a timm
    entry. `Genome(text)` and `Genome.parse(text)` are the same.

    Args:
        text: A genome, with or without spaces, in any runs.

    Attributes:
        stages: The block types of each stage.

    Raises:
        GenomeError: The text is not a genome; the message says where.

    Example:
        ```python
        Genome("S, G4, G4 / 2xB2")  # 'S,2xG4/2xB2'
        ```
    """

    stages: tuple[tuple[BlockType, ...], ...]

    def __new__(cls, text: str) -> Genome:
        """Reads a genome; raises GenomeError."""
        if type(text) is cls:
            return text
        return cls.from_stages(_parse_stages(text))

    def __getnewargs__(self) -> tuple[str]:
        return (str(self),)

    @classmethod
    def parse(cls, text: str) -> Genome:
        """Reads a genome; raises GenomeError."""
        return cls(text)

    @classmethod
    def from_stages(cls, stages: Iterable[Iterable[BlockType | str]]) -> Genome:
        """Makes a genome of block types by stage.

        Args:
            stages: The block types of each stage, or their texts.

        Returns:
            The genome.

        Raises:
            GenomeError: There is no such type, or a stage is empty.
        """
        typed = tuple(
            tuple(block if isinstance(block, BlockType) else BlockType.parse(block) for block in stage)
            for stage in stages
        )
        if not typed or not all(typed):
            raise GenomeError("an empty genome or stage; use one block type a block, such as '6xS/6xS/6xS'")
        self = super().__new__(cls, "/".join(_runs(stage) for stage in typed))
        self.stages = typed
        return self

    @classmethod
    def from_blocks(cls, blocks: Sequence[BlockType | str], depths: Sequence[int]) -> Genome:
        """Makes a genome of a flat list of block types.

        Args:
            blocks: The block types, or their texts, from the first block to the last.
            depths: The number of blocks in each stage.

        Returns:
            The genome.

        Raises:
            GenomeError: The numbers of blocks differ, or there is no such type.
        """
        if len(blocks) != sum(depths):
            raise GenomeError(f"{len(blocks)} block types do not fill stages of {listed(depths)} blocks")
        ends = [sum(depths[: stage + 1]) for stage in range(len(depths))]
        return cls.from_stages(blocks[end - depth : end] for end, depth in zip(ends, depths, strict=True))

    @classmethod
    def from_reference(cls, names: Sequence[str], depths: Sequence[int]) -> Genome:
        """Translates the names of the authors' code, whose `G4B2` is a bottleneck 2 with groups of *width* 4.

        Args:
            names: The names of the blocks, such as `DConvA4`.
            depths: The number of blocks in each stage.

        Returns:
            The genome.

        Raises:
            GenomeError: There is no such name.
        """
        blocks = []
        for place, name in enumerate(names, start=1):
            block = _from_reference(name)
            if block is None:
                raise GenomeError(
                    f"block {place}: the reference code has no block {quote(name)}; "
                    "its names look like 'Conv', 'DConvA4', 'DConvG4', 'ConvB2', 'A4B2' and 'G4B2'"
                )
            blocks.append(block)
        return cls.from_blocks(blocks, depths)

    def _repr_html_(self) -> str:
        """Shows the genome as a strip of blocks, in a notebook."""
        from .strips import genome_html

        return genome_html(self)

    @property
    def blocks(self) -> tuple[BlockType, ...]:
        """All block types, from the first block to the last."""
        return tuple(block for stage in self.stages for block in stage)

    @property
    def depths(self) -> tuple[int, ...]:
        """The number of blocks in each stage."""
        return tuple(len(stage) for stage in self.stages)


def _sizes(text: str) -> tuple[str, int, int | None, int | None, int]:
    """Reads family, factor, groups, width and kernel of a block type."""
    if not _TYPE.fullmatch(text):
        raise GenomeError(f"unknown block type {quote(text)}{_advice(text)}")
    letters = re.findall(r"[A-Z]", text)
    numbers = [_number(digits, text) for digits in re.findall(r"[0-9]+", text)]
    sizes = dict(zip(letters, numbers, strict=False))
    for letter, size in sizes.items():
        if size < _SMALLEST[letter] or (letter == "K" and size % 2 == 0):
            raise GenomeError(f"block type {quote(text)}: {_NO_SUCH_SIZE[letter]}")
    family = "G" if letters[0] == "W" else letters[0]
    return family, sizes[family] if family in "BM" else 1, sizes.get("G"), sizes.get("W"), sizes.get("K", 3)


@functools.lru_cache(maxsize=1024)
def _block_type(text: str) -> BlockType:
    """Reads a block type; records and samples have few of them, very often."""
    return BlockType(*_sizes(text))


_SMALLEST = {"G": 2, "B": 2, "W": 1, "M": 2, "K": 5}
_NO_SUCH_SIZE = {
    "G": "a grouped 3x3 has at least 2 groups; without groups use 'S', or 'B2' for a bottleneck",
    "B": "a bottleneck contracts by at least 2; without one use 'S', 'G4' or 'W4'",
    "W": "a group has at least 1 channel; use 'W1' or more",
    "M": "an inverted bottleneck expands by at least 2; use 'M6'",
    "K": "a kernel is an odd number from 5 up; for one of 3 use the 'M' alone, such as 'M6'",
}


def _parse_stages(text: str) -> list[list[BlockType]]:
    if not isinstance(text, str):
        raise GenomeError(f"a genome is text such as '6xS/6xS/6xS', not {type(text).__name__}")
    if not text.strip():
        raise GenomeError("an empty genome; use one block type a block, such as '6xS/6xS/6xS'")
    stages, total = [], 0
    for stage_no, stage_text in enumerate(text.split("/"), start=1):
        stage: list[BlockType] = []
        for run_text in stage_text.split(","):
            try:
                count, block = _parse_run(run_text.strip())
                total += count
                if total > _MAX_BLOCKS:
                    raise GenomeError(f"more than {_MAX_BLOCKS} blocks; use fewer")
            except GenomeError as error:
                raise GenomeError(f"{error} (stage {stage_no}, block {len(stage) + 1} of {quote(text)})") from None
            stage += [block] * count
        stages.append(stage)
    return stages


def _parse_run(text: str) -> tuple[int, BlockType]:
    if not text:
        raise GenomeError("a block type is missing; use one between separators, or drop the extra ',' or '/'")
    if other := _OTHER_RUN.fullmatch(text):
        count_first, block_last, block_first, count_last = other.groups()
        run, block = count_first or count_last, (block_last or block_first or "").strip()
        if _reads(_number, run, text) and _reads(BlockType.parse, block):
            raise GenomeError(f"unknown run {quote(text)}; did you mean '{run}x{block}'?")
    digits, block_text = _RUN.fullmatch(text).groups()  # type: ignore[union-attr]  # it matches any text
    count = 1 if digits is None else _number(digits, text)
    if count < 1:
        raise GenomeError(f"{quote(text)} repeats a block 0 times; drop it")
    if not block_text:
        raise GenomeError(f"{quote(text)} repeats nothing; use a block type after the 'x'")
    return count, BlockType.parse(block_text)


def _reads(read: Callable[..., object], *texts: str) -> bool:
    """Says whether a text can be read, so that no advice is one that would be refused."""
    try:
        read(*texts)
    except GenomeError:
        return False
    return True


def _number(digits: str, text: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise GenomeError(f"{quote(text)}: a number of {len(digits)} digits is too large; use at most {_MAX_BLOCKS}")
    if digits.startswith("0") and digits != "0":
        raise GenomeError(f"{quote(text)}: numbers have one spelling; use {int(digits)} for {digits}")
    return int(digits)


def _runs(stage: Iterable[BlockType]) -> str:
    counted = [(sum(1 for _ in run), block) for block, run in groupby(stage)]
    return ",".join(f"{count}x{block}" if count > 1 else str(block) for count, block in counted)


def _from_reference(name: str) -> BlockType | None:
    """Translates one name of the reference code, None if it has no such name."""
    if not isinstance(name, str):
        return None
    plain = {"Conv": "S", "DConv": "W1", "MBConv6": "M6", "DARTSBlock": "D"}.get(name)
    if plain is None:
        for pattern, ours in _REFERENCE:
            if pattern.fullmatch(name):
                plain = pattern.sub(ours, name)
    return BlockType.parse(plain) if plain else None


_REFERENCE = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"DConvA(2|4|8|16)", r"G\1"),
        (r"DConvG(2|4|8|16)", r"W\1"),
        (r"ConvB(2|4)", r"B\1"),
        (r"A(2|4|8|16)B(2)", r"B\2G\1"),
        (r"G(2|4|8|16)B(2|4)", r"B\2W\1"),
    )
)


def _advice(text: str) -> str:
    if reference := _from_reference(text):
        return f", a name of the reference code; use '{reference}' here"
    bare = re.sub(r"[\s()_-]", "", text[:20].upper())
    if bare in ("G(N)", "GN", "DW", "DEPTHWISE"):
        return "; did you mean 'W1'?"
    if _TYPE.fullmatch(bare) and _reads(BlockType.parse, bare):
        return f"; did you mean '{bare}'?"
    known = [str(block) for block in SEARCH_TYPES] + ["M6", "M6K5", "D", "I", "K"]
    close = difflib.get_close_matches(bare, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return "; use S, G4, W4, B2, B2G4, B2W4, M6, M6K5, D or I, with any numbers"


# The 23 block types from which the paper's networks were chosen (section 4).
SEARCH_TYPES: tuple[BlockType, ...] = Genome(
    "S,G2,G4,G8,G16,W1,W2,W4,W8,W16,B2,B4,B2G2,B2G4,B2G8,B2G16,B2W2,B2W4,B2W8,B2W16,B4W2,B4W4,B4W8"
).blocks
