"""Table 1 of the paper: how rankings of random networks agree with their errors once they are trained.

    python -m benchmarks.paper.table1 --train --data-dir path/to/cifar10 --networks 100 --together 8
    python -m benchmarks.paper.table1 --score --data-dir path/to/cifar10

Trains random networks of WRN-40-2 at three budgets, ranks them by each score after 1, 10 and 100 minibatches of
training, and prints Spearman's rank correlation of the scores with the errors beside the paper's. Errors are kept in
`records.jsonl` and scores in `scores.jsonl`: the same command resumes where it stopped, more --networks join, and
--score computes what is missing for the networks that are trained, such as a new ranking or more draws.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.lib.correlation import correlate
from benchmarks.lib.genomes import (
    BUDGETS,
    add_random_options,
    check_together,
    errors,
    form,
    longest,
    mixed,
    networks_of,
    short,
    suffix,
    train_all,
)
from benchmarks.lib.report import versions
from benchmarks.lib.scripts import run_script
from benchmarks.lib.trained import Trainer
from benchmarks.paper.ranked import RANKINGS, Scores, describe, score_all

MINIBATCHES = (1, 10, 100)
# After 1, 10 and 100 minibatches, at 200 K, 400 K and 800 K.
PAPER = {
    "accuracy": ((-0.004, -0.022, -0.495), (-0.068, -0.282, -0.386), (0.042, -0.211, -0.257)),
    "l2-norm": ((-0.083, -0.185, -0.289), (0.093, -0.213, -0.251), (0.368, 0.226, 0.140)),
    "gradient-norm": ((-0.541, -0.490, 0.326), (-0.612, -0.444, 0.402), (-0.608, 0.340, 0.558)),
    "fisher": ((-0.602, -0.621, -0.439), (-0.685, -0.667, -0.508), (-0.635, -0.638, -0.277)),
}
REMARKS = """\
Spearman's rho of score and top-1 error, signed as the paper prints it: negative where a higher score means a lower
error. In brackets the 95 % interval, of percentiles over 2,000 samples of the networks with replacement. Ties share a
rank; a score that failed (not finite) ranks last. Draws have new weights and minibatches, and are averaged
geometrically, as in a search. The paper does not say whether these networks had a teacher; their errors (Figure 2) are
those of students (Table 6), so they learn from one here, unless --labels-alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_random_options(parser)
    parser.add_argument("--score", action="store_true", help="score the networks that are trained, and train none")
    parser.add_argument("--minibatches", type=int, nargs="+", default=MINIBATCHES, help="of training (1 10 100)")
    parser.add_argument("--draws", type=int, default=1, help="draws of weights and minibatches (%(default)s)")
    run_script(parser, run, networks=2, together=2, minibatches=[1, 2], budgets=BUDGETS[:1])


def run(options: argparse.Namespace) -> None:
    if min(*options.minibatches, options.draws) < 1:
        raise ValueError("--minibatches and --draws are at least 1")
    check_together(options)
    print(versions())
    scores = Scores(Path(options.out) / "scores.jsonl")
    if options.train or options.score:
        trainer = Trainer.of(options)
        print(trainer, flush=True)
        if options.train:
            number = networks_of(options, trainer)
            print(f"{number} random networks at each of {', '.join(map(short, options.budgets))}", flush=True)
            # The budgets in turn, so that a part of a run has as many networks of each.
            some = [mixed(budget, number) for budget in options.budgets]
            chunks = [
                group[start : start + options.together]
                for start in range(0, number, options.together)
                for group in some
            ]
            for chunk in chunks:
                train_all(trainer, chunk, options)
        genomes = [genome for budget in options.budgets for genome in errors(networks(budget, options))]
        score_all(scores, trainer, genomes, options.minibatches, options.draws, 0)
        data = describe(trainer)
    else:
        # The images of most scores.
        data = next((name for name, _ in Counter(key[-1] for key in scores.values).most_common(1)), "-")
    print(f"scores on {data}")
    for budget in options.budgets:
        print_budget(budget, networks(budget, options), scores, data, options)
    print(REMARKS)


def networks(budget: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    return longest(options.out, f"mixed-{short(budget)}-", suffix(options))


def print_budget(
    budget: int, rows: Sequence[dict[str, Any]], scores: Scores, data: str, options: argparse.Namespace
) -> None:
    """Prints a line for each ranking: rho, its interval and the paper's rho after each number of minibatches."""
    by_genome = errors(rows)
    if not rows:
        print(f"\n{budget:,} parameters: no networks trained yet")
    else:
        values = list(by_genome.values())
        print(
            f"\n{budget:,} parameters: {len(values)} networks, {form(rows)}, mean error {statistics.mean(values):.2f} %"
        )
    columns = "".join(f"{f'after {number}':>10s}{'':18s}{'paper':>8s}" for number in options.minibatches)
    print(f"{'ranking':18s}{columns}")
    for name in RANKINGS:
        for draws in dict.fromkeys((1, options.draws)):
            cells = ""
            for number in options.minibatches:
                found = {}
                for genome, error in by_genome.items():
                    # A network without this score yet is left out.
                    with suppress(KeyError):
                        found[genome] = scores.of(genome, name, number, draws, 0, data), error
                cells += f"{cell(found.values(), len(by_genome)):28s}{papers(name, budget, number, draws):>8s}"
            print(f"{name if draws == 1 else f'{name} x{draws}':18s}{cells.rstrip()}")
    for name in ("params", "macs"):
        cost = {row["genome"]: row[name] for row in rows}
        print(
            f"{name:18s}{cell([(cost[genome], error) for genome, error in by_genome.items()], len(by_genome))}".rstrip()
        )


def cell(pairs: Iterable[tuple[float | None, float]], number: int) -> str:
    """Writes rho and its interval, and how many networks it is of and how many failed, where these differ from all."""
    pairs = list(pairs)
    if not pairs:
        return f"{'-':>10s}"
    found = correlate(*zip(*pairs, strict=True))
    text = f"{found.rho:>10.3f} [{found.low:.2f}, {found.high:.2f}]"
    text += f" of {found.number}" if found.number < number else ""
    return text + (f", {found.failed} failed" if found.failed else "")


def papers(ranking: str, budget: int, minibatches: int, draws: int) -> str:
    if ranking not in PAPER or minibatches not in MINIBATCHES or draws > 1:
        return "-"
    return f"{PAPER[ranking][BUDGETS.index(budget)][MINIBATCHES.index(minibatches)]:.3f}"


if __name__ == "__main__":
    main()
