"""`fcos dataset verify`: find data problems before training starts."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcos_recipe import api, exit_codes
from fcos_recipe.commands.dataset.shared import add_source
from fcos_recipe.commands.options import add_json, parser, write
from fcos_recipe.console import plural
from fcos_recipe.datasets.account import table_lines
from fcos_recipe.datasets.verify.findings import KINDS
from fcos_recipe.errors import UserError, one_line, path_reason
from fcos_recipe.places import display

CHANGES = 200  # listed on the console per copy
_HELP = """\
examples:
  fcos dataset verify datasets/coco                      # annotations, and every image
  fcos dataset verify -c my.yml --json report.json       # also against num_classes
  fcos dataset verify my.json --no-images --fix clean.json

An error stops training or evaluation, or makes them skip or misread something: boxes outside their
image, images that can't be decoded. A warning does not: clipped boxes, greyscale images, boxes of
zero width or height (COCO's train2017 has two). --allow KIND turns a kind of error into a warning.

--fix writes a copy (a file, or a directory for several splits), never in place, and lists each
change: it removes invalid entries, unreadable images (if images were read) and exact duplicates,
clips boxes and makes ids unique. Errors that only you can correct, such as sizes that differ from
the image's, are kept and reported.

The JSON report has totals and findings for each split ("splits" -> name): kind -> severity,
meaning, count and all items with the entry's id, the image's file, its position in the annotation
file and a text. "between" has findings between splits and against the config. The console shows one
line per kind with its first item; --all shows every item.
"""
_CODES = {
    exit_codes.OK: "no error (there may be warnings)",
    exit_codes.FAILED: "errors were found",
    exit_codes.BAD_INPUT: "wrong arguments, or files that can't be opened",
}


def main(argv: list[str]) -> int:
    """See `fcos dataset verify --help`."""
    text = "Check annotations and images before training."
    ask = parser("dataset verify", text, _epilog(), _CODES)
    add_source(ask)
    add = ask.add_argument
    add("--no-images", action="store_true", help="check annotations only; don't open images")
    add_json(ask, "write all findings to FILE")
    add("--all", action="store_true", help="show every finding, not one of each kind")
    add("--fix", type=Path, metavar="FILE|DIR", help="write cleaned copies of the annotations")
    add("--allow", nargs="+", action="extend", default=[], metavar="KIND", choices=KINDS,
        help="kinds of errors to treat as warnings")  # fmt: skip
    args = ask.parse_args(argv)
    found = api.verify(
        args.target, config=args.config, overrides=args.opt, split=args.split,
        data_format=args.format, image_folder=args.images,
        read_images=not args.no_images, fix=args.fix, allow=args.allow,
    )  # fmt: skip
    report = found.report
    try:
        if args.json:
            write(args.json, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{args.json}: {path_reason(error)}") from None
    for line in lines(report, args.no_images, args.all):
        print(line)
    return exit_codes.FAILED if found.errors else exit_codes.OK


def _epilog() -> str:
    """The help text with every kind of finding."""
    text = _HELP
    for errors, name in ((True, "errors"), (False, "warnings")):
        kinds = ", ".join(kind for kind, row in KINDS.items() if row[0] == errors)
        text += textwrap.fill(f"{name}: {kinds}", 98, subsequent_indent="  ") + "\n"
    return text


def lines(report: dict[str, Any], no_images: bool, every: bool = False) -> Iterator[str]:
    """Console lines of a report: the first finding of each kind, or every one."""
    for name, part in report["splits"].items():
        yield f"{name}: {one_line(display(part['annotations']))}"
        yield from (f"  {one_line(note)}" for note in part["notes"])
        totals = part["totals"]
        if totals is not None:
            read = "not read" if no_images else f"{totals['images_read']} read"
            unknown = totals["images_of_unknown_size"]
            size = f"; {unknown} of unknown size, boxes not checked against it" if unknown else ""
            yield (
                f"  {plural(totals['images'], 'image')} ({read}; "
                f"{totals['images_without_boxes']} without boxes{size}), "
                f"{totals['boxes_to_train_on']} of {totals['annotations']} "
                f"annotations to train on, {plural(totals['crowds'], 'crowd')}, "
                f"{plural(totals['categories'], 'class')}"
            )
        yield from _finding_lines(part["findings"], every)
        if not part["findings"]:
            yield "  nothing found"
    if report["between"]:
        yield "between splits, and against the config:"
        yield from _finding_lines(report["between"], every)
    for name, part in report["splits"].items():
        if "fix" in part:
            yield from _fix_lines(name, part["fix"], every)
    if not every and any(
        row["count"] > 1 for part in (*report["splits"].values(), {"findings": report["between"]})
        for row in part["findings"].values()
    ):  # fmt: skip
        yield "every finding: --all, or --json FILE"
    yield f"errors: {report['errors']}, warnings: {report['warnings']}, {report['seconds']} s"


def _finding_lines(kinds: dict[str, Any], every: bool) -> Iterator[str]:
    for kind, row in kinds.items():
        line = f"  {row['severity']:<8}{kind}: {row['count']}: {row['meaning']}"
        items = [_item(item) for item in row["items"]]
        if every:
            yield from (line, *(f"          {item}" for item in items if item))
        else:
            first = "e.g. " * (row["count"] > 1) + items[0]
            yield f"{line}: {first}" if items[0] else line


def _item(item: dict[str, Any]) -> str:
    place = " ".join(str(item[k]) for k in ("at", "file") if k in item)
    id = f"id {item['id']}" if "id" in item else ""
    head = " ".join(part for part in (id, place) if part)
    text = item.get("text", "")
    return one_line(": ".join(part for part in (head, text) if part))


def _fix_lines(name: str, fix: dict[str, Any], every: bool) -> Iterator[str]:
    if fix["path"] is None:
        yield f"fix of {name}: nothing is written, because the file has no images"
        return
    yield f"fix of {name}: {one_line(fix['path'])}: {len(fix['changes'])} changes"
    shown = len(fix["changes"]) if every else CHANGES
    for change in fix["changes"][:shown]:
        yield f"  {change['kind']}: {_item(change)}"
    if len(fix["changes"]) > shown:
        yield f"  ... {len(fix['changes']) - shown} more (all: --all, or --json FILE)"
    yield from table_lines(fix["account"])
    yield f"  errors left in it: {fix['errors_left']}"
    left = {k: row for k, row in fix["findings_left"].items() if KINDS[k][0]}
    yield from _finding_lines(left, every)
