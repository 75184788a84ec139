"""The table of timm's families in the guide: which networks split into blocks, and into which."""

import re
from pathlib import Path

import pytest
import timm
import torch

from blockswap_models import BlockType, Genome, SplitError, count
from blockswap_models.nets.swap import BlockNetwork, find_blocks

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "any-network.md"
# Families, an example, and its blocks, or what the error says.
ROWS = re.findall(r"^\| ([^|]+) \| `(\w+)` \| (?:`([^`]+)`|(no: [^|]+)) \|", PAGE.read_text(), re.MULTILINE)
# The order of norms and activations in the blocks of an example; of all others it is linear.
ORDERS = {
    **dict.fromkeys(("resnet26", "skresnet18", "regnety_002", "repvgg_a0"), "post"),
    **dict.fromkeys(("resnetv2_50x1_bit", "densenet121"), "pre"),
}
TYPES = [BlockType.parse(each) for each in ("S", "G4", "B2", "W1", "D", "M2")]


def test_the_table_has_families_that_split_and_some_that_do_not():
    assert len([row for row in ROWS if row[2]]) > 10
    assert len([row for row in ROWS if row[3]]) > 2
    assert len({row[1] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("name", [row[1] for row in ROWS])
def test_a_family_splits_as_the_guide_says(name):
    ((_, _, blocks, error),) = [row for row in ROWS if row[1] == name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    if error:
        with pytest.raises(SplitError) as caught:
            find_blocks(model)
        said = str(caught.value)
        assert re.sub(r"`", "'", error.removeprefix("no: ")) in said
        assert "\n" not in said
        return
    network = BlockNetwork(model)
    assert network.layout.original == blocks
    assert {each.order for each in network.blocks} == {ORDERS.get(name, "linear")}
    # Every block can be replaced, by what its channels divide by: counting runs the network.
    chosen = [[block for block, _ in place.distinct(TYPES)] for place in network.layout.places]
    genome = Genome.from_blocks([each[at % len(each)] for at, each in enumerate(chosen)], network.layout.depths)
    assert "K" not in genome
    assert 0 < count(network.build(genome), network.input_size).params != network.cost.params
