"""`blockswap list` and `blockswap count`: what networks there are, and what a genome costs."""

from __future__ import annotations

from typing import Any

import click

from ..budget import Cost
from ..counts import require_counts
from ..genome import BlockType, Genome
from ..layout import Layout
from ..zoo.genomes import own_genome
from .parameters import GENOME, NETWORK, Given, size_options, subcommand
from .tables import in_megas, print_json, print_table

__all__ = ["count_", "list_"]


@subcommand("list", "the zoo: cost, the paper's error, weights, genome")
def list_(as_json: bool) -> None:
    """Prints the zoo."""
    from ..zoo.overview import zoo_overview

    rows = zoo_overview()
    if as_json:
        print_json(rows)
        return
    table = [
        (
            row["name"],
            f"{row['params']:,}",
            in_megas(row["macs"]),
            row["paper_error"],
            ", ".join(f"{error:.2f} ({tag})" for tag, error in row["weights"].items()) or "-",
            row["genome"],
        )
        for row in rows
    ]
    print_table(("name", "params", "MACs", "paper's error %", "error % (weights)", "genome"), table, right=(1, 2))


@subcommand("count", "what a genome costs, block by block")
@click.argument("network", type=NETWORK, help="a network, such as wrn40_2 or resnet34_3m")
@click.argument(
    "genome",
    type=GENOME,
    required=False,
    help="its block types, such as 6xS/6xG4/6xB2 [default: the network's own]",
)
@size_options
def count_(
    network: Given,
    genome: Genome | None,
    num_classes: int | None,
    in_chans: int | None,
    image_size: int | None,
    as_json: bool,
) -> None:
    """Prints what a genome costs, block by block: the network's own by default."""
    require_counts(num_classes=num_classes, in_chans=in_chans, image_size=image_size)
    if genome is not None and BlockType("K") in genome.blocks and not isinstance(network.value, str):
        import timm

        # Only a network of timm has blocks to keep, as where a model has a genome.
        if timm.is_model(network.text):
            network = Given(network.text, network.text)
    if isinstance(network.value, str):
        from ..nets.swap import BlockNetwork

        size = None if image_size is None else (image_size, image_size)
        swapped = BlockNetwork(network.value, num_classes, in_chans, size)
        layout = swapped.layout
        genome = layout.original if genome is None else layout.fit(genome)
        blocks = [swapped.option_cost(index, block) for index, block in enumerate(genome.blocks)]
        total = sum(blocks, swapped.fixed)
    else:
        layout = network.value
        genome = own_genome(network.text) if genome is None else layout.fit(genome)
        total, blocks = _count(layout, genome, num_classes, in_chans, image_size)
    rows: list[dict[str, Any]] = [
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
    if as_json:
        print_json(
            {"network": layout.name, "genome": genome, "params": total.params, "macs": total.macs, "blocks": rows}
        )
        return
    table = [
        (r["stage"], r["block"], r["type"], f"{r['in_chs']} to {r['out_chs']}", f"{r['params']:,}", in_megas(r["macs"]))
        for r in rows
    ]
    for name, cost in {"stem and head": total - sum(blocks, Cost(0, 0)), "total": total}.items():
        table.append(("", "", name, "", f"{cost.params:,}", in_megas(cost.macs)))
    print(f"{layout.name} {genome}")
    print_table(("stage", "block", "type", "channels", "params", "MACs"), table, right=(0, 1, 4, 5))


def _count(
    layout: Layout, genome: Genome, num_classes: int | None, in_chans: int | None, image_size: int | None
) -> tuple[Cost, list[Cost]]:
    """Counts a network and each of its blocks."""
    from ..nets.cost import count, count_blocks
    from ..nets.networks import build

    arguments = {"num_classes": num_classes, "in_chans": in_chans}
    given = {key: value for key, value in arguments.items() if value is not None}
    model = build(layout, genome, device="meta", **given)
    channels, height, width = layout.input_size
    size = (in_chans or channels, image_size or height, image_size or width)
    return count(model, size), count_blocks(model, size)
