"""Progress of long work: a bar where a person looks, on a terminal or in a notebook, and a line now and then in a log.

This module needs the standard library only; tqdm is loaded with the first bar.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from functools import cache
from typing import Any, TypeVar

from .messages import plural

__all__ = ["LogLines", "bar_words", "in_notebook", "is_watched", "new_bar", "progress_bar"]

Step = TypeVar("Step")
# Seconds between two lines of a log, and between two states of a bar.
_LOG_SECONDS, _BAR_SECONDS = 30.0, 0.5
_LINE = "{desc}{n_fmt} of {total_fmt} {unit} [{elapsed}, {remaining} left, {rate_fmt}{postfix}]"
_BAR = "{l_bar}{bar}| {n_fmt} of {total_fmt} {unit} [{elapsed}, {remaining} left, {rate_fmt}{postfix}]"


def in_notebook() -> bool:
    """Whether this is the process of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def is_watched() -> bool:
    """Whether a person sees what is written as it comes: on a terminal, or in a notebook."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def new_bar(total: float | None = None, initial: float = 0, *, unit: str = "step", disable: bool = False) -> Any:
    """Makes a progress bar that is updated by hand.

    Args:
        total: Steps in all.
        initial: Steps that are done already.
        unit: What a step is, in the singular.
        disable: Whether nothing is shown.

    Returns:
        A bar of tqdm, or lines with the same methods where nobody looks.
    """
    if not disable and not is_watched():
        return LogLines(total, initial, unit=unit)
    # tqdm shows nothing on a terminal that does not say how large it is, as those are that a program makes.
    size: dict[str, Any] = {"dynamic_ncols": True} if _has_size() else {"ncols": 80, "nrows": 24}
    return _bar_class()(
        total=total,
        initial=initial,
        unit=unit,
        bar_format=_BAR,
        disable=disable,
        mininterval=_BAR_SECONDS,
        **size,
    )


def _has_size() -> bool:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        # It is no terminal: a notebook.
        return True


@cache
def _bar_class() -> Any:
    """Makes a bar of tqdm, for a terminal or a notebook, that speaks of its steps as a log does."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        @property
        def format_dict(self) -> dict[str, Any]:
            own = super().format_dict
            since = (own["n"] - own["initial"]) / own["elapsed"] if own["elapsed"] else None
            return {**own, **bar_words(own["n"], own["total"], own["unit"], own["rate"] or since)}

    return Bar


def bar_words(number: float, total: float | None, unit: str, rate: float | None) -> dict[str, Any]:
    """Writes the numbers of a bar.

    Args:
        number: Steps that are done.
        total: Steps in all, where their number is known.
        unit: What a step is, in the singular.
        rate: Steps a second, where it is known.

    Returns:
        What tqdm calls `n_fmt`, `total_fmt`, `unit` and `rate_fmt`: numbers in full, and steps a second, or seconds a
        step where they are slow.
    """
    speed = f"? {plural(unit)}/s"
    if rate:
        speed = f"{_digits(rate)} {plural(unit)}/s" if rate >= 1 else f"{_digits(1 / rate)} s/{unit}"
    return {
        "n_fmt": f"{number:,}",
        "total_fmt": "?" if total is None else f"{total:,}",
        "unit": unit if total == 1 else plural(unit),
        "rate_fmt": speed,
    }


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def progress_bar(steps: Iterable[Step], unit: str, total: int | None = None) -> Iterator[Step]:
    """Wraps steps, so that they are counted as they are taken; `total` is for steps without a length."""
    with new_bar(len(steps) if isinstance(steps, Sized) else total, unit=unit) as bar:
        for step in steps:
            yield step
            bar.update()


class LogLines:
    """What a bar of tqdm is for a log: it writes a whole line every so many seconds, and one at the end."""

    def __init__(
        self,
        total: float | None = None,
        initial: float = 0,
        *,
        unit: str = "step",
        seconds: float = _LOG_SECONDS,
    ) -> None:
        self.n, self.initial, self.total = initial, initial, total
        self.unit, self.seconds = unit, seconds
        self._description = self._postfix = ""
        self._start = self._written = time.monotonic()
        self._last = ""

    def __enter__(self) -> LogLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_description(self, text: str = "", refresh: bool = True) -> None:
        """Sets what is said before the numbers."""
        self._description = text

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """Sets what is said after the numbers."""
        self._postfix = text

    def update(self, steps: float = 1) -> None:
        """Counts steps, and writes a line where the last is long enough ago."""
        self.n += steps
        if time.monotonic() - self._written >= self.seconds:
            self._write()

    def close(self) -> None:
        """Writes the last line, unless it has been written."""
        self._write()

    def _write(self) -> None:
        from tqdm import tqdm

        # It takes an unknown number, and words of any name, which its types do not say.
        total: Any = self.total
        elapsed = time.monotonic() - self._start
        rate = (self.n - self.initial) / elapsed if elapsed else None
        words: dict[str, Any] = dict(bar_words(self.n, total, self.unit, rate))
        line = tqdm.format_meter(
            self.n,
            total,
            elapsed,
            prefix=self._description and f"{self._description}: ",
            postfix=self._postfix,
            initial=self.initial,
            bar_format=_LINE,
            **words,
        )
        state = f"{self.n}/{self._description}/{self._postfix}"
        # A program may have no standard error, and Python would print it among the answers then.
        if state != self._last and sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)
        self._written, self._last = time.monotonic(), state
