"""How fast networks are trained, and what part of the machine's limit that is: the teacher, and each student.

    python -m benchmarks.speed.train_speed
    python -m benchmarks.speed.train_speed --device cuda --compile reduce-overhead --together

Images are random, of CIFAR's shape, and weights are too: neither matters to speed. A student is trained by
cross-entropy, and by attention transfer from the teacher. 'steps' are bare steps on one minibatch: forward pass under
autocast, backward pass and optimizer. 'loop' is the code that `blockswap train` runs in an epoch, with its loader. Both
are medians. The hours are those of the loop, without evaluation. `--together` trains all students in one process too,
in bare steps, with one forward pass of their teacher: images/s are those of each student, hours those of all.

One eager step is run and its operations counted: those of both passes, of autocast, attention maps and optimizer, and
of the teacher's forward pass. `roofline.py` says how the least time that the machine could take for them, its 'limit',
follows, and 'fused'. Of each the part is given that it is of the time of a bare step: at 100 % the machine could do no
better. Merging operations, as `--compile` does, can pass 'limit'; only small networks or minibatches can pass 'fused'.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import timm
import torch
from timm.task import ClassificationTask, TrainingTask
from tqdm import tqdm

from benchmarks.lib.scripts import require_model, run_script
from benchmarks.speed.roofline import Clock, Work, measure_limits
from blockswap_models.data.cifar import CIFAR_CLASSES, CifarLoader
from blockswap_models.machine import find_device, keep_memory
from blockswap_models.nets.devices import describe_device
from blockswap_models.searching.scorer import fast_dtype
from blockswap_models.training.attention_transfer import AttentionTransferTask, TeacherOutputs
from blockswap_models.training.loop import make_optimizer, train_epoch
from blockswap_models.training.recipes import RECIPES
from blockswap_models.zoo.genomes import GENOMES

TEACHER = "blockswap_wrn40_2"
# CIFAR's training images.
IMAGES = 50_000
# Steps before the timed ones: torch.compile compiles in the first, and records CUDA graphs in the next.
WARM_UP = 5


class Bench:
    """The circumstances in which all cases are measured."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.dtype: torch.dtype = getattr(torch, options.amp)
        self.recipe = replace(RECIPES["cifar10"], batch_size=options.batch_size)
        self.limits = measure_limits(device, self.dtype, options.smoke)
        number = IMAGES if not options.smoke else options.batch_size * (WARM_UP + options.steps)
        torch.manual_seed(options.seed)
        self.loader = CifarLoader(
            torch.randint(256, (number, 3, 32, 32), dtype=torch.uint8),
            torch.randint(CIFAR_CLASSES["cifar10"], (number,)),
            options.batch_size,
            training=True,
            padding=self.recipe.padding,
            cutout=self.recipe.cutout,
            seed=options.seed,
            device=device,
            channels_last=options.channels_last,
        )

    def loader_rate(self) -> float:
        """Images a second of an epoch of the loader alone, its draws included; the second of two epochs."""
        clock = Clock(self.device)
        clock.mark()
        for _ in range(2):
            for _ in self.loader:
                pass
            clock.mark()
        return len(self.loader) * self.options.batch_size / clock.seconds()[-1]

    def tasks(self, names: list[str], transfer: bool) -> list[TrainingTask]:
        """The tasks of some networks, which share their teacher, as `blockswap train` makes each."""
        torch.manual_seed(self.options.seed)
        students = [timm.create_model(name).to(self.device) for name in names]
        tasks: list[TrainingTask] = []
        teacher = timm.create_model(self.options.teacher).to(self.device) if transfer else None
        for student in students:
            if teacher is None:
                task: TrainingTask = ClassificationTask(student, device=self.device, verbose=False)
            else:
                beta, mode = self.recipe.beta, self.recipe.mode
                task = AttentionTransferTask(student, teacher, beta=beta, mode=mode, device=self.device, verbose=False)
                teacher = task.teacher
            tasks.append(task.to(memory_format=torch.channels_last) if self.options.channels_last else task)
        return tasks

    def step(self, tasks: list[TrainingTask], optimizers: list[torch.optim.SGD], minibatch: Iterable[Any]) -> None:
        """Trains each network by a minibatch, as `train` does; several share what the teacher says."""
        images, labels = minibatch
        shared = []
        if len(tasks) > 1:
            with autocast(self.device, self.dtype):
                # Copies: what a CUDA graph returns is overwritten by the next graph, which is a student's.
                shared = [TeacherOutputs([each.clone() for each in tasks[0].teacher_outputs(images).maps])]
        for task, optimizer in zip(tasks, optimizers, strict=True):
            learn(task, optimizer, self.dtype, images, labels, *shared)

    def run(self, names: list[str], transfer: bool) -> None:
        """Measures one case, and prints its row."""
        tasks = self.tasks(names, transfer)
        for task in tasks:
            task.train()
        optimizers = [make_optimizer(task.get_trainable_module(), self.recipe) for task in tasks]
        minibatch = next(iter(self.loader))
        # The first step makes the optimizer's momentum.
        self.step(tasks, optimizers, minibatch)
        with Work(self.limits) as work:
            self.step(tasks, optimizers, minibatch)
        if self.options.compile:
            # What was compiled for one case counts against the number of times that the next may compile.
            torch.compiler.reset()
            for task in tasks:
                task.compile(mode=self.options.compile)
        clock, steps = Clock(self.device), WARM_UP + self.options.steps
        for _ in range(steps):
            self.step(tasks, optimizers, minibatch)
            clock.mark()
        bare = whole = typical(clock)
        size, loop = self.options.batch_size, "-"
        # `train` trains one network.
        if len(tasks) == 1:
            clock = Clock(self.device)
            minibatches = Marked(self.loader, steps, clock)
            with tqdm(disable=True) as bar:
                train_epoch(tasks[0], minibatches, optimizers[0], self.recipe, bar, dtype=self.dtype)
            whole = typical(clock)
            loop = f"{size / whole:,.0f}"
        entry = names[0] if len(names) == 1 else f"{len(names)} students together"
        hours = self.recipe.epochs * IMAGES / size * whole / 3600
        print(
            f"{entry:24s} {'transfer' if transfer else '':8s}{work.flops / 1e9:8.1f}{work.bytes / 1e9:8.3f}"
            f"{bare * 1000:9.2f}{size / bare:10,.0f}{loop:>10s}"
            f"{work.limit / bare:8.1%}{work.fused / bare:8.1%}{hours:12.2f}",
            flush=True,
        )


def learn(task: TrainingTask, optimizer: torch.optim.Optimizer, dtype: torch.dtype, *inputs: Any) -> None:
    """Takes a step of a task: forward pass under autocast, backward pass and optimizer."""
    with autocast(task.device, dtype):
        result = task(*inputs)
    optimizer.zero_grad()
    result["loss"].backward()
    optimizer.step()


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def typical(clock: Clock, warm_up: int = WARM_UP) -> float:
    """The median time of a step, after those that warm up, where a mark follows each step."""
    return statistics.median(clock.seconds()[warm_up - 1 :])


class Marked:
    """The first minibatches of a loader; marks when each has been trained on."""

    def __init__(self, loader: Iterable[Any], number: int, clock: Clock) -> None:
        self.loader, self.number, self.clock = loader, number, clock

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Any]:
        for minibatch in islice(self.loader, self.number):
            yield minibatch
            self.clock.mark()


def main() -> None:
    students = [name for name in GENOMES if name.startswith(f"{TEACHER}_")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="*", default=[TEACHER, *students], help="entries (teacher and its students)")
    parser.add_argument("--teacher", default=TEACHER, help="of attention transfer (%(default)s)")
    parser.add_argument("--together", action="store_true", help="all students in one process too, with one teacher")
    parser.add_argument("--device", help="cuda or cpu (cuda where there is a GPU)")
    parser.add_argument("--amp", choices=("bfloat16", "float32"), help="type (bfloat16 where that is fast)")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="torch.compile, in a mode of it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each case (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="tiny cases")
    smoke = {"names": ["blockswap_wrn16_1"] * 2, "teacher": "blockswap_wrn16_2"}
    run_script(parser, run, batch_size=8, steps=2, threads=1, together=True, **smoke)


def run(options: argparse.Namespace) -> None:
    if min(options.steps, options.batch_size, options.threads) < 1:
        raise ValueError("--steps, --batch-size and --threads are at least 1")
    for name in (options.teacher, *options.names):
        require_model(name, option="--names, --teacher")
    device = find_device(options.device)
    if device.type == "cpu":
        # As `blockswap train` does.
        keep_memory()
    elif device.index is not None:
        torch.cuda.set_device(device)
    torch.set_num_threads(options.threads)
    if options.amp is None:
        gpu = device.type == "cuda"
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else fast_dtype() == torch.bfloat16
        options.amp = "bfloat16" if fast else "float32"
    about = describe_device(device)
    print(
        f"torch {about['torch']}, timm {about['timm']}, {device}, {about['processor']}, {options.threads} threads\n"
        f"{options.amp}, channels_last {options.channels_last}, compile {options.compile or 'no'}, "
        f"batch {options.batch_size}, {options.steps} steps, seed {options.seed}"
    )
    bench = Bench(options, device)
    print(f"limits: {bench.limits}\nloader alone: {bench.loader_rate():,.0f} images/s\n")
    print(f"{'':33s}{'a bare step':>25s}{'images/s':>20s}{'part of':>16s}{'hours for':>12s}")
    print(
        f"{'entry':33s}{'GFLOP':>8s}{'GB':>8s}{'ms':>9s}{'steps':>10s}{'loop':>10s}{'limit':>8s}{'fused':>8s}"
        f"{bench.recipe.epochs:5d} epochs"
    )
    for name in options.names:
        bench.run([name], transfer=False)
        if name != options.teacher:
            bench.run([name], transfer=True)
    together = [name for name in options.names if name != options.teacher]
    if options.together and len(together) > 1:
        bench.run(together, transfer=True)


if __name__ == "__main__":
    main()
