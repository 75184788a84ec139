"""Genomes as strips of coloured blocks: the colours of the families, and strips in HTML for notebooks.

This module needs the standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .genome import BlockType, Genome

__all__ = ["FAMILIES", "family_of", "genome_html", "legend_html", "text_colour"]

# The palette of Okabe and Ito, which colour-blind readers can tell apart; blues are grouped, oranges bottlenecks.
FAMILIES: dict[str, tuple[str, str]] = {
    "S": ("#595959", "S  two 3x3"),
    "G": ("#0072B2", "G  in groups"),
    "W": ("#56B4E9", "W  by group width"),
    "B": ("#D55E00", "B  bottleneck"),
    "BG": ("#E69F00", "BG  in groups"),
    "BW": ("#F0E442", "BW  by group width"),
    "M": ("#009E73", "M  inverted bottleneck"),
    "D": ("#CC79A7", "D  separable"),
    "K": ("#c8c8c8", "K  kept"),
    "I": ("#eeeeee", "I  identity"),
}
_DARK = ("S", "G", "B", "M")
_STRIP = "display:inline-flex;flex-wrap:wrap;gap:6px;font:11px/20px sans-serif;vertical-align:middle"
_BLOCK = "min-width:2.6em;padding:0 3px;box-sizing:border-box;text-align:center;border-radius:2px"


def family_of(block: BlockType) -> str:
    """The key of a block type in `FAMILIES`: groups are told from widths, which are one family as they are built."""
    grouped = "G" if block.groups else "W" if block.width else ""
    return grouped if block.family == "G" else block.family + grouped


def text_colour(family: str) -> str:
    """Black or white, whichever can be read on the colour of a family."""
    return "white" if family in _DARK else "black"


def genome_html(genome: Genome) -> str:
    """Draws a genome as HTML: a box for each block, in the colour of its family, with a gap between stages."""
    stages = []
    for number, stage in enumerate(genome.stages, start=1):
        boxes = [_box(str(each), family_of(each), f"stage {number}, block {at}") for at, each in enumerate(stage, 1)]
        stages.append(f'<span style="display:inline-flex;gap:1px">{"".join(boxes)}</span>')
    return f'<span style="{_STRIP}" title="{escape(str(genome))}">{"".join(stages)}</span>'


def legend_html(blocks: Iterable[BlockType]) -> str:
    """Says what the colours of block types mean."""
    used = {family_of(each) for each in blocks}
    named = [
        f'<span style="display:inline-flex;gap:4px">{_box("", family)} {escape(label)}</span>'
        for family, (_, label) in FAMILIES.items()
        if family in used
    ]
    return f'<span style="{_STRIP};gap:14px">{"".join(named)}</span>'


def _box(text: str, family: str, title: str = "") -> str:
    style = f"{_BLOCK};background:{FAMILIES[family][0]};color:{text_colour(family)}"
    return f'<span style="{style}" title="{title}">{text}</span>' if title else f'<span style="{style}">{text}</span>'
