"""Latency tables, and budgets of latency: against brute force on tables whose times are known."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from blockswap_models import (
    BlockType,
    Budget,
    BudgetError,
    Cost,
    Genome,
    GenomeError,
    LatencyError,
    LatencyTable,
    SearchSpace,
    profile,
    search,
)
from blockswap_models.budget import parse_latency
from blockswap_models.nets.networks import build, residual_blocks
from blockswap_models.searching.candidates import ScoredDraw
from blockswap_models.searching.latency import Shape
from blockswap_models.searching.profile import Stopwatch, typical
from blockswap_models.searching.record import RecordError, budget_text, read_ranking, read_record

TYPES = ("S", "W1", "G8", "B2")
PLAIN = SearchSpace("wrn16_1", TYPES)


def shapes_of(space):
    """The shapes of the blocks, from the network that is built."""
    sizes = []
    network = space.build(space.layout.original, device="meta").eval()
    for block in residual_blocks(network):
        block.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    network(torch.empty(1, *space.input_size, device="meta"))
    places = space.layout.positions
    return tuple(Shape(p.in_chs, p.out_chs, p.stride, *size) for p, size in zip(places, sizes, strict=True))


def made_up(space=PLAIN, seed=0, **changes):
    """A table of known times, in whole microseconds."""
    random = np.random.default_rng(seed)
    shapes = shapes_of(space)
    blocks = {
        shape: {
            block: int(random.integers(100, 900)) / 1e6
            for block, _ in space.layout.positions[index].distinct(space.types)
        }
        for index, shape in enumerate(shapes)
    }
    about = {"processor": "none", "torch": "0"}
    fields = [space.layout, space.input_size, space.num_classes, 1, "cpu", 1, about, 20e-6, 10e-6, shapes, blocks]
    return dataclasses.replace(LatencyTable(*fields), **changes)


TABLE = made_up()
SPACE = SearchSpace("wrn16_1", TYPES, latency=TABLE)


def every():
    """All genomes of the space, with their microseconds, added up apart from the code under test."""
    options = [[block for block, _ in place.distinct(SPACE.types)] for place in SPACE.layout.positions]
    found = {}
    for blocks in itertools.product(*options):
        micros = 30 + sum(round(TABLE.blocks[s][b] * 1e6) for s, b in zip(TABLE.shapes, blocks, strict=True))
        found[Genome.from_blocks(blocks, SPACE.layout.depths)] = micros
    return found


EVERY = every()


# -- the table -------------------------------------------------------------------------------------------------------


def test_a_genome_is_the_sum_of_its_parts():
    assert len(EVERY) == 4**6 > 4000
    for genome, micros in itertools.islice(EVERY.items(), 0, None, 97):
        assert TABLE.latency(genome) == micros / 1e6 == SPACE.cost(genome).latency
        assert SPACE.cost(genome) == dataclasses.replace(PLAIN.cost(genome), latency=micros / 1e6)


def test_another_name_of_the_same_network_has_its_time():
    # G16 is W1 on 16 channels.
    assert TABLE.latency("2xG16/2xS/2xS") == TABLE.latency("2xW1/2xS/2xS")
    with pytest.raises(GenomeError) as caught:
        TABLE.latency("2xS/S,M6/2xS")
    assert str(caught.value) == (
        "stage 2, block 2 'M6': not in the latency table, which has S, W1, G8, B2; measure one with more types="
    )


def test_saved_and_loaded_is_the_same(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("an older one")
    TABLE.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["table.json"]
    assert LatencyTable.load(path) == TABLE
    assert LatencyTable.load(path).digest == TABLE.digest
    for other in (made_up(seed=1), made_up(threads=2), made_up(batch_size=8), made_up(head=1e-3)):
        assert other.digest != TABLE.digest


def test_times_are_rounded_so_that_counting_is_quick_and_once_only(tmp_path):
    slow = made_up(
        blocks={shape: {block: 1234.56789 * each for block, each in t.items()} for shape, t in TABLE.blocks.items()}
    )
    least, most = SearchSpace("wrn16_1", TYPES, latency=slow).range("latency")
    assert least < 2 < most
    exact = 1234.56789 * (max(EVERY.values()) - 30) / 1e6 + 30e-6
    assert most == pytest.approx(exact, abs=7 * 0.5e-4)
    assert round(most * 1e4) == pytest.approx(most * 1e4, abs=1e-6)
    slow.save(tmp_path / "slow.json")
    assert LatencyTable.load(tmp_path / "slow.json") == slow
    assert dataclasses.replace(slow) == slow
    # A fast network keeps its nanoseconds.
    assert made_up(stem=0.000020001).stem == 0.00002
    tiny = {shape: dict.fromkeys(by_type, 1.2345e-5) for shape, by_type in TABLE.blocks.items()}
    assert set(made_up(stem=0.0, head=1.2e-8, blocks=tiny).blocks[TABLE.shapes[0]].values()) == {1.2345e-5}


def without(content, *path):
    *outer, last = path
    for key in outer:
        content = content[key]
    del content[last]


def put(content, value, *path):
    *outer, last = path
    for key in outer:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: without(c, "kind"),
        lambda c: without(c, "layout", "depths"),
        lambda c: without(c, "shapes", 2),
        lambda c: without(c, "stem"),
        lambda c: put(c, "blockswap search", "kind"),
        lambda c: put(c, "fast", "stem"),
        lambda c: put(c, -1, "head"),
        lambda c: put(c, math.nan, "shapes", 0, "seconds", "S"),
        lambda c: put(c, 0.1, "shapes", 0, "seconds", "Q7"),
        lambda c: put(c, {}, "shapes", 0, "seconds"),
        lambda c: put(c, [1, 2, 3], "shapes", 0, "blocks"),
        lambda c: put(c, [3], "input_size"),
        lambda c: put(c, 17, "shapes", 0, "in_chs"),
        lambda c: put(c, 5, "shapes"),
    ],
)
def test_a_spoilt_file_is_one_line(tmp_path, spoil):
    path = tmp_path / "table.json"
    content = json.loads(json.dumps(TABLE.content()))
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(LatencyError) as caught:
        LatencyTable.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"kind": "blockswap lat', "\x00\xff", "[" * 100_000])
def test_another_file_is_not_a_table(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(LatencyError) as caught:
        LatencyTable.load(path)
    assert str(caught.value) == (
        f"{path} is not a latency table; use one that LatencyTable.save or 'blockswap profile' wrote"
    )


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(LatencyError, match=r"^cannot read the latency table .*nowhere.json: No such file"):
        LatencyTable.load(tmp_path / "nowhere.json")
    with pytest.raises(LatencyError, match=r"^cannot write '.*table.json': No such file"):
        TABLE.save(tmp_path / "nowhere" / "table.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "wrn16_2"}, "of blockswap_wrn16_1 at 3x32x32, not of blockswap_wrn16_2 at 3x32x32"),
        (
            {"image_size": 64},
            "3x32x32, not of blockswap_wrn16_1 at 3x64x64; measure one",
        ),
        ({"in_chans": 1}, "not of blockswap_wrn16_1 at 1x32x32"),
        ({"types": ["S", "B4"]}, "stage 1, block 1 'B4': not in the latency table, which has S, W1, G8, B2; "),
    ],
)
def test_a_table_of_another_space_is_refused(arguments, message):
    with pytest.raises(ValueError, match="latency table") as caught:
        SearchSpace(**{"layout": "wrn16_1", "types": TYPES, "latency": TABLE, **arguments})
    assert message in str(caught.value)


def test_a_table_is_for_any_number_of_classes():
    space = SearchSpace("wrn16_1", TYPES, num_classes=100, latency=TABLE)
    assert space.cost("2xS/2xS/2xS").latency == SPACE.cost("2xS/2xS/2xS").latency


def test_a_part_of_the_types_will_do():
    part = SearchSpace("wrn16_1", ["W1", "S"], latency=TABLE)
    assert part.cost("W1,S/2xS/2xW1") == SPACE.cost("W1,S/2xS/2xW1")


# -- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4ms", 0.004),
        ("4.1ms", 0.0041),
        ("800us", 0.0008),
        ("800µs", 0.0008),
        ("1_500us", 0.0015),
        (" 1.5s ", 1.5),
        ("9,000 ms", 9.0),
        ("..4ms", (None, 0.004)),
        ("3ms..", (0.003, None)),
        ("900us .. 4ms", (0.0009, 0.004)),
    ],
)
def test_latencies_are_read(text, amount):
    assert parse_latency(text) == amount


@pytest.mark.parametrize(
    "text", ["", "..", "4", "4k", "ms", "-4ms", "4  ms", "4,0ms", "3..4ms", "1e-3s", "4MS", "9" * 10**5 + "s"]
)
def test_messages_for_latencies(text):
    with pytest.raises(BudgetError) as caught:
        parse_latency(text)
    assert str(caught.value).endswith("is no latency; use 4ms, 800us, 20%, ..4ms or 3ms..4ms")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("amount", "window", "text"),
    [
        (0.004, (0.0039, 0.0041), "latency 4 ms ± 2.5%"),
        ((None, 0.0008), (0, 0.0008), "latency up to 0.8 ms"),
        ((0.003, 0.0041225), (0.003, 0.0041225), "latency 3 ms to 4.1225 ms"),
        ((1.5, None), (1.5, math.inf), "latency from 1,500 ms"),
    ],
)
def test_budgets_of_latency(amount, window, text):
    budget = Budget(latency=amount)
    assert budget.windows == {"latency": window}
    assert str(budget) == text
    low, high = window
    assert budget.fits(Cost(1, 1, low))
    assert not budget.fits(Cost(1, 1, low - 1e-9))
    assert math.isinf(high) or not budget.fits(Cost(1, 1, high + 1e-9))


def test_a_budget_of_latency_from_large_to_small():
    with pytest.raises(
        BudgetError, match=r"^a budget of latency runs from a smaller to a larger amount, not from 4 ms to"
    ):
        Budget(latency=(0.004, 0.003))


def test_costs_with_latencies_are_added_and_printed():
    # In binary fractions 0.1 + 0.2 is not 0.3.
    assert Cost(1, 2, 0.1) + Cost(3, 4, 0.2) == Cost(4, 6, 0.3)
    assert Cost(3, 4, 0.3) - Cost(1, 2, 0.1) == Cost(2, 2, 0.2)
    assert (Cost(1, 2, 0.1) + Cost(1, 2)).latency is None
    assert str(Cost(400_000, 92_240_000, 0.00398)) == "400,000 parameters, 92.2 M MACs, 3.98 ms"
    assert (repr(Cost(1, 2)), repr(Cost(1, 2, 0.5))) == (
        "Cost(params=1, macs=2)",
        "Cost(params=1, macs=2, latency=0.5)",
    )


def test_counts_and_range_are_those_of_brute_force():
    least, most = min(EVERY.values()), max(EVERY.values())
    assert SPACE.range("latency") == (least / 1e6, most / 1e6)
    middle = sorted(EVERY.values())[len(EVERY) // 2]
    for low, high in [
        (least, most),
        (middle, middle),
        (middle + 1, most),
        (0, middle - 1),
        (least, least),
        (most, 10**6),
    ]:
        expected = sum(low <= micros <= high for micros in EVERY.values())
        assert SPACE.count(Budget(latency=(low / 1e6, high / 1e6))) == expected
    budget = Budget(latency=middle / 1e6)
    low, high = budget.windows["latency"]
    assert SPACE.count(budget) == sum(low <= micros / 1e6 <= high for micros in EVERY.values()) > 100
    # Every number of microseconds is a total or the edge of one.
    for micros in range(middle - 20, middle + 20):
        both = [SPACE.count(Budget(latency=each)) for each in ((None, micros / 1e6), ((micros + 1) / 1e6, None))]
        assert sum(both) == len(EVERY)
    assert SPACE.count(Budget(latency=(0, None)), distinct=False) == 4**6


def test_samples_meet_the_latency_and_are_all_there_are():
    low, high = (sorted(EVERY.values())[len(EVERY) * part // 20] for part in (7, 8))
    budget = Budget(latency=(low / 1e6, high / 1e6))
    expected = {genome for genome, micros in EVERY.items() if low <= micros <= high}
    assert set(SPACE.sample(10**6, budget)) == expected
    assert SPACE.sample(20, budget, seed=3) == SPACE.sample(60, budget, seed=3)[:20]


def test_parameters_and_latency_at_once():
    middle = sorted(EVERY.values())[len(EVERY) // 2]
    budget = Budget(params=90_000, tolerance=0.1, latency=(None, middle / 1e6))
    within = [genome for genome in EVERY if 81_000 <= PLAIN.cost(genome).params <= 99_000]
    expected = {genome for genome in within if EVERY[genome] <= middle}
    found, share = SPACE.sample_with_acceptance(10**6, budget)
    assert set(found) == expected
    assert share == len(expected) / len(within)
    assert 0.1 < share < 0.9


@pytest.mark.parametrize("budget", [Budget(latency=1), Budget(latency=(None, 1e-6)), Budget(params=90_000, latency=1)])
def test_a_latency_out_of_reach_is_answered_with_the_range(budget):
    with pytest.raises(BudgetError) as caught:
        SPACE.sample(5, budget)
    least, most = (f"{micros / 1000:g}" for micros in (min(EVERY.values()), max(EVERY.values())))
    assert str(caught.value) == (
        f"no genome of blockswap_wrn16_1 meets {budget}; "
        f"with these block types its latency runs from {least} ms to {most} ms"
    )


def test_without_a_table_there_is_no_budget_of_latency():
    budget = Budget(latency=0.004)
    for call in (
        lambda: PLAIN.sample(5, budget),
        lambda: PLAIN.count(budget),
        lambda: PLAIN.sample(5, Budget(params=90_000, latency=0.004)),
        lambda: PLAIN.range("latency"),
        lambda: budget.fits(PLAIN.cost("2xS/2xS/2xS")),
        lambda: search(PLAIN, budget, samples=1),
    ):
        with pytest.raises(
            BudgetError, match=r"^a budget of latency needs a table .*blockswap_models.profile, and use SearchSpace\("
        ):
            call()


# -- searches --------------------------------------------------------------------------------------------------------


def flat(model, images, labels):
    return 1.0


def test_a_search_keeps_latencies_and_its_table(tmp_path):
    path = tmp_path / "record.jsonl"
    middle = sorted(EVERY.values())[len(EVERY) // 2]
    budget = Budget(latency=middle / 1e6)
    arguments = {"samples": 3, "batch_size": 2, "score": flat, "record": path}
    result = search(SPACE, budget, **arguments)
    assert all(budget.fits(each.cost) and each.cost == SPACE.cost(each.genome) for each in result.candidates)
    header, scored = read_record(path)
    assert header["latency_table"] == TABLE.digest
    assert header["budget"] == {"latency": list(budget.windows["latency"])}
    assert budget_text(header).startswith("latency ")
    assert [each.cost.latency for each in scored] == [EVERY[each.genome] / 1e6 for each in scored]
    assert {each.cost for each in read_ranking(path)[1]} == {each.cost for each in result.candidates}
    assert search(SPACE, budget, resume=True, **arguments).best == result.best
    before = path.read_bytes()
    for table in (made_up(threads=2), None):
        other = SearchSpace("wrn16_1", TYPES, latency=table)
        with pytest.raises((RecordError, BudgetError), match="latency_table" if table else "blockswap_models.profile"):
            search(other, budget, resume=True, **arguments)
    assert path.read_bytes() == before


def test_a_record_without_latencies_is_still_read():
    row = {"genome": "S", "params": 1, "macs": 2, "draw": 0, "score": 1.0}
    assert ScoredDraw.from_json(row).cost == Cost(1, 2)
    assert ScoredDraw.from_json({**row, "latency": 0.004}).cost == Cost(1, 2, 0.004)


# -- measuring -------------------------------------------------------------------------------------------------------


def test_a_profile_has_every_block_type_at_every_shape():
    space = SearchSpace("wrn10_1", ["S", "G8", "B2", "G32"], num_classes=3, in_chans=1, image_size=16)
    random_before, threads = torch.get_rng_state(), torch.get_num_threads()
    steps = []
    table = profile(
        space, batch_size=2, threads=1, rounds=2, passes=1, progress=lambda each: steps.append(each) or each
    )
    assert torch.equal(torch.get_rng_state(), random_before)
    assert torch.get_num_threads() == threads
    assert [len(each) for each in steps] == [2]
    assert table.shapes == shapes_of(space)
    assert [set(map(str, table.blocks[shape])) for shape in table.shapes] == [
        {"S", "G8", "B2"},
        {"S", "G8", "B2"},
        {"S", "G8", "B2", "G32"},
    ]
    times = [table.stem, table.head, *(each for by_type in table.blocks.values() for each in by_type.values())]
    assert all(1e-7 < each < 1 for each in times)
    assert (table.batch_size, table.device, table.threads) == (2, "cpu", 1)
    assert table.about["torch"] == torch.__version__
    SearchSpace("wrn10_1", ["B2"], 3, 1, 16, table).sample(1, Budget(latency=(0, None)))


def test_the_typical_time_is_the_lower_quartile():
    assert typical([5, 1, 4, 2, 3]) == 2


def test_a_profile_adds_up_to_whole_networks(monkeypatch):
    # A clock that tells what was computed: a pass takes as long as its blocks, and reading the clock takes time too.
    seconds = {"S": 5e-4, "G8": 3e-4, "B2": 2e-4}
    clock = [0.0]
    reads = [0]

    def now():
        reads[0] += 1
        clock[0] += 1e-6
        return clock[0]

    def built(self, genome, *args, **kwargs):
        network = build(self.layout, genome)
        for block, kind in zip(residual_blocks(network), Genome(genome).blocks, strict=True):
            block.register_forward_hook(lambda *_, kind=kind: clock.__setitem__(0, clock[0] + seconds[str(kind)]))
        network.conv1.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1e-4))
        network.fc.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 5e-5))
        return network

    monkeypatch.setattr("time.perf_counter", now)
    monkeypatch.setattr(SearchSpace, "build", built)
    space = SearchSpace("wrn10_1", list(seconds), image_size=8)
    table = profile(space, rounds=1, passes=1)
    assert reads[0] == 3 * (5 + 1 + 2)
    for genome in ("S/S/S", "S/G8/B2", "B2/B2/S"):
        expected = 1.5e-4 + sum(seconds[each] for each in genome.split("/"))
        # The clock's own readings are scaled away, all but one of a whole pass.
        assert table.latency(genome) == pytest.approx(expected, rel=0.004)
        assert table.of_block(0, BlockType.parse(genome.split("/")[0])) == pytest.approx(
            seconds[genome.split("/")[0]], rel=0.006
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is at least 1, not 0"),
        ({"threads": 0}, "threads is at least 1, not 0"),
        ({"rounds": 0}, "rounds is at least 1, not 0"),
        ({"device": "meta"}, "the device meta computes nothing; use cpu or cuda"),
    ],
)
def test_messages_for_profiles(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        profile(PLAIN, **arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_profile_on_a_gpu():
    space = SearchSpace("wrn10_1", ["S", "G8"])
    table = profile(space, device="cuda", rounds=5)
    network = space.build("S/G8/S").eval().cuda()
    stopwatch = Stopwatch(torch.device("cuda"))
    x = torch.rand(1, *space.input_size, device="cuda")
    with torch.inference_mode():
        whole = sorted(stopwatch.whole(network, x) for _ in range(40))[10]
    assert table.device == "cuda"
    assert table.latency("S/G8/S") == pytest.approx(whole, rel=0.5)
