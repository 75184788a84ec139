"""A folder in the layout of COCO, with images of noise, boxes and masks drawn at random; it needs no data."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torchvision.io import write_jpeg

__all__ = ["write_noise"]

CATEGORIES = {1: "disc", 3: "square", 90: "bar"}


def write_noise(root: Path, number: int = 2, size: tuple[int, int] = (48, 64), split: str = "val") -> None:
    """Writes so many images of (height, width); each object is a quadrilateral, and the second image's last a crowd."""
    generator = torch.Generator().manual_seed(0)
    folder, (height, width) = root / f"{split}2017", size
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for image in range(1, number + 1):
        noise = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
        write_jpeg(noise, str(folder / f"{image:012d}.jpg"))
        images.append({"id": image, "file_name": f"{image:012d}.jpg", "height": height, "width": width})
        for place, category in enumerate(CATEGORIES):
            wide, high = (8 + int(torch.randint(20, (), generator=generator)) for _ in range(2))
            x = int(torch.randint(width - wide, (), generator=generator))
            y = int(torch.randint(height - high, (), generator=generator))
            crowd = image == 2 and place == len(CATEGORIES) - 1
            corners = [x, y, x + wide, y, x + wide, y + high, x, y + high]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, wide, high],
                "area": wide * high,
                "iscrowd": int(crowd),
                "segmentation": {"size": [height, width], "counts": [height * width]} if crowd else [corners],
            }
            annotations.append(annotation)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": each, "name": name} for each, name in CATEGORIES.items()],
    }
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
