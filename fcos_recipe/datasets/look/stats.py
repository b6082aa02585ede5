"""`fcos dataset stats`: statistics of an annotation file, and how FCOS assigns its boxes.

Images are opened only if the annotations lack their size. hotcoco's COCO.stats() also counts
classes, but has no box sizes and nothing per FPN level, and parses the whole file again.
"""

import os
from typing import Any

import msgspec
import numpy as np

from fcos_recipe.data import coco_json
from fcos_recipe.data.image_files import image_size
from fcos_recipe.data.index import Index
from fcos_recipe.datasets.fpn_levels import REASONS, SIZES, Rules, positives, reasons
from fcos_recipe.datasets.locate import Source

SIZE_LIMITS = np.array([32**2, 96**2])  # areas in pixels, COCO's
SIDES = 2.0 ** np.arange(0, 12.5, 0.5)  # bins of the square root of a box's area, pixels
RATIOS = 2.0 ** np.arange(-4.25, 4.5, 0.5)  # bins of width / height; 1 is the middle of one
EXAMPLES = 10  # boxes without a location that are listed per reason


def size_class(area: np.ndarray) -> np.ndarray:
    """int64 [n]: index into `SIZES` of areas in square pixels."""
    return SIZE_LIMITS.searchsorted(area, side="right")


def image_sizes(index: Index, images: str | None) -> np.ndarray:
    """int64 [N, 2]: height and width, read from the image if not annotated; 0: unknown.

    Args:
        index: of the annotations.
        images: image directory; None: images are not read.
    """
    size = index.size.astype(np.int64)
    for row in np.flatnonzero((size <= 0).any(axis=1)) if images is not None else ():
        size[row] = image_size(os.path.join(images or "", index.file_name(row))) or 0
    return size


def statistics(source: Source, rules: Rules | None) -> dict[str, Any]:
    """All statistics of one split.

    Args:
        source: the split.
        rules: how FCOS assigns boxes; None: only what the index gives at once.

    Returns:
        a JSON-ready dict; `fcos dataset stats --help` documents its keys. Boxes marked iscrowd
        are only counted separately, unless the config trains on them.

    Raises:
        UserError: the annotation file can't be read.
    """
    index = source.index()
    use = np.ones(len(index.box), bool)
    if not source.options.get("load_crowd"):
        use = index.crowd == 0
    image = np.repeat(np.arange(len(index)), np.diff(index.box_start))[use]
    box, label = index.box[use], index.label[use]
    per_image = np.bincount(image, minlength=len(index))
    side = (box[:, 2:] - box[:, :2]).astype(np.float64)
    area, ratio = side.prod(axis=1), side[:, 0] / side[:, 1]
    kind = size_class(area)
    size = image_sizes(index, source.images)
    known = (size > 0).all(axis=1)
    empty = np.flatnonzero(per_image == 0)
    most = int(per_image.argmax()) if len(index) else 0
    result: dict[str, Any] = {
        "annotations": source.title,
        "images": {
            "count": len(index),
            "without_boxes": len(empty),
            "without_boxes_ids": index.image_id[empty].tolist(),
            "size_unknown": int((~known).sum()),
            "width_height": _sizes(size[known]),
        },
        "boxes": {
            "count": len(box),
            "crowd": int(index.crowd.sum()),
            "left_out": index.counts,
            "width": _spread(side[:, 0]),
            "height": _spread(side[:, 1]),
            "aspect_ratio": {**_spread(ratio), **_histogram(ratio, RATIOS)},
            "sqrt_area": {**_spread(np.sqrt(area)), **_histogram(np.sqrt(area), SIDES)},
            "by_size": dict(zip(SIZES, np.bincount(kind, minlength=3).tolist())),
            "by_size_of_coco_ap": _coco_sizes(source.path) if rules else None,
        },
        "boxes_per_image": {
            **_spread(per_image.astype(np.float64)),
            "most_id": int(index.image_id[most]) if len(index) else None,
            "images_with": np.bincount(per_image).tolist() if len(index) else [],
        },
    }
    why = np.full(len(box), -1)
    if rules:
        result["levels"], why = _levels(rules, index, box, image, size, known)
    result["classes"] = _classes(index, image, label, kind, why)
    return result


def _levels(
    rules: Rules, index: Index, box: np.ndarray, image: np.ndarray, size: np.ndarray,
    known: np.ndarray,
) -> tuple[dict[str, Any], np.ndarray]:  # fmt: skip
    """Shares per level, and for each box why it has no location (-1 if it has one)."""
    seen = np.flatnonzero(known[image])
    resized, shape = rules.resized(box[seen], size[image[seen]])
    counts = positives(rules.targets, resized, shape, image[seen])
    why = np.full(len(box), -1)
    why[seen] = reasons(rules.targets, resized, shape, counts)
    objects, locations = (counts > 0).sum(axis=0), counts.sum(axis=0)
    lost = [np.flatnonzero(why == i) for i in range(len(REASONS))]
    rows = [
        {
            "stride": int(stride),
            "larger_than": max(float(low), 0.0),
            "smaller_than": float(high) if np.isfinite(high) else None,
            "objects": int(objects[i]),
            "objects_share": _share(objects[i], len(seen)),
            "locations": int(locations[i]),
            "locations_share": _share(locations[i], locations.sum()),
        }
        for i, (stride, (low, high)) in enumerate(zip(rules.targets.strides, rules.targets.ranges))
    ]
    return {
        "rule": rules.text,
        "center_sampling_radius": rules.targets.radius,
        "objects": len(seen),
        "levels": rows,
        "on_several_levels": int(((counts > 0).sum(axis=1) > 1).sum()),
        "locations_per_object": _spread(counts.sum(axis=1).astype(np.float64)),
        "without_location": {
            "count": int((why >= 0).sum()),
            "share": _share((why >= 0).sum(), len(seen)),
            **{name: len(rows) for name, rows in zip(REASONS, lost)},
            "examples": [
                {
                    "reason": name,
                    "image_id": int(index.image_id[image[i]]),
                    "file_name": index.file_name(image[i]),
                    "bbox": [*box[i, :2].tolist(), *(box[i, 2:] - box[i, :2]).tolist()],
                }
                for name, rows in zip(REASONS, lost)
                for i in rows[:EXAMPLES].tolist()
            ],
        },
    }, why


def _classes(
    index: Index, image: np.ndarray, label: np.ndarray, kind: np.ndarray, why: np.ndarray
) -> list[dict[str, Any]]:
    number = len(index.class_names)

    def count(of: np.ndarray) -> np.ndarray:
        return np.bincount(of, minlength=number)

    images = count(np.unique(label.astype(np.int64) * len(index) + image) // max(len(index), 1))
    sizes = [count(label[kind == i]) for i in range(len(SIZES))]
    columns = {
        "boxes": count(label), "images": images, "crowd": count(index.label[index.crowd > 0]),
        **dict(zip(SIZES, sizes)), "without_location": count(label[why >= 0]),
    }  # fmt: skip
    return [
        {"id": category, "name": name, **{key: int(column[i]) for key, column in columns.items()}}
        for i, (category, name) in enumerate(zip(index.category_id.tolist(), index.class_names))
    ]


class _Annotations(msgspec.Struct, gc=False):
    annotations: list[coco_json.Annotation] | None = None


def _coco_sizes(path: str) -> dict[str, int]:
    """Boxes per size by the field `area`, which decides AP small, medium and large.

    In COCO this is the area of the mask, which is less than the box's: 41 % of COCO is small by it.
    """
    boxes = msgspec.json.decode(coco_json.mapped(path), type=_Annotations).annotations or []
    area = [
        a.bbox[2] * a.bbox[3] if a.area is None else a.area
        for a in boxes
        if a.bbox and not a.iscrowd and not a.ignore
    ]
    kinds = size_class(np.array(area, np.float64))
    return dict(zip(SIZES, np.bincount(kinds, minlength=3).tolist()))


def _share(part: int, whole: int) -> float:
    return round(float(part) / max(int(whole), 1), 6)


def _spread(values: np.ndarray) -> dict[str, float | None]:
    names = ("min", "p5", "median", "p95", "max")
    if not len(values):
        return dict.fromkeys((*names, "mean"))
    found = [*np.percentile(values, [0, 5, 50, 95, 100]).tolist(), float(values.mean())]
    return {name: round(value, 4) for name, value in zip((*names, "mean"), found)}


def _histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list]:
    """Counts per bin; the first and last bin include all values beyond them."""
    counts = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
    return {"edges": edges.round(4).tolist(), "counts": counts.tolist()}


def _sizes(size: np.ndarray) -> list[list[int]]:
    """[width, height, number of images] of every size, most frequent first."""
    if not len(size):
        return []
    unique, counts = np.unique(size, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return np.concatenate([unique[:, ::-1], counts[:, None]], axis=1)[order].tolist()
