"""Fine-tuning: parts that keep their weights, and learning rates that differ by layer."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
from test_train import TINY, few_images, loaders, run
from timm.task import ClassificationTask

import blockswap_models  # noqa: F401  # registers the zoo
from blockswap_models import save_pretrained
from blockswap_models.training.freezing import freeze
from blockswap_models.training.loop import make_optimizer, train
from blockswap_models.training.recipes import RECIPES
from blockswap_models.training.run_folder import TrainingError


def network(**arguments):
    torch.manual_seed(0)
    return timm.create_model("blockswap_wrn16_1", genome="2xW1/2xB2W1/2xW1", **arguments)


@pytest.mark.parametrize(
    ("name", "parts", "prefixes"),
    [
        ("blockswap_wrn16_1", "0", ("conv1.",)),
        ("blockswap_wrn16_1", 2, ("conv1.", "stages.0.", "stages.1.")),
        # The last BN is of the last stage.
        ("blockswap_wrn16_1", "3", ("conv1.", "stages.", "bn.")),
        ("blockswap_wrn16_1", "conv1, stages.1", ("conv1.", "stages.1.")),
        ("blockswap_resnet18", "1", ("conv1.", "bn1.", "layer1.")),
        ("resnet10t", "1", ("conv1.", "bn1.", "layer1.")),
    ],
)
def test_parts_are_stages_or_names(name, parts, prefixes):
    model = timm.create_model(name, device="meta")
    frozen = freeze(model, parts)
    assert set(frozen) == {each for each, _ in model.named_parameters() if each.startswith(prefixes)}
    assert {each for each, parameter in model.named_parameters() if not parameter.requires_grad} == set(frozen)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("4", "WideResNet has 3 stages; freeze at most that many, not 4"),
        ("stage1", "WideResNet has no parameters in 'stage1' to freeze; its parts are conv1, stages, bn and fc"),
        ("conv1,stages,bn,fc", "freeze 'conv1,stages,bn,fc' leaves nothing to train; freeze less"),
    ],
)
def test_parts_that_are_not_there(parts, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        freeze(network(), parts)


def test_what_is_frozen_stays_to_the_bit(tmp_path):
    model = network()
    before = copy.deepcopy(model.state_dict())
    recipe = replace(TINY, epochs=1, freeze="1", layer_decay=0.5)
    train(ClassificationTask(model), *loaders(recipe=recipe), recipe, tmp_path, progress=False)
    for name, value in model.state_dict().items():
        frozen = name.startswith(("conv1.", "stages.0."))
        assert torch.equal(value, before[name]) == frozen, name
    # The statistics and counts of BN too; the others have moved.
    assert any("running_mean" in name for name in before if name.startswith("stages.0."))


def test_what_ddp_waits_for_is_not_frozen_after_it(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        task = ClassificationTask(network()).prepare_distributed()
        recipe = replace(TINY, epochs=1, freeze="1")
        with pytest.raises(TrainingError, match=r"use freeze\(student, '1'\) before prepare_distributed\(\)$"):
            train(task, *loaders(recipe=recipe), recipe, tmp_path / "run", progress=False)
    finally:
        torch.distributed.destroy_process_group()
    assert not (tmp_path / "run").exists()


def test_learning_rates_fall_from_block_to_block():
    model = network()
    freeze(model, "conv1")
    optimizer = make_optimizer(model, replace(RECIPES["finetune"], layer_decay=0.5))
    scales = {}
    for group in optimizer.param_groups:
        for name, parameter in model.named_parameters():
            if any(parameter is each for each in group["params"]):
                scales[name] = group["lr_scale"]
                assert group["weight_decay"] == (1e-4 if parameter.ndim > 1 else 0)
    # The head is 1, the last block and the BN after it 1/2, and so on; the stem is frozen.
    for name, scale in scales.items():
        if name.startswith("stages."):
            stage, block = map(int, name.split(".")[1:3])
            assert scale == 0.5 ** (6 - 2 * stage - block), name
    assert (scales["fc.weight"], scales["bn.weight"]) == (1, 0.5)
    assert scales.keys() == {name for name, _ in model.named_parameters()} - {"conv1.weight"}
    # All decay where the recipe says so.
    optimizer = make_optimizer(model, replace(RECIPES["finetune"], decay_norm=True))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}


def test_a_step_takes_the_rate_of_its_layer(tmp_path, monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def spy(self, *arguments):
        seen.append({group["lr_scale"]: group["lr"] for group in self.param_groups})
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    recipe = replace(TINY, epochs=1, layer_decay=0.5)
    train(ClassificationTask(network()), *loaders(recipe=recipe), recipe, tmp_path, progress=False)
    assert seen[0] == {scale: pytest.approx(0.05 * scale) for scale in (1, *(0.5**n for n in range(1, 8)))}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"layer_decay": 1.5}, "layer_decay is above 0 and at most 1, not 1.5"),
        ({"freeze": "1", "average_epochs": 1}, "average_epochs is measured with new BN statistics, which freeze keeps"),
    ],
)
def test_recipes_must_make_sense(fault, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["finetune"], **fault)


def test_other_classes_from_the_command_line(capsys, tmp_path, monkeypatch):
    few_images(monkeypatch)
    start = network(num_classes=7)
    save_pretrained(start, tmp_path / "start")
    weights = tmp_path / "start" / "model.safetensors"
    command = ["train", "wrn16_1", "--genome", "2xW1/2xB2W1/2xW1", "--data", "torch/cifar10", "--data-dir", tmp_path]
    command += ["--device", "cpu", "--recipe", "finetune", "--epochs", 1, "--batch-size", 16, "--freeze", 2]
    status, _, err = run(capsys, *command, "--out", tmp_path / "random")
    assert status == 2
    assert "to freeze random weights trains less of the network; use --pretrained or --init FILE" in err
    status, _, err = run(capsys, *command, "--init", weights, "--out", tmp_path / "run", "--json")
    assert status == 0, err
    model = network(checkpoint_path=tmp_path / "run" / "model.safetensors")
    assert model.num_classes == 10
    for name, value in start.state_dict().items():
        if name.startswith(("conv1.", "stages.0.", "stages.1.")):
            assert torch.equal(value, model.state_dict()[name]), name
    assert not torch.equal(start.stages[2][0].state_dict()["bn1.weight"], model.stages[2][0].state_dict()["bn1.weight"])
