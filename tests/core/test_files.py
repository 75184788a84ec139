"""Files written whole or not at all, and files of JSON lines of which the last may be cut off."""

import errno
import os

import pytest
from filelock import FileLock

import blockswap_models.files
from blockswap_models.files import (
    JsonLineError,
    append_json_line,
    json_line,
    locked,
    make_folder,
    read_json_lines,
    write_atomic,
)


class OwnError(ValueError):
    pass


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_raises_what_the_caller_says(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blockswap_models.files.os, call, fail)
    for kind in (OSError, OwnError):
        arguments = [] if kind is OSError else [kind]
        with pytest.raises(kind, match=r"^cannot write '.*file': No space left on device$"):
            write_atomic(str(path), b"new", *arguments)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"file": b"old"}


def test_a_folder_that_is_none_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OwnError, match=r"^cannot write '.*file/below': Not a directory$"):
        write_atomic(tmp_path / "file" / "below", b"new", OwnError)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OwnError, match=r"^cannot make the folder '.*file/c': Not a directory$"):
        make_folder(tmp_path / "file" / "c", OwnError)


def test_lines_come_back_wherever_the_last_was_cut_off(tmp_path):
    path, rows = tmp_path / "a.jsonl", [{"a": 0.1 + 0.2}, {"b": "“c”\n"}, {}]
    with open(path, "wb") as file:
        for number, row in enumerate(rows, start=1):
            append_json_line(file, row)
            assert read_json_lines(path) == (rows[:number], b"")
    whole = path.read_bytes()
    assert whole == b"".join(map(json_line, rows))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found, torn = read_json_lines(path)
        assert found == rows[: whole[:length].count(b"\n")]
        assert b"".join(map(json_line, found)) + torn == whole[:length]


@pytest.mark.parametrize("line", [b"[1]", b"", b"a diary", b"\xff\x00"])
def test_a_whole_line_of_something_else_is_told(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n{}\n")
    with pytest.raises(JsonLineError, match=r"^line 2 of .*a\.jsonl is not a JSON object$") as caught:
        read_json_lines(path)
    assert caught.value.number == 2


def test_what_json_does_not_know_is_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"a": float("nan")})


def test_a_lock_is_kept_while_its_file_is_removed(tmp_path, monkeypatch):
    path, let_in = tmp_path / "lock", []
    release = FileLock.release

    def released(lock, *arguments, **named):
        # Another process comes at this instant: after the release, and before what follows it.
        release(lock, *arguments, **named)
        if not let_in:
            let_in.append(locked(path, OwnError("taken"), remove=True))
            let_in[0].__enter__()

    with locked(path, OwnError("taken"), remove=True):
        monkeypatch.setattr(FileLock, "release", released)
    monkeypatch.setattr(FileLock, "release", release)
    with pytest.raises(OwnError), locked(path, OwnError("taken"), remove=True):
        pass
    let_in[0].__exit__(None, None, None)
    assert not list(tmp_path.iterdir())
    with locked(path, OwnError("taken"), remove=True):
        pass
