"""Folders that a run depends on, and that were moved, renamed or changed since."""

import json
import os
import shutil

import pytest
import timm
import torch
from command_line import run
from PIL import Image

from blockswap_models import save_pretrained

SHORT = ("--epochs", 1, "--batch-size", 4, "--workers", 0, "--lr", 1e-9)
NAMES = ("cat", "dog")


def save_network(folder, favourite, **images):
    """Saves a network of two classes that always answers the same one."""
    torch.manual_seed(0)
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.eye(2)[favourite])
    model.pretrained_cfg.update(images, label_names=list(NAMES))
    save_pretrained(model, folder)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with images of two classes, and two saved networks that answer cat and dog."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (32, 32), (50 * number,) * 3).save(tmp_path / "images" / name / f"{number}.png")
    save_network("first", 0, mean=(0.1, 0.2, 0.3))
    save_network("second", 1)
    return tmp_path


def train(*arguments):
    return run("train", *arguments, "--data", "images", *SHORT)


def answers(folder):
    code, out, err = run("predict", folder, "images/cat/0.png", "--workers", 0, "--json")
    assert code == 0, err
    return json.loads(out)[0]["names"]


def contents(folder):
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


@pytest.mark.parametrize("change", ["renamed", "added", "removed"])
def test_a_run_goes_on_only_with_the_images_that_it_began_with(place, change):
    assert train("wrn16_1", "--out", "run")[0] == 0
    assert train("wrn16_1", "--out", "run", "--resume")[0] == 0
    before = contents(place / "run")
    if change == "renamed":
        (place / "images" / "cat").rename(place / "images" / "kitten")
    elif change == "added":
        shutil.copy(place / "images" / "cat" / "0.png", place / "images" / "cat" / "9.png")
    else:
        (place / "images" / "dog" / "4.png").unlink()
    code, _, err = train("wrn16_1", "--out", "run", "--resume")
    assert (code, err.splitlines()[-1]) == (
        2,
        "blockswap train: the images are not those that the run in 'run' began with: files or classes were added, "
        "removed or renamed; use those, or another --out",
    )
    assert contents(place / "run") == before


def test_a_run_of_an_older_version_which_did_not_write_its_images_goes_on(place):
    assert train("wrn16_1", "--out", "run")[0] == 0
    state = torch.load("run/checkpoint.pth", weights_only=True)
    assert state["arguments"].pop("images").startswith("sha256 ")
    torch.save(state, "run/checkpoint.pth")
    assert train("wrn16_1", "--out", "run", "--resume")[0] == 0


def test_a_run_without_its_checkpoint_is_not_begun_anew(place):
    assert train("wrn16_1", "--out", "run")[0] == 0
    (place / "run" / "checkpoint.pth").unlink()
    before = contents(place / "run")
    code, _, err = train("wrn16_1", "--out", "run", "--resume")
    assert code == 2
    assert "the run in 'run' has no checkpoint.pth to go on from; use another --out" in err
    assert contents(place / "run") == before


@pytest.mark.parametrize("options", [("wrn16_1", "--teacher", "first"), ("first", "--pretrained")])
def test_a_run_goes_on_only_with_the_saved_weights_that_it_began_with(place, options):
    assert train(*options, "--out", "run")[0] == 0
    shutil.copy("second/model.safetensors", "first/model.safetensors")
    code, _, err = train(*options, "--out", "run", "--resume")
    assert code == 2
    assert "weights sha256 " in err


def test_students_that_are_saved_networks_have_the_names_of_their_folders(place):
    save_network("second", 1, mean=(0.1, 0.2, 0.3))
    code, out, err = train("first", "./second", "--pretrained", "--teacher", "first", "--out", "both")
    assert code == 0, err
    assert answers("both/first") == ["cat", "dog"]
    assert answers("both/second") == ["dog", "cat"]
    assert "both/second/model.safetensors" in out
    (place / "other").mkdir()
    shutil.copytree("second", "other/first")
    code, _, err = train("first", "other/first", "--pretrained", "--teacher", "first", "--out", "more")
    assert (code, "two of the networks are called first; train each alone, or rename a folder" in err) == (2, True)


def test_a_run_stands_without_the_saved_network_that_it_started_from(place, monkeypatch):
    assert train("first", "--pretrained", "--out", "run")[0] == 0
    shutil.rmtree("first")
    save_network("first", 1, mean=(0.7, 0.7, 0.7))
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    code, _, err = run("pack", "../run", "--tag", "t", "--data-dir", "../images", "--out", "packed", "--workers", 0)
    assert code == 0, err
    card = json.loads((place / "elsewhere" / "packed" / "blockswap_wrn16_1.t.json").read_text())
    assert card["data_config"]["mean"] == [0.1, 0.2, 0.3]
    monkeypatch.chdir(place)
    assert answers("run") == ["cat", "dog"]


def test_a_folder_may_have_a_colon_in_its_name(place):
    os.rename("second", "net-12:30")
    assert answers("net-12:30") == ["dog", "cat"]
    assert train("wrn16_1", "--teacher", "net-12:30", "--out", "run-12:31")[0] == 0
    code, out, err = run("evaluate", "run-12:31", "--data", "images", "--workers", 0, "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 10


def test_a_class_whose_folder_has_a_name_in_another_encoding(place):
    name = os.fsdecode(b"caf\xe9")
    try:
        os.rename("images/dog", f"images/{name}")
    except OSError:
        pytest.skip("this file system takes no such names")
    code, _, err = train("wrn16_1", "--out", "run")
    assert code == 0, err
    assert sorted(answers("run")) == sorted([name, "cat"])
    code, _, err = run("pack", "run", "--tag", "t", "--data-dir", "images", "--out", "packed", "--workers", 0)
    assert code == 0, err


def test_the_folder_of_a_run_is_no_network_to_train(place):
    assert train("wrn16_1", "--out", "run")[0] == 0
    code, _, err = train("run", "--pretrained", "--out", "more")
    assert code == 2
    assert err.splitlines()[-1] == (
        "blockswap train: 'run' is no network, but the folder of a run; to start from its weights use the network's "
        "name, and --init run/model.safetensors"
    )
    assert train("wrn16_1", "--init", "run/model.safetensors", "--out", "more")[0] == 0


def test_a_folder_with_the_name_of_a_network_is_told(place):
    os.rename("second", "resnet18")
    assert answers("./resnet18") == ["dog", "cat"]
    code, _, err = run("predict", "resnet18", "images/cat/0.png", "--no-pretrained", "--workers", 0)
    assert code == 0
    assert "resnet18 is the network resnet18, not the folder; use ./resnet18 for what is in that" in err
