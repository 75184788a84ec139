"""Layers in C for one thread of a CPU, where PyTorch is slow: BN with ReLU, and 3x3 convolutions in narrow groups.

They compute what PyTorch's layers compute, with its gradients, but for rounding; `benchmarks/speed/native_layers.py`
compares their speed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

__all__ = ["call_native", "grouped_conv", "native_library", "override_attribute", "use_native_convs"]

# Those of `norm_act.c` are for `native_norm.py`; all are compiled at once.
_SOURCES = ("norm_act.c", "grouped_conv.c")
# Channels in a group for which there is code. In groups of one channel PyTorch is as fast.
_WIDTHS = (2, 4, 8)


def use_native_convs(model: nn.Module, undo: ExitStack) -> None:
    """Makes a model's 3x3 convolutions in groups of 2, 4 or 8 channels compute in C; `undo` reverts it.

    Nothing changes where there is more than one thread or no C compiler. A layer whose input is not on the CPU in
    channels_last computes as before.
    """
    if torch.get_num_threads() != 1 or native_library() is None:
        return
    for module in model.modules():
        # A layer of another class, or whose forward pass was replaced, may do something else with its weights.
        if type(module) is nn.Conv2d and "forward" not in vars(module) and _is_narrow(module):
            override_attribute(module, "forward", functools.partial(_grouped_conv_of, module), undo)


def override_attribute(module: nn.Module, name: str, value: Any, undo: ExitStack) -> None:
    """Sets an attribute of a module; `undo` restores it."""
    # In the module's own dictionary: its __setattr__ is slow, and a network has hundreds of modules.
    own = vars(module)
    if name not in own:
        undo.callback(own.pop, name)
    elif own[name] is not value:
        undo.callback(own.__setitem__, name, own[name])
    own[name] = value


def _is_narrow(conv: nn.Conv2d) -> bool:
    """Whether a convolution is one of those in C."""
    return (
        (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))
        and conv.stride in ((1, 1), (2, 2))
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and conv.in_channels == conv.out_channels
        and _fits(conv.in_channels, conv.in_channels // conv.groups)
    )


def _fits(channels: int, width: int) -> bool:
    """Whether vectors hold whole groups, and channels are whole vectors."""
    lanes = native_library().lanes()  # type: ignore[union-attr]
    return width in _WIDTHS and width <= lanes and channels % lanes == 0


def _is_computed(x: torch.Tensor, channels: int) -> bool:
    """Whether there is code for images of this type, device and layout."""
    known = x.dtype in (torch.float32, torch.bfloat16) and x.device.type == "cpu" and x.ndim == 4
    return known and x.shape[1] == channels and x.numel() > 0 and x.is_contiguous(memory_format=torch.channels_last)


def _grouped_conv_of(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype("cpu"))
    if not _is_computed(x, conv.in_channels):
        return nn.Conv2d.forward(conv, x)
    # What `grouped_conv` checks of the weights has been seen when the layer was chosen.
    return _GroupedConv.apply(x, conv.weight, conv.stride[0])


def grouped_conv(x: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """A 3x3 convolution in groups of 2, 4 or 8 channels, with a padding of 1.

    `x` is float32 or bfloat16, in channels_last on the CPU; its channels are a multiple of 16. `weight` has the shape
    (channels, channels in a group, 3, 3). Sums are in float32. Needs `native_library()`.
    """
    channels, width, *kernel = weight.shape
    if not (_is_computed(x, channels) and _fits(channels, width) and kernel == [3, 3]):
        raise ValueError(
            f"grouped_conv does not compute {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()} in groups of "
            f"{width} channels by kernels of {'x'.join(map(str, kernel))}"
        )
    output: torch.Tensor = _GroupedConv.apply(x, weight, stride)
    return output


class _GroupedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        number, channels, height, width = x.shape
        shape = number, channels, (height - 1) // stride + 1, (width - 1) // stride + 1
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.half = int(x.dtype == torch.bfloat16)
        ctx.sizes = number, height, width, channels, weight.shape[1], stride
        call_native("grouped_conv_forward", x, *ctx.sizes, _plain(weight), y, ctx.half)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            call_native("grouped_conv_input", gradient, *ctx.sizes, _plain(weight), dx, ctx.half)
        if ctx.needs_input_grad[1]:
            dweight = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
            call_native("grouped_conv_weight", x, gradient, *ctx.sizes, dweight, ctx.half)
            dweight = dweight.to(weight.dtype)
        return dx, dweight, None


def _plain(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().contiguous()


# -- the library -----------------------------------------------------------------------------------------------------


def call_native(name: str, *args: Any) -> None:
    """Calls a function of the library with the addresses of tensors; raises MemoryError."""
    if getattr(native_library(), name)(*(each.data_ptr() if isinstance(each, torch.Tensor) else each for each in args)):
        raise MemoryError("no memory for a layer in C")


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """Compiles the C code for this machine, once per process (about 1 s); None if that is not possible."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix":
        return None
    # In brackets, not quotes: those would find files in the folder that the program runs in first.
    source = "".join(f"#include <{name}>\n" for name in _SOURCES)
    try:
        # Some file systems keep what is loaded until the process ends.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return _compiled(compiler.split(), source, str(Path(folder) / "native.so"))
    except OSError:
        # No file can be written.
        return None


def _compiled(compiler: list[str], source: str, target: str) -> ctypes.CDLL | None:
    command = [*compiler, "-O3", "-std=gnu11", "-shared", "-fPIC", f"-I{Path(__file__).parent}", "-xc", "-"]
    command += ["-o", target, "-lm"]
    for options in (["-march=native"], []):
        try:
            subprocess.run([*command, *options], input=source.encode(), check=True, capture_output=True, timeout=60)
            library = ctypes.CDLL(target)
        except (OSError, subprocess.SubprocessError):
            continue
        _declare(library)
        return library
    return None


def _declare(library: ctypes.CDLL) -> None:
    """Says which arguments the functions have, in their order."""
    pointer, size, flag, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double
    library.norm_act_forward.argtypes = [pointer, *[size] * 3, *[pointer] * 2, real, flag, *[pointer] * 5, flag]
    library.norm_act_backward.argtypes = [*[pointer] * 2, *[size] * 3, real, *[pointer] * 4, flag, *[pointer] * 3, flag]
    library.norm_act_apply.argtypes = [pointer, *[size] * 2, *[pointer] * 2, flag, pointer, flag]
    images = [*[size] * 4, *[flag] * 2]
    library.grouped_conv_forward.argtypes = [pointer, *images, *[pointer] * 2, flag]
    library.grouped_conv_input.argtypes = [pointer, *images, *[pointer] * 2, flag]
    library.grouped_conv_weight.argtypes = [*[pointer] * 2, *images, pointer, flag]
    library.lanes.restype = size
