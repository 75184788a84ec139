"""Copies of networks that their users may have pruned."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

__all__ = ["plain_copy"]


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
        for value in vars(module).values():
            # The product of weight and mask: copy.deepcopy refuses tensors that are not leaves.
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for name, _ in list(module.named_buffers(recurse=False)):
            if name.endswith("_mask") and hasattr(module, name.removesuffix("_mask") + "_orig"):
                prune.remove(module, name.removesuffix("_mask"))
    return copied
