"""Searches at several budgets: the front, what budgets share, and the record."""

import json
import math
from collections import Counter

import pytest
import torch
from command_line import run

from blockswap_models import Budget, BudgetError, Cost, Genome, RecordError, SearchSpace, budgets_along, search_front
from blockswap_models.budget import parse_amount, parse_several
from blockswap_models.messages import counted
from blockswap_models.searching import strategies
from blockswap_models.searching.candidates import Candidate, common_cost, pareto
from blockswap_models.searching.record import network_of, read_front, read_record
from blockswap_models.searching.strategies import Planner

SPACE = SearchSpace("wrn16_1", ["S", "G4", "W1", "B2"])
BUDGETS = [Budget(params=(None, 70_000)), Budget(params=90_000, tolerance=0.1)]
# What each block adds to the logarithm of the score, wherever it stands.
WORTH = {"S": 1.0, "G4": 0.9, "W1": 0.2, "B2": 0.4}


def additive(model, images, labels) -> float:
    """A score that the additive model explains wholly."""
    return math.exp(sum(WORTH[str(block)] for block in model.genome.blocks))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Two rounds and a short third one for each budget."""
    monkeypatch.setattr(strategies, "START", 12)
    monkeypatch.setattr(strategies, "ROUND", 6)
    return {"samples": 20, "batch_size": 2, "score": additive, "refine": 1}


def test_finds_the_best_genome_of_each_budget_and_scores_none_twice(quick, tmp_path) -> None:
    record = tmp_path / "front.jsonl"
    # The second window is within the third.
    budgets = [*BUDGETS, Budget(params=(80_000, 120_000))]
    front = search_front(SPACE, budgets, record=record, **quick)
    values = torch.tensor([WORTH[str(block)] for options in SPACE.options for block, _ in options]).double().numpy()
    for budget, result in zip(budgets, front.results, strict=True):
        best = Planner(SPACE, budget).best(values)
        assert math.log(result.best.score) == pytest.approx(sum(WORTH[str(block)] for block in best.blocks))
        assert all(budget.fits(each.cost) for each in result.candidates)
    counted = Counter((each.genome, each.draw) for each in read_record(record)[1])
    assert set(counted.values()) == {1}
    # As they were asked for, not as windows.
    read = read_front(record)
    assert [str(each) for each in read.budgets] == [str(each) for each in budgets]
    assert [each.best for each in front.results] == [ranking[0] for ranking in read.rankings]
    middle, wide = ({each.genome for each in result.candidates} for result in front.results[1:])
    assert middle <= wide
    # Cheaper and better excludes; the draws are those of the last round.
    assert [each.score for each in front.candidates] == sorted({each.score for each in front.candidates})
    assert [each.cost.params for each in front.candidates] == sorted(each.cost.params for each in front.candidates)
    assert {len(each.scores) for each in front.candidates} == {4}
    assert front.candidates[-1].score == max(result.best.score for result in front.results)


def test_a_budget_learns_from_the_scores_of_others(quick, monkeypatch) -> None:
    seen: dict[str, set[Genome]] = {}

    def spy(space, budget, seed, scored, number):
        if scored:
            seen.setdefault(str(budget), {each.genome for each in scored})
        return strategies.surrogate(space, budget, seed, scored, number)

    monkeypatch.setitem(strategies.STRATEGIES, "surrogate", spy)
    search_front(SPACE, BUDGETS, **quick)
    first = {genome for budget in BUDGETS for genome in SPACE.sample(12, budget)}
    assert seen == {str(budget): first for budget in BUDGETS}


def test_cut_off_anywhere_it_goes_on_the_same_way(quick, tmp_path) -> None:
    whole = tmp_path / "whole.jsonl"
    front = search_front(SPACE, BUDGETS, record=whole, **quick)
    lines = whole.read_bytes().splitlines(keepends=True)
    for number in (13, len(lines) - 2):
        part = tmp_path / f"{number}.jsonl"
        part.write_bytes(b"".join(lines[:number]) + lines[number][:-5])
        assert search_front(SPACE, BUDGETS, record=part, resume=True, **quick) == front
        assert part.read_bytes() == whole.read_bytes()
    with pytest.raises(RecordError, match="of another search: budgets"):
        search_front(SPACE, BUDGETS[:1], record=whole, resume=True, **quick)
    number = counted(len(front.candidates), "genome")
    with pytest.raises(RecordError, match=f"has {number} on its front, of which none is number 99; use another rank="):
        network_of(whole, 99)
    read = read_front(whole)
    assert [each.genome for each in read.front] == [each.genome for each in front.candidates]
    assert [[each.genome for each in own] for own in read.rankings] == [
        [each.genome for each in result.candidates] for result in front.results
    ]


def test_random_genomes_are_those_of_single_searches(quick) -> None:
    front = search_front(SPACE, BUDGETS, strategy="random", **{**quick, "samples": 5, "refine": 0})
    for budget, result in zip(BUDGETS, front.results, strict=True):
        assert set(SPACE.sample(5, budget)) <= {each.genome for each in result.candidates}


def candidate(params: int, *scores: float) -> Candidate:
    return Candidate(Genome("S"), Cost(params, 1_000 - params), scores)


def test_the_front_is_of_the_best_for_their_cost_and_of_the_most_draws() -> None:
    cheap, dear, dominated = candidate(10, 1.0, 1.0), candidate(30, 3.0, 3.0), candidate(20, 0.9, 0.9)
    others = [candidate(30, 2.0, 2.0), candidate(5, 9.0), candidate(1, math.nan, 1.0)]
    assert pareto([dear, dominated, *others, cheap], "params") == (cheap, dear)
    assert pareto([dear, dominated, *others, cheap], "macs") == (dear,)
    assert pareto(others[2:], "params") == ()


def test_a_front_is_along_the_cost_in_which_its_budgets_differ() -> None:
    budgets = [Budget(params=(None, 9), macs=each) for each in (1, 2)]
    assert common_cost(budgets) == "macs"
    assert common_cost(budgets[:1]) == "params"


def test_a_front_of_one_budget_is_along_the_cost_that_was_asked_for(tmp_path) -> None:
    budgets = [Budget(params=(None, 90_000), macs=(None, 10_000_000))]
    given = {"samples": 3, "refine": 0, "batch_size": 2, "score": additive, "record": tmp_path / "front.jsonl"}
    front = search_front(SPACE, budgets, **given, cost="macs")
    read = read_front(tmp_path / "front.jsonl")
    assert front.cost == read.cost == "macs"
    assert front.candidates == read.front == pareto(front.results[0].candidates, "macs")
    # The record of a front along the first cost is as it was before, and can be gone on with.
    given["record"] = tmp_path / "first.jsonl"
    search_front(SPACE, budgets, **given)
    assert "along" not in read_record(tmp_path / "first.jsonl")[0]
    assert search_front(SPACE, budgets, **given, cost="params", resume=True).cost == "params"
    with pytest.raises(BudgetError, match="the budgets are not of size; use cost='params', or leave it out"):
        search_front(SPACE, budgets, **given, cost="size")


def test_budgets_along_a_cost() -> None:
    least, most = SPACE.range("params")
    amounts = [each.params for each in budgets_along(SPACE, "params", 4)]
    factor = (most / least) ** (1 / 4)
    # Two digits: 5 % off at most.
    assert amounts == pytest.approx([least * factor ** (place + 0.5) for place in range(4)], rel=0.05)
    assert amounts == [float(f"{each:.1e}") for each in amounts]


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ([], "a front needs budgets; use budgets="),
        ([Budget(params=70_000), Budget(macs=1)], "budgets of a front are of the same costs; params 70,000"),
        ([Budget(params=70_000), Budget(params=10)], "no genome of blockswap_wrn16_1 meets params 10 "),
    ],
)
def test_refuses_budgets(tmp_path, budgets, message) -> None:
    with pytest.raises(BudgetError, match=message):
        search_front(SPACE, budgets, record=tmp_path / "record.jsonl", samples=2, batch_size=2)
    assert not list(tmp_path.iterdir())


def test_lists_of_amounts() -> None:
    assert parse_several("200k,400k", parse_amount) == [200_000, 400_000]
    assert parse_several("400,000", parse_amount) == [400_000]
    assert parse_several("..200k,300k..400k", parse_amount) == [(None, 200_000), (300_000, 400_000)]
    with pytest.raises(BudgetError, match="'x' is no amount"):
        parse_several("200k,x", parse_amount)


def test_the_command_prints_the_front_of_its_record(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("search", "wrn16_1", "--types", "S,W1", "--params", "..60k,70k..100k", "--samples", 3, "--refine", 0)
    code, out, err = run(*asked, "--batch-size", 2, "--workers", 1, "--score", "params", "--out", "a.jsonl")
    assert code == 0, err
    best = [line for line in out.splitlines() if line.strip().startswith("params ")]
    assert len(best) == 2
    assert "Pareto front of the genomes with 1 draw:" in out
    code, shown, err = run("show", "a.jsonl", "--json")
    report = json.loads(shown)
    # Whoever has more parameters has a higher score: all are on the front.
    costs = {each["params"] for part in report["budgets"] for each in part["top"]}
    assert [each["params"] for each in report["front"]] == sorted(costs)
    assert len(costs) > 2
    code, out, err = run("plot", "a.jsonl", "--out", "a.svg")
    assert code == 0, err
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--front", "params", "--params", "60k"),
            "--front params chooses its budgets; leave out --params, or --front",
        ),
        (("--front", "macs", "--params", "60k,70k"), "a front is along one cost; use one amount for --params"),
        (("--params", "60k,70k", "--macs", "1m,2m"), "a front is along one cost; use one amount for --macs"),
        (("--front", "latency"), "a budget of latency needs a table"),
    ],
)
def test_the_command_refuses_two_fronts(options, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("search", "wrn16_1", *options)
    assert code == 2
    assert message in err


def test_the_best_within_a_budget_is_the_best_of_it_on_the_front() -> None:
    # Sums of ranks: a genome has one, whichever budget it fits, also where nothing is estimated.
    for seed in range(3):
        front = search_front(SPACE, ["50k", "80k"], samples=15, seed=seed, refine=0, batch_size=4)
        scores: dict[Genome, set[float]] = {}
        for each in (*front.candidates, *(each for result in front.results for each in result.candidates)):
            scores.setdefault(each.genome, set()).add(each.score)
        assert {len(each) for each in scores.values()} == {1}
        assert front.candidates[-1].score == max(result.best.score for result in front.results)
        for result in front.results:
            assert result.best.score == max(each.score for each in result.candidates)


def test_budgets_along_a_cost_leave_out_what_no_genome_meets() -> None:
    # Four blocks of two types have few different sums.
    space = SearchSpace("wrn16_1", ["S", "G4"])
    budgets = budgets_along(space, "params")
    assert 0 < len(budgets) < 6
    assert all(space.count(each) for each in budgets)
    with pytest.raises(BudgetError, match=r"no genome of blockswap_wrn16_1 meets"):
        budgets_along(space, "params", 1, tolerance=1e-6)


def test_budgets_along_a_cost_within_another() -> None:
    least, most = SPACE.range("macs")
    budgets = budgets_along(SPACE, "macs", 4, within="..30%")
    assert len(budgets) == 4
    highest = 0.3 * SPACE.original_cost.params
    assert all(budget.windows["params"] == (0, pytest.approx(highest, abs=1)) for budget in budgets)
    assert all(SPACE.cost(SPACE.sample(1, budget)[0]).params <= highest for budget in budgets)
    # The dearest of all genomes does not meet it, so the last budget is below that of all.
    assert budgets[-1].windows["macs"][1] < budgets_along(SPACE, "macs", 4)[-1].windows["macs"][0]
    assert least < budgets[0].windows["macs"][0] < budgets[-1].windows["macs"][1] < most


def test_the_command_searches_along_a_cost_within_another(tmp_path) -> None:
    options = "--types S,G4,W1,B2 --samples 2 --refine 0 --batch-size 2 --workers 1 --points 3 --json".split()
    record = tmp_path / "front.jsonl"
    status, out, err = run("search", "wrn16_1", "--front", "macs", "--params", "..30%", *options, "--out", record)
    assert status == 0, err
    budgets = json.loads(out)["budgets"]
    assert len(budgets) == 3
    assert all(each["top"][0]["params"] <= 0.3 * SPACE.original_cost.params for each in budgets)
