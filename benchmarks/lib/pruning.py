"""Pruning of single weights, by torch.nn.utils.prune: SNIP before training, and by magnitude after it.

A pruned layer keeps its weight as `weight_orig` and multiplies it by `weight_mask` in each forward pass, so that
training changes the weights that are left and no others.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

__all__ = ["l1_prune", "nonzero_parameters", "snip"]


def snip(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, budget: int) -> None:
    """Prunes a network at initialisation to `budget` non-zero parameters, by connection sensitivity on one minibatch.

    A weight w of a convolution or linear layer stays where |w · dL/dw| is among the highest of the network (Lee et al.,
    2019, equation 6); biases and BN stay. Raises ValueError for a budget that these cannot meet.
    """
    layers = _layers(model, (nn.Conv2d, nn.Linear))
    # On a copy, so that the running statistics of BN stay those of a network that has seen nothing.
    copied = copy.deepcopy(model).train()
    weights = [layer.weight for layer in _layers(copied, (nn.Conv2d, nn.Linear))]
    gradients = torch.autograd.grad(F.cross_entropy(copied(images), labels), weights)
    total, prunable = nonzero_parameters(model), sum(weight.numel() for weight in weights)
    if not total - prunable < budget <= total:
        raise ValueError(f"SNIP keeps {total - prunable + 1:,} to {total:,} parameters of this network, not {budget:,}")
    _prune(
        layers,
        total - budget,
        {
            (layer, "weight"): (weight * gradient).abs().detach()
            for layer, weight, gradient in zip(layers, weights, gradients, strict=True)
        },
    )


def l1_prune(model: nn.Module, share: float) -> None:
    """Keeps a share of the weights of all convolutions together, those of the largest magnitude (Han et al., 2016)."""
    if not 0 < share <= 1:
        raise ValueError(f"the share of weights that stay is above 0 and at most 1, not {share}")
    layers = _layers(model, (nn.Conv2d,))
    total = sum(layer.weight.numel() for layer in layers)
    _prune(layers, total - round(share * total))


def _layers(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kinds)]


def _prune(
    layers: list[nn.Module], amount: int, scores: dict[tuple[nn.Module, str], torch.Tensor] | None = None
) -> None:
    named = [(layer, "weight") for layer in layers]
    prune.global_unstructured(named, prune.L1Unstructured, importance_scores=scores, amount=amount)
    for layer in layers:
        # Until the next forward pass it is a result of autograd, of which there is no copy.
        layer.weight = layer.weight.detach()


def nonzero_parameters(model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module) -> int:
    """Counts the parameters of layers of some kinds that are not pruned, whatever their value is."""
    number = 0
    for layer in _layers(model, kinds if isinstance(kinds, tuple) else (kinds,)):
        for name, parameter in layer.named_parameters(recurse=False):
            mask = getattr(layer, f"{name.removesuffix('_orig')}_mask", None)
            number += parameter.numel() if mask is None else int(mask.sum())
    return number
