"""What a network costs, counted on the network that is built, on the meta device.

Parameters are weights and biases of convolutions, BN and linear layers, each once also where layers share it; MACs are
multiply-accumulates of convolutions and linear layers for one image, nothing else (BN, ReLU, additions and pooling
count as none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from timm.layers import CondConv2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..budget import Cost
from .copies import meta_copy
from .networks import residual_blocks

__all__ = ["count", "count_blocks", "count_parts"]


def count(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> Cost:
    """Counts parameters and multiply-accumulates of a network, without changing it.

    Args:
        model: Any network of convolutions, BN and linear layers.
        input_size: Channels, height and width of the image; the network's own by default.

    Returns:
        The cost for one image.

    Raises:
        ValueError: No input size is given, and the network has none.

    Example:
        ```python
        count(timm.create_model("blockswap_wrn40_2_404k"))  # 404,250 parameters, 92.2 M MACs
        ```
    """
    return _count(model, [model], input_size)[0]


def count_blocks(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> list[Cost]:
    """Counts each residual block of a network, shortcut included; stem and head are the rest of `count(model)`.

    Args:
        model: A network of the zoo.
        input_size: Channels, height and width of the image; the network's own by default.

    Returns:
        The cost of each block, from first to last.
    """
    return _count(model, residual_blocks(model), input_size)


def _count(model: nn.Module, parts: Sequence[nn.Module], input_size: tuple[int, int, int] | None) -> list[Cost]:
    if input_size is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        size = config.get("input_size") or getattr(getattr(model, "layout", None), "input_size", None)
        if size is None:
            raise ValueError(f"{type(model).__name__} does not say its input size; use count(model, (3, 224, 224))")
        channels, height, width = size
        input_size = (getattr(model, "in_chans", channels), height, width)
    # A copy keeps the hooks, modes and tensors of the user's network untouched.
    memo: dict[int, object] = {}
    shadow = meta_copy(model, memo)
    shadows = [memo[id(part)] for part in parts]
    return count_parts(shadow, shadows, torch.empty(1, *input_size, device="meta"))  # type: ignore[arg-type]


def count_parts(
    model: nn.Module, parts: list[nn.Module], x: torch.Tensor, before: Callable[[], None] | None = None
) -> list[Cost]:
    """Counts parts of a model on the meta device, on an input `x` of one image; the model cannot be used afterwards.

    `before` is called before it runs, to hook what is to be looked at.
    """
    macs: dict[nn.Module, int] = {}

    def hook(module: _ConvNd | nn.Linear | CondConv2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # Each output element of a convolution or linear layer takes one product per weight of its channel; in a
        # transposed one each input element does. A CondConv2d has the weights of each of its experts in one row.
        weights = module.weight[0].numel() // (module.out_channels if isinstance(module, CondConv2d) else 1)
        elements = inputs[0] if isinstance(module, _ConvNd) and module.transposed else output
        macs[module] = macs.get(module, 0) + elements.numel() * weights

    for module in model.modules():
        # The user's own hooks are not called for a count.
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if isinstance(module, (_ConvNd, nn.Linear, CondConv2d)):
            module.register_forward_hook(hook)
        elif isinstance(module, _BatchNorm):
            # BN costs no MACs and keeps the shape, but takes most of the time on the meta device.
            module.forward = _same  # type: ignore[method-assign]
    if before is not None:
        before()
    with torch.no_grad():
        model(x)
    return [
        Cost(sum(p.numel() for p in part.parameters()), sum(macs.get(module, 0) for module in part.modules()))
        for part in parts
    ]


def _same(input: torch.Tensor) -> torch.Tensor:
    return input
