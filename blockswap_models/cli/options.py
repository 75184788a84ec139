"""What the options of the command line say of search space and budget."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..budget import UNMEASURED, Budget, BudgetError, parse_amount, parse_latency
from ..genome import SEARCH_TYPES, BlockType
from ..layout import Layout
from ..searching.latency import LatencyTable

if TYPE_CHECKING:
    from ..searching.space import SearchSpace

__all__ = ["PARSERS", "space_and_budget", "space_of"]

# The costs that a budget may name, and what reads them.
PARSERS = {"params": parse_amount, "macs": parse_amount, "latency": parse_latency}


def space_and_budget(options: argparse.Namespace) -> tuple[SearchSpace, Budget | None]:
    """Reads the search space, and the budget where there is one; a mistake raises ValueError."""
    amounts = {name: parse(text) for name, parse in PARSERS.items() if (text := getattr(options, name)) is not None}
    budget = Budget(**amounts, tolerance=options.tolerance) if amounts else None
    if "latency" in amounts and options.latency_table is None:
        raise BudgetError(UNMEASURED)
    table = None if options.latency_table is None else LatencyTable.load(options.latency_table)
    return space_of(options, table), budget


def space_of(options: argparse.Namespace, table: LatencyTable | None = None) -> SearchSpace:
    """Reads the search space; a mistake raises ValueError."""
    layout = Layout.named(options.name)
    types = SEARCH_TYPES if options.types is None else [BlockType.parse(each) for each in options.types.split(",")]

    from ..searching.space import SearchSpace

    return SearchSpace(layout, types, options.num_classes, options.in_chans, options.image_size, table)
