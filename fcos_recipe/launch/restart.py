"""`scripts/train.sh --max-restarts N`: start a run again that died, from its newest checkpoint.

Paddle's launcher has `--max_restart`, but starts the same command again, and its elastic mode needs
an etcd server; neither knows of checkpoints.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.launch.plan import Plan

# Done, hopeless, or asked for: nothing to start again after these.
FINAL = {exit_codes.OK, exit_codes.BAD_INPUT, exit_codes.SAVED, exit_codes.HUNG_UP,
         exit_codes.INTERRUPTED, exit_codes.TERMINATED}  # fmt: skip


def until_done(run: Plan, once: Callable[[Plan], int], restarts: int, run_dir: Path | None) -> int:
    """Call `once(run)` until it ends well, at most 1 + `restarts` times.

    Args:
        run: a `Plan`; its command gets `--resume auto` once it has a run directory.
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


def _identity(path: Path | None) -> tuple | None:
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None
