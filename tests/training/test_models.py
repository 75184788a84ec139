"""Networks made from folders: with their weights or random ones, and of folders that are damaged."""

import json
import re

import pytest
import timm
import torch
from safetensors.torch import save_file

from blockswap_models import save_pretrained
from blockswap_models.cli.errors import as_options
from blockswap_models.cli.evaluate import evaluate_
from blockswap_models.cli.library import library_
from blockswap_models.training.evaluate import load_weights
from blockswap_models.training.models import make_model
from blockswap_models.training.run_folder import TrainingError, read_summary
from blockswap_models.training.runs import RunSettings, make_teacher

SUMMARY = {"model": "blockswap_wrn16_1", "data": "photos", "input_size": [3, 32, 32], "num_classes": 3}


@pytest.fixture
def net(tmp_path):
    """The folder of a saved network."""
    save_pretrained(timm.create_model("blockswap_wrn16_1", num_classes=3), tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize("has_weights", [True, False])
def test_a_run_without_its_weights_has_random_ones(tmp_path, has_weights):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    trained = timm.create_model("blockswap_wrn16_1", num_classes=3)
    if has_weights:
        save_file(trained.state_dict(), tmp_path / "model.safetensors")
        assert torch.equal(make_model(str(tmp_path)).conv1.weight, trained.conv1.weight)
    fresh = make_model(str(tmp_path), pretrained=False)
    assert not torch.equal(fresh.conv1.weight, trained.conv1.weight)
    save_file(trained.state_dict(), tmp_path / "other.safetensors")
    given = make_model(str(tmp_path), pretrained=False, checkpoint=tmp_path / "other.safetensors")
    assert torch.equal(given.conv1.weight, trained.conv1.weight)


@pytest.mark.parametrize("missing", SUMMARY)
def test_a_summary_that_lacks_something_is_none(tmp_path, missing):
    (tmp_path / "summary.json").write_text(json.dumps({key: SUMMARY[key] for key in SUMMARY if key != missing}))
    with pytest.raises(TrainingError, match=r"^'.*summary.json' is no summary of blockswap train$"):
        read_summary(tmp_path)


def without_architecture(net):
    config = json.loads((net / "config.json").read_text())
    del config["architecture"]
    (net / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_architecture, "its config.json has no 'architecture'"),
        (lambda net: (net / "config.json").write_text("a diary"), "Expecting value: line 1 column 1 (char 0)"),
        (lambda net: (net / "config.json").write_text("[]"), "'str' object cannot be interpreted as an integer"),
        (lambda net: (net / "model.safetensors").write_bytes(b"garbage" * 9), "Error while deserializing header: "),
        (lambda net: (net / "model.safetensors").unlink(), "No suitable checkpoints found in "),
        (
            lambda net: save_file({"conv1.weight": torch.zeros(1)}, net / "model.safetensors"),
            "its weights are of another network than its config.json says",
        ),
    ],
)
def test_a_damaged_folder_is_one_line(net, damage, reason):
    damage(net)
    said = rf"^cannot load the network in '{net}': {re.escape(reason)}.*; use a folder that 'blockswap make' or"
    for name in (str(net), f"local-dir:{net}"):
        with pytest.raises(ValueError, match=said) as caught:
            make_model(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=said):
        make_teacher(RunSettings(("wrn16_1",), "photos", teacher=str(net)))


def test_weights_of_another_network_come_with_advice_that_can_be_taken(tmp_path):
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model("blockswap_wrn16_1", genome="2xG4/2xS/2xS", num_classes=3).state_dict(), other)
    with pytest.raises(
        ValueError, match=r"; use the network that it is of \(genome=\), or the folder of its run$"
    ) as e:
        load_weights(timm.create_model("blockswap_wrn16_1", num_classes=3), other)
    assert as_options(str(e.value), evaluate_).endswith(
        "the network that it is of (--genome), or the folder of its run"
    )
    # That of a library has no genome to give, and that of a training is the student's.
    assert as_options(str(e.value), library_).endswith("the network that it is of, or the folder of its run")
    settings = RunSettings(("wrn16_1",), "photos", num_classes=3, teacher="wrn16_1", teacher_checkpoint=str(other))
    with pytest.raises(ValueError, match=r"; use the folder of its run$"):
        make_teacher(settings)
