"""`fcos config print|validate|diff|copy|keys|new`: show, check, compare and write configs."""

import argparse
import os
import re
import shlex
from pathlib import Path

from fcos_recipe import api
from fcos_recipe.commands.options import (
    add_config,
    add_format,
    add_overrides,
    listed,
    parser,
    whole,
    write,
)
from fcos_recipe.config import reference
from fcos_recipe.config.effects import differences
from fcos_recipe.config.find import find_config, project_configs
from fcos_recipe.config.load import Config, load_config
from fcos_recipe.config.resolved import resolved
from fcos_recipe.console import plural
from fcos_recipe.datasets.formats import FORMATS, TABLE
from fcos_recipe.errors import UserError, UserErrors, one_line, printable
from fcos_recipe.files.reading import read_text
from fcos_recipe.places import CONFIGS, FILES, display

DESCRIPTION = """\
examples:
  fcos config print configs/fcos/fcos_r50_fpn_1x_coco.yml -o LearningRate.base_lr=1e-3
  fcos config validate                          # every YAML of the project
  fcos config validate my.yml --strict --files --build
  fcos config copy fcos_r50_fpn_1x_coco         # into this folder, to be edited
  fcos config keys
  fcos config new --data /data/cells -o cells.yml   # for your own data
  fcos config diff configs/fcos/fcos_r50_fpn_1x_coco.yml configs/fcos/fcos_r50_fpn_iou_1x_coco.yml
"""

_NEW = f"""\
examples:
  fcos config new --data /data/cells -o cells.yml
  fcos config new --data /data/cells --train all.json --val none --images /pictures -o cells.yml
  fcos config new --data /data/cells --base fcos_r18_fpn_bccd --cards 2 -o small.yml

what may lie in DIR, with splits or without (--from NAME if there is more than one format):
{TABLE}

Other formats than COCO, and COCO files that training can't use as they are, are converted into
FILE_annotations/ beside FILE.yml; images stay where they are.
"""


def main(argv: list[str]) -> int:
    """Parse and run; see `fcos config --help`."""
    ask = parser("config", None, DESCRIPTION, {})
    commands = ask.add_subparsers(dest="command", required=True)
    show = commands.add_parser("print", help="the resolved YAML with the origin of each value")
    show.add_argument("config", nargs="?")
    add_config(show, "the same as CONFIG, as in other commands", dest="named")
    check = commands.add_parser("validate", help="check files (default: the project's configs/)")
    check.add_argument("config", nargs="*")
    add_config(check, "the same as CONFIG, as in other commands", dest="named")
    check.add_argument("--build", action="store_true",
                       help="also build each model and send one image through it")  # fmt: skip
    check.add_argument("--files", action="store_true", help="data and weights must also exist")
    compare = commands.add_parser("diff", help="print the keys that differ in two configs")
    compare.add_argument("a", nargs="?", metavar="A")
    compare.add_argument("b", nargs="?", metavar="B")
    add_config(compare, "the same as A and B", dest="named", nargs="+", action="extend")
    copy = commands.add_parser("copy", help="copy one of the project's configs, to be edited")
    copy.add_argument("name", nargs="?", metavar="NAME", help="such as fcos_r50_fpn_1x_coco")
    add_config(copy, "the same as NAME, as in other commands", dest="named")
    copy.add_argument("-o", "--output", type=Path, metavar="FILE.yml", help="default: NAME.yml")
    for sub in (show, check, compare):
        add_overrides(sub)
        sub.add_argument("--strict", action="store_true", default=None,
                         help="keys that PaddleDetection silently ignores are errors")  # fmt: skip
    keys = commands.add_parser("keys", help="the recipe's keys: type, default, meaning")
    keys.add_argument("--markdown", action="store_true", help="as docs/configuration.md has them")
    create = commands.add_parser("new", help="write a short config for your own data", epilog=_NEW,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    _add_new(create)
    args = ask.parse_args(argv)
    given = "name" if args.command == "copy" else "config"
    if args.command in ("print", "validate", "copy") and args.named:
        if getattr(args, given):
            raise UserError(f"-c {args.named}: name the config once, here or as an argument")
        setattr(args, given, [args.named] if args.command == "validate" else args.named)
    if args.command in ("print", "copy") and not getattr(args, given):
        raise UserError(f"{args.command}: name a config")
    if args.command == "new":
        return _new(args)
    if args.command == "copy":
        return _copy(args.name, args.output)
    if args.command == "keys":
        print(reference.markdown() if args.markdown else "\n".join(reference.lines()))
        return 0
    if args.command == "print":
        config = load_config(args.config, args.opt, args.strict)
        print(resolved(config), end="")
        return _warn(config)
    if args.command == "diff":
        both = [path for path in (args.a, args.b, *(args.named or [])) if path]
        if len(both) != 2:
            given = ", ".join(map(str, both)) or "none"
            raise UserError(f"diff: name two configs, as in diff A B; given: {given}")
        return _diff(*(load_config(path, args.opt, args.strict) for path in both))
    return _validate(args)


def _copy(name: str, output: Path | None) -> int:
    """Copy a config of the project; its bases stay the project's, named from configs/ on."""
    source = find_config(name)
    if not source.is_relative_to(CONFIGS):
        known = [path.stem for path in (CONFIGS / "fcos").glob("*.yml")]
        raise UserError(f"copy {name}: not a config of the recipe; choose from {', '.join(known)}")

    def from_configs(base: re.Match) -> str:
        path = Path(os.path.normpath(source.parent / base[1]))
        return f"'{path.relative_to(FILES).as_posix()}'"

    def bases(block: re.Match) -> str:
        return re.sub("'([^']+)'", from_configs, block[0])

    target = output or Path(source.name)
    if os.path.lexists(target):
        raise UserError(f"{target}: exists already; name another file with -o")
    write(target, re.sub(r"^_BASE_:\s*\[.*?\]", bases, read_text(source), flags=re.M | re.S))
    print(f"{display(target)}: edit it, then: fcos train -c {shlex.quote(str(target))} --eval")
    return 0


def _diff(a: Config, b: Config) -> int:
    rows = [("key", display(a.path), display(b.path)), *differences(a.data, b.data)]
    widths = [min(60, max(len(row[i]) for row in rows)) for i in range(2)]
    for key, left, right in rows if len(rows) > 1 else []:
        print(one_line(f"{key:<{widths[0]}}  {left:<{widths[1]}}  {right}", None))
    return 0


def _validate(args: argparse.Namespace) -> int:
    errors = []
    for path in args.config or project_configs():
        try:
            config = load_config(path, args.opt, args.strict)
            if args.files and (missing := config.missing_files()):
                raise UserErrors(missing)
            if args.build:
                api.build(config)
            print(f"ok  {one_line(display(Path(path)))}")
            _warn(config)
        except UserErrors as error:
            errors += error.messages
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserErrors(list(dict.fromkeys(errors)))  # report a shared base only once
    return 0


def _warn(config: Config) -> int:
    for line in config.warnings:
        print(f"# warning: {one_line(line)}")
    return 0


def _add_new(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR",
        help=f"the data set's folder ({', '.join(f.name for f in FORMATS.values())})")  # fmt: skip
    add_format(parser)
    add("-o", "--output", type=Path, required=True, metavar="FILE.yml", help="config to write")
    add("--base", default="fcos_r50_fpn_1x_coco", metavar="CONFIG",
        help="a config of configs/fcos, or a file (default: %(default)s)")  # fmt: skip
    add("--train", metavar="JSON", help="annotations for training, if they can't be found")
    add("--val", metavar="JSON|none", help="annotations for evaluation; none: no evaluation")
    add("--images", type=Path, metavar="DIR",
        help="folder with the images, or whose subfolders have them")  # fmt: skip
    add(
        "--cards",
        type=_count,
        default=1,
        metavar="N",
        help="cards to train on (default: %(default)s)",
    )
    add("--classes", type=listed, metavar="FILE|A,B",
        help="class names in order, for data without names")  # fmt: skip
    add("--origin", choices=("auto", "0", "1"), default="auto",
        help="of VOC's pixel coordinates (default: recognised)")  # fmt: skip
    add("--keypoints", metavar="N,D|none",
        help="of YOLO's lines, see `fcos dataset convert --help`")  # fmt: skip
    add("--skip-bad", action="store_true", help="leave out what can't be converted")
    add("--batch-size", type=_count, metavar="N", help="images per card (default: as in the base)")
    add("--size", type=_count, nargs=2, metavar=("SHORT", "LONG"),
        help="sides in pixels to which images are resized (default: as in the base)")  # fmt: skip
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--weights", metavar="W",
                       help="start from this file, run directory, URL or name of `fcos weights "
                            "list` (default: those of the base, trained on COCO)")  # fmt: skip
    start.add_argument("--from-scratch", action="store_true", help="start from random weights")
    add("--force", action="store_true", help="replace FILE.yml and FILE_annotations/")


def _count(text: str) -> int:
    if not text.isdecimal() or not whole(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def _new(args: argparse.Namespace) -> int:
    from fcos_recipe.datasets.convert.common import class_list
    from fcos_recipe.datasets.new_config import Request, new

    asked = {key: value for key, value in vars(args).items() if key != "command"}
    made = new(Request(**{**asked, "classes": class_list(args.classes)}))
    for note in made.notes:
        print(printable(note))
    train, val, plan = made.train, made.val, made.plan
    print(f"{display(args.output)}: {plural(len(train.boxes), 'class')}, "
          f"{plural(train.images, 'image')} to train on, "
          f"{val.images if val else 'none'} to evaluate on")  # fmt: skip
    for line in plan.lines + [f"warning: {line}" for line in plan.warnings]:
        print(f"  {line}")
    if not val:
        print(f"{os.path.abspath(args.data)}: no annotations for evaluation, so training does "
              "not evaluate. Name some with --val JSON, or split the existing ones with "
              f"`fcos dataset split {shlex.quote(display(Path(train.anno)))} -o DIR` and name both "
              "parts with --train and --val")  # fmt: skip
    elif both := len(train.files & val.files):
        print(f"warning: {both} of {val.images} images for evaluation are also trained on: "
              "AP will be too high")  # fmt: skip
    launcher = "bash scripts/train.sh" if args.cards > 1 else "python tools/train.py -c"
    print(f"next: {launcher} {shlex.quote(display(args.output))}{' --eval' * bool(val)}")
    return 0
