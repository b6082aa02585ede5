"""Complete a COCO file in which ids, sizes, boxes, areas or iscrowd are missing."""

import math
from pathlib import Path
from typing import Any

import msgspec

from fcos_recipe.data.coco_json import MOST_BYTES, is_id, number
from fcos_recipe.data.image_files import image_size
from fcos_recipe.datasets.convert.common import Bad, Converted, as_number
from fcos_recipe.datasets.locate import LOOK_AT, image_folder
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_bytes


def from_coco(source: Path, images: Path | None) -> Converted:
    """Add what a COCO file lacks: integer ids, image sizes, boxes (from polygons), area, iscrowd.

    All other fields are kept. Messages name entries by section and position.

    Args:
        source: the COCO file.
        images: the image folder; None: the folder near `source` that holds the images.

    Raises:
        UserError: the file is not JSON, or lacks one of the three sections.
    """
    try:
        data = msgspec.json.decode(read_bytes(source, MOST_BYTES))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{source}: not a complete JSON file ({error})") from None
    sections = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(
        isinstance(data.get(key), list) and all(isinstance(e, dict) for e in data[key])
        for key in sections
    ):
        raise UserError(f"{source}: images, annotations and categories must be lists of objects")
    names = [str(image.get("file_name")) for image in data["images"]]
    root = images or Path(image_folder(str(source), names[:LOOK_AT]) or source.parent)
    found = Converted(root, [str(c.get("name")) for c in data["categories"]])
    account = found.account
    account.seen["images"] = len(data["images"])
    account.seen["boxes"] = len(data["annotations"])
    ids = {key: _renumber(data[key], key, found) for key in sections}
    by_id = {}
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
        if not all(isinstance(image.get(k), int) and image[k] > 0 for k in ("height", "width")):
            size = image_size(root / image["file_name"])
            if size is None:
                name = entry["file_name"]
                text = f"it has no size, and {name} can't be read"
                found.refuse(f"{source}: images[{n}]", text, "images", reason="of unknown size")
                continue
            entry |= {"height": size[0], "width": size[1]}
            found.said["image sizes were missing and are read from the files"] += 1
        by_id[_key(image.get("id"))] = entry
        found.images.append(entry)
    classes = {_key(c.get("id")): k for c, k in zip(data["categories"], ids["categories"])}
    if len(classes) < len(data["categories"]):
        raise UserError(f"{source}: categories: an id occurs twice; give each class its own")
    for n, annotation in enumerate(data["annotations"]):
        try:
            entry = _box(annotation, by_id, classes, found)
        except Bad as error:
            found.refuse(f"{source}: annotations[{n}]", error)
            continue
        found.annotations.append({**entry, "id": ids["annotations"][n]})
    categories = [{**c, "id": k} for c, k in zip(data["categories"], ids["categories"])]
    found.other = {**data, "categories": categories}
    return found


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
    annotation: dict[str, Any], images: dict[str, dict], classes: dict[str, int], found: Converted
) -> dict[str, Any]:
    image = images.get(_key(annotation.get("image_id")))
    if image is None:
        raise Bad(f"image_id {annotation.get('image_id')!r}: no such image", "of unknown images")
    if (label := classes.get(_key(annotation.get("category_id")))) is None:
        raise Bad(
            f"category_id {annotation.get('category_id')!r}: no such category", "of unknown classes"
        )
    box = annotation.get("bbox")
    polygons = annotation.get("segmentation")
    if not box and isinstance(polygons, list) and polygons:
        try:
            xs, ys = ([float(v) for p in polygons for v in p[k::2]] for k in (0, 1))
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        except (TypeError, ValueError):
            raise Bad("segmentation: not polygons") from None
        found.said["boxes were missing and are now the bounds of their polygons"] += 1
    if not isinstance(box, list) or len(box) != 4:
        raise Bad("bbox: not four numbers")
    box = [as_number(v) for v in box]
    if not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        raise Bad(f"bbox {box}: its width and height must be positive", "without width or height")
    entry = {**annotation, "image_id": image["id"], "category_id": label, "bbox": box}
    if entry.get("area") is None:
        entry["area"] = box[2] * box[3]
        found.said["areas were missing and are now width x height"] += 1
    entry["iscrowd"] = int(bool(entry.get("iscrowd")))
    return entry
