"""The package's logger and its output on the console."""

import logging
import sys
from collections.abc import Callable
from typing import NoReturn

from fcos_recipe.errors import UserError, printable, tell
from fcos_recipe.exit_codes import BAD_INPUT

log = logging.getLogger("fcos")


class Plain(logging.Formatter):
    """Escapes control characters, which file and class names may contain."""

    def format(self, record):
        return printable(super().format(record))


def to_console(rank: int) -> None:
    """Print this package's log messages to standard output, on rank 0 only."""
    log.setLevel(logging.DEBUG if rank == 0 else logging.ERROR)
    log.propagate = False
    log.handlers.clear()  # of an earlier run in this process, including its log file
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Plain("%(message)s"))
    handler.setLevel(logging.INFO)
    log.addHandler(handler)


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run `main`, report bad input in one line, and end the process with the exit code."""
    try:
        sys.exit(main())
    except UserError as error:
        tell(error)
        sys.exit(BAD_INPUT)
