"""Read what annotation tools write: LabelMe, CVAT, Label Studio, VIA, CreateML, CSV of boxes.

Each reader is a generator of `Labelled`, one per image, and `build` makes a COCO file of them. A
box is the bounds of a shape's points; shapes without an area (points, lines) are left out.
"""

import base64
import binascii
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.data.image_files import files_below, image_size
from fcos_recipe.datasets.box_forms import turned
from fcos_recipe.datasets.convert.common import MISSING, Bad, Converted, as_number, common_folder
from fcos_recipe.datasets.convert.voc import read_xml
from fcos_recipe.datasets.find_images import ImageFinder, split_of
from fcos_recipe.errors import UserError
from fcos_recipe.files.atomic import own_folder, replace_file
from fcos_recipe.files.reading import read_json, read_text

CORNERS = ("xmin", "ymin", "xmax", "ymax")
VIA_COLUMNS = ("region_shape_attributes", "region_attributes")
NO_AREA = "points and lines, which have no area"
FURTHER = "of further annotations of the same image"
BRUSH = "brush masks, which are not read"
ON_PURPOSE = (NO_AREA, FURTHER, BRUSH)  # left out without --skip-bad


@dataclass
class Shape:
    """One annotated object.

    Args:
        label: class name; "" if the tool has none.
        points: x, y in pixels, or in fractions of the image if `fraction` is set; the box is
            their bounds.
        outline: whether `points` are a polygon, which is kept as the segmentation.
        place: more about where it is in the file, for messages.
        remark: what was changed in converting it, for the summary.
        fraction: whether points are fractions of width and height.
    """

    label: str
    points: list[tuple[float, float]]
    outline: bool = False
    place: str = ""
    remark: str = ""
    fraction: bool = False


@dataclass
class Labelled:
    """One image with its objects.

    Args:
        file: the annotation file.
        names: of the image, see `ImageFinder.find`.
        count: number of objects in the file, whether they can be read or not.
        shapes: the objects, or why one can't be converted.
        size: height and width that the file states; None: not stated.
        alone: whether `file` belongs to this image alone.
        part: "train", "val" or "test" if the file says so.
        skip: why the image is left out; "": it is not.
        content: the image file's bytes, if the annotation file has them.
    """

    file: Path
    names: list[str]
    count: int
    shapes: list[Shape | Bad]
    size: tuple[int, int] | None = None
    alone: bool = False
    part: str = ""
    skip: str = ""
    content: str = field(default="", repr=False)


def build(
    items: Iterable[Labelled], finder: ImageFinder, images: Path | None, classes: list[str] | None,
    first: list[str], embedded: Path, bad: Iterable[tuple[Path, str]] = (),
) -> tuple[Converted, dict[int, str]]:  # fmt: skip
    """Make a COCO file of what a reader yields.

    Args:
        items: one per image; several of the same image are joined.
        finder: finds the images.
        images: folder that file names are relative to; None: the common folder of all images.
        classes: names in order; None: those that occur, sorted, after `first`.
        first: names that the tool lists, in its order.
        embedded: folder for images that exist only inside annotation files.
        bad: annotation files that can't be read, and why.

    Returns:
        the file, and the split that the tool states for each image id.
    """
    items, bad = list(items), list(bad)
    labels = {s.label for item in items for s in item.shapes if isinstance(s, Shape)} - {""}
    names = classes or [*first, *sorted(labels - set(first))]
    unlabelled = names[0] if len(names) == 1 and not labels else ""  # the tool has no classes
    paths: list[Path | None] = [
        finder.find(*item.names, label=item.file if item.alone else None)
        or _extracted(item, embedded)
        for item in items
    ]
    finder.require(paths, next((item.file for item in items), Path()))
    there = [path for path in paths if path]
    found = Converted(common_folder(images, there, finder.folders[1:]), names)
    for file, text in bad:
        found.account.seen["label files"] += 1
        found.refuse(file, text, "label files")
    entries: dict[Path, dict[str, Any]] = {}
    parts: dict[int, str] = {}
    for item, path in zip(items, paths):
        found.account.seen["boxes"] += item.count
        found.account.seen["images"] += 1
        if item.skip:
            found.account.leave_out("images", item.skip)
            found.account.leave_out("boxes", "of such images", item.count)
            continue
        size = image_size(path) if path else None
        if path is None or size is None:
            name = next(filter(None, item.names), "no name")
            text = f"{path}: not an image" if path else finder.why_not(name)
            found.refuse(f"{item.file}: {name}", text, "images", reason=MISSING)
            found.account.leave_out("boxes", "of such images", item.count)
            continue
        if item.size and tuple(item.size) != tuple(size):
            found.said["images have another size than their annotations state; the file's is "
                       "used"] += 1  # fmt: skip
        part = parts.get(entries[path]["id"]) if path in entries else item.part
        if part != item.part:
            told = f"it is in {part or 'no split'} and in {item.part or 'no split'}; choose one"
            found.refuse(f"{item.file}: {item.names[0]}", told, "images", reason="in two splits")
            found.account.leave_out("boxes", "of such images", item.count)
            continue
        if path in entries:
            found.account.leave_out("images", "joined with an earlier entry of the same image")
        else:
            entries[path] = found.image(path, size)
        parts[entries[path]["id"]] = item.part
        for number, shape in enumerate(item.shapes):
            place = f"{item.file}: {item.names[0]}: object {number}"
            try:
                _add(found, entries[path], shape, unlabelled)
            except Bad as error:
                if error.reason in ON_PURPOSE:
                    found.account.leave_out("boxes", error.reason)
                else:
                    found.refuse(place, error)
    found.said.update(finder.said)
    used = [*paths, *(item.file for item in items), *(file for file, _ in bad)]
    every = {file for tree in finder.trees for file in files_below(tree)}
    found.unused(every, used, "in no annotation")
    return found, parts


def _add(
    found: Converted, image: dict[str, Any], shape: Shape | Bad, unlabelled: str
) -> None:  # fmt: skip
    if isinstance(shape, Bad):
        raise shape
    label = shape.label or unlabelled
    if label not in found.classes:
        what = f"class {label!r} is not among the {len(found.classes)} class names"
        raise Bad(what if label else "it has no class; name the only class with --classes",
                  "of an unknown class")  # fmt: skip
    points = np.array(shape.points, float)
    if shape.fraction:
        points = points * (image["width"], image["height"])
    more: dict[str, Any] = {}
    if shape.outline and len(points) > 2:
        more["segmentation"] = [[round(v, 4) for v in points.ravel().tolist()]]
    low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    found.box(image, found.classes.index(label), [*low, *high], **more)
    if shape.remark:
        found.said[shape.remark] += 1


def _extracted(item: Labelled, folder: Path) -> Path | None:
    """Write an image that exists only inside its annotation file."""
    if not item.content:
        return None
    try:
        data = base64.b64decode(item.content, validate=False)
    except (binascii.Error, ValueError):
        return None
    ending = {b"\x89P": ".png", b"BM": ".bmp", b"GI": ".gif", b"RI": ".webp"}.get(data[:2], ".jpg")
    path = folder / f"{item.file.stem}{ending}"
    if not path.exists():
        own_folder(folder, folder.parent)
        replace_file(path, data)
    return path


def _point(values: Iterable[Any]) -> tuple[float, float]:
    x, y = _numbers(*values)
    return x, y


def _numbers(*values: Any) -> list[float]:
    numbers = [as_number(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise Bad(f"{values}: not finite numbers", "not a finite number")
    return numbers


def _shapes(entries: Iterable[Any], read: Callable[[Any], Shape]) -> list[Shape | Bad]:
    """`read` of each entry, or why it can't be read."""
    found: list[Shape | Bad] = []
    for entry in entries:
        try:
            found.append(read(entry))
        except Bad as error:
            found.append(error)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            found.append(Bad(f"not an object of this format ({type(error).__name__}: {error})"))
    return found


def _ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> list:
    """Two corners of the bounds of an ellipse that is turned by `turn` radians."""
    dx = math.hypot(rx * math.cos(turn), ry * math.sin(turn))
    dy = math.hypot(rx * math.sin(turn), ry * math.cos(turn))
    return [(cx - dx, cy - dy), (cx + dx, cy + dy)]


TURNED = "rotated boxes became the upright boxes around them"
ROUND = "circles and ellipses became the boxes around them"
OUTLINES = "polygons became the boxes around them, and are kept as segmentation"


def labelme(file: Path) -> Iterator[Labelled]:
    """LabelMe, and tools that write its format: one JSON file per image."""
    data = read_json(file)
    if not isinstance(data.get("shapes"), list):
        raise UserError(f"{file}: it has no list of shapes")

    def read(shape: dict[str, Any]) -> Shape:
        kind = shape.get("shape_type") or "polygon"  # LabelMe 3 has polygons only
        points = list(map(_point, shape["points"]))
        label = "" if shape["label"] is None else str(shape["label"])
        if kind == "rectangle" and len(points) >= 2:
            return Shape(label, points)
        if kind == "rotation" and len(points) >= 3:
            return Shape(label, points, remark=TURNED)
        if kind == "mask" and len(points) == 2:
            (x1, y1), (x2, y2) = points  # the last row and column belong to the mask
            return Shape(label, [(x1, y1), (x2 + 1, y2 + 1)])
        if kind == "circle" and len(points) == 2:
            (cx, cy), edge = points
            radius = math.dist((cx, cy), edge)
            return Shape(label, _ellipse(cx, cy, radius, radius), remark=ROUND)
        if kind == "polygon" and len(points) >= 3:
            return Shape(label, points, True, remark=OUTLINES)
        if kind in ("point", "points", "line", "linestrip"):
            raise Bad(f"a {kind}", NO_AREA)
        raise Bad(f"shape_type {kind} with {len(points)} points", "of an unknown shape")

    size = tuple(data.get(key) for key in ("imageHeight", "imageWidth"))
    yield Labelled(
        file, [str(data.get("imagePath") or "")], len(data["shapes"]),
        _shapes(data["shapes"], read), size if all(size) else None, True,
        content=data.get("imageData") or "",
    )  # fmt: skip


def cvat(file: Path) -> Iterator[Labelled]:
    """CVAT for images and for video: one XML file for all images."""
    try:
        tree = read_xml(file)
    except Bad as error:
        raise UserError(str(error)) from None

    def read(shape) -> Shape:
        label, get = shape.get("label", ""), shape.get
        if shape.tag == "box":
            x1, y1, x2, y2, turn = _numbers(*map(get, ("xtl", "ytl", "xbr", "ybr")),
                                            get("rotation", 0))  # fmt: skip
            if not turn:
                return Shape(label, [(x1, y1), (x2, y2)])
            middle = ((x1 + x2) / 2, (y1 + y2) / 2)
            return Shape(
                label, turned(x1, y1, x2 - x1, y2 - y1, math.radians(turn), middle), remark=TURNED
            )
        if shape.tag == "polygon":
            points = [_point(p.split(",")) for p in get("points").split(";")]
            return Shape(label, points, True, remark=OUTLINES)
        if shape.tag == "ellipse":
            cx, cy, rx, ry, turn = _numbers(*map(get, ("cx", "cy", "rx", "ry")), get("rotation", 0))
            return Shape(label, _ellipse(cx, cy, rx, ry, math.radians(turn)), remark=ROUND)
        if shape.tag == "mask":
            x, y, w, h = _numbers(*map(get, ("left", "top", "width", "height")))
            return Shape(label, [(x, y), (x + w, y + h)])
        if shape.tag in ("points", "polyline"):
            raise Bad(f"a {shape.tag}", NO_AREA)
        raise Bad(f"a {shape.tag}", "of an unknown shape")

    for image in tree.iter("image"):
        shapes = [shape for shape in image if shape.tag != "tag" and "label" in shape.attrib]
        name, subset = image.get("name", ""), image.get("subset", "")
        size = [image.get(key, "") for key in ("height", "width")]
        yield Labelled(
            file, [f"{subset}/{name}", name] if subset else [name], len(shapes),
            _shapes(shapes, read), (int(size[0]), int(size[1])) if all(map(str.isdigit, size))
            else None, part=split_of(subset),
        )  # fmt: skip
    frames: dict[int, list] = {}
    for track in tree.iter("track"):
        for shape in track:
            if "frame" in shape.attrib and shape.get("outside") != "1":
                shape.set("label", track.get("label", ""))
                frames.setdefault(int(shape.get("frame", "0")), []).append(shape)
    for frame, shapes in sorted(frames.items()):
        yield Labelled(file, [f"frame_{frame:06d}"], len(shapes), _shapes(shapes, read))


def cvat_labels(file: Path) -> list[str]:
    """The labels of a CVAT project, in its order."""
    try:
        names = [label.findtext("name") or "" for label in read_xml(file).iter("label")]
    except Bad:
        return []
    return [name for name in dict.fromkeys(names) if name]


def label_studio(file: Path) -> Iterator[Labelled]:
    """Label Studio: its JSON with tasks, or JSON-MIN."""
    for task in read_json(file, list):
        if "data" not in task:
            lists = [value for value in task.values() if isinstance(value, list)]
            results = [e for value in lists for e in value if isinstance(e, dict) and "x" in e]
            results = [{"value": entry, **entry} for entry in results]
            yield _task(file, task, results, 0, "")
            continue
        done = [a for a in task.get("annotations") or task.get("completions") or []
                if not a.get("was_cancelled")]  # fmt: skip
        lists = [_regions(a.get("result") or []) for a in done]
        rest = sum(map(len, lists[1:]))
        skip = "" if done else "not annotated"
        yield _task(file, task["data"], lists[0] if lists else [], rest, skip)


def _regions(result: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results that are regions, with the labels that other results give them."""
    labels = {r["id"]: r["value"]["labels"] for r in result
              if r.get("id") and "labels" in r.get("value", {})}  # fmt: skip
    found: dict[Any, dict[str, Any]] = {}
    for number, entry in enumerate(result):
        value = entry.get("value") or {}
        if {"x", "points", "rle"} & set(value):
            key = entry.get("id") or number
            entry = {**entry, "value": {"labels": labels.get(entry.get("id")), **value}}
            if key not in found or _label_of(entry["value"]):
                found[key] = entry
    return list(found.values())


def _label_of(value: dict[str, Any]) -> str:
    lists = [v for k, v in value.items() if k.endswith("labels") and isinstance(v, list) and v]
    return str(lists[0][0]) if lists else ""


def _task(file: Path, data: dict[str, Any], results: list, rest: int, skip: str) -> Labelled:
    def read(entry: dict[str, Any]) -> Shape:
        value, label = entry["value"], _label_of(entry["value"])
        width, height = (entry.get(f"original_{side}") or 1 for side in ("width", "height"))
        if "points" in value:
            points = [(x / 100, y / 100) for x, y in map(_point, value["points"])]
            return Shape(label, points, True, remark=OUTLINES, fraction=True)
        if "rle" in value:
            raise Bad("a brush mask", BRUSH)
        if "width" in value and "height" in value and not entry.get("type", "").startswith("key"):
            x, y, w, h, turn = _numbers(*(value[k] for k in ("x", "y", "width", "height")),
                                        value.get("rotation") or 0)  # fmt: skip
            if not turn:
                corners = [(x, y), (x + w, y + h)]
            else:  # about its upper left corner, in pixels
                x, y, w, h = x * width, y * height, w * width, h * height
                corners = [
                    (px / width, py / height)
                    for px, py in turned(x, y, w, h, math.radians(turn), (x, y))
                ]
            points = [(px / 100, py / 100) for px, py in corners]
            return Shape(label, points, remark=TURNED if turn else "", fraction=True)
        if "radiusX" in value:
            points = _ellipse(*_numbers(*(value[k] for k in ("x", "y", "radiusX", "radiusY"))))
            points = [(px / 100, py / 100) for px, py in points]
            return Shape(label, points, remark=ROUND, fraction=True)
        raise Bad("a key point", NO_AREA)

    texts = [v for v in data.values() if isinstance(v, str)]
    known = [data[k] for k in ("image", "img", "ocr", "photo") if isinstance(data.get(k), str)]
    shapes = _shapes(results, read)
    shapes += [Bad("of a further annotation", FURTHER)] * rest
    return Labelled(file, (known or texts)[:1] or [""], len(results) + rest, shapes, skip=skip)


def via(file: Path) -> Iterator[Labelled]:
    """VGG Image Annotator 1 and 2: a project, or its export as JSON or CSV."""
    if file.suffix.lower() == ".csv":
        images: dict[str, dict[str, Any]] = {}
        for row in csv.DictReader(io.StringIO(read_text(file))):
            regions = images.setdefault(row["filename"], {"regions": []})["regions"]
            shape, told = (json.loads(row[key]) for key in VIA_COLUMNS)
            if shape:
                regions.append({"shape_attributes": shape, "region_attributes": told})
        entries = [{"filename": name, **image} for name, image in images.items()]
    else:
        data = read_json(file)
        entries = list((data.get("_via_img_metadata") or data).values())
    for entry in entries:
        regions = entry.get("regions") or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        yield Labelled(file, [str(entry.get("filename") or "")], len(regions),
                       _shapes(regions, _via_region))  # fmt: skip


def _via_region(region: dict[str, Any]) -> Shape:
    shape, told = region["shape_attributes"], region.get("region_attributes") or {}
    keys = [k for k in told if k.lower() in NAMES["class"]] or list(told)[:1]
    label = told[keys[0]] if keys else ""
    if isinstance(label, dict):  # check boxes
        label = next((name for name, is_set in label.items() if is_set), "")
    kind, label = shape["name"], str(label).strip()
    if kind == "rect":
        x, y, w, h = _numbers(*(shape[k] for k in ("x", "y", "width", "height")))
        return Shape(label, [(x, y), (x + w, y + h)])
    if kind == "polygon":
        pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return Shape(label, list(map(_point, pairs)), True, remark=OUTLINES)
    if kind in ("circle", "ellipse"):
        cx, cy, rx = _numbers(shape["cx"], shape["cy"], shape.get("r", shape.get("rx")))
        ry, turn = _numbers(shape.get("ry", rx), shape.get("theta") or 0)
        return Shape(label, _ellipse(cx, cy, rx, ry, turn), remark=ROUND)
    raise Bad(f"a {kind}", NO_AREA)


def create_ml(file: Path) -> Iterator[Labelled]:
    """Apple's CreateML: boxes by their centre in pixels."""

    def read(entry: dict[str, Any]) -> Shape:
        where = entry["coordinates"]
        x, y, w, h = _numbers(*(where[k] for k in ("x", "y", "width", "height")))
        return Shape(str(entry["label"]), [(x - w / 2, y - h / 2), (x + w / 2, y + h / 2)])

    for image in read_json(file, list):
        entries = image.get("annotations") or []
        name = str(image.get("image") or image.get("imagefilename") or "")
        yield Labelled(file, [name], len(entries), _shapes(entries, read))


# What a column of a CSV file can be called; the first of these words that occurs is taken.
NAMES = {
    "file": "filename file_name image_name img_name image_path img_path path image img file "
    "imageid image_id",
    "class": "class label category class_name label_name category_name labelname name type object "
    "species",
    "xmin": "xmin x_min x1 left bbox_x1 bbox_xmin", "ymin": "ymin y_min y1 top bbox_y1 bbox_ymin",
    "xmax": "xmax x_max x2 right bbox_x2 bbox_xmax",
    "ymax": "ymax y_max y2 bottom bbox_y2 bbox_ymax",
    "x": "bbox_x box_x x left", "y": "bbox_y box_y y top",
    "w": "bbox_width bbox_w box_width w width", "h": "bbox_height bbox_h box_height h height",
    "bbox": "bbox box", "split": "split set subset usage partition",
}  # fmt: skip


def csv_columns(row: list[str]) -> dict[str, int]:
    """What a first row says about its columns: name of `NAMES` -> position; {}: it has no boxes."""
    words = [word.strip().lower().lstrip("\ufeff") for word in row]
    known = {
        key: words.index(next(name for name in text.split() if name in words))
        for key, text in NAMES.items()
        if set(words) & set(text.split())
    }
    if "file" in known and any(set(keys) <= set(known) for keys in (CORNERS, "xywh", ("bbox",))):
        return known
    if len(row) != 6 or not row[0] or (any(row[1:5]) and not all(map(_is_number, row[1:5]))):
        return {}
    return dict(zip(("file", *CORNERS, "class"), range(6)))  # RetinaNet's CSV has no header


def csv_rows(text: str) -> list[list[str]]:
    """The rows of CSV text that are not empty; fields are separated by comma, semicolon or tab."""
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    return [row for row in csv.reader(io.StringIO(text), delimiter=separator) if any(row)]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def boxes_csv(file: Path) -> Iterator[Labelled]:
    """A CSV file with a box in each row: corners, or x, y, w and h; in pixels or fractions."""
    rows = csv_rows(read_text(file))
    at = csv_columns(rows[0]) if rows else {}
    if not at:
        raise UserError(f"{file}: its first row does not name columns such as filename, class, "
                        "xmin, ymin, xmax, ymax")  # fmt: skip
    rows = rows[len(at) != 6 or not _is_number(rows[0][1] or "0") :]

    def values(row: list[str]) -> list[str]:
        if all(key in at for key in CORNERS):
            return [row[at[key]].strip() for key in CORNERS]
        if "bbox" in at:
            return [word for word in row[at["bbox"]].strip("[]() ").replace(",", " ").split()]
        return [row[at[key]].strip() for key in "xywh"]

    every = [float(v) for row in rows if len(row) > max(at.values()) for v in values(row)
             if _is_number(v)]  # fmt: skip
    fraction = bool(every) and max(every) <= 1.0 + 1e-6

    def read(row: list[str]) -> Shape:
        a, b, c, d = _numbers(*values(row))
        label = row[at["class"]].strip() if "class" in at else ""
        high = (c, d) if all(key in at for key in CORNERS) else (a + c, b + d)
        return Shape(label, [(a, b), high], fraction=fraction)

    images: dict[tuple[str, str], list[list[str]]] = {}
    for row in rows:
        name = row[at["file"]].strip() if at["file"] < len(row) else ""
        split = split_of(row[at["split"]]) if at.get("split", len(row)) < len(row) else ""
        images.setdefault((name, split), []).append(row)
    for (name, split), group in images.items():
        boxes = [row for row in group if len(row) <= max(at.values()) or any(values(row))]
        yield Labelled(file, [name], len(boxes), _shapes(boxes, read), part=split)
