import errno
import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from dataclasses import fields, replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from timm.task import ClassificationTask
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import blockswap_models.training.run_folder
from blockswap_models import AttentionTransferTask, SearchSpace
from blockswap_models.cli.main import main
from blockswap_models.cli.train import train_
from blockswap_models.data.cifar import CifarLoader, read_cifar
from blockswap_models.data.folders import DataError
from blockswap_models.files import write_atomic
from blockswap_models.progress import LogLines
from blockswap_models.searching.probe_images import noise_minibatch
from blockswap_models.training import loaders as loaders_
from blockswap_models.training import loop, runs
from blockswap_models.training.loaders import GrowingLoader, training_loader
from blockswap_models.training.loop import make_optimizer, set_epoch, train
from blockswap_models.training.recipes import RECIPES, Recipe, learning_rate
from blockswap_models.training.run_folder import RunFolder, TrainingError
from blockswap_models.training.runs import RunSettings, make_teacher, train_run

TINY = Recipe(epochs=3, batch_size=8, lr=0.05, cutout=4, padding=1)
TIMES = ("seconds", "images_per_second")
# Seconds, for what should take an instant, on a machine that does much else.
PATIENCE = 300


def noise(number=32, size=16, seed=0):
    """Images of 1/f noise as CIFAR has them: uint8, with labels."""
    space = SearchSpace("wrn16_1", image_size=size)
    minibatch = noise_minibatch(space, number, seed)
    return (minibatch.images * 50 + 128).clamp(0, 255).byte(), minibatch.labels


def loaders(images=None, seed=0, recipe=TINY):
    images, labels = images or noise()
    options = {"padding": recipe.padding, "cutout": recipe.cutout, "seed": seed}
    return CifarLoader(images, labels, recipe.batch_size, training=True, **options), CifarLoader(images, labels, 16)


def make_task(teacher=False, seed=0, ema=None, **kwargs):
    torch.manual_seed(seed)
    model = timm.create_model("blockswap_wrn16_1", genome="2xW1/2xB2W1/2xW1", **kwargs)
    if teacher:
        task = AttentionTransferTask(model, timm.create_model("blockswap_wrn16_1"), beta=10)
    else:
        task = ClassificationTask(model)
    if ema is not None:
        task.setup_ema(decay=ema)
    return task


def run_tiny(folder, teacher=False, ema=None, **kwargs):
    recipe = kwargs.pop("recipe", TINY)
    return train(make_task(teacher, ema=ema, drop_rate=0.2), *loaders(), recipe, folder, progress=False, **kwargs)


def log_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return rows[0], [{name: value for name, value in row.items() if name not in TIMES} for row in rows[1:]]


def tensors_of(value):
    """Lists what a checkpoint holds, with its tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: tensors_of(each) for name, each in value.items() if name not in TIMES}
    return [tensors_of(each) for each in value] if isinstance(value, list) else value


def state_of(folder):
    return tensors_of(torch.load(folder / "checkpoint.pth", weights_only=True))


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_are_the_papers():
    cifar, imagenet = RECIPES["cifar10"], RECIPES["imagenet"]
    assert (cifar.epochs, cifar.batch_size, cifar.lr, cifar.momentum, cifar.weight_decay) == (200, 128, 0.1, 0.9, 5e-4)
    assert (cifar.schedule, cifar.padding, cifar.cutout, cifar.beta, cifar.mode) == ("cosine", 4, 16, 1000, "code")
    assert (imagenet.epochs, imagenet.batch_size, imagenet.lr, imagenet.weight_decay) == (100, 256, 0.1, 1e-4)
    assert (imagenet.momentum, imagenet.schedule, imagenet.beta) == (0.9, "step", 750)


def test_learning_rates():
    cosine, step = RECIPES["cifar10"], replace(RECIPES["cifar10"], schedule="step")
    for epoch, share in {0: 1, 50: (1 + math.sqrt(0.5)) / 2, 100: 0.5, 150: (1 - math.sqrt(0.5)) / 2}.items():
        assert learning_rate(cosine, epoch) == pytest.approx(0.1 * share)
    assert 0 < learning_rate(cosine, 199) < 1e-5
    # A step more than were announced takes none back.
    assert learning_rate(RECIPES["cifar10-30"], 30.1) == 0
    steps = {0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 180: 0.0008, 199: 0.0008}
    assert {epoch: pytest.approx(learning_rate(step, epoch)) for epoch in steps} == steps
    steps = {0: 0.1, 29: 0.1, 30: 0.01, 60: 0.001, 90: 1e-4, 99: 1e-4}
    assert {epoch: pytest.approx(learning_rate(RECIPES["imagenet"], epoch)) for epoch in steps} == steps


def test_learning_rates_are_those_of_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for epoch in range(200):
        assert learning_rate(RECIPES["cifar10"], epoch) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_every_parameter_decays_and_momentum_is_plain():
    task = make_task(teacher=True)
    optimizer = make_optimizer(task.get_trainable_module(), RECIPES["cifar10"])
    student = dict(task.get_eval_model().named_parameters())
    (group,) = optimizer.param_groups
    assert {id(each) for each in group["params"]} == {id(each) for each in student.values()}
    assert (group["weight_decay"], group["momentum"], group["nesterov"], group["dampening"]) == (5e-4, 0.9, False, 0)
    before = {name: each.detach().clone() for name, each in student.items()}
    for each in student.values():
        each.grad = torch.zeros_like(each)
    for _ in range(2):
        optimizer.step()
    for name, each in student.items():
        # By hand: the decay is the gradient, and the second step is the momentum of the first and its own.
        first = before[name] * (1 - 0.1 * 5e-4)
        second = first - 0.1 * (0.9 * 5e-4 * before[name] + 5e-4 * first)
        torch.testing.assert_close(each.detach(), second)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"epochs": 0}, "epochs is at least 1, not 0"),
        ({"lr": -0.1}, "lr is above 0, not -0.1"),
        ({"lr": math.nan}, "lr is above 0, not nan"),
        ({"weight_decay": -1}, "weight_decay is at least 0, not -1"),
        ({"momentum": 1}, "momentum is at least 0 and below 1, not 1"),
        ({"schedule": "linear"}, "schedule is cosine, step or one-cycle, not 'linear'"),
        ({"mode": "both"}, "mode is code or paper, not 'both'"),
    ],
)
def test_recipes_must_make_sense(fault, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(RECIPES["cifar10"], **fault)


# -- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", [False, True])
def test_the_loss_falls_on_noise(tmp_path, teacher):
    recipe = replace(TINY, epochs=6, cutout=0, padding=0, weight_decay=0)
    summary = train(make_task(teacher), *loaders(recipe=recipe), recipe, tmp_path, progress=False)
    _, rows = log_of(tmp_path)
    losses = [row["task_loss" if teacher else "train_loss"] for row in rows]
    assert losses[-1] < 0.9 * losses[0]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["lr"] for row in rows] == [learning_rate(recipe, epoch) for epoch in range(6)]
    if teacher:
        for row in rows:
            assert row["train_loss"] == pytest.approx(row["task_loss"] + row["attention_loss"], rel=1e-5)
    assert rows[-1]["top1_error"] == summary["top1_error"]
    assert summary == json.loads((tmp_path / "summary.json").read_text())


@pytest.mark.data
def test_the_loss_falls_on_cifar10(tmp_path, cifar_dir):
    images, labels = read_cifar(cifar_dir)
    recipe = replace(TINY, epochs=4, batch_size=16)
    train(make_task(True), *loaders((images[:128], labels[:128]), recipe=recipe), recipe, tmp_path, progress=False)
    losses = [row["train_loss"] for row in log_of(tmp_path)[1]]
    assert losses[-1] < 0.95 * losses[0]


def test_the_first_loss_is_that_of_the_task_and_the_step_that_of_sgd(tmp_path):
    recipe = replace(TINY, epochs=1, batch_size=32)
    train(make_task(), *loaders(recipe=recipe), recipe, tmp_path, progress=False)
    task, (loader, _) = make_task().train(), loaders(recipe=recipe)
    ((images, labels),) = loader
    loss = task(images, labels)["loss"]
    loss.backward()
    assert log_of(tmp_path)[1][0]["train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    trained = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, each in task.trainable_module.named_parameters():
        torch.testing.assert_close(trained[name], each.detach() - 0.05 * (each.grad + 5e-4 * each.detach()))


def train_and_die(folder):
    """Trains until the second checkpoint is written, and then kills this process."""
    save, saved = RunFolder.save, []

    def save_and_die(self, row, state):
        save(self, row, state)
        saved.append(row)
        if len(saved) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.save = save_and_die
    run_tiny(folder, True, 0.9)


def test_a_killed_run_resumes_to_the_same_result(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    summary = run_tiny(whole, True, 0.9)
    process = multiprocessing.get_context("fork").Process(target=train_and_die, args=(killed,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert state_of(killed)["epoch"] == 2
    assert not (killed / "model.safetensors").exists()
    # A line that was cut off, of an epoch whose checkpoint was not written.
    with open(killed / "log.jsonl", "a") as file:
        file.write('{"epoch": 3, "lr": 9}\n{"epoch": 4, "l')
    torch.manual_seed(99)
    resumed = run_tiny(killed, True, 0.9, resume=True)
    for name in ("top1_error", "top5_error", "seed", "ema", "recipe"):
        assert resumed[name] == summary[name]
    assert log_of(killed) == log_of(whole)
    assert state_of(killed) == state_of(whole)
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    # The average and the weights are two things, and both were compared.
    state = state_of(whole)
    assert state["state_dict_ema"]["conv1.weight"] != state["state_dict"]["conv1.weight"]
    final = safetensors.torch.load_file(whole / "model.safetensors")
    assert tensors_of(final["conv1.weight"]) == state["state_dict_ema"]["conv1.weight"]
    # A run that is finished is finished.
    assert run_tiny(killed, True, 0.9, resume=True) == resumed


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, monkeypatch):
    monkeypatch.setattr(blockswap_models.training.loop, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "a")
    monkeypatch.undo()
    assert not (tmp_path / "a" / "checkpoint.pth").exists()
    with pytest.raises(TrainingError, match="has seed 0, not 1"):
        run_tiny(tmp_path / "a", resume=True, seed=1)
    run_tiny(tmp_path / "a", resume=True)
    run_tiny(tmp_path / "b")
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b")


def test_a_run_whose_first_step_failed_is_begun_anew(tmp_path):
    images, labels = noise()
    with pytest.raises(TrainingError, match="a label is none of the network's classes"):
        train(make_task(), *loaders((images, labels + 9)), TINY, tmp_path / "a", progress=False)
    one = replace(TINY, epochs=1)
    run_tiny(tmp_path / "a", recipe=one, seed=3)
    run_tiny(tmp_path / "b", recipe=one, seed=3)
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")


class Timed(list):
    """Minibatches of which each image takes a second."""

    seconds = 0

    def __iter__(self):
        for images, labels in super().__iter__():
            self.seconds += len(images)
            yield images, labels


def test_a_log_has_what_was_trained_with(tmp_path, monkeypatch):
    """The hyperparameters of the task, and the images that the loader gave."""
    (images, labels), bars = noise(6), []
    loader = Timed([(images[:4].float(), labels[:4]), (images[4:].float(), labels[4:])])
    monkeypatch.setattr(loop, "new_bar", lambda *given, **_: bars.append(LogLines(*given)) or bars[-1])
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: loader.seconds))
    recipe = replace(TINY, epochs=1, batch_size=32, label_smoothing=0.1)
    summary = train(make_task(teacher=True), loader, list(loader), recipe, tmp_path)
    header, row = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    # The recipe has 1000, and the task's cross-entropy smooths nothing.
    assert header["recipe"]["beta"] == summary["recipe"]["beta"] == 10
    assert header["recipe"]["label_smoothing"] == summary["recipe"]["label_smoothing"] == 0
    assert (bars[0].n, bars[0].total, row["images_per_second"]) == (6, 6, 1)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    def hold(there):
        with RunFolder(tmp_path / "run", {}).locked():
            there.set()
            threading.Event().wait()

    forking = multiprocessing.get_context("fork")
    there = forking.Event()
    other = forking.Process(target=hold, args=(there,))
    other.start()
    try:
        assert there.wait(PATIENCE)
        with pytest.raises(
            TrainingError, match=r"^another process trains in '.*/run'; wait for its end, or use another"
        ):
            run_tiny(tmp_path / "run")
    finally:
        # As after a kill, the folder is free again.
        other.kill()
        other.join()
    run_tiny(tmp_path / "run", recipe=replace(TINY, epochs=1))


def test_a_folder_with_a_run_is_left_alone(tmp_path):
    one = replace(TINY, epochs=1)
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"^cannot make the folder '.*/file/run': Not a directory$"):
        run_tiny(tmp_path / "file" / "run")
    with pytest.raises(TrainingError, match=r"^there is no run to resume in '.*'; leave out resume=True$"):
        run_tiny(tmp_path / "run", resume=True)
    run_tiny(tmp_path / "run", recipe=one)
    before = state_of(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"^there is a run in '.*/run'; use resume=True, or another folder=$"):
        run_tiny(tmp_path / "run", recipe=one)
    for other, message in [
        ({"recipe": replace(one, weight_decay=0.1)}, "has weight-decay 0.0005, not 0.1; use what it has, or"),
        ({"recipe": replace(one, epochs=2)}, "has epochs 1, not 2;"),
        ({"seed": 3}, "has seed 0, not 3;"),
        ({"arguments": {"teacher": "wrn40_2"}}, "has teacher none, not wrn40_2;"),
    ]:
        with pytest.raises(TrainingError, match=message):
            run_tiny(tmp_path / "run", resume=True, **{"recipe": one, **other})
    assert state_of(tmp_path / "run") == before
    # Of a version that did not know a hyperparameter, which was off there.
    state = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)
    del state["arguments"]["teacher_size"]
    torch.save(state, tmp_path / "run" / "checkpoint.pth")
    with pytest.raises(TrainingError, match="has teacher-size 0, not 48;"):
        run_tiny(tmp_path / "run", resume=True, recipe=replace(one, teacher_size=48))
    run_tiny(tmp_path / "run", resume=True, recipe=one)
    (tmp_path / "run" / "checkpoint.pth").write_bytes(b"PK")
    with pytest.raises(TrainingError, match=r"checkpoint\.pth': it is damaged or no checkpoint of blockswap train"):
        run_tiny(tmp_path / "run", recipe=one, resume=True)


class Poisoned(ClassificationTask):
    """Has a loss that is not finite at one step."""

    def __init__(self, model, step, value):
        super().__init__(model)
        self.left, self.value = step, value

    def forward(self, input, target):
        self.left -= 1
        result = super().forward(input, target)
        return result if self.left else {**result, "loss": result["loss"] * self.value}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, value, log_every):
    # Four steps an epoch: the sixth is in the second.
    task = Poisoned(make_task().trainable_module, 6, value)
    with pytest.raises(TrainingError, match=r"^the loss is no longer finite; the last checkpoint is kept, .*lr=\)$"):
        train(task, *loaders(), TINY, tmp_path, progress=False, log_every=log_every)
    assert task.left == (0 if log_every == 1 else -2)
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert state["epoch"] == 1
    assert all(each.isfinite().all() for each in state["state_dict"].values())
    assert len(log_of(tmp_path)[1]) == 1
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path, monkeypatch):
    steps = []

    class Breaking(ClassificationTask):
        def update_ema(self, step=None):
            steps.append(step)
            if len(steps) == 8:
                next(self.parameters()).data[0] = math.nan

    with pytest.raises(TrainingError, match="the weights are not finite after epoch 2; the last checkpoint is kept"):
        train(Breaking(make_task().trainable_module), *loaders(), TINY, tmp_path, progress=False)
    assert state_of(tmp_path)["epoch"] == 1


@pytest.mark.parametrize("value", [math.nan, None])
def test_what_is_not_finite_is_no_checkpoint_within_an_epoch(tmp_path, value):
    class Breaking(Poisoned):
        def update_ema(self, step=None):
            if value is None and self.left == 0:
                next(self.parameters()).data[0] = math.nan

    # The sixth step is in the second epoch, and the losses are looked at only at its end.
    task = Breaking(make_task().trainable_module, 6, 1.0 if value is None else value)
    with pytest.raises(TrainingError, match=r"^the weights are not finite in epoch 2; the last checkpoint is kept"):
        train(task, *loaders(), TINY, tmp_path, progress=False, checkpoint_minutes=0)
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1)
    assert all(each.isfinite().all() for each in state["state_dict"].values())
    # With sound images it goes on.
    train(make_task(), *loaders(), TINY, tmp_path, progress=False, resume=True)


def test_small_gradients_are_not_lost(tmp_path):
    with pytest.raises(TrainingError, match=r"^training in torch\.float16 loses small gradients; use torch\.bfloat16"):
        run_tiny(tmp_path, dtype=torch.float16)


class ByEpoch:
    """A sampler that draws by an epoch of its own."""

    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


@pytest.mark.parametrize("part", ["sampler", "batch_sampler", "dataset"])
@pytest.mark.parametrize("growing", [False, True])
def test_whatever_draws_by_the_epoch_is_told_it(part, growing):
    loader, drawing = SimpleNamespace(), ByEpoch()
    setattr(loader, part, drawing)
    set_epoch(GrowingLoader(SimpleNamespace(), loader, 1) if growing else loader, 0, 3, 0)
    assert drawing.epochs == [3]


@pytest.mark.parametrize("of", ["loader", "sampler"])
def test_generators_of_a_loader_draw_by_the_epoch(of):
    images, generator = list(range(9)), torch.Generator()
    sampler = RandomSampler(images, generator=generator)
    loader = DataLoader(images, 3, shuffle=True, generator=generator)
    if of == "sampler":
        loader = DataLoader(images, batch_sampler=BatchSampler(sampler, 3, drop_last=False))

    def order(*moment):
        set_epoch(loader, *moment)
        return torch.cat(list(loader)).tolist()

    # Whatever was drawn before, as in a resumed run.
    first, second = order(0, 0, 0), order(0, 1, 0)
    assert order(0, 1, 0) == second != first == order(0, 0, 0) != order(1, 0, 0)


def test_a_growing_loader_tells_any_loader_the_epoch():
    loader = ByEpoch()
    GrowingLoader(SimpleNamespace(), loader, 1).set_epoch(3)
    assert loader.epochs == [3]


@pytest.mark.parametrize("names", [("b", "a"), ("x", "y"), None])
def test_classes_are_numbered_as_in_an_evaluation(tmp_path, names):
    """By the names of the network's classes, if these are the folder's."""
    for split, place in itertools.product(("train", "val"), range(2)):
        (tmp_path / split / "ab"[place]).mkdir(parents=True)
        for each in range(2):
            Image.new("RGB", (32, 32), (255 * place,) * 3).save(tmp_path / split / "ab"[place] / f"{each}.png")
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    if names is not None:
        model.pretrained_cfg["label_names"] = names
    recipe = replace(RECIPES["imagenet"], batch_size=4)
    images, labels = next(iter(training_loader(model, str(tmp_path), None, recipe, workers=0)))
    white = images.mean(dim=(1, 2, 3)) > 0
    assert labels.tolist() == [int(each) for each in (~white if names == ("b", "a") else white)]


@pytest.mark.parametrize(
    ("settings", "recipe", "message"),
    [
        ({"pretrained": True, "init": "w.pth"}, {}, r"^a run starts from one place; use pretrained=True or init=, not"),
        ({"init": "teacher"}, {}, r"^there is no teacher to start from; use teacher=, or another init=$"),
        ({}, {"soft_labels": 0.5}, r"^soft labels are a teacher's; use teacher=, or soft_labels=0$"),
        ({"teacher": "wrn16_1"}, {"beta": 0}, r"^nothing is learned from the teacher; use beta above 0, soft_labels a"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, settings, recipe, message):
    settings = RunSettings(names=("wrn16_1",), data="torch/cifar10", data_dir=str(tmp_path), **settings)
    with pytest.raises(ValueError, match=message):
        train_run(settings, replace(TINY, **recipe), tmp_path / "run", device=torch.device("cpu"), workers=0)


def write_photos(root):
    """Writes images of two classes, without splits."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for each in range(5):
            Image.new("RGB", (32, 32), (20 * each, 0, 0)).save(root / name / f"{each}.png")


def test_a_folder_of_images_is_the_same_with_a_slash_and_takes_no_run(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos")
    asked = []
    monkeypatch.setattr(runs, "train", lambda *_, arguments, **__: asked.append(arguments["data"]))
    settings = RunSettings(names=("wrn16_1",), data=f"{tmp_path}/photos/")
    train_run(settings, TINY, tmp_path / "run", device=torch.device("cpu"), workers=0)
    assert asked == [f"{tmp_path}/photos"]
    with pytest.raises(DataError, match=r"^the folder '.*photos/run' would be a class of the images in '.*photos'; "):
        train_run(settings, TINY, tmp_path / "photos" / "run", device=torch.device("cpu"), workers=0)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    run_tiny(tmp_path / "run", recipe=replace(TINY, epochs=1))
    path = tmp_path / "run" / "checkpoint.pth"
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blockswap_models.files.os, call, fail)
    with pytest.raises(TrainingError, match=r"^cannot write '.*checkpoint.pth': No space left on device$"):
        write_atomic(path, b"new", TrainingError)
    with pytest.raises(TrainingError, match=r"^cannot write '.*': No space left on device$"):
        run_tiny(tmp_path / "other")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_a_killed_write_left_is_written_over(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.with_name("file.tmp").write_bytes(b"a longer half of a fi")
    write_atomic(path, b"new")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"file": b"new"}


def test_a_disk_that_fills_during_the_run(tmp_path, monkeypatch):
    replace_file = os.replace

    def fail_late(source, target):
        if target.name == "checkpoint.pth" and target.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(source, target)

    monkeypatch.setattr(blockswap_models.files.os, "replace", fail_late)
    with pytest.raises(TrainingError, match=r"checkpoint\.pth': No space left on device"):
        run_tiny(tmp_path / "full")
    monkeypatch.undo()
    assert state_of(tmp_path / "full")["epoch"] == 1
    assert not list(tmp_path.rglob("*.tmp"))
    run_tiny(tmp_path / "full", resume=True)
    run_tiny(tmp_path / "whole")
    assert state_of(tmp_path / "full") == state_of(tmp_path / "whole")
    assert log_of(tmp_path / "full") == log_of(tmp_path / "whole")


def test_bfloat16_trains_float32_weights(tmp_path):
    task, computed = make_task(True, drop_rate=0.2), set()
    task.get_eval_model().conv1.register_forward_hook(lambda conv, _, maps: computed.add((conv.training, maps.dtype)))
    summary = train(task, *loaders(), replace(TINY, epochs=1), tmp_path, progress=False, dtype=torch.bfloat16)
    assert {dtype for training, dtype in computed if training} == {torch.bfloat16}
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {each.dtype for each in state.values()} == {torch.float32, torch.int64}
    assert 0 <= summary["top1_error"] <= 100


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder of images of 1/f noise, of two classes: 16 to train with and 8 to test with."""
    from PIL import Image

    pictures, _ = noise(24, 32)
    for index, picture in enumerate(pictures):
        path = tmp_path / "images" / ("train" if index < 16 else "val") / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "images"


def test_folders_go_through_timms_loader(folder):
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    with patch.object(loaders_, "create_loader", wraps=loaders_.create_loader) as made:
        loader = training_loader(model, str(folder), None, replace(TINY, crop_scale=0.6), workers=0)
    # timm's own defaults are crops from 8 % of the image on, and changed colours.
    asked = made.call_args.kwargs
    assert (asked["scale"], asked["color_jitter"], asked["is_training"], asked["distributed"]) == (
        (0.6, 1),
        0,
        True,
        False,
    )
    assert (asked["mean"], asked["std"]) == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    batches = list(loader)
    assert [tuple(images.shape) for images, _ in batches] == [(8, 3, 32, 32)] * 2
    assert torch.bincount(torch.cat([labels for _, labels in batches])).tolist() == [8, 8]


# timm keeps a cfg of three channels for its own networks.
@pytest.mark.parametrize("name", ["blockswap_wrn16_1", "mobilenetv3_small_050"])
def test_images_of_one_channel_are_trained_on(folder, name):
    model = timm.create_model(name, num_classes=2, in_chans=1).train()
    images, labels = next(iter(training_loader(model, str(folder), None, TINY, workers=0)))
    assert images.shape == (8, 1, *model.pretrained_cfg["input_size"][1:])
    mean, std = (0.4734, 0.2009) if "wrn" in name else (0.449, 0.226)
    assert -mean / std - 1e-5 <= images.min() < images.max() <= (1 - mean) / std + 1e-5
    ClassificationTask(model)(images, labels)["loss"].backward()


def test_data_that_does_not_fit_is_refused(folder):
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    with pytest.raises(DataError, match=r"^a batch of 8 does not divide between 3 processes; use batch_size=9$"):
        training_loader(model, str(folder), None, TINY, world_size=3)
    with pytest.raises(DataError, match=r"^no folder train in '.*/val'; training wants folders train and val"):
        training_loader(model, str(folder / "val"), None, TINY)
    with pytest.raises(DataError, match=r"^16 images make no minibatch of 32"):
        training_loader(model, str(folder), None, replace(TINY, batch_size=32), workers=0)
    with pytest.raises(DataError, match="2 classes, but the network has 10; use num_classes=2"):
        training_loader(timm.create_model("blockswap_wrn16_1"), str(folder), None, TINY)


# -- the command -----------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    status = main([str(each) for each in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def few_images(monkeypatch):
    """Puts noise in the place of CIFAR-10, as much as a test has time for."""

    def read(root, name="cifar10", train=True):
        return noise(32 if train else 24, 32, seed=int(train))

    monkeypatch.setattr("blockswap_models.training.loaders.read_cifar", read)
    monkeypatch.setattr("blockswap_models.training.evaluate.read_cifar", read)


@pytest.mark.parametrize("there", [False, True])
def test_a_cpu_that_is_slow_in_bfloat16_is_told(capsys, tmp_path, monkeypatch, there):
    few_images(monkeypatch)
    monkeypatch.setattr("blockswap_models.training.runs.computes_bfloat16", lambda: there)
    words = "train wrn16_1 --data torch/cifar10 --epochs 1 --batch-size 16 --amp bfloat16 --device cpu"
    status, _, err = run(capsys, *words.split(), "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert status == 0
    assert ("this CPU has no instructions for bfloat16" in err) != there


def training_of(capsys, *command):
    """What a command's training is called with: its task, loaders and options."""
    with patch("blockswap_models.training.runs.train", side_effect=ValueError("enough")) as train_:
        status, _, err = run(capsys, "train", *command)
    assert (status, err.splitlines()[-1]) == (2, "blockswap train: enough")
    (task, loader, test_loader, *_), options = train_.call_args
    return task, loader, test_loader, options


def test_the_options_of_a_training_are_used(capsys, tmp_path, monkeypatch):
    few_images(monkeypatch)
    data = ["--data", "torch/cifar10", "--data-dir", tmp_path, "--device", "cpu", "--out", tmp_path / "run"]
    given = "--soft-labels 0.3 --temperature 3 --beta 10 --mode paper --label-smoothing 0.2 --ema 0.7 --padding 2"
    given += " --teacher-size 40"
    given += " --cutout 6 --flip alternate --seed 5 --batch-size 6 --channels-last --amp bfloat16"
    torch.save(timm.create_model("blockswap_wrn16_1").state_dict(), tmp_path / "teacher.pth")
    teacher = ["--teacher", "wrn16_1", "--teacher-checkpoint", tmp_path / "teacher.pth"]
    task, loader, test_loader, options = training_of(capsys, "wrn16_1", *data, *teacher, *given.split())
    assert (task.soft_labels, task.temperature, task.beta, task.mode) == (0.3, 3, 10, "paper")
    assert task.teacher_size == 40
    assert task.criterion.label_smoothing == 0.2
    assert task.get_trainable_module(ema=True).decay == 0.7
    assert (loader.padding, loader.cutout, loader.flip, loader.seed, loader.batch_size) == (2, 6, "alternate", 5, 6)
    assert (loader.training, loader.rank, loader.world_size) == (True, 0, 1)
    assert not test_loader.training
    assert options["dtype"] == torch.bfloat16
    assert options["seed"] == 5
    images, _ = next(iter(loader))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert task.get_eval_model().conv1.weight.is_contiguous(memory_format=torch.channels_last)
    # Nor are they used where they were not given: those of the recipe are.
    task, loader, _, options = training_of(capsys, "wrn16_1", *data, *teacher, "--batch-size", 6)
    assert (task.soft_labels, task.beta, task.mode, task.criterion.label_smoothing) == (0, 1000, "code", 0)
    assert task.teacher_size is None
    assert task.get_trainable_module(ema=True) is None
    assert (loader.padding, loader.cutout, loader.flip, loader.seed) == (4, 16, True, 0)
    assert options["dtype"] == torch.float32


def test_each_process_has_its_share(capsys, tmp_path, monkeypatch):
    few_images(monkeypatch)
    monkeypatch.setattr(runs, "rank_and_size", lambda: (1, 2))
    data = ["--data", "torch/cifar10", "--data-dir", tmp_path, "--device", "cpu", "--out", tmp_path / "run"]
    with patch.object(ClassificationTask, "prepare_distributed") as prepare:
        _, loader, _, _ = training_of(capsys, "wrn16_1", *data, "--batch-size", 6)
    prepare.assert_called_once()
    assert (loader.rank, loader.world_size, loader.batch_size) == (1, 2, 3)


def test_teacher_student_and_evaluation(capsys, tmp_path, monkeypatch):
    few_images(monkeypatch)
    data = ["--data", "torch/cifar10", "--data-dir", tmp_path, "--device", "cpu"]
    short = [*data, "--epochs", 2, "--batch-size", 16]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    status, out, err = run(capsys, "train", "wrn16_1", *short, "--out", teacher)
    assert status == 0, err
    assert "epoch 2/2" in err
    genome = ["--genome", "2xW1/2xB2W1/2xW1"]
    command = ["train", "wrn16_1", *genome, *short, "--teacher", "wrn16_1", "--out", student, "--json"]
    command += ["--teacher-checkpoint", teacher / "model.safetensors", "--beta", 10, "--mode", "paper", "--ema", 0.5]
    status, out, err = run(capsys, *command, "--channels-last")
    assert status == 0, err
    summary = json.loads((student / "summary.json").read_text())
    assert json.loads(out) == summary
    assert (summary["recipe"]["beta"], summary["recipe"]["mode"], summary["recipe"]["lr"]) == (10, "paper", 0.1)
    assert summary["genome"] == "2xW1/2xB2W1/2xW1"
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["params"] == sum(p.numel() for p in make_task().parameters())
    header, rows = log_of(student)
    # The log has the whole recipe, the summary what the run used of it.
    assert {**{key: value for key, value in summary.items() if key in header}, "recipe": None} == header | {
        "recipe": None
    }
    assert summary["recipe"].items() <= header["recipe"].items()
    assert header["recipe"].keys() - summary["recipe"].keys() >= {"warmup", "small_size", "step_epochs", "crop_scale"}
    assert rows[0].keys() == {"epoch", "lr", "train_loss", "task_loss", "attention_loss", "top1_error", "top5_error"}
    weights = student / "model.safetensors"
    status, out, err = run(capsys, "evaluate", "wrn16_1", *genome, *data, "--checkpoint", weights, "--json")
    report = json.loads(out)
    assert (report["top1_error"], report["top5_error"]) == (summary["top1_error"], summary["top5_error"])
    assert report["images"] == summary["test_images"] == 24

    status, _, err = run(capsys, *command, "--resume")
    assert (status, err.splitlines()[-1].split(" has ")[1]) == (
        2,
        "channels-last True, not False; use what it has, or another --out",
    )
    # Another teacher of the same name is another run.
    weights = safetensors.torch.load_file(teacher / "model.safetensors")
    safetensors.torch.save_file({**weights, "fc.bias": weights["fc.bias"] + 1}, teacher / "model.safetensors")
    status, _, err = run(capsys, *command, "--channels-last", "--resume")
    assert status == 2
    assert " has teacher-weights sha256 " in err.splitlines()[-1]


def test_a_folder_from_start_to_evaluation(capsys, folder, tmp_path):
    same = ["wrn16_1", "--data", folder, "--num-classes", 2, "--workers", 0, "--device", "cpu"]
    idle = ["--cutout", 4, "--crop-scale", 0.5, "--warmup", 0.2]
    status, out, err = run(capsys, "train", *same, *idle, "--epochs", 1, "--batch-size", 8, "--out", tmp_path / "run")
    assert status == 0, err
    assert "\n--warmup and --cutout have no effect on this run\n" in "\n" + err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["recipe"]["weight_decay"], summary["test_images"]) == (1e-4, 8)
    status, evaluated, err = run(capsys, "evaluate", *same, "--checkpoint", tmp_path / "run" / "model.safetensors")
    lines = [line for line in out.splitlines() if "error" in line]
    assert lines == [line for line in evaluated.splitlines() if "error" in line]
    assert lines[0].split()[2] == f"{summary['top1_error']:.2f}"


@pytest.mark.parametrize("teacher", ["resnet34", "blockswap_resnet34"])
def test_torchvisions_weights_teach(tmp_path, teacher):
    theirs = torchvision.models.resnet34()
    torch.save(theirs.state_dict(), tmp_path / "resnet34.pth")
    command = ["train", "resnet34_3m", "--data", "x", "--out", "y"]
    command += ["--teacher", teacher, "--teacher-checkpoint", f"{tmp_path}/resnet34.pth", "--num-classes", "4"]
    given = train_.make_context("train", command[1:]).params
    settings = RunSettings(**{each.name: given[each.name] for each in fields(RunSettings)})
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(make_teacher(settings).eval()(images), theirs.eval()(images))


def test_an_interruption_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    few_images(monkeypatch)
    command = ["train", "wrn16_1", "--data", "torch/cifar10", "--data-dir", tmp_path, "--batch-size", 16]
    command += ["--device", "cpu", "--epochs", 1, "--out", tmp_path / "run"]
    monkeypatch.setattr(blockswap_models.training.loop, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    status, _, err = run(capsys, *command)
    assert status == 130
    assert err.splitlines()[-1] == "blockswap train: interrupted; continue with the same command and --resume"
    # Before its log begins, a run cannot be resumed.
    monkeypatch.setattr(
        "blockswap_models.training.runs.train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    status, _, err = run(capsys, *command[:-1], tmp_path / "early")
    assert (status, err.splitlines()[-1]) == (130, "blockswap train: interrupted")


def test_tensorboard_where_it_is_there(capsys, tmp_path, monkeypatch):
    scalars = []

    class Writer:
        def add_scalar(self, name, value, step):
            scalars.append((name, step))

    run_tiny(tmp_path / "run", writer=Writer(), recipe=replace(TINY, epochs=1))
    assert ("train_loss", 1) in scalars
    assert ("top1_error", 1) in scalars
    few_images(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    command = ["train", "wrn16_1", "--data", "torch/cifar10", "--data-dir", tmp_path, "--out", tmp_path / "other"]
    status, _, err = run(capsys, *command, "--device", "cpu", "--batch-size", 16, "--tensorboard")
    wanted = "blockswap train: --tensorboard needs the package tensorboard; use pip install tensorboard\n"
    assert (status, err) == (2, wanted)
    # It makes a folder as soon as it is there, which a run that is refused does not leave.
    made = SimpleNamespace(SummaryWriter=os.makedirs)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", made)
    refused = ["--device", "cpu", "--batch-size", 16, "--tensorboard", "--num-classes", 3]
    assert run(capsys, *command, *refused)[0] == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beta", 3], "--beta is for learning from a teacher; use --teacher MODEL"),
        (["--lr", 0], "--lr is above 0, not 0.0"),
        (["--ema", 1], "the decay of an average is between 0 and 1, not 1.0 (--ema)"),
        (["--teacher", "wrn40_1"], "no pretrained weights for blockswap_wrn40_1; 'blockswap train wrn40_1 "),
        (["--teacher", "wrn16_1", "--teacher-checkpoint", "none.safetensors"], "no checkpoint 'none.safetensors'"),
        (["--genome", "S/S/S"], "blockswap_wrn16_1 has stages of"),
        (["--log-every", 0], "--log-every is at least 1, not 0"),
        (["--in-chans", 0], "--in-chans is at least 1, not 0"),
        (["--image-size", 0], "--image-size is at least 1, not 0"),
        (["--resume"], "there is no run to resume in"),
        (["--batch-size", 64], "32 images make no minibatch of 64"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    few_images(monkeypatch)
    command = ["train", "wrn16_1", "--data", "torch/cifar10", "--data-dir", tmp_path, "--out", tmp_path / "run"]
    status, out, err = run(capsys, *command, "--device", "cpu", "--batch-size", 16, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"blockswap train: {message}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom blockswap_models.cli.main import main\n"
        "assert main(['train', '--help']) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--teacher-checkpoint" in done.stdout


def test_two_processes_make_an_epoch(folder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "blockswap_models", "train", "wrn16_1", "--genome", "2xW1/2xB2W1/2xW1", "--data", str(folder)]
    command += ["--num-classes", "2", "--batch-size", "8", "--epochs", "1", "--workers", "0", "--device", "cpu"]
    command += ["--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1 error") == 1
    header, rows = log_of(tmp_path / "run")
    assert header["processes"] == 2
    assert len(rows) == 1
    assert math.isfinite(rows[0]["train_loss"])
    assert (tmp_path / "run" / "model.safetensors").exists()


def _losses_of(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        sums, steps = [([2.0, 12.0], 2), ([10.0, 12.0], 4)][rank]
        means = loop._means(torch.tensor(sums), ["loss", "other"], steps)
        torch.save(means, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_losses_are_means_over_processes(tmp_path):
    # Over six steps, of which one process has counted two and the other four.
    torch.multiprocessing.start_processes(_losses_of, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == {"loss": 2.0, "other": 4.0}
