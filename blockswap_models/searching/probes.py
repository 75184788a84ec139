"""Which modules of a network are probed: the ends of its residual branches, or those that the user names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn

from ..messages import did_you_mean, quote
from ..nets.networks import residual_blocks

__all__ = ["Blocks", "find_probes"]

# Names of modules, a pattern of names, or a function of the network that returns names or modules.
Blocks = str | Iterable[str | nn.Module] | Callable[[nn.Module], Iterable[str | nn.Module]]

# The last layer of the branch of blocks that others define; where there are several, the first that the block has.
_BRANCH_ENDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("timm.models.resnet", "BasicBlock"): ("se", "bn2"),
    ("timm.models.resnet", "Bottleneck"): ("se", "bn3"),
    ("timm.models.resnetv2", "PreActBasic"): ("conv2",),
    ("timm.models.resnetv2", "PreActBottleneck"): ("conv3",),
    ("timm.models.resnetv2", "Bottleneck"): ("norm3",),
    ("timm.models.regnet", "Bottleneck"): ("conv3",),
    ("timm.models.regnet", "PreBottleneck"): ("conv3",),
    ("timm.models._efficientnet_blocks", "DepthwiseSeparableConv"): ("bn2",),
    ("timm.models._efficientnet_blocks", "EdgeResidual"): ("bn2",),
    ("timm.models._efficientnet_blocks", "InvertedResidual"): ("bn3",),
    ("torchvision.models.resnet", "BasicBlock"): ("bn2",),
    ("torchvision.models.resnet", "Bottleneck"): ("bn3",),
}


def find_probes(model: nn.Module, blocks: Blocks | None = None) -> list[nn.Module | None]:
    """Finds the module at the end of each block, from first to last; None for a block without a branch.

    Args:
        model: Any network.
        blocks: What to probe; the residual branches of this package's networks, of timm's ResNets, ResNetV2s, RegNets
            and EfficientNets and of torchvision's ResNets where nothing is given.

    Returns:
        The modules.

    Raises:
        TypeError: No blocks are given, and the network has none that are known.
        ValueError: There is no such module.
    """
    if blocks is not None:
        return _named(model, blocks)
    own = residual_blocks(model)
    if own:
        return [None if each.branch_end is None else each.get_submodule(each.branch_end) for each in own]
    ends = [end for module in model.modules() if (end := _branch_end(module)) is not None]
    if not ends:
        raise TypeError(
            f"{type(model).__name__} has no residual blocks that are known; name the modules at the ends of its "
            "blocks, such as blocks='layers.*.conv2'"
        )
    return list(ends)


def _branch_end(module: nn.Module) -> nn.Module | None:
    for each in type(module).__mro__:
        for name in _BRANCH_ENDS.get((each.__module__, each.__name__), ()):
            end = getattr(module, name, None)
            if isinstance(end, nn.Module) and not isinstance(end, nn.Identity):
                return end
    return None


def _named(model: nn.Module, blocks: Blocks) -> list[nn.Module | None]:
    modules = dict(model.named_modules())
    if isinstance(blocks, str):
        matching = [module for name, module in modules.items() if fnmatchcase(name, blocks)]
        if not matching:
            raise ValueError(f"{type(model).__name__} has no modules {quote(blocks)}; {_advice(blocks, modules)}")
        return list(matching)
    chosen: list[nn.Module | None] = []
    for each in blocks(model) if callable(blocks) else blocks:
        module = modules.get(each) if isinstance(each, str) else each
        if not isinstance(module, nn.Module):
            name = str(each)
            raise ValueError(f"{type(model).__name__} has no module {quote(name)}; {_advice(name, modules)}")
        chosen.append(module)
    if not chosen:
        raise ValueError(f"no modules of {type(model).__name__} to probe; give at least one in blocks=")
    return chosen


def _advice(name: str, modules: dict[str, nn.Module]) -> str:
    names = list(modules)[1:]
    shown = ", ".join(map(repr, names[:3]))
    return did_you_mean(name, names, f"use names of model.named_modules(), such as {shown}, or a pattern with *")
