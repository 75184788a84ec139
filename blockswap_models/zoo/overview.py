"""What the entries of the zoo cost, and which errors they have."""

from __future__ import annotations

from typing import Any

import timm

from ..nets.cost import count
from .cards import read_card, shipped
from .genomes import GENOMES, PAPER_ERRORS

__all__ = ["zoo_overview"]


def zoo_overview() -> list[dict[str, Any]]:
    """Lists the entries of the zoo: cost, the paper's error, the measured error of each weights' tag, genome."""
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
    return rows
