"""Scores of networks with random weights: a score is any callable(model, images, labels) -> float, higher is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .networks import residual_blocks

__all__ = ["Score", "fisher_by_block", "fisher_potential"]

Score = Callable[[nn.Module, torch.Tensor, torch.Tensor], float]


def fisher_potential(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Sums the Fisher potential of all blocks on one minibatch (paper, section 4), and leaves the model as it was.

    `images` are (N, C, H, W), `labels` (N,). The loss is cross-entropy averaged over the minibatch, with BN in training
    mode; dropout and stochastic depth are off.
    """
    return sum(fisher_by_block(model, images, labels))


def fisher_by_block(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Measures the Fisher potential of each block: Σ_c 1/(2N) Σ_n (Σ_ij A_ncij · g_ncij)², from first to last.

    A is the output of the block's branch just before it is added to the shortcut, g the gradient of the loss by it. The
    sum over positions stands inside the square (Theis et al., 2018); the paper's equation 2 lost its brackets.
    """
    ends = [block.get_submodule(block.branch_end) for block in residual_blocks(model)]
    if not ends:
        raise TypeError(
            f"{type(model).__name__} has no residual blocks to score; build one with timm.create_model('blockswap_…')"
        )
    activations: list[torch.Tensor] = []

    def probe(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        # Nothing below the first probe needs a gradient: it becomes the leaf of the graph.
        activations.append(output if activations else output.detach().requires_grad_())
        return activations[-1]

    with _untouched(model), ExitStack() as hooks, torch.inference_mode(False), torch.enable_grad():
        for end in ends:
            hooks.callback(end.register_forward_hook(probe).remove)
        logits = model(images)
        loss = F.cross_entropy(logits.to(_at_least_float(logits)), labels)
        gradients = torch.autograd.grad(loss, activations)
    scores = []
    for activation, gradient in zip(activations, gradients, strict=True):
        by_channel = (activation.detach() * gradient).sum(dim=(2, 3), dtype=_at_least_float(gradient))
        scores.append(by_channel.double().square().sum() / (2 * len(images)))
    potentials = torch.stack(scores).tolist()
    if not any(potentials) and all(_is_zero(end) for end in ends):
        raise ValueError(
            "every branch of this network starts at zero, so that it scores 0; build it with zero_init_last=False"
        )
    return potentials


def _at_least_float(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _is_zero(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and not weight.any()


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Puts BN into training mode without touching its statistics, everything else into evaluation mode, and back."""
    modes = {module: module.training for module in model.modules()}
    norms = {m: m.track_running_stats for m in model.modules() if isinstance(m, _BatchNorm)}
    checkpointing = getattr(model, "grad_checkpointing", False)
    try:
        model.eval()
        for norm in norms:
            norm.training = True
            norm.track_running_stats = False
        if checkpointing:
            model.grad_checkpointing = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, tracked in norms.items():
            norm.track_running_stats = tracked
        if checkpointing:
            model.grad_checkpointing = True
