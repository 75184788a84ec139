"""The search: sample genomes within a budget, score each, refine the leaders, rank them (paper, section 4)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from ..budget import Budget, BudgetError, BudgetLike
from ..data.folders import classes_of
from ..errors import BlockSwapError
from ..genome import Genome, GenomeError
from ..layout import Layout
from ..machine import find_device
from ..progress import is_watched
from .candidates import ETA, Candidate, ScoredDraw, rank, rank_draws
from .fisher import Score, fisher_potential
from .probe_images import Minibatch, affordable_batches, noise_minibatch, user_minibatch
from .rankings import score_named
from .record import Record
from .result import SearchResult
from .score_bar import ScoreBar
from .scorer import Scorer, fast_dtype
from .space import SearchSpace
from .strategies import STRATEGIES
from .workers import Shared, WorkerError, local_workers, map_in_order

__all__ = ["Candidate", "SearchError", "SearchResult", "search"]


class SearchError(BlockSwapError, RuntimeError):
    """A search that cannot give an answer; its record keeps what was scored."""


def search(
    space: SearchSpace | str,
    budget: BudgetLike | None,
    samples: int = 1000,
    seed: int = 0,
    *,
    genomes: Iterable[Genome | str] | None = None,
    data: Minibatch | tuple[Any, Any] | Iterable[Any] | str | Path | None = None,
    batch_size: int = 32,
    score: Score | str = fisher_potential,
    strategy: str = "random",
    draws: int = 1,
    refine: int = 3,
    workers: int = 1,
    executor: Executor | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    record: str | Path | None = None,
    resume: bool = False,
    progress: bool | Callable[[Iterable[Any], int, int, str], Iterable[Any]] | None = None,
    on_interrupt: Literal["return", "raise"] = "return",
) -> SearchResult:
    """Chooses genomes within a budget, scores each on a minibatch, gives the best more draws, and ranks them.

    Each draw has new random weights and the next minibatch. A score depends on the seed, the genome and the draw, never
    on the order of scores or on the worker.

    Args:
        space: A search space, or the name of a network such as `wrn40_2`.
        budget: What the networks may cost: a `Budget`; or parameters, as a number or text such as `"400k"`; or amounts
            by name, such as `{"params": "400k", "latency": "4ms"}`. None allows everything.
        samples: Genomes to score.
        seed: Seed of genomes, weights and noise.
        genomes: Exactly these genomes are scored, each once. They too must fit the budget.
        data: Images and labels: a pair of tensors or numpy arrays, a dataset or loader of torch, a folder with one
            folder of images for each class, or what `dataset_minibatch` returns. Images of 1/f noise with random labels
            where none are given. Where the space is a name, its networks have the classes of the folder.
        batch_size: Images in a minibatch.
        score: A name, such as "fisher" or "naswot" (`score_named`), or a function of model, images and labels; higher
            is better.
        strategy: "random" draws genomes uniformly. "surrogate" draws a hundred so and then, fifty at a time, takes the
            best by a model of the scores so far.
        draws: Draws of the weights for each genome.
        refine: Rounds, each of which gives the best quarter four times the draws.
        workers: Processes on this machine, of one thread each.
        executor: Any executor, which takes the place of `workers`.
        device: Where to score.
        dtype: Precision of scores, the fastest for this score where none is given.
        record: A file, to which each score is written as it comes.
        resume: Whether to go on with that file.
        progress: Whether to show a progress bar: by default in a notebook and on a terminal. True writes a line now and
            then to a log, too. Or what is called for each round with the iterable of its scores, the number of scores
            of the whole search, the number that is done, and the name of the round, and returns the iterable.
        on_interrupt: What Ctrl-C does once something is scored. With "return" the result is of what was scored, with a
            warning and `interrupted=True`; with "raise" KeyboardInterrupt is raised. The record is whole either way.

    Returns:
        The ranking.

    Raises:
        BudgetError: No genome fits, or a given one does not.
        GenomeError: A given genome is not of this space.
        RecordError: The record is of another search, or cannot be written.
        SearchError: No score is finite.
        WorkerError: Workers died.

    Example:
        ```python
        result = search("wrn40_2", "400k", samples=100, workers=2)
        model = timm.create_model("blockswap_wrn40_2", genome=result.best.genome)
        ```
    """
    if isinstance(space, str):
        space = SearchSpace(space, num_classes=_num_classes(data))
    for name, value in {"samples": samples, "draws": draws, "workers": workers, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value}")
    for name, value in {"seed": seed, "refine": refine}.items():
        if value < 0:
            raise ValueError(f"{name} is 0 or more, not {value}")
    if strategy not in STRATEGIES:
        raise ValueError(f"there is no strategy {strategy!r}; use {' or '.join(map(repr, STRATEGIES))}")
    if on_interrupt not in ("return", "raise"):
        raise ValueError(f"on_interrupt is 'return' or 'raise', not {on_interrupt!r}")
    propose = STRATEGIES[strategy]
    budget = Budget(params=(0, None)) if budget is None else Budget.of(budget)
    score = score_named(score)
    if genomes is None:
        chosen = propose(space, budget, seed, [], samples)
    else:
        chosen = _given(space, budget, genomes)
        samples = len(chosen)
    if data is None:
        data = noise_minibatch(space, batch_size, seed, affordable_batches(space, batch_size))
    else:
        data = user_minibatch(space, data, batch_size, seed)
    # Where another process scores, its devices are its own.
    device = find_device(device) if executor is None else torch.device(device)
    if dtype is None:
        dtype = fast_dtype(device) if score is fisher_potential else torch.float32
    scorer = Scorer(space, data, score, seed, device, dtype)
    shared = Shared(scorer)
    local = executor is None and workers > 1 and device.type == "cpu"
    if local or executor is not None:
        # Before there is a record: what cannot travel to workers is refused here.
        assert shared.content
    described = _describe(scorer, budget, strategy)
    scored: dict[tuple[Genome, int], ScoredDraw] = {}
    show = progress is True or (progress is None and is_watched())
    finished, interrupted = 0, False
    try:
        with ExitStack() as stack:
            kept = stack.enter_context(Record(record, described, resume) if record is not None else nullcontext())
            scored = kept.draws if kept else scored
            bar = stack.enter_context(ScoreBar()) if show else progress if callable(progress) else None
            # All random genomes are one round, which is shorter than asked for where fewer fit.
            planned = len(chosen) if strategy == "random" else samples
            # Genomes and draws of each round of refinement; a quarter of the draws are those of the round before.
            rounds = [(max(1, planned // ETA**each), draws * ETA**each) for each in range(1, refine + 1)]
            total = planned * draws + sum(leaders * (number - number // ETA) for leaders, number in rounds)

            def evaluate(genomes: Sequence[Genome], number: int, new: int, round_name: str) -> list[Candidate]:
                """Scores genomes by so many draws, of which so many are new in this round."""
                nonlocal executor, finished
                tasks = [(genome, draw) for draw in range(number) for genome in genomes if (genome, draw) not in scored]
                if tasks and local and executor is None:
                    # A search that was done before it was resumed needs none.
                    executor = stack.enter_context(local_workers(workers))
                results: Iterable[ScoredDraw] = map_in_order(shared, tasks, executor, cancel=not local)
                finished += len(genomes) * new
                if bar and tasks:
                    results = bar(results, total, max(0, finished - len(tasks)), round_name)
                try:
                    for each in results:
                        if kept:
                            kept.add(each)
                        scored[each.genome, each.draw] = each
                except WorkerError:
                    if scored:
                        raise
                    raise WorkerError(
                        "a worker died before the first score, perhaps for want of memory; use fewer workers="
                    ) from None
                return [Candidate.of_draws([scored[genome, draw] for draw in range(number)]) for genome in genomes]

            candidates: list[Candidate] = []
            while chosen:
                candidates += evaluate(chosen, draws, draws, "scoring")
                left = samples - len(candidates)
                chosen = propose(space, budget, seed, candidates, left) if left else []
            # In the order in which they were proposed, as the record has them: so ties are ranked alike.
            by_genome = {each.genome: each for each in candidates}
            ranked = rank(candidates)
            for each_round in range(1, refine + 1):
                leaders = [each.genome for each in ranked[: max(1, len(ranked) // ETA**each_round)]]
                number = draws * ETA**each_round
                round_name = f"refining, round {each_round} of {refine}"
                refined = evaluate(leaders, number, number - number // ETA, round_name)
                by_genome.update({each.genome: each for each in refined})
                ranked = rank(by_genome.values())
    except KeyboardInterrupt:
        if on_interrupt == "raise" or not scored:
            raise
        interrupted, ranked = True, rank_draws(scored.values())
        go_on = "search with resume=True" if record is not None else "save it and search with record=, resume=True"
        warnings.warn(
            f"the search was interrupted: this is the result of {len(scored):,} scores; to go on, {go_on}", stacklevel=2
        )
    if not math.isfinite(ranked[0].score):
        raise SearchError(f"none of {len(ranked)} scores is finite; look at the data, or choose another score")
    return SearchResult(space, budget, tuple(ranked), interrupted, tuple(scored.values()), described)


def _num_classes(data: object) -> int | None:
    """The number of classes in a folder of images; None for other data."""
    if not isinstance(data, (str, Path)):
        return None
    classes = classes_of(str(data))
    return None if classes is None else len(classes)


def _given(space: SearchSpace, budget: Budget, genomes: Iterable[Genome | str]) -> list[Genome]:
    """Reads genomes that are to be scored; raises GenomeError or BudgetError for one that does not fit."""
    found: dict[Genome, None] = {}
    for number, text in enumerate(genomes, start=1):
        try:
            genome = Genome(text)
            cost = space.cost(genome)
        except GenomeError as error:
            raise GenomeError(f"genome {number} of those to score: {error}") from None
        if not budget.fits(cost):
            raise BudgetError(f"genome {number} of those to score, {genome}, has {cost}; the budget is {budget}")
        found[genome] = None
    if not found:
        raise ValueError("no genomes to score; give at least one, or leave genomes out to have them sampled")
    return list(found)


def _as_json(layout: Layout) -> dict[str, Any]:
    return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(layout).items()}


def _describe(scorer: Scorer, budget: Budget, strategy: str) -> dict[str, Any]:
    """All that genomes and scores depend on; not their number, so that a search can be extended."""
    space = scorer.space
    return {
        "space": space.layout.name,
        # Of the user's own, the name alone does not say it.
        **({} if space.layout.is_standard else {"layout": _as_json(space.layout)}),
        "types": " ".join(map(str, space.types)),
        "input_size": list(space.input_size),
        "num_classes": space.num_classes,
        "budget": {name: [low, high if math.isfinite(high) else None] for name, (low, high) in budget.windows.items()},
        "asked": budget.as_json(),
        "seed": scorer.seed,
        "data": scorer.data.source,
        "score": getattr(scorer.score, "__name__", type(scorer.score).__name__),
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "strategy": strategy,
        **({} if space.latency is None else {"latency_table": space.latency.digest}),
    }
