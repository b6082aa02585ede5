"""Make small COCO folders."""

import json

import cv2
import numpy as np


def coco(images=4, boxes=2, classes=(7, 3), size=(48, 64)):
    """A COCO dictionary: image ids 10, 20, ..., `boxes` of 10x8 pixels and more per image."""
    height, width = size
    return {
        "images": [
            {"id": 10 * (i + 1), "file_name": f"{i}.jpg", "height": height, "width": width}
            for i in range(images)
        ],
        "annotations": [
            {
                "id": 100 + i * boxes + k,
                "image_id": 10 * (i + 1),
                "category_id": classes[k % len(classes)],
                "bbox": [2.5 + k, 3.25, 10.0 + i, 8.0],
                "area": 60.0,
                "iscrowd": 0,
            }
            for i in range(images)
            for k in range(boxes)
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in classes],
    }


def write(folder, data, images=True):
    """Write a COCO folder: annotations.json and a noise image for each listed file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "annotations.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    if images:
        rng = np.random.default_rng(0)
        for image in data["images"]:
            size = (image.get("height") or 48, image.get("width") or 64, 3)
            (folder / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / image["file_name"]), rng.integers(0, 255, size, np.uint8))
    return path
