"""How close the sum of a latency table comes to the latency of whole networks.

    python -m benchmarks.speed.latency_table --network wrn40_2 --params 400k --genomes 30

Profiles the search space as `blockswap profile` does; then runs random genomes within the budget whole and in turn, as
often as the profile ran its networks, and compares. Both times are the lower quartile of the repeats.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

from benchmarks.lib.correlation import spearman
from benchmarks.lib.scripts import run_script
from blockswap_models import Budget, LatencyTable, SearchSpace, profile
from blockswap_models.budget import parse_amount
from blockswap_models.machine import threads_set
from blockswap_models.searching.profile import Stopwatch, typical


def measure(networks: list[nn.Module], table: LatencyTable, rounds: int) -> list[float]:
    """The seconds of each whole network, run in turn with the others in the circumstances of the table."""
    stopwatch = Stopwatch(torch.device(table.device))
    networks = [network.eval().to(table.device) for network in networks]
    times: list[list[float]] = [[] for _ in networks]
    with threads_set(table.threads), torch.inference_mode():
        x = torch.rand(table.batch_size, *table.input_size, device=table.device)
        for _ in range(rounds):
            for network, found in zip(networks, times, strict=True):
                network(x)
                found += [stopwatch.whole(network, x) for _ in range(3)]
    return [typical(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="wrn40_2")
    parser.add_argument("--params", default="400k", help="the budget of the genomes (%(default)s)")
    parser.add_argument("--genomes", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one tiny case")
    run_script(parser, run, network="wrn16_1", params="60k", genomes=5, rounds=2)


def run(options: argparse.Namespace) -> None:
    if options.genomes < 2:
        raise ValueError("--genomes is at least 2")
    space = SearchSpace(options.network)
    # Before the profile, which takes minutes.
    genomes = space.sample(options.genomes, Budget(params=parse_amount(options.params)), options.seed)
    start = time.perf_counter()
    table = profile(
        space,
        device=options.device,
        batch_size=options.batch_size,
        threads=options.threads,
        rounds=options.rounds,
    )
    spent = time.perf_counter() - start
    predicted = [table.latency(genome) for genome in genomes]
    measured = measure([space.build(genome) for genome in genomes], table, options.rounds)
    errors = [one / other - 1 for one, other in zip(predicted, measured, strict=True)]
    print(
        f"torch {torch.__version__}, {table.device}, {table.about['processor']}, {table.threads} threads, "
        f"{table.batch_size} x {'x'.join(map(str, table.input_size))}, {options.rounds} rounds"
    )
    print(f"{options.network}, {len(space.types)} block types profiled in {spent:.0f} s")
    print("  predicted   measured   error  genome")
    for genome, one, other, error in zip(genomes, predicted, measured, errors, strict=True):
        print(f"  {one * 1000:6.2f} ms  {other * 1000:6.2f} ms  {error:+6.1%}  {genome}")
    absolute = np.abs(errors)
    print(
        f"{len(genomes)} genomes within params {options.params}: median relative error {np.median(absolute):.1%}, "
        f"largest {absolute.max():.1%}, Spearman {spearman(predicted, measured):.3f}"
    )


if __name__ == "__main__":
    main()
