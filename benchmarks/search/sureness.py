"""How surely a search finds the best: whether two searches of the same genomes, on other random numbers, agree.

    python -m benchmarks.search.sureness --data torch/cifar10 --data-dir path/to/cifar10 --out sureness

Searches A and B score the same genomes; the seed of weights and minibatch is all in which they differ. Scores and order
are those that a search reports at its end.
"Spearman over A's" is the rank correlation of A's scores with B's over the 100 that A puts first (`--top`), and the
other way round; the mean of both is the figure. "place of A's best" is its place in B's order, which is to be one of
the top ten. "own" is the mean of both where scores are those of a genome's own draws, which the draws of other genomes
have not made surer. Two estimates can agree in a common fault, so the last table compares those of one search with the
means of the other's own draws, over the genomes that have many.

The ways: the paper's (`fisher`, one draw at batch 128), the default number of draws with `fisher`, all defaults of a
search (`--score` takes the place of the default score), and each `--plan draws,refine` with that score at the
default batch size (`draws,refine,images` at another). Ways of one score and batch size share a record, so that no score
is computed twice, but the cost of each counts all the scores that it needs: seconds from one score to the next, times
workers. A folder `--out` keeps records and times; the same command resumes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.lib.correlation import spearman
from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import run_script
from blockswap_models import Budget, Genome, SearchResult, SearchSpace, search
from blockswap_models.budget import parse_amount
from blockswap_models.machine import default_workers
from blockswap_models.searching.candidates import rank_by_own
from blockswap_models.searching.probe_images import affordable_batches, dataset_minibatch
from blockswap_models.searching.rankings import default_score, images_of, name_of, score_named

TEN = 10
# Draws whose mean is nearly the truth.
UNSEEN = 16
PAPER, SCORE = "fisher", name_of(default_score())


@dataclass(frozen=True)
class Way:
    name: str
    score: str
    batch_size: int
    draws: int
    refine: int


class Times:
    """What each score of a record took, in seconds of a worker, kept in a file beside it."""

    def __init__(self, record: Path, workers: int, label: str) -> None:
        self.path = record.with_suffix(".seconds")
        self.workers = workers
        self.label = label
        self.seconds: dict[tuple[str, int], float] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                genome, draw, seconds = json.loads(line)
            except ValueError:
                # Empty, or cut off when the benchmark was killed.
                continue
            self.seconds[genome, draw] = seconds

    def __call__(self, results: Iterable[Any], total: int, done: int, round_name: str) -> Iterator[Any]:
        """Measures the scores of a search as they come: its `progress`."""
        with open(self.path, "a") as file:
            before = time.perf_counter()
            for each in tqdm(results, f"{self.label}, {round_name}", total, initial=done, mininterval=10, unit="score"):
                now = time.perf_counter()
                seconds = (now - before) * self.workers
                before = now
                self.seconds[each.genome, each.draw] = seconds
                # The end of a line comes first, so that one that was cut off spoils no other.
                file.write("\n" + json.dumps([each.genome, each.draw, seconds]))
                file.flush()
                yield each

    def spent(self, result: SearchResult) -> float:
        """Seconds of a worker for all scores of a search; one whose time is not known took as long as the others."""
        needed = [(each.genome, draw) for each in result.candidates for draw in range(len(each.scores))]
        known = [self.seconds[score] for score in needed if score in self.seconds]
        return sum(known) / len(known) * len(needed) if known else math.nan


def ways(options: argparse.Namespace) -> list[Way]:
    defaults = {name: each.default for name, each in inspect.signature(search).parameters.items()}
    draws, refine = defaults["draws"], defaults["refine"]
    own = images_of(score_named(options.score))
    found = [
        Way(f"{PAPER}, batch 128", PAPER, 128, 1, 0),
        Way(f"{PAPER}, search()'s draws", PAPER, images_of(score_named(PAPER)), draws, refine),
        Way(f"{options.score}, the same", options.score, own, draws, refine),
    ]
    for draws, refine, *images in options.plan:
        name = f"{options.score}, plan {','.join(map(str, (draws, refine, *images)))}"
        found.append(Way(name, options.score, images[0] if images else own, draws, refine))
    return list({(each.score, each.batch_size, each.draws, each.refine): each for each in found}.values())


def plan(text: str) -> tuple[int, ...]:
    numbers = tuple(map(int, text.split(",")))
    if len(numbers) not in (2, 3) or numbers[0] < 1 or numbers[1] < 0 or min(numbers[2:], default=1) < 1:
        raise ValueError
    return numbers


def run(
    space: SearchSpace, genomes: list[Genome], way: Way, seed: int, folder: Path, options: argparse.Namespace
) -> tuple[SearchResult, float]:
    """Searches, or resumes a search; returns the result and the seconds of a worker that all of it took."""
    record = folder / f"{options.network}-params{options.params}-{way.score}-batch{way.batch_size}-seed{seed}.jsonl"
    times = Times(record, options.workers, f"{way.name}, seed {seed}")
    data = None
    if options.data is not None:
        num_batches = affordable_batches(space, way.batch_size)
        data = dataset_minibatch(space, options.data, options.data_dir, way.batch_size, seed, num_batches=num_batches)
    result = search(
        space,
        Budget(params=parse_amount(options.params)),
        seed=seed,
        genomes=genomes,
        data=data,
        batch_size=way.batch_size,
        score=way.score,
        draws=way.draws,
        refine=way.refine,
        workers=options.workers,
        record=record,
        resume=record.exists() and record.stat().st_size > 0,
        progress=times,
        on_interrupt="raise",
    )
    return result, times.spent(result)


def over_top(one: SearchResult, other: SearchResult, top: int) -> float:
    """Spearman's rank correlation of the scores of two searches, over the genomes that the first puts first."""
    scores = {each.genome: each.score for each in other.candidates}
    first = one.candidates[:top]
    pairs = [[each.score for each in first], [scores[each.genome] for each in first]]
    # No score is the worst.
    return spearman(*([score if math.isfinite(score) else -math.inf for score in scores] for scores in pairs))


def own(result: SearchResult) -> SearchResult:
    """The same ranking by each genome's own draws."""
    return replace(result, candidates=tuple(rank_by_own(result.candidates)))


def against_means(one: SearchResult, other: SearchResult) -> tuple[float, float]:
    """Spearman of a search's scores, and of the means of its own draws, with means of draws that it has not seen."""
    means = {each.genome: each.score for each in own(other).candidates if len(each.scores) >= UNSEEN}
    if len(means) < 3:
        return math.nan, math.nan
    found = []
    for result in (one, own(one)):
        scores = {each.genome: each.score for each in result.candidates}
        found.append(spearman([scores[genome] for genome in means], list(means.values())))
    return found[0], found[1]


def place(genome: Genome, result: SearchResult) -> int:
    return 1 + [each.genome for each in result.candidates].index(genome)


def benchmark(options: argparse.Namespace) -> None:
    if min(options.samples, options.top) < 2 or options.workers < 1:
        raise ValueError("--samples and --top are at least 2, and --workers at least 1")
    space = SearchSpace(options.network)
    genomes = space.sample(options.samples, Budget(params=parse_amount(options.params)), options.seed)
    chosen = ways(options)
    if options.smoke:
        chosen = [replace(way, batch_size=max(2, way.batch_size // 16), refine=min(way.refine, 1)) for way in chosen]
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = (options.seed, options.seed + 1)
    top = min(options.top, len(genomes))
    print(
        f"{versions()}, {processor()}, {os.cpu_count()} cores, {options.workers} workers\n"
        f"{options.network}, params {options.params}, {options.score}, {len(genomes)} genomes of seed {options.seed}, "
        f"{options.data or '1/f noise'}; searches A and B: seeds {seeds[0]} and {seeds[1]}",
        flush=True,
    )
    width = max(len(way.name) for way in chosen)
    print(
        f"{'':{width}s}                         worker                Spearman over {top} of          place of best "
        "of  both in"
    )
    print(
        f"{'way':{width}s}  images  draws  refine  seconds  cost  scores     A's     B's    mean     own   A in B   "
        f"B in A  top {TEN}"
    )
    base = math.nan
    compared = []
    for way in chosen:
        (one, seconds), (other, more) = (run(space, genomes, way, seed, folder, options) for seed in seeds)
        seconds = (seconds + more) / 2
        base = seconds if way is chosen[0] else base
        agreement = over_top(one, other, top), over_top(other, one, top)
        alone = over_top(own(one), own(other), top), over_top(own(other), own(one), top)
        places = place(one.best.genome, other), place(other.best.genome, one)
        print(
            f"{way.name:{width}s}  {way.batch_size:6d}  {way.draws:5d}  {way.refine:6d}  {seconds:7.1f}  "
            f"{seconds / base:4.2f}  {sum(len(each.scores) for each in one.candidates):6d}  "
            f"{agreement[0]:6.3f}  {agreement[1]:6.3f}  {sum(agreement) / 2:6.3f}  {sum(alone) / 2:6.3f}  "
            f"{places[0]:7d}  {places[1]:7d}  {'yes' if max(places) <= TEN else 'no'}",
            flush=True,
        )
        unseen = [*against_means(one, other), *against_means(other, one)]
        if all(map(math.isfinite, unseen)):
            compared.append((way.name, unseen))
    print(f"worker seconds: those of one search, mean of A and B; cost: against {chosen[0].name}; records: {folder}")
    if compared:
        print(f"\n{'':{width}s}  with the means of {UNSEEN} draws or more of the other search, Spearman of")
        print(f"{'way':{width}s}    A's estimates  A's means  B's estimates  B's means")
    for name, (estimates, means, of_other, means_of_other) in compared:
        print(f"{name:{width}s}  {estimates:15.3f}  {means:9.3f}  {of_other:13.3f}  {means_of_other:9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="torch/cifar10 or another dataset (1/f noise)")
    parser.add_argument("--data-dir")
    parser.add_argument("--network", default="wrn40_2", help="what to search (%(default)s)")
    parser.add_argument("--params", default="400k", metavar="AMOUNT")
    parser.add_argument("--score", default=SCORE, help="what to rank by, as of blockswap search (%(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="genomes that both searches score (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the genomes and search A; B has the next (%(default)s)")
    parser.add_argument("--top", type=int, default=100, help="how many to correlate over (%(default)s)")
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--plan", type=plan, action="append", default=[], metavar="DRAWS,REFINE[,IMAGES]")
    parser.add_argument("--out", default="sureness", help="the folder of records, to resume from (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="few genomes, tiny minibatches; leaves no records")
    run_script(parser, benchmark, samples=6, top=4, workers=1, network="wrn16_1", params="60k", plan=[(1, 1)])


if __name__ == "__main__":
    main()
