"""`blockswap show` and `blockswap plot`: what the record of a search holds, printed and drawn."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..genome import Genome
from ..layout import Layout
from ..searching.candidates import Candidate, median_shares
from ..searching.record import FrontRecord, budget_text, build_text, read_front, read_ranking
from .parameters import GENOME, record_argument, subcommand, top_option
from .tables import front_report, print_front, print_json, print_ranking, print_table

__all__ = ["plot", "show", "train_text"]


@subcommand("show", "what a search found, from its record")
@record_argument
@top_option
def show(record: Path, top: int, as_json: bool) -> None:
    """Prints what a record holds: its best genomes, and where their scores come from."""
    if top < 1:
        raise ValueError(f"there is no table of {top} genomes; use --top 1 or more")
    front = read_front(record)
    if front is not None:
        _show_front(front, str(record), top, as_json)
        return
    header, ranking = read_ranking(record)
    finite = [each for each in ranking if math.isfinite(each.score)]
    median = median_shares(finite)
    if as_json:
        report = {
            "network": header.get("space"),
            "search": {name: value for name, value in header.items() if name != "record"},
            "genomes": len(ranking),
            "finite": len(finite),
            "best": {**ranking[0].as_json(), "shares": ranking[0].shares},
            "top": [{**each.as_json(), "shares": each.shares} for each in ranking[:top]],
            "median_shares": median,
            "record": str(record),
        }
        print_json(report)
        return
    _print_search(header, ranking, len(finite))
    print_ranking(ranking[:top])
    best = ranking[0]
    if best.shares and median:
        print(f"\nshare of {best.shares_of} by block:\n")
        rows = [
            (place, block, f"{share:.2%}", f"{middle:.2%}")
            for place, block, share, middle in zip(_places(best), best.genome.blocks, best.shares, median, strict=True)
        ]
        print_table(("stage.block", "type", "best", "median of all"), rows, right=(0, 2, 3))
    print(f"\n{build_text(header, best.genome)}\n{train_text(header, record)}")


def train_text(header: dict[str, Any], record: str | Path) -> str:
    """Writes the command that trains the best network of a record, on the images that it was searched with."""
    data = [] if (header.get("about") or {}).get("data") else ["--data", "DATA"]
    words = ["blockswap", "train", str(record), *data, "--out", f"{Path(record).with_suffix('')}-run"]
    return f"train it: {shlex.join(words)}"


@subcommand("plot", "a picture of a search, from its record, or of a network beside its original")
@click.argument("what", metavar="RECORD|NETWORK", help="the record of a search, or a network such as wrn40_2_404k")
@click.argument("genome", type=GENOME, required=False, help="the block types of the network [default: its own]")
@click.option(
    "--out", metavar="FILE", help="a .png or .svg file [default: the record's name with .png, the network's with .svg]"
)
def plot(what: str, genome: Genome | None, out: str | None, as_json: bool) -> None:
    """Draws the record of a search, or a network, and prints the name of the picture."""
    from ..searching.plot import plot_genome, plot_record

    record = Path(what)
    if (not record.is_file() and _is_network(what)) or genome is not None:
        picture = Path(f"{what}.svg" if out is None else out)
        plot_genome(what, genome, picture)
    else:
        picture = record.with_name(f"{record.stem}.png") if record.name and out is None else Path(out or "")
        plot_record(record, picture)
    if as_json:
        print_json({"picture": str(picture)})
    else:
        print(f"picture: {picture}")


def _is_network(name: str) -> bool:
    """Whether a name is that of a network; raises ValueError for a genome, which does not say its network."""
    try:
        Layout.named(name)
    except ValueError:
        try:
            Genome(name)
        except ValueError:
            import timm

            if timm.is_model(name.partition(".")[0]):
                raise ValueError(
                    f"pictures are of networks of the zoo's layouts, and of searches; {name} is timm's, and 'blockswap "
                    "count' prints what its blocks cost"
                ) from None
            return False
        raise ValueError(f"a genome fits several networks; use 'blockswap plot wrn40_2 {name}'") from None
    return True


def _show_front(front: FrontRecord, record: str, top: int, as_json: bool) -> None:
    header = front.header
    if as_json:
        report = front_report(front.budgets, front.rankings, front.front, top)
        search = {name: value for name, value in header.items() if name != "record"}
        print_json({"network": header.get("space"), "cost": front.cost, "search": search, **report, "record": record})
        return
    print_table(("network", header.get("space")), [*_facts(header), ("genomes", f"{front.number:,}")])  # type: ignore[arg-type]
    print()
    print_front(front.budgets, front.rankings, front.front)


def _facts(header: dict[str, Any]) -> list[tuple[str, str]]:
    """What every record says of its search, beside the budget."""
    types, size = str(header.get("types")).split(), header.get("input_size") or []
    facts = [
        ("types", f"{len(types)}: {' '.join(types)}"),
        ("images", f"{header.get('data')}; {'x'.join(map(str, size))}, {header.get('num_classes')} classes"),
        ("score", f"{header.get('score')} in {header.get('dtype', 'float32')}, seed {header.get('seed')}"),
    ]
    if header.get("strategy", "random") != "random":
        facts.append(("chosen", f"by strategy {header['strategy']}"))
    return facts


def _print_search(header: dict[str, Any], ranking: Sequence[Candidate], finite: int) -> None:
    draws = sorted({len(each.scores) for each in ranking})
    genomes = f"{len(ranking):,}" + (
        f", {len(ranking) - finite:,} of them without a finite score" * (finite < len(ranking))
    )
    best = ranking[0]
    rows = [
        ("budget", budget_text(header)),
        *_facts(header),
        ("genomes", genomes),
        ("draws", f"{draws[0]} each" if len(draws) == 1 else f"{draws[0]} to {draws[-1]} each"),
    ]
    print_table(("network", header.get("space")), rows)  # type: ignore[arg-type]
    print(f"\nbest: {best.cost}, score {best.score:.4g}\n\n  {best.genome}\n")


def _places(each: Candidate) -> list[str]:
    return [f"{stage}.{block}" for stage, depth in enumerate(each.genome.depths, 1) for block in range(1, depth + 1)]
