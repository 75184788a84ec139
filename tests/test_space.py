"""Search spaces against brute force: counts, ranges, and uniform samples."""

import itertools
import time
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from scipy.stats import chisquare

from blockswap_models import BlockType, Budget, BudgetError, Cost, Genome, GenomeError, SearchSpace, count, count_blocks
from blockswap_models.networks import build, residual_blocks
from blockswap_models.space import _Table

# G16 is W1 on 16 channels and G8 is W2, though not on wider ones; G32 does not divide 16.
SMALL = SearchSpace("wrn16_1", ["S", "G16", "W1", "G32", "B2"])
PAIRS = SearchSpace("wrn16_1", ["S", "W1", "G8"])
POSTACT = SearchSpace("resnet18", ["G4", "W16", "B2", "D"], image_size=64)
# Its totals lie far apart.
SPARSE = SearchSpace("wrn16_1", ["S", "W1"])


@lru_cache
def brute_force(space: SearchSpace, distinct: bool = True) -> dict[Genome, Cost]:
    """Costs of all genomes of a small space, from blocks that are really built.

    Two types are one network at a position where their modules print alike.
    """
    options: list[dict[object, tuple[BlockType, Cost]]] = [{} for _ in space.layout.positions]
    for block in space.types:
        fitting = []
        for place in space.layout.positions:
            try:
                block.convs(place.in_chs, place.out_chs, place.stride)
            except GenomeError:
                fitting.append(BlockType("S"))
            else:
                fitting.append(block)
        model = build(space.layout, Genome.from_blocks(fitting, space.layout.depths), device="meta")
        costs = count_blocks(model, space.input_size)
        rest = count(model, space.input_size) - sum(costs, Cost(0, 0))
        for choices, used, module, cost in zip(options, fitting, residual_blocks(model), costs, strict=True):
            if used == block:
                choices.setdefault(repr(module) if distinct else block, (block, cost))
    genomes = {}
    for choice in itertools.product(*(choices.values() for choices in options)):
        genome = Genome.from_blocks([block for block, _ in choice], space.layout.depths)
        genomes[genome] = sum((cost for _, cost in choice), rest)
    return genomes


def fitting(space: SearchSpace, budget: Budget, distinct: bool = True) -> list[Genome]:
    return [genome for genome, cost in brute_force(space, distinct).items() if budget.fits(cost)]


def uniform(counts: list[int]) -> bool:
    """Says whether counts are those of a uniform draw; by chance, not for one seed in a thousand."""
    assert min(counts) > 5
    return chisquare(counts).pvalue > 1e-3


# -- counting --------------------------------------------------------------------------------------------------------


def windows(space: SearchSpace) -> list[Budget]:
    """Windows, floors and ceilings of both costs, with ends on, just beside and far from totals."""
    budgets = []
    for name in ("params", "macs"):
        totals = sorted({getattr(cost, name) for cost in brute_force(space).values()})
        low, middle, high = (totals[len(totals) * part // 7] for part in (1, 3, 5))
        amounts = [low, middle, (low, high), (low + 1, high - 1), (middle, middle), (None, middle), (middle, None)]
        amounts += [(None, middle - 1), (0, None), (None, totals[0]), (totals[-1], None), (low + 0.5, high + 0.5)]
        budgets += [Budget(**{name: amount}) for amount in amounts]
        budgets += [Budget(**{name: middle}, tolerance=tolerance) for tolerance in (0, 0.3)]
    return budgets


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("space", [SMALL, PAIRS, POSTACT], ids=str)
def test_counts_are_those_of_brute_force(space: SearchSpace, distinct: bool) -> None:
    assert space.count(distinct=distinct) == len(brute_force(space, distinct))
    for budget in windows(space):
        assert space.count(budget, distinct=distinct) == len(fitting(space, budget, distinct)), budget


def test_some_spellings_are_one_network() -> None:
    # By position: 3 of 4 types differ at the first two blocks, and 5 of 5 after them.
    assert SMALL.count(distinct=False) == 4**2 * 4 * 5 * 5 * 5
    assert SMALL.count() == 3**2 * 4 * 5 * 5 * 5
    assert [str(block) for block, _ in SMALL._options[0]] == ["S", "G16", "B2"]


def test_a_type_that_is_given_twice_counts_once() -> None:
    assert SearchSpace("wrn16_1", ["S", "G4", "S"]).count(distinct=False) == 2**6


@pytest.mark.parametrize("space", [SMALL, PAIRS, POSTACT], ids=str)
def test_ranges_are_those_of_brute_force(space: SearchSpace) -> None:
    for name in ("params", "macs"):
        totals = [getattr(cost, name) for cost in brute_force(space).values()]
        assert space.range(name) == (min(totals), max(totals))
    assert space.range() == space.range("params")


def test_counts_of_the_papers_spaces() -> None:
    space = SearchSpace("wrn40_2")
    assert space.count(distinct=False) == 23**18
    # Beyond 64 bits, and beyond the 53 bits of a float: exact all the same.
    for name in ("params", "macs"):
        low, high = space.range(name)
        middle = (low + high) // 2
        assert space.count(Budget(**{name: (0, None)}), distinct=False) == 23**18
        for distinct in (True, False):
            halves = [Budget(**{name: (None, middle)}), Budget(**{name: (middle + 1, None)})]
            assert sum(space.count(half, distinct) for half in halves) == space.count(distinct=distinct)
    assert SearchSpace("resnet34").count(distinct=False) == 23**16


# -- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("wrn40_2", {}), ("resnet34", {}), ("wrn16_1", {"num_classes": 3, "in_chans": 1, "image_size": 28})],
)
def test_costs_are_those_of_the_built_network(name: str, arguments: dict[str, int]) -> None:
    space = SearchSpace(name, **arguments)
    for genome in space.sample(40, seed=3):
        assert space.cost(genome) == count(space.build(genome, device="meta"), space.input_size)


def test_a_spelling_outside_the_space_has_its_cost_if_its_network_is_inside() -> None:
    assert SMALL.cost("2xG16/2xS/2xS") == SMALL.cost("2xW1/2xS/2xS")
    assert SearchSpace("wrn16_1", ["S", "G16"]).cost("2xW1/2xS/2xS") == SMALL.cost("2xW1/2xS/2xS")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SMALL.cost("2xS/S,M6/2xS"),
            "stage 2, block 2 'M6': not in this search space of S, G16, W1, G32, B2",
        ),
        (lambda: SMALL.cost("S"), "blockswap_wrn16_1 has stages of 2, 2 and 2 blocks; this genome has 1"),
        (
            lambda: SearchSpace("wrn16_1", ["G32", "B3"]),
            "stage 1, block 1 of blockswap_wrn16_1: none of G32, B3 divides its 16 to 16 channels",
        ),
    ],
)
def test_messages_for_genomes(call, message: str) -> None:
    with pytest.raises(GenomeError) as caught:
        call()
    assert str(caught.value) == message


# -- samples ---------------------------------------------------------------------------------------------------------


def test_draws_are_uniform() -> None:
    budget = Budget(params=140_000)
    table = _Table(PAIRS, "params", budget.windows["params"])
    picks = np.concatenate(list(itertools.islice(table.draw(seed=5), 60)))
    drawn = Counter(map(tuple, picks.tolist()))
    expected = fitting(PAIRS, budget)
    assert len(drawn) == len(expected) == PAIRS.count(budget)
    assert {PAIRS._decode(each)[0] for each in drawn} == set(expected)
    assert uniform(list(drawn.values()))


@pytest.mark.parametrize("place", [0, 1, -1])
def test_samples_are_uniform_at_each_place(place: int) -> None:
    budget = Budget(macs=(None, 11_000_000))
    expected = fitting(PAIRS, budget)
    assert 8 < len(expected) < 40
    # The last of all is reached by drawing until each has been found.
    drawn = Counter(PAIRS.sample(len(expected), budget, seed)[place] for seed in range(1000))
    assert set(drawn) <= set(expected)
    assert uniform([drawn[genome] for genome in expected])


def test_samples_that_are_listed_are_uniform() -> None:
    # The further cost keeps 3 of 4 and more genomes out, so that most samples end with a list of all that fit.
    budget = Budget(params=(0, None), macs=(None, 11_000_000))
    expected = fitting(SPARSE, budget)
    assert 3 < len(expected) < 16
    drawn = Counter(SPARSE.sample(100, budget, seed)[-1] for seed in range(500))
    assert uniform([drawn[genome] for genome in expected])


@pytest.mark.parametrize(("name", "amount"), [("wrn40_2", 400_000), ("resnet34", 8_000_000)])
def test_samples_fit_differ_and_start_alike(name: str, amount: int) -> None:
    space, budget = SearchSpace(name), Budget(params=amount)
    # Longer than one chunk of draws.
    genomes = space.sample(1500, budget, seed=1)
    assert len(set(genomes)) == 1500
    assert all(abs(space.cost(genome).params - amount) <= 0.025 * amount for genome in genomes)
    assert all(space.layout.fit(genome) == genome for genome in genomes[:50])
    for number in (1, 7, 1024, 1100):
        assert space.sample(number, budget, seed=1) == genomes[:number]
    assert SearchSpace(name).sample(100, budget, seed=1) == genomes[:100]
    assert not set(space.sample(100, budget, seed=2)) & set(genomes)


def test_samples_of_a_small_space_start_alike_and_end_with_all() -> None:
    for budget in (Budget(params=140_000), Budget(params=(0, None), macs=(None, 13_000_000))):
        expected = fitting(PAIRS, budget)
        everything = PAIRS.sample(10**6, budget, seed=4)
        assert len(everything) == len(expected) > 20
        assert set(everything) == set(expected)
        for number in range(1, len(expected) + 2):
            assert PAIRS.sample(number, budget, seed=4) == everything[:number]
        other = PAIRS.sample(10**6, budget, seed=5)
        assert set(other) == set(everything)
        assert other != everything


def test_a_sample_without_a_budget_is_of_the_whole_space() -> None:
    assert set(SPARSE.sample(1000)) == set(brute_force(SPARSE))
    assert len(set(SearchSpace("wrn40_2").sample(50))) == 50


@pytest.mark.parametrize("number", [0, -1])
def test_a_sample_has_genomes(number: int) -> None:
    with pytest.raises(ValueError, match=rf"^a sample has at least 1 genome, not {number}$"):
        SMALL.sample(number)


def test_a_budget_of_two_costs_is_met_and_its_share_stated() -> None:
    first, both = Budget(params=150_000), Budget(params=150_000, macs=(None, 19_000_000))
    expected = set(fitting(SMALL, both))
    share = len(expected) / len(fitting(SMALL, first))
    assert 0.1 < share < 0.9
    # All are listed, and the share is exact.
    assert SMALL.sample_stated(10**6, both) == (SMALL.sample(10**6, both), share)
    assert set(SMALL.sample(10**6, both)) == expected
    # Some are drawn, and the share is estimated.
    found, estimated = SMALL.sample_stated(len(expected) // 2, both)
    assert set(found) < expected
    assert estimated == pytest.approx(share, abs=0.1)
    # Every draw meets a budget of one cost, however often it was drawn before.
    assert SMALL.sample_stated(10**6, first)[1] == 1


def test_a_large_space_meets_two_costs() -> None:
    space, budget = SearchSpace("wrn40_2"), Budget(params=400_000, macs=(None, 70_000_000))
    found, share = space.sample_stated(300, budget)
    assert len(set(found)) == 300
    assert all(budget.fits(space.cost(genome)) for genome in found)
    wide = space.sample(1000, Budget(params=400_000), seed=9)
    assert share == pytest.approx(np.mean([budget.fits(space.cost(genome)) for genome in wide]), abs=0.1)


def gap(space: SearchSpace) -> tuple[int, int]:
    """Finds the widest window of parameters without any genome."""
    totals = sorted({cost.params for cost in brute_force(space).values()})
    low, high = max(itertools.pairwise(totals), key=lambda pair: pair[1] - pair[0])
    return low + 1, high - 1


RANGE = "; with these block types its params run from 103,802 to 175,066"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(params=100), f"no genome of blockswap_wrn16_1 meets params 100 ± 2.5%{RANGE}"),
        (Budget(params=(None, 103_801)), f"no genome of blockswap_wrn16_1 meets params up to 103,801{RANGE}"),
        (Budget(params=10**9), f"no genome of blockswap_wrn16_1 meets params 1,000,000,000 ± 2.5%{RANGE}"),
        (Budget(params=(175_067, None)), f"no genome of blockswap_wrn16_1 meets params from 175,067{RANGE}"),
        (
            Budget(params=140_000, macs=1),
            "no genome of blockswap_wrn16_1 meets params 140,000 ± 2.5%, macs 1 ± 2.5%"
            "; with these block types its macs run from 15,893,120 to 26,682,240",
        ),
        (
            Budget(params=(None, 110_000), macs=(26_000_000, None)),
            "no genome of blockswap_wrn16_1 meets params up to 110,000, macs from 26,000,000"
            f"{RANGE}: none of 3 genomes that meet its params do",
        ),
    ],
)
def test_messages_for_budgets_that_no_genome_meets(budget: Budget, message: str) -> None:
    space = SearchSpace("wrn16_1", ["S", "G2"])
    with pytest.raises(BudgetError) as caught:
        space.sample(5, budget)
    assert str(caught.value) == message
    if len(budget.windows) == 1:
        assert space.count(budget) == 0


def test_a_budget_in_a_gap_is_refused() -> None:
    low, high = gap(SPARSE)
    assert high > low
    assert SPARSE.count(Budget(params=(low, high))) == 0
    with pytest.raises(BudgetError) as caught:
        SPARSE.sample(5, Budget(params=(low, high)))
    least, most = SPARSE.range()
    assert str(caught.value) == (
        f"no genome of blockswap_wrn16_1 meets params {low:,} to {high:,}; "
        f"with these block types its params run from {least:,} to {most:,}"
    )
    assert least < low < high < most


def test_two_costs_are_not_counted_at_once() -> None:
    with pytest.raises(BudgetError) as caught:
        SMALL.count(Budget(params=1, macs=1))
    assert str(caught.value) == "genomes are counted exactly for one cost; write a budget of params or of macs"


@pytest.mark.parametrize(
    ("name", "amount"),
    [
        ("wrn40_2", 162_000),
        ("wrn40_2", 400_000),
        ("wrn40_2", 1_600_000),
        ("resnet34", 3_000_000),
        ("resnet34", 8_000_000),
    ],
)
def test_a_thousand_samples_take_less_than_two_seconds(name: str, amount: int) -> None:
    SPARSE.range()  # what torch loads at its first use is not measured
    start = time.process_time()
    assert len(SearchSpace(name).sample(1000, Budget(params=amount))) == 1000
    assert time.process_time() - start < 2
