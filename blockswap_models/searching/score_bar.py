"""The progress bar of a search.

This module needs the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from ..progress import new_bar

__all__ = ["ScoreBar"]


class ScoreBar:
    """The one bar of a search: its round, the best draw so far, and the time left until the end of all rounds."""

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
        if self._bar is None:
            self._bar = new_bar(total, done, unit="score")
        # Scores of a record, which took no time.
        self._bar.initial += done - self._bar.n
        self._bar.n = done
        self._bar.set_description(round_name)
        for each in results:
            self._best = max(self._best, each.score if math.isfinite(each.score) else -math.inf)
            if math.isfinite(self._best):
                # A sum of ranks is known only when all candidates are scored.
                self._bar.set_postfix_str(f"best draw {self._best:.3g}", refresh=False)
            yield each
            # It is counted once it is kept.
            self._bar.update()
