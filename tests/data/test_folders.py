"""Folders of images as people have them: splits of any name, classes of any name, and files that are damaged."""

import errno
import json
import logging
import os
import pickle
import re
import struct
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset
from torch import nn
from torch._utils import ExceptionWrapper
from torchvision.datasets import CIFAR100
from tqdm import tqdm

from blockswap_models import SearchSpace
from blockswap_models.cli.main import main
from blockswap_models.data.errors import DataError
from blockswap_models.data.folders import (
    classes_of,
    find_dataset,
    names_in,
    names_of,
    open_dataset,
    plain_name,
    require_outside,
)
from blockswap_models.data.images import ImageError, image_extensions, read_image
from blockswap_models.data.loader import plain_errors
from blockswap_models.data.splits import find_split, known_split
from blockswap_models.prediction import predict
from blockswap_models.searching.probe_images import dataset_minibatch
from blockswap_models.training.evaluate import evaluate, evaluation_loader
from blockswap_models.training.loaders import training_loader
from blockswap_models.training.recipes import Recipe

RECIPE = Recipe(epochs=1, batch_size=4)
DAMAGED = ("truncated", "chunk", "bomb", "empty", "text")


def write(root, files, size=40):
    """Writes images, each of a grey of its own, and gives their folder."""
    for number, file in enumerate(files.split()):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (10 * number,) * 3).save(path)
    return root


def damage(path, kind):
    """Puts a file that cannot be read in the place of an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "chunk":
        # Pillow raises SyntaxError for it, which timm does not expect.
        begin = whole.index(b"IDAT")
        path.write_bytes(whole[:begin] + b"\0\1\2\3" + whole[begin + 4 :])
    elif kind == "bomb":
        header = struct.pack(">II5B", 20_000, 20_000, 8, 2, 0, 0, 0)
        checked = b"IHDR" + header
        path.write_bytes(whole[:12] + checked + struct.pack(">I", zlib.crc32(checked)) + whole[33:])
    else:
        path.write_bytes(b"" if kind == "empty" else b"no image")


def network(classes=3, favourite=0):
    """A network that answers every image with one class."""
    model = timm.create_model("blockswap_wrn16_1")
    model.reset_classifier(classes)
    nn.init.zeros_(model.fc.weight)
    model.fc.bias.data = torch.zeros(classes)
    model.fc.bias.data[favourite] = 1
    return model


def labels_of(loader):
    return torch.cat([labels for _, labels in loader]).tolist()


# -- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "Train", "TRAINING", "val", "Valid", "VALIDATION", "Test", "evaluation"])
def test_splits_have_names_in_any_case(name):
    assert known_split(name) == {"t": "test" if name[1] == "e" else "train", "v": "val", "e": "val"}[name[0].lower()]


@pytest.mark.parametrize(
    ("folders", "split", "found"),
    [
        ("train test", None, "test"),
        ("train test", "TRAIN", "train"),
        ("Train Val", "train", "Train"),
        ("Train Val", None, "Val"),
        ("training valid test", "val", "valid"),
        ("training valid test", None, "valid"),
        ("training valid test", "test", "test"),
        ("train val Holdout", "holdout", "Holdout"),
        ("cat dog", "test", "."),
    ],
)
def test_the_folder_of_a_split(tmp_path, folders, split, found):
    write(tmp_path, " ".join(f"{folder}/a/0.png {folder}/b/1.png" for folder in folders.split()))
    if found == ".":
        (tmp_path / "cat").rename(tmp_path / "x")
        tmp_path = write(tmp_path / "flat", "cat/0.png dog/0.png")
    assert find_split(tmp_path, split) == tmp_path / found


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ("train/a/0.png test/a/0.png", "validation", r"no split 'validation' in '.*'; use test or train \(split=\)$"),
        ("train/a/0.png val/a/0.png", "tset", r"no split 'tset' in '.*'; use train or val \(split=\)$"),
        (
            "a/0.png b/0.png",
            "tset",
            r"no split 'tset' in '.*', which has no folders of splits; use train, validation or",
        ),
        ("val/a/0.png valid/a/0.png", "validation", r"^val and valid in '.*' are both the split 'validation'; use one"),
        ("bus/0.png train/steam/0.png", "train", r"^'train' in '.*' may be a split or a class, for 'bus' beside it"),
    ],
)
def test_an_unknown_split_is_an_error_that_lists_those_there(tmp_path, files, split, message):
    write(tmp_path, files)
    with pytest.raises(DataError, match=message):
        find_split(tmp_path, split)
    with pytest.raises(DataError, match=message):
        evaluation_loader(network(1), str(tmp_path), split=split)
    with pytest.raises(DataError, match=message):
        dataset_minibatch(SearchSpace("wrn16_1", ["S"]), str(tmp_path), split=split)


def test_training_tests_on_the_test_images_alone(tmp_path, capsys):
    root = write(tmp_path / "set", " ".join(f"train/{c}/{n}.png" for c in "ab" for n in range(4)))
    write(root, " ".join(f"test/{c}/{n}.png" for c in "ab" for n in range(2)))
    command = ["train", "wrn16_1", "--num-classes", "2", "--data", str(root), "--out", str(tmp_path / "run")]
    command += ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["test_images"] == 4


def test_training_wants_both_splits(tmp_path):
    write(tmp_path, "Train/a/0.png Train/b/0.png")
    with pytest.raises(
        DataError, match=r"^no folder val or test in '.*'; training wants folders train and val or test"
    ):
        training_loader(network(2), str(tmp_path), None, RECIPE)


def test_a_mistyped_split_of_torchvision_is_not_its_test_images(tmp_path):
    with pytest.raises(DataError, match=r"torch/mnist has no split 'tset'; use train or test \(split=\)"):
        open_dataset("torch/mnist", str(tmp_path), "tset")


# -- classes ---------------------------------------------------------------------------------------------------------


def test_the_training_images_number_the_classes(tmp_path):
    write(tmp_path, "train/a/0.png train/b/0.png train/c/0.png val/a/0.png val/c/0.png")
    loader = evaluation_loader(network(), str(tmp_path), workers=0)
    assert labels_of(loader) == [0, 2]
    assert evaluate(network(favourite=2), loader).top1_error == 50
    # So also where the test images are named without the folder that they are a part of.
    assert labels_of(evaluation_loader(network(), str(tmp_path / "val"), workers=0)) == [0, 2]
    assert set(
        dataset_minibatch(SearchSpace("wrn16_1", ["S"]), str(tmp_path), None, 2, split="val").labels.tolist()
    ) == {
        0,
        2,
    }
    write(tmp_path, "val/d/0.png")
    with pytest.raises(DataError, match=r"^the class 'd' of '.*val' is none of the 3 of '.*train'$"):
        evaluation_loader(network(), str(tmp_path))


def test_an_empty_folder_is_a_class(tmp_path):
    write(tmp_path, "train/cat/0.png train/fox/0.png val/cat/0.png val/dog/0.png")
    (tmp_path / "train" / "dog").mkdir()
    assert classes_of(str(tmp_path)) == ("cat", "dog", "fox")
    assert labels_of(evaluation_loader(network(), str(tmp_path), workers=0)) == [0, 1]
    dataset = open_dataset("folder", str(tmp_path), "train")
    assert [dataset[place][1] for place in range(2)] == [0, 2]


def test_a_folder_of_other_files_is_no_class(tmp_path):
    write(tmp_path, "train/cat/0.png train/dog/0.png")
    (tmp_path / "train" / "annotations").mkdir()
    (tmp_path / "train" / "annotations" / "a.xml").write_text("<a/>")
    with pytest.raises(DataError, match=r"^the folder '.*annotations' has files, but no images, and would be a class;"):
        classes_of(str(tmp_path))


@pytest.mark.parametrize("files", ["cat/raw/0.png dog/raw/0.png bird/0.png", "set/train/raw/0.png set/val/raw/1.png"])
def test_folders_of_one_name_are_not_one_class(tmp_path, files):
    write(tmp_path, files)
    (tmp_path / "names.txt").write_text("raw\nbird\n")
    message = r"^the folders '.*raw' and '.*raw' would be one class 'raw' of '.*'; use a folder of one folder a class,"
    with pytest.raises(DataError, match=message):
        classes_of(str(tmp_path))
    with pytest.raises(DataError, match=message):
        open_dataset("folder", str(tmp_path), "val", class_map=str(tmp_path / "names.txt"))


@pytest.mark.parametrize("files", ["cat/0.png cat/extra/1.png dog/0.png", "cat/a/b/0.png cat/1.png dog/0.png"])
def test_a_class_has_no_classes(tmp_path, files):
    message = r"^the folder '.*cat/.*' lies in '.*cat', which has images too, and would be another class; use a folder"
    with pytest.raises(DataError, match=message):
        classes_of(str(write(tmp_path, files)))


def test_a_network_that_names_its_classes_numbers_those_of_a_folder(tmp_path):
    model = network(3, favourite=2)
    model.pretrained_cfg["label_names"] = ["cat", "dog", "fox"]

    def labels_of(place):
        return [label for _, labels in evaluation_loader(model, str(place), workers=0) for label in labels.tolist()]

    assert labels_of(write(tmp_path / "some", "cat/0.png fox/0.png fox/1.png")) == [0, 2, 2]
    assert evaluate(model, evaluation_loader(model, str(tmp_path / "some"), workers=0)).top1_error == pytest.approx(
        100 / 3
    )
    assert labels_of(write(tmp_path / "numbers", "0/0.png 1/0.png 2/0.png")) == [0, 1, 2]
    # As many classes, which were scored as if they were the network's.
    other = write(tmp_path / "other", "cat/0.png fox/0.png wolf/0.png")
    with pytest.raises(
        DataError, match=r"^the class 'wolf' of '.*other' is none of the network's 3, which knows 'cat'; use"
    ):
        evaluation_loader(model, str(other))


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, "bus/0.png bus/1.png car/0.png car/1.png train/0.png train/1.png")
    assert classes_of(str(tmp_path)) == ("bus", "car", "train")
    minibatch = dataset_minibatch(SearchSpace("wrn16_1", ["S"]), str(tmp_path), batch_size=6)
    assert sorted(minibatch.labels.tolist()) == [0, 0, 1, 1, 2, 2]


def test_a_search_of_a_folder_has_its_classes(tmp_path):
    write(tmp_path, "a/0.png b/0.png c/0.png d/0.png e/0.png")
    space = SearchSpace("resnet34", ["B4W8"], num_classes=len(classes_of(str(tmp_path))))
    # With its 1,000 classes no network of 1 M parameters could be had.
    assert space.range("params")[0] < 1_000_000 < SearchSpace("resnet34", ["B4W8"]).range("params")[0]
    assert dataset_minibatch(space, str(tmp_path), batch_size=5).labels.max() == 4


@pytest.mark.parametrize("files", ["0.png 1.png", "train/0.png train/1.png", "cat/0.png dog/0.png 1.png"])
def test_images_outside_of_the_folders_of_classes_are_refused(tmp_path, files):
    write(tmp_path, files)
    message = (
        r"^\d of \d images lie outside of the folders of classes, such as '.*'; use a folder of one folder a class"
    )
    with pytest.raises(DataError, match=message):
        dataset_minibatch(SearchSpace("wrn16_1", ["S"]), str(tmp_path), batch_size=1)
    with pytest.raises(DataError, match=message):
        evaluation_loader(network(2), str(tmp_path), split="train")


def test_a_flat_folder_has_no_classes(tmp_path):
    write(tmp_path, "0.png train/0.png")
    with pytest.raises(DataError, match=r"^no folders of classes in '.*train'; use a folder of one folder a class"):
        classes_of(str(tmp_path))


def test_hidden_folders_and_files_are_no_classes_and_images(tmp_path):
    write(tmp_path, "train/cat/0.png train/cat/._0.png train/.ipynb_checkpoints/0.png train/dog/0.png")
    write(tmp_path, "train/dog/.thumbnails/0.png val/cat/0.png .trash/cat/0.png")
    assert classes_of(str(tmp_path)) == ("cat", "dog")
    assert len(open_dataset("folder", str(tmp_path), "train")) == 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_that_must_not_be_read_is_not_left_out(tmp_path, monkeypatch, split):
    write(tmp_path, "train/a/1.png train/b/1.png val/a/1.png val/b/1.png")
    scan, closed = os.scandir, str(tmp_path / split / "b")

    def guarded(path):
        if os.fspath(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    # In the place of permissions, which root does not need.
    monkeypatch.setattr(os, "scandir", guarded)
    message = rf"^cannot read the folder '{re.escape(closed)}': Permission denied$"
    for read in (partial(open_dataset, "folder", str(tmp_path), split), partial(predict, network(2), tmp_path / split)):
        with pytest.raises(DataError, match=message):
            read()
    closed = str(tmp_path)
    with pytest.raises(DataError, match=rf"^cannot read the folder '{re.escape(closed)}': Permission denied$"):
        open_dataset("folder", str(tmp_path), split)


def test_a_class_map_must_have_the_classes_that_are_there(tmp_path):
    write(tmp_path / "set", "cat/0.png dog/0.png")
    (tmp_path / "names.txt").write_text("cat\napes\n")
    with pytest.raises(DataError, match=r"^the class 'dog' of '.*set' is none of the 2 of '.*names.txt'$"):
        evaluation_loader(network(), str(tmp_path / "set"), class_map=tmp_path / "names.txt")


def test_names_that_differ_in_case_have_an_order_of_their_own(tmp_path):
    write(tmp_path, "a10/0.png a9/0.png B/0.png b/0.png")
    if len(list(tmp_path.iterdir())) == 4:
        assert classes_of(str(tmp_path)) == ("a9", "a10", "B", "b")


def test_torchvisions_folder_is_this_one(tmp_path):
    write(tmp_path, "cat/0.png")
    assert find_dataset("torch/folder", tmp_path) == ("folder", str(tmp_path))


@pytest.mark.parametrize("name", ["foldr", "photos", "torch", "wds/", ""])
def test_a_mistyped_dataset_is_not_read_as_a_folder_without_splits(tmp_path, monkeypatch, name):
    monkeypatch.chdir(write(tmp_path, "photos/cat/0.png photos/dog/0.png").parent)
    known = "folder, coco, torch/…, hfds/…, hfids/…, tfds/…, wds/…, or a folder without root="
    with pytest.raises(DataError, match=rf"^unknown dataset '{name}'; use {known}$"):
        find_dataset(name, "photos")


def test_a_folder_has_one_name_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, "photos/cat/0.png"))
    assert {plain_name(each) for each in ("photos", "photos/", "./photos", Path("photos"))} == {"photos"}
    assert [plain_name("torch/cifar10/", "."), plain_name("wds/x/")] == ["torch/cifar10/", "wds/x/"]


@pytest.mark.parametrize("out", ["photos", "photos/", "photos/cat/net", "other/../photos/net", "link/net"])
def test_what_is_made_of_images_is_no_class_of_them(tmp_path, monkeypatch, out):
    monkeypatch.chdir(write(tmp_path, "photos/cat/0.png other/cat/0.png"))
    Path("link").symlink_to("photos")
    with pytest.raises(DataError, match=rf"^the folder '{out}' would be a class of the images in 'photos/'; use one"):
        require_outside(out, "photos/")
    require_outside("photos2", "photos")
    require_outside("net", "photos")


def test_other_datasets_have_no_classes_of_a_folder(tmp_path):
    assert classes_of("torch/cifar10", tmp_path) is None


def test_classes_of_other_datasets_have_names(tmp_path, monkeypatch):
    # Without the hashes of the true files.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder, names = tmp_path / CIFAR100.base_folder, [f"class {number:02}" for number in reversed(range(100))]
    folder.mkdir()
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    for file in ("train", "test"):
        batch = {"data": np.zeros((4, 3072), dtype=np.uint8), "fine_labels": [0, 1, 2, 99]}
        (folder / file).write_bytes(pickle.dumps(batch))
    assert names_of("torch/cifar100", tmp_path) == tuple(names)
    space = SearchSpace("wrn16_1", num_classes=100)
    assert dataset_minibatch(space, "torch/cifar100", tmp_path, 4).about["label_names"] == names
    # A network of other classes would have the wrong ones.
    space = SearchSpace("wrn16_1", num_classes=101)
    assert "label_names" not in dataset_minibatch(space, "torch/cifar100", tmp_path, 4).about
    # What is not there, or may be endless, has none; what cannot be read says so when it is read.
    assert names_of("wds/photos", tmp_path) is None
    assert names_of("torch/mnist", tmp_path) is None


def test_names_are_in_the_order_of_labels():
    reader = SimpleNamespace(class_to_idx={"dog": 1, "cat": 0})
    assert names_in(SimpleNamespace(reader=reader)) == ("cat", "dog")
    # Several names of a class, as torchvision has them of ImageNet.
    assert names_in(SimpleNamespace(class_to_idx={"tench": 0, "Tinca tinca": 0, "goldfish": 1})) is None
    assert names_in(SimpleNamespace(class_to_idx={})) is None


def test_a_good_folder_is_what_timm_reads(tmp_path):
    files = "train/n2/b_10.png train/n2/b_9.jpeg train/n10/x.JPG train/n10/deep/y.png val/n2/0.png val/n10/1.png"
    write(tmp_path, f"{files} val/deep/1.png")
    for split in ("train", "val"):
        ours = open_dataset("folder", str(tmp_path), split)
        timms = create_dataset("", root=str(tmp_path), split=split)
        assert ours.reader.class_to_idx == timms.reader.class_to_idx
        assert ours.filenames() == timms.filenames()
        for (image, label), (expected, number) in zip(ours, timms, strict=True):
            assert (image.tobytes(), label) == (expected.tobytes(), number)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".webp", ".bmp", ".tif", ".TIFF", ".gif", ".jpg", ".ppm"])
def test_all_formats_are_read(tmp_path, extension):
    write(tmp_path, f"cat/0.png cat/1{extension}")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    dataset = open_dataset("folder", str(tmp_path), "train")
    assert len(dataset) == 2
    assert all(image.size == (40, 40) for image, _ in dataset)


def test_extensions_are_those_of_images():
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".gif"} <= set(image_extensions())
    assert not {".txt", ".mpg", ".pdf", ".h5"} & set(image_extensions())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("file", ["grey.png", "grey.tif"])
def test_grey_of_16_bits_is_scaled(tmp_path, mode, file):
    values = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / file)
    image = np.asarray(read_image(str(tmp_path / file), mode))
    assert image.dtype == np.uint8
    grey = image if mode == "L" else image[:, :, 0]
    assert np.abs(grey - values / 257).max() <= 0.5
    assert grey.mean() / 255 == pytest.approx(0.5, abs=0.002)


def test_values_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match="its values have 32 bits and no known range; use 8 or 16 bits"):
        read_image(str(tmp_path / "float.tif"), "RGB")


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DAMAGED)
def test_evaluation_uses_the_good_images_and_names_the_bad(tmp_path, caplog, kind):
    write(tmp_path, "cat/0.png cat/2.png dog/0.png fox/0.png")
    damage(tmp_path / "cat" / "1.png", kind)
    bad = str(tmp_path / "cat" / "1.png")
    loader = evaluation_loader(network(), str(tmp_path), batch_size=2, workers=0)
    result = evaluate(network(favourite=1), loader)
    # timm takes dog/0.png, or cat/2.png, twice.
    assert (result.images, result.top1_error, result.damaged) == (4, 75, (bad,))
    (warning,) = caplog.messages
    assert warning.startswith(f"left out 1 image that cannot be read: '{bad}' (")
    assert "\n" not in warning
    # Each is told once.
    evaluate(network(), loader)
    assert len(caplog.messages) == 1


def test_damage_that_other_processes_see(tmp_path, caplog):
    write(tmp_path, "cat/0.png dog/0.png dog/1.png dog/2.png")
    for number in range(3, 7):
        damage(tmp_path / "dog" / f"{number}.png", "truncated")
    # Of the second half of the images none can be read, and so none of the last minibatch.
    result = evaluate(network(2), evaluation_loader(network(2), str(tmp_path), batch_size=4, workers=1))
    assert (result.images, len(result.damaged)) == (4, 4)
    assert "left out 4 images that cannot be read: " in caplog.messages[0]
    assert "dog/5.png', …" in caplog.messages[0]


def test_no_good_image_at_all(tmp_path):
    damage(tmp_path / "cat" / "0.png", "empty")
    with pytest.raises(DataError, match="there are no images to evaluate on: 1 cannot be read"):
        evaluate(network(1), evaluation_loader(network(1), str(tmp_path), workers=0))
    with pytest.raises(DataError, match=r"' has 0 images that can be read$"):
        dataset_minibatch(SearchSpace("wrn16_1", ["S"]), str(tmp_path), batch_size=1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("small_epochs", [0, 1])
def test_training_goes_on_and_says_so_once(tmp_path, caplog, workers, small_epochs):
    write(tmp_path, " ".join(f"train/{c}/{n}.png" for c in "ab" for n in range(5)) + " val/a/0.png")
    for file, kind in {"a/2": "chunk", "b/4": "bomb"}.items():
        damage(tmp_path / "train" / f"{file}.png", kind)
    recipe = replace(
        RECIPE, epochs=2, batch_size=10, small_size=16 if small_epochs else 0, small_share=small_epochs / 2
    )
    loader = training_loader(network(2), str(tmp_path), None, recipe, workers=workers)
    for epoch in range(2):
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        # The image after a bad one is read twice, with its own label: b/4 is the last, and then comes a/0.
        assert sorted(labels_of(loader)) == [0] * 6 + [1] * 4
    (warning,) = caplog.messages
    assert warning.startswith("read others in place of 2 images that cannot be read: '")
    assert str(tmp_path / "train" / "b" / "4.png") in warning


def test_training_stops_where_nothing_can_be_read(tmp_path):
    write(tmp_path, "val/a/0.png")
    damage(tmp_path / "train" / "a" / "0.png", "text")
    loader = training_loader(network(1), str(tmp_path), None, replace(RECIPE, batch_size=1), workers=1)
    with pytest.raises(DataError, match=r"^100 images in a row cannot be read, from '.*0.png' on: it is no image that"):
        list(loader)


def test_the_search_draws_others_for_damaged_images(tmp_path, caplog):
    space = SearchSpace("wrn16_1", ["S"])
    write(tmp_path, " ".join(f"{c}/{n}.png" for c in "ab" for n in range(4)))
    whole = dataset_minibatch(space, str(tmp_path), batch_size=3, num_batches=2)
    damage(tmp_path / "a" / "1.png", "truncated")
    damage(tmp_path / "b" / "3.png", "chunk")
    minibatch = dataset_minibatch(space, str(tmp_path), batch_size=3, num_batches=2)
    assert (len(minibatch.images), minibatch.num_batches) == (6, 2)
    assert minibatch.images.unique(dim=0).shape == whole.images.shape
    assert minibatch.labels.sum() == 3
    (warning,) = caplog.messages
    assert warning.startswith("left out 2 images that cannot be read: '")
    # Of fewer good images there are fewer minibatches.
    damage(tmp_path / "b" / "2.png", "bomb")
    assert dataset_minibatch(space, str(tmp_path), batch_size=3, num_batches=2).num_batches == 1
    with pytest.raises(DataError, match=r"' has 5 images that can be read; use a batch_size= of at most 5"):
        dataset_minibatch(space, str(tmp_path), batch_size=6)
    for size in (6, 9):
        minibatch = dataset_minibatch(space, str(tmp_path), batch_size=size, num_batches=2, fewer=True)
        assert (len(minibatch.images), minibatch.num_batches) == (5, 1)


def test_the_warning_is_a_line_of_stderr(tmp_path, capsys, monkeypatch):
    write(tmp_path, "cat/0.png dog/0.png")
    damage(tmp_path / "dog" / "1.png", "truncated")
    # As without the handlers of pytest.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    bar = partial(tqdm, mininterval=0)
    evaluate(network(2), evaluation_loader(network(2), str(tmp_path), workers=0), progress=bar)
    # The bar is wiped away, and comes back on the next line.
    (line,) = [line for line in re.split("[\\r\\n]", capsys.readouterr().err) if "left out" in line]
    assert line.startswith("left out 1 image that cannot be read: '")


# -- errors of other processes ---------------------------------------------------------------------------------------


def failing(error):
    """A loader one of whose processes meets an error: what torch makes of it in this one."""
    try:
        raise error
    except type(error):
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    yield 1
    wrapper.reraise()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("no such thing\nas this"), "cannot read the images: RuntimeError: no such thing"),
        (ImageError("cannot read the image 'a.png': truncated"), "cannot read the image 'a.png': truncated"),
        (DataError("'b.png': too small"), "'b.png': too small"),
        (KeyError("jpg"), "cannot read the images: KeyError: 'jpg'"),
        (ZeroDivisionError(), "cannot read the images: ZeroDivisionError"),
    ],
)
def test_an_error_of_another_process_is_its_cause(error, message):
    with pytest.raises(DataError) as raised:
        list(plain_errors(failing(error)))
    assert str(raised.value) == message


def test_errors_of_this_process_stay_as_they_are():
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        list(plain_errors(1 / number for number in (1, 0)))


def test_an_image_that_cannot_be_transformed_is_named(tmp_path):
    write(tmp_path, "cat/0.png")
    loader = evaluation_loader(network(1), str(tmp_path), workers=1)

    def fail(image):
        raise ValueError("no such size")

    loader.images.transform = fail
    with pytest.raises(DataError, match=r"^'.*cat/0.png': no such size$"):
        list(loader)


@pytest.mark.data
def test_fewer_classes_of_real_images_keep_their_numbers(imagenet_284):
    names = sorted(path.name for path in (imagenet_284 / "train").iterdir())
    reader = open_dataset("folder", str(imagenet_284), None).reader
    assert len({label for _, label in reader.samples}) < len(names) == 1000
    assert all(names[label] == Path(path).parent.name for path, label in reader.samples)


def test_of_two_folders_of_training_images_the_one_that_training_uses_numbers_the_classes(tmp_path):
    write(tmp_path, "train/cat/a.png train/dog/a.png train/fox/a.png training/cat/a.png val/cat/a.png val/fox/a.png")
    assert classes_of(str(tmp_path), split="val") == ("cat", "dog", "fox")
    write(tmp_path, "val/yak/a.png")
    with pytest.raises(DataError, match=r"the class 'yak' of .* is none of the 3 of"):
        open_dataset(*find_dataset(str(tmp_path), None), "val")
    (tmp_path / "train").rename(tmp_path / "Training")
    with pytest.raises(DataError, match="are both the split 'train'; use one"):
        classes_of(str(tmp_path), split="val")


def test_a_link_to_test_images_has_the_classes_of_their_dataset(tmp_path):
    write(tmp_path, "all/train/cat/a.png all/train/dog/a.png all/train/fox/a.png all/val/cat/a.png all/val/fox/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "all" / "val")
    assert classes_of(str(tmp_path / "link")) == ("cat", "dog", "fox")
