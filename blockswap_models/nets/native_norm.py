"""BN, with the ReLU after it, in C for one thread of a CPU: two passes over an image in the place of four or more."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .blocks import ResidualBlock
from .native import call_native, native_library, override_attribute

__all__ = ["norm_act", "use_native_norms"]

# The C code takes rows of a multiple of _LANES numbers; rows of _LONG_ROW numbers are long enough.
_LANES, _LONG_ROW = 16, 64


def use_native_norms(model: nn.Module, undo: ExitStack, probed: Container[nn.Module] = ()) -> None:
    """Makes a model's BN, and a ReLU that alone uses its output, compute in C; `undo` reverts it.

    Nothing changes where there is more than one thread or no C compiler. A layer whose input is not on the CPU in
    channels_last computes as before. The outputs of the modules in `probed` stay what they are.
    """
    if torch.get_num_threads() != 1 or native_library() is None:
        return
    # A module in several places does there what it does by itself.
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    acts = {norm: act for norm, act in _norm_acts(model) if places[id(norm)] == places[id(act)] == 1}
    for module in model.modules():
        # A layer of another class, or whose forward pass was replaced, may do something else.
        if type(module) is nn.BatchNorm2d and module.affine and "forward" not in vars(module):
            act = None if module in probed or _is_hooked(module) else acts.get(module)
            relu = type(act) is nn.ReLU and "forward" not in vars(act) and not _is_hooked(act)
            override_attribute(module, "forward", functools.partial(_norm_act_of, module, relu), undo)
            if act is not None and relu:
                override_attribute(act, "forward", _identity, undo)


def _is_hooked(module: nn.Module) -> bool:
    """Whether a user's hook sees what goes into a module, or what comes out of it."""
    hooks = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    return any(hooks)


def _norm_acts(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Finds the norms whose output only an activation uses."""
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            yield from ((getattr(module, norm), getattr(module, act)) for norm, act in module.norm_acts)
        elif type(module) is nn.Sequential:
            yield from pairwise(module)


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _norm_act_of(norm: nn.BatchNorm2d, relu: bool, x: torch.Tensor) -> torch.Tensor:
    row = _row(x, norm.weight.numel())
    # Statistics of the minibatch are used in training, and where none were kept.
    batch = norm.training or norm.running_var is None
    if norm.training and x.numel() == x.shape[1]:
        # PyTorch says that there is nothing to average over.
        row = None
    graph = torch.is_grad_enabled() and any(each.requires_grad for each in (x, norm.weight, norm.bias))
    if row is None or (graph and not batch) or (norm.training and norm.momentum is None):
        y = nn.BatchNorm2d.forward(norm, x)
        return y.relu_() if relu else y
    if not batch:
        return _apply(norm, relu, x, row)
    y, mean, variance = _NormAct.apply(x, norm.weight, norm.bias, norm.eps, relu)
    if norm.training and norm.track_running_stats:
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)  # type: ignore[arg-type]
                # Kept as of a sample, as PyTorch's.
                variance = variance.to(norm.running_var.dtype) * (count / max(count - 1, 1))
                norm.running_var.lerp_(variance, norm.momentum)  # type: ignore[arg-type]
    return y


def _apply(norm: nn.BatchNorm2d, relu: bool, x: torch.Tensor, row: int) -> torch.Tensor:
    """BN in evaluation mode, without a gradient."""
    scale = norm.weight.detach().float() / (norm.running_var.float() + norm.eps).sqrt()  # type: ignore[union-attr]
    shift = norm.bias.detach().float() - scale * norm.running_mean.float()  # type: ignore[union-attr]
    y, repeats = torch.empty_like(x), row // x.shape[1]
    factors = scale.repeat(repeats), shift.repeat(repeats)
    call_native("norm_act_apply", x, x.numel() // row, row, *factors, int(relu), y, int(x.dtype == torch.bfloat16))
    return y


def norm_act(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, relu: bool) -> torch.Tensor:
    """BN with the statistics of the minibatch, and a ReLU after it where `relu` is true.

    `x` is float32 or bfloat16, in channels_last on the CPU, its number of pixels a multiple of 16. Sums are in double
    precision, where PyTorch's BN in channels_last adds up in float32. Needs `native_library()`.
    """
    y: torch.Tensor = _NormAct.apply(x, weight, bias, eps, relu)[0]
    return y


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, relu: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        channels = weight.numel()
        row = _row(x, channels)
        if row is None:
            raise ValueError(
                f"norm_act does not compute {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()} with "
                f"{channels} channels"
            )
        y = torch.empty_like(x)
        kept = [_floats(size, x) for size in (row, row, x.shape[1], x.shape[1])]
        ctx.sizes, ctx.half = (x.numel() // row, row, x.shape[1]), int(x.dtype == torch.bfloat16)
        ctx.eps, ctx.relu = eps, int(relu)
        factors = weight.detach().float().contiguous(), bias.detach().float().contiguous()
        call_native("norm_act_forward", x, *ctx.sizes, *factors, eps, ctx.relu, y, *kept, ctx.half)
        # Not y: whether it is positive follows from x.
        ctx.save_for_backward(x, weight, bias, *kept)
        mean, variance = kept[2:]
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, *kept = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        of_weight, of_bias = _floats(x.shape[1], x), _floats(x.shape[1], x)
        call_native(
            "norm_act_backward", gradient, x, *ctx.sizes, ctx.eps, *kept, ctx.relu, dx, of_weight, of_bias, ctx.half
        )
        return dx, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None


def _floats(size: int, x: torch.Tensor) -> torch.Tensor:
    """Makes room for numbers that the C code writes, whatever the defaults of torch are."""
    return torch.empty(size, dtype=torch.float32, device=x.device)


def _row(x: torch.Tensor, channels: int) -> int | None:
    """The length of a row for the C code, or None if it cannot compute this tensor by a norm of so many channels."""
    if x.dtype not in (torch.float32, torch.bfloat16) or x.device.type != "cpu" or x.ndim != 4 or not x.numel():
        return None
    if x.shape[1] != channels:
        return None
    pixels = x.numel() // channels
    together = _LANES // math.gcd(_LANES, channels)
    if pixels % together or not x.is_contiguous(memory_format=torch.channels_last):
        return None
    while channels * together < _LONG_ROW and pixels % (2 * together) == 0:
        together *= 2
    return channels * together
