"""`blockswap train`: its options, and the task that they describe."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ..messages import quote
from ..training.recipes import RECIPES, Recipe
from ..zoo.cards import MissingWeightsError, file_digest
from .errors import advise_when_interrupted, given_words
from .evaluate import say_which
from .parameters import GENOME, dataset_options, device_option, exclusive, reader_option, subcommand, together
from .tables import print_json, print_table

if TYPE_CHECKING:
    import torch
    from timm.task import TrainingTask
    from torch import nn

__all__ = ["make_teacher", "train_"]

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class _Train(click.Command):
    """Lists the options that take the place of the recipe's by themselves."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        of_recipe = {each.name for each in fields(Recipe)}
        shown: dict[str, list[tuple[str, str]]] = {"Options": [], "In place of the recipe's": []}
        for each in self.get_params(ctx):
            if isinstance(each, click.Option) and (record := each.get_help_record(ctx)) is not None:
                shown["In place of the recipe's" if each.name in of_recipe else "Options"].append(record)
        for title, records in shown.items():
            with formatter.section(title):
                formatter.write_dl(records)


# Each is named after its field of `Recipe`; what is not given is the recipe's.
_recipe_options = together(
    click.option("--epochs", type=int, help="epochs"),
    click.option("--batch-size", type=int, help="images a step, of all processes together"),
    click.option("--lr", type=float, help="highest learning rate"),
    click.option("--momentum", type=float, help="momentum of SGD"),
    click.option("--nesterov/--no-nesterov", default=None, help="Nesterov's momentum"),
    click.option("--weight-decay", type=float, help="weight decay"),
    click.option("--decay-norm/--no-decay-norm", default=None, help="of biases and BN too"),
    click.option("--schedule", type=click.Choice(("cosine", "step", "one-cycle")), help="how the learning rate goes"),
    click.option("--step-epochs", type=int, help="epochs between steps"),
    click.option("--step-factor", type=float, help="what a step multiplies the learning rate by"),
    click.option("--warmup", type=float, metavar="SHARE", help="share of one cycle in which the rate rises"),
    click.option("--label-smoothing", type=float, help="share of a hard label that goes to all classes"),
    click.option(
        "--flip", type=click.Choice(("random", "alternate")), help="by chance or in every other epoch (CIFAR)"
    ),
    click.option("--padding", type=int, help="border that is added for the crop of CIFAR"),
    click.option("--cutout", type=int, help="side of the square that is hidden, for CIFAR (0: none)"),
    click.option("--crop-scale", type=float, help="least share of the area that a crop keeps (but of CIFAR)"),
    click.option("--small-size", type=int, help="side of the images of the first epochs (0: as the others)"),
    click.option("--small-share", type=float, metavar="SHARE", help="share of the epochs with small images"),
    click.option("--average-epochs", type=int, help="average the weights after so many last epochs"),
    click.option("--beta", type=float, help="weight of attention transfer"),
    click.option("--mode", type=click.Choice(("code", "paper")), help="loss of the authors' code, or equation 1"),
    click.option("--soft-labels", type=float, metavar="WEIGHT", help="weight of the teacher's soft labels, 0 to 1"),
    click.option("--temperature", type=float, help="temperature of soft labels"),
)


@subcommand("train", "train any timm model, from a teacher or without one", cls=_Train)
@click.argument(
    "names", nargs=-1, required=True, metavar="MODEL...", help="a model of timm or the zoo; several of one teacher"
)
@dataset_options
@click.option("--out", required=True, metavar="FOLDER", help="where checkpoint, log and weights go")
@click.option("--resume", is_flag=True, help="go on with the run in that folder")
@click.option("--genome", type=GENOME, help="block types, for a model of the zoo [default: its own]")
@click.option("--num-classes", type=int, help="classes [default: the model's own]")
@click.option("--in-chans", type=int, help="channels of the images [default: the model's own]")
@click.option("--image-size", type=int, help="side of the images in pixels [default: the model's own]")
@click.option("--pretrained", is_flag=True, help="start from the model's own weights [default: random ones]")
@click.option(
    "--init",
    metavar="FILE",
    help="start from these weights; 'teacher': stem, head and blocks of the same type are the teacher's",
)
@click.option("--teacher", metavar="MODEL", help="learn from this model [default: no teacher]")
@click.option("--teacher-checkpoint", metavar="FILE", help="the teacher's weights [default: its pretrained ones]")
@click.option(
    "--recipe",
    type=click.Choice(tuple(RECIPES)),
    help="hyperparameters [default: by data, cifar10 or imagenet]",
)
@_recipe_options
@click.option("--ema", type=float, metavar="DECAY", help="average the weights, such as 0.999 [default: no average]")
@click.option("--seed", type=int, default=0, help="seed of weights, order and augmentation")
@device_option
@click.option("--amp", type=click.Choice(("bfloat16",)), help="precision of autocast [default: float32 throughout]")
@click.option("--channels-last", is_flag=True, help="memory format NHWC")
@click.option(
    "--compile", is_flag=False, flag_value="default", type=click.Choice(COMPILE_MODES), help="torch.compile, in a mode"
)
@reader_option
@click.option("--log-every", type=int, default=50, help="steps between looks at the loss")
@click.option("--test-every", type=int, default=1, help="epochs between looks at the test set")
@click.option(
    "--checkpoint-minutes", type=float, default=5.0, metavar="M", help="minutes between checkpoints in an epoch"
)
@click.option("--tensorboard", is_flag=True, help="write events for TensorBoard too")
def train_(as_json: bool, **arguments: Any) -> None:
    """Trains a model, or several of one teacher, and prints the errors."""
    options = SimpleNamespace(**arguments)
    exclusive("pretrained", "init")
    # As the log of a run has it.
    options.compile = options.compile or False
    recipe = _recipe(options)
    if len(options.names) > 1:
        if options.teacher is None:
            raise ValueError("several models are trained together to share a teacher; use --teacher, or one model")
        if options.genome is not None:
            raise ValueError("a genome is for one model; leave out --genome, or use one model")
    if options.teacher is None:
        for name in ("teacher_checkpoint", "beta", "mode", "soft_labels", "temperature"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is for learning from a teacher; use --teacher MODEL")
        if options.init == "teacher":
            raise ValueError("there is no teacher to start from; use --teacher MODEL (--init)")
    if options.ema is not None and not 0 < options.ema < 1:
        raise ValueError(f"the decay of an average is between 0 and 1, not {options.ema} (--ema)")
    if options.init not in (None, "teacher") and not Path(options.init).is_file():
        raise ValueError(f"no weights {quote(options.init)}; use a file, or 'teacher' (--init)")
    if options.teacher_checkpoint is not None and not Path(options.teacher_checkpoint).is_file():
        raise ValueError(f"no checkpoint {quote(options.teacher_checkpoint)} (--teacher-checkpoint)")

    from ..machine import find_device, keep_memory
    from ..training.distributed import process_group, rank_and_size

    device = find_device(options.device)
    if device.type == "cpu":
        # Students, whose operations are small, spend much time on getting memory anew.
        keep_memory()
    with process_group(device) as device:
        rank, world_size = rank_and_size()
        summary = _train(options, recipe, device, rank, world_size)
    if rank:
        return
    if as_json:
        print_json(summary)
        return
    together = len(options.names) > 1
    for name in options.names:
        each = summary[name] if together else summary
        rows = [
            ("weights", Path(options.out) / (name if together else "") / "model.safetensors"),
            ("data", options.data),
            ("images", f"{each['test_images']:,}"),
            ("top-1 error", f"{each['top1_error']:.2f} %"),
            *([("top-5 error", f"{each['top5_error']:.2f} %")] if each["num_classes"] > 5 else []),
            ("time", f"{each['seconds']:,.1f} s, {recipe.epochs} epochs, {device}"),
        ]
        print_table(("model", name), rows)


def _recipe(options: SimpleNamespace) -> Recipe:
    name = options.recipe or ("cifar10" if options.data.lower().startswith("torch/cifar") else "imagenet")
    given = {each.name: getattr(options, each.name) for each in fields(Recipe)}
    return replace(RECIPES[name], **{key: value for key, value in given.items() if value is not None})


def _train(
    options: SimpleNamespace, recipe: Recipe, device: torch.device, rank: int, world_size: int
) -> dict[str, Any]:
    import torch

    from ..data.cifar import CifarLoader
    from ..nets.devices import describe_machine
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
        "teacher_weights": None if teacher_file is None else file_digest(teacher_file),
        "in_chans": options.in_chans,
        "image_size": options.image_size,
        "init": "pretrained" if options.pretrained else options.init,
        "init_weights": None if options.init in (None, "teacher") else file_digest(options.init),
        "data": options.data,
        "amp": options.amp,
        "channels_last": options.channels_last,
        "compile": options.compile,
        "device": device.type,
    }
    start = ["blockswap"]
    if world_size > 1:
        start = ["torchrun", f"--nproc-per-node={world_size}", "-m", "blockswap_models"]
    facts = {
        **{key: told[key] for key in ("params", "macs", "input_size")},
        **describe_machine(device),
        "command": [*start, *given_words()],
    }
    # What the run used of the recipe: the log has all of it, the summary only this.
    cifar = isinstance(getattr(loader, "whole", loader), CifarLoader)
    used = {"recipe": recipe.used(teacher=options.teacher is not None, cifar=cifar)}
    of_students = {name if len(students) > 1 else "": {**each, **used} for name, each in of_students.items()}
    advise_when_interrupted("go on with the same command and --resume")
    writer = _writer(options) if rank == 0 else None
    if rank == 0:
        for name in options.names:
            say_which(name, options.genome)
        if options.teacher is not None:
            say_which(options.teacher)
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


def _students(options: SimpleNamespace) -> dict[str, nn.Module]:
    """Makes each student with the weights of the seed, which it has in a run of its own too."""
    import timm
    import torch

    from ..data.statistics import model_data_config
    from ..training.initial_weights import load_initial
    from ..zoo.find import find_model

    full = [find_model(name, options.genome) for name in options.names]
    for name in full:
        if full.count(name) > 1:
            raise ValueError(f"{name} is named twice; use each model once")
    students, own = {}, {"num_classes": options.num_classes, "genome": options.genome, "in_chans": options.in_chans}
    for short, name in zip(options.names, full, strict=True):
        torch.manual_seed(options.seed)
        if options.pretrained and ":" not in name and not timm.is_model_pretrained(name):
            raise MissingWeightsError(name, "leave out --pretrained, or use --init FILE")
        if options.image_size is not None:
            cfg = timm.get_pretrained_cfg(name)
            # The channels of the weights, which timm adapts to those of the network.
            channels = 3 if cfg is None else cfg.input_size[0]
            own["pretrained_cfg_overlay"] = {"input_size": (channels, options.image_size, options.image_size)}
        students[short] = timm.create_model(name, pretrained=options.pretrained, **own)
        if options.init not in (None, "teacher"):
            load_initial(students[short], options.init)
    wanted = {name: (model_data_config(each), each.num_classes) for name, each in students.items()}
    for name in options.names:
        if wanted[name] != wanted[options.names[0]]:
            raise ValueError(f"{name} has other images or classes than {options.names[0]}; train it by itself")
    return students


def _facts(name: str, student: nn.Module) -> dict[str, Any]:
    from ..data.statistics import model_data_config
    from ..nets.cost import count

    genome, cost = getattr(student, "genome", None), count(student)
    genome = None if genome is None else str(genome)
    size = list(model_data_config(student)["input_size"])
    return {"model": name, "genome": genome, "params": cost.params, "macs": cost.macs, "input_size": size}


def _task(
    options: SimpleNamespace, recipe: Recipe, students: dict[str, nn.Module], device: torch.device, world_size: int
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
        teacher = make_teacher(options).to(device)
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


def _teacher_weights(options: SimpleNamespace) -> tuple[str | None, str | None]:
    """Says which weights the teacher has: its name, with their tag where they are pretrained, and their file."""
    import timm

    from ..zoo.find import find_model

    if options.teacher is None or options.teacher_checkpoint is not None or ":" in options.teacher:
        return options.teacher, options.teacher_checkpoint
    name = find_model(options.teacher)
    cfg = timm.get_pretrained_cfg(name)
    tagged = f"{name}.{cfg.tag}" if cfg is not None and cfg.tag and "." not in name else name
    return tagged, None if cfg is None else cfg.file


def make_teacher(options: SimpleNamespace) -> nn.Module:
    """Makes the teacher of a command's options, with its weights."""
    import timm

    from ..training.evaluate import load_weights
    from ..zoo.find import find_model

    name, checkpoint = find_model(options.teacher), options.teacher_checkpoint
    if checkpoint is None and ":" not in name and not timm.is_model_pretrained(name):
        raise MissingWeightsError(name, "use --teacher-checkpoint FILE for a teacher of your own")
    arguments = {"num_classes": options.num_classes, "in_chans": options.in_chans}
    teacher = timm.create_model(name, pretrained=checkpoint is None, **arguments)
    if checkpoint is not None:
        # Its classes need not be the student's: attention transfer learns nothing from its answers.
        load_weights(teacher, checkpoint, any_classes=True)
    return teacher


def _writer(options: SimpleNamespace) -> Any:
    if not options.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard needs the package tensorboard; use pip install tensorboard") from None
    return SummaryWriter(options.out)
