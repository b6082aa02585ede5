"""Run the project's commands on stand-in cards, and read what they wrote."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from fcos_recipe.checkpoint import weights
from fcos_recipe.system.cpu_math import missing
from tests.card import plugin
from tests.conftest import ROOT, run_tool

# What a clock decides about, and the memory, which is another figure on a card.
CLOCK = {"time", "images_per_second", "images_per_second_per_card", "data_time", "memory_mib",
         "seconds"}  # fmt: skip
# A run on a card leaves the CPU's settings alone, but the stand-in computes with the CPU's kernels,
# whose last bits depend on them.
MATH = missing(1)
CPU = {
    **os.environ,
    **MATH,
    "DEVICE": "cpu",
    "PYTHON": sys.executable,
    "PYTHONPATH": os.pathsep.join([str(plugin.SOURCES / "cpu_as_card"), str(ROOT)]),
}


def tool(name, *argv, cwd, cards=1, launch=0, code=0, **options) -> str:
    """Run tools/NAME.py with stand-in cards (0: on the CPU); returns its output."""
    env = {**plugin.environment(cards, **options), **MATH} if cards else CPU
    if cards and launch:
        env |= plugin.PADDLE_LAUNCHER
    done = run_tool(name, *argv, cwd=cwd, env=env, launch=launch, timeout=500)
    said = done.stdout + done.stderr
    assert done.returncode == code, said[-4000:]
    return said


def start(name, *argv, cwd, cards, **options) -> subprocess.Popen:
    """Start scripts/NAME.sh with stand-in cards."""
    env = {**plugin.environment(cards, **options), **MATH} if cards else CPU
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts" / f"{name}.sh"), *map(str, argv)], cwd=cwd, env=env,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def script(name, *argv, cwd, cards, code=0, **options) -> str:
    """Run scripts/NAME.sh to its end; returns its output."""
    process = start(name, *argv, cwd=cwd, cards=cards, **options)
    said = process.communicate(timeout=550)[0]
    assert process.returncode == code, said[-4000:]
    return said


def records(run: Path, kind: str | None = None) -> list[dict]:
    """Rows of metrics.jsonl without values that depend on time."""
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if kind in (None, row["kind"])]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def assert_same_weights(one: Path, two: Path) -> None:
    one, two = weights.read(one), weights.read(two)
    assert set(one) == set(two)
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, two[name], err_msg=name)


def assert_same_run(one: Path, two: Path, names=("model_final", "best_model")) -> None:
    """Check that all records and weights of two runs are equal bit for bit."""
    assert records(one) == records(two) and records(one, "train")
    for name in names:
        assert_same_weights(one / f"{name}.pdparams", two / f"{name}.pdparams")


def traced(path: Path) -> dict[int, dict[str, int]]:
    """Events on each card: card -> event -> count."""
    found: dict = defaultdict(lambda: defaultdict(int))
    for line in path.read_text().splitlines():
        _, card, what, _ = line.split()
        found[int(card)][what] += 1
    return found


def of_processes(path: Path, what: str) -> dict[int, set[int]]:
    """Process id -> cards on which the event occurred."""
    found: dict = defaultdict(set)
    for line in path.read_text().splitlines():
        pid, card, did, _ = line.split()
        if did == what:
            found[int(pid)].add(int(card))
    return found
