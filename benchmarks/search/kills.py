"""Whether a search survives kills: killed (-9) at random moments and resumed, it is to end as if never touched.

    python -m benchmarks.search.kills --kills 20 --samples 1000

One search runs undisturbed. The same search runs again, is killed so many times, and resumed with `--resume` each time.
Checked: after each kill, that the record is byte for byte the start of the undisturbed one, but for a last line that
was cut off, and that no process of the search is left a few seconds later; at the end, that the record is byte for byte
the undisturbed one and the answer printed is the same. Exits with 1 where one of these fails.

The moments are uniform over the search: each is the first of as many random moments as kills are left, in the time that
the rest is expected to take. Of five kills, one is in the start-up, before any score can be written, and one at the
instant when the record grows. Where the search comes to its end first, the kills that are left hit a search that finds
nothing left to do. Needs /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.lib.report import processor

# What the kills in turn aim at.
AIMS = ("start-up", "writing", "any", "any", "any")


class Search:
    """A search by the command line, in a process group of its own."""

    def __init__(self, arguments: list[str], record: Path) -> None:
        self.record = record
        self.log = record.with_suffix(".log")
        # A search killed before it opened its record leaves nothing to go on with.
        resume = ["--resume"] if size(record) else []
        command = [sys.executable, "-m", "blockswap_models", "search", *arguments, "--out", str(record), *resume]
        self.began = time.monotonic()
        with open(self.log, "wb") as log, open(self.answer_path, "wb") as answer:
            self.process = subprocess.Popen(command, stdout=answer, stderr=log, start_new_session=True)

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def answer_path(self) -> Path:
        return self.record.with_suffix(".json")

    def running(self) -> bool:
        """Says whether it still runs; raises RuntimeError where it failed."""
        code = self.process.poll()
        if code:
            raise RuntimeError(f"the search ended with {code}:\n{self.log.read_text()}")
        return code is None

    def wait(self, seconds: float) -> bool:
        """Waits so long; returns whether it still runs."""
        until = self.began + seconds
        while time.monotonic() < until:
            if not self.running():
                return False
            time.sleep(0.002)
        return self.running()

    def wait_for_growth(self) -> bool:
        """Waits until something is written to the record; returns whether it still runs."""
        before = size(self.record)
        while size(self.record) == before:
            if not self.running():
                return False
            time.sleep(0.0001)
        return self.running()

    def members(self) -> list[int]:
        """The living processes of the group: the search, and workers also when it is gone."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    state, _, group = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
                except OSError:
                    # It ended meanwhile.
                    continue
                if int(group) == self.process.pid and state not in "ZX":
                    found.append(int(folder.name))
        return found

    def kill(self, patience: float) -> tuple[int, float, list[int]]:
        """Kills the search; returns how many workers it had, when they were gone, and which are left."""
        workers = len(self.members()) - 1
        self.process.kill()
        self.process.wait()
        killed = time.monotonic()
        while (left := self.members()) and time.monotonic() - killed < patience:
            time.sleep(0.05)
        return workers, time.monotonic() - killed, left

    def finish(self) -> dict[str, object]:
        """Waits for the end; returns the answer printed, less the name of the record."""
        while self.running():
            time.sleep(0.01)
        return {key: value for key, value in json.loads(self.answer_path.read_text()).items() if key != "record"}


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def whole_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def undisturbed(arguments: list[str], record: Path) -> tuple[dict[str, object], float, float]:
    """Runs the search to its end; returns its answer, the seconds up to its first score, and those after it."""
    with Search(arguments, record) as search:
        # The first line says what is searched for.
        while whole_lines(record) < 2 and search.running():
            time.sleep(0.01)
        start_up = time.monotonic() - search.began
        answer = search.finish()
    return answer, start_up, time.monotonic() - search.began - start_up


def moment_of(aim: str, start_up: float, rest: float, left: int, draws: random.Random) -> float:
    """When to kill, in seconds from the start, where `rest` is what scoring is still to take."""
    if aim in ("start-up", "finished"):
        return start_up * draws.random()
    # The least of `left` numbers drawn uniformly.
    share = 1 - draws.random() ** (1 / left)
    return start_up + rest * share if aim == "writing" else (start_up + rest) * share


def first_difference(one: bytes, other: bytes) -> str:
    for number, (a, b) in enumerate(zip(one.splitlines(), other.splitlines(), strict=False), start=1):
        if a != b:
            return f"line {number}:\n  {a.decode(errors='replace')}\n  {b.decode(errors='replace')}"
    return f"{len(one):,} and {len(other):,} bytes, one the start of the other"


def torture(options: argparse.Namespace, folder: Path) -> list[str]:
    """Runs the benchmark; returns what failed."""
    draws = random.Random(options.seed)
    arguments = [
        *(options.network, "--params", options.params, "--samples", str(options.samples)),
        *("--batch-size", str(options.batch_size), "--refine", str(options.refine)),
        *("--workers", str(options.workers), "--seed", "0", "--json"),
    ]
    print(f"blockswap search {' '.join(arguments)}")
    whole, stopped = folder / "whole.jsonl", folder / "stopped.jsonl"
    expected, start_up, scoring = undisturbed(arguments, whole)
    reference = whole.read_bytes()
    lines = reference.count(b"\n")
    print(f"undisturbed: {lines - 1} scores, {start_up:.1f} s up to the first, {scoring:.1f} s more", flush=True)
    print("kill  aim       after s  lines kept  written  cut off  workers  gone after s")
    failures: list[str] = []
    kept = kills = cut = early = most_workers = 0
    longest = 0.0
    while kills < options.kills:
        aim = AIMS[kills % len(AIMS)] if kept < lines else "finished"
        rest = scoring * (lines - kept) / lines
        with Search(arguments, stopped) as search:
            alive = search.wait(moment_of(aim, start_up, rest, options.kills - kills, draws))
            if not alive or (aim == "writing" and not search.wait_for_growth()):
                early += 1
                if early > options.kills:
                    failures.append(f"the search ended {early} times before it was killed; take more --samples")
                    break
                kept = whole_lines(stopped)
                continue
            moment = time.monotonic() - search.began
            workers, gone, survivors = search.kill(options.patience)
        kills += 1
        found = stopped.read_bytes() if stopped.exists() else b""
        written, kept = found.count(b"\n") - kept, found.count(b"\n")
        torn = bool(found) and not found.endswith(b"\n")
        cut += torn
        most_workers, longest = max(most_workers, workers), max(longest, gone)
        print(
            f"{kills:4d}  {aim:8s}  {moment:7.2f}  {kept:10d}  {written:7d}  {'yes' if torn else 'no':>7s}  "
            f"{workers:7d}  {gone:12.2f}",
            flush=True,
        )
        if not reference.startswith(found[: found.rfind(b"\n") + 1]):
            failures.append(f"after kill {kills} the record is not the start of the undisturbed one")
        if survivors:
            failures.append(f"{options.patience:g} s after kill {kills}, {len(survivors)} processes were left")
            for survivor in survivors:
                with suppress(ProcessLookupError):
                    os.kill(survivor, signal.SIGKILL)
    with Search(arguments, stopped) as search:
        answer = search.finish()
    found = stopped.read_bytes()
    if found != reference:
        failures.append(f"the records differ: {first_difference(reference, found)}")
    if answer != expected:
        failures.append(f"the answers differ: {json.dumps(expected)} {json.dumps(answer)}")
    print(
        f"{kills} kills, {cut} within a line; ended before its kill {early} times; up to {most_workers} workers, all "
        f"gone after at most {longest:.2f} s\n"
        f"records: {'the same' if found == reference else 'not the same'} {len(reference):,} bytes; "
        f"answers: {'the same' if answer == expected else 'not the same'}"
    )
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--network", default="wrn40_2")
    parser.add_argument("--params", default="400k", metavar="AMOUNT")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--refine", type=int, default=1, help="rounds, so that kills hit these too (%(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--patience", type=float, default=10, help="seconds for workers to end (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="two kills of a tiny search")
    options = parser.parse_args()
    if options.smoke:
        options.kills, options.network, options.params = 2, "wrn16_1", "60k"
        options.samples, options.batch_size = 40, 8
    print(f"{processor()}, {os.cpu_count()} cores, moments of seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            failures = torture(options, Path(folder))
        except RuntimeError as error:
            failures = [str(error)]
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
