"""Weights that were saved when the stages of a WideResNet were `layer1`, `layer2` and so on are still taken."""

import re

import pytest
import safetensors.torch
import timm
import torch
from test_train import log_of, run_tiny, state_of
from torch import nn
from torch.optim.swa_utils import AveragedModel

import blockswap_models  # noqa: F401
from blockswap_models.nets.networks import checkpoint_filter_fn
from blockswap_models.training.evaluate import load_weights
from blockswap_models.training.initial_weights import load_initial
from blockswap_models.training.run_folder import RunFolder

NAME, GENOME = "blockswap_wrn16_1", "S,G4/B2,M6/W2,D"


def old_names(state):
    """Gives tensors the names of a version before; dictionaries within are renamed too."""
    return {
        re.sub(r"(^|\.)stages\.(\d+)\.", lambda found: f"{found[1]}layer{int(found[2]) + 1}.", name): (
            old_names(value) if isinstance(value, dict) and "conv1.weight" in value else value
        )
        for name, value in state.items()
    }


@pytest.fixture
def source():
    torch.manual_seed(0)
    return timm.create_model(NAME, genome=GENOME)


def assert_taken(source, model):
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_names_are_those_of_a_version_before(source):
    old = old_names(source.state_dict())
    assert {"conv1.weight", "layer1.0.bn1.weight", "layer3.1.bn1.weight", "fc.bias"} < old.keys()
    assert list(checkpoint_filter_fn(old, source)) == list(source.state_dict())
    # Of other networks these are the names.
    resnet = timm.create_model("blockswap_resnet18")
    assert checkpoint_filter_fn(resnet.state_dict(), resnet).keys() == resnet.state_dict().keys()
    assert "layer1.0.conv1.weight" in resnet.state_dict()


@pytest.mark.parametrize("wrap", [lambda each: each, nn.Sequential, AveragedModel, nn.DataParallel])
def test_a_state_dict_is_loaded_into_whatever_the_network_is_a_part_of(source, wrap):
    model = timm.create_model(NAME, genome=GENOME)
    old = old_names(wrap(source).state_dict())
    assert any("layer1." in name for name in old)
    wrap_of = wrap(model)
    wrap_of.load_state_dict(old)
    assert_taken(wrap(source), wrap_of)
    prefix = next(name for name in old if name.endswith("conv1.weight")).removesuffix("conv1.weight")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*stages\.3\.0\.x"):
        wrap(model).load_state_dict({**old, f"{prefix}layer4.0.x": torch.zeros(1)})


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_files_are_read_by_every_way(source, tmp_path, ending):
    path, old = tmp_path / f"model.{ending}", old_names(source.state_dict())
    if ending == "pth":
        torch.save({"state_dict": old}, path)
    else:
        safetensors.torch.save_file(old, path)
    for read in (load_weights, load_initial):
        model = timm.create_model(NAME, genome=GENOME)
        read(model, path)
        assert_taken(source, model)
    assert_taken(source, timm.create_model(NAME, genome=GENOME, checkpoint_path=str(path)))
    overlay = {"file": str(path)}
    pretrained = timm.create_model(NAME, genome=GENOME, pretrained=True, pretrained_cfg_overlay=overlay)
    assert_taken(source, pretrained)
    features = timm.create_model(
        NAME, genome=GENOME, pretrained=True, features_only=True, pretrained_cfg_overlay=overlay
    )
    x = torch.randn(1, 3, 32, 32)
    for found, expected in zip(features.eval()(x), source.eval().forward_intermediates(x)[1], strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_that_was_begun_with_the_old_names_is_gone_on_with(tmp_path, monkeypatch, ema):
    run_tiny(tmp_path / "whole", True, ema)
    save = RunFolder.save

    def save_and_stop(self, row, state):
        save(self, row, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "old", True, ema)
    monkeypatch.undo()
    path = tmp_path / "old" / "checkpoint.pth"
    state = torch.load(path, weights_only=True)
    assert len(state["optimizer"]["state"]) > 20
    old = old_names(state)
    assert any(name.startswith("layer1.0.") for name in old["state_dict"])
    torch.save(old, path)
    run_tiny(tmp_path / "old", True, ema, resume=True)
    # The momentum of each parameter went to the one whose it is: all further steps are the same.
    assert state_of(tmp_path / "old") == state_of(tmp_path / "whole")
    assert log_of(tmp_path / "old") == log_of(tmp_path / "whole")
