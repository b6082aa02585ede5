"""Find everything that is wrong with one COCO annotation file, entry by entry.

Training's parser (`index.parse`) stops at the first entry that it can't use. Here each entry is
decoded separately, with the same types, so all faults are found, and an entry called valid here is
one that training reads. hotcoco's healthcheck finds near duplicates; it gets valid columns only,
because it rejects a whole file for one wrong type and reads a missing size as 0.
"""

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import msgspec
import numpy as np

from fcos_recipe.data import coco_json
from fcos_recipe.data.coco_json import Annotation, Category, Image, is_id, rows_of
from fcos_recipe.datasets.verify import boxes as box_checks
from fcos_recipe.datasets.verify.boxes import Columns
from fcos_recipe.datasets.verify.findings import Findings, by
from fcos_recipe.errors import UserError

SECTIONS = {"images": Image, "categories": Category, "annotations": Annotation}
NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # as Python's json writes them


@dataclass
class Entries:
    """The valid entries of one section, decoded.

    Args:
        at: position of each in the section.
        rows: the structs that training's parser makes.
        id: int64 [N], id of images and categories; for annotations the image_id.
        category: int64 [N], category_id of annotations.
    """

    at: list[int] | range
    rows: list[Any]
    id: np.ndarray
    category: np.ndarray | None = None

    def __iter__(self) -> Iterator[tuple[int, Any, int]]:
        return zip(self.at, self.rows, self.id.tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Content:
    """An annotation file whose entries were decoded one by one.

    Args:
        path: of the file.
        top: the file's keys in order, with their values as raw JSON.
        raw: all entries of each section, as raw JSON.
        entries: the valid entries of each section.
        sizes: image name -> height and width of the file, used if the annotations lack them.
        renamed: image name -> the name under which training finds the file, if that differs.
    """

    path: str
    top: dict[str, msgspec.Raw]
    raw: dict[str, list[msgspec.Raw]]
    entries: dict[str, Entries]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def class_names(self) -> list[str]:
        """Class names in the order in which training numbers them."""
        categories = self.entries["categories"]
        return coco_json.class_names(categories.rows, categories.id)


class _Row(Annotation, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


def read(path: str, found: Findings) -> Content | None:
    """Decode a file as far as possible.

    Args:
        path: the annotation file.
        found: receives faults of structure, types and ids.

    Returns:
        the content, or None if the file has no list of images.

    Raises:
        UserError: the file can't be opened.
    """
    return decode(path, coco_json.mapped(path), found)


def decode(path: str, text, found: Findings) -> Content | None:
    """Like `read`, for the bytes of a file."""
    with _no_collection():
        return _decode(path, text, found)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection, which would double the time to create a million objects."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _decode(path: str, text, found: Findings) -> Content | None:
    try:
        with contextlib.suppress(ValueError, RecursionError):  # not JSON, which is found below
            coco_json.refuse_repeated(path, text)
        top = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except UserError as error:
        found.add("structure", text=str(error).removeprefix(f"{path}: "))
        return None
    except msgspec.ValidationError as error:
        found.add("structure", text=f"expected an object with images, categories: {error}")
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = _as_json(text)
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        more = "" if text is None else " (it has NaN or is not UTF-8; Python's json can read it)"
        found.add("not_json", text=f"{reason}{more}")
        return None if text is None else _decode(path, text, found)
    content = Content(path, top, {}, {})
    for name in SECTIONS:
        raw = top.get(name, msgspec.Raw(b"null"))
        try:
            content.raw[name] = msgspec.json.decode(raw, type=list[msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            missing = name not in top or bytes(raw) == b"null"
            found.add("structure", text=f"{name}: {'missing' if missing else error}")
            content.raw[name] = []
    if not content.raw["images"]:
        if b"[" in bytes(top.get("images", b""))[:1]:
            found.add("structure", text="images: empty")
        return None
    for name in SECTIONS:
        content.entries[name] = _entries(name, content.raw[name], found)
    return content


def _as_json(text) -> bytes | None:
    """Valid JSON from what Python's json reads, non-finite numbers as strings; None on failure."""
    try:
        data = json.loads(bytes(text), parse_constant=str)
        if not isinstance(data, dict):
            return None
        data = json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
        msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):  # DecodeError and UnicodeError are ValueErrors
        return None
    return data


def _entries(name: str, raws: list, found: Findings) -> Entries:
    decoder = msgspec.json.Decoder(_Row if name == "annotations" else SECTIONS[name])
    try:
        at: list[int] | range = range(len(raws))
        rows = list(map(decoder.decode, raws))
    except (ValueError, RecursionError):  # some entries are invalid: decode one by one
        at, rows = [], []
        for i, raw in enumerate(raws):
            try:
                rows.append(decoder.decode(raw))
                at.append(i)
            except (ValueError, RecursionError) as error:
                _wrong_type(name, i, raw, error, found)
    fields = ("image_id", "category_id") if name == "annotations" else ("id",)
    try:
        ids = [coco_json.numbers([getattr(row, key) for row in rows]) for key in fields]
    except ValueError:
        good = []
        for place, row in zip(at, rows):
            values = {key: getattr(row, key) for key in fields}
            good.append(all(map(is_id, values.values())))
            if not good[-1]:
                text = ", ".join(f"{key} {value!r:.60}" for key, value in values.items())
                file = getattr(row, "file_name", None)
                found.add("id_not_number", row.id, file, (name, place), text)
        at, rows = list(compress(at, good)), list(compress(rows, good))
        ids = [coco_json.numbers([getattr(row, key) for row in rows]) for key in fields]
    return Entries(at, rows, *ids)


def loose(raw: msgspec.Raw) -> Any:
    """Decode an entry, with invalid UTF-8 replaced; None if it is not JSON."""
    try:
        return json.loads(bytes(raw).decode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def _wrong_type(name: str, i: int, raw, error: Exception, found: Findings) -> None:
    entry = loose(raw)
    entry = entry if isinstance(entry, dict) else {}
    box = entry.get("bbox")
    finite = not isinstance(box, list) or not any(
        isinstance(v, str) and v in NOT_FINITE for v in box
    )
    id = entry.get("id") if isinstance(entry.get("id"), int | str) else None
    file = entry.get("file_name") if isinstance(entry.get("file_name"), str) else None
    text = str(error).replace("`$.", "`") if finite else f"bbox {box}"
    found.add("type" if finite else "box_not_finite", id, file, (name, i), text)


# ---- checks of decoded content


def check(
    content: Content,
    found: Findings,
    options: dict[str, Any] | None = None,
    training: bool = False,
) -> Columns:
    """Check everything that needs only the annotation file.

    Args:
        content: from `read`.
        found: receives the findings.
        options: `load_crowd` and `allow_empty` of the config.
        training: whether this is the training split.

    Returns:
        the valid annotations; `good` marks those that training learns.
    """
    options = options or {}
    names = [image.file_name for _, image, _ in content.entries["images"]]
    size = _check_images(content, found)
    _check_categories(content, found)
    rows = _columns(content)

    def files(kind: str, mask: np.ndarray, text) -> None:
        for i in np.flatnonzero(mask).tolist():
            image = int(rows.image[i])
            file = names[image] if image >= 0 else None
            found.add(kind, rows.id[i], file, ("annotations", int(rows.at[i])), text(i))

    entries = content.entries["annotations"].rows
    files("unknown_image", rows.image < 0, lambda i: f"image_id {entries[i].image_id}")
    files("unknown_category", rows.category < 0, lambda i: f"category_id {entries[i].category_id}")
    files("ignored", rows.ignore, lambda i: "")
    odd = np.fromiter((e.iscrowd not in (None, 0, 1) for e in entries), bool, len(entries))
    files("crowd_value", odd, lambda i: f"iscrowd {entries[i].iscrowd:g}")
    box_checks.check_annotation_ids(rows, files)
    limit = box_checks.check_boxes(rows, size, files)
    box_checks.check_format(rows, limit, found)
    box_checks.check_areas(rows, entries, files)
    box_checks.check_duplicates(rows, len(names), len(content.entries["categories"]), files)

    with_crowds = bool(options.get("load_crowd"))
    rows.good &= (rows.image >= 0) & (rows.category >= 0) & ~rows.ignore
    learnt = rows.good & (with_crowds | ~rows.crowd)
    if not learnt.any() and not options.get("allow_empty"):
        found.add("nothing_to_train", text=f"{len(names)} images, {len(entries)} annotations")
    boxes, crowds = (
        np.bincount(rows.image[use], minlength=len(names)) for use in (learnt, rows.good)
    )
    for i in np.flatnonzero((boxes == 0) & (crowds > 0)).tolist():
        images = content.entries["images"]
        place = ("images", images.at[i])
        found.add("only_crowds", int(images.id[i]), names[i], place, f"{crowds[i]} crowds")
    if training:
        categories = content.entries["categories"]
        used = set(categories.id[np.unique(rows.category[learnt])].tolist())
        for at, category, id in categories:
            if id not in used:
                found.add("category_unused", id, None, ("categories", at), str(category.name))
    rows.good = learnt
    return rows


def _check_images(content: Content, found: Findings) -> np.ndarray:
    """float64 [N, 2]: height and width, 0 if unknown."""
    images = content.entries["images"]
    size = np.zeros((len(images), 2))
    by_id: dict[int, str] = {}
    by_file: dict[str, int] = {}
    for row, (at, image, id) in enumerate(images):
        name, place = image.file_name, ("images", at)
        if id in by_id:
            kind = "image_repeated" if by_id[id] == name else "image_id_twice"
            other = "" if by_id[id] == name else f"also of {by_id[id]}"
            found.add(kind, id, name, place, other)
        by_id.setdefault(id, name)
        path = os.path.normpath(name)
        if not name:
            found.add("file_name", id, None, place)
        elif by_file.setdefault(path, id) != id:
            found.add("file_listed_twice", id, name, place, f"also as image {by_file[path]}")
        if os.path.isabs(path) or path.startswith(".."):
            found.add("file_name_outside", id, name, place)
        height, width = given = image.height or 0, image.width or 0
        if min(given) < 0 or max(given) > 2**31 - 1:
            found.add("image_size_wrong", id, name, place, by((width, height)))
            continue
        if height % 1 or width % 1 or image.height == 0 or image.width == 0:
            found.add("image_size_odd", id, name, place, by((width, height)))
        size[row] = given if height and width else content.sizes.get(name, (0, 0))
    return size


def _check_categories(content: Content, found: Findings) -> None:
    ids: dict[int, str] = {}
    names: dict[str, int] = {}
    for at, category, id in content.entries["categories"]:
        place, name = ("categories", at), category.name
        if id in ids:
            found.add("category_id_twice", id, None, place, f"{ids[id]} and {name}")
            continue
        ids[id] = str(name)
        if name is None or name == "":
            found.add("category_unnamed", id, None, place)
            continue
        if names.setdefault(str(name), id) != id:
            found.add("category_name_twice", id, None, place, f"{name}: also {names[str(name)]}")
        if str(name) != str(name).strip() or not str(name).isprintable():
            found.add("category_name_odd", id, None, place, ascii(name))


def _columns(content: Content) -> Columns:
    entries = content.entries["annotations"]
    rows, number = entries.rows, len(entries)
    return Columns(
        at=np.asarray(entries.at, np.int64),
        id=[row.id for row in rows],
        image=rows_of(content.entries["images"].id, entries.id),
        category=rows_of(content.entries["categories"].id, entries.category),
        xywh=coco_json.boxes(rows, np.nan),
        area=coco_json.areas(rows),
        crowd=coco_json.flags(rows, "iscrowd"),
        ignore=coco_json.flags(rows, "ignore"),
        good=np.ones(number, bool),
    )
