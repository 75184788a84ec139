"""Costs: the checked table, an independent counter, and budgets."""

import copy
import json
import math

import numpy
import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import blockswap_models  # noqa: F401  # registers the zoo
from blockswap_models import Budget, BudgetError, Cost, Genome, count, count_blocks
from blockswap_models.budget import parse_amount
from blockswap_models.layout import Layout
from blockswap_models.nets.networks import build, residual_blocks

# Parameters, and MACs in millions, of the paper's networks and of those that it compares with.
TABLE = [
    ("blockswap_wrn40_2", None, 2_243_546, 327.6),
    ("blockswap_wrn40_2", "6xS/6xS/6xS", 2_243_546, 327.6),
    ("blockswap_wrn40_2_811k", None, 811_370, 131.9),
    ("blockswap_wrn40_2_556k", None, 555_962, 88.9),
    ("blockswap_wrn40_2_404k", None, 404_250, 92.2),
    ("blockswap_wrn40_2_289k", None, 289_226, 65.4),
    ("blockswap_wrn40_2_217k", None, 217_050, 38.4),
    ("blockswap_wrn40_2_162k", None, 162_202, 33.5),
    ("blockswap_wrn40_2", "6xM6/6xM6/6xM6", 1_500_986, 231.4),
    ("blockswap_wrn40_2", "6xD/6xD/6xD", 300_122, 46.0),
    ("blockswap_wrn16_2", None, 691_674, 101.1),
    ("blockswap_wrn40_1", None, 563_930, 83.3),
    ("blockswap_wrn16_1", None, 175_066, 26.7),
    ("blockswap_resnet34", None, 21_797_672, 3663.8),
    ("blockswap_resnet34_3m", None, 3_083_176, 807.0),
    ("blockswap_resnet34_8m", None, 8_193_576, 1200.7),
    ("blockswap_resnet34", "3xG4/4xG4/6xG4/3xG4", 8_146_600, 1389.4),
    ("blockswap_resnet34", "3xW1/4xW1/6xW1/3xW1", 3_132_520, 553.6),
]


def create(name: str, genome: str | None = None, **kwargs) -> torch.nn.Module:
    return timm.create_model(name, **({} if genome is None else {"genome": genome}), **kwargs)


@pytest.mark.parametrize(("name", "genome", "params", "macs"), TABLE)
def test_costs_are_those_of_the_table(name: str, genome: str | None, params: int, macs: float) -> None:
    cost = count(create(name, genome, device="meta"))
    assert cost.params == params
    assert round(cost.macs / 1e6, 1) == macs


@pytest.mark.parametrize(
    ("name", "genome", "size"),
    [
        ("blockswap_wrn16_1", "S,G4/W1,M6/B2,B2W4", 32),
        ("blockswap_wrn16_2", "D,B4/D,B2G8/M6,W16", 32),
        ("blockswap_wrn16_1", "S,D/S,D/S,D", 21),
        ("blockswap_wrn16_1", "I,M6K5/M3,I/M3K7,I", 21),
        ("blockswap_resnet18", "S,G4/W1,M6/B2,B2W4/D,D", 64),
        ("blockswap_resnet18", "I,D/M6K5,M2/W2,S/B8,I", 75),
    ],
)
def test_costs_are_those_of_torchs_flop_counter(name: str, genome: str, size: int) -> None:
    model = create(name, genome, num_classes=7).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    cost = count(model, (3, size, size))
    # It counts a multiply-accumulate as two, and batch norm as none.
    assert 2 * cost.macs == counter.get_total_flops()
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "genome", "channels", "size"),
    [
        ("blockswap_wrn16_2", "S,G4/W1,M6/B2,D", (16, 128), 32),
        ("blockswap_resnet18", "S,G4/W1,M6/B2,D/B2W4,W16", (64, 512), 112),
    ],
)
def test_blocks_stem_and_head_sum_to_the_network(name: str, genome: str, channels: tuple, size: int) -> None:
    model = create(name, genome)
    blocks = count_blocks(model)
    assert [block.params for block in blocks] == [
        sum(parameter.numel() for parameter in block.parameters()) for block in residual_blocks(model)
    ]
    stem, head = channels
    area, classes = model.conv1.kernel_size[0] ** 2, model.num_classes
    normed = head if "wrn" in name else stem
    rest = Cost(stem * 3 * area + 2 * normed + (head + 1) * classes, stem * 3 * area * size**2 + head * classes)
    assert sum(blocks, rest) == count(model)


def test_all_convolutions_are_counted() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ConvTranspose2d(8, 6, 3, 2, groups=2),
        nn.Flatten(2),
        nn.Conv1d(6, 4, 5),
        nn.Unflatten(1, (1, 4, 1)),
        nn.Conv3d(1, 2, 1),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layers(torch.zeros(1, 3, 10, 10))
    assert 2 * count(layers, (3, 10, 10)).macs == counter.get_total_flops()


def test_convolutions_of_several_experts_count_as_one() -> None:
    plain, experts = (create(f"tf_efficientnet_{name}", device="meta") for name in ("b0", "cc_b0_4e"))
    routing = sum(each.weight.numel() for name, each in experts.named_modules() if name.endswith("routing_fn"))
    assert count(experts, (3, 64, 64)).macs == count(plain, (3, 64, 64)).macs + routing


def test_shared_parameters_count_once() -> None:
    model = create("blockswap_wrn16_1")
    own, conv = count(model), model.stages[0][1].conv1
    conv.weight = model.stages[0][1].conv2.weight
    assert count(model) == Cost(own.params - conv.weight.numel(), own.macs)


def test_a_network_that_keeps_tensors_of_a_forward_pass_is_counted() -> None:
    model = create("blockswap_wrn16_1").eval()
    cost = count(model)
    model.kept = {"maps": [(model(torch.zeros(1, 3, 32, 32)),)]}
    assert count(model) == cost


@pytest.mark.parametrize("name", ["blockswap_wrn16_1", "blockswap_resnet18"])
def test_counting_leaves_the_model_as_it_was(name: str) -> None:
    calls = []
    model = create(name).to(torch.bfloat16).train()
    list(model.modules())[-1].eval()
    model.register_forward_hook(lambda *_: calls.append("forward"))
    residual_blocks(model)[1].register_forward_pre_hook(lambda *_: calls.append("before"))
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    names = [set(vars(module)) for module in model.modules()]

    assert count(model) == count(create(name))
    assert len(count_blocks(model)) == len(residual_blocks(model))

    assert not calls
    assert [module.training for module in model.modules()] == modes
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()] == hooks
    assert [set(vars(module)) for module in model.modules()] == names
    assert not any(parameter.grad is not None for parameter in model.parameters())
    after = model.state_dict()
    assert all(after[key].dtype == value.dtype and torch.equal(after[key], value) for key, value in state.items())


@pytest.mark.parametrize(("name", "kernel", "positions"), [("wrn16_1", 9, 32 * 32), ("resnet18", 49, 112 * 112)])
def test_other_classes_and_channels(name: str, kernel: int, positions: int) -> None:
    own = create(f"blockswap_{name}")
    stem, features, classes = own.conv1.out_channels, own.num_features, own.num_classes
    base = count(own)
    assert count(create(f"blockswap_{name}", num_classes=5)) - base == Cost(
        (5 - classes) * (features + 1), (5 - classes) * features
    )
    assert count(create(f"blockswap_{name}", num_classes=0)) - base == Cost(
        -classes * (features + 1), -classes * features
    )
    assert count(create(f"blockswap_{name}", in_chans=1)) - base == Cost(
        -2 * stem * kernel, -2 * stem * kernel * positions
    )


def test_another_size_has_other_macs_and_the_same_parameters() -> None:
    model = create("blockswap_wrn16_1")
    at_32, at_64 = count(model), count(model, (3, 64, 64))
    assert at_64.params == at_32.params
    head = 64 * 10
    assert at_64.macs - head == 4 * (at_32.macs - head)


def test_a_network_of_timm_is_counted_too() -> None:
    assert count(timm.create_model("resnet34")) == count(create("blockswap_resnet34"))


def test_costs_are_added_and_printed() -> None:
    cost = Cost(400_000, 92_240_000)
    assert cost + Cost(1, 2) - cost == Cost(1, 2)
    assert str(cost) == "400,000 parameters, 92.2 M MACs"


# -- amounts and budgets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("400k", 400_000),
        ("400K", 400_000),
        (" 3m ", 3_000_000),
        ("1.2g", 1_200_000_000),
        ("1.6m", 1_600_000),
        ("0.29M", 290_000),
        ("162.202k", 162_202),
        ("60_000_000", 60_000_000),
        ("..400k", (None, 400_000)),
        ("300k..", (300_000, None)),
        ("0.3m .. 400k", (300_000, 400_000)),
        ("400,000", 400_000),
        ("..1,234,567", (None, 1_234_567)),
        ("1,389.4 M", 1_389_400_000),
    ],
)
def test_amounts(text: str, amount: int | tuple[int | None, int | None]) -> None:
    assert parse_amount(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "..",
        "k",
        "-3",
        "400kk",
        "400  k",
        "1e6",
        "1,00",
        "1,0000",
        ",100",
        "1,000_000",
        "1.k",
        "٣",
        "nan",
        "1k..2k..3k",
        "..1k..",
        "a..1k",
        "9\n9",
    ],
)
def test_messages_for_amounts(text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_amount(text)
    assert str(caught.value) == f"{text!r} is no amount; use 400k, 3m, 1.2g, 20%, ..400k or 300k..400k"


def test_a_very_long_amount_is_refused_in_few_words() -> None:
    for text in ("9" * 10**5, "0." + "1" * 10**5, "1k.." + "9" * 10**5):
        with pytest.raises(BudgetError, match=r"^'.{197}…' is no amount; use 400k") as caught:
            parse_amount(text)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("budget", "windows", "text"),
    [
        (Budget(params=400_000), {"params": (390_000, 410_000)}, "params 400,000 ± 2.5%"),
        (Budget(params=1_600_000), {"params": (1_560_000, 1_640_000)}, "params 1,600,000 ± 2.5%"),
        (Budget(macs=60e6, tolerance=0.0025), {"macs": (59_850_000, 60_150_000)}, "macs 60,000,000 ± 0.25%"),
        (Budget(params=811_370, tolerance=0), {"params": (811_370, 811_370)}, "params 811,370 ± 0%"),
        (Budget(params=(300_000, 400_000)), {"params": (300_000, 400_000)}, "params 300,000 to 400,000"),
        (Budget(params=(None, 400_000)), {"params": (0, 400_000)}, "params up to 400,000"),
        (Budget(params=(300_000, None)), {"params": (300_000, math.inf)}, "params from 300,000"),
        (
            Budget(params=100, macs=(5, None), tolerance=0.5),
            {"params": (50, 150), "macs": (5, math.inf)},
            "params 100 ± 50%, macs from 5",
        ),
    ],
)
def test_budgets(budget: Budget, windows: dict[str, tuple[float, float]], text: str) -> None:
    assert budget.windows == windows
    assert str(budget) == text
    inside = {name: (low, high) for name, (low, high) in {"params": (7, 7), "macs": (7, 7), **windows}.items()}
    for name, (low, high) in windows.items():
        cost = {each: int(bounds[0]) for each, bounds in inside.items()}
        assert budget.fits(Cost(**{**cost, name: int(low)}))
        assert not budget.fits(Cost(**{**cost, name: int(low) - 1}))
        top = int(min(high, 10**15))
        assert budget.fits(Cost(**{**cost, name: top}))
        assert budget.fits(Cost(**{**cost, name: top + 1})) == math.isinf(high)


ORDER = "a budget of params runs from a smaller to a larger amount, not from"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "an empty budget; use Budget(params=400_000), or macs=, or latency=, or size="),
        ({"params": (None, None)}, "an empty budget; use Budget(params=400_000), or macs=, or latency=, or size="),
        ({"params": (400_000, 300_000)}, f"{ORDER} 400,000 to 300,000"),
        ({"params": (-1, 5)}, f"{ORDER} -1 to 5"),
        ({"params": -1000}, f"{ORDER} -975.0 to -1,025.0"),
        ({"params": math.nan}, f"{ORDER} nan to nan"),
        ({"macs": (2, 1)}, f"{ORDER.replace('params', 'macs')} 2 to 1"),
        ({"params": 1, "tolerance": 2.5}, "a tolerance is a fraction such as 0.025, not 2.5"),
        ({"params": 1, "tolerance": 1}, "a tolerance is a fraction such as 0.025, not 1"),
        ({"params": 1, "tolerance": -0.1}, "a tolerance is a fraction such as 0.025, not -0.1"),
    ],
)
def test_messages_for_budgets(arguments: dict, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(**arguments)
    assert str(caught.value) == message


def test_the_papers_networks_are_within_their_budgets() -> None:
    for thousands in (811, 556, 404, 289, 217, 162):
        cost = count(create(f"blockswap_wrn40_2_{thousands}k", device="meta"))
        assert Budget(params=1000 * thousands, tolerance=0.002).fits(cost)


def test_one_genome_is_one_cost_however_it_is_written() -> None:
    assert count(create("blockswap_wrn16_1", "S,S/G4,G4/B2,B2")) == count(
        create("blockswap_wrn16_1", Genome("2xS/2xG4/2xB2"))
    )


@pytest.mark.parametrize("amount", [b"400k", (1, 2, 3), (1, "2"), 1j])
def test_a_budget_of_something_else(amount):
    with pytest.raises(BudgetError, match=r"a budget of params is a number, a pair of them or text, not "):
        Budget(params=amount)


def test_amounts_as_text_are_those_of_the_command_line() -> None:
    assert Budget(params="60k", latency="4ms") == Budget(params=60_000, latency=0.004)
    assert Budget(params="..60k", macs="3m..4.5m") == Budget(params=(None, 60_000), macs=(3_000_000, 4_500_000))
    with pytest.raises(BudgetError, match="'60kb' is no amount; use 400k"):
        Budget(params="60kb")


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        (60_000, Budget(params=60_000)),
        (numpy.int64(60_000), Budget(params=60_000)),
        ("60k", Budget(params=60_000)),
        ((None, 60_000), Budget(params=(None, 60_000))),
        ([50_000, 60_000], Budget(params=(50_000, 60_000))),
        ({"params": "60k", "latency": "4ms"}, Budget(params=60_000, latency=0.004)),
        ({"macs": 4e6, "tolerance": 0.1}, Budget(macs=4e6, tolerance=0.1)),
        (Budget(macs=7), Budget(macs=7)),
    ],
)
def test_what_says_a_budget(given: object, budget: Budget) -> None:
    assert Budget.of(given) == budget
    json.dumps(Budget.of(given).windows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("4ms", "'4ms' is a latency; use {'latency': '4ms'}"),
        ({"flops": 3}, "a budget names params, macs, latency or size, not 'flops'"),
        ({}, "an empty budget; use Budget(params=400_000), or macs=, or latency=, or size="),
        (None, "an empty budget; use Budget(params=400_000), or macs=, or latency=, or size="),
    ],
)
def test_what_says_no_budget(given: object, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.of(given)
    assert str(caught.value) == message


def test_a_network_that_does_not_say_its_input_size():
    with pytest.raises(ValueError, match=r"Conv2d does not say its input size; use count\(model, \(3, 224, 224\)\)"):
        count(torch.nn.Conv2d(3, 8, 3))
    assert count(torch.nn.Conv2d(3, 8, 1, bias=False), (3, 4, 4)) == Cost(24, 24 * 16)


@pytest.mark.parametrize("name", ["wrn16_1", "resnet18"])
def test_no_weights_are_drawn_to_be_counted(monkeypatch, name):
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(Layout.named(name))
    model = build(Layout.named(name), device="meta")
    model.init_weights()
    assert sum(each.numel() for each in model.parameters()) == {"wrn16_1": 175_066, "resnet18": 11_689_512}[name]
