"""Recognise the format and the splits of a data set from the files that lie in its folder.

The content of files decides, not their names: a JSON file with `shapes` is LabelMe's wherever it
lies. Names decide only which split a file or folder belongs to.
"""

import csv
import json
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fcos_recipe.data import coco_json
from fcos_recipe.data.image_files import ENDINGS, files_below
from fcos_recipe.datasets.convert import tables, tools, yolo
from fcos_recipe.datasets.find_images import SPLITS, split_of
from fcos_recipe.datasets.formats import FORMATS, ORDER
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import open_regular, read_bytes, read_yaml

SAMPLE = 40  # files of a folder that are looked into
HEAD = 1 << 16  # bytes of a file that are looked at
# Sections of COCO's annotations that have no boxes, or the same boxes again.
NOT_BOXES = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")
# Files that can hold a data set, but are not read: what they are, and what to do.
NOT_READ = {
    re.compile(r"\.(zip|tar|7z|rar|t?gz|t?bz2|t?xz|zst)$"): ("an archive", "unpack it first"),
    re.compile(r"\.tf_?records?\b|\.records?(-\d+-of-\d+)?$"): (
        "TensorFlow records, which are not read",
        "export the data again as COCO, VOC or YOLO, or take the files the records were made from",
    ),
    re.compile(r"\.(parquet|arrow)$"): (
        "a table that is not read", "export the data again as COCO, VOC or YOLO",
    ),
}  # fmt: skip
MARK = "converted_from"  # key of `info` in files that a conversion wrote


@dataclass
class Layout:
    """A recognised data set.

    Args:
        kind: key of `FORMATS`.
        folder: that everything is below.
        splits: name -> annotation files (COCO), or the folders and lists that belong to the split;
            "" is a data set without splits.
        files: all annotation files of the format.
        notes: what was passed over, one line each.
    """

    kind: str
    folder: Path
    splits: dict[str, list[Path]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return FORMATS[self.kind].name


def recognise(place: Path, kind: str | None = None) -> Layout:
    """Recognise a data set.

    Args:
        place: its folder, or its main file.
        kind: the format, if it is known; only its splits are looked for then.

    Raises:
        UserError: nothing was recognised, or more than one format; the message says what lies
            there, and what to type.
    """
    if place.is_file():
        refuse_not_read([place])
        found = {of: [place] for of in ([kind] if kind else [kind_of(place)]) if of}
        folder, files = place.parent, [place]
    elif place.is_dir():
        folder, files = place, files_below(place)
        found = _kinds(files)
    else:
        raise UserError(f"{place}: no such folder or annotation file")
    if place.is_file() and (other := kind_of(place)) not in (None, kind or other):
        raise UserError(f"{place}: it is {FORMATS[other].name}; leave out --from {kind}")
    if kind:
        found = {kind: found.get(kind, [])}
        if not found[kind] and kind not in SPLITTERS:
            raise UserError(f"{place}: no annotations of {FORMATS[kind].name}; {_content(files)}")
    elif not found:
        refuse_not_read(files)
        raise UserError(f"{place}: {_content(files)}; no annotations of a known format: "
                        f"{', '.join(row.name for row in FORMATS.values())}")  # fmt: skip
    notes = []
    if kind is None and len(found) > 1:
        made = [file for file in found.get("coco", []) if _is_converted(file)]
        found = {of: [f for f in rows if f not in made] for of, rows in found.items()}
        found = {of: rows for of, rows in found.items() if rows}
        notes += [f"{file}: an earlier conversion, not used" for file in made]
    if "coco" in found and len(found) > 1:  # what the other formats are converted to
        others = [of for of in found if of != "coco"]
        told = " and ".join(f"{FORMATS[of].name} (--from {of})" for of in others)
        notes.append(f"{place}: it has COCO annotations, which are used, and also {told}")
    elif len(found) > 1:
        told = ", ".join(f"{FORMATS[of].name} ({rows[0]})" for of, rows in found.items())
        raise UserError(f"{place}: more than one format lies there: {told}; choose with --from "
                        f"{' or --from '.join(found)}")  # fmt: skip
    kind = "coco" if "coco" in found else next(iter(found))
    layout = Layout(kind, folder, {}, found[kind], notes)
    if kind in ("dota", "kitti") and place.is_dir():
        layout.files = _with_empty(files, set(layout.files))
    SPLITTERS.get(kind, _by_folder)(layout)
    layout.splits = {k: layout.splits[k] for k in ("", *ORDER) if k in layout.splits}
    return layout


def _is_converted(file: Path) -> bool:
    """Whether a COCO file was made by a conversion of ours."""
    try:
        info = msgspec.json.decode(coco_json.mapped(file), type=dict[str, msgspec.Raw]).get("info")
        return MARK in msgspec.json.decode(info) if info else False
    except (UserError, ValueError, TypeError, RecursionError):
        return False


def refuse_not_read(files: Iterable[Path]) -> None:
    """Check that no file is of a kind that holds data sets but is not read.

    Raises:
        UserError: one is; the message says what to do.
    """
    for file in files:
        if file.suffix.lower() in SNIFFERS and _is_wide(file):
            raise UserError(f"{file}: UTF-16 text; save it as UTF-8")
        for pattern, (what, remedy) in NOT_READ.items():
            if pattern.search(file.name.lower()):
                raise UserError(f"{file}: {what}; {remedy}")


def _is_wide(file: Path) -> bool:
    """Whether a file is UTF-16, which only readers of XML know."""
    with open(open_regular(file), "rb") as stream:
        return file.suffix.lower() != ".xml" and stream.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)


def _content(files: list[Path]) -> str:
    if not files:
        return "it is empty"
    endings = Counter(file.suffix.lower() or "no ending" for file in files).most_common(4)
    return f"it has {len(files)} files ({', '.join(f'{n} {e}' for e, n in endings)})"


# ---- which format a file has


def kind_of(file: Path) -> str | None:
    """The format of an annotation file by its content, or None."""
    look = SNIFFERS.get(file.suffix.lower())
    try:
        return look(file) if look else None
    except (UserError, csv.Error):
        return None


def is_coco_file(place: Path, kind: str | None = None) -> bool:
    """Whether a file is read as COCO: it is, or is meant as such, as its name or fault may hide.

    Raises:
        UserError: it holds data in a form that is not read.
    """
    if not place.is_file():
        return False
    if place.suffix.lower() != ".json":  # `verify --fix` reads JSON in UTF-16
        refuse_not_read([place])
    return kind is None and kind_of(place) in ("coco", None)


def _kinds(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Format -> its annotation files in the folder; of a folder with many files some are read."""
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for file in files:
        if file.suffix.lower() in SNIFFERS and not file.name.startswith("."):
            groups[file.parent, file.suffix.lower()].append(file)
    found: dict[str, list[Path]] = defaultdict(list)
    for group in groups.values():
        kinds = {file: kind_of(file) for file in group[:: len(group) // SAMPLE + 1]}
        usual = Counter(kinds.values()).most_common(1)[0][0]
        for file in group:
            if of := kinds.get(file, usual):
                found[of].append(file)
    if not set(found) - {"coco"}:  # a damaged file of COCO must not be passed over
        found["coco"] += [
            file for file in files
            if file.suffix == ".json" and file not in found["coco"] and (
                file.parent.name == "annotations" or file.stem.startswith(("instances", "_annot"))
                or file.stem in SPLITS
            )
        ]  # fmt: skip
        found = {of: rows for of, rows in found.items() if rows}
    if "yolo" in found and not any(f.suffix == ".txt" for f in found["yolo"]) and len(found) > 1:
        del found["yolo"]  # a data.yaml without label files
    return dict(found)


def _with_empty(files: Sequence[Path], known: set[Path]) -> list[Path]:
    """`known` text files with others that have an image, or are empty and lie beside them."""
    folders = {file.parent for file in known}
    stems = {file.stem if file.suffix.lower() in ENDINGS else file.name for file in files}
    return [
        file for file in files if file in known or file.suffix.lower() == ".txt" and (
            file.stem in stems or file.parent in folders and not read_bytes(file).strip()
        )
    ]  # fmt: skip


def _json(file: Path) -> str | None:
    data = coco_json.mapped(file)
    try:
        first: Any = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:  # a list
        try:
            rows = msgspec.json.decode(data, type=list[msgspec.Raw])
            row = json.loads(bytes(rows[0])) if rows else None
        except (ValueError, RecursionError):
            return None
        return _json_list(row) if isinstance(row, dict) else None
    except (ValueError, RecursionError):  # damaged, or with NaN: go by the names of its sections
        text = bytes(data[:HEAD]) + bytes(data[-HEAD:])
        first = {key: b"" for key in re.findall(r'"(\w+)"\s*:', text.decode(errors="replace"))}
    keys = set(first)
    if "images" in keys and {"annotations", "categories"} & keys:
        return "coco"
    if "shapes" in keys and {"imagePath", "imageData", "imageHeight", "flags", "version"} & keys:
        return "labelme"
    if {"imgHeight", "imgWidth", "objects"} <= keys:
        return "cityscapes"
    if {"size", "objects"} <= keys:
        return "supervisely"
    if (
        "_via_img_metadata" in keys
        or {"metadata", "view", "attribute", "file"} <= keys
        or all(b'"regions"' in bytes(v) for v in first.values())
        and keys
    ):
        return "via"
    return None


def _json_list(row: dict[str, Any]) -> str | None:
    if isinstance(row.get("data"), dict) and {"annotations", "completions", "predictions"} & set(
        row
    ):
        return "labelstudio"
    if ("image" in row or "imagefilename" in row) and isinstance(row.get("annotations"), list):
        return "createml"
    lists = [value[0] for value in row.values() if isinstance(value, list) and value]
    if any(isinstance(e, dict) and any(k.endswith("labels") for k in e) for e in lists):
        return "labelstudio"
    return None


def _xml(file: Path) -> str | None:
    text = read_bytes(file)[:HEAD].replace(b"\0", b"").decode("utf-8", errors="replace")
    tags = re.findall(r"<(?:\w+:)?([A-Za-z]\w*)[\s/>]", text)
    return {"annotation": "voc", "annotations": "cvat"}.get(tags[0]) if tags else None


def _yaml(file: Path) -> str | None:
    try:
        data = read_yaml(file)
    except UserError:  # if it describes data, the reader of YOLO reports the fault
        return "yolo" if re.search(rb"^names\s*:", read_bytes(file)[:HEAD], re.M) else None
    known = isinstance(data, dict) and isinstance(data.get("names"), list | dict)
    return "yolo" if known and {*SPLITS, "path", "nc", "download"} & set(data) else None


def _text(file: Path) -> str | None:
    data = read_bytes(file)[:HEAD].removeprefix(BOM_UTF8)
    lines = [line.strip() for line in data.splitlines() if line.strip()][:3]
    if lines and yolo.ROW.match(lines[0]):
        return "yolo"
    text = b"\n".join(lines)
    return next((kind for kind, rows in tables.ROWS.items() if rows.match(text)), None)


def _csv(file: Path) -> str | None:
    head = read_bytes(file)[:HEAD].decode("utf-8-sig", errors="replace")
    rows = tables.csv_rows(head.split("\n", 1)[0])
    if rows and set(tools.VIA_COLUMNS) <= set(rows[0]):
        return "via"
    return "csv" if rows and tables.csv_columns(rows[0]) else None


SNIFFERS: dict[str, Callable[[Path], str | None]] = {
    ".json": _json, ".xml": _xml, ".yaml": _yaml, ".yml": _yaml, ".txt": _text, ".csv": _csv,
    ".tsv": _csv,
}  # fmt: skip


# ---- which splits it has


def _by_folder(layout: Layout) -> None:
    """Splits by the names of folders or of annotation files."""
    for file in layout.files:
        inside = file.relative_to(layout.folder)
        name = split_of(*inside.parent.parts, file.stem if len(layout.files) < SAMPLE else "")
        layout.splits.setdefault(name, []).append(file)


def _coco(layout: Layout) -> None:
    best = [file for file in layout.files if file.stem.startswith("instances")]
    best = best or [file for file in layout.files if not file.stem.startswith(NOT_BOXES)]
    for file in best or layout.files:
        inside = file.relative_to(layout.folder)
        name = split_of(file.stem, *inside.parent.parts[::-1])
        name = name or next((s for s in ("train", "val") if s in file.stem.lower()), "")
        layout.splits.setdefault(name, []).append(file)

    def depth(file: Path) -> int:
        return len(file.relative_to(layout.folder).parts)

    for name, files in layout.splits.items():  # copies in deeper folders are passed over
        layout.splits[name] = [f for f in files if depth(f) <= max(2, min(map(depth, files)))]


def _lists(folder: Path, places: Iterable[str]) -> dict[str, list[Path]]:
    """Split -> text file with its image names, from the first place that has one."""
    for place in places:
        found = {stem: folder / place / f"{stem}.txt" for stem in SPLITS}
        found = {stem: path for stem, path in found.items() if path.is_file()}
        if "train" in found:
            found.pop("trainval", None)
        if found:
            return {SPLITS[stem]: [path] for stem, path in found.items()}
    return {}


def _voc(layout: Layout) -> None:
    folder = layout.folder
    inner = {f.parent.parent for f in layout.files if f.parent.name == "Annotations"}
    if len(inner) > 1 and not any(split_of(path.name) for path in inner):
        names = ", ".join(str(path.relative_to(folder)) for path in sorted(inner)[:4])
        raise UserError(f"{folder}: {len(inner)} data sets lie there: {names}; name one of them, "
                        "and join them afterwards with `fcos dataset merge`")  # fmt: skip
    if len(inner) == 1:
        folder = layout.folder = inner.pop()
    layout.splits = _lists(folder, ("ImageSets/Main", "ImageSets", "."))
    if not layout.splits:
        _by_folder(layout)


def _yolo(layout: Layout) -> None:
    configs = [file for file in layout.files if file.suffix.lower() != ".txt"]
    if len(configs) > 1:
        nearest = min(len(file.parts) for file in configs)
        configs = [file for file in configs if len(file.parts) == nearest]
        configs = [file for file in configs if file.stem in ("data", "dataset")] or configs
    if len(configs) > 1:
        names = ", ".join(file.name for file in configs)
        raise UserError(f"{layout.folder}: {names} could each describe the data; name one of them")
    layout.files = configs
    if configs:
        named = yolo.read_config(configs[0])
        for key in SPLITS:
            places = yolo.parts(configs[0].parent, named, key) if named.get(key) else []
            if there := [place for place in places if place.exists()]:
                _add_split(layout, SPLITS[key], there)
            elif places and key != "test":
                raise UserError(f"{configs[0]}: {key}: {places[0]}: no such file or folder")
    layout.splits = layout.splits or _lists(layout.folder, (".", "data", "ImageSets"))
    if not layout.splits:
        for place in ("images", "."):
            parts = [p for p in sorted((layout.folder / place).glob("*")) if p.is_dir()]
            for part in parts:
                if name := split_of(part.name):
                    _add_split(layout, name, [*layout.splits.pop(name, []), part])
            if layout.splits:
                break
    if not layout.splits:
        layout.splits[""] = [layout.folder]


def _add_split(layout: Layout, name: str, places: list[Path]) -> None:
    """Add a split of YOLO unless its folders are empty, as Roboflow leaves those of no image."""
    if name == "train" or any(place.is_file() or files_below(place) for place in places):
        layout.splits.setdefault(name, places)
    else:
        layout.notes.append(f"{places[0]}: empty, so there is no split {name}")


SPLITTERS: dict[str, Callable[[Layout], None]] = {"coco": _coco, "voc": _voc, "yolo": _yolo}
