"""Genomes and layouts as a notebook shows them."""

import re
from xml.etree import ElementTree

import pytest

from blockswap_models import Genome, Layout
from blockswap_models.strips import FAMILIES, family_of, legend_html


def test_a_genome_is_a_strip_of_blocks():
    genome = Genome("S,G4/2xB2W4/W1,M6")
    strip = ElementTree.fromstring(genome._repr_html_())
    boxes = [each for stage in strip for each in stage]
    assert strip.get("title") == "S,G4/2xB2W4/W1,M6"
    assert [len(stage) for stage in strip] == [2, 2, 2]
    assert [box.text for box in boxes] == ["S", "G4", "B2W4", "B2W4", "W1", "M6"]
    assert boxes[4].get("title") == "stage 3, block 1"
    colours = [re.search("background:(#[0-9A-F]{6})", box.get("style"))[1] for box in boxes]
    assert colours == [FAMILIES[family][0] for family in ("S", "G", "BW", "BW", "W", "M")]


@pytest.mark.parametrize(
    ("block", "family"), [("S", "S"), ("G2", "G"), ("W1", "W"), ("B4", "B"), ("B2G4", "BG"), ("B4W8", "BW"), ("D", "D")]
)
def test_families_have_colours_of_their_own(block, family):
    assert family_of(Genome(block).blocks[0]) == family
    assert FAMILIES[family][1] in legend_html(Genome(block).blocks)
    assert len({colour for colour, _ in FAMILIES.values()}) == len(FAMILIES)


def test_a_layout_is_a_table_of_its_stages():
    layout = Layout.named("resnet18")
    assert repr(layout) == (
        "Layout(blockswap_resnet18: stem 64, stages of blocks x channels 2x64, 2x128, 2x256, 2x512, post-activation, "
        "3x224x224 images, 1000 classes)"
    )
    rows = [[cell.text for cell in row] for row in ElementTree.fromstring(layout._repr_html_()).iter("tr")]
    assert rows[0] == ["stage", "blocks", "channels", "size"]
    assert rows[1:] == [
        ["1", "2", "64", "56x56"],
        ["2", "2", "128", "28x28"],
        ["3", "2", "256", "14x14"],
        ["4", "2", "512", "7x7"],
    ]
    assert ">16x16<" in Layout.named("wrn16_1")._repr_html_()
