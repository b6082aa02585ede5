"""Convert a Pascal VOC data set to COCO format."""

import contextlib
import math
import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from tqdm import tqdm

from fcos_recipe.data.image_files import files_below, image_size
from fcos_recipe.datasets.box_forms import turned
from fcos_recipe.datasets.convert.common import (
    MISSING,
    Bad,
    Converted,
    as_number,
    common_folder,
    read_names,
)
from fcos_recipe.datasets.find_images import ImageFinder
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_bytes

EXCHANGED = (
    "XML files give width and height exchanged: if the tool ignored the EXIF rotation of the "
    "image, their boxes are wrong; see fcos dataset browse"
)
YES = {"1", "true", "yes"}
SPLIT = re.compile(r"(train|val|valid|validation|test|eval|dev)(ing|\d)*$", re.IGNORECASE)


def from_voc(
    source: Path, images: Path | None, classes: list[str] | None, origin: str
) -> Converted:
    """Read a Pascal VOC data set: a folder with Annotations/ and JPEGImages/, or of XML files.

    Objects marked difficult get iscrowd 1: training skips them, and evaluation ignores detections
    that match them, as VOC's own evaluation does.

    Args:
        source: the folder.
        images: image folder, at any depth; default: JPEGImages/, images/ or any below `source`.
        classes: names, in order; default: those of PaddleDetection's label_list.txt in
            `source`, else the names that occur, sorted.
        origin: of pixel coordinates: "1" (VOC: 1 to width, last pixel included), "0" (0 to
            width), or "auto", see `_origin`.

    Raises:
        UserError: there are no XML files.
    """
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    files = [file for file in files_below(folder) if file.suffix.lower() == ".xml"]
    if not files:
        raise UserError(f"{folder}: no XML files; give the folder that contains Annotations/")
    places = [images] if images else [source / "JPEGImages", source / "images"]
    finder = ImageFinder([*places, source], [images or source])
    found = Converted(Path(), [])
    account, parsed = found.account, []
    for file in tqdm(files, disable=None, unit="file", desc="annotations"):
        account.seen["label files"] += 1
        objects = _count_objects(file)
        account.seen["boxes"] += objects
        try:
            parsed.append((file, read_xml(file), objects))
        except Bad as error:
            found.refuse(file, error, "label files")
            account.leave_out("boxes", "in such files", objects)
    every = [o for _, tree, _ in parsed for o in tree.iter("object")]
    listed = source / "label_list.txt"
    if classes is None and listed.is_file():
        classes = read_names(listed)
    if classes is None:
        classes = sorted({_text(o, "name") for o in every} - {""})
    found.classes = classes
    why = "--origin"
    if origin == "auto":
        origin, why = _origin([*every, *_elsewhere(folder, {file for file, *_ in parsed})])
    found.said[f"objects; their coordinates start at {origin} ({why})"] = len(every)
    paths = [
        _image(finder, file, tree, file.parent.relative_to(folder)) for file, tree, _ in parsed
    ]
    if parsed:
        file, tree, _ = parsed[0]
        finder.require(paths, source, _text(tree, "filename") or file.stem)
    found.root = common_folder(images, [path for path in paths if path], places)
    found.said.update(finder.said)
    used: dict[Path, Path] = {}
    for (file, tree, objects), path in zip(parsed, paths):
        if path and used.setdefault(path, file) != file:
            text = f"its image {path} also belongs to {used[path]}"
            found.refuse(file, text, "label files", reason="with another file's image")
            account.leave_out("boxes", "in such files", objects)
            continue
        account.seen["images"] += 1
        size = tree.find("size")
        told_size = tuple(_text(size, key) for key in ("height", "width"))
        true_size = image_size(path) if path else None
        if path is None or true_size is None:
            names = [_text(tree, key) for key in ("filename", "path")]
            name = next(filter(None, names), file.stem)
            text = f"{path}: not an image" if path else finder.why_not(name)
            found.refuse(f"{file}: its image {name}", text, "images", reason=MISSING)
            account.leave_out("label files", "of such images")
            account.leave_out("boxes", "of such images", objects)
            continue
        if told_size == tuple(map(str, true_size[::-1])) and true_size[0] != true_size[1]:
            found.said[EXCHANGED] += 1
        elif all(told_size) and told_size != tuple(map(str, true_size)):
            found.said["XML files give a wrong image size; the image file's size is used"] += 1
        image = found.image(path, true_size)
        account.written["label files"] += 1
        if (lost := objects - len(items := list(tree.iter("object")))) > 0:
            text = f"{lost} of its {objects} objects can't be read"
            found.refuse(file, text, "boxes", lost, "in another form")
        for item in items:
            try:
                _add_box(found, image, item, int(origin))
            except Bad as error:
                found.refuse(f"{file}:{item.get('line')}", error)
            for tag in ("part", "polygon"):
                account.seen[f"{tag}s"] += (count := len(item.findall(tag)))
                account.leave_out(f"{tag}s", "not used: boxes are", count)
    folders = {folder for folder in (*places, folder) if folder.is_dir()}
    there = {file for folder in folders for file in files_below(folder)}
    found.unused(there, [*paths, *files], "without an XML file")
    return found


def _count_objects(file: Path) -> int:
    """Number of <object> elements by the file's text alone."""
    try:
        data = read_bytes(file)
    except UserError:
        return 0
    wide = {
        BOM_UTF16_LE: "utf-16",
        BOM_UTF16_BE: "utf-16",
        b"<\0": "utf-16-le",
        b"\0<": "utf-16-be",
    }
    text = data.decode(wide.get(data[:2], "latin-1"), errors="replace")
    text = re.sub(r"<!--.*?-->|<!\[CDATA\[.*?\]\]>", "", text, flags=re.DOTALL)
    return len(re.findall(r"<(?:\w+:)?object(?=[\s/>])", text, flags=re.IGNORECASE))


def read_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file; each element gets its line number as the attribute `line`.

    Names of elements become lower case and lose their namespaces.

    A document type declaration is refused: it could define entities that expand to gigabytes or
    read other files.

    Raises:
        Bad: the file can't be read, is not XML, or has a document type declaration.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise Bad(f"{path}:{parser.CurrentLineNumber}: <!DOCTYPE> is not allowed in a data set")

    def plain(tag: str) -> str:
        return tag.rpartition(":")[2].lower()

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(
        plain(tag), {**attributes, "line": str(parser.CurrentLineNumber)}
    )
    parser.EndElementHandler = lambda tag: builder.end(plain(tag))
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path), True)
    except UserError as error:
        raise Bad(str(error)) from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise Bad(f"{path}:{getattr(error, 'lineno', 1)}: not XML: {error}") from None
    return builder.close()


def _text(element: ElementTree.Element | None, key: str) -> str:
    return "" if element is None else (element.findtext(key) or "").strip()


def _corners(item: ElementTree.Element) -> list[float]:
    boxes = item.findall("bndbox")
    if len(boxes) != 1:
        raise Bad(f"{len(boxes)} <bndbox> instead of one", "without a box, or with several")
    return [as_number(_text(boxes[0], key)) for key in ("xmin", "ymin", "xmax", "ymax")]


def _rotated(item: ElementTree.Element) -> list[tuple[float, float]]:
    """The corners of a rotated box, whose angle is in radians, as roLabelImg writes it."""
    keys = ("cx", "cy", "w", "h", "angle")
    cx, cy, w, h, angle = (as_number(_text(item.find("robndbox"), key)) for key in keys)
    if not math.isfinite(angle):
        raise Bad(f"angle {angle}: not a finite number", "not a finite number")
    return turned(cx - w / 2, cy - h / 2, w, h, angle, (cx, cy))


def _origin(objects: list[ElementTree.Element]) -> tuple[str, str]:
    """Decide whether pixel coordinates start at 0 or 1; returns that and the reason.

    They start at 0 if a corner is below 1, or if at least one object in a hundred has a corner that
    is not a whole number: VOC's pixel numbers are whole, except for a few objects of VOC2012, and
    LabelMe and CVAT write positions between pixels. Otherwise they start at 1.
    """
    below = fractional = at_one = 0
    for item in objects:
        try:
            corners = _corners(item)
        except Bad:
            continue
        below += min(corners[:2]) < 1
        at_one += min(corners[:2]) == 1
        fractional += not all(v.is_integer() for v in corners)
    option = "--origin 0 or 1 sets it"
    if below:
        doubt = f", although {at_one} start at 1: please check" if at_one > below else ""
        return "0", f"{below} in the whole data set start below 1{doubt}; {option}"
    if fractional and fractional >= len(objects) / 100:
        return "0", f"{fractional} in the whole data set have fractional corners; {option}"
    some = f", although {fractional} have fractional corners" if fractional else ""
    if at_one:
        return (
            "1",
            f"as in VOC: {at_one} in the whole data set start at 1, none below{some}; {option}",
        )
    return "1", f"as in VOC, but no object begins at an edge{some}: please check; {option}"


def _elsewhere(folder: Path, known: set[Path]) -> Iterator[ElementTree.Element]:
    """The objects of the data set's other XML files, which have the same origin.

    The data set is the folder Annotations that `folder` is or lies in; without one it is `folder`
    and, if that is called train, val or similar, the folders of such names beside it.
    """
    here = Path(os.path.abspath(folder))
    whole = [p for p in (here, *here.parents) if p.name.lower() == "annotations"][:1] or [folder]
    split = here if SPLIT.match(here.name) else here.parent
    if SPLIT.match(split.name):
        whole += [p for p in split.parent.iterdir() if p.is_dir() and SPLIT.match(p.name)]
    real = {os.path.realpath(path) for path in known}
    for file in (file for top in whole for file in files_below(top)):
        if file.suffix.lower() == ".xml" and os.path.realpath(file) not in real:
            real.add(os.path.realpath(file))
            with contextlib.suppress(Bad):
                yield from read_xml(file).iter("object")


def _image(finder: ImageFinder, file: Path, tree: ElementTree.Element, below: Path) -> Path | None:
    """The image of an XML file that lies in the folder `below` of Annotations/."""
    names = [name for key in ("filename", "path") if (name := _text(tree, key))]
    beside = [(below / name.replace("\\", "/")).as_posix() for name in names[:1]]
    return finder.find(*beside, *names, label=file)


def _add_box(
    found: Converted, image: dict[str, Any], item: ElementTree.Element, origin: int
) -> None:
    name = _text(item, "name")
    if name not in found.classes:
        text = f"class {name!r} is not among the {len(found.classes)} class names"
        raise Bad(text, "of an unknown class")
    flags = ("difficult", "truncated", "occluded")
    more: dict[str, Any] = {key: 1 for key in flags if _text(item, key).lower() in YES}
    if "difficult" in more:
        more["iscrowd"] = 1
    if item.find("bndbox") is None and item.find("robndbox") is not None:
        points = _rotated(item)
        (x1, y1), (x2, y2) = map(min, zip(*points)), map(max, zip(*points))
        more["segmentation"] = [[round(v, 4) for point in points for v in point]]
    else:
        x1, y1, x2, y2 = _corners(item)
        x1, y1 = x1 - origin, y1 - origin
    found.box(image, found.classes.index(name), [x1, y1, x2, y2], **more)
    found.tell("segmentation" in more, "difficult" in more)
