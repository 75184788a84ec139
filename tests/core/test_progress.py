"""Progress: a bar where a person looks, whole lines in a log."""

import io
import os
import sys
from types import SimpleNamespace

from blockswap_models.progress import LogLines, bar_words, in_notebook, new_bar, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress_bar(iter("abc"), "letter")) == list("abc")
    with new_bar(3, unit="letter") as bar:
        bar.set_description("reading")
        bar.update(3)
    written = sys.stderr.getvalue()
    assert "\r" in written
    assert "reading: 100%|" in written
    assert "| 3 of 3 letters [" in written


def test_a_terminal_without_a_size_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    assert list(progress_bar(iter("abc"), "letter", 3)) == list("abc")
    assert "100%|" in sys.stderr.getvalue()
    assert max(map(len, sys.stderr.getvalue().splitlines())) <= 80


def test_a_bar_says_how_many_a_second_or_how_long_each():
    def told(number, total, rate, unit="minibatch"):
        words = bar_words(number, total, unit, rate)
        return "{n_fmt} of {total_fmt} {unit}, {rate_fmt}".format(**words)

    assert told(1, 1, 9.76) == "1 of 1 minibatch, 9.76 minibatches/s"
    assert told(3, 12, 0.1234) == "3 of 12 minibatches, 8.1 s/minibatch"
    assert told(8, 1_281_167, 2500, "image") == "8 of 1,281,167 images, 2,500 images/s"
    assert told(0, None, None, "score") == "0 of ? scores, ? scores/s"


def test_a_log_has_whole_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with LogLines(4, unit="score", seconds=0) as bar:
        for round_name in ("scoring", "refining"):
            bar.set_description(round_name)
            for number in range(2):
                bar.set_postfix_str(f"best {number}", refresh=False)
                bar.update()
    lines = sys.stderr.getvalue().splitlines()
    assert "\r" not in sys.stderr.getvalue()
    assert [line.split(" [")[0] for line in lines] == [
        "scoring: 1 of 4 scores",
        "scoring: 2 of 4 scores",
        "refining: 3 of 4 scores",
        "refining: 4 of 4 scores",
    ]
    assert lines[-1].endswith("best 1]")


def test_a_log_has_one_line_of_what_is_quick(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress_bar([1, 2, 3], "round")) == [1, 2, 3]
    assert list(progress_bar(iter("ab"), "minibatch", 2)) == ["a", "b"]
    assert [line.split(" [")[0] for line in sys.stderr.getvalue().splitlines()] == [
        "3 of 3 rounds",
        "2 of 2 minibatches",
    ]


def test_nothing_is_written_where_it_is_off(monkeypatch):
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with new_bar(2, disable=True) as bar:
            bar.update()
        assert stream.getvalue() == ""


def test_a_notebook_is_known_by_its_kernel(monkeypatch):
    assert not in_notebook()
    for config, known in (({"IPKernelApp": {}}, True), ({}, False)):
        ipython = SimpleNamespace(get_ipython=lambda config=config: SimpleNamespace(config=config))
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        assert in_notebook() == known
