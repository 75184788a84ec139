"""How fast a candidate is scored: as the paper describes it, and as this package does, on the same genomes and weights.

    python benchmarks/search_speed.py --data torch/cifar10 --data-dir path/to/cifar10

The paper's way: minibatch of 128, float32, plain memory layout, hooks, and a full backward pass with weight gradients.
Ours: the default (32 images) and exact (the same 128), both with fast kernels. Each candidate's network is built anew
for each way, and the ways alternate, on one thread.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

from blockswap_models import Budget, SearchSpace, fisher_potential
from blockswap_models.data import Minibatch, dataset_minibatch, noise_minibatch
from blockswap_models.networks import residual_blocks

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


def build(space: SearchSpace, genome: str, draw: int) -> nn.Module:
    torch.manual_seed(draw)
    return space.build(genome, **({} if space.layout.preact else {"zero_init_last": False}))


def peak() -> float:
    """The largest memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def agreement(one: list[float], other: list[float]) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(np.argsort(np.argsort(one)), np.argsort(np.argsort(other)))[0, 1])


def minibatch(space: SearchSpace, options: argparse.Namespace) -> Minibatch:
    if options.data is None or space.layout.name != "blockswap_wrn40_2":
        return noise_minibatch(space, options.batch_size)
    return dataset_minibatch(space, options.data, options.data_dir, options.batch_size)


def run(name: str, params: int, options: argparse.Namespace) -> None:
    space = SearchSpace(name)
    genomes = space.sample(options.candidates, Budget(params=params))
    batch = minibatch(space, options)
    fast = batch.images.contiguous(memory_format=torch.channels_last)
    few = options.batch_size // 4
    ways: dict[str, Callable[[nn.Module], float]] = {
        "default": lambda model: fisher_potential(model, fast[:few], batch.labels[:few]),
        "exact": lambda model: fisher_potential(model, fast, batch.labels),
        "paper": lambda model: as_the_paper(model, batch.images, batch.labels),
    }
    seconds = dict.fromkeys(ways, 0.0)
    scores: dict[str, list[float]] = {way: [] for way in ways}
    if (name, params) == CASES[0]:
        # A process's peak never falls: it tells something the first time only, and from the smallest way up.
        for way in ways:
            ways[way](build(space, genomes[0], 0))
            print(f"peak memory after '{way}': {peak():.2f} GB")
    for genome in genomes:
        for way, score in ways.items():
            start = time.perf_counter()
            scores[way].append(score(build(space, genome, 0)))
            seconds[way] += time.perf_counter() - start
    print(f"{name} {params:,} parameters, {len(genomes)} genomes, {batch.source}")
    print("  way      s/candidate  ratio  Spearman with paper  largest relative difference")
    for way in ("paper", "exact", "default"):
        difference = max(abs(a / b - 1) for a, b in zip(scores[way], scores["paper"], strict=True))
        print(
            f"  {way:8s} {seconds[way] / len(genomes):10.3f} {seconds['paper'] / seconds[way]:7.1f} "
            f"{agreement(scores[way], scores['paper']):20.3f}  {f'{difference:.1e}' if way == 'exact' else ''}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="torch/cifar10 or another dataset for the WRN (1/f noise)")
    parser.add_argument("--data-dir")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--smoke", action="store_true", help="one tiny case")
    options = parser.parse_args()
    if options.smoke:
        options.candidates, options.batch_size = 3, 16
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, "
        f"{platform.processor() or platform.machine()}, one thread, seed 0"
    )
    for name, params in CASES[:1] if options.smoke else CASES:
        run(name, params, options)


if __name__ == "__main__":
    main()
