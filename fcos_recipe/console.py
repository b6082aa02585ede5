"""The package's logger and its output on the console."""

import errno
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn, TextIO

from fcos_recipe.errors import (
    RunFailure,
    Stopped,
    UserError,
    one_line,
    path_reason,
    printable,
    shortened,
    tell,
)
from fcos_recipe.exit_codes import BAD_INPUT, DISK_FULL, FAILED, INTERRUPTED, OK, SAVED
from fcos_recipe.plugins import fault

log = logging.getLogger("fcos")
_BAD_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EACCES,
             errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENXIO, errno.ENODEV)  # fmt: skip
# The disk or the server of a network file system does not answer.
_BAD_DISK = (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN)
_CHECK_DISK = "; check the disk or network file system (dmesg, mount) and try again"


class Plain(logging.Formatter):
    """Escapes control characters, which file and class names may contain, and cuts long lines."""

    def format(self, record):
        return "\n".join(map(shortened, printable(super().format(record)).split("\n")))


def _above_bars(stream: TextIO) -> AbstractContextManager:
    """A context in which progress bars of tqdm are removed, so that a line can be printed."""
    bars = sys.modules.get("tqdm")
    shown = bars is not None and getattr(bars.tqdm, "_instances", None)
    return bars.tqdm.external_write_mode(stream) if bars and shown else nullcontext()


class _Lines(logging.StreamHandler):
    def emit(self, record):
        with _above_bars(self.stream):
            super().emit(record)


def bar_text(parts: Sequence[str]) -> str:
    """The first of `parts`, most important first, that leave half of the terminal to the bar."""
    room = shutil.get_terminal_size().columns // 2
    while len(parts) > 1 and len("  ".join(parts)) > room:
        parts = parts[:-1]
    return "  ".join(parts)


def to_console(rank: int, stream: TextIO | None = None) -> None:
    """Print this package's log messages, by default to standard output, on rank 0 only."""
    log.setLevel(logging.DEBUG if rank == 0 else logging.ERROR)
    log.propagate = False
    log.handlers.clear()  # of an earlier run in this process, including its log file
    handler = _Lines(stream or sys.stdout)
    handler.setFormatter(Plain("%(message)s"))
    handler.setLevel(logging.INFO)
    log.addHandler(handler)


class _Forward(logging.Handler):
    """Passes log records to a logger, a function, or the earlier handlers."""

    def __init__(self, target: "logging.Logger | Callable[[str], None] | None"):
        super().__init__()
        self.target, self.least = target, log.getEffectiveLevel()
        self.earlier, self.up = log.handlers[:], log.propagate and log.parent

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(self.target, logging.Logger):
            if self.target.isEnabledFor(record.levelno):
                self.target.handle(record)
        elif self.target is not None:
            if record.levelno >= logging.INFO:
                self.target(printable(record.getMessage()))
        elif record.levelno >= self.least:
            for handler in self.earlier:
                if record.levelno >= handler.level:
                    handler.handle(record)
            if self.up:
                self.up.callHandlers(record)

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # noqa: PLE0704  # let the caller see errors of its own function


@contextmanager
def messages(target: "logging.Logger | Callable[[str], None] | None" = None) -> Iterator[None]:
    """Record all messages of the package inside this context; then restore the logger.

    A run directory's log.txt needs all messages, regardless of the caller's log level.

    Args:
        target: receives the messages: a logger, or a function that is called with each line of
            level INFO and above. None: the handlers that the logger `fcos` had before.
    """
    forward = _Forward(target)
    before = log.level, log.propagate, log.handlers[:]
    log.handlers[:] = [forward]
    log.propagate = False
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.level, log.propagate, log.handlers[:] = before
        log.setLevel(before[0])  # also clears the cache of enabled levels


def exit_code(
    call: Callable[[], int], announce: Callable[[Exception], None] = lambda error: None
) -> int:
    """Call a command and convert its expected errors to a message and an exit code.

    Args:
        call: returns an exit code.
        announce: also called with a `UserError` or `RunFailure`.

    Raises:
        Exception: an unexpected error.
    """
    try:
        return call()
    except (UserError, RunFailure) as error:
        tell(error)
        announce(error)
        return BAD_INPUT if isinstance(error, UserError) else FAILED
    except Stopped as error:
        print(error, file=sys.stderr)
        return SAVED
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `fcos config print ... | head`: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        failure: UserError | RunFailure
        if text := fault(error):
            failure, code = UserError(text), BAD_INPUT
        elif isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            broken = error.errno in _BAD_DISK
            if not (full or broken or (error.errno in _BAD_PATH and error.filename)):
                raise
            place = str(error.filename or "a file that was being written")[:200]
            remedy = "; make room and try again" if full else _CHECK_DISK if broken else ""
            failure = RunFailure(f"{place}: {path_reason(error)}{remedy}")
            code = DISK_FULL if full else FAILED if broken else BAD_INPUT
        else:
            raise
        tell(failure)
        announce(failure)
        return code


@contextmanager
def native_stderr() -> Iterator[Callable[[], list[str]]]:
    """Capture what C libraries write to standard error; the yielded function returns it."""
    lines: list[str] = []
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: lines
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines += file.read(4096).decode(errors="replace").strip().splitlines()


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run `main`, report expected errors in one line, and end the process with the exit code."""
    sys.exit(exit_code(main))


def say(line: str) -> None:
    """Print a message to standard error; standard output is for results."""
    with _above_bars(sys.stderr):
        print(one_line(line), file=sys.stderr, flush=True)


def plural(count: int, noun: str) -> str:
    """A number with its noun: 1 image, 2 images, 2 boxes, 2 classes."""
    ending = "es" if noun.endswith(("s", "x")) else "s"
    return f"{count} {noun}{ending * (count != 1)}"


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
        self.began = self.shown = time.monotonic()
        self.before = done
        self.bar, self.lock = None, threading.Lock()
        if label and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(desc=label, total=total, initial=done, unit=unit, unit_scale=True,
                            dynamic_ncols=True)  # fmt: skip

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
            elif self.label and time.monotonic() - self.shown >= self.EVERY:
                self.shown = time.monotonic()
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
