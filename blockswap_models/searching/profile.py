"""Measures latency tables: every block type at every shape, each within whole networks, on the user's device.

A block is timed where it will run. The types are distributed over as many networks as there are types, so that each
type is once at each position; a clock is read as each block begins, and a network's latency is the sum of its parts by
construction: caches, memory and launches are those of a real network. Passes with clocks alternate with passes without,
and all times are scaled by their ratio, since reading the clock takes time itself. A time is the lower quartile of its
repeats: other load on the machine makes some slower and none faster, and a sum of minima would be less than any pass
takes.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from ..budget import Cost
from ..counts import require_counts
from ..genome import BlockType, Genome
from ..layout import Position
from ..machine import find_device, threads_set
from ..nets.devices import describe_device
from ..nets.networks import residual_blocks
from .latency import LatencyTable, Shape
from .space import SearchSpace

__all__ = ["Stopwatch", "profile", "typical"]

# Just below the largest block whose release glibc learns from.
_LARGE = 2**25 - 2**16


def profile(
    space: SearchSpace,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    threads: int | None = None,
    rounds: int = 15,
    passes: int = 3,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> LatencyTable:
    """Measures stem, head and every block type of a space at every shape, in float32 and evaluation mode.

    In each round every network runs in turn, so that drift of the machine affects all alike: once to warm up, then
    several times with clocks and as often without. Nothing else should run on the machine.

    Args:
        space: The search space.
        device: The device to measure.
        batch_size: Images in a minibatch.
        threads: Threads; torch's own number by default.
        rounds: Rounds through all networks.
        passes: Measurements of a network in each round.
        progress: Wraps the iterable of rounds, as tqdm does.

    Returns:
        The table.

    Raises:
        ValueError: A number is below 1, or there is no such device.

    Example:
        ```python
        table = profile(SearchSpace("wrn40_2"), threads=1)
        table.latency("6xS/6xG4/6xB2")  # seconds
        ```
    """
    require_counts(batch_size=batch_size, threads=threads, rounds=rounds, passes=passes)
    _require_alike(space)
    device = find_device(device)
    stopwatch = Stopwatch(device)
    with threads_set(threads), torch.inference_mode():
        # The caller's random numbers are not changed.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            x = torch.rand(batch_size, *space.input_size).to(device)
            genomes = _deal(space)
            networks = [space.build(genome).eval().to(device) for genome in genomes]
        shapes = _shapes(networks[0], space.layout.positions, x)
        parts: list[list[list[float]]] = [[] for _ in networks]
        ratios = []
        steps = range(rounds)
        for _ in progress(steps) if progress else steps:
            for network, found in zip(networks, parts, strict=True):
                network(x)
                for _ in range(passes):
                    found.append(stopwatch.parts(network, x))
                    ratios.append(stopwatch.whole(network, x) / sum(found[-1]))
        scale = statistics.median(ratios)
        return LatencyTable(
            space.layout,
            space.input_size,
            space.num_classes,
            batch_size,
            device.type,
            torch.get_num_threads(),
            describe_device(device),
            scale * typical([each[0] for found in parts for each in found]),
            scale * typical([each[-1] for found in parts for each in found]),
            shapes,
            _by_shape(space.types, genomes, shapes, parts, scale),
        )


def _require_alike(space: SearchSpace) -> None:
    """Sees that the blocks that a network keeps are alike wherever a table has one time for them."""
    kept = BlockType("K")
    if space.network is None or kept not in space.types:
        return
    alike: dict[tuple[int, ...], tuple[int, Cost]] = {}
    for index, (place, options) in enumerate(zip(space.layout.positions, space.options, strict=True)):
        if kept in dict(options):
            key = (place.in_chs, place.out_chs, place.stride, place.stage)
            first, cost = alike.setdefault(key, (index, space.network.option_cost(index, kept)))
            if cost != space.network.option_cost(index, kept):
                raise ValueError(
                    f"blocks {first + 1} and {index + 1} of {space.layout.name} have the same channels and differ, and "
                    "a table has one time for both; leave K out of types="
                )


def _deal(space: SearchSpace) -> list[Genome]:
    """Distributes the block types over networks, each type once at each position."""
    random = np.random.default_rng(0)
    options = [[block for block, _ in place.distinct(space.types)] for place in space.layout.positions]
    number = max(map(len, options))
    # A type meets other neighbours at each position.
    columns = [[each[index % len(each)] for index in random.permutation(number)] for each in options]
    return [Genome.from_blocks(blocks, space.layout.depths) for blocks in zip(*columns, strict=True)]


def typical(times: Sequence[float]) -> float:
    """The lower quartile of repeated measurements."""
    return float(np.quantile(times, 0.25))


def _by_shape(
    types: Sequence[BlockType],
    genomes: list[Genome],
    shapes: tuple[Shape, ...],
    parts: list[list[list[float]]],
    scale: float,
) -> dict[Shape, dict[BlockType, float]]:
    times: dict[Shape, dict[BlockType, list[float]]] = {shape: defaultdict(list) for shape in shapes}
    for genome, found in zip(genomes, parts, strict=True):
        for index, (block, shape) in enumerate(zip(genome.blocks, shapes, strict=True), start=1):
            times[shape][block] += [each[index] for each in found]
    return {
        shape: {block: scale * typical(by_type[block]) for block in types if block in by_type}
        for shape, by_type in times.items()
    }


def _shapes(network: nn.Module, places: Sequence[Position], x: torch.Tensor) -> tuple[Shape, ...]:
    sizes: list[torch.Size] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
        for block in residual_blocks(network)
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return tuple(
        Shape(place.in_chs, place.out_chs, place.stride, size[2], size[3])
        for place, size in zip(places, sizes, strict=True)
    )


class Stopwatch:
    """Times passes of a network on a device: whole, or as stem, blocks and head."""

    def __init__(self, device: torch.device) -> None:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"latencies are measured on cpu or cuda, not on '{device.type}'")
        self._device = find_device(device)
        # Until a process has freed a large block, glibc hands memory back after each pass and faults it in again: at 8
        # images WRN-40-2 took 2,800 page faults a pass in a fresh process, and none in one that had run for a while.
        torch.empty(_LARGE, dtype=torch.uint8)

    def whole(self, network: nn.Module, x: torch.Tensor) -> float:
        """The seconds of one pass, until its result is there."""
        self._synchronise()
        start = time.perf_counter()
        network(x)
        self._synchronise()
        return time.perf_counter() - start

    def parts(self, network: nn.Module, x: torch.Tensor) -> list[float]:
        """The seconds of the stem, of each block and of the head in one pass."""
        blocks = residual_blocks(network)
        marks: list[Any] = []

        def mark(*_: object) -> None:
            marks.append(self._now())

        # A block lasts until the next begins, so that nothing between them is lost.
        hooks = [block.register_forward_pre_hook(mark) for block in blocks]
        hooks.append(blocks[-1].register_forward_hook(mark))
        try:
            self._synchronise()
            mark()
            network(x)
            mark()
            self._synchronise()
        finally:
            for hook in hooks:
                hook.remove()
        return [self._between(start, end) for start, end in pairwise(marks)]

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _now(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        # Read by the device itself, which runs behind: waiting for it at each block would make it slower.
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between(self, start: Any, end: Any) -> float:
        return end - start if self._device.type == "cpu" else start.elapsed_time(end) / 1000
