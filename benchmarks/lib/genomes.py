"""Networks of WRN-40-2 by their genome: drawn, counted, trained several at a time, and read back from the records."""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.lib.report import mean_and_deviation
from benchmarks.lib.trained import TEACHER, Trainer, add_options, facts_of, finished, longest_runs, records
from blockswap_models import Budget, Genome, SearchSpace
from blockswap_models.genome import SEARCH_TYPES, GenomeError
from blockswap_models.layout import Layout
from blockswap_models.training.shared_teacher import SharedTeacherTask

__all__ = [
    "BUDGETS",
    "Student",
    "add_random_options",
    "add_student_options",
    "check_together",
    "digest",
    "error_text",
    "errors",
    "form",
    "longest",
    "mixed",
    "nearest_single",
    "networks_of",
    "short",
    "single",
    "suffix",
    "train_all",
]

# Parameters (paper, sections 4.1 and 4.2).
BUDGETS = (200_000, 400_000, 800_000)


@dataclass(frozen=True)
class Student:
    """A network of WRN-40-2's layout; `name` is that of its runs, `budget` the parameters that it was drawn for."""

    name: str
    genome: Genome
    budget: int | None = None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What its record says of it."""
        return {**facts_of(self.build(device="meta")), "budget": self.budget}

    def build(self, **kwargs: Any) -> nn.Module:
        """Builds it; arguments as of `timm.create_model`."""
        return timm.create_model(f"blockswap_{TEACHER}", genome=self.genome, **kwargs)


def short(params: int) -> str:
    """Writes a number of parameters for a name: 200k."""
    return f"{params // 1000}k"


def mixed(budget: int, number: int, seed: int = 0) -> list[Student]:
    """Draws random networks within 2.5 % of a number of parameters; a longer list starts with a shorter one."""
    genomes = SearchSpace(TEACHER).sample(number, Budget(params=budget), seed)
    # By the genome, so that a name is always the same network.
    return [Student(f"mixed-{short(budget)}-{digest(genome)}", genome, budget) for genome in genomes]


def single(block: str, budget: int | None = None) -> Student:
    """Makes the network whose blocks are all of one type."""
    genome = Genome("/".join(f"{depth}x{block}" for depth in Layout.named(TEACHER).depths))
    return Student(f"single-{block}", genome, budget)


def nearest_single(budget: int) -> Student:
    """Finds the network of a single type of the search space whose parameters are nearest to a budget."""
    space, costs = SearchSpace(TEACHER), {}
    for block in map(str, SEARCH_TYPES):
        try:
            costs[block] = space.cost(single(block).genome).params
        except GenomeError:
            # Its groups do not divide every width.
            continue
    return single(min(costs, key=lambda block: abs(costs[block] - budget)), budget)


def digest(*texts: str) -> str:
    """Names texts, such as a genome, for a folder."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:10]


def add_student_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `add_options`, and those of training networks by their genome."""
    add_options(parser)
    parser.add_argument(
        "--together", type=int, default=1, metavar="N", help="networks to train at a time, of one teacher (%(default)s)"
    )
    parser.add_argument("--labels-alone", action="store_true", help="train without a teacher")


def add_random_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `add_student_options`, and those of drawing networks at random."""
    add_student_options(parser)
    parser.add_argument("--networks", type=int, help="random networks a budget (100; without a GPU 10)")
    parser.add_argument("--budgets", type=int, nargs="+", choices=BUDGETS, default=BUDGETS, help="parameters (all)")


def networks_of(options: argparse.Namespace, trainer: Trainer) -> int:
    """Says how many random networks a budget has, fewer in the reduced form."""
    if options.networks is None:
        return 10 if trainer.device.type == "cpu" else 100
    if options.networks < 1:
        raise ValueError(f"a budget has at least 1 random network, not {options.networks} (--networks)")
    return options.networks


def check_together(options: argparse.Namespace) -> None:
    """Raises ValueError where so many networks cannot be trained at a time."""
    if options.together < 1:
        raise ValueError(f"at least 1 network is trained at a time, not {options.together} (--together)")
    if options.labels_alone and options.together > 1:
        raise ValueError("networks that are trained together share a teacher; leave out --labels-alone or --together")


def train_all(trainer: Trainer, students: Sequence[Student], options: argparse.Namespace) -> None:
    """Trains students by the options of `add_student_options`, in their order, those that are not trained yet.

    They learn from the teacher of their seed by attention transfer, or by labels alone.
    """
    check_together(options)
    for seed in [0] if options.smoke else options.seeds:
        for start in range(0, len(students), options.together):
            some = students[start : start + options.together]
            summaries = _fit_alone(trainer, some, seed) if options.labels_alone else fit_together(trainer, some, seed)
            for name, summary in summaries:
                error, seconds = summary["top1_error"], summary["seconds"]
                print(f"  {name:28s} seed {seed}: top-1 error {error:.2f} %, {seconds:,.0f} s", flush=True)


def _fit_alone(trainer: Trainer, students: Sequence[Student], seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for student in students:
        name = student.name + "-labels"
        yield (
            name,
            trainer.fit(
                name,
                seed,
                student.facts,
                lambda each=student: trainer.classification(each.build()),
                record_is_enough=True,
            ),
        )


def fit_together(trainer: Trainer, students: Sequence[Student], seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Trains students in one run, with one forward of their teacher; returns their summaries.

    Those that have been trained stay as they are. An interrupted run goes on where the same students are asked for.
    """
    common = trainer.arguments(trainer.teacher_digest(seed))
    own = {each.name: {"name": each.name, **each.facts} for each in students}

    def done(student: Student) -> dict[str, Any] | None:
        wanted = {**asdict(trainer.recipe), "seed": seed, **common, **own[student.name]}
        return finished(trainer.folder(student.name, seed), wanted, trainer.recorded)

    def folder(some: Sequence[Student]) -> Path:
        return trainer.folder(f"together-{digest(*(each.name for each in some))}", seed)

    missing = [each for each in students if done(each) is None]
    # Where the run was killed while its results were put away, its checkpoint has what some of them lack.
    some = students if missing and (folder(students) / "checkpoint.pth").exists() else missing
    if some:
        torch.manual_seed(seed)

        def make_task() -> SharedTeacherTask:
            teacher, tasks = trainer.teacher(seed), {}
            for each in some:
                # The weights that it has where it is trained by itself.
                torch.manual_seed(seed)
                tasks[each.name] = trainer.attention_transfer(each.build(), seed, teacher)
            return SharedTeacherTask(tasks)

        trainer.run(
            folder(some),
            seed,
            make_task,
            common,
            trainer.recipe,
            of_students={each.name: own[each.name] for each in some},
        )
        for each in missing:
            _put_away(folder(some) / each.name, trainer.folder(each.name, seed))
        trainer.collect()
    return [(each.name, done(each)) for each in students]


def _put_away(folder: Path, target: Path) -> None:
    """Moves the results of one of several students to where they would lie had it been trained alone."""
    os.replace(folder, target)


def suffix(options: argparse.Namespace) -> str:
    """Says how the names of runs end: those without a teacher have names of their own."""
    return "-labels" if options.labels_alone else ""


def longest(out: str | Path, name: str, end: str = "", whole: bool = False) -> list[dict[str, Any]]:
    """Reads the records of networks of a name, those of the most images and epochs that there are.

    Their names start with `name`, or are `name` where it is `whole`; `end` is that of `suffix`.
    """
    rows = [row for row in records(out) if row["name"].endswith("-labels") == bool(end)]
    return longest_runs(row for row in rows if (row["name"] == name + end if whole else row["name"].startswith(name)))


def errors(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Averages the top-1 errors, in percent, of each genome over its seeds."""
    by_genome: dict[str, list[float]] = {}
    for row in rows:
        by_genome.setdefault(row["genome"], []).append(row["top1_error"])
    return {genome: statistics.mean(values) for genome, values in by_genome.items()}


def error_text(rows: Sequence[dict[str, Any]]) -> str:
    """Sums up the errors of one network: mean, standard deviation, and what it was trained on."""
    if not rows:
        return "not trained yet"
    values = [row["top1_error"] for row in rows]
    return f"{mean_and_deviation(values)} ({len(values)} x {form(rows)})"


def form(rows: Sequence[dict[str, Any]]) -> str:
    """Says how long the networks of some records of one form were trained."""
    epochs = rows[0]["epochs"]
    return f"{epochs} epoch{'s' * (epochs != 1)} of {rows[0]['train_images']:,} images"
