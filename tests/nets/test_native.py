"""Layers in C compute what PyTorch's layers compute, and its gradients."""

import copy
import os
import tempfile
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blockswap_models import Layout
from blockswap_models.nets import native
from blockswap_models.nets.networks import build

needs_compiler = pytest.mark.skipif(native.native_library() is None, reason="no C compiler on this machine")


@needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    ("width", "shape"),
    # Rows of one tile, of several and of a part; an image of one pixel.
    [
        (2, (3, 32, 6, 6)),
        (2, (2, 32, 5, 13)),
        (4, (2, 64, 12, 12)),
        (4, (2, 16, 7, 8)),
        (4, (3, 16, 1, 1)),
        (8, (2, 48, 9, 4)),
    ],
)
def test_grouped_conv_equals_double_precision(width, shape, dtype, tolerance, stride):
    if width > native.native_library().lanes():
        pytest.skip("the registers of this machine are narrower than a group")
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(shape[1], width, 3, 3) / 3
    given = [each.requires_grad_() for each in (x, weight)]
    y = native.grouped_conv(*given, stride)
    exact = [each.detach().double().requires_grad_() for each in given]
    expected = F.conv2d(*exact, None, stride, 1, 1, shape[1] // width)
    # A gradient in another layout.
    gradient = torch.randn(y.shape).to(dtype)
    assert (y.shape, y.dtype) == (expected.shape, dtype)
    assert y.is_contiguous(memory_format=torch.channels_last)
    found = [y, *torch.autograd.grad(y, given, gradient)]
    right = [expected, *torch.autograd.grad(expected, exact, gradient.double())]
    for one, other in zip(found, right, strict=True):
        scale = float(other.detach().abs().max())
        assert torch.allclose(one.double(), other, rtol=tolerance, atol=tolerance * scale)


@needs_compiler
@pytest.mark.parametrize(
    ("x", "width"),
    [
        (torch.ones(2, 16, 4, 4), 4),
        (torch.ones(2, 18, 4, 4), 2),
        (torch.ones(2, 48, 4, 4), 3),
        (torch.ones(2, 16, 4, 4, dtype=torch.float64), 4),
    ],
)
def test_grouped_conv_refuses_what_it_cannot_compute(x, width):
    if x.dtype == torch.float64 or x.shape[1] != 16:
        x = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="grouped_conv does not compute"):
        native.grouped_conv(x, torch.ones(x.shape[1], width, 3, 3))


@needs_compiler
@pytest.mark.parametrize(
    ("layout", "genome"), [(Layout.wide_resnet(16, 2), "G4,W1/W4,D/B2G4,M6"), (Layout.resnet(10), "G16/W4/B2W8/W2")]
)
@pytest.mark.parametrize("amp", [False, True])
def test_a_network_learns_what_it_would_have_learned(layout, genome, amp, one_thread):
    torch.manual_seed(0)
    options = {} if layout.preact else {"zero_init_last": False}
    model = build(layout, genome, num_classes=7, **options).to(memory_format=torch.channels_last)
    images, labels = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(8) % 7

    def gradient(native_convs, amp):
        each = copy.deepcopy(model).train()
        with ExitStack() as undo, torch.autocast("cpu", torch.bfloat16, enabled=amp):
            if native_convs:
                native.use_native_convs(each, undo)
                assert sum("forward" in vars(module) for module in each.modules() if type(module) is nn.Conv2d) >= 3
            loss = F.cross_entropy(each(images).float(), labels)
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in each.parameters()])

    right = gradient(False, False)
    found = F.cosine_similarity(gradient(True, amp), right, dim=0)
    # Rounding turns a ReLU on or off whose input is next to zero; in bfloat16 that is as bad in PyTorch's own layers.
    assert found > (F.cosine_similarity(gradient(False, True), right, dim=0) - 0.03 if amp else 0.999)


class Conv(nn.Conv2d):
    """A layer that may do something else with its weights."""


@needs_compiler
@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, True),
        ({"stride": 2}, True),
        ({"kernel_size": 5}, False),
        ({"kernel_size": (3, 1)}, False),
        ({"padding": 0}, False),
        ({"padding": "same"}, False),
        ({"dilation": 2}, False),
        ({"stride": 3}, False),
        ({"stride": (1, 2)}, False),
        ({"bias": True}, False),
        ({"padding_mode": "reflect"}, False),
        ({"out_channels": 32}, False),
        ({"in_channels": 32}, False),
        # Groups of 1, 16 and 3 channels, and half of a vector.
        ({"groups": 16}, False),
        ({"groups": 1}, False),
        ({"in_channels": 48, "out_channels": 48, "groups": 16}, False),
        ({"in_channels": 18, "out_channels": 18, "groups": 9}, False),
        ({"class": Conv}, False),
    ],
    ids=str,
)
def test_only_what_is_in_c_is_taken(options, taken, one_thread):
    narrow = {"in_channels": 16, "out_channels": 16, "kernel_size": 3, "padding": 1, "groups": 4, "bias": False}
    conv = options.get("class", nn.Conv2d)(**narrow | {name: each for name, each in options.items() if name != "class"})
    with ExitStack() as undo:
        native.use_native_convs(nn.Sequential(conv), undo)
        assert ("forward" in vars(conv)) == taken
    assert "forward" not in vars(conv)


@needs_compiler
def test_grouped_conv_refuses_other_kernels():
    x = torch.ones(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"grouped_conv does not compute .* kernels of 1x1"):
        native.grouped_conv(x, torch.ones(16, 4, 1, 1))


@needs_compiler
def test_autocast_leaves_double_precision_as_pytorch_does(one_thread):
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False, dtype=torch.float64)
    images = torch.randn(2, 16, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        right = conv(images)
        with ExitStack() as undo:
            native.use_native_convs(nn.Sequential(conv), undo)
            torch.testing.assert_close(conv(images), right)


@needs_compiler
def test_the_sources_are_those_of_the_package(monkeypatch, tmp_path):
    # Wherever the program runs, such as among the sources of another version.
    (tmp_path / "norm_act.c").write_text("#error")
    monkeypatch.chdir(tmp_path)
    # Not through what the tests keep of compilations.
    monkeypatch.setenv("CC", os.environ["CC"].split()[-1])
    assert native.native_library.__wrapped__() is not None


def test_without_a_folder_for_what_is_compiled_there_is_no_library(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert native.native_library.__wrapped__() is None


def test_without_a_compiler_there_is_no_library(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    # Not from the cache, which keeps what is compiled for the tests that follow.
    assert native.native_library.__wrapped__() is None
