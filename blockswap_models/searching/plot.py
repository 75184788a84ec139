"""The picture of a search: its best genomes, the spread of its scores, where they come from and what they cost.

matplotlib comes with the extra `plot` and is imported when a picture is drawn.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import make_folder, write_atomic
from ..genome import Genome
from ..layout import Layout
from ..messages import counted
from ..strips import FAMILIES, family_of, text_colour
from ..zoo.genomes import own_genome
from .candidates import Candidate, draws_of_front, median_shares
from .record import FrontRecord, budget_text, read_front, read_ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_genome", "plot_ranking", "plot_record"]

# Greys for everything else: a colour means a family of blocks, and nothing else.
_INK, _FAINT, _POINTS, _LINE, _PALE = "#222222", "#8c8c8c", "#b4b4b4", "#d9d9d9", "#e3e3e3"
_HEADING = {"color": _FAINT, "ha": "center", "va": "bottom"}
# Behind text that stands on lines or points.
_WHITE = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
_STRIPS = 5
_COST_NAMES = {"params": "parameters", "macs": "MACs", "latency": "latency (ms)", "size": "bytes of the weights file"}
_STAGE_GAP = 0.35
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    # The names within an SVG are the same each time.
    "svg.hashsalt": "blockswap",
}


def plot_record(path: str | Path, out: str | Path) -> Figure:
    """Draws the record of a search to a PNG or SVG file.

    Args:
        path: The record.
        out: The picture, a `.png` or `.svg` file. That of a search at several budgets is its Pareto front.

    Returns:
        The figure.

    Raises:
        RecordError: The record cannot be read, or holds no scores.
        ValueError: The picture would be another kind of file.
        RuntimeError: There is no matplotlib.
    """
    front = read_front(path)
    header, ranking = (front.header, ()) if front is not None else read_ranking(path)
    if Path(out).exists() and os.path.samefile(path, out):
        raise ValueError(f"{out} is the record itself; use another file (out=)")
    if front is not None:
        return _drawn(lambda: _front_figure(front), out)
    return plot_ranking(header, ranking, out)


def plot_ranking(header: Mapping[str, Any], ranking: Sequence[Candidate], out: str | Path | None = None) -> Figure:
    """Draws the ranking of a search, to a PNG or SVG file where one is named; raises as `plot_record` does."""
    if not ranking:
        raise ValueError("there is no genome to draw; plot a result that has some")
    return _drawn(lambda: _figure(header, ranking), out)


def _drawn(draw: Callable[[], Figure], out: str | Path | None) -> Figure:
    """Draws a figure in the style of this package, and writes it where a file is named."""
    suffix = ".png" if out is None else Path(out).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ValueError(f"unknown suffix {Path(str(out)).suffix!r} of {out}; use .png or .svg")
    try:
        import matplotlib
    except ImportError:
        raise RuntimeError('a picture needs matplotlib; pip install "blockswap_models[plot]"') from None

    with matplotlib.rc_context(STYLE):
        figure = draw()
        if out is not None:
            content = io.BytesIO()
            figure.savefig(content, format=suffix[1:], dpi=150, metadata={"Date": None} if suffix == ".svg" else None)
            make_folder(Path(out).parent)
            write_atomic(out, content.getvalue())
    return figure


@cache
def _picture_class() -> type[Figure]:
    """Makes the class of the figures, which a notebook shows with any backend."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, format="png", dpi=80)
            return content.getvalue()

    return Picture


def _figure(header: Mapping[str, Any], ranking: Sequence[Candidate]) -> Figure:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    finite = [each for each in ranking if math.isfinite(each.score)]
    top = finite[:_STRIPS]
    blocks = len(top[0].genome.blocks)
    # The table at the right of the strips takes some 4 inches.
    width = min(max(11.0, 5.2 + 0.52 * blocks), 22.0)
    rows = 0.5 + 0.45 * len(top)
    heights = (0.75, rows + 3.6, 4.0)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.09)
    figure = _picture_class()(figsize=(width, sum(heights)), layout=layout, facecolor="white")
    # Each part is laid out by itself: the second has a table at its right.
    parts: Any = figure.subfigures(3, 1, height_ratios=heights)
    title, upper, lower = parts
    strips, shares = upper.subplots(2, 1, sharex=True, height_ratios=(rows, 2.2))
    histogram, costs = lower.subplots(1, 2)
    _draw_title(title, header, len(ranking), width)
    _draw_strips(strips, top, (width - 4.8) / blocks)
    _draw_shares(shares, top[0], median_shares(finite))
    _draw_histogram(histogram, finite, len(ranking) - len(finite))
    limited = header.get("budget") or ["params"]
    _draw_costs(costs, finite, next((each for each in _COST_NAMES if each in limited), "params"))
    return figure


def _front_figure(front: FrontRecord) -> Figure:
    """Draws cost against score for all budgets, and the Pareto front as steps: what a cost buys."""
    header, name = front.header, _COST_NAMES.get(front.cost, front.cost)
    figure = _picture_class()(figsize=(9, 5.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    finite = list({each.genome: each for own in front.rankings for each in own if math.isfinite(each.score)}.values())
    costs, scores = ([pick(each) for each in finite] for pick in (_picker(front.cost), lambda each: each.score))
    axes.scatter(costs, scores, s=12, color=_POINTS, alpha=0.6, linewidths=0, rasterized=len(finite) > 2000)
    best = front.front
    places, heights = [_picker(front.cost)(each) for each in best], [each.score for each in best]
    axes.step([*places, max(costs)], [*heights, heights[-1]], where="post", color=_INK, linewidth=1.5)
    axes.scatter(places, heights, s=36, color=_INK, zorder=3)
    axes.set_title(
        f"{header.get('space')}: {counted(front.number, 'genome')}, {len(best)} on the Pareto front", parse_math=False
    )
    axes.set_xlabel(name)
    axes.set_ylabel(f"score ({header.get('score')})", parse_math=False)
    draws = draws_of_front(best)
    axes.legend(
        ["genomes", "front" + (f" of those with {counted(draws, 'draw')}" if draws else "")] if best else ["genomes"],
        loc="lower right",
    )
    axes.set_xscale("log")
    _label_decades(axes.xaxis, min(costs), max(costs) * 1.001)
    axes.xaxis.set_major_formatter(lambda value, _: _amount(value))
    if _differ_by_factors(finite):
        axes.set_yscale("log")
        _label_decades(axes.yaxis, min(scores), max(scores) * 1.001)
    return figure


def _picker(cost: str) -> Callable[[Candidate], float]:
    """Reads a cost of a candidate; latencies in milliseconds."""
    return lambda each: getattr(each.cost, cost) * (1000 if cost == "latency" else 1)


def _draw_title(part: SubFigure, header: Mapping[str, Any], count: int, width: float) -> None:
    best_of = "1 genome" if count == 1 else f"the best of {count:,} genomes"
    lines = [
        f"{header.get('space')} within {budget_text(header)}: {best_of}",
        f"{header.get('score')} on {header.get('data')}, seed {header.get('seed')}",
    ]
    for line, y, size, weight in zip(lines, (0.66, 0.24), (14.0, 10.0), ("bold", "normal"), strict=True):
        size = min(size, 72 * (width - 0.3) / (0.72 * len(line)))
        # A name may hold a dollar sign, which is no formula here.
        part.text(0.15 / width, y, line, size=size, weight=weight, va="center", parse_math=False)


def _draw_strips(axes: Axes, top: Sequence[Candidate], inches: float) -> None:
    """Draws the best genomes as strips of blocks, the best on top; `inches` is the width of a block."""
    _draw_genomes(axes, [each.genome for each in top], ["best", *map(str, range(2, len(top) + 1))], inches)
    measured, sized = (any(getattr(each.cost, name) is not None for each in top) for name in ("latency", "size"))
    columns = {
        "score": [f"{each.score:.4g}" for each in top],
        "±": [_error(each) for each in top],
        "draws": [str(len(each.scores)) for each in top],
        "params": [f"{each.cost.params:,}" for each in top],
        "MACs": [f"{each.cost.macs / 1e6:,.1f} M" for each in top],
        **({"latency": [f"{(each.cost.latency or 0) * 1000:.3g} ms" for each in top]} if measured else {}),
        **({"bytes": [f"{each.cost.size or 0:,}" for each in top]} if sized else {}),
    }
    right = 0.0
    for title, column in columns.items():
        # A digit is 6 points wide.
        right += 6 * max(map(len, [title, *column])) + 14
        for row, text in enumerate([title, *column]):
            style = {"va": "center", "weight": "bold" if row == 1 else "normal"} if row else _HEADING
            at = (1, row - 1 if row else -0.62)
            _note(axes, text, at, (round(right), 0), ("axes fraction", "data"), **{**style, "ha": "right"})


def _error(each: Candidate) -> str:
    """How uncertain a score is; nothing for a single draw."""
    return "" if math.isnan(each.standard_error_factor) else f"{each.standard_error_factor - 1:.0%}"


def _draw_genomes(axes: Axes, genomes: Sequence[Genome], names: Sequence[str], inches: float) -> None:
    """Draws genomes of one network as strips of blocks, with a legend of their families."""
    from matplotlib.patches import Patch, Rectangle

    places = _places(genomes[0])
    longest = max(len(str(block)) for each in genomes for block in each.blocks)
    # A letter is about 0.65 of its size wide; where a label does not fit across a block, it stands upright.
    size = 72 * 0.9 * inches / (0.65 * longest)
    upright = size < 6
    size = min(72 * 0.8 * inches, 72 * 0.36 / (0.65 * longest)) if upright else min(size, 9)
    for row, genome in enumerate(genomes):
        for place, block in zip(places, genome.blocks, strict=True):
            family = family_of(block)
            box = Rectangle((place - 0.47, row - 0.4), 0.94, 0.8, facecolor=FAMILIES[family][0], linewidth=0)
            axes.add_patch(box)
            style: dict[str, Any] = {"ha": "center", "va": "center", "rotation": 90 if upright else 0, "size": size}
            style["color"] = text_colour(family)
            axes.text(place, row, str(block), weight="normal" if row else "bold", **style)
    axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
    axes.set_ylim(len(genomes) - 0.5, -0.5)
    axes.set_yticks(range(len(genomes)), names)
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)
    first = 0
    for stage, depth in enumerate(genomes[0].depths, start=1):
        middle = (places[first] + places[first + depth - 1]) / 2
        _note(axes, f"stage {stage}", (middle, -0.62), (0, 0), **_HEADING)
        first += depth
    used = {family_of(block) for each in genomes for block in each.blocks}
    handles = [Patch(color=colour, label=label) for family, (colour, label) in FAMILIES.items() if family in used]
    shape = {"handlelength": 1, "handleheight": 1, "columnspacing": 1.6, "borderaxespad": 0.2, "borderpad": 0.2}
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=len(handles), **shape)


def _draw_shares(axes: Axes, best: Candidate, median: Sequence[float] | None) -> None:
    """Draws the share of each block in the score, below the blocks of the strips, on a logarithmic axis."""
    axes.set_title(f"Share of {best.shares_of} by block")
    if best.shares is None or median is None:
        axes.text(0.5, 0.5, "this score has no parts by block", transform=axes.transAxes, ha="center", color=_FAINT)
        axes.set_axis_off()
        return
    places = _places(best.genome)
    # From the first blocks to the last, shares fall by factors: they are points on a logarithmic axis, not bars.
    positive = [each for each in (*best.shares, *median) if each > 0]
    floor = max(10 ** math.floor(math.log10(min(positive)) - 0.1), 1e-6)
    axes.set_yscale("log")
    axes.set_ylim(floor, 1.6)
    points = [max(each, floor) for each in best.shares]
    axes.vlines(places, floor, points, color=_LINE, linewidth=2)
    dots = axes.scatter(places, points, s=70, color=_INK, zorder=4, clip_on=False)
    dashes = axes.scatter(
        places, [max(each, floor) for each in median], marker="_", s=200, linewidths=2, color=_FAINT, zorder=3
    )
    decades = [10.0**power for power in range(round(math.log10(floor)), 1)]
    axes.set_yticks(decades, [f"{100 * each:.6f}".rstrip("0").rstrip(".") + "%" for each in decades])
    axes.yaxis.minorticks_off()
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    # The numbers are read below the blocks, where there is room.
    table = len(places) <= 36
    labels = [
        f"{number}\n{_percent(share)}\n{_percent(middle)}" if table else str(number)
        for number, (share, middle) in enumerate(zip(best.shares, median, strict=True), start=1)
    ]
    axes.set_xticks(places, labels, size=9 if table else 7, linespacing=1.5)
    axes.tick_params(axis="x", length=0, pad=5, labelbottom=True)
    rows = "block\nbest\nmedian" if table else "block"
    style = {"ha": "right", "va": "top", "color": _FAINT, "linespacing": 1.5, "size": 9 if table else 7}
    _note(axes, rows, (0, 0), (-6, -5), "axes fraction", **style)
    axes.legend([dots, dashes], ["best", "median of all"], loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2)


def _draw_histogram(axes: Axes, ranking: Sequence[Candidate], left_out: int) -> None:
    """Draws the scores of all genomes, and the best one's.

    Where they are not estimated, the genomes' are over as many draws as each has, so that all are alike.
    """
    import numpy

    best = ranking[0]
    draws = len(best.scores) if best.estimate else min(len(each.scores) for each in ranking)
    scores = [replace(each, scores=each.scores[:draws]).score for each in ranking]
    low, high = min(*scores, best.score), max(*scores, best.score)
    bins = min(max(8, round(2 * math.sqrt(len(scores)))), 60)
    logarithmic = _differ_by_factors(ranking)
    if logarithmic:
        # One score, or equal ones, still have a bin around them.
        low, high = (low, high) if high > low * 1.001 else (low / 1.1, high * 1.1)
        edges = numpy.geomspace(low, high, bins + 1)
    else:
        edges = numpy.linspace(*((low, high) if high > low else (low - 0.5, low + 0.5)), bins + 1)
    # Rounding must not leave the extremes out.
    edges[0], edges[-1] = min(edges[0], *scores), max(edges[-1], *scores)
    axes.hist(scores, edges.tolist(), color=_POINTS, edgecolor="white", linewidth=0.6)
    error = best.standard_error_factor
    if not math.isnan(error):
        axes.axvspan(best.score / error, best.score * error, color=_INK, alpha=0.12, linewidth=0)
    axes.axvline(best.score, color=_INK, linewidth=2)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.22)
    middle = float(numpy.median(scores))
    axes.axvline(middle, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    sure = f" ± {_error(best)}" if _error(best) else ""
    text = f"best {best.score:.3g}" + (f"{sure}, {len(best.scores)} draws" if len(best.scores) > 1 else "")
    for place, shown, weight, down in ((best.score, text, "bold", 2), (middle, f"median {middle:.3g}", "normal", 16)):
        style = {"ha": "right", "va": "top", "weight": weight, "bbox": _WHITE}
        _note(axes, shown, (place, 1), (-5, -down), ("data", "axes fraction"), **style)
    axes.set_title("Scores" + (f" ({left_out:,} not finite, left out)" if left_out else ""))
    axes.set_xlabel("score" if len(best.scores) == draws else f"score ({counted(draws, 'draw')} each)")
    axes.set_ylabel("genomes")
    axes.locator_params(axis="y", integer=True)
    if logarithmic:
        axes.set_xscale("log")
        _label_decades(axes.xaxis, low, high)


def _draw_costs(axes: Axes, finite: Sequence[Candidate], cost: str) -> None:
    """Draws cost against score; the more draws, the darker, and the best has a ring.

    Where scores are not estimated, the best is the highest of the darkest points: one draw can be high by chance.
    """
    groups: dict[int, list[Candidate]] = {}
    for each in finite:
        groups.setdefault(len(each.scores), []).append(each)
    shades = dict(zip(sorted(groups), _shades(len(groups)), strict=True))
    for number, shade in shades.items():
        group = groups[number]
        places = [getattr(each.cost, cost) for each in group]
        scores = [each.score for each in group]
        errors = [each.standard_error_factor for each in group]
        if number > 1 and not any(map(math.isnan, errors)):
            lows = [score / error for score, error in zip(scores, errors, strict=True)]
            highs = [score * error for score, error in zip(scores, errors, strict=True)]
            axes.vlines(places, lows, highs, color=shade, linewidth=1)
        axes.scatter(
            places,
            scores,
            color=shade,
            s=(30 if number > min(groups) else 22) if len(finite) <= 500 else 10,
            linewidths=0,
            label=counted(number, "draw"),
            # Many points would make an SVG of many megabytes.
            rasterized=len(group) > 2000,
        )
    best = finite[0]
    at = (getattr(best.cost, cost), best.score)
    axes.scatter(*at, s=170, marker="o", facecolors="none", edgecolors=_INK, linewidths=2)
    costs = [getattr(each.cost, cost) for each in finite]
    # Above the point, towards the middle.
    across = (at[0] - min(costs)) / ((max(costs) - min(costs)) or 1)
    style = {"ha": "left" if across < 0.25 else "right" if across > 0.75 else "center", "va": "bottom"}
    _note(axes, f"best: {_cost_text(best, cost)}, {best.score:.3g}", at, (0, 11), weight="bold", bbox=_WHITE, **style)
    axes.margins(y=0.12)
    axes.set_title("Cost and score")
    axes.set_xlabel("latency" if cost == "latency" else _COST_NAMES[cost])
    axes.set_ylabel("score")
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value * 1000:.3g} ms" if cost == "latency" else _amount(value))
    if len(groups) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=len(groups), columnspacing=1, handletextpad=0.1)
    scores = [each.score for each in finite]
    if _differ_by_factors(finite):
        axes.set_yscale("log")
        _label_decades(axes.yaxis, min(scores), max(scores))


def _differ_by_factors(candidates: Sequence[Candidate]) -> bool:
    """Whether scores belong on a logarithmic axis: all above zero, and no ranks."""
    return all(each.score > 0 and not each.parts for each in candidates)


def _cost_text(each: Candidate, cost: str) -> str:
    return f"{(each.cost.latency or 0) * 1000:.3g} ms" if cost == "latency" else f"{getattr(each.cost, cost):,}"


def _shades(number: int) -> list[str]:
    """So many greys, from light to dark."""
    lightest, darkest = 0.74, 0.13
    return [str(lightest + (darkest - lightest) * each / max(1, number - 1)) for each in range(number)]


def plot_genome(network: str, genome: Genome | str | None = None, out: str | Path | None = None) -> Figure:
    """Draws a network beside the original one of its layout: its blocks, and what each of them costs.

    Args:
        network: A network, such as `wrn40_2` or `wrn40_2_404k`.
        genome: Its block types; those of the zoo's network of this name where none are given.
        out: A `.png` or `.svg` file, or None to write none.

    Returns:
        The figure of matplotlib, which a notebook shows.

    Raises:
        GenomeError: The genome does not fit the network.
        ValueError: There is no such network, or the file would be another kind of picture.
        RuntimeError: There is no matplotlib.

    Example:
        ```python
        plot_genome("wrn16_1", "S,G4/2xB2/2xW4", "network.svg")
        ```
    """
    layout = Layout.named(network)
    drawn = layout.fit(own_genome(network) if genome is None else genome)
    return _drawn(lambda: _genome_figure(layout, network, drawn), out)


def _genome_figure(layout: Layout, network: str, genome: Genome) -> Figure:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from ..nets.cost import count, count_blocks
    from ..nets.networks import build

    own = {"num_classes": layout.num_classes, "in_chans": layout.input_size[0]}
    models = [build(layout, each, device="meta", **own) for each in (genome, layout.original)]
    totals = [count(each, layout.input_size) for each in models]
    blocks = [count_blocks(each, layout.input_size) for each in models]
    number = len(genome.blocks)
    width = min(max(8.0, 2.6 + 0.52 * number), 20.0)
    heights = (0.6, 1.7, 2.1, 2.1)
    figure = _picture_class()(
        figsize=(width, sum(heights)),
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06),
        facecolor="white",
    )
    title, *panels = figure.subplots(4, 1, sharex=True, height_ratios=heights)
    title.set_axis_off()
    saved = ", ".join(
        f"{_amount(mine)} {name}{_compared(mine, original)}"
        for name, mine, original in (
            ("parameters", totals[0].params, totals[1].params),
            ("MACs", totals[0].macs, totals[1].macs),
        )
    )
    title.text(0, 0.75, network, size=14, weight="bold", transform=title.transAxes, va="center")
    title.text(0, 0.1, saved, size=10, transform=title.transAxes, va="center")
    _draw_genomes(panels[0], [genome, layout.original], ["this network", "original"], (width - 2.2) / number)
    places = _places(genome)
    colours = [FAMILIES[family_of(block)][0] for block in genome.blocks]
    for axes, cost, name in zip(panels[1:], ("params", "macs"), ("parameters", "MACs"), strict=True):
        mine, originals = ([getattr(each, cost) for each in part] for part in blocks)
        axes.bar(places, originals, width=0.94, color=_PALE, label="original")
        axes.bar(places, mine, width=0.6, color=colours)
        axes.set_title(f"{name[0].upper()}{name[1:]} by block")
        axes.set_ylim(0, 1.12 * max(*mine, *originals))
        axes.yaxis.set_major_formatter(lambda value, _: _amount(value))
        axes.locator_params(axis="y", nbins=4)
        axes.tick_params(axis="x", length=0)
        for place, value in zip(places, mine, strict=True):
            _note(axes, _amount(float(f"{value:.3g}")), (place, value), (0, 2), ha="center", va="bottom", size=7)
    panels[1].legend(loc="lower right", bbox_to_anchor=(1, 0.98))
    panels[2].set_xticks(places, [str(each) for each in range(1, number + 1)])
    panels[2].tick_params(labelbottom=True)
    panels[2].set_xlabel("block")
    return figure


def _compared(mine: float, original: float) -> str:
    """How many times less something is than in the original, or more."""
    if mine == original:
        return " (as the original)"
    factor = original / mine
    return f" ({factor:.1f} times fewer)" if factor > 1 else f" ({1 / factor:.1f} times more)"


def _note(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], coords: Any = "data", **style: Any
) -> None:
    """Writes text some points away from a place, also outside of the axes."""
    axes.annotate(text, at, offset, coords, "offset points", annotation_clip=False, **{"size": 9, **style})


def _places(genome: Genome) -> list[float]:
    """Where the blocks stand from left to right, with a gap between stages."""
    return [
        block + stage * _STAGE_GAP
        for block, stage in enumerate(stage for stage, depth in enumerate(genome.depths) for _ in range(depth))
    ]


def _label_decades(axis: Any, low: float, high: float) -> None:
    """Labels a logarithmic axis with plain numbers, as many as fit."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    decades = math.log10(high / low)
    subs = (1, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1, 3) if decades < 4 else (1,)
    axis.set_major_locator(LogLocator(subs=subs) if decades > 0.4 else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 or share == 0 else f"{share:.1%}" if share >= 0.00095 else "<0.1%"


def _amount(value: float) -> str:
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"
