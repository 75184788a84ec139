"""Other blocks in a network of timm: where its blocks are, what they cost, and networks with others in their places.

A block is what the stages of timm's `feature_info` hold: a module with a spatial convolution that maps one feature map
to another. Its channels, its stride and its style are found by running the network once, on the meta device.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from timm.layers import LayerNorm2d, RmsNorm2d, SimpleNorm2d
from timm.models.nfnet import GammaAct
from timm.utils import unwrap_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

from ..budget import Cost
from ..errors import BlockSwapError
from ..genome import BlockType, Genome
from ..layout import RANDOM_WEIGHTS, NetworkLayout, Position
from ..messages import quote
from .blocks import IdentityBlock, ResidualBlock, build_block
from .copies import meta_copy, plain_copy
from .cost import count_parts
from .library import BlockLibrary, weights_digest

__all__ = ["BlockNetwork", "FoundBlock", "SplitError", "find_blocks", "own_input_size", "swap", "wake"]

# "pre": norm and activation before each convolution; "post": after it, the last after the addition; "linear": after it,
# none after the addition.
Order = Literal["pre", "post", "linear"]
# The child of a block that maps its input to the shape of its output.
_SHORTCUTS = ("downsample", "shortcut")
# What is not in the branch: also a norm of the input, as RepVGG has.
_BESIDE = (*_SHORTCUTS, "identity")
# Modules of Python that hold nothing but norms, some with an activation, and nothing but activations.
_NORMS = ("timm.layers.norm", "timm.layers.evo_norm", "timm.layers.filter_response_norm")
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
_GATES = re.compile("sigmoid|softmax|attention|identity", re.IGNORECASE)
_KEEP = BlockType("K")


class SplitError(BlockSwapError):
    """A network that does not split into blocks: names the module that is in the way."""


@dataclass(frozen=True)
class FoundBlock:
    """A block of a given network.

    Args:
        name: The block, as `get_submodule` of the network knows it.
        place: Its stage and number, channels and stride.
        size: Height and width of its input.
        order: Where its norms and activations stand.
        end: The module of the block whose output is added to the shortcut, empty where it has none.
        shortcut: The child that is its shortcut, None where that is its input, or there is none.
    """

    name: str
    place: Position
    size: tuple[int, int]
    order: Order
    end: str
    shortcut: str | None


def swap(
    model: nn.Module,
    genome: Genome | str,
    *,
    library: BlockLibrary | str | Path | None = None,
    input_size: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Makes a network with other blocks: each block of a network of timm is kept (K) or replaced by its block type.

    A new block has random weights, or those of a library, and the channels, stride, norm, activation and order of the
    one it replaces; where that one has a module in its shortcut, the new block starts with a copy of it. All else keeps
    its weights.

    Args:
        model: The network, which stays as it is: any of timm whose stages are sequences of blocks, or one of the zoo;
            also within what `torch.compile` or distributed training wraps around it, of which the new one has nothing.
        genome: One block type for each block.
        library: Trained blocks, or their folder.
        input_size: Channels, height and width of the images; the network's own by default.

    Returns:
        The new network, with its `genome`; where the network that was given had one, kept blocks have their own types.

    Raises:
        GenomeError: The genome does not fit the network.
        LibraryError: The library is of other weights, or lacks a block.
        SplitError: The network does not split into blocks.

    Example:
        ```python
        student = swap(timm.create_model("resnet50", pretrained=True), "3xK/4xB4W8/6xG8/3xK")
        ```
    """
    model = unwrap_model(model)
    found = find_blocks(model, input_size)
    genome = layout_of(model, found, input_size).fit(genome)
    if isinstance(library, (str, Path)):
        library = BlockLibrary.load(library)
    blocks = genome.blocks
    if library is not None:
        library.require(model)
        # A type that the network has itself at a position is its own block there.
        blocks = tuple(_KEEP if library.is_kept(index, block) else block for index, block in enumerate(blocks))
    # A copy takes what stands here for the copy of a block: what is replaced is not copied.
    memo: dict[int, Any] = {}
    for index, (each, block) in enumerate(zip(found, blocks, strict=True)):
        if block != _KEEP:
            old = model.get_submodule(each.name)
            memo[id(old)] = new = new_block(block, old, each)
            if library is not None:
                new.load_state_dict(library.state(index, block))
    return _described(plain_copy(model, memo), genome, found, input_size)


def find_blocks(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> tuple[FoundBlock, ...]:
    """Finds the blocks of a network of timm.

    Args:
        model: The network.
        input_size: Channels, height and width of the images, the network's own where none is given.

    Returns:
        The blocks, in order.

    Raises:
        SplitError: The network does not split into blocks.
    """
    size = own_input_size(model) if input_size is None else input_size
    return _trace(model, size)[0]


def own_input_size(model: nn.Module) -> tuple[int, int, int]:
    """Says for which images a network was made: channels, height and width; raises SplitError where it does not say."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = cfg.get("input_size") or getattr(getattr(model, "layout", None), "input_size", None)
    if size is None:
        raise SplitError(f"{type(model).__name__} does not say its input size; use input_size=(3, 224, 224)")
    channels, height, width = size
    return getattr(model, "in_chans", channels), height, width


def layout_of(
    model: nn.Module, found: Iterable[FoundBlock], input_size: tuple[int, int, int] | None = None
) -> NetworkLayout:
    """Makes the layout of a network's blocks."""
    found = tuple(found)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return NetworkLayout.of_places(
        cfg.get("architecture") or type(model).__name__,
        [each.place for each in found],
        preact=found[0].order == "pre",
        input_size=own_input_size(model) if input_size is None else input_size,
        num_classes=getattr(model, "num_classes", 1),
    )


# -- finding ---------------------------------------------------------------------------------------------------------


def _stages(model: nn.Module) -> list[list[str]]:
    """The names of the modules in each stage that may be blocks."""
    info = getattr(model, "feature_info", None)
    if not info:
        raise SplitError(f"{type(model).__name__} has no feature_info that names its stages; use a CNN of timm")
    there = dict(model.named_modules())
    names = [entry["module"] for entry in info]
    # timm's wrappers of features have underscores in the place of dots.
    names = [name if name in there else name.replace(".", "_") for name in names]
    stages: list[str] = []
    for name in names:
        parent = name.rpartition(".")[0]
        # Where some stages of a sequence give features, all of it are stages.
        whole = parent and isinstance(there[parent], nn.Sequential)
        stages += [f"{parent}.{child}" for child, _ in there[parent].named_children()] if whole else [name]
    held: list[list[str]] = []
    alone: list[list[str]] = []
    for name in dict.fromkeys(stages):
        if name not in there:
            continue
        stage = there[name]
        inner = getattr(stage, "blocks", None)
        if isinstance(inner, nn.Sequential):
            name, stage = f"{name}.blocks", inner
        holds = isinstance(stage, nn.Sequential) or type(stage).__name__.endswith("Stage")
        parts = [f"{name}.{child}" for child, _ in stage.named_children()] if holds else [name]
        for part in parts:
            if isinstance(there[part], IdentityBlock):
                raise SplitError(
                    f"{part} of this {type(model).__name__} is an identity, in whose place no other block can be put; "
                    "make the network with another block there (I)"
                )
        parts = [part for part in parts if _has_spatial_conv(there[part])]
        if parts:
            (held if holds else alone).append(parts)
    if not held and not alone:
        raise SplitError(
            f"{type(model).__name__} does not split into blocks: its stages {', '.join(names)} hold no modules with a "
            "spatial convolution; use a CNN of timm whose stages are sequences of blocks"
        )
    # A module by itself beside stages is a stem; where there is nothing else, each is a block of one sequence.
    found = held or [[part for parts in alone for part in parts]]
    every = {part for parts in found for part in parts}
    # What lies in another block goes with that one.
    outer = [[part for part in parts if not every.intersection(_above(part))] for parts in found]
    return [parts for parts in outer if parts]


def _above(name: str) -> list[str]:
    """The names of the modules that a module lies in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _has_spatial_conv(module: nn.Module) -> bool:
    """Whether a module is made of others, of which one is a convolution over more than a point."""
    parts = [each for each in module.modules() if each is not module]
    return any(isinstance(each, nn.Conv2d) and max(each.kernel_size) > 1 for each in parts)


def _trace(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[tuple[FoundBlock, ...], Cost, list[Cost]]:
    """Runs a network once on the meta device: its blocks, its cost, and the cost of each block."""
    stages = _stages(model)
    shadow = meta_copy(model)
    runs = {name: _Run() for stage in stages for name in stage}
    x = torch.empty(1, *input_size, device="meta")

    def watch() -> None:
        for name, run in runs.items():
            run.watch(shadow.get_submodule(name))

    try:
        with _Additions(runs.values()):
            total, *parts = count_parts(shadow, [shadow, *map(shadow.get_submodule, runs)], x, before=watch)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, BlockSwapError):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise SplitError(
            f"{type(model).__name__} does not run on one image of {'x'.join(map(str, input_size))}: {said}"
        ) from None
    found = []
    flat = [(number, name) for number, stage in enumerate(stages, 1) for name in stage]
    stage_no, block_no, last = 0, 0, 0
    for number, name in flat:
        run = runs[name]
        run.check(type(model).__name__, name, shadow.get_submodule(name))
        stride = run.stride
        # Where the blocks are one sequence, a stage begins where images are halved.
        if number != last or (len(stages) == 1 and stride > 1):
            stage_no, block_no, last = stage_no + 1, 0, number
        block_no += 1
        place = Position(stage_no, block_no, run.given[1], run.made[1], stride, kept=True)
        size = (run.given[2], run.given[3])
        found.append(FoundBlock(name, place, size, run.order, run.end, run.shortcut))
    return tuple(found), total, parts


class _Additions(TorchDispatchMode):
    """Tells runs of blocks of each addition."""

    def __init__(self, runs: Iterable[_Run]) -> None:
        super().__init__()
        self._runs = runs

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
            for run in self._runs:
                run.see_addition()
        return func(*args, **(kwargs or {}))


class _Run:
    """What one run of a network tells of a block."""

    def __init__(self) -> None:
        self.given: tuple[int, ...] = ()
        self.made: tuple[int, ...] = ()
        self.order: Order = "linear"
        self.end = ""
        self.shortcut: str | None = None
        self._problem: str | None = "is not run"
        # Norms and activations in the order in which they run, and the children with the shapes that they make.
        self._steps: list[str] = []
        self._halves = False
        self._children: list[tuple[str, nn.Module, Any]] = []
        # How many modules of the block are running, itself among them; how many children had run at its last addition.
        self._running = 0
        self._added: int | None = None

    def watch(self, block: nn.Module) -> None:
        """Hooks a block and its parts."""
        if isinstance(block, ResidualBlock):
            self.end = block.branch_end or ""
        for name, child in block.named_children():
            child.register_forward_hook(self._see_child(name))
        for name, part in block.named_modules():
            if part is not block and not {*_BESIDE}.intersection(name.split(".")):
                part.register_forward_pre_hook(self._see_part)
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(self._leave)
        block.register_forward_pre_hook(self._begin)
        block.register_forward_hook(self._finish)

    def see_addition(self) -> None:
        """Takes note of an addition of the block itself, not of one in its parts."""
        if self._running == 1:
            self._added = len(self._children)

    def _enter(self, *_: object) -> None:
        self._running += 1

    def _leave(self, *_: object) -> None:
        self._running -= 1

    def _begin(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._problem = None if not self.given else "is run more than once"
        if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
            self._problem = "is not given one feature map"
        else:
            self.given = tuple(inputs[0].shape)

    def _see_part(self, part: nn.Module, _: object) -> None:
        if is_norm(part):
            self._steps.append("norm")
        elif isinstance(part, nn.Conv2d):
            self._steps.append("conv")
        # Convolutions and pools, of which some say it as a pair.
        stride = getattr(part, "stride", 1)
        self._halves |= stride not in (1, (1, 1), None)

    def _see_child(self, name: str) -> Callable[..., None]:
        def see(child: nn.Module, _: object, output: Any) -> None:
            self._children.append((name, child, tuple(output.shape) if isinstance(output, torch.Tensor) else None))

        return see

    def _finish(self, block: nn.Module, _: object, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            self._problem = self._problem or "does not make one feature map"
            return
        self.made = tuple(output.shape)
        named = {name for name, _, _ in self._children if name in _SHORTCUTS}
        modules = dict(block.named_children())
        # Some pool alone, and what they make has other channels than the block's output.
        fitting = {name for name, _, shape in self._children if name in named and shape == self.made}
        used = [name for name in fitting if not isinstance(modules[name], nn.Identity)]
        self.shortcut = used[0] if used and not getattr(block, "has_own_projection", False) else None
        branch = [each for each in self._children if each[0] not in _BESIDE]
        acts_last = bool(branch) and is_activation(branch[-1][1])
        if not isinstance(block, ResidualBlock):
            # What runs after the addition is no end of the branch, such as an attention of the whole. Where there is no
            # shortcut, what is added up are parts of the branch.
            has_shortcut = self.given == self.made or len(branch) < len(self._children)
            ran = [each for each in self._children[: self._added if has_shortcut else None] if each[0] not in _BESIDE]
            while ran and is_activation(ran[-1][1]):
                ran.pop()
            self.end = next((name for name, _, shape in reversed(ran) if shape == self.made), "")
        self.order = "pre" if self._steps[:1] == ["norm"] else "post" if acts_last else "linear"

    @property
    def stride(self) -> int:
        # Of the longer axis: one that is a point already stays one.
        axis = 2 if self.given[2] >= self.given[3] else 3
        return max(1, round(self.given[axis] / self.made[axis]))

    def _channels_last(self, block: nn.Module) -> bool:
        """Whether a block runs with twice as many of what would be its channels, which then are the height of a map."""
        batch, second, *rest = self.given
        try:
            # Not by its own hooks, which have seen what they were to see.
            block.forward(torch.empty(batch, 2 * second, *rest, device="meta"))
        except (RuntimeError, ValueError, TypeError, AssertionError):
            return False
        return True

    def check(self, network: str, name: str, block: nn.Module) -> None:
        """Raises SplitError for a block that does not map one feature map to another."""
        problem = self._problem
        if problem is None and not len(self.given) == len(self.made) == 4:
            problem = f"maps {'x'.join(map(str, self.given))} to {'x'.join(map(str, self.made))}, not feature maps"
        elif problem is None and any(
            -(-before // self.stride) != after for before, after in zip(self.given[2:], self.made[2:], strict=True)
        ):
            problem = f"maps images of {self.given[2]}x{self.given[3]} to {self.made[2]}x{self.made[3]}"
        elif problem is None and max(self.given[2:]) == 1 and self._halves:
            problem = "is given images of 1x1, which do not show its stride; use larger images"
        elif problem is None and self._channels_last(block):
            problem = f"takes maps whose channels come last, {'x'.join(map(str, self.given[1:]))}"
        if problem is not None:
            raise SplitError(
                f"{network} does not split into blocks: its module {quote(name)} ({type(block).__name__}) {problem}"
            )


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a layer of normalisation."""
    known = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)
    return isinstance(module, known) or type(module).__module__.startswith(_NORMS)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation, and not a gate of channels."""
    kind = type(module)
    if kind is GammaAct:
        return True
    return kind.__module__.startswith(_ACTIVATIONS) and not _GATES.search(kind.__name__)


# -- making ----------------------------------------------------------------------------------------------------------


def _new_blocks(
    model: nn.Module, genome: Genome, found: Iterable[FoundBlock]
) -> Iterator[tuple[nn.Module, ResidualBlock]]:
    """Makes what takes the place of each block that is not kept."""
    for each, block in zip(found, genome.blocks, strict=True):
        if block != _KEEP:
            old = model.get_submodule(each.name)
            yield old, new_block(block, old, each)


def new_block(block: BlockType, old: nn.Module, found: FoundBlock) -> ResidualBlock:
    """Makes a block of a type, with random weights, that can take the place of another and is like it otherwise.

    Args:
        block: The type.
        old: The block whose place it takes, of which nothing but a copy of its shortcut is kept.
        found: What was found of it.

    Returns:
        The new block, where the old one is and in its mode.

    Raises:
        GenomeError: Widths do not divide.
    """
    place = found.place
    sample = next((each for each in old.parameters() if each.is_floating_point()), torch.empty(0))
    dd: dict[str, Any] = {"device": sample.device, "dtype": sample.dtype}
    acts = [each for each in old.modules() if is_activation(each)]
    most = Counter(map(type, acts)).most_common(1)
    act = next((each for each in acts if type(each) is most[0][0]), nn.ReLU()) if most else nn.ReLU()
    norm = next(filter(is_norm, old.modules()), None)
    norm_layer = _norm_maker(norm)
    changes = place.in_chs != place.out_chs or place.stride != 1
    shortcut = None if found.shortcut is None else plain_copy(getattr(old, found.shortcut))
    made = shortcut
    # A separable convolution works on what a projection makes.
    if changes and made is None and (found.order == "post" or (found.order == "linear" and block.family == "D")):
        projection = nn.Conv2d(place.in_chs, place.out_chs, 1, place.stride, bias=False, **dd)
        made = nn.Sequential(projection, norm_layer(place.out_chs, **dd))
    drop_path = getattr(old, "drop_path", None)
    new = build_block(
        block,
        place.in_chs,
        place.out_chs,
        place.stride,
        preact=found.order == "pre",
        downsample=made,
        dilations=_dilations(old, found),
        drop_path=None if drop_path is None else plain_copy(drop_path),
        act_layer=lambda inplace=True: _like(act, inplace),
        norm_layer=norm_layer,
        act_last=found.order == "post",
        skip=not changes or made is not None,
        **dd,
    )
    if made is not shortcut and found.order == "linear":
        # The original had none, and a type that needs none has none in its place either.
        new.has_own_projection = True
    kept = set() if shortcut is None else {*shortcut.modules()}
    for module in new.modules():
        if isinstance(module, nn.Conv2d) and module not in kept:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return new.train(old.training)


def _dilations(old: nn.Module, found: FoundBlock) -> tuple[int, int]:
    """The dilations of the first and the second 3x3 in the place of a block."""
    if isinstance(old, ResidualBlock):
        return old.dilations
    beside = set() if found.shortcut is None else {*getattr(old, found.shortcut).modules()}
    convs = [each for each in old.modules() if isinstance(each, nn.Conv2d) and each not in beside]
    rates = [max(each.dilation) for each in convs if max(each.kernel_size) > 1]
    return (rates[0], rates[-1]) if rates else (1, 1)


def _like(act: nn.Module, inplace: bool) -> nn.Module:
    copied: Any = plain_copy(act)
    if hasattr(copied, "inplace"):
        copied.inplace = inplace
    return copied


def _norm_maker(norm: nn.Module | None) -> Callable[..., nn.Module]:
    """Makes norms like one, of other widths; BN in the place of what is also an activation, or frozen."""
    if isinstance(norm, nn.GroupNorm):
        groups, eps = norm.num_groups, norm.eps
        return lambda width, **dd: nn.GroupNorm(math.gcd(groups, width), width, eps, **dd)
    if isinstance(norm, nn.LayerNorm):
        eps = norm.eps
        return lambda width, **dd: LayerNorm2d(width, eps=eps, **dd)
    for name, rms in (("RmsNorm", RmsNorm2d), ("SimpleNorm", SimpleNorm2d)):
        # Also of channels that come last.
        if type(norm).__name__.startswith(name):
            eps = cast(Any, norm).eps
            return lambda width, **dd: rms(width, eps=eps, **dd)
    kind = nn.SyncBatchNorm if isinstance(norm, nn.SyncBatchNorm) else nn.BatchNorm2d
    like: dict[str, Any] = {"eps": norm.eps, "momentum": norm.momentum} if isinstance(norm, _BatchNorm) else {}
    return lambda width, **dd: kind(width, **like, **dd)


def _described(
    model: nn.Module, genome: Genome, found: tuple[FoundBlock, ...], input_size: tuple[int, int, int] | None
) -> nn.Module:
    """Says in a network what its blocks are now."""
    own = getattr(model, "genome", None)
    if own is not None and len(own.blocks) == len(genome.blocks):
        blocks = [mine if new == _KEEP else new for mine, new in zip(own.blocks, genome.blocks, strict=True)]
        genome = Genome.from_blocks(blocks, genome.depths)
    described: Any = model
    described.genome = genome
    # Not nn.Modules: names, so that copies and pickles of the network find their own.
    described.branch_ends = {
        each.name: block.branch_end if isinstance(block := model.get_submodule(each.name), ResidualBlock) else each.end
        for each in found
    }
    if not hasattr(model, "layout"):
        described.layout = layout_of(model, found, input_size)
    return model


def wake(blocks: Iterable[nn.Module]) -> None:
    """Gives weights that are all zero others, as where branches start so: a score would see nothing in them."""
    for module in (module for block in blocks for module in block.modules()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not weight.any():
            (nn.init.ones_ if weight.ndim == 1 else nn.init.kaiming_normal_)(weight)


class BlockNetwork:
    """A network of timm with its blocks: what makes networks of other blocks, and counts them.

    Args:
        network: A network, whose weights are kept where its blocks are, or a name of timm, with random weights.
        num_classes: Classes, for a name; the network's own where none are given.
        in_chans: Channels of the images, for a name.
        image_size: Height and width of the images, the network's own where none are given.

    Attributes:
        layout: The places of the blocks.
        blocks: The blocks.
        input_size: Channels, height and width of the images.

    Raises:
        SplitError: The network does not split into blocks.
        ValueError: timm has no such network, or a given one has other classes or channels.
    """

    def __init__(
        self,
        network: nn.Module | str,
        num_classes: int | None = None,
        in_chans: int | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        self.name = network if isinstance(network, str) else None
        network = network if isinstance(network, str) else unwrap_model(network)
        given = {"num_classes": num_classes, "in_chans": in_chans}
        self._arguments: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if self.name is None:
            for key, value in self._arguments.items():
                if value != getattr(network, key, value):
                    raise ValueError(
                        f"{type(network).__name__} has {key}={getattr(network, key)}, not {value}; leave it out, or "
                        "use the network with other classes or channels"
                    )
        # The random numbers of the user's program are left as they were.
        with torch.random.fork_rng(devices=[]):
            self._model = self._create() if isinstance(network, str) else network
        channels, height, width = own_input_size(self._model) if image_size is None else (in_chans or 3, *image_size)
        if image_size is not None:
            channels = getattr(self._model, "in_chans", channels)
        self.input_size: tuple[int, int, int] = (channels, height, width)
        self.blocks, self.cost, self._kept = _trace(self._model, self.input_size)
        self.layout = layout_of(self._model, self.blocks, self.input_size)

    def _create(self) -> nn.Module:
        assert self.name is not None
        try:
            return timm.create_model(self.name, pretrained=False, **self._arguments)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"timm cannot make {quote(self.name)}: {error}") from None

    @cached_property
    def weights(self) -> str:
        """Names the weights: random ones, or a hash of those of a given network."""
        if self.name is not None:
            return RANDOM_WEIGHTS
        return weights_digest(self.model)

    def __getstate__(self) -> dict[str, Any]:
        # Of a name the network is made anew, since its random weights are not kept.
        return {
            **{key: value for key, value in vars(self).items() if key != "_shadows"},
            "_model": self._model if self.name is None else None,
        }

    @property
    def model(self) -> nn.Module:
        """The network as it is, which is not to be changed."""
        if self._model is None:
            with torch.random.fork_rng(devices=[]):
                self._model = self._create()
        return self._model

    def build(self, genome: Genome | str, *, device: torch.device | str | None = None) -> nn.Module:
        """Makes the network of a genome: of a given network as `swap` does, of a name all with random weights.

        Args:
            genome: The genome.
            device: Where to put it.

        Returns:
            The network.

        Raises:
            GenomeError: The genome does not fit.
        """
        genome = self.layout.fit(genome)
        if self.name is None:
            # An assignment of copies, as in `swap`, which need not look for the blocks again.
            memo: dict[int, Any] = {id(old): new for old, new in _new_blocks(self.model, genome, self.blocks)}
            model = plain_copy(self.model, memo)
        else:
            model = self._create()
            for each, block in zip(self.blocks, genome.blocks, strict=True):
                if block != _KEEP:
                    model.set_submodule(each.name, new_block(block, model.get_submodule(each.name), each))
        model = _described(model, genome, self.blocks, self.input_size)
        return model if device is None else model.to(device)

    def build_active(self, genome: Genome | str) -> nn.Module:
        """Makes the network of a genome, for scores: no branch starts at zero, which would score nothing."""
        model = self.build(genome)
        names: Any = model.branch_ends
        wake(map(model.get_submodule, names))
        return model

    @cached_property
    def fixed(self) -> Cost:
        """What all but the blocks costs."""
        return self.cost - sum(self._kept, Cost(0, 0))

    def option_cost(self, index: int, block: BlockType) -> Cost:
        """Counts a type at a position, from 0; raises GenomeError where it does not fit."""
        if block == _KEEP:
            return self._kept[index]
        return self._option_costs(index, block)

    def _option_costs(self, index: int, block: BlockType) -> Cost:
        found = self.blocks[index]
        shapes = self.__dict__.setdefault("_shapes", {})
        old = self._shadows[found.name]
        # What the cost of a new block depends on.
        shortcut = None if found.shortcut is None else repr(getattr(old, found.shortcut))
        place = found.place
        key = (place.in_chs, place.out_chs, place.stride, found.size, found.order, shortcut, block)
        if key not in shapes:
            new = new_block(block, old, found)
            (shapes[key],) = count_parts(new, [new], torch.empty(1, place.in_chs, *found.size, device="meta"))
        return shapes[key]

    @cached_property
    def _shadows(self) -> dict[str, nn.Module]:
        shadow = meta_copy(self.model)
        return {each.name: shadow.get_submodule(each.name) for each in self.blocks}
