"""Trains a Mask R-CNN on COCO by the settings of torchvision's reference, and measures its average precision.

A run has a folder of its own and goes on from its checkpoint, which is written at the end of each epoch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.transforms import v2
from tqdm import tqdm

from blockswap_models.data.coco import CocoObjects, average_precision, detections
from blockswap_models.data.loader import plain_errors
from blockswap_models.detection import mask_rcnn
from blockswap_models.files import read_json_lines, write_atomic
from blockswap_models.nets.devices import describe_machine
from blockswap_models.training.distributed import barrier, rank_and_size
from blockswap_models.training.loop import set_epoch
from blockswap_models.training.run_folder import RunFolder, TrainingError

__all__ = ["NORMS", "AspectBatches", "Recipe", "build", "evaluate", "learning_rate", "train"]

NORMS = {"batch": nn.BatchNorm2d, "sync": nn.SyncBatchNorm, "group": partial(nn.GroupNorm, 8)}
# torchvision's, of 26 epochs.
_STEP_SHARES, _STEP_FACTOR = (16 / 26, 22 / 26), 0.1
_WARMUP_STEPS, _WARMUP_FACTOR = 1000, 0.001
_LONGEST = 1333 / 800
# Landscapes and portraits, in bins of the logarithm of their aspect ratio from 1/2 to 2.
_ASPECT_BINS = 2 ** np.linspace(-1, 1, 7)


@dataclass(frozen=True)
class Recipe:
    """The settings of torchvision's reference for Mask R-CNN, from scratch; `batch_size` is of all processes together.

    image_size: of the shorter side; the longer is at most 1333 / 800 of it. Anchors are as large as the images make
        them: at 800 torchvision's.
    rois: boxes that the heads learn from, of each image.
    """

    epochs: int = 26
    batch_size: int = 16
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    image_size: int = 800
    rois: int = 512
    norm: str = "batch"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "image_size", "rois"):
            if getattr(self, name) < 1:
                raise TrainingError(f"--{name.replace('_', '-')} is at least 1, not {getattr(self, name)}")


def learning_rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """Computes the learning rate of a step of an epoch of so many: a linear warm-up, then two falls to a tenth.

    The warm-up has 1,000 steps, or a tenth of all where that is fewer.
    """
    falls = sum(epoch >= round(share * recipe.epochs) for share in _STEP_SHARES)
    lr = recipe.lr * _STEP_FACTOR**falls
    done, warmup = epoch * steps + step, min(_WARMUP_STEPS, recipe.epochs * steps // 10)
    return lr * (_WARMUP_FACTOR + (1 - _WARMUP_FACTOR) * done / warmup) if done < warmup else lr


def build(model: str, genome: str | None, num_classes: int, recipe: Recipe) -> MaskRCNN:
    """Builds the Mask R-CNN of a recipe with random weights."""
    sizes = tuple((32 * 2**level * recipe.image_size / 800,) for level in range(5))
    return mask_rcnn(
        model,
        num_classes,
        genome,
        norm_layer=NORMS[recipe.norm],
        min_size=recipe.image_size,
        max_size=round(_LONGEST * recipe.image_size),
        box_batch_size_per_image=recipe.rois,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
    )


class AspectBatches(Sampler[list[int]]):
    """Minibatches for one of `world_size` processes, in the order of an epoch, of images of similar aspect ratio.

    What does not fill a minibatch of its kind makes the last ones of the epoch, the very last with some images again.
    """

    def __init__(self, ratios: Sequence[float], batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.kinds = np.searchsorted(_ASPECT_BINS, ratios).tolist()
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.kinds) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.kinds)).tolist()
        waiting: dict[int, list[int]] = {}
        batches = []
        for image in order:
            same = waiting.setdefault(self.kinds[image], [])
            same.append(image)
            if len(same) == self.batch_size:
                batches.append(waiting.pop(self.kinds[image]))
        rest = [image for same in waiting.values() for image in same]
        total = len(self) * self.world_size
        again = iter(order * (1 + self.batch_size * self.world_size // len(order)))
        while len(batches) < total:
            batch, rest = rest[: self.batch_size], rest[self.batch_size :]
            batches.append(batch + [next(again) for _ in range(self.batch_size - len(batch))])
        return iter(batches[self.rank :: self.world_size])


def transforms(training: bool) -> v2.Transform:
    """Makes the transforms of torchvision's reference: a flip in training, nothing else."""
    flip = [v2.RandomHorizontalFlip()] if training else []
    return v2.Compose([v2.ToImage(), *flip, v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])


def _together(samples: list[tuple[torch.Tensor, dict[str, Any]]]) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    images, objects = zip(*samples, strict=True)
    return list(images), [{name: each[name] for name in ("boxes", "labels", "masks")} for each in objects]


def train(
    model: MaskRCNN,
    dataset: CocoObjects,
    test_dataset: CocoObjects,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    workers: int = 4,
    arguments: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains a detector, or resumes it, and returns what it writes to `summary.json`; raises TrainingError."""
    rank, world_size = rank_and_size()
    if recipe.batch_size % world_size:
        raise TrainingError(
            f"a batch of {recipe.batch_size} does not divide between {world_size} processes; use another --batch-size"
        )
    model.to(device)
    optimizer = torch.optim.SGD(
        [each for each in model.parameters() if each.requires_grad],
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    common = {"seed": seed, "processes": world_size, **(arguments or {})}
    run = RunFolder(folder, {**asdict(recipe), **common})
    state = run.load(resume=run.log.exists() or run.checkpoint.exists())
    done, spent = (0, 0.0) if state is None else (state["epoch"], state["seconds"])
    if state is not None:
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
    # All look at the folder before the first changes it.
    barrier()
    header = {"recipe": asdict(recipe), **common, "images": len(dataset), **describe_machine(device)}
    if rank == 0:
        run.begin(header, done)
    sampler = AspectBatches(dataset.aspect_ratios(), recipe.batch_size // world_size, seed, rank, world_size)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=_together)
    wrapped = model
    if world_size > 1:
        wrapped = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    with tqdm(
        total=recipe.epochs * len(loader),
        initial=done * len(loader),
        unit=" steps",
        disable=rank != 0,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
    ) as bar:
        for epoch in range(done, recipe.epochs):
            start = time.perf_counter()
            # The random numbers of an epoch depend on the seed and the epoch alone: none have to be kept.
            set_epoch(loader, seed, epoch, rank)
            sampler.set_epoch(epoch)
            losses = _train_epoch(wrapped, loader, optimizer, recipe, epoch, device, dtype, bar)
            spent += time.perf_counter() - start
            if rank == 0:
                row = {"epoch": epoch + 1, **losses, "seconds": time.perf_counter() - start}
                run.save(
                    row,
                    {
                        "epoch": epoch + 1,
                        "seconds": spent,
                        "state_dict": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    },
                )
                bar.set_description(f"epoch {epoch + 1}/{recipe.epochs}, loss {losses['loss']:.3f}", refresh=False)
            barrier()
    found = evaluate(model, test_dataset, device, dtype, workers)
    if rank:
        return {}
    # The first line says what is trained.
    rows = read_json_lines(run.log)[0][1:]
    summary = {**found, "test_images": len(test_dataset), "first_epoch": rows[0], "last_epoch": rows[-1], **header}
    summary["seconds"] = spent
    write_atomic(folder / "model.safetensors", safetensors.torch.save(model.state_dict()), TrainingError)
    write_atomic(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode(), TrainingError)
    return summary


def _train_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    epoch: int,
    device: torch.device,
    dtype: torch.dtype,
    bar: tqdm,
) -> dict[str, float]:
    """Takes the steps of one epoch; returns the mean of the loss and of each of its parts, of this process."""
    model.train()
    sums: dict[str, float] = {}
    for step, (images, targets) in enumerate(plain_errors(loader)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, epoch, step, len(loader))
        images = [image.to(device) for image in images]
        targets = [{name: each.to(device) for name, each in target.items()} for target in targets]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = model(images, targets)
            loss = sum(losses.values())
        if not loss.isfinite():
            raise TrainingError("the loss is no longer finite; the last checkpoint is kept, a smaller --lr may help")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, each in {"loss": loss, **losses}.items():
            sums[name] = sums.get(name, 0.0) + float(each.detach())
        bar.set_postfix_str(f"loss {float(loss.detach()):.3f}", refresh=False)
        bar.update()
    return {name: each / len(loader) for name, each in sums.items()}


@torch.inference_mode()
def evaluate(
    model: MaskRCNN, dataset: CocoObjects, device: torch.device, dtype: torch.dtype = torch.float32, workers: int = 0
) -> dict[str, dict[str, float | None]]:
    """Measures the average precision of a detector; each process takes its share of the images, the first has all."""
    rank, world_size = rank_and_size()
    places = range(rank, len(dataset), world_size)
    loader = DataLoader(
        torch.utils.data.Subset(dataset, places), batch_size=None, num_workers=workers, collate_fn=lambda each: each
    )
    model.eval()
    found: list[dict[str, Any]] = []
    with_bar = tqdm(loader, desc="evaluation", disable=rank != 0, mininterval=10, dynamic_ncols=True)
    for image, objects in plain_errors(with_bar):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = model([image.to(device)])
        found += detections([objects["image_id"]], output)
    if world_size > 1:
        parts: list[Any] = [None] * world_size
        dist.all_gather_object(parts, found)
        found = [each for part in parts for each in part]
    return average_precision(dataset.coco, dataset.ids, found) if rank == 0 else {}
