"""Figure 4 of the paper: the error of WRN-40-2 with one block replaced, for each of its 18 blocks.

    python -m benchmarks.paper.figure4
    python -m benchmarks.paper.figure4 --train --data-dir path/to/cifar10 --together 6 --plot figure4.png

Counts the 18 networks. With --train it trains them, shortly without a GPU. The same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from benchmarks.lib.genomes import (
    Student,
    add_student_options,
    error_text,
    longest,
    suffix,
    train_all,
)
from benchmarks.lib.pictures import BLUE, GREY, ORANGE, picture
from benchmarks.lib.report import versions
from benchmarks.lib.scripts import run_script
from benchmarks.lib.trained import TEACHER, Trainer
from blockswap_models import Genome
from blockswap_models.genome import BlockType
from blockswap_models.layout import Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_student_options(parser)
    parser.add_argument("--type", default="G4", help="what a block is replaced by (%(default)s)")
    parser.add_argument("--blocks", type=int, nargs="+", metavar="B", help="blocks to train, from 1 (all)")
    parser.add_argument("--plot", metavar="FILE", help="draw it, a .png or .svg file")
    run_script(parser, run, blocks=[12], together=1)


def replaced(block_type: str) -> list[Student]:
    """Lists the networks with one block of a type, from the first block to the last."""
    layout, new = Layout.named(TEACHER), BlockType.parse(block_type)
    blocks = layout.original.blocks
    genomes = [
        Genome.from_blocks([*blocks[:place], new, *blocks[place + 1 :]], layout.depths) for place in range(len(blocks))
    ]
    return [Student(f"one-{new}-{number:02d}", genome) for number, genome in enumerate(genomes, start=1)]


def run(options: argparse.Namespace) -> None:
    students = replaced(options.type)
    for block in options.blocks or ():
        if not 1 <= block <= len(students):
            raise ValueError(f"there is no block {block}; use 1 to {len(students)} (--blocks)")
    print(versions())
    if options.train:
        trainer = Trainer.of(options)
        print(trainer, flush=True)
        train_all(trainer, [students[block - 1] for block in options.blocks or range(1, len(students) + 1)], options)
    stages = [place.stage for place in Layout.named(TEACHER).positions]
    original = Student(TEACHER, Layout.named(TEACHER).original).facts["params"]
    print(f"{TEACHER}, one block replaced by {options.type}")
    print("block  stage  parameters  fewer    MACs (M)  top-1 error (%)")
    found = [longest(options.out, each.name, suffix(options), whole=True) for each in students]
    for number, (student, stage, rows) in enumerate(zip(students, stages, found, strict=True), start=1):
        params, macs = student.facts["params"], student.facts["macs"] / 1e6
        print(f"{number:5d}  {stage:5d}  {params:>10,}  {original - params:>7,}  {macs:6.1f}  {error_text(rows)}")
    print(
        "The paper writes the type as G, with no number of groups, and draws its errors; whether these networks had a "
        "teacher\nit does not say. Here they learn from WRN-40-2 by attention transfer, unless --labels-alone."
    )
    if options.plot:
        picture(options.plot, (9, 3.5), lambda figure: draw(figure, students, stages, found))


def draw(figure: Figure, students: list[Student], stages: list[int], found: list[list[dict]]) -> None:
    """Draws a bar for each block, coloured by stage: its error, and the parameters that are left."""
    colors = [(BLUE, ORANGE, GREY)[stage - 1] for stage in stages]
    numbers = range(1, len(students) + 1)
    left, right = figure.subplots(1, 2)
    for number, color, rows in zip(numbers, colors, found, strict=True):
        if rows:
            left.bar(number, sum(row["top1_error"] for row in rows) / len(rows), color=color)
    right.bar(numbers, [student.facts["params"] / 1e6 for student in students], color=colors)
    left.set(title="top-1 error (%)", xlabel="block replaced")
    right.set(title="parameters (millions)", xlabel="block replaced")
    for axes in (left, right):
        # Bars from zero would hide the differences.
        heights = [bar.get_height() for bar in axes.patches]
        if len({*heights}) > 1:
            axes.set_ylim(min(heights) - 0.2 * (max(heights) - min(heights)), None)
        axes.set(xlim=(0, len(students) + 1), xticks=numbers)


if __name__ == "__main__":
    main()
