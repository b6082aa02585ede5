"""Convert a Pascal VOC data set to COCO format."""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from tqdm import tqdm

from fcos_recipe.data.image_files import files_below, image_size, is_image
from fcos_recipe.datasets.convert.common import (
    MISSING,
    Bad,
    Converted,
    as_number,
    common_folder,
)
from fcos_recipe.datasets.find_images import ImageFinder
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_bytes


def from_voc(
    source: Path, images: Path | None, classes: list[str] | None, origin: str
) -> Converted:
    """Read a Pascal VOC data set: a folder with Annotations/ and JPEGImages/, or of XML files.

    Objects marked difficult get iscrowd 1: training skips them, and evaluation ignores detections
    that match them, as VOC's own evaluation does.

    Args:
        source: the folder.
        images: image folder, at any depth; default: JPEGImages/, images/ or any below `source`.
        classes: names, in order; default: the names that occur, sorted.
        origin: of pixel coordinates: "1" (VOC: 1 to width, last pixel included), "0" (0 to
            width), or "auto": 0 if any coordinate is below 1.

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
    if classes is None:
        classes = sorted({_text(o, "name") for o in every} - {""})
    found.classes = classes
    if origin == "auto":
        origin = "0" if any(_below_one(o) for o in every) else "1"
    found.said[f"objects; their coordinates start at {origin} (--origin)"] = len(every)
    paths = [
        _image(finder, file, tree, file.parent.relative_to(folder)) for file, tree, _ in parsed
    ]
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
        if told_size != tuple(map(str, true_size)):
            found.said["XML files give a wrong image size; the image file's size is used"] += 1
        image = found.image(path, true_size)
        account.written["label files"] += 1
        for item in tree.iter("object"):
            try:
                _add_box(found, image, item, int(origin))
            except Bad as error:
                found.refuse(f"{file}:{item.get('line')}", error)
    folders = {folder for folder in (*places, folder) if folder.is_dir()}
    _unused(found, {file for folder in folders for file in files_below(folder)} - {*paths, *files})
    return found


def _unused(found: Converted, files: set[Path]) -> None:
    """Count the images that belong to no XML file, and files that are neither of both."""
    for file in files:
        if is_image(file):
            found.account.seen["images"] += 1
            found.account.leave_out("images", "without an XML file")
        else:
            found.account.seen["other files"] += 1
            found.account.leave_out("other files", file.suffix.lower() or file.name)


def _count_objects(file: Path) -> int:
    """Number of <object> elements by the file's text alone."""
    try:
        data = read_bytes(file)
    except UserError:
        return 0
    wide = data[:2] in (BOM_UTF16_LE, BOM_UTF16_BE)
    text = data.decode("utf-16" if wide else "latin-1", errors="replace")
    text = re.sub(r"<!--.*?-->|<!\[CDATA\[.*?\]\]>", "", text, flags=re.DOTALL)
    return len(re.findall(r"<(?:\w+:)?object(?=[\s/>])", text, flags=re.IGNORECASE))


def read_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file; each element gets its line number as the attribute `line`.

    A document type declaration is refused: it could define entities that expand to gigabytes or
    read other files.

    Raises:
        Bad: the file can't be read, is not XML, or has a document type declaration.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise Bad(f"{path}:{parser.CurrentLineNumber}: <!DOCTYPE> is not allowed in a data set")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, _: builder.start(
        tag, {"line": str(parser.CurrentLineNumber)}
    )
    parser.EndElementHandler = builder.end
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
    return [as_number(_text(item.find("bndbox"), key)) for key in ("xmin", "ymin", "xmax", "ymax")]


def _below_one(item: ElementTree.Element) -> bool:
    try:
        return min(_corners(item)[:2]) < 1
    except Bad:
        return False


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
    x1, y1, x2, y2 = _corners(item)
    more = {}
    if _text(item, "difficult") == "1":
        more = {"iscrowd": 1, "difficult": 1}
    found.box(image, found.classes.index(name), [x1 - origin, y1 - origin, x2, y2], **more)
    if more:
        found.said["objects are marked difficult and get iscrowd 1: training skips them"] += 1
