"""Section 4.3 of the paper: the error of the best of 10, 100 and 1,000 random networks by Fisher potential.

    python -m benchmarks.paper.best_of
    python -m benchmarks.paper.best_of --train --data-dir path/to/cifar10

Scores 1,000 genomes of WRN-40-2 within 2.5 % of 400 K parameters as the paper does, on one minibatch of 128 images, and
counts the best of the first 10, 100 and 1,000 of them; with --refine the best get more draws, as in `blockswap search`.
With --train it trains these and the single-type network. The same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from benchmarks.lib.genomes import (
    Student,
    add_student_options,
    check_together,
    digest,
    error_text,
    longest,
    nearest_single,
    short,
    suffix,
    train_all,
)
from benchmarks.lib.report import versions
from benchmarks.lib.scripts import run_script
from benchmarks.lib.trained import TEACHER, Trainer
from benchmarks.paper.figure2 import PAPER_SINGLE
from blockswap_models import Budget, SearchSpace, search
from blockswap_models.machine import default_workers
from blockswap_models.searching.probe_images import dataset_minibatch, noise_minibatch

BUDGET, BATCH = 400_000, 128
PAPER = {10: "4.85", 100: "4.54", 1000: "4.21"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_student_options(parser)
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[*PAPER], help="how many to choose from (%(default)s)"
    )
    parser.add_argument("--refine", type=int, default=0, help="rounds of more draws for the best (%(default)s)")
    parser.add_argument("--search-seed", type=int, default=0, help="of genomes, weights and minibatch (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="images of a minibatch (%(default)s)")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes that score (%(default)s)")
    run_script(parser, run, samples=[1, 3], batch_size=4, workers=1, together=2)


def found(options: argparse.Namespace) -> dict[int, Student]:
    """Searches, and returns the best of the first so many genomes; in their order, those of a longer sample."""
    space, seed = SearchSpace(TEACHER), options.search_seed
    genomes = space.sample(max(options.samples), Budget(params=BUDGET), seed)
    kind = "noise" if options.data_dir is None else "cifar10"
    data = noise_minibatch(space, options.batch_size, seed)
    if options.data_dir is not None:
        data = dataset_minibatch(space, "torch/cifar10", options.data_dir, options.batch_size, seed)
    chosen = {}
    for number in sorted(options.samples):
        # Each is a search of its own: what it refines depends on how many there are.
        record = Path(options.out) / f"best-of-{short(BUDGET)}-{kind}{options.batch_size}-seed{seed}.jsonl"
        best = search(
            space,
            Budget(params=BUDGET),
            seed=seed,
            genomes=genomes[:number],
            data=data,
            score="fisher",
            draws=1,
            refine=options.refine,
            workers=options.workers,
            record=record,
            resume=record.exists() and record.stat().st_size > 0,
            progress=lambda rows, total, done, name: tqdm(rows, name, total, initial=done, disable=None),
            on_interrupt="raise",
        ).best
        chosen[number] = Student(f"best-{short(BUDGET)}-{digest(best.genome)}", best.genome, BUDGET)
    return chosen


def run(options: argparse.Namespace) -> None:
    # Before the search, which takes long: what cannot be trained is refused.
    check_together(options)
    trainer = Trainer.of(options) if options.train else None
    print(versions())
    chosen = found(options)
    if trainer is not None:
        print(trainer, flush=True)
        # The best of 10 may be that of 100 too.
        train_all(trainer, [nearest_single(BUDGET), *dict.fromkeys(chosen.values())], options)
    print(f"{BUDGET:,} parameters, Fisher potential on {options.batch_size} images, seed {options.search_seed}")
    print(f"{'':16s}{'parameters':>10s}{'MACs (M)':>10s}   {'top-1 error (%)':40s}paper   genome")
    rows = [("single-type", nearest_single(BUDGET), PAPER_SINGLE[BUDGET][1])]
    rows += [(f"best of {number:,}", each, PAPER.get(number, "-")) for number, each in chosen.items()]
    for label, each, paper in rows:
        error = error_text(longest(options.out, each.name, suffix(options), whole=True))
        facts = each.facts
        print(f"{label:16s}{facts['params']:>10,}{facts['macs'] / 1e6:>10.1f}   {error:40s}{paper:6s}  {each.genome}")
    images = "1/f noise; --data-dir for CIFAR-10's" if options.data_dir is None else "CIFAR-10's, as in the paper"
    print(f"Images: {images}. All learn from WRN-40-2 by attention transfer, unless --labels-alone.")


if __name__ == "__main__":
    main()
