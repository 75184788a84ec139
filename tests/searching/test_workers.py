"""Scoring in other processes: what travels to them, how they end, and searches that are killed."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import psutil
import pytest
import torch

import blockswap_models
from blockswap_models import Budget, SearchSpace, fisher_potential
from blockswap_models.cli.main import main
from blockswap_models.searching.record import read_record
from blockswap_models.searching.workers import Shared, WorkerError, local_workers, map_in_order

# One score a genome, and the same on every machine.
search = functools.partial(blockswap_models.search, refine=0, dtype=torch.float32)

SPACE = SearchSpace("wrn16_1", ["S", "G4", "W1", "B2", "B2G4"])
BUDGET = Budget(params=70_000, tolerance=0.1)
SMALL = {"samples": 6, "batch_size": 4}
# Long enough for any machine: what waits so long does not end by itself.
PATIENCE = 300


@pytest.mark.parametrize("kind", [ProcessPoolExecutor, ThreadPoolExecutor])
def test_any_executor_gives_the_same_answer(kind):
    threads = torch.get_num_threads()
    expected = search(SPACE, BUDGET, refine=1, **SMALL)
    with kind(2) as executor:
        assert search(SPACE, BUDGET, refine=1, executor=executor, **SMALL) == expected
        # The same workers, another search.
        other = search(SPACE, BUDGET, seed=1, executor=executor, **SMALL)
    assert other == search(SPACE, BUDGET, seed=1, **SMALL)
    assert torch.get_num_threads() == threads


def meet(number, task):
    """Waits until two workers are here; so each of them must have learned the job."""
    folder, value = task
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + PATIENCE
    while len(list(folder.iterdir())) < number and time.monotonic() < until:
        time.sleep(0.01)
    return len(list(folder.iterdir())), value**2


@pytest.mark.parametrize("start", [local_workers, ProcessPoolExecutor])
def test_every_worker_learns_the_job_and_works(tmp_path, start):
    with start(2) as executor:
        results = list(
            map_in_order(Shared(functools.partial(meet, 2)), [(tmp_path, each) for each in range(600)], executor)
        )
    assert results == [(2, value**2) for value in range(600)]


def test_functions_without_a_name_travel(tmp_path):
    expected = search(SPACE, BUDGET, score="fisher", **SMALL)
    with ThreadPoolExecutor(1) as thread:
        for executor in ({"workers": 2}, {"executor": thread}):
            found = search(SPACE, BUDGET, score=lambda *args: 2 * fisher_potential(*args), **executor, **SMALL)
            assert [each.score for each in found.candidates] == [2 * each.score for each in expected.candidates]


def locked(lock, model, images, labels):
    return 1.0


def test_what_workers_cannot_be_sent(tmp_path):
    score = functools.partial(locked, threading.Lock())
    with pytest.raises(
        ValueError, match=r"what workers compute cannot be sent to them: cannot pickle '_thread\.lock' obj"
    ):
        search(SPACE, BUDGET, score=score, workers=2, record=tmp_path / "record.jsonl", **SMALL)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import multiprocessing, sys
multiprocessing.set_start_method("spawn")
import torch
from blockswap_models import Budget, SearchSpace, fisher_potential, search
# Since then autograd refuses to work in forks.
torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
torch.ones(1, requires_grad=True).backward()

def mine(model, images, labels):
    return 2 * fisher_potential(model, images, labels)

space, budget, small = SearchSpace("wrn16_1"), Budget(params=60_000), {"samples": 2, "refine": 0, "batch_size": 4}
one, two = (search(space, budget, score=mine, workers=workers, **small) for workers in (1, 2))
assert one == two
print("the same")
"""


def test_a_script_needs_no_guard_file_or_fork():
    """A notebook has none of them either; nothing is said when it ends, and nothing is left."""
    process = subprocess.Popen(
        [sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # Workers have these pipes too: this ends when all have ended.
    out, errors = process.communicate(SCRIPT)
    assert (process.returncode, out, errors) == (0, "the same\n", "")


def dies_once(folder, model, images, labels):
    if not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return fisher_potential(model, images, labels)


def test_a_worker_that_dies_loses_no_score(tmp_path):
    record, score = tmp_path / "record.jsonl", functools.partial(dies_once, tmp_path)
    (tmp_path / "died").touch()
    search(SPACE, BUDGET, score=score, record=record, **{**SMALL, "samples": 2})
    (tmp_path / "died").unlink()
    with pytest.raises(WorkerError, match=r"a worker died, perhaps out of memory; continue with resume=True and fewer"):
        search(SPACE, BUDGET, score=score, workers=2, record=record, resume=True, **SMALL)
    # Fewer workers, as it says.
    result = search(SPACE, BUDGET, score=score, record=record, resume=True, **SMALL)
    assert [each.score for each in result.candidates] == [
        each.score for each in search(SPACE, BUDGET, score="fisher", **SMALL).candidates
    ]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (WorkerError("a worker died"), WorkerError, "a worker died before the first score, perhaps out of memory"),
        (RuntimeError("CUDA out of memory"), RuntimeError, "CUDA out of memory"),
    ],
)
def test_a_search_that_fails_before_its_first_score_leaves_no_record(tmp_path, monkeypatch, error, kind, message):
    def failing(*_, **__):
        raise error
        yield

    monkeypatch.setattr("blockswap_models.searching.scoring.map_in_order", failing)
    with pytest.raises(kind, match=message):
        search(SPACE, BUDGET, record=tmp_path / "record.jsonl", **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_search_on_a_device_that_is_not_there_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="there is no CUDA device here; use the device cpu"):
        search(SPACE, BUDGET, device="cuda", record=tmp_path / "record.jsonl", **SMALL)
    assert not list(tmp_path.iterdir())


# A score of several minibatches travels to workers too.
COMMAND = "search wrn16_1 --params 60k --score synflow --minibatches 2 --batch-size 16 --refine 0 --json".split()


def lines(record):
    return record.read_bytes().count(b"\n") if record.exists() else 0


def interrupt(record):
    """Starts a search that would take very long, presses Ctrl-C at its third score, and sees that it is gone."""
    process = psutil.Popen(
        [sys.executable, "-m", "blockswap_models", *COMMAND, "--workers=2", "--samples=5000", f"--out={record}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, and that is handed down to here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while lines(record) < 4 and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]
    workers = process.children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]
    return process.returncode, errors


def test_interrupted_and_resumed_gives_the_same_answer(tmp_path, capsys):
    """Searches that are killed are tried by the smoke of `benchmarks/search/kills.py`."""
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    status, errors = interrupt(stopped)
    assert status == 130, errors
    last = errors.splitlines()[-1]
    assert last.startswith("blockswap search: interrupted; continue with the same command and --resume")
    assert "Traceback" not in errors
    assert "leaked" not in errors
    # It goes on to a few more than there are.
    samples = str(lines(stopped) + 5)
    answers = []
    for record, more in ((stopped, ["--resume"]), (whole, [])):
        # What workers scored is gone on with by one process, and is what one process scores alone.
        assert main([*COMMAND, "--workers", "1", "--samples", samples, "--out", str(record), *more]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["top"] == answers[1]["top"]
    assert stopped.read_bytes() == whole.read_bytes()
    assert len(read_record(whole)[1]) == int(samples)
