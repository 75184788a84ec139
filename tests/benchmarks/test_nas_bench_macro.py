import json
from argparse import Namespace
from unittest import mock

import pytest
import torch

from benchmarks.lib.macro import MacroNetwork, read_table
from benchmarks.search.nas_bench_macro import accuracy_of_choice, groups_of, measure, run
from blockswap_models import count
from blockswap_models.searching.fisher import fisher_balanced, fisher_by_block
from blockswap_models.searching.rankings import gradient_norm, naswot

# Rows of the table: parameters and FLOPs, of which it counts one a multiply-accumulate.
ROWS = {
    "11111221": (2_181_386, 65_012_224),
    "02012220": (1_886_890, 65_495_552),
    "00220121": (2_038_570, 54_901_248),
}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.json"
    rows = {each: {"mean_acc": 90.0, "params": params, "flops": flops} for each, (params, flops) in ROWS.items()}
    path.write_text(json.dumps(rows))
    return read_table(path)


def test_networks_cost_what_the_table_says(table):
    assert [each.digits for each in table] == sorted(ROWS)
    for each in table:
        cost = count(MacroNetwork(each.genome), (3, 32, 32))
        assert (cost.params, cost.macs) == (each.params, each.macs) == ROWS[each.digits]
    assert table[1].genome == "I,M6K5/I,M3,M6K5/2xM6K5,I"
    assert table[1].layers == 5


def test_one_pass_measures_what_the_package_does():
    torch.manual_seed(0)
    model = MacroNetwork("I,M3/M6K5,I,M3/I,M3,M3")
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    found = measure(model, images, labels)
    assert found["blocks"] == pytest.approx(fisher_by_block(model, images, labels), rel=1e-4)
    terms = [f / o for f, o in zip(found["blocks"], found["outputs"], strict=True) if f]
    balanced = float(torch.tensor(terms, dtype=torch.float64).log1p().sum())
    assert balanced == pytest.approx(fisher_balanced(model, images, labels), rel=1e-4)
    assert found["gradient-norm"] == pytest.approx(gradient_norm(model, images, labels), rel=1e-4)
    assert found["naswot"] == pytest.approx(naswot(model, images, labels))
    # The first block has no branch; the second changes nothing in width, so that it has a shortcut.
    assert found["blocks"][0] == found["outputs"][0] == 0
    assert found["outputs"][2] == found["blocks"][2] > 0
    assert found["outputs"][1] != found["blocks"][1]


def test_more_networks_are_those_before_and_others(table):
    networks = [each._replace(params=1_000_000 + place) for place, each in enumerate(table * 10)]
    few, many = (groups_of(networks, number, 0)["1.0 M, any depth"] for number in (5, 12))
    assert (len(few), len(many)) == (5, 12)
    assert many[:5] == few
    assert groups_of(networks[:19], 5, 0) == {}


def test_only_what_is_asked_for_is_judged_and_nothing_is_written(table, tmp_path, capsys):
    digits, out = [each.digits for each in table], tmp_path / "macro.jsonl"
    options = Namespace(
        **{"table": tmp_path / "table.json", "out": str(out), "data_dir": None, "networks": 3, "draws": 1},
        **{"batch_size": 4, "seed": 0, "time": 0, "resamples": 9, "only_print": True, "smoke": False},
    )
    with pytest.raises(ValueError, match="has no scores of these networks; leave out --only-print"):
        run(options)
    assert not out.exists()
    scores = {"zico": 1.0, "synflow": 1.0, "gradient-norm": 1.0, "naswot": 1.0}
    row = {"scores": scores, "blocks": [1.0] * 8, "outputs": [2.0] * 8, "images": 4, "seed": 0, "data": "noise"}
    # A second draw, and a network that is not drawn.
    asked = [{**row, "network": each, "draw": draw} for each in digits for draw in (0, 1)]
    lines = [json.dumps(each) for each in [*asked, {**row, "network": "22222222", "draw": 0}]]
    # As it is while another process writes.
    out.write_text("\n".join(lines) + '\n{"network": "111')
    before = out.read_bytes()
    with (
        mock.patch("benchmarks.search.nas_bench_macro.FEWEST", 1),
        mock.patch("benchmarks.search.nas_bench_macro.TOLERANCE", 1),
    ):
        run(options)
    assert out.read_bytes() == before
    assert "3 networks, 3 draws of two minibatches" in capsys.readouterr().out
    options.networks = 0
    with pytest.raises(ValueError, match="--networks, --draws and --batch-size are at least 1"):
        run(options)


def test_ties_for_the_choice_share_it():
    assert accuracy_of_choice([1, 3, 3, 2], [50, 60, 70, 80]) == 65
