"""From a folder of photographs to a deployed network, command by command: what is known is not told twice."""

import json
import shlex
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import timm
from command_line import run
from PIL import Image

from blockswap_models import Budget, SearchSpace, search
from blockswap_models.searching.probe_images import affordable_batches, dataset_minibatch

FEW = ["--device", "cpu", "--workers", 0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six grey photographs of each of three classes, in a folder without splits."""
    root = tmp_path_factory.mktemp("chain") / "photos"
    random = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog", "fox")):
        (root / name).mkdir(parents=True)
        for each in range(6):
            pixels = random.integers(80 * number, 80 * number + 60, size=(40, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{each}.png")
    return root


@pytest.fixture(scope="module")
def searched(photos):
    """The record of a search of these photographs, and what the search printed."""
    record = photos.parent / "search.jsonl"
    command = f"search wrn16_1 --types S,G4 --params 60k..150k --samples 3 --refine 0 --batch-size 4 --data {photos}"
    status, out, err = run(*command.split(), "--workers", 1, "--out", record)
    assert status == 0, err
    return record, out, err


@pytest.fixture(scope="module")
def trained(searched):
    """The folder of a run of the record's best network, trained by the command that the search printed."""
    _, out, _ = searched
    (line,) = (line for line in out.splitlines() if line.startswith("train it: "))
    words = shlex.split(line.removeprefix("train it: "))
    assert words[:2] == ["blockswap", "train"]
    status, out, err = run(*words[1:], "--epochs", 1, "--batch-size", 4, *FEW)
    assert status == 0, err
    return words[words.index("--out") + 1], err


def test_a_record_knows_the_images(searched, photos):
    record, _, err = searched
    header = json.loads(record.read_text().splitlines()[0])
    assert (header["num_classes"], header["input_size"]) == (3, [1, 32, 32])
    assert header["about"] == {
        "data": str(photos),
        "data_dir": None,
        "val_share": 0.2,
        "val_seed": 0,
        "label_names": ["cat", "dog", "fox"],
    }
    assert "15 of its 18 images train and 3 are held out for validation, 20% of each class by seed 0" in err


def test_what_is_searched_is_trained_without_telling_it_twice(searched, trained):
    record, _, _ = searched
    folder, err = trained
    best = json.loads(run("show", record, "--json")[1])["best"]
    summary = json.loads(Path(folder, "summary.json").read_text())
    assert (summary["genome"], summary["params"]) == (best["genome"], best["params"])
    assert (summary["num_classes"], summary["input_size"]) == (3, [1, 32, 32])
    assert summary["label_names"] == ["cat", "dog", "fox"]
    assert (summary["test_images"], summary["val_share"]) == (3, 0.2)
    assert "3 are held out for validation" in err


def test_a_run_is_packed_where_its_images_lie_now(trained, photos, tmp_path):
    folder, _ = trained
    shutil.copytree(photos, tmp_path / "moved")
    status, out, err = run("pack", folder, "--tag", "t", "--data-dir", tmp_path / "moved", "--out", tmp_path, *FEW)
    assert status == 0, err
    card = json.loads((tmp_path / out.split()[1]).with_suffix(".json").read_text())
    assert card["test"]["images"] == 3


def test_another_network_of_a_record(searched, tmp_path):
    record, _, _ = searched
    top = json.loads(run("show", record, "--json")[1])["top"]
    command = ["train", record, "--rank", 2, "--epochs", 1, "--batch-size", 4, *FEW, "--out", tmp_path / "run"]
    assert run(*command)[0] == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["genome"] == top[1]["genome"]
    for options, message in {
        ("--rank", 9): "has 3 genomes, of which none is number 9; use another --rank",
        ("--genome", "2xS/2xS/2xS"): "has genomes of its own; use --rank, or a network in place of the record",
        ("--out", ""): "an empty name of a folder; use the one to write, or . for this one (--out)",
    }.items():
        status, _, err = run("train", record, *FEW, "--out", tmp_path / "other", *options)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
    status, _, err = run("train", record, record, "--teacher", "wrn16_1", *FEW, "--out", tmp_path / "other")
    assert (status, "the record of a search is trained alone; use one command for each" in err) == (2, True)
    status, _, err = run("train", "wrn16_1", "--rank", 1, "--data", tmp_path, "--out", tmp_path / "other")
    assert (status, "--rank is for the record of a search" in err) == (2, True)
    status, _, err = run("train", "none.jsonl", "--data", tmp_path, "--out", tmp_path / "other")
    assert (status, err) == (2, "blockswap train: no record 'none.jsonl'; use the record of a search, or a network\n")


def test_what_a_search_saw_is_held_out_as_it_was_unless_it_is_said(searched, photos, tmp_path):
    record, _, _ = searched
    header, *rows = record.read_text().splitlines()
    other = json.loads(header)
    other["about"] |= {"val_share": 0.34, "val_seed": 3}
    (tmp_path / "other.jsonl").write_text("\n".join([json.dumps(other), *rows]) + "\n")
    settings = []
    for options in ([], ["--data", f"{photos}/"], ["--val-seed", 9], ["--val-share", 0.5]):
        command = ["train", tmp_path / "other.jsonl", *options, *FEW, "--out", tmp_path / "run"]
        with patch("blockswap_models.cli.train._train", side_effect=ValueError("enough")) as train:
            assert run(*command)[0] == 2
        settings.append((train.call_args.args[0].val_share, train.call_args.args[0].val_seed))
    assert settings == [(0.34, 3), (0.34, 3), (0.34, 9), (0.5, 3)]


def test_records_of_noise_and_older_ones_ask_for_data(searched, tmp_path):
    record, _, _ = searched
    header, *rows = record.read_text().splitlines()
    old = json.loads(header)
    del old["about"]
    (tmp_path / "old.jsonl").write_text("\n".join([json.dumps(old), *rows]) + "\n")
    status, out, _ = run("show", tmp_path / "old.jsonl")
    assert status == 0
    assert f"train it: blockswap train {tmp_path}/old.jsonl --data DATA --out {tmp_path}/old-run" in out
    status, _, err = run("train", tmp_path / "old.jsonl", "--out", tmp_path / "run")
    assert (status, err.splitlines()[-1]) == (2, "blockswap train: Missing option '--data'.")


GO_ON = "search wrn16_1 --types S,G4 --params 60k..150k --samples 3 --refine 0 --batch-size 4 --workers 1 --resume"


def test_an_older_record_is_gone_on_with(photos, tmp_path):
    old = tmp_path / "old.jsonl"
    # An older search drew from all images of the folder, and its record did not say where they are.
    space = SearchSpace("wrn16_1", num_classes=3, in_chans=1, types=("S", "G4"))
    images = dataset_minibatch(space, str(photos), None, 4, num_batches=affordable_batches(space, 4))
    whole = {"data": images, "batch_size": 4, "workers": 1, "refine": 0, "record": old, "progress": False}
    search(space, Budget(params="60k..150k"), 2, **whole)
    header, *rows = old.read_text().splitlines()
    header = json.dumps({key: value for key, value in json.loads(header).items() if key not in ("about", "asked")})
    old.write_text("\n".join([header, rows[0]]) + "\n")
    status, _, err = run(*GO_ON.split(), old, "--data", photos)
    assert status == 0, err
    assert old.read_text().splitlines()[:2] == [header, rows[0]]
    assert len(old.read_text().splitlines()) == 4


def test_a_record_of_a_folder_that_has_splits_since_says_so(searched, photos, tmp_path):
    record, _, _ = searched
    flat, old = tmp_path / "photos", tmp_path / "old.jsonl"
    for split in ("train", "val"):
        shutil.copytree(photos, flat / split)
    old.write_text(record.read_text())
    status, out, err = run(*GO_ON.split(), old, "--data", flat)
    assert (status, out) == (2, "")
    assert err == (
        f"blockswap search: {old} began before '{flat}' had splits (train, val), and scores of other images cannot be "
        "compared; use another --out, or the folder as it was\n"
    )
    assert old.read_text() == record.read_text()


def test_the_folder_of_a_run_is_a_network(trained, photos):
    folder, _ = trained
    summary = json.loads(Path(folder, "summary.json").read_text())
    status, out, err = run("evaluate", folder, "--data", photos, "--val-share", 0.2, *FEW, "--json")
    assert status == 0, err
    report = json.loads(out)
    assert (report["images"], report["top1_error"]) == (3, summary["top1_error"])
    status, out, _ = run("evaluate", folder, "--data", photos, *FEW, "--json")
    assert json.loads(out)["images"] == 18
    status, _, err = run("evaluate", folder, "--num-classes", 9, "--data", photos, *FEW)
    assert (status, "has --num-classes 3; leave out --num-classes 9" in err) == (2, True)


def test_names_of_classes_go_into_every_file(trained, tmp_path):
    folder, _ = trained
    exported = tmp_path / "net.onnx"
    status, _, err = run("export", folder, "--out", exported)
    assert status == 0, err
    onnx = pytest.importorskip("onnx")
    about = {each.key: each.value for each in onnx.load(exported).metadata_props}
    assert json.loads(about["label_names"]) == ["cat", "dog", "fox"]
    assert json.loads(about["input_size"]) == [1, 32, 32]

    status, _, err = run("pack", folder, "--tag", "mine", "--out", tmp_path / "packed", *FEW)
    assert status == 0, err
    (card,) = (tmp_path / "packed").glob("*.json")
    assert json.loads(card.read_text())["label_names"] == ["cat", "dog", "fox"]
    status, _, err = run("push", card, "--out", tmp_path / "net")
    assert status == 0, err
    assert json.loads((tmp_path / "net" / "config.json").read_text())["label_names"] == ["cat", "dog", "fox"]
    again = timm.create_model(f"local-dir:{tmp_path}/net", pretrained=True)
    assert tuple(again.pretrained_cfg["label_names"]) == ("cat", "dog", "fox")
    assert "| classes | 3: cat, dog, fox |" in (tmp_path / "net" / "README.md").read_text()
