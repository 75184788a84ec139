"""Does an additive model of block types make a ranking surer? Two estimates of the same genomes, on other weights.

    python -m benchmarks.search.shrinkage --data torch/cifar10 --data-dir path/to/cifar10 --out shrinkage.jsonl

Genomes are scored by several draws each, into a record from which the same command resumes. Two estimates A and B have
as many draws each, and share none. Estimates are the mean of the logarithms of a genome's own draws; the model, which
predicts it from the types of the blocks and the scores of all genomes; and the posterior mean, which weighs both.

"A with B" is Spearman's rank correlation of two estimates, over all genomes and over the tenth that each puts first
(the mean of both directions). Two estimates can agree in a common fault, so "unseen" compares an estimate with the mean
of draws that it has not seen, over all genomes; and "gain" is the mean of these draws over the tenth that it puts
first, in standard deviations above that of all. Where two draws are all there are, B's are those A has not seen.

The model is a Gaussian process whose covariance is additive: genomes are as alike as the number of their blocks that
are alike, at the same place and anywhere. The share of the model in the variance is that of the greatest likelihood;
the variance of a draw is that within genomes.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

from benchmarks.lib.correlation import spearman
from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import run_script
from blockswap_models import Budget, Genome, SearchSpace, search
from blockswap_models.searching.probe_images import dataset_minibatch, noise_minibatch
from blockswap_models.searching.record import read_record

MINIBATCHES = 64
# Splits of the draws into A, B and the rest.
SPLITS = 10
SHARES = np.linspace(0.05, 0.95, 10)


def alike(genomes: list[Genome]) -> np.ndarray:
    """How alike genomes are: the share of blocks that are the same, at the same place and anywhere (n, n).

    Centred, since what is common to all genomes is no difference between them, and scaled to a mean diagonal of 1, so
    that a share of it is a share of the variance.
    """
    types = sorted({str(block) for genome in genomes for block in genome.blocks})
    numbers = np.array([[types.index(str(block)) for block in genome.blocks] for genome in genomes])
    same = (numbers[:, None] == numbers).mean(-1)
    counts = np.stack([np.bincount(row, minlength=len(types)) for row in numbers]) / numbers.shape[1]
    everywhere = counts @ counts.T
    kernel = (same + everywhere / everywhere.diagonal().mean()) / 2
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    return centred * len(centred) / np.trace(centred)


def estimates(logs: np.ndarray, kernel: np.ndarray, noise: float) -> dict[str, np.ndarray]:
    """Estimates each genome's log score from the draws of all (n, k), of which one has the variance `noise`."""
    own = logs.mean(1)
    centred = own - own.mean()
    noise /= logs.shape[1]
    between = max(centred.var() - noise, 0.1 * centred.var())
    values, vectors = np.linalg.eigh(kernel)
    rotated = vectors.T @ centred
    _, share = max(
        (-np.sum(np.log(spread)) - np.sum(rotated**2 / spread), share)
        for share in SHARES
        for spread in [between * (share * values + 1 - share).clip(1e-9) + noise]
    )
    additive = between * share * values
    spread = (additive + between * (1 - share)).clip(1e-9) + noise
    return {
        "own": own,
        "model": own.mean() + vectors @ (additive / spread * rotated),
        "posterior": own.mean() + vectors @ ((additive + between * (1 - share)) / spread * rotated),
    }


def ranks_agree(one: np.ndarray, other: np.ndarray, first: int | None = None) -> float:
    """The rank correlation of two estimates, over those that the first of them puts first."""
    chosen = np.argsort(-one)[:first]
    return spearman(one[chosen].tolist(), other[chosen].tolist())


def compare(logs: np.ndarray, kernel: np.ndarray, draws: int, first: int) -> dict[str, np.ndarray]:
    """For each estimate: A with B, over all and over the first; with unseen draws; and the gain of the first."""
    noise = float(logs.var(1, ddof=1).mean())
    random = np.random.default_rng(0)
    found: dict[str, list[list[float]]] = {}
    for _ in range(SPLITS):
        order = random.permutation(logs.shape[1])
        parts = order[:draws], order[draws : 2 * draws]
        halves = [estimates(logs[:, part], kernel, noise) for part in parts]
        for name in halves[0]:
            one, other = (half[name] for half in halves)
            firsts = [ranks_agree(one, other, first), ranks_agree(other, one, first)]
            unseen, gains = [], []
            for estimate, part, others in zip((one, other), parts, parts[::-1], strict=True):
                rest = logs[:, others if logs.shape[1] == 2 * draws else np.setdiff1d(order, part)].mean(1)
                unseen.append(ranks_agree(estimate, rest))
                gains.append((rest[np.argsort(-estimate)[:first]].mean() - rest.mean()) / rest.std())
            found.setdefault(name, []).append(
                [ranks_agree(one, other), *(float(np.mean(each)) for each in (firsts, unseen, gains))]
            )
    return {name: np.mean(each, axis=0) for name, each in found.items()}


def run(options: argparse.Namespace) -> None:
    if min(options.samples, options.draws) < 2 or options.batch_size < 1:
        raise ValueError("--samples and --draws are at least 2, and --batch-size at least 1")
    record = Path(options.out) / "shrinkage.jsonl" if options.smoke else Path(options.out)
    space = SearchSpace(options.network)
    budget = Budget(params=options.params)
    genomes = space.sample(options.samples, budget, options.seed)
    if options.data is None:
        data = noise_minibatch(space, options.batch_size, 0, MINIBATCHES)
    else:
        data = dataset_minibatch(space, options.data, options.data_dir, options.batch_size, 0, num_batches=MINIBATCHES)
    there = record.exists() and record.stat().st_size > 0
    arguments = {"data": data, "refine": 0, "record": record, "workers": options.workers, "on_interrupt": "raise"}
    search(space, budget, genomes=genomes, draws=options.draws, resume=there, **arguments)
    scores = {(each.genome, each.draw): each.score for each in read_record(record)[1]}
    logs = np.log([[scores[genome, draw] for draw in range(options.draws)] for genome in genomes])
    first = max(5, len(genomes) // 10)
    print(f"{versions()}, {processor()}")
    print(
        f"{options.network}, params {options.params}, {len(genomes)} genomes of {options.draws} draws, minibatches of "
        f"{options.batch_size}, {options.data or '1/f noise'}; standard deviation of the log score within a genome "
        f"{logs.var(1, ddof=1).mean() ** 0.5:.2f}, between genomes {logs.mean(1).std():.2f}; over the first {first}"
    )
    print("                 A with B  A with B        all       gain")
    print("draws  estimate   over all  over first  unseen   of first")
    kernel = alike(genomes)
    for draws in itertools.takewhile(lambda each: 2 * each <= options.draws, (2**power for power in range(10))):
        for name, (agreement, of_first, unseen, gain) in compare(logs, kernel, draws, first).items():
            print(f"{draws:5d}  {name:9s}  {agreement:8.3f}  {of_first:10.3f}  {unseen:6.3f}  {gain:9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="wrn40_2")
    parser.add_argument("--params", default="400k", metavar="AMOUNT")
    parser.add_argument("--data", help="torch/cifar10 or another dataset (1/f noise)")
    parser.add_argument("--data-dir")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=8, help="draws of each genome (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=7, help="of the genomes (%(default)s)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default="shrinkage.jsonl", help="the record (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="few genomes of a small network; leaves no record")
    run_script(parser, run, network="wrn16_1", params="60k", samples=12, draws=2, batch_size=2)


if __name__ == "__main__":
    main()
