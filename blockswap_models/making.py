"""From a folder of images to a network in files: teacher, search, student and export, one stage after the other.

Each stage is the function that the command of its name calls, and goes on where it was stopped.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from .budget import Budget, BudgetLike
from .data.facts import ImageFacts, holdout_of, holdout_text, image_facts
from .data.folders import DataError, find_dataset, plain_name, require_outside
from .data.holdout import HoldOut
from .errors import BlockSwapError
from .export import export_model, require_onnx
from .files import encode_json, write_atomic
from .layout import Layout
from .machine import computes_bfloat16, default_workers, find_device, keep_memory
from .messages import counted, quote
from .searching.latency import LatencyTable
from .searching.plot import plot_record
from .searching.probe_images import affordable_batches, dataset_minibatch
from .searching.profile import profile
from .searching.rankings import default_score, images_of
from .searching.record import RecordError, network_of, read_record
from .searching.scoring import budget_windows, check_numbers
from .searching.search import search
from .searching.space import SearchSpace
from .training.attention_transfer import AttentionTransferTask
from .training.evaluate import evaluate, evaluation_loader, load_weights
from .training.loaders import require_splits
from .training.models import is_folder, of_summary
from .training.recipes import RECIPES, Recipe
from .training.run_folder import read_summary
from .training.runs import RunSettings, has_other_classes, make_teacher, train_run
from .zoo.blockswap import save_pretrained
from .zoo.cards import MissingWeightsError, last_name, make_card, training_command
from .zoo.find import find_model, has_source

__all__ = ["Made", "MakeError", "make", "small_data_recipe"]

# What stands in the folder, besides what timm reads.
PLAN, RECORD, PICTURE, TABLE, ONNX = "make.json", "search.jsonl", "search.svg", "latency.json", "model.onnx"
# Images up to the first side are for a Wide ResNet, whose stem keeps their size; those up to the second for the smaller
# ResNet, since little is left of them after its stem.
_NETWORKS = {48: "wrn40_2", 96: "resnet18"}
# So few images of training hardly tell more in more pixels, which take many times the time.
_FEW_IMAGES, _SIDE_OF_FEW = 5_000, 96
# Genomes that the search scores.
_SAMPLES = 100

# The precision of folders of older versions, which do not say theirs.
_OLD_DTYPE = "float32"


class MakeError(BlockSwapError):
    """A network that cannot be made from these images: says what is wrong and what to use instead."""


@dataclass(frozen=True)
class Made:
    """What was made.

    Attributes:
        folder: The folder that `timm.create_model("local-dir:…", pretrained=True)` loads.
        model: The network whose blocks were replaced.
        genome: The blocks.
        params: Parameters.
        macs: Multiply-accumulates.
        classes: The names of the classes.
        input_size: Channels, height and width of the images.
        images: How many images the errors are of; none of them was trained on.
        top1_error: The top-1 error in percent, measured on the network as the folder gives it.
        top5_error: The top-5 error in percent.
        teacher_error: The top-1 error of the teacher in percent, where it was trained here.
        images_per_second: How many images it classified in a second, with reading them.
        onnx: The ONNX file.
        picture: The picture of the search, or None without matplotlib.
        seconds: The time of both trainings.
    """

    folder: str
    model: str
    genome: str
    params: int
    macs: int
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    images: int
    top1_error: float
    top5_error: float
    teacher_error: float | None
    images_per_second: float
    onnx: str
    picture: str | None
    seconds: float


def make(
    data: str | Path,
    out: str | Path,
    budget: BudgetLike,
    *,
    network: str | None = None,
    teacher: str = "train",
    image_size: int | None = None,
    in_chans: int | None = None,
    samples: int = _SAMPLES,
    epochs: int | None = None,
    batch_size: int | None = None,
    val_share: float | None = None,
    seed: int = 0,
    dtype: str = "auto",
    workers: int | None = None,
    device: torch.device | str | None = None,
    command: Sequence[str] = (),
    say: Callable[[str], None] = print,
    progress: bool | None = None,
) -> Made:
    """Makes a network within a budget for a folder of images: trains a teacher, searches, trains, measures and exports.

    The folder of a dataset is divided where it has no splits. The student learns by attention transfer (paper, section
    3) and, from a teacher of the same classes, by soft labels. A call with the arguments of one that was stopped goes
    on with it, and what is done is not done again.

    Args:
        data: A folder of one folder a class, or of splits that have these.
        out: The folder that is made: what timm loads, with a card, `model.onnx`, and a picture of the search.
        budget: What the network may cost.
        network: The network whose blocks are replaced: by default `wrn40_2` for images up to 48 pixels, `resnet18` up
            to 96, else `resnet34`. A few thousand images, which train their teacher, are seen at 96 pixels at most.
        teacher: `train`, for the network itself, trained on these images; a model of timm or the zoo with weights; a
            folder of a network; or a file with weights of the network.
        image_size: Side of the images in pixels; read from the data where None.
        in_chans: Channels of the images; read from the data where None.
        samples: Genomes to score.
        epochs: Epochs of each training; chosen by the number of images where None.
        batch_size: Images a step; chosen by their number where None.
        val_share: Share of each class that is held out, for a folder without splits; 0.2 where None.
        seed: Seed of all that is drawn.
        dtype: Precision of both trainings: `float32`, `bfloat16` (autocast), or `auto`, the faster one on this device;
            a call that goes on has that of the first.
        workers: Processes that score or read images, one a core by default.
        device: Where to train and to score; a GPU where there is one.
        command: The words of the command that asks for this, for the card.
        say: Called with each line that tells what is done.
        progress: Whether to show how far the search is; None shows it where a person looks.

    Returns:
        What was made.

    Raises:
        MakeError: The folder is of other arguments, or the disk is full; what is done is kept.
        DataError: The images do not make a dataset, or the folder would lie among them.
        BudgetError: No network fits the budget.
        ValueError: Something else does not fit; the message says what.

    Example:
        ```python
        make("photos", "net", "1m")
        model = timm.create_model("local-dir:net", pretrained=True)
        ```
    """
    folder, budget = Path(out), Budget.of(budget)
    if dtype not in (known := ("auto", "float32", "bfloat16")):
        raise ValueError(f"no precision {quote(dtype)}; use {', '.join(known)} (dtype=)")
    require_onnx()
    target = find_device(device)
    if target.type == "cpu":
        keep_memory()
    data = plain_name(data)
    workers = default_workers() if workers is None else workers
    # Those of the search too, which begins after hours.
    check_numbers(samples=samples, workers=workers, seed=seed, refine=0)
    if folder.exists() and not folder.is_dir():
        raise MakeError(f"{quote(str(folder))} is a file; use a new folder (out=)")
    with _one_line_for_a_full_disk(folder):
        plan, budget, facts, holdout = _plan(
            data, folder, budget, network, teacher, image_size, in_chans, samples, epochs, batch_size, val_share, seed
        )
        plan["dtype"] = _dtype_of(folder, target) if dtype == "auto" else dtype
        settings = _settings(plan)
        if _found(folder) is None:
            _require_networks(plan, settings, budget)
        _agree(folder, plan)
        _say_plan(plan, facts, holdout, say)
        here = _Place(folder, target, workers, list(command) or [_call(plan)], say, progress)
        taught = _teacher(plan, settings, here)
        soft_labels, why = _soft_labels(taught, facts)
        genome = _search(plan, budget, settings, holdout, here)
        summary = _student(plan, replace(taught, genome=genome), soft_labels, why, here)
        return _files(plan, summary, holdout, here)


def small_data_recipe(images: int, epochs: int | None = None, batch_size: int | None = None) -> Recipe:
    """Makes a recipe whose minibatches and length suit a number of images.

    An epoch has at least 15 minibatches of up to 128 images where there are images enough; the learning rate goes with
    their size. There are 40 epochs of few images and 30 of many.

    Args:
        images: Images to train on.
        epochs: Epochs, in place of those.
        batch_size: Images a step, in place of those.

    Raises:
        MakeError: There are fewer than two images, or than a minibatch.
    """
    if images < 2:
        raise MakeError(f"{images} image to train on is too few; use at least two")
    most = 2 ** int(math.log2(max(images / 15, 8)))
    batch = min(images, 128, most) if batch_size is None else batch_size
    if batch > images or batch < 2:
        raise MakeError(f"a minibatch has 2 to {images:,} images here, not {batch:,}; use another batch_size=")
    return replace(
        RECIPES["imagenet"],
        epochs=min(40, max(30, 60_000 // images)) if epochs is None else epochs,
        batch_size=batch,
        lr=min(0.2, 0.1 * batch / 64),
        nesterov=True,
        weight_decay=5e-4,
        decay_norm=False,
        schedule="one-cycle",
        label_smoothing=0.1,
        crop_scale=0.35,
    )


# -- what is to be made ----------------------------------------------------------------------------------------------


def _plan(
    data: str,
    folder: Path,
    budget: Budget,
    network: str | None,
    teacher: str,
    image_size: int | None,
    in_chans: int | None,
    samples: int,
    epochs: int | None,
    batch_size: int | None,
    val_share: float | None,
    seed: int,
) -> tuple[dict[str, Any], Budget, ImageFacts, HoldOut | None]:
    """Reads the images, and decides what is to be made: all that the result depends on, as JSON.

    A budget in percent is returned in numbers.
    """
    if not Path(data).is_dir():
        raise DataError(f"no folder {quote(data)}; use a folder of one folder a class (data=)")
    name, place = find_dataset(data, None)
    if name != "folder":
        raise MakeError(f"{data} is no folder of images; use a folder of one folder a class")
    require_outside(folder, place)
    holdout = holdout_of(data, None, val_share, seed)
    require_splits(place, holdout)
    facts = image_facts(data, None, "train", holdout)
    assert facts is not None
    if network is None:
        few = teacher == "train" and facts.images < _FEW_IMAGES
        side = min(facts.size) if image_size is None else image_size
        side = min(side, _SIDE_OF_FEW) if few and image_size is None else side
        network = next((name for most, name in _NETWORKS.items() if side <= most), "resnet34")
    layout = Layout.named(network)
    if image_size is None:
        image_size = facts.suitable_size(layout.input_size[1])
        if teacher == "train" and facts.images < _FEW_IMAGES:
            image_size = min(image_size, _SIDE_OF_FEW)
    if holdout is not None:
        # That there are images on either side is seen here.
        holdout_text(data, None, holdout)
    recipe = small_data_recipe(facts.images, epochs, batch_size)
    in_chans = facts.channels if in_chans is None else in_chans
    if budget.is_share:
        sizes = {"num_classes": len(facts.classes), "in_chans": in_chans, "image_size": image_size}
        budget = SearchSpace(layout, **sizes).resolve(budget)[1]  # type: ignore[arg-type]  # each by its name
    plan = {
        "data": data,
        "images": facts.images,
        "classes": list(facts.classes),
        "network": find_model(layout.name),
        "budget": budget_windows(budget),
        "teacher": teacher,
        "image_size": image_size,
        "in_chans": in_chans,
        "samples": samples,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "val_share": None if holdout is None else holdout.share,
        "seed": seed,
    }
    # As a file has it.
    return json.loads(json.dumps(plan)), budget, facts, holdout


def _dtype_of(folder: Path, device: torch.device) -> str:
    """The precision in which a folder was begun, or else the faster one on a device."""
    begun = _begun(folder)
    if begun is not None:
        return str(begun["plan"].get("dtype", _OLD_DTYPE))
    fast = computes_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def _begun(folder: Path) -> dict[str, Any] | None:
    """Reads with which plan a folder was begun, and what was found since; None for a new one. Raises MakeError."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        begun: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(begun["plan"], dict):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise MakeError(f"{quote(str(path))} is damaged; use a new folder (out=)") from None
    return begun


def _agree(folder: Path, plan: dict[str, Any]) -> None:
    """Begins the folder with its plan, or sees that it has the same one; raises MakeError."""
    path, begun = folder / PLAN, _begun(folder)
    if begun is None:
        if folder.exists() and any(folder.iterdir()):
            raise MakeError(f"{quote(str(folder))} has other files in it; use a new folder (out=)")
        folder.mkdir(parents=True, exist_ok=True)
        _write_plan(folder, plan)
        return
    found = {"dtype": _OLD_DTYPE, **begun["plan"]}
    for key, value in plan.items():
        if key == "data" and isinstance(found.get(key), str):
            # Older versions wrote it as it was given, perhaps with a slash at its end.
            found[key] = plain_name(found[key])
        if found.get(key) != value:
            if not any(each.is_file() for each in folder.rglob("*") if each != path):
                # Nothing was done yet, such as where the teacher was mistyped.
                _write_plan(folder, plan)
                return
            raise MakeError(
                f"{quote(str(folder))} was begun with {key.replace('_', ' ')} {_short(found.get(key))}, not "
                f"{_short(value)}; use the same again, or another out="
            )


def _write_plan(folder: Path, plan: dict[str, Any], **done: Any) -> None:
    write_atomic(folder / PLAN, encode_json({"plan": plan, **done}, indent=1) + b"\n", MakeError)


def _found(folder: Path) -> str | None:
    """The genome that the search found, where it has ended."""
    begun = _begun(folder) or {}
    genome: str | None = begun.get("genome")
    return genome


def _say_plan(
    plan: dict[str, Any],
    facts: ImageFacts,
    holdout: HoldOut | None,
    say: Callable[[str], None],
) -> None:
    """Says what was read from the images, and what was chosen by it."""
    height, width = facts.size
    kind = "grey" if plan["in_chans"] == 1 else f"{plan['in_chans']}-channel"
    say(
        f"{plan['data']}: {facts.images:,} images to train on, {len(facts.classes):,} classes, mostly "
        f"{width}x{height}; the network sees {kind} images of {plan['image_size']}x{plan['image_size']}"
    )
    if holdout is not None:
        say(holdout_text(plan["data"], None, holdout))
    if facts.fewest < 10:
        say(f"the smallest class has {counted(facts.fewest, 'image')} to train on: few to learn from")
    say(
        f"for {facts.images:,} images: minibatches of {plan['batch_size']}, {counted(plan['epochs'], 'epoch')}, in "
        f"{plan['dtype']} (others: batch_size=, epochs=, dtype=)"
    )


def _settings(plan: dict[str, Any]) -> RunSettings:
    """The settings that all trainings have in common."""
    return RunSettings(
        names=(plan["network"],),
        data=plan["data"],
        val_share=plan["val_share"],
        val_seed=plan["seed"],
        num_classes=len(plan["classes"]),
        in_chans=plan["in_chans"],
        image_size=plan["image_size"],
        seed=plan["seed"],
        # Faster on every device that was tried.
        channels_last=True,
        amp=None if plan["dtype"] == "float32" else plan["dtype"],
    )


# -- the stages ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where and how the stages work, on which the result does not depend."""

    folder: Path
    device: torch.device
    workers: int
    command: list[str]
    say: Callable[[str], None]
    progress: bool | None


def _train(plan: dict[str, Any], settings: RunSettings, soft_labels: float, run: Path, here: _Place) -> dict[str, Any]:
    """Trains a network, or resumes its training, unless that is done; returns the summary."""
    if not (run / "summary.json").exists():
        recipe = small_data_recipe(plan["images"], plan["epochs"], plan["batch_size"])
        train_run(
            settings,
            replace(recipe, soft_labels=soft_labels),
            run,
            device=here.device,
            workers=here.workers,
            resume=(run / "log.jsonl").exists() or (run / "checkpoint.pth").exists(),
            log_every=10,
            test_every=5,
            command=here.command,
        )
    summary = read_summary(run)
    here.say(f"   top-1 error {summary['top1_error']:.2f} %")
    return summary


def _teacher(plan: dict[str, Any], settings: RunSettings, here: _Place) -> RunSettings:
    """Trains the teacher, or finds it; returns the settings of its students."""
    name, model = plan["teacher"], plan["network"]
    if name != "train":
        here.say(f"1 of 4, teacher: {name}")
        return _given_teacher(name, settings)
    run = here.folder / "teacher"
    here.say(f"1 of 4, teacher: {model} learns the classes")
    _train(plan, settings, 0.0, run, here)
    return replace(settings, teacher=model, teacher_checkpoint=str(run / "model.safetensors"))


def _given_teacher(name: str, settings: RunSettings) -> RunSettings:
    """Finds a teacher by what the user calls it: a file, a folder or a name."""
    if Path(name).is_file():
        return replace(settings, teacher=settings.names[0], teacher_checkpoint=name)
    if not is_folder(name):
        found = find_model(name)
        if not has_source(found) and not timm.is_model_pretrained(found):
            raise MissingWeightsError(found, "use teacher=FILE for your own, or leave out teacher= to train it")
    return replace(settings, teacher=name)


def _soft_labels(settings: RunSettings, facts: ImageFacts) -> tuple[float, str]:
    """The weight of soft labels, and why: none from a teacher of other classes, whose answers mean something else.

    A teacher that does not fit is refused before the search.
    """
    teacher = make_teacher(settings)
    student = timm.create_model(settings.names[0], num_classes=len(facts.classes), in_chans=settings.in_chans)
    AttentionTransferTask(student, teacher, verbose=False)
    if has_other_classes(teacher, len(facts.classes), facts.classes):
        number = getattr(teacher, "num_classes", 0)
        return 0.0, f"by attention transfer alone, since the {number:,} classes of the teacher are others"
    return 0.5, "by attention transfer and soft labels"


def _search(
    plan: dict[str, Any],
    budget: Budget,
    settings: RunSettings,
    holdout: HoldOut | None,
    here: _Place,
) -> str:
    """Searches the best genome, and draws the picture of the search."""
    here.say(f"2 of 4, search: {counted(plan['samples'], 'genome')} of {plan['network']} within {budget}")
    record, picture = here.folder / RECORD, here.folder / PICTURE
    genome = _found(here.folder)
    if genome is None:
        space = _space(plan, settings, "latency" in budget.windows, here)
        size = max(2, min(images_of(default_score()), plan["images"]))
        images = dataset_minibatch(
            space,
            plan["data"],
            None,
            size,
            plan["seed"],
            "train",
            # No more than there are images for.
            max(1, min(affordable_batches(space, size), plan["images"] // size)),
            holdout,
            # Some of them may be damaged.
            fewer=True,
        )
        size = len(images.images) // images.num_batches
        resume = record.exists() and record.stat().st_size > 0
        search(
            space,
            budget,
            plan["samples"],
            plan["seed"],
            data=images,
            batch_size=size,
            workers=here.workers,
            device=here.device,
            # Another machine may have another fastest one.
            dtype=_dtype_in(record) if resume else None,
            record=record,
            resume=resume,
            progress=here.progress,
            on_interrupt="raise",
        )
        genome = str(network_of(record).genome)
        _write_plan(here.folder, plan, genome=genome)
    if not picture.exists():
        if importlib.util.find_spec("matplotlib") is None:
            here.say('   no picture of the search without matplotlib; pip install "blockswap_models[plot]"')
        else:
            plot_record(record, picture)
    here.say(f"   {genome}")
    return genome


def _dtype_in(record: Path) -> torch.dtype | None:
    """The precision of the scores of a record; None where it does not say it yet."""
    with suppress(RecordError):
        found = getattr(torch, str(read_record(record)[0].get("dtype", _OLD_DTYPE)), None)
        return found if isinstance(found, torch.dtype) else None
    return None


def _space(plan: dict[str, Any], settings: RunSettings, latency: bool, here: _Place) -> SearchSpace:
    """Makes the search space, with a table of latencies where the budget has one: measured once, on this machine."""

    def with_table(table: LatencyTable | None) -> SearchSpace:
        return SearchSpace(
            plan["network"],
            num_classes=settings.num_classes,
            in_chans=settings.in_chans,
            image_size=settings.image_size,
            latency=table,
        )

    if not latency:
        return with_table(None)
    path = here.folder / TABLE
    if not path.exists():
        here.say(f"   measuring the latency of each block type on {here.device}; let nothing else run meanwhile")
        profile(with_table(None), device=here.device).save(path)
    return with_table(LatencyTable.load(path))


def _require_networks(plan: dict[str, Any], settings: RunSettings, budget: Budget) -> None:
    """Sees that there are networks within a budget, before anything is trained; raises BudgetError."""
    # Latencies are not measured yet.
    known: dict[str, Any] = {name: window for name, window in budget.windows.items() if name != "latency"}
    if known:
        sizes = {"num_classes": settings.num_classes, "in_chans": settings.in_chans, "image_size": settings.image_size}
        SearchSpace(plan["network"], **sizes).sample(  # type: ignore[arg-type]  # each by its name
            1, budget if known == budget.windows else Budget(**known)
        )


def _student(plan: dict[str, Any], settings: RunSettings, soft_labels: float, why: str, here: _Place) -> dict[str, Any]:
    """Trains the network that was found."""
    here.say(f"3 of 4, student: learns from {settings.teacher} {why}")
    return _train(plan, settings, soft_labels, here.folder / "student", here)


def _files(plan: dict[str, Any], summary: dict[str, Any], holdout: HoldOut | None, here: _Place) -> Made:
    """Writes the folder that timm loads, measures the network that it gives back, and exports it."""
    folder, data = here.folder, plan["data"]
    here.say("4 of 4, files: weights, card and ONNX")
    if not (folder / "config.json").exists():
        weights = folder / "student" / "model.safetensors"
        model = of_summary(summary)
        load_weights(model, weights)
        errors = {key: summary[key] for key in ("top1_error", "top5_error")}
        tag = "".join(letter if letter.isalnum() else "_" for letter in Path(data).absolute().name) or "images"
        command = training_command(summary)
        card = make_card(f"{summary['model']}.{tag}", summary, weights.read_bytes(), "float32", errors, command)
        save_pretrained(model, folder, card=card, source=f"local-dir:{folder}")
    again: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    loader = evaluation_loader(again.to(here.device), data, workers=here.workers, holdout=holdout)
    measured = evaluate(again, loader)
    if not (folder / ONNX).exists():
        export_model(again, folder / ONNX)
    teacher = read_summary(folder / "teacher") if plan["teacher"] == "train" else None
    return Made(
        folder=str(folder),
        model=summary["model"],
        genome=summary["genome"],
        params=summary["params"],
        macs=summary["macs"],
        classes=tuple(plan["classes"]),
        input_size=tuple(summary["input_size"]),
        images=measured.images,
        top1_error=measured.top1_error,
        top5_error=measured.top5_error,
        teacher_error=None if teacher is None else teacher["top1_error"],
        images_per_second=measured.images / measured.seconds,
        onnx=str(folder / ONNX),
        picture=str(folder / PICTURE) if (folder / PICTURE).exists() else None,
        seconds=summary["seconds"] + (0.0 if teacher is None else teacher["seconds"]),
    )


# -- helpers ---------------------------------------------------------------------------------------------------------


def _call(plan: dict[str, Any]) -> str:
    """Writes the call of Python that makes this network, for its card."""
    same = ("network", "image_size", "in_chans", "samples", "epochs", "batch_size", "val_share", "seed", "dtype")
    others = "".join(f", {key}={plan[key]!r}" for key in same)
    return f"make(DATA, NET, budget={plan['budget']}, teacher={last_name(plan['teacher'])!r}{others})"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


@contextmanager
def _one_line_for_a_full_disk(folder: Path) -> Iterator[None]:
    """Says of a file that cannot be written or read that what is done is kept."""
    try:
        yield
    except OSError as error:
        # Those of the network have no number.
        if error.errno is None:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what, advice = f"write in {quote(str(folder))}", "make room"
        else:
            what, advice = f"use {quote(str(error.filename or folder))}", "mend this"
        raise MakeError(
            f"cannot {what}: {error.strerror or error}; what is done is kept, so {advice} and call again"
        ) from None
