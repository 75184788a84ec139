"""The picture of a search: files of the kind asked for, panels that hold what the record holds."""

import errno
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from registered import forget_entry

from blockswap_models import Cost, Genome, Layout, count, count_blocks, register
from blockswap_models.cli.main import main
from blockswap_models.nets.networks import build
from blockswap_models.searching.candidates import ScoredDraw
from blockswap_models.searching.plot import plot_genome, plot_ranking, plot_record
from blockswap_models.searching.record import Record, read_ranking
from blockswap_models.strips import FAMILIES

matplotlib = pytest.importorskip("matplotlib", reason='needs pip install "blockswap_models[plot]"')

SEARCH = {
    "space": "blockswap_wrn16_1",
    "types": "S G4 W1 B2 B2G4",
    "input_size": [3, 32, 32],
    "num_classes": 10,
    "budget": {"params": [40000.0, 180000.0]},
    "seed": 0,
    "data": "1/f noise, 4 $images",
    "score": "fisher",
}
TYPES = ["S", "G4", "W1", "B2", "B2G4", "B2W4", "M6", "D"]


def write(path, scores, blocks=True, search=SEARCH):
    """Writes a record of one genome a score; those of the same score differ in cost."""
    with Record(path, search) as record:
        for place, score in enumerate(scores):
            genome = f"S,{TYPES[place % 8]}/2x{TYPES[place // 8 % 8]}/S,{TYPES[place // 64]}"
            parts = tuple(score / 2**block for block in (1, 2, 3, 4, 5, 5))
            cost = Cost(50_000 + place, 9_000_000 - place)
            record.add(ScoredDraw(Genome(genome), cost, 0, score, parts if blocks else None))
    return path


@pytest.fixture
def record(tmp_path):
    return write(tmp_path / "search.jsonl", [0.001 * 1.05**place for place in range(90)] + [math.nan, math.inf])


def panels(figure):
    """Finds the four panels."""
    strips, shares, histogram, costs = figure.axes
    return strips, shares, histogram, costs


def drawn(path):
    """Draws the record of a search to no file, which takes most of the time."""
    return plot_ranking(*read_ranking(path))


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("suffix", "signature"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml"), (".SVG", b"<?xml")]
)
def test_the_suffix_says_what_is_written(record, tmp_path, suffix, signature):
    before = record.read_bytes()
    out = tmp_path / "new" / f"picture{suffix}"
    figure = plot_record(record, out)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert out.read_bytes().startswith(signature)
    assert record.read_bytes() == before
    # Names as text do as well, and a picture is drawn anew where there is one.
    plot_record(str(record), str(out))
    assert out.read_bytes().startswith(signature)


def test_the_strips_are_the_best_genomes(record):
    _, ranking = read_ranking(record)
    strips = panels(drawn(record))[0]
    assert len(strips.patches) == 5 * 6
    labels = [str(block) for each in ranking[:5] for block in each.genome.blocks]
    assert texts(strips)[: len(labels)] == labels
    assert [label.get_text() for label in strips.get_yticklabels()] == ["best", "2", "3", "4", "5"]
    for text in ("stage 1", "stage 3", f"{ranking[0].score:.4g}", f"{ranking[4].cost.params:,}", "9.0 M"):
        assert text in texts(strips)
    assert "stage 4" not in texts(strips)
    # Blocks of one family have one colour, and the gap between stages is wider than that between blocks.
    families = [label.translate(dict.fromkeys(map(ord, "0123456789"))) for label in labels]
    colours = {(family, box.get_facecolor()) for family, box in zip(families, strips.patches, strict=True)}
    assert len(colours) == len(set(families)) == len({colour for _, colour in colours}) > 2
    lefts = [patch.get_x() for patch in strips.patches[:6]]
    assert lefts[2] - lefts[1] > lefts[1] - lefts[0] + 0.2


def test_the_shares_stand_below_their_blocks(record):
    _, ranking = read_ranking(record)
    strips, shares, *_ = panels(drawn(record))
    _, dots, dashes = shares.collections
    assert dots.get_offsets()[:, 1].tolist() == pytest.approx(ranking[0].shares)
    assert dashes.get_offsets()[:, 1].tolist() == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125])
    # Shares that differ by factors can all be seen.
    assert shares.get_yscale() == "log"
    assert shares.get_ylim()[0] < min(ranking[0].shares)
    centres = [patch.get_x() + patch.get_width() / 2 for patch in strips.patches[:6]]
    assert dots.get_offsets()[:, 0].tolist() == pytest.approx(centres)
    assert strips.get_xlim() == shares.get_xlim()
    assert shares.get_xticklabels()[0].get_text() == "1\n50%\n50%"


def test_the_histogram_holds_every_finite_score(record):
    histogram = panels(drawn(record))[2]
    assert sum(bar.get_height() for bar in histogram.patches) == 90
    assert histogram.get_xscale() == "log"
    assert histogram.get_title(loc="left") == "Scores (2 not finite, left out)"
    best = 0.001 * 1.05**89
    assert histogram.lines[0].get_xdata()[0] == pytest.approx(best)
    assert texts(histogram)[0] == f"best {best:.3g}"


def test_costs_stand_against_scores(record):
    _, ranking = read_ranking(record)
    costs = panels(drawn(record))[3]
    points, mark = (collection.get_offsets() for collection in costs.collections)
    assert points.tolist() == [[each.cost.params, each.score] for each in ranking[:90]]
    assert mark.tolist() == points[:1].tolist()
    assert (costs.get_xlabel(), costs.get_yscale()) == ("parameters", "log")


@pytest.mark.parametrize(
    ("windows", "title"), [({"macs": [0, 10_000_000]}, "MACs"), ({"latency": [0, 0.01]}, "latency")]
)
def test_the_cost_is_that_of_the_budget(tmp_path, windows, title):
    path = tmp_path / "a.jsonl"
    with Record(path, {**SEARCH, "budget": windows}) as record:
        for place in range(2):
            record.add(ScoredDraw(Genome("2xS/2xS/2xS"), Cost(1, 2, 0.0041), place, 1.0 + place))
    *_, costs = panels(drawn(path))
    assert costs.get_xlabel() == title


def refined(tmp_path):
    """Writes a record whose best is not its highest score: that has one draw, and the best has four."""
    path = tmp_path / "refined.jsonl"
    with Record(path, {**SEARCH, "asked": {"params": [40_000, 180_000]}}) as record:
        for place, scores in enumerate([(1.0,), (8.0,), (4.0, 2.0, 3.0, 3.0), (2.0, 2.5, 1.5, 2.0)]):
            for draw, score in enumerate(scores):
                genome = Genome(f"S,{TYPES[place]}/2xS/2xS")
                record.add(ScoredDraw(genome, Cost(50_000 + place, 9), draw, score, (score / 6,) * 6))
    return path


def test_the_best_is_the_highest_of_those_with_most_draws(tmp_path):
    path = refined(tmp_path)
    _, ranking = read_ranking(path)
    strips, _, histogram, costs = panels(drawn(path))
    best = ranking[0]
    assert best.cost.params == 50_002
    columns = texts(strips)[24:]
    for text in ("±", "draws", f"{best.standard_error_factor - 1:.0%}", "4", "1"):
        assert text in columns
    # Scores of one draw each are compared with one another.
    (bars,) = histogram.containers
    edges = [bars[0].get_x(), *(bar.get_x() + bar.get_width() for bar in bars)]
    assert [bar.get_height() for bar in bars] == np.histogram([1.0, 8.0, 4.0, 2.0], edges)[0].tolist()
    assert texts(histogram)[0] == f"best {best.score:.3g} ± {best.standard_error_factor - 1:.0%}, 4 draws"
    assert histogram.get_xlabel() == "score (1 draw each)"
    legend = [text.get_text() for text in costs.get_legend().get_texts()]
    assert legend == ["1 draw", "4 draws"]
    groups = [each.get_offsets().tolist() for each in costs.collections if hasattr(each, "get_sizes")]
    assert groups == [[[50_001, 8.0], [50_000, 1.0]], [[50_002, best.score], [50_003, ranking[1].score]], groups[2]]
    assert groups[2] == [[50_002, best.score]]


def test_no_colour_but_those_of_families(tmp_path):
    from matplotlib.colors import to_rgb

    figure = drawn(refined(tmp_path))
    strips, *others = panels(figure)
    assert {to_rgb(box.get_facecolor()) for box in strips.patches} <= {to_rgb(each) for each, _ in FAMILIES.values()}
    for axes in others:
        colours = [to_rgb(each) for part in axes.collections for each in part.get_facecolor()]
        colours += [to_rgb(bar.get_facecolor()) for bar in axes.patches]
        # Greys: three equal parts.
        assert all(max(each) - min(each) < 1e-6 for each in colours)


def test_a_network_of_a_layout_of_ones_own_has_its_own_classes_and_channels():
    layout = Layout.custom("drawn_net", (1, 1, 1), (16, 32, 64), num_classes=1000, input_size=(4, 32, 32))
    register(layout)
    try:
        title, *_ = plot_genome("drawn_net", "S/S/S").axes
        model = build(layout, "S/S/S", num_classes=1000, in_chans=4, device="meta")
        assert texts(title)[1].startswith(f"{count(model).params / 1e3:.1f} k parameters")
    finally:
        forget_entry("drawn_net")


def test_a_network_beside_its_original(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure = plot_genome("wrn16_1", "S,G4/2xB2/2xW4")
    title, strips, params, macs = figure.axes
    costs = count_blocks(build(Layout.named("wrn16_1"), "S,G4/2xB2/2xW4", device="meta"))
    assert [bar.get_height() for bar in params.patches[6:]] == [each.params for each in costs]
    assert [bar.get_height() for bar in macs.patches[6:]] == [each.macs for each in costs]
    originals = count_blocks(build(Layout.named("wrn16_1"), "2xS/2xS/2xS", device="meta"))
    assert [bar.get_height() for bar in params.patches[:6]] == [each.params for each in originals]
    assert [label.get_text() for label in strips.get_yticklabels()] == ["this network", "original"]
    assert texts(title) == ["wrn16_1", "40.15 k parameters (4.4 times fewer), 10.4 M MACs (2.6 times fewer)"]
    assert main(["plot", "wrn16_1", "S,G4/2xB2/2xW4"]) == 0
    assert main(["plot", "wrn40_2_162k", "--out", "zoo.png"]) == 0
    assert capsys.readouterr().out == "picture: wrn16_1.svg\npicture: zoo.png\n"
    assert (tmp_path / "wrn16_1.svg").read_text().startswith("<?xml")
    assert main(["plot", "2xS/2xS/2xS"]) == 2
    assert capsys.readouterr().err == (
        "blockswap plot: a genome fits several networks; use 'blockswap plot wrn40_2 2xS/2xS/2xS'\n"
    )
    for more in ([], ["3xK/4xK/6xK/3xK"]):
        assert main(["plot", "resnet50", *more]) == 2
        assert "of searches; resnet50 is timm's, and 'blockswap count' prints" in capsys.readouterr().err


@pytest.mark.parametrize("scores", [[3.5], [2.0] * 3, [0.0] * 3, [-1.0, 0.0, 2.0], [1.0, 1.0000001], [1e-30, 1e30]])
@pytest.mark.filterwarnings("error")
def test_any_scores_are_drawn(tmp_path, scores):
    path = write(tmp_path / "a.jsonl", scores, blocks=False)
    strips, shares, histogram, *_ = panels(plot_record(path, tmp_path / "a.png"))
    assert len(strips.patches) == 6 * len(scores)
    assert "this score has no parts by block" in texts(shares)
    assert sum(bar.get_height() for bar in histogram.patches) == len(scores)


def test_ranks_are_drawn_as_they_are_and_factors_by_logarithms(record, tmp_path):
    figure = drawn(record)
    _, shares, histogram, costs = panels(figure)
    assert shares.get_title(loc="left") == "Share of the score by block"
    assert (histogram.get_xscale(), costs.get_yscale()) == ("log", "log")
    path = tmp_path / "sum.jsonl"
    with Record(path, {**SEARCH, "score": "fisher+naswot"}) as sums:
        for place in range(1, 9):
            parts = {"fisher": float(place), "naswot": float(place)}
            genome = Genome(f"S,S/S,S/S,{TYPES[place - 1]}")
            sums.add(ScoredDraw(genome, Cost(50_000 + place, 9_000_000), 0, math.nan, (float(place),) * 6, parts))
    _, shares, histogram, costs = panels(drawn(path))
    assert shares.get_title(loc="left") == "Share of fisher by block"
    assert (histogram.get_xscale(), costs.get_yscale()) == ("linear", "linear")


@pytest.mark.filterwarnings("error")
def test_a_deep_network_is_drawn(tmp_path):
    path = tmp_path / "a.jsonl"
    with Record(path, SEARCH) as record:
        record.add(ScoredDraw(Genome("26xB2G16/26xS/26xD"), Cost(1, 1), 0, 1.0, (1.0,) * 78))
    strips, shares, *_ = panels(plot_record(path, tmp_path / "a.png"))
    assert {text.get_rotation() for text in strips.texts[:78]} == {90}
    assert len(shares.collections[1].get_offsets()) == 78


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        (None, "a.png", "cannot read the record {}: No such file or directory"),
        (b"a diary", "a.png", "{} is not the record of a search"),
        (b"", "a.png", "{} holds no search"),
        (b'{"record": "blockswap search"}\n', "a.png", "{} holds no scores yet"),
        ("whole", "a.pdf", "unknown suffix '.pdf' of a.pdf; use .png or .svg"),
        ("whole", "picture", "unknown suffix '' of picture; use .png or .svg"),
        ("whole", "/dev/null/new/a.png", "cannot make the folder '/dev/null/new': Not a directory"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, monkeypatch, record, content, out, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "it.jsonl"
    if content is not None:
        path.write_bytes(record.read_bytes() if content == "whole" else content)
    assert main(["plot", str(path), "--out", out]) == 2
    assert capsys.readouterr() == ("", f"blockswap plot: {message.format(path)}\n")
    assert not list(tmp_path.glob("[ap]*"))


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_a_full_disk_leaves_the_old_picture(record, tmp_path, monkeypatch, name):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / name
    picture.write_bytes(b"old")
    monkeypatch.setattr("blockswap_models.files.os.fsync", fail)
    with pytest.raises(OSError, match=rf"^cannot write '.*{name}': No space left on device$"):
        plot_record(record, picture)
    assert [(each, each.read_bytes()) for each in picture.parent.iterdir()] == [(picture, b"old")]


def test_a_record_is_not_drawn_over(capsys, tmp_path):
    path = write(tmp_path / "record.png", [1.0, 2.0])
    before = path.read_bytes()
    assert main(["plot", str(path)]) == 2
    assert "is the record itself; use another file (--out)\n" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_the_picture_is_named_after_the_record(capsys, record):
    assert main(["plot", str(record)]) == 0
    picture = record.with_suffix(".png")
    assert picture.exists()
    assert capsys.readouterr() == (f"picture: {picture}\n", "")
    assert main(["plot", str(record), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"picture": str(picture)}


def test_the_command_says_what_to_install(capsys, monkeypatch, record):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(record)]) == 2
    assert capsys.readouterr().err == (
        'blockswap plot: a picture needs matplotlib; pip install "blockswap_models[plot]"\n'
    )


def test_needs_no_torch_display_or_pyplot(record):
    code = (
        "import sys\nfrom blockswap_models.cli.main import main\nassert 'matplotlib' not in sys.modules\n"
        f"assert main(['plot', {str(record)!r}]) == 0\n"
        "assert not {'torch', 'timm', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_picture_of_a_search_by_size_shows_the_bytes(tmp_path):
    search = {**SEARCH, "budget": {"size": [0.0, 900_000.0]}}
    with Record(tmp_path / "search.jsonl", search) as record:
        for draw, score in enumerate((0.2, 0.0)):
            for genome in ("6xS", "6xG4"):
                text = f"2x{genome[2:]}/2x{genome[2:]}/2x{genome[2:]}"
                cost = Cost(50_000, 9_000_000, size=123_456 if genome == "6xS" else 99_999)
                record.add(ScoredDraw(Genome(text), cost, draw, score, None))
    strips, _, histogram, costs = plot_record(tmp_path / "search.jsonl", tmp_path / "search.svg").axes
    assert {"bytes", "123,456", "99,999"} <= set(texts(strips))
    assert costs.get_xlabel() == "bytes of the weights file"
    # A draw of 0 leaves the error unknown.
    assert any("best" in each for each in texts(histogram))
    assert not any("± ," in each for each in texts(histogram))
