"""Top-1 and top-5 error of any timm model on any dataset that timm opens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.data import create_loader
from timm.data.loader import fast_collate
from timm.models import load_state_dict
from torch import nn
from torch.utils.data import IterableDataset, Subset

from ..counts import require_counts
from ..data.cifar import CIFAR_CLASSES, CifarLoader, read_cifar
from ..data.folders import DataError, dataset_text, find_dataset, number_by, open_dataset
from ..data.holdout import HoldOut
from ..data.images import ImageFiles, image_mode
from ..data.loader import ImageLoader, collate_good
from ..data.shared_memory import collate_shared
from ..data.splits import known_split
from ..data.statistics import fixed_size, label_names, model_data_config
from ..messages import quote
from ..nets.networks import checkpoint_filter_fn

__all__ = [
    "Evaluation",
    "Minibatches",
    "SizedMinibatches",
    "check_classes",
    "check_fit",
    "evaluate",
    "evaluation_loader",
    "is_compiled",
    "load_weights",
    "read_weights",
    "step_marker",
]

Minibatches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class SizedMinibatches(Protocol):
    """Minibatches of images and labels whose number is known, as those of a DataLoader."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...


@dataclass(frozen=True)
class Evaluation:
    """The errors of a model, in percent, on a number of images, and the seconds that it took to measure them.

    Attributes:
        images: The images that the errors are of.
        top1_error: Images whose label is not the first of the model's answers.
        top5_error: Images whose label is not among its first five.
        seconds: The time of the measurement.
        damaged: The files of images that could not be read, which the errors leave out.
    """

    images: int
    top1_error: float
    top5_error: float
    seconds: float
    damaged: tuple[str, ...] = ()


def evaluate(
    model: nn.Module,
    loader: Minibatches,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[Minibatches], Minibatches] | None = None,
) -> Evaluation:
    """Measures the errors of a model on minibatches of images and labels, on its device, without changing it.

    Args:
        model: Any classifier.
        loader: Minibatches of images and labels, such as `evaluation_loader` opens.
        dtype: The type of autocast; float32 is without it.
        progress: Wraps the loader, as tqdm does.

    Returns:
        The errors; the top-5 error of five classes or fewer is 0.

    Raises:
        DataError: There are no images, or labels that the model has no classes for or that are not one an image.
        ValueError: Outputs are NaN.

    Example:
        ```python
        evaluate(model, evaluation_loader(model, "torch/cifar10", "path/to/cifar10")).top1_error
        ```
    """
    device = _device(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    # Added up on the device, so that no minibatch waits for it.
    images, classes = 0, 0
    counts = torch.zeros(4, dtype=torch.int64, device=device)
    begin_step = step_marker(model)
    start = time.perf_counter()
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for inputs, labels in loader if progress is None else progress(loader):
                begin_step()
                labels = labels.to(device, non_blocking=True)
                logits = model(inputs.to(device, non_blocking=True))
                if labels.shape != logits.shape[:1]:
                    raise DataError(
                        f"labels of the shape {tuple(labels.shape)} do not fit {len(logits):,} images; use one number "
                        "of a class for each image, of the shape (images,)"
                    )
                images, classes = images + len(labels), logits.shape[1]
                hits = logits.topk(min(5, classes)).indices == labels[:, None]
                counts += torch.stack(
                    [
                        hits[:, 0].sum(),
                        hits.any(dim=1).sum(),
                        ((labels < 0) | (labels >= classes)).sum(),
                        logits.isnan().any(dim=1).sum(),
                    ]
                )
        first, among_five, strange, broken = counts.tolist()
    finally:
        for module, mode in modes:
            module.training = mode
    seconds = time.perf_counter() - start
    damaged = tuple(getattr(loader, "damaged", ()))
    if not images:
        raise DataError(
            "there are no images to evaluate on" + (f": {len(damaged):,} cannot be read" if damaged else "")
        )
    if strange:
        raise DataError(f"{strange:,} of {images:,} labels are none of the network's {classes} classes")
    if broken:
        raise ValueError(f"the outputs for {broken:,} of {images:,} images are NaN; are these the right weights?")
    return Evaluation(images, 100 * (images - first) / images, 100 * (images - among_five) / images, seconds, damaged)


def step_marker(module: nn.Module) -> Callable[[], None]:
    """Returns a function to call before each step of a loop; it marks the step for CUDA graphs of torch.compile.

    CUDA graphs reuse the memory of the last step's outputs; without the mark they can misjudge where a step begins.
    """
    # Calling the function would load the compiler.
    return torch.compiler.cudagraph_mark_step_begin if is_compiled(module) else lambda: None


def is_compiled(module: nn.Module) -> bool:
    """Whether a part of a module is compiled, by torch.compile or in place by its own `compile()`."""
    return any(
        hasattr(each, "_orig_mod") or getattr(each, "_compiled_call_impl", None) is not None
        for each in module.modules()
    )


def evaluation_loader(
    model: nn.Module,
    data: str,
    root: str | Path | None = None,
    split: str | None = None,
    batch_size: int = 256,
    images: int | None = None,
    class_map: str | Path | None = None,
    workers: int = 4,
    holdout: HoldOut | None = None,
    *,
    image_size: int | None = None,
    crop_pct: float | None = None,
) -> Minibatches:
    """Opens a dataset for a model: size, crop and normalisation are those of its timm configuration, or as given.

    CIFAR at its own size is kept on the model's device. Images that cannot be read are left out, with a warning
    that names them. The classes of a folder are found among those of the model by name, where it has names for them.

    Args:
        model: The model that the images are for, on the device that they go to.
        data: A timm name, such as `torch/cifar10`, or a folder of images.
        root: The folder of a dataset with a name.
        split: The split, in any case; None is the validation split, or the test split of a folder without one.
        batch_size: Images in a minibatch.
        images: Number of images, evenly spaced; all by default.
        class_map: timm's: a file with the names of the classes in order, for a folder that has only some of them. A
            folder that has training images too is numbered by these, and needs none; nor does one whose classes the
            model knows by name.
        workers: Processes that read images.
        holdout: Which images are those of validation, for a folder without splits; all are where None.
        image_size: Side of the squares that the model sees, in pixels.
        crop_pct: Side of these as a share of the resized image of which they are the middle, above 0 and up to 1.

    Returns:
        The minibatches.

    Raises:
        DataError: There is no such dataset or split, it does not fit the model, or a number is out of range.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"images have at least 1 pixel, not {image_size} (image_size=)")
    fixed = fixed_size(model)
    if image_size is not None and fixed not in (None, (image_size, image_size)):
        raise DataError(f"the network takes images of {fixed[0]}x{fixed[1]} only; leave out image_size={image_size}")
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise DataError(f"a crop is a share above 0 and up to 1, not {crop_pct:g} (crop_pct=)")
    if batch_size < 1:
        raise DataError(f"a minibatch has at least 1 image, not {batch_size}")
    if images is not None and images < 1:
        raise DataError(f"an error is measured on at least 1 image, not {images}")
    require_counts(0, DataError, workers=workers)
    data, root = find_dataset(data, root)
    config = model_data_config(model)
    if image_size is not None:
        config["input_size"] = (config["input_size"][0], image_size, image_size)
    if crop_pct is not None:
        config["crop_pct"] = crop_pct
    source, _, cifar = data.lower().partition("/")
    if source == "torch" and class_map is not None:
        raise DataError(f"a class map is for folders of images, not for {data}; leave it out (class_map=)")
    if source == "torch" and cifar in CIFAR_CLASSES and config["input_size"] == (3, 32, 32) and config["crop_pct"] == 1:
        check_classes(model, data, CIFAR_CLASSES[cifar])
        known = known_split(split or "test")
        if known is None:
            raise DataError(f"{data} has no split {quote(split)}; use train or test (split=)")
        pictures, labels = read_cifar(root, cifar, known == "train")
        places = _spaced(len(labels), images)
        return CifarLoader(
            pictures[places],
            labels[places],
            batch_size,
            mean=config["mean"],
            std=config["std"],
            device=_device(model),
        )
    dataset = open_dataset(
        data,
        root,
        split,
        batch_size=batch_size,
        class_map=None if class_map is None else str(class_map),
        input_img_mode=image_mode(config["input_size"][0]),
        holdout=holdout,
    )
    names = label_names(model)
    if data == "folder" and class_map is None and names is not None:
        number_by(names, dataset, root)
    index = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    if index:
        classes, advice = max(index.values()) + 1, ", with weights for as many"
        if data == "folder" and classes < getattr(model, "num_classes", classes):
            advice += ", or, for some of the network's classes, the file with the names of all (class_map=)"
        check_classes(model, dataset_text(data, root), classes, class_map is not None, advice)
    chosen: Any = dataset
    if images is not None:
        if isinstance(dataset, IterableDataset):
            raise DataError(f"{data} is a stream, of which only all images can be taken; leave out images=")
        chosen = Subset(dataset, _spaced(len(dataset), images).tolist())
    collate = (
        partial(collate_good, channels=config["input_size"][0]) if isinstance(dataset, ImageFiles) else fast_collate
    )
    loader = create_loader(
        chosen,
        input_size=config["input_size"],
        batch_size=batch_size,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=workers,
        pin_memory=_device(model).type == "cuda",
        device=_device(model),
        collate_fn=partial(collate_shared, collate=collate),
    )
    # timm sets the transform on the subset, which does not use it.
    dataset.transform = chosen.transform
    return ImageLoader(loader, dataset, workers)


def load_weights(model: nn.Module, path: str | Path, any_classes: bool = False, own_genome: bool = False) -> None:
    """Loads the weights of a checkpoint: a .safetensors file, or one of torch with tensors only.

    From a checkpoint of timm's training it takes the averaged weights (EMA), if there are any.

    Args:
        model: The model.
        path: The checkpoint.
        any_classes: Whether a timm model adopts the checkpoint's number of classes.
        own_genome: Whether the model is of one genome, such as a teacher, so that none is advised.

    Raises:
        ValueError: The checkpoint cannot be read, or is of another network.
    """
    state = checkpoint_filter_fn(read_weights(path), model)
    classifier = state.get(f"{getattr(model, 'pretrained_cfg', {}).get('classifier')}.weight")
    if any_classes and classifier is not None and len(classifier) != model.num_classes:
        reset_classifier: Any = model.reset_classifier
        reset_classifier(len(classifier))
    check_fit(model, state, path, own_genome)
    model.load_state_dict(state, strict=False)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a checkpoint by name, as `load_weights` does; raises ValueError."""
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {quote(str(path))}; use a .safetensors file, or a checkpoint of torch")
    try:
        return load_state_dict(str(path), weights_only=True)
    except OSError:
        raise
    # Reading what is no checkpoint as one ends in errors of any kind.
    except Exception:
        raise ValueError(
            f"cannot read the checkpoint {quote(str(path))}: it is damaged, or holds more than tensors, which could "
            "run code; use a .safetensors file"
        ) from None


def check_fit(model: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path, own_genome: bool = False) -> None:
    """Checks that the tensors of a checkpoint are those of a network; raises ValueError."""
    own = model.state_dict()
    faults = {
        # Absent from some checkpoints, and without effect on outputs.
        "missing": [name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        "unknown": [name for name in state if name not in own],
        "of another shape": [
            name for name in own if name in state and getattr(state[name], "shape", None) != own[name].shape
        ],
    }
    first = f"{(getattr(model, 'pretrained_cfg', None) or {}).get('first_conv')}.weight"
    if first in faults["of another shape"] and state[first].ndim == own[first].ndim == 4:
        theirs, ours = state[first].shape[1], own[first].shape[1]
        if theirs != ours:
            raise ValueError(
                f"the checkpoint {quote(str(path))} is of a network for images of {theirs} channels, this one takes "
                f"{ours}; use in_chans={theirs}, or other weights"
            )
    if any(faults.values()):
        told = [f"{len(names)} {fault} ({names[0]}, …)" for fault, names in faults.items() if names]
        advice = ""
        if hasattr(model, "genome"):
            # A command without genomes leaves out the brackets.
            blocks = "" if own_genome else "the network that it is of (genome=), or "
            advice = f"; use {blocks}the folder of its run"
        raise ValueError(
            f"the checkpoint {quote(str(path))} is of another network than this {type(model).__name__}: "
            f"tensors {', '.join(told)}{advice}"
        )


def _device(model: nn.Module) -> torch.device:
    return next((each.device for each in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def check_classes(
    model: nn.Module, data: str, classes: int, mapped: bool = False, advice: str = ", with weights for as many"
) -> None:
    """Checks that a model has as many classes as a dataset.

    Args:
        model: The model; one without `num_classes` may have any number.
        data: The name of the dataset.
        classes: How many classes the dataset has.
        mapped: Whether the model may have more, because a class map says which.
        advice: What the message adds to the recommended number.

    Raises:
        DataError: The numbers differ.
    """
    own = getattr(model, "num_classes", classes)
    if classes == own or (mapped and classes < own):
        return
    advice = f"use num_classes={classes}{advice}"
    raise DataError(f"{data} has {classes} classes, but the network has {own}; {advice}")


def _spaced(there: int, wanted: int | None) -> torch.Tensor:
    wanted = there if wanted is None else wanted
    if wanted > there:
        raise DataError(f"there are {there:,} images, not {wanted:,}; use fewer (images=)")
    return torch.arange(wanted) * there // wanted
