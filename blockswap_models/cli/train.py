"""The subcommand `blockswap train`: its options, and the task that they describe."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..genome import _quote
from ..training.recipes import RECIPES, Recipe
from .commands import _print_table
from .evaluate import _device, _known

if TYPE_CHECKING:
    import torch
    from timm.task import TrainingTask
    from torch import nn

__all__ = ["add_train", "run_train"]

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def add_train(subcommands: Any) -> argparse.ArgumentParser:
    """Adds the subcommand to those of `blockswap`."""
    command = subcommands.add_parser("train", help="train any timm model, from a teacher or without one")
    command.add_argument("names", nargs="+", metavar="MODEL", help="a model of timm or the zoo; several of one teacher")
    command.add_argument("--data", required=True, help="torch/cifar10 or another timm dataset, or a folder of images")
    command.add_argument("--data-dir", help="the folder of the dataset")
    command.add_argument("--out", required=True, metavar="FOLDER", help="where checkpoint, log and weights go")
    command.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    command.add_argument("--genome", help="block types, for a model of the zoo (its own)")
    command.add_argument("--num-classes", type=int, help="classes (the model's own)")
    command.add_argument("--in-chans", type=int, help="channels of the images (the model's own)")
    command.add_argument("--image-size", type=int, help="side of the images in pixels (the model's own)")
    start = command.add_mutually_exclusive_group()
    start.add_argument("--pretrained", action="store_true", help="start from the model's own weights (random ones)")
    start.add_argument(
        "--init",
        metavar="FILE",
        help="start from these weights; 'teacher': stem, head and blocks of the same type are the teacher's",
    )
    command.add_argument("--teacher", metavar="MODEL", help="learn from this model (no teacher)")
    command.add_argument("--teacher-checkpoint", metavar="FILE", help="the teacher's weights (its pretrained ones)")
    command.add_argument("--recipe", choices=tuple(RECIPES), help="hyperparameters (by data: cifar10, else imagenet)")
    recipe = command.add_argument_group("in place of the recipe's")
    recipe.add_argument("--epochs", type=int, help="epochs")
    recipe.add_argument("--batch-size", type=int, help="images a step, of all processes together")
    recipe.add_argument("--lr", type=float, help="highest learning rate")
    recipe.add_argument("--momentum", type=float, help="momentum of SGD")
    recipe.add_argument("--nesterov", action=argparse.BooleanOptionalAction, help="Nesterov's momentum")
    recipe.add_argument("--weight-decay", type=float, help="weight decay")
    recipe.add_argument("--decay-norm", action=argparse.BooleanOptionalAction, help="of biases and BN too")
    recipe.add_argument("--schedule", choices=("cosine", "step", "one-cycle"), help="how the learning rate goes")
    recipe.add_argument("--step-epochs", type=int, help="epochs between steps")
    recipe.add_argument("--step-factor", type=float, help="what a step multiplies the learning rate by")
    recipe.add_argument("--warmup", type=float, metavar="SHARE", help="share of one cycle in which the rate rises")
    recipe.add_argument("--label-smoothing", type=float, help="share of a hard label that goes to all classes")
    recipe.add_argument("--flip", choices=("random", "alternate"), help="by chance, or in every other epoch (CIFAR)")
    recipe.add_argument("--padding", type=int, help="border that is added for the crop of CIFAR")
    recipe.add_argument("--cutout", type=int, help="side of the square that is hidden, for CIFAR (0: none)")
    recipe.add_argument("--crop-scale", type=float, help="least share of the area that a crop keeps (but of CIFAR)")
    recipe.add_argument("--small-size", type=int, help="side of the images of the first epochs (0: as the others)")
    recipe.add_argument("--small-share", type=float, metavar="SHARE", help="share of the epochs with small images")
    recipe.add_argument("--average-epochs", type=int, help="average the weights after so many last epochs")
    recipe.add_argument("--beta", type=float, help="weight of attention transfer")
    recipe.add_argument("--mode", choices=("code", "paper"), help="loss of the authors' code, or equation 1")
    recipe.add_argument(
        "--soft-labels", type=float, metavar="WEIGHT", help="weight of the teacher's soft labels, 0 to 1"
    )
    recipe.add_argument("--temperature", type=float, help="temperature of soft labels")
    command.add_argument("--ema", type=float, metavar="DECAY", help="average the weights, such as 0.999 (no average)")
    command.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (%(default)s)")
    command.add_argument("--device", help="where to train (cuda where there is a GPU, else cpu)")
    command.add_argument("--amp", choices=("bfloat16",), help="precision of autocast (float32 throughout)")
    command.add_argument("--channels-last", action="store_true", help="memory format NHWC")
    command.add_argument(
        "--compile", nargs="?", const="default", default=False, choices=COMPILE_MODES, help="torch.compile, in a mode"
    )
    command.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read images")
    command.add_argument("--log-every", type=int, default=50, help="steps between looks at the loss (%(default)s)")
    command.add_argument("--test-every", type=int, default=1, help="epochs between looks at the test set (%(default)s)")
    command.add_argument(
        "--checkpoint-minutes", type=float, default=5, metavar="M", help="minutes between checkpoints in an epoch (5)"
    )
    command.add_argument("--tensorboard", action="store_true", help="write events for TensorBoard too")
    command.set_defaults(run=run_train)
    return command


def run_train(options: argparse.Namespace) -> None:
    """Trains a model, or several of one teacher, and prints the errors."""
    recipe = _recipe(options)
    if len(options.names) > 1:
        if options.teacher is None:
            raise ValueError("several models are trained together to share a teacher; write --teacher, or one model")
        if options.genome is not None:
            raise ValueError("a genome is for one model; leave out --genome, or write one model")
    if options.teacher is None:
        for name in ("teacher_checkpoint", "beta", "mode", "soft_labels", "temperature"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is for learning from a teacher; use --teacher MODEL")
        if options.init == "teacher":
            raise ValueError("there is no teacher to start from; use --teacher MODEL (--init)")
    if options.ema is not None and not 0 < options.ema < 1:
        raise ValueError(f"the decay of an average is between 0 and 1, not {options.ema} (--ema)")
    if options.init not in (None, "teacher") and not Path(options.init).is_file():
        raise ValueError(f"no weights {_quote(options.init)}; use a file, or 'teacher' (--init)")
    if options.teacher_checkpoint is not None and not Path(options.teacher_checkpoint).is_file():
        raise ValueError(f"no checkpoint {_quote(options.teacher_checkpoint)} (--teacher-checkpoint)")

    from ..searching.workers import keep_memory
    from ..training.distributed import process_group, rank_and_size

    device = _device(options.device)
    if device.type == "cpu":
        # Students, whose operations are small, spend much time on getting memory anew.
        keep_memory()
    with process_group(device) as device:
        rank, world_size = rank_and_size()
        summary = _train(options, recipe, device, rank, world_size)
    if rank:
        return
    if options.json:
        print(json.dumps(summary, indent=1))
        return
    together = len(options.names) > 1
    for name in options.names:
        each = summary[name] if together else summary
        rows = [
            ("weights", Path(options.out) / (name if together else "") / "model.safetensors"),
            ("data", options.data),
            ("images", f"{each['test_images']:,}"),
            ("top-1 error", f"{each['top1_error']:.2f} %"),
            ("top-5 error", f"{each['top5_error']:.2f} %"),
            ("time", f"{each['seconds']:,.1f} s, {recipe.epochs} epochs, {device}"),
        ]
        _print_table(("model", name), rows)


def _recipe(options: argparse.Namespace) -> Recipe:
    name = options.recipe or ("cifar10" if options.data.lower().startswith("torch/cifar") else "imagenet")
    given = {each.name: getattr(options, each.name) for each in fields(Recipe)}
    return replace(RECIPES[name], **{key: value for key, value in given.items() if value is not None})


def _train(
    options: argparse.Namespace, recipe: Recipe, device: torch.device, rank: int, world_size: int
) -> dict[str, Any]:
    import torch

    from ..training.evaluate import evaluation_loader
    from ..training.loaders import training_loader
    from ..training.loop import train

    students = _students(options)
    of_students = {name: _facts(name, student) for name, student in students.items()}
    model = students[options.names[0]]
    told = of_students[options.names[0]]
    if len(students) > 1:
        told = {key: [each[key] for each in of_students.values()] for key in told}
    for student in students.values():
        student.to(device)
    loader = training_loader(
        model,
        options.data,
        options.data_dir,
        recipe,
        seed=options.seed,
        rank=rank,
        world_size=world_size,
        device=device,
        channels_last=options.channels_last,
        workers=options.workers,
    )
    # Like `blockswap evaluate`, so that it finds the same error.
    test_loader = evaluation_loader(model, options.data, options.data_dir, workers=options.workers)
    teacher, teacher_file = _teacher_weights(options)
    arguments = {
        "model": told["model"],
        "genome": told["genome"],
        "num_classes": model.num_classes,
        "teacher": teacher,
        "teacher_weights": _digest(teacher_file),
        "in_chans": options.in_chans,
        "image_size": options.image_size,
        "init": "pretrained" if options.pretrained else options.init,
        "init_weights": None if options.init in (None, "teacher") else _digest(options.init),
        "data": options.data,
        "amp": options.amp,
        "channels_last": options.channels_last,
        "compile": options.compile,
        "device": device.type,
    }
    facts = {"params": told["params"], "macs": told["macs"], **_surroundings(device)}
    options.advice = "; go on with the same command and --resume"
    writer = _writer(options) if rank == 0 else None
    try:
        return train(
            _task(options, recipe, students, device, world_size),
            loader,
            test_loader,
            recipe,
            options.out,
            seed=options.seed,
            arguments=arguments,
            facts=facts,
            of_students=of_students,
            resume=options.resume,
            dtype=torch.float32 if options.amp is None else getattr(torch, options.amp),
            log_every=options.log_every,
            test_every=options.test_every,
            checkpoint_minutes=options.checkpoint_minutes,
            writer=writer,
        )
    finally:
        if writer is not None:
            writer.close()


def _students(options: argparse.Namespace) -> dict[str, nn.Module]:
    """Makes each student with the weights of the seed, which it has in a run of its own too."""
    import timm
    import torch
    from timm.data import resolve_model_data_config

    from ..training.initial_weights import load_initial

    full = [_known(name) for name in options.names]
    for name in full:
        if options.genome is not None and not name.startswith("blockswap_"):
            raise ValueError(f"{name} has no genome; leave out --genome, or write a model of 'blockswap list'")
        if full.count(name) > 1:
            raise ValueError(f"{name} is named twice; write each model once")
    students, own = {}, {"num_classes": options.num_classes, "genome": options.genome, "in_chans": options.in_chans}
    if options.image_size is not None:
        size = (options.in_chans or 3, options.image_size, options.image_size)
        own["pretrained_cfg_overlay"] = {"input_size": size}
    for short, name in zip(options.names, full, strict=True):
        torch.manual_seed(options.seed)
        if options.pretrained and not timm.is_model_pretrained(name):
            raise ValueError(f"{name} has no pretrained weights; leave out --pretrained, or use --init FILE")
        students[short] = timm.create_model(name, pretrained=options.pretrained, **own)
        if options.init not in (None, "teacher"):
            load_initial(students[short], options.init)
    wanted = {name: (resolve_model_data_config(each), each.num_classes) for name, each in students.items()}
    for name in options.names:
        if wanted[name] != wanted[options.names[0]]:
            raise ValueError(f"{name} has other images or classes than {options.names[0]}; train it by itself")
    return students


def _facts(name: str, student: nn.Module) -> dict[str, Any]:
    from ..nets.cost import count

    genome, cost = getattr(student, "genome", None), count(student)
    genome = None if genome is None else str(genome)
    return {"model": name, "genome": genome, "params": cost.params, "macs": cost.macs}


def _task(
    options: argparse.Namespace, recipe: Recipe, students: dict[str, nn.Module], device: torch.device, world_size: int
) -> TrainingTask:
    import torch
    from timm.task import ClassificationTask
    from torch import nn

    from ..training.attention_transfer import AttentionTransferTask
    from ..training.initial_weights import copy_from_teacher
    from ..training.shared_teacher import SharedTeacherTask

    task: TrainingTask
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    if options.teacher is None:
        (student,) = students.values()
        task = ClassificationTask(student, criterion, device=device, verbose=False)
    else:
        teacher = _teacher(options).to(device)
        if options.init == "teacher":
            for student in students.values():
                copy_from_teacher(student, teacher)
        same = {name: getattr(recipe, name) for name in ("beta", "mode", "soft_labels", "temperature")}
        same |= {"criterion": criterion, "device": device, "verbose": False}
        tasks = {name: AttentionTransferTask(student, teacher, **same) for name, student in students.items()}
        task = SharedTeacherTask(tasks) if len(tasks) > 1 else tasks[options.names[0]]
    if options.channels_last:
        task = task.to(memory_format=torch.channels_last)
    # In timm's order: copies are made of plain modules, and DDP wraps what was compiled.
    if options.ema is not None:
        task.setup_ema(decay=options.ema)
    if options.compile:
        task.compile(mode=options.compile)
        task.compile_ema(mode=options.compile)
    if world_size > 1:
        task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None)
    return task


def _teacher_weights(options: argparse.Namespace) -> tuple[str | None, str | None]:
    """Says which weights the teacher has: its name, with their tag where they are pretrained, and their file."""
    import timm

    if options.teacher is None or options.teacher_checkpoint is not None or ":" in options.teacher:
        return options.teacher, options.teacher_checkpoint
    name = _known(options.teacher)
    cfg = timm.get_pretrained_cfg(name)
    tagged = f"{name}.{cfg.tag}" if cfg is not None and cfg.tag and "." not in name else name
    return tagged, None if cfg is None else cfg.file


def _teacher(options: argparse.Namespace) -> nn.Module:
    import timm

    from ..training.evaluate import load_weights

    name, checkpoint = _known(options.teacher), options.teacher_checkpoint
    if checkpoint is None and ":" not in name and not timm.is_model_pretrained(name):
        raise ValueError(f"the teacher {name} has no pretrained weights; write --teacher-checkpoint FILE")
    arguments = {"num_classes": options.num_classes, "in_chans": options.in_chans}
    teacher = timm.create_model(name, pretrained=checkpoint is None, **arguments)
    if checkpoint is not None:
        # Its classes need not be the student's: attention transfer learns nothing from its answers.
        load_weights(teacher, checkpoint, any_classes=True)
    return teacher


def _digest(path: str | None) -> str | None:
    import hashlib

    return None if path is None else f"sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"


def _surroundings(device: torch.device) -> dict[str, Any]:
    import platform

    import torch

    from ..searching.profile import _about

    about = _about(device)
    hardware = {"processor": about.pop("processor"), "threads": torch.get_num_threads()}
    return {"versions": {"python": platform.python_version(), **about}, "hardware": hardware}


def _writer(options: argparse.Namespace) -> Any:
    if not options.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard wants the package tensorboard; write pip install tensorboard") from None
    return SummaryWriter(options.out)
