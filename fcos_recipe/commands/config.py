"""`fcos config print|validate|diff|keys|new`."""

import argparse
from pathlib import Path

from fcos_recipe.config import reference
from fcos_recipe.config.effects import differences
from fcos_recipe.config.load import Config, display, load_config, project_configs
from fcos_recipe.config.resolved import resolved
from fcos_recipe.errors import UserError, UserErrors

DESCRIPTION = """\
examples:
  fcos config print configs/fcos/fcos_r50_fpn_1x_coco.yml -o LearningRate.base_lr=1e-3
  fcos config validate                          # every YAML of the project
  fcos config validate my.yml --strict --files
  fcos config keys
  fcos config new --data /data/cells -o cells.yml   # for a folder in COCO format
  fcos config diff configs/fcos/fcos_r50_fpn_1x_coco.yml configs/fcos/fcos_r50_fpn_iou_1x_coco.yml
"""

_NEW = """\
examples:
  fcos config new --data /data/cells -o cells.yml
  fcos config new --data /data/cells --train all.json --val none --images /pictures -o cells.yml
  fcos config new --data /data/cells --base fcos_r18_fpn_bccd --cards 2 -o small.yml
"""


def main(argv: list[str]) -> int:
    """Parse and run; see `fcos config --help`."""
    parser = argparse.ArgumentParser(
        prog="fcos config",
        epilog=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("print", help="the resolved YAML with the origin of each value")
    show.add_argument("config")
    check = commands.add_parser("validate", help="check files; default: the project's configs/")
    check.add_argument("config", nargs="*")
    check.add_argument("--files", action="store_true", help="data and weights must exist, too")
    compare = commands.add_parser("diff", help="keys in which two configs differ, both values")
    compare.add_argument("config", nargs=2, metavar=("A", "B"))
    for sub in (show, check, compare):
        sub.add_argument("-o", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
        sub.add_argument("--strict", action="store_true", default=None,
                         help="what PaddleDetection silently ignores is an error")  # fmt: skip
    keys = commands.add_parser("keys", help="the recipe's keys: type, default, meaning")
    keys.add_argument("--markdown", action="store_true", help="as docs/configuration.md has them")
    create = commands.add_parser("new", help="write a short config for your own data", epilog=_NEW,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    from fcos_recipe.datasets.new_config import add_arguments, new

    add_arguments(create)
    args = parser.parse_args(argv)
    if args.command == "new":
        return new(args)
    if args.command == "keys":
        print(reference.markdown() if args.markdown else "\n".join(reference.lines()))
        return 0
    if args.command == "print":
        config = load_config(args.config, args.o, args.strict)
        print(resolved(config), end="")
        return _warn(config)
    if args.command == "diff":
        a, b = (load_config(path, args.o, args.strict) for path in args.config)
        return _diff(a, b)
    return _validate(args)


def _diff(a: Config, b: Config) -> int:
    rows = [("key", display(a.path), display(b.path)), *differences(a.data, b.data)]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for key, left, right in rows if len(rows) > 1 else []:
        print(f"{key:<{widths[0]}}  {left:<{widths[1]}}  {right}")
    return 0


def _validate(args: argparse.Namespace) -> int:
    errors = []
    for path in args.config or project_configs():
        try:
            config = load_config(path, args.o, args.strict)
            if args.files and (missing := config.missing_files()):
                raise UserErrors(missing)
            print(f"ok  {display(Path(path))}")
            _warn(config)
        except UserErrors as error:
            errors += error.messages
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserErrors(list(dict.fromkeys(errors)))  # a shared base is told once
    return 0


def _warn(config: Config) -> int:
    for line in config.warnings:
        print(f"# warning: {line}")
    return 0
