"""Training recipes: every hyperparameter of the paper's CIFAR-10 and ImageNet experiments, by name.

This module needs the standard library only.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..counts import require_counts
from ..messages import quote

__all__ = ["RECIPES", "Recipe", "learning_rate"]


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run; each default is that of the paper's experiments on CIFAR-10.

    But for the schedule, which is that of the authors' code: the paper's is 'step', of the default factor and epochs.

    Args:
        epochs: Passes over the training images.
        batch_size: Images a step, of all processes together.
        lr: The highest learning rate.
        momentum: Momentum of SGD.
        nesterov: Whether momentum is Nesterov's.
        weight_decay: L2 penalty of the weights.
        decay_norm: Whether biases and the parameters of BN decay too.
        schedule: 'cosine' falls to 0 over all epochs; 'step' multiplies by `step_factor` every `step_epochs`;
            'one-cycle' rises linearly for the share `warmup` of the run and falls linearly to 0, step by step.
        step_epochs: Epochs between steps.
        step_factor: What a step multiplies the learning rate by.
        warmup: Share of the run, 0 to below 1, in which one cycle rises.
        label_smoothing: Share of each hard label that is spread over all classes.
        flip: 'random' flips each image with probability 1/2; 'alternate' every image every other epoch
            (arXiv:2404.00498), for CIFAR at its own size.
        padding: Border that is added for the random crop, for CIFAR at its own size.
        cutout: Side of the hidden square, for CIFAR at its own size; 0 hides nothing.
        crop_scale: Smallest share of an image's area that a random resized crop keeps, for all other data.
        small_size: Side in pixels of the images of the first epochs; 0 has all epochs at full size.
        small_share: Share of the epochs, rounded, that have images of `small_size`.
        average_epochs: Number of last epochs whose final weights are averaged, with BN statistics measured
            again; 0 takes the weights of the last step.
        beta: Weight of attention transfer, where there is a teacher; with 0 soft labels alone are learned.
        mode: Form of the attention loss; see `attention_transfer_loss`.
        soft_labels: Weight, 0 to 1, of the teacher's soft labels; hard labels have the rest.
        temperature: Temperature of soft labels (arXiv:1503.02531).
        teacher_size: Side in pixels to which the images are resized for the teacher; 0 gives it the student's.
        layer_decay: Factor of the learning rate from each block to the one before it, 0 to 1, as timm's; None has one
            rate for all.
        freeze: Parts that keep the weights they start from, as `freezing.freeze` takes them: a number of stages, with
            the stem, or names of modules; None trains all.

    Raises:
        ValueError: A value is out of its range.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norm: bool = True
    schedule: Literal["cosine", "step", "one-cycle"] = "cosine"
    step_epochs: int = 60
    step_factor: float = 0.2
    warmup: float = 0.2
    label_smoothing: float = 0.0
    flip: Literal["random", "alternate"] = "random"
    padding: int = 4
    cutout: int = 16
    crop_scale: float = 0.08
    small_size: int = 0
    small_share: float = 0.6
    average_epochs: int = 0
    beta: float = 1000.0
    mode: Literal["code", "paper"] = "code"
    soft_labels: float = 0.0
    temperature: float = 4.0
    teacher_size: int = 0
    layer_decay: float | None = None
    freeze: str | None = None

    def __post_init__(self) -> None:
        require_counts(epochs=self.epochs, batch_size=self.batch_size, step_epochs=self.step_epochs)
        for name in ("lr", "step_factor", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "padding", "cutout", "beta", "small_size", "average_epochs", "teacher_size"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is at least 0, not {getattr(self, name)}")
        for name in ("momentum", "warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 0 and below 1, not {getattr(self, name)}")
        for name in ("small_share", "soft_labels"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is 0 to 1, not {getattr(self, name)}")
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale is above 0 and at most 1, not {self.crop_scale}")
        if self.average_epochs > self.epochs:
            raise ValueError(f"average_epochs is at most the {self.epochs} epochs, not {self.average_epochs}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is above 0 and at most 1, not {self.layer_decay}")
        if self.freeze is not None and self.average_epochs:
            raise ValueError("average_epochs is measured with new BN statistics, which freeze keeps; use one of them")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                choices = ", ".join(known[:-1]) + f" or {known[-1]}"
                raise ValueError(f"{name} is {choices}, not {quote(str(getattr(self, name)))}")

    @property
    def small_epochs(self) -> int:
        """The number of first epochs with images of `small_size`."""
        return round(self.epochs * self.small_share) if self.small_size else 0

    def used(self, teacher: bool, cifar: bool) -> dict[str, Any]:
        """Lists the hyperparameters that a run uses, by name, as on its card.

        Args:
            teacher: Whether the run has a teacher.
            cifar: Whether its data is CIFAR at its own size.
        """
        unused = {
            "step_epochs": self.schedule != "step",
            "step_factor": self.schedule != "step",
            "warmup": self.schedule != "one-cycle",
            "layer_decay": self.layer_decay is None,
            "freeze": self.freeze is None,
            "small_size": not self.small_size,
            "small_share": not self.small_size,
            "average_epochs": not self.average_epochs,
            "beta": not teacher,
            "mode": not (teacher and self.beta),
            "soft_labels": not teacher,
            "temperature": not (teacher and self.soft_labels),
            "teacher_size": not (teacher and self.teacher_size),
            "flip": not cifar,
            "padding": not cifar,
            "cutout": not cifar,
            "crop_scale": cifar,
        }
        return {name: value for name, value in asdict(self).items() if not unused.get(name)}


_CHOICES = {
    "schedule": ("cosine", "step", "one-cycle"),
    "flip": ("random", "alternate"),
    "mode": ("code", "paper"),
}

_SHORT = Recipe(
    epochs=30,
    batch_size=64,
    nesterov=True,
    decay_norm=False,
    schedule="one-cycle",
    warmup=0.1,
    flip="alternate",
    cutout=0,
    small_size=24,
    small_share=0.7,
)

RECIPES = {
    "cifar10": Recipe(),
    "cifar10-30": _SHORT,
    # For weights that are good already: a short cycle, in which early blocks change least.
    "finetune": Recipe(
        epochs=20,
        batch_size=64,
        lr=0.02,
        nesterov=True,
        weight_decay=1e-4,
        decay_norm=False,
        schedule="one-cycle",
        cutout=0,
        crop_scale=0.35,
        layer_decay=0.9,
    ),
    "imagenet": Recipe(
        epochs=100, batch_size=256, weight_decay=1e-4, schedule="step", step_epochs=30, step_factor=0.1, beta=750.0
    ),
}


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """Computes the learning rate at a point of the run.

    Args:
        recipe: The recipe.
        epoch: Epochs since the start; 2.5 is the middle of the third. 'cosine' and 'step' have one rate an epoch.
    """
    if recipe.schedule == "one-cycle":
        done = epoch / recipe.epochs
        rising = done / recipe.warmup if recipe.warmup else 1.0
        # A loader may give a few more minibatches than it says.
        return recipe.lr * max(0.0, min(rising, (1 - done) / (1 - recipe.warmup)))
    epoch = int(epoch)
    if recipe.schedule == "step":
        return recipe.lr * recipe.step_factor ** (epoch // recipe.step_epochs)
    return recipe.lr * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
