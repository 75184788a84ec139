"""Networks that were saved with classes and images of their own: trained on, packed, and imitated by a library."""

import json
import shutil

import pytest
import safetensors.torch
import timm
import torch
from command_line import run
from PIL import Image

from blockswap_models import BlockLibrary, save_pretrained
from blockswap_models.data.statistics import label_names, model_data_config
from blockswap_models.searching.record import network_of
from blockswap_models.zoo.original import original_network

NAMES = ("owl", "dog", "cat")
IMAGES = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 0.9}
SHORT = ("--epochs", 1, "--batch-size", 4, "--workers", 0, "--lr", 1e-9)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of three classes, and a saved network that answers owl, which is the first of its names."""
    folder = tmp_path_factory.mktemp("files")
    for split, numbers in {"train": (4, 4, 4), "val": (3, 1, 1)}.items():
        for name, number in zip(NAMES, numbers, strict=True):
            (folder / "images" / split / name).mkdir(parents=True)
            for each in range(number):
                Image.new("RGB", (32, 32), (60 * each,) * 3).save(folder / "images" / split / name / f"{each}.png")
    torch.manual_seed(0)
    model = timm.create_model("blockswap_wrn16_1", num_classes=3).train()
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([5.0, 0.0, -5.0]))
    model.pretrained_cfg.update(IMAGES, label_names=list(NAMES))
    # A dot in its name is no tag.
    save_pretrained(model, folder / "net-v1.2")
    return folder


@pytest.fixture(scope="module")
def trained(files):
    """A run from the saved network, which is named by its folder."""
    code, _, err = run(
        *("train", files / "net-v1.2", "--pretrained", "--data", files / "images", "--out", files / "run", *SHORT)
    )
    assert code == 0, err
    return files / "run"


@pytest.fixture(scope="module")
def library(files):
    code, _, err = run(
        *("library", files / "net-v1.2", "--data", files / "images", "--out", files / "lib", "--types", "G4"),
        *("--steps", 1, "--batch-size", 4, "--workers", 0),
    )
    assert code == 0, err
    return files / "lib"


def error_of(*arguments):
    code, out, err = run("evaluate", *arguments, "--workers", 0, "--json")
    assert code == 0, err
    return json.loads(out)["top1_error"]


def test_training_keeps_the_order_of_the_classes_of_its_weights(files, trained):
    # Three of five images are owls; in the order of the folder the first class would be the cat.
    assert error_of(files / "net-v1.2", "--data", files / "images") == pytest.approx(40)
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["label_names"] == list(NAMES)
    assert summary["top1_error"] == pytest.approx(40)
    assert error_of(trained, "--data", files / "images") == pytest.approx(40)


def test_a_network_without_weights_has_the_order_of_the_folder(files, tmp_path):
    code, _, err = run("train", "wrn16_1", "--data", files / "images", "--out", tmp_path / "run", *SHORT)
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["label_names"] == sorted(NAMES)


def test_what_is_packed_is_named_by_its_network_and_has_its_images(files, trained, tmp_path):
    code, _, err = run("pack", trained, "--tag", "mine", "--out", tmp_path / "packed", "--workers", 0)
    assert code == 0, err
    card = tmp_path / "packed" / "blockswap_wrn16_1.mine.json"
    assert {each.name for each in card.parent.iterdir()} == {card.name, card.with_suffix(".safetensors").name}
    code, _, err = run("push", card, "--out", tmp_path / "pushed")
    assert code == 0, err
    again = timm.create_model(f"local-dir:{tmp_path / 'pushed'}", pretrained=True)
    config = model_data_config(again)
    assert {key: config[key] for key in IMAGES} == IMAGES
    assert (label_names(again), again.pretrained_cfg["tag"]) == (NAMES, "mine")
    # Nothing of this machine.
    assert str(files) not in (tmp_path / "pushed" / "README.md").read_text()
    assert error_of(tmp_path / "pushed", "--data", files / "images") == pytest.approx(40)


def test_a_library_keeps_images_and_classes_of_its_network(files, library, tmp_path):
    original = original_network(BlockLibrary.load(library))
    config = model_data_config(original)
    assert {key: config[key] for key in IMAGES} == IMAGES
    assert label_names(original) == NAMES
    code, _, err = run(
        *("train", "wrn16_1", "--init", library, "--genome", "2xS/2xS/2xG4", "--data", files / "images", *SHORT),
        *("--out", tmp_path / "run"),
    )
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["label_names"], summary["top1_error"]) == (list(NAMES), pytest.approx(40))


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_library_without_its_original_says_so_in_one_line(files, library, tmp_path, damage):
    folder = tmp_path / "lib"
    shutil.copytree(library, folder)
    (folder / "original.safetensors").unlink()
    if damage == "damaged":
        (folder / "original.safetensors").write_bytes(b"x" * 100)
    for words in (
        ("train", "wrn16_1", "--genome", "2xS/2xS/2xG4", "--init", folder, *SHORT),
        ("search", "wrn16_1", "--strategy", "library", "--library", folder, "--params", "80%", "--batch-size", 5),
    ):
        code, _, err = run(*words, "--data", files / "images", "--out", tmp_path / "out")
        assert code == 2
        assert "original.safetensors': it is missing or damaged; train the library anew" in err.splitlines()[-1]


def test_a_tag_is_kept_from_a_search_to_its_card(files, tmp_path):
    """The tags of a network of timm may differ in how its images are made."""
    name = "test_resnet.r160_in1k"
    record = tmp_path / "record.jsonl"
    options = ("--types", "K,G4", "--samples", 2, "--refine", 0, "--batch-size", 4, "--workers", 1)
    code, out, err = run(
        *("search", name, "--params", "50%..", "--data", files / "images", *options, "--out", record),
    )
    assert code == 0, err
    assert network_of(record).name == name
    assert f"timm.create_model('{name}'" in out
    code, _, err = run("train", record, "--data", files / "images", "--out", tmp_path / "run", *SHORT)
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["model"] == name
    code, _, err = run("pack", tmp_path / "run", "--tag", "mine", "--out", tmp_path, "--workers", 0)
    assert code == 0, err
    weights = tmp_path / "test_resnet.mine.safetensors"
    assert safetensors.torch.load_file(weights)
    card = json.loads(weights.with_suffix(".json").read_text())
    wanted = model_data_config(timm.create_model(name))
    assert card["data_config"] == {
        key: list(each) if isinstance(each, tuple) else each for key, each in wanted.items() if key != "input_size"
    }
