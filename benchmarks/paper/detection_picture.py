"""Draws what a detector finds in an image."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.io import write_png
from torchvision.models.detection import MaskRCNN
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from blockswap_models.data.coco import CocoObjects

__all__ = ["draw"]

_LEAST_SCORE = 0.5


@torch.inference_mode()
def draw(model: MaskRCNN, dataset: CocoObjects, out: str | Path, index: int = 0) -> None:
    """Draws boxes, masks and names on an image, beside the image with what is really there, to a PNG file."""
    image, objects = dataset[index]
    model.eval()
    found = model([image.to(next(model.parameters()).device)])[0]
    chosen = found["scores"] > _LEAST_SCORE
    found = {name: each[chosen].cpu() for name, each in found.items()}
    pictures = [
        _drawn(image, dataset, found["boxes"], found["labels"], found["masks"][:, 0] > 0.5),
        _drawn(image, dataset, objects["boxes"], objects["labels"], objects["masks"].bool()),
    ]
    write_png(torch.cat(pictures, dim=2), str(out))
    print(f"picture: {out}, found on the left, labelled on the right")


def _drawn(
    image: torch.Tensor, dataset: CocoObjects, boxes: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    picture = (image * 255).to(torch.uint8)
    if not len(boxes):
        return picture
    names = [dataset.coco.cats[label]["name"] for label in labels.tolist()]
    return draw_bounding_boxes(draw_segmentation_masks(picture, masks, alpha=0.5), boxes, names, width=2)
