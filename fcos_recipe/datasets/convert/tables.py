"""Read plain text with a box in each line: CSV, Open Images, DOTA, KITTI, WIDER FACE."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fcos_recipe.datasets.convert.common import Bad
from fcos_recipe.datasets.convert.labelled import UNLABELLED, Labelled, Shape, numbers, shapes_of
from fcos_recipe.datasets.find_images import split_of
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_bytes, read_text

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NUMBER = rb"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
USUAL = (".png", ".jpg", ".jpeg", ".tif", ".bmp", ".PNG", ".JPG", ".JPEG", ".TIF", ".BMP")
# Formats with a text file per image or a list of images: what the first three lines look like.
ROWS = {
    "dota": re.compile(rb"(imagesource:|gsd:|(%b\s+){8}[^\d\s]\S*(\s+\d)?\s*$)" % _NUMBER, re.M),
    "kitti": re.compile(rb"[^\d\s]\S*(\s+%b){14,15}\s*$" % _NUMBER, re.M),
    "widerface": re.compile(rb"\S.*[./].*\n\d+\s*\n(%b\s+){3,}" % _NUMBER),
}  # fmt: skip

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
    "bbox": "bbox box", "split": "split set subset usage partition", "crowd": "isgroupof iscrowd",
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
    described = _descriptions(file.parent) if at.get("crowd") else {}
    fraction = bool(every) and max(every) <= 1.0 + 1e-6

    def read(row: list[str]) -> Shape:
        a, b, c, d = numbers(*values(row))
        label = row[at["class"]].strip() if "class" in at else ""
        if label.startswith("/m/"):  # Open Images
            label = described.get(label, label)
        high = (c, d) if all(key in at for key in CORNERS) else (a + c, b + d)
        crowd = "crowd" in at and row[at["crowd"]].strip() == "1"
        return Shape(label, [(a, b), high], fraction=fraction, crowd=crowd)

    images: dict[tuple[str, str], list[list[str]]] = {}
    for row in rows:
        name = row[at["file"]].strip() if at["file"] < len(row) else ""
        split = split_of(row[at["split"]]) if at.get("split", len(row)) < len(row) else ""
        images.setdefault((name, split), []).append(row)
    for (name, split), group in images.items():
        boxes = [row for row in group if len(row) <= max(at.values()) or any(values(row))]
        yield Labelled(file, [name], len(boxes), shapes_of(boxes, read), part=split)


def _descriptions(folder: Path) -> dict[str, str]:
    """Open Images' names of classes: /m/... -> name, from a CSV file in a folder or above it."""
    for place in (folder, folder.parent):
        for path in sorted(place.glob("*class-descriptions*.csv")):
            return {row[0]: row[1] for row in csv_rows(read_text(path)) if len(row) == 2}
    return {}


def _per_image(
    file: Path, folders: tuple[str, ...], read: Callable[[str], Shape], head: str = r"\0"
) -> Iterator[Labelled]:
    """The image of a text file with an object in each line.

    Args:
        file: the text file; its image has the same stem.
        folders: names of folders beside the file's own that can have the image.
        read: a line.
        head: regular expression of lines that are no objects.
    """
    none = re.compile(head)
    lines = [line for line in read_text(file).splitlines()
             if line.strip() and not none.match(line)]  # fmt: skip
    raw = [line for line in re.split(rb"[\r\n]+", read_bytes(file)) if line.strip()]
    count = sum(not none.match(line.decode("utf-8-sig", "replace")) for line in raw)
    near = [file.stem]
    near += [f"../{folder}/{file.stem}{ending}" for folder in folders for ending in USUAL]
    yield Labelled(file, [f"{file.stem}.*"], count, shapes_of(lines, read), alone=True, near=near)


def dota(file: Path) -> Iterator[Labelled]:
    """DOTA: eight numbers for the corners of a rotated box, the class, and whether it is difficult.

    https://captain-whu.github.io/DOTA/dataset.html
    """

    def read(line: str) -> Shape:
        words = line.split()
        if len(words) not in (9, 10):
            raise Bad(f"{line!r}: not eight numbers and a class", "with a wrong number of fields")
        values = numbers(*words[:8])
        corners = list(zip(values[::2], values[1::2]))
        upright = len(set(values[::2])) == len(set(values[1::2])) == 2
        return Shape(words[8], corners, turned=not upright, crowd=words[9:] not in ([], ["0"]))

    return _per_image(file, ("images", "img"), read, "imagesource:|gsd:")


def kitti(file: Path) -> Iterator[Labelled]:
    """KITTI, and NVIDIA's tools that write its format: class, three numbers, corners, 3D box."""

    def read(line: str) -> Shape:
        words = line.split()
        if len(words) not in (15, 16):
            text = f"{line!r}: {len(words)} fields instead of 15 or 16"
            raise Bad(text, "with a wrong number of fields")
        if words[0] == "DontCare":
            raise Bad("DontCare", UNLABELLED)
        x1, y1, x2, y2 = numbers(*words[4:8])
        return Shape(words[0], [(x1, y1), (x2, y2)])

    return _per_image(file, ("image_2", "images", "image"), read)


def wider_face(file: Path) -> Iterator[Labelled]:
    """WIDER FACE: for each image its name, the number of faces, and a line for each face.

    An image without a face has one line of zeros. http://shuoyang1213.me/WIDERFACE
    """

    def read(line: str) -> Shape:
        x, y, w, h = numbers(*line.split()[:4])
        return Shape("face", [(x, y), (x + w, y + h)])

    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    at = 0
    while at < len(lines):
        if at + 1 == len(lines) or not lines[at + 1].isdecimal():
            raise UserError(f"{file}: {lines[at]}: the number of faces must follow")
        faces = lines[at + 2 : at + 2 + (count := int(lines[at + 1]))]
        if len(faces) < count:
            raise UserError(f"{file}: {lines[at]}: {len(faces)} faces follow instead of {count}")
        yield Labelled(file, [lines[at]], count, shapes_of(faces, read))
        at += 2 + count
        if not count and at < len(lines) and set(lines[at].split()) == {"0"}:
            at += 1
