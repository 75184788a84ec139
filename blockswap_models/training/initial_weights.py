"""Initial weights of a training run that are not random: from a file, or from the teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..nets.networks import checkpoint_filter_fn, residual_blocks
from .evaluate import check_fit, read_weights

__all__ = ["copy_from_teacher", "load_initial"]


def load_initial(model: nn.Module, path: str | Path) -> list[str]:
    """Loads the weights of a checkpoint into a network, all but a classifier for other classes.

    Args:
        model: A network of timm.
        path: A .safetensors file, or a checkpoint of torch that holds nothing but tensors.

    Returns:
        The names of the tensors that keep their random values: those of the classifier, or none.

    Raises:
        ValueError: The file cannot be read, or is of another network.
    """
    state = checkpoint_filter_fn(read_weights(path), model)
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier")
    own = model.state_dict()
    kept = [
        name
        for name, value in own.items()
        if classifier and name.startswith(f"{classifier}.") and name in state and state[name].shape != value.shape
    ]
    check_fit(model, {**state, **{name: own[name] for name in kept}}, path)
    model.load_state_dict({name: value for name, value in state.items() if name not in kept}, strict=False)
    return kept


def copy_from_teacher(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Copies into a student what it has in common with its teacher: stem, head and every block of the same type.

    In two networks of this package a block is common if the teacher has, at the same place, a block with tensors of the
    same names and shapes. In other networks every tensor of the same name and shape is common.

    Args:
        student: The network that is changed.
        teacher: The network it came from.

    Returns:
        The names of the tensors that were copied.

    Raises:
        ValueError: The networks have nothing in common.
    """
    theirs = teacher.state_dict()
    state = {name: value for name, value in student.state_dict().items() if _alike(value, theirs.get(name))}
    names = {id(module): name for name, module in student.named_modules()}
    for block in residual_blocks(student):
        prefix = f"{names[id(block)]}."
        own = [name for name in student.state_dict() if name.startswith(prefix)]
        their_own = [name for name in theirs if name.startswith(prefix)]
        if own != their_own or any(name not in state for name in own):
            state = {name: value for name, value in state.items() if not name.startswith(prefix)}
    if not state:
        raise ValueError(
            f"the student, {type(student).__name__}, has no tensor in common with the teacher, "
            f"{type(teacher).__name__}; leave out init=teacher"
        )
    student.load_state_dict({name: theirs[name] for name in state}, strict=False)
    return list(state)


def _alike(ours: torch.Tensor, theirs: torch.Tensor | None) -> bool:
    return theirs is not None and ours.shape == theirs.shape
