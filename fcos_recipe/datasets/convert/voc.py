"""Convert a Pascal VOC data set to COCO format."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from tqdm import tqdm

from fcos_recipe.datasets.convert.common import ENDINGS, Bad, Converted, as_number, common_folder
from fcos_recipe.datasets.look.stats import header_size
from fcos_recipe.errors import UserError


def from_voc(
    source: Path, images: Path | None, classes: list[str] | None, listed: Path | None, origin: str
) -> Converted:
    """Read a Pascal VOC data set: a folder with Annotations/ and JPEGImages/, or of XML files.

    Objects marked difficult get iscrowd 1: training skips them, and evaluation ignores detections
    that match them, as VOC's own evaluation does.

    Args:
        source: the folder.
        images: image folder; default: JPEGImages/, images/ or the folder of the XML files.
        classes: names, in order; default: the names that occur, sorted.
        listed: file of image names, such as ImageSets/Main/train.txt.
        origin: of pixel coordinates: "1" (VOC: 1 to width, last pixel included), "0" (0 to
            width), or "auto": 0 if any coordinate is below 1.

    Raises:
        UserError: there are no XML files.
    """
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    if listed:
        files = [folder / f"{Path(name).stem}.xml" for name in _words(listed)]
    else:
        files = sorted(folder.rglob("*.xml"))
    if not files:
        raise UserError(f"{folder}: no XML files; give the folder that contains Annotations/")
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
    paths = [_image(file, tree, places) for file, tree in trees]
    found = Converted(common_folder(images, paths), classes, bad=bad)
    found.said[f"objects; their coordinates start at {origin} (--origin)"] = len(objects)
    used: dict[Path, Path] = {}
    for (file, tree), path in zip(trees, paths):
        if used.setdefault(path, file) != file:
            found.bad.append(f"{file}: its image {path} also belongs to {used[path]}")
            continue
        size = tree.find("size")
        told_size = tuple(_text(size, key) for key in ("height", "width"))
        true_size = header_size(path)
        if true_size is None:
            if not all(text.isdigit() and int(text) for text in told_size):
                found.bad.append(f"{path}: missing or no image, and {file} gives no size")
                continue
            found.said["images are missing; their sizes are taken from the XML"] += 1
            true_size = int(told_size[0]), int(told_size[1])
        elif told_size != tuple(map(str, true_size)):
            found.said["XML files give a wrong image size; the image file's size is used"] += 1
        image = found.image(path, true_size)
        for item in tree.iter("object"):
            try:
                _add_box(found, image, item, int(origin))
            except Bad as error:
                found.bad.append(f"{file}:{item.get('line')}: {error}")
    return found


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
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise Bad(f"{path}: {error.strerror}") from None
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


def _image(file: Path, tree: ElementTree.Element, places: list[Path]) -> Path:
    """The image of an XML file, found by <filename> or else by the XML file's name."""
    name = Path(_text(tree, "filename").replace("\\", "/")).name or f"{file.stem}.jpg"
    for place in (*places, file.parent):
        for candidate in (name, *(file.stem + ending for ending in ENDINGS)):
            if (place / candidate).is_file():
                return place / candidate
    return next((place for place in places if place.is_dir()), file.parent) / name


def _add_box(
    found: Converted, image: dict[str, Any], item: ElementTree.Element, origin: int
) -> None:
    name = _text(item, "name")
    if name not in found.classes:
        raise Bad(f"class {name!r} is not among the {len(found.classes)} class names")
    x1, y1, x2, y2 = _corners(item)
    more = {}
    if _text(item, "difficult") == "1":
        more = {"iscrowd": 1, "difficult": 1}
    found.box(image, found.classes.index(name), [x1 - origin, y1 - origin, x2, y2], **more)
    if more:
        found.said["objects are marked difficult and get iscrowd 1: training skips them"] += 1


def _words(listed: Path) -> list[str]:
    """The first word of each line; ImageSets files have -1, 0 or 1 after it."""
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listed}: --list: {error}") from None
    return [line.split()[0] for line in lines if line.strip()]
