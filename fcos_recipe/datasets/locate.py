"""Find the data that a `fcos dataset` command names by DIR, FILE.json or config."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcos_recipe.config.load import Config, data_paths, display, load_config
from fcos_recipe.data.index import Index, open_index
from fcos_recipe.errors import UserError
from fcos_recipe.places import ROOT

RULES = ROOT / "configs" / "fcos" / "fcos_r50_fpn_1x_coco.yml"  # the default config
SPLITS = {"train": "TrainDataset", "val": "EvalDataset"}
LOOK_AT = 20  # how many file names are looked up to recognise the image directory


@dataclass
class Source:
    """One split.

    Args:
        name: "train", "val", or the annotation file's stem.
        path: of the annotation file.
        images: image directory; None if none was found.
        options: further keys of the config's section, such as `load_crowd`.
    """

    name: str
    path: str
    images: str | None
    options: dict[str, Any] = field(default_factory=dict)

    def index(self) -> Index:
        return open_index(self.path)


def sources(
    target: Path | None, config: Path | None, overrides: Sequence[str] = (),
    split: str | None = None, images: Path | None = None, look: bool = True,
) -> tuple[list[Source], Config]:  # fmt: skip
    """The splits of a data set, and the config that applies to them.

    Args:
        target: a folder in COCO format, or an annotation file; None: the data of `config`.
        config: default `RULES`.
        overrides: KEY=VALUE of the config.
        split: only this one of `SPLITS`.
        images: image folder; None: search for it.
        look: search for image folders that are not named; this needs valid annotations.

    Raises:
        UserError: no data was named or found; the message says what was looked for.
    """
    if target is None and config is None:
        raise UserError("no data given: name DIR, FILE.json or -c CONFIG")
    rules = load_config(config or RULES, overrides)
    if target is None:
        found = _of_config(rules, split)
    elif target.is_dir():
        found = _of_folder(target, split)
    elif target.is_file():
        found = [Source(target.stem, str(target), None)]
    else:
        raise UserError(f"{target}: no such folder or annotation file")
    for source in found:
        if images is not None:
            if not images.is_dir():
                raise UserError(f"{images}: --images: no such folder")
            source.images = str(images)
        elif look and (source.images is None or not os.path.isdir(source.images)):
            index = source.index()
            names = [index.file_name(row) for row in range(min(LOOK_AT, len(index)))]
            source.images = image_folder(source.path, names, source.name)
    return found, rules


def _of_config(config: Config, split: str | None) -> list[Source]:
    found, missing = [], []
    for name in [split] if split else SPLITS:
        section = dict(config.data.get(SPLITS[name]) or {})
        files, folders = (data_paths(section, key) for key in ("anno_path", "image_dir"))
        folders = (folders or [section.get("dataset_dir") or ""]) * len(files)
        for key in ("dataset_dir", "anno_path", "image_dir"):
            section.pop(key, None)
        if files and all(map(os.path.isfile, files)):
            for number, (path, images) in enumerate(zip(files, folders), start=1):
                one = name if len(files) == 1 else f"{name}-{number}"
                found.append(Source(one, path, images, section))
        else:
            missing += config.missing_files(SPLITS[name])
    if not found:
        raise UserError("\n".join(missing) or f"{display(config.path)}: no annotation file in it")
    return found


def annotation_files(folder: Path, split: str) -> list[Path]:
    """Annotation files whose names fit a split; split "" fits any.

    Args:
        folder: holds annotations/instances_train2017.json, train.json, or, as Roboflow exports
            them, train/_annotations.coco.json and valid/...

    Returns:
        the files, sorted; COCO's captions, keypoints and the like only if there are no others.
    """

    def of(name: str) -> bool:
        return split in name.lower().replace("trainval", "train")

    found = [p for part in ("annotations", ".") for p in sorted((folder / part).glob("*.json"))]
    found = [p for p in found if of(p.stem)]
    found += [p for p in sorted(folder.glob("*/*.json"))
              if p.parent.name != "annotations" and of(p.parent.name)]  # fmt: skip
    best = [p for p in found if p.stem.startswith("instances")]
    other = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")
    return best or [p for p in found if not p.stem.startswith(other)] or found


def _of_folder(folder: Path, split: str | None) -> list[Source]:
    found = []
    for name in [split] if split else SPLITS:
        found += [Source(name, str(p), None) for p in annotation_files(folder, name)[:1]]
    if not found and len(files := annotation_files(folder, "")) == 1:
        found = [Source(files[0].stem, str(files[0]), None)]
    if not found:
        wanted = f"*{split}*.json" if split else "*train*.json or *val*.json"
        raise UserError(
            f"{folder}: no {wanted} in it or its annotations/; name the annotation file itself"
        )
    return found


def image_folder(
    path: str, names: list[str], split: str = "", roots: Sequence[Path] = ()
) -> str | None:
    """The directory near an annotation file that has most of these images, or None.

    Args:
        path: of the annotation file.
        names: of some of its images.
        split: directories named after another split are skipped.
        roots: search these and their subfolders instead of the surroundings of the file.
    """
    near = Path(path).resolve().parent
    own = [s for s in SPLITS if s in split]

    def foreign(folder: Path) -> bool:
        bears = [s for s in SPLITS if s in folder.name]
        return bool(own and bears) and not set(own) & set(bears)

    below = [p for root in roots or [near, near.parent] for p in (root, root / "images")]
    below = [p for p in below if p.is_dir()]
    folders = below + [p for root in below for p in sorted(root.iterdir())
                       if p.is_dir() and not foreign(p)]  # fmt: skip
    there = [sum(os.path.isfile(folder / name) for name in names) for folder in folders]
    if not any(there):
        return None
    return display(folders[there.index(max(there))])
