"""The command `blockswap`: the zoo, searches, and training, sharing and exporting of networks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from . import commands, reports
from .evaluate import add_evaluate
from .export import add_export
from .share import add_pack, add_push
from .train import add_train

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 for a mistake in the input, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        # A reader that went away, as in `blockswap list | head`, is no error.
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        message, code = (str(error).splitlines() or [type(error).__name__])[0], 2
    except KeyboardInterrupt:
        message, code = f"interrupted{getattr(options, 'advice', '')}", 130
    # With the exception go the frames that it held, and only then do the progress bars in them end their line.
    print(f"blockswap {options.command}: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockswap",
        description="Residual networks with mixed block types for a given budget.",
        epilog="Amounts: 400k, 3m, 1.2g, a ceiling ..400k, a window 300k..400k; latencies: 4ms, 800us, ..4ms. "
        "A bare amount means ± the tolerance.",
    )
    parser.add_argument("--version", action="version", version=f"blockswap {__version__}")
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    listing = subcommands.add_parser("list", help="the zoo: cost, the paper's error, weights, genome")
    listing.set_defaults(run=commands.run_list)

    counting = subcommands.add_parser("count", help="what a genome costs, block by block")
    counting.add_argument("name", help="a network, such as wrn40_2 or resnet34_3m")
    counting.add_argument("genome", nargs="?", help="its block types, such as 6xS/6xG4/6xB2; its own where left out")
    counting.add_argument("--num-classes", type=int, help="classes (the network's own)")
    counting.add_argument("--in-chans", type=int, help="input channels (the network's own)")
    counting.add_argument("--image-size", type=int, help="height and width of the images (the network's own)")
    counting.set_defaults(run=commands.run_count)

    spacing = subcommands.add_parser("space", help="how many genomes fit a budget, and what can be met")
    _add_space(spacing)
    spacing.set_defaults(run=commands.run_space)

    searching = subcommands.add_parser(
        "search", help="the best genome for a budget, by Fisher potential or another score"
    )
    _add_space(searching)
    searching.add_argument("--samples", type=int, default=1000, help="genomes to score (%(default)s)")
    searching.add_argument("--seed", type=int, default=0, help="seed of genomes, weights and images (%(default)s)")
    searching.add_argument("--data", help="torch/cifar10 or a timm dataset, coco, or a folder of images (1/f noise)")
    searching.add_argument("--data-dir", help="the folder of the dataset")
    searching.add_argument("--split", default="train", help="the split of the dataset (%(default)s)")
    searching.add_argument("--batch-size", type=int, default=32, help="images in a minibatch (%(default)s)")
    searching.add_argument(
        "--score", choices=commands.SCORE_NAMES, default=commands.SCORE_NAMES[0], help="what to rank by (%(default)s)"
    )
    searching.add_argument(
        "--minibatches", type=int, default=1, help="score the last of so many, after training on the rest (%(default)s)"
    )
    searching.add_argument(
        "--strategy",
        choices=commands.STRATEGY_NAMES,
        default=commands.STRATEGY_NAMES[0],
        help="how genomes are chosen: at random, or by what the scores so far predict (%(default)s)",
    )
    searching.add_argument("--draws", type=int, default=1, help="draws of the weights for each genome (%(default)s)")
    searching.add_argument(
        "--refine", type=int, default=3, help="rounds that give the best quarter four times the draws (%(default)s)"
    )
    searching.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s, one a core)"
    )
    searching.add_argument("--device", default="cpu", help="where to score (%(default)s)")
    searching.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="precision (%(default)s: the fastest)"
    )
    searching.add_argument("--out", help="the record, one JSON line a score (named after the search)")
    searching.add_argument(
        "--resume", nargs="?", const="", metavar="RECORD", help="go on with a record, after an interruption"
    )
    searching.add_argument("--top", type=int, default=5, help="genomes to print (%(default)s)")
    searching.set_defaults(run=commands.run_search)

    showing = subcommands.add_parser("show", help="what a search found, from its record")
    showing.add_argument("record", metavar="RECORD", help="the record of a search, finished or not")
    showing.add_argument("--top", type=int, default=5, help="genomes to print (%(default)s)")
    showing.set_defaults(run=reports.run_show)

    plotting = subcommands.add_parser("plot", help="a picture of a search, from its record")
    plotting.add_argument("record", metavar="RECORD", help="the record of a search, finished or not")
    plotting.add_argument("--out", metavar="FILE", help="a .png or .svg file (the record's name with .png)")
    plotting.set_defaults(run=reports.run_plot)

    profiling = subcommands.add_parser("profile", help="measure the latency of every block type, for latency budgets")
    _add_network(profiling)
    profiling.add_argument("--out", required=True, metavar="FILE", help="the latency table, a JSON file")
    profiling.add_argument("--device", default="cpu", help="where to measure: cpu or cuda (%(default)s)")
    profiling.add_argument("--batch-size", type=int, default=1, help="images at a time (%(default)s)")
    profiling.add_argument("--threads", type=int, help="threads of torch (torch's own number)")
    profiling.add_argument("--rounds", type=int, default=15, help="rounds over all block types (%(default)s)")
    profiling.set_defaults(run=reports.run_profile)

    training = add_train(subcommands)
    evaluating = add_evaluate(subcommands)
    packing, pushing = add_pack(subcommands), add_push(subcommands)
    exporting = add_export(subcommands)

    for command in (
        *(listing, counting, spacing, searching, showing, plotting, profiling, training, evaluating, packing, pushing),
        exporting,
    ):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_space(command: argparse.ArgumentParser) -> None:
    _add_network(command)
    command.add_argument("--params", metavar="AMOUNT", help="a budget of parameters, such as 400k")
    command.add_argument("--macs", metavar="AMOUNT", help="a budget of multiply-accumulates, such as 60m")
    command.add_argument("--latency", metavar="TIME", help="a budget of measured time, such as 4ms or ..800us")
    command.add_argument("--latency-table", metavar="FILE", help="the table that 'blockswap profile' wrote")
    command.add_argument("--tolerance", type=float, default=0.025, help="how far from a bare amount (%(default)s)")


def _add_network(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", help="a network, such as wrn40_2 or resnet34")
    command.add_argument(
        "--types", metavar="TYPES", help="block types to choose from, such as S,G4,W1 (the paper's 23)"
    )
    command.add_argument("--num-classes", type=int, help="classes (the network's own)")
    command.add_argument("--in-chans", type=int, help="input channels (the network's own)")
    command.add_argument("--image-size", type=int, help="height and width of the images (the network's own)")


if __name__ == "__main__":
    sys.exit(main())
