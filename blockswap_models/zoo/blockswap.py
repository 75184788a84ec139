"""The zoo: the entries registered with timm, their genomes and their weights."""

from __future__ import annotations

import functools
import os
import re
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from timm.models import (
    FeatureInfo,
    PretrainedCfg,
    build_model_with_cfg,
    create_model,
    generate_default_cfgs,
    is_model,
    is_model_pretrained,
    register_model,
    resolve_pretrained_cfg,
    save_for_hf,
)
from timm.models._hub import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from timm.utils import unwrap_model
from torch import nn

from ..data.statistics import CIFAR10, CIFAR10_NAMES, IMAGENET, for_channels
from ..files import encode_json, make_folder
from ..genome import Genome, GenomeError
from ..layout import Layout
from ..nets.copies import plain_copy
from ..nets.networks import ResNet, WideResNet
from .cards import (
    CARD,
    Card,
    MissingWeightsError,
    WeightsError,
    check_weights,
    describe,
    model_card,
    read_card,
    shipped,
)
from .genomes import GENOMES

__all__ = ["COMMON", "SWAPPED", "create", "save_pretrained", "weights_named"]

# The entry of networks of timm with other blocks, in swapped.py.
SWAPPED = "swapped"

COMMON = {
    "license": "mit",
    "origin_url": "https://openreview.net/forum?id=SklkDkSFPB",
    "paper_name": "BlockSwap: Fisher-guided Block Substitution for Network Compression on a Budget",
    "paper_ids": "arXiv:1906.04113",
    "first_conv": "conv1",
    "classifier": "fc",
}
_CIFAR10 = {**COMMON, **CIFAR10}
_IMAGENET = {**COMMON, **IMAGENET}


def _cfgs() -> dict[str, dict[str, Any] | PretrainedCfg]:
    cfgs: dict[str, dict[str, Any] | PretrainedCfg] = {}
    there = shipped()
    for name in GENOMES:
        cfg = _CIFAR10 if "wrn" in name else _IMAGENET
        weights = {tagged: path for tagged, path in there.items() if tagged.partition(".")[0] == name}
        # timm's default is the first.
        cfgs |= {tagged: {**cfg, **_cfg_of_weights(name, path)} for tagged, path in weights.items()} or {name: cfg}
    return cfgs


def _cfg_of_weights(name: str, path: Path) -> dict[str, Any]:
    """What the cfg of a weights file has of its own: the file, and what its card says of images and classes."""
    card = read_card(path.with_suffix(".json"))
    cfg: dict[str, Any] = {"file": str(path)}
    size, names = card.get("input_size"), card.get("label_names")
    if names is None and card["data"] == "torch/cifar10":
        names = CIFAR10_NAMES
    if names is not None:
        cfg["label_names"] = tuple(names)
    if size is not None:
        cfg |= {"input_size": tuple(size), "pool_size": Layout.named(name).pool_size(*size[1:])}
    return cfg


default_cfgs = generate_default_cfgs(_cfgs())


def _create(name: str, pretrained: bool, **kwargs: Any) -> Any:
    return create(name, GENOMES[name], pretrained, **kwargs)


def create(
    name: str,
    own: Genome,
    pretrained: bool,
    genome: Genome | str | None = None,
    feature_cfg: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Makes the network of an entry, as timm's `create_model` asks for it; `own` is the entry's genome."""
    layout = Layout.named(name)
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if isinstance(kwargs.get("pretrained_cfg"), (str, type(None))) and (overlay.get("url") or overlay.get("hf_hub_id")):
        # Before these, timm would load the file of the weights that come with this package.
        kwargs["pretrained_cfg_overlay"] = {"file": None, **overlay}
    # The network itself sees whether the layout can carry it.
    genome = own if genome is None else Genome(genome)
    source = _genome_of_weights(name, own, **kwargs)
    if pretrained and source is not None and genome != source:
        raise GenomeError(
            f"{name} has pretrained weights for the genome '{source}' only, not for '{genome}'; use pretrained=False"
        )
    if pretrained and source is None and not weights_named(**kwargs):
        raise MissingWeightsError(name)
    if pretrained:
        _check_weights(name, **kwargs)
    indices = tuple(range(len(layout.depths) + 1))
    # The stages of a WideResNet are one level down, in a Sequential.
    features = {"out_indices": indices, "flatten_sequential": layout.preact, **(feature_cfg or {})}
    model: Any = build_model_with_cfg(
        WideResNet if layout.preact else ResNet,
        name,
        pretrained,
        feature_cfg=features,
        layout=layout,
        genome=genome,
        **kwargs,
    )
    # timm's cfg is that of the weights, which it has adapted to the channels asked for.
    cfg = for_channels(model.pretrained_cfg, model.in_chans)
    if not pretrained:
        # The classes and the size of the weights are not those of a network that is yet to learn.
        if "label_names" not in overlay:
            cfg.pop("label_names", None)
        if kwargs.get("pretrained_cfg") is None and "input_size" not in overlay:
            cfg |= {
                "input_size": (model.in_chans, *layout.input_size[1:]),
                "pool_size": layout.pool_size(*layout.input_size[1:]),
            }
    model.pretrained_cfg = model.default_cfg = cfg
    # timm adds the arguments of create_model to these, and saves them all: so any genome comes back from config.json.
    model._model_args = {"genome": genome}
    return model


def _genome_of_weights(
    name: str,
    own: Genome,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    pretrained_model_args: dict[str, Any] | None = None,
    **_: Any,
) -> Genome | None:
    """Returns the genome of the weights that timm would load; None if there are none, or only the caller knows it."""
    if saved := (pretrained_model_args or {}).get("genome"):
        return Genome(saved)
    if weights_named(pretrained_cfg, pretrained_cfg_overlay):
        return None
    return own if is_model_pretrained(name) else None


def weights_named(pretrained_cfg: Any = None, pretrained_cfg_overlay: dict[str, Any] | None = None, **_: Any) -> bool:
    """Whether the caller says where weights are: by a cfg handed in whole, or by a place in an overlay."""
    places = [(pretrained_cfg_overlay or {}).get(key) for key in ("state_dict", "file", "url", "hf_hub_id")]
    return not isinstance(pretrained_cfg, (str, type(None))) or any(places)


def _check_weights(
    name: str,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **_: Any,
) -> None:
    """Checks the weights that timm would load against their card, if they have one; raises WeightsError."""
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    if cfg.source == "hf-hub" or (cfg.hf_hub_id and not (cfg.file or cfg.state_dict)):
        repository, *revision = (cfg.hf_hub_id or "").split("@", 1)
        hub = functools.partial(hf_hub_download, repository, revision="".join(revision) or None, cache_dir=cache_dir)
        try:
            weights = hub(cfg.hf_hub_filename or "model.safetensors")
        except LocalEntryNotFoundError:
            # There is no network.
            raise
        except EntryNotFoundError:
            raise WeightsError(f"{cfg.hf_hub_id} has no model.safetensors, and nothing else is loaded") from None
        with suppress(EntryNotFoundError):
            check_weights(weights, hub(CARD))
    elif cfg.source == "local-dir" and cfg.file:
        check_weights(Path(cfg.file) / "model.safetensors", Path(cfg.file) / CARD)
    elif cfg.file and not cfg.state_dict:
        check_weights(cfg.file)


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    card: Card | None = None,
    source: str | None = None,
    **kwargs: Any,
) -> None:
    """Saves weights (safetensors) and config.json; `timm.create_model('local-dir:…')` makes the same network from them.

    What `torch.compile` or distributed training has wrapped is saved without the wrapper, and what
    `torch.nn.utils.prune` has pruned is saved with its zeros. Files appear whole or not at all.

    Args:
        model: A network of the zoo, or a registered one, or one of timm that `swap` gave other blocks.
        directory: The folder, which is created if needed.
        card: The card of these weights. The folder then has `card.json`, with the hash of the new file, by which an
            altered one is refused, and README.md, a model card.
        source: What the model card says to load, such as `hf-hub:user/name`; this folder where it is left out.
        **kwargs: Arguments of timm's `save_for_hf`.

    Raises:
        TypeError: The network is not of the zoo, and has no other blocks.
        ValueError: The network was changed since it was made, as `fold_batchnorm` does; or there is a card, but no
            safetensors.
        WeightsError: The card is of weights in another precision.
        OSError: The disk is full, or the folder cannot be written in.

    Example:
        ```python
        save_pretrained(model, "my_net")
        same = timm.create_model("local-dir:my_net", pretrained=True)
        ```
    """
    model = unwrap_model(model)
    genome = getattr(model, "genome", None)
    features_only = isinstance(getattr(model, "feature_info", None), FeatureInfo)
    if genome is None or features_only or not hasattr(model, "pretrained_cfg"):
        raise TypeError(
            f"save_pretrained takes a network of the zoo, or one of timm that swap made, not {type(model).__name__}"
        )
    safe = kwargs.pop("safe_serialization", True)
    if card is not None and not safe:
        raise ValueError("a card is of a model.safetensors; leave out safe_serialization=False, or the card")
    model = plain_copy(model)
    for tensor in (*model.parameters(), *model.buffers()):
        # What safetensors wants, also of a network in channels_last.
        tensor.data = tensor.data.contiguous()
    model_args = {**kwargs.pop("model_args", {}), "genome": genome}
    directory = Path(directory)
    make_folder(directory)
    own_cfg: Any = model.pretrained_cfg
    if not isinstance(model, (WideResNet, ResNet)):
        # timm makes it anew by the entry that swaps.
        model_args["network"], own_cfg["architecture"] = own_cfg["architecture"], SWAPPED
    else:
        # An argument of that entry alone, by which this network may have been made.
        getattr(model, "_model_args", {}).pop("network", None)
    names = own_cfg.pop("label_names", None)
    if names is not None and len(names) == model.num_classes:
        # Where timm and the Hugging Face Hub look for them.
        kwargs["model_config"] = {"label_names": list(names), **(kwargs.get("model_config") or {})}
    with TemporaryDirectory(prefix=".tmp", dir=directory) as place:
        folder = Path(place)
        try:
            save_for_hf(model, place, model_args=model_args, safe_serialization=safe, **kwargs)
        except SafetensorError as error:
            # Of a full disk it says so in its text alone.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(directory / "model.safetensors")) from None
        _check_loads(model, place)
        if card is not None:
            dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
            if dtype not in card["test"]:
                raise WeightsError(f"the card of {card['name']} has no error of {dtype} weights; save those it is of")
            card = {**card, "file": describe((folder / "model.safetensors").read_bytes(), dtype)}
            text = model_card(card, f"local-dir:{directory}" if source is None else source)
            (folder / "README.md").write_text(text, encoding="utf-8", errors="replace")
            (folder / CARD).write_bytes(encode_json(card, indent=1) + b"\n")
        elif (directory / CARD).exists():
            # That of other weights, which would refuse these, and what it says in words.
            (directory / CARD).unlink()
            (directory / "README.md").unlink(missing_ok=True)
        written = set()
        mode = (folder / "config.json").stat().st_mode
        # The config last: with it the folder is one of a network.
        for each in sorted(folder.iterdir(), key=lambda each: each.name == "config.json"):
            # safetensors lets its owner alone read a file, whatever the umask says.
            each.chmod(mode)
            os.replace(each, directory / each.name)
            written.add(each.name)
    # Those of a network that was here before, which timm may prefer.
    for name in {HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME} - written:
        (directory / name).unlink(missing_ok=True)


def _check_loads(model: nn.Module, folder: str) -> None:
    """Checks that the network that timm makes from a folder has the saved tensors; raises ValueError."""
    cfg: Any = model.pretrained_cfg
    name = cfg["architecture"]
    # A user's entry may have been registered in another program only.
    if not is_model(name):
        return
    own = {key: each.shape for key, each in model.state_dict().items()}
    again = {key: each.shape for key, each in create_model(f"local-dir:{folder}", device="meta").state_dict().items()}
    if different := [key for key in {**again, **own} if own.get(key) != again.get(key)]:
        raise ValueError(
            f"this network was changed after it was made: {len(different)} tensors ({different[0]}, …) are not those "
            f"of {name}, so the folder could not be loaded; save the network as it was made, or use torch.save"
        )


@register_model
def blockswap_wrn40_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-40-2 for CIFAR-10 with any genome; the original network by default."""
    return _create("blockswap_wrn40_2", pretrained, **kwargs)


@register_model
def blockswap_wrn40_1(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-40-1 for CIFAR-10 with any genome; the original network by default."""
    return _create("blockswap_wrn40_1", pretrained, **kwargs)


@register_model
def blockswap_wrn16_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-16-2 for CIFAR-10 with any genome; the original network by default."""
    return _create("blockswap_wrn16_2", pretrained, **kwargs)


@register_model
def blockswap_wrn16_1(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-16-1 for CIFAR-10 with any genome; the original network by default."""
    return _create("blockswap_wrn16_1", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_811k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 811 K parameters."""
    return _create("blockswap_wrn40_2_811k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_556k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 556 K parameters."""
    return _create("blockswap_wrn40_2_556k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_404k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 404 K parameters."""
    return _create("blockswap_wrn40_2_404k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_289k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 289 K parameters."""
    return _create("blockswap_wrn40_2_289k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_217k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 217 K parameters."""
    return _create("blockswap_wrn40_2_217k", pretrained, **kwargs)


@register_model
def blockswap_wrn40_2_162k(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """The paper's WRN-40-2 student of 162 K parameters."""
    return _create("blockswap_wrn40_2_162k", pretrained, **kwargs)


@register_model
def blockswap_resnet34(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-34 for ImageNet with any genome; the original network by default."""
    return _create("blockswap_resnet34", pretrained, **kwargs)


@register_model
def blockswap_resnet18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 for ImageNet with any genome; the original network by default."""
    return _create("blockswap_resnet18", pretrained, **kwargs)


@register_model
def blockswap_resnet34_8m(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The paper's ResNet-34 student of 8.2 M parameters."""
    return _create("blockswap_resnet34_8m", pretrained, **kwargs)


@register_model
def blockswap_resnet34_3m(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The paper's ResNet-34 student of 3.1 M parameters."""
    return _create("blockswap_resnet34_3m", pretrained, **kwargs)
