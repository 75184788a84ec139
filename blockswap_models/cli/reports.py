"""What is printed and drawn of records and of latency tables: `blockswap show`, `plot` and `profile`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..budget import amount_text
from ..searching.candidates import Candidate, median_shares
from ..searching.latency import LatencyTable
from ..searching.record import budget_text, build_text, read_ranking
from .commands import _milliseconds, _print_table, _print_top
from .options import space_of

__all__ = ["run_plot", "run_profile", "run_show"]


def run_profile(options: argparse.Namespace) -> None:
    """Measures a latency table, writes it and prints it."""
    out = Path(options.out)
    # Before some minutes of measuring.
    if not out.name or out.is_dir() or not out.resolve().parent.is_dir():
        raise ValueError(f"cannot write a latency table to '{out}'; write --out with a file in a folder that exists")
    space = space_of(options)

    from tqdm import tqdm

    from ..searching.profile import profile

    table = profile(
        space,
        device=options.device,
        batch_size=options.batch_size,
        threads=options.threads,
        rounds=options.rounds,
        progress=lambda rounds: tqdm(rounds, unit="round", dynamic_ncols=True),
    )
    table.save(out)
    if options.json:
        print(json.dumps(table.content(), indent=1))
        return
    _print_latencies(table)
    print(f"\ntable: {out}\nuse it: blockswap space {options.name} --latency-table {out}")


def _print_latencies(table: LatencyTable) -> None:
    slowest, fastest = (
        table.stem + table.head + sum(choose(table.blocks[shape].values()) for shape in table.shapes)
        for choose in (max, min)
    )
    size = "x".join(map(str, table.input_size))
    images = f"{table.batch_size:,} {'image' if table.batch_size == 1 else 'images'} of {size}"
    threads = f"{table.threads} {'thread' if table.threads == 1 else 'threads'}"
    rows = [
        ("minibatch", images),
        (
            "device",
            f"{table.device}, {table.about.get('processor', '')}, {threads}; torch {table.about.get('torch', '')}",
        ),
        ("latency", f"{amount_text('latency', fastest)} to {amount_text('latency', slowest)}"),
        ("stem", _milliseconds(table.stem)),
        ("head", _milliseconds(table.head)),
    ]
    _print_table(("network", table.layout.name), rows)
    print("\nmilliseconds by block type and shape (channels, size of the input/stride):\n")
    shapes = list(table.blocks)
    times = [
        (
            block,
            *(f"{each * 1000:.3f}" if (each := table.blocks[shape].get(block)) is not None else "" for shape in shapes),
        )
        for block in table.types
    ]
    _print_table(("type", *map(str, shapes)), times, right=range(1, len(shapes) + 1))
    if not all(all(row) for row in times):
        print("\nblank: the same network as a type above, or one whose widths do not divide")


def run_plot(options: argparse.Namespace) -> None:
    """Draws the record of a search, and prints the name of the picture."""
    from ..searching.plot import plot_record

    record = Path(options.record)
    out = record.with_name(f"{record.stem}.png") if record.name and options.out is None else Path(options.out or "")
    plot_record(record, out)
    print(json.dumps({"picture": str(out)}, indent=1) if options.json else f"picture: {out}")


def run_show(options: argparse.Namespace) -> None:
    """Prints what the record of a search holds: its best genomes, and where their scores come from."""
    if options.top < 1:
        raise ValueError(f"there is no table of {options.top} genomes; write --top 1 or more")
    header, ranking = read_ranking(options.record)
    finite = [each for each in ranking if math.isfinite(each.score)]
    median = median_shares(finite)
    if options.json:
        report = {
            "network": header.get("space"),
            "search": {name: value for name, value in header.items() if name != "record"},
            "genomes": len(ranking),
            "finite": len(finite),
            "best": {**ranking[0].as_json(), "shares": ranking[0].shares},
            "top": [{**each.as_json(), "shares": each.shares} for each in ranking[: options.top]],
            "median_shares": median,
            "record": str(options.record),
        }
        print(json.dumps(report, indent=1))
        return
    _print_search(header, ranking, len(finite))
    _print_top(ranking[: options.top])
    best = ranking[0]
    if best.shares and median:
        print("\nshare of the score by block:\n")
        rows = [
            (place, block, f"{share:.2%}", f"{middle:.2%}")
            for place, block, share, middle in zip(_places(best), best.genome.blocks, best.shares, median, strict=True)
        ]
        _print_table(("stage.block", "type", "best", "median of all"), rows, right=(0, 2, 3))
    print(f"\n{build_text(header, best.genome)}")


def _print_search(header: dict[str, Any], ranking: Sequence[Candidate], finite: int) -> None:
    types, size = str(header.get("types")).split(), header.get("input_size") or []
    draws = sorted({len(each.draws) for each in ranking})
    genomes = f"{len(ranking):,}" + (
        f", {len(ranking) - finite:,} of them without a finite score" * (finite < len(ranking))
    )
    best = ranking[0]
    rows = [
        ("budget", budget_text(header)),
        ("types", f"{len(types)}: {' '.join(types)}"),
        ("images", f"{header.get('data')}; {'x'.join(map(str, size))}, {header.get('num_classes')} classes"),
        ("score", f"{header.get('score')} in {header.get('dtype', 'float32')}, seed {header.get('seed')}"),
        ("genomes", genomes),
        ("draws", f"{draws[0]} each" if len(draws) == 1 else f"{draws[0]} to {draws[-1]} each"),
    ]
    if header.get("strategy", "random") != "random":
        rows.insert(-1, ("chosen", f"by strategy {header['strategy']}"))
    _print_table(("network", header.get("space")), rows)
    print(f"\nbest: {best.cost}, score {best.score:.4g}\n\n  {best.genome}\n")


def _places(each: Candidate) -> list[str]:
    return [f"{stage}.{block}" for stage, depth in enumerate(each.genome.depths, 1) for block in range(1, depth + 1)]
