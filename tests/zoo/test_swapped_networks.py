"""Networks of timm with other blocks, as entries of timm: folders, features and weights."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._registry import _model_pretrained_cfgs

from blockswap_models import GenomeError, save_pretrained, swap
from blockswap_models.nets.blocks import ResidualBlock
from blockswap_models.training.models import has_weights, make_model, of_summary

# Post-activation; linear with SE, and a first block that halves the images; and one without a map of stride 2.
NETWORKS = {
    "test_resnet": "K/G4/K/B2",
    "mobilenetv3_small_050": "K/K,B2/2xK,G2/2xK/3xK",
    "test_convnext": "B2/2xK/4xK/2xK",
}
X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def student():
    torch.manual_seed(0)
    return swap(timm.create_model("test_resnet", num_classes=5, zero_init_last=False), NETWORKS["test_resnet"]).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_gives_the_network_back(name, tmp_path):
    model = swap(timm.create_model(name, num_classes=7), NETWORKS[name]).eval()
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["model_args"]["network"]) == ("swapped", name)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(X), model(X))
    assert (again.genome, again.layout) == (model.genome, model.layout)
    assert again.pretrained_cfg["architecture"] == name
    features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    wanted = model.forward_intermediates(X, intermediates_only=True)
    assert features.feature_info.channels() == [each.shape[1] for each in wanted]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(features(X), wanted, strict=True))


def test_a_folder_is_loaded_for_other_images_and_saved_again(student, tmp_path):
    save_pretrained(student, tmp_path / "first")
    other = timm.create_model(f"local-dir:{tmp_path / 'first'}", pretrained=True, num_classes=3, in_chans=1).eval()
    assert other(X[:, :1]).shape == (1, 3)
    assert torch.equal(other.layer3[0].conv1.weight, student.layer3[0].conv1.weight)
    save_pretrained(other, tmp_path / "second")
    again = timm.create_model(f"local-dir:{tmp_path / 'second'}", pretrained=True).eval()
    assert torch.equal(again(X[:, :1]), other(X[:, :1]))
    # And further blocks can be swapped.
    save_pretrained(swap(again, "W1/K/K/K"), tmp_path / "third")
    assert timm.create_model(f"local-dir:{tmp_path / 'third'}").genome == "W1/G4/K/B2"


def test_the_entry_has_the_blocks_that_are_kept_if_no_others_are_given():
    torch.manual_seed(0)
    own = timm.create_model("test_resnet").eval()
    torch.manual_seed(0)
    swapped = timm.create_model("swapped", network="test_resnet").eval()
    assert swapped.genome == "K/K/K/K"
    assert torch.equal(swapped(X), own(X))
    with pytest.raises(GenomeError, match="test_resnet has stages of 1, 1, 1 and 1 blocks; this genome has 1"):
        timm.create_model("swapped", network="test_resnet", genome="K")


def test_weights_are_those_of_timm_where_blocks_are_kept(student, tmp_path, monkeypatch):
    own = timm.create_model("test_resnet")
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    monkeypatch.setattr(_model_pretrained_cfgs["test_resnet.r160_in1k"], "file", str(tmp_path / "own.safetensors"))
    made = timm.create_model("swapped", network="test_resnet", genome="K/G4/K/K", pretrained=True, num_classes=5)
    assert torch.equal(made.layer1[0].conv1.weight, own.layer1[0].conv1.weight)
    assert isinstance(made.layer2[0], ResidualBlock)
    # Or those of all of it, where a file is named.
    save_file(student.state_dict(), tmp_path / "student.safetensors")
    overlay = {"file": str(tmp_path / "student.safetensors"), "num_classes": 5}
    arguments = {"network": "test_resnet", "genome": student.genome, "num_classes": 5}
    loaded = timm.create_model("swapped", pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()
    assert torch.equal(loaded(X), student(X))


def test_a_tag_of_the_entry_is_the_tag_of_the_network(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "timm.models._builder.load_pretrained", lambda *_, pretrained_cfg, **__: loaded.append(pretrained_cfg["tag"])
    )
    arguments = {"network": "resnet18", "genome": "2xK/2xK/2xK/2xB2", "pretrained": True}
    model = timm.create_model("swapped.tv_in1k", device="meta", **arguments)
    assert loaded == [model.pretrained_cfg["tag"]] == ["tv_in1k"]


def test_a_network_of_the_zoo_made_by_the_entry_is_saved_as_its_own(tmp_path):
    model = timm.create_model("swapped", network="blockswap_wrn16_1", genome="K,G2/2xD/M6,B2").eval()
    save_pretrained(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.genome == model.genome == "S,G2/2xD/M6,B2"
    assert torch.equal(again(X), model(X))


def test_features_with_other_blocks_are_not_saved(tmp_path):
    with torch.device("meta"):
        features = swap(timm.create_model("test_resnet", features_only=True), "K/S/K/K")
    with pytest.raises(TypeError, match="one of timm that swap made, not FeatureListNet"):
        save_pretrained(features, tmp_path)


def test_there_are_weights_of_kept_blocks_only(student, tmp_path):
    assert has_weights("test_resnet", "K/K/K/K")
    assert not has_weights("test_resnet", "K/G4/K/K")
    with pytest.raises(RuntimeError, match=r"no pretrained weights for test_resnet with other blocks, K/G4/K/B2; use"):
        make_model("test_resnet", genome="K/G4/K/B2")
    save_file(student.state_dict(), tmp_path / "student.safetensors")
    made = make_model("test_resnet", genome="K/G4/K/B2", checkpoint=tmp_path / "student.safetensors", num_classes=5)
    assert torch.equal(made.eval()(X), student(X))


def test_a_run_knows_whose_network_it_trained():
    summary = {"num_classes": 3, "input_size": [3, 32, 32], "genome": "2xG4/2xG4/2xG4/2xG4"}
    with torch.device("meta"):
        assert of_summary({**summary, "model": "resnet18"}).pretrained_cfg["architecture"] == "blockswap_resnet18"
        theirs = of_summary({**summary, "model": "resnet18", "swapped": True})
    assert (theirs.pretrained_cfg["architecture"], theirs.genome) == ("resnet18", summary["genome"])
