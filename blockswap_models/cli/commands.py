"""What the subcommands of `blockswap` do.

What needs torch is imported by the subcommand that uses it, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..budget import BudgetError, Cost, amount_text
from ..layout import Layout
from ..searching.record import build_text, require_new
from ..zoo.genomes import GENOMES, PAPER_ERRORS
from .options import PARSERS, space_and_budget

if TYPE_CHECKING:
    from ..searching.candidates import Candidate
    from ..searching.probe_images import Minibatch
    from ..searching.search import SearchResult
    from ..searching.space import SearchSpace

__all__ = ["SCORE_NAMES", "STRATEGY_NAMES", "run_count", "run_list", "run_search", "run_space"]

# The keys of `rankings.SCORES`, which needs torch.
SCORE_NAMES = (
    "fisher",
    "fisher-printed",
    "gradient-norm",
    "l2-norm",
    "accuracy",
    "params",
    "macs",
    "naswot",
    "synflow",
)
# The keys of `strategies.STRATEGIES`, which needs torch.
STRATEGY_NAMES = ("random", "surrogate")


def run_list(options: argparse.Namespace) -> None:
    """Prints the zoo: cost, the paper's error, weights, genome."""
    import timm

    from ..nets.cost import count
    from ..zoo.cards import read_card, shipped

    cards = {tagged: read_card(path.with_suffix(".json")) for tagged, path in shipped().items()}
    rows = []
    for name, genome in GENOMES.items():
        cost = count(timm.create_model(name, device="meta"))
        weights = {tagged: card for tagged, card in cards.items() if tagged.partition(".")[0] == name}
        rows.append(
            {
                "name": name,
                "params": cost.params,
                "macs": cost.macs,
                "paper_error": PAPER_ERRORS[name],
                "weights": {
                    tagged.partition(".")[2]: card["test"][card["file"]["dtype"]]["top1_error"]
                    for tagged, card in weights.items()
                },
                "genome": genome,
            }
        )
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = [
        (
            r["name"],
            f"{r['params']:,}",
            _macs(r["macs"]),
            r["paper_error"],
            ", ".join(f"{error:.2f} ({tag})" for tag, error in r["weights"].items()) or "-",
            r["genome"],
        )
        for r in rows
    ]
    _print_table(("name", "params", "MACs", "paper's error %", "error % (weights)", "genome"), table, right=(1, 2))


def run_count(options: argparse.Namespace) -> None:
    """Prints what a genome costs, block by block."""
    layout = Layout.named(options.name)
    genome = None if options.genome is None else layout.fit(options.genome)

    from ..nets.cost import count, count_blocks
    from ..nets.networks import build

    if genome is None:
        name = f"blockswap_{options.name.removeprefix('blockswap_')}"
        if name not in GENOMES and name != layout.name:
            raise ValueError(f"no network {options.name!r} in the zoo; see 'blockswap list', or give a genome")
        genome = GENOMES.get(name, layout.original)
    arguments = {"num_classes": options.num_classes, "in_chans": options.in_chans}
    model = build(
        layout, genome, device="meta", **{key: value for key, value in arguments.items() if value is not None}
    )
    channels, height, width = layout.input_size
    size = (options.in_chans or channels, options.image_size or height, options.image_size or width)
    total, blocks = count(model, size), count_blocks(model, size)
    rest = total - sum(blocks, Cost(0, 0))
    rows = [
        {
            "stage": place.stage,
            "block": place.block,
            "type": str(block),
            "in_chs": place.in_chs,
            "out_chs": place.out_chs,
            "stride": place.stride,
            "params": cost.params,
            "macs": cost.macs,
        }
        for place, block, cost in zip(layout.positions, genome.blocks, blocks, strict=True)
    ]
    if options.json:
        whole = {"params": total.params, "macs": total.macs}
        print(json.dumps({"network": layout.name, "genome": genome, **whole, "blocks": rows}, indent=1))
        return
    table = [
        (r["stage"], r["block"], r["type"], f"{r['in_chs']} to {r['out_chs']}", f"{r['params']:,}", _macs(r["macs"]))
        for r in rows
    ]
    table.append(("", "", "stem and head", "", f"{rest.params:,}", _macs(rest.macs)))
    table.append(("", "", "total", "", f"{total.params:,}", _macs(total.macs)))
    print(f"{layout.name} {genome}")
    _print_table(("stage", "block", "type", "channels", "params", "MACs"), table, right=(0, 1, 4, 5))


def run_space(options: argparse.Namespace) -> None:
    """Prints how many genomes fit a budget, and what can be met."""
    space, budget = space_and_budget(options)
    report: dict[str, Any] = {
        "network": space.layout.name,
        "types": [str(block) for block in space.types],
        "range": {cost: space.range(cost) for cost in PARSERS if cost != "latency" or space.latency},
        "genomes": space.count(),
        "spellings": space.count(distinct=False),
    }
    if budget is not None:
        report["budget"] = str(budget)
        try:
            report["fitting"] = space.count(budget)
            report["fitting_spellings"] = space.count(budget, distinct=False)
        except BudgetError:
            # Of several costs, or of one in too many different numbers.
            report["fitting_estimate"], report["sampled"] = space.estimate(budget)
    if options.json:
        print(json.dumps(report, indent=1))
        return
    least, most = report["range"]["params"]
    fewest, greatest = report["range"]["macs"]
    print(f"{space.layout.name}, {len(space.types)} block types: {' '.join(report['types'])}")
    print(f"genomes     {report['genomes']:,} ({report['spellings']:,} spellings)")
    print(f"parameters  {least:,} to {most:,}")
    print(f"MACs        {_macs(fewest)} to {_macs(greatest)}")
    if "latency" in report["range"]:
        print("latency     {} to {}".format(*(amount_text("latency", each) for each in report["range"]["latency"])))
    if "fitting" in report:
        print(f"within {budget}: {report['fitting']:,} ({report['fitting_spellings']:,} spellings)")
    elif budget is not None:
        print(f"within {budget}: about {report['fitting_estimate']:.2e}, estimated from {report['sampled']:,} found")


def run_search(options: argparse.Namespace) -> None:
    """Searches the best genome for a budget, and prints it."""
    if all(getattr(options, name) is None for name in PARSERS):
        raise ValueError("a search needs a budget; write --params 400k, or --macs 60m, or --latency 4ms")
    if options.data_dir is not None and options.data is None:
        raise ValueError("a data folder needs the dataset's name; write --data torch/cifar10, or --data folder")
    record = options.resume or options.out or _record_name(options)
    if options.resume is None:
        require_new(record)
    space, budget = space_and_budget(options)
    assert budget is not None

    import torch

    from ..searching.rankings import SCORES, after
    from ..searching.search import search

    score = after(SCORES[options.score], options.minibatches)
    options.advice = f"; go on with the same command and --resume{'' if not options.out else ' ' + record}"
    result = search(
        space,
        budget,
        options.samples,
        options.seed,
        data=_minibatch(options, space),
        score=score,
        strategy=options.strategy,
        draws=options.draws,
        refine=options.refine,
        workers=options.workers,
        device=options.device,
        dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        record=record,
        resume=options.resume is not None,
        progress=_progress,
    )
    _print_result(options, result, record)


def _minibatch(options: argparse.Namespace, space: SearchSpace) -> Minibatch:
    from ..searching.probe_images import affordable_parts, dataset_minibatch, noise_minibatch

    if options.batch_size < 2:
        raise ValueError(f"a minibatch has at least 2 images, not {options.batch_size}")
    number = options.batch_size * options.minibatches
    parts = affordable_parts(space, number)
    if options.data is None:
        return noise_minibatch(space, number, options.seed, parts)
    return dataset_minibatch(space, options.data, options.data_dir, number, options.seed, options.split, parts)


def _record_name(options: argparse.Namespace) -> str:
    amounts = [f"{name}{text}" for name in PARSERS if (text := getattr(options, name)) is not None]
    data = [] if options.data is None else [Path(options.data).name]
    score = [] if options.score == SCORE_NAMES[0] else [options.score]
    strategy = [] if options.strategy == STRATEGY_NAMES[0] else [options.strategy]
    trained = [] if options.minibatches == 1 else [f"after{options.minibatches}"]
    network = options.name.removeprefix("blockswap_")
    return "-".join([network, *amounts, *data, *score, *trained, *strategy, f"seed{options.seed}"]) + ".jsonl"


def _progress(results: Iterable[Any], total: int, done: int) -> Iterable[Any]:
    from tqdm import tqdm

    best = -math.inf
    # A log file gets a line now and then, a terminal a moving bar.
    with tqdm(
        total=total, initial=done, unit="score", mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True
    ) as bar:
        for row in results:
            best = max(best, -math.inf if row["score"] is None else row["score"])
            bar.set_postfix_str(f"best {best:.3g}", refresh=False)
            bar.update()
            yield row
        # The next round of a strategy goes on in its place.
        bar.leave = bar.n >= total


def _print_result(options: argparse.Namespace, result: SearchResult, record: str) -> None:
    best, space, layout = result.best, result.space, result.space.layout
    if options.json:
        top = [each.as_json() for each in result.candidates[: options.top]]
        print(
            json.dumps(
                {"network": layout.name, "best": top[0], "top": top, "rivals": result.rivals, "record": record},
                indent=1,
            )
        )
        return
    print(f"best of {len(result.candidates):,} genomes of {layout.name} within {result.budget}:\n\n  {best.genome}\n")
    _print_top(result.candidates[: options.top])
    if result.rivals is not None:
        print(f"\nas good as the best, as far as {len(best.draws)} draws can tell: {result.rivals} others")
    if best.shares:
        shares = iter(f"{share:.0%}" for share in best.shares)
        print(
            "\nshare of the best score by block: "
            + " / ".join(" ".join(next(shares) for _ in s) for s in best.genome.stages)
        )
    described = {"space": layout.name, "num_classes": space.num_classes, "input_size": space.input_size}
    print(f"record: {record}\n{build_text(described, best.genome)}")


def _print_top(top: Sequence[Candidate]) -> None:
    measured = any(each.cost.latency is not None for each in top)
    rows = [
        (
            rank,
            f"{each.score:.4g}",
            "" if math.isnan(each.spread) else f"{each.spread - 1:.0%}",
            len(each.draws),
            f"{each.cost.params:,}",
            _macs(each.cost.macs),
            *([_milliseconds(each.cost.latency)] if measured else []),
            each.genome,
        )
        for rank, each in enumerate(top, start=1)
    ]
    titles = ["rank", "score", "±", "draws", "params", "MACs", *(["latency"] if measured else []), "genome"]
    _print_table(titles, rows, right=range(len(titles) - 1))


def _macs(macs: int) -> str:
    return f"{macs / 1e6:,.1f} M"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:,.2f} ms"


def _print_table(titles: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> None:
    lines = [tuple(map(str, row)) for row in [titles, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
