"""What the entries of the zoo are: their genomes, and the errors that the paper reports.

This module needs the standard library only.
"""

from __future__ import annotations

from ..genome import Genome
from ..layout import Layout
from ..messages import did_you_mean, quote

__all__ = ["GENOMES", "PAPER_ERRORS", "own_genome"]

GENOMES: dict[str, Genome] = {
    name: Genome(text)
    for name, text in {
        "blockswap_wrn40_2": "6xS/6xS/6xS",
        "blockswap_wrn40_1": "6xS/6xS/6xS",
        "blockswap_wrn16_2": "2xS/2xS/2xS",
        "blockswap_wrn16_1": "2xS/2xS/2xS",
        "blockswap_wrn40_2_811k": "B4,S,B2G16,G4,G8,B4/G4,S,G16,G2,S,W16/W8,2xG2,B2W8,B2W4,G8",
        "blockswap_wrn40_2_556k": "W16,B2W8,G2,W1,W16,W4/B4,B2W16,G4,W8,B2G2,B2G4/W2,G2,W16,W2,W16,W2",
        "blockswap_wrn40_2_404k": "S,W16,W1,G2,B2,G8/W2,W16,G8,G16,W8,G4/2xW4,B2G4,2xW8,B2W16",
        "blockswap_wrn40_2_289k": "G16,G2,W4,G2,B2G8,B4/G2,B2,B2W4,W8,G16,B2G16/W2,B2W16,W4,B2W8,B2W2,B2W8",
        "blockswap_wrn40_2_217k": "2xB2G16,B4,W1,B2W16,W1/B2G8,B2,B2W2,W16,B2W4,B2W8/W2,B2G16,B2G8,B2G16,B2G8,B2W4",
        "blockswap_wrn40_2_162k": "B2G2,B2W16,B4W8,2xW1,B2G4/2xW4,W2,B4W2,B2G8,B2W4/B2W16,B4W2,B4W8,B2W2,B4W4,B4",
        "blockswap_resnet34": "3xS/4xS/6xS/3xS",
        "blockswap_resnet18": "2xS/2xS/2xS/2xS",
        "blockswap_resnet34_8m": "B2W4,W4,B2G8/S,B2W4,B2W16,B2W8/S,B2G2,B2G8,B2G4,G4,S/S,W1,B2W8",
        "blockswap_resnet34_3m": "G8,2xB2W2/S,G2,W2,B2/G16,B2G16,B2W16,W4,B2G2,B2G8/B2W2,W4,B2G4",
    }.items()
}

# Top-1 test errors in percent that the paper reports (Tables 2 and 3), trained there, not here.
PAPER_ERRORS: dict[str, str] = {
    "blockswap_wrn40_2": "3.96",
    "blockswap_wrn40_1": "4.57",
    "blockswap_wrn16_2": "4.78",
    "blockswap_wrn16_1": "7.32",
    "blockswap_wrn40_2_811k": "3.79 ± 0.01",
    "blockswap_wrn40_2_556k": "4.17 ± 0.22",
    "blockswap_wrn40_2_404k": "4.21 ± 0.13",
    "blockswap_wrn40_2_289k": "4.45 ± 0.18",
    "blockswap_wrn40_2_217k": "4.68 ± 0.37",
    "blockswap_wrn40_2_162k": "5.17 ± 0.00",
    "blockswap_resnet34": "26.73",
    "blockswap_resnet18": "29.18",
    "blockswap_resnet34_8m": "26.24",
    "blockswap_resnet34_3m": "29.57",
}


def own_genome(network: str) -> Genome:
    """Finds the genome of a network of the zoo, or the original one of a layout.

    Raises ValueError where the name is neither's, such as `wrn40_2_400k`, of which only the layout is known.
    """
    short = network.removeprefix("blockswap_")
    name = f"blockswap_{short}"
    if name in GENOMES:
        return GENOMES[name]
    layout = Layout.named(network)
    if layout.name not in (name, network):
        names = [each.removeprefix("blockswap_") for each in GENOMES]
        advice = did_you_mean(short, names, "see 'blockswap list', or give a genome")
        raise ValueError(f"no network {quote(network)} in the zoo; {advice}")
    return layout.original
