"""Training: one loop over a timm task, which can be killed at any moment and resumed to the same result."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from .distributed import barrier, rank_and_size
from .evaluate import Minibatches, evaluate, step_marker
from .recipes import Recipe, learning_rate
from .run_folder import RunFolder, TrainingError, write_whole
from .shared_teacher import SharedTeacherTask

__all__ = ["make_optimizer", "train"]


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Makes the paper's optimizer: SGD without Nesterov, with weight decay on biases and BN too (timm spares them)."""
    parameters = list(module.parameters())
    return torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=False,
        # On a GPU one kernel for all parameters; on a CPU what torch chooses, and rounds, by itself.
        fused=True if all(each.is_cuda for each in parameters) else None,
    )


def train(
    task: TrainingTask,
    loader: Minibatches,
    test_loader: Minibatches,
    recipe: Recipe,
    folder: str | Path,
    *,
    seed: int = 0,
    arguments: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    of_students: Mapping[str, Mapping[str, Any]] | None = None,
    resume: bool = False,
    dtype: torch.dtype = torch.float32,
    log_every: int = 50,
    progress: bool = True,
    writer: Any = None,
) -> dict[str, Any]:
    """Trains the network of a task for the epochs of a recipe, and returns what it writes to `summary.json`.

    The folder gets `log.jsonl`, a line an epoch; `checkpoint.pth` at the end of each epoch; and at the end
    `model.safetensors`, the network of the last epoch (its average where the task has one), and `summary.json`. With
    `resume` the run goes on from the checkpoint, and ends as if it had not been interrupted: the random numbers of an
    epoch depend on the seed, the epoch and the process alone, so no state of theirs has to be kept.

    The students of a `SharedTeacherTask` have the log and the checkpoint in common; `model.safetensors` and
    `summary.json` of each go into a folder of its name, and the result is their summaries, by name. The seconds in them
    are those of all.

    `arguments`, besides recipe and seed, are what a resumed run must have in common with the first; `facts` are for the
    log; `of_students` has, by name, what the summary of a student says in their place. A `dtype` of bfloat16 is
    autocast's. `writer` is a SummaryWriter of TensorBoard. In a process group each process has a loader of its share,
    and the first evaluates and writes. Raises TrainingError, also where the loss is no longer finite; the last good
    checkpoint is kept.
    """
    rank, world_size = rank_and_size()
    if log_every < 1:
        raise TrainingError(f"the loss is looked at every step or less often, not every {log_every}")
    optimizer = make_optimizer(task.get_trainable_module(), recipe)
    together = isinstance(task, SharedTeacherTask)
    students: Mapping[str, TrainingTask] = task.students if together else {"": task}
    average = next(iter(students.values())).get_trainable_module(ema=True)
    common = {"seed": seed, "ema": None if average is None else average.decay, "processes": world_size}
    if together:
        common["students"] = list(students)
    common |= arguments or {}
    run = RunFolder(folder, {**asdict(recipe), **common})
    # The first process looks at the folder before the others do, and changes it only after all have.
    state = run.load(resume) if rank == 0 else None
    barrier()
    state = run.load(resume) if rank else state
    done, spent = (0, 0.0) if state is None else (state["epoch"], state["seconds"])
    if state is not None:
        _restore(task, optimizer, state)
    barrier()
    header = {"recipe": asdict(recipe), **common, **(facts or {})}
    if rank == 0:
        run.begin(header, done)

    size = recipe.batch_size * len(loader)
    with tqdm(
        total=recipe.epochs * size,
        initial=done * size,
        unit=" images",
        unit_scale=True,
        disable=rank != 0 or not progress,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
    ) as bar:
        for epoch in range(done, recipe.epochs):
            start = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, epoch)
            _set_epoch(loader, seed, epoch, rank)
            bar.set_description(f"epoch {epoch + 1}/{recipe.epochs}", refresh=False)
            losses = _train_epoch(task, loader, optimizer, dtype, log_every, recipe.batch_size, bar)
            seconds = time.perf_counter() - start
            if rank == 0:
                _check_weights(students, epoch)
                results = {name: evaluate(_evaluated(each), test_loader, dtype) for name, each in students.items()}
                spent += time.perf_counter() - start
                row = {"epoch": epoch + 1, "lr": learning_rate(recipe, epoch)}
                row |= {re.sub("(^|/)loss$", r"\1train_loss", name): value for name, value in losses.items()}
                for name, result in results.items():
                    prefix = f"{name}/" if name else ""
                    row |= {f"{prefix}top1_error": result.top1_error, f"{prefix}top5_error": result.top5_error}
                row |= {"images_per_second": size / seconds, "seconds": time.perf_counter() - start}
                run.save(row, _state(task, optimizer, epoch + 1, spent))
                errors = ", ".join(f"{result.top1_error:.2f}" for result in results.values())
                bar.set_postfix_str(f"loss {losses['loss']:.3f}, error {errors} %", refresh=False)
                for name, value in row.items() if writer is not None else ():
                    writer.add_scalar(name, value, epoch + 1)
            barrier()
    summaries = {}
    for name, each in students.items() if rank == 0 else ():
        own = {**header, **(of_students or {}).get(name, {}), "seconds": spent}
        summaries[name] = _finish(each, test_loader, run.path / name, own)
    barrier()
    return summaries if together else summaries.get("", {})


def _train_epoch(
    task: TrainingTask,
    loader: Minibatches,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    log_every: int,
    batch_size: int,
    bar: tqdm,
) -> dict[str, float]:
    """Takes the steps of one epoch; returns the mean of the loss and of each of its parts."""
    task.train()
    # Added up on the device, and looked at now and then: a look waits for the device.
    sums, names, step = torch.zeros((), device=task.device), [], 0
    begin_step = step_marker(task)
    for step, (images, labels) in enumerate(loader, start=1):
        # Gradients and outputs of the last step may lie where a CUDA graph puts those of this one: none is kept.
        optimizer.zero_grad()
        begin_step()
        images, labels = images.to(task.device, non_blocking=True), labels.to(task.device, non_blocking=True)
        try:
            with torch.autocast(task.device.type, dtype, enabled=dtype != torch.float32):
                result = task(images, labels)
        except IndexError as error:
            # A stream does not say beforehand which labels it has.
            raise TrainingError(
                f"a label is none of the network's classes; write more (--num-classes): {error}"
            ) from None
        result["loss"].backward()
        optimizer.step()
        task.update_ema()
        names = [name for name in result if name.rpartition("/")[2] != "output"]
        sums = sums + torch.stack([result[name].detach().float() for name in names])
        del result
        bar.update(batch_size)
        if step % log_every == 0:
            bar.set_postfix_str(f"loss {_means(sums, names, step)['loss']:.3f}", refresh=False)
    if not step:
        raise TrainingError("the loader gives no minibatch")
    return _means(sums, names, step)


def _means(sums: torch.Tensor, names: list[str], steps: int) -> dict[str, float]:
    """Averages losses over steps and processes; all processes stop together where one has a loss that is not finite."""
    if dist.is_initialized():
        sums = sums.clone()
        dist.all_reduce(sums)
        steps *= dist.get_world_size()
    means = dict(zip(names, (sums / steps).tolist(), strict=True))
    broken = [name for name, mean in means.items() if not math.isfinite(mean)]
    if broken:
        raise TrainingError(
            f"the loss{_whose(name.rpartition('/')[0] for name in broken)} is no longer finite; the last checkpoint is "
            "kept, a smaller learning rate may help (--lr)"
        )
    return means


def _check_weights(students: Mapping[str, TrainingTask], epoch: int) -> None:
    """Sees that what the last steps did to the weights can be kept as a good checkpoint."""
    broken = []
    for name, task in students.items():
        tensors = [each for each in _network(task).state_dict().values() if each.is_floating_point()]
        if not torch.stack([each.isfinite().all() for each in tensors]).all():
            broken.append(name)
    if broken:
        raise TrainingError(
            f"the weights{_whose(broken)} are not finite after epoch {epoch + 1}; the last checkpoint is kept, a "
            "smaller learning rate may help (--lr)"
        )


def _whose(students: Iterable[str]) -> str:
    names = ", ".join(dict.fromkeys(filter(None, students)))
    return f" of {names}" if names else ""


def _network(task: TrainingTask) -> nn.Module:
    """Finds the network that is trained, or its average, without any wrapper."""
    return unwrap_model(task.get_eval_model(ema=task.has_ema()))


def _evaluated(task: TrainingTask) -> nn.Module:
    model = task.get_eval_model(ema=task.has_ema())
    # One process evaluates, but DDP would have all of them exchange buffers; what torch.compile made is kept.
    return model.module if isinstance(model, DistributedDataParallel) else model


def _state(task: TrainingTask, optimizer: torch.optim.Optimizer, epoch: int, seconds: float) -> dict[str, Any]:
    state = {"epoch": epoch, "seconds": seconds, "optimizer": optimizer.state_dict(), **task.get_checkpoint_state()}
    return state | task.get_checkpoint_state(ema=True) if task.has_ema() else state


def _restore(task: TrainingTask, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
    if task.has_ema():
        task.load_checkpoint_state(state["state_dict_ema"], state.get("task_state_ema"), ema=True)
    optimizer.load_state_dict(state["optimizer"])


def _set_epoch(loader: Minibatches, seed: int, epoch: int, rank: int) -> None:
    """Seeds everything that draws random numbers in an epoch: dropout here, augmentation in the loader's processes."""
    digest = hashlib.sha256(f"train/{seed}/{epoch}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:6], "big"))
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[6:10], "big"))
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        sampler.seed = seed
        sampler.set_epoch(epoch)
    # Of what timm streams the dataset itself has the order.
    for each in (loader, getattr(loader, "dataset", None)):
        if hasattr(each, "set_epoch"):
            each.set_epoch(epoch)


def _finish(task: TrainingTask, test_loader: Minibatches, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes the weights, and the errors as `blockswap evaluate` measures them on these: in float32."""
    model = copy.deepcopy(_network(task)).float().to(memory_format=torch.contiguous_format)
    result = evaluate(model, test_loader)
    # safetensors refuses tensors that share memory, as tied weights do.
    state = {name: each.cpu().clone(memory_format=torch.contiguous_format) for name, each in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "model.safetensors", safetensors.torch.save(state, {"format": "pt"}))
    summary = {"top1_error": result.top1_error, "top5_error": result.top5_error, "test_images": result.images}
    summary |= facts
    write_whole(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary
