"""Which modules of a network are probed: the ends of its residual branches, or those that the user names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from ..messages import did_you_mean, quote
from ..nets.networks import branch_ends, residual_blocks
from ..nets.swap import SplitError, find_blocks

__all__ = ["Blocks", "Probe", "find_probes"]

# Names of modules, a pattern of names, or a function of the network that returns names or modules.
Blocks = str | Iterable[str | nn.Module] | Callable[[nn.Module], Iterable[str | nn.Module]]


class Probe(NamedTuple):
    """A block, and the module at the end of its branch; None for a block without a branch."""

    block: nn.Module
    end: nn.Module | None


def find_probes(model: nn.Module, input_size: tuple[int, int, int], blocks: Blocks | None = None) -> list[Probe]:
    """Finds the end of the branch of each block, from first to last.

    Args:
        model: Any network.
        input_size: Channels, height and width of its images.
        blocks: The modules to probe, each within a block of its own; where nothing is given, the branches of this
            package's networks, and of networks of timm that split into blocks.

    Returns:
        The blocks and their ends.

    Raises:
        TypeError: No modules are given, and the network does not split into blocks.
        ValueError: There is no such module.
    """
    if blocks is not None:
        return _named(model, blocks)
    own = residual_blocks(model)
    if own:
        return [Probe(*pair) for pair in zip(own, branch_ends(model), strict=True)]
    try:
        found = find_blocks(model, input_size)
    except SplitError as error:
        raise TypeError(
            f"{error}; or name the modules at the ends of its blocks, such as blocks='layers.*.conv2'"
        ) from None
    return [
        Probe(model.get_submodule(each.name), model.get_submodule(f"{each.name}.{each.end}" if each.end else each.name))
        for each in found
    ]


def _named(model: nn.Module, blocks: Blocks) -> list[Probe]:
    modules = dict(model.named_modules())
    if isinstance(blocks, str):
        matching = [name for name in modules if fnmatchcase(name, blocks)]
        if not matching:
            raise ValueError(f"{type(model).__name__} has no modules {quote(blocks)}; {_advice(blocks, modules)}")
        blocks = matching
    names = {module: name for name, module in modules.items()}
    chosen = []
    for each in blocks(model) if callable(blocks) else blocks:
        module = modules.get(each) if isinstance(each, str) else each
        if not isinstance(module, nn.Module) or module not in names:
            name = str(each) if isinstance(each, str) else type(each).__name__
            raise ValueError(f"{type(model).__name__} has no module {quote(name)}; {_advice(name, modules)}")
        chosen.append(Probe(modules[names[module].rpartition(".")[0]], module))
    if not chosen:
        raise ValueError(f"no modules of {type(model).__name__} to probe; give at least one in blocks=")
    return chosen


def _advice(name: str, modules: dict[str, nn.Module]) -> str:
    names = list(modules)[1:]
    shown = ", ".join(map(repr, names[:3]))
    return did_you_mean(name, names, f"use names of model.named_modules(), such as {shown}, or a pattern with *")
