"""The data config of a network: as many means and standard deviations as it takes channels."""

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from blockswap_models import Layout
from blockswap_models.data.statistics import data_config, for_channels, model_data_config
from blockswap_models.nets.networks import build

NAMES = ["blockswap_wrn16_1", "test_resnet", "test_vit", "test_efficientnet"]
CIFAR10_GREY = {"mean": (0.4734,), "std": (0.2009,)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features_only", [False, True])
def test_a_network_of_three_channels_has_timms_config(name, features_only):
    model = timm.create_model(name, features_only=features_only, device="meta")
    assert model_data_config(model) == resolve_model_data_config(model)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_there_are_as_many_means_as_channels(name, features_only, channels):
    whole = resolve_model_data_config(timm.create_model(name, device="meta"))
    model = timm.create_model(name, in_chans=channels, features_only=features_only, device="meta")
    config = model_data_config(model)
    assert config["input_size"] == (channels, *whole["input_size"][1:])
    for key in ("mean", "std"):
        assert config[key] == pytest.approx((sum(whole[key]) / 3,) * channels, rel=1e-3)
    assert {key: config[key] for key in ("crop_pct", "crop_mode", "interpolation")} == {
        key: whole[key] for key in ("crop_pct", "crop_mode", "interpolation")
    }
    # Within wrappers too.
    assert model_data_config(nn.DataParallel(torch.compile(model, backend="eager"))) == config


def test_the_zoo_and_the_search_normalise_alike():
    model = timm.create_model("blockswap_wrn40_2", in_chans=1, device="meta")
    config, of_layout = model_data_config(model), data_config(Layout.named("wrn40_2"), 1)
    assert {key: config[key] for key in CIFAR10_GREY} == {key: of_layout[key] for key in CIFAR10_GREY} == CIFAR10_GREY
    assert of_layout["input_size"] == config["input_size"] == (1, 32, 32)


def test_a_network_without_a_cfg_has_timms_defaults():
    model = build(Layout.wide_resnet(10, 1), in_chans=1)
    assert model_data_config(model)["input_size"] == (1, 224, 224)
    assert model_data_config(model)["mean"] == (0.449,)
    assert model_data_config(nn.Conv2d(3, 1, 1))["mean"] == timm.data.IMAGENET_DEFAULT_MEAN


def test_a_cfg_is_fitted_in_a_copy():
    config = {"input_size": (3, 8, 8), "mean": (0.1, 0.2, 0.3), "std": (1 / 255,) * 3, "test_input_size": (3, 9, 9)}
    before = dict(config)
    assert for_channels(config, 3) == config
    assert for_channels(config, 2) == {
        "input_size": (2, 8, 8),
        "mean": (0.2, 0.2),
        "std": (0.003922, 0.003922),
        "test_input_size": (2, 9, 9),
    }
    assert config == before
    # Numbers of the user's own for these channels stay.
    assert for_channels({**config, "mean": (0.25,)}, 1)["mean"] == (0.25,)
