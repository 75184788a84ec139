"""`blockswap space` and `blockswap search`: which genomes fit a budget, and the best of them."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ..budget import Budget, BudgetError, amount_text
from ..counts import require_counts
from ..machine import default_workers, find_device
from ..messages import counted, did_you_mean, listed, quote
from ..progress import progress_bar
from ..searching.latency import LatencyTable
from ..searching.record import RecordError, build_text, read_header, read_record, require_new
from .errors import advise_when_interrupted, without_warning
from .parameters import (
    AMOUNT,
    AMOUNTS,
    LATENCIES,
    LATENCY,
    SIZE,
    SIZES,
    Decorator,
    Read,
    holdout_options,
    network_options,
    refuse_given,
    subcommand,
    together,
    top_option,
)
from .records import train_text
from .tables import front_report, in_megas, print_front, print_json, print_ranking

if TYPE_CHECKING:
    from ..searching.front import Front
    from ..searching.probe_images import ImageSpec, Minibatch
    from ..searching.result import SearchResult
    from ..searching.space import SearchSpace

__all__ = [
    "SCORE_NAMES",
    "STRATEGY_NAMES",
    "image_options",
    "minibatch_of",
    "read_images",
    "score_option",
    "search_",
    "space_",
    "space_of",
    "tied_text",
]

# The keys of `rankings.SCORES`, which needs torch.
SCORE_NAMES = (
    *(
        "fisher",
        "fisher-balanced",
        "fisher-printed",
        "gradient-norm",
        "l2-norm",
        "accuracy",
        "params",
        "macs",
        "naswot",
        "synflow",
        "zico",
    ),
)


def _check_score(text: str) -> str:
    """Checks the name of a score, or of several with + between them; raises ValueError."""
    names = [name.strip() for name in text.split("+")]
    for name in names:
        if "," in name:
            raise ValueError(f"unknown score {quote(name)}; join scores with +, as in fisher+naswot")
        if name not in SCORE_NAMES:
            advice = did_you_mean(name, SCORE_NAMES, f"use {listed(SCORE_NAMES)}")
            raise ValueError(f"unknown score {quote(name)}; {advice}")
        if names.count(name) > 1:
            raise ValueError(f"{quote(text)} has {quote(name)} {names.count(name)} times; use it once")
    return "+".join(names)


score_option = click.option(
    "--score",
    type=Read("score", _check_score),
    metavar="NAME[+NAME…]",
    help=f"what to rank by: {listed(SCORE_NAMES)}; or a sum of ranks, joined with + [default: fisher+naswot, or fisher "
    "for networks without ReLU]",
)
image_options = together(
    click.option(
        "--data", help="torch/cifar10 or a timm dataset, coco, or a folder of images [default: images of 1/f noise]"
    ),
    click.option("--data-dir", metavar="FOLDER", help="the folder of the dataset"),
    click.option("--split", default="train", help="the split of the dataset"),
    holdout_options(),
    click.option("--batch-size", type=int, help="images in a minibatch [default: 8; 32 for scores that need more]"),
)
# The keys of `strategies.STRATEGIES`, which needs torch.
STRATEGY_NAMES = ("random", "surrogate")
# The costs that a budget may name.
_COSTS = ("params", "macs", "latency", "size")


def _space_options(several: bool) -> Decorator:
    """The options of a space and a budget; with `several`, an amount may be a list of them."""
    amount, time, size = (AMOUNTS, LATENCIES, SIZES) if several else (AMOUNT, LATENCY, SIZE)
    lists = "; 200k,400k for a front" if several else ""
    return together(
        network_options,
        click.option(
            "--params", type=amount, help=f"a budget of parameters, such as 400k, or 20% of the original{lists}"
        ),
        click.option("--macs", type=amount, help="a budget of multiply-accumulates, such as 60m"),
        click.option("--latency", type=time, help="a budget of measured time, such as 4ms or ..800us"),
        click.option("--size", type=size, help="bytes of the weights file that 'pack' writes, such as 500kB"),
        click.option("--latency-table", metavar="FILE", help="the table that 'blockswap profile' wrote"),
        click.option(
            "--tolerance",
            type=float,
            default=0.025,
            help="fraction by which a cost may differ from an amount alone",
        ),
    )


@subcommand("space", "how many genomes fit a budget, and what can be met")
@_space_options(several=False)
def space_(as_json: bool, **arguments: Any) -> None:
    """Prints how many genomes fit a budget, and what can be met."""
    options = SimpleNamespace(**arguments)
    space = _space(options)
    amounts: dict[str, Any] = {name: given.value for name in _COSTS if (given := getattr(options, name)) is not None}
    budget = None
    if amounts:
        space, budget = space.resolve(Budget(**amounts, tolerance=options.tolerance))
    measured = {"latency": space.latency is not None, "size": space.has_sizes}
    report: dict[str, Any] = {
        "network": space.layout.name,
        "types": [str(block) for block in space.types],
        "range": {cost: space.range(cost) for cost in _COSTS if measured.get(cost, True)},
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
    if as_json:
        print_json(report)
        return
    least, most = report["range"]["params"]
    fewest, greatest = report["range"]["macs"]
    print(f"{space.layout.name}, {counted(len(space.types), 'block type')}: {' '.join(report['types'])}")
    print(f"genomes     {report['genomes']:,} ({counted(report['spellings'], 'spelling')})")
    print(f"parameters  {least:,} to {most:,}")
    print(f"MACs        {in_megas(fewest)} to {in_megas(greatest)}")
    if "latency" in report["range"]:
        print("latency     {} to {}".format(*(amount_text("latency", each) for each in report["range"]["latency"])))
    if "size" in report["range"]:
        print("size        {:,} to {:,} bytes".format(*report["range"]["size"]))
    if "fitting" in report:
        print(f"within {budget}: {report['fitting']:,} ({counted(report['fitting_spellings'], 'spelling')})")
    elif budget is not None:
        print(f"within {budget}: about {report['fitting_estimate']:.2e}, estimated from {report['sampled']:,} found")


@subcommand("search", "the best genome for a budget, by scores of networks with random weights")
@_space_options(several=True)
@click.option("--front", type=click.Choice(_COSTS), help="search at several budgets of this cost, over its whole range")
@click.option("--points", type=int, default=6, help="how many budgets --front spreads")
@click.option("--samples", type=int, default=1000, help="genomes to score for each budget; of a library 50 at most")
@click.option("--seed", type=int, default=0, help="seed of genomes, weights and images")
@image_options
@score_option
@click.option("--minibatches", type=int, default=1, help="N: score each genome on the last of N, trained on the rest")
@click.option(
    "--strategy",
    type=click.Choice((*STRATEGY_NAMES, "library")),
    help="how genomes are chosen: at random, by what the scores so far predict, or by the errors of a library "
    "[default: random; surrogate for several budgets]",
)
@click.option("--library", metavar="FOLDER", help="the trained blocks of --strategy library")
@click.option("--draws", type=int, default=1, help="draws of the weights for each genome")
@click.option("--refine", type=int, default=3, help="rounds that give the best quarter four times the draws")
@click.option("--workers", type=int, default=default_workers, show_default="one a core", help="processes that score")
@click.option("--device", default="cpu", help="where to score, such as cpu or cuda")
@click.option(
    "--dtype",
    type=click.Choice(("auto", "float32", "bfloat16")),
    default="auto",
    help="precision; auto is bfloat16 where the device computes in it, else float32",
)
@click.option("--out", metavar="FILE", help="the record, one JSON line a score [default: named after the search]")
@click.option(
    "--resume", is_flag=False, flag_value="", metavar="[RECORD]", help="continue a record after an interruption"
)
@top_option
def search_(as_json: bool, **arguments: Any) -> None:
    """Searches the best genome for a budget, or a front over several budgets, and prints what it finds."""
    options = SimpleNamespace(**arguments)
    if options.strategy == "library" and options.library is None:
        raise ValueError("--strategy library needs --library FOLDER, which 'blockswap library' makes")
    if options.library is not None and options.strategy != "library":
        raise ValueError("a library of blocks has a strategy of its own; use --strategy library --library FOLDER")
    if options.front is None and all(getattr(options, name) is None for name in _COSTS):
        raise ValueError("a search needs a budget; use --params 400k, or --macs 60m, or --latency 4ms, or --size 500kB")
    options.holdout = None
    require_counts(top=options.top)
    if options.resume and options.out and options.resume != options.out:
        raise ValueError(f"{quote(options.resume)} is continued where it is; leave out --out, or --resume")
    if options.front is None:
        refuse_given(["points"], "is for a front; use --front params")
    if options.data is None:
        refuse_given(["split", "val_share", "val_seed"], "is of a dataset; use --data")
    if options.front is not None and getattr(options, options.front) is not None:
        raise ValueError(f"--front {options.front} chooses its budgets; leave out --{options.front}, or --front")
    if options.data_dir is not None and options.data is None:
        raise ValueError("a data folder needs the dataset's name; use --data torch/cifar10, or --data folder")
    if options.library is not None:
        refuse_given(_NOT_OF_A_LIBRARY, "is not for --strategy library, which joins its blocks as they are")
        options.batch_size = 32 if options.batch_size is None else options.batch_size
        require_counts(samples=options.samples, batch_size=options.batch_size)
        _search_library(options, as_json)
        return
    record, header = _record_of(options)
    if header is not None:
        _go_on_as(options, record, header)
    elif options.data is not None:
        read_images(options)
    space = _space(options)
    budgets = _budgets(options, space)

    import torch

    from ..searching.front import search_front
    from ..searching.rankings import after, score_named
    from ..searching.search import search

    device = find_device(options.device)
    score = after(score_named(options.score, space.has_relus), options.minibatches)
    advise_when_interrupted(_how_to_go_on(options))
    given: dict[str, Any] = {
        "data": minibatch_of(options, space),
        "score": score,
        "draws": options.draws,
        "refine": options.refine,
        "workers": options.workers,
        "device": device,
        "dtype": None if options.dtype == "auto" else getattr(torch, options.dtype),
        "record": record,
        "resume": options.resume is not None,
        **({} if options.strategy is None else {"strategy": options.strategy}),
    }
    if len(budgets) == 1 and options.front is None:
        result = search(space, budgets[0], options.samples, options.seed, progress=True, on_interrupt="raise", **given)
        _print_result(result, record, options.top, as_json)
    else:
        along = options.front
        front = search_front(space, budgets, options.samples, options.seed, cost=along, progress=True, **given)
        _print_front(front, record, options.top, as_json)


# What the search by a library leaves unused.
_NOT_OF_A_LIBRARY = (
    *("types", "num_classes", "in_chans", "image_size", "front", "points", "score", "minibatches", "draws", "refine"),
    *("workers", "device", "dtype"),
)
# Genomes that are joined, and images on which each is measured.
_JOINED, _JOINED_IMAGES = 50, 1000


def _search_library(options: SimpleNamespace, as_json: bool) -> None:
    """Chooses blocks of a library within a budget, and prints which."""
    from ..data.facts import holdout_of, holdout_text
    from ..nets.library import BlockLibrary
    from ..searching.block_choice import best_by_errors, search_library, space_of_library
    from ..searching.probe_images import dataset_minibatch
    from ..zoo.original import original_network

    if options.data is None:
        raise ValueError("joined blocks are measured on labelled images; use --data")
    record, header = _record_of(options)
    if header is not None:
        _go_on_as(options, record, header)
    else:
        options.holdout = holdout_of(options.data, options.data_dir, options.val_share, options.val_seed)
    library = BlockLibrary.load(options.library)
    network = options.network.value if isinstance(options.network.value, str) else options.network.value.name
    if library.header["network"] not in (network.partition(".")[0], options.network.text):
        raise ValueError(f"the library {quote(options.library)} is of {library.header['network']}, not of {network}")
    model = original_network(library)
    table = _latency_table(options)
    with warnings.catch_warnings(record=True) as said:
        space = space_of_library(model, library, table)
    for each in said:
        click.echo(each.message, err=True)
    budgets = _budgets(options, space)
    if len(budgets) > 1:
        raise ValueError("a library is searched at one budget; use one amount")
    space, budget = space.resolve(budgets[0])
    size = options.batch_size
    if options.holdout is not None:
        click.echo(holdout_text(options.data, options.data_dir, options.holdout), err=True)
    # What the library learned from, and not what the result is measured on.
    images = dataset_minibatch(
        *(space, options.data, options.data_dir, size, options.seed, options.split),
        num_batches=-(-_JOINED_IMAGES // size),
        holdout=options.holdout,
    )
    number = min(_JOINED, options.samples)
    advise_when_interrupted(_how_to_go_on(options))
    with without_warning("the library .* is unfinished"):
        result = search_library(
            model,
            library,
            budget,
            images,
            number,
            latency=table,
            record=record,
            resume=options.resume is not None,
            progress=lambda each: progress_bar(each, "genome"),
        )
    least = best_by_errors(space, budget, library, 1)[0]
    best = result.best
    if as_json:
        top = [each.as_json() for each in result.candidates[: options.top]]
        report = {"network": space.layout.name, "best": top[0], "top": top, "error": least.error, "gap": least.gap}
        print_json({**report, "record": record})
        return
    found = len(result.candidates)
    genomes = counted(found, "genome")
    print(f"best of {genomes} of {space.layout.name} within {budget} with the smallest sums of errors,")
    print(f"by their accuracy in percent when joined, on {len(images.images):,} images:\n\n  {best.genome}\n")
    print_ranking(result.candidates[: options.top])
    proved = "the smallest there is" if least.gap == 0 else f"at most {least.gap:.2%} above the smallest there is"
    print(f"\nsmallest sum of errors: {least.error:.4f}, {proved}")
    print(f"record: {record}\n{train_text(read_record(record)[0], record)}")


def read_images(options: SimpleNamespace) -> None:
    """Takes classes, channels and size from a folder's images if they are not given, and prints them."""
    from ..data.facts import holdout_of, holdout_text, image_facts

    options.holdout = holdout_of(options.data, options.data_dir, options.val_share, options.val_seed)
    facts = image_facts(options.data, options.data_dir, options.split, options.holdout)
    if facts is None:
        return
    # A folder of five classes is searched with a head of five, which counts in a budget of parameters.
    for name, size in facts.sizes(_input_size(options)).items():
        if getattr(options, name) is None:
            setattr(options, name, size)
    if options.holdout is not None:
        click.echo(holdout_text(options.data, options.data_dir, options.holdout), err=True)


def _input_size(options: SimpleNamespace) -> tuple[int, int, int]:
    """The size of the images that a network takes by itself: of a layout, or of a name of timm."""
    if not isinstance(options.network.value, str):
        size: tuple[int, int, int] = options.network.value.input_size
        return size
    import timm

    cfg = timm.get_pretrained_cfg(options.network.value)
    return (3, 224, 224) if cfg is None else cfg.input_size


def _go_on_as(options: SimpleNamespace, record: str, header: dict[str, Any]) -> None:
    """Takes classes, channels, size and held out images from a record if they are not given, to continue it."""
    from ..data.folders import find_dataset
    from ..data.holdout import HoldOut
    from ..data.splits import splits_in

    channels, height, width = header.get("input_size") or _input_size(options)
    told = {"num_classes": header.get("num_classes"), "in_chans": channels}
    told |= {"image_size": height} if height == width else {}
    for name, value in told.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    about = header.get("about") or {}
    if "val_share" not in about:
        # Of a folder without splits a search of an older version saw all images, and so does what continues it.
        return
    options.holdout = HoldOut(about["val_share"], about["val_seed"])
    if options.data is not None:
        name, folder = find_dataset(options.data, options.data_dir)
        if name == "folder" and (splits := splits_in(folder)):
            raise RecordError(
                f"{record} began before {quote(folder)} had splits ({', '.join(each.name for each in splits)}), and "
                "scores of other images cannot be compared; use another out=, or the folder as it was"
            )


def space_of(options: SimpleNamespace, table: LatencyTable | None = None) -> SearchSpace:
    """Makes the search space of a command's options; raises ValueError for a mistake."""
    from ..searching.space import SearchSpace

    types = {} if options.types is None else {"types": options.types}
    return SearchSpace(
        options.network.value,
        num_classes=options.num_classes,
        in_chans=options.in_chans,
        image_size=options.image_size,
        latency=table,
        **types,
    )


def _space(options: SimpleNamespace) -> SearchSpace:
    """Makes the space of a command, with its table of latencies."""
    return space_of(options, _latency_table(options))


def _latency_table(options: SimpleNamespace) -> LatencyTable | None:
    """Reads the table of latencies of a command; raises BudgetError where a budget or a front lacks one."""
    if options.latency_table is not None:
        return LatencyTable.load(options.latency_table)
    if options.latency is not None or getattr(options, "front", None) == "latency":
        raise BudgetError(
            "a budget of latency needs a table of measured latencies; measure one with 'blockswap profile NETWORK "
            "--out table.json' and use --latency-table table.json"
        )
    return None


def _budgets(options: SimpleNamespace, space: SearchSpace) -> list[Budget]:
    """Makes the budgets of a search: one, or those of a front."""
    amounts: dict[str, Any] = {name: given.value for name in _COSTS if (given := getattr(options, name)) is not None}
    lists = [f"--{name}" for name, each in amounts.items() if len(each) > 1]
    if len(lists) + (options.front is not None) > 1:
        raise ValueError(f"a front is along one cost; use one amount for {lists[-1]}")
    if options.front is not None:
        from ..searching.front import budgets_along

        beside: dict[str, Any] = {name: each[0] for name, each in amounts.items() if name != options.front}
        within = Budget(**beside, tolerance=options.tolerance) if beside else None
        along = budgets_along(space, options.front, options.points, options.tolerance, within)
        amounts[options.front] = [getattr(each, options.front) for each in along]
    several = next((name for name, each in amounts.items() if len(each) > 1), next(iter(amounts)))
    others: dict[str, Any] = {name: each[0] for name, each in amounts.items() if name != several}
    return [Budget(**{several: each}, **others, tolerance=options.tolerance) for each in amounts[several]]


def minibatch_of(options: SimpleNamespace, space: ImageSpec) -> Minibatch:
    """Makes the images of a command's options, for networks of a space or of any other kind."""
    from ..searching.probe_images import affordable_batches, dataset_minibatch, noise_minibatch
    from ..searching.rankings import images_of, score_named

    size = images_of(score_named(options.score)) if options.batch_size is None else options.batch_size
    if size < 2:
        raise ValueError(f"a minibatch has at least 2 images, not {size}")
    number = size * options.minibatches
    num_batches = affordable_batches(space, number)
    if options.data is None:
        return noise_minibatch(space, number, options.seed, num_batches)
    return dataset_minibatch(
        space, options.data, options.data_dir, number, options.seed, options.split, num_batches, options.holdout
    )


def _record_of(options: SimpleNamespace) -> tuple[str, dict[str, Any] | None]:
    """The record of a search, and what it says where it is continued; raises RecordError for one that is there."""
    record = options.resume or options.out or _record_name(options)
    if options.resume is None:
        require_new(record)
    return record, read_header(record) if options.resume is not None and Path(record).is_file() else None


def _record_name(options: SimpleNamespace) -> str:
    amounts = [f"{name}{given.text}" for name in _COSTS if (given := getattr(options, name)) is not None]
    data = [] if options.data is None else [Path(options.data).name]
    score = [] if options.score is None else [options.score]
    if options.front is not None:
        amounts.insert(0, f"front-{options.front}{options.points}")
    strategy = [] if options.strategy in (None, STRATEGY_NAMES[0]) else [options.strategy]
    trained = [] if options.minibatches == 1 else [f"after{options.minibatches}"]
    network = options.network.text.removeprefix("blockswap_")
    return "-".join([network, *amounts, *data, *score, *trained, *strategy, f"seed{options.seed}"]) + ".jsonl"


def _how_to_go_on(options: SimpleNamespace) -> str:
    """Says how a search is continued: with its record where that has a name of its own."""
    return f"continue with the same command and --resume{f' {shlex.quote(options.out)}' if options.out else ''}"


def _print_front(front: Front, record: str, number: int, as_json: bool) -> None:
    budgets = [each.budget for each in front.results]
    rankings = [each.candidates for each in front.results]
    space = front.results[0].space
    if as_json:
        report = front_report(budgets, rankings, front.candidates, number)
        print_json({"network": space.layout.name, "cost": front.cost, **report, "record": record})
        return
    print(f"{space.layout.name}: {counted(len({each.genome for own in rankings for each in own}), 'genome')}\n")
    print_front(budgets, rankings, front.candidates)
    print(f"\nrecord: {record}")


def _print_result(result: SearchResult, record: str, number: int, as_json: bool) -> None:
    best, layout = result.best, result.space.layout
    if as_json:
        top = [each.as_json() for each in result.candidates[:number]]
        print_json({"network": layout.name, "best": top[0], "top": top, "rivals": result.num_tied, "record": record})
        return
    found = counted(len(result.candidates), "genome")
    print(f"best of {found} of {layout.name} within {result.budget}:\n\n  {best.genome}\n")
    print_ranking(result.candidates[:number])
    if result.num_tied is not None:
        print(f"\n{tied_text(result.num_tied, len(best.scores))}")
    if best.shares:
        shares = iter(f"{share:.0%}" for share in best.shares)
        print(
            f"\nshare of {best.shares_of} by block: "
            + " / ".join(" ".join(next(shares) for _ in s) for s in best.genome.stages)
        )
    header = read_record(record)[0]
    print(f"record: {record}\n{build_text(header, best.genome)}\n{train_text(header, record)}")


def tied_text(number: int, draws: int) -> str:
    """Says how many other genomes are statistically tied with the best."""
    others = "1 other genome is" if number == 1 else f"{number:,} other genomes are" if number else "no other genome is"
    return f"{others} statistically tied with the best ({counted(draws, 'draw')})"
