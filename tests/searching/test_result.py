"""What a search found, as Python, notebooks, pandas and files have it."""

import io
import os
import re
import signal
import sys
from xml.etree import ElementTree

import pytest
import torch
from command_line import run
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from blockswap_models import Budget, Cost, Genome, RecordError, SearchResult, SearchSpace, fisher_potential, search
from blockswap_models.searching.candidates import Candidate
from blockswap_models.searching.record import read_record

SPACE = SearchSpace("wrn16_1", ["S", "G4", "W1", "B2"])
SMALL = {"samples": 5, "batch_size": 4, "refine": 1, "dtype": torch.float32}


@pytest.fixture(scope="module")
def result():
    return search(SPACE, "70k", **SMALL)


def test_is_a_short_text_and_a_sequence(result):
    best = result.best
    assert repr(result) == (
        f"SearchResult(blockswap_wrn16_1 within params 70,000 ± 2.5%: 5 genomes, best {best.genome} ({best.score:.4g}))"
    )
    assert len(result) == 5
    assert [*result] == [*result.candidates]
    assert result[0] is best
    assert result[-1] is result.candidates[4]
    assert isinstance(result[1:3], SearchResult)
    assert result[1:3].candidates == result.candidates[1:3]
    assert (repr(result[:0]), result[:0].to_pandas().empty) == (
        "SearchResult(blockswap_wrn16_1 within params 70,000 ± 2.5%: 0 genomes)",
        True,
    )


def test_a_notebook_shows_strips(result):
    table = ElementTree.fromstring(result._repr_html_())
    rows = list(table.iter("tr"))
    assert [cell.text for cell in rows[0]] == [None, "score", "±", "draws", "params", "MACs", "genome"]
    assert [row[6][0].get("title") for row in rows[1:]] == [each.genome for each in result]
    best = result.best
    assert [cell.text for cell in rows[1][:6]] == [
        "1",
        f"{best.score:.4g}",
        f"{best.standard_error_factor - 1:.0%}",
        "4",
        f"{best.cost.params:,}",
        f"{best.cost.macs / 1e6:.1f} M",
    ]
    measured = SearchResult(SPACE, Budget(params=1), (Candidate(Genome("S/S/S"), Cost(1, 2, 0.0041), (1.0,)),) * 9)
    assert "latency" in measured._repr_html_()
    assert '<td style="text-align:right">4.10 ms</td>' in measured._repr_html_()
    assert "9 genomes (the best 5 are shown)" in measured._repr_html_()


def test_is_a_table_of_pandas(result):
    pytest.importorskip("pandas", reason="needs pandas")
    table = result.to_pandas()
    assert list(table.columns) == ["genome", "score", "spread", "draws", "params", "macs"]
    assert list(table.index) == [1, 2, 3, 4, 5]
    assert list(table.genome) == [str(each.genome) for each in result]
    assert table.score.tolist() == [each.score for each in result]
    assert table.params.dtype == "int64"
    assert table.spread.isna().sum() == sum(len(each.scores) == 1 for each in result)


def test_a_table_without_pandas(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RuntimeError, match="a table needs pandas; pip install pandas"):
        result.to_pandas()


def test_is_saved_as_a_record(result, tmp_path):
    path = tmp_path / "saved.jsonl"
    result.save(path)
    loaded = SearchResult.load(path)
    assert loaded.candidates == result.candidates
    assert loaded.budget == result.budget
    assert (loaded.space.layout, loaded.space.types) == (SPACE.layout, SPACE.types)
    # Word for word what the search itself writes, which goes on with it.
    recorded = search(SPACE, Budget(params=70_000), record=tmp_path / "record.jsonl", **SMALL)
    assert recorded == result
    assert (tmp_path / "record.jsonl").read_bytes() == path.read_bytes()
    assert search(SPACE, (68_250, 71_750), record=path, resume=True, **SMALL).candidates == result.candidates
    assert run("show", path)[1].splitlines()[1].split("  ")[-1].strip() == "params 70,000 ± 2.5%"


def test_a_slice_is_saved_and_never_over_more(result, tmp_path):
    path = tmp_path / "saved.jsonl"
    result[:2].save(path)
    assert [each.genome for each in SearchResult.load(path)] == [each.genome for each in result[:2]]
    result.save(path)
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"saved\.jsonl has scores of its own; use another name"):
        result[:2].save(path)
    other = tmp_path / "diary"
    other.write_text("a diary")
    with pytest.raises(RecordError, match="is not the record of a search"):
        result.save(other)
    assert (path.read_bytes(), other.read_text()) == (before, "a diary")


def test_plots_itself(result, tmp_path):
    pytest.importorskip("matplotlib", reason='needs pip install "blockswap_models[plot]"')
    figure = result.plot(tmp_path / "search.svg")
    assert (tmp_path / "search.svg").read_text().startswith("<?xml")
    assert result.plot()._repr_png_().startswith(b"\x89PNG")
    assert figure.axes[0].texts[0].get_text() == str(result.best.genome.blocks[0])


def interrupting(number):
    """A score that is interrupted by Ctrl-C at the call of this number."""
    calls = []

    def score(model, images, labels):
        calls.append(model)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return fisher_potential(model, images, labels)

    return score


@pytest.fixture
def ctrl_c():
    """Has Ctrl-C interrupt: a shell lets what it starts in the background ignore it, and that is handed down."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_what_was_scored(tmp_path, ctrl_c):
    record = tmp_path / "record.jsonl"
    whole = search(SPACE, "70k", score=interrupting(0), **SMALL)
    with pytest.warns(UserWarning, match="interrupted: this is the result of 3 scores; to continue, "):
        part = search(SPACE, "70k", score=interrupting(4), record=record, **SMALL)
    assert part.interrupted
    assert "3 genomes, interrupted" in repr(part)
    scores = {each.genome: each.scores[0] for each in whole}
    assert {each.genome: each.score for each in part} == {each.genome: scores[each.genome] for each in part}
    assert len(read_record(record)[1]) == len(part) == 3
    # In a refinement round: those with a part of their draws are among the others, and what is saved goes on.
    with pytest.warns(UserWarning, match="interrupted"):
        part = search(SPACE, "70k", score=interrupting(7), **SMALL)
    assert sorted(len(each.scores) for each in part) == [1, 1, 1, 1, 2]
    part.save(tmp_path / "saved.jsonl")
    assert search(SPACE, "70k", score=interrupting(0), record=tmp_path / "saved.jsonl", resume=True, **SMALL) == whole
    assert not whole.interrupted


def test_ctrl_c_can_be_raised(tmp_path, ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, "70k", score=interrupting(1), **SMALL)
    record = tmp_path / "record.jsonl"
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, "70k", score=interrupting(3), record=record, on_interrupt="raise", **SMALL)
    assert len(read_record(record)[1]) == 2
    with pytest.raises(ValueError, match="on_interrupt is 'return' or 'raise', not 'stop'"):
        search(SPACE, "70k", on_interrupt="stop")


def test_a_bar_where_a_person_looks(monkeypatch):
    few = {"genomes": ["2xS/2xS/2xS"], "batch_size": 4, "refine": 0}
    for tty, progress, shown in (
        (True, None, "1 of 1 score ["),
        (True, False, None),
        (False, None, None),
        (False, True, "scoring: 1 of 1 score ["),
    ):
        stream = io.StringIO()
        stream.isatty = lambda tty=tty: tty
        monkeypatch.setattr(sys, "stderr", stream)
        search(SPACE, None, progress=progress, **few)
        assert shown in stream.getvalue() if shown else stream.getvalue() == ""
        assert ("\r" in stream.getvalue()) == (tty and progress is None)


def test_data_in_any_form(tmp_path):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 32, 32), generator=random, dtype=torch.uint8)
    labels = torch.tensor([0, 1] * 4)
    few = {"genomes": ["2xS/2xG4/2xW1", "2xS/2xW1/2xG4"], "batch_size": 8, "refine": 0, "dtype": torch.float32}
    pair = search(SPACE, None, data=(images, labels), **few)
    assert search(SPACE, None, data=(images.numpy(), labels.numpy()), **few) == pair
    dataset = TensorDataset(images, labels)
    assert search(SPACE, None, data=DataLoader(dataset, batch_size=4), **few) == pair
    # Of a dataset, images are drawn in another order.
    drawn = search(SPACE, None, data=dataset, **few)
    assert [each.score for each in drawn] == pytest.approx([each.score for each in pair], rel=1e-3)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "photos" / "train" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    # A folder as its path; the head of a network that is named has its two classes.
    drawn = search(SPACE, None, data=tmp_path / "photos", **few)
    assert [each.score for each in drawn] == pytest.approx([each.score for each in pair], rel=1e-3)
    named = search("wrn16_1", None, data=str(tmp_path / "photos"), **few)
    assert named.space.num_classes == 2
    assert re.search("^folder, 8 images", named.searched["data"])
