"""Convert a YOLO data set to COCO format."""

import contextlib
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from string import whitespace
from typing import Any

from tqdm import tqdm

from fcos_recipe.data.image_files import files_below, image_size, is_image
from fcos_recipe.datasets.convert import keypoints
from fcos_recipe.datasets.convert.common import (
    Bad,
    Converted,
    as_number,
    common_folder,
    read_names,
)
from fcos_recipe.datasets.find_images import SPLITS, UPLOAD, ImageFinder, split_of
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_bytes, read_text, read_yaml

SLACK = 1e-3  # tolerance for values outside 0 to 1, which come from rounding
ROW = re.compile(rb"\s*\d+(\.0*)?([\s,]+[-+.\deE]+){4,}\s*$")  # a line of a label file


def from_yolo(
    source: Path, images: Path | None, classes: list[str] | None, split: str, listed: Path | None,
    points: str | None = None,
) -> Converted:  # fmt: skip
    """Read a YOLO data set: data.yaml, or a folder of images with labels.

    The labels of images/a.jpg are in labels/a.txt, or in a.txt beside the image; an image without
    such a file has no boxes. Each line has a class and cx, cy, w, h, after which keypoints may
    follow, or a class and a polygon or rotated box, as fractions of the image's width and height.

    Args:
        source: folder, or data.yaml.
        images: image folder; default: the one in data.yaml, or all images below `source`.
        classes: names; default: those in data.yaml, classes.txt or obj.names.
        split: key of data.yaml.
        listed: file with one image path per line.
        points: "N,D" if boxes have N keypoints of D numbers, "none" if long lines are polygons;
            default: the kpt_shape of data.yaml.

    Raises:
        UserError: there are no class names, no images or no labels.
    """
    config = source if source.is_file() else source / "data.yaml"
    folder = config.parent
    named = read_config(config) if config.is_file() else {}
    classes = classes or _names(folder, config, named.get("names"))
    places = parts(folder, named, split)
    if not (places or images or listed) and {"train", "val", "test"} & set(named):
        raise UserError(f"{config}: it has no {split}; choose another --split, or give --images")
    if images and not any(place.exists() for place in places):
        places = []
    lists = [listed] if listed else [place for place in places if place.is_file()]
    # folders of which all files belong to the data set
    roots = [] if listed else [place for place in places if not place.is_file()]
    if not lists and not roots:
        roots = [images or folder]
    base = folder / str(named.get("path") or "")
    finder = ImageFinder([*([images] if images else []), base, folder], [images or folder])
    names = [line.strip() for path in lists for line in read_text(path).splitlines()]
    files = [finder.find(name) or base / name for name in names if name]
    there = dict.fromkeys(path for root in roots for path in files_below(root))
    files += [path for path in there if is_image(path)]
    if not files:
        raise UserError(f"{', '.join(map(str, roots)) or listed}: no images in it")
    below = images if images and all(map(_is_below(images), files)) else None
    found = Converted(common_folder(below, files), classes)
    account = found.account
    account.seen["images"] = len(files)
    account.leave_out("images", "listed twice", len(files) - len(set(files)))
    users: dict[Path, Path] = {}  # label file -> its image
    labels = {file: _label_file(file) for file in files}
    if images and not any(labels.values()):
        labels = _labels_apart(folder, images, files)
        roots.append(folder)
    shape = _keypoints(points, named.get("kpt_shape"), config, labels.values())
    for file, label_file in tqdm(labels.items(), disable=None, unit="image", desc="labels"):
        if label_file is not None and users.setdefault(label_file, file) != file:
            text = f"its label file {label_file} also belongs to {users[label_file]}"
            found.refuse(file, text, "images", reason="with another image's label file")
            continue
        rows = 0 if label_file is None else len(_raw_lines(label_file))
        account.seen["label files"] += label_file is not None
        account.seen["boxes"] += rows
        size = image_size(file)
        if size is None:
            why = "missing, or not readable"
            found.refuse(file, "missing, or not an image", "images", reason=why)
            account.leave_out("label files", "of such images", label_file is not None)
            account.leave_out("boxes", "of such images", rows)
            continue
        image = found.image(file, size)
        if label_file is None:
            found.said["images have no label file and count as images without boxes"] += 1
            continue
        try:
            lines = list(_lines(label_file))
        except UserError as error:
            found.refuse(label_file, error, "label files")
            account.leave_out("boxes", "in such files", rows)
            continue
        account.written["label files"] += 1
        for place, line in lines:
            try:
                _add_box(found, image, line.split(), shape)
            except Bad as error:
                found.refuse(place, error)
    if not users:
        raise UserError(
            f"{source}: none of the {len(files)} images has a label file; expected "
            "labels/NAME.txt next to images/, or NAME.txt next to the image"
        )
    _without_image(found, roots, {*files, *users, config})
    return found


def _is_below(folder: Path):
    real = os.path.realpath(folder)
    return lambda file: os.path.commonpath([real, os.path.realpath(file)]) == real


def read_config(config: Path) -> dict[str, Any]:
    """The content of data.yaml.

    Raises:
        UserError: it is not YAML, or not a mapping.
    """
    named = read_yaml(config)
    if not isinstance(named, dict):
        raise UserError(f"{config}: it must be a mapping with names and train")
    return named


def parts(folder: Path, named: dict[str, Any], split: str) -> list[Path]:
    """The folders and lists of a split in data.yaml.

    Paths are often those of another machine, or relative to a folder that is not there: the first
    of a path's ends that exists below the folder of data.yaml is taken.

    Args:
        folder: of data.yaml.
        named: its content.
        split: a key of it, or "train", "val" or "test" under another name.

    Raises:
        UserError: the value is not a path or a list of paths.
    """
    key = split if split in named else next(
        (key for key in named if SPLITS.get(str(key)) == SPLITS.get(split, split)), split
    )  # fmt: skip
    given = named.get(key) or []
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(part, str) for part in given):
        raise UserError(f"{folder}: {split} must be a folder, a file, or a list of them")
    base = folder / str(named.get("path") or "")
    found = []
    for text in given:
        words = [w for w in re.split(r"[\\/]+", text) if w not in ("", ".", "..")]
        ends = [words[i:] for i in range(len(words))]
        ends = [Path(*end) for end in ends if split_of(*end) == split_of(*words)]
        places = [base / text, *(b / end for end in ends for b in (base, folder))]
        found.append(next((place for place in places if place.exists()), places[0]))
    return found


def _without_image(found: Converted, roots: list[Path], used: set[Path]) -> None:
    """Count the label files that belong to no image, and files that are neither of both."""
    there = {path for root in roots for path in (*files_below(root), *files_below(_labels(root)))}
    other = []
    for file in sorted(there - used):
        text = file.suffix.lower() == ".txt" and not file.name.startswith(".")
        lines = _raw_lines(file) if text else []
        if not text or (lines and not any(map(ROW.match, lines))):
            other.append(file)
            continue
        found.account.seen["label files"] += 1
        found.account.seen["boxes"] += len(lines)
        found.account.leave_out("boxes", "of label files without an image", len(lines))
        if lines:
            why = "there is no image for it, or its image has another label file"
            found.refuse(file, why, "label files", reason="without an image")
        else:
            found.account.leave_out("label files", "without an image, and empty")
    found.unused(other, (), "not in the folder of the images")


def _keypoints(
    points: str | None, named: Any, config: Path, labels: Iterable[Path | None]
) -> tuple[int, int] | None:
    """Number and size of the keypoints after each box; None: long lines are polygons.

    Raises:
        UserError: it is not stated correctly, or not at all and lines look like keypoints.
    """
    if points == keypoints.NONE:
        return None
    if points is not None:
        number, _, size = points.partition(",")
        values = [int(v) if v.isdecimal() else v for v in (number, size)]
        return keypoints.stated(values, "--keypoints")
    shape = keypoints.stated(named, f"{config}: kpt_shape")
    if shape is None:

        def lines() -> Iterator[tuple[str, str]]:
            for file in labels:
                with contextlib.suppress(UserError):  # it is reported when it is read
                    yield from _lines(file) if file is not None else ()

        keypoints.refuse_unstated(lines())
    return shape


def _names(folder: Path, config: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{config}: names: keys must be 0 to {len(names) - 1}")
        names = [names[k] for k in range(len(names))]
    if isinstance(names, list) and names:
        names = [str(name) for name in names]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{config}: names: {twice[0]!r} occurs twice; rename one of them")
        return names
    known = ("classes.txt", "obj.names", "_darknet.labels", "classes.names", "labels.txt")
    files = [file for file in files_below(folder) if file.name in known]
    nearest = sorted(files, key=lambda file: (len(file.parts), known.index(file.name)))
    found = {tuple(read_names(file)): file for file in nearest[::-1] if _is_list(file)}
    if len(found) > 1:
        names = ", ".join(str(file) for file in found.values())
        raise UserError(f"{names} have different class names; choose with --classes FILE")
    if found:
        return list(next(iter(found)))
    raise UserError(
        f"{folder}: no class names in data.yaml, {', '.join(known)}; add --classes FILE or "
        "--classes A,B in the order of the numbers in the label files"
    )


def _is_list(file: Path) -> bool:
    """Whether a file with the name of a list of classes is not the labels of an image."""
    lines = _raw_lines(file)
    return bool(lines) and not all(map(ROW.match, lines))


def _labels(path: Path) -> Path:
    """The path with the last part that is called `images` replaced by `labels`."""
    parts = list(path.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _labels_apart(folder: Path, images: Path, files: list[Path]) -> dict[Path, Path | None]:
    """The label file of each image, from a folder of labels without images.

    It is at the image's place, as `fcos infer --save-labels yolo` writes it, or else the only one
    with the image's stem, as Label Studio exports it. There the label file of an upload has a
    prefix that the image does not have.
    """
    there = {path for path in files_below(folder) if path.suffix.lower() == ".txt"}
    placed: dict[Path, Path | None] = {}
    for file in files:
        if file.is_relative_to(images):
            name = folder / file.relative_to(images)
            paths = {name.with_name(f"{stem}.txt") for stem in (file.name, file.stem)} & there
            if paths:  # with the ending of the image where a stem has several
                placed[file] = max(paths, key=lambda path: len(path.name))
    stems: dict[str, list[Path]] = {}
    for path in there - set(placed.values()):
        for stem in {path.stem, UPLOAD.sub("", path.stem)}:
            stems.setdefault(stem, []).append(path)
    found = {file: stems.get(file.stem, []) for file in files if file not in placed}
    placed |= {file: paths[0] if len(paths) == 1 else None for file, paths in found.items()}
    return {file: placed[file] for file in files}


def _label_file(file: Path) -> Path | None:
    """The label file of an image; it may be a link that leads nowhere."""
    for folder in (_labels(file.parent), file.parent):
        for name in (file.stem, file.name):  # the name may have a dot and no ending
            for path in (folder / f"{name}.txt", folder / f"{name}.TXT"):
                if os.path.lexists(path):
                    return path
    return None


def _add_box(
    found: Converted, image: dict[str, Any], words: list[str], shape: tuple[int, int] | None
) -> None:
    if shape is not None and len(words) == 5 + shape[0] * shape[1]:
        words = words[:5]
        found.account.seen["sets of keypoints"] += 1
        found.account.leave_out("sets of keypoints", "not used: boxes are")
    if len(words) > 5 and len(words) % 5 == 0 and all(map(str.isdecimal, words[5::5])):
        raise Bad("several boxes in one line", "with a wrong number of fields")
    if len(words) != 5 and (shape or len(words) < 7 or len(words) % 2 == 0):
        more = f" and {shape[0]} keypoints of {shape[1]} numbers" if shape else ""
        more = more or ", or a class and a polygon; keypoints need kpt_shape in data.yaml"
        text = f"{len(words)} fields; expected a class and cx cy w h{more}"
        raise Bad(text, "with a wrong number of fields")
    label = as_number(words[0])
    if not label.is_integer() or not 0 <= label < len(found.classes):
        text = f"class {words[0]} is not among the {len(found.classes)} class names"
        raise Bad(text, "of an unknown class")
    values = [as_number(word) for word in words[1:]]
    if not all(-SLACK <= v <= 1 + SLACK for v in values):
        text = f"{' '.join(words[1:5])}: must be fractions of width and height, from 0 to 1"
        raise Bad(text, "not from 0 to 1")
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
    found.said["boxes are the bounds of polygons, which are kept as well"] += 1


def _raw_lines(file: Path) -> list[bytes]:
    """The lines of a file that are not empty, from its bytes; none if it can't be read."""
    try:
        lines = re.split(rb"[\r\n]+", read_bytes(file).removeprefix(BOM_UTF8))
    except UserError:
        return []
    return [line for line in lines if line.strip()]


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file:line number", line) for each line that is not empty.

    Raises:
        UserError: the file can't be read.
    """
    for number, line in enumerate(StringIO(read_text(file), newline=None), start=1):
        if line.strip(whitespace):
            yield f"{file}:{number}", line
