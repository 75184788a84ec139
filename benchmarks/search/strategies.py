"""How good the genomes are that each strategy of the search finds, after the same number of scored genomes.

    python -m benchmarks.search.strategies

Each search scores its genomes once. Its leaders are then scored again, the same number for all, with new draws of the
weights; the one that leads by these, "refined", and the one that led by its single draw, "single", are scored once more
with further draws, on another minibatch. Printed is the geometric mean of these last scores, which had no part in any
choice. "last round" is the geometric mean over all genomes of the last round, by their only draw: no choice either.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import run_script
from blockswap_models import Budget, Genome, SearchSpace, fisher_potential, search
from blockswap_models.searching.candidates import Candidate, ScoredDraw
from blockswap_models.searching.probe_images import noise_minibatch
from blockswap_models.searching.strategies import (
    ROUND,
    START,
    STRATEGIES,
    log_scores,
    new_genomes,
    option_numbers,
    surrogate,
    uniform,
)

PARAMS = [200_000, 400_000]
LEADERS, REFINING, JUDGING = 6, range(6), range(100, 116)
POPULATION, TOURNAMENT = 100, 10
COLUMNS = ("single", "refined", "last round")


def evolution(space: SearchSpace, budget: Budget, seed: int, scored: Sequence[Candidate], number: int) -> list[Genome]:
    """Changes the winners of tournaments among the last genomes scored (regularised evolution, Real et al., 2019).

    A child has one or two blocks of another type, or two blocks of its parent exchanged.
    """
    if not scored:
        return space.sample(min(number, START), budget, seed)
    random = np.random.default_rng([seed, 2, len(scored)])
    population = scored[-POPULATION:]
    values = log_scores(population)
    picks = [option_numbers(space, each.genome) for each in population]

    def children() -> Iterator[Genome | None]:
        for _ in range(100 * ROUND):
            rivals = random.integers(len(population), size=TOURNAMENT)
            child = picks[rivals[np.argmax(values[rivals])]].copy()
            one, other = random.choice(len(child), size=2, replace=False)
            if random.random() < 0.5:
                for place in (one, other)[: random.integers(1, 3)]:
                    child[place] = random.integers(len(space.options[place]))
            else:
                names = [space.options[place][child[place]][0] for place in (other, one)]
                known = [[block for block, _ in space.options[place]] for place in (one, other)]
                if not all(name in each for name, each in zip(names, known, strict=True)):
                    continue
                child[one], child[other] = known[0].index(names[0]), known[1].index(names[1])
            genome, cost = space.decode(child)
            yield genome if budget.fits(cost) else None

    return new_genomes(space, budget, seed, scored, children())[:number]


def geometric_mean(values: Iterable[float]) -> float:
    logs = list(map(math.log, values))
    return math.exp(sum(logs) / len(logs))


def again(space: SearchSpace, genome: Genome, draws: range, batch_size: int, seed: int) -> float:
    """Scores a genome with new draws of its weights."""
    batch = noise_minibatch(space, batch_size, seed)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    scores = []
    for draw in draws:
        torch.manual_seed(1_000 * seed + draw)
        scores.append(fisher_potential(space.build(genome), images, batch.labels))
    return geometric_mean(scores)


def found(space: SearchSpace, budget: Budget, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Searches with each strategy from one seed; the results by strategy and column."""
    known: dict[str, float] = {}
    seconds: dict[str, float] = {}
    saved: list[float] = []

    def score(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
        # A score depends on seed and genome alone: what two strategies propose is scored once, but both take its time.
        if model.genome in known:
            saved.append(seconds[model.genome])
        else:
            start = time.perf_counter()
            known[model.genome] = fisher_potential(model, images, labels)
            seconds[model.genome] = time.perf_counter() - start
        return known[model.genome]

    results = {}
    for name in STRATEGIES:
        last_round: list[str] = []

        def in_rounds(
            scored: Iterable[ScoredDraw], *_: object, genomes: list[str] = last_round
        ) -> Iterable[ScoredDraw]:
            # Called for each round.
            genomes.clear()
            for each in scored:
                genomes.append(each.genome)
                yield each

        saved.clear()
        start = time.perf_counter()
        arguments = {"batch_size": options.batch_size, "score": score, "strategy": name, "progress": in_rounds}
        ranked = search(space, budget, options.samples, seed, refine=0, on_interrupt="raise", **arguments).candidates
        leaders = [each.genome for each in ranked[:LEADERS]]
        refined = max(leaders, key=lambda each: again(space, each, options.refining, options.batch_size, 500 + seed))
        judged = {each: again(space, each, options.judging, options.batch_size, 900) for each in {leaders[0], refined}}
        last = geometric_mean(known[genome] for genome in last_round)
        results[name] = dict(zip(COLUMNS, (judged[leaders[0]], judged[refined], last), strict=True))
        figures = "".join(f"{value:12.4f}" for value in results[name].values())
        spent = time.perf_counter() - start + sum(saved)
        print(f"{budget.params:8,} {seed:5}  {name:10s}{figures}{spent:8.0f}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200, help="genomes that each search scores (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="searches of each kind (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--smoke", action="store_true", help="one tiny case")
    parser.set_defaults(refining=REFINING, judging=JUDGING, params=PARAMS, network="wrn40_2")
    smoke = {"refining": range(1), "judging": range(100, 101), "params": [60_000], "network": "wrn16_1"}
    run_script(parser, run, samples=103, seeds=1, batch_size=2, **smoke)


def run(options: argparse.Namespace) -> None:
    if min(options.samples, options.seeds, options.batch_size) < 1:
        raise ValueError("--samples, --seeds and --batch-size are at least 1")
    # The package has no evolution, because of what this prints.
    STRATEGIES.update(random=uniform, evolution=evolution, surrogate=surrogate)
    torch.set_num_threads(1)
    print(f"{versions()}, {processor()}, one thread")
    print(f"{options.network}, {options.samples} genomes a search, 1/f noise, {options.batch_size} images")
    print("  params  seed  strategy  " + "".join(f"{column:>12s}" for column in COLUMNS) + " seconds")
    space = SearchSpace(options.network)
    for amount in options.params:
        runs = [found(space, Budget(params=amount), seed, options) for seed in range(options.seeds)]
        for strategy in STRATEGIES:
            means = {column: geometric_mean(run[strategy][column] for run in runs) for column in COLUMNS}
            print(f"{amount:8,}  mean  {strategy:10s}" + "".join(f"{means[column]:12.4f}" for column in COLUMNS))
        for column in COLUMNS:
            wins = [max(run, key=lambda strategy: run[strategy][column]) for run in runs]
            print(f"          best by {column}: " + ", ".join(f"{each} {wins.count(each)}" for each in STRATEGIES))


if __name__ == "__main__":
    main()
