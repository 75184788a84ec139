"""What a search found: the ranking, as Python, notebooks, pandas and the command line have it.

This module needs the standard library only; what is drawn or loaded needs more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..budget import Budget
from ..files import json_line, write_atomic
from ..messages import counted
from ..strips import genome_html, legend_html
from .candidates import Candidate, ScoredDraw
from .record import RecordError, budget_of, read_ranking, read_record, record_header

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from .space import SearchSpace

__all__ = ["SearchResult"]

# Genomes that a notebook shows.
_SHOWN = 5


@dataclass(frozen=True, repr=False)
class SearchResult:
    """What a search found, from best to worst: `len`, iteration, and `result[0]` or `result[:5]` as for a list.

    A notebook shows the best genomes as strips of blocks. `save` writes a record, which `blockswap show` and
    `blockswap plot` read, and `search(…, record=path, resume=True)` continues.

    Attributes:
        space: The search space.
        budget: The budget.
        candidates: The scored genomes from best to worst, last those without a score. Where genomes have several draws,
            scores are estimated from the draws of all (`searching.shrinkage`); of few genomes they are not, and those
            with most draws come first.
        interrupted: Whether Ctrl-C ended the search before all was scored.
        draws: The score of each draw of each genome, as they came.
        searched: What the scores depend on, as the record says it.

    Example:
        ```python
        result = search("wrn16_1", "60k", samples=100)
        result.best.genome
        result[:10].to_pandas()
        result.save("search.jsonl")
        ```
    """

    space: SearchSpace
    budget: Budget
    candidates: tuple[Candidate, ...]
    interrupted: bool = False
    draws: tuple[ScoredDraw, ...] = field(default=(), compare=False)
    searched: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def best(self) -> Candidate:
        """The first of the candidates."""
        return self.candidates[0]

    @property
    def num_tied(self) -> int | None:
        """How many others are within the uncertainty of the best; None where one draw cannot tell."""
        best = self.best
        if math.isnan(best.standard_error_factor):
            return None
        return sum(
            each.score * max(each.standard_error_factor, 1.0) >= best.score / best.standard_error_factor
            for each in self.candidates[1:]
            if each.estimate or len(each.scores) == len(best.scores)
        )

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...

    @overload
    def __getitem__(self, index: slice) -> SearchResult: ...

    def __getitem__(self, index: int | slice) -> Candidate | SearchResult:
        if isinstance(index, slice):
            return replace(self, candidates=self.candidates[index])
        return self.candidates[index]

    def __repr__(self) -> str:
        number = f"{len(self):,} genome{'s' * (len(self) != 1)}"
        stopped = ", interrupted" * self.interrupted
        found = f", best {self.best.genome} ({self.best.score:.4g})" if self.candidates else ""
        return f"SearchResult({self.space.layout.name} within {self.budget}: {number}{stopped}{found})"

    def _repr_html_(self) -> str:
        """Shows the best genomes as strips of blocks, in a notebook."""
        shown = self.candidates[:_SHOWN]
        measured = any(each.cost.latency is not None for each in shown)
        sized = any(each.cost.size is not None for each in shown)
        titles = ["", "score", "±", "draws", "params", "MACs", *["latency"] * measured, *["bytes"] * sized]
        right = 'style="text-align:right"'
        head = "".join(f"<th {right}>{each}</th>" for each in titles) + '<th style="text-align:left">genome</th>'
        rows = []
        for number, each in enumerate(shown, start=1):
            error = each.standard_error_factor
            cells = [
                str(number),
                f"{each.score:.4g}",
                "" if math.isnan(error) else f"{error - 1:.0%}",
                str(len(each.scores)),
                f"{each.cost.params:,}",
                f"{each.cost.macs / 1e6:,.1f} M",
                *([f"{(each.cost.latency or 0) * 1000:,.2f} ms"] if measured else []),
                *([f"{each.cost.size or 0:,}"] if sized else []),
            ]
            row = "".join(f"<td {right}>{cell}</td>" for cell in cells)
            rows.append(f'<tr>{row}<td style="text-align:left">{genome_html(each.genome)}</td></tr>')
        more = f" (the best {len(shown)} are shown)" if len(self) > len(shown) else ""
        stopped = ", interrupted" * self.interrupted
        title = f"{self.space.layout.name} within {self.budget}: {counted(len(self), 'genome')}{stopped}{more}"
        legend = legend_html(block for each in shown for block in each.genome.blocks)
        return (
            f"<div><b>{escape(title)}</b><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"{legend}</div>"
        )

    def to_pandas(self) -> DataFrame:
        """Makes a table of pandas, with one row a genome.

        Returns:
            The table, whose index is the rank from 1. Its columns are `genome`, `score`, `spread` (the factor by which
            the score is uncertain), `draws`, `params`, `macs`, `latency` in seconds where it was measured, and `size`
            in bytes where it was asked for.

        Raises:
            RuntimeError: There is no pandas.

        Example:
            ```python
            search("wrn16_1", "60k", samples=100).to_pandas().plot.scatter("params", "score")
            ```
        """
        try:
            import pandas
        except ImportError:
            raise RuntimeError("a table needs pandas; pip install pandas") from None
        rows = [
            {
                "genome": str(each.genome),
                "score": each.score,
                "spread": each.standard_error_factor,
                "draws": len(each.scores),
                "params": each.cost.params,
                "macs": each.cost.macs,
                "latency": each.cost.latency,
                "size": each.cost.size,
            }
            for each in self
        ]
        columns = ["genome", "score", "spread", "draws", "params", "macs", "latency", "size"]
        table = pandas.DataFrame(rows, columns=columns, index=pandas.RangeIndex(1, len(rows) + 1, name="rank"))
        unknown = [name for name in ("latency", "size") if all(getattr(each.cost, name) is None for each in self)]
        return table.drop(columns=unknown)

    def save(self, path: str | Path) -> None:
        """Writes a record, as a search does with `record=`.

        Args:
            path: The file; a record of the same search is replaced where all of its scores are in this result. A sum of
                ranks is one among the genomes in it, so that those of a part, such as the best ten, rank anew.

        Raises:
            RecordError: The file is something else or holds other scores, or cannot be written.

        Example:
            ```python
            result.save("search.jsonl")
            ```
        """
        path, header, kept = Path(path), record_header(self.searched), self._kept()
        if path.exists() and path.stat().st_size:
            there, draws = read_record(path)
            if there != header or not {(each.genome, each.draw) for each in draws} <= {
                (each.genome, each.draw) for each in kept
            }:
                raise RecordError(f"{path} has scores of its own; use another name")
        lines = [header, *(each.to_json() for each in kept)]
        write_atomic(path, b"".join(map(json_line, lines)), RecordError)

    def _kept(self) -> list[ScoredDraw]:
        """The draws of the candidates, as they came."""
        numbers = {each.genome: len(each.scores) for each in self}
        return [each for each in self.draws if each.draw < numbers.get(each.genome, 0)]

    @classmethod
    def load(cls, path: str | Path, space: SearchSpace | None = None) -> SearchResult:
        """Reads a record, that of `save` or of a search, which may still be running.

        Args:
            path: The record.
            space: The search space; it is made anew from the record where none is given, without measured latencies.

        Returns:
            The result.

        Raises:
            RecordError: It is not a record, or holds no finite score.
            ValueError: Its network is not known here.

        Example:
            ```python
            SearchResult.load("search.jsonl").best.genome
            ```
        """
        (_, draws), (header, ranking) = read_record(path), read_ranking(path)
        if "budgets" in header:
            raise RecordError(f"{path} is of a search at several budgets, which is no one ranking")
        if space is None:
            from ..layout import RANDOM_WEIGHTS, Layout
            from .space import SearchSpace

            layout: Layout | str
            if header.get("network") == RANDOM_WEIGHTS:
                layout = str(header["space"])
            elif "network" in header:
                raise RecordError(f"{path} is of a {header['space']} with weights of its own; use space=")
            else:
                layout = Layout(**header["layout"]) if "layout" in header else Layout.named(str(header["space"]))
            channels, height, width = header["input_size"]
            space = SearchSpace(layout, header["types"].split(), header["num_classes"], channels, (height, width))
            # With sizes, where the budget is of one.
            space, _ = space.resolve(budget_of(header))
        searched = {name: value for name, value in header.items() if name != "record"}
        return cls(space, budget_of(header), ranking, draws=tuple(draws), searched=searched)

    def plot(self, out: str | Path | None = None) -> Figure:
        """Draws the result: the best genomes, the share of each block in the score, all scores, and their costs.

        Args:
            out: A `.png` or `.svg` file, or None to write none.

        Returns:
            The figure of matplotlib, which a notebook shows.

        Raises:
            ValueError: The file would be another kind of picture.
            RuntimeError: There is no matplotlib.

        Example:
            ```python
            result.plot("search.svg")
            ```
        """
        from .plot import plot_ranking

        return plot_ranking(self.searched, self.candidates, out)
