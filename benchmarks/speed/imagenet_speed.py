"""What training on ImageNet takes: images a second of the loader and of a step, and the days of the whole recipe.

    python -m benchmarks.speed.imagenet_speed --data path/to/imagenet
    python -m benchmarks.speed.imagenet_speed --data path/to/imagenet --device cuda --amp bfloat16 --batch-size 256

The folder has `train` and `val`, one folder a class, with as few images as there are. The loader is that of
`blockswap train`; its rate is that of each process that reads. A step is one of attention transfer from the teacher, or
of labels alone for the teacher itself, on one minibatch of that loader. The days are those of all epochs of the recipe
on all of ImageNet's images, by the slower of loader and step, without evaluation.

For a machine that is not there, `--rates` are its copies and matrix products a second, of its data sheet: the
operations of the step are counted, and `roofline.py` says how the least time for them follows. That is a bound, not a
measurement: without a compiler that merges operations no step passes it, and each reaches a part of it ('of limit' is
that part here). 'readers' are the processes like those here that would have to read images for it. For several devices
days are divided by their number, as if nothing were lost between them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import islice
from typing import Any

import timm
import torch
from timm.task import ClassificationTask, TrainingTask

from benchmarks.lib.scripts import require_model, run_script
from benchmarks.speed.roofline import Clock, Limits, Work, measure_limits
from benchmarks.speed.train_speed import learn, typical
from blockswap_models.data.folders import DataError
from blockswap_models.machine import default_workers, find_device, keep_memory
from blockswap_models.nets.devices import describe_device
from blockswap_models.training.attention_transfer import AttentionTransferTask
from blockswap_models.training.loaders import training_loader
from blockswap_models.training.loop import make_optimizer
from blockswap_models.training.recipes import RECIPES

# ImageNet's training images.
IMAGES = 1_281_167
# NVIDIA's data sheet of the H200: 4.8 TB/s, and 989 TFLOP/s in bfloat16 without sparsity.
H200 = (4_800.0, 989.0)
WARM_UP = 2


def loader_rate(model: torch.nn.Module, options: argparse.Namespace) -> tuple[float, list[Any]]:
    """Images a second of one process that reads, and a minibatch of it."""
    recipe = replace(RECIPES["imagenet"], batch_size=options.batch_size)
    # In this process itself, which then does nothing else.
    loader = training_loader(model, options.data, options.data_dir, recipe, seed=options.seed, workers=0)
    start, number, minibatch = time.perf_counter(), 0, None
    for minibatch in islice(loader, max(1, options.loader_images // options.batch_size)):
        number += len(minibatch[1])
    return number / (time.perf_counter() - start), minibatch


def make_task(name: str, options: argparse.Namespace, device: torch.device) -> TrainingTask:
    """The task as `blockswap train` makes it, with random weights."""
    torch.manual_seed(options.seed)
    model, recipe = timm.create_model(name, num_classes=options.num_classes).to(device), RECIPES["imagenet"]
    if name == options.teacher:
        return ClassificationTask(model, device=device, verbose=False)
    teacher = timm.create_model(options.teacher).to(device)
    return AttentionTransferTask(model, teacher, beta=recipe.beta, mode=recipe.mode, device=device, verbose=False)


def step_time(
    task: TrainingTask, minibatch: list[Any], options: argparse.Namespace, limits: Limits
) -> tuple[float, Work]:
    """Seconds of a step, the median, and what it computes."""
    task = task.to(memory_format=torch.channels_last)
    task.train()
    optimizer = make_optimizer(task.get_trainable_module(), RECIPES["imagenet"])
    images, labels = (each.to(task.device) for each in minibatch)
    images, dtype = images.to(memory_format=torch.channels_last), getattr(torch, options.amp)

    # The first step makes the optimizer's momentum.
    learn(task, optimizer, dtype, images, labels)
    with Work(limits) as work:
        learn(task, optimizer, dtype, images, labels)
    clock = Clock(task.device)
    for _ in range(WARM_UP + options.steps):
        learn(task, optimizer, dtype, images, labels)
        clock.mark()
    return typical(clock, WARM_UP), work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder with train and val, or another dataset that timm opens")
    parser.add_argument("--data-dir", help="the folder of the dataset")
    parser.add_argument("--names", nargs="*", default=["blockswap_resnet34_3m", "blockswap_resnet34_8m"])
    parser.add_argument("--teacher", default="blockswap_resnet34", help="of attention transfer (%(default)s)")
    parser.add_argument("--num-classes", type=int, default=1000, help="classes of the folder (%(default)s)")
    parser.add_argument("--device", help="cuda or cpu (cuda where there is a GPU)")
    parser.add_argument("--amp", choices=("bfloat16", "float32"), default="bfloat16", help="type (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=32, help="images of a step on one device (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each network (%(default)s)")
    parser.add_argument("--loader-images", type=int, default=256, help="images to time the loader by (%(default)s)")
    parser.add_argument("--processes", type=int, default=default_workers(), help="that read images (%(default)s)")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8], help="to state days for (1 8)")
    parser.add_argument(
        "--rates", type=float, nargs=2, default=H200, metavar=("GB/s", "TFLOP/s"), help="of another machine (H200)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a tiny form, on noise")
    run_script(parser, run)


def run(options: argparse.Namespace) -> None:
    if options.smoke:
        options.names, options.teacher = ["blockswap_resnet18"], "blockswap_resnet34"
        options.batch_size, options.steps, options.threads, options.amp = 2, 1, 1, "float32"
    elif options.data is None:
        raise DataError("the loader needs the folder of ImageNet, with train and val; use --data")
    for name in (options.teacher, *options.names):
        require_model(name, option="--names, --teacher")
    device = find_device(options.device)
    if device.type == "cpu":
        keep_memory()
    torch.set_num_threads(options.threads)
    about, epochs = describe_device(device), RECIPES["imagenet"].epochs
    limits = measure_limits(device, getattr(torch, options.amp), options.smoke)
    other = Limits(options.rates[0] * 1e9, options.rates[1] * 1e12)
    print(
        f"torch {about['torch']}, timm {about['timm']}, {device}, {about['processor']}, {options.threads} threads\n"
        f"{options.amp}, channels_last, batch {options.batch_size}, {options.steps} steps, seed {options.seed}\n"
        f"limits here: {limits}\nlimits of the other machine, by --rates: {other}"
    )
    if options.smoke:
        rate, minibatch = float("inf"), [torch.randn(2, 3, 64, 64), torch.tensor([0, 1])]
    else:
        network = timm.create_model(options.teacher, num_classes=options.num_classes, device="meta")
        rate, minibatch = loader_rate(network, options)
        print(f"loader: {rate:,.1f} images/s a process, {options.processes} processes")

    def days(images_per_second: float) -> str:
        whole = epochs * IMAGES / images_per_second / 86_400
        return "".join(f"{whole / number:>10.3g}" for number in options.devices)

    columns = "".join(f"{f'on {number}':>10s}" for number in options.devices)
    wide = 10 * len(options.devices)
    print(f"\n{'':36s}{'measured here':>21s}{f'days, {epochs} epochs':>{wide}s}", end="")
    print(f"{'the other machine':>20s}{'at least days':>{wide}s}")
    print(f"{'network':24s}{'learns from':12s}{'images/s':>11s}{'of limit':>10s}{columns}", end="")
    print(f"{'images/s':>10s}{'readers':>10s}{columns}")
    for name in [options.teacher, *options.names]:
        seconds, work = step_time(make_task(name, options, device), minibatch, options, limits)
        here, bound = options.batch_size / seconds, options.batch_size / work.least(other)
        learns, fed = "labels" if name == options.teacher else "the teacher", min(here, options.processes * rate)
        print(
            f"{name:24s}{learns:12s}{here:11,.1f}{work.limit / seconds:10.1%}{days(fed)}"
            f"{bound:10,.0f}{bound / rate:10,.0f}{days(bound)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
