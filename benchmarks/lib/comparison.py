"""What the scripts of the paper's tables do: count networks, train those asked for, print the paper's beside."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import nn

from benchmarks.lib.images import ALL_IMAGES
from benchmarks.lib.report import mean_and_deviation, versions
from benchmarks.lib.scripts import run_script
from benchmarks.lib.trained import Trainer, add_options, facts_of, longest_runs, records

__all__ = ["Network", "Paper", "main", "student"]


@dataclass(frozen=True)
class Paper:
    """A row of a table of the paper, as it prints it: thousands of parameters, millions of MACs, error in percent."""

    params: str
    macs: str
    error: str


@dataclass(frozen=True)
class Network:
    """A network of a table: what the paper says of it, how it is built to be counted, and how it is trained.

    name: that of its row and its runs; `group-…` for those of a group.
    counted: gives its facts, as `facts_of` does; `nonzero` is what the paper's parameters are.
    fit: trains it with a trainer and a seed, and returns the summary of the run.
    note: why the counts differ from the paper's, where they do.
    """

    name: str
    label: str
    paper: Paper
    counted: Callable[[], dict[str, Any]]
    fit: Callable[[Trainer, int, dict[str, Any]], dict[str, Any]] = field(repr=False)
    note: str = ""


def student(
    name: str,
    label: str,
    paper: Paper,
    model: str,
    genome: str | None = None,
    note: str = "",
) -> Network:
    """Describes a network of the zoo that learns from the teacher by attention transfer."""

    def build(**kwargs: Any) -> nn.Module:
        return timm.create_model(model, genome=genome, **kwargs)

    def fit(trainer: Trainer, seed: int, facts: dict[str, Any]) -> dict[str, Any]:
        return trainer.fit_student(name, seed, facts, build)

    return Network(name, label, paper, lambda: facts_of(build(device="meta")), fit, note)


def main(description: str, networks: Sequence[Network], reduced: Sequence[str], remarks: str) -> None:
    """Runs the script of a table.

    `reduced` are the rows that are trained where none are named and there is no GPU, and by --smoke; `remarks` are
    printed below the table.
    """
    parser = argparse.ArgumentParser(description=description)
    add_options(parser)
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help=f"networks or groups to train, or all (all; without a GPU {' '.join(reduced)})",
    )

    def run(options: argparse.Namespace) -> None:
        _chosen(networks, options.rows)
        if options.train:
            _run(networks, options, reduced, remarks)
        else:
            _print(networks, [network.counted() for network in networks], records(options.out), remarks)

    run_script(parser, run)


def _chosen(networks: Sequence[Network], rows: Sequence[str] | None) -> list[Network]:
    known = {network.name for network in networks} | {network.name.partition("-")[0] for network in networks} | {"all"}
    for row in rows or ():
        if row not in known:
            raise ValueError(f"no row '{row}'; use {', '.join(network.name for network in networks)} or all (--rows)")
    return [
        network for network in networks if not rows or {"all", network.name, network.name.partition("-")[0]} & set(rows)
    ]


def _run(networks: Sequence[Network], options: argparse.Namespace, reduced: Sequence[str], remarks: str) -> None:
    trainer = Trainer.of(options)
    chosen = _chosen(networks, options.rows or (reduced if trainer.device.type == "cpu" else None))
    seeds = [0] if options.smoke else options.seeds
    print(f"training {' '.join(network.name for network in chosen)}, seeds {' '.join(map(str, seeds))}")
    print(trainer, flush=True)
    if options.smoke:
        networks = chosen
    counted = {network.name: network.counted() for network in networks}
    for seed in seeds:
        for network in chosen:
            summary = network.fit(trainer, seed, counted[network.name])
            print(
                f"  {network.name:16s} seed {seed}: top-1 error {summary['top1_error']:.2f} %, "
                f"{summary['seconds']:,.0f} s",
                flush=True,
            )
    _print(networks, list(counted.values()), trainer.collect(), remarks)


def _print(
    networks: Sequence[Network],
    counted: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    remarks: str,
) -> None:
    """Prints the table: parameters, MACs and errors, each ours first and the paper's beside it."""
    print(versions())
    print(f"{'':32s}{'parameters':>18s}   {'MACs (M)':>14s}   top-1 error (%)")
    print(f"{'row':16s}{'network':16s}{'ours':>9s}{'paper':>9s}   {'ours':>7s}{'paper':>7s}   {'ours':34s}paper")
    for network, facts in zip(networks, counted, strict=True):
        macs = "-" if network.paper.macs == "-" else f"{facts['macs'] / 1e6:.1f}"
        params = f"{facts['nonzero']:>9,}{network.paper.params + ' K':>9s}"
        error = _error([row for row in rows if row["name"] == network.name])
        print(
            f"{network.name:16s}{network.label:16s}{params}   {macs:>7s}{network.paper.macs:>7s}   "
            f"{error:34s}{network.paper.error}"
        )
    for network in networks:
        if network.note:
            print(f"{network.name}: {network.note}")
    print(remarks)


def _error(rows: Sequence[dict[str, Any]]) -> str:
    """Sums up the longest runs of a network: mean and standard deviation of the errors, their number and their length.

    The images are named where they are not all of CIFAR-10.
    """
    rows = longest_runs(rows)
    if not rows:
        return ""
    images, epochs = rows[0]["train_images"], rows[0]["epochs"]
    errors = [row["top1_error"] for row in rows]
    part = f" of {images:,}" if images < ALL_IMAGES else ""
    return f"{mean_and_deviation(errors)} ({len(errors)} x {epochs} ep.{part})"
