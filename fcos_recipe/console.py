"""The package's logger, and its plain messages on the console."""

import logging
import sys
from collections.abc import Callable
from typing import NoReturn

from fcos_recipe.errors import UserError, printable, tell
from fcos_recipe.exit_codes import BAD_INPUT

log = logging.getLogger("fcos")


class Plain(logging.Formatter):
    """Escapes control characters, which names of files and classes may contain."""

    def format(self, record):
        return printable(super().format(record))


def to_console(rank: int) -> None:
    """Plain messages of this package's logger on standard output, from rank 0 only."""
    log.setLevel(logging.DEBUG if rank == 0 else logging.ERROR)
    log.propagate = False
    log.handlers.clear()  # an earlier run of this process, its log file included
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Plain("%(message)s"))
    handler.setLevel(logging.INFO)
    log.addHandler(handler)


def run_program(main: Callable[[], int]) -> NoReturn:
    """End the process with the exit code of a `python -m` program; bad input is told in words."""
    try:
        sys.exit(main())
    except UserError as error:
        tell(error)
        sys.exit(BAD_INPUT)
