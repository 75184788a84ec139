"""Names of models: timm's, the zoo's, and what is meant where both have one."""

import pytest
import timm

from blockswap_models.detection import mask_rcnn
from blockswap_models.zoo.find import find_model, which_was_taken

GENOME = "2xW1/2xW1/2xW1/2xW1"


@pytest.mark.parametrize(
    ("name", "genome", "found"),
    [
        ("resnet18", None, "resnet18"),
        ("resnet18", GENOME, "blockswap_resnet18"),
        ("resnet18", "2xK/2xK/2xW1/2xW1", "resnet18"),
        ("resnet18.tv_in1k", GENOME, "resnet18.tv_in1k"),
        ("resnet50", "3xB4/4xB4/6xB4/3xB4", "resnet50"),
        ("resnet18.tv_in1k", None, "resnet18.tv_in1k"),
        ("blockswap_resnet18", None, "blockswap_resnet18"),
        ("wrn40_2_404k", None, "blockswap_wrn40_2_404k"),
        ("local-dir:net", None, "local-dir:net"),
    ],
)
def test_a_genome_makes_it_ours(name: str, genome: str | None, found: str) -> None:
    assert find_model(name, genome) == found


@pytest.mark.parametrize(
    ("name", "genome", "said"),
    [
        ("resnet18", None, "resnet18 is timm's network; the zoo's is blockswap_resnet18"),
        ("resnet18", GENOME, "resnet18 with a genome is blockswap_resnet18 of the zoo, not timm's resnet18"),
        ("blockswap_resnet18", GENOME, None),
        ("wrn16_1", None, None),
        ("resnet18.tv_in1k", None, None),
        ("local-dir:net", None, None),
    ],
)
def test_it_is_said_which_was_taken(name: str, genome: str | None, said: str | None) -> None:
    assert which_was_taken(name, find_model(name, genome)) == said


@pytest.mark.parametrize(
    ("name", "genome", "message"),
    [
        ("wrn40_2_400k", None, r"^unknown model 'wrn40_2_400k'; did you mean 'wrn40_2_404k'\?$"),
        ("hf-hub:a/b", GENOME, "^hf-hub:a/b has a genome of its own; leave out genome="),
    ],
)
def test_mistakes(name: str, genome: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_model(name, genome)


def test_detection_suggests_the_zoos_name() -> None:
    with pytest.raises(ValueError, match=r"^unknown model 'resnet34_3m'; did you mean 'blockswap_resnet34_3m'\?$"):
        mask_rcnn("resnet34_3m")
    # Less than half of the name is the user's.
    with pytest.raises(ValueError, match=r"^unknown model 'wrn16_1'; did you mean 'blockswap_wrn16_1'\?$"):
        mask_rcnn("wrn16_1")
    with pytest.raises(ValueError, match=r"^unknown model 'resnet181'; did you mean 'resnet18"):
        mask_rcnn("resnet181")
    assert timm.is_model("resnet18")
