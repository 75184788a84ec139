"""Figure 2 of the paper: errors of random mixed networks, beside those of the single-type network of each budget.

    python -m benchmarks.paper.figure2
    python -m benchmarks.paper.figure2 --train --data-dir path/to/cifar10 --networks 100 --together 8 --plot figure2.png

Counts the networks of a single block type nearest to each budget, and the one that the paper names. With --train it
trains them and the random networks, which are those of table1.py: in the same --out they are trained once.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.lib.genomes import (
    BUDGETS,
    Student,
    add_random_options,
    error_text,
    errors,
    form,
    longest,
    mixed,
    nearest_single,
    networks_of,
    short,
    single,
    suffix,
    train_all,
)
from benchmarks.lib.pictures import BLUE, ORANGE, picture
from benchmarks.lib.report import mean_and_deviation, versions
from benchmarks.lib.scripts import run_script
from benchmarks.lib.trained import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The type and the error in percent of the single-type network (Figure 2a; section 4.3), and the mean of the mixed ones.
PAPER_SINGLE = {200_000: ("B2G4", "5.0"), 400_000: (None, "4.5")}
PAPER_MEAN = {200_000: "about 5.15"}
QUANTILES = (0, 10, 25, 50, 75, 90, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_random_options(parser)
    parser.add_argument("--plot", metavar="FILE", help="draw what is trained, a .png or .svg file")
    run_script(parser, run, networks=1, together=3, budgets=BUDGETS[:1])


def singles(budget: int) -> list[Student]:
    """Lists the single-type networks of a budget: the nearest, and the paper's where it names another."""
    nearest, (named, _) = nearest_single(budget), PAPER_SINGLE.get(budget, (None, ""))
    papers = [] if named is None else [single(named, budget)]
    return [nearest, *(each for each in papers if each.name != nearest.name)]


def run(options: argparse.Namespace) -> None:
    print(versions())
    if options.train:
        trainer = Trainer.of(options)
        number = networks_of(options, trainer)
        print(f"{trainer}\n{number} random networks at each of {', '.join(map(short, options.budgets))}", flush=True)
        for budget in options.budgets:
            train_all(trainer, singles(budget) + mixed(budget, number), options)
    for budget in options.budgets:
        print_budget(budget, options)
    print(
        "Errors in percent. The paper's other figures are drawn, not printed. All learn from WRN-40-2 by attention "
        "transfer,\nunless --labels-alone: the paper does not say, but its errors are those of students (Table 6)."
    )
    if options.plot:
        picture(options.plot, (4 * len(options.budgets), 3.5), lambda figure: draw(figure, options))


def records_of(budget: int, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Reads the records of the random networks of a budget, and of each single-type network."""
    end = suffix(options)
    return (
        longest(options.out, f"mixed-{short(budget)}-", end),
        [longest(options.out, each.name, end, whole=True) for each in singles(budget)],
    )


def print_budget(budget: int, options: argparse.Namespace) -> None:
    """Prints the single-type networks, the distribution of the others, and how many of these are better."""
    rows, of_singles = records_of(budget, options)
    named, error = PAPER_SINGLE.get(budget, (None, "-"))
    print(f"\n{budget:,} parameters")
    for each, own in zip(singles(budget), of_singles, strict=True):
        params, macs = each.facts["params"], each.facts["macs"] / 1e6
        # Its error at 400 K is of a type that it does not name.
        papers = error if named is None or each == single(named, budget) else "-"
        print(
            f"  {each.name:14s}{params:>9,} parameters ({params / budget - 1:+.1%}) {macs:6.1f} M MACs   "
            f"error {error_text(own)}   paper {papers}"
        )
    if not rows:
        print(f"  mixed: not trained yet   paper's mean {PAPER_MEAN.get(budget, '-')}")
        return
    values = [*errors(rows).values()]
    print(
        f"  mixed: {len(values)} networks, {form(rows)}, error {mean_and_deviation(values)}   "
        f"paper's mean {PAPER_MEAN.get(budget, '-')}"
    )
    quantiles = zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)
    print("  percentiles: " + "   ".join(f"{percent}: {value:.2f}" for percent, value in quantiles))
    for each, own in zip(singles(budget), of_singles, strict=True):
        if own and form(own) == form(rows):
            better = sum(value < errors(own)[each.genome] for value in values)
            print(f"  better than {each.name}: {better} of {len(values)}")


def draw(figure: Figure, options: argparse.Namespace) -> None:
    """Draws a histogram for each budget, and the single-type networks as lines."""
    for axes, budget in zip(figure.subplots(1, len(options.budgets), squeeze=False)[0], options.budgets, strict=True):
        rows, of_singles = records_of(budget, options)
        axes.hist([*errors(rows).values()], bins="auto", color=BLUE, alpha=0.6)
        for own in filter(None, of_singles):
            axes.axvline(errors(own)[own[0]["genome"]], color=ORANGE, linestyle=":", label=own[0]["name"])
        axes.set(title=f"{short(budget)} parameters", xlabel="top-1 error (%)", ylabel="mixed networks")
        if any(of_singles):
            axes.legend()


if __name__ == "__main__":
    main()
