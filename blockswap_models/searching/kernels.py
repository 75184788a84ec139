"""Faster computation of a network while it is scored: the same function, without gradients of weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nets.blocks import ResidualBlock
from ..nets.native import call_native, native_library, override_attribute, use_native_convs

__all__ = ["cast_like_images", "norm_act"]

# On a CPU, convolutions in groups of fewer channels than this are slower than the same in wider groups with zeros.
_FAST_WIDTH = 8
# The C code takes rows of a multiple of _LANES numbers; rows of _LONG_ROW numbers are long enough.
_LANES, _LONG_ROW = 16, 64


def cast_like_images(
    model: nn.Module, images: torch.Tensor, undo: ExitStack, probed: Container[nn.Module] = ()
) -> None:
    """Makes a model compute on the device, in the type and in the layout of the images; `undo` reverts it.

    No weight has a gradient. On one thread of a CPU that has a C compiler, images in channels_last use C for BN and
    ReLU (`norm_act`) and for convolutions in narrow groups (`nets/native.py`). The outputs of the modules in `probed`
    stay what they are.
    """
    fast = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    in_c = fast and images.device.type == "cpu" and torch.get_num_threads() == 1 and native_library() is not None
    if in_c:
        use_native_convs(model, undo)
    for module in model.modules():
        # BN computes in float32 for images of any type, which is more accurate.
        dtype = torch.promote_types(images.dtype, torch.float32) if isinstance(module, _BatchNorm) else images.dtype
        for name, value in module._parameters.items():
            if value is not None:
                undo.callback(module._parameters.__setitem__, name, value)
                weight = value.detach().to(images.device, dtype)
                module._parameters[name] = nn.Parameter(weight, requires_grad=False)
        # A convolution of another class may do something else with its weights.
        if fast and type(module) is nn.Conv2d and "forward" not in vars(module):
            _fast_conv(module, undo)
    if in_c:
        acts = dict(_norm_acts(model))
        for module in model.modules():
            if type(module) is nn.BatchNorm2d and module.affine:
                act = None if module in probed else acts.get(module)
                relu = type(act) is nn.ReLU
                override_attribute(module, "forward", functools.partial(_norm_act, module, relu), undo)
                if act is not None and relu:
                    override_attribute(act, "forward", _identity, undo)


def _norm_acts(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Finds the norms whose output only an activation uses."""
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            yield from ((getattr(module, norm), getattr(module, act)) for norm, act in module.norm_acts)
        elif type(module) is nn.Sequential:
            yield from pairwise(module)


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


# -- convolutions ----------------------------------------------------------------------------------------------------


def _fast_conv(module: nn.Conv2d, undo: ExitStack) -> None:
    weight, groups = _fast_weight(module.weight.detach(), module.groups)
    weight = weight.contiguous(memory_format=torch.channels_last)
    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    override_attribute(module, "groups", groups, undo)


def _fast_weight(weight: torch.Tensor, groups: int) -> tuple[torch.Tensor, int]:
    """Merges narrow groups of a convolution: the same function, in wider groups whose other weights are zero."""
    out_chs, width = weight.shape[:2]
    merge = _FAST_WIDTH // width
    if weight.device.type != "cpu" or groups == 1 or width == 1 or merge < 2 or _FAST_WIDTH % width or groups % merge:
        return weight, groups
    # (merged group, group within, out, in, k, k): the group within is a place on the diagonal.
    parts = weight.unflatten(0, (groups // merge, merge, out_chs // groups))
    merged = parts.new_zeros(groups // merge, merge, out_chs // groups, merge, width, *weight.shape[2:])
    for place in range(merge):
        merged[:, place, :, place] = parts[:, place]
    return merged.flatten(3, 4).flatten(0, 2), groups // merge


# -- BN and ReLU -----------------------------------------------------------------------------------------------------


def _norm_act(norm: nn.BatchNorm2d, relu: bool, x: torch.Tensor) -> torch.Tensor:
    if not norm.training or _row(x) is None:
        y = nn.BatchNorm2d.forward(norm, x)
        return y.relu_() if relu else y
    return norm_act(x, norm.weight.detach(), norm.bias.detach(), norm.eps, relu)


def norm_act(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, relu: bool) -> torch.Tensor:
    """BN with the statistics of the minibatch, and a ReLU after it where `relu` is true; only x gets a gradient.

    `x` is float32 or bfloat16, in channels_last on the CPU, its number of pixels a multiple of 16. Sums are in double
    precision, where PyTorch's BN in channels_last adds up in float32. Needs `native_library()`.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return _NormAct.apply(x, weight, bias, eps, relu)
    return _forward(x, weight, bias, eps, relu)[0]


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, relu: bool
    ) -> torch.Tensor:
        y, kept = _forward(x, weight, bias, eps, relu)
        # Not y: whether it is positive follows from x.
        ctx.save_for_backward(x, weight, *kept)
        ctx.relu = relu
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, *kept = ctx.saved_tensors
        row = len(kept[0])
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        half = int(x.dtype == torch.bfloat16)
        sizes = x.numel() // row, row, x.shape[1]
        call_native("norm_act_backward", gradient, x, *sizes, weight, *kept, int(ctx.relu), dx, half)
        return dx, None, None, None, None


def _forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, relu: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    row = _row(x)
    if row is None:
        raise ValueError(f"norm_act does not compute {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()}")
    y = torch.empty_like(x)
    kept = [torch.empty(size) for size in (row, row, x.shape[1])]
    half = int(x.dtype == torch.bfloat16)
    sizes = x.numel() // row, row, x.shape[1]
    call_native("norm_act_forward", x, *sizes, weight, bias, eps, int(relu), y, *kept, half)
    return y, kept


def _row(x: torch.Tensor) -> int | None:
    """The length of a row for the C code, or None if it cannot compute this tensor."""
    if x.dtype not in (torch.float32, torch.bfloat16) or x.device.type != "cpu":
        return None
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    together = _LANES // math.gcd(_LANES, channels)
    if not pixels or pixels % together or not x.is_contiguous(memory_format=torch.channels_last):
        return None
    while channels * together < _LONG_ROW and pixels % (2 * together) == 0:
        together *= 2
    return channels * together
