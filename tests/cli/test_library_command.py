"""From a trained network of timm to a student of its library, by the commands."""

import json

import numpy as np
import pytest
import timm
import torch
from command_line import run
from PIL import Image
from safetensors.torch import load_file, save_file

from blockswap_models import BlockLibrary, swap
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


def test_a_library_is_searched(files, library):
    search = ("search", "test_resnet", "--strategy", "library", "--library", library, "--data", files / "images")
    code, out, said = run(*search, "--params", "50%", "--samples", "2", "--batch-size", "4", "--tolerance", "0.2")
    assert code == 0, said
    assert "smallest sum of errors: " in out
    assert "the smallest there is" in out
    code, out, _ = run(
        *search, "--params", "..400k", "--macs", "..90m", "--samples", "1", "--batch-size", "4", "--json"
    )
    report = json.loads(out)
    assert code == 0
    assert report["best"]["params"] <= 400_000
    assert report["best"]["macs"] <= 90_000_000
    for wrong, message in {
        ("search", "test_resnet", "--strategy", "library", "--params", "1m"): "use --strategy library --library FOLDER",
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


def test_what_a_library_lacks_is_said_in_its_own_options(files):
    for arguments, message in {
        ("wrn16_1",): "; use --teacher-checkpoint FILE for weights of your own",
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


def test_a_student_starts_from_the_blocks_of_a_library(files, library):
    run_folder = files / "run"
    code, _, said = run(
        *("train", "test_resnet", "--genome", "K/G4/B2/K", "--init", library, "--data", files / "images"),
        *("--out", run_folder, "--epochs", "1", "--batch-size", "4", "--lr", "1e-12", "--workers", "0"),
    )
    assert code == 0, said
    trained = load_file(run_folder / "model.safetensors")
    joined = swap(original_network(BlockLibrary.load(library)), "K/G4/B2/K", library=library)
    for name, value in joined.named_parameters():
        torch.testing.assert_close(trained[name], value.detach(), atol=1e-6, rtol=1e-4)
    code, _, said = run("train", "test_resnet", "--init", library, "--data", files / "images", "--out", files / "none")
    assert (code, "a library starts one network of a given genome" in said) == (2, True), said
