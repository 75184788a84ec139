"""What is told of a record: the ranking of the search that wrote it, also while it is being written."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from command_line import run

from blockswap_models import Budget, Cost, Genome, search
from blockswap_models.searching.candidates import Candidate, ScoredDraw, median_shares
from blockswap_models.searching.record import Record, RecordError, budget_text, read_ranking


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A search and its record."""
    path = tmp_path_factory.mktemp("show") / "record.jsonl"
    budget = Budget(params=60_000)
    return search("wrn16_1", budget, samples=9, draws=2, refine=1, batch_size=4, record=path), path


def scored(*scores):
    """Makes the scores of a record: for each genome its draws."""
    return [
        ScoredDraw(Genome(f"G{2 + place}/S"), Cost(10, 20), draw, score)
        for place, draws in enumerate(scores)
        for draw, score in enumerate(draws)
    ]


def ranking(tmp_path, *scores):
    with Record(tmp_path / "a.jsonl", {"space": "none"}) as record:
        for each in scored(*scores):
            record.add(each)
    return [str(each.genome.blocks[0]) for each in read_ranking(tmp_path / "a.jsonl")[1]]


def test_the_ranking_is_that_of_the_search(found):
    result, path = found
    header, ranked = read_ranking(path)
    assert header["space"] == "blockswap_wrn16_1"
    assert [each.genome for each in ranked] == [each.genome for each in result.candidates]
    for each, candidate in zip(ranked, result.candidates, strict=True):
        assert (each.cost, each.scores) == (candidate.cost, candidate.scores)
        assert each.score == pytest.approx(candidate.score)
        assert each.standard_error_factor == pytest.approx(candidate.standard_error_factor)
        assert each.shares == pytest.approx(candidate.shares)


def test_a_search_and_its_record_rank_ties_and_missing_scores_alike(tmp_path):
    # Of the refined one has lost its score, and two that were not refined alike have the same.
    def score(model, images, labels):
        place = GENOMES.index(str(model.genome))
        count[place] = count.get(place, -1) + 1
        return [(3.0, math.nan), (2.0, 1.0), (1.5, 1.0), (1.0, 1.0), (1.0,), (1.0,), (0.5,), (0.5,)][place][
            min(count[place], 1)
        ]

    count: dict[int, int] = {}
    path = tmp_path / "a.jsonl"
    arguments = {"genomes": GENOMES, "refine": 1, "batch_size": 2, "score": score, "record": path}
    result = search("wrn16_1", None, **arguments)
    assert [GENOMES.index(str(each.genome)) for each in result.candidates] == [1, 2, 3, 4, 5, 6, 7, 0]
    assert read_ranking(path)[1][:-1] == result.candidates[:-1]
    assert read_ranking(path)[1][-1].genome == result.candidates[-1].genome


GENOMES = [f"{first},G8/2xS/S,{last}" for first in ("S", "G2", "W1", "B2") for last in ("G4", "W2")]


def test_show(found):
    result, path = found
    status, out, err = run("show", path, "--top", 3)
    best = result.best
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["network  blockswap_wrn16_1", "budget   params 60,000 ± 2.5%"]
    assert "images   1/f noise, 16 minibatches of 4 images; 3x32x32, 10 classes" in lines
    assert "genomes  9" in lines
    assert "draws    2 to 8 each" in lines
    assert f"best: {best.cost}, score {best.score:.4g}" in lines
    assert f"  {best.genome}" in lines
    table = lines.index(next(line for line in lines if line.startswith("rank")))
    assert [line.split()[-1] for line in lines[table + 1 : table + 4]] == [str(e.genome) for e in result.candidates[:3]]
    assert lines[table + 4] == ""
    shares = [line.split() for line in lines if line.endswith("%") and line.strip()[1] == "."]
    assert [row[:3] for row in shares] == [
        [place, str(block), f"{share:.2%}"]
        for place, block, share in zip("1.1 1.2 2.1 2.2 3.1 3.2".split(), best.genome.blocks, best.shares, strict=True)
    ]
    assert lines[-2] == f"build it: timm.create_model('blockswap_wrn16_1', genome='{best.genome}')"


def test_show_as_json(found):
    result, path = found
    status, out, _ = run("show", path, "--json", "--top", 2)
    report = json.loads(out)
    assert status == 0
    assert (report["network"], report["genomes"], report["finite"]) == ("blockswap_wrn16_1", 9, 9)
    assert report["search"]["budget"] == {"params": [58_500, 61_500]}
    assert report["record"] == str(path)
    assert report["top"][0] == report["best"]
    assert [each["genome"] for each in report["top"]] == [str(each.genome) for each in result.candidates[:2]]
    assert report["best"]["params"] == result.best.cost.params
    assert report["best"]["draws"] == 8
    assert sum(report["best"]["shares"]) == pytest.approx(1)
    assert len(report["median_shares"]) == 6


def test_a_record_that_is_being_written_can_be_shown(found, tmp_path):
    whole = found[1].read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    path = tmp_path / "record.jsonl"
    for cut in (ends[1], ends[4], ends[4] + 1, ends[4] + 30, ends[5] - 1):
        path.write_bytes(whole[:cut])
        status, out, err = run("show", path, "--json")
        complete = whole[:cut].count(b"\n") - 1
        if complete:
            assert (status, json.loads(out)["genomes"]) == (0, complete)
        else:
            assert (status, err) == (2, f"blockswap show: {path} holds no scores yet\n")
        assert path.read_bytes() == whole[:cut]


def test_those_refined_most_stand_first_and_those_without_a_score_last(tmp_path):
    assert ranking(tmp_path, [1.0], [3.0], [math.nan], [2.0]) == ["G3", "G5", "G2", "G4"]


def test_a_lucky_draw_does_not_beat_the_refined(tmp_path):
    assert ranking(tmp_path, [9.0], [2.0] * 4, [3.0] * 4, [1.0], [math.inf] * 4) == ["G4", "G3", "G2", "G5", "G6"]


def test_a_draw_that_others_still_lack_is_no_refinement(tmp_path):
    assert ranking(tmp_path, [1.0, 1.0], [3.0], [2.0]) == ["G3", "G4", "G2"]


def candidate(*draws):
    return Candidate(Genome("S"), Cost(1, 1), draws)


def test_means_over_draws():
    assert candidate(0.1 + 0.2).score == 0.1 + 0.2
    assert candidate(1.0, 4.0).score == pytest.approx(2)
    assert candidate(0.0, 4.0).score == 2
    assert candidate(-1.0).score == -1
    assert math.isnan(candidate(math.inf).score)
    assert math.isnan(candidate(math.nan, 1.0).score)
    assert math.isnan(candidate(2.0).standard_error_factor)
    assert math.isnan(candidate(0.0, 1.0).standard_error_factor)
    assert math.isnan(candidate(math.nan, 1.0).standard_error_factor)
    assert candidate(1.0, math.e**2).standard_error_factor == pytest.approx(math.e)
    draw = ScoredDraw(Genome("2xS"), Cost(1, 2), 0, 1.0)
    draws = [replace(draw, blocks=blocks) for blocks in ((1.0, 3.0), (1.0, 1.0), (0.0, 0.0), (math.nan, 1.0), None)]
    assert Candidate.of_draws(draws).shares == pytest.approx((0.375, 0.625))
    assert Candidate.of_draws([draw]).shares is None
    assert median_shares([]) is None
    several = [(0.1, 0.7, 0.2), (0.6, 0.1, 0.3), None, (0.2, 0.3, 0.5)]
    # Of each block by itself.
    assert median_shares(replace(candidate(1.0), shares=shares) for shares in several) == (0.2, 0.3, 0.3)


def test_budgets_read_as_a_person_writes_them():
    assert (
        budget_text({"budget": {"params": [1000.0, None], "macs": [0, 2000]}}) == "params from 1,000, macs up to 2,000"
    )
    assert budget_text({"budget": {"joules": [1, 2]}}) == '{"joules": [1, 2]}'
    assert budget_text({}) == "null"


HEADER = '{"record": "blockswap search"}\n'
ROW = '{"genome": "S", "params": 1, "macs": 1, "draw": 0, "score": 1.0}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the record {}: No such file or directory"),
        ("a diary", "{} is not the record of a search"),
        ("", "{} holds no search"),
        (HEADER, "{} holds no scores yet"),
        (HEADER + ROW[:-1], "{} holds no scores yet"),
        (HEADER + ROW.replace("1.0", "null"), "none of the scores in {} is finite"),
        (HEADER + ROW.replace('"S"', '"Q"'), "{} is not the record of a search"),
        (HEADER + ROW.replace('"S"', "[]"), "{} is not the record of a search"),
        (HEADER + ROW.replace('"macs": 1, ', ""), "{} is not the record of a search"),
        (HEADER + ROW.replace("1.0", '"high"'), "{} is not the record of a search"),
        (HEADER + ROW.replace("1.0", '1.0, "blocks": [0.5, 0.5]'), "{} is not the record of a search"),
        (HEADER + ROW + ROW.replace('"S"', '"S/S"'), "{} mixes genomes of several networks"),
    ],
)
def test_errors_are_one_line(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    assert run("show", path) == (2, "", f"blockswap show: {message.format(path)}\n")
    with pytest.raises(RecordError):
        read_ranking(path)


def test_a_score_without_parts_and_a_header_without_words(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(HEADER + ROW + ROW.replace('"S"', '"G2"').replace("1.0", "null"))
    status, out, _ = run("show", path)
    assert status == 0
    assert "share of the score" not in out
    assert "genomes  2, 1 of them without a finite score" in out
    status, out, _ = run("show", path, "--json")
    assert [each["score"] for each in json.loads(out)["top"]] == [1.0, None]


def test_a_table_has_at_least_one_genome(found):
    status, _, err = run("show", found[1], "--top", 0)
    assert (status, err) == (2, "blockswap show: there is no table of 0 genomes; use --top 1 or more\n")


def test_needs_no_torch(found):
    code = (
        "import sys\nfrom blockswap_models.cli.main import main\n"
        f"assert main(['show', {str(found[1])!r}]) == 0\nassert not {{'torch', 'timm'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
