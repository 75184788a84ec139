"""Folders of classes without splits: what is held out, and what a folder says of its images."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from blockswap_models.data.errors import DataError
from blockswap_models.data.facts import holdout_of, holdout_text, image_facts
from blockswap_models.data.folders import open_dataset
from blockswap_models.data.holdout import HoldOut


def write(root, classes, number, size=(40, 40), mode="RGB"):
    """Writes so many images of noise into the folder of each class."""
    random = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for each in range(number):
            pixels = random.integers(256, size=(*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{each}.png")
    return root


def files_of(root, split, holdout):
    dataset = open_dataset("folder", str(root), split, holdout=holdout)
    return {str(path.removeprefix(str(root))) for path, _ in dataset.reader.samples}


def test_each_class_is_divided_alike_by_the_seed_alone(tmp_path):
    root = write(tmp_path / "photos", "ab", 10)
    train, held = (files_of(root, split, HoldOut(0.2, 0)) for split in ("train", None))
    assert (len(train), len(held), train & held) == (16, 4, set())
    assert [sum(path.startswith(f"/{name}/") for path in held) for name in "ab"] == [2, 2]
    # The same wherever the folder lies, another by another seed, and no file has moved.
    moved = shutil.move(root, tmp_path / "elsewhere")
    assert files_of(moved, "validation", HoldOut(0.2, 0)) == held
    assert files_of(moved, "validation", HoldOut(0.2, 1)) != held
    assert files_of(moved, "train", None) == train | held


def test_small_classes_have_an_image_on_either_side(tmp_path):
    root = write(tmp_path, "ab", 2)
    assert len(files_of(root, "train", HoldOut(0.01))) == len(files_of(root, "val", HoldOut(0.99))) == 2
    for path in root.glob("*/1.png"):
        path.unlink()
    assert len(files_of(root, "train", HoldOut())) == 2
    with pytest.raises(DataError, match="has one image only, so that none is left to validate on"):
        files_of(root, "val", HoldOut())


def test_names_of_files_need_not_be_utf8():
    paths = [f"photos/cat/{name}" for name in ("été.png", os.fsdecode(b"\xe9t\xe9.png"), "0.png", "1.png")]
    assert HoldOut(0.5).held_out(paths, "photos") == {paths[1], paths[3]}
    # The draw of other names has not changed.
    assert HoldOut(0.5).held_out([paths[0], *paths[2:]], "photos") == {paths[0], paths[3]}


def test_only_folders_without_splits_are_divided(tmp_path):
    write(tmp_path / "set" / "train", "ab", 2)
    write(tmp_path / "set" / "val", "ab", 1)
    assert holdout_of(str(tmp_path / "set")) is None
    assert holdout_of("torch/cifar10", tmp_path) is None
    with pytest.raises(DataError, match=r"has splits of its own; leave out val_share="):
        holdout_of(str(tmp_path / "set"), share=0.5)
    root = tmp_path / "set" / "train"
    assert holdout_of(str(root)) == HoldOut(0.2, 0)
    with pytest.raises(DataError, match=r"above 0 and below 1, not 1.0 \(val_share=\)"):
        holdout_of(str(root), share=1.0)
    text = holdout_text(str(root), None, HoldOut(0.5, 3))
    assert text == (
        f"{root} has no folders of splits: 2 of its 4 images train and 2 are held out for validation, 50% of each "
        "class by seed 3; no file is moved"
    )


def test_what_a_folder_says_of_its_images(tmp_path):
    root = write(tmp_path, ["cat", "dog"], 4, size=(60, 100))
    (root / "cat" / "bad.png").write_bytes(b"no image")
    facts = image_facts(str(root))
    assert (facts.classes, facts.images, facts.fewest) == (("cat", "dog"), 9, 4)
    assert (facts.channels, facts.size) == (3, (60, 100))
    # None is enlarged much, and none is larger than the network's own.
    assert [facts.suitable_size(own) for own in (32, 64, 224)] == [32, 64, 64]
    assert image_facts(str(root), holdout=HoldOut(0.5)).images == 5
    grey = image_facts(str(write(tmp_path / "grey", "ab", 2, mode="L")))
    assert grey.channels == 1
    assert image_facts("torch/cifar10", tmp_path) is None


def test_folders_that_no_network_learns_from_are_refused(tmp_path):
    write(tmp_path / "one", ["cat"], 2)
    with pytest.raises(DataError, match="has one class only, 'cat'; use a folder of two classes or more"):
        image_facts(str(tmp_path / "one"))
    for name in "ab":
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image of '.*bad' can be read, such as '.*0.png'"):
        image_facts(str(tmp_path / "bad"))
    root = write(tmp_path / "cut", ["cat", "dog"], 2)
    for path in (root / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"^no image of the class 'cat' of '.*cut' can be read, such as '.*cat/"):
        image_facts(str(root))
