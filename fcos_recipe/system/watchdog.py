"""End a rank that makes no progress, and print which rank hung or failed.

With scripts/train*.sh the supervisor reads these messages in the rank's log. With
`python -m paddle.distributed.launch` there is no supervisor, so they also go to its console.
"""

import faulthandler
import os
import re
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.errors import printable

# Seconds without a beat per phase if the config has 0. For `step` it is the minimum, see `limit`.
DEFAULTS = {"startup": 1800.0, "step": 120.0, "eval": 1800.0, "save": 600.0}

# End of the message of a rank whose main thread may be waiting for other ranks.
WAITS = ", where it may wait for other ranks"
_COLLECTIVES = r"/paddle/distributed/|/evaluation/collectives\.py$"


def rank() -> int:
    """This process's rank from the launcher's environment; 0 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


class Watchdog:
    """A daemon thread that ends the process if `beat` is not called within a time limit.

    The phase, which determines the limit, is "startup" until the first `beat()`, then "step"; use
    `with watchdog.phase("eval")` and "save" for other work, inside which `beat` counts as well.

    If the limit is exceeded, one line "rank R hung: ..." and the stacks of all threads are written
    to stderr, and the process ends with `exit_codes.HUNG` without cleaning up, which may hang too.

    Args:
        limits: phase -> seconds; 0 or missing: automatic, see `limit`.
        rank: shown in the message.
        on_hang: called with the message before the process ends, in a thread, for at most 10 s.
        grace: seconds between the message and the end of the process. Other ranks that wait in the
            same collective operation reach their limits meanwhile and write their stacks.
    """

    def __init__(
        self,
        limits: Mapping[str, float] | None = None,
        rank: int = 0,
        on_hang: Callable[[str], None] | None = None,
        grace: float = 5.0,
    ):
        self.limits = {**dict.fromkeys(DEFAULTS, 0), **(limits or {})}
        self.rank, self.on_hang, self.grace = rank, on_hang, grace
        self.step = 0
        self._mark = ("startup", time.monotonic())  # phase, time of its last beat
        self._steps: deque[float] = deque(maxlen=50)  # seconds
        self._closed = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> "Watchdog":
        """Start watching; call it in the thread that trains."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> "Watchdog":
        return self.start()

    def __exit__(self, *_) -> None:
        self.close()

    def beat(self, step: int | None = None) -> None:
        """Report progress: a training step, or a part of the current phase's work, is done.

        Args:
            step: number of the training step, for the message; default: the next number.
        """
        phase, since = self._mark
        now = time.monotonic()
        if phase in ("startup", "step"):
            if phase == "step":
                self._steps.append(now - since)
            phase = "step"
            self.step = self.step + 1 if step is None else step
        self._mark = (phase, now)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Use the limit of another phase, "eval" or "save", inside this context."""
        outer = self._mark[0]
        self._mark = (name, time.monotonic())
        try:
            yield
        finally:
            self._mark = (outer, time.monotonic())

    def limit(self, phase: str) -> float:
        """Limit in seconds: the config's, or the default, for steps at least 10 x their median."""
        if self.limits[phase]:
            return float(self.limits[phase])
        usual = 10 * statistics.median(self._steps) if phase == "step" and self._steps else 0
        return max(DEFAULTS[phase], usual)

    def _watch(self) -> None:
        poll = 1.0
        distributed = int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1
        looked = time.monotonic()
        while not self._closed.wait(poll):
            now = time.monotonic()
            if now - looked > 10 * poll:  # this thread was stopped too: Ctrl-Z, or the GIL was held
                self._mark = (self._mark[0], now)
            looked = now
            phase, since = self._mark
            limit = self.limit(phase)
            if now - since > limit:
                self._expire(phase, now - since, limit)
                return
            if distributed:
                # If native code hangs and holds the GIL, this thread stops, but this timer does
                # not. A single process does not use it: the timer would end it after Ctrl-Z and fg.
                left = limit - (now - since) + 30
                faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or 2)

    def _expire(self, phase: str, seconds: float, limit: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        message = (
            f"rank {self.rank} hung: nothing done for {seconds:.0f} s in phase {phase} at step "
            f"{self.step} (limit {limit:.0f} s, `watchdog.{phase}`); main thread in {self._where()}"
        )
        announce(message)
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        if self.on_hang:
            caller = threading.Thread(target=self.on_hang, args=(message,), daemon=True)
            caller.start()
            caller.join(10)
        time.sleep(self.grace)
        print(message, file=sys.__stderr__, flush=True)  # again, as the last line of the log
        os._exit(exit_codes.HUNG)

    def _where(self) -> str:
        """Describe the main thread's current function and whether it may wait for other ranks.

        It may wait in collective operations and in backward, which averages gradients.
        """
        innermost = frame = sys._current_frames().get(self._main)
        if innermost is None:
            return "no Python code"
        place = f"{innermost.f_code.co_name} ({innermost.f_code.co_filename}:{innermost.f_lineno})"
        while frame is not None:
            code = frame.f_code
            if code.co_name == "backward" or re.search(_COLLECTIVES, code.co_filename):
                return place + WAITS
            frame = frame.f_back
        return place


def announce_failure(rank: int, error: BaseException) -> None:
    """Print "rank R failed: ..." on the console; the traceback is only in the log."""
    text = str(error).strip().splitlines()
    announce(f"rank {rank} failed: {type(error).__name__}: {text[0] if text else ''}")


def announce(message: str) -> None:
    """Write a line to stderr and, if that is a rank's log file, to the launcher's stderr too."""
    message = printable(message)
    print(message, file=sys.__stderr__, flush=True)
    if "PADDLE_TRAINER_ID" not in os.environ:
        return
    console = Path(f"/proc/{os.getppid()}/fd/2")
    try:
        if os.path.samestat(os.stat(console), os.fstat(2)):
            return
        flags = int(Path(f"/proc/{os.getppid()}/fdinfo/2").read_text().split()[3], 8)
        if console.is_file() and not flags & os.O_APPEND:
            return  # the launcher writes to this file at its own offset and would overwrite it
        with console.open("a") as file:
            file.write(message + "\n")
    except (OSError, ValueError, IndexError):
        return  # no access, or the launcher has ended; the message is in the log
