"""Helpers of the fault tests: compare runs, find processes, mount a small file system."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

# Values that differ between any two runs.
CLOCK = {"time", "images_per_second", "images_per_second_per_card", "data_time", "memory_mib",
         "seconds"}  # fmt: skip


class Lost(Exception):
    """A run did not survive a fault; the message says how this shows."""


class NotPossible(Exception):
    """This machine does not allow a fault to be made."""


def differences(one: Path, two: Path, tolerance: float = 0) -> str:
    """How two finished run directories differ; "" if they are equal.

    Args:
        one, two: run directories.
        tolerance: absolute, for weights and optimizer states.
    """
    from fcos_recipe.checkpoint import storage, weights

    last = [storage.found(path / "checkpoints")[-1:] for path in (one, two)]
    if not all(last) or last[0][0].name != last[1][0].name:
        return f"last checkpoints {last}"
    names = [p.name for p in last[0][0].glob("model.pd*")]
    pairs = [(last[0][0] / name, last[1][0] / name) for name in names]
    for a, b in [(one / "model_final.pdparams", two / "model_final.pdparams"), *pairs]:
        name = a.name
        a, b = weights.read(a), weights.read(b)
        if set(a) != set(b):
            return f"{name}: other entries"
        for key, value in a.items():
            if not isinstance(value, np.ndarray):
                if value != b[key]:
                    return f"{name}: {key}: {value} and {b[key]}"
            elif not np.allclose(value, b[key], rtol=0, atol=tolerance, equal_nan=True):
                return f"{name}: {key} differs by {np.abs(value - b[key]).max():.3g}"
    rows = [
        [
            {k: v for k, v in json.loads(line).items() if k not in CLOCK}
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        for path in (one, two)
    ]
    if [list(r) for r in rows[0]] != [list(r) for r in rows[1]]:
        return f"metrics.jsonl: {len(rows[0])} and {len(rows[1])} records, or other ones"
    for a, b in zip(*rows):
        for key, value in a.items():
            # metrics are discrete: with a tolerance, single matches may change
            if value != b[key] and (not tolerance or key == "step"):
                return f"metrics.jsonl: {key} at step {a['step']}: {value} and {b[key]}"
    return ""


def left_by(run: Path) -> set[str]:
    """Files of a run directory, without those of its checkpoints."""
    files = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[0] != "checkpoints"}


def tree(process: subprocess.Popen) -> set[int]:
    """Ids of a process and all its descendants."""
    try:
        return {process.pid, *(p.pid for p in psutil.Process(process.pid).children(True))}
    except psutil.Error:
        return {process.pid}


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def ranks_of(process: subprocess.Popen) -> dict[int, int]:
    """Ranks of a launch that have started training: rank -> process id."""
    found: dict[int, int] = {}
    for pid in sorted(tree(process)):
        try:
            child = psutil.Process(pid)
            if ".py" in " ".join(child.cmdline()) and child.ppid() != process.pid:
                number = child.environ().get("PADDLE_TRAINER_ID")
                if number is not None:
                    found.setdefault(int(number), pid)
        except (psutil.Error, AttributeError):
            continue
    return found


def parts(run: Path) -> list[Path]:
    """Files and folders that a save has begun and not yet renamed."""
    try:
        return [path for path in run.rglob(".*") if path.name != ".lock"]
    except OSError:  # renamed during the search
        return []


def handles(pid: int, number: int) -> bool:
    """Whether the main thread of a process blocks a signal, as another thread waits for it, or has
    a handler of its own; False if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = dict(line.split(":", 1) for line in lines if ":" in line)
    found = int(masks.get("SigBlk", "0"), 16) | int(masks.get("SigCgt", "0"), 16)
    return bool(found >> (number - 1) & 1)


def remove(run: Path) -> None:
    for path in run.parent.glob(f"{run.name}*"):
        if path == run or path.name.startswith(f"{run.name}."):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def tmpfs(path: Path, size: str) -> Iterator[None]:
    """Mount an in-memory file system of this size at `path`.

    Raises:
        NotPossible: this user is not allowed to mount.
    """
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise NotPossible(f"a small file system cannot be mounted ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
