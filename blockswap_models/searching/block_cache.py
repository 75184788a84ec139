"""Networks that share their modules: making a network takes longer than drawing weights for one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..genome import BlockType, Genome
from ..nets.blocks import ResidualBlock
from ..nets.networks import residual_blocks
from .space import SearchSpace

__all__ = ["NetworkPool"]

# Blocks beyond so many parameters are made anew each time, so that the memory of large networks stays bounded.
_MOST_PARAMS = 16_000_000


class NetworkPool:
    """Hands out the networks of a space, one at a time: each ends the one before, whose blocks it may have."""

    def __init__(self, space: SearchSpace, **kwargs: Any) -> None:
        self._space, self._kwargs = space, kwargs
        self._network = space.build(space.layout.original, **kwargs)
        self._names = [name for name, each in self._network.named_modules() if isinstance(each, ResidualBlock)]
        self._blocks: dict[tuple[int, BlockType], ResidualBlock] = {}
        self._params = 0

    def network(self, genome: Genome, seed: int) -> nn.Module:
        """Returns the network of a genome; its weights are those that `space.build` draws after `manual_seed(seed)`."""
        blocks = [self._blocks.get(place) for place in enumerate(genome.blocks)]
        if None in blocks:
            # Made without weights, which are drawn below.
            made = residual_blocks(self._space.build(genome, device="meta", **self._kwargs))
            blocks = [
                self._keep(place, new.to_empty(device="cpu")) if old is None else old
                for place, old, new in zip(enumerate(genome.blocks), blocks, made, strict=True)
            ]
        for name, block in zip(self._names, blocks, strict=True):
            parent, _, last = name.rpartition(".")
            self._network.get_submodule(parent)._modules[last] = block
        self._network.genome = genome
        torch.manual_seed(seed)
        self._network.init_weights()
        return self._network

    def _keep(self, place: tuple[int, BlockType], block: ResidualBlock) -> ResidualBlock:
        number = sum(each.numel() for each in block.parameters())
        if self._params + number <= _MOST_PARAMS:
            self._params += number
            self._blocks[place] = block
        return block
