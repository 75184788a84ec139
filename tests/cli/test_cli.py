import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
from command_line import run

from blockswap_models import Genome, SearchSpace

SEARCH = "search wrn16_1 --params 60k --samples 4 --refine 0 --batch-size 4 --workers 1".split()


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The record of a search, which `show` reads without torch."""
    path = tmp_path_factory.mktemp("cli") / "record.jsonl"
    assert run(*SEARCH, "--out", path)[0] == 0
    return path


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["search", "--help"], 0),
        (["serach"], 2),
        (["count", "wrn40_2", "6xS/6xS/6xZ"], 2),
        (["count", "resnet34", "6xS"], 2),
        (["train", "wrn40_2", "--data", "x", "--out", "y", "--genome", "6xS/6xS/6xZ"], 2),
        (["search", "wrn40_2", "--params", "400q"], 2),
    ],
)
def test_help_and_mistakes_need_no_torch(arguments, status):
    code = (
        "import sys\nfrom blockswap_models.cli.main import main\n"
        f"assert main({arguments}) == {status}\nassert not {{'torch', 'timm', 'numpy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "blockswap_models", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("blockswap ")


def test_list():
    status, out, _ = run("list", "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["name"] for row in rows if row["params"] == 404_250] == ["blockswap_wrn40_2_404k"]
    assert sorted(row["name"] for row in rows) == timm.list_models("blockswap_*", module="blockswap")
    _, out, _ = run("list")
    assert len(out.splitlines()) == len(rows) + 1


def test_count():
    status, out, _ = run("count", "wrn40_2_404k", "--json")
    report = json.loads(out)
    assert status == 0
    assert report["params"] == 404_250
    assert [row["type"] for row in report["blocks"]] == [str(block) for block in Genome(report["genome"]).blocks]
    _, out, _ = run("count", "resnet34", "3xG4/4xG4/6xG4/3xG4")
    assert "8,146,600  1,389.4 M" in out
    _, out, _ = run("count", "wrn28_10", "--num-classes", 100, "--json")
    assert json.loads(out)["params"] == 36_536_884


def test_space():
    status, out, _ = run("space", "wrn40_2", "--params", "400k", "--json")
    report = json.loads(out)
    assert status == 0
    assert report["spellings"] == 23**18
    assert 0 < report["fitting"] < report["fitting_spellings"] < report["spellings"]
    _, out, _ = run("space", "wrn16_1", "--types", "S,G4", "--params", "..100k", "--macs", "..20m")
    assert "within params up to 100,000, macs up to 20,000,000: about" in out


def test_search_builds_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*SEARCH)
    assert status == 0
    assert "4 of 4 scores" in err
    assert (tmp_path / "wrn16_1-params60k-seed0.jsonl").read_bytes().count(b"\n") == 5
    genome = out.splitlines()[2].strip()
    assert f"build it: timm.create_model('blockswap_wrn16_1', genome='{genome}')" in out
    params = sum(p.numel() for p in timm.create_model("blockswap_wrn16_1", genome=genome).parameters())
    assert 58_500 <= params <= 61_500
    status, again, _ = run(*SEARCH, "--resume")
    assert (status, again) == (0, out)


def test_a_search_that_was_stopped_before_its_first_line_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("torn.jsonl").write_text('{"record": "blockswap search", "spa')
    status, _, err = run(*SEARCH, "--score", "params", "--resume", "torn.jsonl")
    assert status == 0, err
    assert Path("torn.jsonl").read_bytes().count(b"\n") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("count wrn40_2 6xS/6xS/5xS,BG2", "unknown block type 'BG2'; did you mean 'B2G2'? (stage 3, block 6 of "),
        ("count nonsense", "unknown network 'nonsense'; use wrn40_2, resnet34 or another name of 'blockswap list'"),
        ("count wrn40_2_400k", "no network 'wrn40_2_400k' in the zoo; did you mean 'wrn40_2_404k'?"),
        ("count wrn22_4_9m", "no network 'wrn22_4_9m' in the zoo; see 'blockswap list', or give a genome"),
        ("count resent34", "unknown network 'resent34'; did you mean 'resnet34'?"),
        ("count WRN40_2", "unknown network 'WRN40_2'; did you mean 'wrn40_2'?"),
        ("count mobilenetv3_smal_050", "unknown network 'mobilenetv3_smal_050'; did you mean 'mobilenetv3_small_050'?"),
        ("count wrn16_1 --image-size 0", "--image-size is at least 1, not 0"),
        ("count wrn16_1 --in-chans -3", "--in-chans is at least 1, not -3"),
        ("count test_resnet --num-classes -1", "--num-classes is at least 1, not -1"),
        ("search wrn16_1 --front macs --points 0", "--points is at least 1, not 0"),
        ("search wrn16_1 --params 60k --score fisher,naswot", "join scores with +, as in fisher+naswot"),
        ("search wrn16_1 --params 60k --out .", "'.' is a folder; use a file in it (--out)"),
        ("search wrn16_1 --params 60k --library lib", "use --strategy library --library FOLDER"),
        ("space wrn41_2", "there is no WRN-41-2: its depth is 6n + 4"),
        ("space wrn16_1 --types S,Q", "unknown block type 'Q'"),
        ("search wrn16_1", "a search needs a budget; use --params 400k, or --macs 60m"),
        ("search wrn16_1 --params 60q", "'60q' is no amount; use 400k, 3m, 1.2g, 20%, ..400k or 300k..400k"),
        ("search wrn16_1 --params 9m", "no genome of blockswap_wrn16_1 meets params 9,000,000 ± 2.5%; "),
        ("search wrn16_1 --params 9k", "its params run from 10,090 to 176,218"),
        ("search wrn16_1 --params 60k --data torch/cifar10 --data-dir nowhere", "no data folder 'nowhere'"),
        ("search wrn16_1 --params 60k --data-dir nowhere", "a data folder needs the dataset's name"),
        ("search wrn16_1 --params 60k --samples 0", "--samples is at least 1, not 0"),
        ("search wrn16_1 --params 60k --batch-size 1", "a minibatch has at least 2 images, not 1"),
        ("search wrn16_1 --params 60k --top 0", "--top is at least 1, not 0"),
        (
            "search wrn16_1 --params 60k --resume a.jsonl --out b.jsonl",
            "'a.jsonl' is continued where it is; leave out ",
        ),
        ("search wrn16_1 --params 60k --points 3", "--points is for a front; use --front params"),
        ("search wrn16_1 --params 60k --val-share 0.3", "--val-share is of a dataset; use --data"),
        (
            "search wrn16_1 --params 60k --samples 2 --dtype bfloat16 --score fisher+zico",
            "the score fisher+zico is computed in float32; use --dtype float32",
        ),
        (
            "search wrn16_1 --params 60k --strategy library --library lib --data images --types G4",
            "--types is not for --strategy library, which joins its blocks as they are",
        ),
        (
            "search wrn16_1 --params 60k --strategy library --library lib --data images --batch-size 0",
            "--batch-size is at least 1, not 0",
        ),
        ("rank - --split test", "--split is of a dataset; use --data"),
        ("predict wrn16_1 x.png --batch-size 0", "--batch-size is at least 1, not 0"),
        ("predict wrn16_1 x.png --workers -1", "--workers is at least 0, not -1"),
        ("evaluate wrn16_1 --data images --val-seed 3", "--val-seed is of what --val-share holds out; use both"),
        (
            "search wrn16_1 --params 60k --resume nowhere.jsonl",
            "no record nowhere.jsonl to resume; leave out --resume",
        ),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments.split())
    assert status == 2
    assert out == ""
    assert err.startswith(f"blockswap {arguments.split()[0]}: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("reader", "status", "said"), [("| true", 0, ""), ("> /dev/full", 2, "No space left on device")]
)
@pytest.mark.parametrize("command", ["show record.jsonl", "--help", "--version", "search --help"])
@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_cannot_be_written(reader, status, said, command, buffered, record, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full on this system")
    shutil.copy(record, tmp_path / "record.jsonl")
    # Buffered, as it is unless a user says otherwise: the error comes as the buffer is written.
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if not buffered:
        surroundings["PYTHONUNBUFFERED"] = "1"
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m blockswap_models {command} {reader}"
    done = subprocess.run(["bash", "-c", command], env=surroundings, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == bool(said)
    assert said in done.stderr


@pytest.mark.parametrize(("failure", "status"), [(KeyboardInterrupt, 130), (OSError, 2)])
def test_the_message_comes_after_the_progress_bar(tmp_path, monkeypatch, failure, status):
    # Raised outside the bar's own code, while it waits for the next score.
    monkeypatch.setattr("blockswap_models.searching.record.Record.add", Mock(side_effect=failure))
    ended, _, err = run(*SEARCH, "--out", tmp_path / "record.jsonl")
    assert ended == status
    message = "interrupted; continue with the same command" if status == 130 else "OSError"
    assert "0 of 4 scores" in err
    assert err.splitlines()[-1].startswith(f"blockswap search: {message}")


def test_lists_may_have_spaces_and_no_type_counts_twice(tmp_path):
    status, out, _ = run("space", "wrn16_1", "--types", "S, G4,S")
    assert (status, out.splitlines()[0]) == (0, "blockswap_wrn16_1, 2 block types: S G4")
    status, out, err = run(*SEARCH, "--score", "params + macs", "--out", tmp_path / "record.jsonl")
    assert status == 0, err


def test_a_kept_block_is_one_of_timms_network():
    status, out, err = run("count", "resnet18", "2xK/2xK/2xK/K,B2")
    assert (status, "resnet18 2xK/2xK/2xK/K,B2") == (0, out.splitlines()[0]), err


def test_a_record_of_another_search_is_left_alone(tmp_path):
    record = tmp_path / "record.jsonl"
    run(*SEARCH, "--out", record)
    before = record.read_bytes()
    for more in (["--seed", 1], ["--params", "65k"]):
        status, _, err = run(*SEARCH, *more, "--resume", record)
        assert status == 2
        assert "is the record of another search" in err
    # In the words of a budget.
    assert "budget params 58,500 to 61,500 there, params 63,375 to 66,625 here" in err
    status, _, err = run(*SEARCH, "--out", record)
    assert status == 2
    assert "exists; continue it with --resume, or use another --out" in err
    assert record.read_bytes() == before


@pytest.mark.data
def test_search_on_cifar10(tmp_path, cifar_dir):
    arguments = ["--data", "torch/cifar10", "--data-dir", cifar_dir, "--out", tmp_path / "record.jsonl", "--json"]
    status, out, _ = run(*SEARCH, *arguments)
    assert status == 0
    SearchSpace("wrn16_1").layout.fit(json.loads(out)["best"]["genome"])


@pytest.mark.data
def test_search_on_imagenet_images(tmp_path, imagenet_val1300):
    command = "search resnet34 --params 3m --samples 2 --batch-size 4 --workers 1 --json".split()
    status, out, _ = run(*command, "--data", imagenet_val1300, "--out", tmp_path / "record.jsonl")
    assert status == 0
    assert 2_925_000 <= json.loads(out)["best"]["params"] <= 3_075_000


# -- latency ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A latency table, and what the command printed as it was measured."""
    path = tmp_path_factory.mktemp("profile") / "table.json"
    command = "profile wrn10_1 --types S,G4,B2 --rounds 1 --threads 1 --batch-size 2 --image-size 16 --out".split()
    status, out, err = run(*command, path)
    assert status == 0
    assert "1 of 1 " in err
    return path, out


def test_profile(table, tmp_path):
    path, out = table
    content = json.loads(path.read_text())
    assert (content["batch_size"], content["threads"], content["input_size"]) == (2, 1, [3, 16, 16])
    assert "minibatch  2 images of 3x16x16" in out
    assert "16 to 16, 16x16  16 to 32, 16x16/2  32 to 64, 8x8/2" in out
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    for kind in ("S", "G4", "B2"):
        assert lines[kind] == [f"{shape['seconds'][kind] * 1000:.3f}" for shape in content["shapes"]]
    assert out.splitlines()[-1].startswith("use it: ")
    _, *use = shlex.split(out.splitlines()[-1].removeprefix("use it: "))
    status, spaces, err = run(*use)
    assert (status, err) == (0, "")
    assert "latency " in spaces
    command = "profile wrn10_1 --types S --rounds 1 --json --out".split()
    status, out, _ = run(*command, tmp_path / "json.json")
    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "json.json").read_text())


def test_latency_budgets(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = ["wrn10_1", "--types", "S,G4,B2", "--image-size", 16, "--latency-table", table[0]]
    status, out, _ = run("space", *space, "--json")
    least, most = json.loads(out)["range"]["latency"]
    assert (status, 0 < least < most) == (0, True)
    status, out, _ = run("space", *space, "--latency", f"..{most * 1e6:.0f}us")
    assert status == 0
    assert f"latency     {least * 1e3:.6f}".rstrip("0") in out
    assert "within latency up to " in out
    budget = f"{least * 1e6:.0f}us..{most * 1e6 + 1:.0f}us"
    search = ["search", *space, "--latency", budget, "--samples", 3, "--batch-size", 2, "--workers", 1]
    status, out, _ = run(*search)
    assert status == 0
    titles, first = (next(line for line in out.splitlines() if word in line) for word in ("rank", "   1 "))
    assert titles.split() == ["rank", "score", "±", "draws", "params", "MACs", "latency", "genome"]
    assert first.split()[-2] == "ms"
    record = f"wrn10_1-latency{budget}-seed0.jsonl"
    _, shown, _ = run("show", record)
    assert "budget   latency " in shown
    assert first in shown
    _, out, _ = run("show", record, "--json")
    rows = json.loads(out)["top"]
    _, out, _ = run(*search, "--resume", "--json")
    assert [row["latency"] for row in json.loads(out)["top"]] == [row["latency"] for row in rows]
    assert all(least <= row["latency"] <= most + 1e-6 for row in rows)
    other = json.loads(table[0].read_text())
    (tmp_path / "other.json").write_text(json.dumps({**other, "head": other["head"] + 1e-6}))
    status, out, err = run(*search, "--resume", "--latency-table", "other.json")
    assert (status, out) == (2, "")
    assert "is the record of another search: latency_table " in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("space wrn10_1 --latency 4ms", "'blockswap profile NETWORK --out table.json' and use --latency-table"),
        ("search wrn10_1 --params 60k --latency 4ms", "a budget of latency needs a table of measured latencies"),
        (
            "space wrn10_1 --latency 4 --latency-table TABLE",
            "'4' is no latency; use 4ms, 800us, 20%, ..4ms",
        ),
        (
            "space wrn10_1 --latency 4ms --latency-table nowhere.json",
            "cannot read the latency table nowhere.json: No such",
        ),
        (
            "space wrn10_1 --latency-table TABLE",
            "at 3x16x16, not of blockswap_wrn10_1 at 3x32x32; measure one of these networks",
        ),
        (
            "space wrn10_1 --types W1 --image-size 16 --latency-table TABLE",
            "'W1': not in the latency table, which has S",
        ),
        (
            "search wrn10_1 --types S --image-size 16 --latency 9s --latency-table TABLE",
            "no genome of blockswap_wrn10_1 meets latency 9,000 ms ± 2.5%; with these block types its latency runs ",
        ),
        (
            "profile wrn10_1 --out nowhere/table.json",
            "no folder 'nowhere'; use a file in a folder that exists (--out)",
        ),
        ("profile wrn10_1 --device meta --out table.json", "the device meta computes nothing; use cpu or cuda"),
        ("profile wrn10_1 --batch-size 0 --out table.json", "--batch-size is at least 1, not 0"),
        ("profile wrn10_1 --types Q --out table.json", "unknown block type 'Q'"),
    ],
)
def test_errors_of_latency_are_one_line(tmp_path, monkeypatch, table, arguments, message):
    test_errors_are_one_line(tmp_path, monkeypatch, arguments.replace("TABLE", str(table[0])), message)
