"""From a trained network of timm to a student of its library, by the commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_line import run
from PIL import Image
from safetensors.torch import load_file, save_file

from blockswap_models import BlockLibrary, save_pretrained, swap
from blockswap_models.searching.record import network_of
from blockswap_models.training.models import make_model
from blockswap_models.zoo.original import original_network


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint, and images of five classes."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5, zero_init_last=False).train()
    with torch.no_grad():
        model(torch.randn(16, 3, 64, 64))
    save_file(model.state_dict(), folder / "teacher.safetensors")
    random = np.random.default_rng(0)
    for split, number in {"train": 4, "val": 1}.items():
        for label in range(5):
            (folder / "images" / split / f"class{label}").mkdir(parents=True)
            for each in range(number):
                pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / f"class{label}" / f"{each}.png")
    return folder


@pytest.fixture(scope="module")
def library(files):
    code, out, said = run(
        *("library", "test_resnet", "--teacher-checkpoint", files / "teacher.safetensors", "--num-classes", "5"),
        *("--data", files / "images", "--out", files / "lib", "--types", "G4,B2", "--steps", "1"),
        *("--batch-size", "4", "--workers", "0"),
    )
    assert code == 0, said
    assert out.startswith("test_resnet: relative error of each block type by stage.block")
    return files / "lib"


def test_a_library_is_no_class_of_its_images(files):
    code, _, err = run(
        *("library", "test_resnet", "--teacher-checkpoint", files / "teacher.safetensors", "--num-classes", "5"),
        *("--data", files / "images", "--out", files / "images" / "train" / "lib", "--batch-size", "4", "--workers", 0),
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "images/train/lib' would be a class of the images in '" in err
    assert not (files / "images" / "train" / "lib").exists()


def test_what_does_not_fit_a_library_is_refused(files, library, tmp_path):
    images = files / "images"
    asked = ("--num-classes", "5", "--types", "G4,B2", "--steps", "1", "--batch-size", "4", "--workers", "0")
    again = ("library", "test_resnet", "--teacher-checkpoint", files / "teacher.safetensors", "--out", library)
    before = {each.name: each.read_bytes() for each in library.iterdir()}
    others = shutil.copytree(images, tmp_path / "others")
    torch.manual_seed(1)
    fresh = tmp_path / "fresh.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), fresh)
    for wrong, message in {
        (*again, "--data", images, *asked): f"there is a library in '{library}'; use --resume, or another --out",
        (*again, "--data", images, *asked, "--resume", "--types", "G4"): "has types ['G4', 'B2'], not ['G4']; use what",
        (*again, "--data", others, *asked, "--resume"): f"has data '{images}', not '",
        (*again, "--data", images, *asked, "--resume", "--teacher-checkpoint", fresh): "has weights 'sha256 ",
    }.items():
        code, _, said = run(*wrong)
        assert code == 2
        assert message in said.splitlines()[-1], said
    assert {each.name: each.read_bytes() for each in library.iterdir()} == before
    # The last of them is a fresh network, as is said.
    assert "test_resnet has random weights: there is nothing to imitate; use trained ones" in said.splitlines()


def test_what_is_held_out_of_a_folder_without_splits_chooses_nothing(files, library, tmp_path):
    record = tmp_path / "record.jsonl"
    search = ("search", "test_resnet", "--strategy", "library", "--library", library, "--data", files / "images/train")
    wanted = ("--params", "50%", "--samples", "1", "--batch-size", "4", "--tolerance", "0.2", "--out", record)
    code, out, said = run(*search, *wanted, "--val-share", "0.25")
    assert code == 0, said
    assert "15 of its 20 images train and 5 are held out for validation, 25% of each class by seed 0" in said
    # Whole minibatches of them.
    assert "on 12 images" in out
    header = json.loads(record.read_text().splitlines()[0])
    assert (header["about"]["val_share"], header["about"]["val_seed"]) == (0.25, 0)
    # What goes on has the same images, whatever is asked for.
    code, again, said = run(*search, *wanted[:-2], "--resume", record)
    assert (code, again) == (0, out), said


def test_a_library_is_searched(files, library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search = ("search", "test_resnet", "--strategy", "library", "--library", library, "--data", files / "images")
    wanted = ("--params", "50%", "--samples", "2", "--batch-size", "4", "--tolerance", "0.2")
    code, out, said = run(*search, *wanted)
    assert code == 0, said
    assert "smallest sum of errors: " in out
    assert "the smallest there is" in out
    # The record keeps what was measured, and knows the library from which its best network is trained.
    record = "test_resnet-params50%-images-library-seed0.jsonl"
    assert f"train it: blockswap train {record}" in out.replace("'", "")
    measured = Path(record).read_text()
    assert len(measured.splitlines()) == 3
    code, _, said = run(*search, *wanted)
    assert (code, f"{record} exists; continue it with --resume" in said) == (2, True), said
    code, again, _ = run(*search, *wanted, "--resume")
    assert (code, again) == (0, out)
    assert Path(record).read_text() == measured
    code, shown, _ = run("show", record)
    assert code == 0
    assert "joined accuracy in float32" in shown
    found = network_of(record)
    assert (found.name, found.library) == ("test_resnet", str(library))
    train = ("train", record, "--out", "run", "--epochs", "1", "--batch-size", "4", "--workers", "0", "--json")
    code, out, said = run(*train)
    assert code == 0, said
    summary = json.loads(out)
    assert (summary["genome"], summary["init"], summary["swapped"]) == (found.genome, str(library), True)
    code, out, _ = run(
        *search, "--params", "..400k", "--macs", "..90m", "--samples", "1", "--batch-size", "4", "--json"
    )
    report = json.loads(out)
    assert code == 0
    assert report["best"]["params"] <= 400_000
    assert report["best"]["macs"] <= 90_000_000
    for wrong, message in {
        (
            "search",
            "test_resnet",
            "--strategy",
            "library",
            "--params",
            "1m",
        ): "--strategy library needs --library FOLDER, which",
        (*search[:-2], "--params", "1m"): "joined blocks are measured on labelled images; use --data",
        ("search", "wrn16_1", *search[2:], "--params", "1m"): f"the library '{library}' is of test_resnet, not of",
    }.items():
        code, _, said = run(*wrong)
        assert (code, message in said) == (2, True), said


def test_a_library_of_a_folder_without_splits_leaves_some_images_out(files):
    code, _, said = run(
        *("library", "test_resnet", "--teacher-checkpoint", files / "teacher.safetensors", "--num-classes", "5"),
        *("--data", files / "images" / "train", "--out", files / "lib2", "--types", "G4", "--steps", "1"),
        *("--batch-size", "4", "--workers", "0"),
    )
    assert code == 0, said
    assert "15 of its 20 images train and 5 are held out for validation, 20% of each class by seed 0" in said
    assert BlockLibrary.load(files / "lib2").header["data"].endswith("train, without 0.2 of each class by seed 0")


def test_a_library_learns_from_the_images_that_the_network_was_trained_on(files):
    code, _, said = run("library", "wrn40_2", "--data", files / "images", "--out", files / "none")
    assert code == 2
    assert "has 5 classes, but wrn40_2 was trained on 10; use the images that it was trained on, or --teacher" in said


def test_what_a_library_lacks_is_said_in_its_own_options(files):
    for arguments, message in {
        ("wrn16_2",): "; use --teacher-checkpoint FILE for weights of your own",
        (
            "test_resnet",
            "--num-classes",
            "5",
            "--in-chans",
            "1",
            "--teacher-checkpoint",
            files / "teacher.safetensors",
        ): ("is of a network for images of 3 channels, this one takes 1; use --in-chans 3, or other weights"),
    }.items():
        code, _, said = run("library", *arguments, "--data", files / "images", "--out", files / "lib3")
        assert (code, said.count("\n"), said.endswith(f"{message}\n")) == (2, 1, True), said


@pytest.fixture(scope="module")
def run_folder(files, library):
    """The training run of a student, whose weights hardly change."""
    folder = files / "run"
    code, _, said = run(
        *("train", "test_resnet", "--genome", "K/G4/B2/K", "--init", library, "--data", files / "images"),
        *("--out", folder, "--epochs", "1", "--batch-size", "4", "--lr", "1e-12", "--workers", "0"),
    )
    assert code == 0, said
    return folder


def test_a_student_starts_from_the_blocks_of_a_library(files, library, run_folder):
    trained = load_file(run_folder / "model.safetensors")
    joined = swap(original_network(BlockLibrary.load(library)), "K/G4/B2/K", library=library)
    for name, value in joined.named_parameters():
        torch.testing.assert_close(trained[name], value.detach(), atol=1e-6, rtol=1e-4)
    # At a size of images of its own.
    code, out, said = run(
        *("train", "test_resnet", "--genome", "K/G4/B2/K", "--init", library, "--data", files / "images", "--json"),
        *("--image-size", "48", "--out", files / "run48", "--epochs", "1", "--batch-size", "4", "--workers", "0"),
    )
    assert (code, json.loads(out)["input_size"]) == (0, [3, 48, 48]), said
    code, _, said = run("train", "test_resnet", "--init", library, "--data", files / "images", "--out", files / "none")
    assert (code, "a library starts one network of a given genome" in said) == (2, True), said


def test_a_student_of_a_network_of_timm_travels(files, run_folder, tmp_path):
    evaluated = {}
    save_pretrained(make_model(str(run_folder)), tmp_path / "net")
    weights = ("--checkpoint", run_folder / "model.safetensors", "--num-classes", "5")
    for name, arguments in {
        "run": (run_folder,),
        "folder": (tmp_path / "net",),
        "local-dir": (f"local-dir:{tmp_path / 'net'}",),
        "genome": ("test_resnet", "--genome", "K/G4/B2/K", *weights),
    }.items():
        code, out, said = run("evaluate", *arguments, "--data", files / "images", "--workers", "0", "--json")
        assert code == 0, said
        evaluated[name] = json.loads(out)["top1_error"]
    summary = json.loads((run_folder / "summary.json").read_text())
    assert set(evaluated.values()) == {summary["top1_error"]}
    assert (summary["genome"], summary["swapped"]) == ("K/G4/B2/K", True)
    image = next((files / "images" / "val" / "class0").iterdir())
    code, out, _ = run("predict", run_folder, image, "--top", "1", "--json", "--workers", "0")
    assert code == 0
    assert json.loads(out)[0]["names"][0] in summary["label_names"]
    code, out, said = run("export", run_folder, "--out", tmp_path / "student.ts", "--json")
    assert code == 0, said
    assert json.loads(out)["genome"] == "K/G4/B2/K"
    # There are no weights for blocks that are new.
    code, _, said = run("evaluate", "test_resnet", "--genome", "K/G4/B2/K", "--data", files / "images")
    assert code == 2
    assert "no pretrained weights for test_resnet with other blocks, K/G4/B2/K; use --checkpoint FILE" in said


def test_weights_of_a_student_are_packed(files, run_folder, tmp_path):
    code, out, said = run("pack", run_folder, "--tag", "lib", "--out", tmp_path, "--workers", "0", "--json")
    assert code == 0, said
    card = json.loads(out)
    assert (card["name"], card["genome"], card["swapped"]) == ("test_resnet.lib", "K/G4/B2/K", True)
    code, _, said = run("push", tmp_path / "test_resnet.lib.json", "--out", tmp_path / "folder")
    assert code == 0, said
    assert "register" not in (tmp_path / "folder" / "README.md").read_text()
    packed = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    trained = load_file(run_folder / "model.safetensors")
    halved = {name for name, _ in packed.named_parameters()}
    for name, value in packed.state_dict().items():
        assert torch.equal(value, trained[name].half().float() if name in halved else trained[name]), name
