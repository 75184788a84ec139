"""The networks that benchmarks/paper/table2.py and table6.py compare, and how these train them."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.lib.comparison import main
from benchmarks.lib.images import cifar_images, noise_images
from benchmarks.lib.pruning import l1_prune, nonzero_parameters, snip
from benchmarks.lib.trained import Trainer, facts_of, records
from benchmarks.paper import table2, table6
from benchmarks.paper.condensenet import CondenseNet, CondensingTask, LearnedGroupConv, condensenet_86
from blockswap_models import Budget, SearchSpace, count
from blockswap_models.data.folders import DataError
from blockswap_models.training.evaluate import load_weights
from blockswap_models.training.loop import make_optimizer
from blockswap_models.training.recipes import Recipe
from blockswap_models.training.run_folder import TrainingError

TINY = Recipe(epochs=2, batch_size=8, lr=0.05)
SMALL = "blockswap_wrn16_1"


def rounds_to(number, thousands):
    """Whether the paper prints a number so; 404,250 it prints as 404.2."""
    return abs(number - 1_000 * float(thousands)) <= 50


def small(genome="2xW1/2xB2W1/2xW1"):
    return timm.create_model(SMALL, genome=genome)


def minibatch(number=4):
    images, labels = noise_images(number).train
    return images.float() / 255, labels


def shape_of(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


# -- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", table2.networks(), ids=lambda network: network.name)
def test_table_2_has_the_counts_of_the_paper(network):
    facts = network.counted()
    if not network.note:
        assert rounds_to(facts["nonzero"], network.paper.params)
        # The paper counts BN too.
        assert network.paper.macs == "-" or 0 < float(network.paper.macs) - facts["macs"] / 1e6 < 0.75


def test_counts_that_differ_from_the_papers():
    facts = {network.name: network.counted() for network in table2.networks() if network.note}
    assert {name: each["params"] for name, each in facts.items()} == {
        "mbconv6": 1_500_986,
        "darts": 300_122,
        "condensenet86": 520_202,
    }
    assert rounds_to(facts["condensenet86"]["params"], "520.2")


def test_bn_makes_the_macs_of_the_paper_for_standard_networks_and_more_for_condensenet():
    condensed = condensenet_86()
    condensed.condense_to(3)
    papers = {network.name: network.paper.macs for network in table2.networks()}
    for name in ("wrn40_2", "wrn16_2", "wrn40_1", "wrn16_1"):
        assert f"{with_bn(timm.create_model(f'blockswap_{name}')):.1f}" == papers[name]
    assert f"{with_bn(condensed.converted()):.1f}" == "65.5"


def with_bn(model):
    """Millions of MACs, with one operation for each output of BN."""
    outputs = 0

    def hook(module, args, output):
        nonlocal outputs
        outputs += output.numel()

    macs = count(model, (3, 32, 32)).macs
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(hook)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return (macs + outputs) / 1e6


def test_table_6_has_the_counts_of_the_paper_but_for_random_genomes():
    space = SearchSpace("wrn40_2")
    for network in table6.networks():
        facts = network.counted()
        if network.name.startswith("random"):
            budget = Budget(params=count(timm.create_model(f"blockswap_wrn40_2_{network.name[-4:]}")).params)
            assert budget.fits(space.cost(facts["genome"]))
        else:
            assert rounds_to(facts["nonzero"], network.paper.params)


# -- pruning ---------------------------------------------------------------------------------------------------------


def test_snip_keeps_the_budget_and_the_highest_sensitivities():
    torch.manual_seed(0)
    model, (images, labels) = small("2xS/2xS/2xS"), minibatch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {
        name: module.weight for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    F.cross_entropy(model(images), labels).backward()
    sensitivity = {name: (weight * weight.grad).abs().detach() for name, weight in weights.items()}
    model.load_state_dict(before)

    budget = 20_000
    snip(model, images, labels, budget)
    assert nonzero_parameters(model) == budget
    masks = {name: model.get_submodule(name).weight_mask.bool() for name in weights}
    lowest_kept = min(sensitivity[name][mask].min() for name, mask in masks.items() if mask.any())
    highest_pruned = max(sensitivity[name][~mask].max() for name, mask in masks.items() if not mask.all())
    assert lowest_kept >= highest_pruned
    # BN has seen nothing yet.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if "running" in name)


@pytest.mark.parametrize("budget", [100, 10**9])
def test_snip_says_which_budgets_cannot_be_met(budget):
    with pytest.raises(ValueError, match=f"SNIP keeps 939 to 175,066 parameters of this network, not {budget:,}"):
        snip(small("2xS/2xS/2xS"), *minibatch(2), budget)


def test_l1_keeps_the_largest_weights_of_convolutions():
    torch.manual_seed(0)
    model = small()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    weights = torch.cat([conv.weight.detach().flatten() for conv in convs])
    l1_prune(model, 0.3)
    masks = torch.cat([conv.weight_mask.flatten() for conv in convs]).bool()
    assert masks.sum() == round(0.3 * len(weights)) == nonzero_parameters(model, nn.Conv2d)
    assert weights[masks].abs().min() >= weights[~masks].abs().max()
    assert not hasattr(model.fc, "weight_mask")
    with pytest.raises(ValueError, match="the share of weights that stay is above 0 and at most 1, not 0"):
        l1_prune(model, 0)


def test_masks_hold_through_training():
    torch.manual_seed(0)
    model, (images, labels) = small(), minibatch(8)
    snip(model, images, labels, 6_000)
    optimizer = make_optimizer(model, TINY)
    masks = {name: tensor.clone() for name, tensor in model.named_buffers() if name.endswith("_mask")}
    first = model.conv1.weight.clone()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model(images)
    for name, mask in masks.items():
        conv = model.get_submodule(name.rpartition(".")[0])
        assert torch.equal(conv.weight_mask, mask)
        assert not conv.weight[mask == 0].any()
    assert nonzero_parameters(model) == 6_000
    assert not torch.equal(model.conv1.weight, first)


# -- CondenseNet -----------------------------------------------------------------------------------------------------


def test_condensing_prunes_the_inputs_with_the_smallest_weights_of_each_group():
    torch.manual_seed(0)
    layer = LearnedGroupConv(16, 8)
    for stage in range(1, 4):
        norms = layer.conv.weight.detach().view(4, 2, 16).abs().sum(1)
        layer.condense()
        assert layer.stages_done == stage
        for group, mask in zip(norms, layer.mask, strict=True):
            assert mask.sum() == 16 - 4 * stage
            assert group[mask].min() >= group[~mask].max()
    effective = layer._by_group()
    assert (effective == 0).sum() == 3 * effective.numel() // 4


def test_what_is_pruned_stays_pruned():
    layer = LearnedGroupConv(16, 8)
    layer.condense()
    pruned = ~layer.mask
    with torch.no_grad():
        layer.conv.weight.mul_(torch.where(pruned[:, None], 100.0, 1.0).expand(4, 2, 16).reshape(8, 16, 1, 1))
    layer.condense()
    assert not layer.mask[pruned].any()
    assert layer.stages_done == 2


def tiny_condensenet():
    return CondenseNet((2, 2, 2), (8, 8, 8))


def test_the_converted_network_has_the_same_outputs():
    torch.manual_seed(0)
    model, (images, labels) = tiny_condensenet(), minibatch(8)
    task = CondensingTask(model, verbose=False)
    at_step, optimizer = model.schedule(), make_optimizer(model, TINY)
    seen = []
    for step in range(8):
        at_step(step / 8)
        seen.append(model.learned()[0].stages_done)
        optimizer.zero_grad()
        task(images, labels)["loss"].backward()
        optimizer.step()
    # The stages end after 1/6, 2/6 and 3/6 of the training.
    assert seen == [0, 0, 1, 2, 3, 3, 3, 3]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.converted()(images), model(images), rtol=0, atol=1e-5)


def test_a_network_that_is_not_condensed_is_not_converted():
    with pytest.raises(ValueError, match="0 of 3 stages of condensation are done; train to the end first"):
        tiny_condensenet().converted()
    with pytest.raises(ValueError, match="18 to 8 channels do not divide into 4 groups and 4 shares of inputs"):
        LearnedGroupConv(18, 8)


def test_group_lasso_is_the_sum_of_the_norms():
    torch.manual_seed(0)
    layer = LearnedGroupConv(16, 8)
    layer.condense()
    expected = sum(layer._by_group()[group, :, index].norm() for group in range(4) for index in range(16))
    torch.testing.assert_close(layer.lasso(), expected, rtol=1e-4, atol=1e-4)
    layer.lasso().backward()
    assert layer.conv.weight.grad.isfinite().all()


def test_born_again_networks_learn_from_labels_and_probabilities():
    torch.manual_seed(0)
    model, teacher, (images, labels) = tiny_condensenet(), tiny_condensenet(), minibatch()
    task = CondensingTask(model, teacher, lasso=0.0, verbose=False).train()
    assert model.training
    assert not teacher.training
    result = task(images, labels)
    with torch.no_grad():
        probabilities = teacher(images).softmax(1)
    by_hand = -(probabilities * result["output"].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(result["born_again_loss"], by_hand)
    torch.testing.assert_close(result["loss"], by_hand + F.cross_entropy(result["output"], labels))
    assert {id(each) for each in task.get_trainable_module().parameters()} == {id(each) for each in model.parameters()}


# -- runs ------------------------------------------------------------------------------------------------------------


def fit(trainer, task=None, **kwargs):
    model = small()
    return trainer.fit("tiny", 0, facts_of(model), task or (lambda: trainer.classification(small())), **kwargs)


def test_a_finished_run_is_a_record_and_is_not_trained_again(tmp_path):
    trainer = Trainer(noise_images(24), tmp_path, TINY, source="white noise")
    summary = fit(trainer)
    folder = trainer.folder("tiny", 0)
    (record,) = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    expected = {"name": "tiny", "genome": "2xW1/2xB2W1/2xW1", "epochs": 2, "seed": 0, "teacher": None}
    assert expected.items() <= record.items()
    assert record["params"] == record["nonzero"] == count(small()).params
    assert {"macs", "top1_error", "top5_error", "seconds", "versions", "hardware", "train_images"} <= record.keys()
    (folder / "checkpoint.pth").unlink()
    assert fit(trainer, lambda: pytest.fail("it is trained again")) == summary
    with pytest.raises(TrainingError, match=r"has lr 0\.05, not 0\.025; use another --out"):
        fit(trainer, lr_factor=0.5)
    with pytest.raises(TrainingError, match=r"has image_size None, not 16; use another --out"):
        fit(Trainer(noise_images(24), tmp_path, TINY, source="white noise", image_size=16))


def test_a_run_of_resized_images_is_not_one_of_the_others(tmp_path):
    resized = Trainer(noise_images(8), tmp_path, TINY, image_size=16)
    fit(resized)
    with pytest.raises(TrainingError, match=r"has image_size 16, not None; use another --out"):
        fit(Trainer(noise_images(8), tmp_path, TINY))


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    def stopping(task):
        def at_step(share):
            if share > 0.5:
                raise KeyboardInterrupt

        return at_step

    whole, parts = (Trainer(noise_images(24), tmp_path / name, TINY) for name in ("whole", "parts"))

    def task(trainer):
        model = small()
        snip(model, *trainer.minibatch(0), 6_000)
        return trainer.classification(model)

    fit(whole, lambda: task(whole))
    with pytest.raises(KeyboardInterrupt):
        fit(parts, lambda: task(parts), at_step=stopping)
    assert not records(tmp_path / "parts")
    fit(parts, lambda: task(parts))
    one, other = (trainer.weights("tiny", 0).read_bytes() for trainer in (whole, parts))
    assert one == other


def test_a_trained_condensenet_is_condensed_and_teaches_the_next(tmp_path):
    trainer = Trainer(noise_images(8), tmp_path, Recipe(epochs=1, batch_size=4, lr=0.01))
    facts = {"genome": None, "params": 0, "macs": 0, "nonzero": 0}

    def generation(name, first=None):
        options = {"at_step": lambda task: task.model.schedule(), "teacher": None if first is None else "first"}
        trainer.fit(name, 0, facts, lambda: CondensingTask(tiny_condensenet(), first, verbose=False), **options)
        model = tiny_condensenet()
        load_weights(model, trainer.weights(name, 0))
        return model

    second = generation("second", generation("first"))
    assert {layer.stages_done for layer in second.learned()} == {3}
    second.converted()


def test_a_student_names_its_teacher(tmp_path):
    torch.manual_seed(0)
    teacher = timm.create_model("blockswap_wrn40_2")
    torch.save(teacher.state_dict(), tmp_path / "teacher0.pth")
    path = str(tmp_path / "teacher{seed}.pth")
    recipe = Recipe(epochs=1, batch_size=8)
    trainer = Trainer(noise_images(8), tmp_path, recipe, teacher_checkpoint=path)
    assert trainer.teacher_digest(0).startswith("wrn40_2, sha256 ")
    loaded = trainer.teacher(0).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in teacher.state_dict().items())
    with pytest.raises(TrainingError, match=r"no teacher's weights '.*teacher1\.pth'"):
        trainer.teacher_digest(1)


def test_what_is_missing_or_unknown_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    networks = table2.networks()[:2]
    for arguments, message in {
        ("--train", "--out", str(tmp_path)): "training needs the folder of CIFAR-10; use --data-dir",
        ("--rows", "wrn"): "no row 'wrn'; use wrn40_2, wrn16_2 or all (--rows)",
    }.items():
        monkeypatch.setattr("sys.argv", ["table2.py", *arguments])
        with pytest.raises(SystemExit, match="2"):
            main("", networks, (), "")
        assert capsys.readouterr().err == f"table2.py: {message}\n"


@pytest.mark.data
def test_a_part_of_cifar_keeps_its_shares(cifar_dir):
    images = cifar_images(cifar_dir, 100)
    assert (len(images.train[1]), len(images.test[1])) == (100, 20)
    with pytest.raises(DataError, match=r"use 1 to 50000 \(--images\)"):
        cifar_images(cifar_dir, 60_000)
