"""The record of a search: one JSON line for the search, then one for each scored candidate, written as it goes.

This module needs the standard library only.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .budgets import Budget, Cost
from .genome import Genome

__all__ = [
    "Record",
    "RecordError",
    "Scored",
    "budget_text",
    "mean_score",
    "mean_shares",
    "median_shares",
    "read_ranking",
    "read_record",
    "require_new",
    "score_spread",
]

_KIND = "blockswap search"


class RecordError(ValueError):
    """A record that cannot be read, or is of another search."""


class Record:
    """The file of one search; opens a new one, or goes on with one of the same search.

    `search` says all that the scores depend on. A line that was cut off when a search was killed is dropped. It is a
    context manager.
    """

    def __init__(self, path: str | Path, search: dict[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self.scores: dict[tuple[str, int], dict[str, Any]] = {}
        header = {"record": _KIND, **search}
        whole = 0
        try:
            if self.path.exists() and self.path.stat().st_size:
                if not resume:
                    require_new(path)
                found, rows, whole = _read(self.path)
                if found is not None:
                    _check_same(self.path, found, header)
                self.scores = {(row["genome"], row["draw"]): row for row in rows}
            elif resume:
                raise RecordError(f"no record {self.path} to go on with; leave --resume out to start one")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(self.path, "r+b" if whole else "wb")  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise RecordError(f"cannot write the record {self.path}: {error.strerror}") from None
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write(header)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; what was added is on disk already."""
        self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """Adds the score of one candidate and draw; a score that is not finite is kept as null."""
        row = {**row, "score": row["score"] if math.isfinite(row["score"]) else None}
        if row.get("blocks") is not None and not all(map(math.isfinite, row["blocks"])):
            row["blocks"] = None
        self._write(row)
        self.scores[row["genome"], row["draw"]] = row

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def require_new(path: str | Path) -> None:
    """Raises RecordError if there is such a file with something in it."""
    if Path(path).exists() and Path(path).stat().st_size:
        raise RecordError(f"{path} exists; go on with it (--resume), or write another name (--out)")


def read_record(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads a record: what was searched for, and the rows of its scores; raises RecordError."""
    try:
        header, rows, _ = _read(Path(path))
    except OSError as error:
        raise RecordError(f"cannot read the record {path}: {error.strerror}") from None
    if header is None:
        raise RecordError(f"{path} holds no search")
    return header, rows


@dataclass(frozen=True)
class Scored:
    """A scored genome: its cost, the score of each draw of its weights, and the share of each block in the score."""

    genome: Genome
    cost: Cost
    draws: tuple[float, ...]
    shares: tuple[float, ...] | None = None

    @property
    def score(self) -> float:
        """The mean over the draws, as of `mean_score`."""
        return mean_score(self.draws)

    @property
    def spread(self) -> float:
        """By what factor the score is uncertain, as of `score_spread`."""
        return score_spread(self.draws)


def mean_score(draws: Sequence[float]) -> float:
    """The geometric mean of the draws, NaN where one is not finite: from draw to draw scores differ by factors."""
    if not all(map(math.isfinite, draws)):
        return math.nan
    if len(draws) == 1 or min(draws) <= 0:
        return sum(draws) / len(draws)
    return math.exp(sum(map(math.log, draws)) / len(draws))


def score_spread(draws: Sequence[float]) -> float:
    """The exponential of the standard error of the logarithm of the score; NaN where the draws cannot tell."""
    if len(draws) < 2 or not all(map(math.isfinite, draws)) or min(draws) <= 0:
        return math.nan
    return math.exp(statistics.stdev(map(math.log, draws)) / math.sqrt(len(draws)))


def mean_shares(draws: Iterable[Sequence[float]]) -> tuple[float, ...] | None:
    """The share of each block in the score, averaged over draws, of the scores by block of each; None without any."""
    parts = [[block / sum(blocks) for block in blocks] for blocks in draws if sum(blocks)]
    return tuple(sum(each) / len(parts) for each in zip(*parts, strict=True)) if parts else None


def median_shares(candidates: Iterable[Scored]) -> tuple[float, ...] | None:
    """The median over candidates of the share of each block; None where no candidate has shares."""
    parts = [each.shares for each in candidates if each.shares]
    return tuple(statistics.median(each) for each in zip(*parts, strict=True)) if parts else None


def read_ranking(path: str | Path) -> tuple[dict[str, Any], tuple[Scored, ...]]:
    """Reads a record: what was searched for, and its genomes from best to worst.

    Those that were refined most stand first, those without a finite score last. The record may still be written to.
    Raises RecordError, also where no score is finite.
    """
    header, rows = read_record(path)
    by_genome: dict[str, dict[int, dict[str, Any]]] = {}
    try:
        for row in rows:
            by_genome.setdefault(row["genome"], {})[row["draw"]] = row
        ranking = [_scored(genome, [draws[draw] for draw in sorted(draws)]) for genome, draws in by_genome.items()]
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise RecordError(f"{path} is not the record of a search") from None
    if len({each.genome.depths for each in ranking}) > 1:
        raise RecordError(f"{path} mixes genomes of several networks")
    if not ranking:
        raise RecordError(f"{path} holds no scores yet")
    if not any(math.isfinite(each.score) for each in ranking):
        raise RecordError(f"none of the scores in {path} is finite")
    fewest = min(len(each.draws) for each in ranking)

    def place(each: Scored) -> tuple[bool, int, float]:
        if not math.isfinite(each.score):
            return True, 0, 0.0
        # A round of refinement gives four times the draws; a draw that others still lack is no refinement.
        return False, -int(math.log(len(each.draws) / fewest, 4) + 1e-9), -each.score

    # Ties keep the order of the record.
    return header, tuple(sorted(ranking, key=place))


def budget_text(header: dict[str, Any]) -> str:
    """Writes the budget of a record as a person does."""
    windows = header.get("budget")
    try:
        return str(Budget(**{name: tuple(window) for name, window in windows.items()}))
    except (AttributeError, TypeError, ValueError):
        # A budget of something that this version does not know.
        return json.dumps(windows)


def _scored(text: str, rows: list[dict[str, Any]]) -> Scored:
    genome = Genome(text)
    scores = tuple(math.nan if row["score"] is None else float(row["score"]) for row in rows)
    shares = mean_shares([row["blocks"] for row in rows if row.get("blocks")])
    if shares is not None and len(shares) != len(genome.blocks):
        raise ValueError(f"{len(shares)} scores by block of {genome}")
    return Scored(genome, Cost(int(rows[0]["params"]), int(rows[0]["macs"])), scores, shares)


def _read(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]], int]:
    """Reads the header, the rows and how many bytes of the file are whole lines."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    lines = list(_parsed(path, content[:whole]))
    if not lines:
        # A search killed while it wrote its very first line; anything else is some other file.
        if content.startswith(f'{{"record": "{_KIND}"'.encode()[: len(content)]):
            return None, [], 0
        raise RecordError(f"{path} is not the record of a search")
    header, *rows = lines
    if header.get("record") != _KIND or not all({"genome", "draw", "score"} <= row.keys() for row in rows):
        raise RecordError(f"{path} is not the record of a search")
    return header, rows, whole


def _parsed(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RecordError(f"line {number} of {path} is not a line of a record; remove it, or start another record")
        yield value


def _check_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if differing:
        said = "; ".join(f"{key} {_short(found.get(key))} there, {_short(wanted.get(key))} here" for key in differing)
        raise RecordError(f"{path} is the record of another search: {said}")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
