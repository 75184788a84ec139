"""Whether a search survives kills: killed (-9) at random moments and resumed, it is to end as if never touched.

    python -m benchmarks.search.kills --kills 20 --samples 1000

One search runs undisturbed. The same search runs again, is killed so many times, and resumed with `--resume` each time.
Checked: after each kill, that the record is byte for byte the start of the undisturbed one, but for a last line that
was cut off, and that no process of the search is left a while later; at the end, that the record is byte for byte
the undisturbed one and the answer printed is the same. Exits with 1 where one of these fails.

Most kills aim at a length of the record: the least of as many random lengths as kills are left. Of five, one comes at
the instant when the record has grown to it, one in the start-up, before any score can be written, and the others a
random part of a score's time later. A search that came to its end first does not count: its record is cut back, and
another is aimed at. Needs /proc.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from benchmarks.lib.report import processor
from blockswap_models.cli.main import main as blockswap

# What the kills in turn aim at.
AIMS = ("writing", "start-up", "any", "any", "any")


class Search:
    """A search by the command line, in a process group of its own."""

    def __init__(self, arguments: list[str], record: Path) -> None:
        self.record = record
        self.log = record.with_suffix(".log")
        # A search killed before it opened its record leaves nothing to resume.
        resume = ["--resume"] if size(record) else []
        command = [sys.executable, "-m", "blockswap_models", "search", *arguments, "--out", str(record), *resume]
        self.began = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def running(self) -> bool:
        """Says whether it still runs; raises RuntimeError where it failed."""
        code = self.process.poll()
        if code:
            raise RuntimeError(f"the search ended with {code}:\n{self.log.read_text()}")
        return code is None

    def wait(self, seconds: float) -> bool:
        """Waits so long; returns whether it still runs."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.running():
            time.sleep(0.002)
        return self.running()

    def wait_for_lines(self, lines: int) -> bool:
        """Waits until the record has so many lines; returns whether it still runs."""
        seen = -1
        while self.running():
            if size(self.record) != seen:
                seen = size(self.record)
                if whole_lines(self.record) >= lines:
                    break
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


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def whole_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def to_the_end(arguments: list[str], record: Path) -> dict[str, object]:
    """Searches in this process; returns the answer printed, less the name of the record."""
    resume = ["--resume"] if size(record) else []
    with redirect_stdout(io.StringIO()) as answer, redirect_stderr(io.StringIO()) as log:
        code = blockswap(["search", *arguments, "--out", str(record), *resume])
    if code:
        raise RuntimeError(f"the search ended with {code}:\n{log.getvalue()}")
    return {key: value for key, value in json.loads(answer.getvalue()).items() if key != "record"}


def least_share(left: int, draws: random.Random) -> float:
    """Draws the least of so many numbers, each uniform from 0 to 1."""
    return float(1 - draws.random() ** (1 / left))


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
    # A smoke starts as few processes as it can.
    undisturbed = [*arguments, "--workers", "1"] if options.smoke else arguments
    began = time.monotonic()
    expected = to_the_end(undisturbed, whole)
    scoring = time.monotonic() - began
    reference = whole.read_bytes()
    lines = reference.count(b"\n")
    print(f"undisturbed: {lines - 1} scores in {scoring:.1f} s", flush=True)
    print("kill  aim       after s  lines kept  written  cut off  workers  gone after s")
    failures: list[str] = []
    kept = kills = cut = early = most_workers = 0
    longest = start_up = 0.0
    while kills < options.kills:
        aim = AIMS[kills % len(AIMS)]
        # Before the last line, and after the first, which says what is searched for.
        goal = kept + max(1, int((lines - kept) * least_share(options.kills - kills, draws)))
        goal = min(max(goal, 2), lines - 1)
        with Search(arguments, stopped) as search:
            if aim == "start-up":
                alive = search.wait(start_up * draws.random())
            else:
                if not start_up:
                    # The first line says what is searched for.
                    search.wait_for_lines(2)
                    start_up = time.monotonic() - search.began
                alive = search.wait_for_lines(goal)
                if aim == "any":
                    alive = search.wait(scoring / lines * draws.random())
            if not alive:
                early += 1
                if early > max(10, options.kills):
                    failures.append(f"the search ended {early} times before it was killed; use more --samples")
                    break
                os.truncate(stopped, sum(map(len, reference.splitlines(keepends=True)[:kept])))
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
    answer = to_the_end(undisturbed, stopped)
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
    parser.add_argument("--patience", type=float, default=10, help="seconds for workers to end (%(default)g)")
    parser.add_argument("--smoke", action="store_true", help="one kill of a tiny search")
    options = parser.parse_args()
    if options.smoke:
        options.kills, options.network, options.params = 1, "wrn16_1", "60k"
        options.samples, options.batch_size, options.workers = 24, 8, 1
        # What ends on a slow machine only after minutes has still ended.
        options.patience = 300
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
