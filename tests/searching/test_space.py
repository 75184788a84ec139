"""Search spaces against brute force: counts, ranges, and uniform samples."""

import itertools
from collections import Counter
from functools import lru_cache, reduce

import numpy as np
import pytest
from scipy.stats import chisquare

from blockswap_models import BlockType, Budget, BudgetError, Cost, Genome, GenomeError, SearchSpace, count, count_blocks
from blockswap_models.layout import Layout, Position
from blockswap_models.nets.networks import build, residual_blocks
from blockswap_models.searching import cost_table
from blockswap_models.searching import space as space_
from blockswap_models.searching.cost_table import CostTable, JointTable

EVERYTHING = Budget(params=(0, None))
# G16 is W1 on 16 channels, and G32 is W1 on 32, though not where a block goes from 16 to 32; G32 does not divide 16.
SMALL = SearchSpace("wrn16_1", ["S", "G16", "W1", "G32", "B2"])
PAIRS = SearchSpace("wrn16_1", ["S", "W1", "G8"])
# W16 is G4 on 64 channels; D has the convolutions of W1 where the width stays, but nothing between them.
POSTACT = SearchSpace("resnet18", ["G4", "W16", "W1", "D"], image_size=64)
# Several blocks of a stage are alike, so that many genomes share a total, and choices lead to unequal numbers of them.
DEEP = SearchSpace("wrn22_1", ["S", "W1"])
# Its totals lie far apart.
SPARSE = SearchSpace("wrn16_1", ["S", "W1"])


class BruteForce:
    """All genomes of a small space with their costs, from blocks that are really built.

    Two types are one network at a position where their modules print alike.
    """

    def __init__(self, space: SearchSpace, distinct: bool = True) -> None:
        self.depths = space.layout.depths
        options: list[dict[object, tuple[BlockType, Cost]]] = [{} for _ in space.layout.positions]
        for block in space.types:
            used = [block if divides(block, place) else BlockType("S") for place in space.layout.positions]
            model = build(space.layout, Genome.from_blocks(used, self.depths), device="meta")
            costs = count_blocks(model, space.input_size)
            rest = count(model, space.input_size) - sum(costs, Cost(0, 0))
            for choices, each, module, cost in zip(options, used, residual_blocks(model), costs, strict=True):
                if each == block:
                    choices.setdefault(repr(module) if distinct else block, (block, cost))
        self.types = [[block for block, _ in choices.values()] for choices in options]
        self.totals = {
            name: getattr(rest, name)
            + reduce(
                np.add.outer, [[getattr(cost, name) for _, cost in choices.values()] for choices in options]
            ).ravel()
            for name in ("params", "macs")
        }

    def fits(self, budget: Budget) -> np.ndarray:
        """Says of each genome whether it is within every window."""
        within = [
            (low <= self.totals[name]) & (self.totals[name] <= high) for name, (low, high) in budget.windows.items()
        ]
        return np.logical_and.reduce(within)

    def genomes(self, budget: Budget = EVERYTHING) -> list[Genome]:
        chosen = itertools.compress(itertools.product(*self.types), self.fits(budget))
        return [Genome.from_blocks(blocks, self.depths) for blocks in chosen]


def divides(block: BlockType, place: Position) -> bool:
    try:
        return bool(block.convs(place.in_chs, place.out_chs, place.stride))
    except GenomeError:
        return False


brute_force = lru_cache(BruteForce)
large = lru_cache(SearchSpace)


def uniform(counts: list[int]) -> bool:
    """Says whether counts are those of a uniform draw; by chance, not for one seed in a thousand."""
    assert min(counts) > 5
    return chisquare(counts).pvalue > 1e-3


# -- counting --------------------------------------------------------------------------------------------------------


def windows(space: SearchSpace) -> list[Budget]:
    """Windows, floors and ceilings of both costs, with ends on, just beside and far from totals."""
    budgets = []
    for name, unsorted in brute_force(space).totals.items():
        totals = np.unique(unsorted).tolist()
        low, middle, high = (totals[len(totals) * part // 7] for part in (1, 3, 5))
        amounts = [low, middle, (low, high), (low + 1, high - 1), (middle, middle), (None, middle), (middle, None)]
        amounts += [(None, middle - 1), (0, None), (None, totals[0]), (totals[-1], None), (low + 0.5, high + 0.5)]
        budgets += [Budget(**{name: amount}) for amount in amounts]
        budgets += [Budget(**{name: middle}, tolerance=tolerance) for tolerance in (0, 0.3)]
    return budgets


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("space", [SMALL, PAIRS, POSTACT], ids=str)
def test_counts_are_those_of_brute_force(space: SearchSpace, distinct: bool) -> None:
    genomes = brute_force(space, distinct)
    assert space.count(distinct=distinct) == len(genomes.totals["params"])
    for budget in windows(space):
        assert space.count(budget, distinct=distinct) == genomes.fits(budget).sum(), budget


def test_some_spellings_are_one_network() -> None:
    # The blocks are 16 to 16 channels, again, 16 to 32, 32 to 32, 32 to 64 and 64 to 64.
    assert SMALL.count(distinct=False) == 4 * 4 * 4 * 5 * 5 * 5
    assert SMALL.count() == 3 * 3 * 4 * 4 * 5 * 5
    assert [str(block) for block, _ in SMALL.options[0]] == ["S", "G16", "B2"]


def test_a_type_that_is_given_twice_counts_once() -> None:
    assert SearchSpace("wrn16_1", ["S", "G4", "S"]).count(distinct=False) == 2**6


@pytest.mark.parametrize("space", [SMALL, PAIRS, POSTACT], ids=str)
def test_ranges_are_those_of_brute_force(space: SearchSpace) -> None:
    for name, totals in brute_force(space).totals.items():
        assert space.range(name) == (totals.min(), totals.max())
    assert space.range() == space.range("params")


def test_counts_of_the_papers_spaces() -> None:
    space = large("wrn40_2")
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
def test_costs_are_those_of_the_built_network(
    name: str, arguments: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing weights takes most of the time, also on the meta device, and costs do not depend on them.
    for name_of_init in ("kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(f"torch.nn.init.{name_of_init}", lambda tensor, **_: tensor)
    space = SearchSpace(name, **arguments) if arguments else large(name)
    for genome in space.sample(10 if arguments else 20, seed=3):
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


@pytest.mark.parametrize(
    ("space", "budget"),
    [
        (PAIRS, Budget(params=110_000)),
        (DEEP, Budget(params=190_000)),
        (DEEP, Budget(macs=(None, 12_000_000))),
        (DEEP, EVERYTHING),
    ],
    ids=str,
)
def test_draws_are_uniform(space: SearchSpace, budget: Budget) -> None:
    (name, window), *_ = budget.windows.items()
    picks = np.concatenate(list(itertools.islice(space.cost_table(name, window).draw(seed=5), 60)))
    drawn = Counter(map(tuple, picks.tolist()))
    expected = brute_force(space).genomes(budget)
    assert {space.decode(each)[0] for each in drawn} == set(expected)
    assert len(drawn) == len(expected)
    assert uniform(list(drawn.values()))


def test_samples_are_uniform_at_each_place() -> None:
    budget = Budget(params=150_000)
    expected = brute_force(DEEP).genomes(budget)
    samples = [DEEP.sample(len(expected), budget, seed) for seed in range(250)]
    # The last of all is reached by drawing until each has been found.
    for place in (0, 1, 5, -1):
        drawn = Counter(sample[place] for sample in samples)
        assert uniform([drawn[genome] for genome in expected])


def test_samples_that_are_listed_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few draws, and 8 genomes of 64 that fit: so most samples end with a list of all.
    monkeypatch.setattr("blockswap_models.searching.cost_table._CHUNK", 16)
    budget = Budget(params=(0, None), macs=(None, 11_000_000))
    expected = brute_force(SPARSE).genomes(budget)
    samples = [SPARSE.sample(100, budget, seed) for seed in range(140)]
    assert all(set(sample) == set(expected) and len(sample) == 8 for sample in samples)
    drawn = Counter(sample[-1] for sample in samples)
    assert uniform([drawn[genome] for genome in expected])


@pytest.mark.parametrize(("name", "amount"), [("wrn40_2", 400_000), ("resnet34", 8_000_000)])
def test_samples_fit_differ_and_start_alike(name: str, amount: int) -> None:
    space, budget = large(name), Budget(params=amount)
    # Longer than one chunk of draws.
    genomes = space.sample(1100, budget, seed=1)
    assert len(set(genomes)) == 1100
    assert all(abs(space.cost(genome).params - amount) <= 0.025 * amount for genome in genomes[::5])
    for number in (1, 1025):
        assert space.sample(number, budget, seed=1) == genomes[:number]
    assert SearchSpace(name).sample(100, budget, seed=1) == genomes[:100]
    assert not set(space.sample(100, budget, seed=2)) & set(genomes)


def test_samples_of_a_small_space_start_alike_and_end_with_all() -> None:
    for budget in (Budget(params=100_000), Budget(params=(0, None), macs=(None, 6_000_000))):
        expected = brute_force(PAIRS).genomes(budget)
        everything = PAIRS.sample(10**6, budget, seed=4)
        assert len(everything) == len(expected) > 50
        assert set(everything) == set(expected)
        for number in (1, 2, 20, 40, len(expected) - 1, len(expected), len(expected) + 1):
            assert PAIRS.sample(number, budget, seed=4) == everything[:number]
        other = PAIRS.sample(10**6, budget, seed=5)
        assert set(other) == set(everything)
        assert other != everything


def test_a_sample_without_a_budget_is_of_the_whole_space() -> None:
    assert set(SPARSE.sample(1000)) == set(brute_force(SPARSE).genomes())
    assert len(set(large("wrn40_2").sample(50))) == 50


@pytest.mark.parametrize("number", [0, -1])
def test_a_sample_has_genomes(number: int) -> None:
    with pytest.raises(ValueError, match=rf"^a sample has at least 1 genome, not {number}$"):
        SMALL.sample(number)


def test_a_budget_of_two_costs_is_met_and_its_share_stated() -> None:
    first, both = Budget(params=150_000), Budget(params=150_000, macs=(None, 19_000_000))
    expected = set(brute_force(SMALL).genomes(both))
    share = len(expected) / len(brute_force(SMALL).genomes(first))
    assert 0.1 < share < 0.9
    # All are listed, and the share is exact.
    assert SMALL.sample_with_acceptance(10**6, both) == (SMALL.sample(10**6, both), share)
    assert set(SMALL.sample(10**6, both)) == expected
    # Some are drawn, and the share is estimated.
    found, estimated = SMALL.sample_with_acceptance(len(expected) // 2, both)
    assert set(found) < expected
    assert estimated == pytest.approx(share, abs=0.1)
    # Every draw meets a budget of one cost, however often it was drawn before.
    assert SMALL.sample_with_acceptance(10**6, first)[1] == 1


def test_a_large_space_meets_two_costs() -> None:
    space, budget = large("wrn40_2"), Budget(params=400_000, macs=(None, 70_000_000))
    found, share = space.sample_with_acceptance(150, budget)
    assert len(set(found)) == 150
    assert all(budget.fits(space.cost(genome)) for genome in found)
    wide = space.sample(500, Budget(params=400_000), seed=9)
    assert share == pytest.approx(np.mean([budget.fits(space.cost(genome)) for genome in wide]), abs=0.1)


def test_a_search_for_a_second_cost_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # A small space that is taken for one too large to list; what it decodes is kept, to be quick.
    decode = lru_cache(SPARSE.decode)
    monkeypatch.setattr(SPARSE, "decode", lambda picks: decode(tuple(picks)))
    monkeypatch.setattr(CostTable, "count", lambda *_: 10**9)
    some = Budget(params=(0, None), macs=(None, 11_000_000))
    found, share = SPARSE.sample_with_acceptance(10, some)
    assert set(found) == set(brute_force(SPARSE).genomes(some))
    assert share == pytest.approx(8 / 64, abs=0.01)
    none = Budget(params=(None, 60_000), macs=(20_000_000, None))
    assert not brute_force(SPARSE).genomes(none)
    # What few or none meet both of is looked for by both.
    with pytest.raises(BudgetError, match=r"from 27,914 to 175,066(: none of \d genomes that come near do)?$"):
        SPARSE.sample(10, none)


@pytest.mark.parametrize("few", [True, False], ids=["listed", "drawn"])
def test_what_meets_two_costs_is_found_however_rare(monkeypatch: pytest.MonkeyPatch, few: bool) -> None:
    # In steps that are coarse here, from the first genome on that the first cost alone would give.
    for name, value in {"_RARE": 2, "_TRIED": 0, "_LISTED": 100 if few else 0}.items():
        monkeypatch.setattr(space_, name, value)
    for name, value in {"_JOINT": 5_000, "_CHUNK": 1}.items():
        monkeypatch.setattr(cost_table, name, value)
    budget = Budget(params=(60_000, 120_000), macs=(12_000_000, 20_000_000))
    fitting = {str(genome) for genome in brute_force(DEEP).genomes(budget)}
    assert len(fitting) == 62
    every, share = DEEP.sample_with_acceptance(62, budget)
    assert set(map(str, every)) == fitting
    assert every[:20] == DEEP.sample(20, budget)
    there = DEEP.count(Budget(params=(60_000, 120_000))) * share
    assert there == pytest.approx(62, rel=0 if few else 0.3)
    if not few:
        monkeypatch.setattr(cost_table, "_CHUNK", 2000)
        drawn = (DEEP.decode(picks)[0] for picks in next(DEEP.joint_table(budget).draw(0)))
        times = Counter(str(genome) for genome in drawn if budget.fits(DEEP.cost(genome)))
        assert set(times) == fitting
        assert chisquare(list(times.values())).pvalue > 1e-3


def test_one_genome_of_many_is_found() -> None:
    # Of 838,970 with such parameters, one has so few MACs.
    budget = Budget(params=150_000, macs=(None, 12_860_000))
    space = large("wrn16_2")
    assert space.sample(20, budget) == [Genome("2xB4W2/2xB4W2/G2,B4W8")]
    assert space.estimate(budget) == (1, 1)


def gap(space: SearchSpace) -> tuple[int, int]:
    """Finds the widest window of parameters without any genome."""
    totals = np.unique(brute_force(space).totals["params"]).tolist()
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
            "; with these block types its macs run from 15,975,040 to 26,657,408",
        ),
        (
            Budget(params=(None, 110_000), macs=(26_000_000, None)),
            "no genome of blockswap_wrn16_1 meets params up to 110,000, macs from 26,000,000"
            f"{RANGE}: none of 4 genomes that meet its params do",
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
    assert str(caught.value) == "genomes are counted for one of params, macs and latency; use SearchSpace.estimate"


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
def test_a_thousand_samples_need_a_thousand_draws(name: str, amount: int) -> None:
    found, met = SearchSpace(name).sample_with_acceptance(1000, Budget(params=amount))
    # One cost is met by construction: no draw is thrown away.
    assert (len(found), met) == (1000, 1.0)


def test_what_types_cost_is_counted_once_for_all_spaces(monkeypatch):
    layout = Layout.custom("counted_once", (1, 2, 1), (16, 32, 64), stem_chs=16)
    one = SearchSpace(layout, ["G4", "W1"], num_classes=3)
    costs = one.option_costs
    monkeypatch.setattr("blockswap_models.searching.space.count_parts", None)
    other = SearchSpace(layout, ["W1", "G4"], num_classes=3)
    assert other.option_costs == (costs[0], [each[::-1] for each in costs[1]])
    # Other classes and images are counted again.
    for another in ({"num_classes": 4}, {"num_classes": 3, "image_size": 16}):
        with pytest.raises(TypeError):
            _ = SearchSpace(layout, ["G4"], **another).option_costs


@pytest.mark.parametrize("blocks", [40, 250, 600])
def test_more_genomes_than_a_double_can_count_are_drawn_uniformly(blocks: int) -> None:
    costs = [list(range(20))] * blocks
    table = CostTable(0, costs, [[1] * 20] * blocks, (0, np.inf))
    (picks,) = itertools.islice(table.draw(0), 1)
    # Their mean is 9.5, and its standard error 5.77 / sqrt(1024 blocks).
    assert picks.shape == (1024, blocks)
    assert abs(picks.mean() - 9.5) < 4 * 5.77 / (1024 * blocks) ** 0.5
    both = JointTable((0, 0), (costs, costs), ((0, np.inf), (0, np.inf)))
    (picks,) = itertools.islice(both.draw(0), 1)
    assert abs(picks.mean() - 9.5) < 4 * 5.77 / (1024 * blocks) ** 0.5
    assert both.total == pytest.approx(20.0**blocks if blocks < 200 else np.inf)
