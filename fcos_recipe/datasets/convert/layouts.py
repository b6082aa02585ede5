"""Convert a recognised data set to COCO, all its splits at once."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcos_recipe.data.image_files import ENDINGS, files_below
from fcos_recipe.datasets.account import Account
from fcos_recipe.datasets.convert import labelled, tables, tools
from fcos_recipe.datasets.convert.coco_repair import from_coco
from fcos_recipe.datasets.convert.common import Converted
from fcos_recipe.datasets.convert.voc import from_voc
from fcos_recipe.datasets.convert.yolo import from_yolo
from fcos_recipe.datasets.find_images import ImageFinder, split_of
from fcos_recipe.datasets.recognise import MARK, Layout
from fcos_recipe.errors import UserError, UserErrors
from fcos_recipe.files.reading import read_json, read_text

_ENDING = re.compile(rf"({'|'.join(map(re.escape, {*ENDINGS, '.xml'}))})(?=\s|$)", re.IGNORECASE)
MOST_TOLD = 20  # how many bad lines are printed
READERS: dict[str, Callable] = {
    "labelme": tools.labelme, "cvat": tools.cvat, "labelstudio": tools.label_studio,
    "via": tools.via, "createml": tools.create_ml, "supervisely": tools.supervisely,
    "cityscapes": tools.cityscapes, "dota": tables.dota, "kitti": tables.kitti,
    "widerface": tables.wider_face, "csv": tables.boxes_csv,
}  # fmt: skip
# The classes that a data set lists, whether they occur or not, from its files.
LABELS = {"cvat": tools.cvat_labels, "supervisely": tools.supervisely_labels}


@dataclass
class Options:
    """What a user says about a data set.

    Args:
        images: image folder; None: search.
        classes: names in order; None: those of the data set.
        listed: file with the names of the images to use, one per line.
        origin: of VOC's pixel coordinates, see `from_voc`.
        embedded: folder for images that exist only inside annotation files.
        keypoints: of YOLO's lines, see `from_yolo`.
    """

    images: Path | None = None
    classes: list[str] | None = None
    listed: Path | None = None
    origin: str = "auto"
    embedded: Path = Path("images")
    keypoints: str | None = None


@dataclass
class Split:
    """A COCO file and the folder that its file names are relative to."""

    content: dict[str, Any]
    root: Path


@dataclass
class Result:
    """What a conversion made: split -> file ("" if there are no splits), and what is to be said."""

    splits: dict[str, Split] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    said: Counter[str] = field(default_factory=Counter)
    account: Account = field(default_factory=Account)

    def add(self, name: str, found: Converted, kind: str | None = None) -> None:
        """Add a split that was converted from the format `kind`; None: from COCO."""
        content = found.content()
        if kind:
            content["info"] = {MARK: kind}
        self.splits[name] = Split(content, found.root)
        self.bad += found.bad
        self.said.update(found.said)
        self.account.add(found.account)


def refuse_bad(made: Result, skip: bool, remedy: str) -> None:
    """Check that everything could be converted, or that the rest is to be left out.

    Raises:
        UserErrors: `made.bad`, and how to leave it out.
    """
    if made.bad and not skip:
        more = len(made.bad) - MOST_TOLD
        rest = [f"{more} more"] if more > 0 else []
        last = f"{len(made.bad)} can't be converted; fix them, or {remedy}"
        raise UserErrors([*made.bad[:MOST_TOLD], *rest, last])


def convert(
    layout: Layout, options: Options, only: str | None = None, together: bool = False
) -> Result:  # fmt: skip
    """Convert a data set.

    Class names and VOC's origin are decided once for all splits.

    Args:
        layout: from `recognise`.
        options: what the user says.
        only: only this split.
        together: without `only`, put all images into one file, unless the splits are separate
            files or sections of data.yaml.

    Raises:
        UserError: no image was found, or the account does not close.
    """
    splits = layout.splits
    if only not in (None, *splits) and layout.kind not in READERS:  # those may state it inside
        raise _no_split(layout.folder, only, splits)
    wanted = {name: files for name, files in splits.items() if only in (None, name)}
    result = Result()
    if layout.kind == "coco":
        for name, files in wanted.items():
            if len(files) > 1:
                raise UserError(several(layout.folder, name, files))
            result.add(name, from_coco(files[0], options.images, name))
    elif layout.kind == "yolo":
        _yolo(layout, wanted, options, result)
    else:
        whole, parts = _whole(layout, options)
        lists = splits if layout.kind == "voc" and all(
            file.suffix == ".txt" for files in splits.values() for file in files
        ) else {}  # fmt: skip
        if options.listed:
            lists, only, together = {"": [options.listed]}, None, False
        result.add("", whole, layout.kind)
        if only is not None or not together:
            _divide(result, whole, parts, lists, layout.folder, only)
    return result


def _no_split(folder: Path, name: str | None, splits: Iterable[str]) -> UserError:
    told = ", ".join(split for split in splits if split)
    told = f"its splits are {told}" if told else "it has no splits"
    return UserError(f"{folder}: no {name} in it; {told}")


def several(folder: Path, name: str, files: list[Path]) -> str:
    """The message about a split with more than one possible file."""
    shown = ", ".join(str(file.relative_to(folder)) for file in files[:4])
    return f"{folder}: several files could be the annotations for {name or 'training'}: {shown}"


def _yolo(layout: Layout, wanted: dict[str, list[Path]], options: Options, result: Result) -> None:
    source = next(iter(layout.files), layout.folder)
    for name, places in wanted.items():
        key, listed, images = name or "train", options.listed, options.images
        if source == layout.folder and listed is None and name:
            if places[0].is_file():
                listed = places[0]
            elif images is None:
                images = places[0]
        found = from_yolo(source, images, options.classes, key, listed, options.keypoints)
        result.add(name, found, layout.kind)


def _whole(layout: Layout, options: Options) -> tuple[Converted, dict[int, str]]:
    """The whole data set as one file, and the split that each image states itself."""
    if layout.kind == "voc":
        return from_voc(layout.folder, options.images, options.classes, options.origin), {}
    items: list[labelled.Labelled] = []
    bad: list[tuple[Path, str]] = []
    first = LABELS[layout.kind](layout.files) if layout.kind in LABELS else []
    for file in layout.files:
        try:
            for item in READERS[layout.kind](file):
                if not item.part and not item.alone and len(layout.files) > 1:
                    item.part = split_of(file.stem)
                items.append(item)
        except UserError as error:
            bad.append((file, str(error)))
        except labelled.FAULTS as error:
            bad.append((file, f"not {layout.name} ({type(error).__name__}: {error})"))
    if layout.kind in ("labelme", "supervisely", "cityscapes"):  # a damaged file is not recognised
        rest = {file for file in files_below(layout.folder) if file.suffix.lower() == ".json"}
        for file in sorted(rest - set(layout.files)):
            try:
                read_json(file, Any)
            except UserError as error:
                bad.append((file, str(error)))
    folder = options.images or layout.folder
    places = [folder, *(folder / name for name in ("images", "JPEGImages"))]
    finder = ImageFinder([place for place in places if place.is_dir()], [folder])
    return labelled.build(
        items, finder, options.images, options.classes, first, options.embedded, bad
    )


def _divide(
    result: Result, whole: Converted, parts: dict[int, str], lists: dict[str, list[Path]],
    folder: Path, only: str | None,
) -> None:  # fmt: skip
    """Replace the split "" by those that lists of names, the files, or folder names state."""
    content, root = result.splits[""].content, result.splits[""].root
    paths = {image["id"]: root / image["file_name"] for image in content["images"]}
    ends_of = {i: set(_ends(_ENDING.split(path.as_posix(), maxsplit=1)[0]))
               for i, path in paths.items() if lists}  # fmt: skip
    known: set[str] = set().union(*ends_of.values())
    wanted = {
        name: {key for file in files for key in _keys(file, known)} for name, files in lists.items()
    }
    of_image: dict[int, list[str]] = {}
    for i, path in paths.items():
        if wanted:
            of_image[i] = [name for name, keys in wanted.items() if ends_of[i] & keys]
        else:
            inside = path.relative_to(folder).parent if path.is_relative_to(folder) else Path()
            of_image[i] = [parts.get(i) or split_of(*inside.parts)]
    for name in wanted if only is None else [only] if only in wanted else []:
        keys = wanted[name]
        for key in sorted(keys - known):
            result.bad.append(f"{lists[name][0]}: {key}: no such image is converted")
        result.account.seen["names in lists"] += len(keys)
        result.account.written["names in lists"] += len(keys & known)
        result.account.leave_out("names in lists", "of no converted image", len(keys - known))
    names = dict.fromkeys(name for found in of_image.values() for name in found)
    if only not in (None, *names, *wanted):
        raise _no_split(folder, only, names)
    if wanted or list(names) != [""]:
        boxes = Counter(entry["image_id"] for entry in content["annotations"])
        gone = [i for i, found in of_image.items() if only not in (None, *found) or not found]
        for item, number in (("images", len(gone)), ("boxes", sum(boxes[i] for i in gone))):
            why = "of other splits" if only else "in none of the lists of names"
            result.account.leave_out(item, why, number)
        twice = sum(len(found) > 1 for found in of_image.values())
        if twice:
            result.said["images are in more than one list of names"] += twice
        del result.splits[""]
        for name in [only] if only is not None else names:
            ids = {i for i, found in of_image.items() if name in found}
            result.splits[name] = Split({
                **content,
                "images": [image for image in content["images"] if image["id"] in ids],
                "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
            }, root)  # fmt: skip
        for item, section in (("images", "images"), ("boxes", "annotations")):
            made = [split.content[section] for split in result.splits.values()]
            result.account.written[item] = len({entry["id"] for part in made for entry in part})
        result.account.check(folder)


def _ends(path: str) -> list[str]:
    """The ends of a path, from its last name to the whole."""
    words = path.split("/")
    return ["/".join(words[n:]) for n in range(len(words) - 1, -1, -1)]


def _keys(listed: Path, known: set[str]) -> set[str]:
    """Image names in a list, without their endings; more words of a line are ignored.

    A last word of -1, 0 or 1, as in ImageSets, belongs to the name only if that is `known`.
    """
    found = set()
    for line in read_text(listed).splitlines():
        names = []
        for text in (line.strip(), re.sub(r"\s+-?[01]$", "", line.strip())):
            parts = _ENDING.split(text.replace("\\", "/"), maxsplit=1)[0].split("/")
            names.append("/".join(part for part in parts if part not in ("", ".", "..")))
        found.add(names[0] if names[0] in known else names[1])
    return found - {""}
