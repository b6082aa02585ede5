"""Build the COCO file of a data set whose reader yields images with their shapes.

The readers in `tools` and `tables` are generators of `Labelled`, one per image, and `build` makes a
COCO file of them. A box is the bounds of a shape's points; shapes without an area (points, lines)
are left out.
"""

import base64
import binascii
import csv
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.data.image_files import files_below, image_size
from fcos_recipe.datasets.convert.common import MISSING, Bad, Converted, as_number, common_folder
from fcos_recipe.datasets.find_images import ImageFinder
from fcos_recipe.files.atomic import own_folder, replace_file
from fcos_recipe.files.reading import MOST_IMAGE, read_bytes

# What reading an entry of another form than expected raises.
FAULTS = (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError, csv.Error,
          struct.error, zlib.error)  # fmt: skip
NO_AREA = "points and lines, which have no area"
FURTHER = "of further annotations of the same image"
CANCELLED = "of annotations that were cancelled"
BRUSH = "brush masks, which are not read"
UNLABELLED = "of regions in which nothing is labelled"
ON_PURPOSE = (NO_AREA, FURTHER, CANCELLED, BRUSH, UNLABELLED)  # left out without --skip-bad
ROUND = "circles and ellipses became the boxes around them"
OUTLINES = "polygons became the boxes around them, and are kept as segmentation"


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
        turned: whether `points` are the corners of a rotated box.
        crowd: whether training skips it: it is marked difficult, or as a group.
    """

    label: str
    points: list[tuple[float, float]]
    outline: bool = False
    place: str = ""
    remark: str = ""
    fraction: bool = False
    turned: bool = False
    crowd: bool = False


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
        near: paths that the image may have, seen from the folder of `file`.
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
    near: list[str] = field(default_factory=list)


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
        finder.exact(*item.names, *item.near, label=item.file)
        or finder.find(*item.names, label=item.file if item.alone else None)
        or _extracted(item, embedded)
        for item in items
    ]
    if items:
        finder.require(paths, items[0].file, next(filter(None, items[0].names), "no name"))
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
    if shape.crowd:
        more["iscrowd"] = 1
    if (shape.outline or shape.turned) and len(points) > 2:
        more["segmentation"] = [[round(v, 4) for v in points.ravel().tolist()]]
    low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    found.box(image, found.classes.index(label), [*low, *high], **more)
    if shape.remark:
        found.said[shape.remark] += 1
    found.tell(shape.turned, shape.crowd)


def _extracted(item: Labelled, folder: Path) -> Path | None:
    """Write an image that exists only inside its annotation file."""
    if not item.content:
        return None
    try:
        data = base64.b64decode(item.content, validate=False)
    except (binascii.Error, ValueError):
        return None
    ending = {b"\x89P": ".png", b"BM": ".bmp", b"GI": ".gif", b"RI": ".webp"}.get(data[:2], ".jpg")
    for number in itertools.count():  # another image of the same name may be there
        path = folder / f"{item.file.stem}{f'_{number}' * (number > 0)}{ending}"
        if not path.exists():
            own_folder(folder, folder.parent)
            replace_file(path, data)
        if read_bytes(path, MOST_IMAGE) == data:
            return path
    return None


def point(values: Iterable[Any]) -> tuple[float, float]:
    x, y = numbers(*values)
    return x, y


def numbers(*values: Any) -> list[float]:
    found = [as_number(value) for value in values]
    if not all(map(math.isfinite, found)):
        raise Bad(f"{values}: not finite numbers", "not a finite number")
    return found


def shapes_of(entries: Iterable[Any], read: Callable[[Any], Shape]) -> list[Shape | Bad]:
    """`read` of each entry, or why it can't be read."""
    found: list[Shape | Bad] = []
    for entry in entries:
        try:
            found.append(read(entry))
        except Bad as error:
            found.append(error)
        except FAULTS as error:
            found.append(Bad(f"not an object of this format ({type(error).__name__}: {error})"))
    return found


def ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> list:
    """Two corners of the bounds of an ellipse that is turned by `turn` radians."""
    dx = math.hypot(rx * math.cos(turn), ry * math.sin(turn))
    dy = math.hypot(rx * math.sin(turn), ry * math.cos(turn))
    return [(cx - dx, cy - dy), (cx + dx, cy + dy)]
