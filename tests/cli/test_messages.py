"""What the command says of mistakes, names and rounds."""

import math
import os
import subprocess
import sys

import click
import pytest
from command_line import run

from blockswap_models import Cost, Genome
from blockswap_models.cli.errors import as_options
from blockswap_models.cli.search import search_, tied_text
from blockswap_models.cli.tables import print_ranking
from blockswap_models.cli.train import train_
from blockswap_models.progress import LogLines
from blockswap_models.searching.candidates import Candidate


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "10 classes, not 146; use num_classes=146, or others",
            "10 classes, not 146; use --num-classes 146, or others",
        ),
        ("go on with resume=True, or use another folder=", "go on with --resume, or use another --out"),
        ("no folder 'lr=2'; use root=FOLDER", "no folder 'lr=2'; use --data-dir FOLDER"),
        (
            "the network's loss is NaN (lr=); the teacher's is not",
            "the network's loss is NaN (--lr); the teacher's is not",
        ),
        ("use nesterov=False or device='cuda:1'.", "use --no-nesterov or --device cuda:1."),
        ("batch_size is at least 1, not 0", "--batch-size is at least 1, not 0"),
        ("data is missing: timm.f(x, unknown=3)", "--data is missing: timm.f(x, unknown=3)"),
        ("the data is missing", "the data is missing"),
        ("both are 'val (split=)'; use one (split=)", "both are 'val (split=)'; use one"),
    ],
)
def test_arguments_of_python_become_options(message: str, said: str) -> None:
    assert as_options(message, train_) == said


def test_a_record_is_named_by_out() -> None:
    python = "use tensors: search(data=(images, labels)), or SearchSpace(…, in_chans=1)"
    assert as_options(f"{python} (data=)", search_) == f"{python} (--data)"
    assert as_options("use another record=", search_) == "use another --out"
    assert as_options("use another record=", click.Command("none")) == "use another record="


@pytest.mark.parametrize(
    ("arguments", "usage", "message"),
    [
        ("serach wrn16_1", "blockswap", "blockswap: No such command 'serach'. Did you mean 'search'?"),
        ("show a --topp 3", "blockswap show", "blockswap show: No such option '--topp'. Did you mean '--top'?"),
        ("search", "blockswap search", "blockswap search: Missing argument 'NETWORK'."),
        ("evaluate resnet18", "blockswap evaluate", "blockswap evaluate: Missing option '--data'."),
        ("push a", "blockswap push", "blockswap push: Missing option '--repo' or '--out'."),
    ],
)
def test_a_mistyped_command_prints_its_usage(arguments: str, usage: str, message: str) -> None:
    status, out, err = run(*arguments.split())
    assert (status, out) == (2, "")
    first, last = err.splitlines()
    assert first.startswith(f"Usage: {usage} [OPTIONS]")
    assert last.startswith(message)


@pytest.mark.parametrize("arguments", ["search wrn16_1 --params 60k --samples x", "show a --top x"])
def test_a_wrong_value_is_one_line(arguments: str) -> None:
    status, _, err = run(*arguments.split())
    option = arguments.split()[-2]
    assert (status, err) == (2, f"blockswap {arguments.split()[0]}: 'x' is not a valid integer ({option})\n")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("push a --repo a/b --out c", "--repo and --out"),
        ("evaluate resnet18 --data a --checkpoint b --pretrained", "--checkpoint and --pretrained"),
        ("train resnet18 --data a --out b --pretrained --init c", "--pretrained and --init"),
    ],
)
def test_options_that_exclude_each_other(arguments: str, options: str) -> None:
    said = f"blockswap {arguments.split()[0]}: {options} exclude each other; leave one of them out\n"
    assert run(*arguments.split()) == (2, "", said)


def test_amounts_are_read_as_they_are_printed() -> None:
    _, out, _ = run("space", "wrn10_1", "--types", "S,G4", "--params", "50,000..60,000")
    printed = next(line for line in out.splitlines() if line.startswith("within params 50,000 to 60,000: "))
    _, again, _ = run("space", "wrn10_1", "--types", "S,G4", "--params", "50k..60k")
    assert printed in again


def test_a_search_has_one_bar_with_its_rounds(tmp_path, monkeypatch) -> None:
    # However slow this machine is, its log has its last line only.
    monkeypatch.setitem(LogLines.__init__.__kwdefaults__, "seconds", math.inf)
    command = "search wrn10_1 --types S,W1,B2 --params ..1m --samples 8 --refine 2 --batch-size 2 --workers 1".split()
    status, out, err = run(*command, "--out", tmp_path / "record.jsonl")
    assert status == 0
    # 8 genomes, then 2 of them by 3 more draws, then the best by 12 more.
    last = err.rstrip().rpartition("\r")[2]
    assert last.startswith("refining, round 2 of 2: 26 of 26 scores [")
    assert "\n" not in err.rstrip()
    assert "genomes with more draws come first: a score of fewer draws can be high by chance\n\nrank " in out
    rows = (tmp_path / "record.jsonl").read_bytes().count(b"\n") - 1
    assert rows == 26
    status, again, err = run(*command, "--resume", tmp_path / "record.jsonl")
    assert (status, again, err) == (0, out, "")


def test_a_table_of_equal_draws_needs_no_caption(capsys) -> None:
    print_ranking([Candidate(Genome("S"), Cost(1, 1), (2.0,)), Candidate(Genome("W1"), Cost(1, 1), (1.0,))])
    assert capsys.readouterr().out.startswith("rank ")


def test_others_are_counted_as_a_person_does() -> None:
    assert [tied_text(number, 64) for number in (0, 1, 1200)] == [
        "no other genome is statistically tied with the best (64 draws)",
        "1 other genome is statistically tied with the best (64 draws)",
        "1,200 other genomes are statistically tied with the best (64 draws)",
    ]


def test_an_encoding_without_a_sign_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blockswap_models", "count", "--help"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "cp866"},
    )
    assert b"GENOME" in done.stdout
    code = "import sys; from blockswap_models.cli.main import main; main(['--version']); print('3.79 ± 0.01')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp866"}
    )
    assert done.stdout.splitlines()[-1] == b"3.79 +- 0.01"


def test_profile_finds_out_that_its_file_cannot_be_written_before_it_measures(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("blockswap_models.searching.profile.profile", lambda *_, **__: pytest.fail("it measured"))
    status, _, err = run("profile", "wrn16_1", "--out", tmp_path / ("x" * 300))
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot write" in err
