"""What timm asks of a model, for every entry of the zoo and for other genomes than their own."""

import copy
import dataclasses
import fnmatch
import importlib.util
import inspect
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub.errors import EntryNotFoundError
from timm.models import FeatureInfo, get_arch_pretrained_cfgs, group_parameters, save_for_hf
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor

from blockswap_models import Genome, GenomeError, Layout, WeightsError, count, fold_batchnorm, save_pretrained
from blockswap_models.nets.networks import build, residual_blocks
from blockswap_models.zoo.genomes import GENOMES, PAPER_ERRORS

REPOSITORY = Path(__file__).resolve().parents[2]

ENTRIES = tuple(sorted(GENOMES))
# Every family (S, G, W, B, B with groups, B with widths, M, D), each of M and D also where width or stride change.
WRN = ("blockswap_wrn40_2", "D,M6,S,G4,W2,B2/M6,B2G4,B2W4,W1,D,S/D,G2,B4,M6,W4,B2W2")
RESNET = ("blockswap_resnet18", "D,M6/D,S/M6,W1/B2,G4")
RESNET_GROUPED = ("blockswap_resnet18", "S,B2G4/W1,B2W4/B2G4,D/G4,M6")
WRN_SMALL = ("blockswap_wrn16_1", "D,M6/B2W2,G2/M6,D")
OTHERS = (
    WRN,
    WRN_SMALL,
    RESNET,
    RESNET_GROUPED,
    # A named student, of which only the name stays.
    ("blockswap_resnet34_3m", "2xW1,M6/4xD/2xW1,2xB2G4,2xB4W8/3xB2"),
)
CASES = tuple((entry, None) for entry in ENTRIES) + OTHERS
# Both networks, entries and other genomes: enough where a check is slow and every genome takes the same path.
FEW = (("blockswap_wrn40_2_162k", None), WRN, ("blockswap_resnet34_3m", None), RESNET, RESNET_GROUPED)
TWO = (WRN, RESNET)


def _ids(case):
    return case if isinstance(case, str) else case[0] + ("" if case[1] is None else f"[{case[1]}]")


entries = pytest.mark.parametrize("entry", ENTRIES)
cases = pytest.mark.parametrize("case", CASES, ids=_ids)
few = pytest.mark.parametrize("case", FEW, ids=_ids)
two = pytest.mark.parametrize("case", TWO, ids=_ids)


def stages_of(model):
    return model.stages if hasattr(model, "stages") else (model.layer1, model.layer2, model.layer3, model.layer4)


def make(case, seed=0, **kwargs):
    """Makes a network whose every weight matters: norms as after training, no branch that starts at zero."""
    name, genome = case
    torch.manual_seed(seed)
    model = timm.create_model(name, genome=genome, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # No random numbers: torch.fx puts the modules in another order.
            wave = torch.arange(module.num_features).sin()
            for tensor, mean in zip((*module.parameters(), *module.buffers()), (0.6, 0.0, 0.0, 1.0), strict=False):
                tensor.data.copy_(mean + 0.2 * wave)
    return model.eval()


def images(case, number=2, chans=3):
    size = 32 if "wrn" in case[0] else 64
    return torch.randn(number, chans, size, size, generator=torch.Generator().manual_seed(1))


def assert_near(actual, expected, tolerance=1e-5):
    """Compares by the largest value, since sums in another order leave an error of the scale of their parts."""
    assert actual.shape == expected.shape
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= tolerance


def assert_same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


# Registration


def test_the_registered_entries_are_those_of_the_zoo():
    assert timm.list_models("blockswap_*") == sorted(ENTRIES)
    assert timm.list_models(module="blockswap") == sorted(ENTRIES)
    assert PAPER_ERRORS.keys() <= GENOMES.keys()


@entries
def test_names_say_the_layout_and_bear_no_tag(entry):
    assert "." not in entry
    assert timm.model_entrypoint(entry).__doc__
    assert Layout.named(entry).fit(GENOMES[entry]) == GENOMES[entry]


@entries
def test_default_cfg(entry):
    cfg = timm.get_pretrained_cfg(entry)
    assert cfg.architecture == entry
    assert cfg.license == "mit"
    assert cfg.origin_url.startswith("https://")
    assert cfg.paper_ids == "arXiv:1906.04113"
    assert cfg.paper_name
    model = timm.create_model(entry, device="meta")
    assert model.pretrained_cfg == model.default_cfg
    # Weights may be for images of another size; without them a network has that of its layout.
    size = model.pretrained_cfg["input_size"]
    assert size == ((3, 32, 32) if "wrn" in entry else (3, 224, 224))
    if not timm.is_model_pretrained(entry):
        assert cfg.input_size == size
    if "wrn" in entry:
        assert (cfg.num_classes, cfg.input_size, cfg.crop_pct) == (10, (3, 32, 32), 1.0)
        assert cfg.mean == (0.4914, 0.4822, 0.4465)
        assert cfg.std == (0.2023, 0.1994, 0.2010)
    else:
        assert (cfg.num_classes, cfg.crop_pct) == (1000, 0.875)
        assert cfg.mean == timm.data.IMAGENET_DEFAULT_MEAN
        assert cfg.std == timm.data.IMAGENET_DEFAULT_STD
    assert isinstance(model.get_submodule(cfg.first_conv), nn.Conv2d)
    assert model.get_submodule(cfg.first_conv).in_channels == 3
    assert model.get_submodule(cfg.classifier) is model.get_classifier()
    assert model.get_classifier().out_features == cfg.num_classes
    for each in (cfg, timm.models.PretrainedCfg(**model.pretrained_cfg)):
        features = model.forward_features(torch.empty(1, *each.input_size, device="meta"))
        assert tuple(features.shape[-2:]) == each.pool_size


@entries
@pytest.mark.parametrize("features_only", [False, True])
def test_the_cfg_of_a_model_has_its_channels(entry, features_only):
    whole = timm.create_model(entry, device="meta", features_only=features_only)
    for channels in (1, 4):
        model = timm.create_model(entry, in_chans=channels, device="meta", features_only=features_only)
        cfg = model.pretrained_cfg
        assert cfg is model.default_cfg
        assert cfg["input_size"] == (channels, *whole.pretrained_cfg["input_size"][1:])
        for key in ("mean", "std"):
            assert cfg[key] == pytest.approx((sum(whole.pretrained_cfg[key]) / 3,) * channels, abs=1e-4)
        rest = cfg.keys() - {"input_size", "mean", "std"}
        assert {key: cfg[key] for key in rest} == {key: whole.pretrained_cfg[key] for key in rest}
    # Of the user's own numbers, those for the channels are kept.
    overlay = {"input_size": (1, 28, 28), "mean": (0.2,), "std": (0.3,)}
    own = timm.create_model(entry, pretrained_cfg_overlay=overlay, device="meta", features_only=features_only)
    assert {key: own.pretrained_cfg[key] for key in overlay} == overlay


def test_the_users_names_of_classes_are_kept():
    overlay = {"label_names": ("a", "b", "c")}
    model = timm.create_model("blockswap_wrn40_2_404k", num_classes=3, pretrained_cfg_overlay=overlay, device="meta")
    assert model.pretrained_cfg["label_names"] == overlay["label_names"]


@entries
def test_no_cfg_promises_weights_that_are_not_there(entry):
    for cfg in get_arch_pretrained_cfgs(entry).values():
        assert not cfg.url
        assert not cfg.hf_hub_id
        assert cfg.state_dict is None
        assert not cfg.custom_load
        assert not cfg.file or Path(cfg.file).is_file()
    if not timm.is_model_pretrained(entry):
        with pytest.raises(RuntimeError, match="no pretrained weights for"):
            timm.create_model(entry, pretrained=True)


def test_some_entries_have_weights():
    # Where none have, the tests of weights have nothing to look at.
    assert timm.list_pretrained("blockswap_*")


@pytest.mark.parametrize("entry", timm.list_pretrained("blockswap_*"))
def test_pretrained_weights_load_and_adapt(entry):
    model = timm.create_model(entry, pretrained=True)
    grey = timm.create_model(entry, pretrained=True, num_classes=5, in_chans=1)
    # As timm adapts weights to grey images: their sum over the channels, in the precision of the file.
    summed = model.conv1.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(grey.conv1.weight, summed, rtol=1e-3, atol=1e-2)
    timm.create_model(entry, pretrained=True, features_only=True)


@entries
def test_pretrained_weights_are_of_one_genome(entry):
    layout = Layout.named(entry)
    other = Genome("/".join(f"{depth}xW1" for depth in layout.depths))
    if not timm.is_model_pretrained(entry):
        with pytest.raises(RuntimeError, match="no pretrained weights for"):
            timm.create_model(entry, pretrained=True, genome=other)
        return
    with pytest.raises(GenomeError, match="pretrained") as error:
        timm.create_model(entry, pretrained=True, genome=other)
    assert "\n" not in str(error.value)
    assert GENOMES[entry] in str(error.value)
    assert other in str(error.value)


def test_weights_for_another_genome_can_be_handed_in(tmp_path):
    model = make(WRN)
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    name, genome = WRN
    loaded = timm.create_model(name, genome=genome, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    assert_same_weights(model, loaded)


def test_weights_of_another_place_are_not_those_of_the_package(monkeypatch, tmp_path):
    name = "blockswap_wrn16_1"
    model = timm.create_model(name)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    kwargs = {"pretrained": True, "cache_dir": tmp_path / "cache"}
    place = {"url": (tmp_path / "mine.pth").as_uri()}
    assert_same_weights(model, timm.create_model(name, **kwargs, pretrained_cfg_overlay=place))

    def missing(repository, *_, **__):
        raise EntryNotFoundError(repository)

    monkeypatch.setattr("blockswap_models.zoo.blockswap.hf_hub_download", missing)
    with pytest.raises(WeightsError, match=r"^me/net has no model.safetensors"):
        timm.create_model(name, **kwargs, pretrained_cfg_overlay={"hf_hub_id": "me/net"})


# Arguments


ARGUMENTS = (
    {"num_classes": 7, "in_chans": 1},
    {"num_classes": 0, "in_chans": 4},
    {"num_classes": 0, "global_pool": ""},
    {"num_classes": 3, "global_pool": "catavgmax"},
)


@pytest.mark.parametrize(
    ("case", "kwargs"),
    [(case, kwargs) for kwargs in ARGUMENTS for case in (CASES if kwargs is ARGUMENTS[0] else FEW)],
    ids=lambda value: _ids(value) if isinstance(value, tuple) else ",".join(f"{k}={v}" for k, v in value.items()),
)
def test_classes_channels_and_pooling(case, kwargs):
    name, genome = case
    model = make(case, **kwargs)
    assert model.genome == (GENOMES[name] if genome is None else Genome(genome))
    assert (model.num_classes, model.in_chans) == (kwargs["num_classes"], kwargs.get("in_chans", 3))
    x = images(case, chans=model.in_chans)
    features = model.forward_features(x)
    reduction = model.feature_info[-1]["reduction"]
    assert features.shape == (2, model.num_features, x.shape[-2] // reduction, x.shape[-1] // reduction)
    output = model(x)
    if kwargs.get("global_pool") == "":
        assert torch.equal(output, features)
    else:
        assert model.head_hidden_size == model.num_features * (2 if "global_pool" in kwargs else 1)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        assert output.shape == (2, model.num_classes or model.head_hidden_size)
    # The head hangs on the pooled width, so it stays right when it is replaced; the pooling stays unless one is given.
    pool_type = model.global_pool.pool_type
    assert pool_type == kwargs.get("global_pool", "avg")
    model.reset_classifier(5)
    assert model.global_pool.pool_type == pool_type
    assert model.num_classes == 5
    if pool_type:
        assert model(x).shape == (2, 5)
    model.reset_classifier(0, "avg")
    assert (model.num_classes, model.global_pool.pool_type) == (0, "avg")
    assert model.head_hidden_size == model.num_features
    assert_near(model(x), features.mean(dim=(2, 3)))
    assert inspect.signature(model.reset_classifier).parameters["global_pool"].default is None


@few
def test_meta_device(case):
    name, genome = case
    model = timm.create_model(name, genome=genome, device="meta")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    model.reset_classifier(3)
    assert model.get_classifier().weight.is_meta
    assert model(images(case).to("meta")).shape == (2, 3)
    # A device context does the same as the argument.
    with torch.device("meta"):
        assert timm.create_model(name, genome=genome).conv1.weight.is_meta


@entries
def test_unknown_arguments_are_refused(entry):
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model(entry, device="meta", not_an_argument=1)


@few
def test_dtype(case):
    model = make(case, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert model(images(case).bfloat16()).dtype == torch.bfloat16
    model.reset_classifier(2)
    assert model.get_classifier().weight.dtype == torch.bfloat16


@two
@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate"])
def test_drop_rates_act_in_training_only(case, rate):
    x = images(case)
    plain, dropping = make(case), make(case, **{rate: 0.5})
    assert_same_weights(plain, dropping)
    assert torch.equal(dropping(x), plain(x))
    assert torch.equal(plain.train()(x), plain(x))
    dropping.train()
    first, second = dropping(x), dropping(x)
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain(x))


@pytest.mark.parametrize("case", [RESNET, RESNET_GROUPED, ("blockswap_resnet34_8m", None)], ids=_ids)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_computes_the_same_features_on_a_finer_grid(case, output_stride):
    plain, dilated = make(case), make(case, output_stride=output_stride)
    assert dilated.feature_info[-1]["reduction"] == output_stride
    x = images(case, number=1)
    coarse, fine = plain.forward_features(x), dilated.forward_features(x)
    assert fine.shape[-1] == 64 // output_stride
    step = 32 // output_stride
    # A stride that became a dilation leaves the values where the stride would have looked.
    assert_near(fine[..., ::step, ::step], coarse)


def test_only_resnets_have_an_output_stride():
    with pytest.raises(TypeError, match="output_stride"):
        timm.create_model("blockswap_wrn16_1", output_stride=8)


# Heads and features


@few
def test_head(case):
    model, x = make(case), images(case)
    features = model.forward_features(x)
    hidden = model.forward_head(features, pre_logits=True)
    assert_near(hidden, features.mean(dim=(2, 3)))
    assert torch.equal(model(x), model.get_classifier()(hidden))
    assert torch.equal(model(x), model.forward_head(features))
    model.reset_classifier(4, "max")
    assert torch.equal(model.forward_head(features, pre_logits=True), features.amax(dim=(2, 3)))
    model.reset_classifier(4)
    assert torch.equal(model.forward_head(features, pre_logits=True), features.amax(dim=(2, 3)))
    assert not model.get_classifier().training
    model.reset_classifier(0)
    assert torch.equal(model(x), hidden.new_tensor(features.amax(dim=(2, 3)).tolist()))


@cases
def test_intermediates_are_what_feature_info_says(case):
    model, x = make(case), images(case)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    # The stem and every stage.
    assert len(info) == len(model.layout.depths) + 1
    seen = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        for name in info.module_name()
    ]
    final, maps = model.forward_intermediates(x)
    for handle in handles:
        handle.remove()
    assert torch.equal(final, model.forward_features(x))
    assert [tuple(map_.shape) for map_ in maps] == [
        (2, chs, x.shape[-2] // reduction, x.shape[-1] // reduction)
        for chs, reduction in zip(info.channels(), info.reduction(), strict=True)
    ]
    # A ResNet's blocks end with a ReLU, a WideResNet's do not.
    assert all((map_.min() >= 0) != model.layout.preact for map_ in maps)
    # Unchanged since they left their modules, whatever came after.
    assert [torch.equal(map_, as_seen) for map_, as_seen in zip(maps, seen, strict=True)] == [True] * len(maps)


@two
def test_intermediates_by_index(case):
    model, x = make(case), images(case)
    final, maps = model.forward_intermediates(x)
    last = len(maps) - 1

    def taken(**kwargs):
        return model.forward_intermediates(x, intermediates_only=True, **kwargs)

    for index in range(last + 1):
        assert torch.equal(taken(indices=[index])[0], maps[index])
        assert torch.equal(taken(indices=[index], stop_early=True)[0], maps[index])
        stopped, _ = model.forward_intermediates(x, indices=[index], stop_early=True)
        # After the stem, timm's ResNet has pooled already.
        if index or model.layout.preact:
            assert torch.equal(stopped, maps[index] if index < last else final)
    assert [map_.shape for map_ in taken(indices=2)] == [map_.shape for map_ in maps[-2:]]
    assert torch.equal(taken(indices=[-1])[0], maps[last])
    with pytest.raises(AssertionError):
        taken(indices=[last + 1])
    with pytest.raises((AssertionError, ValueError)):
        taken(output_fmt="NLC")
    normed = taken(norm=True)
    assert all(torch.equal(left, right) for left, right in zip(normed[:-1], maps[:-1], strict=True))
    assert torch.equal(normed[-1], final)
    # Stopping early computes nothing beyond.
    called = []
    model.get_submodule(model.feature_info[last]["module"]).register_forward_hook(lambda *_: called.append(1))
    taken(indices=[last - 1], stop_early=True)
    assert not called


@cases
def test_nothing_changes_a_map_in_place(case):
    """Attention transfer reads the stages' maps, the Fisher potential those of the branches, after the forward."""
    model, x = make(case).train(), images(case)
    model.set_grad_checkpointing(False)
    seen = []

    def keep(module, args, output):
        seen.append((output, output.detach().clone()))

    blocks = residual_blocks(model)
    for block in blocks:
        block.register_forward_hook(keep)
        block.get_submodule(block.branch_end).register_forward_hook(keep)
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(keep)
    before = x.clone()
    _, maps = model.forward_intermediates(x)
    assert len(seen) == 2 * len(blocks) + len(maps)
    assert [index for index, (now, then) in enumerate(seen) if not torch.equal(now, then)] == []
    assert torch.equal(x, before)
    sum(map_.square().sum() for map_ in maps).backward()
    # All but the head, which these maps do not reach, and in a WideResNet the norm before it.
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    beyond = {name for name, _ in model.named_parameters() if name.startswith(("fc.", "bn."))}
    assert reached == {name for name, _ in model.named_parameters()} - beyond


@few
def test_pruning_leaves_what_the_maps_need(case):
    model, x = make(case), images(case)
    final, maps = model.forward_intermediates(x)
    last = len(maps) - 1
    for index in range(last + 1):
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index - last - 1]) == [index]
        assert torch.equal(pruned.forward_intermediates(x, indices=[index], intermediates_only=True)[0], maps[index])
        assert pruned.num_classes == 0
        assert pruned.num_features == maps[index].shape[1]
        assert torch.equal(pruned(x), final if index == last else maps[index])
        pruned.reset_classifier(3, "avg")
        assert pruned(x).shape == (2, 3)
        bare = copy.deepcopy(model)
        bare.prune_intermediate_layers([index], prune_norm=True)
        assert torch.equal(bare.forward_features(x), maps[index])
        # Nothing is left without use, which distributed training would refuse.
        bare.train().forward_features(x).sum().backward()
        assert [name for name, parameter in bare.named_parameters() if parameter.grad is None] == []
    whole = copy.deepcopy(model)
    assert whole.prune_intermediate_layers(last + 1, prune_head=False) == list(range(last + 1))
    assert torch.equal(whole(x), model(x))


@two
@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "getter", "fx"])
def test_features_only(case, feature_cls):
    model, x = make(case), images(case)
    maps = model.forward_intermediates(x, intermediates_only=True)
    last = len(maps) - 1
    for out_indices in (None, (1, last - 1)):
        extractor = make(case, features_only=True, feature_cls=feature_cls, out_indices=out_indices)
        taken = out_indices or range(last + 1)
        assert extractor.feature_info.channels() == [maps[index].shape[1] for index in taken]
        assert extractor.feature_info.reduction() == [model.feature_info[index]["reduction"] for index in taken]
        found = extractor(x)
        found = list(found.values()) if isinstance(found, dict) else found
        assert [torch.equal(map_, maps[index]) for map_, index in zip(found, taken, strict=True)] == [True] * len(taken)


def test_feature_cfg_is_taken_as_timms_own_models_take_it():
    for name in ("blockswap_wrn16_1", "blockswap_resnet18", "resnet18"):
        extractor = timm.create_model(name, features_only=True, feature_cfg={"feature_cls": "fx"})
        assert type(extractor).__name__ == "FeatureGraphNet"
    # What it does not say stays as it is.
    maps = make(WRN_SMALL, features_only=True, feature_cfg={"feature_cls": "fx"})(images(WRN_SMALL))
    assert [each.shape[1] for each in maps] == [16, 16, 32, 64]
    own = {"feature_cls": "dict", "out_indices": (1, 2)}
    assert list(make(WRN_SMALL, features_only=True, feature_cfg=own)(images(WRN_SMALL))) == ["1", "2"]
    assert own == {"feature_cls": "dict", "out_indices": (1, 2)}


# Weights


@few
def test_the_same_seed_gives_the_same_weights(case):
    name, genome = case

    def fresh(seed, **kwargs):
        torch.manual_seed(seed)
        return timm.create_model(name, genome=genome, **kwargs)

    model = fresh(3)
    assert_same_weights(model, fresh(3))
    assert not torch.equal(model.conv1.weight, fresh(4).conv1.weight)
    # The weights drawn after `to_empty` are those of a network built at once, zeros and norms included.
    late = fresh(9, device="meta").to_empty(device="cpu")
    for tensor in (*late.parameters(), *late.buffers()):
        tensor.data.fill_(7)
    torch.manual_seed(3)
    late.init_weights()
    assert_same_weights(model, late)


def test_first_weights():
    name, genome = WRN
    model = timm.create_model(name, genome=genome)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            out_chs, _, height, width = module.weight.shape
            assert module.weight.std().item() == pytest.approx((2 / (height * width * out_chs)) ** 0.5, rel=0.1)
    assert not model.fc.bias.any()
    assert all(parameter.any() for name, parameter in model.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("case", [RESNET, RESNET_GROUPED], ids=_ids)
def test_a_resnets_branches_start_at_zero_unless_told_otherwise(case):
    name, genome = case

    def zeros(**kwargs):
        model = timm.create_model(name, genome=genome, **kwargs)
        fresh = [not block.get_submodule(block.branch_end).weight.any() for block in residual_blocks(model)]
        model.init_weights()
        assert fresh == [not block.get_submodule(block.branch_end).weight.any() for block in residual_blocks(model)]
        return fresh

    assert all(zeros())
    assert not any(zeros(zero_init_last=False))


@pytest.mark.parametrize("depth", [18, 34])
def test_a_resnet_of_standard_blocks_is_timms_and_torchvisions(depth):
    name = f"blockswap_resnet{depth}"
    ours = make((name, "/".join(f"{count}xS" for count in Layout.named(name).depths)))
    x = images((name, None))
    for theirs in (timm.create_model(f"resnet{depth}"), torchvision.models.get_model(f"resnet{depth}")):
        shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
        assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes
        theirs.load_state_dict(ours.state_dict(), strict=True)
        back = copy.deepcopy(ours)
        back.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(back.eval()(x), theirs.eval()(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(back.train()(x), theirs.train()(x), atol=1e-5, rtol=1e-5)
        # Train mode has moved the running statistics, too.
        torch.testing.assert_close(back.state_dict(), theirs.state_dict(), atol=1e-5, rtol=1e-5)


@few
def test_pickle_and_deepcopy(case):
    model, x = make(case), images(case)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.genome == model.genome
        assert twin.genome.stages == model.genome.stages
        assert twin.layout == model.layout
        assert torch.equal(twin(x), model(x))


# Training


@two
def test_checkpointing_gives_the_same_gradients(case):
    def gradients(checkpointing, through):
        model, x = make(case).train(), images(case)
        model.set_grad_checkpointing(checkpointing)
        calls = []
        stages_of(model)[1][0].conv1.register_forward_hook(lambda *_: calls.append(1))
        through(model, x).backward()
        # A second time in the backward pass, so it is checkpointed.
        assert len(calls) == (2 if checkpointing else 1)
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    for through in (
        lambda model, x: model(x).square().mean(),
        lambda model, x: sum(map_.square().mean() for map_ in model.forward_intermediates(x)[1]),
    ):
        plain, saved = gradients(False, through), gradients(True, through)
        assert plain.keys() == saved.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(saved[name], gradient)


@cases
def test_parameter_groups(case):
    name, genome = case
    model = timm.create_model(name, genome=genome, device="meta")
    names = [name for name, _ in model.named_parameters()]
    fine, coarse = (group_parameters(model, model.group_matcher(coarse), reverse=True) for coarse in (False, True))
    assert fine.keys() == coarse.keys() == set(names)
    # The stem, each block or stage, and the head, in this order.
    assert len(set(fine.values())) == 1 + sum(model.layout.depths) + 1
    assert len(set(coarse.values())) == 1 + len(model.layout.depths) + 1
    assert fine["conv1.weight"] == coarse["conv1.weight"] == 0
    for groups in (fine, coarse):
        assert [groups[name] for name in names] == sorted(groups.values())
    assert all(any(fnmatch.fnmatch(name, pattern) for name in names) for pattern in model.no_weight_decay())
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=5e-4, layer_decay=0.5)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) == len(set(fine.values()))


@two
def test_bfloat16_autocast_and_channels_last(case):
    model, x = make(case), images(case)
    expected = model(x)
    in_last = x.to(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    assert model.forward_features(in_last).is_contiguous(memory_format=torch.channels_last)
    assert_near(model(in_last), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(in_last)
        loss = nn.functional.cross_entropy(model.train()(in_last), torch.tensor([0, 1]))
    assert half.dtype == torch.bfloat16
    assert_near(half, expected, tolerance=0.05)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Compilers and exporters


@two
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript(case):
    model, x = make(case, drop_path_rate=0.1), images(case)
    expected = model(x)
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(x), expected)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    assert torch.equal(torch.jit.load(buffer)(x), expected)


@two
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_fx(case):
    model, x = make(case), images(case)
    names = [info["module"] for info in model.feature_info]
    extractor = create_feature_extractor(model, names)
    maps = extractor(x)
    expected = model.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(maps[name], map_) for name, map_ in zip(names, expected, strict=True))
    # Types written as text would stop TorchScript here.
    logits = create_feature_extractor(model, ["fc"])
    assert torch.equal(torch.jit.script(logits)(x)["fc"], model(x))


@pytest.mark.parametrize(
    ("case", "training"),
    [(WRN_SMALL, False), (RESNET, False), (WRN_SMALL, True)],
    ids=lambda each: ("train" if each else "eval") if isinstance(each, bool) else _ids(each),
)
def test_compile_without_a_graph_break(case, training):
    torch.compiler.reset()
    model, x = make(case).train(training), images(case)
    twin = copy.deepcopy(model)

    def everything(network, x):
        final, maps = network.forward_intermediates(x)
        return network.forward_head(final), maps

    if training:
        compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")(x)
        assert_near(compiled, model(x))
        # The compiled graph moves the statistics of BN as well.
        assert_near(stages_of(twin)[0][0].bn1.running_mean, stages_of(model)[0][0].bn1.running_mean)
        assert_near(stages_of(twin)[2][1].bn1.running_var, stages_of(model)[2][1].bn1.running_var)
    else:
        logits, maps = torch.compile(everything, fullgraph=True, backend="eager")(twin, x)
        right_logits, right_maps = everything(model, x)
        assert_near(logits, right_logits)
        for map_, right in zip(maps, right_maps, strict=True):
            assert_near(map_, right)


@pytest.mark.parametrize("case", [WRN_SMALL, RESNET], ids=_ids)
def test_export_with_a_dynamic_batch(case):
    model, x = make(case), images(case)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    more = images(case, number=5)
    assert_near(program.module()(more), model(more))


# The genome travels


@pytest.mark.parametrize("save", [save_for_hf, save_pretrained], ids=["save_for_hf", "save_pretrained"])
@pytest.mark.parametrize(
    ("case", "kwargs"),
    [
        (("blockswap_wrn16_1", None), {}),
        (WRN, {}),
        (("blockswap_wrn40_2_404k", None), {"num_classes": 4, "in_chans": 1}),
        (("blockswap_wrn40_2_404k", "6xW1/6xB2/6xM6"), {"num_classes": 4, "in_chans": 1, "global_pool": "max"}),
        (("blockswap_resnet18", Genome("2xW1/2xB2/G4,G4/2xB4")), {"num_classes": 3}),
        (("blockswap_resnet34_3m", " 3xB4 / 4xB4/ 6xB4/ B4,B4,W1 "), {"num_classes": 5}),
    ],
    ids=lambda value: _ids(value) if isinstance(value, tuple) else "",
)
def test_a_folder_gives_the_network_back(case, kwargs, save, tmp_path):
    model = make(case, **kwargs)
    x = images(case, chans=model.in_chans)
    save(model, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == case[0]
    saved = config["model_args"]["genome"]
    # Always canonical from our own function; timm's keeps the text that it was given.
    assert (saved if save is save_pretrained else Genome(saved)) == str(model.genome)
    assert (tmp_path / "model.safetensors").exists() == (save is save_pretrained)
    if save is save_pretrained:
        # Who may read one may read the other.
        assert len({each.stat().st_mode for each in tmp_path.iterdir()}) == 1
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.genome == model.genome
    assert (again.num_classes, again.in_chans) == (model.num_classes, model.in_chans)
    for key in ("input_size", "mean", "std"):
        assert tuple(again.pretrained_cfg[key]) == model.pretrained_cfg[key]
    assert torch.equal(again(x), model(x))
    # With its classifier changed, it is saved as it has become.
    again.reset_classifier(6, "avg")
    save(again, str(tmp_path))
    third = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(third(x), again(x))
    # A new task: all but the classifier comes from the folder.
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2).eval()
    assert torch.equal(other.forward_features(x), model.forward_features(x))
    assert other(x).shape == (2, 2)


def test_a_folders_weights_are_of_one_genome(tmp_path):
    save_pretrained(make(WRN), tmp_path)
    with pytest.raises(GenomeError, match="pretrained=False") as error:
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, genome="6xS/6xS/6xS")
    assert str(Genome(WRN[1])) in str(error.value)


@pytest.mark.parametrize(
    "model", [timm.create_model("test_resnet"), build(Layout.wide_resnet(10, 1))], ids=["timm's", "without timm"]
)
def test_save_pretrained_takes_networks_of_the_zoo(model, tmp_path):
    with pytest.raises(TypeError, match="takes a network of the zoo, or one of timm that swap made") as error:
        save_pretrained(model, tmp_path)
    assert type(model).__name__ in str(error.value)


def test_no_weights_of_an_earlier_network_stay_in_a_folder(tmp_path):
    (tmp_path / "README.md").write_text("my own")
    for safe, file in ((True, "model.safetensors"), (False, "pytorch_model.bin")):
        model = make(WRN_SMALL)
        nn.init.normal_(model.fc.bias)
        save_pretrained(model, tmp_path, safe_serialization=safe)
        assert {each.name for each in tmp_path.iterdir()} == {"README.md", "config.json", file}
        assert_same_weights(timm.create_model(f"local-dir:{tmp_path}", pretrained=True), model)


def test_save_pretrained_takes_off_wrappers(tmp_path):
    model = make(WRN_SMALL)
    save_pretrained(nn.DataParallel(torch.compile(model, backend="eager")), tmp_path)
    assert_same_weights(timm.create_model(f"local-dir:{tmp_path}", pretrained=True), model)


@two
def test_save_pretrained_takes_any_memory_format(case, tmp_path):
    model = make(case).to(memory_format=torch.channels_last)
    save_pretrained(model, tmp_path)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same_weights(timm.create_model(f"local-dir:{tmp_path}", pretrained=True), model)


@two
def test_a_pruned_network_is_saved_and_counted_with_its_zeros(case, tmp_path):
    model, x = make(case), images(case)
    cost = count(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.5)
    prune.random_unstructured(model.fc, "bias", 2)
    expected = model(x)
    save_pretrained(model, tmp_path)
    assert prune.is_pruned(model)
    assert count(model) == cost
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(x), expected)
    assert again.conv1.weight.count_nonzero() == again.conv1.weight.numel() // 2


def test_a_network_that_a_folder_would_not_give_back_is_not_saved(tmp_path):
    changed = [fold_batchnorm(make(WRN_SMALL)), make(WRN_SMALL), make(WRN_SMALL)]
    changed[1].fc = nn.Linear(64, 10, bias=False)
    changed[2].prune_intermediate_layers([1])
    for model in changed:
        with pytest.raises(
            ValueError, match=r"^this network was changed after it was made: \d+ tensors \(.+, …\) are not"
        ):
            save_pretrained(model, tmp_path)
        assert not list(tmp_path.iterdir())


def test_a_network_made_without_timms_factory_keeps_its_genome(tmp_path):
    model = timm.model_entrypoint("blockswap_wrn16_1")(genome="2xD/2xS/2xW1").eval()
    save_for_hf(model, str(tmp_path))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.genome == "2xD/2xS/2xW1"
    assert_same_weights(again, model)


# torch.hub and imports


def run_python(code, cwd=None):
    """Runs code in a fresh interpreter that turns a warning about an overwritten entry into an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error:Overwriting", "-c", code], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_hubconf_has_every_entry():
    spec = importlib.util.spec_from_file_location("hubconf", REPOSITORY / "hubconf.py")
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    entries = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")]
    assert entries == sorted(ENTRIES)
    for name in ENTRIES:
        assert timm.model_entrypoint(name).__doc__ in getattr(hubconf, name).__doc__
    assert all(importlib.util.find_spec(package) for package in hubconf.dependencies)
    with pytest.raises(TypeError, match="not_an_argument"):
        hubconf.blockswap_wrn16_1(not_an_argument=1)


def test_hub_load_from_anywhere(tmp_path):
    """Also the order of imports in which timm comes first."""
    code = f"""
import os, sys
# Without the installed package: as for a user who has only what torch.hub downloads.
sys.path[:] = [path for path in sys.path if os.path.realpath(path or ".") != {str(REPOSITORY)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import timm, torch
kwargs = dict(genome="2xD/2xS/2xW1", act_layer="silu")
model = torch.hub.load({str(REPOSITORY)!r}, "blockswap_wrn16_1", source="local", **kwargs)
assert {str(REPOSITORY)!r} not in sys.path
import blockswap_models
assert len(timm.list_models("blockswap_*")) == {len(ENTRIES)}
assert "blockswap_models.detection" not in sys.modules
assert blockswap_models.__file__.startswith({str(REPOSITORY)!r})
# What is loaded when it is first used is found still.
blockswap_models.save_pretrained(model, "saved")
blockswap_models.count(model)
again = timm.create_model("local-dir:saved", pretrained=True).eval()
x = torch.randn(2, 3, 32, 32)
assert torch.equal(again(x), model.eval()(x))
print(again.genome, type(again.act).__name__)
"""
    assert run_python(code, cwd=tmp_path) == ["2xD/2xS/2xW1", "SiLU"]


def test_import_alone_needs_no_torch():
    assert run_python("import sys, blockswap_models; print(*{'torch', 'timm', 'numpy'} & set(sys.modules))") == []


ORDERS = (
    "import blockswap_models, timm",
    # This module imports timm, which is what the registration waits for, and then is needed for it.
    "import blockswap_models.nets.networks, timm",
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each order needs a copy of a fresh process")
def test_any_order_of_imports_registers_the_zoo_once():
    code = f"""
import os, torch, torchvision
for order in {ORDERS!r}:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, order
        continue
    exec(order)
    print(len(timm.list_models("blockswap_*")), timm.is_model("resnet34"), flush=True)
    os._exit(0)
"""
    assert run_python(code) == [str(len(ENTRIES)), "True"] * len(ORDERS)


def test_cfgs_are_fresh_for_each_model():
    model = timm.create_model("blockswap_wrn16_1", device="meta")
    model.pretrained_cfg["mean"] = (0, 0, 0)
    assert dataclasses.asdict(timm.get_pretrained_cfg("blockswap_wrn16_1"))["mean"] == (0.4914, 0.4822, 0.4465)
