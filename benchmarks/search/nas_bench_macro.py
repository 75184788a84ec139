"""Do rankings of networks with random weights agree with the accuracy of the trained ones?

    python -m benchmarks.search.nas_bench_macro --table path/to/nas_bench_macro.json --data-dir path/to/cifar10 \\
        --out macro.jsonl

NAS-Bench-Macro (Su et al., 2021) holds the test accuracy of networks that its authors trained on CIFAR-10, three times
each. Here they have random weights, and are ranked among those of one number of parameters (± 2.5 %): of any depth, and
among those of seven layers, since the networks of a BlockSwap search have one depth. Each draw has new weights and two
minibatches; all rankings are means over both, and over draws (of logarithms where all are positive), but for ZiCo,
which compares the two. One forward and one backward pass of a minibatch give all rankings, and the file `--out` keeps
them: the same command goes on where it was stopped, with more `--networks` or `--draws` too.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from tqdm import tqdm

from benchmarks.lib.correlation import correlate
from benchmarks.lib.images import noise_images
from benchmarks.lib.macro import MacroNetwork, TrainedNetwork, genome_of, read_table
from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import run_script
from blockswap_models import SearchSpace
from blockswap_models.files import append_json_line, read_json_lines
from blockswap_models.nets.networks import branch_ends, residual_blocks
from blockswap_models.searching.fisher import set_scoring_modes
from blockswap_models.searching.probe_images import Minibatch, dataset_minibatch
from blockswap_models.searching.rankings import SCORES, compare_gradients, count_agreements, log_determinant, synflow

BUDGETS = (0.75, 1.0, 1.5, 2.0, 2.5)
TOLERANCE = 0.025
LAYERS = 7
# Groups of fewer networks say nothing.
FEWEST = 20
# Of these, all sums of two ranks are judged too.
PARTS = ("fisher", "fisher-balanced", "gradient-norm", "naswot", "synflow", "zico", "macs")
TIMED = ("fisher", "fisher-balanced", "gradient-norm", "naswot", "synflow", "zico")

Groups = dict[str, list[TrainedNetwork]]


def groups_of(table: Iterable[TrainedNetwork], number: int, seed: int) -> Groups:
    """Draws networks within each budget: `number` of any depth, and half as many of seven layers."""
    found: Groups = {}
    for layers, budget in itertools.product((None, LAYERS), BUDGETS):
        fitting = [
            each
            for each in table
            if abs(each.params / (budget * 1e6) - 1) <= TOLERANCE and layers in (None, each.layers)
        ]
        # More networks are those drawn before, and others.
        random.Random(f"{seed}/{budget}").shuffle(fitting)
        if len(fitting) >= FEWEST:
            depth = "any depth" if layers is None else f"{layers} layers"
            found[f"{budget} M, {depth}"] = fitting[: number if layers is None else (number + 1) // 2]
    return found


def score(network: TrainedNetwork, draw: int, data: Minibatch, seed: int) -> dict[str, Any]:
    """Computes all rankings of one draw: by block the potentials F of branches and O of outputs, and the others."""
    digest = hashlib.sha256(f"{seed}/{network.digits}/{draw}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    model = MacroNetwork(network.genome)
    minibatches = [data.batch((2 * draw + half) % data.num_batches) for half in range(2)]
    first, second = (measure(model, *each) for each in minibatches)
    return {
        "network": network.digits,
        "draw": draw,
        "scores": {
            "zico": compare_gradients(first["gradients"], second["gradients"]),
            "synflow": synflow(model, *minibatches[0]),
            **{name: (first[name] + second[name]) / 2 for name in ("gradient-norm", "naswot")},
        },
        **{
            name: [(a + b) / 2 for a, b in zip(first[name], second[name], strict=True)]
            for name in ("blocks", "outputs")
        },
    }


def measure(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Measures one minibatch, as the package does, but all rankings in one forward and one backward pass."""
    branches: dict[nn.Module, torch.Tensor] = {}
    outputs: dict[nn.Module, torch.Tensor] = {}
    blocks = list(zip(residual_blocks(model), branch_ends(model), strict=True))
    parameters = list(model.parameters())

    def keep(found: dict[nn.Module, torch.Tensor], block: nn.Module) -> Callable[..., None]:
        return lambda module, inputs, output: found.update({block: output})

    with ExitStack() as undo:
        set_scoring_modes(model, undo)
        kernel = count_agreements(model, images, undo)
        for block, end in blocks:
            if end is not None:
                undo.callback(end.register_forward_hook(keep(branches, block)).remove)
                undo.callback(block.register_forward_hook(keep(outputs, block)).remove)
        loss = F.cross_entropy(model(images), labels)
        found = torch.autograd.grad(loss, [*parameters, *branches.values()])
    by_parameter, by_branch = found[: len(parameters)], dict(zip(branches, found[len(parameters) :], strict=True))

    def potential(of: dict[nn.Module, torch.Tensor], block: nn.Module) -> float:
        # Branch and output have the same gradient: there is no activation after the addition.
        product = (of[block].detach() * by_branch[block]).sum(dim=(2, 3))
        return float(product.double().square().sum()) / (2 * len(images))

    return {
        "blocks": [0.0 if end is None else potential(branches, block) for block, end in blocks],
        "outputs": [0.0 if end is None else potential(outputs, block) for block, end in blocks],
        "gradient-norm": float(sum(each.abs().sum(dtype=torch.float64) for each in by_parameter)),
        "naswot": log_determinant(kernel, images),
        "gradients": [g for weight, g in zip(parameters, by_parameter, strict=True) if weight.ndim > 1],
    }


def rankings_of(rows: Sequence[dict[str, Any]], network: TrainedNetwork, usual: np.ndarray) -> dict[str, float]:
    """All rankings of a network, from its draws; `usual` is the median potential at each of the eight places."""

    def mean(of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.fmean(map(of, rows))

    def blocks(row: dict[str, Any]) -> np.ndarray:
        potentials = np.array(row["blocks"])
        return potentials[potentials > 0]

    def relative(row: dict[str, Any], name: str = "outputs") -> np.ndarray:
        potentials = np.array(row["blocks"])
        there = potentials > 0
        return potentials[there] / (usual if name == "usual" else np.array(row[name]))[there]

    return {
        "fisher": mean(lambda row: math.log(sum(row["blocks"]))),
        "fisher-balanced": mean(lambda row: float(np.log1p(relative(row)).sum())),
        **{name: mean(lambda row, name=name: row["scores"][name]) for name in ("naswot", "zico")},
        **{name: mean(lambda row, name=name: math.log(row["scores"][name])) for name in ("gradient-norm", "synflow")},
        "macs": network.macs,
        "layers": network.layers,
        "params": network.params,
        # Other ways to balance the blocks.
        "sum of roots": mean(lambda row: float(np.sqrt(blocks(row)).sum())),
        "sum of logs": mean(lambda row: float(np.log(blocks(row)).sum())),
        "mean of logs": mean(lambda row: float(np.log(blocks(row)).mean())),
        "last block": mean(lambda row: float(np.log(blocks(row)[-1]))),
        "sum of log F/O": mean(lambda row: float(np.log(relative(row)).sum())),
        "sum of F/O": mean(lambda row: float(relative(row).sum())),
        "log(1 + F/usual)": mean(lambda row: float(np.log1p(relative(row, "usual")).sum())),
        "log F/usual": mean(lambda row: float(np.log(relative(row, "usual")).sum())),
    }


def kendall(values: Sequence[float], accuracies: Sequence[float], samples: int) -> tuple[float, float, float]:
    """Kendall's tau with its 95 % interval, by the percentile bootstrap over networks."""
    one, other = np.asarray(values, dtype=float), np.asarray(accuracies, dtype=float)
    drawn = np.random.default_rng(0).integers(len(one), size=(samples, len(one)))
    taus = [stats.kendalltau(one[each], other[each]).statistic for each in drawn]
    low, high = np.nanpercentile(taus, [2.5, 97.5]) if np.isfinite(taus).any() else (math.nan, math.nan)
    return float(stats.kendalltau(one, other).statistic), float(low), float(high)


def accuracy_of_choice(values: Sequence[float], accuracies: Sequence[float]) -> float:
    """The accuracy of the network that ranks first, the mean of those that tie."""
    return statistics.fmean(a for v, a in zip(values, accuracies, strict=True) if v == max(values))


def print_group(
    name: str, group: Sequence[TrainedNetwork], rankings: dict[str, dict[str, float]], resamples: int
) -> dict[str, float]:
    """Prints how each ranking agrees with the accuracies of a group; returns Spearman's rho of each."""
    accuracies = [each.accuracy for each in group]
    print(
        f"\n{name}: {len(group)} networks, accuracy {min(accuracies):.2f} to {max(accuracies):.2f} %, "
        f"chosen at random {statistics.fmean(accuracies):.2f} %\n"
    )
    columns = {ranking: [rankings[each.digits][ranking] for each in group] for ranking in rankings[group[0].digits]}
    ranks = {part: stats.rankdata(columns[part]) for part in PARTS}
    pairs = {f"{a}+{b}": list(ranks[a] + ranks[b]) for a, b in itertools.combinations(PARTS, 2)}
    print(f"{'ranking':31}  Spearman               Kendall                its choice")
    found = {}
    for ranking, values in [*columns.items(), *pairs.items()]:
        rho = correlate(values, accuracies, resamples)
        found[ranking] = rho.rho
        tau = kendall(values, accuracies, min(300, resamples)) if ranking in columns else None
        said = f"{tau[0]:5.2f} ({tau[1]:5.2f} to {tau[2]:5.2f})" if tau else ""
        choice = accuracy_of_choice(values, accuracies)
        print(f"{ranking:31}  {rho.rho:5.2f} ({rho.low:5.2f} to {rho.high:5.2f})  {said:21}  {choice:5.2f} %")
    return found


def print_means(found: dict[str, dict[str, float]]) -> None:
    """Prints the mean of Spearman's rho over the groups of any depth, and over those of one depth."""
    kinds = {"any depth": [], f"{LAYERS} layers": []}
    for name, rhos in found.items():
        kinds[name.partition(", ")[2]].append(rhos)
    kinds = {kind: groups for kind, groups in kinds.items() if groups}
    print(f"\nmean of Spearman's rho over groups\n\n{'ranking':31}" + "".join(f"  {kind:>9}" for kind in kinds))
    for ranking in next(iter(found.values())):
        means = [statistics.fmean(rhos[ranking] for rhos in groups) for groups in kinds.values()]
        print(f"{ranking:31}" + "".join(f"  {mean:9.2f}" for mean in means))


def print_times(networks: Sequence[TrainedNetwork], data: Minibatch) -> None:
    """Prints what one score of a network costs by the package's own functions."""
    images, labels = data.batch(0)
    images = images.contiguous(memory_format=torch.channels_last)
    print(f"\nseconds of one CPU thread for a network and {len(images)} images, median of {len(networks)}:")
    for name in TIMED:
        seconds = []
        for each in networks:
            model = MacroNetwork(each.genome)
            started = time.process_time()
            SCORES[name](model, images, labels)
            seconds.append(time.process_time() - started)
        print(f"  {name:16} {statistics.median(seconds):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="nas_bench_macro.json")
    parser.add_argument("--data-dir", help="the folder of CIFAR-10; white noise with random labels without it")
    parser.add_argument("--out", help="the file of scores")
    parser.add_argument("--networks", type=int, default=60, help="networks of any depth within a budget")
    parser.add_argument("--draws", type=int, default=2, help="draws of the weights")
    parser.add_argument("--batch-size", type=int, default=32, help="images in each of the two minibatches of a draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time", type=int, default=3, help="networks to time; 0 for none")
    parser.add_argument(
        "--resamples", type=int, default=2000, help="resamples of the bootstrap; 300 at most of Kendall's"
    )
    parser.add_argument("--only-print", action="store_true", help="judge the scores that are there, compute none")
    parser.add_argument("--smoke", action="store_true", help="a tiny form on a made-up table")
    run_script(parser, run, table=None, networks=3, draws=1, batch_size=4, time=0, resamples=9)


def made_up_table() -> list[TrainedNetwork]:
    """Makes networks of one size and one depth, with the accuracies of nothing."""
    digits = ["0" + "".join(each) for each in itertools.product("12", repeat=7)]
    return [TrainedNetwork(each, genome_of(each), 80.0 + place % 7, 1_000_000, 1) for place, each in enumerate(digits)]


def run(options: argparse.Namespace) -> None:
    if options.out is None or (options.table is None and not options.smoke):
        raise ValueError("use --table nas_bench_macro.json and --out macro.jsonl")
    if min(options.networks, options.draws, options.batch_size) < 1:
        raise ValueError("--networks, --draws and --batch-size are at least 1")
    if options.table is not None and not options.table.is_file():
        raise ValueError(f"no file '{options.table}'; use the nas_bench_macro.json of NAS-Bench-Macro (--table)")
    out = Path(options.out) / "macro.jsonl" if options.smoke else Path(options.out)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", stats.ConstantInputWarning)
    table = made_up_table() if options.table is None else read_table(options.table)
    groups = groups_of(table, options.networks, options.seed)
    networks = list({each.digits: each for group in groups.values() for each in group}.values())
    random.Random(options.seed).shuffle(networks)
    if options.data_dir is None:
        images, labels = noise_images(16 * options.batch_size).train
        data = Minibatch(images.float() / 128 - 1, labels, source="noise", num_batches=16)
    else:
        data = dataset_minibatch(
            SearchSpace("wrn40_2"), "torch/cifar10", options.data_dir, options.batch_size, options.seed, num_batches=16
        )
    settings = {"images": options.batch_size, "seed": options.seed, "data": data.source}
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    whole = 0
    if out.exists():
        lines, torn = read_json_lines(out)
        whole = out.stat().st_size - len(torn)
        for line in lines:
            if {name: line[name] for name in settings} != settings:
                raise ValueError(f"{out} has scores of other settings; use another --out")
            rows.setdefault(line["network"], {})[line["draw"]] = line
    if not options.only_print:
        tasks = [(each, draw) for draw in range(options.draws) for each in networks]
        tasks = [(each, draw) for each, draw in tasks if draw not in rows.get(each.digits, {})]
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "r+b" if whole else "wb") as file:
            file.truncate(whole)
            file.seek(whole)
            for each, draw in tqdm(tasks, "scoring", mininterval=10, unit="network", disable=None):
                row = {**score(each, draw, data, options.seed), **settings}
                append_json_line(file, row)
                rows.setdefault(each.digits, {})[draw] = row
    # The file may have more than is asked for.
    rows = {
        each.digits: {draw: row for draw, row in rows[each.digits].items() if draw < options.draws}
        for each in networks
        if each.digits in rows
    }
    rows = {digits: by_draw for digits, by_draw in rows.items() if by_draw}
    if not rows:
        raise ValueError(f"{out} has no scores of these networks; leave out --only-print")
    # A network that was stopped before its last draw has fewer.
    potentials = np.array([row["blocks"] for by_draw in rows.values() for row in by_draw.values()])
    usual = np.array([np.median(place[place > 0]) if (place > 0).any() else 1.0 for place in potentials.T])
    rankings = {
        each.digits: rankings_of(list(rows[each.digits].values()), each, usual)
        for each in networks
        if each.digits in rows
    }
    draws = sum(map(len, rows.values()))
    print(f"{versions()}; {processor()}")
    print(
        f"{len(rankings)} networks, {draws} draws of two minibatches of {options.batch_size} images of {data.source}; "
        "intervals of 95 % by the bootstrap over networks"
    )
    found = {}
    for name, group in groups.items():
        there = [each for each in group if each.digits in rankings]
        if len(there) > 1:
            found[name] = print_group(name, there, rankings, options.resamples)
    if found:
        print_means(found)
    if options.time:
        print_times(networks[: options.time], data)


if __name__ == "__main__":
    main()
