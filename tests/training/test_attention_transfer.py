import copy
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.task import DistillationTeacher
from timm.utils import CheckpointSaver
from torch import nn

import blockswap_models
from blockswap_models import Layout
from blockswap_models.data.statistics import model_data_config
from blockswap_models.nets.networks import build
from blockswap_models.training.attention_transfer import AttentionTransferTask, attention_maps, attention_transfer_loss

MODES = pytest.mark.parametrize("mode", ["code", "paper"])


def wrn(widen=1, seed=0, **kwargs):
    torch.manual_seed(seed)
    return build(Layout.wide_resnet(10, widen), **kwargs)


def batch(number=4, size=16, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(number, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(10, (number,), generator=generator)


def random_features(channels, sizes=((4, 6), (2, 3), (1, 2)), seed=0, number=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(number, chs, *size, generator=generator, dtype=torch.float64)
        for chs, size in zip(channels, sizes, strict=True)
    ]


def map_by_hand(feature):
    """The attention maps of a feature as lists of numbers, one list an image."""
    maps = []
    for image in feature.tolist():
        chs, height, width = len(image), len(image[0]), len(image[0][0])
        energy = [sum(image[c][i][j] ** 2 for c in range(chs)) / chs for i in range(height) for j in range(width)]
        norm = math.sqrt(sum(e * e for e in energy))
        maps.append([e / norm for e in energy])
    return maps


def loss_by_hand(student_features, teacher_features, beta, mode):
    total = 0.0
    for student, teacher in zip(student_features, teacher_features, strict=True):
        gaps = [
            [s - t for s, t in zip(q_s, q_t, strict=True)]
            for q_s, q_t in zip(map_by_hand(student), map_by_hand(teacher), strict=True)
        ]
        squares = [sum(g * g for g in gap) for gap in gaps]
        if mode == "code":
            total += 3 / len(student_features) * sum(squares) / (len(gaps) * len(gaps[0]))
        else:
            total += sum(map(math.sqrt, squares)) / len(gaps)
    return beta * total


@MODES
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_loss_is_the_formula(mode, stages):
    student, teacher = random_features((5, 7, 2), seed=1)[:stages], random_features((3, 7, 9), seed=2)[:stages]
    expected = loss_by_hand(student, teacher, 750, mode)
    assert attention_transfer_loss(student, teacher, 750, mode).item() == pytest.approx(expected, rel=1e-12)


def test_beta_is_a_thousand_and_the_mode_that_of_the_code():
    student, teacher = random_features((5, 7, 2), seed=1), random_features((3, 7, 9), seed=2)
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(
        loss_by_hand(student, teacher, 1000, "code")
    )


@MODES
def test_the_gradient_is_the_formulas_and_none_goes_to_the_teacher(mode):
    student, teacher = random_features((2, 3, 4), seed=1, number=2), random_features((3, 2, 1), seed=2, number=2)
    for feature in student + teacher:
        feature.requires_grad_()
    assert torch.autograd.gradcheck(lambda *s: attention_transfer_loss(s, teacher, 10, mode), student)
    attention_transfer_loss(student, teacher, 10, mode).backward()
    assert all(feature.grad.any() for feature in student)
    assert all(feature.grad is None for feature in teacher)


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dead_stages_and_equal_stages_give_no_nan(mode, dtype):
    alive = [feature.to(dtype) for feature in random_features((5, 7, 2))]
    dead = [torch.zeros_like(feature) for feature in alive]
    for mine, teacher in [(alive, alive), (alive, dead), (dead, alive), (dead, dead)]:
        student = [feature.clone().requires_grad_() for feature in mine]
        loss = attention_transfer_loss(student, teacher, 1000, mode)
        loss.backward()
        assert loss.isfinite()
        assert all(feature.grad.isfinite().all() for feature in student)


@MODES
def test_maps_of_half_precision_are_computed_in_float32(mode):
    # 300² is beyond float16, and bfloat16 has three digits.
    coarse = [(300 * feature).bfloat16() for feature in random_features((5, 7, 2), seed=1)]
    teacher = [(300 * feature).half() for feature in random_features((3, 7, 9), seed=2)]
    loss = attention_transfer_loss(coarse, teacher, 1000, mode)
    assert loss.dtype == torch.float32
    expected = loss_by_hand([f.double() for f in coarse], [f.double() for f in teacher], 1000, mode)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["equation", None])
def test_another_mode_is_refused(mode):
    with pytest.raises(ValueError, match="mode is 'code' or 'paper', not"):
        attention_transfer_loss([], [], mode=mode)
    with pytest.raises(ValueError, match="mode is 'code' or 'paper', not"):
        AttentionTransferTask(wrn(), wrn(), mode=mode)


@MODES
def test_the_task_adds_the_loss_to_cross_entropy(mode):
    student, teacher = wrn(1), wrn(2, seed=1).eval()
    task = AttentionTransferTask(student, teacher, mode=mode, beta=500)
    images, labels = batch()
    reference = copy.deepcopy(student)
    result = task.train()(images, labels)
    _, features = reference.train().forward_intermediates(images)
    _, teacher_features = teacher.forward_intermediates(images)
    expected = loss_by_hand([f.detach() for f in features[1:]], teacher_features[1:], 500, mode)
    assert result["attention_loss"].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(result["output"], reference(images))
    torch.testing.assert_close(result["task_loss"], F.cross_entropy(result["output"], labels))
    torch.testing.assert_close(result["loss"], result["task_loss"] + result["attention_loss"])


def networks():
    yield "wrn", lambda **kwargs: wrn(**kwargs), 16
    for name in ("blockswap_resnet18", "test_resnet", "test_efficientnet"):
        yield name, lambda name=name, **kwargs: timm.create_model(name, num_classes=10, **kwargs), 64


@pytest.mark.parametrize(("make", "size"), [pytest.param(m, s, id=name) for name, m, s in networks()])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_one_pass_gives_the_logits_of_the_network(make, size, training):
    student = make(drop_rate=0.5, drop_path_rate=0.5)
    task = AttentionTransferTask(student, copy.deepcopy(student)).train(training)
    images, labels = batch(size=size)
    before = copy.deepcopy(student.state_dict())
    torch.manual_seed(3)
    output = task(images, labels)["output"]
    student.load_state_dict(before)
    torch.manual_seed(3)
    assert torch.equal(output, student(images))
    torch.manual_seed(4)
    assert torch.equal(output, student(images)) != training


def test_every_weight_of_the_student_learns_and_nothing_of_the_teacher_changes():
    student, teacher = wrn(1), wrn(2, seed=1).train()
    before = copy.deepcopy(teacher.state_dict())
    task = AttentionTransferTask(student, teacher).train()
    assert student.training
    assert not any(module.training for module in teacher.modules())
    task(*batch())["loss"].backward()
    assert all(parameter.grad.any() for parameter in student.parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_attention_alone_reaches_the_last_stage():
    task = AttentionTransferTask(wrn(1), wrn(2, seed=1))
    task(*batch())["attention_loss"].backward()
    with_gradient = {name for name, p in task.trainable_module.student.named_parameters() if p.grad is not None}
    assert {"conv1.weight", "stages.0.0.conv1.weight", "stages.2.0.conv2.weight"} <= with_gradient
    assert not {"bn.weight", "fc.weight"} & with_gradient


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blockswap_wrn16_1", [1, 2, 3]),
        ("blockswap_resnet18", [1, 2, 3, 4]),
        ("test_resnet", [1, 2, 3, 4]),
        ("resnet10t", [1, 2, 3, 4]),
        ("regnetx_002", [1, 2, 3, 4]),
        ("test_convnext", [0, 1, 2, 3]),
    ],
)
def test_the_stem_is_no_stage(name, expected):
    network = timm.create_model(name)
    assert AttentionTransferTask(network, network).teacher_stages == expected


@pytest.mark.parametrize("teacher", ["test_resnet", "test_convnext"])
def test_any_pair_of_timm_networks(teacher):
    torch.manual_seed(0)
    task = AttentionTransferTask(
        timm.create_model("test_resnet", num_classes=10), timm.create_model(teacher, num_classes=5)
    )
    task.train()
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=1e-4, layer_decay=0.9)
    images, labels = batch(size=64)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        result = task(images, labels)
        result["loss"].backward()
        optimizer.step()
        losses.append(result["attention_loss"].item())
    assert 0 < losses[-1] < losses[0] / 2


def test_stages_are_named_for_each_network():
    student, teacher = wrn(1), timm.create_model("test_resnet")
    task = AttentionTransferTask(student, teacher, stages=(2, -1), teacher_stages=[0, 1]).eval()
    images, labels = batch()
    features = student.forward_intermediates(images, indices=[2, 3], intermediates_only=True)
    others = teacher.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    loss = attention_transfer_loss(features, others)
    torch.testing.assert_close(task(images, labels)["attention_loss"], loss)
    both = AttentionTransferTask(student, teacher, stages=[2])
    assert both.trainable_module.stages == both.teacher_stages == [2]


@pytest.mark.parametrize("stages", [[], [1, 4], [-5], [2, 1], [1, 1], [3, -1]])
def test_stages_that_are_not_there_are_refused(stages):
    with pytest.raises(ValueError, match=r"^stages of the student are different indices from 0 to 3, in order, not \["):
        AttentionTransferTask(wrn(), wrn(), stages=stages)
    with pytest.raises(ValueError, match=r"^stages of the teacher are different indices from 0 to 3, in order, not \["):
        AttentionTransferTask(wrn(), wrn(), teacher_stages=stages)


def test_stages_must_be_as_many():
    with pytest.raises(ValueError, match="the student has 3 stages") as error:
        AttentionTransferTask(wrn(), timm.create_model("test_resnet"))
    assert str(error.value) == (
        "the student has 3 stages (1, 2, 3, of reduction 1, 2, 4) and the teacher 4 stages (1, 2, 3, 4, of reduction "
        "4, 8, 16, 32); name as many of each, of the same reductions, by stages=(…) and teacher_stages=(…), or use "
        "beta=0 for soft labels alone"
    )


def test_maps_must_be_of_one_size():
    task = AttentionTransferTask(wrn(), timm.create_model("test_resnet"), stages=(1, 2, 3))
    with pytest.raises(ValueError, match="the student's maps are") as error:
        task(*batch(size=32))
    assert str(error.value) == (
        "the student's maps are 4x32x32, 4x16x16, 4x8x8 and the teacher's 4x8x8, 4x4x4, 4x2x2 (images x height x "
        "width); choose stages, and give both networks images, of the same sizes"
    )
    with pytest.raises(ValueError, match="the student's maps are 3x4x6 and the teacher's 3x6x4 "):
        attention_transfer_loss([torch.ones(3, 2, 4, 6)], [torch.ones(3, 2, 6, 4)])
    with pytest.raises(ValueError, match="the student's maps are 3x4x6 and the teacher's 3x4x6, 3x4x6 "):
        attention_transfer_loss([torch.ones(3, 2, 4, 6)], [torch.ones(3, 2, 4, 6)] * 2)


def test_a_network_without_intermediates_is_refused():
    plain = nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"^the student, Linear, has no feature_info; make it with timm.create_model"):
        AttentionTransferTask(plain, wrn())
    with pytest.raises(TypeError, match=r"^the teacher, Linear, has no feature_info; make it with timm.create_model"):
        AttentionTransferTask(wrn(), plain)


@MODES
def test_bfloat16_autocast(mode):
    task = AttentionTransferTask(wrn(1), wrn(2, seed=1), mode=mode).train()
    images, labels = batch()
    exact = copy.deepcopy(task)(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        result = task(images, labels)
    assert result["output"].dtype == torch.bfloat16
    assert result["attention_loss"].dtype == torch.float32
    torch.testing.assert_close(result["attention_loss"], exact["attention_loss"], rtol=0.05, atol=0)
    result["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.trainable_module.parameters())


def test_students_share_a_teachers_forward():
    teacher = wrn(2, seed=1)
    tasks = [AttentionTransferTask(wrn(1, seed=seed), teacher) for seed in (2, 3)]
    images, labels = batch()
    alone = [copy.deepcopy(task)(images, labels)["loss"] for task in tasks]
    outputs = tasks[0].teacher_outputs(images)
    maps = outputs.maps
    assert not any(each.requires_grad for each in maps)
    for each, feature in zip(maps, teacher.forward_intermediates(images)[1][1:], strict=True):
        torch.testing.assert_close(each, attention_maps([feature])[0])
    teacher.forward_intermediates = None
    for task, loss in zip(tasks, alone, strict=True):
        torch.testing.assert_close(task(images, labels, teacher_outputs=outputs)["loss"], loss)


def test_the_teacher_gets_images_in_its_own_normalisation():
    student, teacher = timm.create_model("blockswap_wrn16_1"), timm.create_model("blockswap_wrn16_1").eval()
    images, _ = batch()
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    task = AttentionTransferTask(student, teacher)
    pixels = images * torch.tensor((0.2023, 0.1994, 0.2010)).view(3, 1, 1)
    pixels = pixels + torch.tensor((0.4914, 0.4822, 0.4465)).view(3, 1, 1)
    theirs = (pixels - torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1)) / torch.tensor((0.4, 0.5, 0.6)).view(3, 1, 1)
    expected = attention_maps(teacher.forward_intermediates(theirs)[1][1:])
    torch.testing.assert_close(task.teacher_outputs(images).maps, expected)
    # What a network without a cfg wants is not known: it gets the images as they are.
    for pair in [(wrn(), teacher), (student, wrn())]:
        task = AttentionTransferTask(*pair)
        expected = attention_maps(pair[1].eval().forward_intermediates(images)[1][1:])
        torch.testing.assert_close(task.teacher_outputs(images).maps, expected)


def test_the_teacher_gets_larger_images():
    student, teacher = timm.create_model("blockswap_wrn16_1"), timm.create_model("test_resnet", num_classes=10).eval()
    task = AttentionTransferTask(student, teacher, stages=(1, 2, 3), teacher_stages=(1, 2, 3), teacher_size=64)
    given = []
    teacher.conv1[0].register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    # Of little contrast: Pillow cuts what is beyond black and white.
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(80, 176, (2, 3, 16, 16), dtype=torch.uint8, generator=generator)
    mean, std = torch.tensor((0.4914, 0.4822, 0.4465)), torch.tensor((0.2023, 0.1994, 0.2010))
    images = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    # Maps of reduction 4, 8 and 16 have the student's sizes now.
    loss = task(images, torch.tensor([3, 1]))["attention_loss"]
    assert 0 < loss < math.inf
    theirs = model_data_config(teacher)
    back = given[0] * torch.tensor(theirs["std"]).view(3, 1, 1) + torch.tensor(theirs["mean"]).view(3, 1, 1)
    for image, enlarged in zip(pixels, back, strict=True):
        by_pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.array(by_pillow)).permute(2, 0, 1) / 255
        # Pillow rounds after rows and after columns.
        torch.testing.assert_close(enlarged, expected, atol=1.5 / 255, rtol=0)


def test_without_attention_any_network_that_classifies_will_do():
    student = timm.create_model("test_resnet", num_classes=10)
    teacher = timm.create_model("test_vit", num_classes=10).eval()
    images, labels = batch()
    task = AttentionTransferTask(student, teacher, beta=0, soft_labels=0.75, temperature=2.0, teacher_size=160)
    result = task(images, labels)
    with torch.no_grad():
        larger = F.interpolate(images, (160, 160), mode="bicubic", antialias=True)
        theirs = F.softmax(teacher(larger) / 2, dim=1)
    soft = (theirs * (theirs.log() - F.log_softmax(student(images) / 2, dim=1))).sum(dim=1).mean() * 4
    torch.testing.assert_close(result["loss"], 0.25 * F.cross_entropy(student(images), labels) + 0.75 * soft)
    assert result["attention_loss"] == 0


# timm keeps a cfg of three channels for its own networks.
@pytest.mark.parametrize(("student", "teacher"), [("blockswap_wrn16_1", "resnet18"), ("resnet18", "blockswap_wrn16_1")])
def test_the_teacher_gets_grey_images_in_its_own_normalisation(student, teacher):
    networks = [timm.create_model(name, in_chans=1, num_classes=10) for name in (student, teacher)]
    task = AttentionTransferTask(*networks, stages=[1, 2], teacher_stages=[1, 2], verbose=False)
    given = []
    networks[1].conv1.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    images = torch.randn(2, 1, 32, 32)
    task.teacher_outputs(images)
    numbers = {"blockswap_wrn16_1": (0.4734, 0.2009), "resnet18": (0.449, 0.226)}
    (mean, std), (their_mean, their_std) = numbers[student], numbers[teacher]
    torch.testing.assert_close(given[0], (images * std + mean - their_mean) / their_std)


def test_networks_of_different_channels_are_refused():
    student, teacher = timm.create_model("blockswap_wrn16_1", in_chans=1), timm.create_model("blockswap_wrn16_1")
    with pytest.raises(ValueError, match=r"^the student has in_chans=1 and the teacher in_chans=3; use the same for"):
        AttentionTransferTask(student, teacher)


def test_equal_normalisations_are_not_compared_at_each_minibatch(monkeypatch):
    task = AttentionTransferTask(timm.create_model("blockswap_wrn16_1"), timm.create_model("blockswap_wrn16_1"))
    monkeypatch.setattr(torch, "equal", None)
    task.teacher_outputs(batch()[0])


def test_a_teacher_by_name_keeps_its_classes_for_soft_labels():
    student = timm.create_model("blockswap_wrn16_1", num_classes=7)
    with pytest.raises(ValueError, match=r"^soft labels are for a teacher of the student's 7 classes, this one has 10"):
        AttentionTransferTask(student, "blockswap_wrn40_2_404k", soft_labels=0.5)


def test_a_teacher_of_timms_is_taken_as_it_is():
    teacher = DistillationTeacher(wrn(2)).train()
    task = AttentionTransferTask(wrn(1), teacher)
    assert task.teacher is teacher
    assert not teacher.model.training


def test_a_checkpoint_is_the_student(tmp_path):
    teacher = wrn(2, seed=1)
    task = AttentionTransferTask(wrn(1), teacher).train()
    task.setup_ema(decay=0.5)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.1)
    task(*batch())["loss"].backward()
    optimizer.step()
    task.update_ema()
    student, average = task.get_eval_model(), task.get_eval_model(ema=True)
    assert student is task.trainable_module.student
    assert len(list(task.get_clip_parameters())) == len(list(student.parameters()))

    saver = CheckpointSaver(task.get_eval_model(), optimizer, checkpoint_dir=str(tmp_path), task=task)
    saver.save_checkpoint(0)
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    assert saved["state_dict"].keys() == saved["state_dict_ema"].keys() == wrn(1).state_dict().keys()

    other = AttentionTransferTask(wrn(1, seed=5), teacher)
    other.setup_ema()
    timm.task.resume_task_checkpoint(other, tmp_path / "last.pth.tar")
    timm.task.load_task_ema_checkpoint(other, tmp_path / "last.pth.tar")
    images, _ = batch()
    for ours, theirs in [(student, other.get_eval_model()), (average, other.get_eval_model(ema=True))]:
        assert torch.equal(ours.eval()(images), theirs.eval()(images))
    assert not torch.equal(student(images), average(images))

    state = copy.deepcopy(task.state_dict())
    fresh = AttentionTransferTask(wrn(1, seed=6), wrn(2, seed=6))
    fresh.setup_ema()
    fresh.load_state_dict(state)
    torch.testing.assert_close(fresh.eval()(*batch()), task.eval()(*batch()))


def train(task, images, labels, steps=2):
    """Steps of SGD, with BN in evaluation mode: in training mode its statistics, of half a minibatch, would differ."""
    task.train()
    for module in task.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        task(images, labels)["loss"].backward()
        optimizer.step()
    return task.get_eval_model().state_dict()


def make_task(mode):
    return AttentionTransferTask(wrn(1).double(), wrn(2, seed=1).double(), mode=mode, dtype=torch.float64)


def train_half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        images, labels = batch(number=8, dtype=torch.float64)
        half = slice(4 * rank, 4 * rank + 4)
        for mode in ("code", "paper"):
            task = make_task(mode).prepare_distributed()
            torch.save(train(task, images[half], labels[half]), Path(folder) / f"{mode}{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_take_the_steps_of_one(tmp_path):
    torch.multiprocessing.start_processes(train_half, (str(tmp_path),), nprocs=2, start_method="fork")
    for mode in ("code", "paper"):
        start = copy.deepcopy(make_task(mode).get_eval_model().state_dict())
        expected = train(make_task(mode), *batch(number=8, dtype=torch.float64))
        for rank in range(2):
            actual = torch.load(tmp_path / f"{mode}{rank}.pt")
            assert actual.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-9)
        for name in ("conv1.weight", "fc.weight"):
            assert (expected[name] - start[name]).abs().max() > 1e-4


def test_the_package_exports_it():
    assert blockswap_models.AttentionTransferTask is AttentionTransferTask
