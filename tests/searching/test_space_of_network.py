"""Search spaces of networks of timm."""

import itertools
import json
import pickle

import pytest
import safetensors.torch
import timm
import torch

from blockswap_models import (
    Budget,
    Genome,
    GenomeError,
    LatencyTable,
    RecordError,
    SearchResult,
    SearchSpace,
    count,
    profile,
    search,
    swap,
)
from blockswap_models.data.folders import DataError
from blockswap_models.searching.record import build_text, network_of
from tests.command_line import run

TYPES = ("K", "S", "G4", "B2")


@pytest.fixture(scope="module")
def space():
    return SearchSpace("test_resnet", TYPES, num_classes=5, image_size=32)


def test_a_space_of_a_network_counts_what_is_built(space):
    genomes = [Genome("/".join(types)) for types in itertools.product(TYPES, repeat=4)]
    costs = [space.cost(genome) for genome in genomes]
    for genome, cost in list(zip(genomes, costs, strict=True))[::37]:
        assert count(space.build(genome), space.input_size) == cost
    assert space.count() == 256
    budget = Budget(params=(150_000, 300_000))
    fitting = {genome for genome, cost in zip(genomes, costs, strict=True) if budget.fits(cost)}
    assert 10 < len(fitting) < 200
    assert space.count(budget) == len(fitting)
    assert {*space.sample(300, budget)} == fitting
    assert space.range() == (min(each.params for each in costs), max(each.params for each in costs))
    original = timm.create_model("test_resnet", num_classes=5)
    assert space.cost("K/K/K/K") == count(original, (3, 32, 32))


def test_every_type_fits_the_widths_of_bottlenecks():
    # Those of ResNet-50, a block a stage.
    with torch.device("meta"):
        model = timm.create_model("resnet14t", num_classes=5)
    space = SearchSpace(model, image_size=64)
    assert [place.out_chs for place in space.layout.places] == [256, 512, 1024, 2048]
    # Some are the same network at a position, and are one option.
    assert [sum(number for _, number in options) for options in space.options] == [24] * 4
    for block in space.types:
        genome = "/".join([str(block)] * 4)
        assert space.cost(genome) == count(space.build(genome), (3, 64, 64)), block
    # The block that is there is a bottleneck of four, and a standard block on its ends is much larger.
    assert space.cost("B4/B4/B4/B4") == space.cost("K/K/K/K")
    _, options = space.option_costs
    by_type = {str(block): cost for (block, _), cost in zip(space.options[3], options[3], strict=True)}
    # Two 3x3 convolutions with BN; the shortcut is that of the block, a 1x1 convolution with BN.
    assert by_type["S"].params == 9 * 2048 * (1024 + 2048) + 2 * 2 * 2048 + 1024 * 2048 + 2 * 2048


def test_where_no_types_are_given_blocks_may_be_kept():
    types = [str(block) for block in SearchSpace("test_resnet").types]
    assert types[:3] == ["K", "S", "G2"]
    assert len(types) == 24
    assert "K" not in map(str, SearchSpace("resnet18").types)
    with pytest.raises(GenomeError, match="stage 1, block 1 of blockswap_wrn16_1: none of K"):
        SearchSpace("wrn16_1", types=["K"])


def test_a_search_of_a_network_is_recorded_and_goes_on(space, tmp_path):
    record = tmp_path / "record.jsonl"
    arguments = {"score": "fisher", "batch_size": 4, "refine": 0, "record": record}
    first = search(space, Budget(params=(None, 200_000)), 3, **arguments)
    again = search(pickle.loads(pickle.dumps(space)), Budget(params=(None, 200_000)), 4, resume=True, **arguments)
    scores = {each.genome: each.score for each in again.candidates}
    assert len(scores) == 4
    assert all(scores[each.genome] == each.score > 0 for each in first.candidates)
    header = json.loads(record.read_text().splitlines()[0])
    assert build_text(header, "K/S/K/K") == (
        "build it: blockswap_models.swap(timm.create_model('test_resnet', num_classes=5, in_chans=3), 'K/S/K/K')"
    )
    found = network_of(record)
    assert (found.name, found.swapped, found.library, found.genome) == ("test_resnet", True, None, again.best.genome)
    assert SearchResult.load(record).space.cost("K/S/K/K") == space.cost("K/S/K/K")
    # All blocks have a part in the score, also those that timm starts at zero.
    kept = search(space, None, genomes=["K/K/K/K"], batch_size=4, refine=0)
    assert min(kept.best.shares) > 0


def test_a_given_network_keeps_its_weights_and_its_record_is_of_them(tmp_path):
    model = timm.create_model("test_resnet", num_classes=5)
    space = SearchSpace(model, TYPES, image_size=32)
    built = space.build("K/G4/K/K")
    assert torch.equal(built.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    record = tmp_path / "record.jsonl"
    arguments = {"samples": 1, "batch_size": 4, "refine": 0, "record": record}
    search(space, Budget(params=(None, 200_000)), **arguments)
    other = timm.create_model("test_resnet", num_classes=5)
    with pytest.raises(RecordError, match="another search: network"):
        search(SearchSpace(other, TYPES, image_size=32), Budget(params=(None, 200_000)), resume=True, **arguments)
    with pytest.raises(RecordError, match="is of a test_resnet with weights that only its search had"):
        network_of(record)
    with pytest.raises(ValueError, match="has num_classes=5, not 7"):
        SearchSpace(model, num_classes=7)


def test_kept_blocks_of_a_fresh_network_have_a_part_in_the_score():
    model = timm.create_model("test_resnet", num_classes=5)
    assert not model.layer1[0].bn2.weight.any()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = search(SearchSpace(model, TYPES, image_size=32), None, genomes=["K/K/K/K"], batch_size=4, refine=0)
    assert min(kept.best.shares) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_network_without_a_head_is_counted_and_not_scored():
    model = timm.create_model("test_resnet", num_classes=0)
    space = SearchSpace(model, TYPES, image_size=32)
    assert space.cost("K/S/K/K") == count(swap(model, "K/S/K/K"), (3, 32, 32))
    with pytest.raises(DataError, match=r"^the network has no classes, which a score needs; use one with a head, such"):
        search(space, None, samples=1, refine=0, batch_size=4)
    with pytest.raises(ValueError, match="num_classes is at least 1, not 0"):
        SearchSpace("test_resnet", num_classes=0)


def test_latencies_of_a_network_are_measured_and_added_up(space, tmp_path):
    table = profile(SearchSpace("test_resnet", ("K", "S"), num_classes=5, image_size=32), rounds=1, passes=1)
    table.save(tmp_path / "table.json")
    table = LatencyTable.load(tmp_path / "table.json")
    measured = SearchSpace("test_resnet", ("K", "S"), num_classes=5, image_size=32, latency=table)
    assert measured.cost("K/S/K/S").latency == table.latency("K/S/K/S")
    least, most = measured.range("latency")
    assert 0 < least <= table.latency("K/K/K/K") <= most
    assert measured.count(Budget(latency=(None, most))) == 16
    # In between those that are fast enough, by listing them; the share is of the network as it is.
    times = {genome: table.latency(genome) for genome in map("/".join, itertools.product("KS", repeat=4))}
    middle = sorted(times.values())[7]
    fast = {genome for genome, seconds in times.items() if seconds <= middle}
    assert {*measured.sample(16, Budget(latency=(None, middle)))} == fast
    assert measured.count(Budget(latency=(None, middle))) == len(fast)
    assert measured.resolve(Budget(latency="..50%"))[1].latency == (None, pytest.approx(times["K/K/K/K"] / 2))


def test_budgets_of_size_are_those_of_the_weights_file(space):
    for genome in ("K/K/K/K", "S/G4/K/B2"):
        model = space.build(genome)
        for parameter in model.parameters():
            parameter.data = parameter.data.half()
        content = safetensors.torch.save(model.state_dict(), {"format": "pt"})
        assert space.sized.cost(genome).size == len(content)
    sizes = {genome: space.sized.cost(genome).size for genome in map("/".join, itertools.product(TYPES, repeat=4))}
    budget = Budget(size=(None, sorted(sizes.values())[40]))
    fitting = {genome for genome, size in sizes.items() if size <= budget.size[1]}
    assert {*space.sample(300, budget)} == fitting
    assert space.range("size") == (min(sizes.values()), max(sizes.values()))
    assert space.resolve(Budget(size="50%"))[1].size == round(sizes["K/K/K/K"] / 2)


def printed(*arguments):
    code, out, _ = run(*arguments)
    assert code == 0
    return out


def test_the_command_line_takes_networks_of_timm():
    size = ("--num-classes", "5", "--image-size", "32")
    report = json.loads(printed("space", "test_resnet", "--types", "K,S,G4,B2", "--params", "200k", *size, "--json"))
    assert report["network"] == "test_resnet"
    assert report["genomes"] == 256
    told = json.loads(printed("count", "test_resnet", "K/S/G4/B2", *size, "--json"))
    assert told["params"] == SearchSpace("test_resnet", TYPES, num_classes=5).cost("K/S/G4/B2").params
    assert [row["type"] for row in told["blocks"]] == ["K", "S", "G4", "B2"]
