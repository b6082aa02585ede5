"""Generated data sets for the benchmark with COCO's image sizes, box counts and box sizes."""

import json
import math
import os
from pathlib import Path

import numpy as np

TRAIN2017 = (118_287, 860_001)  # number of images with boxes, and of boxes
BOXES_PER_IMAGE = TRAIN2017[1] / TRAIN2017[0]

# Width, height and weight of the most frequent sizes among 366 images of COCO 2017; all other
# images get a long side of 640 and a random short side.
_SIZES = [
    (640, 480, 0.22), (640, 427, 0.26), (480, 640, 0.09), (427, 640, 0.065), (500, 375, 0.045),
    (500, 333, 0.03), (375, 500, 0.02), (333, 500, 0.01), (640, 360, 0.02),
]  # fmt: skip


def draw_sizes(rng: np.random.Generator, count: int) -> np.ndarray:
    """int64 [count, 2]: widths and heights in pixels, distributed as in COCO."""
    weights = np.array([weight for *_, weight in _SIZES])
    pick = rng.choice(len(_SIZES) + 1, count, p=[*weights, 1 - weights.sum()])
    short = rng.integers(360, 641, count)
    portrait = rng.random(count) < 0.28
    free = np.where(
        portrait[:, None],
        np.stack([short, np.full(count, 640)], 1),
        np.stack([np.full(count, 640), short], 1),
    )
    table = np.array([size[:2] for size in _SIZES] + [(0, 0)])
    return np.where(pick[:, None] < len(_SIZES), table[pick], free)


def draw_boxes(rng: np.random.Generator, width: int, height: int, count: int) -> np.ndarray:
    """float64 [count, 4], x, y, w, h in pixels; sides distributed as in COCO (median 53)."""
    side = 53 * np.exp(1.08 * rng.standard_normal(count))
    stretch = np.exp(0.25 * rng.standard_normal(count))
    w = np.clip(side * stretch, 4, width - 2)
    h = np.clip(side / stretch, 4, height - 2)
    x, y = rng.random(count) * (width - w), rng.random(count) * (height - h)
    return np.stack([x, y, w, h], 1).round(2)


def draw_counts(rng: np.random.Generator, images: int, mean: float) -> np.ndarray:
    """int64 [images]: boxes per image, at least 1, `mean` on average, skewed as in COCO."""
    if mean <= 1:
        return np.ones(images, np.int64)
    return np.minimum(rng.geometric(1 / mean, images), 93)


def draw_picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3] with detail at all scales, so it compresses like a photo."""
    import cv2

    picture = np.full((height, width, 3), 128, np.float32)
    for cell, strength in ((160, 60), (40, 35), (10, 20), (3, 12), (1, 6)):
        noise = rng.standard_normal((height // cell + 2, width // cell + 2, 3), np.float32)
        picture += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return picture.clip(0, 255).astype(np.uint8)


def make_images(
    root: Path,
    images: int,
    boxes: float | int = BOXES_PER_IMAGE,
    exact: bool = False,
    size: tuple[int, int] | None = None,
    seed: int = 0,
) -> None:
    """Write a data set in COCO's layout: `train2017/` and `annotations/instances_train2017.json`.

    Args:
        root: output folder, created if missing.
        images: number of images.
        boxes: number of boxes per image.
        exact: exactly `boxes` on every image; otherwise on average.
        size: (width, height) of all images in pixels; default: distributed as in COCO.
        seed: of the random generator.
    """
    import cv2

    rng = np.random.default_rng(seed)
    folder = root / "train2017"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = draw_sizes(rng, images) if size is None else np.tile(size, (images, 1))
    counts = np.full(images, boxes, np.int64) if exact else draw_counts(rng, images, boxes)
    records: list[dict] = []
    annotations: list[dict] = []
    for i, ((width, height), count) in enumerate(zip(sizes.tolist(), counts.tolist()), 1):
        name = f"{i:012d}.jpg"
        picture = draw_picture(rng, width, height)
        cv2.imwrite(str(folder / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
        records.append({"id": i, "file_name": name, "width": width, "height": height})
        for box in draw_boxes(rng, width, height, count).tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": i, "bbox": box, "iscrowd": 0,
                    "category_id": int(rng.integers(1, 81)), "area": box[2] * box[3],
                }
            )  # fmt: skip
    write_annotations(root, records, annotations)


def write_annotations(root: Path, images: list[dict], annotations: list[dict]) -> None:
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
    path = root / "annotations" / "instances_train2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def with_boxes(source: Path, target: Path, count: int, seed: int = 0) -> None:
    """Make a data set of the images of another one with `count` boxes on each.

    Args:
        source: data set in COCO's layout.
        target: output folder; its `train2017` is a link to the source's.
        count: boxes per image.
        seed: of the random boxes.
    """
    images = json.loads((source / "annotations" / "instances_train2017.json").read_text())["images"]
    rng = np.random.default_rng(seed)
    annotations: list[dict] = []
    for image in images:
        for box in draw_boxes(rng, image["width"], image["height"], count).tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image["id"], "bbox": box,
                    "iscrowd": 0, "area": box[2] * box[3],
                    "category_id": int(rng.integers(1, 81)),
                }
            )  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    (target / "train2017").symlink_to((source / "train2017").resolve())
    write_annotations(target, images, annotations)


def cache_folder() -> Path:
    """Folder for data that takes long to make, kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fcos_recipe" / "benchmark"


def train2017(images: int = TRAIN2017[0], boxes: int = TRAIN2017[1]) -> Path:
    """A data set as large as COCO's train2017, made once and kept in the cache (450 MB).

    The annotations include polygons, so the file is as large as the real one; the image files are
    links to a few real images.

    Returns:
        the root of the data set.
    """
    root = cache_folder() / f"train2017-{images}-{boxes}"
    if (root / "complete").exists():
        return root
    few = 32
    make_images(root / "few", few, seed=5)
    folder = root / "train2017"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(6)
    pictures = json.loads((root / "few/annotations/instances_train2017.json").read_text())["images"]
    counts = rng.multinomial(boxes - images, rng.dirichlet(np.full(images, 0.7))) + 1
    polygons = [_polygon(rng) for _ in range(2000)]
    (root / "annotations").mkdir(exist_ok=True)
    records = []
    for i, picture in zip(range(1, images + 1), _cycle(pictures)):
        name = f"{i:012d}.jpg"
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(f"../few/train2017/{picture['file_name']}")
        records.append(
            {
                **picture, "id": i, "file_name": name, "license": 1 + i % 8,
                "coco_url": f"http://images.cocodataset.org/train2017/{name}",
                "date_captured": "2013-11-14 17:02:52",
            }
        )  # fmt: skip
    with open(root / "annotations" / "instances_train2017.json", "w") as file:
        file.write('{"images": ' + json.dumps(records) + ', "annotations": [')
        number = 0
        for image, count in zip(records, counts.tolist()):
            drawn = draw_boxes(rng, image["width"], image["height"], count).tolist()
            classes = rng.integers(1, 81, count).tolist()
            rows = []
            for box, category in zip(drawn, classes):
                number += 1
                rows.append(
                    f'{{"segmentation": [[{polygons[number % len(polygons)]}]], '
                    f'"area": {box[2] * box[3]:.4f}, "iscrowd": 0, "image_id": {image["id"]}, '
                    f'"bbox": {box}, "category_id": {category}, "id": {number}}}'
                )
            file.write((", " if image["id"] > 1 else "") + ", ".join(rows))
        categories = [{"supercategory": "any", "id": k, "name": f"class {k}"} for k in range(1, 81)]
        file.write('], "categories": ' + json.dumps(categories) + "}")
    (root / "complete").touch()
    return root


def _polygon(rng: np.random.Generator) -> str:
    """JSON numbers of a polygon with 8 to 27 corners."""
    corners = int(rng.integers(8, 28))
    angle = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    x, y = 300 + 99 * np.cos(angle), 200 + 99 * np.sin(angle)
    return ", ".join(f"{value:.2f}" for point in zip(x, y) for value in point)


def _cycle(items: list):
    while True:
        yield from items
