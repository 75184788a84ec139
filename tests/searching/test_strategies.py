"""Strategies: within the budget, new genomes only, pure, and better than random; the planner against brute force."""

import functools
import json
import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import blockswap_models
from blockswap_models import Budget, Cost, Genome, SearchSpace
from blockswap_models.cli.main import main
from blockswap_models.cli.search import STRATEGY_NAMES
from blockswap_models.searching import strategies
from blockswap_models.searching.candidates import Candidate
from blockswap_models.searching.record import RecordError, read_ranking, read_record
from blockswap_models.searching.strategies import STRATEGIES, Planner

# One score a genome.
search = functools.partial(blockswap_models.search, refine=0)

SPACE = SearchSpace("wrn16_1", ["S", "G4", "W1", "B2", "B2G4"])
BUDGET = Budget(params=70_000, tolerance=0.1)
LARGE = SearchSpace("wrn40_2")
BUDGETS = [
    Budget(params=400_000),
    Budget(macs=(None, 60_000_000)),
    Budget(params=400_000, macs=(None, 60_000_000)),
    Budget(params=400_000, macs=60_000_000, tolerance=0.01),
]


FEW = SearchSpace("wrn16_1", ["S", "G4", "W1", "B2"])


@functools.lru_cache
def every() -> tuple[list[Genome], list[Cost], np.ndarray]:
    """All genomes of a small space: with their costs, and the entries of their blocks."""
    genomes = FEW.sample(FEW.count())
    return genomes, [FEW.cost(each) for each in genomes], np.array([choices(FEW, each) for each in genomes])


def fitting(budget: Budget) -> np.ndarray:
    found = np.flatnonzero([budget.fits(cost) for cost in every()[1]])
    assert 20 < len(found) < FEW.count()
    return found


def choices(space: SearchSpace, genome: Genome) -> np.ndarray:
    """The entries of a genome's blocks in a list of the options of all positions."""
    sizes = [len(options) for options in space.options]
    names = [[block for block, _ in options] for options in space.options]
    starts = np.cumsum([0, *sizes[:-1]])
    return starts + [each.index(block) for each, block in zip(names, genome.blocks, strict=True)]


def total(space: SearchSpace, values: np.ndarray, genome: Genome) -> float:
    return float(values[choices(space, genome)].sum())


def random_values(space: SearchSpace, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(sum(map(len, space.options)))


def judged(space: SearchSpace, genomes: Sequence[Genome], values: np.ndarray, noise: float = 0.0) -> list[Candidate]:
    """Scores genomes by the exponential of a sum of values, with noise that depends on the genome."""
    logs = [total(space, values, each) + noise * random.Random(each).gauss(0, 1) for each in genomes]
    return [Candidate(each, space.cost(each), (math.exp(log),)) for each, log in zip(genomes, logs, strict=True)]


def rounds(strategy: str, space: SearchSpace, budget: Budget, samples: int, values: np.ndarray) -> list[Candidate]:
    scored: list[Candidate] = []
    while len(scored) < samples:
        genomes = STRATEGIES[strategy](space, budget, 0, scored, samples - len(scored))
        if not genomes:
            break
        scored += judged(space, genomes, values, 0.3)
    return scored


# -- the planner -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget",
    [BUDGET, Budget(params=(None, 60_000)), Budget(params=(100_000, None)), Budget(macs=12_000_000)],
    ids=str,
)
def test_the_planned_genome_is_the_best_of_all(budget: Budget) -> None:
    found, planner = fitting(budget), Planner(FEW, budget)
    winners = set()
    for seed in range(20):
        values = random_values(FEW, seed)
        totals = values[every()[2][found]].sum(axis=1)
        winners.add(planner.best(values))
        assert planner.best(values) == every()[0][found[totals.argmax()]]
    assert len(winners) > 5


@pytest.mark.parametrize(
    "budget",
    [
        Budget(params=70_000, macs=(None, 11_000_000), tolerance=0.1),
        Budget(params=70_000, macs=13_000_000, tolerance=0.1),
        Budget(params=(None, 90_000), macs=(14_000_000, None)),
    ],
    ids=str,
)
def test_with_two_costs_the_planned_genome_is_near_the_best(budget: Budget) -> None:
    found, planner = fitting(budget), Planner(FEW, budget)
    ranks = []
    for seed in range(20):
        values = random_values(FEW, seed)
        best = planner.best(values)
        assert budget.fits(FEW.cost(best))
        totals = values[every()[2][found]].sum(axis=1)
        ranks.append(int((totals > total(FEW, values, best) + 1e-9).sum()))
    assert sorted(ranks)[10] == 0
    assert max(ranks) <= len(found) / 10


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_plans_in_a_large_space_are_better_than_any_sample(budget: Budget) -> None:
    values = random_values(LARGE, 1)
    best = Planner(LARGE, budget).best(values)
    assert budget.fits(LARGE.cost(best))
    sampled = [total(LARGE, values, each) for each in LARGE.sample(300, budget)]
    assert total(LARGE, values, best) > max(sampled) + 2 * np.std(sampled)


def test_no_plan_where_nothing_fits() -> None:
    budget = Budget(params=(None, 60_000), macs=(22_000_000, None))
    assert not any(map(budget.fits, every()[1]))
    assert Planner(FEW, budget).best(random_values(FEW, 0)) is None


# -- the genomes that are proposed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_proposes_new_genomes_within_the_budget(budget: Budget) -> None:
    values = random_values(LARGE, 2)
    scored = rounds("surrogate", LARGE, budget, 150, values)
    genomes = [each.genome for each in scored]
    assert len(set(genomes)) == len(genomes) == 150
    assert all(budget.fits(each.cost) for each in scored)
    assert genomes[:100] == LARGE.sample(100, budget)
    # They are found, not filled up with random ones.
    assert not set(genomes[100:]) & set(LARGE.sample(400, budget))
    true = [total(LARGE, values, each) for each in genomes]
    assert np.mean(true[100:]) > np.quantile(true[:100], 0.95)


def test_is_a_function_of_seed_and_scores() -> None:
    scored = rounds("surrogate", LARGE, BUDGETS[0], 100, random_values(LARGE, 3))
    other = rounds("surrogate", LARGE, BUDGETS[0], 100, random_values(LARGE, 4))
    propose = functools.partial(STRATEGIES["surrogate"], LARGE, BUDGETS[0])
    once = propose(0, scored, 1000)
    assert len(once) == 50
    assert propose(0, scored, 1000) == once
    assert propose(0, scored, 7) == once[:7]
    assert propose(1, scored, 1000) != once
    assert propose(0, other, 1000) != once


def test_random_does_not_look_at_scores() -> None:
    scored = rounds("random", LARGE, BUDGETS[0], 100, random_values(LARGE, 3))
    more = STRATEGIES["random"](LARGE, BUDGETS[0], 0, scored, 20)
    assert [each.genome for each in scored] + more == LARGE.sample(120, BUDGETS[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_finds_all_genomes_of_a_small_space_once(strategy: str) -> None:
    number = FEW.count(BUDGET)
    assert 100 < number < 500
    scored = rounds(strategy, FEW, BUDGET, 1000, random_values(FEW, 0))
    assert len({each.genome for each in scored}) == len(scored) == number
    assert STRATEGIES[strategy](FEW, BUDGET, 0, scored, 100) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, 3.0])
def test_any_score_will_do(value: float) -> None:
    genomes = SPACE.sample(100, BUDGET)
    same = [Candidate(each, SPACE.cost(each), (value,)) for each in genomes]
    some = [*judged(SPACE, genomes[:50], random_values(SPACE, 0)), *same[50:]]
    for scored in (same, some):
        proposed = strategies.surrogate(SPACE, BUDGET, 0, scored, 50)
        assert len(set(proposed) - set(genomes)) == 50


def test_genomes_without_a_finite_score_are_avoided() -> None:
    genomes = LARGE.sample(100, BUDGETS[0])
    bad = [str(each.blocks[0]).startswith("B") for each in genomes]
    scored = [
        Candidate(each, LARGE.cost(each), (math.nan if worse else random.Random(each).uniform(1, 2),))
        for each, worse in zip(genomes, bad, strict=True)
    ]
    proposed = strategies.surrogate(LARGE, BUDGETS[0], 0, scored, 50)
    share = np.mean([str(each.blocks[0]).startswith("B") for each in proposed])
    assert share < np.mean(bad) / 2


def test_draws_vary_less_where_more_is_known() -> None:
    values = random_values(LARGE, 5)
    genomes = LARGE.sample(500, BUDGETS[0])

    def deviation(number: int) -> tuple[float, float]:
        scored = judged(LARGE, genomes[:number], values, 0.3)
        drawn = strategies._coefficients(LARGE, scored, np.random.default_rng(0))
        drawn = np.array([next(drawn) for _ in range(50)])
        predicted = np.array([drawn[:, choices(LARGE, each)].sum(1) for each in genomes[400:]])
        true = [total(LARGE, values, each) for each in genomes[400:]]
        # What all genomes have in common is the same for any choice.
        predicted -= predicted.mean(axis=0)
        return predicted.std(1).mean(), np.corrcoef(predicted.mean(1), true)[0, 1]

    (wide, little), (narrow, much) = deviation(100), deviation(400)
    assert narrow < 0.7 * wide
    assert 0.4 < little < much
    assert much > 0.9


# -- in the search ---------------------------------------------------------------------------------------------------


def cheap(model, images, labels) -> float:
    """A score that varies from draw to draw, as scores do."""
    weight = model.state_dict()["conv1.weight"] if hasattr(model, "conv1") else next(iter(model.parameters()))
    return math.exp(len(str(model.genome)) / 5 + float(weight.mean()))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A search of four rounds, the last of them cut short."""
    monkeypatch.setattr(strategies, "START", 8)
    monkeypatch.setattr(strategies, "ROUND", 4)
    return {"samples": 19, "batch_size": 2, "score": cheap, "strategy": "surrogate"}


def test_a_search_cut_off_anywhere_goes_on_the_same_way(quick, tmp_path) -> None:
    whole = tmp_path / "whole.jsonl"
    result = search(SPACE, BUDGET, refine=1, record=whole, **quick)
    assert read_record(whole)[0]["strategy"] == "surrogate"
    assert len(result.candidates) == 19
    assert [len(each.scores) for each in result.candidates] == 4 * [4] + 15 * [1]
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 19 + 12
    for number in (1, 5, 9, 11, 19, 25):
        part = tmp_path / f"{number}.jsonl"
        part.write_bytes(b"".join(lines[:number]) + lines[number][:-5])
        assert search(SPACE, BUDGET, refine=1, record=part, resume=True, **quick) == result
        assert part.read_bytes() == whole.read_bytes()


def test_workers_change_nothing(quick, tmp_path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    with ThreadPoolExecutor(2) as executor:
        beside = search(SPACE, BUDGET, record=two, executor=executor, **quick)
    assert search(SPACE, BUDGET, record=one, **quick) == beside
    assert one.read_bytes() == two.read_bytes()


def test_more_samples_are_more_rounds(quick, tmp_path) -> None:
    record, whole = tmp_path / "record.jsonl", tmp_path / "whole.jsonl"
    more = {**quick, "samples": 25}
    for refine in (0, 1):
        search(SPACE, BUDGET, record=record, refine=refine, resume=refine == 1, **quick)
    extended = search(SPACE, BUDGET, record=record, resume=True, **more)
    search(SPACE, BUDGET, record=whole, **more)
    # What was refined before the search was extended keeps its draws, and changes no proposal.
    assert extended.candidates == read_ranking(record)[1]
    first = [(each.genome, each.score) for each in read_record(record)[1] if each.draw == 0]
    assert first == [(each.genome, each.score) for each in read_record(whole)[1]]
    # Other draws are other evidence, and so another way.
    scores = {
        each.genome: each.scores
        for each in search(SPACE, BUDGET, record=record, resume=True, draws=2, **more).candidates
    }
    fresh = search(SPACE, BUDGET, draws=2, **more).candidates
    assert all(scores[each.genome][: len(each.scores)] == each.scores for each in fresh)


def test_the_search_follows_its_scores(quick) -> None:
    result = search(SPACE, BUDGET, progress=(calls := Calls()), **quick)
    first = {each.genome for each in search(SPACE, BUDGET, **{**quick, "samples": 8}).candidates}
    assert first == set(SPACE.sample(8, BUDGET)) < {each.genome for each in result.candidates}
    other = search(SPACE, BUDGET, **{**quick, "score": lambda *arguments: 1 / cheap(*arguments)})
    assert {each.genome for each in other.candidates} != {each.genome for each in result.candidates}
    assert calls.seen == [(19, 0), (19, 8), (19, 12), (19, 16)]


class Calls:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, results, total, done, round_name):
        self.seen.append((total, done))
        return results


def test_a_record_keeps_its_strategy(quick, tmp_path) -> None:
    record = tmp_path / "record.jsonl"
    search(SPACE, BUDGET, record=record, **quick)
    before = record.read_bytes()
    with pytest.raises(RecordError, match='of another search: strategy "surrogate" there, "random" here'):
        search(SPACE, BUDGET, record=record, resume=True, **{**quick, "strategy": "random"})
    assert record.read_bytes() == before


def test_a_record_without_a_strategy_is_random(quick, tmp_path) -> None:
    record = tmp_path / "record.jsonl"
    plain = {**quick, "strategy": "random"}
    expected = search(SPACE, BUDGET, record=record, **plain)
    header, *rows = record.read_text().splitlines(keepends=True)
    old = {name: value for name, value in json.loads(header).items() if name != "strategy"}
    record.write_text("".join([json.dumps(old) + "\n", *rows[:7]]))
    assert search(SPACE, BUDGET, record=record, resume=True, **plain) == expected
    with pytest.raises(RecordError, match='of another search: strategy "random" there, "surrogate" here'):
        search(SPACE, BUDGET, record=record, resume=True, **quick)


def test_an_unknown_strategy() -> None:
    with pytest.raises(ValueError, match="there is no strategy 'best'; use 'random' or 'surrogate'"):
        search(SPACE, BUDGET, strategy="best")


def test_the_command_takes_a_strategy(tmp_path, monkeypatch, capsys) -> None:
    assert tuple(STRATEGIES) == STRATEGY_NAMES
    monkeypatch.chdir(tmp_path)
    arguments = "search wrn16_1 --params 60k --batch-size 2 --workers 1 --score l2-norm --strategy surrogate".split()
    assert main([*arguments, "--samples", "110", "--refine", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["record"] == "wrn16_1-params60k-l2-norm-surrogate-seed0.jsonl"
    header, scored = read_record(report["record"])
    assert header["strategy"] == "surrogate"
    assert len(scored) == 110
    assert main(["show", report["record"]]) == 0
    shown = capsys.readouterr().out
    assert "\ngenomes  110\n" in shown
    assert "\nchosen   by strategy surrogate\n" in shown
    # It has learned which types have large weights.
    norms = [each.score for each in scored]
    assert np.median(norms[100:]) > max(norms[:100])
