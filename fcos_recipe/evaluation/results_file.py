"""COCO's annotation and results files as columns, typed while they are parsed."""

import json
import re
from codecs import BOM_UTF8
from pathlib import Path

import msgspec
import numpy as np

from fcos_recipe.data import coco_json
from fcos_recipe.data.index import rows_by_name
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_bytes

#: columns of detections: name -> dtype; bbox is [M, 4], x, y, w, h in pixels
COLUMNS = {"image_id": np.int64, "category_id": np.int64, "bbox": np.float64, "score": np.float64}


class _Annotations(msgspec.Struct, gc=False):
    images: list[coco_json.ImageSize]
    categories: list[coco_json.Category]
    annotations: list[coco_json.GroundTruth]


def read_annotations(
    source: str | Path | dict | list[str | Path],
) -> tuple[dict[int, dict], dict[int, str], dict[str, np.ndarray], list[str]]:
    """A COCO annotation file, or several as one, for judging.

    `area` and `iscrowd` may be missing: width x height and 0 stand in. Ids are read as by
    `coco_json.number`. Annotations of images that are not listed are left out, as pycocotools does.

    Args:
        source: the file, or its content, or a list of files: their classes are matched by name and
            get the first file's ids; an image id must not occur twice, as detections name it.

    Returns:
        images: id -> {id, width, height}; categories: id -> name, in the file's order; columns
        `image_id`, `category_id`, `iscrowd` int64 [G], `bbox` float64 [G, 4] (x, y, w, h in
        pixels), `area` float64 [G]; lines about annotation ids that pycocotools misreads.

    Raises:
        UserError: what is wrong, with file, entry and field.
    """
    if isinstance(source, list):
        return _joined(source)
    name = "annotations" if isinstance(source, dict) else str(source)
    data = _decode(source, name, _Annotations, "a COCO annotation file")
    image_id = coco_json.ids(name, "images", data.images)
    category_id = coco_json.ids(name, "categories", data.categories)
    for key, ids in (("images", image_id), ("categories", category_id)):
        if len(np.unique(ids)) < len(ids):
            raise UserError(f"{name}: {key}: two entries have the same id; give each its own")
    images = {
        i: {"id": i, "width": entry.width or 0, "height": entry.height or 0}
        for i, entry in zip(image_id.tolist(), data.images, strict=True)
    }
    categories = {
        i: str(i if entry.name is None else entry.name)
        for i, entry in zip(category_id.tolist(), data.categories, strict=True)
    }
    rows = data.annotations
    columns = {
        "image_id": coco_json.ids(name, "annotations", rows, "image_id"),
        "category_id": coco_json.ids(name, "annotations", rows, "category_id"),
        "bbox": coco_json.boxes(rows),
        "area": coco_json.areas(rows),
        "iscrowd": coco_json.flags(rows, "iscrowd", np.int64),
    }
    notes = _odd_ids(name, rows)
    listed = np.isin(columns["image_id"], image_id)
    unknown = listed & ~np.isin(columns["category_id"], category_id)
    if unknown.any():
        first = int(np.flatnonzero(unknown)[0])
        raise UserError(
            f"{name}: annotations[{first}].category_id: {columns['category_id'][first]} is not "
            "among `categories`; add it there or remove the annotation"
        )
    box = columns["bbox"]
    with np.errstate(over="ignore"):
        area = box[:, 2] * box[:, 3]
    columns["area"] = np.where(np.isnan(columns["area"]), area, columns["area"])
    return images, categories, {key: column[listed] for key, column in columns.items()}, notes


def _odd_ids(name: str, rows: list[coco_json.GroundTruth]) -> list[str]:
    """A line on annotation ids by which pycocotools goes wrong, if there are any."""
    try:
        ids = coco_json.numbers([row.id for row in rows if row.id is not None])
    except (ValueError, TypeError):  # text, with which pycocotools does not get far
        return []
    odd = [
        text
        for text, found in (
            ("the id 0, which pycocotools takes for not found", (ids == 0).any()),
            (
                "ids that occur twice, of which pycocotools knows one annotation only",
                len(np.unique(ids)) < len(ids),
            ),
        )
        if found
    ]
    if not odd:
        return []
    return [
        f"{name}: annotations with {' and '.join(odd)}: here each annotation is judged, so that "
        "pycocotools' figures may differ"
    ]


def _joined(files: list[str | Path]):
    """As `read_annotations`, of several files."""
    images, categories, first, notes = read_annotations(files[0])
    parts = [first]
    for file in files[1:]:
        more, theirs, columns, odd = read_annotations(file)
        notes += odd
        if both := sorted(images.keys() & more.keys()):
            raise UserError(
                f"{file}: images: id {both[0]} is also in an earlier one of {len(files)} files "
                f"({len(both)} such ids): detections could not tell the images apart; `fcos "
                "dataset merge` numbers them anew"
            )
        images |= more
        row = rows_by_name(
            str(file), list(theirs.values()), str(files[0]), list(categories.values())
        )
        ids = dict(zip(theirs, np.array(list(categories), np.int64)[row].tolist(), strict=True))
        renamed = [ids[i] for i in columns["category_id"].tolist()]
        parts.append({**columns, "category_id": np.array(renamed, np.int64)})
    joined = {key: np.concatenate([p[key] for p in parts]) for key in first}
    return images, categories, joined, notes


def read_results(path: str | Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """A COCO results file: a list of detections.

    Image ids written as text ("000000000139", "000000000139.jpg") are read as numbers, and a line
    says so.

    Returns:
        `COLUMNS` of its M detections; lines about what was read otherwise than it is written.

    Raises:
        UserError: not such a file, and which entry and field.
    """
    rows = _decode(
        path, str(path), list[coco_json.Detection], "a COCO results file, a list of detections"
    )
    texts = [row for row in rows if isinstance(row.image_id, str)]
    for row in texts:
        row.image_id = re.sub(r"\.\w+$", "", row.image_id)
    notes = [f"{path}: {len(texts)} image ids written as text were read as numbers"]
    columns = {
        "image_id": coco_json.ids(path, "", rows, "image_id"),
        "category_id": coco_json.ids(path, "", rows, "category_id"),
        "bbox": coco_json.boxes(rows),
        "score": np.fromiter((row.score for row in rows), np.float64, len(rows)),
    }
    return columns, notes if texts else []


def _decode(source: str | Path | dict, name: str, kind: type, wanted: str):
    try:
        if isinstance(source, dict):  # may hold NumPy's floats
            content = json.dumps(source).encode()
        else:
            content = read_bytes(source, coco_json.MOST_BYTES).removeprefix(BOM_UTF8)
            coco_json.refuse_packed(name, content[:4])
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        field = re.match(r"Object missing required field `(\w+)`", what)
        where = where.rstrip("`").lstrip(".") + (f".{field[1]}" if field else "")
        what = "missing" if field else what[0].lower() + what[1:]
        if field and field[1] == "bbox" and b'"segmentation"' in content:
            what = "missing: boxes are judged here, and results of segmentation have none"
        where = where.lstrip(".") or "content"
        raise UserError(f"{name}: {where}: {what}; want {wanted}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: not JSON: {error} (nor are NaN and Infinity)") from None
    except RecursionError:
        raise UserError(f"{name}: nested too deeply; want {wanted}") from None
