"""The package's logger, and its plain messages on the console."""

import logging
import sys

from fcos_recipe.errors import printable

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
