"""The package's logger and its output on the console."""

import logging
import sys
import threading
import time
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


def say(line: str) -> None:
    """Print a message to standard error; standard output is for results."""
    print(printable(line), file=sys.stderr, flush=True)


def amount(size: float, unit: str = "B") -> str:
    """Format a count or, with unit B, a number of bytes in decimal units."""
    if unit != "B":
        return f"{size:.0f}"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


class Progress:
    """Amount done, speed and time left: a bar on a terminal, otherwise a line every ten seconds.

    Args:
        label: what is being done; an empty label shows nothing.
        total: the whole amount, or None if unknown.
        done: amount that was done earlier.
        unit: "B" for bytes, otherwise a noun in the singular.
    """

    EVERY = 10.0  # seconds

    def __init__(self, label: str, total: int | None, done: int = 0, unit: str = "B"):
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self.began = self.told = time.monotonic()
        self.before = done
        self.bar, self.lock = None, threading.Lock()
        if label and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(desc=label, total=total, initial=done, unit=unit, unit_scale=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_exception) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, count: int) -> None:
        """Add `count` to the amount done; may be called from any thread."""
        with self.lock:
            self.done += count
            if self.bar is not None:
                self.bar.update(count)
            elif self.label and time.monotonic() - self.told >= self.EVERY:
                self.told = time.monotonic()
                say(self.line())

    def line(self) -> str:
        """Describe the current state."""
        speed = (self.done - self.before) / max(time.monotonic() - self.began, 1e-3)
        text = f"{self.label}: {amount(self.done, self.unit)}"
        if self.total:
            text += f" of {amount(self.total, self.unit)} ({100 * self.done // self.total}%)"
        text += f", {amount(speed, self.unit)}/s"
        if self.total and speed:
            left = round((self.total - self.done) / speed)
            text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        return text
