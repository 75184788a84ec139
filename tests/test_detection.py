import importlib
import sys

import pytest
import timm
import torch
from small_detectors import small_heads
from timm.layers import FrozenBatchNormAct2d
from torch import nn
from torchvision.models.detection import backbone_utils
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from blockswap_models import GenomeError, Layout, swap
from blockswap_models.detection import fpn_backbone, mask_rcnn
from blockswap_models.nets.blocks import ResidualBlock
from blockswap_models.nets.networks import build
from blockswap_models.zoo.cards import MissingWeightsError

GENOME = "B2,W1/G4,B2G4/S,W2/B4,S"
DRAWS = torch.Generator().manual_seed(0)
IMAGES = [torch.rand(3, *size, generator=DRAWS) for size in ((64, 72), (48, 64))]
TARGETS = [
    {
        "boxes": torch.tensor([[5.0, 6.0, 40.0, 44.0], [1.0, 2.0, 30.0, 20.0]]),
        "labels": torch.tensor([1, 4]),
        "masks": torch.ones(2, *image.shape[1:], dtype=torch.uint8),
    }
    for image in IMAGES
]
LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


def small(model, *arguments, **kwargs):
    """A Mask R-CNN for 5 classes with small heads, for small images."""
    return mask_rcnn(
        model,
        5,
        *arguments,
        **small_heads(5),
        min_size=64,
        max_size=96,
        box_batch_size_per_image=8,
        box_detections_per_img=4,
        rpn_post_nms_top_n_test=20,
        **kwargs,
    )


@pytest.mark.parametrize(
    ("make", "strides"),
    [
        (lambda: small("blockswap_resnet34_3m"), [4, 8, 16, 32, 64]),
        (lambda: small("blockswap_resnet18", GENOME), [4, 8, 16, 32, 64]),
        (lambda: small("blockswap_wrn16_1"), [2, 4, 8]),
        (lambda: small("resnet18"), [4, 8, 16, 32, 64]),
        (lambda: small("mobilenetv3_small_050"), [4, 8, 16, 32, 64]),
        (lambda: small(timm.create_model("blockswap_resnet18", genome=GENOME, num_classes=7)), [4, 8, 16, 32, 64]),
        (lambda: small(timm.create_model("mobilenetv3_small_050")), [4, 8, 16, 32, 64]),
        (lambda: small(timm.create_model("resnet18", features_only=True, out_indices=(2, 3))), [8, 16, 32]),
    ],
    ids=["3m", "genome", "wrn", "resnet18", "mobilenet", "instance", "mobilenet instance", "features"],
)
def test_trains_and_finds(make, strides):
    torch.manual_seed(0)
    model = make()
    assert model.backbone.strides == strides
    assert [each[0] for each in model.rpn.anchor_generator.sizes] == [8 * stride for stride in strides]
    losses = model.train()(IMAGES, TARGETS)
    assert losses.keys() == LOSSES
    sum(losses.values()).backward()
    assert all(each.grad is not None for each in model.backbone.body.parameters())
    assert next(model.backbone.body.parameters()).grad.abs().sum() > 0
    with torch.no_grad():
        found = model.eval()(IMAGES)
    assert [each.keys() for each in found] == [{"boxes", "labels", "scores", "masks"}] * 2
    assert all(len(each["boxes"]) == 4 for each in found)
    assert [each["masks"].shape for each in found] == [(4, 1, *image.shape[1:]) for image in IMAGES]


def test_is_torchvisions_where_torchvision_has_the_network():
    theirs = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    for ours in (
        fpn_backbone("resnet18"),
        fpn_backbone("blockswap_resnet18"),
        fpn_backbone(timm.create_model("resnet18")),
    ):
        ours.load_state_dict(theirs.state_dict())
        x = torch.rand(1, 3, 64, 96)
        found, expected = ours.eval()(x), theirs.eval()(x)
        assert list(found) == list(expected) == ["0", "1", "2", "3", "pool"]
        for name, each in expected.items():
            torch.testing.assert_close(found[name], each)


def test_none_is_what_is_not_given_as_in_torchvision():
    names = ("image_mean", "image_std", "rpn_anchor_generator", "rpn_head", "box_roi_pool")
    given, left_out = small("blockswap_wrn16_1", **dict.fromkeys(names)), small("blockswap_wrn16_1")
    assert given.transform.image_mean == left_out.transform.image_mean == [0.4914, 0.4822, 0.4465]
    assert given.transform.image_std == left_out.transform.image_std
    assert given.rpn.anchor_generator.sizes == left_out.rpn.anchor_generator.sizes
    assert given.roi_heads.box_roi_pool.featmap_names == left_out.roi_heads.box_roi_pool.featmap_names


@pytest.mark.parametrize("layers", [0, 3, 5])
def test_the_same_parameters_train_as_in_torchvision(layers):
    theirs = backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=layers)
    ours = fpn_backbone("resnet18", trainable_layers=layers, norm_layer=FrozenBatchNorm2d)
    expected = {name for name, each in theirs.named_parameters() if each.requires_grad}
    assert {name for name, each in ours.named_parameters() if each.requires_grad} == expected
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "fixed", "free"),
    [
        ("resnet18", ("conv1", "bn1", "layer1", "layer2"), ("layer3", "layer4")),
        ("blockswap_wrn16_1", ("conv1", "stages_0"), ("stages_1", "stages_2")),
        ("mobilenetv3_small_050", ("conv_stem", "bn1", "blocks.0", "blocks.1"), ("blocks.3", "blocks.5")),
    ],
)
def test_fixed_layers_stay_as_they_are(name, fixed, free):
    for model in (name, timm.create_model(name)):
        backbone = fpn_backbone(model, trainable_layers=2)
        before = {key: each.clone() for key, each in backbone.body.state_dict().items()}
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
        sum(each.sum() for each in backbone.train()(torch.rand(2, 3, 64, 64)).values()).backward()
        optimizer.step()
        changed = {
            key.removeprefix("model.")
            for key, each in backbone.body.state_dict().items()
            if not before[key].equal(each)
        }
        assert not [key for key in changed if key.startswith(fixed)]
        for place in free:
            assert any(key.startswith(place) and key.endswith("running_mean") for key in changed)
            assert any(key.startswith(place) and key.endswith("weight") for key in changed)


def test_pretrained_weights_keep_their_norms():
    source = timm.create_model("blockswap_wrn40_2_404k", pretrained=True)
    for backbone in (
        fpn_backbone("blockswap_wrn40_2_404k", pretrained=True),
        fpn_backbone(source, pretrained=True),
    ):
        norms = [each for each in backbone.modules() if "BatchNorm" in type(each).__name__]
        assert norms
        assert {type(each) for each in norms} == {FrozenBatchNorm2d}
        torch.testing.assert_close(
            backbone.body.state_dict()["stages_0.0.bn1.running_mean"], source.stages[0][0].bn1.running_mean
        )
        assert not backbone.body.conv1.weight.requires_grad
        assert all(each.requires_grad for each in backbone.body.stages_0.parameters())
    # The user's own network is left as it was.
    assert type(source.stages[0][0].bn1) is nn.BatchNorm2d
    assert source.conv1.weight.requires_grad
    model = mask_rcnn("blockswap_wrn40_2_404k", pretrained_backbone=True)
    assert model.transform.image_mean == list(source.pretrained_cfg["mean"])


@pytest.mark.parametrize("name", ["blockswap_wrn16_1", "resnet18"])
@pytest.mark.parametrize("features_only", [False, True])
def test_images_of_one_channel(name, features_only):
    model = small(timm.create_model(name, in_chans=1, features_only=features_only)).train()
    mean, std = (0.4734, 0.2009) if "wrn" in name else (0.449, 0.226)
    assert (model.transform.image_mean, model.transform.image_std) == ([mean], [std])
    assert model([image[:1] for image in IMAGES], TARGETS).keys() == LOSSES
    assert model.transform([torch.full((1, 64, 64), 1.0)])[0].tensors.max() == pytest.approx((1 - mean) / std, abs=1e-5)


def test_norm_layers():
    def norm(channels):
        return nn.GroupNorm(4, channels)

    backbone = fpn_backbone("blockswap_resnet18", GENOME, norm_layer=norm, trainable_layers=4)
    kinds = {type(each) for each in backbone.body.layer1.modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds
    assert type(backbone.body.bn1) is FrozenBatchNorm2d
    # Branches that start at zero still do.
    assert not backbone.body.layer1[0].bn3.weight.any()
    # BN that has its activation in it.
    before = fpn_backbone("test_efficientnet").eval()
    frozen = fpn_backbone(before.body, norm_layer=FrozenBatchNorm2d)
    assert any(isinstance(each, FrozenBatchNormAct2d) for each in frozen.modules())
    same = fpn_backbone(
        before.body, norm_layer=lambda channels: nn.BatchNorm2d(channels, eps=before.body.bn1.eps)
    ).eval()
    x = torch.rand(1, 3, 64, 64)
    for each, other, expected in zip(frozen.body(x), same.body(x), before.body(x), strict=True):
        torch.testing.assert_close(each, expected)
        torch.testing.assert_close(other, expected)


def test_levels_and_extra_blocks():
    backbone = fpn_backbone(
        "blockswap_resnet18", GENOME, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(32, 32), out_channels=32
    )
    assert backbone.strides == [8, 16, 32, 64, 128]
    maps = backbone(torch.rand(1, 3, 128, 128))
    assert {name: tuple(each.shape[1:]) for name, each in maps.items()} == {
        "0": (32, 16, 16),
        "1": (32, 8, 8),
        "2": (32, 4, 4),
        "p6": (32, 2, 2),
        "p7": (32, 1, 1),
    }
    assert fpn_backbone("blockswap_resnet18", output_stride=16).strides == [4, 8, 16, 32]
    # Channels last, as timm's Swin has them.
    swin = fpn_backbone(timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), features_only=True))
    assert tuple(swin(torch.rand(1, 3, 224, 224))["0"].shape) == (1, 256, 56, 56)
    # All blocks of a vision transformer have one stride: the last is taken.
    assert fpn_backbone("test_vit").strides == [16, 32]


@pytest.mark.filterwarnings("ignore:RCNN always returns", "ignore:.*torch.jit.script:FutureWarning")
def test_torchscript_finds_the_same():
    torch.manual_seed(0)
    model = small("blockswap_resnet18", GENOME).eval()
    with torch.no_grad():
        _, found = torch.jit.script(model)(IMAGES)
        expected = model(IMAGES)
    for each, other in zip(found, expected, strict=True):
        for key, value in other.items():
            torch.testing.assert_close(each[key], value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mask_rcnn("test_resnet", 5, "K"), GenomeError, "test_resnet has stages of 1, 1, 1 and 1 blocks; this"),
        (lambda: mask_rcnn("resnet18", 5, layers=3), TypeError, "mask_rcnn has no argument layers; see torchvision's"),
        (
            lambda: fpn_backbone(timm.create_model("resnet18"), GENOME, in_chans=1),
            ValueError,
            "a network has been made already; leave out genome, in_chans, or use a name in its place",
        ),
        (
            lambda: fpn_backbone("resnet18", out_indices=(1, 2)),
            ValueError,
            r"levels are returned_layers here; use returned_layers=\(1, 2\)",
        ),
        (
            lambda: mask_rcnn(build(Layout.custom("one", depths=(1,), channels=(16,))), 3),
            ValueError,
            r"this network has no level of stride 2 or more; use one of more stages, or returned_layers=\[1\]",
        ),
        (
            lambda: mask_rcnn("test_resnet", box_predictor=FastRCNNPredictor(1024, 3)),
            ValueError,
            "box_predictor has classes of its own; use mask_predictor too, for the same classes, or neither",
        ),
        (
            lambda: fpn_backbone(nn.Linear(2, 2)),
            TypeError,
            "a backbone is a network of timm .*; Linear has no features",
        ),
        (
            lambda: fpn_backbone("resnet18", returned_layers=[3, 5]),
            ValueError,
            r"returned layers are 0 to 4 for this network, not \[3, 5\]",
        ),
        (
            lambda: fpn_backbone("blockswap_wrn16_1", trainable_layers=5),
            ValueError,
            "trainable layers are 0 to 4 for this network, not 5",
        ),
        (
            lambda: fpn_backbone(timm.create_model("resnet18", features_only=True), returned_layers=[1]),
            ValueError,
            r"this network returns layers \[0, 1, 2, 3, 4\]; leave out returned_layers",
        ),
    ],
)
def test_errors_say_what_to_write(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_new_norms_are_where_and_of_the_type_of_the_network():
    model = timm.create_model("blockswap_wrn16_1").double()
    backbone = fpn_backbone(model, norm_layer=lambda channels: nn.GroupNorm(2, channels))
    assert {each.dtype for each in backbone.body.parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_pyramid_is_of_the_type_of_the_network(dtype):
    maps = fpn_backbone(timm.create_model("test_resnet").to(dtype))(torch.rand(1, 3, 64, 64, dtype=dtype))
    assert {each.dtype for each in maps.values()} == {dtype}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("feature_cls", ["dict", "list", "hook"])
def test_features_by_name_are_a_body(feature_cls):
    body = timm.create_model("test_resnet", features_only=True, feature_cls=feature_cls).eval()
    backbone, x = fpn_backbone(body).eval(), torch.rand(1, 3, 64, 64)
    found = backbone(x)
    assert list(found) == ["0", "1", "2", "3", "4", "pool"]
    if feature_cls != "hook":
        torch.testing.assert_close(torch.jit.script(backbone)(x), found)


def test_models_need_no_pycocotools(monkeypatch):
    # As where it is imported first, without pycocotools.
    monkeypatch.setattr("blockswap_models.detection", None)
    monkeypatch.delitem(sys.modules, "blockswap_models.detection")
    for name in [each for each in sys.modules if each.split(".")[0] == "pycocotools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    importlib.import_module("blockswap_models.detection").mask_rcnn("blockswap_wrn16_1", 5)


def test_a_swapped_network_of_timm_is_a_backbone() -> None:
    model = timm.create_model("test_resnet")
    backbone = fpn_backbone(swap(model, "K/G4/B2/K"))
    features = backbone(torch.randn(1, 3, 64, 64))
    assert [each.shape[-1] for each in features.values()][:3] == [16, 8, 4]


def test_a_name_of_timm_takes_a_genome_too() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = fpn_backbone("test_resnet", "K/G4/B2/K")
        maps = backbone(torch.rand(1, 3, 64, 64))
    assert backbone.strides == [4, 8, 16, 32, 64]
    assert [tuple(each.shape[2:]) for each in maps.values()] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    assert sum(isinstance(each, ResidualBlock) for each in backbone.modules()) == 2


def test_pretrained_weights_of_a_network_with_new_blocks_are_refused():
    # They would be random, and frozen.
    with pytest.raises(MissingWeightsError, match="no pretrained weights for test_resnet with other blocks, K/G4/K/B2"):
        fpn_backbone("test_resnet", "K/G4/K/B2", pretrained=True)
