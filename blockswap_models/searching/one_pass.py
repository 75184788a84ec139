"""Several scores of one network: Fisher potentials and NASWOT from one pass, any other by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import nn

from .fisher import Score, balanced_terms, fisher_balanced, fisher_potential, potentials
from .rankings import count_agreements, log_determinant, naswot

__all__ = ["compute_scores"]


def compute_scores(
    scores: Sequence[tuple[str, Score]],
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    random_numbers: Callable[[Score], AbstractContextManager[None]],
) -> tuple[dict[str, float], tuple[float, ...] | None]:
    """Computes scores by name, to the bits that each has by itself.

    Args:
        scores: The scores, each once.
        model: The network.
        images: Normalised images (N, C, H, W), on the device and in the type in which to compute.
        labels: Their classes (N,).
        random_numbers: Gives a score the random numbers that it may draw.

    Returns:
        The scores; and the parts by block of the Fisher potential, or else of the balanced one, where one is there.
    """
    values: dict[str, float] = {}
    blocks: list[float] | None = None
    plain, balanced, codes = (_name(of, scores) for of in (fisher_potential, fisher_balanced, naswot))
    if plain is not None or balanced is not None:
        kernels = []

        def watch(module: nn.Module, undo: ExitStack) -> None:
            kernels.append(count_agreements(module, images, undo))

        watched = None if codes is None else watch
        measured = potentials(model, images, labels, whole=balanced is not None, watch=watched)
        if balanced is not None:
            blocks = balanced_terms(measured)
            values[balanced] = sum(blocks)
        if plain is not None:
            blocks = [each.branch for each in measured]
            values[plain] = sum(blocks)
        if codes is not None:
            values[codes] = log_determinant(kernels[0], images)
    for name, score in scores:
        if name not in values:
            with random_numbers(score):
                values[name] = float(score(model.to(images.device), images, labels))
    # In the order in which they were asked for.
    return {name: values[name] for name, _ in scores}, None if blocks is None else tuple(blocks)


def _name(score: Score, scores: Sequence[tuple[str, Score]]) -> str | None:
    """The name that a score has among others, which may be of a class that cannot be compared."""
    return next((name for name, each in scores if each is score), None)
