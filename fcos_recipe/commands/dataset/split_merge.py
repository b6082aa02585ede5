"""`fcos dataset subset`, `split` and `merge`: reduce, split and merge annotation files."""

import argparse
from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.commands.dataset.shared import (
    ACCOUNT,
    add_conversion,
    add_force,
    add_output,
    conversion_options,
    tell_account,
    tell_content,
)
from fcos_recipe.commands.options import add_json, finite, listed, parser
from fcos_recipe.datasets.account import Account
from fcos_recipe.datasets.find_images import remember, resolve
from fcos_recipe.datasets.find_images import split_of as named_split
from fcos_recipe.datasets.split_merge.annotations import Annotations, refuse_overwriting, write
from fcos_recipe.datasets.split_merge.inputs import Inputs, read
from fcos_recipe.datasets.split_merge.merge import merge as merged_from
from fcos_recipe.datasets.split_merge.split import Part
from fcos_recipe.datasets.split_merge.split import split as split_of
from fcos_recipe.datasets.split_merge.subset import subset as subset_of
from fcos_recipe.errors import UserError, one_line

_SUBSET = """examples:
  fcos dataset subset datasets/coco/annotations/instances_train2017.json --share 0.1 -o tenth.json
  fcos dataset subset my.json --count 200 --seed 1 -o small.json

Each class keeps its proportion of images, and at least one image if possible. Entries keep their
ids and all their fields. Images are not copied: file names stay relative to the same folder.
"""
_SPLIT = """examples:
  fcos dataset split my.json -o annotations                  # instances_train.json, _val.json
  fcos dataset split DIR --split train -o annotations        # COCO, VOC, YOLO, LabelMe, ...
  fcos dataset split my.json --shares 0.7,0.2,0.1 --names train,val,test -o annotations
  fcos dataset split frames.json --group-by '^[a-z]+[0-9]+' -o annotations

Each class is split in the same proportion; a class with a single image goes to the first part. An
image file is never in two parts, and --group-by keeps related images together, such as frames of a
video or tiles of a slide. Entries keep their ids and all their fields; images are not moved. Copies
of an image under other names are found by `fcos dataset verify`, not here.
"""
_MERGE = """examples:
  fcos dataset merge part1.json part2.json -o all.json
  fcos dataset merge a/a.json b/b.json --images a/jpg b/jpg -o all.json
  fcos dataset merge voc_folder yolo_folder -o all.json      # all splits of each folder

Classes with the same name become one. Ids change only if an earlier file has them already; changes
are printed. An image in several files becomes one image with all annotations. If the images are in
several folders, file names become relative to their common parent folder, which is printed: use it
as image_dir (or --images).
"""
_SOURCE = "COCO file, or a data set's folder in any format that `fcos dataset convert` reads"
_CODES = {exit_codes.BAD_INPUT: "wrong arguments, or a file that can't be read or written"}


def _add_dealing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--group-by", metavar="REGEX",
                        help="images with the same match in their names stay together")  # fmt: skip
    parser.add_argument("--images", type=Path, metavar="DIR", help="image folder (default: search)")
    parser.add_argument("--split", metavar="NAME", help="this split of data that have several")
    add_conversion(parser)
    add_json(parser, ACCOUNT)
    add_force(parser)


def _read(
    args: argparse.Namespace, place: Path, images: Path | None, folder: Path, split: str | None
) -> Inputs:  # fmt: skip
    """Read what was named, and print what is to be known about it."""
    if images is not None and not images.is_dir():
        raise UserError(f"{images}: --images: no such folder")
    options = conversion_options(args, images, folder)
    found = read(place, options, args.format, named_split(split or "") or split, args.skip_bad)
    for line in found.notes:
        print(one_line(line))
    return found


def _one(args: argparse.Namespace, folder: Path) -> tuple[Annotations, Path | None, Account | None]:
    """The only split of the data or the named one, its image folder, the conversion's account.

    The folder is None if no image was found, which is not needed here.
    """
    found = _read(args, args.source, args.images, folder, args.split)
    if len(found.files) > 1:
        told = ", ".join(split or "images of no split" for split in found.splits)
        raise UserError(f"{args.source}: it has {told}; name one with --split NAME, or join them "
                        "first with `fcos dataset merge`")  # fmt: skip
    data, images = found.files[0], found.folders[0]
    if found.account is None:
        place = resolve(data.path, data.file_name, images, split=found.splits[0]).folder
        images = Path(place) if place else images
    return data, images, found.account


def _write(paths: list[Path], parts: list[Part], images: Path | None) -> None:
    for path, part in zip(paths, parts, strict=True):
        remember(part.content, path, images)
        write(path, part.content)
        tell_content(path, part.content, part.without)


def subset(argv: list[str]) -> int:
    """`fcos dataset subset`."""
    text = "Choose some of the images and keep the class proportions."
    ask = parser("dataset subset", text, _SUBSET, _CODES)
    ask.add_argument("source", type=Path, metavar="DIR|FILE", help=_SOURCE)
    amount = ask.add_mutually_exclusive_group(required=True)
    amount.add_argument("--count", type=int, metavar="N", help="number of images")
    amount.add_argument("--share", type=float, metavar="F", help="fraction of the images, up to 1")
    add_output(ask)
    _add_dealing(ask)
    args = ask.parse_args(argv)
    if args.seed < 0 or not (args.count or 1) > 0 or not 0 < (args.share or 1) <= 1:
        ask.error("--count must be at least 1, --share above 0 and at most 1, --seed at least 0")
    refuse_overwriting([args.output], args.force)
    data, images, before = _one(args, args.output.parent)
    part, account = subset_of(data, args.count, args.share, args.group_by, args.seed)
    _write([args.output], [part], images)
    tell_account(before.then(account) if before else account, args.json)
    return 0


def split(argv: list[str]) -> int:
    """`fcos dataset split`."""
    ask = parser("dataset split", "Split the images into training and validation.", _SPLIT, _CODES)
    ask.add_argument("source", type=Path, metavar="DIR|FILE", help=_SOURCE)
    ask.add_argument("--shares", type=_shares, default=[0.8, 0.2], metavar="A,B",
                     help="fraction of images in each part (default: 0.8,0.2)")  # fmt: skip
    ask.add_argument("--names", type=listed, default=["train", "val"], metavar="A,B",
                     help="names of the parts (default: train,val)")  # fmt: skip
    add_output(ask, "DIR", "folder for instances_NAME.json of each part")
    _add_dealing(ask)
    args = ask.parse_args(argv)
    if len(args.names) != len(args.shares) or len(set(args.names)) < len(args.names):
        ask.error("--names: give a different name for each of --shares")
    if any(not name or "/" in name for name in args.names) or args.seed < 0:
        ask.error("--names must be valid file names, --seed at least 0")
    paths = [args.output / f"instances_{name}.json" for name in args.names]
    refuse_overwriting(paths, args.force)
    data, images, before = _one(args, args.output)
    parts, account = split_of(data, args.shares, args.group_by, args.seed)
    _write(paths, parts, images)
    tell_account(before.then(account) if before else account, args.json)
    return 0


def _shares(text: str) -> list[float]:
    shares = [finite(part) for part in text.split(",")]
    if len(shares) < 2 or not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise argparse.ArgumentTypeError("must be two or more numbers above 0 that add up to 1")
    return shares


def _find_images(file: Annotations, named: Path | None, split: str) -> str | None:
    """The image folder of a file, whose names become those relative to it."""
    found = resolve(file.path, file.file_name, named, split=split)
    if found.unclear and found.folder is None:
        raise UserError(f"{file.path}: {found.why_not(named or file.path)}")
    file.rename(found.renamed(file.file_name))
    for text, count in found.said.items():
        print(one_line(f"{file.path}: {count} {text}"))
    if missing := sum(name is None for name in found.names) if found.folder else 0:
        print(one_line(f"{file.path}: {missing} of {len(found.names)} images were not found"))
    return found.folder or (str(named) if named and not found.names else None)


def merge(argv: list[str]) -> int:
    """`fcos dataset merge`."""
    ask = parser("dataset merge", "Merge annotation files.", _MERGE, _CODES)
    ask.add_argument("sources", type=Path, nargs="+", metavar="DIR|FILE", help=_SOURCE)
    add_output(ask)
    ask.add_argument("--images", type=Path, nargs="+", metavar="DIR",
                     help="image folder, one for all or one per DIR|FILE "
                     "(default: searched near the files)")  # fmt: skip
    add_conversion(ask)
    add_json(ask, ACCOUNT)
    add_force(ask)
    args = ask.parse_args(argv)
    if args.images and len(args.images) not in (1, len(args.sources)):
        ask.error("--images: give one folder for all or one per DIR|FILE")
    refuse_overwriting([args.output], args.force)
    named = list(args.images or [None])
    named *= len(args.sources) if len(named) == 1 else 1
    parts = [_read(args, source, images, args.output.parent, None)
             for source, images in zip(args.sources, named, strict=True)]  # fmt: skip
    files = [file for part in parts for file in part.files]
    folders = [_find_images(file, folder, split) if part.account is None else str(folder)
               for part in parts
               for file, folder, split in zip(part.files, part.folders, part.splits)]  # fmt: skip
    merged = merged_from(files, folders)
    remember(merged.content, args.output, Path(merged.folder) if merged.folder else None)
    write(args.output, merged.content)
    for note in merged.notes:
        print(one_line(note))
    tell_content(args.output, merged.content)
    before = Account()
    for part in parts:
        before.add(part.account or Account())
    tell_account(before.then(merged.account), args.json)
    return 0
