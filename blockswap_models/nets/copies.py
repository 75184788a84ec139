"""Copies of networks that their users may have pruned."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

__all__ = ["plain_copy"]


def plain_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copies a network; where `torch.nn.utils.prune` stands between a layer and its weights, the zeros are made theirs.

    Args:
        model: The network, which stays as it is.
        memo: That of `copy.deepcopy`, which then tells the copy of each module.

    Returns:
        A copy whose parameters have the names with which the network was made.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            # The product of weight and mask: copy.deepcopy refuses a tensor that is computed.
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for name, _ in list(module.named_buffers(recurse=False)):
            if name.endswith("_mask") and hasattr(module, name.removesuffix("_mask") + "_orig"):
                prune.remove(module, name.removesuffix("_mask"))
    return copied
