"""`fcos dataset convert`: convert Pascal VOC, YOLO and incomplete COCO to COCO."""

from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.commands.dataset.shared import (
    ACCOUNT,
    add_force,
    add_output,
    tell_account,
    tell_content,
)
from fcos_recipe.commands.options import add_json, listed, parser
from fcos_recipe.config.load import display
from fcos_recipe.datasets.convert.coco_repair import from_coco
from fcos_recipe.datasets.convert.common import read_names
from fcos_recipe.datasets.convert.voc import from_voc
from fcos_recipe.datasets.convert.yolo import from_yolo
from fcos_recipe.datasets.split_merge.annotations import refuse_overwriting, write
from fcos_recipe.errors import UserError, UserErrors, printable

MOST_TOLD = 20  # how many bad lines are printed
_HELP = """\
examples:
  fcos dataset convert --from voc VOCdevkit/VOC2007 --list ImageSets/Main/train.txt -o train.json
  fcos dataset convert --from yolo my/data.yaml --split val -o annotations/instances_val.json
  fcos dataset convert --from yolo my --images my/images/train --classes cat,dog -o train.json
  fcos dataset convert --from coco export.json -o annotations/instances_train.json

Images are not copied; sizes are read from their headers, after EXIF rotation. A line that can't be
converted is reported with its file and number, and nothing is written unless --skip-bad leaves such
lines out. VOC's difficult objects get iscrowd 1. --from coco adds what is missing: integer ids,
image sizes, boxes from polygons, area, iscrowd; other fields are kept.
"""
_CODES = {exit_codes.BAD_INPUT: "wrong arguments, or data that can't be read or converted"}


def main(argv: list[str]) -> int:
    """See `fcos dataset convert --help`."""
    text = "Convert annotations of another format to a COCO file."
    ask = parser("dataset convert", text, _HELP, _CODES)
    add = ask.add_argument
    add("source", type=Path, metavar="DIR|FILE", help="voc: folder; yolo: folder or data.yaml; "
        "coco: JSON")  # fmt: skip
    add("--from", dest="format", required=True, choices=("voc", "yolo", "coco"))
    add_output(ask)
    add("--images", type=Path, metavar="DIR", help="image folder; file names are relative to it")
    add("--classes", type=listed, metavar="FILE|A,B",
        help="names in order of their ids, or a file with one name per line")  # fmt: skip
    add("--split", default="train", metavar="NAME", help="part of data.yaml (default: %(default)s)")
    add("--list", type=Path, metavar="FILE", help="only the images named in FILE, one per line")
    add("--origin", choices=("auto", "0", "1"), default="auto",
        help="voc: pixel coordinates start at 1 (last pixel included) or 0 "
        "(auto: 0 if any of the data set's is below 1 or some have fractions)")  # fmt: skip
    add("--keypoints", metavar="N,D|none",
        help="yolo: boxes are followed by N keypoints of D numbers each (as kpt_shape in data.yaml "
        "says), or long lines are polygons")  # fmt: skip
    add("--skip-bad", action="store_true", help="leave out and report what can't be converted")
    add_json(ask, ACCOUNT)
    add_force(ask)
    args = ask.parse_args(argv)
    refuse_overwriting([args.output], args.force)
    if args.list is not None and not args.list.exists():
        args.list = args.source / args.list
    for path in (args.source, args.images, args.list):
        if path is not None and not path.exists():
            raise UserError(f"{path}: no such file or folder")
    classes = args.classes
    if classes and len(classes) == 1 and Path(classes[0]).is_file():
        classes = read_names(Path(classes[0]))
    if args.format == "yolo":
        found = from_yolo(args.source, args.images, classes, args.split, args.list, args.keypoints)
    elif args.format == "voc":
        found = from_voc(args.source, args.images, classes, args.list, args.origin)
    else:
        found = from_coco(args.source, args.images)
    if found.bad and not args.skip_bad:
        more = len(found.bad) - MOST_TOLD
        rest = [f"{more} more"] if more > 0 else []
        last = f"{len(found.bad)} can't be converted; fix them, or leave them out with --skip-bad"
        raise UserErrors([*found.bad[:MOST_TOLD], *rest, last])
    for line in found.bad:
        print(printable(f"left out: {line}"))
    for text, count in found.said.items():
        print(printable(f"{count} {text}"))
    content = found.content()
    write(args.output, content)
    tell_content(args.output, content)
    tell_account(found.account, args.json)
    print(printable(f"image_dir (file names are relative to it): {display(str(found.root))}"))
    return 0
