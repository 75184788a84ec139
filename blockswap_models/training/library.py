"""Trains a library of blocks: each block type learns, at each position, what the block of a trained network does.

All positions learn at once from one pass of the network (Puzzle, arXiv:2411.19146; LANA, arXiv:2107.10624): a block is
given the input of the original's and is to give its output. What one pass trains is a part, as large as memory allows.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import get_model_args
from timm.utils import unwrap_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..counts import require_counts
from ..data.folders import plain_name, require_outside
from ..data.images import ImageFiles
from ..data.statistics import label_names, model_data_config
from ..files import append_json_line, json_line, locked, make_folder, read_json_lines, write_atomic
from ..genome import SEARCH_TYPES, BlockType
from ..messages import quote
from ..nets.blocks import IdentityBlock, PreActBasic, PreActBottleneck, ResidualBlock
from ..nets.library import KIND, BlockLibrary, LibraryError, tensor_name, weights_digest
from ..nets.swap import BlockNetwork, FoundBlock, is_norm, new_block
from .evaluate import Minibatches
from .loop import set_epoch

__all__ = ["has_random_weights", "train_library"]

# Bytes of a parameter while it learns: itself, its gradient and the two averages of Adam, in float32.
_BYTES = 16
# How strongly least squares keep to the weights that were learned, as a share of the mean square of a channel.
_RIDGE = 1e-4
# An epoch of a loader which no training reaches, for measuring.
_MEASURING = 1_000_000


def train_library(
    model: nn.Module,
    loader: Minibatches,
    folder: str | Path,
    *,
    data: str,
    types: Iterable[BlockType | str] = SEARCH_TYPES,
    steps: int = 300,
    lr: float = 0.03,
    measure: int = 8,
    memory: int = 4 * 2**30,
    seed: int = 0,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> BlockLibrary:
    """Trains every block type at every position to do what the block of a trained network does, and writes the library.

    The blocks learn by Adam, with a learning rate that rises for a tenth of the steps and then falls to zero. After
    that, statistics of BN and then errors, in evaluation mode, are measured on other minibatches of the loader. Where a
    pre-activation block ends in a 1x1 convolution, its weights are those of least squares at last.

    Memory holds, for a part, its blocks with what Adam keeps of them and the feature maps at their positions, which
    `memory` bounds, and beside these the network and the activations of one block at a time.

    Args:
        model: The trained network, on the device on which to train.
        loader: Minibatches of images and labels, which are not used, as `training_loader` opens.
        folder: Where the library goes.
        data: What the images are; a library is resumed with the same images only.
        types: The block types.
        steps: Minibatches that each block learns from.
        lr: The highest learning rate.
        measure: Minibatches on which errors are measured.
        memory: Bytes of a part.
        seed: Seed of weights and images.
        resume: Whether to resume the library in that folder, however it ended.
        checkpoint_minutes: Minutes between checkpoints.
        progress: Wraps the steps of a part, as tqdm does.

    Returns:
        The library.

    Raises:
        DataError: The folder lies among the images.
        LibraryError: There is a library in the folder already, or one of another network, data, types or settings; or
            the loader gives no minibatch.
        SplitError: The network does not split into blocks.

    Warns:
        UserWarning: The network has random weights, so that there is nothing to learn.

    Example:
        ```python
        model = timm.create_model("resnet50", pretrained=True)
        loader = training_loader(model, "imagenet", None, RECIPES["imagenet"])
        train_library(model, loader, "lib", data="imagenet")
        ```
    """
    require_counts(steps=steps, measure=measure, memory=memory)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is above 0 and finite, not {lr}")
    folder = Path(folder)
    images = getattr(loader, "dataset", None)
    if isinstance(images, ImageFiles):
        require_outside(folder, images.reader.root)
    if has_random_weights(model):
        warnings.warn(
            f"the {type(model).__name__} to imitate has random weights: its norms are those of a fresh network; use a "
            "trained one",
            UserWarning,
            stacklevel=2,
        )
    # Names of weights are those that they have without it, whoever uses the library.
    model = unwrap_model(model)
    length = _length(loader)
    if length == 0 or (length is None and next(iter(loader), None) is None):
        raise LibraryError("the loader gives no minibatch; use more images, or a smaller batch_size=")
    network = BlockNetwork(model)
    chosen = [each if isinstance(each, BlockType) else BlockType.parse(each) for each in types]
    own = getattr(model, "genome", None)
    header = {
        "kind": KIND,
        "network": network.layout.name,
        "genome": None if own is None else str(own),
        "weights": weights_digest(model),
        "layout": json.loads(json.dumps(asdict(network.layout))),
        "config": _config_of(model),
        "arguments": _arguments_of(model),
        "types": [str(each) for each in chosen],
        "data": plain_name(data),
        "batch_size": getattr(loader, "batch_size", None),
        "minibatches": length,
        "steps": steps,
        "lr": lr,
        "measure": measure,
        "memory": memory,
        "seed": seed,
    }
    if resume and not (folder / "library.json").exists():
        raise LibraryError(f"there is no library to resume in {quote(str(folder))}; leave out resume=True")
    make_folder(folder, LibraryError)
    taken = f"another process trains the library {quote(str(folder))}; wait for its end, or use another folder="
    with locked(folder / ".lock", LibraryError(taken), remove=True):
        _open(folder, header, model, resume)
        trainer = _Trainer(network, loader, folder, header, checkpoint_minutes)
        parts = _parts(network, _items(network, chosen, own), _batch_size(loader), memory)
        done = {row["part"] for row in read_json_lines(folder / "errors.jsonl")[0]}
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.eval()
            for number, part in enumerate(parts, start=1):
                if number not in done:
                    trainer.train(number, len(parts), part, progress)
        finally:
            for module, mode in modes:
                module.training = mode
        (folder / "checkpoint.pth").unlink(missing_ok=True)
    return BlockLibrary.load(folder)


def _config_of(model: nn.Module) -> dict[str, Any]:
    """How the images of a network are made, and what its classes are called, as JSON has it."""
    config = model_data_config(model)
    if (names := label_names(model)) is not None:
        config["label_names"] = names
    as_json: dict[str, Any] = json.loads(json.dumps(config))
    return as_json


def _arguments_of(model: nn.Module) -> dict[str, Any] | None:
    """What a network was made with, beside its name and blocks; None where JSON cannot hold it, such as a class."""
    arguments = {name: each for name, each in get_model_args(model).items() if name not in ("network", "genome")}
    try:
        as_json: dict[str, Any] = json.loads(json.dumps(arguments))
    except (TypeError, ValueError):
        return None
    return as_json


def has_random_weights(model: nn.Module) -> bool:
    """Whether a network's BN has seen no images, or its other norms have not learned, as those of a fresh one."""
    norms = list(filter(is_norm, model.modules()))
    seen = [mean for each in norms if (mean := getattr(each, "running_mean", None)) is not None]
    if seen:
        return not any(each.any() for each in seen)
    weights = [each.weight for each in norms if isinstance(each.weight, torch.Tensor)]
    # Some begin at zero, as the last of a branch.
    return bool(weights) and all(bool(((each == 0) | (each == 1)).all()) for each in weights)


def _items(network: BlockNetwork, types: Sequence[BlockType], own: Any) -> list[tuple[int, BlockType]]:
    """What there is to train: types by position, but for those that the network has itself."""
    found = []
    for index, place in enumerate(network.layout.places):
        kept = None if own is None else place.structure(own.blocks[index])
        for block, _ in place.distinct(types):
            if block.family != "K" and place.structure(block) != kept:
                found.append((index, block))
    return found


def _parts(
    network: BlockNetwork, items: Sequence[tuple[int, BlockType]], batch_size: int, memory: int
) -> list[list[tuple[int, BlockType]]]:
    """Splits what is to be trained into parts that fit into memory; one block alone always is a part."""
    parts: list[list[tuple[int, BlockType]]] = []
    used, places = 0, set[int]()
    for index, block in items:
        found = network.blocks[index]
        height, width = found.size
        pixels = found.place.in_chs + found.place.out_chs / found.place.stride**2
        maps = round(4 * batch_size * pixels * height * width)
        params = _BYTES * network.option_cost(index, block).params
        more = params + (0 if index in places else maps)
        if not parts or used + more > memory:
            parts.append([])
            used, places = 0, set[int]()
            more = params + maps
        parts[-1].append((index, block))
        used += more
        places.add(index)
    return parts


def _batch_size(loader: Minibatches) -> int:
    return int(getattr(loader, "batch_size", None) or len(next(iter(loader))[0]))


def _length(loader: Minibatches) -> int | None:
    """The number of minibatches of a loader, where it knows that."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def _open(folder: Path, header: dict[str, Any], model: nn.Module, resume: bool) -> None:
    """Begins the folder of a library, or sees that it is of the same; raises LibraryError."""
    path = folder / "library.json"
    if path.exists():
        if not resume:
            raise LibraryError(f"there is a library in {quote(str(folder))}; use resume=True, or another folder=")
        found = dict(BlockLibrary.load(folder).header)
        # Older versions wrote a folder as it was given, perhaps with a slash at its end.
        found["data"] = plain_name(found.get("data", ""))
        for name, value in header.items():
            # Older libraries do not say how many minibatches there were, nor how images and the network were made.
            if found.get(name) != value and (name in found or name not in ("minibatches", "config", "arguments")):
                shown = [quote(each, 60) for each in (found.get(name), value)]
                raise LibraryError(
                    f"the library in {quote(str(folder))} has {name} {shown[0]}, not {shown[1]}; use what it has, or "
                    "another folder="
                )
        # The line at which it was killed.
        rows, torn = read_json_lines(folder / "errors.jsonl")
        if torn:
            write_atomic(folder / "errors.jsonl", b"".join(map(json_line, rows)), LibraryError)
        return
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomic(folder / "original.safetensors", safetensors.torch.save(state), LibraryError)
    write_atomic(folder / "errors.jsonl", b"", LibraryError)
    # Last: a folder with this file is a library.
    write_atomic(path, (json.dumps(header, indent=1) + "\n").encode(), LibraryError)


class _Trainer:
    """Trains parts of a library."""

    def __init__(
        self, network: BlockNetwork, loader: Minibatches, folder: Path, header: dict[str, Any], minutes: float
    ) -> None:
        self.network, self.loader, self.folder, self.header = network, loader, folder, header
        self.seconds = 60 * minutes
        self.device = next(network.model.parameters()).device

    def train(
        self,
        number: int,
        parts: int,
        part: Sequence[tuple[int, BlockType]],
        progress: Callable[[Iterable[int]], Iterable[int]] | None,
    ) -> None:
        """Trains one part, from its checkpoint where there is one, and writes it."""
        blocks = {item: self._new(*item) for item in part}
        # An identity has nothing to learn, and its error is measured only.
        learning = {item: block for item, block in blocks.items() if not isinstance(block, IdentityBlock)}
        watch = _Watch(self.network, {index for index, _ in part})
        with watch:
            added = self._added(watch)
            if learning:
                self._learn(number, watch, learning, added, progress)
            self._measure_norms(watch, blocks)
            errors = self._solve_last(watch, blocks, added)
        tensors = {
            tensor_name(index, block, name): value.detach().cpu().contiguous()
            for (index, block), module in blocks.items()
            for name, value in module.state_dict().items()
        }
        file = f"part-{number:03}.safetensors"
        write_atomic(self.folder / file, safetensors.torch.save(tensors), LibraryError)
        # JSON knows neither infinity nor NaN, which a block has that did not learn at this rate.
        finite = {item: error if math.isfinite(error) else None for item, error in errors.items()}
        rows = [{"block": index + 1, "type": str(block), "error": finite[index, block]} for index, block in blocks]
        with open(self.folder / "errors.jsonl", "ab") as table:
            append_json_line(table, {"part": number, "parts": parts, "file": file, "blocks": rows})

    def _learn(
        self,
        number: int,
        watch: _Watch,
        blocks: dict[tuple[int, BlockType], ResidualBlock],
        added: dict[int, float],
        progress: Callable[[Iterable[int]], Iterable[int]] | None,
    ) -> None:
        """Trains the blocks of a part, with checkpoints."""
        parameters = [each for block in blocks.values() for each in block.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.header["lr"])
        steps = self.header["steps"]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        start = self._restore(number, blocks, optimizer, schedule)
        saved = time.monotonic()
        images = self._minibatches(start)
        every: Iterable[int] = range(start, steps)
        for step in progress(every) if progress else every:
            watch.run(next(images))
            optimizer.zero_grad()
            for (index, _), block in blocks.items():
                given, wanted = watch.seen[index]
                # At once, so that the activations of one block only are kept.
                (F.mse_loss(block(given), wanted) / added[index]).backward()
            optimizer.step()
            schedule.step()
            if time.monotonic() - saved > self.seconds and step + 1 < steps:
                self._checkpoint(number, step + 1, blocks, optimizer, schedule)
                saved = time.monotonic()

    def _new(self, index: int, block: BlockType) -> ResidualBlock:
        found: FoundBlock = self.network.blocks[index]
        digest = hashlib.sha256(f"library/{self.header['seed']}/{index}/{block}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            new = new_block(block, self.network.model.get_submodule(found.name), found).train()
        # What is imitated is evaluated; and nothing random makes a run that was resumed another one.
        for each in new.modules():
            if isinstance(each, DropPath):
                each.eval()
        return new

    def _minibatches(self, start: int) -> Iterator[torch.Tensor]:
        """Gives images from a step on, in the order of the seed, epoch after epoch."""
        length = _length(self.loader)
        epoch, skip = (0, start) if length is None else divmod(start, length)
        while True:
            set_epoch(self.loader, self.header["seed"], epoch, 0)
            for images, _ in islice(self.loader, skip, None):
                yield images.to(self.device, non_blocking=True)
            epoch, skip = epoch + 1, 0

    def _measuring(self, other: int = 0) -> Iterator[torch.Tensor]:
        """Gives minibatches that no block learns from; those of another number are others."""
        set_epoch(self.loader, self.header["seed"], _MEASURING + other, 0)
        for images, _ in islice(self.loader, self.header["measure"]):
            yield images.to(self.device)

    def _added(self, watch: _Watch) -> dict[int, float]:
        """The variance of what each block adds to its shortcut."""
        variances: dict[int, list[float]] = {}
        watch.measures = True
        for images in self._measuring():
            watch.run(images)
            for index, value in watch.added.items():
                variances.setdefault(index, []).append(value)
        watch.measures = False
        return {index: sum(each) / len(each) or 1.0 for index, each in variances.items()}

    def _measure_norms(self, watch: _Watch, blocks: dict[tuple[int, BlockType], ResidualBlock]) -> None:
        """Gives BN the statistics of the trained weights, in place of a running average of all before."""
        norms = [each for block in blocks.values() for each in block.modules() if isinstance(each, _BatchNorm)]
        momenta = [each.momentum for each in norms]
        for each in norms:
            each.reset_running_stats()
            # The mean of all minibatches.
            each.momentum = None
        with torch.no_grad():
            for images in self._measuring():
                watch.run(images)
                for (index, _), block in blocks.items():
                    block(watch.seen[index][0])
        for each, momentum in zip(norms, momenta, strict=True):
            each.momentum = momentum

    def _solve_last(
        self, watch: _Watch, blocks: dict[tuple[int, BlockType], ResidualBlock], added: dict[int, float]
    ) -> dict[tuple[int, BlockType], float]:
        """Gives last 1x1 convolutions the weights of least squares, where these are better; returns the errors.

        What a pre-activation block adds is linear in the weights of its last convolution.
        """
        errors = self._errors(watch, blocks, added)
        last = {item: conv for item, block in blocks.items() if (conv := _last_linear(block)) is not None}
        if not last:
            return errors
        products: dict[tuple[int, BlockType], tuple[torch.Tensor, torch.Tensor]] = {}
        with torch.no_grad():
            for images in self._measuring(1):
                watch.run(images)
                for (index, block), conv in last.items():
                    square, cross = _products(blocks[index, block], conv, *watch.seen[index])
                    if (index, block) in products:
                        products[index, block][0].add_(square)
                        products[index, block][1].add_(cross)
                    else:
                        products[index, block] = square, cross
            before = {item: conv.weight.clone() for item, conv in last.items()}
            for item, conv in last.items():
                square, cross = products[item]
                # Where the images say little, weights stay what they were.
                # Nor is it singular where all inputs are zero.
                ridge = (_RIDGE * square.diagonal().mean()).clamp(min=1e-12) * torch.eye(len(square)).to(square)
                solved = torch.linalg.solve(square + ridge, cross + ridge @ conv.weight.flatten(1).double().T)
                conv.weight.copy_(solved.T[:, :, None, None])
            solved_errors = self._errors(watch, blocks, added)
            for item, conv in last.items():
                if not solved_errors[item] < errors[item]:
                    conv.weight.copy_(before[item])
        return {item: min(error, solved_errors[item]) if item in last else error for item, error in errors.items()}

    def _errors(
        self, watch: _Watch, blocks: dict[tuple[int, BlockType], ResidualBlock], added: dict[int, float]
    ) -> dict[tuple[int, BlockType], float]:
        sums, count = dict.fromkeys(blocks, 0.0), 0
        for each in blocks.values():
            each.eval()
        with torch.no_grad():
            for images in self._measuring():
                watch.run(images)
                count += 1
                for (index, block), module in blocks.items():
                    given, wanted = watch.seen[index]
                    sums[index, block] += F.mse_loss(module(given), wanted).item() / added[index]
        return {item: total / count for item, total in sums.items()}

    def _checkpoint(self, number: int, step: int, blocks: dict[Any, ResidualBlock], *others: Any) -> None:
        content = io.BytesIO()
        state = {
            "part": number,
            "step": step,
            "blocks": [block.state_dict() for block in blocks.values()],
            "others": [each.state_dict() for each in others],
        }
        torch.save(state, content)
        write_atomic(self.folder / "checkpoint.pth", content.getvalue(), LibraryError)

    def _restore(self, number: int, blocks: dict[Any, ResidualBlock], *others: Any) -> int:
        """Goes on from the checkpoint of this part, where there is one; returns its step."""
        path = self.folder / "checkpoint.pth"
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["part"] != number:
            return 0
        for block, own in zip(blocks.values(), state["blocks"], strict=True):
            block.load_state_dict(own)
        for each, own in zip(others, state["others"], strict=True):
            each.load_state_dict(own)
        return int(state["step"])


def _last_linear(block: ResidualBlock) -> nn.Conv2d | None:
    """The 1x1 convolution that makes what a pre-activation block adds; None where there is none."""
    last: Any = None
    if isinstance(block, PreActBottleneck) and isinstance(block.bn4, nn.Identity):
        last = block.conv3
    elif isinstance(block, PreActBasic) and isinstance(block.conv2, nn.Sequential):
        last = block.conv2[-1]
    return last if isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1) else None


def _products(
    block: ResidualBlock, conv: nn.Conv2d, given: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The normal equations of a convolution's weights: of its input with itself, and with what it is to give."""
    seen: list[torch.Tensor] = []
    hook = conv.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    rest = wanted - block(given)
    hook.remove()
    inputs, targets = (each.transpose(0, 1).flatten(1).double() for each in (seen[0], rest + seen[1]))
    return inputs @ inputs.T, inputs @ targets.T


def _rate(step: int, steps: int) -> float:
    """The learning rate at a step, as a share of the highest: it rises for a tenth of the steps, and falls to zero."""
    done, rise = (step + 1) / (steps + 1), 0.1
    return min(done / rise, (1 - done) / (1 - rise))


class _Watch:
    """Looks at blocks of a network while it runs: what each is given and gives, and the variance of what it adds."""

    def __init__(self, network: BlockNetwork, indices: Iterable[int]) -> None:
        self._network, self._indices = network, indices
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # Only where it is asked for: a GPU would be waited for at each block.
        self.measures = False
        self.added: dict[int, float] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> _Watch:
        for index in self._indices:
            found = self._network.blocks[index]
            block = self._network.model.get_submodule(found.name)
            end = block.get_submodule(found.end)
            self._hooks.callback(end.register_forward_hook(self._see_end(index)).remove)
            self._hooks.callback(block.register_forward_hook(self._see(index)).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def run(self, images: torch.Tensor) -> None:
        """Runs the network on images (N, C, H, W)."""
        with torch.no_grad():
            self._network.model(images)

    def _see(self, index: int) -> Callable[..., None]:
        def see(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self.seen[index] = inputs[0], output

        return see

    def _see_end(self, index: int) -> Callable[..., None]:
        def see(_: nn.Module, __: object, output: torch.Tensor) -> None:
            # Now: blocks of timm add the shortcut in place.
            if self.measures:
                self.added[index] = output.var(dim=(0, 2, 3)).mean().item()

        return see
