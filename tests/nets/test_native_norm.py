"""BN and ReLU in C compute what PyTorch's layers compute, their gradients, and the statistics that are kept."""

import copy
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blockswap_models import Layout
from blockswap_models.nets import native_norm
from blockswap_models.nets.native import native_library, use_native_convs
from blockswap_models.nets.networks import build

needs_compiler = pytest.mark.skipif(native_library() is None, reason="no C compiler on this machine")


def reference(x, weight, bias, eps, relu):
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return F.relu(y) if relu else y


@needs_compiler
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (2, 16, 7, 8), (3, 24, 4, 4), (1, 130, 4, 4), (4, 1, 16, 16)])
def test_norm_act_equals_double_precision(shape, dtype, tolerance, relu):
    torch.manual_seed(0)
    # A mean that is large for the spread, as at the end of a residual stream.
    x = (torch.randn(shape) + 3 * torch.randn(1, shape[1], 1, 1)).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    # As a block begins that is zero at its end: its weight has a gradient, and its input none.
    weight[0] = 0
    given = [each.requires_grad_() for each in (x, weight, bias)]
    gradient = torch.randn(shape).to(dtype, memory_format=torch.channels_last)
    y = native_norm.norm_act(*given, 1e-5, relu)
    found = torch.autograd.grad(y, given, gradient)
    exact = [each.detach().double().requires_grad_() for each in given]
    expected = reference(*exact, 1e-5, relu)
    right = torch.autograd.grad(expected, exact, gradient.double())
    assert [y.dtype, *(each.dtype for each in found)] == [dtype, dtype, torch.float32, torch.float32]
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y.double(), expected, rtol=tolerance, atol=4 * tolerance)
    for one, other in zip(found, right, strict=True):
        scale = max(1.0, float(other.abs().max()))
        assert torch.allclose(one.double(), other, rtol=tolerance, atol=8 * tolerance * scale)


@needs_compiler
def test_norm_act_keeps_what_is_not_finite():
    x = torch.ones(1, 4, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, 1, 0, 0] = float("nan")
    # A ReLU passes it on too, as PyTorch's does: a loss of numbers would hide it.
    for relu in (False, True):
        y = native_norm.norm_act(x, torch.ones(4), torch.zeros(4), 1e-5, relu)
        assert y[0, 1].isnan().all()
        assert y[0, [0, 2, 3]].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000])
def test_rounding_to_bfloat16_keeps_every_nan(bits):
    # The first is the NaN that GPUs make: it must not be rounded up to a zero.
    weight = torch.ones(16)
    weight.view(torch.int32)[3] = bits - (bits >> 31 << 32)
    x = torch.randn(2, 16, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last)
    y = native_norm.norm_act(x, weight, torch.zeros(16), 1e-5, True)
    assert y.isnan().sum(dim=(0, 2, 3)).tolist() == [32 * (channel == 3) for channel in range(16)]


@needs_compiler
@pytest.mark.parametrize(
    ("x", "channels"),
    [
        (torch.ones(2, 4, 4, 4), 4),
        (torch.ones(1, 5, 3, 3).contiguous(memory_format=torch.channels_last), 5),
        (torch.ones(2, 32, 4, 4).contiguous(memory_format=torch.channels_last), 16),
    ],
)
def test_norm_act_refuses_what_it_cannot_compute(x, channels):
    with pytest.raises(ValueError, match=f"norm_act does not compute .* with {channels} channels"):
        native_norm.norm_act(x, torch.ones(channels), torch.zeros(channels), 1e-5, True)


def native_model(model):
    fast, undo = copy.deepcopy(model), ExitStack()
    native_norm.use_native_norms(fast, undo)
    return fast, undo


@needs_compiler
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_kept_as_pytorch_keeps_them(momentum, one_thread):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(16, momentum=momentum), nn.ReLU())
    fast, undo = native_model(model)
    with undo:
        for mean in (0, 5):
            x = (torch.randn(3, 16, 4, 4) + mean).contiguous(memory_format=torch.channels_last)
            assert torch.allclose(fast(x), model(x), atol=1e-5)
        kept = fast.state_dict()
        for name, value in model.state_dict().items():
            assert torch.allclose(kept[name], value, rtol=1e-5)
        fast.eval()
        model.eval()
        assert torch.allclose(fast(x), model(x), atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(fast(x), model(x), atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    ("layout", "genome"), [(Layout.wide_resnet(16, 2), "G4,W1/W4,D/B2G4,M6"), (Layout.resnet(10), "G16/W4/B2W8/W2")]
)
@pytest.mark.parametrize("training", [True, False])
def test_every_norm_of_a_network_is_in_c_and_gives_the_same(layout, genome, training, one_thread, monkeypatch):
    torch.manual_seed(0)
    options = {} if layout.preact else {"zero_init_last": False}
    model = build(layout, genome, num_classes=7, **options).to(memory_format=torch.channels_last).train(training)
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    right = model(images)
    calls, real = [], native_norm.call_native
    monkeypatch.setattr(native_norm, "call_native", lambda name, *args: calls.append(name) or real(name, *args))
    fast, undo = native_model(model)
    with undo, torch.no_grad():
        found = fast(images)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert calls == ["norm_act_forward" if training else "norm_act_apply"] * norms
    assert torch.allclose(found, right, rtol=1e-3, atol=1e-3)
    # A frozen network that a gradient passes through computes as before.
    if not training:
        calls.clear()
        fast, undo = native_model(model)
        with undo:
            fast.requires_grad_(False)(images.requires_grad_()).sum().backward()
        assert not calls
        assert images.grad.abs().sum() > 0


@needs_compiler
def test_a_module_in_several_places_does_there_what_it_does(one_thread):
    torch.manual_seed(0)
    act, norm = nn.ReLU(), nn.BatchNorm2d(16)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), norm, act, nn.Conv2d(16, 16, 3), act, norm, nn.ReLU(), norm)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    right = copy.deepcopy(model)(images)
    fast, undo = native_model(model)
    with undo:
        torch.testing.assert_close(fast(images), right, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_what_c_writes_is_float32_whatever_torch_makes_by_itself(one_thread, default):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(2, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    found = []
    for kind in (torch.float32, default):
        fast, undo = native_model(model)
        use_native_convs(fast, undo)
        torch.set_default_dtype(kind)
        try:
            with undo:
                fast(images).square().sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
        found.append([*(each.grad for each in fast.parameters()), fast[1].running_mean, fast[1].running_var])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert torch.equal(one, other)


@needs_compiler
def test_one_value_a_channel_has_no_spread(one_thread):
    fast, undo = native_model(nn.Sequential(nn.BatchNorm2d(16), nn.ReLU()))
    with undo, pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        fast(torch.ones(1, 16, 1, 1).contiguous(memory_format=torch.channels_last))


@needs_compiler
def test_a_probed_norm_keeps_its_own_output(one_thread):
    model = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
    outputs = []
    model[0].register_forward_hook(lambda module, args, output: outputs.append(output))
    with ExitStack() as undo:
        native_norm.use_native_norms(model, undo, probed=[model[0]])
        model(torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last))
    assert outputs[0].min() < 0
    assert all("forward" not in vars(module) for module in model)


@needs_compiler
@pytest.mark.parametrize("mode", ["training", "evaluation", "scoring"])
def test_images_of_other_channels_are_refused_as_by_pytorch(mode, one_thread):
    model = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU()).train(mode != "evaluation")
    model[0].track_running_stats = mode != "scoring"
    fast, undo = native_model(model)
    # C would read the weights of channels that are not there.
    with undo, torch.no_grad(), pytest.raises(RuntimeError, match="should contain 32 elements not 16"):
        fast(torch.randn(2, 32, 4, 4).contiguous(memory_format=torch.channels_last))


@needs_compiler
@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_one_parameter_of_a_norm_with_kept_statistics_is_trained(trained, one_thread):
    model = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU()).eval().requires_grad_(False)
    getattr(model[0], trained).requires_grad_()
    images = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    model(images).sum().backward()
    fast, undo = native_model(model)
    fast.zero_grad()
    with undo:
        fast(images).sum().backward()
    torch.testing.assert_close(getattr(fast[0], trained).grad, getattr(model[0], trained).grad)


@needs_compiler
@pytest.mark.parametrize("missing", [["running_mean", "running_var", "num_batches_tracked"], ["num_batches_tracked"]])
def test_statistics_that_are_not_there_are_not_kept(missing, one_thread):
    model = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
    for name in missing:
        setattr(model[0], name, None)
    fast, undo = native_model(model)
    images = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    with undo:
        torch.testing.assert_close(fast(images), model(images))
    torch.testing.assert_close(dict(fast.named_buffers()), dict(model.named_buffers()))


def look_at_output(norm, act, seen):
    norm.register_forward_hook(lambda module, args, output: seen.append(output.clone()))


def look_at_gradient(norm, act, seen):
    norm.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))


def look_at_input(norm, act, seen):
    act.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))


@needs_compiler
@pytest.mark.parametrize("look", [look_at_output, look_at_gradient, look_at_input])
def test_a_hook_between_norm_and_activation_sees_what_it_saw(look, one_thread):
    images = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    seen = []
    for fast in (False, True):
        model = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
        look(*model, seen)
        with ExitStack() as undo:
            if fast:
                native_norm.use_native_norms(model, undo)
            (model(images) - 3).square().sum().backward()
    torch.testing.assert_close(*seen)


@needs_compiler
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_layer_with_a_forward_pass_of_its_own_keeps_it(place, one_thread):
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    model = model.to(memory_format=torch.channels_last)
    # As programs do that change a layer of a network they were given.
    model[place].forward = lambda x: x - 5
    images = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    right = copy.deepcopy(model)(images)
    fast, undo = native_model(model)
    use_native_convs(fast, undo)
    with undo:
        torch.testing.assert_close(fast(images), right, rtol=1e-4, atol=1e-4)
