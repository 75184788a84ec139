"""What a network sees in image files: its most probable classes, by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset
from timm.utils import unwrap_model
from timm.utils.misc import natural_key
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .counts import require_counts
from .data.errors import DataError
from .data.images import ImageError, fit_shape, image_mode, read_image, walk_images
from .data.loader import plain_errors
from .data.shared_memory import into_shared_memory, memory_told
from .data.statistics import model_data_config
from .messages import quote
from .training.models import make_model

__all__ = ["Prediction", "class_names", "images_in", "iter_predictions", "predict"]

_logger = logging.getLogger(__name__)

# A minibatch: the places of images among the files, the images, and why others could not be read.
_Batch = tuple[list[int], torch.Tensor, dict[int, str]]


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes:
        image: The file.
        labels: The numbers of the classes, the most probable first.
        names: Their names.
        probabilities: Their probabilities, by softmax.
    """

    image: str
    labels: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    model: nn.Module | str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    top: int = 5,
    batch_size: int = 64,
    workers: int = 0,
) -> list[Prediction]:
    """Says which classes a network sees in image files, at the size and with the normalisation that it wants.

    Files that cannot be read are left out, with a warning that names each.

    Args:
        model: A network, on the device where it runs; or what `make_model` makes with its weights: an entry of timm or
            the zoo, the folder of a saved network or of a run.
        images: A file, a folder of files, or several of these.
        top: How many classes of each image.
        batch_size: Images in a minibatch.
        workers: Processes that read images.

    Returns:
        The predictions, in the order of the files.

    Raises:
        DataError: There is no such file, or none of them can be read.
        ValueError: There is no such network.

    Example:
        ```python
        predict("net", "photos/cat/1.jpg")[0].names[0]
        ```
    """
    return list(iter_predictions(model, images, top=top, batch_size=batch_size, workers=workers))


def iter_predictions(
    model: nn.Module | str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    top: int = 5,
    batch_size: int = 64,
    workers: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Iterator[Prediction]:
    """Predicts as `predict` does, and gives each prediction when its minibatch is done.

    Args:
        model: As of `predict`.
        images: As of `predict`.
        top: As of `predict`.
        batch_size: As of `predict`.
        workers: As of `predict`.
        progress: Wraps the minibatches, as tqdm does.

    Yields:
        The predictions, in the order of the files.

    Raises:
        DataError: As of `predict`.
    """
    require_counts(top=top, batch_size=batch_size)
    require_counts(0, workers=workers)
    files = images_in(images)
    network = model if isinstance(model, nn.Module) else make_model(str(model))
    names = class_names(network)
    tensors = [*network.parameters(), *network.buffers()]
    device = next((each.device for each in tensors), torch.device("cpu"))
    dtype = next((each.dtype for each in tensors if each.is_floating_point()), torch.float32)
    config = model_data_config(network)
    transform = create_transform(**config, is_training=False)
    dataset = _Files(files, image_mode(config["input_size"][0]), transform)
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=_collate)
    seen, damaged = 0, 0
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        batches: Iterable[_Batch] = plain_errors(memory_told(loader))
        for places, pixels, faults in batches if progress is None else progress(batches):
            for place, fault in faults.items():
                _logger.warning(f"left out {quote(files[place])}, which cannot be read: {fault}")
            damaged += len(faults)
            if not places:
                continue
            with torch.inference_mode():
                logits = network(pixels.to(device, dtype))
                _check_classes(network, logits)
                if logits.isnan().any():
                    raise ValueError("the outputs of the network are not numbers; use weights that are")
                probabilities, labels = logits.float().softmax(dim=1).topk(min(top, logits.shape[1]))
            for place, each, numbers in zip(places, probabilities.tolist(), labels.tolist(), strict=True):
                seen += 1
                found = tuple(names[number] if number < len(names) else str(number) for number in numbers)
                yield Prediction(files[place], tuple(numbers), found, tuple(each))
    finally:
        for module, mode in modes:
            module.training = mode
    if not seen:
        raise DataError(f"none of {damaged:,} images can be read, such as {quote(files[0])}; use other files")


def _check_classes(network: nn.Module, answer: Any) -> None:
    """Raises ValueError where a network does not answer with one number for each class of each image."""
    number = getattr(unwrap_model(network), "num_classes", None)
    if not isinstance(answer, torch.Tensor) or answer.ndim != 2 or answer.shape[1] != (number or answer.shape[1]):
        number = 0
    if number == 0:
        raise ValueError(
            f"{type(network).__name__} gives features, not a number for each class; use a network with classes, such "
            "as num_classes=10"
        )


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Lists the names of a network's classes.

    Args:
        model: The network.

    Returns:
        The names that were saved with it, those of ImageNet in words; without names those of the ImageNet of as many
        classes, of which timm knows 1,000, 11,221, 11,821, 21,841, 21,842 and 21,843; and numbers where there is
        nothing else.
    """
    network = unwrap_model(model)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    number: int = getattr(network, "num_classes", 0)
    names = _saved_names(cfg.get("label_names"), number)
    if names is None:
        subset = infer_imagenet_subset({"num_classes": number})
        names = [str(each) for each in range(number)] if subset is None else ImageNetInfo(subset).label_names()
    words = {**dict.fromkeys(names), **(cfg.get("label_descriptions") or {})}
    info = ImageNetInfo()
    return tuple(words[name] or _in_words(name, info) for name in names)


def _saved_names(names: Any, number: int) -> list[str] | None:
    """The names of a cfg, where they are of as many classes; timm also takes them by number, some left out."""
    if isinstance(names, Mapping):
        by_number = {int(place): str(name) for place, name in names.items()}
        fits = all(0 <= place < number for place in by_number)
        return [by_number.get(place, str(place)) for place in range(number)] if fits else None
    return list(names) if names is not None and len(names) == number else None


def _in_words(name: str, info: ImageNetInfo) -> str:
    """The words of a name that is ImageNet's, such as n01440764; any other as it is."""
    try:
        words: str = info.label_name_to_description(name)
    except KeyError:
        return name
    return words


def images_in(places: str | Path | Iterable[str | Path]) -> list[str]:
    """Lists image files: those that are named, and those in folders, without hidden ones.

    Args:
        places: A file, a folder, or several.

    Returns:
        The files, those of a folder in natural order.

    Raises:
        DataError: There is no such file, or a folder has none.
    """
    files: list[str] = []
    for place in [places] if isinstance(places, (str, Path)) else places:
        if Path(place).is_dir():
            inside = _walk(str(place))
            if not inside:
                raise DataError(f"no images in {quote(str(place))}; use files that Pillow reads, such as .jpg")
            files += inside
        elif Path(place).is_file():
            files.append(str(place))
        else:
            raise DataError(f"no image {quote(str(place))}; use a file, or a folder of images")
    if not files:
        raise DataError("no images are given; use files, or folders of images")
    return files


def _walk(folder: str) -> list[str]:
    found = [os.path.join(path, each) for path, _, files in walk_images(folder) for each in files]
    return sorted(found, key=lambda path: (natural_key(path), path))


class _Files(Dataset):
    """Images by their place among files; those that cannot be read say why."""

    def __init__(self, files: list[str], mode: str, transform: Callable[[Any], torch.Tensor]) -> None:
        self.files, self.mode, self.transform = files, mode, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[int, torch.Tensor | str]:
        try:
            image = fit_shape(read_image(self.files[place], self.mode))
        except ImageError as error:
            return place, str(error)
        except OSError as error:
            return place, error.strerror or str(error)
        return place, self.transform(image)


def _collate(samples: list[tuple[int, torch.Tensor | str]]) -> _Batch:
    good = [(place, image) for place, image in samples if isinstance(image, torch.Tensor)]
    pixels = torch.stack([image for _, image in good]) if good else torch.zeros(0)
    into_shared_memory(pixels)
    return [place for place, _ in good], pixels, {place: why for place, why in samples if isinstance(why, str)}
