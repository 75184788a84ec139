"""Several students of one teacher in one training run: the teacher runs once a minibatch for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn

from .attention_transfer import AttentionTransferTask

__all__ = ["SharedTeacherTask"]


class SharedTeacherTask(TrainingTask):
    """Trains students, by name, whose tasks have one teacher: each student learns what it would learn alone.

    The loss is the sum of theirs, which gives each parameter the gradient that it would have alone. So one optimizer of
    all parameters does, as long as it treats each parameter by itself, as SGD does. Only random numbers that a forward
    pass draws, as for dropout, differ from those of a student that is trained alone.

    Averages, compilation and DDP are those of each student's task. There is no one network to evaluate: use
    `students[name].get_eval_model()`.

    Args:
        students: The task of each student, by name.

    Raises:
        ValueError: There are no students, or their teachers differ.

    Example:
        ```python
        first = AttentionTransferTask(student, teacher)
        second = AttentionTransferTask(other, first.teacher)
        SharedTeacherTask({"first": first, "second": second})(images, labels)["loss"].backward()
        ```
    """

    def __init__(self, students: Mapping[str, AttentionTransferTask]) -> None:
        if not students:
            raise ValueError("there are no students; use tasks by name, such as {'small': AttentionTransferTask(…)}")
        _check_alike(students)
        first = next(iter(students.values()))
        super().__init__(device=first.device, dtype=first.dtype, verbose=False)
        self.students = dict(students)
        # Registered as a list: the names in a ModuleDict have no dots, and those of timm's models have.
        self.tasks = nn.ModuleList(self.students.values())

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> SharedTeacherTask:
        """Wraps each student in DistributedDataParallel."""
        for task in self.students.values():
            task.prepare_distributed(device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> None:
        """Compiles each student, and the teacher."""
        for task in self.students.values():
            task.compile(backend=backend, mode=mode, **compile_kwargs)

    def compile_ema(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> None:
        """Compiles the average of each student, where there are averages."""
        for task in self.students.values():
            task.compile_ema(backend=backend, mode=mode, **compile_kwargs)

    def get_trainable_module(self, ema: bool = False) -> nn.Module | None:
        """Returns all students, or their averages, as one list of modules."""
        modules = [task.get_trainable_module(ema=ema) for task in self.students.values()]
        found = [module for module in modules if module is not None]
        return nn.ModuleList(found) if len(found) == len(modules) else None

    def setup_ema(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Creates an average of each student."""
        return nn.ModuleList([task.setup_ema(*args, **kwargs) for task in self.students.values()])

    def update_ema(self, step: int | None = None) -> None:
        """Updates the average of each student, where there are averages."""
        for task in self.students.values():
            task.update_ema(step=step)

    def get_clip_parameters(self, exclude_head: bool = False) -> Any:
        """Refuses: a common norm of gradients would have each student depend on the others."""
        raise TypeError("students who share a teacher cannot have their gradients clipped together; train each alone")

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Refuses: there is one network a student."""
        raise TypeError("several students are several networks; use task.students[name].get_eval_model()")

    def get_checkpoint_state(
        self, ema: bool = False, unwrap_fn: Callable[[nn.Module], nn.Module] = unwrap_model
    ) -> dict[str, Any]:
        """Returns the state of each student, by its name, under the key that the state of a single one has."""
        states = {name: task.get_checkpoint_state(ema, unwrap_fn) for name, task in self.students.items()}
        key = "state_dict_ema" if ema else "state_dict"
        return {key: {name: state[key] for name, state in states.items()}}

    def load_checkpoint_state(
        self,
        state_dict: dict[str, Any],
        task_state: dict[str, Any] | None = None,
        ema: bool = False,
        strict: bool = True,
    ) -> None:
        """Loads the state of each student."""
        if state_dict.keys() != self.students.keys():
            raise ValueError(f"the checkpoint is of {', '.join(state_dict)}, not of {', '.join(self.students)}")
        for name, task in self.students.items():
            task.load_checkpoint_state(state_dict[name], ema=ema, strict=strict)

    def no_sync(self) -> AbstractContextManager[Any]:
        """Does not synchronise the gradients of any student, for gradient accumulation."""
        stack = ExitStack()
        for task in self.students.values():
            stack.enter_context(task.no_sync())
        return stack

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Computes `loss`, the sum over students, and of each what its task gives, as `name/loss`, `name/output`, …"""
        outputs = next(iter(self.students.values())).teacher_outputs(input)
        result: dict[str, torch.Tensor] = {}
        losses = []
        for name, task in self.students.items():
            parts = task(input, target, teacher_outputs=outputs)
            losses.append(parts["loss"])
            result |= {f"{name}/{part}": value for part, value in parts.items()}
        return {"loss": torch.stack(losses).sum(), **result}


def _check_alike(students: Mapping[str, AttentionTransferTask]) -> None:
    """Checks that the teacher's outputs are the same for all students."""
    (first, task), *others = students.items()
    for name, other in others:
        if other.teacher.model is not task.teacher.model:
            raise ValueError(f"{first} and {name} have different teachers; give both tasks the same network")
        if other.teacher_stages != task.teacher_stages:
            raise ValueError(
                f"{first} learns from stages {task.teacher_stages} of the teacher and {name} from "
                f"{other.teacher_stages}; use the same teacher_stages=(…) for both"
            )
        if bool(other.soft_labels) != bool(task.soft_labels):
            raise ValueError(f"only one of {first} and {name} learns from soft labels; train each alone")
        if other.teacher_size != task.teacher_size:
            raise ValueError(
                f"{first} gives the teacher images of teacher_size={task.teacher_size} and {name} of "
                f"{other.teacher_size}; use the same for both"
            )
        for ours, theirs in [(task.student_mean, other.student_mean), (task.student_std, other.student_std)]:
            same = ours is theirs if ours is None or theirs is None else torch.equal(ours, theirs)
            if not same:
                raise ValueError(
                    f"{first} and {name} want images of another mean and standard deviation; train each alone"
                )
