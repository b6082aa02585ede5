"""`fcos dataset verify --fix`: write a cleaned copy of an annotation file.

Each round makes at most one change per entry and checks the copy again, so the next round handles
what a change causes, such as annotations of a removed image. Unchanged entries and other sections
are copied byte for byte.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fcos_recipe.data.coco_json import is_id, number
from fcos_recipe.datasets.verify.annotations import SECTIONS, Content, check, decode, loose
from fcos_recipe.datasets.verify.findings import KINDS, Findings
from fcos_recipe.files.atomic import replace_file

ROUNDS = 12  # safety limit; at most three were needed so far
# Kinds whose entry is removed.
DROP = (
    "id_not_number", "image_id_twice", "image_repeated", "file_name", "category_id_twice",
    "unknown_image", "unknown_category", "box_missing", "box_not_finite", "box_negative",
    "box_empty", "box_huge", "box_outside", "box_twice", "file_missing", "file_unreadable",
    "image_empty", "image_truncated", "image_undecodable", "image_too_large", "image_crashes",
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
        copied.sizes, content = content.sizes, copied
        check(content, found, options)
    names = {image.file_name for image in content.entries["images"].rows}
    if "image_size_differs" not in found.items:
        for item in of_files:
            if item["file"] in names:
                found.add("image_size_differs", item["id"], item["file"], None, item["text"])
    return _parts(content, {}), changes, found


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
    """Remove optional fields of the wrong type, which readers then derive."""
    wanted: Any = SECTIONS[section]  # a Struct
    gone = []
    for one in msgspec.structs.fields(wanted):
        if isinstance(entry, dict) and not one.required and one.name in entry:
            try:
                msgspec.convert(entry[one.name], one.type)
            except msgspec.ValidationError:
                gone.append(one.name)
                del entry[one.name]
    try:
        msgspec.convert(entry, wanted)
    except msgspec.ValidationError:
        return ""
    return f"without {', '.join(gone)}" if gone else ""


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
