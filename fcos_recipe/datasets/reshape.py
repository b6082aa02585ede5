"""Parts and sums of annotation files: `fcos dataset subset`, `split`, `merge`.

Entries are carried over as the bytes they are, with every field that somebody has put into them;
only an id or file name that has to change is written anew. Images are not copied: file names stay
relative to the folder of the images. hotcoco's sample, split and merge keep neither unknown fields
nor ids, know no classes, and refuse to merge files of different classes.
"""

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw

from fcos_recipe.config.load import display
from fcos_recipe.data import coco_json
from fcos_recipe.datasets.locate import LOOK_AT, image_folder
from fcos_recipe.errors import UserError, printable
from fcos_recipe.files.atomic import replace_file

SECTIONS = {
    "images": coco_json.ListedImage, "annotations": coco_json.Labels,
    "categories": coco_json.Category,
}  # fmt: skip


@dataclass
class Annotations:
    """An annotation file: its entries as bytes, and the ids in them."""

    path: str
    other: dict[str, Raw]  #: all that is neither of SECTIONS, as `info` and `licenses`
    images: list[Raw]
    annotations: list[Raw]
    categories: list[Raw]
    image_id: np.ndarray  #: int64 [N]
    file_name: list[str]
    annotation_id: list[int | str | None]
    of_image: np.ndarray  #: int64 [M], row of the image of each annotation; -1: none
    of_class: np.ndarray  #: int64 [M], row of its category
    category_id: np.ndarray  #: int64 [K]
    class_names: list[str]

    @classmethod
    def read(cls, path: Path) -> "Annotations":
        """Read an annotation file.

        Raises:
            UserError: missing, not COCO, an id twice, an unknown category.
        """
        with coco_json.explained(path):
            top = msgspec.json.decode(coco_json.mapped(path), type=dict[str, Raw])
            parts = {name: top.pop(name, Raw(b"[]")) for name in SECTIONS}
            raw = {
                name: msgspec.json.decode(part, type=list[Raw] | None) or []
                for name, part in parts.items()
            }
            images, annotations, categories = (  # ignored: a type that is a value to mypy
                msgspec.json.decode(parts[name], type=list[kind] | None) or []  # type: ignore[valid-type]
                for name, kind in SECTIONS.items()
            )
        name = str(path)
        image_id = coco_json.ids(name, "images", images)
        category_id = coco_json.ids(name, "categories", categories)
        for section, ids in (("images", image_id), ("categories", category_id)):
            if len(np.unique(ids)) < len(ids):
                again = Counter(ids.tolist()).most_common(1)[0][0]
                raise UserError(f"{path}: {section}: id {again} occurs twice; give each its own")
        of_class = coco_json.rows_of(
            category_id, coco_json.ids(name, "annotations", annotations, "category_id")
        )
        if (of_class < 0).any():
            first = int(np.flatnonzero(of_class < 0)[0])
            raise UserError(
                f"{path}: annotations[{first}].category_id: {annotations[first].category_id} is "
                f"not among the {len(category_id)} categories of the file"
            )
        of_image = coco_json.rows_of(
            image_id, coco_json.ids(name, "annotations", annotations, "image_id")
        )
        return cls(
            name, top, raw["images"], raw["annotations"], raw["categories"], image_id,
            [i.file_name for i in images], [a.id for a in annotations], of_image, of_class,
            category_id, coco_json.class_names(categories, category_id),
        )  # fmt: skip

    def labels(self) -> np.ndarray:
        """int64 [n, 2]: each image row with each class on it, once, in order of the images."""
        listed = self.of_image >= 0
        pairs = np.stack([self.of_image[listed], self.of_class[listed]], axis=1)
        return np.unique(pairs, axis=0)

    def part(self, rows: np.ndarray) -> dict[str, Any]:
        """The file of some of the images: all categories, and those images' annotations."""
        keep = np.zeros(len(self.images) + 1, bool)  # the last is for those of no image
        keep[rows] = True
        chosen = np.flatnonzero(keep[self.of_image])
        return {
            **self.other,
            "images": [self.images[i] for i in np.flatnonzero(keep[:-1])],
            "annotations": [self.annotations[i] for i in chosen],
            "categories": self.categories,
        }

    @property
    def orphans(self) -> int:
        """Annotations of images that the file does not list."""
        return int((self.of_image < 0).sum())


def stratify(labels: np.ndarray, unit: np.ndarray, shares: list[float], seed: int) -> np.ndarray:
    """Deal images out to parts so that each class is dealt out in the same proportion.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of
    Multi-Label Data", ECML PKDD 2011): the images of the rarest class go first, each to the part
    that lacks most of that class. Parts are never overfilled, and of a class with few images the
    first part gets one before any other does. Images without a box are a class of their own.

    Args:
        labels: int64 [n, 2], (image, class) pairs, each once.
        unit: int64 [N], number of what each image belongs to (0 to U - 1); images of one unit stay
            together.
        shares: of the parts, adding up to 1.
        seed: of the order within a class.

    Returns:
        int64 [N], the part of each image.
    """
    total, units = len(unit), int(unit.max(initial=-1)) + 1
    size = np.bincount(unit, minlength=units)
    room = _apportion(total, shares)
    classes = int(labels[:, 1].max(initial=-1)) + 1
    empty = np.setdiff1d(np.arange(total), labels[:, 0])
    labels = np.concatenate([labels, np.stack([empty, np.full(len(empty), classes)], axis=1)])
    pairs = np.unique(np.stack([unit[labels[:, 0]], labels[:, 1]], axis=1), axis=0)
    count = np.bincount(pairs[:, 1], minlength=classes + 1)
    want = [np.maximum(share * count, 1.0).tolist() for share in shares]
    per_unit = np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, units)))
    of_unit = [row.tolist() for row in per_unit]
    by_class = pairs[np.argsort(pairs[:, 1], kind="stable"), 0]
    members = np.split(by_class, np.cumsum(count)[:-1])
    rng = np.random.default_rng(seed)
    part = np.full(units, -1)
    left = count.copy()
    everyone = range(len(shares))
    while left.any():
        rarest = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        waiting = members[rarest][part[members[rarest]] < 0]
        for u in rng.permutation(waiting).tolist():
            fits = [p for p in everyone if room[p] >= size[u]]
            fits = fits or [max(everyone, key=room.__getitem__)]
            best = max(fits, key=lambda p: want[p][rarest])  # of equal ones the first
            part[u] = best
            room[best] -= size[u]
            for k in of_unit[u]:
                want[best][k] -= 1
                left[k] -= 1
    return part[unit]


def _apportion(total: int, shares: list[float]) -> list[int]:
    """Whole numbers that add up to the total, each its share rounded up or down."""
    exact = np.array(shares) * total
    whole = np.floor(exact + 1e-9).astype(int)
    for p in np.argsort(whole - exact, kind="stable")[: total - whole.sum()]:
        whole[p] += 1
    return whole.tolist()


def units(data: Annotations, pattern: str | None) -> np.ndarray:
    """Number of what each image belongs to: its file, or what the pattern finds in its name.

    Args:
        data: the annotation file.
        pattern: regular expression; its first group is the key, else all that it matches. An image
            in whose name it finds nothing stands for itself.

    Raises:
        UserError: no regular expression, or nothing found in any name.
    """
    keys = data.file_name
    if pattern is not None:
        try:
            found = [re.search(pattern, name) for name in data.file_name]
        except re.error as error:
            raise UserError(f"--group-by {pattern!r}: {error}") from None
        if data.file_name and not any(found):
            raise UserError(f"--group-by {pattern!r}: in no name, such as {data.file_name[0]!r}")
        keys = [
            ("group", m[m.re.groups and 1]) if m else name for m, name in zip(found, data.file_name)
        ]
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


@dataclass
class Merged:
    """What `merge` makes: the file, the folder its names are relative to, and what to say."""

    content: dict[str, Any]
    folder: str | None
    notes: list[str]


def merge(files: list[Annotations], folders: Sequence[str | None]) -> Merged:
    """Put annotation files together.

    Categories are those of one name. The first file's ids stay; another's are changed only where
    they are taken. Images of one path are one image, with the annotations of all files, each once.
    File names stay when all images lie in one folder, else they start at the folder above all.

    Args:
        files: at least one.
        folders: of the images of each file; None: unknown, which only goes if all are.

    Raises:
        UserError: a class name twice in a file, or folders unknown.
    """
    known = {os.path.realpath(folder) for folder in folders if folder is not None}
    for file, folder in zip(files, folders):
        if known and folder is None and file.images:
            raise UserError(
                f"{file.path}: its images are not found near it; give --images for each file"
            )
    root = os.path.commonpath(known) if known else None
    notes: list[str] = []
    other = dict(files[0].other)
    taken = _Ids([int(i) for file in files for i in file.category_id])
    image_ids = _Ids([int(i) for file in files for i in file.image_id])
    annotation_ids = _Ids([i for file in files for i in file.annotation_id if isinstance(i, int)])
    class_id: dict[str, int | str] = {}
    image_of: dict[str, int | str] = {}
    images, annotations, categories = [], [], []
    seen: set[bytes] = set()  # annotations of images that several files have
    every_path = [_paths(folder, file.file_name) for file, folder in zip(files, folders)]
    times = Counter(path for paths in every_path for path in paths)
    for file, paths in zip(files, every_path):
        short = display(file.path)
        say: Counter[str] = Counter()
        new_class = []
        if twice := [n for n, count in Counter(file.class_names).items() if count > 1]:
            raise UserError(f"{file.path}: categories: the name {twice[0]!r} occurs twice")
        for raw, old, name in zip(file.categories, file.category_id.tolist(), file.class_names):
            if name not in class_id:
                class_id[name] = taken.give(old)
                categories.append(_with(raw, id=class_id[name]) if class_id[name] != old else raw)
            if class_id[name] != old:
                notes.append(f"{short}: class {name}: id {old} becomes {class_id[name]}")
            new_class.append(class_id[name])
        license_of = _merge_licenses(other, file) if file is not files[0] else {}
        new_image = []
        for raw, old, path in zip(file.images, file.image_id.tolist(), paths):
            if path in image_of:
                say["images are there already: their annotations are added to them"] += 1
                new_image.append(image_of[path])
                continue
            image_of[path] = image_ids.give(old)
            new_image.append(image_of[path])
            change: dict[str, Any] = {}
            if image_of[path] != old:
                change["id"] = image_of[path]
                say["image ids were taken: renumbered"] += 1
            if len(known) > 1:
                change["file_name"] = os.path.relpath(path, root)
            if license_of:
                number = msgspec.json.decode(raw, type=_License).license
                if number in license_of:
                    change["license"] = license_of[number]
            images.append(_with(raw, **change) if change else raw)
        for raw, old, row, label in zip(
            file.annotations, file.annotation_id, file.of_image.tolist(), file.of_class.tolist()
        ):
            if row < 0:
                say["annotations of images that it does not list: left out"] += 1
                continue
            change = {}
            if new_image[row] != file.image_id[row]:
                change["image_id"] = new_image[row]
            if new_class[label] != file.category_id[label]:
                change["category_id"] = new_class[label]
            if times[paths[row]] > 1:
                same = _content(raw, new_image[row], new_class[label])
                if same in seen:
                    say["annotations are there already: left out"] += 1
                    continue
                seen.add(same)
            if old is not None and (new := annotation_ids.give(old)) != old:
                change["id"] = new
                say["annotation ids were taken: renumbered"] += 1
            annotations.append(_with(raw, **change) if change else raw)
        notes += [f"{short}: {count} {text}" for text, count in say.items()]
        for key in file.other:
            if key not in other:
                other[key] = file.other[key]
            elif key != "licenses" and bytes(other[key]) != bytes(file.other[key]):
                notes.append(f"{short}: {key!r} is not as in {files[0].path}, whose own stays")
    if len(known) > 1:
        notes.append(f"file names now start at {display(root or '')}")
    content = {**other, "images": images, "annotations": annotations, "categories": categories}
    return Merged(content, root, notes)


class _Ids:
    """Ids given away once each; new ones are larger than all that any file has."""

    def __init__(self, every: list[int]):
        self.next = max(every, default=0) + 1
        self.given: set[str] = set()

    def give(self, wanted: int | str) -> int | str:
        if str(wanted) in self.given:
            wanted, self.next = self.next, self.next + 1
        self.given.add(str(wanted))
        return wanted


class _License(msgspec.Struct, gc=False):
    license: Any = None


def _merge_licenses(other: dict[str, Raw], file: Annotations) -> dict[Any, int]:
    """Add a file's licences to those there are; the ids that had to change."""
    try:
        mine, theirs = (
            msgspec.json.decode(top.get("licenses") or Raw(b"[]"), type=list[dict] | None) or []
            for top in (other, file.other)
        )
        changed, have = {}, {_license_key(entry): entry["id"] for entry in mine}
        ids = _Ids([entry["id"] for entry in (*mine, *theirs)])
        ids.given = {str(entry["id"]) for entry in mine}
        for entry in theirs:
            old, key = entry["id"], _license_key(entry)
            if key not in have:
                have[key] = ids.give(old)
                mine.append({**entry, "id": have[key]})
            if have[key] != old:
                changed[old] = have[key]
    except (msgspec.ValidationError, KeyError, TypeError):
        raise UserError(f"{file.path}: licenses: not a list of objects with a numeric id") from None
    if mine:
        other["licenses"] = Raw(msgspec.json.encode(mine))
    return changed


def _license_key(entry: dict[str, Any]) -> bytes:
    return msgspec.json.encode({k: v for k, v in entry.items() if k != "id"}, order="sorted")


def _content(raw: Raw, image: int, category: int) -> bytes:
    """An annotation without its id, to know equal ones by."""
    entry = msgspec.json.decode(raw)
    entry.pop("id", None)
    entry |= {"image_id": image, "category_id": category}
    return msgspec.json.encode(entry, order="sorted")


def _paths(folder: str | None, names: list[str]) -> list[str]:
    """What images of different files are known to be the same by."""
    root = "" if folder is None else os.path.realpath(folder)
    return [os.path.normpath(os.path.join(root, name)) for name in names]


def _with(raw: Raw, **change: Any) -> Raw:
    return Raw(msgspec.json.encode({**msgspec.json.decode(raw), **change}))


def refuse_overwriting(paths: Iterable[Path], force: bool) -> None:
    """Check that no output is there yet.

    Raises:
        UserError: one is, and `force` is not set.
    """
    for path in paths:
        if path.exists() and not force:
            raise UserError(f"{path}: exists; choose another name or add --force")


def write(path: Path, content: dict[str, Any]) -> None:
    """Write an annotation file: whole, or not at all.

    Raises:
        UserError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, msgspec.json.encode(content))
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None


def told(path: Path, content: dict[str, Any], without: list[str] | None = None) -> None:
    """Print what a written file holds."""
    line = f"{path}: {len(content['images'])} images, {len(content['annotations'])} annotations, "
    print(line + f"{len(content['categories'])} classes")
    if without:
        names = ", ".join(without[:10]) + (", ..." if len(without) > 10 else "")
        print(printable(f"  {len(without)} classes on none of its images: {names}"))


_SUBSET = """examples:
  fcos dataset subset datasets/coco/annotations/instances_train2017.json --share 0.1 -o tenth.json
  fcos dataset subset my.json --count 200 --seed 1 -o small.json

Each class keeps its share of images, and at least one image as long as there is room. Entries
keep their ids and all their fields. Images are not copied: file names stay relative to the same
folder. exit codes: 0 written; 2 wrong arguments, or a file that can't be read or written
"""
_SPLIT = """examples:
  fcos dataset split my.json -o annotations                  # instances_train.json, _val.json
  fcos dataset split my.json --shares 0.7,0.2,0.1 --names train,val,test -o annotations
  fcos dataset split frames.json --group-by '^[a-z]+[0-9]+' -o annotations

Each class is split in the same proportion; one with a single image goes to the first part. An
image file never goes to two parts, nor do images of one --group-by: frames of one video, tiles of
one slide. Entries keep their ids and all their fields; images are not moved. Copies of an image
under other names are told by `fcos dataset verify`, not here.
exit codes: 0 written; 2 wrong arguments, or a file that can't be read or written
"""
_MERGE = """examples:
  fcos dataset merge part1.json part2.json -o all.json
  fcos dataset merge a/a.json b/b.json --images a/jpg b/jpg -o all.json

Classes of one name become one. Ids stay unless another file has them already, and what is changed
is said. Images that several files have become one image with the annotations of all. Where the
images lie in several folders, file names in the result start at the folder above them all, which
is said: it is the image_dir (or --images) from then on.
exit codes: 0 written; 2 wrong arguments, or a file that can't be read or written
"""


def _parser(name: str, text: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"fcos dataset {name}", epilog=epilog, description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def _add_dealing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    parser.add_argument("--group-by", metavar="REGEX",
                        help="images in whose name it finds the same stay together")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite")


def _deal(data: Annotations, shares: list[float], args: argparse.Namespace) -> np.ndarray:
    if data.orphans:
        print(f"{data.orphans} annotations of images that are not listed: left out")
    return stratify(data.labels(), units(data, args.group_by), shares, args.seed)


def _without(data: Annotations, rows: np.ndarray) -> list[str]:
    """Classes of the whole that none of these images has."""
    labels = data.labels()
    gone = np.setdiff1d(labels[:, 1], labels[np.isin(labels[:, 0], rows), 1])
    return [data.class_names[k] for k in gone]


def subset(argv: list[str]) -> int:
    """`fcos dataset subset`."""
    parser = _parser("subset", "Choose some of the images, each class in proportion.", _SUBSET)
    parser.add_argument("file", type=Path, metavar="FILE.json")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--count", type=int, metavar="N", help="images")
    amount.add_argument("--share", type=float, metavar="F", help="of the images, up to 1")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json")
    _add_dealing(parser)
    args = parser.parse_args(argv)
    if args.seed < 0 or not (args.count or 1) > 0 or not 0 < (args.share or 1) <= 1:
        parser.error("--count is at least 1, --share above 0 and at most 1, --seed at least 0")
    refuse_overwriting([args.output], args.force)
    data = Annotations.read(args.file)
    total = len(data.images)
    count = args.count or max(1, round(args.share * total))
    if count > total:
        raise UserError(f"{args.file}: --count {count}: it has {total} images")
    share = count / max(total, 1)
    rows = np.flatnonzero(_deal(data, [share, 1 - share], args) == 0)
    content = data.part(rows)
    write(args.output, content)
    told(args.output, content, _without(data, rows))
    return 0


def split(argv: list[str]) -> int:
    """`fcos dataset split`."""
    parser = _parser("split", "Split the images into training and validation.", _SPLIT)
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--shares", type=_shares, default=[0.8, 0.2], metavar="A,B",
                        help="of the images (default: 0.8,0.2)")  # fmt: skip
    parser.add_argument("--names", type=lambda text: text.split(","), default=["train", "val"],
                        metavar="A,B", help="default: train,val")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR",
                        help="gets instances_NAME.json of each")  # fmt: skip
    _add_dealing(parser)
    args = parser.parse_args(argv)
    if len(args.names) != len(args.shares) or len(set(args.names)) < len(args.names):
        parser.error("--names: a name of its own for each of --shares")
    if any(not name or "/" in name for name in args.names) or args.seed < 0:
        parser.error("--names: of files; --seed: at least 0")
    paths = [args.output / f"instances_{name}.json" for name in args.names]
    refuse_overwriting(paths, args.force)
    data = Annotations.read(args.file)
    part = _deal(data, args.shares, args)
    for number, path in enumerate(paths):
        rows = np.flatnonzero(part == number)
        content = data.part(rows)
        write(path, content)
        told(path, content, _without(data, rows))
    return 0


def _shares(text: str) -> list[float]:
    shares = [float(part) for part in text.split(",")]
    if len(shares) < 2 or not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise argparse.ArgumentTypeError("two or more, each above 0, that add up to 1")
    return shares


def merge_command(argv: list[str]) -> int:
    """`fcos dataset merge`."""
    parser = _parser("merge", "Put annotation files together.", _MERGE)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--images", type=Path, nargs="+", metavar="DIR",
                        help="folder of the images, one for all or one for each file "
                        "(default: found near the files)")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite")
    args = parser.parse_args(argv)
    if args.images and len(args.images) not in (1, len(args.files)):
        parser.error("--images: one for all or one for each file")
    for folder in args.images or ():
        if not folder.is_dir():
            raise UserError(f"{folder}: --images: no such folder")
    refuse_overwriting([args.output], args.force)
    files = [Annotations.read(path) for path in args.files]
    if args.images:
        folders = [str(p) for p in args.images] * (len(files) if len(args.images) == 1 else 1)
    else:
        folders = [image_folder(file.path, file.file_name[:LOOK_AT]) for file in files]
    merged = merge(files, folders)
    write(args.output, merged.content)
    for note in merged.notes:
        print(printable(note))
    told(args.output, merged.content)
    return 0
