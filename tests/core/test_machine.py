import os
import threading

import loky
import pytest
import torch

from blockswap_models import machine
from blockswap_models.machine import default_workers, find_device, require_writable, threads_set

# Long enough for any machine: what waits so long does not end by itself.
PATIENCE = 300


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_workers_are_as_many_as_the_processors_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert default_workers() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_workers_are_as_many_as_a_container_grants(monkeypatch):
    monkeypatch.setattr(loky, "cpu_count", lambda: 24)
    assert (default_workers(), default_workers(8), default_workers(32)) == (24, 8, 24)


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="unknown device 'tpu9'; use cpu, cuda or cuda:1"):
        find_device("tpu9")
    for name, message in {"xpu:7": "^there is no device xpu:7 here; use", "meta": "^the device meta computes"}.items():
        with pytest.raises(ValueError, match=message):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device() == torch.device("cpu")
    with pytest.raises(ValueError, match="there is no CUDA device here; use the device cpu"):
        find_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device() == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="there is no device cuda:2 here; use one of cuda:0 to cuda:1"):
        find_device("cuda:2")


def test_a_file_that_can_be_written_stays_as_it_is(tmp_path):
    there, new = tmp_path / "there", tmp_path / "new"
    there.write_text("kept")
    require_writable(there)
    require_writable(str(new))
    assert there.read_text() == "kept"
    assert not new.exists()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for path, reason in {
        tmp_path: "Is a directory",
        tmp_path / "missing" / "a": "No such file or directory",
        tmp_path / "file" / "a": "Not a directory",
        tmp_path / ("x" * 300): "File name too long",
    }.items():
        with pytest.raises(ValueError, match=f"^cannot write '.*': {reason}; use a file in a folder that exists$"):
            require_writable(path)


def test_threads_are_as_many_as_before_also_where_threads_run_beside_each_other():
    before = torch.get_num_threads()
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen, waited = [], []

    def first():
        with threads_set(1):
            first_in.set()
            waited.append(second_in.wait(PATIENCE))
        first_out.set()

    def second():
        waited.append(first_in.wait(PATIENCE))
        with threads_set(1):
            second_in.set()
            waited.append(first_out.wait(PATIENCE))
            seen.append(torch.get_num_threads())

    both = [threading.Thread(target=each, daemon=True) for each in (first, second)]
    for each in both:
        each.start()
    for each in both:
        each.join(PATIENCE)
    assert waited == [True] * 3
    assert seen == [1]
    assert torch.get_num_threads() == before
    with threads_set(before + 1):
        assert torch.get_num_threads() == before + 1
        with threads_set(None):
            assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_memory_is_kept_only_where_the_c_library_can(monkeypatch):
    calls = []
    library = type("Library", (), {"mallopt": staticmethod(lambda *option: calls.append(option))})
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: library)
    machine.keep_memory()
    assert [option for option, _ in calls] == [-1, -2, -3]
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: object())
    machine.keep_memory()
    assert len(calls) == 3
