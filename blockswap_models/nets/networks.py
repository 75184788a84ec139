"""The networks that carry a genome: WideResNet (pre-activation) and ResNet (post-activation), as timm models."""

# Without `from __future__ import annotations`: torch.fx writes the types of a traced forward into the code it makes,
# and TorchScript cannot read them there as text.
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, create_classifier, get_act_layer, get_device_dtype, get_norm_layer
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models.resnet import ResNet as TimmResNet
from torch import nn

from ..genome import Genome
from ..layout import Layout
from .blocks import ResidualBlock, build_block

__all__ = ["ResNet", "WideResNet", "branch_ends", "build", "checkpoint_filter_fn", "residual_blocks"]


class WideResNet(nn.Module):
    """A pre-activation residual network for small images, with one block type a block (paper, section 5)."""

    def __init__(
        self,
        layout: Layout,
        genome: Genome | str | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | Callable[..., nn.Module] = nn.ReLU,
        norm_layer: str | Callable[..., nn.Module] = nn.BatchNorm2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        make_act, make_norm = get_act_layer(act_layer), get_norm_layer(norm_layer)
        self.layout = layout
        self.genome = layout.fit(layout.original if genome is None else genome)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, layout.stem_chs, 3, padding=1, bias=False, **dd)
        self.feature_info: list[dict[str, Any]] = [{"num_chs": layout.stem_chs, "reduction": 1, "module": "conv1"}]
        stages: list[list[nn.Module]] = [[] for _ in layout.depths]
        reduction = 1
        rates = torch.linspace(0, drop_path_rate, len(self.genome.blocks), device="cpu").tolist()
        for place, block, rate in zip(layout.positions, self.genome.blocks, rates, strict=True):
            reduction *= place.stride
            stages[place.stage - 1].append(
                build_block(
                    block,
                    place.in_chs,
                    place.out_chs,
                    place.stride,
                    preact=True,
                    drop_path=DropPath(rate) if rate else None,
                    act_layer=make_act,
                    norm_layer=make_norm,
                    **dd,
                )
            )
            if place.block == layout.depths[place.stage - 1]:
                self.feature_info.append(
                    {"num_chs": place.out_chs, "reduction": reduction, "module": f"stages.{place.stage - 1}"}
                )
        self.stages = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.num_features = layout.channels[-1]
        self.bn = make_norm(self.num_features, **dd)
        self.act = make_act(inplace=True)
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self._draw_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draws all weights again: convolutions from N(0, 2 / (k² · out)), the linear layer as PyTorch, bias zero."""
        _reset_parameters(self)
        self._draw_weights()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Weights with older names are loaded too, also where this network is part of another module.
        for name in [name for name in state_dict if name.startswith(f"{prefix}layer")]:
            state_dict[prefix + _stage_name(name.removeprefix(prefix))] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.jit.ignore
    def _draw_weights(self) -> None:
        if self.conv1.weight.is_meta:
            # There is nothing to draw, and that would take most of the time of building.
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups parameters by stage (coarse) or block, for layer-wise learning rates."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^conv1", "blocks": [(blocks, None), (r"^bn\.", (99999,))]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names the parameters without weight decay: none, as in the paper."""
        return set()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades computation for memory: activations within a block are recomputed in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Returns the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier, and the pooling where one is given."""
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, **get_device_dtype(self)
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the final features and the outputs of stem and stages; `norm` applies the last BN to the last one."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is 'NCHW' for a convolutional network, not {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.stages) + 1, indices)
        intermediates = []
        x = self.conv1(x)
        if 0 in take_indices:
            intermediates.append(x)
        last = len(self.stages)
        reached = 0
        for index, stage in enumerate(self.stages[:max_index] if stop_early else self.stages, start=1):
            x = self._stage(stage, x)
            reached = index
            if index in take_indices:
                intermediates.append(self.act(self.bn(x)) if norm and index == last else x)
        if intermediates_only:
            return intermediates
        if reached == last:
            x = self.act(self.bn(x))
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the features at `indices` do not need; returns these indices from the start."""
        take_indices, max_index = feature_take_indices(len(self.stages) + 1, indices)
        prune_end = max_index < len(self.stages)
        for index in range(max_index, len(self.stages)):
            # In its place one of no blocks: the indices of features stay what they were.
            self.stages[index] = nn.Sequential()
        if prune_norm or prune_end:
            self.bn, self.act = nn.Identity(), nn.Identity()
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.reset_classifier(0, "")
        return take_indices

    def _stage(self, stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (N, C, H, W) to features (N, num_features, H / r, W / r), where r is the last reduction."""
        x = self.conv1(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x, flatten=True)
        else:
            x = self.stages(x)
        return self.act(self.bn(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pools and classifies features."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (N, C, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _stage_name(name: str) -> str:
    """Renames a tensor that was saved when stages were `layer1`, `layer2` and so on."""
    return re.sub(r"^layer(\d+)(?=\.)", lambda found: f"stages.{int(found[1]) - 1}", name)


def checkpoint_filter_fn(state_dict: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Gives the tensors of a checkpoint the names that they have in a network.

    Args:
        state_dict: Tensors by name, perhaps by the names of an older version of this package.
        model: The network; of one that is no WideResNet, names stay.

    Returns:
        The same tensors by name.
    """
    if not isinstance(model, WideResNet):
        return dict(state_dict)
    return {_stage_name(name): value for name, value in state_dict.items()}


class ResNet(TimmResNet):
    """timm's ResNet with one block type a block; all-`S` has timm's and torchvision's parameters (paper, section 6)."""

    def __init__(
        self,
        layout: Layout,
        genome: Genome | str | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | Callable[..., nn.Module] = nn.ReLU,
        norm_layer: str | Callable[..., nn.Module] = nn.BatchNorm2d,
        zero_init_last: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        genome = layout.fit(layout.original if genome is None else genome)
        # timm's type is that of its two block classes.
        block_makers: Any = tuple(_BlockMaker(stage) for stage in genome.stages)
        super().__init__(
            block_makers,
            layout.depths,
            num_classes=num_classes,
            in_chans=in_chans,
            output_stride=output_stride,
            global_pool=global_pool,
            channels=layout.channels,
            act_layer=act_layer,
            norm_layer=norm_layer,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            zero_init_last=zero_init_last,
            device=device,
            dtype=dtype,
        )
        self.layout = layout
        self.genome = genome
        self.zero_init = zero_init_last

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool | None = None) -> None:
        """Draws all weights again, as timm does; branches start at zero if they did so before, unless it is given."""
        if self.conv1.weight.is_meta:
            return
        # timm's constructor calls this too, before it has a genome: there, every layer has just been made.
        if hasattr(self, "genome"):
            _reset_parameters(self)
        super().init_weights(self.zero_init if zero_init_last is None else zero_init_last)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names the parameters without weight decay: none, as in the paper."""
        return set()


class _BlockMaker:
    """Takes the place of a block class in timm's ResNet: each call builds the next block of one stage."""

    expansion = 1

    def __init__(self, stage: tuple[Any, ...]) -> None:
        self._blocks: Iterator[Any] = iter(stage)

    def __call__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None, **kwargs: Any) -> Any:
        return build_block(
            next(self._blocks),
            inplanes,
            planes,
            stride,
            preact=False,
            downsample=downsample,
            dilations=(kwargs["first_dilation"], kwargs["dilation"]),
            drop_path=kwargs["drop_path"],
            act_layer=kwargs["act_layer"],
            norm_layer=kwargs["norm_layer"],
            device=kwargs["device"],
            dtype=kwargs["dtype"],
        )


def _reset_parameters(model: nn.Module) -> None:
    """Resets every layer to its initial values.

    So weights can be drawn after `to_empty`, and the random numbers that follow are those of a fresh network: the same
    seed gives the same weights.
    """
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def build(layout: Layout, genome: Genome | str | None = None, **kwargs: Any) -> WideResNet | ResNet:
    """Builds a network with random weights.

    Args:
        layout: The layout.
        genome: The blocks, standard ones where none are given.
        **kwargs: Arguments of the network, such as `num_classes`, `in_chans` and `device`.

    Returns:
        The network.

    Raises:
        GenomeError: The genome does not fit.
    """
    return WideResNet(layout, genome, **kwargs) if layout.preact else ResNet(layout, genome, **kwargs)


def residual_blocks(model: nn.Module) -> list[nn.Module]:
    """Lists the residual blocks of a network, from first to last; in one that `swap` made, also those that it kept."""
    model = _holder_of_ends(model)
    ends = getattr(model, "branch_ends", None)
    if ends is None:
        return [module for module in model.modules() if isinstance(module, ResidualBlock)]
    there = dict(model.named_modules())
    return [there[name] for name in ends if name in there]


def _holder_of_ends(model: nn.Module) -> nn.Module:
    """Finds the network that `swap` made within what is wrapped around it; any other is itself."""
    return next((each for each in model.modules() if hasattr(each, "branch_ends")), model)


def branch_ends(model: nn.Module) -> list[nn.Module | None]:
    """Lists the module of each residual block whose output is added to the shortcut.

    It is the block itself where nothing is added, and None for a block without a branch.
    """
    model = _holder_of_ends(model)
    names: dict[str, str] = getattr(model, "branch_ends", None) or {}
    there = dict(model.named_modules())
    kept = {there[name]: there[f"{name}.{end}" if end else name] for name, end in names.items() if name in there}
    ends: list[nn.Module | None] = []
    for block in residual_blocks(model):
        if isinstance(block, ResidualBlock):
            ends.append(None if block.branch_end is None else block.get_submodule(block.branch_end))
        else:
            ends.append(kept[block])
    return ends
