"""How fast a candidate is scored: as the paper describes it, and as this package does, on the same genomes and weights.

    python -m benchmarks.speed.search_speed --data torch/cifar10 --data-dir path/to/cifar10

The paper's way: minibatch of 128, float32, plain memory layout, hooks, and a full backward pass with weight gradients.
Ours: the default (Fisher potential and NASWOT of 8 images, in bfloat16 where the CPU computes in it), the same in
float32, the Fisher potential alone as the default computes it, the same of 32 images, and exact (of the 128 images, in
float32). The ways alternate, on one thread; their times include the making of the network. The default is another
score, and agrees with the paper's only as far as that does. The last line of each case states how far scores of other
weights agree, which bounds what any agreement is worth.
"""

from __future__ import annotations

import argparse
import functools
import resource
import time

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.lib.correlation import spearman
from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import run_script
from blockswap_models import Budget, Genome, SearchSpace
from blockswap_models.nets.networks import residual_blocks
from blockswap_models.searching.candidates import ScoredDraw, candidates_of, comparable
from blockswap_models.searching.probe_images import Minibatch, dataset_minibatch, noise_minibatch
from blockswap_models.searching.rankings import default_score, images_of
from blockswap_models.searching.scorer import Scorer, fast_dtype

CASES = [("wrn40_2", 200_000), ("wrn40_2", 400_000), ("wrn40_2", 800_000), ("resnet34", 3_000_000)]


def as_the_paper(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Fisher potential by hooks and a whole backward pass."""
    model.train()
    scores: list[float] = []
    outputs: list[torch.Tensor] = []

    def probe(_: nn.Module, __: object, output: torch.Tensor) -> None:
        # By its place in a list: a hook that held the output itself would never be freed.
        place = len(outputs)
        outputs.append(output.detach())

        def measure(gradient: torch.Tensor) -> None:
            by_channel = (outputs[place] * gradient).sum(dim=(2, 3))
            scores.append(float(by_channel.square().sum() / (2 * len(images))))

        output.register_hook(measure)

    for block in residual_blocks(model):
        block.get_submodule(block.branch_end).register_forward_hook(probe)
    F.cross_entropy(model(images), labels).backward()
    return sum(scores)


def peak() -> float:
    """The largest memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def minibatch(space: SearchSpace, options: argparse.Namespace, size: int) -> Minibatch:
    if options.data is None or space.layout.name != "blockswap_wrn40_2":
        return noise_minibatch(space, size)
    return dataset_minibatch(space, options.data, options.data_dir, size)


def run_case(name: str, params: int, options: argparse.Namespace) -> None:
    space = SearchSpace(name)
    genomes = space.sample(options.candidates, Budget(params=params))
    many = minibatch(space, options, options.batch_size)

    def first(size: int) -> Minibatch:
        size = min(size, options.batch_size // 2)
        return Minibatch(many.images[:size], many.labels[:size], many.source)

    few = first(images_of(default_score()))
    ways = {
        "default": Scorer(space, few, default_score(), dtype=fast_dtype()),
        "float32": Scorer(space, few, default_score()),
        "fisher": Scorer(space, few, dtype=fast_dtype()),
        "32 images": Scorer(space, first(32), dtype=fast_dtype()),
        "exact": Scorer(space, many),
        "paper": functools.partial(paper, Scorer(space, many)),
    }
    seconds = dict.fromkeys(ways, 0.0)
    draws: dict[str, list[ScoredDraw]] = {way: [] for way in ways}
    alone = (name, params) == CASES[0]
    for way, scorer in ways.items():
        # A process's peak never falls: it tells something the first time only, and from the smallest way up.
        scorer((genomes[0], 0))
        if alone:
            print(f"peak memory after '{way}': {peak():.2f} GB")
    for genome in genomes:
        for way, scorer in ways.items():
            start = time.perf_counter()
            draws[way].append(scorer((genome, 0)))
            seconds[way] += time.perf_counter() - start
    scores = {way: scores_of(each) for way, each in draws.items()}
    alike = {
        way: spearman(scores[way], scores_of([ways[way]((genome, 1)) for genome in genomes]))
        for way in ("default", "fisher")
    }
    print(f"{name} {params:,} parameters, {len(genomes)} genomes, {many.source}")
    print("  way        s/candidate  ratio  Spearman with paper  largest relative difference")
    for way in reversed(ways):
        difference = max(abs(a / b - 1) for a, b in zip(scores[way], scores["paper"], strict=True))
        print(
            f"  {way:10s} {seconds[way] / len(genomes):10.3f} {seconds['paper'] / seconds[way]:7.1f} "
            f"{spearman(scores[way], scores['paper']):20.3f}  {f'{difference:.1e}' if way == 'exact' else ''}"
        )
    print(f"  other weights, Spearman: default {alike['default']:.3f}, fisher {alike['fisher']:.3f}", flush=True)


def scores_of(draws: list[ScoredDraw]) -> list[float]:
    """The scores of genomes of one draw each; sums of ranks are those among them."""
    return [each.score for each in comparable(candidates_of(draws))]


def paper(scorer: Scorer, task: tuple[Genome, int]) -> ScoredDraw:
    """Scores as the paper describes it, with the weights of a scorer."""
    start = {} if scorer.space.layout.preact else {"zero_init_last": False}
    torch.manual_seed(scorer.seed_of(*task))
    model = scorer.space.build(task[0], **start)
    score = as_the_paper(model, scorer.data.images, scorer.data.labels)
    return ScoredDraw(task[0], scorer.space.cost(task[0]), task[1], score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="torch/cifar10 or another dataset for the WRN (1/f noise)")
    parser.add_argument("--data-dir")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    numbers = range(len(CASES))
    parser.add_argument(
        "--cases", type=int, nargs="*", choices=numbers, default=numbers, help="which of the four (all)"
    )
    parser.add_argument("--smoke", action="store_true", help="one tiny case")
    run_script(parser, run, candidates=3, batch_size=16, cases=[0])


def run(options: argparse.Namespace) -> None:
    if options.candidates < 2 or options.batch_size < 4:
        raise ValueError("--candidates is at least 2, and --batch-size at least 4")
    torch.set_num_threads(1)
    print(f"{versions()}, {processor()}, one thread, seed 0, default in {str(fast_dtype()).removeprefix('torch.')}")
    for name, params in (CASES[each] for each in options.cases):
        run_case(name, params, options)


if __name__ == "__main__":
    main()
