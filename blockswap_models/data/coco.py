"""COCO: its images with one label each, or with all boxes and masks, and the average precision of detections.

pycocotools comes with the extra `detection` and is imported when annotations are read.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from timm.data.readers.reader import Reader
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.ops import box_convert

from .images import ImageError, ImageFiles, read_image
from .splits import known_split

if TYPE_CHECKING:
    from pycocotools.coco import COCO

__all__ = ["AP_NAMES", "CocoLabels", "CocoObjects", "average_precision", "detections", "open_coco"]

AP_NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL")


def open_coco(root: str | Path, split: str) -> CocoDetection:
    """Opens a split of COCO 2017, or of a part of it, in COCO's own folders and files.

    Raises RuntimeError without pycocotools, ValueError where there is no such split.
    """
    _require_pycocotools()
    known = known_split(split)
    if known not in ("train", "val"):
        raise ValueError(f"COCO has no split '{split}'; use train or val (split=)")
    year = f"{known}2017"
    images, annotations = Path(root) / year, Path(root) / "annotations" / f"instances_{year}.json"
    for path in (annotations, images):
        if not path.exists():
            raise ValueError(f"no {path.relative_to(root)} there; fetch it, or use the split that is (split=)")
    with redirect_stdout(io.StringIO()):
        opened = _CocoImages(str(images), str(annotations))
    for each in opened.coco.dataset["annotations"]:
        # Annotations that are not COCO's own often lack them.
        each.setdefault("iscrowd", 0)
        if "area" not in each:
            each["area"] = each["bbox"][2] * each["bbox"][3]
    return opened


class _CocoImages(CocoDetection):
    """COCO as torchvision reads it, with errors that name the image."""

    def _load_image(self, id: int) -> Image.Image:
        path = self.path(id)
        try:
            return read_image(path, "RGB")
        except ImageError as error:
            raise ImageError(f"cannot read the image '{path}': {error}") from None

    def path(self, id: int) -> str:
        """The file of an image."""
        return str(Path(self.root) / self.coco.imgs[id]["file_name"])


class _LargestObjects(Reader):
    """Reads, for timm, the COCO images that contain an object, each with the category of its largest."""

    def __init__(self, whole: _CocoImages) -> None:
        super().__init__()
        coco = whole.coco
        numbers = {each: number for number, each in enumerate(sorted(coco.cats))}
        self.class_to_idx = {coco.cats[each]["name"]: number for each, number in numbers.items()}
        largest: dict[int, dict[str, Any]] = {}
        for each in coco.dataset["annotations"]:
            if not each["iscrowd"] and each["area"] > largest.get(each["image_id"], {"area": 0})["area"]:
                largest[each["image_id"]] = each
        self.samples = [
            (whole.path(image), numbers[largest[image]["category_id"]]) for image in whole.ids if image in largest
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path, label = self.samples[index]
        return open(path, "rb"), label

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = Path(self.samples[index][0])
        return str(path) if absolute else path.name


class CocoLabels(ImageFiles):
    """COCO images with the category of the largest object in each, as 0 to 79; images without objects are left out.

    Crowds do not count as objects. `class_to_idx` maps names to numbers, in COCO's order.
    """

    def __init__(self, root: str | Path, split: str, input_img_mode: str = "RGB", replace: bool = False) -> None:
        super().__init__(str(root), _LargestObjects(open_coco(root, split)), input_img_mode, replace)
        self.class_to_idx = self.reader.class_to_idx


class CocoObjects(Dataset):
    """The images of COCO as torchvision's detectors take them: an image, and its boxes, labels, masks and `image_id`.

    Labels are COCO's own numbers, 1 to 90. For training, crowds and boxes without area are left out, and then images
    without objects. `transforms` takes an image and its objects, as torchvision's v2 transforms do.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        training: bool = False,
        transforms: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.whole = open_coco(root, split)
        self.transforms, coco = transforms, self.whole.coco
        if training:
            for image, each in coco.imgToAnns.items():
                coco.imgToAnns[image] = [one for one in each if not one["iscrowd"] and min(one["bbox"][2:]) > 0]
            self.whole.ids = [image for image in self.whole.ids if coco.imgToAnns[image]]
        self._objects = wrap_dataset_for_transforms_v2(self.whole, target_keys=("boxes", "labels", "masks"))

    @property
    def coco(self) -> COCO:
        """The annotations."""
        return self.whole.coco

    @property
    def ids(self) -> list[int]:
        """COCO's own numbers of the images."""
        return self.whole.ids

    def keep(self, number: int) -> None:
        """Keeps a number of images, evenly spaced."""
        there = len(self.ids)
        if not 1 <= number <= there:
            raise ValueError(f"there are {there:,} images, not {number:,}; use 1 to {there} (images=)")
        self.whole.ids = [self.ids[place * there // number] for place in range(number)]

    def aspect_ratios(self) -> list[float]:
        """Width by height of each image."""
        return [self.coco.imgs[image]["width"] / self.coco.imgs[image]["height"] for image in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        image, objects = self._objects[index]
        if "boxes" not in objects:
            size = (image.height, image.width)
            objects = {
                "boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size),
                "labels": torch.zeros(0, dtype=torch.int64),
                "masks": tv_tensors.Mask(torch.zeros(0, *size, dtype=torch.uint8)),
            }
        if self.transforms is not None:
            image, objects = self.transforms(image, objects)
        return image, {**objects, "image_id": self.ids[index]}


def detections(image_ids: Iterable[int], outputs: Iterable[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Converts the detections of a Mask R-CNN to COCO's format of results; masks are thresholded at 0.5."""
    _require_pycocotools()
    from pycocotools import mask

    found = []
    for image, output in zip(image_ids, outputs, strict=True):
        output = {name: each.cpu() for name, each in output.items()}
        boxes = box_convert(output["boxes"], "xyxy", "xywh").tolist()
        masks = (output["masks"][:, 0] > 0.5).numpy().astype(np.uint8)
        for box, label, score, each in zip(
            boxes, output["labels"].tolist(), output["scores"].tolist(), masks, strict=True
        ):
            shape = mask.encode(np.asfortranarray(each))
            found.append({"image_id": image, "category_id": label, "bbox": box, "score": score, "segmentation": shape})
    return found


def average_precision(
    coco: COCO, image_ids: Sequence[int], found: list[dict[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """Evaluates detections with pycocotools: the six values of `AP_NAMES` for `bbox` and `segm`, in percent.

    A value is None if the images have no objects of its size.
    """
    _require_pycocotools()
    from pycocotools.cocoeval import COCOeval

    # pycocotools writes into the annotations, and what it writes is not read again.
    coco = copy.deepcopy(coco)
    results: dict[str, dict[str, float | None]] = {}
    for kind in ("bbox", "segm"):
        if not found:
            results[kind] = dict.fromkeys(AP_NAMES, 0.0)
            continue
        # With a box pycocotools takes its area for that of the mask, and so small masks for medium or large ones.
        left_out = "bbox" if kind == "segm" else None
        detections = [{key: value for key, value in each.items() if key != left_out} for each in found]
        with redirect_stdout(io.StringIO()):
            evaluation = COCOeval(coco, coco.loadRes(detections), kind)
            evaluation.params.imgIds = list(image_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        figures = evaluation.stats[: len(AP_NAMES)]
        results[kind] = {
            name: None if figure < 0 else 100 * float(figure) for name, figure in zip(AP_NAMES, figures, strict=True)
        }
    return results


def _require_pycocotools() -> None:
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise RuntimeError('COCO needs pycocotools; pip install "blockswap_models[detection]"') from None
