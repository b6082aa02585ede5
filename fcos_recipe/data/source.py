"""Which annotations and images a `fcos dataset` command means: DIR, FILE.json or a config."""

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcos_recipe.config.load import Config, display, load_config
from fcos_recipe.config.schema import ROOT
from fcos_recipe.data.index import Index, open_index
from fcos_recipe.errors import UserError

RULES = ROOT / "configs" / "fcos" / "fcos_r50_fpn_1x_coco.yml"  # where no config is named
SPLITS = {"train": "TrainDataset", "val": "EvalDataset"}
LOOK_AT = 20  # file names that are looked for in a directory to know it for that of the images


@dataclass
class Source:
    """One split.

    Args:
        name: "train", "val", or an annotation file's stem.
        path: of the annotation file.
        images: directory of the images; None where none was found.
        options: further keys of the config's section, as `load_crowd`.
    """

    name: str
    path: str
    images: str | None
    options: dict[str, Any] = field(default_factory=dict)

    def index(self) -> Index:
        return open_index(self.path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `sources` reads."""
    add = parser.add_argument
    add("target", nargs="?", type=Path, metavar="DIR|FILE.json",
        help="a folder in COCO format, or an annotation file")  # fmt: skip
    add("-c", "--config", type=Path, metavar="CONFIG",
        help="the data of this config, unless DIR or FILE.json is given; its sizes, levels and "
             f"augmentation in any case (default: {RULES.name})")  # fmt: skip
    add("-o", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="change the config")  # fmt: skip
    add("--split", choices=SPLITS, help="default: all there are, training first")
    add("--images", type=Path, metavar="DIR", help="the images, where they are not found")


def sources(args: argparse.Namespace) -> tuple[list[Source], Config]:
    """The splits that the arguments mean, and the config whose rules hold.

    Raises:
        UserError: nothing named, nothing found; the line says what was looked for.
    """
    if args.target is None and args.config is None:
        raise UserError("no data named: give DIR, FILE.json or -c CONFIG")
    config = load_config(args.config or RULES, args.o)
    if args.target is None:
        found = _of_config(config, args.split)
    elif args.target.is_dir():
        found = _of_folder(args.target, args.split)
    elif args.target.is_file():
        found = [Source(args.target.stem, str(args.target), None)]
    else:
        raise UserError(f"{args.target}: no such folder or annotation file")
    for source in found:
        if args.images is not None:
            if not args.images.is_dir():
                raise UserError(f"{args.images}: --images: no such folder")
            source.images = str(args.images)
        elif source.images is None or not os.path.isdir(source.images):
            index = source.index()
            names = [index.file_name(row) for row in range(min(LOOK_AT, len(index)))]
            source.images = image_folder(source.path, names)
    return found, config


def _of_config(config: Config, split: str | None) -> list[Source]:
    found, missing = [], []
    for name in [split] if split else SPLITS:
        section = dict(config.data.get(SPLITS[name]) or {})
        root, anno = section.pop("dataset_dir", None) or "", section.pop("anno_path", None)
        images = os.path.join(root, section.pop("image_dir", None) or "")
        path = os.path.join(root, anno or "")
        if anno and os.path.isfile(path):
            found.append(Source(name, path, images, section))
        else:
            missing += config.missing_files(SPLITS[name])
    if not found:
        raise UserError("\n".join(missing) or f"{display(config.path)}: names no annotation file")
    return found


def _of_folder(folder: Path, split: str | None) -> list[Source]:
    files = [p for part in ("annotations", ".") for p in sorted((folder / part).glob("*.json"))]
    found = []
    for name in [split] if split else SPLITS:
        # COCO's folder also has captions_*.json and person_keypoints_*.json
        named = sorted(
            (p for p in files if name in p.stem), key=lambda p: not p.stem.startswith("instances")
        )
        found += [Source(name, str(p), None) for p in named[:1]]
    if not found and len(files) == 1:
        found = [Source(files[0].stem, str(files[0]), None)]
    if not found:
        wanted = f"*{split}*.json" if split else "*train*.json or *val*.json"
        raise UserError(
            f"{folder}: no {wanted} in it or its annotations/; name the annotation file itself"
        )
    return found


def image_folder(path: str, names: list[str]) -> str | None:
    """The directory near an annotation file that has most of these images."""
    near = Path(path).resolve().parent
    roots = [near, near.parent]
    below = [p for root in roots for p in (root, root / "images") if p.is_dir()]
    folders = below + [p for root in below for p in sorted(root.iterdir()) if p.is_dir()]
    there = [sum((folder / name).is_file() for name in names) for folder in folders]
    if not any(there):
        return None
    return display(folders[there.index(max(there))])
