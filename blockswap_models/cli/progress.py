"""Progress bars: a moving one on a terminal, a line now and then in a log file."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["ScoreBar", "progress_bar"]

Step = TypeVar("Step")


def progress_bar(steps: Iterable[Step], unit: str) -> Iterable[Step]:
    """Wraps steps, so that they are counted as they are taken."""
    from tqdm import tqdm

    bar: Iterable[Step] = tqdm(steps, unit=unit, mininterval=_interval(), dynamic_ncols=True)
    return bar


def _interval() -> float:
    return 0.5 if sys.stderr.isatty() else 30


class ScoreBar:
    """The one bar of a search: its round, the best score so far, and the time left until the end of all rounds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._best = -math.inf

    def __enter__(self) -> ScoreBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, results: Iterable[Any], total: int, done: int, round_name: str) -> Iterator[Any]:
        """Wraps the scores of a round, as `progress` of `search`."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, initial=done, unit="score", mininterval=_interval(), dynamic_ncols=True)
        # Scores of a record, which took no time.
        self._bar.initial += done - self._bar.n
        self._bar.n = done
        self._bar.set_description(round_name)
        for each in results:
            self._best = max(self._best, each.score if math.isfinite(each.score) else -math.inf)
            self._bar.set_postfix_str(f"best {self._best:.3g}", refresh=False)
            self._bar.update()
            yield each
