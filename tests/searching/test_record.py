"""The record of a search: written as it goes, taken up again, never taken for something else."""

import errno
import functools
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from blockswap_models import Cost, Genome, Layout, SearchSpace
from blockswap_models.searching import record as record_module
from blockswap_models.searching.candidates import ScoredDraw
from blockswap_models.searching.record import Record, RecordError, build_text, read_record, require_new
from blockswap_models.searching.scoring import describe_space

SEARCH = {"space": "blockswap_wrn16_1", "seed": 0, "budget": {"params": [390000.0, None]}, "data": "1/f “noise”"}
# As a version before wrote them: `draws_of` must read these, and write them again byte for byte.
ROWS = [
    {"genome": "2xS", "params": 175066, "macs": 20, "draw": 0, "score": 1.5, "blocks": [0.5, 1.0]},
    {"genome": "2xS", "params": 175066, "macs": 20, "draw": 1, "score": 2.25, "latency": 0.5, "blocks": [0.25, 2.0]},
    {"genome": "S,G4", "params": 171000, "macs": 19, "draw": 0, "score": 0.1 + 0.2},
]


def draws_of(rows: list[dict]) -> list[ScoredDraw]:
    return [ScoredDraw.from_json(row) for row in rows]


def write(path: Path, rows: list[dict] = ROWS, search: dict = SEARCH, resume: bool = False) -> None:
    with Record(path, search, resume) as record:
        for each in draws_of(rows):
            record.add(each)


def refusal(path: Path, search: dict = SEARCH, resume: bool = True) -> str:
    """Says why a record is refused, in one line, and that the file is as it was."""
    before = path.read_bytes() if os.path.isfile(path) else None
    with pytest.raises(RecordError) as caught:
        Record(path, search, resume)
    assert (path.read_bytes() if os.path.isfile(path) else None) == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path)
    header, rows = read_record(path)
    assert header == {"record": "blockswap search", **SEARCH}
    assert rows == draws_of(ROWS)
    assert read_record(str(path)) == (header, rows)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [header, *ROWS]


def test_each_score_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Record(path, SEARCH) as record:
        for number, each in enumerate(draws_of(ROWS)):
            assert read_record(path)[1] == draws_of(ROWS[:number])
            record.add(each)
            assert record.draws[each.genome, each.draw] == each
    assert read_record(path)[1] == draws_of(ROWS)


def test_a_record_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, ROWS[:2])
    with Record(path, SEARCH, resume=True) as record:
        assert list(record.draws.values()) == draws_of(ROWS[:2])
        record.add(draws_of(ROWS)[2])
    assert read_record(path)[1] == draws_of(ROWS)


def test_a_record_cut_off_anywhere_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path)
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for length in {*range(1, len(whole), 7), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}:
        path.write_bytes(whole[:length])
        complete = max(whole[:length].count(b"\n") - 1, 0)
        with Record(path, SEARCH, resume=True) as record:
            assert list(record.draws.values()) == draws_of(ROWS[:complete])
            for each in draws_of(ROWS[complete:]):
                record.add(each)
        assert path.read_bytes() == whole


def test_a_line_cut_off_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert read_record(path)[1] == draws_of(ROWS[:2])
    # It is gone from the file as soon as the record is gone on with.
    write(path, [], resume=True)
    assert path.read_bytes() == whole[: whole[:-5].rindex(b"\n") + 1]


def test_a_record_cut_off_in_its_first_line_holds_no_search(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordError) as caught:
        read_record(path)
    assert str(caught.value) == f"{path} holds no search"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed 0 there, 1 here"),
        (
            {"seed": 1, "space": "blockswap_wrn40_2"},
            'space "blockswap_wrn16_1" there, "blockswap_wrn40_2" here; seed 0',
        ),
        ({"budget": {"params": [1, 2]}}, "budget params from 390,000 there, params 1 to 2 here"),
        ({"draws": 4}, "draws null there, 4 here"),
        ({"data": "x" * 99}, f'data "1/f “noise”" there, "{"x" * 56}… here'),
    ],
)
def test_the_record_of_another_search_is_refused(tmp_path: Path, changes: dict, said: str) -> None:
    path = tmp_path / "a.jsonl"
    write(path)
    assert refusal(path, {**SEARCH, **changes}).startswith(f"{path} is the record of another search: {said}")


def test_a_record_that_says_more_is_of_another_search(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, search={**SEARCH, "draws": 2})
    assert refusal(path) == f"{path} is the record of another search: draws 2 there, null here"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a diary", "{path} is not the record of a search"),
        (b'{"record": "blockswap bench', "{path} is not the record of a search"),
        (b'{"a": 1}\n', "{path} is not the record of a search"),
        (b'{"record": "blockswap search"}\n{"genome": "S"}\n', "{path} is not the record of a search"),
        (b"dear diary\n", "{path} is not the record of a search"),
        (b"[1, 2]\n", "{path} is not the record of a search"),
        (b"\xff\x00\n", "{path} is not the record of a search"),
        (
            b'{"record": "blockswap search"}\n\n',
            "line 2 of {path} is not a line of a record; remove it, or start another record",
        ),
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert refusal(path) == message.format(path=path)
    with pytest.raises(RecordError) as caught:
        read_record(path)
    assert str(caught.value) == message.format(path=path)
    assert path.read_bytes() == content


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content in (b"dear diary\n", b"x", b'{"record": "blockswap search"}\n'):
        path.write_bytes(content)
        said = f"{path} exists; continue it with resume=True, or use another record="
        assert refusal(path, resume=False) == said


def test_a_new_record_can_be_asked_for_beforehand(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    require_new(path)
    path.touch()
    require_new(path)
    write(path)
    with pytest.raises(RecordError, match=r"a\.jsonl exists; continue it with resume=True, or use another record=$"):
        require_new(str(path))


def test_an_empty_file_is_a_new_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    assert refusal(path) == f"no record {path} to resume; leave out resume=True to start one"
    write(path)
    assert read_record(path)[1] == draws_of(ROWS)


@pytest.mark.parametrize("resume", [True, False])
def test_a_record_is_written_by_one_search_at_a_time(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "a.jsonl"
    with Record(path, SEARCH) as record:
        assert refusal(path, resume=resume) == f"another search writes {path}; wait for its end, or use another record="
        record.add(draws_of(ROWS)[0])
        assert read_record(path)[1] == draws_of(ROWS[:1])
    write(path, ROWS[1:], resume=True)
    assert read_record(path)[1] == draws_of(ROWS)
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_record_whose_search_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def search() -> None:
        with Record(path, SEARCH) as record:
            record.add(draws_of(ROWS)[0])
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=search)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    write(path, ROWS[1:], resume=True)
    assert read_record(path)[1] == draws_of(ROWS)


def test_a_record_in_a_folder_without_locks_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    write(tmp_path / "a.jsonl")
    assert read_record(tmp_path / "a.jsonl")[1] == draws_of(ROWS)


def test_nothing_to_go_on_with(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a.jsonl"
    assert refusal(path) == f"no record {path} to resume; leave out resume=True to start one"
    assert not path.parent.exists()
    with pytest.raises(RecordError) as caught:
        read_record(path)
    assert str(caught.value) == f"cannot read the record {path}: No such file or directory"


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_kept_as_null(tmp_path: Path, score: float) -> None:
    path = tmp_path / "a.jsonl"
    with Record(path, SEARCH) as record:
        record.add(ScoredDraw(Genome("2xS"), Cost(1, 2), 0, score, (1.0, score)))
    (row,) = map(json.loads, path.read_text().splitlines()[1:])
    assert row == {"genome": "2xS", "params": 1, "macs": 2, "draw": 0, "score": None, "blocks": None}
    (read,) = read_record(path)[1]
    assert math.isnan(read.score)
    assert (read.blocks, read.shares) == (None, None)
    assert "NaN" not in path.read_text(encoding="utf-8")
    assert "Infinity" not in path.read_text(encoding="utf-8")
    with Record(path, SEARCH, resume=True) as record:
        assert math.isnan(record.draws[Genome("2xS"), 0].score)


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "a.jsonl"
    write(path)
    assert read_record(path)[1] == draws_of(ROWS)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "a.jsonl"
    assert refusal(below, resume=False).startswith(f"cannot write the record {below}: ")
    long = tmp_path / ("x" * 300)
    assert refusal(long, resume=False) == f"cannot write the record {long}: File name too long"
    assert refusal(tmp_path) == f"cannot write the record {tmp_path}: Is a directory"
    with pytest.raises(RecordError) as caught:
        read_record(tmp_path)
    assert str(caught.value) == f"cannot read the record {tmp_path}: Is a directory"


@pytest.mark.parametrize("written", [0, 3])
def test_a_disk_that_fills_during_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    path = tmp_path / "a.jsonl"
    rows = draws_of(ROWS)

    def fill(file: BinaryIO, value: object) -> None:
        # What does not fit stays in the buffer of the file, and is tried again as it is closed.
        file.write(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def search() -> None:
        with Record(path, SEARCH) as record:
            for each in rows[:written]:
                record.add(each)
            monkeypatch.setattr(record_module, "append_json_line", fill)
            monkeypatch.setattr(record._file, "close", functools.partial(close_in_vain, record._file.close))
            record.add(rows[0])

    with pytest.raises(RecordError) as caught:
        search()
    assert str(caught.value) == (
        f"cannot write the record {path}: No space left on device; continue it with resume=True"
    )
    monkeypatch.undo()
    # The exception, which has the frames of the search, does not keep others out.
    assert path.exists() == bool(written)
    write(path, resume=bool(written))


def close_in_vain(close: Callable[[], None]) -> None:
    close()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("classes", [7, 5])
def test_a_layout_of_ones_own_is_built_for_the_classes_of_the_search(classes: int) -> None:
    layout = Layout.custom("of_my_own", (1, 1, 1), (8, 16, 32), num_classes=7)
    space = SearchSpace(layout, num_classes=classes, in_chans=1)
    header = json.loads(json.dumps(describe_space(space)))
    more = "" if classes == 7 else ", num_classes=5"
    assert build_text(header, "S/S/S") == (
        f"build it: timm.create_model('of_my_own', genome='S/S/S'{more}, in_chans=1)"
    )
