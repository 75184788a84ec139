import io
import json
import os
import subprocess
import sys

import pytest

from blockswap_models.cli.streams import make_writable


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", "4.21 ± 0.13 … × β é 語"),
        ("cp866", "4.21 +- 0.13 ... x beta e ?"),
        ("latin-1", "4.21 ± 0.13 ... × beta é ?"),
        ("ascii", "4.21 +- 0.13 ... x beta e ?"),
    ],
)
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_letters_that_an_encoding_lacks_are_written_in_plain_ones(encoding, written, errors):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
    make_writable(stream)
    print("4.21 ± 0.13 … × β é 語", end="", file=stream, flush=True)
    assert stream.buffer.getvalue().decode(encoding) == written


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp866"])
def test_names_of_files_are_written_as_they_are(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="surrogateescape")
    make_writable(stream)
    print(b"caf\xe9.png".decode("ascii", "surrogateescape"), end="", file=stream, flush=True)
    assert stream.buffer.getvalue() == b"caf\xe9.png"


def test_streams_that_have_their_own_way_stay():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    make_writable(stream, io.StringIO())
    assert stream.errors == "backslashreplace"


def test_a_program_without_standard_output_or_error_says_nothing_there(tmp_path):
    record = tmp_path / "a.jsonl"
    options = ["--params", "60k", "--samples", "2", "--refine", "0", "--batch-size", "2", "--workers", "1", "--json"]
    code = (
        "import os, sys, runpy\n"
        "closed = sys.argv.pop(1)\n"
        "setattr(sys, closed, None)\n"
        "runpy.run_module('blockswap_models', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    search = ["search", "wrn16_1", *options, "--out", str(record)]
    done = subprocess.run([*command, "stderr", *search], capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)["network"] == "blockswap_wrn16_1"
    done = subprocess.run([*command, "stdout", "show", str(record)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_standard_output_of_a_terminal_with_another_encoding():
    code = "from blockswap_models.cli.streams import make_writable\nmake_writable()\nprint('±')"
    environment = {**os.environ, "PYTHONIOENCODING": "cp866"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("+-\n", "")
