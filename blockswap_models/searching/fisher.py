"""Scores of networks with random weights: a score is any callable(model, images, labels) -> float, higher is better."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nets.networks import residual_blocks
from .kernels import cast_like_images, override_attribute
from .probes import Blocks, find_probes

__all__ = ["Score", "at_least_float", "fisher_by_block", "fisher_potential", "measure_blocks", "set_scoring_modes"]

Score = Callable[[nn.Module, torch.Tensor, torch.Tensor], float]


def fisher_potential(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, blocks: Blocks | None = None
) -> float:
    """Sums the Fisher potential of all blocks on one minibatch (paper, section 4), and leaves the model as it was.

    The loss is cross-entropy averaged over the minibatch, with BN in training mode; dropout and stochastic depth are
    off. It is computed where the images are, and in their type: in bfloat16 scores differ by up to a tenth or so.
    Images in channels_last take faster kernels, whose sums are less accurate in float32: scores differ by up to 1e-2.

    Args:
        model: Any network that maps images to logits.
        images: Normalised images (N, C, H, W).
        labels: Their classes (N,).
        blocks: The modules whose outputs (N, C, …) are probed: their names, a pattern such as `layers.*.conv2`, or a
            function of the network that returns names or modules. By default the ends of the residual branches, just
            before the addition, which are known for this package, for timm's ResNets, ResNetV2s, RegNets and
            EfficientNets, and for torchvision's ResNets.

    Returns:
        The score.

    Raises:
        TypeError: No residual blocks of the network are known, and `blocks` is not given.
        ValueError: There is no such module, it was not run, or every branch starts at zero; build timm's ResNets with
            `zero_init_last=False`.

    Example:
        ```python
        model = timm.create_model("blockswap_wrn40_2", genome="6xS/6xG4/6xB2")
        fisher_potential(model, torch.randn(32, 3, 32, 32), torch.randint(10, (32,)))
        ```
    """
    return sum(fisher_by_block(model, images, labels, blocks))


def fisher_by_block(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, blocks: Blocks | None = None
) -> list[float]:
    """Measures the Fisher potential of each block: Σ_c 1/(2N) Σ_n (Σ_ij A_ncij · g_ncij)², from first to last.

    A is the output of the block's branch just before it is added to the shortcut, g the gradient of the loss by it. The
    sum over positions stands inside the square (Theis et al., 2018); the paper's equation 2 lost its brackets. A block
    without a branch, `I`, has none.

    Args:
        model: Any network that maps images to logits.
        images: Normalised images (N, C, H, W).
        labels: Their classes (N,).
        blocks: The modules to probe, as for `fisher_potential`.

    Returns:
        The potential of each block.
    """
    return measure_blocks(model, images, labels, _square_of_sum, blocks)


def measure_blocks(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    measure: Callable[[torch.Tensor], torch.Tensor],
    blocks: Blocks | None = None,
) -> list[float]:
    """Measures 1/(2N) of what `measure` makes of A · g (N, C, …), for each block from first to last."""
    ends = find_probes(model, blocks)
    # Blocks of others may overwrite the output of their branch: by adding to it in place, or by a ReLU.
    overwritten = blocks is not None or not residual_blocks(model)
    probed: list[tuple[nn.Module, torch.Tensor]] = []

    def probe(end: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        # Nothing below the first probe needs a gradient: it becomes the leaf of the graph, and so does any other that
        # does not depend on it.
        activation = output if output.requires_grad else output.detach().requires_grad_()
        probed.append((end, activation))
        return activation.clone() if overwritten else activation

    with ExitStack() as undo, torch.inference_mode(False), torch.enable_grad():
        set_scoring_modes(model, undo)
        cast_like_images(model, images, undo, {end for end in ends if end is not None})
        for end in {end for end in ends if end is not None}:
            undo.callback(end.register_forward_hook(probe).remove)
        logits = model(images)
        loss = F.cross_entropy(logits.to(at_least_float(logits)), labels)
        # A network of identities has nothing to measure.
        gradients = torch.autograd.grad(loss, [each for _, each in probed]) if probed else ()
    scores: dict[nn.Module, torch.Tensor] = {}
    for (end, activation), gradient in zip(probed, gradients, strict=True):
        # A module that is run several times has the sum.
        scores[end] = scores.get(end, 0) + measure(activation.detach() * gradient) / (2 * len(images))
    names = {module: name for name, module in model.named_modules()}
    for end in ends:
        if end is not None and end not in scores:
            raise ValueError(f"module {names.get(end, type(end).__name__)!r} of blocks= was not run")
    potentials = [0.0 if end is None else float(scores[end]) for end in ends]
    if scores and not any(potentials) and all(_is_zero(end) for end in scores):
        raise ValueError(
            "every branch of this network starts at zero, so that it scores 0; build it with zero_init_last=False"
        )
    return potentials


def _square_of_sum(product: torch.Tensor) -> torch.Tensor:
    if product.ndim > 2:
        product = product.flatten(2).sum(dim=2, dtype=at_least_float(product))
    return product.double().square().sum()


def at_least_float(tensor: torch.Tensor) -> torch.dtype:
    """Names the type to add up in: the tensor's own, or float32 where that is coarser."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _is_zero(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and not weight.any()


def set_scoring_modes(model: nn.Module, undo: ExitStack, train_norms: bool = True) -> None:
    """Puts BN into training mode without touching its statistics, all else into evaluation mode; `undo` goes back.

    BN too is in evaluation mode where `train_norms` is false.
    """
    if getattr(model, "grad_checkpointing", False):
        override_attribute(model, "grad_checkpointing", False, undo)
    for module in model.modules():
        norm = isinstance(module, _BatchNorm)
        override_attribute(module, "training", norm and train_norms, undo)
        if norm:
            override_attribute(module, "track_running_stats", False, undo)
