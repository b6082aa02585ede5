"""Checkpoints: written atomically, verified when read.

RUN_DIR/checkpoints/0003/          after epoch 3; 0003-000250: after 250 steps of epoch 4
    model.pdparams   weights in PaddleDetection's format (the average if EMA is used)
    model.pdopt      optimizer, LR schedule and `last_epoch` in PaddleDetection's format
    model.pdema      only with EMA: the weights being trained
    average.pdema    only with EMA: the average before bias correction
    ranks.json       random generators and unreadable images of each rank
    state.json       everything else, with the SHA-256 of the files above and of itself
RUN_DIR/best_model.pdparams, RUN_DIR/model_final.pdparams   only weights, each with a .json file
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

import msgspec
import numpy as np
import paddle

from fcos_recipe.checkpoint import weights
from fcos_recipe.console import log
from fcos_recipe.errors import RunFailure, UserError
from fcos_recipe.files.atomic import (
    draft,
    draft_folder,
    flush,
    remove_drafts,
    replace_file,
    write_json,
)
from fcos_recipe.files.reading import decode_json, read_json, read_text

STATE = "state.json"
CHECKPOINT = "the last checkpoint"  # a kind of file for `Saver`
FORMAT = 2  # of state.json; 0.1.0 wrote no format and saved only at the end of epochs
MID_EPOCH = 2  # mid-epoch checkpoints to keep: if one is damaged, there is another
NAMES = "StructuredToParameterName@@"  # paddle.save's table of parameter names


def name(epoch: int, step: int = 0) -> str:
    """Name of a checkpoint's folder from the epochs done and the steps of the next one."""
    return f"{epoch:04d}-{step:06d}" if step else f"{epoch:04d}"


def position(path: Path) -> tuple[int, int] | None:
    """Epochs done and steps of the next one from a folder's name; None for other files."""
    match = re.fullmatch(r"(\d{4,})(?:-(\d{6,}))?", path.name)
    return match and (int(match[1]), int(match[2] or 0))


def found(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, oldest first, including damaged ones."""
    there = (p for p in folder.glob("*") if position(p))
    return sorted(there, key=lambda p: position(p) or (0, 0))


def set_aside_newer(path: Path) -> None:
    """Rename the checkpoints that are newer than this one.

    They are damaged, or belong to steps that a run resumed from this checkpoint will repeat, so
    that a later `--resume auto` must not use them.
    """
    known = found(path.parent)
    for newer in known[known.index(path) + 1 :]:
        aside = newer.with_name(f"superseded-{newer.name}")
        shutil.rmtree(aside, ignore_errors=True)
        newer.rename(aside)
        log.info("%s is newer than the checkpoint that this run resumes: renamed to %s", newer,
                 aside.name)  # fmt: skip


def host(values: dict) -> dict:
    """Copy a state dict to host memory, in the form in which `paddle.save` writes it.

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
    """A file wrapper that hashes what is written."""

    def __init__(self, file):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data) -> int:
        self.hash.update(data)
        return self.file.write(data)


def _write(path: Path, value: dict) -> str:
    """Write JSON, or a pickle as `paddle.save` does; return its SHA-256."""
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
    """Write one checkpoint atomically.

    Args:
        folder: RUN_DIR/checkpoints; must exist.
        name: of the new folder in it; an older one of that name is replaced.
        objects: file name -> state dict, or JSON value if the name ends in .json.
        state: JSON object; `files` (name -> SHA-256) is added.

    Returns:
        the checkpoint's path.

    Raises:
        OSError: the checkpoint was not written; existing files are unchanged.
    """
    final = folder / name
    with draft_folder(final) as part:  # without parents: a mount may have vanished
        hashes = {file: _write(part / file, value) for file, value in objects.items()}
        sealed = _sealed({"format": FORMAT, **state, "files": hashes})
        replace_file(part / STATE, sealed, durable=True)
        flush(part)
    flush(folder)
    return final


def amend(path: Path, **changes) -> None:
    """Atomically replace entries of a checkpoint's state.

    Raises:
        OSError: not written, or the checkpoint does not exist.
    """
    try:
        state = read_json(path / STATE)
    except UserError as error:
        raise OSError(f"{error}") from None
    state.pop("sha256", None)
    replace_file(path / STATE, _sealed({**state, **changes}), durable=True)


def _sealed(state: dict) -> str:
    """Text of state.json, with a hash of everything else in it."""
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    return json.dumps({**state, "sha256": digest}, indent=1) + "\n"


def save_weights(path: Path, state_dict: dict, facts: dict) -> None:
    """Write only weights and a JSON file, replacing each atomically.

    Args:
        path: .../NAME.pdparams; NAME.json gets `facts` and the SHA-256.
        state_dict: names to tensors, or the result of `host`.
        facts: JSON object that describes the weights.

    Raises:
        OSError: not written; existing files are unchanged.
    """
    with draft(path) as part:
        # the JSON file is written first and accepts both the old and the new weights, so that it is
        # valid if the process is killed in between
        old = {"replaces": weights.sha256(path)} if path.is_file() else {}
        note = {**facts, "ending": path.suffix, "sha256": _write(part, state_dict), **old}
        write_json(path.with_suffix(".json"), note)
    flush(path.parent)


def prune(folder: Path, keep: int) -> None:
    """Remove old checkpoints and incomplete files of killed processes.

    Args:
        folder: RUN_DIR/checkpoints.
        keep: number of newest end-of-epoch checkpoints to keep (0 or less: all); the newest
            `MID_EPOCH` mid-epoch checkpoints are kept as well.
    """
    ends = [p for p in found(folder) if (position(p) or (0, 0))[1] == 0]
    inside = [p for p in found(folder) if (position(p) or (0, 0))[1]]
    for path in (ends[:-keep] if keep > 0 else []) + inside[:-MID_EPOCH]:
        shutil.rmtree(path, ignore_errors=True)
    remove_drafts(folder)


class Saver:
    """Writes files in a background thread, one job at a time, and counts failed checkpoints.

    The data must already be in host memory, because training continues meanwhile.

    Args:
        limit: number of checkpoints in a row that were not saved which ends the run.

    Attributes:
        failures: checkpoints in a row, up to the last one, that were not saved. Other files do not
            count: a disk may have room for them and none for a checkpoint.
        unsaved: kind of file -> why the last attempt to write it failed; empty: all is on disk.
    """

    def __init__(self, limit: int):
        self.limit, self.failures = limit, 0
        self.unsaved: dict[str, str] = {}
        self._pool = ThreadPoolExecutor(1, "saver")
        self._job: Future | None = None

    def submit(
        self, what: str, write: Callable[[], object], copied: float = 0.0, kind: str = ""
    ) -> None:
        """Wait for the previous job, then call `write` in the background.

        Args:
            what: what is saved, for the log.
            write: may raise OSError.
            copied: seconds that training was paused to copy the data, for the log.
            kind: of file, such as `CHECKPOINT`; default `what`.

        Raises:
            RunFailure: see `wait`.
        """
        before = time.perf_counter()
        self.wait()
        copied += time.perf_counter() - before
        self._job = self._pool.submit(self._run, what, write, copied, kind or what)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            RunFailure: `limit` checkpoints in a row were not saved.
        """
        if self._job is not None:
            job, self._job = self._job, None
            job.result()
        if self.failures >= self.limit:
            raise RunFailure(
                f"{self.failures} checkpoints in a row were not saved (max_failed_saves); reason "
                f"of the last: {self.unsaved[CHECKPOINT]}"
            )

    def close(self) -> None:
        """Wait, and end the thread.

        Raises:
            RunFailure: see `wait`.
        """
        self._pool.shutdown()
        self.wait()

    def _run(self, what: str, write: Callable[[], object], copied: float, kind: str) -> None:
        start = time.perf_counter()
        try:
            write()
        except OSError as error:
            self.failures += kind == CHECKPOINT
            self.unsaved[kind] = reason(error)
            log.error(
                "%s was not saved: %s; earlier files are intact and training continues "
                "(checkpoints in a row that were not saved: %d of %d)",
                what, self.unsaved[kind], self.failures, self.limit,
            )  # fmt: skip
            return
        self.unsaved.pop(kind, None)
        if kind == CHECKPOINT:
            self.failures = 0
        log.info("saved %s (training paused %.2f s, written in %.2f s)", what, copied,
                 time.perf_counter() - start)  # fmt: skip


def reason(error: OSError) -> str:
    """Describe a file system error in words."""
    words = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.ENOENT: "the folder no longer exists (unmounted?)",
        errno.ESTALE: "the network file system no longer knows the file",
    }
    where = f" ({error.filename})" if error.filename else ""
    return words.get(error.errno or 0, error.strerror or str(error)) + where


# ---- reading ------------------------------------------------------------------------------------


def read_state(path: Path, usable: Callable[[dict], object] = lambda state: None) -> dict:
    """Verify all files of a checkpoint and return its state.

    Args:
        path: the checkpoint's folder.
        usable: raises ValueError or msgspec.ValidationError if the state lacks what the caller
            needs.

    Raises:
        UserError: the checkpoint is incomplete or damaged; the message names the file.
    """
    try:
        text = read_text(path / STATE)
        state = decode_json(text)
        hashes = msgspec.convert(state["files"], dict[str, str])
        form = msgspec.convert(state.get("format", 1), int)
        if "format" in state or "sha256" in state:  # 0.1.0 wrote neither
            del state["sha256"]
            if _sealed(state) != text:
                raise ValueError
    except (UserError, ValueError, KeyError):
        raise UserError(f"{path}: {STATE} is missing or damaged") from None
    try:
        usable(state)
    except ValueError as error:  # msgspec.ValidationError is one
        raise UserError(f"{path}: {STATE}: not the expected content: {error}") from None
    if form > FORMAT:
        raise UserError(f"{path}: written by a newer version; update fcos_recipe to read it")
    for file, digest in hashes.items():
        if Path(file).name != file or len(file) > 100 or not (path / file).is_file():
            raise UserError(f"{path}: {file} is missing")
        try:
            whole = weights.sha256(path / file) == digest
        except (OSError, UserError) as error:
            raise UserError(f"{path}: {file}: {error}") from None
        if not whole:
            raise UserError(f"{path}: {file} is damaged (its SHA-256 differs)")
    return state


def ap_of(path: Path, unknown: float) -> float | None:
    """AP recorded for a file of `save_weights`; None if the file is missing or another one.

    Args:
        path: of the weights.
        unknown: the result if there is a file for which nothing is recorded.
    """
    try:
        digest, note = weights.sha256(path), weights.description(path)
        return note.get("AP", unknown) if note.get("sha256", digest) == digest else None
    except (OSError, UserError):
        return None


def intact(path: Path) -> bool:
    """Whether there is a complete, undamaged checkpoint at this path."""
    try:
        return bool(read_state(path))
    except UserError:
        return False


def newest(
    folder: Path, usable: Callable[[dict], object] = lambda state: None
) -> tuple[Path | None, list[str]]:
    """Return the newest intact checkpoint, or None, and why newer ones were rejected.

    Args:
        folder: RUN_DIR/checkpoints; need not exist.
        usable: see `read_state`.
    """
    rejected: list[str] = []
    for path in reversed(found(folder)):
        try:
            read_state(path, usable)
            return path, rejected
        except UserError as error:
            rejected.append(str(error))
    return None, rejected


def class_names(path: str | Path) -> list[str] | None:
    """Names of the classes for which a weights file or checkpoint was trained, in class order.

    Args:
        path: as given to `--weights`.

    Returns:
        None if they are not recorded, as for files of PaddleDetection's model zoo.
    """
    if "://" in str(path):
        return None
    return weights.description(weights.resolve(str(path))).get("class_names")
