"""Images of unusual shapes, and folders with links: read as any other."""

import os

import numpy as np
import pytest
import timm
from PIL import Image
from timm.data import create_transform

from blockswap_models import predict
from blockswap_models.data.images import fit_shape, walk_images
from blockswap_models.training.loaders import training_loader
from blockswap_models.training.recipes import RECIPES


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(500, 8), (8, 500), (4, 4), (31, 57)])
def test_images_of_common_shapes_stay_as_they_are(size):
    image = picture(*size)
    assert fit_shape(image, 4) is image


def test_the_middle_of_a_line_is_seen_as_that_of_the_whole_line():
    across, down = np.meshgrid(np.arange(1300), np.arange(20))
    line = Image.fromarray((127 + 60 * np.sin(across / 15) + 60 * np.cos(down / 6)).astype(np.uint8)).convert("RGB")
    short = fit_shape(line)
    assert short.size == (1280, 20)
    transform = create_transform((3, 32, 32), crop_pct=0.9)
    assert transform(short).sub(transform(line)).abs().max() < 0.05


@pytest.mark.parametrize("side", [0, 1])
def test_a_line_of_a_pixel_takes_no_memory_of_its_length(side):
    image = picture(*[(60_000, 1), (1, 60_000)][side])
    assert sorted(fit_shape(image).size) == [1, 64]
    assert sorted(fit_shape(image, 4).size) == [4, 256]


def test_a_line_among_photographs_is_predicted(tmp_path):
    picture(60_000, 1).save(tmp_path / "line.png")
    picture(40, 40).save(tmp_path / "photo.png")
    model = timm.create_model("blockswap_wrn16_1", num_classes=3)
    assert len(predict(model, tmp_path)) == 2


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 2)])
def test_random_crops_of_a_few_pixels_are_not_black(tmp_path, size):
    for split in ("train", "val"):
        (tmp_path / split / "grey").mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", size, (200, 200, 200)).save(tmp_path / split / "grey" / f"{number}.png")
    model = timm.create_model("blockswap_wrn16_1", num_classes=1)
    model.pretrained_cfg["crop_pct"] = 0.9
    white = RECIPES["imagenet"]
    loader = training_loader(model, str(tmp_path), None, type(white)(**{**vars(white), "batch_size": 8}), workers=0)
    for _ in range(4):
        ((images, _),) = loader
        assert images.min() == images.max(dim=3).values.min() > 0


def test_links_to_where_they_lie_are_not_followed(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name / "old").mkdir(parents=True)
        picture(8, 8).save(tmp_path / "photos" / name / "old" / "1.png")
    (tmp_path / "more").mkdir()
    picture(8, 8).save(tmp_path / "more" / "2.png")
    os.symlink("..", tmp_path / "photos" / "cat" / "up")
    os.symlink(tmp_path, tmp_path / "photos" / "dog" / "top")
    os.symlink("../../dog", tmp_path / "photos" / "cat" / "old" / "other")
    os.symlink("../../cat", tmp_path / "photos" / "dog" / "old" / "other")
    os.symlink(tmp_path / "more", tmp_path / "photos" / "dog" / "more")
    found = [os.path.join(path, file) for path, _, files in walk_images(tmp_path / "photos") for file in files]
    # Each folder, and the other's once more through the link to it.
    assert len(found) == 6
    assert {os.path.relpath(os.path.realpath(each), tmp_path) for each in found} == {
        "photos/cat/old/1.png",
        "photos/dog/old/1.png",
        "more/2.png",
    }
