"""Training runs by name: networks, teacher, weights and data as arguments of `blockswap train`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.task import ClassificationTask, TrainingTask
from torch import nn

from ..counts import require_counts
from ..data.cifar import CifarLoader
from ..data.facts import holdout_of, holdout_text, image_facts
from ..data.folders import find_dataset, names_of, plain_name, require_outside
from ..data.images import ImageFiles
from ..data.statistics import CIFAR10_NAMES, label_names, model_data_config
from ..machine import computes_bfloat16
from ..messages import quote
from ..nets.cost import count
from ..nets.devices import describe_machine
from ..nets.library import BlockLibrary
from ..nets.swap import swap
from ..zoo.cards import MissingWeightsError, WeightsError, file_digest
from ..zoo.find import find_model, has_source, swaps, which_was_taken
from ..zoo.original import original_network
from .attention_transfer import AttentionTransferTask
from .distributed import rank_and_size
from .evaluate import evaluation_loader, load_weights
from .freezing import freeze
from .initial_weights import copy_from_teacher, load_initial
from .loaders import require_splits, training_loader
from .loop import train
from .models import CONFIG, create, is_folder, is_run, make_model
from .recipes import Recipe
from .run_folder import WEIGHTS, read_summary
from .shared_teacher import SharedTeacherTask

__all__ = ["RunSettings", "has_other_classes", "make_teacher", "train_run"]


@dataclass(frozen=True)
class RunSettings:
    """What a training run depends on, besides its recipe.

    Attributes:
        names: The networks, each a model of timm or the zoo; several learn from one teacher.
        data: A name of timm's dataset, or a folder of images.
        data_dir: The folder of a dataset with a name.
        val_share: Share of each class that is held out for validation, for a folder without splits; 0.2 where None.
        val_seed: Seed of what is held out.
        genome: Block types, for a network of the zoo; or for one of timm, whose blocks they replace.
        num_classes: Classes; those of a folder of images, or the network's own, where None.
        in_chans: Channels of the images, the network's own where None.
        image_size: Side of the images in pixels, the network's own where None.
        pretrained: Whether the networks start from their own weights.
        init: A file of weights to start from, or 'teacher'.
        teacher: A model of timm or the zoo, the folder of a run or of a saved network, or None.
        teacher_checkpoint: A file with the teacher's weights; its own where None.
        ema: Decay of the average of the weights, or None.
        seed: Seed of weights, order and augmentation.
        amp: Precision of autocast, or None.
        channels_last: Whether memory is NHWC.
        compile: A mode of torch.compile, or False.
    """

    names: Sequence[str]
    data: str
    data_dir: str | None = None
    val_share: float | None = None
    val_seed: int = 0
    genome: str | None = None
    num_classes: int | None = None
    in_chans: int | None = None
    image_size: int | None = None
    pretrained: bool = False
    init: str | None = None
    teacher: str | None = None
    teacher_checkpoint: str | None = None
    ema: float | None = None
    seed: int = 0
    amp: str | None = None
    channels_last: bool = False
    compile: str | bool = False


def train_run(
    settings: RunSettings,
    recipe: Recipe,
    folder: str | Path,
    *,
    device: torch.device,
    workers: int = 4,
    resume: bool = False,
    log_every: int = 50,
    test_every: int = 1,
    checkpoint_minutes: float = 5.0,
    command: Sequence[str] = (),
    asked: Sequence[str] = (),
    writer: Any = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Makes networks, teacher and loaders by their names, and trains as `train` does.

    Args:
        settings: What is trained, on what and from whom.
        recipe: The hyperparameters.
        folder: The folder of the run.
        device: Where to train.
        workers: Processes that read images.
        resume: Whether to continue from the checkpoint.
        log_every: Steps between checks of the loss.
        test_every: Epochs between evaluations.
        checkpoint_minutes: Minutes between checkpoints within an epoch.
        command: The words of the command that asked for this run, for the summary.
        asked: The hyperparameters that the user set; those that this run does not use are said.
        writer: A SummaryWriter of TensorBoard.
        say: Called with each line that the user should read before training begins.

    Returns:
        The summary; of several students their summaries, by name.

    Raises:
        ValueError: Something does not fit; the message says what.
    """
    rank, world_size = rank_and_size()
    sizes = {name: getattr(settings, name) for name in ("num_classes", "in_chans", "image_size")}
    require_counts(**sizes)
    if recipe.freeze is not None and not settings.pretrained and settings.init is None:
        raise ValueError("to freeze random weights trains less of the network; use pretrained=True or init=FILE")
    if settings.pretrained and settings.init is not None:
        raise ValueError("a run starts from one place; use pretrained=True or init=, not both")
    if settings.teacher is None and settings.init == "teacher":
        raise ValueError("there is no teacher to start from; use teacher=, or another init=")
    if settings.teacher is None and recipe.soft_labels:
        raise ValueError("soft labels are a teacher's; use teacher=, or soft_labels=0")
    if settings.teacher is not None and not recipe.soft_labels and not recipe.beta:
        raise ValueError("nothing is learned from the teacher; use beta above 0, soft_labels above 0, or no teacher=")
    for name in settings.names:
        if is_run(name):
            raise ValueError(
                f"{quote(name)} is no network, but the folder of a run; to start from its weights use the network's "
                f"name, and init={Path(name) / WEIGHTS}"
            )
    # A run that goes on has the images that it had, also where their folder is written in another way.
    settings = replace(settings, data=plain_name(settings.data, settings.data_dir))
    holdout = holdout_of(settings.data, settings.data_dir, settings.val_share, settings.val_seed)
    name, root = find_dataset(settings.data, settings.data_dir)
    if name == "folder":
        require_outside(folder, root)
        require_splits(root, holdout)
    images = image_facts(settings.data, settings.data_dir, holdout=holdout)
    if images is not None and settings.num_classes is None:
        settings = replace(settings, num_classes=len(images.classes))
    if images is not None:
        names: Sequence[str] | None = images.classes
    elif settings.data.lower() == "torch/cifar10":
        names = CIFAR10_NAMES
    else:
        names = names_of(settings.data, settings.data_dir)
    students = _students(settings, names, numbers=images is not None)
    if images is not None:
        # In the order in which weights that were trained before have them.
        names = label_names(next(iter(students.values()))) or names
    of_students = {
        short: _facts(name, student) for name, (short, student) in zip(settings.names, students.items(), strict=True)
    }
    model, told = next(iter(students.values())), next(iter(of_students.values()))
    if len(students) > 1:
        told = {key: [each.get(key) for each in of_students.values()] for key in told}
    for student in students.values():
        student.to(device)
    loader = training_loader(
        model,
        settings.data,
        settings.data_dir,
        recipe,
        holdout=holdout,
        seed=settings.seed,
        rank=rank,
        world_size=world_size,
        device=device,
        channels_last=settings.channels_last,
        workers=workers,
    )
    # Like `blockswap evaluate`, so that it finds the same error.
    test_loader = evaluation_loader(model, settings.data, settings.data_dir, workers=workers, holdout=holdout)
    teacher, teacher_file = _teacher_weights(settings)
    arguments = {
        "model": told["model"],
        "genome": told["genome"],
        "num_classes": model.num_classes,
        "teacher": teacher,
        "teacher_weights": None if teacher_file is None else file_digest(teacher_file),
        "in_chans": settings.in_chans,
        "image_size": settings.image_size,
        "init": "pretrained" if settings.pretrained else settings.init,
        "init_weights": _init_digest(settings),
        "data": settings.data,
        "images": _images_digest(loader, test_loader),
        "val_share": None if holdout is None else holdout.share,
        "val_seed": None if holdout is None else holdout.seed,
        "amp": settings.amp,
        "channels_last": settings.channels_last,
        "compile": settings.compile,
        "device": device.type,
    }
    facts = {
        **{key: told[key] for key in ("params", "macs", "input_size")},
        **describe_machine(device),
        "command": list(command),
        **({} if names is None else {"label_names": list(names)}),
    }
    # What the run used of the recipe: the log has all of it, the summary only this.
    cifar = isinstance(getattr(loader, "whole", loader), CifarLoader)
    used = {"recipe": recipe.used(teacher=settings.teacher is not None, cifar=cifar)}
    of_students = {name if len(students) > 1 else "": {**each, **used} for name, each in of_students.items()}
    if rank == 0:
        _say_which(settings, say)
        if idle := [f"{name}=" for name in asked if name not in used["recipe"]]:
            say(f"{' and '.join(idle)} {'have' if len(idle) > 1 else 'has'} no effect on this run")
        if settings.amp == "bfloat16" and device.type == "cpu" and not computes_bfloat16():
            say("this CPU has no instructions for bfloat16, so that training takes many times as long as in float32")
        if holdout is not None:
            say(holdout_text(settings.data, settings.data_dir, holdout))
    return train(
        _task(settings, recipe, students, names, device, world_size),
        loader,
        test_loader,
        recipe,
        folder,
        seed=settings.seed,
        arguments=arguments,
        facts=facts,
        of_students=of_students,
        resume=resume,
        dtype=torch.float32 if settings.amp is None else getattr(torch, settings.amp),
        log_every=log_every,
        test_every=test_every,
        checkpoint_minutes=checkpoint_minutes,
        writer=writer,
    )


def make_teacher(settings: RunSettings) -> nn.Module:
    """Makes the teacher of a run with its weights."""
    assert settings.teacher is not None
    if is_run(settings.teacher):
        return make_model(settings.teacher, checkpoint=settings.teacher_checkpoint)
    name, checkpoint = _found(settings.teacher), settings.teacher_checkpoint
    if checkpoint is None and not has_source(name) and not timm.is_model_pretrained(name):
        raise MissingWeightsError(name, "use teacher_checkpoint=FILE for a teacher of your own")
    # Its classes need not be the student's: attention transfer learns nothing from its answers. Pretrained weights keep
    # theirs, since a new head would have random ones.
    own: dict[str, Any] = {} if checkpoint is None else {"num_classes": settings.num_classes}
    try:
        teacher = create(name, pretrained=checkpoint is None, in_chans=settings.in_chans, **own)
    except OSError as error:
        # Those of the file system have a number; those of the network have none, and do not say whose weights.
        if error.errno is not None:
            raise
        raise WeightsError(
            f"the weights of the teacher {name} are not on this machine, and cannot be fetched: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from None
    if checkpoint is not None:
        load_weights(teacher, checkpoint, any_classes=True, own_genome=True)
    return teacher


def has_other_classes(teacher: nn.Module, number: int, names: Sequence[str] | None) -> bool:
    """Says whether a teacher's classes are known to be others than so many of these names, by number or by name."""
    theirs = label_names(teacher)
    if getattr(teacher, "num_classes", number) != number:
        return True
    return theirs is not None and names is not None and list(theirs) != list(names)


def _found(name: str, genome: str | None = None) -> str:
    """Finds the name under which timm has a network, which may be the folder of a saved one."""
    return f"local-dir:{name}" if is_folder(name) else find_model(name, genome)


def _init_digest(settings: RunSettings) -> str | list[str | None] | None:
    """Names the weights in files to start from by their content; of a library, by its table of errors."""
    path = settings.init
    if path not in (None, "teacher"):
        return file_digest(Path(path) / "errors.jsonl" if Path(path).is_dir() else path)
    files = [_weights_in(name) if settings.pretrained else None for name in settings.names]
    digests = [None if file is None else file_digest(file) for file in files]
    return digests if any(digests[1:]) else digests[0]


def _weights_in(name: str) -> Path | None:
    """Finds the weights in the folder of a saved network, if a name is that of one."""
    folder = _saved_folder(name)
    if folder is None:
        return None
    return next((file for suffix in ("safetensors", "bin", "pth") for file in sorted(folder.glob(f"*.{suffix}"))), None)


def _images_digest(*loaders: Any) -> str | None:
    """Names the image files of a run by their paths in its folder and their labels; None of other datasets."""
    digest = hashlib.sha256()
    for loader in loaders:
        images = getattr(getattr(loader, "whole", loader), "images", None)
        if not isinstance(images, ImageFiles) or (listed := images.listed()) is None:
            return None
        for path, label in listed:
            digest.update(f"{path}\0{label}\n".encode(errors="surrogateescape"))
        digest.update(b"\n")
    return f"sha256 {digest.hexdigest()}"


def _students(settings: RunSettings, names: Sequence[str] | None, numbers: bool) -> dict[str, nn.Module]:
    """Makes each student, with the initial weights that it would have if trained alone.

    `names` are those of its classes, which `numbers` says whether the images can be numbered by.
    """
    if settings.init not in (None, "teacher") and Path(settings.init).is_dir():
        return {_short(settings.names[0]): _joined(settings, names, numbers)}
    full = [_found(name, settings.genome) for name in settings.names]
    for name in full:
        if full.count(name) > 1:
            raise ValueError(f"{name} is named twice; use each model once")
    students: dict[str, nn.Module] = {}
    own: dict[str, Any] = {
        "num_classes": settings.num_classes,
        "in_chans": settings.in_chans,
    }
    for given, name in zip(settings.names, full, strict=True):
        short = _short(given)
        if short in students:
            raise ValueError(f"two of the networks are called {short}; train each alone, or rename a folder")
        torch.manual_seed(settings.seed)
        if settings.pretrained and not has_source(name) and not timm.is_model_pretrained(name):
            raise MissingWeightsError(name, "leave out pretrained=True, or use init=FILE")
        if settings.image_size is not None:
            cfg = timm.get_pretrained_cfg(name)
            # The channels of the weights, which timm adapts to those of the network.
            channels = 3 if cfg is None else cfg.input_size[0]
            own["pretrained_cfg_overlay"] = {"input_size": (channels, settings.image_size, settings.image_size)}
        student: Any = create(name, settings.genome, pretrained=settings.pretrained, **own)
        students[short] = student
        _name_classes(student, names, numbers and settings.pretrained)
        if settings.init not in (None, "teacher"):
            load_initial(students[short], settings.init)
    wanted = {name: (model_data_config(each), each.num_classes, label_names(each)) for name, each in students.items()}
    first = next(iter(students))
    for name in students:
        if wanted[name] != wanted[first]:
            raise ValueError(f"{name} has other images or classes than {first}; train it by itself")
    return students


def _short(name: str) -> str:
    """What a student is called in the results of a run: a saved network by its folder's own name."""
    folder = _saved_folder(name)
    return name if folder is None else folder.resolve().name


def _saved_folder(name: str) -> Path | None:
    """The folder of a saved network, if a name is that of one, with `local-dir:` or without."""
    return Path(name.removeprefix("local-dir:")) if name.startswith("local-dir:") or is_folder(name) else None


def _name_classes(student: Any, names: Sequence[str] | None, has_own: bool) -> None:
    """Names the classes of a student as timm does, so that they are saved with it.

    The order of weights that were trained for these classes is kept where it `has_own`: their head goes by it.
    """
    if names is None or len(names) != student.num_classes:
        return
    own = label_names(student)
    if not (has_own and own is not None and set(own) == set(names)):
        student.pretrained_cfg["label_names"] = list(names)


def _joined(settings: RunSettings, names: Sequence[str] | None, numbers: bool) -> nn.Module:
    """Makes a student of the blocks of a library, which `init` names."""
    library = BlockLibrary.load(str(settings.init))
    if len(settings.names) > 1 or settings.genome is None:
        raise ValueError("a library starts one network of a given genome; use one model and genome=")
    name = find_model(settings.names[0])
    if name.partition(".")[0] != library.header["network"]:
        raise ValueError(f"the library {settings.init} is of {library.header['network']}, not of {name}")
    torch.manual_seed(settings.seed)
    original: Any = original_network(library)
    if settings.image_size is not None:
        size = (model_data_config(original)["input_size"][0], settings.image_size, settings.image_size)
        original.pretrained_cfg["input_size"] = size
    student = swap(original, settings.genome, library=library)
    for key in ("num_classes", "in_chans"):
        wanted = getattr(settings, key)
        if wanted is not None and wanted != getattr(student, key, wanted):
            raise ValueError(f"the library {settings.init} is of {key}={getattr(student, key)}, not {wanted}")
    _name_classes(student, names, numbers)
    return student


def _facts(name: str, student: nn.Module) -> dict[str, Any]:
    genome, cost = getattr(student, "genome", None), count(student)
    genome = None if genome is None else str(genome)
    size = list(model_data_config(student)["input_size"])
    model = f"local-dir:{name}" if is_folder(name) else name
    facts = {"model": model, "genome": genome, "params": cost.params, "macs": cost.macs, "input_size": size}
    if (folder := _saved_folder(name)) is not None:
        # The run has a copy, which says how to make the network where the folder is not at hand.
        facts["config"] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    architecture = getattr(student, "pretrained_cfg", {}).get("architecture")
    if architecture is not None and swaps(architecture, genome):
        # Of a name that the zoo has too.
        facts["swapped"] = True
    return facts


def _task(
    settings: RunSettings,
    recipe: Recipe,
    students: dict[str, nn.Module],
    names: Sequence[str] | None,
    device: torch.device,
    world_size: int,
) -> TrainingTask:
    task: TrainingTask
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    if settings.teacher is None:
        (student,) = students.values()
        task = ClassificationTask(student, criterion, device=device, verbose=False)
    else:
        teacher = make_teacher(settings).to(device)
        first: Any = next(iter(students.values()))
        number = first.num_classes
        # Another number of classes is told by the task.
        same_number = getattr(teacher, "num_classes", 0) == number
        if recipe.soft_labels and same_number and has_other_classes(teacher, number, names):
            raise ValueError(
                "soft labels are for a teacher of the same classes, and this one knows "
                f"{_few(label_names(teacher) or ())}, not {_few(names or ())}; use soft_labels=0, "
                "which leaves attention transfer"
            )
        if settings.init == "teacher":
            for student in students.values():
                copy_from_teacher(student, teacher)
        same = {name: getattr(recipe, name) for name in ("beta", "mode", "soft_labels", "temperature")}
        same["teacher_size"] = recipe.teacher_size or None
        same |= {"criterion": criterion, "device": device, "verbose": False}
        tasks = {name: AttentionTransferTask(student, teacher, **same) for name, student in students.items()}
        task = SharedTeacherTask(tasks) if len(tasks) > 1 else next(iter(tasks.values()))
    if recipe.freeze is not None:
        # Before DDP, which waits for the gradients of all that is trained.
        for student in students.values():
            freeze(student, recipe.freeze)
    if settings.channels_last:
        task = task.to(memory_format=torch.channels_last)
    # In timm's order: copies are made of plain modules, and DDP wraps what was compiled.
    if settings.ema is not None:
        task.setup_ema(decay=settings.ema)
    if settings.compile:
        mode = "default" if settings.compile is True else settings.compile
        task.compile(mode=mode)
        task.compile_ema(mode=mode)
    if world_size > 1:
        task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None)
    return task


def _few(names: Sequence[str]) -> str:
    """Names the first classes."""
    return ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])


def _teacher_weights(settings: RunSettings) -> tuple[str | None, str | None]:
    """Describes the teacher's weights: its name, with a tag if they are pretrained, and their file."""
    name, file = settings.teacher, settings.teacher_checkpoint
    if name is not None and is_run(name):
        return read_summary(name)["model"], file or str(Path(name) / WEIGHTS)
    if name is None or file is not None:
        return name, file
    name = _found(name)
    if has_source(name):
        saved = _weights_in(name)
        return name, None if saved is None else str(saved)
    cfg = timm.get_pretrained_cfg(name)
    tagged = f"{name}.{cfg.tag}" if cfg is not None and cfg.tag and "." not in name else name
    return tagged, None if cfg is None else cfg.file


def _say_which(settings: RunSettings, say: Callable[[str], None]) -> None:
    """Lists which networks are used, for names that both timm and the zoo have."""
    # What starts from a library is of its network.
    joined = settings.init is not None and Path(settings.init).is_dir()
    named = [(name, None if joined else settings.genome) for name in settings.names if not is_folder(name)]
    if settings.teacher is not None and not is_folder(settings.teacher):
        named.append((settings.teacher, None))
    for name, genome in named:
        if said := which_was_taken(name, find_model(name, genome)):
            say(said)
