"""What benchmarks/search/library_proof.py trains."""

from argparse import Namespace

import pytest
import torch

from benchmarks.lib.images import noise_images
from benchmarks.search import library_proof
from benchmarks.search.library_proof import SMOKE, make_parser, run, teacher_of
from blockswap_models.nets.library import LibraryError


def options_of(folder, **changed):
    options = {**vars(make_parser().parse_args(["--smoke"])), **SMOKE, "out": str(folder), **changed}
    return Namespace(**options)


@pytest.mark.usefixtures("one_thread")
def test_students_of_any_genome_are_trained_whole(tmp_path, capsys, monkeypatch):
    tasks = []

    class Task(library_proof.AttentionTransferTask):
        def __init__(self, student, *arguments, **keywords):
            super().__init__(student, *arguments, **keywords)
            tasks.append((student, self.teacher))

    monkeypatch.setattr(library_proof, "AttentionTransferTask", Task)
    with torch.random.fork_rng(devices=[]):
        run(options_of(tmp_path, epochs=1))
    assert len(tasks) >= 2
    for student, teacher in tasks:
        assert all(each.requires_grad for each in student.parameters())
        assert not any(each.requires_grad for each in teacher.parameters())
    # The network's own block is not in the library, and is counted all the same.
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("fisher "))
    assert "S" in line.split()[-1].replace("/", ",").split(",")


def test_what_cannot_work_is_refused_before_the_library_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(library_proof, "train_library", lambda *_, **__: pytest.fail("it is trained"))
    for name in ("batch_size", "library_batch_size"):
        with pytest.raises(ValueError, match=f"8 images make no minibatch; use a smaller --{name.replace('_', '-')}"):
            run(options_of(tmp_path, **{name: 9}))
    with pytest.raises(ValueError, match="no file and no entry with weights 'nonesuch'"):
        teacher_of(options_of(tmp_path, smoke=False, teacher="nonesuch"), noise_images(4), torch.device("cpu"))


@pytest.mark.usefixtures("one_thread")
def test_students_have_the_compute_of_the_first_and_meet_both_budgets(tmp_path, capsys):
    with torch.random.fork_rng(devices=[]):
        run(options_of(tmp_path, list=True, epochs=40, macs="..26m"))
    lines = capsys.readouterr().out.splitlines()
    (limit,) = (float(line.split()[3]) for line in lines if line.startswith("120k, ..26m MACs: "))
    rows = [line.split() for line in lines if line.startswith(("fisher", "library "))]
    assert [row[0] for row in rows[:3]] == ["fisher", "fisher-lib", "fisher-lib"]
    for *start, params, macs, epochs, total, error, _ in rows:
        assert 117_000 <= int(params.replace(",", "")) <= 123_000
        assert float(macs) <= 26
        assert error == "-"
        if "long" in start or start == ["fisher"]:
            assert epochs == "40"
        elif int(epochs):
            assert float(total) <= limit


@pytest.mark.usefixtures("one_thread")
def test_a_library_of_smaller_images_is_another_one(tmp_path):
    with torch.random.fork_rng(devices=[]):
        run(options_of(tmp_path, list=True, image_size=16))
        with pytest.raises(LibraryError, match="has data 'white noise at 16 px', not 'white noise'; use what it has"):
            run(options_of(tmp_path, list=True))
