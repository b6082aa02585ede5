"""Convert a YOLO data set to COCO format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from fcos_recipe.datasets.convert.common import (
    ENDINGS,
    Bad,
    Converted,
    as_number,
    common_folder,
    read_names,
)
from fcos_recipe.datasets.look.stats import header_size
from fcos_recipe.errors import UserError

SLACK = 1e-3  # tolerance for values outside 0 to 1, which come from rounding


def from_yolo(
    source: Path, images: Path | None, classes: list[str] | None, split: str, listed: Path | None
) -> Converted:
    """Read a YOLO data set: data.yaml, or a folder of images with labels.

    The labels of images/a.jpg are in labels/a.txt, or in a.txt beside the image; an image without
    such a file has no boxes. Each line has a class and cx, cy, w, h, or a class and a polygon, as
    fractions of the image's width and height.

    Args:
        source: folder, or data.yaml.
        images: image folder; default: the one in data.yaml, or all images below `source`.
        classes: names; default: those in data.yaml, classes.txt or obj.names.
        split: key of data.yaml.
        listed: file with one image path per line.

    Raises:
        UserError: there are no class names, no images or no labels.
    """
    config = source if source.is_file() else source / "data.yaml"
    folder = config.parent
    named: dict[str, Any] = {}
    if config.is_file():
        try:
            named = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{config}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(named, dict):
            raise UserError(f"{config}: it must be a mapping with names and {split}")
    classes = classes or _names(folder, config, named.get("names"))
    base = folder / str(named.get("path") or "")
    base = base if base.is_dir() else folder
    parts = named.get(split) or []
    parts = [parts] if isinstance(parts, str) else parts
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"{config}: {split} must be a folder, a file, or a list of them")
    if not (parts or images or listed) and {"train", "val", "test"} & set(named):
        raise UserError(f"{config}: it has no {split}; choose another --split, or give --images")
    if listed:
        files = _listed(listed, base)
    elif images or not parts:
        files = _images_below(images or folder)
    else:
        files = []
        for part in parts:
            place = base / part
            # Roboflow writes ../train/images, relative to a folder that does not exist
            place = place if place.exists() else folder / part.replace("../", "", 1)
            files += _listed(place, base) if place.is_file() else _images_below(place)
    found = Converted(common_folder(images, files), classes)
    labels = 0
    for file in tqdm(files, disable=None, unit="image", desc="labels"):
        label_file = _label_file(file)
        size = header_size(file)
        if size is None:
            found.bad.append(f"{file}: missing, or not an image")
            continue
        image = found.image(file, size)
        if label_file is None:
            found.said["images have no label file and count as images without boxes"] += 1
            continue
        labels += 1
        for place, line in _lines(label_file, found):
            try:
                _add_box(found, image, line.split())
            except Bad as error:
                found.bad.append(f"{place}: {error}")
    if not labels:
        raise UserError(
            f"{source}: none of the {len(files)} images has a label file; expected "
            "labels/NAME.txt next to images/, or NAME.txt next to the image"
        )
    return found


def _names(folder: Path, config: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{config}: names: keys must be 0 to {len(names) - 1}")
        names = [names[k] for k in range(len(names))]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    for file in ("classes.txt", "obj.names", "labels/classes.txt"):
        if (folder / file).is_file():
            return read_names(folder / file)
    raise UserError(f"{folder}: no class names in data.yaml, classes.txt, obj.names; add --classes")


def _label_file(file: Path) -> Path | None:
    """The label file of an image."""
    parts = list(file.parts)
    if "images" in parts[:-1]:
        at = len(parts) - 2 - parts[-2::-1].index("images")
        path = Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
        if path.is_file():
            return path
    path = file.with_suffix(".txt")
    return path if path.is_file() else None


def _add_box(found: Converted, image: dict[str, Any], words: list[str]) -> None:
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise Bad(f"{len(words)} fields; expected a class and cx cy w h, or a class and a polygon")
    label = as_number(words[0])
    if not label.is_integer() or not 0 <= label < len(found.classes):
        raise Bad(f"class {words[0]} is not among the {len(found.classes)} class names")
    values = [as_number(word) for word in words[1:]]
    if not all(-SLACK <= v <= 1 + SLACK for v in values):
        raise Bad(f"{' '.join(words[1:5])}: must be fractions of width and height, from 0 to 1")
    width, height = image["width"], image["height"]
    if len(values) == 4:
        cx, cy, w, h = values
        corners = [(cx - w / 2) * width, (cy - h / 2) * height,
                   (cx + w / 2) * width, (cy + h / 2) * height]  # fmt: skip
        found.box(image, int(label), corners)
        return
    xs, ys = [v * width for v in values[::2]], [v * height for v in values[1::2]]
    polygon = [round(v, 4) for point in zip(xs, ys) for v in point]
    found.box(image, int(label), [min(xs), min(ys), max(xs), max(ys)], segmentation=[polygon])


def _images_below(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if not files:
        raise UserError(f"{folder}: no images in it ({', '.join(ENDINGS)})")
    return files


def _listed(listed: Path, base: Path) -> list[Path]:
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listed}: {error}") from None
    return [base / line.strip() for line in lines if line.strip()]


def _lines(file: Path, found: Converted) -> Iterator[tuple[str, str]]:
    """Yield ("file:line number", line) for each line that is not empty."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found.bad.append(f"{file}: {error}")
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{file}:{number}", line
