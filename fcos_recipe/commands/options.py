"""Options that several commands share."""

import argparse
import math
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from fcos_recipe import exit_codes
from fcos_recipe.datasets.formats import FORMATS
from fcos_recipe.errors import UserError, one_line, tell
from fcos_recipe.files.atomic import write_named
from fcos_recipe.files.reading import given_path
from fcos_recipe.places import display
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


def add_config(
    parser: argparse.ArgumentParser,
    text: str = "YAML file, or the name of one of configs/",
    **more: Any,
) -> None:
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
        if not values.is_file():
            raise UserError(f"--allow-code {one_line(values)}: no such file")
        allow(values)


_WRITTEN = ("output", "json", "save_predictions", "output_eval", "vdl_log_dir", "dir", "fix")
_WORDS = {"int": "not a whole number", "float": "not a number", "finite": "not a number"}


def _refuse_blocked(option: str, path: Path, kind: str) -> None:
    """Refuse an output where a file is in the place of a folder, or a folder in that of a file.

    Args:
        option: as it is written on the command line.
        path: its value.
        kind: what the option names, such as DIR, FILE, or FILE|DIR for either.

    Raises:
        UserError: names the option and what is in the way.
    """
    above = next((p for p in path.absolute().parents if p.exists()), path.absolute())
    if above != path.absolute() and not above.is_dir():
        raise UserError(
            f"{option} {path}: {display(above)} is a file, not a folder; choose another"
        )
    if kind == "DIR" and path.exists() and not path.is_dir():
        raise UserError(f"{option} {path}: a file with this name exists; name a folder")
    if "DIR" not in kind and path.is_dir():
        raise UserError(f"{option} {path}: a folder with this name exists; name a file")


class _Parser(argparse.ArgumentParser):
    """Takes numbers within the range of 64 bits, and paths that a file can have.

    An error is one line with a remedy instead of the usage.
    """

    def __init__(self, **more: Any):
        super().__init__(**more)
        for kind, read in ((int, whole), (float, finite), (Path, given_path)):
            self.register("type", kind, read)

    def parse_args(self, args=None, namespace=None):
        """As argparse does; what is unrecognised is answered with what may have been meant."""
        given = sys.argv[1:] if args is None else list(args)
        self.given: list[str] = given
        parsed, extra = self.parse_known_args(given, namespace)
        if extra:
            self.error(self._unrecognized(extra))
        return parsed

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does; outputs that cannot be written are refused before any work."""
        parsed, extra = super().parse_known_args(args, namespace)
        for action in self._actions:
            path = getattr(parsed, action.dest, None)
            if action.dest in _WRITTEN and isinstance(path, (str, Path)):
                _refuse_blocked(
                    action.option_strings[-1], Path(path), str(action.metavar or "FILE or DIR")
                )
        return parsed, extra

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2 and one line."""
        message = re.sub(r"invalid (\w+) value", lambda kind: _WORDS.get(kind[1], "wrong"), message)
        if "required" in message and (config := self._config()):
            message += f"; a config is named with -c, as in -c {config}"
        tell(UserError(f"{one_line(message)}; `{self.prog} --help` lists the options"))
        sys.exit(exit_codes.BAD_INPUT)

    def _config(self) -> str:
        """A config file that is among the arguments without its -c."""
        pairs = zip(["", *getattr(self, "given", ())], getattr(self, "given", ()))
        named = [text for before, text in pairs if text.endswith((".yml", ".yaml"))
                 and "=" not in text and before not in ("-c", "--config")]  # fmt: skip
        return named[0] if named and "-c" in self._option_string_actions else ""

    def _unrecognized(self, extra: list[str]) -> str:
        from fcos_recipe.config.check import key_named

        first, takes = extra[0], self._option_string_actions
        name, equals, value = first.lstrip("-").partition("=")
        sets_values = "-o" in takes and takes["-o"].dest == "opt"
        if not first.startswith("-"):
            what = f"{first}: not expected here"
            if config := self._config():
                return f"{what}; a config is named with -c, as in -c {config}"
            if value.endswith((".yml", ".yaml")) and sets_values:
                return (f"{what}; a config is named with -c; `fcos config new --data DIR -o my.yml`"
                        " writes one for a data set")  # fmt: skip
            return (
                f"{what}; values are set with -o, as in -o {first}"
                if equals and sets_values
                else what
            )
        value = value or "".join(extra[1:2])
        value = value if value and not value.startswith("-") else "VALUE"
        what = f"{first.partition('=')[0]}: not an option here"
        sets = key_named(name.replace("-", "_")) if sets_values else ""
        if sets:
            return f"{what}; use -o {sets}={value}"
        shown = [text for text, action in takes.items() if action.help != argparse.SUPPRESS]
        near = get_close_matches(f"--{name}", shown, n=1)
        if near:
            return f"{what}; did you mean {near[0]}?"
        sets = key_named(name.replace("-", "_"), exactly=False) if sets_values else ""
        return f"{what}; did you mean -o {sets}={value}?" if sets else what


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
