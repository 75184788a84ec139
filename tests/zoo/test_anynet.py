"""Networks of the user's own: any layout, image size and number of channels, registered with timm."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import test_contract as contract
import timm
import torch
from PIL import Image
from registered import forget_entry

from blockswap_models import (
    AttentionTransferTask,
    Budget,
    BudgetError,
    Genome,
    GenomeError,
    LatencyError,
    Layout,
    SearchSpace,
    count,
    profile,
    register,
    save_pretrained,
    search,
)
from blockswap_models.cli.main import main
from blockswap_models.data.folders import DataError
from blockswap_models.nets.networks import build
from blockswap_models.searching.probe_images import dataset_minibatch
from blockswap_models.searching.record import RecordError
from blockswap_models.searching.strategies import Planner

# `wrn` in a name has the helpers of the contract make images of 32x32.
FIVE = Layout.custom("own_wrn_five", [1, 2, 2, 1, 1], [16, 24, 32, 40, 48], stem_chs=8, num_classes=100)
ONE = Layout.custom("own_wrn_one", [2], [20])
POSTACT = Layout.custom("own_resnet", (1, 2, 2, 1), (32, 64, 96, 128), preact=False, input_size=(3, 64, 64))
LAYOUTS = (FIVE, ONE, POSTACT)
CASES = (
    ("own_wrn_five", "D/B2G4,S/W4,M6/B4/G8"),
    ("own_wrn_one", "G4,D"),
    ("own_resnet", "D/M6,B2W4/G8,S/W1"),
)
# A ResNet of the zoo has passed these too, and they take long.
SLOW_CHECKS = (contract.test_torchscript, contract.test_fx, contract.test_export_with_a_dynamic_batch)
CHECKS = (
    contract.test_intermediates_are_what_feature_info_says,
    contract.test_intermediates_by_index,
    contract.test_nothing_changes_a_map_in_place,
    contract.test_pruning_leaves_what_the_maps_need,
    contract.test_the_same_seed_gives_the_same_weights,
    contract.test_parameter_groups,
    contract.test_pickle_and_deepcopy,
    contract.test_head,
    contract.test_meta_device,
)


@pytest.fixture(autouse=True, scope="module")
def registered():
    for layout in LAYOUTS:
        register(layout)
    yield
    for layout in LAYOUTS:
        forget_entry(layout.name)


@pytest.fixture
def forget():
    """Names that are registered in a test only, since the zoo's tests list what starts with `blockswap_`."""
    names: list[str] = []
    yield names
    for name in names:
        forget_entry(name)


def test_any_number_of_stages(forget):
    forget.append("own_wrn_eight")
    register(Layout.custom("own_wrn_eight", [1] * 8, [8] * 8, stem_chs=8))
    model = timm.create_model("own_wrn_eight").eval()
    x = torch.randn(2, 3, 32, 32)
    assert [each.shape[-1] for each in model.forward_intermediates(x)[1]] == [32, 32, 16, 8, 4, 2, 1, 1, 1]
    assert [each["module"] for each in model.feature_info] == ["conv1", *(f"stages.{stage}" for stage in range(8))]
    assert torch.equal(torch.jit.script(model)(x), model(x))
    maps = timm.create_model("own_wrn_eight", features_only=True)(x)
    assert len(maps) == 9


# Layouts


def test_layouts_of_the_standard_networks():
    assert Layout.named("resnet10").depths == (1, 1, 1, 1)
    assert Layout.named("wrn22_4") == Layout.custom("blockswap_wrn22_4", [3] * 3, np.array([64, 128, 256]))
    assert Layout.custom("a", (3, 4, 6, 3), (64, 128, 256, 512), preact=False) == replace(Layout.resnet(34), name="a")
    assert sum(p.numel() for p in build(Layout.resnet(10), device="meta").parameters()) == 5_418_792


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Layout.custom("net", (2, 2), (16, 32, 64)),
            "net has depths (2, 2) and channels (16, 32, 64); use as many of each, one a stage",
        ),
        (lambda: Layout.custom("net", (2, 0), (16, 32)), "the depths of net: whole numbers from 1 up, not (2, 0)"),
        (
            lambda: Layout.custom("net", (2, 2), (16, 8.5)),
            "the channels of net: whole numbers from 1 up, not (16, 8.5)",
        ),
        (lambda: Layout.custom("net", 3, (16,)), "the depths of net: whole numbers from 1 up, not 3"),
        (lambda: Layout.custom("net", (), ()), "the depths of net: whole numbers from 1 up, not ()"),
        (lambda: Layout.custom("net", [1], [8], stem_chs=-1), "the stem_chs of net: whole numbers from 1 up, not -1"),
        (
            lambda: Layout.custom("net", [1], [8], num_classes="ten"),
            "the num_classes of net: whole numbers from 1 up, not 'ten'",
        ),
        (
            lambda: Layout.custom("net", [1], [8], input_size=(32, 32)),
            "the input_size of net is (channels, height, width), not (32, 32)",
        ),
        (
            lambda: Layout.custom("my.net", [1], [8]),
            "a network's name is letters, digits and '_', such as 'my_net', not 'my.net'",
        ),
        (
            lambda: Layout.custom("net", [1] * 3, [8] * 3, preact=False),
            "a post-activation network has 4 stages after a stem of 64 channels, as timm's ResNet; net has 3 after 64; "
            "use preact=True for other numbers",
        ),
        (
            lambda: Layout.resnet(50),
            "there is no ResNet-50 of basic blocks; use resnet10, resnet18 or resnet34, or Layout.custom in Python",
        ),
        (lambda: FIVE.fit("S/S"), "own_wrn_five has stages of 1, 2, 2, 1 and 1 blocks; this genome has 1 and 1"),
        (
            lambda: FIVE.fit("S/2xS/2xS/G16/S"),
            "stage 4, block 1 'G16': its 3x3 works on 40 channels, which do not split into 16 groups",
        ),
        (
            lambda: SearchSpace(FIVE, ["G7"]),
            "stage 1, block 1 of own_wrn_five: none of G7 divides its 8 to 16 channels",
        ),
        (lambda: SearchSpace(FIVE, in_chans=0), "in_chans is at least 1, not 0"),
        (lambda: SearchSpace(FIVE, image_size=(32, -1)), "image_size is at least 1, not -1"),
        (lambda: SearchSpace(FIVE, num_classes=0), "num_classes is at least 1, not 0"),
    ],
)
def test_messages(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


# What timm asks of a model


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_contract(check, case):
    check(case)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case[0])
@pytest.mark.parametrize("check", SLOW_CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_contract_of_graphs(check, case):
    check(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_contract_with_arguments(case, tmp_path):
    contract.test_classes_channels_and_pooling(case, contract.ARGUMENTS[0])
    contract.test_a_folder_gives_the_network_back(case, {"num_classes": 4, "in_chans": 1}, save_pretrained, tmp_path)
    for feature_cls in ("list", "fx") if case[0] != "own_wrn_one" else ():
        contract.test_features_only(case, feature_cls)


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=lambda case: case[0])
def test_contract_of_training(case):
    contract.test_checkpointing_gives_the_same_gradients((case[0], case[1].replace("M6", "S").replace("D", "S")))


def test_contract_of_compilation():
    contract.test_compile_without_a_graph_break(("own_wrn_five", "S/S,S/S,S/S/S"), training=False)


# Registration


def test_an_own_entry_is_one_of_timms():
    assert set(timm.list_models(module="register")) >= {layout.name for layout in LAYOUTS}
    assert "own_wrn_five" not in timm.list_models("blockswap_*")
    assert not timm.is_model_pretrained("own_resnet")
    assert Layout.named("own_resnet") == POSTACT
    cfg = timm.get_pretrained_cfg("own_wrn_five")
    assert (cfg.input_size, cfg.num_classes, cfg.pool_size) == ((3, 32, 32), 100, (2, 2))
    assert (cfg.license, cfg.paper_ids, cfg.mean) == (None, None, (0.4914, 0.4822, 0.4465))
    assert timm.get_pretrained_cfg("own_resnet").pool_size == (2, 2)
    model = timm.create_model("own_wrn_five")
    assert model.genome == FIVE.original
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 100)
    with pytest.raises(RuntimeError, match="no pretrained weights for"):
        timm.create_model("own_wrn_five", pretrained=True)
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model("own_wrn_five", not_an_argument=1)


def test_an_own_entry_has_its_genome_cfg_and_weights(forget, tmp_path):
    layout = Layout.custom("own_student", [1, 1], [16, 32], input_size=(1, 28, 27), num_classes=3)
    register(layout, "G4/B2", mean=(0.2,), std=(0.3,), crop_pct=0.9)
    forget.append("own_student")
    model = timm.create_model("own_student").eval()
    assert (model.genome, model.in_chans, model.num_classes) == ("G4/B2", 1, 3)
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["crop_pct"]) == ((0.2,), 0.9)
    assert tuple(model.pretrained_cfg["pool_size"]) == tuple(
        model.forward_features(torch.zeros(1, 1, 28, 27)).shape[2:]
    )
    assert count(model) == SearchSpace("own_student").cost("G4/B2")
    save_pretrained(model, tmp_path)
    with_weights = replace(layout, name="own_student_weights")
    register(with_weights, "G4/B2", file=str(tmp_path / "model.safetensors"))
    forget.append("own_student_weights")
    assert timm.get_pretrained_cfg("own_student_weights").mean == (0.4734,)
    again = timm.create_model("own_student_weights", pretrained=True).eval()
    assert torch.equal(again(torch.ones(1, 1, 28, 27)), model(torch.ones(1, 1, 28, 27)))
    with pytest.raises(GenomeError, match="pretrained weights for the genome 'G4/B2' only"):
        timm.create_model("own_student_weights", pretrained=True, genome="S/S")


def test_a_name_is_registered_once():
    register(FIVE)  # a cell of a notebook that runs twice
    register("wrn40_2")  # is there already
    taken = "is taken by another network; give the layout another one"
    for layout, genome in [
        (FIVE, "S/2xS/2xS/S/W1"),
        (replace(FIVE, num_classes=3), None),
        (replace(FIVE, name="resnet50"), None),
        (replace(FIVE, name="wrn28_10"), None),
        (replace(FIVE, name="blockswap_wrn40_2_404k"), None),
        (Layout.named("wrn40_2"), "6xS/6xG4/6xS"),
    ]:
        with pytest.raises(ValueError, match=f"^the name '{layout.name}' {taken}$"):
            register(layout, genome)
    assert timm.create_model("resnet50", device="meta").num_features == 2048
    for mistake, message in [
        ({"colour": 1}, "'colour'; it takes what"),
        ({"num_classes": 3}, "'num_classes': it follows from the layout"),
    ]:
        with pytest.raises(TypeError, match=message):
            register(replace(FIVE, name="own_mistake"), **mistake)
    with pytest.raises(ValueError, match=r"images of 3 channels have as many numbers in mean, not \(0\.5,\)"):
        register(replace(FIVE, name="own_mistake"), mean=(0.5,))
    assert not timm.is_model("own_mistake")


def test_a_network_of_the_users_own_from_end_to_end(forget, tmp_path):
    layout = Layout.custom("own_tiny", (1, 2, 2), (16, 32, 64), input_size=(4, 64, 64), num_classes=200)
    register(layout)
    forget.append("own_tiny")
    teacher = timm.create_model("own_tiny")
    space = SearchSpace("own_tiny", ["S", "G4", "W1", "B2"])
    result = search(space, Budget(params=(None, 60_000)), samples=3, batch_size=4, refine=1)
    student = timm.create_model("own_tiny", genome=result.best.genome)
    assert count(student) == result.best.cost
    assert result.best.cost.params <= 60_000
    images, labels = torch.randn(2, 4, 64, 64), torch.tensor([7, 199])
    task = AttentionTransferTask(student, teacher, verbose=False).train()
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.01)
    before = student.conv1.weight.clone()
    task(images, labels)["loss"].backward()
    optimizer.step()
    assert not torch.equal(student.conv1.weight, before)
    save_pretrained(student, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "own_tiny"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(images), student.eval()(images))


def test_a_folder_wants_its_network_registered(forget, tmp_path):
    layout = replace(ONE, name="own_saved")
    for _ in range(2):
        register(layout)
        forget.append("own_saved")
        if not list(tmp_path.iterdir()):
            save_pretrained(timm.create_model("own_saved", genome="G4,D"), tmp_path)
        assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).genome == "G4,D"
        # Another program.
        forget_entry(forget.pop())
        with pytest.raises(RuntimeError, match="Unknown model"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_records_and_tables_are_of_one_layout(tmp_path):
    here, other = ONE, replace(ONE, channels=(24,))
    record = tmp_path / "record.jsonl"
    small = {"samples": 2, "batch_size": 2, "refine": 0, "record": record}
    space = SearchSpace(here, ["S", "W1", "B2"])
    found = search(space, None, **small)
    assert search(space, None, **small, resume=True).best == found.best
    with pytest.raises(RecordError, match="is the record of another search: layout"):
        search(SearchSpace(other, ["S", "W1", "B2"]), None, **small, resume=True)
    table = profile(SearchSpace(here, ["S"]), rounds=1)
    with pytest.raises(LatencyError, match="not of another own_wrn_one; measure"):
        SearchSpace(other, ["S"], latency=table)


# Costs at other sizes


@pytest.mark.parametrize(
    ("layout", "kwargs"),
    [
        ("wrn16_1", {"num_classes": 100}),
        ("wrn16_2", {"num_classes": 200, "image_size": 64, "in_chans": 4}),
        ("wrn10_3", {"image_size": (33, 50), "in_chans": 1}),
        ("resnet10", {"num_classes": 200, "image_size": 64}),
        ("resnet18", {"image_size": 75, "in_chans": 1}),
        (FIVE, {"image_size": 47}),
        (POSTACT, {"image_size": (50, 97), "in_chans": 4}),
    ],
    ids=str,
)
def test_costs_are_those_of_the_built_network(layout, kwargs):
    space = SearchSpace(layout, ["S", "G4", "W1", "B2", "D"], **kwargs)
    for genome in space.sample(2, seed=1):
        assert space.cost(genome) == count(space.build(genome, device="meta"), space.input_size)


ODD = SearchSpace(Layout.custom("own_odd", [2, 2], [12, 24], input_size=(3, 7, 9)), ["S", "G2", "W1", "B2"])


def test_macs_of_many_different_numbers(monkeypatch):
    monkeypatch.setattr("blockswap_models.searching.cost_table._LONGEST", 40)
    monkeypatch.setattr("blockswap_models.searching.cost_table._ROUNDED", 50)
    everything = ODD.sample(1000)
    assert len(everything) == ODD.count() == 4**4
    totals = sorted(ODD.cost(genome).macs for genome in everything)
    for low, high in [(None, totals[60]), (totals[100], None), (totals[80], totals[150]), (totals[7], totals[7])]:
        budget = Budget(macs=(low, high))
        window = [genome for genome in everything if budget.fits(ODD.cost(genome))]
        table = ODD.cost_table("macs", budget.windows["macs"])
        assert not table.exact
        assert table.count() >= len(window)
        assert set(ODD.sample(1000, budget)) == set(window)
        assert ODD.sample(5, budget, seed=3) == ODD.sample(9, budget, seed=3)[:5]
        assert ODD.count(budget) == len(window)
        # All are listed, so that the estimate is no estimate.
        assert ODD.estimate(budget) == (len(window), len(window))
        planned = Planner(ODD, budget).best(np.random.default_rng(0).random(16))
        assert planned is None or planned in window
    with pytest.raises(BudgetError, match=r"none of .* genomes that come near its macs do"):
        ODD.sample(3, Budget(macs=(totals[7] + 1, totals[7] + 1)))
    monkeypatch.setattr("blockswap_models.searching.space.LONGEST_OF_COUNT", 40)
    with pytest.raises(BudgetError, match="macs of own_odd at 3x7x9 are too many different numbers to count genomes"):
        ODD.count(Budget(macs=(None, totals[60])))


def test_a_resnet_at_a_size_that_strides_do_not_divide():
    space, budget = SearchSpace("resnet18", "S G4 W1 B2".split(), image_size=225), Budget(macs=600_000_000)
    assert not space.cost_table("macs", budget.windows["macs"]).exact
    genomes = space.sample(50, budget)
    assert len(set(genomes)) == 50
    assert all(budget.fits(space.cost(genome)) for genome in genomes)


# The command


def run(capsys, *arguments):
    status = main([str(each) for each in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_says_how_to_build_any_wrn(capsys, tmp_path, forget):
    search_it = "search wrn10_1 --params 40k --samples 2 --refine 0 --batch-size 2 --workers 1".split()
    sizes = ["--num-classes", 100, "--in-chans", 4, "--image-size", 16]
    status, out, _ = run(capsys, *search_it, *sizes, "--out", tmp_path / "record.jsonl")
    assert status == 0
    (line,) = [each for each in out.splitlines() if each.startswith("build it: ")]
    assert line.startswith("build it: blockswap_models.register('blockswap_wrn10_1'); timm.create_model(")
    assert line.endswith(", num_classes=100, in_chans=4)")
    assert line in run(capsys, "show", tmp_path / "record.jsonl")[1].splitlines()
    forget.append("blockswap_wrn10_1")
    first, second = line.removeprefix("build it: ").split("; ")
    register(eval(first.removeprefix("blockswap_models.register")))
    assert eval(second)(torch.randn(1, 4, 16, 16)).shape == (1, 100)


def test_the_command_knows_any_wrn(forget):
    from blockswap_models.zoo.find import find_model

    forget.append("blockswap_wrn10_2")
    assert find_model("wrn10_2") == "blockswap_wrn10_2"
    assert timm.create_model("blockswap_wrn10_2", genome="W1/G4/B2").num_features == 128
    # The name of a student, which is not there.
    with pytest.raises(ValueError, match="unknown model 'wrn10_2_5k'"):
        find_model("wrn10_2_5k")


def test_the_command_counts_at_a_size(capsys):
    _, out, _ = run(capsys, "count", "wrn16_1", "--image-size", 64, "--in-chans", 1, "--json")
    assert json.loads(out)["macs"] == count(build(Layout.named("wrn16_1"), in_chans=1), (1, 64, 64)).macs
    status, _, err = run(capsys, "space", "wrn16_1", "--image-size", 0)
    assert (status, err) == (2, "blockswap space: --image-size is at least 1, not 0\n")


@pytest.fixture
def folder(tmp_path):
    for label in ("bird", "cat"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 256, (64, 64, 4), dtype=np.uint8)
            Image.fromarray(noise, "RGBA").save(tmp_path / "images" / label / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_channels(folder, channels, capsys):
    space = SearchSpace("wrn16_1", ["S", "W1"], num_classes=2, in_chans=channels, image_size=64)
    minibatch = dataset_minibatch(space, str(folder), batch_size=4)
    assert minibatch.images.shape == (4, channels, 64, 64)
    assert 0.5 < minibatch.images.std() < 2
    if channels == 4:
        opacity = minibatch.images[:, 3]
        assert not torch.equal(opacity, torch.full_like(opacity, opacity.max()))
    arguments = f"--types S,W1 --macs ..90m --num-classes 2 --in-chans {channels} --image-size 64 --samples 1".split()
    arguments += f"--refine 0 --batch-size 4 --workers 1 --data {folder} --out {folder.parent / 'r.jsonl'}".split()
    status, out, _ = run(capsys, "search", "wrn16_1", *arguments, "--json")
    best = json.loads(out)["best"]
    assert status == 0
    assert best["macs"] == count(space.build(best["genome"]), (channels, 64, 64)).macs


def test_images_of_other_channels_come_as_tensors(folder):
    with pytest.raises(DataError, match=r"images in files have 1, 3 or 4 channels, but the network takes 2; in Python"):
        dataset_minibatch(SearchSpace("wrn16_1", ["S"], in_chans=2), str(folder), batch_size=4)
    space = SearchSpace(ONE, ["S", "W1"], in_chans=2)
    data = torch.randn(2, 2, 32, 32), torch.tensor([0, 1])
    assert search(space, None, samples=1, refine=0, data=data).best.genome in (Genome("2xS"), *space.sample(9))


def test_images_of_an_own_entry_are_normalised_by_its_cfg(folder, forget):
    layout = Layout.custom("own_normal", [1], [8], input_size=(3, 64, 64))
    with_cifar10 = dataset_minibatch(SearchSpace(layout, ["S"]), str(folder), batch_size=4)
    register(layout, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    forget.append("own_normal")
    plain = dataset_minibatch(SearchSpace("own_normal", ["S"]), str(folder), batch_size=4)
    assert 0 <= plain.images.min() < plain.images.max() <= 1
    mean, std = (
        torch.tensor(contract.timm.get_pretrained_cfg("blockswap_wrn40_2").to_dict()[key]) for key in ("mean", "std")
    )
    assert torch.allclose((plain.images - mean.view(3, 1, 1)) / std.view(3, 1, 1), with_cifar10.images, atol=1e-5)
