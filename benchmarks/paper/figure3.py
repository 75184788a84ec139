"""Figure 3 of the paper: error against parameters, of all networks that the other benchmarks have trained.

    python -m benchmarks.paper.figure3 --records baselines --out figure3.png

Reads `records.jsonl` of table1.py, table2.py, table6.py, figure2.py, figure4.py and best_of.py, and draws one point for
each network, the mean over the seeds of its longest runs; what was trained by --labels-alone is left out. Hollow points
are the figures that the paper prints in Tables 2 and 6.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lib.comparison import Network
from benchmarks.lib.images import ALL_IMAGES
from benchmarks.lib.pictures import picture
from benchmarks.lib.report import versions
from benchmarks.lib.trained import longest_runs, records
from benchmarks.paper import table2, table6
from blockswap_models.training.recipes import RECIPES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By the start of a name: label, colour (of the palette of Okabe and Ito), marker and size.
KINDS = {
    "blockswap": ("BlockSwap", "#0072B2", "o", 6),
    "best": ("best of a sample (section 4.3)", "#56B4E9", "D", 6),
    "single": ("one block type", "#D55E00", "s", 6),
    "mbconv6": ("MBConv6", "#D55E00", "P", 6),
    "darts": ("DARTS", "#D55E00", "X", 6),
    "condensenet86": ("CondenseNet-86", "#D55E00", "*", 8),
    "wrn40_2": ("WRN-40-2, the teacher", "#222222", "s", 6),
    "wrn": ("WRN, other depth and width", "#222222", "^", 6),
    "snip": ("SNIP", "#CC79A7", "v", 6),
    "l1": ("L1 pruning", "#E69F00", "<", 6),
    "random": ("random (Table 6)", "#8c8c8c", "o", 5),
    "one": ("one block replaced (Figure 4)", "#009E73", ".", 5),
    "mixed": ("random (Table 1, Figure 2)", "#8c8c8c", ".", 3),
}
# Thousands of parameters, between those of the smallest students and of the teacher.
TICKS = (100, 150, 200, 300, 400, 600, 800, 1000, 1500, 2000, 3000)
Points = dict[str, list[tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", nargs="+", default=["baselines"], metavar="FOLDER", help="their --out (baselines)")
    parser.add_argument("--out", default="figure3.png", metavar="FILE", help="a .png or .svg file (%(default)s)")
    parser.add_argument("--reduced", action="store_true", help="draw runs of fewer epochs or images too")
    parser.add_argument("--no-paper", action="store_true", help="leave out the paper's figures")
    parser.add_argument("--smoke", action="store_true", help="draw the paper's figures alone, to a file that it leaves")
    options = parser.parse_args()
    try:
        if options.smoke:
            with tempfile.TemporaryDirectory() as folder:
                options.records, options.out = [folder], str(Path(folder) / "figure3.png")
                run(options)
        else:
            run(options)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def run(options: argparse.Namespace) -> None:
    # A run that was carried from one folder to another is one run.
    rows = list({row["folder"]: row for folder in options.records for row in records(folder)}.values())
    whole = [row for row in rows if row["epochs"] >= RECIPES["cifar10"].epochs and row["train_images"] == ALL_IMAGES]
    ours = points(rows if options.reduced else whole)
    papers = {} if options.no_paper else papers_points([*table2.networks(), *table6.networks()])
    if not ours and not papers:
        raise ValueError(f"nothing to draw in {', '.join(options.records)}; leave out --no-paper, or train something")
    print(versions())
    print(f"trained: {sum(map(len, ours.values()))} networks; the paper's: {sum(map(len, papers.values()))} figures")
    if len(whole) < len(rows) and not options.reduced:
        print(f"left out: {len(rows) - len(whole)} runs of fewer epochs or images (--reduced draws them too)")
    picture(options.out, (9, 5.5), lambda figure: draw(figure, ours, papers))


def kind(name: str) -> str | None:
    """Says which of KINDS a run is of.

    None for the first generation of CondenseNet, what had no teacher, and genomes of benchmarks/search.
    """
    # Those are named by the network whose blocks they replace.
    if name.endswith(("_first", "-labels")) or (name.startswith("wrn") and "-" in name):
        return None
    return next((each for each in KINDS if name.startswith(each)), None)


def points(rows: Iterable[dict[str, Any]]) -> Points:
    """Averages the longest runs of each network: parameters that are not zero, in thousands, and error, by kind."""
    by_name: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault((row["name"], row["nonzero"]), []).append(row)
    found: Points = {}
    for (name, nonzero), runs in by_name.items():
        if which := kind(name):
            error = statistics.mean(row["top1_error"] for row in longest_runs(runs))
            found.setdefault(which, []).append((nonzero / 1000, error))
    return found


def papers_points(networks: Iterable[Network]) -> Points:
    """Reads what the paper prints of networks, each once."""
    by_name = {network.name: network.paper for network in networks}
    found: Points = {}
    for name, paper in by_name.items():
        if which := kind(name):
            found.setdefault(which, []).append((float(paper.params), float(paper.error.split()[0])))
    return found


def draw(figure: Figure, ours: Points, papers: Points) -> None:
    """Draws ours filled and the paper's hollow, BlockSwap's joined by lines."""
    axes = figure.subplots()
    for which, (label, color, marker, size) in reversed(KINDS.items()):
        for points_of, face, line in ((papers, "none", ":"), (ours, color, "-")):
            if some := sorted(points_of.get(which, [])):
                axes.plot(
                    *zip(*some, strict=True),
                    linestyle=line if which == "blockswap" else "none",
                    color=color,
                    marker=marker,
                    markersize=size,
                    markerfacecolor=face,
                    label=label if face != "none" else f"{label}, the paper's",
                )
    axes.set(xscale="log", xlabel="parameters (thousands)", ylabel="top-1 error on CIFAR-10 (%)")
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    # From first to last, though what comes first is drawn last, on top.
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)


if __name__ == "__main__":
    main()
