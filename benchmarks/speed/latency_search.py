"""What a search for latency finds: ResNet-34 as fast as torchvision's ResNet-18, and in half of its time.

    python -m benchmarks.speed.latency_search
    python -m benchmarks.speed.latency_search --data path/to/imagenet/train --samples 1000

Profiles the search space on this machine, measures torchvision's ResNet-18, and searches genomes whose latency by the
table is at most that, down to 5 % less; then at most half of it. What is found is built and measured whole, in turn
with ResNet-18 and the zoo's networks, in the circumstances of the table. Where the space has nothing so fast, or
nothing so slow, its least or its greatest latency is the budget.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torchvision

from benchmarks.lib.scripts import run_script
from benchmarks.speed.latency import build
from benchmarks.speed.latency_table import measure
from blockswap_models import Budget, LatencyTable, SearchSpace, count, profile, search
from blockswap_models.machine import default_workers
from blockswap_models.searching.probe_images import Minibatch, affordable_batches, dataset_minibatch

# How far below the latency that is wanted a network may be.
SLACK = 0.05


def budget_for(space: SearchSpace, seconds: float) -> Budget:
    """The budget of at most so many seconds, or of the nearest that the space can meet."""
    least, most = space.range("latency")
    # A single round on a busy machine can measure the whole network slower than any sum of the table's rows.
    high = min(max(seconds, least * (1 + SLACK)), most)
    return Budget(latency=(high * (1 - SLACK), high))


def images_of(options: argparse.Namespace, space: SearchSpace) -> Minibatch | None:
    """The minibatches of the search: noise where no data is given."""
    if options.data is None:
        return None
    num_batches = affordable_batches(space, options.batch_size)
    return dataset_minibatch(
        space, options.data, options.data_dir, options.batch_size, options.seed, num_batches=num_batches
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet34", help="what to search (%(default)s)")
    parser.add_argument("--like", default="resnet18", help="the network of torchvision (%(default)s)")
    parser.add_argument("--beside", nargs="*", default=["resnet34", "resnet34_8m", "resnet34_3m"], help="entries")
    parser.add_argument("--parts", type=float, nargs="+", default=[1.0, 0.5], help="of its latency (1 and 0.5)")
    parser.add_argument("--samples", type=int, default=100, help="genomes of each search (%(default)s)")
    parser.add_argument("--refine", type=int, default=2, help="rounds of more draws for the best (%(default)s)")
    parser.add_argument("--data", help="images of the search: a timm dataset, or a folder (noise)")
    parser.add_argument("--data-dir", help="the folder of the dataset")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a score (%(default)s)")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--table", metavar="FILE", help="the latency table, read where it is there, else written")
    parser.add_argument("--device", help="where latency counts (the table's, else cpu)")
    parser.add_argument("--threads", type=int, help="of the network that is measured (the table's, else 1)")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes that score (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="of measuring (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a tiny form")
    smoke = {"network": "resnet18", "beside": ["resnet18"]}
    run_script(parser, run, image_size=32, samples=3, refine=0, rounds=1, workers=1, batch_size=4, **smoke)


def run(options: argparse.Namespace) -> None:
    if min(options.samples, options.batch_size, options.rounds, options.workers) < 1:
        raise ValueError("--samples, --batch-size, --rounds and --workers are at least 1")
    space = SearchSpace(options.network, image_size=options.image_size)
    # Before the profile, which takes minutes.
    like = build(f"torchvision/{options.like}")
    beside = {f"blockswap_{name}": build(f"blockswap_{name}") for name in options.beside}
    if options.table is not None and Path(options.table).exists():
        table = LatencyTable.load(options.table)
        if options.device not in (None, table.device) or options.threads not in (None, table.threads):
            raise ValueError(
                f"the table {options.table} is of {table.device} and {table.threads} threads; leave out --device and "
                "--threads, or use another --table"
            )
        made = f"table {options.table}"
    else:
        start = time.perf_counter()
        device, threads = options.device or "cpu", 1 if options.threads is None else options.threads
        table = profile(space, device=device, threads=threads, rounds=options.rounds)
        made = f"profiled in {time.perf_counter() - start:.0f} s"
        if options.table is not None:
            table.save(options.table)
    about = f"{table.about['processor']}, {table.threads} threads, 1 x {'x'.join(map(str, table.input_size))}"
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {table.device}, {about}")
    print(f"{made}, {options.rounds} rounds, seed {options.seed}")
    space = SearchSpace(options.network, image_size=options.image_size, latency=table)
    (wanted,) = measure([like], table, options.rounds)
    networks = {f"torchvision {options.like}": like, **beside}
    data = images_of(options, space)
    print(f"torchvision {options.like}: {wanted * 1000:.2f} ms", flush=True)
    for part in options.parts:
        budget = budget_for(space, part * wanted)
        start = time.perf_counter()
        result = search(
            space,
            budget,
            options.samples,
            options.seed,
            data=data,
            batch_size=options.batch_size,
            score="fisher",
            refine=options.refine,
            workers=options.workers,
            on_interrupt="raise",
        )
        spent = time.perf_counter() - start
        low, high = (each * 1000 for each in budget.windows["latency"])
        fitting = f"{space.count(budget):.1e} genomes, {len(result.candidates)} scored in {spent:.0f} s"
        print(f"{part:g} x {options.like}, {low:.2f} to {high:.2f} ms: {fitting}\n  {result.best.genome}", flush=True)
        networks[f"found for {part:g} x {options.like}"] = space.build(result.best.genome)
    times = measure(list(networks.values()), table, options.rounds)
    print(f"\n{'network':28s}{'parameters':>12s}{'MACs (M)':>10s}{'by table':>11s}{'measured':>11s}{'ratio':>7s}")
    for (name, network), seconds in zip(networks.items(), times, strict=True):
        cost = count(network, space.input_size)
        genome = getattr(network, "genome", None)
        told = "" if genome is None else f"{table.latency(genome) * 1000:.2f} ms"
        print(
            f"{name:28s}{cost.params:12,}{cost.macs / 1e6:10,.1f}{told:>11s}{seconds * 1000:8.2f} ms"
            f"{seconds / times[0]:7.2f}"
        )
    print("Measured times are of one run, each network in turn; ratio: to the first. No network has been trained.")


if __name__ == "__main__":
    main()
