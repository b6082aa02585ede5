"""`fcos dataset verify --fix`: write a cleaned copy of an annotation file.

Each round makes at most one change per entry and checks the copy again, so the next round handles
what a change causes, such as annotations of a removed image. Unchanged entries and other sections
are copied byte for byte.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fcos_recipe.data import coco_json
from fcos_recipe.data.coco_json import is_id, number
from fcos_recipe.datasets.box_forms import are_corners, bounds
from fcos_recipe.datasets.verify.annotations import SECTIONS, Content, check, decode, loose
from fcos_recipe.datasets.verify.findings import KINDS, Findings
from fcos_recipe.files.atomic import replace_file

ROUNDS = 12  # safety limit; at most three were needed so far
# Kinds whose entry is removed.
DROP = (
    "id_not_number", "image_id_twice", "image_repeated", "file_name", "category_id_twice",
    "unknown_image", "unknown_category", "box_not_finite", "box_negative",
    "box_empty", "box_huge", "box_outside", "box_twice", "file_missing", "file_unreadable",
    "image_empty", "image_truncated", "image_undecodable", "image_too_large", "image_crashes",
    "transform_fails",
)  # fmt: skip
# Kinds that come from reading the images, not the annotation file.
OF_IMAGES = (
    "file_missing", "file_unreadable", "image_empty", "image_truncated", "image_undecodable",
    "image_too_large", "image_crashes", "transform_fails", "file_name_other",
)  # fmt: skip
REMOVED = "removed"  # begins the text of each change that removes an entry
_PLACE = re.compile(r"(\w+)\[(\d+)\]")

Change = dict[str, Any]  # kind, id, file, at (position in the original), text (what was done)


def fix(
    content: Content,
    found: Findings,
    options: dict[str, Any],
    order: list[str] | None = None,
) -> tuple[list[bytes], list[Change], Findings]:
    """Clean an annotation file.

    Args:
        content: the file, from `annotations.read`.
        found: what is wrong with it, including its images if they were read.
        options: see `annotations.check`.
        order: class names in the order of another split.

    Returns:
        the copy as a list of byte strings; the changes; findings that remain in the copy.
    """
    changes: list[Change] = []
    rewritten = "not_json" in found.items
    if rewritten:
        changes.append({"kind": "not_json", "text": "written as JSON in UTF-8"})
    origin = {name: list(range(len(rows))) for name, rows in content.raw.items()}
    of_files = found.items.get("image_size_differs", [])
    if forms := _other_forms(content, changes):
        found = Findings({kind: found.items[kind] for kind in OF_IMAGES if kind in found.items})
        copied = decode(content.path, b"".join(_parts(content, forms)), found)
        assert copied is not None  # nothing was removed
        copied.sizes, copied.renamed, content = content.sizes, content.renamed, copied
        check(content, found, options)
    for _ in range(ROUNDS):
        edits = _edits(content, found, origin, changes)
        if order is not None:
            _reorder(content, order, changes)
        if edits is None and order is None and not rewritten:
            break
        order, rewritten = None, False
        parts = _parts(content, edits or {})
        found = Findings()
        copied = decode(content.path, b"".join(parts), found)
        if copied is None:  # no image is left
            return parts, changes, found
        for name, new in (edits or {}).items():
            gone = {i for i, entry in new.items() if entry is None}
            origin[name] = [place for i, place in enumerate(origin[name]) if i not in gone]
        copied.sizes = {content.renamed.get(name, name): v for name, v in content.sizes.items()}
        content = copied
        check(content, found, options)
    names = {image.file_name for image in content.entries["images"].rows}
    if "image_size_differs" not in found.items:
        for item in of_files:
            if item["file"] in names:
                found.add("image_size_differs", item["id"], item["file"], None, item["text"])
    return _parts(content, {}), changes, found


def _other_forms(content: Content, changes: list[Change]) -> dict[str, dict[int, bytes | None]]:
    """New entries for ids that are text without a number, and for boxes that are corners."""
    edits: dict[str, dict[int, bytes | None]] = {}
    raw = {section: [loose(entry) for entry in rows] for section, rows in content.raw.items()}
    changed: set[tuple[str, int]] = set()
    for section, key in (("images", "image_id"), ("categories", "category_id")):
        rows = [row for row in raw[section] if isinstance(row, dict)]
        odd = [row["id"] for row in rows if isinstance(row.get("id"), str) and not is_id(row["id"])]
        first = 1 + max((number(row["id"]) for row in rows if is_id(row.get("id"))), default=0)
        new = {id: first + i for i, id in enumerate(dict.fromkeys(odd))}
        for part, field in ((section, "id"), ("annotations", key)) if new else ():
            for i, row in enumerate(raw[part]):
                if isinstance(row, dict) and row.get(field) in [*new]:
                    row[field] = new[row[field]]
                    changed.add((part, i))
        if new:
            text = f"{len(new)} ids that are text became numbers from {first}"
            changes.append({"kind": "id_not_number", "text": f"{section}: {text}"})
    entries = content.entries["annotations"]
    if are_corners(coco_json.boxes(entries.rows, np.nan), coco_json.areas(entries.rows)):
        for i in (i for i, row in zip(entries.at, entries.rows) if row.bbox is not None):
            x, y, right, bottom = raw["annotations"][i]["bbox"]
            raw["annotations"][i]["bbox"] = [x, y, right - x, bottom - y]
            changed.add(("annotations", i))
        text = "boxes were corners x1, y1, x2, y2, as their areas show; now x, y, width, height"
        changes.append({"kind": "box_format", "text": text})
    for section, i in changed:
        edits.setdefault(section, {})[i] = msgspec.json.encode(raw[section][i])
    return edits


def _edits(
    content: Content, found: Findings, origin: dict[str, list[int]], changes: list[Change]
) -> dict[str, dict[int, bytes | None]] | None:
    """Section -> position -> new entry (None: remove it); None if there is nothing to do."""
    edits: dict[str, dict[int, bytes | None]] = {name: {} for name in SECTIONS}
    numbers = content.entries["annotations"].rows
    new_id = max((number(row.id) for row in numbers if is_id(row.id)), default=0)

    def put(section: str, i: int, entry: dict | None, item: dict, kind: str, text: str) -> None:
        if i in edits[section]:
            return
        edits[section][i] = None if entry is None else msgspec.json.encode(entry)
        kept = {key: item[key] for key in ("id", "file") if key in item}
        changes.append({"kind": kind, **kept, "at": f"{section}[{origin[section][i]}]",
                        "text": text})  # fmt: skip

    for kind in KINDS:
        for item in found.items.get(kind, ()):
            place = _PLACE.fullmatch(item.get("at", ""))
            if place is None:
                continue
            section, i = place[1], int(place[2])
            if i in edits[section]:
                continue
            if kind == "image_id_twice":  # its annotations can't be attributed
                same = np.flatnonzero(content.entries["images"].id == item["id"])
                for row in same.tolist():
                    put(section, content.entries["images"].at[row], None, item, kind, REMOVED)
            elif kind in DROP:
                put(section, i, None, item, kind, REMOVED)
            elif kind == "file_listed_twice":
                _merge(content, i, item, put)
            elif kind in _CHANGES:
                entry = loose(content.raw[section][i])
                new_id += kind == "annotation_id_twice"
                text = _CHANGES[kind](entry, section, new_id, content)
                put(section, i, entry if text else None, item, kind, text or REMOVED)
    return edits if any(edits.values()) else None


def _merge(content: Content, i: int, item: dict, put) -> None:
    """Merge entries of one file: the first gets all annotations."""
    images, annotations = content.entries["images"], content.entries["annotations"]
    names = [os.path.normpath(image.file_name) for image in images.rows]
    row = list(images.at).index(i)
    first = int(images.id[names.index(names[row])])
    put("images", i, None, item, "file_listed_twice", f"{REMOVED}; its boxes go to image {first}")
    for k in np.flatnonzero(annotations.id == images.id[row]).tolist():
        entry = loose(content.raw["annotations"][annotations.at[k]])
        entry["image_id"] = first
        moved = {"id": annotations.rows[k].id, "file": images.rows[row].file_name}
        put("annotations", annotations.at[k], entry, moved, "file_listed_twice",
            f"image_id {images.id[row]} becomes {first}")  # fmt: skip


def _of_type(entry: Any, section: str, _id: int, _content: Content) -> str:
    """Read numbers that are text; remove other optional fields of the wrong type."""
    wanted: Any = SECTIONS[section]  # a Struct
    gone = []
    read = []
    for one in msgspec.structs.fields(wanted):
        if isinstance(entry, dict) and one.name in entry:
            try:
                msgspec.convert(entry[one.name], one.type)
            except msgspec.ValidationError:
                with contextlib.suppress(msgspec.ValidationError):  # numbers as text
                    entry[one.name] = msgspec.convert(entry[one.name], one.type, strict=False)
                    read.append(one.name)
                    continue
                if not one.required:
                    gone.append(one.name)
                    del entry[one.name]
    try:
        msgspec.convert(entry, wanted)
    except msgspec.ValidationError:
        return ""
    told = [f"without {', '.join(gone)}"] * bool(gone)
    told += [f"{', '.join(read)} read as numbers"] * bool(read)
    return "; ".join(told)


def _of_name(entry: dict, _section: str, _id: int, content: Content) -> str:
    entry["file_name"] = content.renamed[entry["file_name"]]
    return f"file_name is now {entry['file_name']}"


def _of_mask(entry: dict, _section: str, _id: int, _content: Content) -> str:
    box = bounds(entry.get("segmentation"))
    if box is None:
        return ""
    entry["bbox"] = box
    return f"bbox is now that of the segmentation: [{', '.join(f'{v:g}' for v in box)}]"


def _of_size(entry: dict, _section: str, _id: int, _content: Content) -> str:
    entry.pop("width", None)
    entry.pop("height", None)
    return "without width and height"


def _of_area(entry: dict, _section: str, _id: int, _content: Content) -> str:
    entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    return f"area is now {entry['area']:g}"


def _of_id(entry: dict, _section: str, new_id: int, _content: Content) -> str:
    entry["id"] = new_id
    return f"id is now {new_id}"


def _clip(entry: dict, _section: str, _id: int, content: Content) -> str:
    images = content.entries["images"]
    image = images.rows[int(np.flatnonzero(images.id == int(entry["image_id"]))[0])]
    x, y, width, height = entry["bbox"]
    size = (image.height, image.width)
    bottom, right = size if all(size) else content.sizes[image.file_name]
    box = [max(x, 0.0), max(y, 0.0), min(x + width, right), min(y + height, bottom)]
    box = [round(v, 3) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]
    entry["bbox"] = box
    if not entry.get("segmentation") and "area" in entry:
        entry["area"] = round(box[2] * box[3], 3)
    return f"clipped to [{', '.join(f'{v:g}' for v in box)}]"


_CHANGES = {
    "type": _of_type,
    "file_name_other": _of_name,
    "box_missing": _of_mask,
    "image_size_wrong": _of_size,
    "area_not_positive": _of_area,
    "annotation_id_twice": _of_id,
    "box_partly_outside": _clip,
}


def _reorder(content: Content, order: list[str], changes: list[Change]) -> None:
    """Put the categories into another split's order if the names are the same."""
    names = content.class_names()
    if len(names) != len(content.raw["categories"]) or len(set(order)) != len(order):
        return
    if sorted(names) == sorted(order) and names != order:
        content.raw["categories"] = [content.raw["categories"][names.index(n)] for n in order]
        changes.append({"kind": "category_order", "text": "categories are now in training's order"})


def _parts(content: Content, edits: dict[str, dict[int, bytes | None]]) -> list[bytes]:
    """The file as a list of byte strings, with the edits applied."""
    parts, first = [], b"{\n"
    for key, raw in content.top.items():
        parts += [first, msgspec.json.encode(key), b": "]
        first = b",\n"
        if not content.raw.get(key):
            parts.append(bytes(raw))
            continue
        new = edits.get(key, {})
        kept = [new.get(i, entry) for i, entry in enumerate(content.raw[key])]
        parts += [b"[\n", b",\n".join(bytes(entry) for entry in kept if entry is not None), b"\n]"]
    return [*parts, b"\n}\n"]


def count(parts: list[bytes]) -> dict[str, int]:
    """Number of entries in each section of a copy."""
    top = msgspec.json.decode(b"".join(parts), type=dict[str, msgspec.Raw])
    return {
        name: len(msgspec.json.decode(top[name], type=list[msgspec.Raw] | None) or [])
        for name in SECTIONS
        if name in top
    }


def write(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.writelines(parts))
