"""What short training needs: one cycle, soft labels, starts from other weights, checkpoints within an epoch."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import timm
import torch
from test_attention_transfer import batch, wrn
from test_train import TINY, few_images, folder, loaders, log_of, make_task, noise, run, run_tiny, state_of
from timm.task import LogitDistillationTask
from torch import nn

import blockswap_models.training.loop
from blockswap_models import AttentionTransferTask
from blockswap_models.data.cifar import CifarLoader
from blockswap_models.data.folders import DataError
from blockswap_models.training.initial_weights import copy_from_teacher, load_initial
from blockswap_models.training.loaders import GrowingLoader, training_loader
from blockswap_models.training.loop import make_optimizer
from blockswap_models.training.recipes import RECIPES, Recipe, learning_rate
from blockswap_models.training.run_folder import TrainingError
from blockswap_models.zoo.cards import MissingWeightsError

__all__ = ["folder"]  # A fixture.

OFF = {
    "nesterov": False,
    "decay_norm": True,
    "label_smoothing": 0,
    "flip": "random",
    "crop_scale": 0.08,
    "small_size": 0,
    "average_epochs": 0,
    "soft_labels": 0,
}


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_the_papers_recipes_have_none_of_it(name):
    assert asdict(RECIPES[name]).items() >= OFF.items()
    assert RECIPES[name].schedule != "one-cycle"
    assert RECIPES[name].small_epochs == 0


def test_one_cycle_rises_and_falls_linearly_step_by_step():
    recipe = Recipe(epochs=10, schedule="one-cycle", lr=0.4, warmup=0.25)
    rates = {0: 0, 1: 0.16, 2.5: 0.4, 5: 0.4 * 5 / 7.5, 9.5: 0.4 * 0.5 / 7.5, 10: 0}
    assert {epoch: pytest.approx(learning_rate(recipe, epoch)) for epoch in rates} == rates
    falling = replace(recipe, warmup=0.0)
    assert (learning_rate(falling, 0), learning_rate(falling, 5)) == (0.4, 0.2)


def test_the_rate_of_other_schedules_changes_between_epochs_only():
    for schedule in ("cosine", "step"):
        recipe = Recipe(schedule=schedule)
        assert learning_rate(recipe, 59.99) == learning_rate(recipe, 59) > learning_rate(recipe, 60)
        assert learning_rate(recipe, 60.99) == learning_rate(recipe, 60)


def test_each_step_of_a_run_has_the_rate_of_its_middle(tmp_path, monkeypatch):
    rates = []
    made = blockswap_models.training.loop.make_optimizer

    def make(module, recipe):
        optimizer = made(module, recipe)
        optimizer.register_step_pre_hook(lambda *_: rates.append([group["lr"] for group in optimizer.param_groups]))
        return optimizer

    monkeypatch.setattr(blockswap_models.training.loop, "make_optimizer", make)
    recipe = replace(TINY, schedule="one-cycle", warmup=1 / 3, decay_norm=False)
    run_tiny(tmp_path, recipe=recipe)
    up, down = [0.05 * (step + 0.5) / 4 for step in range(4)], [0.05 * (7.5 - step) / 8 for step in range(8)]
    assert rates == [[pytest.approx(rate)] * 2 for rate in up + down]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"warmup": 1}, "warmup is at least 0 and below 1, not 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is at least 0 and below 1, not -0.1"),
        ({"small_share": 1.1}, "small_share is 0 to 1, not 1.1"),
        ({"soft_labels": 2}, "soft_labels is 0 to 1, not 2"),
        ({"temperature": 0}, "temperature is above 0, not 0"),
        ({"crop_scale": 0}, "crop_scale is above 0 and at most 1, not 0"),
        ({"average_epochs": 201}, "average_epochs is at most the 200 epochs, not 201"),
        ({"nesterov": True, "momentum": 0}, "nesterov needs a momentum above 0"),
        ({"flip": "always"}, "flip is random or alternate, not 'always'"),
    ],
)
def test_recipes_must_make_sense(fault, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Recipe(**fault)


def test_a_card_lists_what_a_run_used():
    recipe = RECIPES["cifar10-30"]
    alone = recipe.used(teacher=False, cifar=True)
    assert {"warmup", "small_size", "small_share", "flip", "padding", "cutout"} <= alone.keys()
    assert not {"step_epochs", "step_factor", "beta", "mode", "soft_labels", "temperature", "crop_scale"} & alone.keys()
    taught = replace(recipe, soft_labels=0.5, small_size=0).used(teacher=True, cifar=False)
    assert {"beta", "mode", "soft_labels", "temperature", "crop_scale"} <= taught.keys()
    assert not {"flip", "padding", "cutout", "small_size", "small_share", "average_epochs"} & taught.keys()
    assert not {"temperature", "teacher_size"} & recipe.used(teacher=True, cifar=True).keys()
    soft = replace(recipe, soft_labels=0.9, beta=0, teacher_size=96)
    assert "mode" not in soft.used(teacher=True, cifar=True)
    assert soft.used(teacher=True, cifar=True)["teacher_size"] == 96
    assert "teacher_size" not in soft.used(teacher=False, cifar=True)


def test_vectors_do_not_decay_and_momentum_is_nesterovs():
    model = wrn()
    optimizer = make_optimizer(model, replace(TINY, decay_norm=False, nesterov=True, weight_decay=0.5))
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    optimizer.step()
    for name, each in model.named_parameters():
        gradient = 1 + (0.5 * before[name] if each.ndim > 1 else 0)
        torch.testing.assert_close(each.detach(), before[name] - TINY.lr * (1 + TINY.momentum) * gradient)


class OneOfTwo(torch.utils.data.distributed.DistributedSampler):
    """The sampler of the first of two processes, without a process group."""

    def __init__(self, dataset):
        super().__init__(dataset, num_replicas=2, rank=0)


# -- images ----------------------------------------------------------------------------------------------------------


def test_alternating_flips_show_each_side_in_every_other_epoch():
    ramp = torch.arange(8, dtype=torch.uint8).expand(64, 3, 8, 8).contiguous()
    loader = CifarLoader(
        ramp, torch.arange(64), 32, training=True, flip="alternate", padding=0, cutout=0, mean=(0, 0, 0), std=(1, 1, 1)
    )
    sides = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        images, labels = (torch.cat(each) for each in zip(*loader, strict=True))
        sides.append((images[labels.argsort()][:, 0, 0, 0] > 0).tolist())
    assert sides[0] == sides[2]
    assert sides[1] == sides[3] == [not each for each in sides[0]]
    assert 16 < sum(sides[0]) < 48


def test_the_first_epochs_have_small_images(monkeypatch, tmp_path):
    few_images(monkeypatch)
    recipe = replace(TINY, epochs=5, small_size=24, small_share=0.6)
    model = timm.create_model("blockswap_wrn16_1")
    loader = training_loader(model, "torch/cifar10", tmp_path, recipe)
    assert isinstance(loader, GrowingLoader)
    sizes = []
    for epoch in range(5):
        loader.set_epoch(epoch)
        (images, _), *more = loader
        assert 1 + len(more) == len(loader)
        sizes.append(tuple(images.shape[1:]))
    assert sizes == [(3, 24, 24)] * 3 + [(3, 32, 32)] * 2
    # The images of each epoch are those that it has without small ones, in its order and as it augments them.
    large = training_loader(model, "torch/cifar10", tmp_path, TINY)
    for epoch in range(5):
        loader.set_epoch(epoch)
        large.set_epoch(epoch)
        (images, labels), (whole, same) = next(iter(loader)), next(iter(large))
        assert torch.equal(labels, same)
        side = images.shape[-1]
        expected = nn.functional.interpolate(whole, (side, side), mode="bilinear", antialias=True)
        torch.testing.assert_close(images, expected)


def test_folders_have_small_images_too(folder):
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    recipe = replace(TINY, epochs=2, small_size=16, small_share=0.5, crop_scale=0.9)
    loader = training_loader(model, str(folder), None, recipe, workers=0)
    loader.set_epoch(0)
    assert next(iter(loader))[0].shape[2:] == (16, 16)
    loader.set_epoch(1)
    assert next(iter(loader))[0].shape[2:] == (32, 32)
    with pytest.raises(DataError, match="use flip=random"):
        training_loader(model, str(folder), None, replace(TINY, flip="alternate"), workers=0)


def test_processes_that_train_together_seed_the_order_of_each_size(folder, monkeypatch):
    from torch.utils.data.distributed import DistributedSampler

    from blockswap_models.training.loop import set_epoch

    monkeypatch.setattr("timm.data.loader.torch.utils.data.distributed.DistributedSampler", OneOfTwo)
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    recipe = replace(TINY, epochs=2, small_size=16, small_share=0.5)
    loader = training_loader(model, str(folder), None, recipe, world_size=2, workers=0)
    for epoch in (0, 1):
        set_epoch(loader, 5, epoch, 0)
        assert isinstance(loader.sampler, DistributedSampler)
        assert (loader.sampler.seed, loader.sampler.epoch) == (5, epoch)
    assert loader.small.sampler is not loader.whole.sampler


# -- averages --------------------------------------------------------------------------------------------------------


def test_the_result_is_the_average_of_the_last_epochs_with_its_own_statistics(tmp_path, monkeypatch):
    states, save = [], blockswap_models.training.loop.RunFolder.save

    def keep(self, row, state):
        states.append(copy.deepcopy(state["state_dict"]))
        save(self, row, state)

    monkeypatch.setattr(blockswap_models.training.loop.RunFolder, "save", keep)
    run_tiny(tmp_path, recipe=replace(TINY, average_epochs=2))
    final = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, _ in make_task().trainable_module.named_parameters():
        torch.testing.assert_close(final[name], (states[1][name] + states[2][name]) / 2)
    # The statistics are those of the averaged weights over an epoch, not an average of statistics.
    model = make_task(drop_rate=0.2).trainable_module
    model.load_state_dict(final)
    train_loader, _ = loaders()
    train_loader.set_epoch(2)
    torch.manual_seed(0)
    torch.optim.swa_utils.update_bn(train_loader, model)
    torch.testing.assert_close(final["bn.running_mean"], model.state_dict()["bn.running_mean"])


def test_an_averaged_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    recipe = replace(TINY, average_epochs=2)
    run_tiny(tmp_path / "whole", recipe=recipe)
    stop_at(monkeypatch, epoch=2, step=2)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "cut", recipe=recipe)
    monkeypatch.undo()
    run_tiny(tmp_path / "cut", recipe=recipe, resume=True)
    assert same_result(tmp_path / "whole", tmp_path / "cut")


def test_one_average_at_a_time(tmp_path):
    with pytest.raises(TrainingError, match=r"use one \(average_epochs, ema\)"):
        run_tiny(tmp_path, ema=0.9, recipe=replace(TINY, average_epochs=1))


# -- checkpoints within an epoch -------------------------------------------------------------------------------------


def stop_at(monkeypatch, epoch, step):
    """Interrupts the next run before a step of an epoch, both counted from 0."""

    class Stopped(CifarLoader):
        def __iter__(self):
            for number, each in enumerate(super().__iter__()):
                if self.training and (self.epoch, number) == (epoch, step):
                    raise KeyboardInterrupt
                yield each

    monkeypatch.setattr("test_train.CifarLoader", Stopped)


def same_result(one, other):
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    return log_of(one) == log_of(other) and state_of(one) == state_of(other) and weights[0] == weights[1]


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_goes_on_within_an_epoch_to_the_same_bits(tmp_path, monkeypatch, step):
    recipe = replace(TINY, schedule="one-cycle", nesterov=True, decay_norm=False, flip="alternate")
    run_tiny(tmp_path / "whole", True, 0.9, recipe=recipe)
    stop_at(monkeypatch, epoch=1, step=step)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "cut", True, 0.9, recipe=recipe, checkpoint_minutes=0)
    monkeypatch.undo()
    state = torch.load(tmp_path / "cut" / "checkpoint.pth", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, step)
    taken = count_steps(monkeypatch)
    run_tiny(tmp_path / "cut", True, 0.9, recipe=recipe, resume=True)
    # Those before the checkpoint are not taken again.
    assert len(taken) == 8 - step
    assert same_result(tmp_path / "whole", tmp_path / "cut")


def count_steps(monkeypatch):
    taken, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *_: (taken.append(1), step(self))[1])
    return taken


def test_checkpoints_within_an_epoch_wait_for_their_minutes(tmp_path, monkeypatch):
    stop_at(monkeypatch, epoch=0, step=3)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path, checkpoint_minutes=1000)
    assert not (tmp_path / "checkpoint.pth").exists()


def test_a_folder_goes_on_within_an_epoch(folder, tmp_path, monkeypatch):
    """timm's loader, whose processes draw the augmentation."""

    recipe = replace(TINY, epochs=2, batch_size=4)

    def go(place, stop=None, **kwargs):
        task = make_task(num_classes=2)
        loader = training_loader(task.trainable_module, str(folder), None, recipe, workers=2)
        images, labels = noise(8, 32)
        return blockswap_models.training.loop.train(
            task,
            loader if stop is None else Stopping(loader, stop),
            CifarLoader(images, labels % 2, 8),
            recipe,
            place,
            progress=False,
            **kwargs,
        )

    class Stopping:
        def __init__(self, loader, stop):
            self.loader, self.stop, self.seen = loader, stop, 0

        def __getattr__(self, name):
            return getattr(self.loader, name)

        def __len__(self):
            return len(self.loader)

        def __iter__(self):
            for each in self.loader:
                if self.seen == self.stop:
                    raise KeyboardInterrupt
                self.seen += 1
                yield each

    go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", stop=6, checkpoint_minutes=0)
    assert torch.load(tmp_path / "cut" / "checkpoint.pth", weights_only=True)["step"] == 2
    go(tmp_path / "cut", resume=True)
    assert same_result(tmp_path / "whole", tmp_path / "cut")


def test_the_test_images_are_looked_at_as_often_as_one_says(tmp_path):
    run_tiny(tmp_path, test_every=2)
    _, rows = log_of(tmp_path)
    assert ["top1_error" in row for row in rows] == [False, True, True]
    with pytest.raises(TrainingError, match=r"^test_every is at least 1, not 0$"):
        run_tiny(tmp_path / "b", test_every=0)


# -- soft labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 1.0])
def test_the_soft_loss_is_that_of_timms_task(share):
    student, teacher = wrn(1, seed=1), wrn(2, seed=2)
    student.pretrained_cfg = teacher.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    images, labels = batch()
    theirs = LogitDistillationTask(
        copy.deepcopy(student), teacher, nn.CrossEntropyLoss(), task_loss_weight=1 - share, temperature=3.0
    ).train()
    ours = AttentionTransferTask(copy.deepcopy(student), teacher, beta=0, soft_labels=share, temperature=3.0).train()
    results = [task(images, labels) for task in (theirs, ours)]
    torch.testing.assert_close(results[1]["soft_loss"], results[0]["kd_loss"])
    torch.testing.assert_close(results[1]["loss"], results[0]["loss"])
    for result in results:
        result["loss"].backward()
    gradients = [[each.grad for each in task.get_eval_model().parameters()] for task in (theirs, ours)]
    torch.testing.assert_close(*gradients)
    assert all(each.grad is None for each in teacher.parameters())


def test_soft_labels_and_attention_come_from_one_pass():
    student, teacher = wrn(1, seed=1), wrn(2, seed=2)
    task = AttentionTransferTask(student, teacher, beta=10, soft_labels=0.5).train()
    images, labels = batch()
    calls = []
    teacher.conv1.register_forward_hook(lambda *_: calls.append("teacher"))
    student.conv1.register_forward_hook(lambda *_: calls.append("student"))
    result = task(images, labels)
    assert sorted(calls) == ["student", "teacher"]
    expected = (result["task_loss"] + result["soft_loss"]) / 2 + result["attention_loss"]
    torch.testing.assert_close(result["loss"], expected)
    teacher_logits = task.teacher_outputs(images).logits
    torch.testing.assert_close(teacher_logits, teacher(images))


def test_soft_labels_want_the_same_classes():
    with pytest.raises(ValueError, match=r"^soft labels are for a teacher of the student's 10 classes, this one has 5"):
        AttentionTransferTask(wrn(), wrn(num_classes=5), soft_labels=0.5)
    AttentionTransferTask(wrn(), wrn(num_classes=5))
    with pytest.raises(ValueError, match="soft_labels is 0 to 1"):
        AttentionTransferTask(wrn(), wrn(), soft_labels=1.5)


def test_a_teacher_of_more_stages_gives_those_of_the_same_reductions():
    student = timm.create_model("blockswap_resnet18", num_classes=5)
    teacher = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    task = AttentionTransferTask(student, teacher, soft_labels=0.5, verbose=False)
    assert [teacher.feature_info[stage]["reduction"] for stage in task.teacher_stages] == [4, 8, 16, 32]
    result = task(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert result["loss"].isfinite()
    outputs = task.teacher_outputs(torch.randn(2, 3, 64, 64))
    assert [tuple(each.shape) for each in outputs.maps] == [(2, side, side) for side in (16, 8, 4, 2)]


def test_shared_soft_labels_are_those_of_each_alone():
    from blockswap_models.training.shared_teacher import SharedTeacherTask

    teacher, images_labels = wrn(2, seed=5), batch()
    tasks = {str(seed): AttentionTransferTask(wrn(1, seed=seed), teacher, soft_labels=0.9) for seed in (1, 2)}
    alone = [copy.deepcopy(task)(*images_labels)["loss"] for task in tasks.values()]
    torch.testing.assert_close(SharedTeacherTask(tasks)(*images_labels)["loss"], sum(alone))
    mixed = {"a": tasks["1"], "b": AttentionTransferTask(wrn(1), teacher)}
    with pytest.raises(ValueError, match="only one of a and b learns from soft labels"):
        SharedTeacherTask(mixed)


# -- starts from other weights ---------------------------------------------------------------------------------------


def test_a_file_of_weights_starts_a_run_and_another_classifier_stays_random(tmp_path):
    trained = wrn(seed=1)
    path = tmp_path / "trained.safetensors"
    safetensors.torch.save_file({name: each.half() for name, each in trained.state_dict().items()}, path)
    model = wrn(seed=2)
    model.pretrained_cfg = {"classifier": "fc"}
    assert load_initial(model, path) == []
    for name, each in model.state_dict().items():
        torch.testing.assert_close(each, trained.state_dict()[name].half().to(each.dtype))
    other = wrn(seed=2, num_classes=7)
    other.pretrained_cfg = {"classifier": "fc"}
    fresh = other.fc.weight.detach().clone()
    assert load_initial(other, path) == ["fc.weight", "fc.bias"]
    torch.testing.assert_close(other.fc.weight.detach(), fresh)
    with pytest.raises(ValueError, match="is of another network than this WideResNet"):
        load_initial(wrn(2), path)


def test_blocks_of_the_same_type_are_the_teachers():
    torch.manual_seed(0)
    teacher = timm.create_model("blockswap_wrn16_1")
    student = timm.create_model("blockswap_wrn16_1", genome="S,G4/2xS/B2,S")
    before = {name: each.clone() for name, each in student.state_dict().items()}
    copied = copy_from_teacher(student, teacher)
    same = ("conv1.", "stages.0.0.", "stages.1.", "stages.2.1.", "bn.", "fc.")
    for name, each in student.state_dict().items():
        assert (name in copied) == name.startswith(same)
        torch.testing.assert_close(each, teacher.state_dict()[name] if name in copied else before[name])
    with pytest.raises(ValueError, match="no tensor in common"):
        copy_from_teacher(student, timm.create_model("tf_efficientnet_lite0"))


# -- the command -----------------------------------------------------------------------------------------------------


def test_a_short_run_starts_from_a_file_and_from_the_teacher(capsys, tmp_path, monkeypatch):
    few_images(monkeypatch)
    data = ["--data", "torch/cifar10", "--data-dir", tmp_path, "--device", "cpu", "--recipe", "cifar10-30"]
    short = [*data, "--epochs", 1, "--batch-size", 16, "--lr", 1e-9, "--no-nesterov", "--label-smoothing", 0.1]
    status, out, err = run(capsys, "train", "wrn16_1", *short, "--out", tmp_path / "first")
    assert status == 0, err
    assert " 1 epoch, cpu" in out
    weights = tmp_path / "first" / "model.safetensors"
    trained = safetensors.torch.load_file(weights)
    start = ["train", "wrn16_1", *short, "--seed", 5]
    assert run(capsys, *start, "--init", weights, "--out", tmp_path / "file")[0] == 0
    teacher = ["--teacher", "wrn16_1", "--teacher-checkpoint", weights, "--soft-labels", 0.9, "--init", "teacher"]
    status, _, err = run(capsys, *start, *teacher, "--out", tmp_path / "taught")
    assert status == 0, err
    for name in ("file", "taught"):
        found = safetensors.torch.load_file(tmp_path / name / "model.safetensors")
        torch.testing.assert_close(found["fc.weight"], trained["fc.weight"], rtol=0, atol=1e-6)
    header = json.loads((tmp_path / "taught" / "log.jsonl").read_text().splitlines()[0])
    assert (header["init"], header["recipe"]["soft_labels"], header["recipe"]["nesterov"]) == ("teacher", 0.9, False)
    assert "soft_loss" in json.loads((tmp_path / "taught" / "log.jsonl").read_text().splitlines()[1])


def test_images_of_another_size(capsys, folder, tmp_path):
    command = ["train", "resnet18", "--data", folder, "--out", tmp_path / "run", "--device", "cpu", "--num-classes", 2]
    command += ["--image-size", 40, "--epochs", 1, "--batch-size", 8, "--workers", 0, "--small-size", 32]
    status, _, err = run(capsys, *command)
    assert status == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["image_size"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--soft-labels", 0.5], "--soft-labels is for learning from a teacher; use --teacher MODEL"),
        (["--init", "teacher"], "there is no teacher to start from; use --teacher MODEL (--init)"),
        (["--init", "none.safetensors"], "no weights 'none.safetensors'; use a file, a library, or 'teacher' (--init)"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    few_images(monkeypatch)
    command = ["train", "wrn16_1", "--data", "torch/cifar10", "--data-dir", tmp_path, "--out", tmp_path / "run"]
    status, out, err = run(capsys, *command, "--device", "cpu", "--batch-size", 16, *arguments)
    assert (status, out) == (2, "")
    assert err == f"blockswap train: {message}\n"


def test_a_start_from_pretrained_weights_that_are_not_there(capsys, tmp_path, monkeypatch):
    few_images(monkeypatch)
    command = ["train", "wrn16_2", "--data", "torch/cifar10", "--data-dir", tmp_path, "--out", tmp_path / "run"]
    status, out, err = run(capsys, *command, "--device", "cpu", "--pretrained")
    assert (status, out) == (2, "")
    message = MissingWeightsError("blockswap_wrn16_2", "leave out --pretrained, or use --init FILE")
    assert err == f"blockswap train: {message}\n"
    assert not (tmp_path / "run").exists()
