"""The record of a search: one JSON line for the search, then one for each scored candidate, written as it goes.

This module needs the standard library only, and filelock where a record is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..budget import Budget, BudgetError
from ..errors import BlockSwapError
from ..files import JsonLineError, append_json_line, locked, read_json_lines
from ..genome import Genome
from ..layout import RANDOM_WEIGHTS, Layout
from ..messages import counted, quote
from ..zoo.genomes import GENOMES
from .candidates import Candidate, ScoredDraw, candidates_of, common_cost, estimated, pareto, rank, rank_within

__all__ = [
    "FoundNetwork",
    "FrontRecord",
    "Record",
    "RecordError",
    "budget_of",
    "budget_text",
    "build_text",
    "network_of",
    "read_front",
    "read_header",
    "read_ranking",
    "read_record",
    "record_header",
    "require_new",
]

_KIND = "blockswap search"
# What scores do not depend on: the names of classes, and where the images are.
_ABOUT = "about"
# Nor on the budget as it was asked for, whose windows are beside it.
_ASKED = "asked"
# A search may go on with other versions, in which a score may round otherwise.
_VERSIONS = "versions"
# Defaults for records of older versions.
_UNSAID = {"strategy": "random", "dtype": "float32"}


class RecordError(BlockSwapError):
    """A record that cannot be read, or is of another search."""


class Record:
    """The file of one search; opens a new one, or continues one of the same search.

    `search` says all that the scores depend on. A line that was cut off when a search was killed is dropped. It is a
    context manager, which keeps other searches out of the file.
    """

    def __init__(self, path: str | Path, search: dict[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self.draws: dict[tuple[Genome, int], ScoredDraw] = {}
        try:
            if resume and not (self.path.exists() and self.path.stat().st_size):
                raise RecordError(f"no record {self.path} to resume; leave out resume=True to start one")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                taken = f"another search writes {self.path}; wait for its end, or use another record="
                lock = self.path.parent / f".{self.path.name}.lock"
                stack.enter_context(locked(lock, RecordError(taken), remove=True))
                self._open(record_header(search), resume)
                self._lock = stack.pop_all()
        except OSError as error:
            raise RecordError(f"cannot write the record {self.path}: {error.strerror}") from None

    def _open(self, header: dict[str, Any], resume: bool) -> None:
        whole = 0
        self._new = not self.path.exists()
        if not self._new and self.path.stat().st_size:
            if not resume:
                require_new(self.path)
            found, draws, whole = _read(self.path)
            if found is not None:
                _check_same(self.path, found, header)
            self.draws = {(each.genome, each.draw): each for each in draws}
        self._file: BinaryIO = open(self.path, "r+b" if whole else "wb")  # noqa: SIM115  # closed by close()
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            append_json_line(self._file, header)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._lock)
            # What a full disk did not take has been told, and is not tried again.
            with suppress(*([OSError] if kind is not None else [])):
                self._file.close()
            # A search that failed before its first score leaves no file that would block the next try.
            if self._new and not self.draws and kind is not None and issubclass(kind, Exception):
                self.path.unlink()

    def close(self) -> None:
        """Closes the file, which others may then write; what was added is on disk already."""
        try:
            self._file.close()
        finally:
            # Also where the last line could not be written, as on a full disk.
            self._lock.close()

    def add(self, scored: ScoredDraw) -> None:
        """Adds the score of one genome and draw; one that is not finite is null in the file."""
        try:
            append_json_line(self._file, scored.to_json())
        except OSError as error:
            raise RecordError(
                f"cannot write the record {self.path}: {error.strerror or error}; continue it with resume=True"
            ) from None
        self.draws[scored.genome, scored.draw] = scored


def record_header(search: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the first line of a record, from what the scores depend on."""
    return {"record": _KIND, **search}


def require_new(path: str | Path) -> None:
    """Raises RecordError if the file exists and is not empty."""
    if Path(path).is_dir():
        raise RecordError(f"{quote(str(path))} is a folder; use a file in it (record=)")
    if Path(path).exists() and Path(path).stat().st_size:
        raise RecordError(f"{path} exists; continue it with resume=True, or use another record=")


def read_header(path: str | Path) -> dict[str, Any] | None:
    """Reads what was searched for; None where the search was stopped before it had written that.

    Raises:
        RecordError: It is not a record.
    """
    try:
        return _read(Path(path))[0]
    except OSError as error:
        raise RecordError(f"cannot read the record {path}: {error.strerror}") from None


def read_record(path: str | Path) -> tuple[dict[str, Any], list[ScoredDraw]]:
    """Reads a record: what was searched for, and its scores as they came; raises RecordError."""
    try:
        header, draws, _ = _read(Path(path))
    except OSError as error:
        raise RecordError(f"cannot read the record {path}: {error.strerror}") from None
    if header is None:
        raise RecordError(f"{path} holds no search")
    return header, draws


def read_ranking(path: str | Path) -> tuple[dict[str, Any], tuple[Candidate, ...]]:
    """Reads a record: what was searched for, and its genomes from best to worst, as the search ranks them.

    Those without a finite score are last. The record may still be written to.

    Args:
        path: The record.

    Returns:
        The header of the record, and the ranking.

    Raises:
        RecordError: It is not a record, or none of its scores is finite.
    """
    header, candidates = _read_candidates(path)
    ranking = rank(candidates)
    if not math.isfinite(ranking[0].score):
        raise RecordError(f"none of the scores in {path} is finite")
    return header, tuple(ranking)


def _read_candidates(path: str | Path) -> tuple[dict[str, Any], list[Candidate]]:
    """Reads a record: what was searched for, and its genomes as they came; raises RecordError."""
    header, draws = read_record(path)
    found = candidates_of(draws)
    if len({each.genome.depths for each in found}) > 1:
        raise RecordError(f"{path} mixes genomes of several networks")
    if not found:
        raise RecordError(f"{path} holds no scores yet")
    return header, found


@dataclass(frozen=True)
class FrontRecord:
    """What the record of a search at several budgets holds.

    Attributes:
        header: What was searched for.
        cost: The cost of the front.
        budgets: The budgets.
        rankings: The genomes within each budget, from best to worst; none yet, perhaps, while the search runs.
        front: The Pareto front, from the cheapest to the dearest.
        number: Number of genomes.
    """

    header: dict[str, Any]
    cost: str
    budgets: list[Budget]
    rankings: list[list[Candidate]]
    front: tuple[Candidate, ...]
    number: int


def read_front(path: str | Path) -> FrontRecord | None:
    """Reads the record of a search at several budgets.

    Args:
        path: The record, finished or not.

    Returns:
        What it holds; None for a record of one budget.

    Raises:
        RecordError: It is not a record, or has no scores.
    """
    header, candidates = _read_candidates(path)
    if "budgets" not in header:
        return None
    try:
        windows = header["budgets"]
        asked = header.get(_ASKED) or [None] * len(windows)
        budgets = [_as_asked(*each) for each in zip(windows, asked, strict=True)]
        cost = header.get("along") or common_cost(budgets)
    except (AttributeError, TypeError, ValueError):
        raise RecordError(f"{path} has unknown budgets: {json.dumps(header['budgets'])}") from None
    candidates = estimated(candidates)
    if not any(math.isfinite(each.score) for each in candidates):
        raise RecordError(f"none of the scores in {path} is finite")
    return FrontRecord(
        header, cost, budgets, rank_within(budgets, candidates), pareto(candidates, cost), len(candidates)
    )


@dataclass(frozen=True)
class FoundNetwork:
    """A network of a record, with what its search knows of the images, so that it can be trained.

    Attributes:
        name: The network whose blocks were replaced, as timm has it.
        genome: The blocks.
        layout: Its layout, where it is of the user's own.
        swapped: Whether it is a network of timm, whose blocks are swapped.
        library: The folder of the library whose blocks were chosen, or None.
        num_classes: Classes.
        in_chans: Channels of the images.
        image_size: Side of the images in pixels.
        data: The dataset of the search; None where that was of noise or tensors, or is not known.
        data_dir: The folder of a dataset with a name.
        val_share: The share of a folder's images that is held out for validation, or None.
        val_seed: Seed of what is held out.
    """

    name: str
    genome: Genome
    layout: Layout | None
    swapped: bool
    library: str | None
    num_classes: int
    in_chans: int
    image_size: int
    data: str | None
    data_dir: str | None
    val_share: float | None
    val_seed: int


def network_of(path: str | Path, rank: int = 1) -> FoundNetwork:
    """Reads a network of a record, and what was known of the images when it was found.

    Args:
        path: The record.
        rank: Which network, 1 being the best; of several budgets, its place on the front, 1 being the cheapest.

    Raises:
        RecordError: It is no record, or has no such network.
    """
    front = read_front(path)
    header, ranking = read_ranking(path) if front is None else (front.header, front.front)
    if not 1 <= rank <= len(ranking):
        found = counted(len(ranking), "genome") + " on its front" * (front is not None)
        raise RecordError(f"{path} has {found}, of which none is number {rank}; use another rank=")
    try:
        name, (channels, height, width), classes = header["space"], header["input_size"], header["num_classes"]
        about = header.get(_ABOUT) or {}
        swapped = "network" in header
        layout = Layout(**header["layout"]) if "layout" in header and not swapped else None
        if layout is None and not swapped:
            name = Layout.named(name).name
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path} does not say which network was searched: {error}") from None
    if height != width:
        raise RecordError(f"{path} is of images of {height}x{width}; networks are trained on square ones")
    if swapped and header["network"] != RANDOM_WEIGHTS and "library" not in about:
        raise RecordError(
            f"{path} is of a {name} with weights that only its search had; use {name} and genome= in its place"
        )
    return FoundNetwork(
        name,
        ranking[rank - 1].genome,
        layout,
        swapped,
        about.get("library"),
        classes,
        channels,
        height,
        about.get("data"),
        about.get("data_dir"),
        about.get("val_share"),
        about.get("val_seed", 0),
    )


def budget_of(header: Mapping[str, Any]) -> Budget:
    """Reads the budget of a record, as it was asked for where the record says so; raises ValueError or TypeError."""
    return _as_asked(header["budget"], header.get(_ASKED))


def budget_text(header: Mapping[str, Any]) -> str:
    """Formats the budget of a record."""
    try:
        return str(budget_of(header))
    except (AttributeError, KeyError, TypeError, ValueError):
        # A budget of something that this version does not know.
        return json.dumps(header.get("budget"))


def _as_asked(windows: Any, asked: Any) -> Budget:
    """Reads a budget from its windows, as it was asked for where that is known and has these windows."""
    budget = _budget(windows)
    if isinstance(asked, dict):
        with suppress(TypeError, ValueError):
            worded = Budget(**asked)
            if worded.windows == budget.windows:
                return worded
    return budget


def _budget(windows: Any) -> Budget:
    arguments: dict[str, Any] = {name: tuple(window) for name, window in windows.items()}
    return Budget(**arguments)


def build_text(header: dict[str, Any], genome: str) -> str:
    """Returns the line of Python that makes a network found by the search of a record."""
    name, first, more = header.get("space"), "", ""
    with suppress(ValueError, LookupError, TypeError):
        if "network" in header:
            given = f"num_classes={header['num_classes']}, in_chans={header['input_size'][0]}"
            network = f"timm.create_model('{name}', {given})" if header["network"] == RANDOM_WEIGHTS else "model"
            return f"build it: blockswap_models.swap({network}, '{genome}')"
        if "layout" not in header:
            layout = Layout.named(str(name))
            first = "" if name in GENOMES else f"blockswap_models.register('{name}'); "
            own = {"num_classes": layout.num_classes, "in_chans": layout.input_size[0]}
        else:
            own = {"num_classes": header["layout"]["num_classes"], "in_chans": header["layout"]["input_size"][0]}
        wanted = {"num_classes": header["num_classes"], "in_chans": header["input_size"][0]}
        more = "".join(f", {key}={value}" for key, value in wanted.items() if value != own[key])
    return f"build it: {first}timm.create_model('{name}', genome='{genome}'{more})"


def _read(path: Path) -> tuple[dict[str, Any] | None, list[ScoredDraw], int]:
    """Reads the header, the scores and how many bytes of the file are whole lines."""
    try:
        lines, torn = read_json_lines(path)
    except JsonLineError as error:
        if error.number == 1:
            # Some other file, which is not to be changed.
            raise RecordError(f"{path} is not the record of a search") from None
        raise RecordError(
            f"line {error.number} of {path} is not a line of a record; remove it, or start another record"
        ) from None
    if not lines:
        # A search killed while it wrote its very first line; anything else is some other file.
        start = f'{{"record": "{_KIND}"'.encode()
        if start.startswith(torn[: len(start)]):
            return None, [], 0
        raise RecordError(f"{path} is not the record of a search")
    header, *rows = lines
    try:
        if header["record"] != _KIND:
            raise ValueError
        draws = [ScoredDraw.from_json(row) for row in rows]
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise RecordError(f"{path} is not the record of a search") from None
    return header, draws, path.stat().st_size - len(torn)


def _check_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = {**{key: value for key, value in _UNSAID.items() if key in wanted}, **found}
    keys = [key for key in {**wanted, **found} if key not in (_ABOUT, _ASKED, _VERSIONS)]
    differing = [key for key in keys if found.get(key) != wanted.get(key)]
    if differing:
        said = "; ".join(f"{key} {_short(found.get(key))} there, {_short(wanted.get(key))} here" for key in differing)
        raise RecordError(f"{path} is the record of another search: {said}")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    with suppress(BudgetError, TypeError, ValueError):
        if isinstance(value, dict):
            # Of costs: in the words of a budget.
            return str(_budget(value))
    return text if len(text) <= 60 else f"{text[:57]}…"
