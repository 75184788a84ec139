"""The folder of a training run: its checkpoint, its log and its results, each complete at any moment."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..data.folders import plain_name
from ..errors import BlockSwapError
from ..files import JsonLineError, append_json_line, json_line, locked, make_folder, read_json_lines, write_atomic
from ..messages import quote
from .recipes import Recipe

__all__ = ["WEIGHTS", "RunFolder", "TrainingError", "read_summary"]

# The weights that a run ended with, in its folder.
WEIGHTS = "model.safetensors"


class TrainingError(BlockSwapError):
    """A training run that cannot start, continue or be resumed; the message says what is wrong and what to use."""


class RunFolder:
    """Keeps the state of a run in a folder: `checkpoint.pth` and `log.jsonl`.

    `arguments` are what the result depends on. A run is resumed with the same ones only.
    """

    def __init__(self, path: str | Path, arguments: dict[str, Any]) -> None:
        self.path = Path(path)
        # As JSON stores them, so that values read compare equal to values written.
        self.arguments: dict[str, Any] = json.loads(json.dumps(arguments))
        self.checkpoint, self.log = self.path / "checkpoint.pth", self.path / "log.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder; raises TrainingError where one trains in it.

        The system releases the lock of a process that is killed.
        """
        make_folder(self.path, TrainingError)
        taken = f"another process trains in {quote(str(self.path))}; wait for its end, or use another folder="
        with locked(self.path / ".lock", TrainingError(taken)):
            yield

    def _kept_nothing(self, rows: list[dict[str, Any]]) -> bool:
        """Whether a run ended before there was anything to keep, as one does whose first step fails."""
        return not rows and not self.checkpoint.exists()

    def load(self, resume: bool) -> dict[str, Any] | None:
        """Reads the checkpoint; None for a new run. Raises TrainingError for a folder that does not fit."""
        (header, rows), started = self._rows(), self.log.exists() or self.checkpoint.exists()
        if started and not resume:
            if header is not None and self._kept_nothing(rows):
                return None
            raise TrainingError(f"there is a run in {quote(str(self.path))}; use resume=True, or another folder=")
        if resume and not started:
            raise TrainingError(f"there is no run to resume in {quote(str(self.path))}; leave out resume=True")
        state = self._state() if self.checkpoint.exists() else None
        if state is None and (len(rows) > 1 or (self.path / "summary.json").exists()):
            # What the run learned is not to be overwritten by one from the start.
            raise TrainingError(
                f"the run in {quote(str(self.path))} has no {self.checkpoint.name} to go on from; use another folder="
            )
        if state is not None:
            earlier = state["arguments"]
        else:
            earlier = self.arguments if header is None else {**header["recipe"], **header}
        for name, value in self.arguments.items():
            # A hyperparameter that an older version had not is as it was there, off.
            was = earlier.get(name, getattr(Recipe, name, None))
            if name == "data" and isinstance(was, str):
                # Older versions wrote a folder as it was given, perhaps with a slash at its end.
                was = plain_name(was)
            if name == "images" and was is None:
                # Older versions did not write which images they had.
                continue
            if name == "images" and was != value:
                raise TrainingError(
                    f"the images are not those that the run in {quote(str(self.path))} began with: files or classes "
                    "were added, removed or renamed; use those, or another folder="
                )
            if was != value:
                raise TrainingError(
                    f"the run in {quote(str(self.path))} has {name.replace('_', '-')} {_shown(was)}, "
                    f"not {_shown(value)}; use what it has, or another folder="
                )
        return state

    def _state(self) -> dict[str, Any]:
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if not {"arguments", "epoch", "optimizer", "state_dict"} <= state.keys():
                raise ValueError
        except (AttributeError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
            raise TrainingError(
                f"cannot read {quote(str(self.checkpoint))}: it is damaged or no checkpoint of blockswap train; "
                "use another folder="
            ) from None
        return state

    def begin(self, header: dict[str, Any], epochs: int) -> None:
        """Starts the log with its header, or drops the lines of an older log beyond a number of epochs.

        The header has all arguments, those of the recipe under `recipe`.
        """
        make_folder(self.path, TrainingError)
        earlier, rows = self._rows()
        if self._kept_nothing(rows):
            earlier = None
        kept = [earlier or header, *(row for row in rows if row["epoch"] <= epochs)]
        write_atomic(self.log, b"".join(map(json_line, kept)), TrainingError)

    def save(self, row: dict[str, Any], state: dict[str, Any]) -> None:
        """Writes the line of an epoch and then the checkpoint, so that no checkpoint is without its line."""
        try:
            with open(self.log, "ab") as file:
                append_json_line(file, row)
        except OSError as error:
            raise TrainingError(f"cannot write {quote(str(self.log))}: {error.strerror or error}") from None
        self.save_state(state)

    def save_state(self, state: dict[str, Any]) -> None:
        """Writes the checkpoint."""
        content = io.BytesIO()
        torch.save({**state, "arguments": self.arguments}, content)
        write_atomic(self.checkpoint, content.getvalue(), TrainingError)

    def _rows(self) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        try:
            # The line at which the run was killed, if any, is left out.
            rows = read_json_lines(self.log)[0] if self.log.exists() else []
        except JsonLineError as error:
            raise TrainingError(f"{error}, as in the log of a run; remove the line, or use another folder=") from None
        return (rows[0], rows[1:]) if rows and "recipe" in rows[0] else (None, rows)


def read_summary(folder: str | Path) -> dict[str, Any]:
    """Reads the summary of a finished run; raises TrainingError where there is none."""
    path = Path(folder) / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # What a network is made anew from.
        summary["model"], summary["data"], summary["input_size"], summary["num_classes"]
    except OSError:
        raise TrainingError(
            f"no finished run in {quote(str(folder))}; use the folder of a run that 'blockswap train' has ended"
        ) from None
    except (KeyError, TypeError, ValueError):
        raise TrainingError(f"{quote(str(path))} is no summary of blockswap train") from None
    return summary


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return "none" if value is None else str(value)
