"""Training: one loop over a timm task, which can be killed at any moment and resumed to the same result."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from timm.optim import param_groups_layer_decay
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data.distributed import DistributedSampler

from ..counts import require_counts
from ..files import make_folder, write_atomic
from ..nets.native import use_native_convs
from ..nets.native_norm import use_native_norms
from ..progress import new_bar
from .attention_transfer import AttentionTransferTask
from .distributed import barrier, rank_and_size
from .evaluate import Minibatches, SizedMinibatches, evaluate, is_compiled, step_marker
from .freezing import freeze, keep_frozen_norms
from .recipes import Recipe, learning_rate
from .run_folder import WEIGHTS, RunFolder, TrainingError
from .shared_teacher import SharedTeacherTask

__all__ = ["make_optimizer", "set_epoch", "train", "train_epoch"]


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Makes the optimizer of a recipe: SGD, with weight decay on biases and BN too unless `decay_norm` is off.

    Parameters that are frozen are left out. With `layer_decay` each layer has a group with its `lr_scale`.
    """
    parameters = [each for each in module.parameters() if each.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if recipe.layer_decay is not None:
        # Several students that learn together are a list of modules.
        networks = module if isinstance(module, nn.ModuleList) else [module]
        groups = [
            group
            for each in networks
            for group in param_groups_layer_decay(
                unwrap_model(each),
                weight_decay=recipe.weight_decay,
                layer_decay=recipe.layer_decay,
                weight_decay_exclude_1d=not recipe.decay_norm,
            )
        ]
    elif not recipe.decay_norm:
        # A bias or a parameter of BN is a vector; weights of convolutions and linear layers have two axes or more.
        groups = [
            {"params": [each for each in parameters if each.ndim > 1]},
            {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        # On a GPU one kernel for all parameters; on a CPU what torch chooses, and rounds, by itself.
        fused=True if all(each.is_cuda for each in parameters) else None,
    )


def train(
    task: TrainingTask,
    loader: SizedMinibatches,
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
    test_every: int = 1,
    checkpoint_minutes: float = 5.0,
    progress: bool = True,
    writer: Any = None,
) -> dict[str, Any]:
    """Trains the network of a task for the epochs of a recipe, and returns what it writes to `summary.json`.

    The folder gets `log.jsonl`, a line per epoch; `checkpoint.pth` at the end of each epoch and, within long ones,
    every few minutes; and at the end `model.safetensors`, the network of the last epoch (its average if the task or the
    recipe has one), and `summary.json`. A resumed run ends as if it had not been interrupted: the random numbers of a
    step depend only on the seed, the epoch, the step and the process. A run that is resumed within an epoch reads the
    images before the checkpoint again, and skips them.

    The students of a `SharedTeacherTask` share the log and the checkpoint; `model.safetensors` and `summary.json` of
    each go into a folder of its name. The seconds in them are those of the whole run.

    In a process group each process has a loader of its share, and the process of rank 0 evaluates and writes.

    Args:
        task: Any of timm's training tasks.
        loader: Training images and labels.
        test_loader: Images and labels to evaluate on.
        recipe: The hyperparameters.
        folder: The folder of the run.
        seed: Seed of the steps.
        arguments: What must be the same in a resumed run, besides recipe and seed.
        facts: Further entries of log and summary.
        of_students: By name, what replaces `facts` in the summary of a student.
        resume: Whether to continue from the checkpoint.
        dtype: The type of autocast; float32 is without it.
        log_every: Steps between checks of the loss.
        test_every: Epochs between evaluations; the last is evaluated too.
        checkpoint_minutes: Minutes between checkpoints within an epoch.
        progress: Whether to show a progress bar.
        writer: A SummaryWriter of TensorBoard.

    Returns:
        The summary; of several students their summaries, by name.

    Raises:
        TrainingError: The loss is no longer finite, or the folder has another run or another process trains in it; the
            last good checkpoint is kept.

    Example:
        ```python
        recipe = RECIPES["cifar10"]
        loader = training_loader(student, "torch/cifar10", "path/to/cifar10", recipe)
        test_loader = evaluation_loader(student, "torch/cifar10", "path/to/cifar10")
        train(AttentionTransferTask(student, teacher), loader, test_loader, recipe, "run")
        ```
    """
    rank, world_size = rank_and_size()
    if dtype not in (torch.float32, torch.bfloat16):
        raise TrainingError(f"training in {dtype} loses small gradients; use torch.bfloat16 or torch.float32 (dtype=)")
    require_counts(1, TrainingError, log_every=log_every, test_every=test_every)
    if recipe.average_epochs and task.has_ema():
        raise TrainingError("weights are averaged over the last epochs or exponentially; use one (average_epochs, ema)")
    module = task.get_trainable_module()
    assert module is not None
    together = isinstance(task, SharedTeacherTask)
    students: Mapping[str, TrainingTask] = task.students if isinstance(task, SharedTeacherTask) else {"": task}
    if recipe.freeze is not None:
        for each in students.values():
            network = unwrap_model(each.get_eval_model(ema=False))
            trained = [parameter.requires_grad for parameter in network.parameters()]
            freeze(network, recipe.freeze)
            frozen = trained != [parameter.requires_grad for parameter in network.parameters()]
            if frozen and any(isinstance(part, DistributedDataParallel) for part in each.modules()):
                raise TrainingError(
                    "DistributedDataParallel waits for gradients of what was frozen after it; use freeze(student, "
                    f"{recipe.freeze!r}) before prepare_distributed()"
                )
    optimizer = make_optimizer(module, recipe)
    average = next(iter(students.values())).get_trainable_module(ema=True)
    common: dict[str, Any] = {"seed": seed, "ema": None if average is None else average.decay, "processes": world_size}
    if together:
        common["students"] = list(students)
    common |= arguments or {}
    hyperparameters = _hyperparameters(recipe, students.values())
    run = RunFolder(folder, {**hyperparameters, **common})
    if rank == 0:
        # Refuses what does not fit before anything is written.
        run.load(resume)
    with run.locked() if rank == 0 else nullcontext():
        # Rank 0 reads the folder before the others do, and changes it only after all have read it.
        state = run.load(resume) if rank == 0 else None
        barrier()
        state = run.load(resume) if rank else state
        done, spent = (0, 0.0) if state is None else (state["epoch"], state["seconds"])
        averages = {}
        if recipe.average_epochs:
            averages = {name: AveragedModel(_network(each)) for name, each in students.items()}
        progressed = Progress()
        if state is not None:
            _restore(task, optimizer, averages, state)
            if state.get("step"):
                progressed = Progress(state["step"], state["sums"] if rank == 0 else None, state["names"])
        barrier()
        header = {"recipe": hyperparameters, **common, **(facts or {})}
        if rank == 0:
            run.begin(header, done)

        # What the loader gives need not be what the recipe says; the recipe's is that of all processes.
        own_size = getattr(loader, "batch_size", None)
        batch_size = own_size * world_size if isinstance(own_size, int) else recipe.batch_size
        size = batch_size * len(loader)
        with new_bar(
            recipe.epochs * size,
            done * size + progressed.step * batch_size,
            unit="image",
            disable=rank != 0 or not progress,
        ) as bar:
            for epoch in range(done, recipe.epochs):
                start = time.perf_counter()
                first = progressed.step

                def save(progressed: Progress, epoch: int = epoch, spent: float = spent, start: float = start) -> None:
                    # What would not go on to a result must not take the place of what would.
                    _check_weights(students, f"in epoch {epoch + 1}")
                    if progressed.sums is not None:
                        _require_finite(dict(zip(progressed.names, progressed.sums.tolist(), strict=True)))
                    seconds = spent + time.perf_counter() - start
                    run.save_state(_state(task, optimizer, averages, epoch, seconds) | progressed._asdict())

                bar.set_description(f"epoch {epoch + 1}/{recipe.epochs}", refresh=False)
                losses, images = train_epoch(
                    task,
                    loader,
                    optimizer,
                    recipe,
                    bar,
                    seed=seed,
                    epoch=epoch,
                    dtype=dtype,
                    log_every=log_every,
                    progressed=progressed,
                    checkpoint=_EveryMinutes(checkpoint_minutes, save) if rank == 0 else None,
                )
                progressed = Progress()
                seconds = time.perf_counter() - start
                # The last minibatch may be smaller.
                bar.total += first * batch_size + images - size
                if rank == 0:
                    _check_weights(students, f"after epoch {epoch + 1}")
                    if epoch >= recipe.epochs - recipe.average_epochs:
                        for name, average in averages.items():
                            average.update_parameters(_network(students[name]))
                    row = {"epoch": epoch + 1, "lr": learning_rate(recipe, epoch)}
                    row |= {re.sub("(^|/)loss$", r"\1train_loss", name): value for name, value in losses.items()}
                    told = f"loss {losses['loss']:.3f}"
                    if (epoch + 1) % test_every == 0 or epoch + 1 == recipe.epochs:
                        results = {
                            name: evaluate(_evaluated(each), test_loader, dtype) for name, each in students.items()
                        }
                        for name, result in results.items():
                            prefix = f"{name}/" if name else ""
                            row |= {f"{prefix}top1_error": result.top1_error, f"{prefix}top5_error": result.top5_error}
                        told += f", error {', '.join(f'{result.top1_error:.2f}' for result in results.values())} %"
                    spent += time.perf_counter() - start
                    row |= {
                        "images_per_second": images / seconds,
                        "seconds": time.perf_counter() - start,
                    }
                    run.save(row, _state(task, optimizer, averages, epoch + 1, spent))
                    bar.set_postfix_str(told, refresh=False)
                    for name, value in row.items() if writer is not None else ():
                        writer.add_scalar(name, value, epoch + 1)
                barrier()
        summaries = {}
        for name, each in students.items() if rank == 0 else ():
            own = {**header, "recipe": _hyperparameters(recipe, [each])}
            own |= {**(of_students or {}).get(name, {}), "seconds": spent}
            model = _network(each)
            if averages:
                model = averages[name].module
                set_epoch(loader, seed, recipe.epochs - 1, rank)
                # A network of averaged weights needs BN statistics of its own.
                update_bn(((images, None) for images, _ in islice(loader, BN_MINIBATCHES)), model, task.device)
            summaries[name] = _finish(model, test_loader, run.path / name, own)
        barrier()
        return summaries if together else summaries.get("", {})


def _hyperparameters(recipe: Recipe, tasks: Collection[TrainingTask]) -> dict[str, Any]:
    """Lists a recipe's hyperparameters, of the loss those of the tasks; a list where they differ."""
    result = asdict(recipe)
    found = {"label_smoothing": [_label_smoothing(task, recipe.label_smoothing) for task in tasks]}
    if all(isinstance(task, AttentionTransferTask) for task in tasks):
        for name in ("beta", "mode", "soft_labels", "temperature", "teacher_size"):
            # As a recipe has it: 0 where the teacher's images are the student's.
            found[name] = [getattr(task, name) or 0 for task in tasks]
    for name, values in found.items():
        result[name] = values[0] if values.count(values[0]) == len(values) else values
    return result


def _label_smoothing(task: TrainingTask, otherwise: float) -> float:
    """The label smoothing of a task's criterion, where it says it, as PyTorch's and timm's do."""
    criterion = getattr(task, "criterion", None)
    for name in ("label_smoothing", "smoothing"):
        otherwise = getattr(criterion, name, otherwise)
    return otherwise


# Minibatches that measure the BN statistics of averaged weights: more change nothing.
BN_MINIBATCHES = 100


class Progress(NamedTuple):
    """The position of a run within an epoch: steps taken, and the sums of their losses by name."""

    step: int = 0
    sums: torch.Tensor | None = None
    names: Sequence[str] = ()


class _EveryMinutes:
    """Calls a function every so many minutes."""

    def __init__(self, minutes: float, function: Callable[[Progress], None]) -> None:
        self.seconds, self.function = 60 * minutes, function
        self.last = time.perf_counter()

    def __call__(self, progressed: Progress) -> None:
        if time.perf_counter() - self.last >= self.seconds:
            self.function(progressed)
            self.last = time.perf_counter()


def train_epoch(
    task: TrainingTask,
    loader: SizedMinibatches,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    bar: Any,
    *,
    seed: int = 0,
    epoch: int = 0,
    dtype: torch.dtype = torch.float32,
    log_every: int = 50,
    progressed: Progress | None = None,
    checkpoint: Callable[[Progress], None] | None = None,
) -> tuple[dict[str, float], int]:
    """Takes the steps of one epoch; returns the mean of the loss and of each of its parts, and the number of images.

    `progressed` says which steps were taken before; `checkpoint` is called after each but the last. On one thread of a
    CPU, images in channels_last use layers in C (`nets/native.py`, `nets/native_norm.py`).
    """
    progressed, (rank, world_size) = progressed or Progress(), rank_and_size()
    task.train()
    keep_frozen_norms(task)
    # Added up on the device, and read only now and then: reading waits for the device.
    sums = torch.zeros((), device=task.device) if progressed.sums is None else progressed.sums.to(task.device)
    names, counted = list(progressed.names), progressed.step if progressed.sums is not None else 0
    seen = 0
    begin_step = step_marker(task)
    set_epoch(loader, seed, epoch, rank)
    minibatches, steps = iter(loader), len(loader)
    with ExitStack() as undo:
        if not is_compiled(task):
            use_native_convs(task, undo)
            use_native_norms(task, undo)
        for step in count(1):
            # Seeded for each step, so that a run can be resumed at any of them.
            _seed(seed, epoch, rank, step)
            minibatch = next(minibatches, None)
            if minibatch is None:
                break
            if step <= progressed.step:
                continue
            images, labels = minibatch
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, epoch + (step - 0.5) / steps) * group.get("lr_scale", 1.0)
            # None of the last step's gradients and outputs are kept: a CUDA graph may overwrite them in this step.
            optimizer.zero_grad()
            begin_step()
            images, labels = images.to(task.device, non_blocking=True), labels.to(task.device, non_blocking=True)
            try:
                with torch.autocast(task.device.type, dtype, enabled=dtype != torch.float32):
                    result = task(images, labels)
            except IndexError as error:
                # The labels of a stream are not known beforehand.
                raise TrainingError(
                    f"a label is none of the network's classes; use more (num_classes=): {error}"
                ) from None
            result["loss"].backward()
            optimizer.step()
            task.update_ema()
            names = [name for name in result if name.rpartition("/")[2] != "output"]
            sums = sums + torch.stack([result[name].detach().float() for name in names])
            counted += 1
            del result
            # Those of the other processes too.
            number = len(images) * world_size
            seen += number
            bar.update(number)
            if step % log_every == 0:
                bar.set_postfix_str(f"loss {_means(sums, names, counted)['loss']:.3f}", refresh=False)
            if checkpoint is not None and step < steps:
                checkpoint(Progress(step, sums, names))
    if not counted:
        raise TrainingError("the loader gives no minibatch")
    return _means(sums, names, counted), seen


def _means(sums: torch.Tensor, names: list[str], steps: int) -> dict[str, float]:
    """Averages losses over steps and processes; all processes stop together where one has a loss that is not finite."""
    losses = sums / steps
    if dist.is_initialized():
        # A process that was resumed within an epoch may have counted fewer steps than another.
        both = torch.cat([sums, sums.new_full((1,), steps)])
        dist.all_reduce(both)
        losses = both[:-1] / both[-1]
    means = dict(zip(names, losses.tolist(), strict=True))
    _require_finite(means)
    return means


def _require_finite(losses: Mapping[str, float]) -> None:
    """Raises TrainingError where a loss, by its name, is not finite."""
    broken = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if broken:
        raise TrainingError(
            f"the loss{_whose(name.rpartition('/')[0] for name in broken)} is no longer finite; the last checkpoint is "
            "kept, a smaller learning rate may help (lr=)"
        )


def _check_weights(students: Mapping[str, TrainingTask], when: str) -> None:
    """Checks that the weights are finite after the last steps, before they become a checkpoint."""
    broken = []
    for name, task in students.items():
        tensors = [each for each in _network(task).state_dict().values() if each.is_floating_point()]
        if not torch.stack([each.isfinite().all() for each in tensors]).all():
            broken.append(name)
    if broken:
        raise TrainingError(
            f"the weights{_whose(broken)} are not finite {when}; the last checkpoint is kept, a "
            "smaller learning rate may help (lr=)"
        )


def _whose(students: Iterable[str]) -> str:
    names = ", ".join(dict.fromkeys(filter(None, students)))
    return f" of {names}" if names else ""


def _network(task: TrainingTask) -> nn.Module:
    """Returns the network that is trained, or its average, without wrappers."""
    return unwrap_model(task.get_eval_model(ema=task.has_ema()))


def _evaluated(task: TrainingTask) -> nn.Module:
    model = task.get_eval_model(ema=task.has_ema())
    assert model is not None
    # Only one process evaluates, but DDP would synchronise buffers in all; a compiled model stays compiled.
    return model.module if isinstance(model, DistributedDataParallel) else model


def _state(
    task: TrainingTask,
    optimizer: torch.optim.Optimizer,
    averages: Mapping[str, AveragedModel],
    epoch: int,
    seconds: float,
) -> dict[str, Any]:
    state = {"epoch": epoch, "seconds": seconds, "optimizer": optimizer.state_dict(), **task.get_checkpoint_state()}
    if averages:
        state["averages"] = {name: average.state_dict() for name, average in averages.items()}
    return state | task.get_checkpoint_state(ema=True) if task.has_ema() else state


def _restore(
    task: TrainingTask,
    optimizer: torch.optim.Optimizer,
    averages: Mapping[str, AveragedModel],
    state: dict[str, Any],
) -> None:
    task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
    if task.has_ema():
        task.load_checkpoint_state(state["state_dict_ema"], state.get("task_state_ema"), ema=True)
    optimizer.load_state_dict(state["optimizer"])
    for name, average in averages.items():
        average.load_state_dict(state["averages"][name])


def set_epoch(loader: Minibatches, seed: int, epoch: int, rank: int) -> None:
    """Seeds what a loader draws in an epoch: its order, and augmentation in its processes."""
    number = _seed(seed, epoch, rank, 0)
    if hasattr(loader, "set_epoch"):
        # First, since it may switch to another loader.
        loader.set_epoch(epoch)
    # What draws by the epoch: a sampler, such as timm's for repeated augmentation, or, in timm's streams, the dataset.
    for part in ("sampler", "batch_sampler", "dataset"):
        each: Any = getattr(loader, part, None)
        if isinstance(each, DistributedSampler):
            each.seed = seed
        if hasattr(each, "set_epoch"):
            each.set_epoch(epoch)
    # Generators of the user's own, of a DataLoader and of its samplers.
    batch_sampler = getattr(loader, "batch_sampler", None)
    for each in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        generator = getattr(each, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(number)


def _seed(*moment: int) -> int:
    """Seeds all that draws random numbers in this process, by seed, epoch, rank and step; returns torch's seed."""
    digest = hashlib.sha256(f"train/{'/'.join(map(str, moment))}".encode()).digest()
    number = int.from_bytes(digest[:6], "big")
    torch.manual_seed(number)
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[6:10], "big"))
    return number


def _finish(network: nn.Module, test_loader: Minibatches, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes the weights, and their errors as `blockswap evaluate` measures them, in float32."""
    model = copy.deepcopy(network).float().to(memory_format=torch.contiguous_format)
    result = evaluate(model, test_loader)
    # safetensors refuses tensors that share memory, as tied weights do.
    state = {name: each.cpu().clone(memory_format=torch.contiguous_format) for name, each in model.state_dict().items()}
    make_folder(folder, TrainingError)
    write_atomic(folder / WEIGHTS, safetensors.torch.save(state, {"format": "pt"}), TrainingError)
    summary = {"top1_error": result.top1_error, "top5_error": result.top5_error, "test_images": result.images}
    summary |= facts
    write_atomic(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode(), TrainingError)
    return summary
