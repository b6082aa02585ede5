"""`scripts/train.sh --max-restarts N`: start a run again that died, from its newest checkpoint.

Paddle's launcher has `--max_restart`, but starts the same command again, and its elastic mode needs
an etcd server; neither knows of checkpoints.
"""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcos_recipe import exit_codes

# Done, hopeless, or asked for: nothing to start again after these.
FINAL = {exit_codes.OK, exit_codes.BAD_INPUT, exit_codes.SAVED, exit_codes.INTERRUPTED,
         exit_codes.TERMINATED}  # fmt: skip
_LIBC = ctypes.CDLL(None)


def until_done(run, once: Callable[[Any], int], restarts: int, run_dir: Path | None) -> int:
    """Call `once(run)` until it ends well, at most 1 + `restarts` times.

    Args:
        run: a `launch.Plan`; its command gets `--resume auto` once it has a run directory.
        once: runs it; returns an exit code.
        restarts: how often to start again.
        run_dir: where the run writes.

    Returns:
        the last exit code.
    """
    before = _identity(run_dir)
    for number in range(restarts + 1):
        code = once(run)
        if code in FINAL or number == restarts:
            return code
        # a run that died before it moved an earlier one's directory away has nothing of its own
        if _identity(run_dir) != before and run.command[-2:] != ["--resume", "auto"]:
            run.command = [*run.command, "--resume", "auto"]
        print(f"launch: {exit_codes.describe(code)}; restart {number + 1} of {restarts}",
              file=sys.stderr, flush=True)  # fmt: skip
    return code


def one_process(run) -> int:
    """Run a plan of one rank, on this console; signals are passed on. Returns an exit code."""
    child = subprocess.Popen(
        run.command, env=run.environment(), start_new_session=True,
        preexec_fn=lambda: _LIBC.prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG
    )  # fmt: skip
    numbers = (signal.SIGINT, signal.SIGTERM)
    old = {n: signal.signal(n, lambda number, _: child.send_signal(number)) for n in numbers}
    try:
        code = child.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _identity(path: Path | None) -> tuple | None:
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None


def set_aside(logs: Path) -> None:
    """Move ranks' logs of an earlier attempt into a folder of their own, attempt-1, attempt-2, ...

    The launcher appends, so that old words would be read as this run's.
    """
    files = [path for path in logs.glob("*") if path.is_file()]
    if not files:
        return
    folder = logs / f"attempt-{len(list(logs.glob('attempt-*'))) + 1}"
    folder.mkdir()
    for path in files:
        path.rename(folder / path.name)
    print(f"launch: the logs of the attempt before: {folder}", file=sys.stderr)
