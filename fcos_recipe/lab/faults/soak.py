"""`scripts/fault_test.sh --soak MINUTES`: kill the demo repeatedly while it restarts itself.

The first run is undisturbed. Later runs, started with `--max-restarts`, are killed at random
moments and must end with the same weights, records and AP. Meanwhile memory, file descriptors,
threads, processes and shared memory are recorded in a table and a plot.
"""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fcos_recipe import exit_codes
from fcos_recipe.datasets.drawn_shapes import make_shapes
from fcos_recipe.lab.faults import tools
from fcos_recipe.places import ROOT
from fcos_recipe.system import cpu_math

EVERY = 2.0  # seconds between two measurements
FIELDS = ["seconds", "run", "kills", "memory_mib", "descriptors", "threads", "processes",
          "shared_memory_mib"]  # fmt: skip


def soak(folder: Path, minutes: float, seed: int) -> int:
    """Run until the time is over and the current run has ended; returns an exit code.

    Args:
        folder: receives soak.csv, soak.png and the runs.
        minutes: duration; there are always one undisturbed and one killed run.
        seed: of the random kills, one every 10 to 60 seconds.
    """
    cpu_math.ensure("cpu")  # otherwise Paddle, imported below, limits later runs to one thread
    rng, began = np.random.default_rng(seed), time.monotonic()
    make_shapes(folder / "demo", train=1000, val=100, seed=0)
    config = folder / "soak.yml"
    data = "".join(
        f"{part}Dataset: {{dataset_dir: {folder / 'demo'}}}\n" for part in ("Train", "Eval", "Test")
    )
    base = f"_BASE_: ['{ROOT}/configs/fcos/fcos_r18_fpn_demo.yml']\n"
    config.write_text(f"{base}device: cpu\nsnapshot_steps: 25\nkeep_checkpoints: 2\n{data}")
    rows: list[dict] = []
    seen: set[int] = set()
    lost = number = kills = 0
    while number < 2 or time.monotonic() - began < 60 * minutes:
        run = folder / f"run-{number}"
        process = _start(config, run)
        due = time.monotonic() + rng.uniform(10, 60)
        while process.poll() is None:
            time.sleep(EVERY)
            found = _look(process, seen)
            rows.append({"seconds": round(time.monotonic() - began, 1), "run": number,
                         "kills": kills, **found})  # fmt: skip
            if number and time.monotonic() > due:
                due = time.monotonic() + rng.uniform(10, 60)
                kills += _kill(process)
        if process.returncode:
            said = f"exit {process.returncode}"
        else:
            said = tools.differences(folder / "run-0", run) if number else ""
        lost += bool(said)
        ap = json.loads((run / "eval.json").read_text())["stats"][0] if not said else float("nan")
        print(f"run {number}: AP {ap:.4f}, {kills} kills so far: {said or 'same as without kills'}",
              flush=True)  # fmt: skip
        if number and not said:
            tools.remove(run)
        number += 1
    with (folder / "soak.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        table.writerows(rows)
    _plot(rows, folder / "soak.png")
    for field in FIELDS[3:]:
        top = [max(r[field] for r in rows if r["run"] == k) for k in range(number)]
        print(f"{field}: maximum of each run {top}")
    print(f"{kills} kills in {(time.monotonic() - began) / 60:.0f} minutes; "
          f"{folder}/soak.csv and soak.png")  # fmt: skip
    print(f"faults tried {kills}, runs equal {number - lost}, lost {lost}")
    return exit_codes.FAILED if lost else exit_codes.OK


def _start(config: Path, run: Path) -> subprocess.Popen:
    command = ["bash", ROOT / "scripts" / "train.sh", config, "--gpus", "1", "--max-restarts",
               "999", "--eval", "--output", run, "--log_dir", run.with_suffix(".logs"), "-o",
               "worker_num=2", "TrainReader.use_shared_memory=true"]  # fmt: skip
    with run.with_suffix(".console").open("wb") as file:
        return subprocess.Popen(
            list(map(str, command)), stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "DEVICE": "cpu", "PYTHON": sys.executable},
        )  # fmt: skip


def _look(process: subprocess.Popen, seen: set[int]) -> dict:
    """Resources used by the supervisor and its child processes, including /dev/shm.

    Args:
        process: the supervisor.
        seen: ids of all processes of this test so far; current ones are added.
    """
    found: dict[str, Any] = dict.fromkeys(FIELDS[3:], 0)
    for pid in tools.tree(process):
        seen.add(pid)
        try:
            one = psutil.Process(pid)
            with one.oneshot():
                # private pages only, so that shared libraries don't count
                found["memory_mib"] += one.memory_full_info().uss >> 20
                found["descriptors"] += one.num_fds()
                found["threads"] += one.num_threads()
                found["processes"] += 1
        except psutil.Error:
            continue
    size = 0
    for path in Path("/dev/shm").glob("paddle_*"):
        with contextlib.suppress(OSError, ValueError):  # already removed, or not Paddle's
            size += path.stat().st_size if int(path.name.split("_")[1]) in seen else 0
    found["shared_memory_mib"] = round(size / 2**20, 1)
    return found


def _kill(process: subprocess.Popen) -> int:
    """Send SIGKILL to the training process; returns 0 if there is none, else 1."""
    for pid in sorted(tools.tree(process) - {process.pid}):
        try:
            one = psutil.Process(pid)
            trains = "train.py" in " ".join(one.cmdline())
            if trains and one.ppid() == process.pid:  # its data workers have the same command line
                os.kill(pid, signal.SIGKILL)
                return 1
        except (psutil.Error, OSError):
            continue
    return 0


def _plot(rows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 10), layout="constrained")
    minutes = [row["seconds"] / 60 for row in rows]
    for axes, field in zip(figure.subplots(len(FIELDS) - 3, sharex=True), FIELDS[3:]):
        axes.plot(minutes, [row[field] for row in rows], linewidth=0.8)
        axes.set_ylabel(field)
        axes.set_ylim(bottom=0)
        for before, row in zip(rows, rows[1:]):
            if row["kills"] > before["kills"]:
                axes.axvline(row["seconds"] / 60, color="red", alpha=0.3, linewidth=0.6)
    axes.set_xlabel("minutes; red: a kill")
    figure.savefig(path, dpi=100)
