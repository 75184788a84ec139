"""Faster computation of a network while it is scored: the same function, without gradients of weights."""

from __future__ import annotations

from collections.abc import Container
from contextlib import ExitStack

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nets.native import native_library, override_attribute, use_native_convs
from ..nets.native_norm import use_native_norms

__all__ = ["cast_like_images"]

# On a CPU, convolutions in groups of fewer channels than this are slower than the same in wider groups with zeros.
_FAST_WIDTH = 8


def cast_like_images(
    model: nn.Module, images: torch.Tensor, undo: ExitStack, probed: Container[nn.Module] = ()
) -> None:
    """Makes a model compute on the device, in the type and in the layout of the images; `undo` reverts it.

    No weight has a gradient. On one thread of a CPU that has a C compiler, images in channels_last use C for BN and
    ReLU (`nets/native_norm.py`) and for convolutions in narrow groups (`nets/native.py`). The outputs of the modules in
    `probed` stay what they are.
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
        # Such as the filter of a pooling that blurs. BN has its statistics from the images.
        for name, buffer in () if isinstance(module, _BatchNorm) else module._buffers.items():
            if buffer is not None:
                undo.callback(module._buffers.__setitem__, name, buffer)
                module._buffers[name] = buffer.to(images.device, dtype if buffer.is_floating_point() else None)
        # A convolution of another class may do something else with its weights; those of a pruned one, or one that is
        # normalised by its weights, are computed before each pass.
        if fast and type(module) is nn.Conv2d and "weight" in module._parameters and "forward" not in vars(module):
            _fast_conv(module, undo)
    if in_c:
        use_native_norms(model, undo, probed)


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
