"""Typed structs for COCO's JSON, decoded by msgspec, and their fields as arrays.

A field of the wrong type is an error, so each struct declares only the fields that its reader
needs.
"""

import contextlib
import json
import mmap
import operator
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import open_regular

MOST_BYTES = 8 << 30  #: largest annotation file; COCO's are 0.5 GB

Id = int | float | str  # some tools export ids as text, pandas as 1.0
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class ListedImage(msgspec.Struct, gc=False):
    id: Id
    file_name: str


class ImageSize(msgspec.Struct, gc=False):
    id: Id
    width: float | None = None
    height: float | None = None


class Image(ListedImage, gc=False):
    width: float | None = None
    height: float | None = None


class Category(msgspec.Struct, gc=False):
    id: Id
    name: str | int | None = None


class Labels(msgspec.Struct, gc=False):
    """The image and category of an annotation."""

    image_id: Id
    category_id: Id
    id: Id | None = None


class Annotation(Labels, gc=False):
    bbox: Box | None = None
    area: float | None = None
    iscrowd: float | bool | None = None
    ignore: float | bool | None = None


class GroundTruth(msgspec.Struct, gc=False):
    """An annotation for evaluation: the box is required."""

    image_id: Id
    category_id: Id
    bbox: Box
    id: Any = None  # of any type: nothing is looked up by it
    area: float | None = None
    iscrowd: float | bool | None = None


class Detection(msgspec.Struct, gc=False):
    """An entry of a results file."""

    image_id: Id
    category_id: Id
    bbox: Box
    score: float


@contextlib.contextmanager
def explained(path: Any) -> Iterator[None]:
    """Convert msgspec's errors about an annotation file to `UserError`."""
    try:
        yield
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}; expected COCO's instances format") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise UserError(f"{path}: not a complete JSON file ({error}); copy it again") from None
    except RecursionError:
        raise UserError(f"{path}: not COCO's instances format: nested too deeply") from None


def refuse_packed(path: Any, start: bytes) -> None:
    """Raise UserError if a file that begins with these bytes is compressed by gzip or ZIP."""
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise UserError(f"{path}: packed (gzip or ZIP), not JSON; unpack it first")


def mapped(path: str | os.PathLike) -> memoryview | bytes:
    """Map a file into memory, so that `msgspec.Raw` values need no copy of its bytes.

    A byte order mark of UTF-8, which Windows programs write, is left out.

    Raises:
        UserError: the file cannot be read or mapped, or is compressed.
    """
    try:
        with open(open_regular(path, MOST_BYTES), "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return b""
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            refuse_packed(path, content[:4])
            return memoryview(content)[3 * (content[:3] == BOM_UTF8) :]
    except (OSError, ValueError) as error:  # a pipe cannot be mapped
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def refuse_repeated(path: str | os.PathLike, content: memoryview | bytes) -> None:
    """Check that no section occurs twice: readers of JSON keep the last and lose the others.

    Args:
        path: of the file, for the message.
        content: the complete JSON.

    Raises:
        UserError: a section occurs twice.
    """
    names = ("images", "annotations", "categories")
    if all(len(re.findall(rb'"%s"\s*:' % name.encode(), content)) < 2 for name in names):
        return
    keys = [key for key, _ in json.loads(bytes(content), object_pairs_hook=list)]
    for name in names:  # those of inner objects do not count
        if keys.count(name) > 1:
            raise UserError(f"{path}: {name}: occurs twice; put all entries into one list")


def number(value: Id) -> int:
    """Convert an id of an image, category or annotation to an integer.

    Args:
        value: a whole number from -2^63 to 2^63 - 1, text such as "000000000139", or a float of a
            whole number up to 2^53, up to which floats are exact.

    Raises:
        ValueError: the value is something else.
    """
    if isinstance(value, float) and not (value.is_integer() and abs(value) <= 2**53):
        raise ValueError(value)
    if not -(2**63) <= (whole := int(value)) < 2**63:
        raise ValueError(value)
    return whole


def is_id(value: Id | None) -> bool:
    with contextlib.suppress(ValueError, TypeError):
        return number(value) is not None  # type: ignore[arg-type]
    return False


def numbers(values: Sequence[Id]) -> np.ndarray:
    """Convert ids to int64 [N], see `number`."""
    with contextlib.suppress(TypeError, OverflowError):  # faster if all are whole numbers
        return np.fromiter(map(operator.index, values), np.int64, len(values))  # type: ignore[arg-type]
    return np.fromiter(map(number, values), np.int64, len(values))


def ids(path: Any, section: str, entries: Sequence[Any], field: str = "id") -> np.ndarray:
    """Return a field of the entries, int64 [M], see `number`.

    Args:
        path, section: origin of the entries, for the error message.
        entries: structs.
        field: `id`, `image_id` or `category_id`.

    Raises:
        UserError: a value is not a whole number.
    """
    values = [getattr(entry, field) for entry in entries]
    try:
        return numbers(values)
    except ValueError:
        position = next(i for i, value in enumerate(values) if not is_id(value))
        raise UserError(
            f"{path}: {section}[{position}].{field}: {values[position]!r} is not a whole number "
            "below 2**63 (as a float, below 2**53); COCO needs numbers for images and categories"
        ) from None


def class_names(categories: Sequence[Category], numbers: np.ndarray) -> list[str]:
    """Names of the categories; `class_ID` for a category without a name."""
    pairs = zip(categories, numbers.tolist(), strict=True)
    return [f"class_{i}" if c.name is None else str(c.name) for c, i in pairs]


def boxes(rows: Sequence[Any], missing: float = 0.0) -> np.ndarray:
    """float64 [M, 4], x, y, width, height in pixels; each is `missing` if there is no box."""
    nothing = (missing,) * 4
    flat = chain.from_iterable(nothing if row.bbox is None else row.bbox for row in rows)
    return np.fromiter(flat, np.float64, 4 * len(rows)).reshape(-1, 4)


def areas(rows: Sequence[Any]) -> np.ndarray:
    """float64 [M], square pixels; NaN where the file has no area."""
    return np.array([row.area for row in rows], np.float64)


def flags(rows: Sequence[Any], field: str, dtype: type = bool) -> np.ndarray:
    """`iscrowd` or `ignore` [M], 0 or 1; 0 where the file does not have it."""
    return np.fromiter((bool(getattr(row, field)) for row in rows), dtype, len(rows))


def rows_of(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64 [W]: index in `known` of each wanted value's first occurrence; -1 if it is absent."""
    if not len(known):
        return np.full(len(wanted), -1)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)
    return np.where(known[order[place]] == wanted, order[place], -1)
