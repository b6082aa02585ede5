"""A small COCO-format detection data set of drawn shapes, for the demo and for tests.

Four classes on textured backgrounds. Many objects are small by COCO's definition, many are partly
covered by another, and some images have none. Only the outline tells the class: colour, size, angle
and texture come from the same distributions for all.
"""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from fcos_recipe.errors import UserError
from fcos_recipe.files.atomic import draft_folder
from fcos_recipe.files.reading import read_bytes, read_json

CLASSES = ["circle", "square", "triangle", "star"]
MANIFEST = "shapes.json"
_VERSION = 3  # of the drawing code; a data set of another version is redrawn


def make_shapes(
    root: str | Path,
    train: int = 1000,
    val: int = 100,
    seed: int = 0,
    size: tuple[int, int] = (160, 224),
) -> bool:
    """Draw the data set, unless `root` already holds exactly this one.

    Files: `{train,val}/*.jpg` and `annotations/instances_{train,val}.json` under `root`. Boxes and
    areas are those of the visible pixels. The same arguments and OpenCV version give the same
    bytes.

    Args:
        root: output directory; a data set drawn earlier with other arguments is replaced.
        train: images for training.
        val: images for validation, drawn from another seed.
        seed: non-negative.
        size: height and width of the images in pixels.

    Returns:
        True if the data set was drawn, False if it already existed.

    Raises:
        UserError: `root` holds other files.
    """
    root = Path(root)
    wanted = {"version": _VERSION, "train": train, "val": val, "seed": seed, "size": list(size)}
    manifest = root / MANIFEST
    if manifest.is_file():
        stored = read_json(manifest)
        if stored == {**wanted, "sha256": _digest(root)}:
            return False
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: holds other files; choose an empty or a new directory")

    root.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(root) as part:
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            _write_split(part, split, count, np.random.default_rng([seed, number]), size)
        (part / MANIFEST).write_text(json.dumps({**wanted, "sha256": _digest(part)}))
    return True


def _digest(root: Path) -> str:
    """One SHA-256 of all images and annotations; other files, such as caches, are ignored."""
    total = hashlib.sha256()
    for path in sorted([*root.glob("*/*.jpg"), *root.glob("annotations/*.json")]):
        total.update(str(path.relative_to(root)).encode() + read_bytes(path))
    return total.hexdigest()


def _write_split(
    root: Path, split: str, count: int, rng: np.random.Generator, size: tuple[int, int]
) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, count + 1):
        image, objects = draw_scene(rng, size)
        name = f"{image_id:06d}.jpg"
        cv2.imwrite(str(root / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
        for label, box, area in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content), encoding="utf-8")


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[np.ndarray, list[tuple[int, list[int], int]]]:
    """One image.

    Returns:
        image uint8 [H, W, 3] (BGR, as OpenCV writes it); a list of (class index, box as
        x, y, w, h in pixels, visible area in pixels).
    """
    height, width = size
    image = _texture(rng, size, contrast=30)
    owner = np.full(size, -1, np.int16)  # index of the object that shows at each pixel
    labels: list = []
    outlines: list = []
    full: list = []
    for _ in range(0 if rng.random() < 0.08 else rng.integers(2, 8)):
        for _ in range(20):  # attempts to find a place that hides no other object too much
            small = rng.random() < 0.2
            side = rng.uniform(20, 34) if small else rng.uniform(44, 0.55 * height)
            centre = rng.uniform([side / 2] * 2, [width - side / 2, height - side / 2])
            if outlines and rng.random() < 0.05:  # next to an earlier one, so that they overlap
                other = outlines[rng.integers(len(outlines))]
                reach = (side + np.ptp(other[:, 0])) / 2 * rng.uniform(0.5, 0.8)
                angle = rng.uniform(0, 2 * np.pi)
                centre = other.mean(0) + reach * np.array([np.cos(angle), np.sin(angle)])
            label = int(rng.integers(len(CLASSES)))
            outline = centre + side / 2 * _outline(label, rng.uniform(-0.3, 0.3))
            if (outline < 0).any() or (outline > [width - 1, height - 1]).any():
                continue
            mask = cv2.fillPoly(np.zeros(size, np.uint8), [outline.round().astype(np.int32)], 1)
            after = np.where(mask > 0, np.int16(len(labels)), owner)
            shown = np.bincount(after.ravel() + 1, minlength=len(labels) + 1)[1 : len(labels) + 1]
            if all(now >= 0.8 * whole for now, whole in zip(shown, full, strict=True)):
                break
        else:
            continue
        owner = after
        labels.append(label)
        outlines.append(outline)
        full.append(int(mask.sum()))
        _paint(rng, image, mask, outline)
    image += rng.uniform(2, 8) * rng.standard_normal(image.shape, np.float32)
    objects = []
    for k, label in enumerate(labels):
        mask = (owner == k).astype(np.uint8)
        objects.append((label, list(cv2.boundingRect(mask)), int(mask.sum())))
    return image.clip(0, 255).astype(np.uint8), objects


def _outline(label: int, angle: float) -> np.ndarray:
    """Corners of a shape in the unit circle, float [n, 2], rotated by `angle` (radians)."""
    name = CLASSES[label]
    corners = {"circle": 40, "square": 4, "triangle": 3, "star": 10}[name]
    start = {"circle": 0, "square": np.pi / 4, "triangle": -np.pi / 2, "star": -np.pi / 2}[name]
    radius = np.ones(corners)
    if name == "star":
        radius[1::2] = 0.45
    turn = start + angle + np.arange(corners) * 2 * np.pi / corners
    return radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def _texture(rng: np.random.Generator, size: tuple[int, int], contrast: float) -> np.ndarray:
    """Coloured noise of several grain sizes and sometimes stripes, float32 [H, W, 3]."""
    height, width = size
    picture = np.full((height, width, 3), rng.uniform(60, 195, 3), np.float32)
    for grain in (64, 16, 5):
        amplitude = contrast * rng.uniform(0, 0.5)
        grid = rng.normal(0, amplitude, (height // grain + 2, width // grain + 2, 3))
        picture += cv2.resize(grid.astype(np.float32), (width, height))
    if rng.random() < 0.5:
        angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
        along = np.cos(angle) * np.arange(width) + np.sin(angle) * np.arange(height)[:, None]
        wave = np.sin(along * 2 * np.pi / period).astype(np.float32)
        picture += wave[..., None] * rng.uniform(-0.5, 0.5, 3).astype(np.float32) * contrast
    return picture


def _paint(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, outline: np.ndarray
) -> None:
    """Fill the shape with a texture whose colour contrasts with the background."""
    x, y, w, h = cv2.boundingRect(mask)
    part = np.s_[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2]
    patch, inside = image[part], mask[part] > 0
    below = patch[inside].mean(0)
    fill = _texture(rng, inside.shape, contrast=15)
    gap = np.linalg.norm(fill[inside].mean(0) - below)
    if gap < 110:  # too similar: make it darker on a light background, lighter on a dark one
        fill += (110 - gap) * (1 if below.mean() < 128 else -1)
    soft = cv2.GaussianBlur(inside.astype(np.float32), (3, 3), 0)[..., None]  # smooth edge
    patch += (fill - patch) * soft
    if rng.random() < 0.3:
        points = [outline.round().astype(np.int32)]
        cv2.polylines(image, points, True, rng.uniform(0, 255, 3).tolist(), 1, cv2.LINE_AA)
