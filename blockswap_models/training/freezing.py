"""Parts of a network that keep the weights they start from, for fine-tuning."""

from __future__ import annotations

from timm.models import group_parameters
from torch import nn

from ..messages import listed, quote

__all__ = ["freeze", "keep_frozen_norms"]


def freeze(model: nn.Module, parts: str | int) -> tuple[str, ...]:
    """Freezes parts of a network: their parameters are not trained, and their BN stays in evaluation mode.

    Args:
        model: A network of timm.
        parts: A number of stages, which are frozen with the stem (0: the stem alone); or names of modules, such as
            `conv1,stages.0`.

    Returns:
        The names of the parameters that are frozen.

    Raises:
        ValueError: The network has no such parts, or all of it would be frozen.

    Example:
        ```python
        freeze(model, 2)
        ```
    """
    names = [name for name, _ in model.named_parameters()]
    text = str(parts).strip()
    if text.isdigit():
        groups = _stages(model)
        last = max(groups.values())
        # The head is the last group, after the stages.
        if int(text) >= last:
            raise ValueError(f"{type(model).__name__} has {last - 1} stages; freeze at most that many, not {text}")
        frozen = [name for name in names if groups.get(name, last) <= int(text)]
    else:
        wanted = [each.strip() for each in text.split(",")]
        for each in wanted:
            if not any(name == each or name.startswith(f"{each}.") for name in names):
                kind = type(model).__name__
                known = [name for name, module in model.named_children() if any(True for _ in module.parameters())]
                raise ValueError(f"{kind} has no parameters in {quote(each)} to freeze; its parts are {listed(known)}")
        frozen = [name for name in names if any(name == each or name.startswith(f"{each}.") for each in wanted)]
    if len(frozen) == len(names):
        raise ValueError(f"freeze {quote(text)} leaves nothing to train; freeze less")
    parameters = dict(model.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    return tuple(frozen)


def _stages(model: nn.Module) -> dict[str, int]:
    """The stage of each parameter: 0 for the stem, then 1 and up, the head last; raises ValueError."""
    group_matcher = getattr(model, "group_matcher", None)
    if group_matcher is None:
        raise ValueError(f"{type(model).__name__} does not say its stages; freeze parts by name")
    groups: dict[str, int] = group_parameters(model, group_matcher(coarse=True), reverse=True)
    return groups


def keep_frozen_norms(module: nn.Module) -> None:
    """Puts those norms into evaluation mode whose parameters are all frozen, after a call of `train`."""
    for each in module.modules():
        if getattr(each, "running_mean", None) is None:
            continue
        parameters = list(each.parameters(recurse=False))
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            each.eval()
