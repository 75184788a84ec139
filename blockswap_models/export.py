"""Networks as files that need neither this package nor timm: ONNX, torch.export and TorchScript; BN is folded first.

A file takes any number of images of one size, already normalised. What it answers is compared with PyTorch before it
is written.
"""

from __future__ import annotations

import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import torch
from timm.layers import BatchNormAct2d
from timm.models import FeatureHookNet, FeatureInfo
from timm.utils import unwrap_model
from torch import nn
from torch.fx import Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .data.statistics import fixed_size, label_names, model_data_config
from .errors import BlockSwapError
from .files import write_atomic
from .messages import quote
from .nets.copies import plain_copy

__all__ = [
    "ABOUT",
    "FORMATS",
    "OPSET",
    "ExportError",
    "Exported",
    "export_model",
    "fold_batchnorm",
    "format_of",
    "require_onnx",
]

# The formats, and the suffixes of their files; the first suffix is the usual one.
FORMATS: dict[str, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "torch.export": (".pt2",),
    "torchscript": (".ts", ".pt", ".torchscript"),
}
# What every release of ONNX Runtime since 2023 reads.
OPSET = 18
# The extra file of torch.export and TorchScript that ONNX has as metadata.
ABOUT = "about.json"
# The largest difference of a file's outputs from PyTorch's, relative to the largest output.
_TOLERANCE = 1e-4
# Traced with two images: a compiler would treat a batch size of one as a constant.
_TRACED, _COMPARED = 2, (1, 3)

_ANY_BATCH = ({0: torch.export.Dim("batch")},)

# What a network outputs: logits, or feature maps by number or name.
_Answer = Callable[[torch.Tensor], Any]
# The content of a file, a function that runs it, and how many BN are left in it.
_Written = tuple[bytes, _Answer, int]


class ExportError(BlockSwapError):
    """A network that cannot be exported in this way; the message says what is wrong and what to use."""


@dataclass(frozen=True)
class Exported:
    """What a file holds.

    Attributes:
        file: The file.
        format: Its format.
        bytes: Its size.
        difference: The largest difference of its outputs from PyTorch's.
        folded: How many BN are folded.
        batchnorms: How many BN the network has.
        opset: The opset of ONNX.
        name: The name of the network.
        genome: Its genome, where it has one.
        input_size: Channels, height and width of the images.
        mean: The mean by which images are to be normalised before.
        std: The standard deviation by which images are to be normalised before.
        outputs: The names of the outputs: `logits`, or the layers of the maps of a network made with
            `features_only=True`, in order.
        label_names: The names of the classes, where they are known.
    """

    file: str
    format: str
    bytes: int
    difference: float
    folded: int
    batchnorms: int
    opset: int | None
    name: str
    genome: str | None
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    outputs: tuple[str, ...]
    label_names: tuple[str, ...] | None = None


def export_model(
    model: nn.Module,
    path: str | Path,
    format: str | None = None,
    *,
    input_size: tuple[int, int, int] | None = None,
    fold: bool = True,
) -> Exported:
    """Writes a network of the zoo, or another of timm, in evaluation mode and float32; it is not changed.

    Name, genome, image size, normalisation and the names of the outputs and classes go into the file, as ONNX metadata
    or as the extra file `about.json`. The file appears whole or not at all, and only if it answers as PyTorch does, for
    batches of other sizes than it was made with.

    Args:
        model: The network; made with `features_only=True` it has a map of each layer for outputs.
        path: The file.
        format: One of `FORMATS`; by default that of the file's suffix.
        input_size: Channels, height and width of the images; the network's own by default. The batch size is free.
        fold: Whether BN is folded into the convolution before it, where there is one.

    Returns:
        What the file holds.

    Raises:
        ExportError: The network cannot be exported so.

    Example:
        ```python
        export_model(timm.create_model("blockswap_wrn40_2_404k", pretrained=True), "net.onnx")
        ```
    """
    format = format_of(path, format)
    if format == "onnx":
        require_onnx()
    if any(each.is_meta for each in chain(model.parameters(), model.buffers())):
        raise ExportError("a network on the meta device has no weights; make it without device='meta'")
    original = _plain_copy(model).to("cpu", torch.float32)
    cfg = getattr(original, "pretrained_cfg", None) or {}
    config = model_data_config(original)
    own = tuple(config["input_size"])
    if input_size is not None and not (isinstance(input_size, Sequence) and len(input_size) == 3):
        raise ExportError(f"input_size is channels, height and width, not {input_size}; use such as input_size={own}")
    size = own if input_size is None else tuple(input_size)
    if size[0] != own[0]:
        raise ExportError(
            f"the network takes images of {own[0]} channels, not of {size[0]}; use "
            f"input_size={(own[0], *size[1:])}, or make it with in_chans={size[0]}"
        )
    fixed = fixed_size(original)
    if fixed is not None and size[1:] != fixed:
        raise ExportError(
            f"the network takes images of {fixed[0]}x{fixed[1]} only, not of {size[1]}x{size[2]}; use "
            f"input_size={(size[0], *fixed)}, or leave it out"
        )
    if isinstance(original, FeatureHookNet):
        # Neither torch.fx nor a compiler sees what hooks take.
        raise ExportError("features that hooks take cannot be exported; make the network with feature_cls='list'")
    ready = fold_batchnorm(original) if fold else original
    # timm keeps what a network of features was made with.
    genome = getattr(original, "genome", None) or getattr(original, "_model_args", {}).get("genome")
    about: dict[str, Any] = {
        "name": cfg.get("architecture") or type(original).__name__,
        "genome": None if genome is None else str(genome),
        "input_size": size,
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
    names = label_names(original)
    if names is not None:
        about["label_names"] = names
    with torch.no_grad():
        example = torch.zeros(_TRACED, *size)
        about["outputs"] = _output_names(original, original(example))
        content, answer, left = _WRITERS[format](ready, example, about)
        difference = _difference(original, answer, size)
    write_atomic(path, content, ExportError)
    norms, opset = _batchnorms(original), OPSET if format == "onnx" else None
    return Exported(str(path), format, len(content), difference, norms - left, norms, opset, **about)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Copies a model, in evaluation mode, with each BN folded into the convolution before it.

    That needs a convolution whose output nothing but the BN uses.

    The original is not changed. In a post-activation network every BN follows a convolution; in a pre-activation one
    the first of each block follows an addition, and stays. So does every norm that is no BN, or that has no statistics.
    What `forward_intermediates` returns is the same too: the BN after a convolution that is one of its maps stays.

    Args:
        model: The model.

    Returns:
        The copy.

    Raises:
        ExportError: torch.fx cannot trace the model.

    Example:
        ```python
        fast = fold_batchnorm(timm.create_model("blockswap_wrn40_2_404k", pretrained=True))
        ```
    """
    folded = _plain_copy(model)
    if not _batchnorms(folded):
        # Nor need torch.fx be able to trace it.
        return folded
    try:
        nodes = list(_LayerTracer().trace(folded).nodes)
    except Exception as error:
        # torch.fx has no error of its own.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"cannot fold the BN of {type(folded).__name__}, which torch.fx cannot trace: {reason}; use fold=False"
        ) from None
    places = Counter(id(module) for _, module in folded.named_modules(remove_duplicate=False))
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    info = getattr(folded, "feature_info", None)
    maps = {each["module"] for each in info if "module" in each} if isinstance(info, list) else set()
    for node in nodes:
        if node.op != "call_module" or not node.args or not isinstance(before := node.args[0], Node):
            continue
        if before.op != "call_module" or len(before.users) > 1 or before.target in maps:
            continue
        # A layer that is used twice has one set of weights for both.
        if calls[node.target] > 1 or calls[before.target] > 1:
            continue
        first, second = str(before.target), str(node.target)
        conv, norm = folded.get_submodule(first), folded.get_submodule(second)
        # One in two places would be another one there; and the weights of some are computed from others in each pass.
        if max(places[id(conv)], places[id(norm)]) > 1 or "weight" not in conv._parameters:
            continue
        if type(conv) is nn.Conv2d and _is_batchnorm(norm):
            folded.set_submodule(first, fuse_conv_bn_eval(conv, norm))
            # timm's BN contains its activation.
            rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
            folded.set_submodule(second, rest.eval())
    return folded


def format_of(path: str | Path, format: str | None = None) -> str:
    """Returns the format of a file, by default from its suffix; raises ExportError."""
    path, ending = str(path), Path(path).suffix.lower()
    meant = next((name for name, endings in FORMATS.items() if ending in endings), None)
    if format is None:
        if meant is None:
            endings = ", ".join(f"{each[0]} ({name})" for name, each in FORMATS.items())
            raise ExportError(f"the format of {quote(path)} is not clear from its ending; use one of {endings}")
        return meant
    if format not in FORMATS:
        raise ExportError(f"unknown format {quote(format)}; use one of {', '.join(FORMATS)}")
    if meant not in (None, format):
        instead = Path(path).with_suffix(FORMATS[format][0])
        raise ExportError(f"{quote(path)} is the name of a file of {meant}, not {format}; use {instead}")
    return format


class _LayerTracer(Tracer):
    """Traces down to convolutions and BN; a module without any of them is a leaf, whatever it does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_layer(m) or not any(map(_is_layer, m.modules()))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) or _is_batchnorm(module)


def _is_batchnorm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None


def _batchnorms(model: nn.Module) -> int:
    return sum(map(_is_batchnorm, model.modules()))


def _plain_copy(model: nn.Module) -> nn.Module:
    """Copies a model in evaluation mode, without what torch.compile or distributed training has wrapped around it."""
    copied: Any = plain_copy(unwrap_model(model)).eval()
    if getattr(copied, "grad_checkpointing", False):
        copied.set_grad_checkpointing(False)
    return copied


def require_onnx() -> None:
    """Sees that the packages for ONNX are there; raises ExportError."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise ExportError(
            'an ONNX file needs onnx, onnxruntime and onnxscript; pip install "blockswap_models[export]"'
        ) from None


def _to_onnx(model: nn.Module, x: torch.Tensor, about: dict[str, Any]) -> _Written:
    import onnx
    import onnxruntime

    try:
        # Some versions of onnxscript print, which would be in the way of --json.
        with redirect_stdout(io.StringIO()):
            made = torch.onnx.export(
                model,
                (x,),
                dynamo=True,
                dynamic_shapes=_ANY_BATCH,
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(about["outputs"]),
                optimize=True,
                verbose=False,
            )
        assert made is not None
        proto = made.model_proto
    except Exception as error:
        # The errors of these packages have no class in common either.
        raise ExportError(_why_no_onnx(model, error)) from error
    # torch 2.6 calls the number of images s0.
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    sizes = [size for value in values for size in value.type.tensor_type.shape.dim]
    own_name = sizes[0].dim_param
    for size in sizes:
        if size.dim_param == own_name != "":
            size.dim_param = "batch"
    props = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(proto, props)
    # The source files of the operations, which lie in folders of this machine.
    for node in proto.graph.node:
        del node.metadata_props[:]
    content = proto.SerializeToString()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    # The exporter folds by itself, also where the output of the convolution is a map of features.
    left = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    return content, lambda images: list(map(torch.from_numpy, session.run(None, {"images": images.numpy()}))), left


def _why_no_onnx(model: nn.Module, error: BaseException) -> str:
    # The first cause says what is wrong, and the errors after it fill a page.
    while error.__cause__ is not None:
        error = error.__cause__
    reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    here = ", ".join(f"{name} {version(name)}" for name in ("onnxscript", "onnx", "protobuf"))
    # Nearly all of those that came after torch 2.6 do not fit it.
    old = torch.__version__ < "2.7"
    install = '"onnxscript<0.3" "protobuf<7"' if old else "-U torch onnxscript onnx"
    return (
        f"torch {torch.__version__} with {here} cannot make ONNX of {type(model).__name__}: {reason.rstrip(':.')}; "
        f"use a .pt2 or .ts file, or pip install {install}"
    )


def _to_torch_export(model: nn.Module, x: torch.Tensor, about: dict[str, Any]) -> _Written:
    file = io.BytesIO()
    try:
        program = torch.export.export(model, (x,), dynamic_shapes=_ANY_BATCH)
    except Exception as error:
        # Its errors have no class in common, and some are pages long.
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise ExportError(
            f"torch.export cannot trace {type(model).__name__}: {reason.rstrip(':.')}; use a .ts file"
        ) from error
    for node in program.graph.nodes:
        # It names folders of this machine.
        node.meta.pop("stack_trace", None)
    torch.export.save(program, file, extra_files={ABOUT: json.dumps(about)})
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module(), _batchnorms(model)


def _to_torchscript(model: nn.Module, x: torch.Tensor, about: dict[str, Any]) -> _Written:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # torch advises its newer formats.
        warnings.filterwarnings("ignore", ".*torch.jit.*")
        try:
            script = torch.jit.script(model)
        except Exception as error:
            # Its errors have no class in common.
            reason = next(filter(None, map(str.strip, str(error).splitlines())), "no reason given")
            raise ExportError(
                f"TorchScript cannot read {type(model).__name__}: {reason.rstrip(':.')}; use a .pt2 or .onnx file"
            ) from None
        torch.jit.save(script, file, _extra_files={ABOUT: json.dumps(about)})
        return file.getvalue(), torch.jit.load(io.BytesIO(file.getvalue())), _batchnorms(model)


_WRITERS = {"onnx": _to_onnx, "torch.export": _to_torch_export, "torchscript": _to_torchscript}


def _tensors(answer: Any) -> list[torch.Tensor]:
    """Lists the outputs of a network; raises ExportError if they are not tensors."""
    if isinstance(answer, torch.Tensor):
        return [answer]
    tensors = list(answer.values()) if isinstance(answer, Mapping) else answer
    if not isinstance(tensors, (list, tuple)):
        tensors = []
    if not tensors or not all(isinstance(each, torch.Tensor) for each in tensors):
        raise ExportError(
            f"a network that answers with {type(answer).__name__} cannot be exported; have it give tensors"
        )
    return list(tensors)


def _output_names(model: nn.Module, answer: Any) -> tuple[str, ...]:
    """Names the outputs of a network; each name is valid in ONNX."""
    tensors, info = _tensors(answer), getattr(model, "feature_info", None)
    if isinstance(answer, torch.Tensor):
        return ("logits",)
    if isinstance(info, FeatureInfo) and len(info.out_indices) == len(tensors):
        return tuple(info.module_name())
    return tuple(f"output{number}" for number in range(len(tensors)))


def _difference(model: nn.Module, answer: _Answer, size: tuple[int, ...]) -> float:
    """The largest difference of a file's outputs from the network's; raises ExportError if it is too large."""
    differences, scales = [], [torch.tensor(1.0)]
    noise = torch.Generator().manual_seed(0)
    for batch in _COMPARED:
        images = torch.randn(batch, *size, generator=noise)
        for wanted, found in zip(_tensors(model(images)), _tensors(answer(images)), strict=True):
            differences.append((wanted - found).abs().max())
            scales.append(wanted.abs().max())
    largest, scale = (float(torch.stack(each).max()) for each in (differences, scales))
    # Also where either is NaN.
    if not largest <= _TOLERANCE * scale:
        raise ExportError(
            f"the file would answer other than PyTorch: the largest difference is {largest:.2g}, of outputs up to "
            f"{scale:.3g}; nothing was written"
        )
    return largest
