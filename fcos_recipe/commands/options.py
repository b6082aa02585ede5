"""Options that several commands share."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcos_recipe import exit_codes
from fcos_recipe.datasets.formats import FORMATS
from fcos_recipe.files.atomic import write_named
from fcos_recipe.files.reading import given_path
from fcos_recipe.plugins import allow


def parser(
    name: str, text: str | None, epilog: str, codes: Mapping[int, str] | None = None, **more: Any
) -> argparse.ArgumentParser:
    """The parser of a command.

    Args:
        name: name of the command, after `fcos`.
        text: description of the command.
        epilog: examples.
        codes: exit code -> its meaning for this command, as `exit_codes.help_text` takes them;
            None: the epilog has them.
        more: arguments of ArgumentParser; `prog` if the command is not called as `fcos NAME`.
    """
    if codes is not None:
        epilog += exit_codes.help_text(codes)
    return _Parser(
        description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter,
        **{"prog": f"fcos {name}", **more},
    )  # fmt: skip


def add_config(parser: argparse.ArgumentParser, text: str = "YAML file", **more: Any) -> None:
    """Add -c CONFIG, and --allow-code FILE for the files of its key `plugins`."""
    parser.add_argument("-c", "--config", help=text, **more)
    parser.add_argument("--allow-code", action=_Allow, type=Path, metavar="FILE",
                        help="permit this Python file of the config's `plugins`")  # fmt: skip


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add --from, the format of a data set."""
    parser.add_argument("--from", dest="format", choices=FORMATS, metavar="FORMAT",
                        help=f"{', '.join(FORMATS)} (default: recognised)")  # fmt: skip


def add_overrides(
    parser: argparse.ArgumentParser, text: str | None = "override config values"
) -> None:
    """Add -o KEY=VALUE ...; a second -o adds to the first."""
    parser.add_argument("-o", "--opt", nargs="*", action="extend", default=[],
                        metavar="KEY=VALUE", help=text)  # fmt: skip


def add_json(parser: argparse.ArgumentParser, text: str = "also write the result to FILE") -> None:
    """Add --json FILE."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=text)


class _Allow(argparse.Action):
    """Permits a file for this process and for the ranks that it starts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        allow(values)


class _Parser(argparse.ArgumentParser):
    """Takes numbers within the range of 64 bits, and paths that a file can have."""

    def __init__(self, **more: Any):
        super().__init__(**more)
        for kind, read in ((int, whole), (float, finite), (Path, given_path)):
            self.register("type", kind, read)


def whole(text: str) -> int:
    """Parse an integer of at most 64 bits."""
    if abs(value := int(text)) >= 2**63:
        raise ValueError(text)
    return value


def finite(text: str) -> float:
    """The value of an option that takes a number, which nan and inf are not."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def listed(text: str) -> list[str]:
    """The value of an option that takes A,B,C."""
    return text.split(",")


def write(path: Path, text: str) -> None:
    """Write a text file and create its parent folders."""
    write_named(path, text)
