import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from test_train import TIMES, TINY, few_images, loaders, log_of, run, state_of

import blockswap_models
from blockswap_models import AttentionTransferTask, Layout
from blockswap_models.nets.networks import build
from blockswap_models.training.loop import make_optimizer, train
from blockswap_models.training.run_folder import RunFolder, TrainingError
from blockswap_models.training.shared_teacher import SharedTeacherTask

# With a dot, as timm's names have, and with blocks that differ in everything.
GENOMES = {"w": "2xW1/2xB2W1/2xW1", "b.2": "2xB2/2xB4/B2W4,B2"}


def teacher():
    torch.manual_seed(9)
    return timm.create_model("blockswap_wrn16_1")


def alone(name, network=None, **kwargs):
    torch.manual_seed(0)
    student = timm.create_model("blockswap_wrn16_1", genome=GENOMES[name], **kwargs)
    return AttentionTransferTask(student, network or teacher(), beta=10)


def together(**kwargs):
    network = teacher()
    return SharedTeacherTask({name: alone(name, network, **kwargs) for name in GENOMES})


def batch(number=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(number, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(10, (number,), generator=generator)


def run_task(task, folder, ema=None, recipe=TINY, **kwargs):
    if ema is not None:
        task.setup_ema(decay=ema)
    return train(task, *loaders(recipe=recipe), recipe, folder, progress=False, **kwargs)


def without_times(summary, *others):
    return {key: value for key, value in summary.items() if key not in (*TIMES, *others)}


def test_students_learn_together_what_they_learn_alone(tmp_path):
    own = {name: {"model": name, "params": len(name)} for name in GENOMES}
    listed = {"arguments": {"model": [*GENOMES], "data": "noise"}, "facts": {"params": [1, 3], "versions": {}}}
    summaries = run_task(together(), tmp_path / "both", 0.9, of_students=own, **listed)
    assert summaries.keys() == GENOMES.keys()
    _, rows = log_of(tmp_path / "both")
    for name in GENOMES:
        single, folder = tmp_path / name, tmp_path / "both" / name
        told = {"arguments": {"model": name, "data": "noise"}, "facts": {"params": len(name), "versions": {}}}
        summary = run_task(alone(name), single, 0.9, **told)
        assert (folder / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
        assert json.loads((folder / "summary.json").read_text()) == summaries[name]
        assert without_times(summaries[name], "students") == without_times(summary)
        assert summaries[name]["students"] == [*GENOMES]
        for row, row_alone in zip(rows, log_of(single)[1], strict=True):
            ours = {key.removeprefix(f"{name}/"): value for key, value in row.items() if key.startswith(f"{name}/")}
            assert ours == {key: value for key, value in row_alone.items() if key not in ("epoch", "lr")}
        state, state_alone = state_of(tmp_path / "both"), state_of(single)
        for key in ("state_dict", "state_dict_ema"):
            assert state[key][name] == state_alone[key]
        assert sorted(each.name for each in single.iterdir()) == sorted(
            [".lock", "checkpoint.pth", "log.jsonl", "model.safetensors", "summary.json"]
        )
    assert state_of(tmp_path / "w")["state_dict"] != state_of(tmp_path / "b.2")["state_dict"]
    for row in rows:
        assert row["train_loss"] == pytest.approx(sum(row[f"{name}/train_loss"] for name in GENOMES))
    assert sorted(each.name for each in (tmp_path / "both").iterdir()) == sorted(
        [".lock", "checkpoint.pth", "log.jsonl", *GENOMES]
    )


def test_an_interrupted_run_of_several_resumes_to_the_same_result(tmp_path, monkeypatch):
    # What the students draw in their forwards, here for dropout, is drawn again.
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_task(together(drop_rate=0.2), whole, 0.9)
    save, saved = RunFolder.save, []

    def save_and_stop(self, row, state):
        save(self, row, state)
        saved.append(row)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_task(together(drop_rate=0.2), broken, 0.9)
    monkeypatch.undo()
    assert [each.name for each in broken.iterdir() if each.is_dir()] == []
    torch.manual_seed(99)
    with pytest.raises(TrainingError, match=r"has students w b\.2, not w; use what it has, or another folder=$"):
        run_task(SharedTeacherTask({"w": alone("w")}), broken, 0.9, resume=True)
    run_task(together(drop_rate=0.2), broken, 0.9, resume=True)
    assert log_of(broken) == log_of(whole)
    assert state_of(broken) == state_of(whole)
    for name in GENOMES:
        ours, theirs = (folder / name / "model.safetensors" for folder in (broken, whole))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_teacher_runs_once_a_minibatch(tmp_path):
    task, calls = together(), []
    network = task.students["w"].teacher.model
    forward = network.forward_intermediates
    network.forward_intermediates = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    run_task(task, tmp_path)
    assert len(calls) == TINY.epochs * 4


def test_the_result_has_the_parts_of_each():
    task = together().train()
    assert task.training
    assert not any(module.training for module in task.students["w"].teacher.modules())
    result = task(*batch())
    parts = ("loss", "output", "task_loss", "attention_loss")
    assert result.keys() == {"loss", *(f"{name}/{part}" for name in GENOMES for part in parts)}
    torch.testing.assert_close(result["loss"], result["w/loss"] + result["b.2/loss"])
    result["loss"].backward()
    for name in GENOMES:
        other = alone(name).train()
        other(*batch())["loss"].backward()
        ours, theirs = (each.get_eval_model().parameters() for each in (task.students[name], other))
        assert all(torch.equal(one.grad, two.grad) for one, two in zip(ours, theirs, strict=True))


def test_the_optimizer_has_every_parameter_and_the_cpu_its_own_kernel():
    task = together()
    (group,) = make_optimizer(task.get_trainable_module(), TINY).param_groups
    wanted = [each for student in task.students.values() for each in student.get_eval_model().parameters()]
    assert [id(each) for each in group["params"]] == [id(each) for each in wanted]
    assert (group["fused"], group["foreach"]) == (None, None)


def test_a_checkpoint_has_the_state_of_each():
    task = together()
    assert task.get_trainable_module(ema=True) is None
    assert not task.has_ema()
    task.setup_ema(decay=0.5)
    assert task.has_ema()
    optimizer = make_optimizer(task.get_trainable_module(), TINY)
    task(*batch())["loss"].backward()
    optimizer.step()
    task.update_ema()
    state = copy.deepcopy({**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)})
    other = together()
    other.setup_ema()
    other.load_checkpoint_state(state["state_dict"])
    other.load_checkpoint_state(state["state_dict_ema"], ema=True)
    images, _ = batch()
    for name, student in task.students.items():
        for ema in (False, True):
            ours, theirs = (each.get_eval_model(ema=ema).eval() for each in (student, other.students[name]))
            assert torch.equal(ours(images), theirs(images))
    with pytest.raises(ValueError, match=r"^the checkpoint is of w, not of w, b\.2$"):
        other.load_checkpoint_state({"w": state["state_dict"]["w"]})


def test_what_several_students_cannot_do_is_refused():
    network = teacher()
    task = together()
    with pytest.raises(TypeError, match=r"^several students are several networks; use task.students\[name\]\.get_ev"):
        task.get_eval_model()
    with pytest.raises(TypeError, match=r"^students who share a teacher cannot have their gradients clipped together"):
        task.get_clip_parameters()
    with pytest.raises(ValueError, match=r"^there are no students; use tasks by name"):
        SharedTeacherTask({})
    with pytest.raises(ValueError, match=r"^w and v have different teachers; give both tasks the same network$"):
        SharedTeacherTask({"w": alone("w"), "v": alone("w")})
    deep = AttentionTransferTask(alone("w").get_eval_model(), network, stages=[3])
    with pytest.raises(ValueError, match=r"^w learns from stages \[1, 2, 3\] of the teacher and v from \[3\]; use"):
        SharedTeacherTask({"w": alone("w", network), "v": deep})
    larger = AttentionTransferTask(alone("w").get_eval_model(), network, teacher_size=64)
    with pytest.raises(ValueError, match=r"^w gives the teacher images of teacher_size=None and v of 64; use the same"):
        SharedTeacherTask({"w": alone("w", network), "v": larger})
    student = alone("w").get_eval_model()
    student.pretrained_cfg = {**student.pretrained_cfg, "mean": (0.1, 0.2, 0.3)}
    with pytest.raises(ValueError, match=r"^w and v want images of another mean and standard deviation; train each"):
        SharedTeacherTask({"w": alone("w", network), "v": AttentionTransferTask(student, network)})


def shallow():
    """The same with one block a stage, which compile in less time."""
    torch.manual_seed(9)
    layout = Layout.named("wrn10_1")
    network = build(layout)
    students = {name: build(layout, genome) for name, genome in {"w": "W1/B2W1/W1", "b.2": "B2/B4/B2W4"}.items()}
    return SharedTeacherTask({name: AttentionTransferTask(each, network, beta=10) for name, each in students.items()})


def test_compiled_students_learn_the_same_and_steps_are_marked(tmp_path, monkeypatch):
    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    recipe = replace(TINY, epochs=1)
    run_task(shallow(), tmp_path / "plain", 0.9, recipe)
    assert not marks
    task = shallow()
    task.setup_ema(decay=0.9)
    task.compile(backend="eager")
    task.compile_ema(backend="eager")
    run_task(task, tmp_path / "compiled", recipe=recipe)
    # Four steps, and two minibatches of 16 images of each student; at the end they are evaluated without the compiler.
    assert len(marks) == 4 + 2 * 2
    for name in GENOMES:
        ours, theirs = (
            safetensors.torch.load_file(tmp_path / folder / name / "model.safetensors")
            for folder in ("compiled", "plain")
        )
        torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
def test_cuda_graphs_take_the_same_steps(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows = []
    for mode in (None, "reduce-overhead"):
        task = together().to("cuda")
        (group,) = make_optimizer(task.get_trainable_module(), TINY).param_groups
        assert group["fused"]
        if mode is not None:
            task.compile(mode=mode)
        run_task(task, tmp_path / str(mode))
        rows.append([row["train_loss"] for row in log_of(tmp_path / str(mode))[1]])
    assert rows[0] == pytest.approx(rows[1], rel=0.05)


def test_who_diverges_is_named(tmp_path):
    task = together()
    # Infinite in float32.
    task.students["b.2"].beta = 1e300
    with pytest.raises(TrainingError, match=r"^the loss of b\.2 is no longer finite; the last checkpoint is kept"):
        run_task(task, tmp_path / "loss")
    left = [TINY.epochs * 4]

    class Breaking(SharedTeacherTask):
        def update_ema(self, step=None):
            left[0] -= 1
            if not left[0]:
                next(self.students["w"].get_eval_model().parameters()).data[0] = math.nan

    with pytest.raises(TrainingError, match=r"^the weights of w are not finite after epoch 3; the last checkpoint is"):
        run_task(Breaking(together().students), tmp_path / "weights")


def steps(task, images, labels):
    """Steps of SGD, with BN in evaluation mode: in training mode its statistics, of half a minibatch, would differ."""
    task.train()
    for module in task.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        # The first half of a step of two minibatches, and the second, at which processes exchange gradients.
        with task.no_sync():
            task(images, labels)["loss"].backward()
        task(images, labels)["loss"].backward()
        optimizer.step()
    return task.get_checkpoint_state()["state_dict"]


def steps_of_half(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        images, labels = batch(dtype=torch.float64)
        half = slice(4 * rank, 4 * rank + 4)
        task = together().double().prepare_distributed()
        torch.save(steps(task, images[half], labels[half]), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_take_the_steps_of_one(tmp_path):
    torch.multiprocessing.start_processes(steps_of_half, (str(tmp_path),), nprocs=2, start_method="fork")
    start = copy.deepcopy(together().double().get_checkpoint_state()["state_dict"])
    expected = steps(together().double(), *batch(dtype=torch.float64))
    for rank in range(2):
        actual = torch.load(tmp_path / f"{rank}.pt")
        for name, state in expected.items():
            torch.testing.assert_close(actual[name], state, rtol=0, atol=1e-9)
            assert (state["conv1.weight"] - start[name]["conv1.weight"]).abs().max() > 1e-4


def test_the_package_exports_it():
    assert blockswap_models.SharedTeacherTask is SharedTeacherTask


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_trains_several_as_it_trains_one(capsys, tmp_path, monkeypatch):
    few_images(monkeypatch)
    checkpoint = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(teacher().state_dict(), checkpoint)
    common = ["--data", "torch/cifar10", "--data-dir", tmp_path, "--device", "cpu", "--epochs", 1, "--batch-size", 16]
    common += ["--teacher", "wrn16_1", "--teacher-checkpoint", checkpoint, "--beta", 10]
    names = ["wrn16_1", "blockswap_wrn40_2_162k"]
    status, out, err = run(capsys, "train", *names, *common, "--out", tmp_path / "both")
    assert status == 0, err
    for name in names:
        assert str(tmp_path / "both" / name / "model.safetensors") in out
        assert run(capsys, "train", name, *common, "--out", tmp_path / name)[0] == 0
        ours, theirs = (tmp_path / folder / name for folder in ("both", "."))
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        summary, wanted = (json.loads((each / "summary.json").read_text()) for each in (ours, theirs))
        assert without_times(summary, "students", "command") == without_times(wanted, "command")
        assert (summary["model"], summary["compile"]) == (name, False)
    header, _ = log_of(tmp_path / "both")
    assert (header["model"], header["params"]) == (names, [175_066, 162_202])
    status, _, err = run(capsys, "train", *reversed(names), *common, "--out", tmp_path / "both", "--resume")
    assert status == 2
    assert "has students wrn16_1 blockswap_wrn40_2_162k, not blockswap_wrn40_2_162k wrn16_1; use what" in err
    status, out, err = run(capsys, "train", *names, *common, "--out", tmp_path / "both", "--resume", "--json")
    assert status == 0, err
    assert json.loads(out)["wrn16_1"]["model"] == "wrn16_1"


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (["wrn16_1", "wrn40_1"], [], "several models are trained together to share a teacher; use --teacher, or one"),
        (["wrn16_1", "blockswap_wrn16_1"], ["--teacher", "wrn40_2"], "blockswap_wrn16_1 is named twice; use each"),
        (["wrn16_1", "wrn40_1"], ["--teacher", "x", "--genome", "S/S/S"], "a genome is for one model; leave out --gen"),
        (["wrn16_1", "resnet18"], ["--teacher", "wrn40_2"], "resnet18 has other images or classes than wrn16_1; train"),
        (["wrn16_1", "wrn17_2"], ["--teacher", "wrn40_2"], "unknown model 'wrn17_2'; did you mean"),
    ],
)
def test_mistakes_of_several_are_one_line(capsys, tmp_path, names, arguments, message):
    command = ["train", *names, "--data", "torch/cifar10", "--data-dir", tmp_path, "--out", tmp_path / "run"]
    status, out, err = run(capsys, *command, "--device", "cpu", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"blockswap train: {message}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [([], False), (["--compile"], "default"), (["--compile", "reduce-overhead"], "reduce-overhead")],
)
def test_compile_takes_a_mode(capsys, tmp_path, monkeypatch, arguments, mode):
    few_images(monkeypatch)
    modes = []
    monkeypatch.setattr(torch, "compile", lambda each, mode=None, **_: modes.append(mode) or each)
    command = ["train", "wrn16_1", "--genome", GENOMES["w"], "--data", "torch/cifar10", "--data-dir", tmp_path]
    command += ["--device", "cpu", "--epochs", 1, "--batch-size", 16, "--out", tmp_path / "run", "--ema", 0.5]
    status, _, err = run(capsys, *command, *arguments)
    assert status == 0, err
    assert set(modes) == ({mode} if mode else set())
    assert log_of(tmp_path / "run")[0]["compile"] == mode
