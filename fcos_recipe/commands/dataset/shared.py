"""Arguments and output that subcommands of `fcos dataset` share."""

import argparse
import json
from pathlib import Path
from typing import Any

from fcos_recipe.commands.options import add_config, add_format, add_overrides, listed
from fcos_recipe.config.load import Config
from fcos_recipe.console import plural
from fcos_recipe.datasets.account import Account
from fcos_recipe.datasets.convert.common import class_list
from fcos_recipe.datasets.convert.layouts import Options
from fcos_recipe.datasets.formats import ORDER
from fcos_recipe.datasets.locate import RULES, Source, sources
from fcos_recipe.errors import one_line
from fcos_recipe.files.atomic import write_named

ACCOUNT = "write the account to FILE: what was seen, written and left out, with reasons"


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a data set, for `find_sources`."""
    add = parser.add_argument
    add("target", nargs="?", type=Path, metavar="DIR|FILE.json",
        help="a data set's folder, or an annotation file")  # fmt: skip
    add_format(parser)
    add_config(
        parser, "use this config's data, unless DIR or FILE.json is given, and its image sizes, "
        f"FPN levels and augmentation (default: {RULES.name})", type=Path, metavar="CONFIG",
    )  # fmt: skip
    add_overrides(parser, "override config values")
    add("--split", choices=ORDER, help="default: all, training first")
    add("--images", type=Path, metavar="DIR", help="image folder, if it can't be found")


def find_sources(args: argparse.Namespace) -> tuple[list[Source], Config]:
    """The splits named by the arguments of `add_source`; see `locate.sources`."""
    found, config = sources(
        args.target, args.config, args.opt, args.split, args.images, kind=args.format
    )
    for source in found:
        for line in (*source.notes, *(f"left out: {line}" for line in source.bad)):
            print(one_line(line))
    return found, config


def add_conversion(parser: argparse.ArgumentParser) -> None:
    """Add what may have to be said to convert a data set, for `conversion_options`."""
    add_format(parser)
    add = parser.add_argument
    add("--classes", type=listed, metavar="FILE|A,B",
        help="names in order of their ids, or a file with one name per line")  # fmt: skip
    add("--origin", choices=("auto", "0", "1"), default="auto",
        help="voc: pixel coordinates start at 1 (last pixel included) or 0 "
        "(auto: 0 if any of the data set's is below 1 or some have fractions)")  # fmt: skip
    add("--keypoints", metavar="N,D|none",
        help="yolo: boxes are followed by N keypoints of D numbers each (as kpt_shape in data.yaml "
        "says), or long lines are polygons")  # fmt: skip
    add("--skip-bad", action="store_true", help="leave out and report what can't be converted")


def conversion_options(
    args: argparse.Namespace, images: Path | None, folder: Path, listed: Path | None = None
) -> Options:
    """The options of `add_conversion`.

    Args:
        args: the parsed arguments.
        images: image folder; None: search.
        folder: of the output, for images that exist only inside annotation files.
        listed: file with the names of the images to use.
    """
    return Options(images, class_list(args.classes), listed, args.origin, folder / "images",
                   args.keypoints)  # fmt: skip


def add_output(
    parser: argparse.ArgumentParser, metavar: str = "FILE.json", text: str | None = None
) -> None:
    """Add -o, the output of a command that takes no config."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=text)


def add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def tell_content(path: Path, content: dict[str, Any], without: list[str] | None = None) -> None:
    """Print what a written annotation file holds."""
    line = f"{path}: {plural(len(content['images']), 'image')}, "
    line += f"{plural(len(content['annotations']), 'annotation')}, "
    print(line + plural(len(content["categories"]), "class"))
    if without:
        names = ", ".join(without[:10]) + (", ..." if len(without) > 10 else "")
        print(one_line(f"  {len(without)} classes are on none of its images: {names}"))


def tell_account(account: Account, path: Path | None) -> None:
    """Print an account, and write it to `path` unless that is None."""
    for line in account.lines():
        print(one_line(line))
    if path is not None:
        write_named(path, json.dumps({"account": account.rows()}, indent=1) + "\n")
