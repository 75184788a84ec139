"""The least time that a machine can take for some computation, from how fast it copies and multiplies; prints these.

    python -m benchmarks.speed.roofline

A machine has two limits, measured here: how fast it copies a tensor much larger than its caches (bytes read and bytes
written), and how fast it multiplies large matrices of a type. `train_speed.py` runs one step of training and counts
each of its operations. An operation reads its inputs once and writes its outputs once; views move nothing. A
convolution or matrix product takes two FLOPs a multiply-accumulate, and in the backward pass as many for each gradient
that is wanted; nothing else counts any. The larger of FLOPs over matrix rate and bytes over copy rate is the least time
of an operation, and the sum of these over all operations is the 'limit' of the computation. 'fused' is the sum over
convolutions and matrix products alone, as if all else were done while their numbers are at hand.

What stays in a cache moves faster than a copy of a large tensor, and compilers merge operations: 'limit' knows neither
and can be passed, 'fused' by small tensors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.lib.scripts import run_script
from blockswap_models.machine import find_device
from blockswap_models.nets.devices import describe_device


class Limits(NamedTuple):
    """What a machine does in a second."""

    copied_bytes: float
    flops: float

    def __str__(self) -> str:
        return f"copies {self.copied_bytes / 1e9:,.1f} GB/s, matrices {self.flops / 1e12:,.3f} TFLOP/s"


class Clock:
    """Marks moments of a device, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._device.type == "cpu":
            self._marks.append(time.perf_counter())
        else:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record(torch.cuda.current_stream(self._device))

    def seconds(self) -> list[float]:
        """The time from each mark to the next."""
        if self._device.type == "cpu":
            return [end - start for start, end in pairwise(self._marks)]
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self._marks)]


class Work(TorchDispatchMode):
    """Counts the operations that run within it, in both passes."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self.flops, self.bytes, self.limit, self.fused = 0, 0, 0.0, 0.0
        self._operations: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        flops, moved = flops_of(func, args, result), bytes_of(func, args, kwargs or {}, result)
        seconds = max(flops / self._limits.flops, moved / self._limits.copied_bytes)
        self.flops += flops
        self.bytes += moved
        self.limit += seconds
        self.fused += seconds if flops else 0
        self._operations.append((flops, moved))
        return result

    def least(self, limits: Limits) -> float:
        """Seconds that a machine of these limits would take at least for what was counted."""
        return sum(max(flops / limits.flops, moved / limits.copied_bytes) for flops, moved in self._operations)


def flops_of(func: Any, args: Any, result: Any) -> int:
    """Twice the multiply-accumulates of a convolution, of its gradients or of a matrix product."""
    kind, aten = func.overloadpacket, torch.ops.aten
    if kind is aten.convolution:
        return 2 * result.numel() * args[1][0].numel()
    if kind is aten.convolution_backward:
        gradient, weight, (of_input, of_weight, _) = args[0], args[2], args[-1]
        return 2 * gradient.numel() * weight[0].numel() * (of_input + of_weight)
    if kind in (aten.mm, aten.addmm):
        one, other = args[-2:]
        return 2 * one.numel() * other.shape[1]
    return 0


def bytes_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """What an operation reads and writes, each tensor once; nothing where it makes a view, or room for a tensor."""
    if func.overloadpacket.__name__.startswith(("empty", "new_empty")):
        return 0
    read = tensors((args, kwargs))
    places = {each.untyped_storage().data_ptr() for each in read}
    written = [each for each in tensors(result) if each.untyped_storage().data_ptr() not in places]
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += tensors(args[place] if place < len(args) else kwargs.get(argument.name))
    # An expanded tensor has more elements than its memory.
    sizes = [min(each.numel() * each.element_size(), each.untyped_storage().nbytes()) for each in read + written]
    return sum(sizes) if written else 0


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors in arguments or results; one that is there twice, once."""
    return list({id(each): each for each in tree_leaves(tree) if isinstance(each, torch.Tensor)}.values())


def measure_limits(device: torch.device, dtype: torch.dtype, smoke: bool = False) -> Limits:
    """Measures both limits, each by the fastest of its repeats."""
    gpu = device.type == "cuda"
    megabytes, side = (1, 256) if smoke else (1024, 8192) if gpu else (256, 2048)
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = fastest(lambda: target.copy_(source), device)
    # Random numbers: a GPU that multiplies ones takes less power, and so runs faster than it does with any others.
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(one)
    precision = torch.get_float32_matmul_precision()
    if gpu and torch.backends.cudnn.allow_tf32:
        # Convolutions in float32 take TF32 by themselves, matrix products do not.
        torch.set_float32_matmul_precision("high")
    multiplying = fastest(lambda: torch.mm(one, other, out=product), device)
    torch.set_float32_matmul_precision(precision)
    return Limits(2 * source.numel() / copying, 2 * side**3 / multiplying)


def fastest(work: Callable[[], object], device: torch.device) -> float:
    clock = Clock(device)
    for _ in range(21):
        work()
        clock.mark()
    return min(clock.seconds())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cuda or cpu (cuda where there is a GPU)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--smoke", action="store_true", help="tiny tensors")
    run_script(parser, run)


def run(options: argparse.Namespace) -> None:
    device = find_device(options.device)
    torch.set_num_threads(1 if options.smoke else options.threads)
    about = describe_device(device)
    print(f"torch {about['torch']}, {device}, {about['processor']}, {torch.get_num_threads()} threads")
    for dtype in (torch.bfloat16, torch.float32):
        print(f"{str(dtype).removeprefix('torch.'):8s}  {measure_limits(device, dtype, options.smoke)}")


if __name__ == "__main__":
    main()
