"""What the benchmarks that train have in common: their options, and one folder and one JSON line for each network.

A network is trained once for a name, a seed, a number of epochs and of images. An interrupted one goes on from its
checkpoint; a finished one is not trained again. `records.jsonl` has a line for each finished one, also for those whose
folders are gone: with this file and the teachers, another machine goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from timm.task import ClassificationTask, TrainingTask
from torch import nn

from benchmarks.lib.images import ALL_IMAGES, Images, cifar_images, noise_images
from blockswap_models import AttentionTransferTask, count
from blockswap_models.data.cifar import CifarLoader
from blockswap_models.data.folders import DataError
from blockswap_models.files import write_atomic
from blockswap_models.machine import find_device, keep_memory
from blockswap_models.nets.devices import describe_machine
from blockswap_models.training.evaluate import load_weights
from blockswap_models.training.loaders import GrowingLoader, cifar_training_loader
from blockswap_models.training.loop import train
from blockswap_models.training.recipes import RECIPES, Recipe
from blockswap_models.training.run_folder import TrainingError
from blockswap_models.zoo.cards import file_digest

TEACHER = "wrn40_2"
# The reduced form, for a machine without a GPU.
REDUCED_EPOCHS, REDUCED_IMAGES = 2, 5_000
# The file of the records of a folder.
RECORDS = "records.jsonl"
# That of --smoke.
_SMOKE_BATCH = 4

AtStep = Callable[[float], None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every benchmark that trains."""
    parser.add_argument("--train", action="store_true", help="train and evaluate, not only count")
    parser.add_argument("--data-dir", help="the folder of CIFAR-10, as torchvision unpacks it")
    parser.add_argument(
        "--epochs", type=int, help=f"epochs (the paper's {RECIPES['cifar10'].epochs}; without a GPU {REDUCED_EPOCHS})"
    )
    parser.add_argument(
        "--images", type=int, help=f"training images, evenly spaced (all; without a GPU {REDUCED_IMAGES:,})"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each trains a teacher and its students (0)")
    parser.add_argument(
        "--teacher-checkpoint", metavar="FILE", help="teacher's weights, '{seed}' for the seed (trained where absent)"
    )
    parser.add_argument("--device", help="where to train (cuda where there is a GPU, else cpu)")
    parser.add_argument("--amp", choices=("bfloat16",), help="precision of autocast (float32 throughout)")
    parser.add_argument("--out", default="baselines", metavar="FOLDER", help="where runs and records go (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a tiny form, on images of noise")


class Trainer:
    """Trains networks on CIFAR-10, each into a folder of its own within `out`, by a recipe, the paper's by default.

    Images have their own size, or are resized to `image_size`, also to test on.
    """

    def __init__(
        self,
        images: Images,
        out: str | Path,
        recipe: Recipe = RECIPES["cifar10"],
        *,
        source: str = "torch/cifar10",
        device: torch.device | str = "cpu",
        amp: str | None = None,
        teacher_checkpoint: str | None = None,
        image_size: int | None = None,
        channels_last: bool | None = None,
        test_every: int = 1,
    ) -> None:
        self.images, self.out, self.recipe, self.source = images, Path(out), recipe, source
        self.device, self.amp, self.teacher_checkpoint = torch.device(device), amp, teacher_checkpoint
        self.image_size, self.test_every = image_size, test_every
        self.channels_last = self.device.type == "cuda" if channels_last is None else channels_last

    @classmethod
    def of(cls, options: argparse.Namespace) -> Trainer:
        """Makes the trainer that the options of `add_options` describe; states its reduced form where it has one."""
        if options.smoke:
            recipe = replace(RECIPES["cifar10"], epochs=1, batch_size=_SMOKE_BATCH, lr=0.01)
            return cls(noise_images(2 * _SMOKE_BATCH), options.out, recipe, source="white noise")
        if options.data_dir is None:
            raise DataError("training needs the folder of CIFAR-10; use --data-dir")
        device = find_device(options.device)
        epochs, images = options.epochs, options.images
        if device.type == "cpu":
            keep_memory()
            epochs = REDUCED_EPOCHS if epochs is None else epochs
            images = REDUCED_IMAGES if images is None else images
        recipe = RECIPES["cifar10"] if epochs is None else replace(RECIPES["cifar10"], epochs=epochs)
        return cls(
            cifar_images(options.data_dir, images),
            options.out,
            recipe,
            device=device,
            amp=options.amp,
            teacher_checkpoint=options.teacher_checkpoint,
        )

    def __str__(self) -> str:
        epochs, full = self.recipe.epochs, RECIPES["cifar10"].epochs
        reduced = epochs < full or len(self.images.train[1]) < ALL_IMAGES
        form = f"reduced form (the paper: {full} epochs of {ALL_IMAGES:,} images): " if reduced else ""
        return (
            f"{form}{epochs} epoch{'s' * (epochs != 1)} of {len(self.images.train[1]):,} images of {self.source}, "
            f"tested on {len(self.images.test[1]):,}; {self.device.type}, {self.amp or 'float32'}"
        )

    def folder(self, name: str, seed: int) -> Path:
        """Names the folder of a run."""
        return self.out / f"{name}-{self.recipe.epochs}epochs-{len(self.images.train[1])}images-seed{seed}"

    def weights(self, name: str, seed: int) -> Path:
        """Names the file of the weights of a finished run."""
        return self.folder(name, seed) / "model.safetensors"

    def digest(self, name: str, seed: int) -> str:
        """Says which weights a finished run has."""
        return f"{name}, {file_digest(str(self.weights(name, seed)))}"

    def minibatch(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the first minibatch of a training of this seed: images, normalised, and labels."""
        return self.minibatches(1, seed)

    def minibatches(self, number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the first minibatches of a training of this seed, one after the other."""
        loader, found = self.training_loader(seed), []
        for epoch in range(-(-number // len(loader))):
            loader.set_epoch(epoch)
            found += islice(loader, number - len(found))
        images, labels = zip(*found, strict=True)
        return torch.cat(images), torch.cat(labels)

    def training_loader(self, seed: int) -> CifarLoader | GrowingLoader:
        """Makes the minibatches of a training of this seed."""
        return cifar_training_loader(
            *self.images.train,
            self.recipe,
            self.image_size,
            seed=seed,
            device=self.device,
            channels_last=self.channels_last,
        )

    def fit(
        self,
        name: str,
        seed: int,
        facts: dict[str, Any],
        make_task: Callable[[], TrainingTask],
        *,
        teacher: str | None = None,
        lr_factor: float = 1.0,
        at_step: Callable[[Any], AtStep] | None = None,
        record_is_enough: bool = False,
    ) -> dict[str, Any]:
        """Trains the network of a task, unless that is done, and returns the summary of the run.

        The task is made right after the seed is set. `facts` are those of `facts_of`; they and `teacher`, what the
        network learns from, must be those of an earlier start of the run. `lr_factor` is for the recipe's learning
        rate. `at_step` makes, from the task, what is told before each step which share of the training is done. With
        `record_is_enough` a run that is finished may have lost its folder, and with it its weights. Raises
        TrainingError.
        """
        recipe = replace(self.recipe, lr=self.recipe.lr * lr_factor)
        folder = self.folder(name, seed)
        arguments = {"name": name, **facts, **self.arguments(teacher)}
        recorded = self.recorded if record_is_enough else None
        done = finished(folder, {**asdict(recipe), "seed": seed, **arguments}, recorded)
        return done or self.run(folder, seed, make_task, arguments, recipe, at_step=at_step)

    def arguments(self, teacher: str | None) -> dict[str, Any]:
        """Says what all networks have in common that are trained by a teacher, or without one."""
        return {
            "teacher": teacher,
            "data": self.source,
            "train_images": len(self.images.train[1]),
            "amp": self.amp,
            "device": self.device.type,
            "image_size": self.image_size,
        }

    def run(
        self,
        folder: Path,
        seed: int,
        make_task: Callable[[], TrainingTask],
        arguments: dict[str, Any],
        recipe: Recipe,
        *,
        at_step: Callable[[Any], AtStep] | None = None,
        of_students: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Trains a task in a folder, or resumes it; returns what `train` does, and collects the records."""
        torch.manual_seed(seed)
        task = make_task()
        loader = self.training_loader(seed)
        summary = train(
            task.to(memory_format=torch.channels_last) if self.channels_last else task,
            loader if at_step is None else _Told(loader, recipe.epochs, at_step(task)),
            CifarLoader(
                *(*self.images.test, 256),
                size=self.image_size,
                device=self.device,
                channels_last=self.channels_last and self.device.type == "cpu",
            ),
            recipe,
            folder,
            seed=seed,
            arguments=arguments,
            facts=describe_machine(self.device),
            of_students=of_students,
            resume=(folder / "log.jsonl").exists() or (folder / "checkpoint.pth").exists(),
            dtype=getattr(torch, self.amp or "float32"),
            test_every=self.test_every,
            progress=sys.stderr.isatty(),
        )
        self.collect()
        return summary

    def classification(self, model: nn.Module) -> TrainingTask:
        """Makes the task of training by labels alone."""
        return ClassificationTask(model.to(self.device), device=self.device, verbose=False)

    def attention_transfer(
        self, model: nn.Module, seed: int, teacher: nn.Module | None = None
    ) -> AttentionTransferTask:
        """Makes the task of training by labels and by the attention of the teacher of a seed, loaded if not given."""
        return AttentionTransferTask(
            model.to(self.device),
            self.teacher(seed) if teacher is None else teacher,
            beta=self.recipe.beta,
            mode=self.recipe.mode,
            device=self.device,
            verbose=False,
        )

    def fit_student(
        self, name: str, seed: int, facts: dict[str, Any], build: Callable[[], nn.Module], lr_factor: float = 1.0
    ) -> dict[str, Any]:
        """Trains a network by the attention of the teacher of a seed, as `fit` does; `build` makes it.

        Nothing learns from it, so that its record is enough.
        """
        return self.fit(
            name,
            seed,
            facts,
            lambda: self.attention_transfer(build(), seed),
            teacher=self.teacher_digest(seed),
            lr_factor=lr_factor,
            record_is_enough=True,
        )

    def teacher(self, seed: int) -> nn.Module:
        """Loads the teacher of a seed."""
        model = timm.create_model(f"blockswap_{TEACHER}")
        load_weights(model, self._teacher_weights(seed))
        return model.to(self.device)

    def teacher_digest(self, seed: int) -> str:
        """Says which weights the teacher of a seed has; trains it first where there are none yet."""
        if self.teacher_checkpoint is None:
            self.fit_teacher(seed)
        return f"{TEACHER}, {file_digest(str(self._teacher_weights(seed)))}"

    def _teacher_weights(self, seed: int) -> Path:
        if self.teacher_checkpoint is None:
            return self.weights(TEACHER, seed)
        path = Path(self.teacher_checkpoint.replace("{seed}", str(seed)))
        if not path.is_file():
            raise TrainingError(f"no teacher's weights '{path}'; use the model.safetensors of a run")
        return path

    def fit_teacher(self, seed: int) -> dict[str, Any]:
        """Trains the teacher of a seed by labels alone."""
        name = f"blockswap_{TEACHER}"
        facts = facts_of(timm.create_model(name, device="meta"))
        return self.fit(TEACHER, seed, facts, lambda: self.classification(timm.create_model(name)))

    def recorded(self, name: str) -> dict[str, Any] | None:
        """Returns the record of a finished run by the name of its folder, which may be gone."""
        return next((row for row in records(self.out) if row["folder"] == name), None)

    def collect(self) -> list[dict[str, Any]]:
        """Writes the record of every finished run within `out` to `records.jsonl`, a line each; returns them."""
        rows = records(self.out)
        if rows:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomic(self.out / RECORDS, text.encode(), TrainingError)
        return rows


def facts_of(model: nn.Module, nonzero: int | None = None) -> dict[str, Any]:
    """Counts a network for its record; `nonzero` parameters are all of them where it is not pruned."""
    cost = count(model, (3, 32, 32))
    genome = getattr(model, "genome", None)
    return {
        "genome": None if genome is None else str(genome),
        "params": cost.params,
        "macs": cost.macs,
        "nonzero": cost.params if nonzero is None else nonzero,
    }


def records(out: str | Path) -> list[dict[str, Any]]:
    """Reads the records of all finished runs within a folder, also of those that are gone, in the order of names."""
    path = Path(out) / RECORDS
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {row["folder"]: row for row in rows if "folder" in row}
    for path in Path(out).glob("*/summary.json"):
        summary = json.loads(path.read_text())
        # Other runs may lie in the folder too.
        if "name" in summary:
            found[path.parent.name] = {"folder": path.parent.name, "epochs": summary["recipe"]["epochs"], **summary}
    return [found[folder] for folder in sorted(found)]


def longest_runs(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keeps the records of the most images and epochs that there are."""
    rows = list(rows)
    most = max(((row["train_images"], row["epochs"]) for row in rows), default=None)
    return [row for row in rows if (row["train_images"], row["epochs"]) == most]


def finished(
    folder: Path, wanted: dict[str, Any], recorded: Callable[[str], dict[str, Any] | None] | None = None
) -> dict[str, Any] | None:
    """Returns the summary of the run in a folder, None where it has not ended.

    `recorded` finds the record of a run whose folder is gone, by its name. Raises TrainingError for another run.
    """
    path = folder / "summary.json"
    summary = None
    if path.exists():
        summary = json.loads(path.read_text())
    elif recorded is not None:
        summary = recorded(folder.name)
    if summary is None:
        return None
    has = {**summary["recipe"], **summary}
    for name, value in json.loads(json.dumps(wanted)).items():
        if has.get(name) != value:
            raise TrainingError(f"the run in '{folder}' has {name} {has.get(name)}, not {value}; use another --out")
    return summary


class _Told:
    """Minibatches of a loader, before each of which a function is told which share of the training is done."""

    def __init__(self, loader: CifarLoader | GrowingLoader, epochs: int, at_step: AtStep) -> None:
        self.loader, self.steps, self.at_step, self.epoch = loader, epochs * len(loader), at_step, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        first = self.epoch * len(self)
        for step, minibatch in enumerate(self.loader, start=first):
            self.at_step(step / self.steps)
            yield minibatch
