"""What benchmarks/paper/table1.py, table3.py, figure2.py, figure3.py, figure4.py and best_of.py compare, and how."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from benchmarks.lib.correlation import correlate, spearman
from benchmarks.lib.genomes import (
    BUDGETS,
    Student,
    errors,
    longest,
    mixed,
    nearest_single,
    networks_of,
    single,
    train_all,
)
from benchmarks.lib.images import noise_images
from benchmarks.lib.trained import Trainer, records
from benchmarks.paper import best_of, figure2, figure3, figure4, table1, table2, table3
from benchmarks.paper.ranked import RANKINGS, Scores, describe, fisher_log, score_all
from blockswap_models import Budget, Genome, SearchSpace, count, fisher_potential
from blockswap_models.searching.fisher import fisher_by_block
from blockswap_models.training.recipes import Recipe

TINY = Recipe(epochs=1, batch_size=4, lr=0.01)


# -- rank correlation ------------------------------------------------------------------------------------------------


def test_spearman_of_cases_known_by_hand():
    five = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spearman(five, five**3) == pytest.approx(1)
    assert spearman(five, -five) == pytest.approx(-1)
    # 1 - 6 Σd² / (n (n² - 1)), with d² of 1, 1, 0, 1, 1.
    assert spearman(five, np.array([2.0, 1.0, 3.0, 5.0, 4.0])) == pytest.approx(1 - 6 * 4 / 120)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 · 5).
    ties = spearman(np.array([0.0, 1.0, 1.0, 2.0]), np.arange(4.0))
    assert ties == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))


def test_the_interval_holds_the_correlation_and_narrows():
    generator = np.random.default_rng(0)
    one = generator.normal(size=400)
    other = -one + generator.normal(size=400)
    few, many = (correlate(one[:number], other[:number]) for number in (20, 400))
    assert few.low < few.rho < few.high < 0
    assert many.high - many.low < few.high - few.low
    # Fisher's approximation, with the variance of Bonett and Wright (2000).
    error = np.sqrt((1 + many.rho**2 / 2) / 397)
    expected = np.tanh(np.arctanh(many.rho) + 1.96 * np.array([-error, error]))
    np.testing.assert_allclose((many.low, many.high), expected, atol=0.02)
    assert correlate(one, one)[:3] == pytest.approx((1, 1, 1))


def test_scores_that_failed_rank_last():
    assert correlate([3.0, None, 2.0, float("nan")], [1.0, 4.0, 2.0, 4.0])[::4] == pytest.approx((-1, 2))
    assert correlate([float("-inf"), 1.0], [2.0, 1.0]).failed == 1
    assert np.isnan(correlate([1.0], [2.0]).rho)


def test_samples_of_equal_values_are_left_out_of_the_interval(recwarn):
    # One sample in nine of three networks has a single one of them.
    found = correlate([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    assert found[:3] == pytest.approx((-1, -1, -1))
    assert np.isnan(correlate([1.0, 1.0], [1.0, 2.0])[:3]).all()
    assert not recwarn.list


# -- networks --------------------------------------------------------------------------------------------------------


def test_random_networks_fit_their_budget_and_join_shorter_lists():
    space = SearchSpace("wrn40_2")
    for budget in BUDGETS:
        students = mixed(budget, 4)
        assert students[:2] == mixed(budget, 2)
        assert len({each.name for each in students}) == 4
        assert all(Budget(params=budget).fits(space.cost(each.genome)) for each in students)
        assert students[0].facts["params"] == space.cost(students[0].genome).params
        assert students[0].facts["budget"] == budget


def test_single_type_networks_are_the_nearest_to_each_budget():
    assert [nearest_single(budget).name for budget in BUDGETS] == ["single-B2W8", "single-G16", "single-G4"]
    assert [each.name for each in figure2.singles(200_000)] == ["single-B2W8", "single-B2G4"]
    space = SearchSpace("wrn40_2")
    costs = [space.cost(single(each).genome).params for each in ("B2G4", "B2W8", "B2W16", "B2G8")]
    assert min(abs(cost - 200_000) for cost in costs) == abs(nearest_single(200_000).facts["params"] - 200_000)


def test_figure_4_replaces_each_block_once():
    students = figure4.replaced("G4")
    original = Genome("6xS/6xS/6xS").blocks
    assert len({each.genome for each in students}) == len(students) == 18
    for place, student in enumerate(students):
        differing = [
            index for index, pair in enumerate(zip(student.genome.blocks, original, strict=True)) if pair[0] != pair[1]
        ]
        assert differing == [place]
        assert str(student.genome.blocks[place]) == "G4"


def test_best_of_takes_the_highest_of_the_first_so_many(tmp_path):
    options = Namespace(
        samples=[2, 4], search_seed=0, batch_size=2, refine=0, workers=1, data_dir=None, out=str(tmp_path)
    )
    chosen = best_of.found(options)
    (record,) = tmp_path.glob("*.jsonl")
    rows = [json.loads(line) for line in record.read_text().splitlines()[1:]]
    assert len(rows) == 4
    for number in (2, 4):
        assert chosen[number].genome == max(rows[:number], key=lambda row: row["score"])["genome"]


@pytest.mark.parametrize("name", table3.ROWS)
def test_table_3_has_the_counts_of_the_paper(name):
    row = table3.ROWS[name]
    model = row.build()
    cost = count(model)
    paper = float(row.macs[:-1]) * (1000 if row.macs.endswith("G") else 1)
    if row.note:
        assert cost == count(timm.create_model("blockswap_resnet34_8m", device="meta"))
        assert (cost.params, f"{cost.macs / 1e6:.1f}") == (8_193_576, "1200.7")
    else:
        assert abs(cost.params / 1e6 - float(row.params.rstrip("M"))) <= 0.05
        assert 0 < paper - cost.macs / 1e6 < 7
        assert abs(paper - cost.macs / 1e6 - bn_outputs(model) / 1e6) < 2


def bn_outputs(model):
    outputs = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, output: outputs.append(output.numel()))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224, device="meta"))
    return sum(outputs)


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("blockswap_wrn40_2").state_dict(), path)
    return str(path)


def trainer_of(folder, teacher):
    return Trainer(noise_images(4), folder, TINY, source="white noise", teacher_checkpoint=teacher)


def options_of(**changed):
    return Namespace(**{"together": 1, "labels_alone": False, "smoke": False, "seeds": [0], **changed})


SMALL = [Student(f"mixed-100k-{block}", single(block).genome, 100_000) for block in ("B4W2", "B4W4", "B4W8")]


def test_records_are_extended_and_students_do_not_depend_on_their_group(tmp_path, teacher):
    one, other = tmp_path / "together", tmp_path / "alone"
    train_all(trainer_of(one, teacher), SMALL[:2], options_of(together=2))
    assert len(longest(one, "mixed-100k-")) == 2
    first = trainer_of(one, teacher).weights(SMALL[0].name, 0)
    changed = first.stat().st_mtime_ns
    train_all(trainer_of(one, teacher), SMALL, options_of(together=3))
    rows = longest(one, "mixed-100k-")
    assert first.stat().st_mtime_ns == changed
    assert {row["genome"] for row in rows} == {each.genome for each in SMALL} == errors(rows).keys()
    assert {"genome", "params", "macs", "budget", "seed", "epochs", "top1_error"} <= rows[0].keys()
    assert json.loads((one / "records.jsonl").read_text().splitlines()[0])["budget"] == 100_000
    train_all(trainer_of(other, teacher), SMALL[:1], options_of())
    assert first.read_bytes() == trainer_of(other, teacher).weights(SMALL[0].name, 0).read_bytes()


def test_records_are_enough_where_the_folders_of_runs_are_gone(tmp_path, teacher, monkeypatch):
    train_all(trainer_of(tmp_path, teacher), SMALL[:2], options_of(together=2))
    train_all(trainer_of(tmp_path, teacher), SMALL[:1], options_of(labels_alone=True))
    trainer_of(tmp_path, teacher).fit_student("student", 0, SMALL[0].facts, SMALL[0].build)
    before = records(tmp_path)
    assert len(before) == 4
    for row in before:
        shutil.rmtree(tmp_path / row["folder"])
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: pytest.fail("it is trained again"))
    train_all(trainer_of(tmp_path, teacher), SMALL[:2], options_of(together=2))
    train_all(trainer_of(tmp_path, teacher), SMALL[:1], options_of(labels_alone=True))
    trainer_of(tmp_path, teacher).fit_student("student", 0, SMALL[0].facts, SMALL[0].build)
    assert records(tmp_path) == before


def test_an_interrupted_group_goes_on(tmp_path, teacher, monkeypatch):
    def stopping(*_):
        raise KeyboardInterrupt

    trainer = trainer_of(tmp_path, teacher)
    # The training is done, and its results are being put away.
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.lib.genomes._put_away", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_all(trainer, SMALL[:2], options_of(together=2))
    assert not records(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("blockswap_models.training.loop.train_epoch", lambda *_, **__: pytest.fail("it is trained again"))
        train_all(trainer, SMALL[:2], options_of(together=2))
    assert len(records(tmp_path)) == 2


@pytest.mark.parametrize("script", [best_of, table1])
def test_what_cannot_be_trained_is_refused_before_anything_else(script, tmp_path, monkeypatch):
    monkeypatch.setattr(best_of, "found", lambda _: pytest.fail("it searches"))
    options = options_of(train=True, score=False, data_dir=None, out=str(tmp_path), minibatches=[1], draws=1)
    with pytest.raises(ValueError, match="training needs the folder of CIFAR-10; use --data-dir"):
        script.run(options)
    options.together = 0
    with pytest.raises(ValueError, match="at least 1 network is trained at a time, not 0"):
        script.run(options)


def test_a_budget_has_a_random_network(tmp_path):
    trainer = Trainer(noise_images(4), tmp_path, TINY)
    assert [networks_of(Namespace(networks=number), trainer) for number in (None, 3)] == [10, 3]
    with pytest.raises(ValueError, match="a budget has at least 1 random network, not 0"):
        networks_of(Namespace(networks=0), trainer)


def test_labels_alone_have_names_of_their_own(tmp_path):
    trainer = Trainer(noise_images(4), tmp_path, TINY)
    train_all(trainer, SMALL[:1], options_of(labels_alone=True))
    assert not longest(tmp_path, "mixed-")
    (row,) = longest(tmp_path, "mixed-", "-labels")
    assert row["teacher"] is None
    with pytest.raises(ValueError, match="leave out --labels-alone or --together"):
        train_all(trainer, SMALL[:2], options_of(labels_alone=True, together=2))


def test_scores_are_kept_and_new_ones_join(tmp_path, monkeypatch):
    trainer, genome = Trainer(noise_images(4), tmp_path, TINY, source="white noise"), str(SMALL[0].genome)
    path, data = tmp_path / "scores.jsonl", describe(trainer)
    monkeypatch.setattr("benchmarks.paper.ranked.RANKINGS", {"fisher": fisher_potential})
    score_all(Scores(path), trainer, [genome], [1, 2], 1, 0)
    before = path.read_text()
    score_all(Scores(path), trainer, [genome], [1, 2], 1, 0)
    assert path.read_text() == before
    with open(path, "a") as file:
        file.write('\n{"genome": "cut o')
    monkeypatch.setattr(
        "benchmarks.paper.ranked.RANKINGS", {"fisher": fisher_potential, "failing": lambda *_: float("nan")}
    )
    score_all(Scores(path), trainer, [genome], [1], 2, 0)
    scores = Scores(path)
    assert len(scores.values) == 2 + 1 + 2
    assert scores.of(genome, "failing", 1, 2, 0, data) is None
    one, two = (scores.values[genome, "fisher", 1, draw, 0, data] for draw in (0, 1))
    assert scores.of(genome, "fisher", 1, 2, 0, data) == pytest.approx((one * two) ** 0.5)
    assert one != two
    with pytest.raises(KeyError):
        scores.of(genome, "fisher", 10, 1, 0, data)


def test_rankings_have_the_papers_and_the_logarithm_of_blocks():
    assert table1.PAPER.keys() <= RANKINGS.keys()
    torch.manual_seed(0)
    model, (images, labels) = SMALL[0].build(), noise_images(2).train
    images = images.float() / 255
    by_hand = np.log(fisher_by_block(model, images, labels)).sum()
    assert fisher_log(model, images, labels) == pytest.approx(by_hand, rel=1e-4)


def test_table_1_prints_known_correlations(tmp_path, capsys):
    rows = [
        {"genome": each.genome, "params": place, "macs": -place, "top1_error": place, "epochs": 1, "train_images": 4}
        for place, each in enumerate(SMALL)
    ]
    scores = Scores(tmp_path / "scores.jsonl")
    key = {"minibatches": 1, "draw": 0, "seed": 0, "data": "noise", "ranking": "fisher"}
    scores.add({**key, "genome": row["genome"], "score": -row["top1_error"]} for row in rows)
    scores.add([{**key, "ranking": "accuracy", "genome": rows[0]["genome"], "score": float("nan")}])
    table1.print_budget(200_000, rows, scores, "noise", Namespace(draws=1, minibatches=[1]))
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert lines["200,000"][1:3] == ["3", "networks,"]
    assert lines["fisher"] == ["-1.000", "[-1.00,", "-1.00]", "-0.602"]
    assert lines["accuracy"] == ["nan", "[nan,", "nan]", "of", "1,", "1", "failed", "-0.004"]
    assert lines["naswot"] == ["-", "-"]
    assert (lines["params"][0], lines["macs"][0]) == ("1.000", "-1.000")


def test_figure_3_draws_a_run_of_two_folders_once(tmp_path, capsys):
    row = {"name": "mixed-200k-a", "nonzero": 200_000, "train_images": 8, "epochs": 1}
    for folder, errors_of in {"one": [5.0], "other": [5.0, 6.0]}.items():
        (tmp_path / folder).mkdir()
        rows = [{**row, "folder": f"seed{seed}", "top1_error": error} for seed, error in enumerate(errors_of)]
        (tmp_path / folder / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    options = Namespace(
        records=[str(tmp_path / "one"), str(tmp_path / "other")], reduced=False, no_paper=False, out="figure.jpg"
    )
    with pytest.raises(ValueError, match="unknown suffix"):
        figure3.run(options)
    assert "left out: 2 runs of fewer epochs" in capsys.readouterr().out


def test_figure_3_averages_over_seeds_and_knows_all_kinds():
    row = {"name": "mixed-200k-a", "nonzero": 200_000, "top1_error": 5.0, "epochs": 2, "train_images": 8}
    rows = [
        row,
        {**row, "top1_error": 6.0},
        {**row, "top1_error": 70.0, "epochs": 1},
        {**row, "top1_error": 60.0, "epochs": 4, "train_images": 4},
        {**row, "name": "condensenet86_first"},
        {**row, "name": "one-G4-01-labels"},
    ]
    assert figure3.points(rows) == {"mixed": [(200.0, 5.5)]}
    names = [each.name for each in (*table2.networks(), single("G4"), *figure4.replaced("G4")[:1])]
    assert None not in map(figure3.kind, names)
    kinds = [figure3.kind(name) for name in ("wrn40_2", "wrn40_1", "wrn40_2-0123456789", "wrn40_2-0123456789-lib")]
    assert kinds == ["wrn40_2", "wrn", None, None]
    assert (217.0, 4.68) in figure3.papers_points(table2.networks())["blockswap"]
