import copy
import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from by_hand import MeanLogits
from torch import nn

from blockswap_models import Layout, fisher_potential
from blockswap_models.nets.networks import build, residual_blocks
from blockswap_models.searching.fisher import fisher_balanced, fisher_by_block

WRN = Layout.wide_resnet(16, 2)
RESNET = Layout.resnet(18)
# Where the branches of timm's test_efficientnet end; the first block is a convolution alone.
EFFICIENT_ENDS = ["blocks.0.0.aa", "blocks.1.0.bn2", "blocks.2.0.bn2", "blocks.3.0.bn3", "blocks.4.0.bn3"]
GENOMES = [
    (WRN, "2xS/2xS/2xS"),
    (WRN, "G4,W1/B2,B4W2/B2G4,M6"),
    (WRN, "D,M6/D,W16/D,D"),
    (RESNET, "2xS/2xS/2xS/2xS"),
    (RESNET, "G4,W1/B2,D/B2G4,M6/D,W4"),
]


def network(layout, genome, **kwargs):
    torch.manual_seed(0)
    return build(layout, genome, num_classes=7, **({} if layout.preact else {"zero_init_last": False}), **kwargs)


def fast(images):
    return images.contiguous(memory_format=torch.channels_last)


def minibatch(size=32, number=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(number, 3, size, size, generator=generator).to(dtype)
    return images, torch.randint(7, (number,), generator=generator)


def plain_fisher(model, images, labels, names=None):
    """The derivative of the loss by a gate on each image's channel is Σ_ij A·g: no activation or gradient is kept."""
    model = copy.deepcopy(model).train()
    if names is None:
        ends = [block.get_submodule(block.branch_end) for block in residual_blocks(model)]
    else:
        ends = [model.get_submodule(name) for name in names]
    gates = []

    def gate(_, __, output):
        gates.append(torch.ones(*output.shape[:2], 1, 1, dtype=output.dtype, requires_grad=True))
        return output * gates[-1]

    for end in ends:
        end.register_forward_hook(gate)
    F.cross_entropy(model(images), labels).backward()
    return [float((g.grad**2).sum() / (2 * len(images))) for g in gates]


@pytest.mark.parametrize(("layout", "genome"), GENOMES)
def test_equals_a_plain_autograd_computation(layout, genome):
    model = network(layout, genome)
    images, labels = minibatch()
    assert fisher_by_block(model, images, labels) == pytest.approx(plain_fisher(model, images, labels), rel=1e-5)
    double, images = model.double(), images.double()
    expected = plain_fisher(double, images, labels)
    assert fisher_by_block(double, images, labels) == pytest.approx(expected, rel=1e-10)
    assert fisher_potential(double, images, labels) == pytest.approx(sum(expected), rel=1e-10)


@pytest.mark.parametrize(
    ("layout", "genome"), [*GENOMES, (WRN, "W2,G16/W4,B2W2/B2G16,B4W4"), (RESNET, "W2,B4W4/2xG16/B2W2,W1/W4,W8")]
)
def test_fast_kernels_give_the_same_score(layout, genome):
    model = network(layout, genome)
    images, labels = minibatch(number=16)
    assert fisher_potential(model, fast(images), labels) == pytest.approx(
        fisher_potential(model, images, labels), rel=1e-2
    )
    double, images = model.double(), images.double()
    expected = fisher_by_block(double, images, labels)
    assert fisher_by_block(double, fast(images), labels) == pytest.approx(expected, rel=1e-9)


def test_an_identity_has_no_potential():
    model = network(WRN, "S,I/S,I/S,M3K5")
    images, labels = minibatch()
    blocks = fisher_by_block(model, images, labels)
    assert blocks[1] == blocks[3] == 0
    names = [f"stages.{stage}.{block}" for stage, block in [(0, 0), (1, 0), (2, 0), (2, 1)]]
    ends = [f"{name}.{model.get_submodule(name).branch_end}" for name in names]
    present = [blocks[place] for place in (0, 2, 4, 5)]
    assert present == pytest.approx(plain_fisher(model, images, labels, ends), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        # It adds the shortcut to its branch in place.
        ("resnet18", [f"layer{stage}.{block}.bn2" for stage in range(1, 5) for block in range(2)]),
        ("test_efficientnet", EFFICIENT_ENDS),
    ],
)
@pytest.mark.parametrize("layout_of", [torch.Tensor.contiguous, fast])
def test_networks_of_timm(name, ends, layout_of):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **({"zero_init_last": False} if name == "resnet18" else {}))
    before = copy.deepcopy(model.state_dict())
    images, labels = minibatch(64)
    tolerance = 1e-5 if layout_of is not fast else 1e-2
    expected = pytest.approx(plain_fisher(model, images, labels, ends), rel=tolerance)
    images = layout_of(images)
    assert fisher_by_block(model, images, labels) == expected
    assert fisher_by_block(model, images, labels, ends) == expected
    assert fisher_by_block(model, images, labels, lambda model: map(model.get_submodule, ends)) == expected
    if name == "resnet18":
        assert fisher_by_block(model, images, labels, "layer*.bn2") == expected
        assert fisher_potential(model, images, labels, "layer*.bn2") == pytest.approx(sum(expected.expected), rel=1e-2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("layout", "genome", "ends", "places"),
    [
        (WRN, "S,I/W1,B2/M3K5,D", ["conv2", "conv2", "bn4", "bn4", "conv2"], [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]),
        (RESNET, "S,I/G4,I/B2,I/M3,I", ["bn2", "bn2", "bn3", "bn3"], [(0, 0), (1, 0), (2, 0), (3, 0)]),
    ],
)
def test_a_balanced_potential_compares_each_branch_with_the_output_of_its_block(layout, genome, ends, places):
    model = network(layout, genome).double()
    images, labels = minibatch(dtype=torch.float64)
    names = [f"stages.{s}.{b}" if layout is WRN else f"layer{s + 1}.{b}" for s, b in places]
    named = [f"{name}.{end}" for name, end in zip(names, ends, strict=True)]
    branches = plain_fisher(model, images, labels, named)
    outputs = plain_fisher(model, images, labels, names)
    expected = sum(math.log1p(branch / output) for branch, output in zip(branches, outputs, strict=True))
    assert fisher_balanced(model, images, labels) == pytest.approx(expected, rel=1e-9)
    assert fisher_balanced(model, images, labels, named) == pytest.approx(expected, rel=1e-9)


class Unusual(nn.Sequential):
    """A ReLU that overwrites what is probed, a module that is run twice, and one that never is."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 7)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self[2](self[1](self[0](x)))
        return self.head(self[3](self[3](x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("layout_of", [torch.Tensor.contiguous, fast])
def test_any_module_can_be_probed(layout_of):
    torch.manual_seed(0)
    model = Unusual()
    images, labels = minibatch(10, number=16)
    # The convolution is run twice, so that the plain computation has a gate of its own for each run.
    norm, one, other = plain_fisher(model, images, labels, ["1", "3"])
    found = fisher_by_block(model, layout_of(images), labels, ["1", "3"])
    assert found == pytest.approx([norm, one + other], rel=1e-3)
    assert fisher_by_block(model, layout_of(images), labels, ["head"]) == pytest.approx(
        plain_fisher_of_logits(model, images, labels), rel=1e-3
    )


def plain_fisher_of_logits(model, images, labels):
    logits = copy.deepcopy(model).train()(images).detach().requires_grad_()
    F.cross_entropy(logits, labels).backward()
    return [float((logits.detach() * logits.grad).square().sum() / (2 * len(images)))]


@pytest.mark.parametrize(
    ("blocks", "kind", "message"),
    [
        (
            None,
            TypeError,
            "Unusual has no feature_info that names its stages; use a CNN of timm; or name the modules at the ends",
        ),
        ("layer*", ValueError, "Unusual has no modules 'layer*'; use names of model.named_modules(), such as '0', "),
        (["1", "heat"], ValueError, "Unusual has no module 'heat'; did you mean 'head'?"),
        ([], ValueError, "no modules of Unusual to probe; give at least one in blocks="),
        (["1", "unused"], ValueError, "module 'unused' of blocks= was not run"),
    ],
)
def test_messages_for_blocks(blocks, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        fisher_potential(Unusual(), *minibatch(10), blocks)


def test_equals_a_case_worked_out_by_hand():
    images = torch.tensor([[[[1.0, 3.0]]], [[[-1.0, 3.0]]]])
    labels = torch.tensor([0, 1])
    # First image: A = (0.5, 1.5), m = 3, loss log(1 + exp(-2m)), so each g is 1/N · 1/2 · -2σ(-6), and Σ A·g = -σ(-6).
    # Second image: A = (-0.5, 1.5), m = 1.5, loss log(1 + exp(2m)), so each g is 1/N · 1/2 · 2σ(3), and Σ A·g = σ(3)/2.
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = (sigmoid(-6) ** 2 + (sigmoid(3) / 2) ** 2) / (2 * 2)
    assert fisher_potential(MeanLogits(), images, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("layout_of", [torch.Tensor.contiguous, fast])
def test_leaves_the_model_as_it_was(broken, layout_of):
    model = network(WRN, "G4,W1/B2,B4W2/B2G4,M6", drop_rate=0.3, drop_path_rate=0.3)
    model.set_grad_checkpointing()
    model.train()
    model.stages[1].eval()
    model.conv1.weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    flags = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    frozen = [p.requires_grad for p in model.parameters()]
    parameters = dict(model.named_parameters())
    groups = [getattr(module, "groups", None) for module in model.modules()]
    images, labels = minibatch()
    images = layout_of(images)
    if broken:
        with pytest.raises(IndexError):
            fisher_potential(model, images, labels + 7)
    else:
        fisher_potential(model, images, labels)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_hooks and not m._backward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert [getattr(module, "groups", None) for module in model.modules()] == groups
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.grad_checkpointing
    assert images.grad is None


def test_is_the_same_whatever_surrounds_it():
    images, labels = minibatch()
    expected = fisher_potential(network(WRN, "2xS/2xS/2xS"), images, labels)
    model = network(WRN, "2xS/2xS/2xS", drop_rate=0.5, drop_path_rate=0.5)
    model.set_grad_checkpointing()
    assert fisher_potential(model.train(), images, labels) == expected
    assert fisher_potential(model.eval(), images, labels) == expected
    with torch.no_grad():
        assert fisher_potential(model, images, labels) == expected
    with torch.inference_mode():
        assert fisher_potential(model, images, labels) == expected
    # It computes in the type of the images.
    with torch.autocast("cpu", torch.bfloat16):
        assert fisher_potential(model, images, labels) == expected
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert fisher_potential(model, images, labels) == expected


def test_stages_that_compute_again_are_seen_once():
    # In networks of timm such as this one each stage has the setting, and not the network.
    torch.manual_seed(0)
    model = timm.create_model("regnetx_002", zero_init_last=False)
    images, labels = minibatch()
    expected = fisher_balanced(model, images, labels)
    model.set_grad_checkpointing()
    assert fisher_balanced(model, images, labels) == expected
    assert model.s1.grad_checkpointing


def test_uses_the_statistics_of_the_minibatch():
    model = network(WRN, "2xS/2xS/2xS")
    images, labels = minibatch()
    expected = fisher_potential(model, images, labels)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(5)
    assert fisher_potential(model, images, labels) == expected


def test_names_a_network_that_starts_at_zero():
    model = timm.create_model("blockswap_resnet18", num_classes=7)
    with pytest.raises(ValueError, match="build it with zero_init_last=False"):
        fisher_potential(model, *minibatch())


def test_names_a_network_whose_branches_end_in_stochastic_depth_and_start_at_zero():
    model = timm.create_model("regnetx_002", num_classes=7)
    assert isinstance(model.s1.b1.drop_path, nn.Identity)
    with pytest.raises(ValueError, match="build it with zero_init_last=False"):
        fisher_potential(model, *minibatch())


def test_names_a_network_without_blocks():
    with pytest.raises(TypeError, match="Linear has no feature_info that names its stages; use a CNN of timm; or name"):
        fisher_potential(nn.Linear(2, 2), *minibatch())
