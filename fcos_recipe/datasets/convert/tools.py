"""Read what annotation tools write: LabelMe, CVAT, Label Studio, VIA, Supervisely and others."""

import base64
import contextlib
import csv
import io
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fcos_recipe.datasets.box_forms import turned
from fcos_recipe.datasets.convert.common import Bad
from fcos_recipe.datasets.convert.labelled import (
    BRUSH,
    CANCELLED,
    FURTHER,
    NO_AREA,
    OUTLINES,
    ROUND,
    Labelled,
    Shape,
    ellipse,
    numbers,
    point,
    shapes_of,
)
from fcos_recipe.datasets.convert.tables import NAMES
from fcos_recipe.datasets.convert.voc import read_xml
from fcos_recipe.datasets.find_images import split_of
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_json, read_text

ODD = "of an unknown shape"
VIA_COLUMNS = ("region_shape_attributes", "region_attributes")
# VIA 3's numbers of shapes: name in VIA 2, and the keys of its numbers there
VIA3_SHAPES = {
    1: ("point", ()), 2: ("rect", ("x", "y", "width", "height")), 3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")), 5: ("line", ()), 6: ("polyline", ()),
    7: ("polygon", ()), 8: ("polygon", ()),
}  # fmt: skip


def labelme(file: Path) -> Iterator[Labelled]:
    """LabelMe, and tools that write its format: one JSON file per image."""
    data = read_json(file)
    if not isinstance(data.get("shapes"), list):
        raise UserError(f"{file}: it has no list of shapes")

    def read(shape: dict[str, Any]) -> Shape:
        kind = shape.get("shape_type") or "polygon"  # LabelMe 3 has polygons only
        points = list(map(point, shape["points"]))
        label = "" if shape["label"] is None else str(shape["label"])
        if kind == "rectangle" and len(points) >= 2:
            return Shape(label, points)
        if kind == "rotation" and len(points) >= 3:
            return Shape(label, points, turned=True)
        if kind == "mask" and len(points) == 2:
            (x1, y1), (x2, y2) = points  # the last row and column belong to the mask
            return Shape(label, [(x1, y1), (x2 + 1, y2 + 1)])
        if kind == "circle" and len(points) == 2:
            (cx, cy), edge = points
            radius = math.dist((cx, cy), edge)
            return Shape(label, ellipse(cx, cy, radius, radius), remark=ROUND)
        if kind == "polygon" and len(points) >= 3:
            return Shape(label, points, True, remark=OUTLINES)
        if kind in ("point", "points", "line", "linestrip"):
            raise Bad(f"a {kind}", NO_AREA)
        raise Bad(f"shape_type {kind} with {len(points)} points", ODD)

    size = tuple(data.get(key) for key in ("imageHeight", "imageWidth"))
    yield Labelled(
        file, [str(data.get("imagePath") or "")], len(data["shapes"]),
        shapes_of(data["shapes"], read), size if all(size) else None, True,
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
            x1, y1, x2, y2, turn = numbers(*map(get, ("xtl", "ytl", "xbr", "ybr")),
                                            get("rotation", 0))  # fmt: skip
            if not turn:
                return Shape(label, [(x1, y1), (x2, y2)])
            middle = ((x1 + x2) / 2, (y1 + y2) / 2)
            return Shape(
                label, turned(x1, y1, x2 - x1, y2 - y1, math.radians(turn), middle), turned=True
            )
        if shape.tag == "polygon":
            points = [point(p.split(",")) for p in get("points").split(";")]
            return Shape(label, points, True, remark=OUTLINES)
        if shape.tag == "ellipse":
            cx, cy, rx, ry, turn = numbers(*map(get, ("cx", "cy", "rx", "ry")), get("rotation", 0))
            return Shape(label, ellipse(cx, cy, rx, ry, math.radians(turn)), remark=ROUND)
        if shape.tag == "mask":
            x, y, w, h = numbers(*map(get, ("left", "top", "width", "height")))
            return Shape(label, [(x, y), (x + w, y + h)])
        if shape.tag in ("points", "polyline", "skeleton"):
            raise Bad(f"a {shape.tag}", NO_AREA)
        raise Bad(f"a {shape.tag}", ODD)

    for image in tree.iter("image"):
        shapes = [shape for shape in image if shape.tag != "tag" and "label" in shape.attrib]
        name, subset = image.get("name", ""), image.get("subset", "")
        size = [image.get(key, "") for key in ("height", "width")]
        yield Labelled(
            file, [f"{subset}/{name}", name] if subset else [name], len(shapes),
            shapes_of(shapes, read), (int(size[0]), int(size[1])) if all(map(str.isdigit, size))
            else None, part=split_of(subset),
        )  # fmt: skip
    frames: dict[int, list] = {}
    for track in tree.iter("track"):
        for shape in track:
            if "frame" in shape.attrib and shape.get("outside") != "1":
                shape.set("label", track.get("label", ""))
                frames.setdefault(int(shape.get("frame", "0")), []).append(shape)
    for frame, shapes in sorted(frames.items()):
        yield Labelled(file, [f"frame_{frame:06d}"], len(shapes), shapes_of(shapes, read))


def cvat_labels(files: Sequence[Path]) -> list[str]:
    """The labels of CVAT's projects, in their order."""
    names: list[str] = []
    for file in files:
        with contextlib.suppress(Bad):
            names += [label.findtext("name") or "" for label in read_xml(file).iter("label")]
    return [name for name in dict.fromkeys(names) if name]


def label_studio(file: Path) -> Iterator[Labelled]:
    """Label Studio: its JSON with tasks, or JSON-MIN."""
    for task in read_json(file, list):
        if "data" not in task:
            lists = [value for value in task.values() if isinstance(value, list)]
            results = [e for value in lists for e in value if isinstance(e, dict) and "x" in e]
            results = [{"value": entry, **entry} for entry in results]
            yield _task(file, task, results, [], "")
            continue
        every = task.get("annotations") or task.get("completions") or []
        lists = [_regions(a.get("result") or []) for a in every if not a.get("was_cancelled")]
        rest = [Bad("of a further annotation", FURTHER) for part in lists[1:] for _ in part]
        rest += [Bad("cancelled", CANCELLED) for a in every if a.get("was_cancelled")
                 for _ in _regions(a.get("result") or [])]  # fmt: skip
        skip = "" if lists else "not annotated"
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


def _task(file: Path, data: dict[str, Any], results: list, rest: list[Bad], skip: str) -> Labelled:
    def read(entry: dict[str, Any]) -> Shape:
        value, label = entry["value"], _label_of(entry["value"])
        width, height = (entry.get(f"original_{side}") or 1 for side in ("width", "height"))
        if "points" in value:
            points = [(x / 100, y / 100) for x, y in map(point, value["points"])]
            return Shape(label, points, True, remark=OUTLINES, fraction=True)
        if "rle" in value:
            raise Bad("a brush mask", BRUSH)
        if "width" in value and "height" in value and not entry.get("type", "").startswith("key"):
            x, y, w, h, turn = numbers(*(value[k] for k in ("x", "y", "width", "height")),
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
            return Shape(label, points, turned=bool(turn), fraction=True)
        if "radiusX" in value:
            points = ellipse(*numbers(*(value[k] for k in ("x", "y", "radiusX", "radiusY"))))
            points = [(px / 100, py / 100) for px, py in points]
            return Shape(label, points, remark=ROUND, fraction=True)
        raise Bad("a key point", NO_AREA)

    texts = [v for v in data.values() if isinstance(v, str)]
    known = [data[k] for k in ("image", "img", "ocr", "photo") if isinstance(data.get(k), str)]
    shapes = [*shapes_of(results, read), *rest]
    count = len(results) + len(rest)
    return Labelled(file, (known or texts)[:1] or [""], count, shapes, skip=skip)


def via(file: Path) -> Iterator[Labelled]:
    """VGG Image Annotator: a project, or the export of its versions 1 and 2 as JSON or CSV."""
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
        if "metadata" in data and "view" in data:
            yield from _via3(file, data)
            return
        entries = list((data.get("_via_img_metadata") or data).values())
    for entry in entries:
        regions = entry.get("regions") or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        yield Labelled(file, [str(entry.get("filename") or "")], len(regions),
                       shapes_of(regions, _via_region))  # fmt: skip


def _via3(file: Path, data: dict[str, Any]) -> Iterator[Labelled]:
    """VIA 3: shapes refer to a view, which shows a file; classes are options of attributes.

    https://gitlab.com/vgg/via/-/blob/master/via-3.x.y/CodeDoc.md
    """
    attributes: dict[str, dict[str, Any]] = data.get("attribute") or {}
    of_view: dict[str, list[dict[str, Any]]] = {view: [] for view in data["view"]}
    for entry in data["metadata"].values():
        if entry.get("xy"):  # else it is a part of a video's time, or about the whole file
            of_view.setdefault(str(entry["vid"]), []).append(entry)

    def region(entry: dict[str, Any]) -> Shape:
        number, *values = entry["xy"]
        name, keys = VIA3_SHAPES.get(number, (f"shape of number {number}", ()))
        shape = {"name": name, **dict(zip(keys, values)), "all_points_x": values[::2],
                 "all_points_y": values[1::2]}  # fmt: skip
        told = {}
        for key, value in (entry.get("av") or {}).items():
            attribute = attributes.get(key) or {}
            options = attribute.get("options") or {}
            told[str(attribute.get("aname", key))] = options.get(str(value).split(",")[0], value)
        return _via_region({"shape_attributes": shape, "region_attributes": told})

    for view, entries in of_view.items():
        files = (data["view"].get(view) or {}).get("fid_list") or [""]
        shown = data["file"].get(str(files[0])) or {}
        names = [str(shown.get(key) or "") for key in ("fname", "src")]
        video = shown.get("type", 2) != 2 or any(entry.get("z") for entry in entries)
        yield Labelled(file, names, len(entries), shapes_of(entries, region),
                       skip="videos and sounds, which are not images" if video else "")  # fmt: skip


def _via_region(region: dict[str, Any]) -> Shape:
    shape, told = region["shape_attributes"], region.get("region_attributes") or {}
    keys = [k for k in told if k.lower() in NAMES["class"].split()] or list(told)[:1]
    label = told[keys[0]] if keys else ""
    if isinstance(label, dict):  # check boxes
        label = next((name for name, is_set in label.items() if is_set), "")
    kind, label = shape["name"], str(label).strip()
    if kind == "rect":
        x, y, w, h = numbers(*(shape[k] for k in ("x", "y", "width", "height")))
        return Shape(label, [(x, y), (x + w, y + h)])
    if kind == "polygon":
        pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return Shape(label, list(map(point, pairs)), True, remark=OUTLINES)
    if kind in ("circle", "ellipse"):
        cx, cy, rx = numbers(shape["cx"], shape["cy"], shape.get("r", shape.get("rx")))
        ry, turn = numbers(shape.get("ry", rx), shape.get("theta") or 0)
        return Shape(label, ellipse(cx, cy, rx, ry, turn), remark=ROUND)
    raise Bad(f"a {kind}", NO_AREA if kind in ("point", "line", "polyline") else ODD)


def create_ml(file: Path) -> Iterator[Labelled]:
    """Apple's CreateML: boxes by their centre in pixels."""

    def read(entry: dict[str, Any]) -> Shape:
        where = entry["coordinates"]
        x, y, w, h = numbers(*(where[k] for k in ("x", "y", "width", "height")))
        return Shape(str(entry["label"]), [(x - w / 2, y - h / 2), (x + w / 2, y + h / 2)])

    for image in read_json(file, list):
        entries = image.get("annotations") or []
        name = str(image.get("image") or image.get("imagefilename") or "")
        yield Labelled(file, [name], len(entries), shapes_of(entries, read))


def supervisely(file: Path) -> Iterator[Labelled]:
    """Supervisely: one JSON file per image, ann/a.jpg.json for img/a.jpg."""
    data = read_json(file)

    def read(entry: dict[str, Any]) -> Shape:
        kind, label = entry["geometryType"], str(entry["classTitle"])
        if kind == "bitmap":
            x, y = numbers(*entry["bitmap"]["origin"])
            packed = base64.b64decode(entry["bitmap"]["data"])
            w, h = struct.unpack(">II", zlib.decompressobj().decompress(packed, 24)[16:])  # of PNG
            return Shape(label, [(x, y), (x + w, y + h)])
        if kind not in ("rectangle", "polygon"):
            raise Bad(f"a {kind}", NO_AREA if kind in ("point", "line", "graph") else ODD)
        points = list(map(point, entry["points"]["exterior"]))
        if kind == "rectangle":
            return Shape(label, points)
        return Shape(label, points, True, remark=OUTLINES)

    size = (data["size"]["height"], data["size"]["width"])
    yield Labelled(file, [f"../img/{file.stem}", file.stem], len(data["objects"]),
                   shapes_of(data["objects"], read), size, True)  # fmt: skip


def supervisely_labels(files: Sequence[Path]) -> list[str]:
    """The classes of a Supervisely project, in its order; its meta.json is above the files."""
    for place in dict.fromkeys(folder / "meta.json" for f in files for folder in f.parents[1:3]):
        if place.is_file() and isinstance(found := read_json(place).get("classes"), list):
            return [str(e["title"]) for e in found if isinstance(e, dict) and "title" in e]
    return []


def cityscapes(file: Path) -> Iterator[Labelled]:
    """Cityscapes' polygons; a label such as `cargroup` is a group of cars."""
    data = read_json(file)

    def read(entry: dict[str, Any]) -> Shape:
        label = str(entry["label"])
        name = label.removesuffix("group")
        points = list(map(point, entry["polygon"]))
        return Shape(name, points, True, remark=OUTLINES, crowd=name != label)

    objects = [entry for entry in data["objects"] if not entry.get("deleted")]
    name = re.sub(r"_gt(Fine|Coarse)_polygons$", "_leftImg8bit", file.stem)
    yield Labelled(file, [f"{name}.png", file.stem], len(objects), shapes_of(objects, read),
                   (data["imgHeight"], data["imgWidth"]), True)  # fmt: skip
