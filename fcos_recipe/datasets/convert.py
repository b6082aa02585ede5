"""Pascal VOC, YOLO and incomplete COCO into COCO: `fcos dataset convert`.

Tried instead: hotcoco 1.3 loses the files' endings, subfolders and images without a label, lets NaN
through and stops at the first bad line; globox 2.9 knows one ending of images per call and names
neither file nor line of an error. Datumaro and FiftyOne can do it, and need 17 and 50 packages.
"""

import argparse
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import msgspec
import yaml
from tqdm import tqdm

from fcos_recipe.config.load import display
from fcos_recipe.datasets.locate import LOOK_AT, image_folder
from fcos_recipe.datasets.look.stats import header_size
from fcos_recipe.datasets.reshape import refuse_overwriting, told, write
from fcos_recipe.errors import UserError, UserErrors, printable

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MOST_TOLD = 20  # bad lines that are printed
SLACK = 1e-3  # by which YOLO's values may leave the image: they were rounded by somebody


class Bad(Exception):
    """One line or entry that can't be converted."""


@dataclass
class Converted:
    """What is written, with what was wrong on the way.

    Args:
        root: folder that file names are relative to.
        classes: names, in order of their ids from 1.
    """

    root: Path
    classes: list[str]
    other: dict[str, Any] = field(default_factory=dict)  #: sections that are there already
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)  #: "file:line: what"
    said: Counter = field(default_factory=Counter)  #: what is worth telling: how often

    def image(self, file: Path, size: tuple[int, int]) -> dict[str, Any]:
        """Add an image of height and width `size`."""
        name = Path(os.path.relpath(file, self.root)).as_posix()
        entry = {"id": len(self.images) + 1, "file_name": name, "height": size[0], "width": size[1]}
        self.images.append(entry)
        return entry

    def box(self, image: dict[str, Any], label: int, corners: list[float], **more: Any) -> None:
        """Add a box x1, y1, x2, y2 in pixels, clipped to the image.

        Raises:
            Bad: no number, or nothing of it on the image.
        """
        if not all(map(math.isfinite, corners)):
            raise Bad(f"box {corners}: not a finite number")
        x1, y1, x2, y2 = corners
        if x2 <= x1 or y2 <= y1:
            raise Bad(f"box {[round(v, 2) for v in corners]}: no width or no height")
        width, height = image["width"], image["height"]
        inside = [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            raise Bad(f"box {[round(v, 2) for v in corners]}: outside the {width}x{height} image")
        if max(abs(a - b) for a, b in zip(inside, corners)) > 1:
            self.said["boxes reached beyond their image: clipped"] += 1
        x1, y1, x2, y2 = inside
        bbox = [round(v, 4) for v in (x1, y1, x2 - x1, y2 - y1)]
        entry = {
            "id": len(self.annotations) + 1, "image_id": image["id"], "category_id": label + 1,
            "bbox": bbox, "area": round(bbox[2] * bbox[3], 4), "iscrowd": 0, **more,
        }  # fmt: skip
        self.annotations.append(entry)

    def content(self) -> dict[str, Any]:
        """The COCO file."""
        names = [{"id": k, "name": n} for k, n in enumerate(self.classes, start=1)]
        mine = {"images": self.images, "annotations": self.annotations}
        return {"categories": names, **self.other, **mine}


# ---- YOLO ----------------------------------------------------------------------------------------


def from_yolo(
    source: Path, images: Path | None, classes: list[str] | None, split: str, listed: Path | None
) -> Converted:
    """A YOLO data set: data.yaml, or a folder of images with labels.

    The labels of images/a.jpg are in labels/a.txt, or in a.txt beside the image; an image without
    such a file has no boxes. Lines are a class and cx, cy, w, h, or a class and a polygon, in
    shares of width and height.

    Args:
        source: folder, or data.yaml.
        images: folder of the images; default: by data.yaml, or all below `source`.
        classes: names; default: by data.yaml, classes.txt or obj.names.
        split: key of data.yaml.
        listed: file of image paths, one a line.

    Raises:
        UserError: no names, no images.
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
            raise UserError(f"{config}: not a mapping with names and {split}")
    classes = classes or _yolo_names(folder, config, named.get("names"))
    base = folder / str(named.get("path") or "")
    base = base if base.is_dir() else folder
    parts = named.get(split) or []
    parts = [parts] if isinstance(parts, str) else parts
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"{config}: {split}: not a folder, a file, or a list of them")
    if not (parts or images or listed) and {"train", "val", "test"} & set(named):
        raise UserError(f"{config}: no {split} in it; choose --split, or name --images")
    if listed:
        files = _listed(listed, base)
    elif images or not parts:
        files = _images_below(images or folder)
    else:
        files = []
        for part in parts:
            place = base / part
            # Roboflow writes ../train/images, counted from a folder that is not there
            place = place if place.exists() else folder / part.replace("../", "", 1)
            files += _listed(place, base) if place.is_file() else _images_below(place)
    found = Converted(_root(images, files), classes)
    labels = 0
    for file in tqdm(files, disable=None, unit="image", desc="labels"):
        label_file = _yolo_label(file)
        size = header_size(file)
        if size is None:
            found.bad.append(f"{file}: missing, or not an image")
            continue
        image = found.image(file, size)
        if label_file is None:
            found.said["images have no label file: taken as images without boxes"] += 1
            continue
        labels += 1
        for place, line in _lines(label_file, found):
            try:
                _yolo_box(found, image, line.split())
            except Bad as error:
                found.bad.append(f"{place}: {error}")
    if not labels:
        raise UserError(
            f"{source}: no label file for any of {len(files)} images; labels/NAME.txt are looked "
            "for beside images/, or NAME.txt beside the image"
        )
    return found


def _yolo_names(folder: Path, config: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{config}: names: keys are not 0 to {len(names) - 1}")
        names = [names[k] for k in range(len(names))]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    for file in ("classes.txt", "obj.names", "labels/classes.txt"):
        if (folder / file).is_file():
            return read_names(folder / file)
    raise UserError(f"{folder}: no class names in data.yaml, classes.txt or obj.names; --classes")


def _yolo_label(file: Path) -> Path | None:
    """The label file of an image."""
    parts = list(file.parts)
    if "images" in parts[:-1]:
        at = len(parts) - 2 - parts[-2::-1].index("images")
        path = Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
        if path.is_file():
            return path
    path = file.with_suffix(".txt")
    return path if path.is_file() else None


def _yolo_box(found: Converted, image: dict[str, Any], words: list[str]) -> None:
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise Bad(f"{len(words)} fields: expected class cx cy w h, or class and a polygon")
    label = _number(words[0])
    if not label.is_integer() or not 0 <= label < len(found.classes):
        raise Bad(f"class {words[0]}: not among the {len(found.classes)} names")
    values = [_number(word) for word in words[1:]]
    if not all(-SLACK <= v <= 1 + SLACK for v in values):
        raise Bad(f"{' '.join(words[1:5])}: not shares of width and height from 0 to 1")
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


def _number(word: Any) -> float:
    try:
        return float(word)
    except (TypeError, ValueError):
        raise Bad(f"{word!r} is not a number") from None


# ---- VOC -----------------------------------------------------------------------------------------


def from_voc(
    source: Path, images: Path | None, classes: list[str] | None, listed: Path | None, origin: str
) -> Converted:
    """A Pascal VOC data set: a folder with Annotations/ and JPEGImages/, or one of XML files.

    Objects marked difficult become iscrowd 1: not trained on, and finding them costs nothing in
    evaluation, as in VOC's own.

    Args:
        source: the folder.
        images: folder of the images; default: JPEGImages/, images/ or beside the XML.
        classes: names, in order; default: those that occur, sorted.
        listed: file of image names, as ImageSets/Main/train.txt.
        origin: of pixel coordinates, "1" (VOC: 1 to width, the last pixel included), "0" (0 to
            width), or "auto": 0 if some coordinate is below 1.

    Raises:
        UserError: no XML files.
    """
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    if listed:
        files = [folder / f"{Path(name).stem}.xml" for name in _words(listed)]
    else:
        files = sorted(folder.rglob("*.xml"))
    if not files:
        raise UserError(f"{folder}: no XML files; give the folder that has Annotations/")
    places = [images] if images else [source / "JPEGImages", source / "images"]
    bad, trees = [], []
    for file in tqdm(files, disable=None, unit="file", desc="annotations"):
        try:
            trees.append((file, read_xml(file)))
        except Bad as error:
            bad.append(str(error))
    objects = [o for _, tree in trees for o in tree.iter("object")]
    if classes is None:
        classes = sorted({_text(o, "name") for o in objects} - {""})
    if origin == "auto":
        origin = "0" if any(_below_one(o) for o in objects) else "1"
    paths = [_voc_image(file, tree, places) for file, tree in trees]
    found = Converted(_root(images, paths), classes, bad=bad)
    found.said[f"objects; their coordinates start at {origin} (--origin)"] = len(objects)
    used: dict[Path, Path] = {}
    for (file, tree), path in zip(trees, paths):
        if used.setdefault(path, file) != file:
            found.bad.append(f"{file}: its image {path} is that of {used[path]}")
            continue
        size = tree.find("size")
        told_size = tuple(_text(size, key) for key in ("height", "width"))
        true_size = header_size(path)
        if true_size is None:
            if not all(text.isdigit() and int(text) for text in told_size):
                found.bad.append(f"{path}: missing or not an image, and {file} tells no size")
                continue
            found.said["images are missing: their sizes are those of the XML"] += 1
            true_size = int(told_size[0]), int(told_size[1])
        elif told_size != tuple(map(str, true_size)):
            found.said["XML files tell another size than their image, which is used"] += 1
        image = found.image(path, true_size)
        for item in tree.iter("object"):
            try:
                _voc_box(found, image, item, int(origin))
            except Bad as error:
                found.bad.append(f"{file}:{item.get('line')}: {error}")
    return found


def read_xml(path: Path) -> ElementTree.Element:
    """An XML file as a tree whose elements carry their line; declarations are refused.

    Without a document type there are no entities: none that expand to gigabytes, none that name
    other files.

    Raises:
        Bad: unreadable, not XML, a document type declaration.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise Bad(f"{path}:{parser.CurrentLineNumber}: <!DOCTYPE>: not taken from a data set")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, _: builder.start(
        tag, {"line": str(parser.CurrentLineNumber)}
    )
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise Bad(f"{path}: {error.strerror}") from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise Bad(f"{path}:{getattr(error, 'lineno', 1)}: not XML: {error}") from None
    return builder.close()


def _text(element: ElementTree.Element | None, key: str) -> str:
    return "" if element is None else (element.findtext(key) or "").strip()


def _corners(item: ElementTree.Element) -> list[float]:
    return [_number(_text(item.find("bndbox"), key)) for key in ("xmin", "ymin", "xmax", "ymax")]


def _below_one(item: ElementTree.Element) -> bool:
    try:
        return min(_corners(item)[:2]) < 1
    except Bad:
        return False


def _voc_image(file: Path, tree: ElementTree.Element, places: list[Path]) -> Path:
    """The image of an XML file: by its <filename>, else by its own name."""
    name = Path(_text(tree, "filename").replace("\\", "/")).name or f"{file.stem}.jpg"
    for place in (*places, file.parent):
        for candidate in (name, *(file.stem + ending for ending in ENDINGS)):
            if (place / candidate).is_file():
                return place / candidate
    return next((place for place in places if place.is_dir()), file.parent) / name


def _voc_box(
    found: Converted, image: dict[str, Any], item: ElementTree.Element, origin: int
) -> None:
    name = _text(item, "name")
    if name not in found.classes:
        raise Bad(f"class {name!r}: not among the {len(found.classes)} names")
    x1, y1, x2, y2 = _corners(item)
    more = {}
    if _text(item, "difficult") == "1":
        more = {"iscrowd": 1, "difficult": 1}
    found.box(image, found.classes.index(name), [x1 - origin, y1 - origin, x2, y2], **more)
    if more:
        found.said["objects are marked difficult: iscrowd 1, not trained on"] += 1


# ---- COCO ----------------------------------------------------------------------------------------


def from_coco(source: Path, images: Path | None) -> Converted:
    """A COCO file with what it lacks: whole ids, sizes, boxes from polygons, area, iscrowd.

    All other fields stay. Entries are named by section and position.

    Raises:
        UserError: not JSON, no sections.
    """
    try:
        data = msgspec.json.decode(source.read_bytes())
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{source}: not a complete JSON file ({error})") from None
    sections = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(
        isinstance(data.get(key), list) and all(isinstance(e, dict) for e in data[key])
        for key in sections
    ):
        raise UserError(f"{source}: images, annotations and categories are not lists of objects")
    names = [str(image.get("file_name")) for image in data["images"]]
    root = images or Path(image_folder(str(source), names[:LOOK_AT]) or source.parent)
    found = Converted(root, [str(c.get("name")) for c in data["categories"]])
    number = {key: _renumber(data[key], key, found) for key in sections}
    by_id = {}
    for n, image in enumerate(data["images"]):
        if str(image.get("id")) in by_id:
            found.bad.append(f"{source}: images[{n}].id: {image.get('id')!r} occurs twice")
            continue
        entry = {**image, "id": number["images"][n]}
        if not isinstance(image.get("file_name"), str):
            found.bad.append(f"{source}: images[{n}].file_name: missing")
            continue
        if not all(isinstance(image.get(k), int) and image[k] > 0 for k in ("height", "width")):
            size = header_size(root / image["file_name"])
            if size is None:
                name = entry["file_name"]
                found.bad.append(f"{source}: images[{n}]: no size, and no image {name}")
                continue
            entry |= {"height": size[0], "width": size[1]}
            found.said["sizes of images were missing: read from the files"] += 1
        by_id[str(image.get("id"))] = entry
        found.images.append(entry)
    classes = {str(c.get("id")): k for c, k in zip(data["categories"], number["categories"])}
    if len(classes) < len(data["categories"]):
        raise UserError(f"{source}: categories: an id occurs twice; give each class its own")
    for n, annotation in enumerate(data["annotations"]):
        try:
            entry = _coco_box(annotation, by_id, classes, found)
        except Bad as error:
            found.bad.append(f"{source}: annotations[{n}]: {error}")
            continue
        found.annotations.append({**entry, "id": number["annotations"][n]})
    categories = [{**c, "id": k} for c, k in zip(data["categories"], number["categories"])]
    found.other = {**data, "categories": categories}
    return found


def _renumber(entries: list[dict[str, Any]], section: str, found: Converted) -> list[int]:
    """Ids of a section if they are whole and differ, else 1, 2, ..."""
    ids = [e["id"] if isinstance(e.get("id"), int) else str(e.get("id")) for e in entries]
    whole = [int(i) if isinstance(i, int) or i.isdigit() else -1 for i in ids]
    if all(0 <= i < 2**63 for i in whole) and len(set(whole)) == len(whole):
        return whole
    found.said[f"ids of {section} were missing, not whole, or not unique: now from 1"] += len(ids)
    return list(range(1, len(entries) + 1))


def _coco_box(
    annotation: dict[str, Any], images: dict[str, dict], classes: dict[str, int], found: Converted
) -> dict[str, Any]:
    image = images.get(str(annotation.get("image_id")))
    if image is None:
        raise Bad(f"image_id {annotation.get('image_id')!r}: no such image")
    if (label := classes.get(str(annotation.get("category_id")))) is None:
        raise Bad(f"category_id {annotation.get('category_id')!r}: no such category")
    box = annotation.get("bbox")
    polygons = annotation.get("segmentation")
    if not box and isinstance(polygons, list) and polygons:
        try:
            xs, ys = ([float(v) for p in polygons for v in p[k::2]] for k in (0, 1))
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        except (TypeError, ValueError):
            raise Bad("segmentation: not polygons") from None
        found.said["boxes were missing: drawn around their polygons"] += 1
    if not isinstance(box, list) or len(box) != 4:
        raise Bad("bbox: not four numbers")
    box = [_number(v) for v in box]
    if not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        raise Bad(f"bbox {box}: no width or no height")
    entry = {**annotation, "image_id": image["id"], "category_id": label, "bbox": box}
    if entry.get("area") is None:
        entry["area"] = box[2] * box[3]
        found.said["areas were missing: width x height"] += 1
    entry["iscrowd"] = int(bool(entry.get("iscrowd")))
    return entry


# ---- the command ---------------------------------------------------------------------------------


def _images_below(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if not files:
        raise UserError(f"{folder}: no images in it ({', '.join(ENDINGS)})")
    return files


def _words(listed: Path) -> list[str]:
    """The first word of each line: ImageSets has -1, 0, 1 after it."""
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listed}: --list: {error}") from None
    return [line.split()[0] for line in lines if line.strip()]


def _listed(listed: Path, base: Path) -> list[Path]:
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listed}: {error}") from None
    return [base / line.strip() for line in lines if line.strip()]


def _root(images: Path | None, files: list[Path]) -> Path:
    if images is not None:
        return images
    return Path(os.path.commonpath([path.parent for path in files])) if files else Path()


def _lines(file: Path, found: Converted) -> Iterator[tuple[str, str]]:
    """Each line that is not empty, with "file:number"."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found.bad.append(f"{file}: {error}")
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{file}:{number}", line


def read_names(path: Path) -> list[str]:
    """Class names, one a line.

    Raises:
        UserError: unreadable, or none in it.
    """
    try:
        names = [n.strip() for n in path.read_text(encoding="utf-8-sig").splitlines() if n.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: no class name in it, or one twice")
    return names


_HELP = """\
examples:
  fcos dataset convert --from voc VOCdevkit/VOC2007 --list ImageSets/Main/train.txt -o train.json
  fcos dataset convert --from yolo my/data.yaml --split val -o annotations/instances_val.json
  fcos dataset convert --from yolo my --images my/images/train --classes cat,dog -o train.json
  fcos dataset convert --from coco export.json -o annotations/instances_train.json

Images are not copied; sizes come from their headers, turned as their EXIF tag says. A line that
can't be converted is named with its file and number, and nothing is written unless --skip-bad
leaves such lines out. VOC's difficult objects become iscrowd 1. --from coco fills in what is
missing: whole ids, sizes, boxes of polygons, area, iscrowd; other fields stay.
exit codes: 0 written; 2 wrong arguments, or something that can't be read or converted
"""


def main(argv: list[str]) -> int:
    """`fcos dataset convert`."""
    args = _parse(argv)
    refuse_overwriting([args.output], args.force)
    if args.list is not None and not args.list.exists():
        args.list = args.source / args.list
    for path in (args.source, args.images, args.list):
        if path is not None and not path.exists():
            raise UserError(f"{path}: not there")
    classes = args.classes
    if classes and len(classes) == 1 and Path(classes[0]).is_file():
        classes = read_names(Path(classes[0]))
    if args.format == "yolo":
        found = from_yolo(args.source, args.images, classes, args.split, args.list)
    elif args.format == "voc":
        found = from_voc(args.source, args.images, classes, args.list, args.origin)
    else:
        found = from_coco(args.source, args.images)
    if found.bad and not args.skip_bad:
        more = len(found.bad) - MOST_TOLD
        rest = [f"{more} more"] if more > 0 else []
        last = f"{len(found.bad)} can't be converted; mend them, or leave them out with --skip-bad"
        raise UserErrors([*found.bad[:MOST_TOLD], *rest, last])
    for line in found.bad:
        print(printable(f"left out: {line}"))
    for text, count in found.said.items():
        print(printable(f"{count} {text}"))
    content = found.content()
    write(args.output, content)
    told(args.output, content)
    print(printable(f"image_dir (file names start there): {display(str(found.root))}"))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fcos dataset convert", epilog=_HELP,
        description="Write annotations of another format as a COCO file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("source", type=Path, metavar="DIR|FILE", help="voc: folder; yolo: folder or data.yaml; "
        "coco: JSON")  # fmt: skip
    add("--from", dest="format", required=True, choices=("voc", "yolo", "coco"))
    add("-o", "--output", type=Path, required=True, metavar="FILE.json")
    add("--images", type=Path, metavar="DIR", help="of the images; file names start there")
    add("--classes", type=lambda text: text.split(","), metavar="FILE|A,B",
        help="names in order of their ids, in a file one a line")  # fmt: skip
    add("--split", default="train", metavar="NAME", help="of data.yaml (default: %(default)s)")
    add("--list", type=Path, metavar="FILE", help="only the images that it names, one a line")
    add("--origin", choices=("auto", "0", "1"), default="auto",
        help="voc: pixel coordinates start at 1, the last included, or at 0 "
        "(auto: 0 if some are below 1)")  # fmt: skip
    add("--skip-bad", action="store_true", help="leave out what can't be converted, and say so")
    add("--force", action="store_true", help="overwrite")
    return parser.parse_args(argv)
