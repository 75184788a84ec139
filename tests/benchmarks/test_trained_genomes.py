import json
import math
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.lib.correlation import correlate_given, share_below
from benchmarks.lib.images import noise_images
from benchmarks.lib.trained import Trainer
from benchmarks.search import trained_genomes
from benchmarks.search.trained_genomes import (
    SMOKE,
    Planned,
    best,
    make_parser,
    names_of,
    print_repeats,
    print_results,
    ranked,
    run,
    spread,
)
from blockswap_models import Cost, Genome
from blockswap_models.searching.candidates import Candidate, ScoredDraw
from blockswap_models.training.loop import train_epoch
from blockswap_models.training.recipes import Recipe

GENOMES = [Genome(f"{first},S/{second},S/S,S") for first in ("G2", "G4", "B2") for second in ("G2", "G4", "B2")]


def test_a_partial_correlation_is_that_of_what_a_third_value_leaves():
    # By hand: rho is 0.8 of one and other, 0.7 of one and given, 0.2 of other and given.
    one, other, given = [1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [1, 4, 2, 3, 5]
    expected = (0.8 - 0.7 * 0.2) / math.sqrt((1 - 0.49) * (1 - 0.04))
    found = correlate_given(one, other, given, samples=200)
    assert found.rho == pytest.approx(expected)
    assert -1 <= found.low < found.high <= 1
    # Monotonic changes of any of them make none, and nothing is left where the third explains all.
    assert correlate_given(np.exp(one), other, np.square(given), samples=9).rho == pytest.approx(expected)
    assert math.isnan(correlate_given(given, other, given, samples=9).rho)


def test_rankings_are_compared_over_the_same_samples():
    errors = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    right, wrong = [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]
    assert share_below(right, wrong, errors) == 1
    assert share_below(wrong, right, errors) == 0
    assert share_below(right, [2 * each for each in right], errors) == 0.5
    assert 0.9 < share_below([1, 2, 4, 3, 5, 6], [3, 1, 2, 6, 5, 4], errors) < 1
    assert math.isnan(share_below([1] * 6, right, errors))


def test_random_genomes_spread_and_more_of_them_are_the_same_and_others():
    # A line of ranks: its middle, then its two ends.
    line = [[5.0, 1.0, 3.0, 4.0, 2.0]]
    assert spread(line, 1) == [2]
    assert set(spread(line, 3)) == {0, 1, 2}
    some = np.random.default_rng(0).normal(size=(3, 40))
    assert spread(some, 24)[:9] == spread(some, 9)
    # Each once, also where all have the same ranks.
    assert sorted(spread([[1.0] * 5], 5)) == [0, 1, 2, 3, 4]


def scored(number: int, genome: Genome, **parts: float) -> ScoredDraw:
    return ScoredDraw(genome, Cost(1, 1), number, math.nan, parts=parts)


def test_a_ranking_is_made_of_the_parts_that_it_names():
    one, two, three = GENOMES[:3]
    draws = [
        scored(0, one, fisher=4.0, naswot=1.0),
        scored(0, two, fisher=1.0, naswot=3.0),
        scored(0, three, fisher=3.0, naswot=2.5),
        # A further draw, of a leader: the mean is geometric.
        scored(1, one, fisher=1.0, naswot=1.0),
    ]
    assert [each.score for each in ranked(draws, "fisher", 1).values()] == [4.0, 1.0, 3.0]
    assert ranked(draws, "fisher", 2)[one].score == pytest.approx(2.0)
    assert best(ranked(draws, "fisher", 1).values(), 2) == [one, three]
    assert best(ranked(draws, "naswot", 1).values(), 1) == [two]
    # Ranks 3 + 1, 1 + 3 and 2 + 2 of 3 are equal.
    sums = [each.score for each in ranked(draws, "fisher+naswot", 1).values()]
    assert sums == pytest.approx([2 / 3] * 3)


def test_two_draws_agree_as_far_as_their_ranks_do(capsys):
    parts = ("fisher", "fisher-balanced", "gradient-norm", "naswot")
    draws = [
        scored(draw, genome, **{name: float(place if draw < 1 or name != "fisher" else -place) for name in parts})
        for place, genome in enumerate(GENOMES)
        # A third draw counts for nothing.
        for draw in range(3)
    ]
    print_repeats(draws)
    out = capsys.readouterr().out
    assert f"agreement of two draws of {len(GENOMES)} genomes" in out
    rows = {line.split()[0]: float(line.split()[1]) for line in out.strip().splitlines()[2:]}
    assert (rows["fisher"], rows["naswot"], rows["gradient-norm+naswot"]) == (-1, 1, 1)


def made_up_plan() -> tuple[list[Planned], dict[Genome, float]]:
    """Plans nine random genomes whose error falls with each score, and rises with MACs."""
    plan, errors = [], {}
    for number, genome in enumerate(GENOMES, start=1):
        scores = dict.fromkeys(
            ("fisher", "fisher-balanced", "gradient-norm", "naswot", "fisher+naswot", "fisher-balanced+naswot"), number
        )
        scores["gradient-norm+naswot"] = 0
        estimates = {**scores, "fisher": number % 2}
        cost = Cost(100, 1_000_000 * (10 - number))
        plan.append(Planned(f"random-{number}", Candidate(genome, cost, (number,)), scores, estimates))
        errors[genome] = 50.0 - number
    return [Planned("fisher", plan[-1].candidate, plan[-1].scores, plan[-1].scores), *plan], errors


def test_results_are_those_of_what_is_trained(capsys):
    plan, errors = made_up_plan()
    print_results(plan, errors)
    out = capsys.readouterr().out
    assert "9 of 9 networks are trained" in out
    # The random genomes' mean is 45, the choice has 41.
    assert "-4.00, 0 of 9 are better" in out
    assert "45.00   41.00 to 49.00" in out
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if len(line.split()) > 1}
    assert rows["fisher"] == "-1.00"
    assert rows["macs"] == "1.00"
    assert rows["gradient-norm+naswot"] == "-"
    assert "This agrees with the paper's claim" in out
    # Of Fisher's row, the last is that of estimates.
    fisher = next(line for line in out.splitlines() if line.startswith("fisher  ") and "[-1.00" in line)
    assert fisher.split("[")[-2].split()[-1] == "0.00"
    assert next(line for line in out.splitlines() if line.startswith("macs")).split()[-1] == "0%"

    print_results(plan, {GENOMES[0]: 49.0})
    out = capsys.readouterr().out
    assert "1 of 9 networks are trained" in out
    assert "correlations need at least 4 trained random genomes, and there are 1" in out


def test_names_of_the_plan():
    plan, _ = made_up_plan()
    assert names_of(plan, ["fisher", "random-2"]) == {"fisher", "random-2"}
    assert len(names_of(plan, ["random"])) == 9
    assert len(names_of(plan, None)) == 10
    with pytest.raises(ValueError, match="nothing in the plan is named 'fishr'"):
        names_of(plan, ["fishr"])


def test_a_trainer_grows_its_images_as_the_recipe_says(tmp_path):
    recipe = Recipe(epochs=2, batch_size=4, small_size=16, small_share=0.5, flip="alternate", cutout=0)
    loader = Trainer(noise_images(8), tmp_path, recipe, image_size=24).training_loader(0)
    sizes = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        sizes += [tuple(images.shape[2:]) for images, _ in loader]
    assert sizes == [(16, 16)] * 2 + [(24, 24)] * 2


def test_times_are_of_the_training_itself(tmp_path, capsys, monkeypatch):
    options = Namespace(**{**vars(make_parser().parse_args(["--smoke", "--time"])), **SMOKE, "out": str(tmp_path)})
    options.amp = "bfloat16"
    found = []

    def epoch(*arguments, dtype):
        found.append(dtype)
        return train_epoch(*arguments, dtype=dtype)

    monkeypatch.setattr("benchmarks.search.trained_genomes.train_epoch", epoch)
    with torch.random.fork_rng(devices=[]):
        run(options)
    assert found == [torch.bfloat16] * 3
    assert "on one thread, bfloat16, median of 5" in capsys.readouterr().out


def test_the_result_has_the_errors_of_its_records():
    benchmarks = Path(trained_genomes.__file__).parents[1]
    rows = (benchmarks / "records" / "trained_400k" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    recorded = {row["genome"]: (row["params"], row["top1_error"], row["seconds"]) for row in map(json.loads, rows)}
    genomes, printed = {}, {}
    for line in (benchmarks / "results" / "trained_genomes.txt").read_text(encoding="utf-8").splitlines():
        if planned := re.fullmatch(r"(\S+) +([\d,]+) +[\d.]+  (\S+/\S+/\S+)", line):
            genomes[planned[1]] = planned[3], int(planned[2].replace(",", ""))
        elif finished := re.fullmatch(r"  (\S+) +top-1 error +([\d.]+) %, ([\d,]+) s", line):
            genome, params = genomes[finished[1]]
            printed[genome] = params, float(finished[2]), int(finished[3].replace(",", ""))
    assert printed == {genome: (params, error, round(took)) for genome, (params, error, took) in recorded.items()}
    assert len(printed) == 27


def test_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    options = Namespace(**{**vars(make_parser().parse_args(["--smoke"])), **SMOKE, "out": str(tmp_path)})
    options.samples, options.genomes, options.leader_draws, options.list = 2, 1, 1, True
    with torch.random.fork_rng(devices=[]):
        run(options)
        assert not list(tmp_path.glob("*/summary.json"))
        options.list, options.only = False, ["random-1"]
        run(options)
        out = capsys.readouterr().out
        assert "1 of " in out
        # Scores are not computed again, nor is what is trained.
        monkeypatch.setattr("blockswap_models.searching.scorer.Scorer.__call__", None)
        monkeypatch.setattr(Trainer, "run", None)
        (record,) = tmp_path.glob("scores-*.jsonl")
        before = record.read_bytes()
        run(options)
        # Nor on another machine, to which only two files were carried.
        (folder,) = {path.parent for path in tmp_path.glob("*/summary.json")}
        shutil.rmtree(folder)
        run(options)
    assert record.read_bytes() == before
    (line,) = (tmp_path / "records.jsonl").read_text().splitlines()
    assert f"{json.loads(line)['top1_error']:.2f}" in capsys.readouterr().out
