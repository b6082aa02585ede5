"""Complete a COCO file that lacks ids, sizes, boxes, areas, iscrowd or usable file names."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fcos_recipe.data import coco_json
from fcos_recipe.data.coco_json import is_id, number
from fcos_recipe.data.image_files import image_size, is_image
from fcos_recipe.data.index import HUGE
from fcos_recipe.datasets.box_forms import are_corners, bounds
from fcos_recipe.datasets.convert.common import MISSING, Bad, Converted, as_number
from fcos_recipe.datasets.find_images import resolve
from fcos_recipe.errors import UserError

DIFFERENT = (
    "image sizes differ from those of the files, which are used; if a tool ignored the EXIF "
    "rotation of images, boxes are wrong: see fcos dataset browse"
)


class _Annotation(msgspec.Struct, gc=False):
    bbox: list[float] | None = None
    area: float | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _File(msgspec.Struct):
    annotations: list[_Annotation] | None = None


def needs_repair(source: Path) -> bool:
    """Whether `from_coco` would change boxes: they are corners, or only masks are there."""
    try:
        rows = msgspec.json.decode(coco_json.mapped(source), type=_File).annotations or []
    except (ValueError, RecursionError):  # it has other faults, which training's reader names
        return False
    if any(not row.bbox and row.segmentation[:1] in (b"[", b"{") for row in rows):
        return any(not row.bbox and bounds(msgspec.json.decode(row.segmentation)) for row in rows)
    boxes = [row.bbox if row.bbox and len(row.bbox) == 4 else [math.nan] * 4 for row in rows]
    return are_corners(np.array(boxes).reshape(-1, 4), coco_json.areas(rows))


def from_coco(
    source: Path, images: Path | None, split: str = "", folder: Path | None = None
) -> Converted:  # fmt: skip
    """Add what a COCO file lacks: integer ids, image sizes, boxes (from masks), area, iscrowd.

    File names become those under which training finds the images, and boxes become x, y, width,
    height if the areas show that they are corners. All other fields are kept. Messages name entries
    by section and position.

    Args:
        source: the COCO file.
        images: the image folder; None: the folder near `source` that holds the images.
        split: of the file, if it is known; folders of other splits are not searched.
        folder: the data set's folder, if it is known; it is searched as well.

    Raises:
        UserError: the file is not JSON, lacks one of the three sections, or none of its images was
            found.
    """
    with coco_json.explained(source):
        content = coco_json.mapped(source)
        data = msgspec.json.decode(content)
    sections = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(
        isinstance(data.get(key), list) and all(isinstance(e, dict) for e in data[key])
        for key in sections
    ):
        raise UserError(f"{source}: images, annotations and categories must be lists of objects")
    coco_json.refuse_repeated(source, content)
    names = [name if isinstance(name := image.get("file_name"), str) else ""
             for image in data["images"]]  # fmt: skip
    images_of = resolve(source, names, images, folder, split)
    if images_of.folder is None and names:
        raise UserError(f"{source}: {images_of.why_not(images or source.parent)}")
    found = Converted(Path(images_of.folder or source.parent),
                      [str(c.get("name")) for c in data["categories"]])  # fmt: skip
    found.said.update(images_of.said)
    corners = are_corners(*_boxes(data["annotations"]))
    account = found.account
    account.seen["images"] = len(data["images"])
    account.seen["boxes"] = len(data["annotations"])
    ids = {key: _renumber(data[key], key, found) for key in sections}
    by_id: dict[Any, dict[str, Any]] = {}
    for n, image in enumerate(data["images"]):
        if _key(image.get("id")) in by_id:
            place, text = f"{source}: images[{n}].id", f"{image.get('id')!r} occurs twice"
            found.refuse(place, text, "images", reason="with an id that occurs twice")
            continue
        entry = {**image, "id": ids["images"][n]}
        if not isinstance(image.get("file_name"), str):
            place = f"{source}: images[{n}].file_name"
            found.refuse(place, "missing", "images", reason="without a file name")
            continue
        name = images_of.names[n]
        if name is None:
            text = f"{image['file_name']}: not found"
            if several := images_of.unclear.get(image["file_name"]):
                text = f"{image['file_name']}: could be {' or '.join(map(str, several[:2]))}"
            found.refuse(f"{source}: images[{n}].file_name", text, "images", reason=MISSING)
            continue
        entry["file_name"] = name
        size = image_size(found.root / name)
        if size is None:
            found.refuse(
                f"{source}: images[{n}]", f"{name}: not an image", "images", reason=MISSING
            )
            continue
        given = [image.get(key) for key in ("height", "width")]
        if given != list(size):
            known = all(isinstance(v, int) and v > 0 for v in given)
            found.said[DIFFERENT if known else "image sizes were missing and are read"] += 1
        entry |= {"height": size[0], "width": size[1]}
        by_id[_key(image.get("id"))] = entry
        found.images.append(entry)
    listed = [found.root / name for name in images_of.names if name]
    folders = {file.parent for file in listed if file.parent.is_dir()}
    there = [file for folder in folders for file in folder.iterdir() if is_image(file)]
    found.unused(there, listed, "in the folder of the images, but not in the file")
    classes = {_key(c.get("id")): k for c, k in zip(data["categories"], ids["categories"])}
    if len(classes) < len(data["categories"]):
        raise UserError(f"{source}: categories: an id occurs twice; give each class its own")
    refused = {_key(image.get("id")) for image in data["images"]} - set(by_id)
    for n, annotation in enumerate(data["annotations"]):
        if _key(annotation.get("image_id")) in refused:
            account.leave_out("boxes", "of images that are left out")
            continue
        try:
            entry = _box(annotation, by_id, classes, found, corners)
        except Bad as error:
            found.refuse(f"{source}: annotations[{n}]", error)
            continue
        found.annotations.append({**entry, "id": ids["annotations"][n]})
    categories = [{**c, "id": k} for c, k in zip(data["categories"], ids["categories"])]
    found.other = {**data, "categories": categories}
    return found


def _boxes(annotations: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """float64 [M, 4] and [M]: boxes and areas, NaN where they are missing or no numbers."""

    def box(values: Any) -> list[float]:
        good = isinstance(values, list) and len(values) == 4 and all(map(_is_number, values))
        return values if good else [math.nan] * 4

    boxes = [box(a.get("bbox")) for a in annotations]
    areas = [a["area"] if _is_area(a.get("area")) else math.nan for a in annotations]
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(areas, np.float64)


def _is_number(value: Any, most: float = HUGE) -> bool:
    """Whether a value is a number whose magnitude is at most `most`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= most


def _is_area(value: Any) -> bool:
    return _is_number(value, HUGE**2) and value > 0


def _key(value: Any) -> Any:
    """What an id is known by: its number, or its text where it has none."""
    return number(value) if is_id(value) else str(value)


def _renumber(entries: list[dict[str, Any]], section: str, found: Converted) -> list[int]:
    """The ids of a section if they are distinct integers, otherwise 1, 2, ..."""
    ids = [_key(entry.get("id")) for entry in entries]
    if all(isinstance(i, int) for i in ids) and len(set(ids)) == len(ids):
        return ids
    found.said[f"ids of {section} were missing, not integers, or repeated; now from 1"] += len(ids)
    return list(range(1, len(entries) + 1))


def _box(
    annotation: dict[str, Any],
    images: dict[str, dict],
    classes: dict[str, int],
    found: Converted,
    corners: bool,
) -> dict[str, Any]:
    image = images.get(_key(annotation.get("image_id")))
    if image is None:
        raise Bad(f"image_id {annotation.get('image_id')!r}: no such image", "of unknown images")
    if (label := classes.get(_key(annotation.get("category_id")))) is None:
        raise Bad(
            f"category_id {annotation.get('category_id')!r}: no such category", "of unknown classes"
        )
    box = annotation.get("bbox")
    if not box and annotation.get("segmentation"):
        box = bounds(annotation["segmentation"])
        if box is None:
            raise Bad("segmentation: neither polygons nor a mask", "without a readable box")
        found.said["boxes were missing and are now the bounds of their polygons or masks"] += 1
        corners = False
    if not isinstance(box, list) or len(box) != 4:
        raise Bad("bbox: not four numbers")
    box = [as_number(v) for v in box]
    if corners:
        box[2:] = [box[2] - box[0], box[3] - box[1]]
        found.said["boxes were corners x1, y1, x2, y2, as their areas show; now x, y, w, h"] += 1
    if not all(map(_is_number, box)) or min(box[2:]) <= 0:
        raise Bad(f"bbox {box}: its width and height must be positive", "without width or height")
    entry = {**annotation, "image_id": image["id"], "category_id": label, "bbox": box}
    area = entry.get("area")
    if not _is_area(area):
        entry["area"] = box[2] * box[3]
        what = "missing" if area is None else "no positive numbers in the range of areas"
        found.said[f"areas were {what} and are now width x height"] += 1
    entry["iscrowd"] = int(bool(entry.get("iscrowd")))
    return entry
