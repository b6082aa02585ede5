"""`fcos dataset verify`: find data problems before training starts."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.config import eval_sets
from fcos_recipe.config.load import Config, data_paths
from fcos_recipe.data.images import BadImage
from fcos_recipe.data.transforms import UsualChain, others_needed, transformed
from fcos_recipe.datasets.account import Account
from fcos_recipe.datasets.find_images import resolve
from fcos_recipe.datasets.locate import Source
from fcos_recipe.datasets.verify import (
    annotations as annotation_checks,
)
from fcos_recipe.datasets.verify import (
    fix as annotation_fix,
)
from fcos_recipe.datasets.verify import (
    images as image_checks,
)
from fcos_recipe.datasets.verify.annotations import Columns, Content
from fcos_recipe.datasets.verify.findings import KINDS, Findings
from fcos_recipe.datasets.verify.images import ImageCheck
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_text
from fcos_recipe.places import display
from fcos_recipe.plugins import fault


@dataclass
class Split:
    """One annotation file and what was found out about it."""

    source: Source
    found: Findings = field(default_factory=Findings)
    content: Content | None = None
    rows: Columns | None = None
    results: dict[str, ImageCheck] = field(default_factory=dict)  # by image name
    fixed: dict[str, Any] | None = None

    def names(self) -> list[str]:
        """File names of the valid image entries."""
        return [] if self.content is None else [
            image.file_name for image in self.content.entries["images"].rows
        ]  # fmt: skip


def verify(
    found: list[Source],
    config: Config | None = None,
    images: bool = True,
    search: bool = True,
    fix: Path | None = None,
    missing: Iterable[str] = (),
    allow: Iterable[str] = (),
) -> dict[str, Any]:
    """Check a data set, and optionally write cleaned copies of its annotations.

    Args:
        found, config, images, search: see `examine`.
        fix: file or folder for the copies, see `targets`.
        missing: messages about annotation files that are missing, added to the findings.
        allow: kinds of errors that count as warnings.

    Returns:
        the report, JSON-ready; `fcos dataset verify --help` documents it.

    Raises:
        UserError: see `examine` and `targets`.
        OSError: a copy can't be written.
    """
    start = time.monotonic()
    paths = targets(fix, found) if fix else []
    splits, between = examine(found, config, images, search)
    for line in missing:
        between.add("annotation_file", text=line)
    if fix:
        _fix(splits, paths, between)
    return _report(splits, between, list(allow), time.monotonic() - start)


def examine(
    found: list[Source], config: Config | None = None, images: bool = True, search: bool = True
) -> tuple[list[Split], Findings]:
    """Check annotation files and their images, and the splits against each other.

    Args:
        found: the splits; one whose name starts with "train" is the training split.
        config: its num_classes and TestDataset classes are compared with the annotations.
        images: whether to read all images.
        search: whether to search for image folders that are missing.

    Returns:
        the splits with their findings, and findings between splits or about the config.

    Raises:
        UserError: an annotation file can't be opened.
    """
    splits = [Split(source) for source in found]
    for split in splits:
        source = split.source
        for line in source.bad:
            split.found.add("not_converted", text=line)
        split.content = annotation_checks.read(source.path, split.found)
        if split.content is not None:
            _find_images(split, search, images)
    if images:
        _read_images(splits)
        if config is not None:
            _transform(splits, config)
    for split in splits:
        source = split.source
        if split.content is not None:
            split.rows = annotation_checks.check(
                split.content, split.found, split.source.options, source.name.startswith("train")
            )
    between = Findings()
    _leaks(splits, between)
    _classes(splits, config, between)
    return splits, between


def _find_images(split: Split, search: bool, told: bool) -> None:
    """Find the image folder, and the names under which training would find the images."""
    source, names = split.source, split.names()
    named = Path(source.images) if source.images and os.path.isdir(source.images) else None
    if named is None and not search:
        return
    found = resolve(source.path, names, named, split=source.name)
    if found.folder is None and named is None:  # perhaps they are in another split's folder
        found = resolve(source.path, names)
    source.images = found.folder or source.images
    if found.folder is None and found.unclear:
        source.notes.append(found.why_not(source.path))
    assert split.content is not None
    split.content.renamed = found.renamed(names)
    for at, image, id in split.content.entries["images"] if told else ():
        name, place = image.file_name, ("images", at)
        if new := split.content.renamed.get(name):
            split.found.add("file_name_other", id, name, place, f"it is {new}")
        elif (files := found.unclear.get(name)) and found.folder:
            text = f"could be {' or '.join(map(display, files[:2]))}"
            split.found.add("file_name_unclear", id, name, place, text)


def _path(split: Split, name: str) -> str:
    assert split.content is not None
    return os.path.join(split.source.images or "", split.content.renamed.get(name, name))


def _read_images(splits: list[Split]) -> None:
    wanted: dict[str, None] = {}  # in order; splits may share files
    for split in splits:
        folder = split.source.images
        if folder is None or not os.path.isdir(folder):
            if split.content is not None:
                text = f"{folder or 'none found near the annotations'}; name it with --images DIR"
                split.found.add("image_folder", text=text)
            continue
        wanted.update(dict.fromkeys(_path(split, name) for name in split.names()))
    results = dict(zip(wanted, image_checks.inspect_all(list(wanted))))
    listed: dict[str, set[str]] = {}
    for split in splits:
        if split.content is None or "image_folder" in split.found.items:
            continue
        names = split.names()
        split.results = {name: results[_path(split, name)] for name in names}
        split.content.sizes = {n: v.size for n, v in split.results.items() if v.size is not None}
        rows = [
            (at, id, image.file_name, (image.height or 0, image.width or 0))
            for at, image, id in split.content.entries["images"]
        ]
        images = split.source.images or ""  # searched for above
        image_checks.report(split.found, rows, split.results, images)
        folder = os.path.realpath(images)
        told = [i["file"] for items in split.found.items.values() for i in items if "file" in i]
        used = [split.content.renamed.get(name, name) for name in (*names, *told)]
        listed.setdefault(folder, set()).update(os.path.normpath(name) for name in used)
    for split in splits:
        names = listed.pop(os.path.realpath(split.source.images or ""), None)
        for name in image_checks.unlisted(split.source.images or "", names) if names else ():
            split.found.add("unlisted", file=name)


def _transform(splits: list[Split], config: Config) -> None:
    """Send each readable image through the transforms of the config's readers.

    The usual transforms depend on an image's size only, so one blank image of each size is enough.
    """
    from fcos_recipe.data import reader

    made: dict[str, Any] = {}
    for name in ("TrainReader", "EvalReader"):
        if arguments := config.data.get(name):
            shared = {"num_classes": config.data["num_classes"]}
            made[name] = getattr(reader, name)(**{**shared, **arguments})
    told: dict[tuple, str] = {}
    for split in splits:
        use = ("TrainReader", "EvalReader")[not split.source.name.startswith("train")]
        if split.content is None or use not in made:
            continue
        for at, image, id in split.content.entries["images"]:
            result = split.results.get(image.file_name)
            if result is None or result.size is None:
                continue
            record: dict[str, Any] = {"im_file": _path(split, image.file_name)}
            key = (use, record["im_file"])
            if isinstance(made[use].chain, UsualChain):
                record, key = {"size": result.size}, (use, result.size)
            if key not in told:
                told[key] = _transform_error(made[use], record, *result.size)
            if told[key]:
                split.found.add("transform_fails", id, image.file_name, ("images", at), told[key])


def _transform_error(reader: Any, source: dict[str, Any], height: int, width: int) -> str:
    """Why a transform fails on an image, tried a few times with a box around all of it; or ""."""

    def record() -> dict[str, Any]:
        pixels = {"image": np.zeros((height, width, 3), np.uint8)} if "size" in source else source
        return {
            **pixels,
            "im_id": np.zeros(1, np.int64),
            "gt_bbox": np.array([[0, 0, width, height]], np.float32),
            "gt_class": np.zeros((1, 1), np.int32),
            "is_crowd": np.zeros((1, 1), np.int32),
        }

    others = others_needed(reader.mixing, 0)
    for seed in range(4):
        mixed = [[record() for _ in range(others)]] if others else []
        try:
            transformed(reader.chain, record(), np.random.default_rng(seed), *mixed)
        except BadImage as error:
            return str(error).partition(": ")[2]
        except Exception as error:  # in a file of the user's
            return fault(error) or str(error)
    return ""


def _leaks(splits: list[Split], between: Findings) -> None:
    """Find images that occur in two splits, by content if they were read, otherwise by path.

    Named evaluation sets may share images with each other and with EvalDataset.
    """
    seen: dict[Any, tuple[Split, str]] = {}
    for split in splits:
        if split.source.images is None:
            continue
        own: dict[Any, tuple[Split, str]] = {}
        ids = [] if split.content is None else split.content.entries["images"].id.tolist()
        for id, name in zip(ids, split.names()):
            result = split.results.get(name)
            key = result.digest if result else os.path.realpath(_path(split, name))
            if not key or key in own:
                continue
            own[key] = (split, name)
            if key in seen:
                other, there = seen[key]
                training = other.source.name.startswith("train")
                if split.source.name.startswith(f"{eval_sets.KEY}.") and not training:
                    continue
                text = f"in {split.source.name} is also {there} in {other.source.name}"
                between.add("leak", id, name, text=text)
        seen = {**own, **seen}


def _classes(splits: list[Split], config: Config | None, between: Findings) -> None:
    """Compare number, names and order of the classes between splits and with the config."""
    lists = [(s.source.name, s.content) for s in splits if s.content is not None]
    if config is not None:
        classes = config.data.get("num_classes")
        for name, content in lists:
            number = len(content.entries["categories"])
            if number != classes:
                between.add("num_classes", text=f"{name}: {number} categories, the config says "
                                                f"num_classes: {classes}")  # fmt: skip
        lists += _test_names(config, {os.path.realpath(c.path) for _, c in lists})
    for name, content in lists[1:]:
        first, reference = lists[0]
        ours, theirs = _names(content), _names(reference)
        if ours != theirs:
            i = next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), None)
            text = f"{len(ours)} classes in {name}, {len(theirs)} in {first}"
            if i is not None:
                text = f"class {i} is {ours[i]!r} in {name}, {theirs[i]!r} in {first}"
            between.add("category_order", text=text)
        elif isinstance(content, Content):
            ids = [c.entries["categories"].id.tolist() for c in (content, reference)]
            if ids[0] != ids[1]:
                between.add("category_ids", text=f"{name} and {first}")


def _names(content: Content | list[str]) -> list[str]:
    return content if isinstance(content, list) else content.class_names()


def _test_names(config: Config, known: set[str]) -> list[tuple[str, Any]]:
    """The class names of TestDataset, unless its file is checked anyway."""
    path = next(iter(data_paths(config.data.get("TestDataset") or {}, "anno_path")), "")
    if os.path.realpath(path) in known or not os.path.isfile(path):
        return []
    if not path.endswith(".json"):
        text = read_text(path)
        return [("TestDataset", [line.strip() for line in text.splitlines() if line.strip()])]
    content = annotation_checks.read(path, Findings())
    return [("TestDataset", content)] if content is not None else []


# ---- --fix


def targets(fix: Path, found: list[Source]) -> list[Path]:
    """Paths of the cleaned copies: one file, or a directory for several splits.

    Raises:
        UserError: a path exists, or two splits would write the same file.
    """
    if fix.suffix.lower() == ".json" and not fix.is_dir():
        if len(found) > 1:
            raise UserError(f"{fix}: --fix: {len(found)} splits need a directory, or --split")
        paths = [fix]
    else:
        paths = [fix / os.path.basename(source.path) for source in found]
    if len(set(paths)) < len(paths):
        raise UserError(f"{fix}: --fix: two splits have files with the same name; add --split")
    for path in paths:
        if os.path.lexists(path):
            raise UserError(f"{path}: --fix: it exists and is not overwritten; choose another name")
    return paths


def _fix(splits: list[Split], paths: list[Path], between: Findings) -> None:
    order = None
    for split, path in zip(splits, paths):
        if split.content is None:
            split.fixed = {"path": None, "changes": [], "left": split.found, "account": Account()}
            continue
        account = Account()
        account.seen.update({name: len(rows) for name, rows in split.content.raw.items()})
        parts, changes, left = annotation_fix.fix(
            split.content, split.found, split.source.options, order
        )
        order = order or split.content.class_names()
        for change in changes:
            if change["text"].startswith(annotation_fix.REMOVED):
                account.leave_out(change["at"].partition("[")[0], change["kind"])
        account.written.update(annotation_fix.count(parts))
        account.check(path)
        annotation_fix.write(path, parts)
        split.fixed = {"path": str(path), "changes": changes, "left": left, "account": account}


# ---- the report


def _report(
    splits: list[Split], between: Findings, allowed: list[str], seconds: float
) -> dict[str, Any]:
    parts = {split.source.name: split.found for split in splits}
    report: dict[str, Any] = {
        "errors": sum(f.count(True, allowed) for f in (*parts.values(), between)),
        "warnings": sum(f.count(False, allowed) for f in (*parts.values(), between)),
        "seconds": round(seconds, 2),
        "splits": {},
        "between": _kinds(between, allowed),
    }
    for split in splits:
        report["splits"][split.source.name] = {
            "annotations": split.source.title,
            "images": split.source.images,
            "notes": split.source.notes,
            **_totals(split),
            "findings": _kinds(split.found, allowed),
        }
        if split.fixed is not None:
            left = split.fixed["left"]
            report["splits"][split.source.name]["fix"] = {
                "path": split.fixed["path"],
                "changes": split.fixed["changes"],
                "account": split.fixed["account"].rows(),
                "errors_left": left.count(True),
                "findings_left": _kinds(left, allowed),
            }
    return report


def _totals(split: Split) -> dict[str, Any]:
    if split.content is None or split.rows is None:
        return {"totals": None}
    images = split.content.entries["images"]
    rows, sizes = split.rows, split.content.sizes
    unknown = sum(not (i.height and i.width) and i.file_name not in sizes for i in images.rows)
    return {
        "totals": {
            "images": len(split.content.raw["images"]),
            "images_read": sum(v.size is not None for v in split.results.values()),
            "images_without_boxes": len(images) - len(set(rows.image[rows.good].tolist())),
            "images_of_unknown_size": unknown,  # their boxes can't be checked against it
            "annotations": len(split.content.raw["annotations"]),
            "boxes_to_train_on": int(rows.good.sum()),
            "crowds": int(rows.crowd.sum()),
            "categories": len(split.content.raw["categories"]),
        }
    }


def _kinds(found: Findings, allowed: list[str]) -> dict[str, Any]:
    kinds = [kind for errors in (True, False) for kind, row in KINDS.items() if row[0] == errors]
    return {
        kind: {
            "severity": "error" if KINDS[kind][0] and kind not in allowed else "warning",
            "meaning": KINDS[kind][1],
            "count": len(found.items[kind]),
            "items": found.items[kind],
        }
        for kind in kinds
        if kind in found.items
    }
