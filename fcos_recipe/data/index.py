"""COCO annotations as memory-mapped arrays, parsed once and shared by all processes.

The first process that needs an annotation file parses it and writes an index next to it (in
`.fcos_index/`, or in the user's cache directory if the data set is read-only). All later processes
map this index, so that eight ranks and their workers share one copy in memory. An index is used
only if the annotation file's size, times and inode are those that it states and if its own arrays
are consistent; otherwise the file is parsed again.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fcos_recipe.data import coco_json
from fcos_recipe.data.coco_json import Annotation, Category, Image
from fcos_recipe.errors import UserError
from fcos_recipe.files.atomic import open_own, own_folder, replace_file
from fcos_recipe.files.reading import decode_json, open_regular

FORMAT = b"FCOSIDX2"
EPSILON = 1e-5  # smallest width and height of a usable box, pixels (as in PaddleDetection)
HUGE = 1e9  # largest coordinate of a usable box, pixels


@dataclass(frozen=True)
class Index:
    """One annotation file with N images in order of their id, K classes in file order, M boxes.

    The boxes of image i are rows `box_start[i]` to `box_start[i + 1]`, in file order.
    """

    path: str  #: of the annotation file
    counts: dict[str, int]  #: kind of entry that was left out -> how many
    class_names: list[str]
    has_annotations: bool  #: False for a file of images only (COCO's test-dev)
    category_id: np.ndarray  #: int64 [K]
    image_id: np.ndarray  #: int64 [N]
    size: np.ndarray  #: int32 [N, 2], height and width in the file, pixels; 0 if missing
    name_start: np.ndarray  #: int64 [N + 1], where each name starts in `name_bytes`
    name_bytes: np.ndarray  #: uint8, all file names one after another, UTF-8
    box_start: np.ndarray  #: int64 [N + 1]
    box: np.ndarray  #: float32 [M, 4], x1, y1, x2, y2 in pixels, rounded to 1/1000
    label: np.ndarray  #: int32 [M], class (index into `category_id`)
    crowd: np.ndarray  #: uint8 [M]

    def __len__(self) -> int:
        return len(self.image_id)

    def file_name(self, row: int) -> str:
        return self.name_bytes[self.name_start[row] : self.name_start[row + 1]].tobytes().decode()

    def file_names(self) -> list[str]:
        """Return a copy of all file names."""
        blob, start = self.name_bytes.tobytes(), self.name_start.tolist()
        return [blob[a:b].decode() for a, b in zip(start[:-1], start[1:], strict=True)]


ARRAYS = {
    "category_id": "<i8",
    "image_id": "<i8",
    "size": "<i4",
    "name_start": "<i8",
    "name_bytes": "|u1",
    "box_start": "<i8",
    "box": "<f4",
    "label": "<i4",
    "crowd": "|u1",
}


def open_index(path: str | os.PathLike) -> Index:
    """Open the index of a COCO annotation file; build it if there is no valid one.

    Args:
        path: the JSON file.

    Raises:
        UserError: the file is missing or is not in COCO's format; the message names the entry.
    """
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such annotation file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: annotation file cannot be read (permissions)")
    places = _places(path)
    for place in places:
        index = _load(place, path)
        if index is not None:
            return index
    for place in places:
        try:
            _make_directory(place.parent)
            with _lock(place):
                index = _load(place, path)  # another process may have built it meanwhile
                if index is None:
                    index = _build(place, path)
                return index
        except OSError:  # read-only or full: try the next place
            continue
    arrays, meta = parse(path)
    return _index(path, meta, arrays)


def concatenated(indexes: list[Index], folders: list[str]) -> Index:
    """Join the indexes of several files; classes are those of the first, matched by name.

    Image ids are not changed, so that an id may occur more than once. The arrays are copies in this
    process's memory, not mapped.

    Args:
        indexes: one per file.
        folders: image folder of each file; it is put before the file names.

    Raises:
        UserError: the files have different classes, an image is in two files, or only some files
            have annotations.
    """
    first = indexes[0]
    rows = [
        rows_by_name(index.path, index.class_names, first.path, first.class_names)
        for index in indexes
    ]
    names: list[bytes] = []
    known: dict[bytes, str] = {}
    for index, folder in zip(indexes, folders, strict=True):
        own = [os.path.join(folder, name).encode() for name in index.file_names()]
        if twice := next((name for name in own if name in known), b"").decode():
            raise UserError(
                f"{twice}: listed in {known[twice.encode()]} and in {index.path}: objects in one "
                "file would be background in the other; list each image in one file only"
            )
        if index.has_annotations != first.has_annotations:
            raise UserError(
                f"{index.path} and {first.path}: only one of them has annotations; use files with "
                "annotations, or files without"
            )
        known.update(dict.fromkeys(own, index.path))
        names += own
    counts: dict[str, int] = {}
    for kind, count in chain.from_iterable(index.counts.items() for index in indexes):
        counts[kind] = counts.get(kind, 0) + count

    def joined(field: str) -> np.ndarray:
        return np.concatenate([getattr(index, field) for index in indexes])

    return Index(
        path=" + ".join(index.path for index in indexes),
        counts=counts,
        class_names=first.class_names,
        has_annotations=first.has_annotations,
        category_id=first.category_id,
        image_id=joined("image_id"),
        size=joined("size"),
        name_start=_starts(np.array([len(name) for name in names], np.int64)),
        name_bytes=np.frombuffer(b"".join(names), np.uint8),
        box_start=_starts(np.concatenate([np.diff(index.box_start) for index in indexes])),
        box=joined("box"),
        label=np.concatenate(
            [row[index.label] for row, index in zip(rows, indexes, strict=True)]
        ).astype(np.int32),
        crowd=joined("crowd"),
    )


def rows_by_name(path: str, names: list[str], first: str, wanted: list[str]) -> np.ndarray:
    """Map the classes of one file to those of another: index in `wanted` of each name, int64 [K].

    Args:
        path, first: the two files, for error messages.
        names, wanted: their class names. Identical lists match even if they contain a name twice.

    Raises:
        UserError: the names differ, or a name is ambiguous.
    """
    if names == wanted:
        return np.arange(len(names))
    for file, listed in ((path, names), (first, wanted)):
        if twice := {name for name in listed if listed.count(name) > 1}:
            raise UserError(
                f"{file}: categories: {min(twice)!r} occurs twice, but classes of several files "
                "are matched by name; rename one"
            )
    if odd := [name for name in names if name not in wanted]:
        raise UserError(
            f"{path}: categories: {odd[0]!r} is not in {first} ({len(wanted)} classes, matched by "
            "name); give all files the same categories"
        )
    if absent := [name for name in wanted if name not in names]:
        raise UserError(
            f"{path}: categories: {absent[0]!r} is missing, but {first} has it: objects of that "
            "class would count as background; label them or, if there are none, add the category"
        )
    return np.array([wanted.index(name) for name in names], np.int64)


def _places(path: str) -> list[Path]:
    """List possible paths for the index of `path`, best first."""
    key = hashlib.blake2b(path.encode(), digest_size=8).hexdigest()
    name = os.path.basename(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    near = Path(path).parent / ".fcos_index"
    places = [near / f"{name}.idx", cache / "fcos_recipe" / "index" / f"{name}-{key}.idx"]
    private = Path(tempfile.gettempdir()) / f"fcos_recipe-{os.getuid()}"
    # every user may write to the temporary directory: use a folder there only if this user owns it
    if not os.path.lexists(private) or private.lstat().st_uid == os.getuid():
        places.append(private / f"{name}-{key}.idx")
    return places


def _make_directory(directory: Path) -> None:
    """Create a directory, unless its parent has no write permission (checked for root as well)."""
    above = next(p for p in (directory, *directory.parents) if p.exists())
    if not above.stat().st_mode & 0o222:
        raise PermissionError(above)
    directory.parent.mkdir(parents=True, exist_ok=True)
    own_folder(directory)


@contextlib.contextmanager
def _lock(place: Path) -> Iterator[None]:
    """Hold the lock file of an index; the system releases it when the process ends."""
    with open_own(place.with_suffix(".lock"), os.O_RDWR) as file:
        # without locks two processes may parse the file; the result is correct, renaming is atomic
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stat(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


class _Meta(msgspec.Struct):
    counts: dict[str, int]
    class_names: list[str]
    has_annotations: bool


class _Header(msgspec.Struct):
    stat: list[int]
    meta: _Meta
    arrays: dict[str, tuple[str, list[int], int]]  # name -> dtype, shape, offset


def _load(place: Path, path: str) -> Index | None:
    """Map the index at `place`; None unless it belongs to this very file and is consistent.

    A copied annotation file is parsed again: nobody but the parser knows whether an index that came
    along with it is right.
    """
    try:
        with open(open_regular(place), "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if mapped[:8] != FORMAT:
            return None
        # the checksum covers everything after it and detects partly written files; 20 ms for COCO
        check, length = (int.from_bytes(mapped[i : i + 8], "little") for i in (8, 16))
        if check != zlib.crc32(memoryview(mapped)[16:]):
            return None
        header = decode_json(mapped[24 : 24 + length], _Header)
        if header.stat != _stat(path):
            return None
        body = _aligned(24 + length)
        arrays = {}
        for name, dtype in ARRAYS.items():
            stored, shape, offset = header.arrays[name]
            if np.dtype(dtype) != stored or min(shape, default=0) < 0 or offset < 0:
                return None
            count = math.prod(shape)
            arrays[name] = np.frombuffer(mapped, dtype, count, body + offset).reshape(shape)
        index = _index(path, msgspec.structs.asdict(header.meta), arrays)
        return index if _consistent(index) else None
    except (OSError, ValueError, KeyError, UserError):
        return None


def _consistent(index: Index) -> bool:
    """Whether the arrays of an index have the shapes and ranges that `Index` promises."""
    images, boxes, classes = len(index.image_id), len(index.box), len(index.class_names)
    shapes = {
        "category_id": (classes,), "image_id": (images,), "size": (images, 2),
        "name_start": (images + 1,), "name_bytes": (len(index.name_bytes),),
        "box_start": (images + 1,), "box": (boxes, 4), "label": (boxes,), "crowd": (boxes,),
    }  # fmt: skip

    def divides(starts: np.ndarray, total: int) -> bool:
        return bool(starts[0] == 0 and starts[-1] == total and (np.diff(starts) >= 0).all())

    return (
        all(getattr(index, name).shape == shape for name, shape in shapes.items())
        and divides(index.name_start, len(index.name_bytes))
        and divides(index.box_start, boxes)
        and bool((index.size >= 0).all())
        and bool((np.abs(index.box) <= 2 * HUGE).all())  # not true for NaN
        and bool(((index.label >= 0) & (index.label < classes)).all())
        and bool((index.crowd <= 1).all())
        and len(np.unique(index.image_id)) == images
        and _is_utf8(index)
    )


def _is_utf8(index: Index) -> bool:
    """Whether the names are UTF-8, and none begins inside a character."""
    starts = index.name_start[index.name_start < len(index.name_bytes)]
    with contextlib.suppress(UnicodeDecodeError):
        index.name_bytes.tobytes().decode()
        return bool(((index.name_bytes[starts] & 0xC0) != 0x80).all())
    return False


def _index(path: str, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Index:
    return Index(path=path, **meta, **arrays)


def _build(place: Path, path: str) -> Index:
    stat = _stat(path)  # before reading: if the file changes meanwhile, the index counts as old
    arrays, meta = parse(path)
    _write(place, stat, meta, arrays)
    return _load(place, path) or _index(path, meta, arrays)


def _aligned(offset: int) -> int:
    return -(-offset // 64) * 64


def _write(
    place: Path, stat: list[int], meta: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    layout, blocks, end = {}, [], 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array)
        layout[name] = (data.dtype.str, data.shape, end)
        padding = _aligned(end + data.nbytes) - end - data.nbytes
        blocks += [data.tobytes(), bytes(padding)]
        end = _aligned(end + data.nbytes)
    body = b"".join(blocks)
    header = json.dumps({"stat": stat, "meta": meta, "arrays": layout}).encode()
    rest = len(header).to_bytes(8, "little") + header
    rest += bytes(_aligned(16 + len(rest)) - 16 - len(rest))
    check = zlib.crc32(body, zlib.crc32(rest))
    head = FORMAT + check.to_bytes(8, "little") + rest
    replace_file(place, lambda file: file.writelines([head, body]))


class _File(msgspec.Struct, gc=False):
    images: list[Image]
    categories: list[Category] | None = None
    annotations: list[Annotation] | None = None


def parse(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a COCO annotation file into arrays.

    Annotations that PaddleDetection's COCODataSet would not use are left out and counted: those
    marked `ignore`, without a box, with an all-zero box, with an area <= 0, a side <= 1e-5 pixels
    or a coordinate >= 1e9, and those of images that the file does not list. A missing area is
    width x height, a missing `iscrowd` is 0.

    Returns:
        the arrays of `Index` by name, and its other fields except `path`.

    Raises:
        UserError: the file is not JSON or not in COCO's format, a category is unknown, or an id is
            not a whole number.
    """
    with coco_json.explained(path):
        data = msgspec.json.decode(coco_json.mapped(path), type=_File)
    counts: dict[str, int] = {}

    image_id = coco_json.ids(path, "images", data.images)
    size = np.array([(i.height or 0, i.width or 0) for i in data.images], np.float64).reshape(-1, 2)
    names = [image.file_name for image in data.images]
    order = _unique_images(path, image_id, names, counts)
    bad_size = (size[order] < 0).any(axis=1) | (size[order] > 2**31 - 1).any(axis=1)
    _count(counts, "images with a negative or absurd size", bad_size)
    order = order[~bad_size]
    image_id, size = image_id[order], size[order].astype(np.int32)
    encoded = [names[i].encode() for i in order]

    categories = data.categories or []
    category_id = coco_json.ids(path, "categories", categories)
    if len(np.unique(category_id)) < len(category_id):
        raise UserError(f"{path}: categories: an id occurs twice; give each class its own id")
    class_names = coco_json.class_names(categories, category_id)

    annotations = data.annotations or []
    row, label, box, crowd = _boxes(path, annotations, image_id, category_id, counts)
    meta = {
        "counts": counts,
        "class_names": class_names,
        "has_annotations": data.annotations is not None,
    }
    arrays = {
        "category_id": category_id,
        "image_id": image_id,
        "size": size,
        "name_start": _starts(np.array([len(name) for name in encoded], np.int64)),
        "name_bytes": np.frombuffer(b"".join(encoded), np.uint8),
        "box_start": _starts(np.bincount(row, minlength=len(image_id))),
        "box": box,
        "label": label,
        "crowd": crowd,
    }
    return arrays, meta


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _count(counts: dict[str, int], kind: str, mask: np.ndarray) -> None:
    if mask.any():
        counts[kind] = int(mask.sum())


def _unique_images(
    path: str, image_id: np.ndarray, names: list[str], counts: dict[str, int]
) -> np.ndarray:
    """Return row numbers in order of the image id, each image once."""
    order = np.argsort(image_id, kind="stable")
    again = np.zeros(len(order), bool)
    again[1:] = image_id[order[1:]] == image_id[order[:-1]]
    for i in np.flatnonzero(again):
        if names[order[i]] != names[order[i - 1]]:
            raise UserError(
                f"{path}: images: id {image_id[order[i]]} belongs to {names[order[i - 1]]} and to "
                f"{names[order[i]]}; give each image its own id"
            )
    _count(counts, "repeated image entries", again)
    return order[~again]


def _boxes(
    path: str,
    annotations: list[Annotation],
    image_id: np.ndarray,
    category_id: np.ndarray,
    counts: dict[str, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return image row, class, box and crowd flag of all usable annotations, sorted by image."""
    of_image = coco_json.ids(path, "annotations", annotations, "image_id")
    of_class = coco_json.ids(path, "annotations", annotations, "category_id")
    xywh, area = coco_json.boxes(annotations), coco_json.areas(annotations)
    crowd = coco_json.flags(annotations, "iscrowd", np.uint8)
    ignored = coco_json.flags(annotations, "ignore")

    label = coco_json.rows_of(category_id, of_class)
    if (label < 0).any():
        first = int(np.flatnonzero(label < 0)[0])
        raise UserError(
            f"{path}: annotation {annotations[first].id} (annotations[{first}]): category_id "
            f"{of_class[first]} is not among the {len(category_id)} categories of the file"
        )
    row = coco_json.rows_of(image_id, of_image)
    with np.errstate(over="ignore"):  # such boxes are left out below
        area = np.where(np.isnan(area), xywh[:, 2] * xywh[:, 3], area)
        start, end = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    orphan = row < 0
    empty = ~xywh.any(axis=1)
    usable = (area > 0) & (end - start > EPSILON).all(axis=1) & (abs(xywh) < HUGE).all(axis=1)
    degenerate = ~usable & ~empty & ~ignored
    _count(counts, "annotations of images that are not listed", orphan)
    _count(counts, "annotations marked ignore", ignored)
    _count(counts, "annotations without a box", empty)
    _count(counts, "degenerate boxes", degenerate)

    use = np.flatnonzero(~(orphan | ignored | empty | degenerate))
    use = use[np.argsort(row[use], kind="stable")]
    box = _round3(np.concatenate([start[use], end[use]], axis=1)).astype(np.float32)
    return row[use], label[use].astype(np.int32), box, crowd[use]


def _round3(values: np.ndarray) -> np.ndarray:
    """Round as Python's round(x, 3), which PaddleDetection uses; np.round differs near halves."""
    thousandths = values * 1000
    rounded = np.round(values, 3)
    near_half = np.abs(np.abs(thousandths - np.trunc(thousandths)) - 0.5) < 1e-3
    rounded[near_half] = [round(x, 3) for x in values[near_half].tolist()]
    return rounded
