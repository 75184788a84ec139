"""Budgets in percent of the original network, and of the size of the weights file."""

import json

import pytest
import safetensors.torch
import torch
from command_line import run

from blockswap_models import Budget, BudgetError, Cost, SearchResult, SearchSpace, count, profile, search
from blockswap_models.nets.stored import file_size, stored_tensors

SPACE = SearchSpace("wrn16_1", ["S", "G4", "W1", "B2", "M3"])
ORIGINAL = SPACE.original_cost


def written(model: torch.nn.Module) -> bytes:
    """The file that `blockswap pack` writes: parameters in half precision, buffers as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    return safetensors.torch.save(model.state_dict(), {"format": "pt"})


@pytest.mark.parametrize("space", [SPACE, SearchSpace("resnet18", ["S", "G4", "B2"], num_classes=7, image_size=32)])
def test_a_size_is_that_of_the_file(space) -> None:
    for genome in [*space.sample(3, seed=1), space.layout.original]:
        content = written(space.build(genome))
        assert space.sized.cost(genome).size == len(content)
        assert file_size(stored_tensors(space.build(genome, device="meta"))) == len(content)


def test_all_genomes_of_a_budget_of_size_are_found() -> None:
    space = SearchSpace("wrn16_1", ["S", "G4", "W1"])
    budget = Budget(size="200kB", tolerance=0.03)
    every = {genome: space.sized.cost(genome).size for genome in space.sample(space.count())}
    fitting = {genome for genome, size in every.items() if 194_000 <= size <= 206_000}
    assert 5 < len(fitting) < len(every)
    assert set(space.sample(1000, budget)) == fitting
    assert space.range("size") == (min(every.values()), max(every.values()))
    assert space.estimate(budget)[0] == len(fitting)
    with pytest.raises(BudgetError, match="counted for one of params"):
        space.count(budget)
    with pytest.raises(BudgetError, match=r"meets size 10 bytes .* its size runs from 76,276 bytes to 360,876 bytes"):
        space.sample(1, Budget(size=10))


def test_percent_is_of_the_original_network() -> None:
    assert ORIGINAL == count(SPACE.build(SPACE.layout.original)) == Cost(175_066, ORIGINAL.macs)
    space, budget = SPACE.resolve(Budget(params="40%", macs="30%..50%", tolerance=0.05))
    assert space is SPACE
    assert budget == Budget(
        params=70_026, macs=(round(0.3 * ORIGINAL.macs), round(0.5 * ORIGINAL.macs)), tolerance=0.05
    )
    genomes = SPACE.sample(5, Budget(params="40%"))
    assert genomes == SPACE.sample(5, Budget(params=70_026))
    assert SPACE.count(Budget(params="40%")) == SPACE.count(Budget(params=70_026))
    space, budget = SPACE.resolve({"size": "50%"})
    assert budget.size == round(0.5 * len(written(SPACE.build(SPACE.layout.original))))
    with pytest.raises(BudgetError, match=r"params 40% ± 2.5% is a share of an original network; use SearchSpace"):
        Budget(params="40%").fits(ORIGINAL)
    with pytest.raises(BudgetError, match="needs a table of measured latencies"):
        SPACE.resolve(Budget(latency="50%"))


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("10%..70k", "a budget of params is in percent on both sides or on none"),
        ("50%..10%", "from a smaller to a larger amount, not from 50% to 10%"),
        ("x%", "'x%' is no amount; use 400k, 3m, 1.2g, 20%"),
    ],
)
def test_refuses_shares(amount, message) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(params=amount)


def test_amounts_of_size() -> None:
    sizes = {"500kB": 500_000, "1.25 MB": 1_250_000, "2KiB": 2048, "999B": 999}
    # As tables and messages have them.
    sizes |= {"159,000": 159_000, "159,000 bytes": 159_000, "159,000..160,000": (159_000, 160_000)}
    assert [Budget(size=text).size for text in sizes] == list(sizes.values())
    assert str(Budget(size="..500kB")) == "size up to 500,000 bytes"
    with pytest.raises(BudgetError, match="'500k' is no size; use 500kB"):
        Budget(size="500k")


def test_a_search_for_a_size_keeps_it_in_its_record(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("--types", "S,W1", "--size", "..60%", "--samples", 3, "--refine", 0, "--batch-size", 2, "--workers", 1)
    code, out, err = run("search", "wrn16_1", *asked, "--score", "params", "--out", "a.jsonl", "--json")
    assert code == 0, err
    best = json.loads(out)["best"]
    space = SearchSpace("wrn16_1", ["S", "W1"])
    assert best["size"] == space.sized.cost(best["genome"]).size <= 0.6 * space.sized.original_cost.size
    code, out, _ = run("show", "a.jsonl")
    assert f"{best['size']:,}" in out
    code, out, _ = run("space", "wrn16_1", "--size", "..60%", "--types", "S,W1")
    assert "size        " in out
    result = search(space, {"size": "..60%"}, 3, refine=0, batch_size=2, score="params")
    assert result.best.cost.size == best["size"]


def test_a_latency_in_percent_needs_the_original_in_the_table_alone() -> None:
    table = profile(SearchSpace("wrn16_1", ["S", "G4", "B2"]), threads=1, rounds=1, passes=1)
    space, budget = SearchSpace("wrn16_1", ["G4", "B2"], latency=table).resolve({"latency": "..90%"})
    assert budget.windows["latency"][1] == pytest.approx(0.9 * table.latency(space.layout.original), abs=1e-8)
    without = profile(SearchSpace("wrn16_1", ["G4", "B2"]), threads=1, rounds=1, passes=1)
    with pytest.raises(BudgetError, match=r"a latency in percent is of blockswap_wrn16_1, whose blocks the table"):
        SearchSpace("wrn16_1", ["G4", "B2"], latency=without).resolve({"latency": "..90%"})


def test_a_record_of_a_size_is_loaded_with_sizes(tmp_path) -> None:
    record = tmp_path / "size.jsonl"
    found = search("wrn16_1", {"size": "30%"}, 3, refine=0, batch_size=4, record=record)
    loaded = SearchResult.load(record)
    assert loaded.budget.fits(loaded.space.cost(loaded.best.genome))
    assert [each.cost for each in loaded.candidates] == [each.cost for each in found.candidates]
    assert f"{loaded.best.cost.size:,}" in loaded._repr_html_()
    pytest.importorskip("pandas", reason="needs pip install pandas")
    table = loaded.to_pandas()
    assert list(table["size"]) == [each.cost.size for each in loaded.candidates]
    assert "latency" not in table
