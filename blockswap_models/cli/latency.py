"""`blockswap profile`: measures a latency table."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from ..budget import amount_text
from ..progress import progress_bar
from ..searching.latency import LatencyTable
from .parameters import network_options, out_file, subcommand
from .search import space_of
from .tables import milliseconds, print_json, print_table

__all__ = ["profile_"]


@subcommand("profile", "measure the latency of every block type, for latency budgets")
@network_options
@out_file("the latency table, a JSON file", replace=True)
@click.option("--device", default="cpu", help="where to measure: cpu or cuda")
@click.option("--batch-size", type=int, default=1, help="images at a time")
@click.option("--threads", type=int, help="threads of torch [default: torch's own number]")
@click.option("--rounds", type=int, default=15, help="rounds over all block types")
def profile_(as_json: bool, out: Path, **arguments: Any) -> None:
    """Measures a latency table, writes it and prints it."""
    options = SimpleNamespace(**arguments)
    space = space_of(options)

    from ..machine import find_device
    from ..searching.profile import profile

    table = profile(
        space,
        device=find_device(options.device),
        batch_size=options.batch_size,
        threads=options.threads,
        rounds=options.rounds,
        progress=lambda rounds: progress_bar(rounds, "round"),
    )
    table.save(out)
    if as_json:
        print_json(table.content())
        return
    _print_latencies(table)
    print(f"\ntable: {out}\nuse it: {_use(options, out)}")


def _use(options: SimpleNamespace, out: Path) -> str:
    """The command that prints what can be met with a table: for the same block types and images."""
    types = None if options.types is None else ",".join(map(str, options.types))
    given = {"types": types, "in-chans": options.in_chans, "image-size": options.image_size, "latency-table": str(out)}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["blockswap", "space", options.network.text, *words])


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
        ("stem", milliseconds(table.stem)),
        ("head", milliseconds(table.head)),
    ]
    print_table(("network", table.layout.name), rows)
    print("\nmilliseconds by block type and shape (channels, size of the input/stride):\n")
    shapes = list(table.blocks)
    times = [
        (
            block,
            *(f"{each * 1000:.3f}" if (each := table.blocks[shape].get(block)) is not None else "" for shape in shapes),
        )
        for block in table.types
    ]
    print_table(("type", *map(str, shapes)), times, right=range(1, len(shapes) + 1))
    if not all(all(row) for row in times):
        print("\nblank: the same network as a type above, or one whose widths do not divide")
