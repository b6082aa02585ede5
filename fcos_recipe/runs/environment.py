"""Versions, hardware and source code state of a run, for environment.json."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fcos_recipe import __version__
from fcos_recipe.errors import UserError, without_secrets
from fcos_recipe.places import CHECKOUT, ROOT
from fcos_recipe.system.device import read_driver


def versions() -> dict:
    """Versions of this recipe, of Python and of the packages that affect numerical results."""
    names = "paddlepaddle paddlepaddle-gpu paddledet numpy opencv-python-headless hotcoco"
    packages = {}
    for name in names.split():
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "fcos_recipe": __version__,
        "python": platform.python_version(),
        "packages": packages,
    }


def environment(device: str) -> dict:
    """Collect the content of environment.json.

    Args:
        device: cpu, gpu or iluvatar_gpu.
    """
    return {
        **versions(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "device": device,
        "cards": _cards() if device != "cpu" else [],
        "git": _git(),
        "command": [os.path.basename(sys.argv[0]), *map(without_secrets, sys.argv[1:])],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _cards() -> list[str]:
    try:
        driver = read_driver()
    except UserError:  # the run works without the vendor's tool, so it continues
        return []
    return [card.name for card in driver.cards] if driver else []


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")


def _git() -> str | None:
    if not CHECKOUT:  # site-packages may lie in somebody else's repository
        return None
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
