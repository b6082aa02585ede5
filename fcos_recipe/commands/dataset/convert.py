"""`fcos dataset convert`: convert the annotations of other tools and formats to COCO."""

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
from fcos_recipe.commands.options import add_json, parser
from fcos_recipe.datasets.convert.layouts import convert, refuse_bad
from fcos_recipe.datasets.find_images import remember, split_of
from fcos_recipe.datasets.formats import TABLE
from fcos_recipe.datasets.recognise import recognise
from fcos_recipe.datasets.split_merge.annotations import refuse_overwriting, write
from fcos_recipe.errors import UserError, one_line
from fcos_recipe.places import display

_HELP = """\
examples:
  fcos dataset convert my -o annotations            # every split: annotations/instances_*.json
  fcos dataset convert my --split val -o val.json   # one file
  fcos dataset convert VOCdevkit/VOC2007 --list ImageSets/Main/train.txt -o train.json
  fcos dataset convert json --images pictures --classes cat,dog -o train.json

what DIR|FILE can be (--from NAME if several formats lie in one folder):
{formats}

Images are not copied; they are found at any depth, also under the names that tools write on another
machine. A line that can't be converted is reported with its file and number, and nothing is written
unless --skip-bad leaves such lines out. Polygons, circles and masks become the boxes around them.
VOC's difficult objects get iscrowd 1. COCO gets what it lacks: integer ids, image sizes, boxes from
masks, area, iscrowd, names under which training finds the images; other fields are kept.
`fcos config new --data DIR` converts as well and writes the config.
"""
_CODES = {exit_codes.BAD_INPUT: "wrong arguments, or data that can't be read or converted"}


def main(argv: list[str]) -> int:
    """See `fcos dataset convert --help`."""
    text = "Convert annotations of another format to COCO files."
    ask = parser("dataset convert", text, _HELP.format(formats=TABLE), _CODES)
    add = ask.add_argument
    add("source", type=Path, metavar="DIR|FILE", help="the data set's folder, or its main file")
    add_conversion(ask)
    add_output(ask, "FILE.json|DIR", "one file, or a folder for instances_SPLIT.json of each split")
    add("--images", type=Path, metavar="DIR", help="image folder; file names are relative to it")
    add("--split", metavar="NAME", help="only this split (of data.yaml: default train)")
    add("--list", type=Path, metavar="FILE", help="only the images named in FILE, one per line")
    add_json(ask, ACCOUNT)
    add_force(ask)
    args = ask.parse_args(argv)
    one = args.output.suffix.lower() == ".json" and not args.output.is_dir()
    if one:
        refuse_overwriting([args.output], args.force)
    if args.list is not None and not args.list.exists():
        args.list = args.source / args.list
    for path in (args.source, args.images, args.list):
        if path is not None and not path.exists():
            raise UserError(f"{path}: no such file or folder")
    layout = recognise(args.source, args.format)
    for note in layout.notes:
        print(one_line(note))
    splits = [name for name in layout.splits if name]
    if one and args.split is None and layout.kind in ("coco", "yolo") and len(splits) > 1:
        args.split = "train" if "train" in splits else splits[0]
        print(f"{args.output}: split {args.split} of {', '.join(splits)}; -o DIR writes them all")
    options = conversion_options(args, args.images, args.output.parent if one else args.output,
                                 args.list)  # fmt: skip
    made = convert(layout, options, split_of(args.split or "") or args.split, one)
    refuse_bad(made, args.skip_bad, "leave them out with --skip-bad")
    if not made.splits:
        raise UserError(f"{args.source}: no annotations of the format {layout.kind} in it")
    for line in made.bad:
        print(one_line(f"left out: {line}"))
    for text, count in made.said.items():
        print(one_line(f"{count} {text}"))
    paths = [args.output if one else args.output / f"instances_{name or 'all'}.json"
             for name in made.splits]  # fmt: skip
    refuse_overwriting(paths, args.force)
    for path, part in zip(paths, made.splits.values(), strict=True):
        remember(part.content, path, part.root)
        write(path, part.content)
        tell_content(path, part.content)
    tell_account(made.account, args.json)
    for name, part in made.splits.items():
        of = f" of {name}" if len(made.splits) > 1 else ""
        print(one_line(f"image_dir{of} (file names are relative to it): {display(part.root)}"))
    return 0
