"""Scores of networks with random weights: a score is any callable(model, images, labels) -> float, higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nets.blocks import ResidualBlock
from ..nets.native import override_attribute
from .kernels import cast_like_images
from .probes import Blocks, find_probes

__all__ = [
    "Measured",
    "Score",
    "at_least_float",
    "balanced_terms",
    "fisher_balanced",
    "fisher_by_block",
    "fisher_potential",
    "measure_blocks",
    "potentials",
    "set_scoring_modes",
]

Score = Callable[[nn.Module, torch.Tensor, torch.Tensor], float]


def fisher_potential(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, blocks: Blocks | None = None
) -> float:
    """Sums the Fisher potential of all blocks on one minibatch (paper, section 4), without changing the model.

    The loss is cross-entropy averaged over the minibatch, with BN in training mode; dropout and stochastic depth are
    off. It is computed on the device and in the type of the images: in bfloat16 scores differ by up to about a tenth.
    Images in channels_last use faster kernels, whose sums are less accurate in float32: scores differ by up to 1e-2.

    Args:
        model: Any network that maps images to logits.
        images: Normalised images (N, C, H, W).
        labels: Their classes (N,).
        blocks: The modules whose outputs (N, C, …) are probed: their names, a pattern such as `layers.*.conv2`, or a
            function of the network that returns names or modules. By default the ends of the residual branches, just
            before the addition, which are found in networks of this package and of timm.

    Returns:
        The score.

    Raises:
        TypeError: The network does not split into blocks, and `blocks` is not given.
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

    A is the output of the block's branch just before it is added to the shortcut, g the gradient of the loss with
    respect to it. The sum over positions is inside the square (Theis et al., 2018); the paper's equation 2 is printed
    without these brackets. A block without a branch, `I`, has no potential.

    Args:
        model: Any network that maps images to logits.
        images: Normalised images (N, C, H, W).
        labels: Their classes (N,).
        blocks: The modules to probe, as for `fisher_potential`.

    Returns:
        The potential of each block.
    """
    return [each.branch for each in potentials(model, images, labels, blocks)]


def fisher_balanced(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, blocks: Blocks | None = None
) -> float:
    """Sums log(1 + F / O) over all blocks, so that no block outweighs the others: a balanced Fisher potential.

    F is the Fisher potential of the block's branch, and O that of its whole output, branch and shortcut together: what
    is usual at its place in this very network, since both have the same gradient. In the sum of F alone, the first
    block holds half. A block without a branch adds nothing, so more blocks are more, as in the paper's sum.

    Args:
        model: Any network that maps images to logits.
        images: Normalised images (N, C, H, W).
        labels: Their classes (N,).
        blocks: The modules to probe, as for `fisher_potential`; each is in a module of its own, the block.

    Returns:
        The score.

    Raises:
        TypeError: The network does not split into blocks, and `blocks` is not given.
        ValueError: There is no such module, it was not run, or every branch starts at zero.
    """
    return sum(balanced_terms(potentials(model, images, labels, blocks, whole=True)))


class Measured(NamedTuple):
    """What is measured of a block: at the end of its branch, and in the whole output, branch and shortcut together."""

    branch: float
    output: float


def balanced_terms(measured: Iterable[Measured]) -> list[float]:
    """Takes log(1 + F / O) of the potentials of each block: what `fisher_balanced` sums."""
    return [math.log1p(branch / output) if branch else 0.0 for branch, output in measured]


def potentials(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    blocks: Blocks | None = None,
    whole: bool = False,
    watch: Callable[[nn.Module, ExitStack], None] | None = None,
) -> list[Measured]:
    """Measures the Fisher potentials of each block, as `measure_blocks` does."""
    return measure_blocks(model, images, labels, _square_of_sum, blocks, whole, watch)


def measure_blocks(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    measure: Callable[[torch.Tensor], torch.Tensor],
    blocks: Blocks | None = None,
    whole: bool = False,
    watch: Callable[[nn.Module, ExitStack], None] | None = None,
) -> list[Measured]:
    """Measures 1/(2N) of what `measure` makes of A · g (N, C, …), for each block from first to last.

    Args:
        model: Any network that maps images to logits.
        images: Normalised images (N, C, H, W).
        labels: Their classes (N,).
        measure: Makes a number of a product.
        blocks: The modules to probe, as for `fisher_potential`.
        whole: Whether to measure the outputs of blocks too; they are 0 otherwise.
        watch: Called before the forward pass with the model as it computes, and with what ends its hooks: another score
            of the same pass.

    Returns:
        What is measured of each block; 0 of one without a branch.
    """
    probes = find_probes(model, tuple(images.shape[1:]), blocks)  # type: ignore[arg-type]  # of three numbers
    branches: list[tuple[nn.Module, torch.Tensor]] = []
    outputs: list[tuple[nn.Module, torch.Tensor]] = []

    def probe(end: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        # Nothing below the first probe needs a gradient: it becomes the leaf of the graph, and so does any other that
        # does not depend on it.
        branches.append((end, output if output.requires_grad else output.detach().requires_grad_()))
        return branches[-1][1]

    def probe_kept(*arguments: Any) -> torch.Tensor:
        # What others define may overwrite it: blocks of timm add the shortcut in place.
        return probe(*arguments).clone()

    def keep(block: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        outputs.append((block, output))
        return output if isinstance(block, ResidualBlock) else output.clone()

    with ExitStack() as undo, torch.inference_mode(False), torch.enable_grad():
        undo.enter_context(torch.autocast(images.device.type, enabled=False))
        set_scoring_modes(model, undo)
        cast_like_images(model, images, undo, {end for _, end in probes if end is not None})
        # What follows the end of a branch of ours leaves it as it is; it may not be so elsewhere in a block.
        ours = {
            end
            for block, end in probes
            if isinstance(block, ResidualBlock) and block.branch_end and end is block.get_submodule(block.branch_end)
        }
        for module in dict.fromkeys(end for _, end in probes if end is not None):
            undo.callback(module.register_forward_hook(probe if module in ours else probe_kept).remove)
        for block in dict.fromkeys(block for block, end in probes if whole and end is not None):
            undo.callback(block.register_forward_hook(keep).remove)
        if watch is not None:
            watch(model, undo)
        logits = model(images)
        loss = F.cross_entropy(logits.to(at_least_float(logits)), labels)
        # A network of identities has nothing to measure.
        kept = [*branches, *outputs]
        gradients = torch.autograd.grad(loss, [each for _, each in kept]) if kept else ()
    scores: list[dict[nn.Module, torch.Tensor]] = [{}, {}]
    for place, ((module, activation), gradient) in enumerate(zip(kept, gradients, strict=True)):
        found = scores[place >= len(branches)]
        # A module that is run several times has the sum.
        found[module] = found.get(module, 0) + measure(activation.detach() * gradient) / (2 * len(images))
    measured = []
    for block, end in probes:
        if end is None:
            measured.append(Measured(0.0, 0.0))
        elif end not in scores[0]:
            name = next(name for name, module in model.named_modules() if module is end)
            raise ValueError(f"module {name!r} of blocks= was not run")
        else:
            measured.append(Measured(float(scores[0][end]), float(scores[1][block]) if whole else 0.0))
    if branches and not any(each.branch for each in measured) and not any(output.any() for _, output in branches):
        raise ValueError(
            "every branch of this network starts at zero, so that it scores 0; build it with zero_init_last=False"
        )
    return measured


def _square_of_sum(product: torch.Tensor) -> torch.Tensor:
    if product.ndim > 2:
        product = product.flatten(2).sum(dim=2, dtype=at_least_float(product))
    return product.double().square().sum()


def at_least_float(tensor: torch.Tensor) -> torch.dtype:
    """The type to add up in: the tensor's own, or float32 if that is finer."""
    return torch.promote_types(tensor.dtype, torch.float32)


def set_scoring_modes(model: nn.Module, undo: ExitStack, train_norms: bool = True) -> None:
    """Puts BN into training mode without touching its statistics, all else into evaluation mode; `undo` reverts it.

    Without `train_norms` BN is in evaluation mode too.
    """
    for module in model.modules():
        # Of the network, or of each of its stages.
        if vars(module).get("grad_checkpointing"):
            override_attribute(module, "grad_checkpointing", False, undo)
        norm = isinstance(module, _BatchNorm)
        override_attribute(module, "training", norm and train_norms, undo)
        if norm:
            override_attribute(module, "track_running_stats", False, undo)
