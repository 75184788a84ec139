"""How much faster are the layers in C than PyTorch's: by layer, by step of training, by score?

    python -m benchmarks.speed.native_layers
    python -m benchmarks.speed.native_layers --amp bfloat16

Everything is computed with them and without them, in turns, on one thread. A time is the median of processor time; the
last column says how many times as long it takes without them. The first lines are 3x3 convolutions in narrow groups,
and BN with ReLU, forward and backward, in minibatches of 32 images. The steps of training are of networks of the zoo,
by cross-entropy, at 24 pixels as in the first epochs of the recipe `cifar10-30`. The scores are Fisher potentials of
random genomes at 32 pixels.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.lib.report import processor, versions
from blockswap_models import SearchSpace
from blockswap_models.machine import keep_memory
from blockswap_models.nets import native, native_norm
from blockswap_models.searching import kernels
from blockswap_models.searching.probe_images import noise_minibatch
from blockswap_models.searching.scorer import Scorer

# Channels and side of the images in the three stages of a Wide ResNet of width 2.
STAGES = ((32, 24), (64, 12), (128, 6))


def processor_time(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Times two functions in turns; returns the medians of their processor time in milliseconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for function, kept in zip((one, other), times, strict=True):
            start = time.process_time()
            function()
            if number:
                kept.append(1e3 * (time.process_time() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def layers(batch_size: int) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Gives each layer with its name and its input."""
    for channels, side in STAGES:
        x = torch.randn(batch_size, channels, side, side).contiguous(memory_format=torch.channels_last)
        for width in (2, 4, 8):
            conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels // width, bias=False)
            yield f"{channels} channels in groups of {width}, {side}x{side}", conv, x
        yield f"BN and ReLU, {channels} channels, {side}x{side}", nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()), x


def use_native_layers(model: nn.Module, undo: ExitStack) -> None:
    """Makes a model compute what it can in C."""
    native.use_native_convs(model, undo)
    native_norm.use_native_norms(model, undo)


def passes(module: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    """Returns what runs a module forward and backward, on images of a type as between layers of a network."""
    x = x.to(dtype)
    gradient = torch.randn_like(x)

    def run() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = module(x.requires_grad_())
        y.backward(gradient)

    return run


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    """Returns what takes a step of training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return run


def without_compiler(function: Callable[[], object]) -> Callable[[], object]:
    """Returns what calls a function where there is no C compiler."""

    def run() -> None:
        with ExitStack() as undo:
            for module in (native, native_norm, kernels):
                undo.enter_context(mock.patch.object(module, "native_library", return_value=None))
            function()

    return run


def report(name: str, found: tuple[float, float]) -> None:
    fast, plain = found
    print(f"{name:44s}{fast:10.2f}{plain:10.2f}{plain / fast:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="times of each (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="images in a minibatch (%(default)s)")
    parser.add_argument("--genomes", type=int, default=8, help="genomes that are scored (%(default)s)")
    parser.add_argument("--students", nargs="+", default=["wrn40_2", "wrn40_2_404k", "wrn40_2_217k"])
    parser.add_argument("--amp", choices=["bfloat16"], help="precision of layers and steps (float32)")
    parser.add_argument("--smoke", action="store_true", help="two rounds of little")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.batch_size, options.genomes, options.students = 1, 2, 1, ["wrn40_2_162k"]
    dtype = torch.float32 if options.amp is None else torch.bfloat16
    torch.set_num_threads(1)
    keep_memory()
    if native.native_library() is None:
        parser.exit(message="there is no C compiler on this machine\n")
    print(f"{versions()}; {processor()}; one thread, {options.amp or 'float32'}, medians of {options.rounds}\n")
    print(f"{'milliseconds of processor time':44s}{'in C':>10s}{'without':>10s}{'ratio':>8s}")
    torch.manual_seed(0)
    for name, layer, x in layers(options.batch_size):
        with ExitStack() as undo:
            fast = copy.deepcopy(layer)
            use_native_layers(fast, undo)
            one, other = passes(fast, x, dtype), passes(layer, x.detach().clone(), dtype)
            report(name, processor_time(one, other, options.rounds))
    images = torch.randn(options.batch_size, 3, 24, 24).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options.batch_size) % 10
    for name in options.students:
        model = timm.create_model(f"blockswap_{name}").to(memory_format=torch.channels_last).train()
        with ExitStack() as undo:
            fast = copy.deepcopy(model)
            use_native_layers(fast, undo)
            one, other = step(fast, images, labels, dtype), step(model, images, labels, dtype)
            found = processor_time(one, other, options.rounds)
            report(f"step of {name}", found)
    space = SearchSpace("wrn40_2")
    scorer, found = Scorer(space, noise_minibatch(space, options.batch_size)), []
    for genome in space.sample(options.genomes, space.resolve("400k")[1]):
        scored = functools.partial(scorer, (genome, 0))
        found.append(processor_time(scored, without_compiler(scored), max(1, options.rounds // 5)))
    report(
        f"score, mean of {options.genomes} genomes of 400 K",
        (statistics.fmean(fast for fast, _ in found), statistics.fmean(plain for _, plain in found)),
    )


if __name__ == "__main__":
    main()
