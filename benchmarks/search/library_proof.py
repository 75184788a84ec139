"""Is a student of trained blocks better than the paper's at equal compute?

    python -m benchmarks.search.library_proof --data-dir path/to/cifar10 --out proof
    python -m benchmarks.search.library_proof --data-dir path/to/cifar10 --out proof --list

At each budget (`--params`) three students of one teacher are trained on CIFAR-10 by the same recipe:

    fisher       the genome of the highest Fisher potential of `--samples`, from random weights: the paper's method
    fisher-lib   the same genome, which starts from the blocks of the library
    library      the genome whose trained blocks are best when joined, which starts from them

Compute is counted in multiply-accumulates, a backward pass as two forward ones: the search, what trains and measures
the library, and each training step with the teacher's pass; on smaller images (`--image-size`, `--small-size`) by their
area. The budget of compute is what `fisher` takes for its search and `--epochs` epochs. The others train for as many
whole epochs as it allows, twice: as if the library were there already ("apart"), and when the whole library has been
paid for ("paid"), though one library serves all budgets. A student of more MACs has fewer epochs then, so one for which
"apart" is another number also trains for as many epochs as `fisher` ("as long"). `--macs` is a further budget for all.

The library is kept in `--out`, so are the records of the searches and the folder of each run; each finished run has a
line in `records.jsonl`. The same command goes on where it was stopped. Errors are those of the end of each schedule.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_pretrained
from torch import nn

from benchmarks.lib.genomes import digest
from benchmarks.lib.images import Images, cifar_images, noise_images
from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import run_script
from benchmarks.lib.trained import Trainer, facts_of
from blockswap_models import (
    AttentionTransferTask,
    BlockLibrary,
    BlockType,
    Cost,
    Genome,
    SearchSpace,
    count,
    search,
    swap,
    train_library,
)
from blockswap_models.machine import find_device, keep_memory
from blockswap_models.nets.swap import BlockNetwork
from blockswap_models.searching.block_choice import search_library, space_of_library
from blockswap_models.searching.probe_images import Minibatch, affordable_batches, dataset_minibatch, noise_minibatch
from blockswap_models.training.evaluate import load_weights
from blockswap_models.training.loaders import cifar_training_loader
from blockswap_models.training.recipes import RECIPES, Recipe
from blockswap_models.zoo.cards import file_digest

RECIPE = "cifar10-30"
# Images in a minibatch of the search.
SCORED = 32
# Side of the images whose MACs are counted.
SIDE = 32
# Forward passes in a training step, its backward pass included.
STEP = 3
# What --smoke has in the place of the options.
SMOKE: dict[str, Any] = {
    "network": "wrn16_1",
    # So many that blocks of the network's own type are left.
    "params": ["120k"],
    "types": "S,G4,W1",
    "samples": 2,
    "steps": 1,
    "measure": 1,
    "library_batch_size": 2,
    "joined": 2,
    "joined_images": 4,
    "epochs": 4,
    "batch_size": 4,
    "threads": 1,
}


@dataclass(frozen=True)
class Start:
    """A student before it is trained: its genome, whether it has trained blocks, and what it has cost, in MACs.

    `cost` is that of the network as it is built.
    """

    name: str
    genome: Genome
    cost: Cost
    trained: bool
    spent: int


def main() -> None:
    run_script(make_parser(), run, **SMOKE)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wrn40_2", help="the network whose blocks are replaced (%(default)s)")
    parser.add_argument("--teacher", metavar="FILE|NAME", help="its weights, or an entry of the zoo (the zoo's)")
    parser.add_argument("--params", nargs="+", default=["800k", "400k", "200k"], help="budgets (800k 400k 200k)")
    parser.add_argument("--macs", help="a budget of MACs that all students meet too, such as ..70m (none)")
    parser.add_argument("--data-dir", help="the folder of CIFAR-10, as torchvision unpacks it")
    parser.add_argument("--out", default="proof", metavar="FOLDER", help="where all goes (%(default)s)")
    parser.add_argument("--list", action="store_true", help="make the library, print the plan, and train no student")
    parser.add_argument("--samples", type=int, default=1000, help="genomes of the Fisher search (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of searches, weights and images (%(default)s)")
    parser.add_argument("--device", help="where to train (cuda where there is a GPU, else cpu)")
    parser.add_argument("--amp", choices=("bfloat16",), help="precision of autocast (float32)")
    parser.add_argument("--images", type=int, help="training images, evenly spaced (all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    library = parser.add_argument_group("library")
    library.add_argument("--types", help="block types, such as S,G4,W1 (the paper's 23)")
    library.add_argument("--steps", type=int, default=300, help="minibatches that blocks learn from (%(default)s)")
    library.add_argument("--measure", type=int, default=8, help="minibatches that measure errors (%(default)s)")
    library.add_argument("--library-batch-size", type=int, default=64, help="images in a minibatch (%(default)s)")
    library.add_argument("--joined", type=int, default=50, help="genomes that are joined and measured (%(default)s)")
    library.add_argument("--joined-images", type=int, default=1000, help="images that measure them (%(default)s)")
    training, short = parser.add_argument_group("training, equal for all"), RECIPES[RECIPE]
    training.add_argument("--epochs", type=int, default=short.epochs, help="(%(default)s)")
    training.add_argument("--batch-size", type=int, default=short.batch_size, help="(%(default)s)")
    training.add_argument("--lr", type=float, default=short.lr, help="(%(default)s)")
    training.add_argument("--image-size", type=int, help="side of all images but those of searches (32)")
    training.add_argument("--small-size", type=int, default=0, help="side of the first epochs' images (as all)")
    training.add_argument("--small-share", type=float, default=short.small_share, help="of the epochs (%(default)s)")
    training.add_argument("--soft-labels", type=float, default=0.0, help="weight of the teacher's (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a tiny form on noise, of WRN-16-1")
    return parser


def run(options: argparse.Namespace) -> None:
    sizes = ("batch_size", "library_batch_size")
    for name in ("epochs", "steps", "measure", "samples", "joined", "joined_images", "threads", *sizes):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1")
    if options.data_dir is None and not options.smoke:
        raise ValueError("training needs the folder of CIFAR-10; use --data-dir")
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    if device.type == "cpu":
        keep_memory()
    images = noise_images(8) if options.smoke else cifar_images(options.data_dir, options.images)
    for name in sizes:
        if getattr(options, name) > len(images.train[1]):
            raise ValueError(
                f"{len(images.train[1]):,} images make no minibatch; use a smaller --{name.replace('_', '-')}"
            )
    teacher, of_teacher = teacher_of(options, images, device)
    print(f"{versions()}; {processor()}")
    print(f"teacher: {of_teacher}; {trainer_of(options, images, device, options.epochs)}", flush=True)
    library = library_of(options, images, teacher, device)
    network = BlockNetwork(teacher)
    side = options.image_size or SIDE
    paid = round(library_macs(library, network, options.library_batch_size) * (side / SIDE) ** 2)
    print(f"library: {len(library.errors)} blocks, {paid / 1e12:,.2f} T MACs", flush=True)
    for params in options.params:
        starts = starts_of(options, params, teacher, library)
        rows = []

        def training_macs(start: Start, epochs: int) -> int:
            per_epoch = epoch_macs(start.cost, network.cost, images, options)
            return round(sum(per_epoch * area for area in areas(options, epochs)))

        untrained = next(each for each in starts if not each.trained)
        limit = untrained.spent + training_macs(untrained, options.epochs)
        also = "" if options.macs is None else f", {options.macs} MACs"
        print(f"\n{params}{also}: {limit / 1e12:,.2f} T MACs each\n")
        for start in starts:
            wanted = {"": options.epochs}
            if start.trained:
                wanted = {
                    # A student that costs less may train longer than the others.
                    how: next(n for n in itertools.count(0) if training_macs(start, n + 1) > limit - start.spent - part)
                    for how, part in (("apart", 0), ("paid", paid))
                }
                if wanted["apart"] != options.epochs:
                    wanted = {"as long": options.epochs, **wanted}
            for how, epochs in wanted.items():
                spent = start.spent + (paid if how == "paid" else 0)
                summary = None
                if epochs > 0 and not options.list:
                    trainer = trainer_of(options, images, device, epochs)
                    summary = fit(start, trainer, teacher, of_teacher, library, options)
                rows.append((start, how, epochs, spent, spent + training_macs(start, epochs), summary))
        print_rows(rows, options)


def teacher_of(options: argparse.Namespace, images: Images, device: torch.device) -> tuple[nn.Module, str]:
    """Makes the teacher, which the library imitates, and says which it is."""
    entry = f"blockswap_{options.network}"
    if options.smoke:
        torch.manual_seed(0)
        teacher = timm.create_model(entry).train()
        # Its statistics of BN are those of the images.
        teacher(images.train[0].float() / 128 - 1)
        return teacher.eval(), "random weights"
    if options.teacher is not None and Path(options.teacher).is_file():
        teacher = timm.create_model(entry)
        load_weights(teacher, options.teacher)
        return teacher.to(device).eval(), f"{entry}, {file_digest(options.teacher)}"
    name = options.teacher or entry
    if not is_model_pretrained(name):
        raise ValueError(f"no file and no entry with weights '{name}'; 'blockswap list' names the zoo's (--teacher)")
    teacher = timm.create_model(name, pretrained=True)
    return teacher.to(device).eval(), f"{name}.{teacher.pretrained_cfg.get('tag')}"


def trainer_of(options: argparse.Namespace, images: Images, device: torch.device, epochs: int) -> Trainer:
    """Makes what trains for so many epochs."""
    return Trainer(
        images,
        options.out,
        recipe_of(options, epochs),
        source="white noise" if options.smoke else "torch/cifar10",
        device=device,
        amp=options.amp,
        image_size=options.image_size,
        channels_last=True,
    )


def recipe_of(options: argparse.Namespace, epochs: int) -> Recipe:
    """Makes the recipe of so many epochs."""
    names = ("batch_size", "lr", "small_size", "small_share", "soft_labels")
    recipe = replace(RECIPES[RECIPE], epochs=epochs, **{name: getattr(options, name) for name in names})
    return replace(recipe, average_epochs=min(recipe.average_epochs, epochs))


# -- the library and the genomes -------------------------------------------------------------------------------------


def library_of(options: argparse.Namespace, images: Images, teacher: nn.Module, device: torch.device) -> BlockLibrary:
    """Trains the library, or resumes it, unless that is done."""
    recipe = replace(RECIPES[RECIPE], batch_size=options.library_batch_size, cutout=0, small_size=0)
    loader = cifar_training_loader(*images.train, recipe, options.image_size, seed=options.seed, device=device)
    types = {} if options.types is None else {"types": options.types.split(",")}
    folder = Path(options.out) / "library"
    # A library of images of another size is another one, and so is what it costs.
    size = "" if options.image_size is None else f" at {options.image_size} px"
    return train_library(
        teacher,
        loader,
        folder,
        data=("white noise" if options.smoke else "torch/cifar10") + size,
        steps=options.steps,
        measure=options.measure,
        seed=options.seed,
        resume=(folder / "library.json").exists(),
        **types,
    )


def starts_of(options: argparse.Namespace, params: str, teacher: nn.Module, library: BlockLibrary) -> list[Start]:
    """Finds the genomes of a budget, and what finding them has cost; records keep scores and accuracies."""
    space = SearchSpace(options.network, **({} if options.types is None else {"types": options.types.split(",")}))
    budget = {"params": params} if options.macs is None else {"params": params, "macs": options.macs}
    name = digest(options.network, *budget.values(), str(options.types), str(options.seed))
    record = Path(options.out) / f"fisher-{name}.jsonl"
    found = search(
        space,
        budget,
        options.samples,
        options.seed,
        data=probe(space, SCORED, affordable_batches(space, SCORED), options),
        score="fisher",
        refine=0,
        record=record,
        resume=record.exists() and record.stat().st_size > 0,
        on_interrupt="raise",
    )
    scored = STEP * SCORED * sum(each.cost.macs for each in found.candidates)
    record = Path(options.out) / f"library-{name}.jsonl"
    wide = space_of_library(teacher, library)
    size = min(250, options.joined_images)
    measured = probe(wide, size, -(-options.joined_images // size), options)
    joined = search_library(
        teacher,
        library,
        budget,
        measured,
        options.joined,
        record=record,
        resume=record.exists() and record.stat().st_size > 0,
    )
    # One pass for the statistics of BN, one for the accuracy.
    compared = 2 * len(measured.images) * sum(each.cost.macs for each in joined.candidates)

    def start(name: str, genome: Genome, trained: bool, spent: int) -> Start:
        # A type that the network has itself is not in the space of the library, but such a block can be built.
        return Start(name, genome, count(swap(teacher, genome), (3, 32, 32)), trained, spent)

    best = found.best.genome
    return [
        start("fisher", best, False, scored),
        start("fisher-lib", best, True, scored),
        start("library", joined.best.genome, True, compared),
    ]


def probe(space: SearchSpace, size: int, number: int, options: argparse.Namespace) -> Minibatch:
    """Draws the images on which genomes are scored or measured."""
    if options.smoke:
        return noise_minibatch(space, size, options.seed, number)
    return dataset_minibatch(space, "torch/cifar10", options.data_dir, size, options.seed, num_batches=number)


# -- compute ---------------------------------------------------------------------------------------------------------


def library_macs(library: BlockLibrary, network: BlockNetwork, batch_size: int) -> int:
    """Counts what a library has cost: passes of the teacher, one for each part, and of the blocks."""
    rows = [json.loads(line) for line in (library.folder / "errors.jsonl").read_text().splitlines()]
    original = len(rows) * network.cost.macs
    blocks = sum(network.option_cost(index, BlockType.parse(block)).macs for index, block in library.errors)
    steps = library.header["steps"] * (original + STEP * blocks)
    # Variances; statistics of BN, errors, least squares, and errors again.
    measures = library.header["measure"] * (5 * original + 4 * blocks)
    return batch_size * (steps + measures)


def areas(options: argparse.Namespace, epochs: int) -> list[float]:
    """Says how large the images of each epoch are beside those that MACs are counted of."""
    side = options.image_size or SIDE
    small = recipe_of(options, epochs).small_epochs if epochs else 0
    return [(options.small_size / SIDE) ** 2] * small + [(side / SIDE) ** 2] * (epochs - small)


def epoch_macs(student: Cost, teacher: Cost, images: Images, options: argparse.Namespace) -> int:
    """Counts an epoch of training a student on whole images: its own passes, and the teacher's."""
    steps = len(images.train[1]) // options.batch_size
    return steps * options.batch_size * (STEP * student.macs + teacher.macs)


# -- training --------------------------------------------------------------------------------------------------------


def fit(
    start: Start,
    trainer: Trainer,
    teacher: nn.Module,
    of_teacher: str,
    library: BlockLibrary,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Trains a student unless that is done; returns the summary of its run, with the error of each epoch."""

    def make() -> AttentionTransferTask:
        # Without trained blocks all weights are random, those of stem and head too.
        whole = timm.create_model(f"blockswap_{options.network}", genome=swap(teacher, start.genome).genome)
        model = swap(teacher, start.genome, library=library) if start.trained else whole
        return AttentionTransferTask(
            # Whatever the parameters of the teacher are that it was made of.
            model.to(trainer.device).requires_grad_(),
            # The task freezes its teacher, of which the next student is made.
            copy.deepcopy(teacher),
            beta=trainer.recipe.beta,
            mode=trainer.recipe.mode,
            soft_labels=options.soft_labels,
            temperature=trainer.recipe.temperature,
            device=trainer.device,
            verbose=False,
        )

    model = swap(teacher, start.genome)
    name = f"{options.network}-{digest(model.genome)}" + "-lib" * start.trained
    of_library = f", blocks {file_digest(library.folder / 'errors.jsonl')}" * start.trained
    summary = trainer.fit(name, options.seed, facts_of(model), make, teacher=of_teacher + of_library)
    log = (trainer.folder(name, options.seed) / "log.jsonl").read_text().splitlines()
    errors = [row["top1_error"] for row in map(json.loads, log) if row.get("top1_error") is not None]
    return {**summary, "curve": errors}


def print_rows(rows: list[tuple[Any, ...]], options: argparse.Namespace) -> None:
    """Prints the students of a budget with their compute and errors, and the curve of each."""
    titles = f"{'student':12s}{'library':>8s}{'parameters':>12s}{'MACs (M)':>10s}{'epochs':>8s}{'T MACs':>10s}"
    print(f"{titles}{'error, %':>10s}  genome")
    for start, how, epochs, _, total, summary in rows:
        error = "-" if summary is None else f"{summary['top1_error']:.2f}"
        figures = (
            f"{start.cost.params:12,}{start.cost.macs / 1e6:10.1f}{max(epochs, 0):8d}{total / 1e12:10,.2f}{error:>10s}"
        )
        print(f"{start.name:12s}{how:>8s}{figures}  {start.genome}")
    curves = [row for row in rows if row[-1] is not None]
    if curves:
        print("\nerror in percent after a share of all compute\n")
    for start, how, epochs, spent, total, summary in curves:
        done = list(itertools.accumulate(areas(options, epochs)))
        used = [spent + (total - spent) * part / done[-1] for part in done]
        points = [f"{at / total:.0%} {error:.2f}" for at, error in zip(used, summary["curve"], strict=True)]
        print(f"{start.name:12s}{how:>8s}  {', '.join(points)}", flush=True)
    if any(epochs < 1 for _, _, epochs, _, _, _ in rows):
        print("\nwhere no epochs are left, the library alone costs more than the paper's method; use more --epochs")


if __name__ == "__main__":
    main()
