"""The search: sample genomes within a budget, score each, refine the leaders, rank them (paper, section 4)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import torch

from ..budget import Budget, BudgetError, BudgetLike
from ..data.facts import facts_of_folder
from ..errors import BlockSwapError
from ..genome import Genome, GenomeError
from .candidates import Candidate, Scored, candidates_of, comparable, rank
from .fisher import Score, fisher_potential
from .probe_images import Minibatch
from .rankings import images_of, parts_of, score_named
from .result import SearchResult
from .scoring import Progress, Scoring, budget_windows, check_numbers, describe, make_scorer, scores_of_refinement
from .space import SearchSpace
from .strategies import strategy_named

__all__ = ["Candidate", "SearchError", "SearchResult", "require_scores", "search", "space_named"]


class SearchError(BlockSwapError, RuntimeError):
    """A search without a result; its record keeps what was scored."""


def search(
    space: SearchSpace | str,
    budget: BudgetLike | None,
    samples: int = 1000,
    seed: int = 0,
    *,
    genomes: Iterable[Genome | str] | None = None,
    data: Minibatch | tuple[Any, Any] | Iterable[Any] | str | Path | None = None,
    batch_size: int | None = None,
    score: Score | str | None = None,
    strategy: str = "random",
    draws: int = 1,
    refine: int = 3,
    workers: int = 1,
    executor: Executor | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    record: str | Path | None = None,
    resume: bool = False,
    progress: bool | Progress | None = None,
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
            folder of images for each class, or what `dataset_minibatch` returns. By default images of 1/f noise
            with random labels. Where the space is a name, its networks have the classes of a folder, one channel
            where its images are grey, and a smaller size where they are smaller, as on the command line.
        batch_size: Images in a minibatch: by default 8, and 32 for scores that need more.
        score: A name, such as "fisher" or "naswot" (`score_named`), the sum of several ranks, such as
            "fisher+gradient-norm", or a function of model, images and labels; higher is better. By default
            "fisher+naswot", or "fisher" for networks without ReLUs, which NASWOT needs.
        strategy: "random" draws genomes uniformly. "surrogate" does so for the first hundred; then, fifty at a time,
            it takes the best by a model of the scores so far.
        draws: Draws of the weights for each genome.
        refine: Rounds, each of which gives the best quarter four times the draws.
        workers: Processes on this machine, of one thread each.
        executor: Any executor, which takes the place of `workers`.
        device: Where to score.
        dtype: Precision of scores; the fastest for this score by default.
        record: A file, to which each score is written as it comes.
        resume: Whether to continue that file; all that it holds is ranked.
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
        SearchError: No score is finite, or all are 0.
        WorkerError: Workers died.

    Example:
        ```python
        result = search("wrn40_2", "400k", samples=100, workers=2)
        model = timm.create_model("blockswap_wrn40_2", genome=result.best.genome)
        ```
    """
    if isinstance(space, str):
        space = space_named(space, data)
    if on_interrupt not in ("return", "raise"):
        raise ValueError(f"on_interrupt is 'return' or 'raise', not {on_interrupt!r}")
    score = score_named(score, space.has_relus)
    batch_size = images_of(score) if batch_size is None else batch_size
    check_numbers(samples=samples, draws=draws, workers=workers, batch_size=batch_size, seed=seed, refine=refine)
    propose = strategy_named(strategy)
    space, budget = space.resolve(budget)
    if genomes is None:
        chosen = propose(space, budget, seed, [], samples)
    else:
        chosen = _given(space, budget, genomes)
        samples = len(chosen)
    scorer = make_scorer(space, data, batch_size, score, seed, device, dtype, executor)
    described = describe(scorer, strategy, {"budget": budget_windows(budget), "asked": budget.as_json()})
    scoring = Scoring(scorer, workers, executor, record, resume, described, progress)
    interrupted = False
    try:
        with scoring:
            # All random genomes are one round, which is shorter than asked for where fewer fit.
            planned = len(chosen) if strategy == "random" else samples
            scoring.total = planned * draws + scores_of_refinement(planned, draws, refine)
            candidates: list[Candidate] = []
            while chosen:
                candidates += scoring.candidates(chosen, draws, draws, "scoring")
                left = samples - len(candidates)
                chosen = propose(space, budget, seed, comparable(candidates), left) if left else []
            ranked = scoring.refined(candidates, draws, refine)
    except KeyboardInterrupt:
        if on_interrupt == "raise" or not scoring.draws:
            raise
        interrupted = True
        go_on = "search with resume=True" if record is not None else "save it and search with record=, resume=True"
        warnings.warn(
            f"the search was interrupted: this is the result of {len(scoring.draws):,} scores; to continue, {go_on}",
            stacklevel=2,
        )
    if interrupted or genomes is None:
        # A record may hold more than was asked for this time: it and the result name the same winner.
        ranked = rank(candidates_of(scoring.draws))
    require_scores(ranked, score)
    return SearchResult(space, budget, tuple(ranked), interrupted, scoring.draws, described)


def require_scores(ranking: Sequence[Scored], score: Score, where: str = "") -> None:
    """Raises SearchError for a ranking, best first, without a finite score, or whose Fisher potentials are all 0."""
    if not math.isfinite(ranking[0].score):
        raise SearchError(f"none of {len(ranking)} scores{where} is finite; look at the data, or choose another score")
    fisher = next((name for name, part in parts_of(score) if part is fisher_potential), None)
    if fisher is None or len(ranking) < 2:
        return
    if not any(
        value for each in ranking for value in ([of[fisher] for of in each.parts] if each.parts else each.scores)
    ):
        raise SearchError(
            f"each of {len(ranking)} Fisher potentials{where} is 0, since the loss depends on no block; use images "
            "that differ, of two classes or more"
        )


def space_named(name: str, data: object) -> SearchSpace:
    """The space of a network by its name, for the images of a folder where there is one."""
    space, facts = SearchSpace(name), facts_of_folder(data)
    sizes: dict[str, Any] = {} if facts is None else facts.sizes(space.input_size)
    return SearchSpace(name, **sizes) if sizes else space


def _given(space: SearchSpace, budget: Budget, genomes: Iterable[Genome | str]) -> list[Genome]:
    """Reads genomes that are to be scored; raises GenomeError or BudgetError for one that does not fit."""
    found: dict[Genome, None] = {}
    for number, text in enumerate([genomes] if isinstance(genomes, str) else genomes, start=1):
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
