"""Scores of networks with random weights: a score is any callable(model, images, labels) -> float, higher is better."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nets.blocks import ResidualBlock
from ..nets.networks import branch_ends, residual_blocks
from .kernels import cast_like_images, override_attribute

__all__ = ["Score", "at_least_float", "fisher_by_block", "fisher_potential", "measure_blocks", "set_scoring_modes"]

Score = Callable[[nn.Module, torch.Tensor, torch.Tensor], float]


def fisher_potential(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Sums the Fisher potential of all blocks on one minibatch (paper, section 4), without changing the model.

    The loss is cross-entropy averaged over the minibatch, with BN in training mode; dropout and stochastic depth are
    off. It is computed on the device and in the type of the images: in bfloat16 scores differ by up to about a tenth.
    Images in channels_last use faster kernels, whose sums are less accurate in float32: scores differ by up to 1e-2.

    Args:
        model: A network of the zoo.
        images: Normalised images (N, C, H, W).
        labels: Their classes (N,).

    Returns:
        The score.

    Raises:
        TypeError: The network has no residual blocks of this package.
        ValueError: Every branch starts at zero; build the network with `zero_init_last=False`.

    Example:
        ```python
        model = timm.create_model("blockswap_wrn40_2", genome="6xS/6xG4/6xB2")
        fisher_potential(model, torch.randn(32, 3, 32, 32), torch.randint(10, (32,)))
        ```
    """
    return sum(fisher_by_block(model, images, labels))


def fisher_by_block(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Measures the Fisher potential of each block: Σ_c 1/(2N) Σ_n (Σ_ij A_ncij · g_ncij)², from first to last.

    A is the output of the block's branch just before it is added to the shortcut, g the gradient of the loss with
    respect to it. The sum over positions is inside the square (Theis et al., 2018); the paper's equation 2 is printed
    without these brackets.
    """
    return measure_blocks(model, images, labels, _square_of_sum)


def measure_blocks(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    measure: Callable[[torch.Tensor], torch.Tensor],
) -> list[float]:
    """Measures 1/(2N) of what `measure` makes of A · g (N, C, H, W), for each block from first to last."""
    ends = branch_ends(model)
    own = [isinstance(block, ResidualBlock) for block in residual_blocks(model)]
    if not ends:
        raise TypeError(
            f"{type(model).__name__} has no residual blocks to score; build one with "
            "timm.create_model('blockswap_…'), or with swap(model, …)"
        )
    activations: list[torch.Tensor] = []

    def probe(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        # Nothing below the first probe needs a gradient: it becomes the leaf of the graph.
        activations.append(output if activations else output.detach().requires_grad_())
        return activations[-1]

    def probe_kept(*arguments: Any) -> torch.Tensor:
        # Blocks of timm add the shortcut in place.
        return probe(*arguments).clone()

    with ExitStack() as undo, torch.inference_mode(False), torch.enable_grad():
        set_scoring_modes(model, undo)
        cast_like_images(model, images, undo)
        for end, ours in zip(ends, own, strict=True):
            undo.callback(end.register_forward_hook(probe if ours else probe_kept).remove)
        logits = model(images)
        loss = F.cross_entropy(logits.to(at_least_float(logits)), labels)
        gradients = torch.autograd.grad(loss, activations)
    scores = []
    for activation, gradient in zip(activations, gradients, strict=True):
        scores.append(measure(activation.detach() * gradient) / (2 * len(images)))
    potentials = torch.stack(scores).tolist()
    if not any(potentials) and all(_is_zero(end) for end in ends):
        raise ValueError(
            "every branch of this network starts at zero, so that it scores 0; build it with zero_init_last=False"
        )
    return potentials


def _square_of_sum(product: torch.Tensor) -> torch.Tensor:
    return product.sum(dim=(2, 3), dtype=at_least_float(product)).double().square().sum()


def at_least_float(tensor: torch.Tensor) -> torch.dtype:
    """The type to add up in: the tensor's own, or float32 if that is finer."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _is_zero(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and not weight.any()


def set_scoring_modes(model: nn.Module, undo: ExitStack, train_norms: bool = True) -> None:
    """Puts BN into training mode without touching its statistics, all else into evaluation mode; `undo` reverts it.

    Without `train_norms` BN is in evaluation mode too.
    """
    if getattr(model, "grad_checkpointing", False):
        override_attribute(model, "grad_checkpointing", False, undo)
    for module in model.modules():
        norm = isinstance(module, _BatchNorm)
        override_attribute(module, "training", norm and train_norms, undo)
        if norm:
            override_attribute(module, "track_running_stats", False, undo)
