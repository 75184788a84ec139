"""Tables and numbers as they are printed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..budget import Budget
from ..messages import counted
from ..searching.candidates import Candidate, Scored, draws_of_front

__all__ = [
    "front_report",
    "in_megas",
    "milliseconds",
    "print_front",
    "print_json",
    "print_networks",
    "print_ranking",
    "print_table",
]


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> None:
    """Prints a table; the columns whose numbers are in `right` are aligned there."""
    lines = [tuple(map(str, row)) for row in [titles, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    print(json.dumps(value, indent=1))


def print_ranking(top: Sequence[Candidate]) -> None:
    """Prints the table of the best genomes of a search."""
    if len({len(each.scores) for each in top}) > 1 and not any(each.estimate for each in top):
        print("genomes with more draws come first: a score of fewer draws can be high by chance\n")
    _print_candidates("rank", list(enumerate(top, start=1)))


def print_networks(ranking: Sequence[Scored]) -> None:
    """Prints the table of whole networks, which have names."""
    _print_candidates("rank", list(enumerate(ranking, start=1)), "name")


def print_front(budgets: Sequence[Budget], rankings: Sequence[Sequence[Candidate]], front: Sequence[Candidate]) -> None:
    """Prints the best genome within each budget, and the Pareto front."""
    print("best within each budget:\n")
    best = [(budget, ranking[0]) for budget, ranking in zip(budgets, rankings, strict=True) if ranking]
    _print_candidates("budget", best)
    draws = draws_of_front(front)
    print("\nPareto front" + (f" of the genomes with {counted(draws, 'draw')}" if draws else "") + ":\n")
    _print_candidates("", [("", each) for each in front])


def front_report(
    budgets: Sequence[Budget], rankings: Sequence[Sequence[Candidate]], front: Sequence[Candidate], top: int
) -> dict[str, Any]:
    """What JSON says of a front."""
    return {
        "front": [each.as_json() for each in front],
        "budgets": [
            {"budget": str(budget), "genomes": len(ranking), "top": [each.as_json() for each in ranking[:top]]}
            for budget, ranking in zip(budgets, rankings, strict=True)
        ],
    }


def _print_candidates(title: str, labelled: Sequence[tuple[object, Scored]], named: str = "genome") -> None:
    measured = any(each.cost.latency is not None for _, each in labelled)
    sized = any(each.cost.size is not None for _, each in labelled)
    rows = [
        (
            label,
            f"{each.score:.4g}",
            "" if math.isnan(each.standard_error_factor) else f"{each.standard_error_factor - 1:.0%}",
            len(each.scores),
            f"{each.cost.params:,}",
            in_megas(each.cost.macs),
            *([milliseconds(each.cost.latency)] if measured else []),
            *(["" if each.cost.size is None else f"{each.cost.size:,}"] if sized else []),
            getattr(each, named),
        )
        for label, each in labelled
    ]
    titles = [title, "score", "±", "draws", "params", "MACs", *(["latency"] if measured else [])]
    titles += [*(["bytes"] if sized else []), named]
    right = range(len(titles) - 1)
    if not title:
        titles, rows, right = titles[1:], [row[1:] for row in rows], range(len(titles) - 2)
    print_table(titles, rows, right=right)


def in_megas(macs: int) -> str:
    """Writes a number of MACs in millions."""
    return f"{macs / 1e6:,.1f} M"


def milliseconds(seconds: float | None) -> str:
    """Writes a time in milliseconds; nothing for none."""
    return "" if seconds is None else f"{seconds * 1000:,.2f} ms"
