"""Progress of long work: a bar where a person looks, on a terminal or in a notebook, and a line now and then in a log.

This module needs the standard library only; tqdm is loaded with the first bar.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

__all__ = ["LogLines", "in_notebook", "is_watched", "new_bar", "progress_bar"]

Step = TypeVar("Step")
# Seconds between two lines of a log, and between two states of a bar.
_LOG_SECONDS, _BAR_SECONDS = 30.0, 0.5
# Steps a second also where a step takes longer than one.
_LINE = "{desc}{n_fmt} of {total_fmt}{unit} [{elapsed}, {remaining} left, {rate_noinv_fmt}{postfix}]"
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
# Numbers below are whole: 12, not 12.0.
_LARGE = 1000


def in_notebook() -> bool:
    """Whether this is the process of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def is_watched() -> bool:
    """Whether a person sees what is written as it comes: on a terminal, or in a notebook."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def new_bar(
    total: float | None = None, initial: float = 0, *, unit: str = "it", unit_scale: bool = False, disable: bool = False
) -> Any:
    """Makes a progress bar that is updated by hand.

    Args:
        total: Steps in all.
        initial: Steps that are done already.
        unit: What a step is.
        unit_scale: Whether large numbers are shortened.
        disable: Whether nothing is shown.

    Returns:
        A bar of tqdm, or lines with the same methods where nobody looks.
    """
    unit_scale = unit_scale and (total is None or total >= _LARGE)
    if not disable and not is_watched():
        return LogLines(total, initial, unit=unit, unit_scale=unit_scale)
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit_scale,
        disable=disable,
        mininterval=_BAR_SECONDS,
        dynamic_ncols=True,
        bar_format=None if total is None else _BAR,
    )


def progress_bar(steps: Iterable[Step], unit: str) -> Iterator[Step]:
    """Wraps steps, so that they are counted as they are taken."""
    with new_bar(len(steps) if isinstance(steps, Sized) else None, unit=f" {unit}") as bar:
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
        unit: str = "it",
        unit_scale: bool = False,
        seconds: float = _LOG_SECONDS,
    ) -> None:
        self.n, self.initial, self.total = initial, initial, total
        self.unit, self.unit_scale, self.seconds = unit, unit_scale, seconds
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

        # It takes an unknown number too, which its types do not say.
        total: Any = self.total
        line = tqdm.format_meter(
            self.n,
            total,
            time.monotonic() - self._start,
            prefix=self._description and f"{self._description}: ",
            unit=self.unit,
            unit_scale=self.unit_scale,
            postfix=self._postfix,
            initial=self.initial,
            bar_format=_LINE,
        )
        state = f"{self.n}/{self._description}/{self._postfix}"
        if state != self._last:
            print(line, file=sys.stderr, flush=True)
        self._written, self._last = time.monotonic(), state
