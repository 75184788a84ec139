"""Do scores agree with the errors of trained networks in this package's own search space, and is their choice good?

    python -m benchmarks.search.trained_genomes --data-dir path/to/cifar10 --out trained
    python -m benchmarks.search.trained_genomes --data-dir path/to/cifar10 --out trained --list
    python -m benchmarks.search.trained_genomes --data-dir path/to/cifar10 --time

Samples `--samples` genomes uniformly within a budget and scores each by all rankings, on the same minibatches; the
leaders of each ranking get more draws. Then trains what each ranking chooses, the sampled genome of most MACs, and
`--genomes` others, all from one seed by one complete short schedule, the recipe `cifar10-30` unless options change it.

Those others, "random", are taken from the sampled ones so that MACs and scores spread: the first is nearest to the
middle of all ranks, and each next one is that whose ranks by MACs and by each score are farthest from all taken before.
With more of them the first stay the same. They reach the ends of all ranks more often than a uniform sample does, so
correlations over them tend to be larger, for every ranking.

A genome that is chosen twice is trained once. Scores are kept in `scores-….jsonl` within `--out`, runs in folders
beside it, and the line of each finished one in `records.jsonl`: the same command goes on where it was stopped. On
another machine it goes on from `scores-….jsonl` and `records.jsonl` alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from scipy import stats
from timm.task import TrainingTask
from torch import nn
from tqdm import tqdm

from benchmarks.lib.correlation import Correlation, correlate, correlate_given, share_below, spearman
from benchmarks.lib.genomes import digest
from benchmarks.lib.images import cifar_images, noise_images
from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import run_script
from benchmarks.lib.trained import Trainer, facts_of
from benchmarks.speed.roofline import Clock
from benchmarks.speed.train_speed import Marked, typical
from blockswap_models import Genome, SearchSpace, search
from blockswap_models.machine import find_device, keep_memory
from blockswap_models.searching.candidates import Candidate, ScoredDraw, candidates_of, comparable, estimated
from blockswap_models.searching.probe_images import Minibatch, affordable_batches, dataset_minibatch, noise_minibatch
from blockswap_models.training.evaluate import load_weights
from blockswap_models.training.loop import make_optimizer, train_epoch
from blockswap_models.training.recipes import RECIPES
from blockswap_models.zoo.cards import file_digest

RECIPE = "cifar10-30"
PARTS = ("fisher", "fisher-balanced", "gradient-norm", "naswot")
RANKINGS = (*PARTS, "fisher+naswot", "fisher-balanced+naswot", "gradient-norm+naswot")
MOST_MACS = "most-macs"
SIZES = (16, 24, 32)
# Fewer networks have no correlation worth printing.
FEWEST = 4
REMARKS = """\
rho is Spearman's, of score and top-1 error: negative where a higher score means a lower error. In brackets the 95 %
interval, of percentiles over 2,000 samples of the networks with replacement. "At equal MACs" is the partial
correlation of ranks. "Estimated" is rho of what a search reports: scores that the draws of all genomes make surer.
"Better than fisher" is the share of those samples in which the rho of a ranking is lower. One seed each: the errors
of one network differ from seed to seed, too."""


@dataclass(frozen=True)
class Planned:
    """A genome that is trained: by the name of what chose it, with its scores by ranking.

    `estimates` are the scores that all draws of all sampled genomes make surer, as a search reports them.
    """

    name: str
    candidate: Candidate
    scores: dict[str, float]
    estimates: dict[str, float]

    @property
    def genome(self) -> Genome:
        """The genome."""
        return self.candidate.genome


# What --smoke has in the place of the options.
SMOKE: dict[str, Any] = {
    "network": "wrn16_1",
    "params": "60k",
    "genomes": 4,
    "samples": 6,
    "draws": 1,
    "leaders": 1,
    "leader_draws": 2,
    "score_batch_size": 4,
    "epochs": 2,
    "batch_size": 4,
    "lr": 0.01,
    "small_size": 16,
    "small_share": 0.5,
    "threads": 1,
}


def main() -> None:
    run_script(make_parser(), run, **SMOKE)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wrn40_2", help="the network whose blocks are replaced (%(default)s)")
    parser.add_argument("--params", default="400k", help="the budget, as of blockswap search (%(default)s)")
    parser.add_argument("--genomes", type=int, default=24, help="random genomes to train (%(default)s)")
    parser.add_argument("--data-dir", help="the folder of CIFAR-10, as torchvision unpacks it")
    parser.add_argument("--out", default="trained", metavar="FOLDER", help="where runs and scores go (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these names of the plan, or random (all)")
    parser.add_argument("--list", action="store_true", help="print the plan, and train nothing")
    parser.add_argument("--time", action="store_true", help="time a training step by size of images, on one thread")
    scores = parser.add_argument_group("scores")
    scores.add_argument("--samples", type=int, default=300, help="genomes that are sampled and scored (%(default)s)")
    scores.add_argument("--draws", type=int, default=2, help="draws of the weights of each (%(default)s)")
    scores.add_argument("--leaders", type=int, default=8, help="leaders that get more draws (%(default)s)")
    scores.add_argument("--leader-draws", type=int, default=8, help="draws of each leader (%(default)s)")
    scores.add_argument("--score-batch-size", type=int, default=32, help="images in a minibatch (%(default)s)")
    scores.add_argument("--sample-seed", type=int, default=0, help="seed of genomes and scores (%(default)s)")
    scores.add_argument("--workers", type=int, default=1, help="processes that score (%(default)s)")
    training, short = parser.add_argument_group("training, equal for all"), RECIPES[RECIPE]
    training.add_argument("--epochs", type=int, default=short.epochs, help="(%(default)s)")
    training.add_argument("--batch-size", type=int, default=short.batch_size, help="(%(default)s)")
    training.add_argument("--lr", type=float, default=short.lr, help="(%(default)s)")
    training.add_argument("--image-size", type=int, help="side of the images, also of those to test on (32)")
    training.add_argument("--small-size", type=int, default=short.small_size, help="of the first epochs (%(default)s)")
    training.add_argument("--small-share", type=float, default=short.small_share, help="of the epochs (%(default)s)")
    training.add_argument("--images", type=int, help="training images, evenly spaced (all)")
    training.add_argument("--teacher", metavar="FILE", help="the original network's weights: attention transfer")
    training.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (%(default)s)")
    training.add_argument("--device", help="where to train (cuda where there is a GPU, else cpu)")
    training.add_argument("--amp", choices=("bfloat16",), help="precision of autocast (float32)")
    training.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a tiny form on noise, of WRN-16-1")
    return parser


def run(options: argparse.Namespace) -> None:
    for name in ("samples", "draws", "leaders", "score_batch_size", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1")
    if options.genomes < 0:
        raise ValueError("--genomes is at least 0")
    if options.genomes > options.samples:
        raise ValueError(f"{options.genomes} genomes are not among {options.samples}; use more --samples")
    if options.leader_draws < options.draws:
        raise ValueError(f"leaders have at least the {options.draws} draws of all (--leader-draws)")
    trainer, teacher = trainer_of(options)
    print(f"{versions()}; {processor()}")
    if options.time:
        print_times(options, trainer, teacher)
        return
    torch.set_num_threads(options.threads)
    plan, draws = plan_of(options)
    print(f"{trainer}; recipe {RECIPE} with batch size {options.batch_size}, lr {options.lr:g}, seed {options.seed}")
    print_plan(plan)
    summaries: dict[Genome, dict[str, Any]] = {}
    wanted = names_of(plan, options.only)
    for each in plan if not options.list else ():
        if each.name in wanted and each.genome not in summaries:
            summaries[each.genome] = fit(each.genome, trainer, teacher, options)
            error, seconds = summaries[each.genome]["top1_error"], summaries[each.genome]["seconds"]
            print(f"  {each.name:24s} top-1 error {error:5.2f} %, {seconds:,.0f} s", flush=True)
    if not options.list:
        # Those that --only leaves out may be finished.
        summaries |= {
            each.genome: fit(each.genome, trainer, teacher, options)
            for each in plan
            if each.genome not in summaries
            and trainer.recorded(trainer.folder(run_name(each.genome, options), options.seed).name) is not None
        }
        print_results(plan, {genome: summary["top1_error"] for genome, summary in summaries.items()})
        if options.draws > 1:
            print_repeats(draws)


def trainer_of(options: argparse.Namespace) -> tuple[Trainer, nn.Module | None]:
    """Makes what trains, and the teacher if there is one."""
    if options.data_dir is None and not options.smoke:
        raise ValueError("training needs the folder of CIFAR-10; use --data-dir")
    device = find_device(options.device)
    if device.type == "cpu":
        keep_memory()
    recipe = replace(
        RECIPES[RECIPE],
        **{name: getattr(options, name) for name in ("epochs", "batch_size", "lr", "small_size", "small_share")},
    )
    trainer = Trainer(
        noise_images(8) if options.smoke else cifar_images(options.data_dir, options.images),
        options.out,
        recipe,
        source="white noise" if options.smoke else "torch/cifar10",
        device=device,
        amp=options.amp,
        image_size=options.image_size,
        channels_last=True,
        # Only the last: an error in the middle of a schedule says nothing.
        test_every=recipe.epochs,
    )
    if options.teacher is None:
        return trainer, None
    teacher = timm.create_model(f"blockswap_{options.network}")
    load_weights(teacher, options.teacher)
    return trainer, teacher.to(device)


# -- the plan --------------------------------------------------------------------------------------------------------


def plan_of(options: argparse.Namespace) -> tuple[list[Planned], list[ScoredDraw]]:
    """Scores the sampled genomes, and says which are trained: the choice of each ranking, most MACs, random ones.

    All scores come with it.
    """
    space = SearchSpace(options.network)
    depends_on = (options.network, options.params, options.score_batch_size, options.sample_seed)
    path = Path(options.out) / f"scores-{digest(*map(str, depends_on))}.jsonl"

    def scored(draws: int, genomes: Sequence[Genome] | None = None) -> tuple[ScoredDraw, ...]:
        # Draws and genomes are not in the header of a record, so that both searches share one.
        return search(
            *(space, options.params, options.samples, options.sample_seed),
            genomes=genomes,
            data=score_images(space, options),
            score="+".join(PARTS),
            draws=draws,
            refine=0,
            workers=options.workers,
            record=path,
            resume=path.exists() and path.stat().st_size > 0,
            on_interrupt="raise",
        ).draws

    sampled = space.sample(options.samples, space.resolve(options.params)[1], options.sample_seed)
    draws = [each for each in scored(options.draws) if each.genome in set(sampled)]
    # By what all have: leaders that an earlier start gave more draws are ranked as the others.
    first = {ranking: ranked(draws, ranking, options.draws) for ranking in RANKINGS}
    leaders = {ranking: best(found.values(), options.leaders) for ranking, found in first.items()}
    again = list(dict.fromkeys(each for some in leaders.values() for each in some))
    draws = [each for each in scored(options.leader_draws, again) if each.genome in set(sampled)]
    scores = {genome: {ranking: first[ranking][genome].score for ranking in RANKINGS} for genome in first["fisher"]}
    of_genome = first["fisher"]
    surer = {ranking: estimated(ranked(draws, ranking, options.leader_draws).values()) for ranking in RANKINGS}
    estimates: dict[Genome, dict[str, float]] = {genome: {} for genome in scores}
    for ranking, candidates in surer.items():
        for each in candidates:
            estimates[each.genome][ranking] = each.score
    plan = []
    for ranking in RANKINGS:
        found = ranked(draws, ranking, options.leader_draws)
        (choice,) = best([found[genome] for genome in leaders[ranking]], 1)
        plan.append(Planned(ranking, of_genome[choice], scores[choice], estimates[choice]))
    most = max(of_genome.values(), key=lambda each: each.cost.macs)
    plan.append(Planned(MOST_MACS, most, scores[most.genome], estimates[most.genome]))
    features = [[each.cost.macs for each in of_genome.values()]]
    features += [[first[part][genome].score for genome in of_genome] for part in PARTS]
    genomes = list(of_genome)
    for number, place in enumerate(spread(features, options.genomes), start=1):
        genome = genomes[place]
        plan.append(Planned(f"random-{number}", of_genome[genome], scores[genome], estimates[genome]))
    return plan, draws


def score_images(space: SearchSpace, options: argparse.Namespace) -> Minibatch:
    batches = affordable_batches(space, options.score_batch_size)
    if options.smoke:
        return noise_minibatch(space, options.score_batch_size, options.sample_seed, batches)
    arguments = {"batch_size": options.score_batch_size, "seed": options.sample_seed, "num_batches": batches}
    return dataset_minibatch(space, "torch/cifar10", options.data_dir, **arguments)


def ranked(draws: Sequence[ScoredDraw], ranking: str, number: int) -> dict[Genome, Candidate]:
    """Scores genomes by one ranking, from the parts of at most so many draws of each."""
    names = ranking.split("+")
    some = []
    for each in draws:
        assert each.parts is not None
        if each.draw < number:
            # A sum needs the ranks among all; the score of one part is its own.
            parts = {name: each.parts[name] for name in names}
            alone = len(parts) == 1
            some.append(replace(each, score=parts[ranking] if alone else each.score, parts=None if alone else parts))
    return {each.genome: each for each in comparable(candidates_of(some))}


def best(candidates: Sequence[Candidate] | Any, number: int) -> list[Genome]:
    """Finds the genomes of the highest scores; those without a score are last."""
    by_score = sorted(candidates, key=lambda each: each.score if np.isfinite(each.score) else -np.inf, reverse=True)
    return [each.genome for each in by_score[:number]]


def spread(features: Sequence[Sequence[float]], number: int) -> list[int]:
    """Picks items whose ranks by all features spread: the middle one, then each time the one farthest from all picked.

    `features` has one sequence for each feature, with a value for each item. More items are the same and others.
    """
    values = np.where(np.isfinite(features), features, -np.inf)
    ranks = np.stack([stats.rankdata(each) / len(each) for each in values], axis=1)
    picked: list[int] = []
    nearest = np.full(len(ranks), np.inf)
    middle = np.linalg.norm(ranks - np.median(ranks, axis=0), axis=1)
    while len(picked) < min(number, len(ranks)):
        place = int(nearest.argmax()) if picked else int(middle.argmin())
        picked.append(place)
        nearest = np.minimum(nearest, np.linalg.norm(ranks - ranks[place], axis=1))
        # Also where another has the same ranks.
        nearest[picked] = -1
    return picked


def names_of(plan: Sequence[Planned], only: Sequence[str] | None) -> set[str]:
    """Resolves `--only`; `random` is all random ones."""
    names = [each.name for each in plan]
    chosen = set()
    for name in names if only is None else only:
        found = {each for each in names if each == name or (name == "random" and each.startswith("random-"))}
        if not found:
            raise ValueError(f"nothing in the plan is named '{name}'; use {', '.join(names)} or random (--only)")
        chosen |= found
    return chosen


def print_plan(plan: Sequence[Planned]) -> None:
    """Prints each genome of the plan with its costs."""
    print(f"\n{len({each.genome for each in plan})} networks to train:\n")
    print(f"{'name':24s}{'parameters':>11s}{'MACs (M)':>10s}  genome")
    for each in plan:
        cost = each.candidate.cost
        print(f"{each.name:24s}{cost.params:11,}{cost.macs / 1e6:10.1f}  {each.genome}")
    print(flush=True)


# -- training --------------------------------------------------------------------------------------------------------


def run_name(genome: Genome, options: argparse.Namespace) -> str:
    """Names the run of a genome, whatever chose it."""
    return f"{options.network}-{digest(genome)}"


def task_of(
    genome: Genome, trainer: Trainer, teacher: nn.Module | None, options: argparse.Namespace
) -> Callable[[], TrainingTask]:
    """Returns what makes the task of training a genome: by labels, and from the teacher where there is one."""

    def make() -> TrainingTask:
        model = timm.create_model(f"blockswap_{options.network}", genome=genome)
        if teacher is None:
            return trainer.classification(model)
        return trainer.attention_transfer(model, options.seed, teacher)

    return make


def fit(genome: Genome, trainer: Trainer, teacher: nn.Module | None, options: argparse.Namespace) -> dict[str, Any]:
    """Trains a genome unless that is done; returns the summary of its run."""
    return trainer.fit(
        run_name(genome, options),
        options.seed,
        facts_of(timm.create_model(f"blockswap_{options.network}", genome=genome, device="meta")),
        task_of(genome, trainer, teacher, options),
        teacher=None if teacher is None else f"{options.network}, {file_digest(options.teacher)}",
        record_is_enough=True,
    )


def print_times(options: argparse.Namespace, trainer: Trainer, teacher: nn.Module | None, steps: int = 5) -> None:
    """Prints the seconds of a training step, as `train` takes it, and of an epoch at each size of images."""
    torch.set_num_threads(1)
    space = SearchSpace(options.network)
    (genome,) = space.sample(1, space.resolve(options.params)[1], options.sample_seed)
    print(
        f"\nseconds of a step of {trainer.recipe.batch_size} images on one thread, {trainer.amp or 'float32'}, "
        f"median of {steps}: {genome}\n"
    )
    task = task_of(genome, trainer, teacher, options)().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(task.get_trainable_module(), trainer.recipe)
    per_epoch = len(trainer.images.train[1]) // trainer.recipe.batch_size
    print(f"{'pixels':>6s}{'step':>9s}{'epoch':>10s}   an epoch is {per_epoch:,} steps, without the test")
    for size in SIZES:
        images = torch.randn(trainer.recipe.batch_size, 3, size, size, device=trainer.device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (len(images),), device=trainer.device)
        clock = Clock(trainer.device)
        # The first step, which makes what the others find made, is not timed.
        minibatches = Marked(repeat((images, labels)), 1 + steps, clock)
        with tqdm(disable=True) as bar:
            dtype = getattr(torch, trainer.amp or "float32")
            train_epoch(task, minibatches, optimizer, trainer.recipe, bar, dtype=dtype)
        step = typical(clock, warm_up=1)
        print(f"{size:6d}{step:9.3f}{step * per_epoch:8,.0f} s", flush=True)


# -- results ---------------------------------------------------------------------------------------------------------


def print_results(plan: Sequence[Planned], errors: dict[Genome, float]) -> None:
    """Prints the errors of the choices beside those of the random genomes, and how each ranking agrees with them."""
    random = [each for each in plan if each.name.startswith("random-")]
    trained = [each for each in random if each.genome in errors]
    all_genomes = {each.genome for each in plan}
    print(f"\n{len(all_genomes & set(errors))} of {len(all_genomes)} networks are trained")
    print_choices(plan, errors, [errors[each.genome] for each in trained])
    if len(trained) < FEWEST:
        print(f"\ncorrelations need at least {FEWEST} trained random genomes, and there are {len(trained)}")
        return
    print(f"\nagreement with the errors of {len(trained)} of {len(random)} random genomes\n")
    print(
        f"{'ranking':24s}{'rho':>6s}{'':18s}{'at equal MACs':>14s}{'':10s}{'estimated':>9s}{'':15s}better than fisher"
    )
    values = [errors[each.genome] for each in trained]
    macs = [each.candidate.cost.macs for each in trained]
    rows = {ranking: [each.scores[ranking] for each in trained] for ranking in RANKINGS}
    rows |= {"macs": macs, "params": [each.candidate.cost.params for each in trained]}
    for ranking, column in rows.items():
        alone = correlate(column, values)
        equal = None if ranking == "macs" else correlate_given(column, values, macs)
        cells = [cell(alone), "" if equal is None else cell(equal)]
        if ranking in RANKINGS:
            cells.append(cell(correlate([each.estimates[ranking] for each in trained], values)))
        share = share_below(column, rows["fisher"], values)
        cells = [each.ljust(24) for each in [*cells, ""][:3]]
        better = "" if ranking == "fisher" or np.isnan(share) else f"{share:.0%}"
        print(f"{ranking:24s}{''.join(cells)}{better}".rstrip())
    fisher = correlate(rows["fisher"], values)
    print(f"\n{REMARKS}\n\n{sentence(fisher)}")


def print_repeats(draws: Sequence[ScoredDraw]) -> None:
    """Prints how well the first two draws of all genomes agree, by each ranking."""
    genomes = {each.genome for each in draws}
    print(f"\nagreement of two draws of {len(genomes)} genomes, Spearman\n")
    for ranking in RANKINGS:
        one, other = (
            {
                genome: each.score
                for genome, each in ranked([row for row in draws if row.draw == draw], ranking, 2).items()
            }
            for draw in (0, 1)
        )
        print(f"{ranking:24s}{spearman(list(one.values()), [other[genome] for genome in one]):6.2f}")


def print_choices(plan: Sequence[Planned], errors: dict[Genome, float], random: Sequence[float]) -> None:
    """Prints a line for each choice, and one for the random genomes."""
    mean = statistics.fmean(random) if random else None
    print(f"\n{'choice of':24s}{'parameters':>11s}{'MACs (M)':>10s}{'error, %':>10s}   against random genomes")
    for each in plan:
        if each.name.startswith("random-"):
            continue
        error, cost = errors.get(each.genome), each.candidate.cost
        said = "-" if error is None else f"{error:.2f}"
        against = ""
        if error is not None and mean is not None:
            better = sum(other < error for other in random)
            against = f"   {error - mean:+.2f}, {better} of {len(random)} are better"
        print(f"{each.name:24s}{cost.params:11,}{cost.macs / 1e6:10.1f}{said:>10s}{against}")
    if mean is not None:
        print(f"{'random, mean':24s}{'':21s}{mean:10.2f}   {min(random):.2f} to {max(random):.2f}")


def cell(found: Correlation) -> str:
    """Writes rho with its interval, and how many scores failed."""
    if np.isnan(found.rho):
        return f"{'-':>6s}"
    failed = f", {found.failed} failed" if found.failed else ""
    return f"{found.rho:6.2f} [{found.low:.2f}, {found.high:.2f}]{failed}"


def sentence(fisher: Correlation) -> str:
    """Says what the errors mean for the paper's claim."""
    if fisher.high < 0:
        said = "agrees with"
    elif fisher.low > 0:
        said = "contradicts"
    else:
        said = "neither confirms nor contradicts"
    return (
        f"This {said} the paper's claim that networks of a higher Fisher potential train to a lower error: rho "
        f"{fisher.rho:.2f} [{fisher.low:.2f}, {fisher.high:.2f}] over {fisher.number} networks."
    )


if __name__ == "__main__":
    main()
