"""A copy of the checkout as a clone has it, and its commands."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT


def fresh_copy(folder: Path) -> Callable[..., str]:
    """Copy what git knows, without the tests, into a folder.

    Returns:
        a function that runs a command there, checks its exit code (default 0), and returns what
        it printed.
    """
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT,
                           check=True, capture_output=True, text=True).stdout  # fmt: skip
    for name in filter(None, names.split("\0")):
        if not (ROOT / name).is_symlink() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "DEVICE": "cpu"}

    def shell(command: str, code: int = 0) -> str:
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, text=True,
                              capture_output=True)  # fmt: skip
        assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return shell
