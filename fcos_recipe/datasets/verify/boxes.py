"""Checks of boxes, areas and ids of the valid annotations of one file, as arrays.

The argument `files` is called as `files(kind, mask, text)`: it adds a finding with `text(row)` for
every row of the mask.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fcos_recipe.data.coco_json import is_id, number
from fcos_recipe.data.index import EPSILON, HUGE
from fcos_recipe.datasets.box_forms import are_corners
from fcos_recipe.datasets.verify.findings import Findings, by

LARGE = 1 << 20  # pixels; larger coordinates are "huge" if the image's size is unknown
CORNERS = 10  # fewest boxes needed to tell corners from sizes
OUTSIDE = 1.0  # tolerance in pixels, for tools that count the last pixel
LEAST_SHARE = 0.1  # of its box that an object fills


@dataclass
class Columns:
    """The valid annotations as arrays with M rows."""

    at: np.ndarray  # int64 [M], position in the file
    id: list  # as in the file; None: missing
    image: np.ndarray  # int64 [M], row among the valid images; -1: none
    category: np.ndarray  # int64 [M], row among the valid categories; -1: none
    xywh: np.ndarray  # float64 [M, 4], pixels; NaN: no bbox
    area: np.ndarray  # float64 [M], square pixels; NaN: not given
    crowd: np.ndarray  # bool [M]
    ignore: np.ndarray  # bool [M]
    good: np.ndarray  # bool [M], whether training learns it (crowds need `load_crowd`)


def check_annotation_ids(rows: Columns, files) -> None:
    """Find ids that are missing or occur twice; "7" equals 7."""
    missing = np.fromiter((i is None for i in rows.id), bool, len(rows.id))
    files("annotation_id_missing", missing, lambda i: "")
    ids = [number(i) if is_id(i) else i for i in rows.id]
    if len(set(ids)) == len(ids):
        return
    first: dict[Any, int] = {}
    again = [id is not None and first.setdefault(id, i) != i for i, id in enumerate(ids)]
    files("annotation_id_twice", np.array(again, bool), lambda i: "")


def check_boxes(rows: Columns, size: np.ndarray, files) -> np.ndarray:
    """Find invalid boxes; each gets at most one kind of error, the first in this order.

    Returns:
        float64 [M, 2]: width and height of each box's image, infinite if unknown.
    """
    xywh = rows.xywh
    size = np.concatenate([size, np.zeros((1, 2))])  # row -1: no such image
    with np.errstate(invalid="ignore", over="ignore"):
        start, end = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
        known = (rows.image >= 0) & (size[rows.image] > 0).all(axis=1)
        limit = size[rows.image][:, ::-1].astype(np.float64)  # width, height
        limit[~known] = np.inf
        furthest = np.where(known, HUGE, LARGE)
        errors = {
            "box_missing": np.isnan(xywh).any(axis=1),
            "box_not_finite": ~np.isfinite(xywh).all(axis=1),
            "box_negative": (xywh[:, 2:] < 0).any(axis=1),
            "box_empty": ~(end - start > EPSILON).all(axis=1),
            "box_huge": (abs(xywh).max(axis=1) >= furthest) | (xywh[:, 2:] > 2 * limit).any(axis=1),
            "box_outside": (start >= limit).any(axis=1) | (end <= 0).any(axis=1),
        }
        warnings = {
            "box_partly_outside": (start < -OUTSIDE).any(axis=1)
            | (end > limit + OUTSIDE).any(axis=1),
            "box_tiny": (xywh[:, 2:] < 1).any(axis=1),
        }

    def text(i: int) -> str:
        where = f" in {by(limit[i])}" if known[i] else ""
        return f"bbox [{', '.join(f'{v:g}' for v in xywh[i])}]{where}"

    for kind, mask in {**errors, **warnings}.items():
        mask = mask & rows.good
        files(kind, mask, (lambda i: "") if kind == "box_missing" else text)
        if kind in errors:
            rows.good &= ~mask
    return limit


def check_format(rows: Columns, limit: np.ndarray, found: Findings) -> None:
    """Find boxes given as image fractions or corners instead of x, y, width, height in pixels."""
    if are_corners(rows.xywh, rows.area):
        found.add("box_format", text="read as corners x1, y1, x2, y2 they have the areas stated "
                  "beside them; --fix and `convert` change them")  # fmt: skip
        return
    known = np.isfinite(limit).all(axis=1) & np.isfinite(rows.xywh).all(axis=1)
    box, limit = rows.xywh[known], limit[known]
    if not len(box):
        return
    if 0 <= box.min() and box.max() <= 1 and limit.min() > 1:
        found.add("box_format", text="all values are from 0 to 1: fractions of the image size?")
    with np.errstate(over="ignore"):
        end = box[:, :2] + box[:, 2:]
    beyond = (end > limit + OUTSIDE).any(axis=1)
    corners = (box[:, 2:] > box[:, :2]).all(axis=1) & (box[:, 2:] <= limit + OUTSIDE).all(axis=1)
    if len(box) >= CORNERS and beyond.mean() > 0.2 and corners.mean() > 0.99:
        share = f"{beyond.sum()} of {len(box)} boxes extend beyond their image"
        found.add("box_format", text=f"{share}, but none does if read as corners x1, y1, x2, y2")


def check_areas(rows: Columns, entries: list, files) -> None:
    """Find areas that are not positive, exceed the box's, or are too small for any usual shape.

    Areas of masks are often kept where the masks are left out. Only an area below `LEAST_SHARE`
    of its box is doubtful then.
    """
    given = ~np.isnan(rows.area) & rows.good
    with np.errstate(invalid="ignore", over="ignore"):
        box = rows.xywh[:, 2:].prod(axis=1)
        nothing = given & ~(rows.area > 0)
        larger = rows.area > 1.01 * box + 1
        smaller = rows.area < LEAST_SHARE * box - 1
    masks = (b"null", b"[]", b"[[]]")
    for i in np.flatnonzero(given & smaller).tolist():
        smaller[i] = bytes(entries[i].segmentation) in masks
    files("area_not_positive", nothing, lambda i: f"area {rows.area[i]:g}, bbox {box[i]:g}")
    differs = given & ~nothing & (larger | smaller)
    files("area_differs", differs, lambda i: f"area {rows.area[i]:g}, bbox {box[i]:g}")
    rows.good &= ~nothing


def check_duplicates(rows: Columns, images: int, categories: int, files) -> None:
    """Find boxes that repeat another one, exactly or nearly, in any category."""
    use = np.flatnonzero(rows.good & (rows.image >= 0) & (rows.category >= 0))
    keys = [rows.at[use], rows.category[use], *rows.xywh[use].T, rows.image[use]]
    order = use[np.lexsort(keys)]
    box, image, category = rows.xywh[order], rows.image[order], rows.category[order]
    same = (box[1:] == box[:-1]).all(axis=1) & (image[1:] == image[:-1])
    twice, other = np.zeros(len(rows.at), bool), np.zeros(len(rows.at), bool)
    equal = category[1:] == category[:-1]
    twice[order[1:][same & equal]] = True
    other[order[1:][same & ~equal]] = True
    before = dict(zip(order[1:][same].tolist(), order[:-1][same].tolist()))

    def text(i: int) -> str:
        return f"also annotation {rows.id[before[i]]} (annotations[{rows.at[before[i]]}])"

    files("box_twice", twice, text)
    files("box_of_two_classes", other, text)
    near = np.zeros(len(rows.at), bool)
    use = use[~twice[use]]
    near[use[_near_duplicates(rows, use, images, categories)]] = True
    files("near_duplicate", near, lambda i: "")


def _near_duplicates(rows: Columns, use: np.ndarray, images: int, categories: int) -> np.ndarray:
    """Positions in `use` of hotcoco's near duplicates, int64 [n]; empty without hotcoco."""
    try:
        from hotcoco import COCO
    except ImportError:  # no wheel for this platform
        return np.zeros(0, np.int64)
    if not len(use):
        return np.zeros(0, np.int64)
    coco = COCO.from_arrays(
        [{"id": i, "file_name": "", "width": 1, "height": 1} for i in range(images)],
        [{"id": i, "name": str(i)} for i in range(categories)],
        rows.image[use], rows.category[use], rows.xywh[use],
        ids=np.arange(len(use)), iscrowd=rows.crowd[use].astype(np.int64),
    )  # fmt: skip
    found = [w["affected_ids"] for w in coco.healthcheck()["warnings"]
             if w["code"] == "near_duplicate"]  # fmt: skip
    return np.array(sorted(found[0]) if found else [], np.int64)
