"""Checkpoints: a folder that appears whole or not at all, and is checked when it is read.

RUN_DIR/checkpoints/0003/          after the third epoch; 0003-000250: and 250 steps of the fourth
    model.pdparams   weights as PaddleDetection writes them (averaged ones under EMA)
    model.pdopt      optimizer, LR schedule and `last_epoch`, likewise
    model.pdema      the weights being trained, only under EMA
    average.pdema    the average before its bias is corrected, only under EMA
    ranks.json       random generators and unreadable images of each rank
    state.json       everything else, with the SHA-256 of the files above and of itself
RUN_DIR/best_model.pdparams, RUN_DIR/model_final.pdparams   weights alone, with a .json beside them
"""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle

from fcos_recipe.checkpoint import weights
from fcos_recipe.console import log
from fcos_recipe.errors import RunFailure, UserError
from fcos_recipe.files.atomic import draft, flush, replace_file, write_json

STATE = "state.json"
FORMAT = 2  # of state.json; 0.1.0 wrote none, and saved after whole epochs only
MID_EPOCH = 2  # checkpoints inside of an epoch to keep: one may turn out damaged
NAMES = "StructuredToParameterName@@"  # paddle.save's table of parameter names


def name(epoch: int, step: int = 0) -> str:
    """Name of the folder after so many whole epochs and steps of the next one."""
    return f"{epoch:04d}-{step:06d}" if step else f"{epoch:04d}"


def position(path: Path) -> tuple[int, int] | None:
    """(whole epochs, steps of the next one) by a folder's name; None for other files."""
    match = re.fullmatch(r"(\d{4,})(?:-(\d{6,}))?", path.name)
    return match and (int(match[1]), int(match[2] or 0))


def found(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first, damaged ones included; [] where there is no folder."""
    there = (p for p in folder.glob("*") if position(p))
    return sorted(there, key=lambda p: position(p) or (0, 0))


def set_aside_newer(path: Path) -> None:
    """Rename the checkpoints in a checkpoint's folder that are newer than this one.

    They are damaged, or belong to steps that a run resumed from this checkpoint is about to repeat:
    `--resume auto` must not mistake them for checkpoints of that run.
    """
    known = found(path.parent)
    for newer in known[known.index(path) + 1 :]:
        aside = newer.with_name(f"superseded-{newer.name}")
        shutil.rmtree(aside, ignore_errors=True)
        newer.rename(aside)
        log.info("%s is newer than the checkpoint that this run resumes: renamed to %s", newer,
                 aside.name)  # fmt: skip


def host(values: dict) -> dict:
    """A copy in host memory of a state dict, in the form that `paddle.save` gives it on disk.

    Args:
        values: names to tensors, plain values, or dicts of either.
    """

    def array(tensor):
        return np.array(tensor.numpy())

    if any(isinstance(v, dict) and _tensors(v) for v in values.values()):  # master weights

        def packed(value):
            if isinstance(value, dict):
                return {k: packed(v) for k, v in value.items()}
            return (value.name, array(value)) if isinstance(value, paddle.Tensor) else value

        return packed(values)
    tensors = _tensors(values)
    copied = {k: array(v) if k in tensors else v for k, v in values.items()}
    return {**copied, NAMES: {k: v.name for k, v in tensors.items()}} if tensors else copied


def _tensors(values: dict) -> dict:
    return {k: v for k, v in values.items() if isinstance(v, paddle.Tensor)}


# ---- writing ------------------------------------------------------------------------------------


class _Hashed:
    """A file that hashes what is written to it."""

    def __init__(self, file):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data) -> int:
        self.hash.update(data)
        return self.file.write(data)


def _write(path: Path, value: dict) -> str:
    """Write JSON or, as `paddle.save` would, a pickle; returns its SHA-256."""
    with open(path, "wb") as file:
        hashed = _Hashed(file)
        if path.suffix == ".json":
            hashed.write(json.dumps(value).encode())
        else:
            pickle.dump(host(value), hashed, protocol=4)
        file.flush()
        os.fsync(file.fileno())
    return hashed.hash.hexdigest()


def save(folder: Path, name: str, objects: dict[str, dict], state: dict) -> Path:
    """Write one checkpoint as a unit.

    Args:
        folder: RUN_DIR/checkpoints; must exist.
        name: of the new folder in it; an older one of that name is replaced.
        objects: file name -> state dict, or JSON for a name that ends so.
        state: JSON; `files` is added: name -> SHA-256.

    Returns:
        the checkpoint's path.

    Raises:
        OSError: not written; nothing is left of it, and what was there is untouched.
    """
    part, final = folder / f".{name}.{os.getpid()}", folder / name
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()  # without parents: a mount that has gone must not turn into a local folder
        hashes = {file: _write(part / file, value) for file, value in objects.items()}
        sealed = _sealed({"format": FORMAT, **state, "files": hashes})
        replace_file(part / STATE, sealed, durable=True)
        flush(part)
        if final.exists():  # only after a resume that repeats steps
            final.rename(old := folder / f".{name}.old")
            os.replace(part, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(part, final)
        flush(folder)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return final


def amend(path: Path, **changes) -> None:
    """Replace entries of a checkpoint's state, in one step.

    Raises:
        OSError: not written, or the checkpoint is not there.
    """
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    state.pop("sha256")
    replace_file(path / STATE, _sealed({**state, **changes}), durable=True)


def _sealed(state: dict) -> str:
    """The text of state.json: with a hash over all of it but the hash."""
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    return json.dumps({**state, "sha256": digest}, indent=1) + "\n"


def save_weights(path: Path, state_dict: dict, facts: dict) -> None:
    """Write weights alone, with a JSON file beside them, each replaced in one step.

    Args:
        path: .../NAME.pdparams; NAME.json gets `facts` and the SHA-256.
        state_dict: names to tensors, or from `host`.

    Raises:
        OSError: not written; what was there is untouched.
    """
    with draft(path) as part:
        # the note comes first and knows both files: a kill between the two spoils neither
        old = {"replaces": weights.sha256(path)} if path.is_file() else {}
        note = {**facts, "ending": path.suffix, "sha256": _write(part, state_dict), **old}
        write_json(path.with_suffix(".json"), note)
    flush(path.parent)


def prune(folder: Path, keep: int) -> None:
    """Remove old checkpoints and what killed saves left behind.

    Args:
        folder: RUN_DIR/checkpoints.
        keep: how many of the newest at the end of an epoch stay (0 or less: all); besides them
            stay the newest `MID_EPOCH` of those inside of an epoch.
    """
    ends = [p for p in found(folder) if (position(p) or (0, 0))[1] == 0]
    inside = [p for p in found(folder) if (position(p) or (0, 0))[1]]
    for path in (ends[:-keep] if keep > 0 else []) + inside[:-MID_EPOCH] + [*folder.glob(".*")]:
        shutil.rmtree(path, ignore_errors=True)


class Saver:
    """Writes in a thread, one thing at a time, and counts failures in a row.

    What is written must be in host memory already: training goes on meanwhile.

    Args:
        limit: failures in a row that are borne.
    """

    def __init__(self, limit: int):
        self.limit, self.failures = limit, 0
        self._pool = ThreadPoolExecutor(1, "saver")
        self._job: Future | None = None
        self._reason = ""

    def submit(self, what: str, write: Callable[[], object], copied: float = 0.0) -> None:
        """Call `write` in the background, once everything submitted before is done.

        Args:
            what: its name, for the log.
            write: may raise OSError.
            copied: seconds that training stood still for it, for the log.

        Raises:
            RunFailure: see `wait`.
        """
        before = time.perf_counter()
        self.wait()
        copied += time.perf_counter() - before
        self._job = self._pool.submit(self._run, what, write, copied)

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            RunFailure: too many failures in a row.
        """
        if self._job is not None:
            job, self._job = self._job, None
            job.result()
        if self.failures >= self.limit:
            raise RunFailure(
                f"{self.failures} saves in a row failed (max_failed_saves), the last because "
                f"{self._reason}"
            )

    def close(self) -> None:
        """Wait, and end the thread.

        Raises:
            RunFailure: see `wait`.
        """
        self._pool.shutdown()
        self.wait()

    def _run(self, what: str, write: Callable[[], object], copied: float) -> None:
        start = time.perf_counter()
        try:
            write()
        except OSError as error:
            self.failures += 1
            self._reason = reason(error)
            log.error(
                "%s was not saved: %s; what was saved before is intact, training goes on "
                "(%d of %d failures in a row)",
                what, self._reason, self.failures, self.limit,
            )  # fmt: skip
            return
        self.failures = 0
        log.info("saved %s (%.2f s of training, %.2f s beside it)", what, copied,
                 time.perf_counter() - start)  # fmt: skip


def reason(error: OSError) -> str:
    """An error of the file system in words."""
    words = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.ENOENT: "the folder has gone (unmounted?)",
        errno.ESTALE: "the network file system has lost it",
    }
    where = f" ({error.filename})" if error.filename else ""
    return words.get(error.errno or 0, error.strerror or str(error)) + where


# ---- reading ------------------------------------------------------------------------------------


def read_state(path: Path) -> dict:
    """State of a checkpoint whose files are all as they were written.

    Raises:
        UserError: incomplete or damaged, and which file.
    """
    try:
        text = (path / STATE).read_text(encoding="utf-8")
        state = json.loads(text)
        hashes = dict(state["files"])
        if "format" in state or "sha256" in state:  # 0.1.0 had neither
            del state["sha256"]
            if _sealed(state) != text:
                raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: {STATE} is missing or damaged") from None
    if state.get("format", 1) > FORMAT:
        raise UserError(f"{path}: written by a newer version; update fcos_recipe to read it")
    for file, digest in hashes.items():
        if Path(file).name != file or not (path / file).is_file():
            raise UserError(f"{path}: {file} is missing")
        try:
            whole = weights.sha256(path / file) == digest
        except OSError as error:
            raise UserError(f"{path}: {file}: {error.strerror}") from None
        if not whole:
            raise UserError(f"{path}: {file} is damaged (its SHA-256 differs)")
    return state


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint and why newer ones were rejected.

    Args:
        folder: RUN_DIR/checkpoints; need not exist.
    """
    rejected: list[str] = []
    for path in reversed(found(folder)):
        try:
            read_state(path)
            return path, rejected
        except UserError as error:
            rejected.append(str(error))
    return None, rejected


def class_names(path: str | Path) -> list[str] | None:
    """Names of the classes that a weights file or checkpoint was trained on, in class order.

    Args:
        path: as given to `--weights`.

    Returns:
        None where the file says nothing of it, as PaddleDetection's zoo files.
    """
    if "://" in str(path):
        return None
    return weights.facts(weights.resolve(str(path))).get("class_names")
