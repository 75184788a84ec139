"""Recipes of training: every hyperparameter of the paper's CIFAR-10 and ImageNet experiments, by name.

This module needs the standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..genome import _quote

__all__ = ["RECIPES", "Recipe", "learning_rate"]


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run: SGD without Nesterov, with weight decay on every parameter.

    batch_size: images a step, of all processes together.
    schedule: 'cosine' falls to 0 over all epochs, 'step' multiplies by `step_factor` every `step_epochs`.
    padding, cutout: the crop's border and the hidden square's side, for CIFAR at its own size.
    beta, mode: those of `attention_transfer_loss`, where there is a teacher.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step"] = "cosine"
    step_epochs: int = 60
    step_factor: float = 0.2
    padding: int = 4
    cutout: int = 16
    beta: float = 1000.0
    mode: Literal["code", "paper"] = "code"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "step_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("lr", "step_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "padding", "cutout", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is at least 0, not {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is at least 0 and below 1, not {self.momentum}")
        if self.schedule not in ("cosine", "step"):
            raise ValueError(f"schedule is cosine or step, not {_quote(str(self.schedule))}")
        if self.mode not in ("code", "paper"):
            raise ValueError(f"mode is code or paper, not {_quote(str(self.mode))}")


RECIPES = {
    "cifar10": Recipe(),
    "imagenet": Recipe(
        epochs=100, batch_size=256, weight_decay=1e-4, schedule="step", step_epochs=30, step_factor=0.1, beta=750.0
    ),
}


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Computes the learning rate of an epoch, counted from 0; it is the same for all steps of the epoch."""
    if recipe.schedule == "step":
        return recipe.lr * recipe.step_factor ** (epoch // recipe.step_epochs)
    return recipe.lr * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
