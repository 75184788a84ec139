"""Copies of networks that their users may have pruned."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

__all__ = ["meta_copy", "plain_copy"]


def plain_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copies a network, and makes what `torch.nn.utils.prune` pruned permanent in the copy.

    Args:
        model: The network, which is not changed.
        memo: The memo of `copy.deepcopy`, which then maps each module to its copy.

    Returns:
        A copy whose parameters have their original names.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in _tensors_in(vars(module)):
            # The product of weight and mask, or what a network keeps of a forward pass: copy.deepcopy refuses tensors
            # that are not leaves.
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for name, _ in list(module.named_buffers(recurse=False)):
            if name.endswith("_mask") and hasattr(module, name.removesuffix("_mask") + "_orig"):
                prune.remove(module, name.removesuffix("_mask"))
    return copied


def meta_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copies a network to the meta device, where it takes no memory, in evaluation mode and float32.

    Args:
        model: The network, which is not changed.
        memo: As of `plain_copy`.

    Returns:
        The copy. What shares a tensor in the network shares it in the copy.
    """
    memo = {} if memo is None else memo
    for tensor in (*model.parameters(), *model.buffers()):
        meta = torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None)
        memo[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
    return plain_copy(model, memo).eval()


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value and in the dicts, lists and tuples that it holds."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(each)
