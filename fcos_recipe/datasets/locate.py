"""Find the data that a `fcos dataset` command names by DIR, FILE.json or config."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fcos_recipe.config import eval_sets
from fcos_recipe.config.load import Config, data_paths, load_config
from fcos_recipe.data.index import Index, open_index
from fcos_recipe.datasets.convert.layouts import Options, convert, several
from fcos_recipe.datasets.find_images import resolve
from fcos_recipe.datasets.recognise import is_coco_file, recognise
from fcos_recipe.datasets.split_merge.annotations import Annotations
from fcos_recipe.errors import UserError
from fcos_recipe.files.atomic import replace_file
from fcos_recipe.places import CONFIGS, display

RULES = CONFIGS / "fcos" / "fcos_r50_fpn_1x_coco.yml"  # the default config
SPLITS = {"train": "TrainDataset", "val": eval_sets.MAIN}


@dataclass
class Source:
    """One split.

    Args:
        name: "train", "val", "eval_sets.NAME", or the annotation file's stem.
        path: of the annotation file.
        images: image directory; None if none was found.
        options: further keys of the config's section, such as `load_crowd`.
        bad: what could not be converted, if the data are in another format than COCO.
        shown: what the data are called in messages, if that is not `path`.
        notes: what a user should know about how the data were read, one line each.
    """

    name: str
    path: str
    images: str | None
    options: dict[str, Any] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shown: str = ""

    @property
    def title(self) -> str:
        return self.shown or self.path

    def index(self) -> Index:
        return open_index(self.path)


def sources(
    target: Path | None, config: Path | None, overrides: Sequence[str] = (),
    split: str | None = None, images: Path | None = None, look: bool = True,
    kind: str | None = None,
) -> tuple[list[Source], Config]:  # fmt: skip
    """The splits of a data set, and the config that applies to them.

    Args:
        target: a folder or an annotation file in any format that `recognise` knows; None: the
            data of `config`.
        config: default `RULES`.
        overrides: KEY=VALUE of the config.
        split: only this one of `SPLITS`, or of the folder's splits.
        images: image folder; None: search for it.
        look: find the images; this needs valid annotations.
        kind: the format, if several lie in the folder.

    Raises:
        UserError: no data was named or found; the message says what was looked for.
    """
    if target is None and config is None:
        raise UserError("no data given: name DIR, FILE.json or -c CONFIG")
    if target is not None and target.suffix in (".yml", ".yaml"):
        raise UserError(f"{target}: a YAML file; a config is named with -c, as in -c {target}, and "
                        "a data set by its folder")  # fmt: skip
    rules = load_config(config or RULES, overrides)
    if target is None:
        found = _of_config(rules, split)
    elif is_coco_file(target, kind):
        found = [Source(target.stem, str(target), None)]
    else:
        found = _of_folder(target, split, kind, images)
    for source in found:
        if images is not None and not images.is_dir():
            raise UserError(f"{images}: --images: no such folder")
        if images is not None and not source.shown:
            source.images = str(images)
        if look:
            _find_images(source, images)
    return found, rules


def _find_images(source: Source, images: Path | None) -> None:
    """Find a split's images; a file with names that training can't use is replaced by a copy."""
    index = source.index()
    names = index.file_names()
    named = images or (Path(source.images) if source.images else None)
    found = resolve(source.path, names, named if named and named.is_dir() else None,
                    split=source.name)  # fmt: skip
    source.images = found.folder or (str(images) if images else source.images)
    if not (renamed := found.renamed(names)):
        return
    source.notes += [f"{display(source.path)}: {n} {text}" for text, n in found.said.items()]
    data = Annotations.read(Path(source.path))
    data.rename(renamed)
    copy = _temporary_folder() / os.path.basename(source.path)
    replace_file(copy, msgspec.json.encode(data.part(np.arange(len(data.images)))))
    source.shown, source.path = source.path, str(copy)


def _temporary_folder() -> Path:
    """A new folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="fcos-"))
    atexit.register(shutil.rmtree, folder, True)
    return folder


def splits(data: dict[str, Any]) -> dict[str, str]:
    """All data sets of a resolved config to train or evaluate on: split's name -> dotted key."""
    return {**SPLITS, **{key: key for key in eval_sets.sections(data).values() if "." in key}}


def _of_config(config: Config, split: str | None) -> list[Source]:
    found, missing = [], []
    if split not in (None, *SPLITS):
        raise UserError(f"--split {split}: a config has {' and '.join(SPLITS)}; name the data")
    for name, place in splits(config.data).items():
        if split not in (None, name):
            continue
        section = dict(eval_sets.section(config.data, place) or {})
        files, folders = (data_paths(section, key) for key in ("anno_path", "image_dir"))
        folders = (folders or [section.get("dataset_dir") or ""]) * len(files)
        for key in ("dataset_dir", "anno_path", "image_dir"):
            section.pop(key, None)
        if files and all(map(os.path.isfile, files)):
            for number, (path, images) in enumerate(zip(files, folders), start=1):
                one = name if len(files) == 1 else f"{name}-{number}"
                found.append(Source(one, path, images, section))
        else:
            missing += config.missing_files(place)
    if not found:
        raise UserError(*missing or [f"{display(config.path)}: no annotation file in it"])
    return found


def _of_folder(
    place: Path, split: str | None, kind: str | None, images: Path | None
) -> list[Source]:  # fmt: skip
    """The splits of a folder or file; anything but COCO is converted into a temporary folder."""
    layout = recognise(place, kind)
    if layout.kind == "coco":
        found = []
        for name, files in layout.splits.items():
            if split in (None, name) or len(layout.splits) == 1:
                if len(files) > 1:
                    raise UserError(f"{several(place, name, files)}; name the file itself")
                one = Source(name or files[0].stem, str(files[0]), None, notes=layout.notes)
                found.append(one)
                layout.notes = []
        if not found:
            raise UserError(f"{place}: no *{split}*.json in it; name the annotation file itself")
        return found
    folder = _temporary_folder()
    only = split if any(layout.splits) else None
    made = convert(layout, Options(images, embedded=folder / "images"), only)
    how = "converted for this command only; `fcos dataset convert` or `fcos config new` keeps it"
    notes = [*layout.notes, f"{place}: {layout.name}, {how}"]
    notes += [f"{count} {text}" for text, count in made.said.items()]
    found = []
    for name, part in made.splits.items():
        path = folder / f"{name or 'all'}.json"
        replace_file(path, msgspec.json.encode(part.content))
        one = Source(name or "all", str(path), str(part.root), bad=made.bad, notes=notes)
        one.shown = str(place)
        found.append(one)
        made.bad, notes = [], []
    return found
