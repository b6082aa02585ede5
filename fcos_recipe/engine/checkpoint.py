"""Checkpoints: a folder that appears whole or not at all, and is checked when it is read.

RUN_DIR/checkpoints/0003/   after the third epoch
    model.pdparams   weights as PaddleDetection writes them (averaged ones under EMA)
    model.pdopt      optimizer, LR schedule and `last_epoch`, likewise
    model.pdema      the weights being trained, only under EMA
    state.json       everything else, with the SHA-256 of the files above
RUN_DIR/best_model.pdparams, RUN_DIR/model_final.pdparams   weights alone, with a .json beside them
"""

import json
import os
import shutil
from pathlib import Path

import paddle

from fcos_recipe.engine import weights
from fcos_recipe.errors import UserError

STATE = "state.json"


def _flush(path: Path) -> None:
    """Make a file or folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value) -> None:
    """Replace a JSON file in one step."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value, indent=1) + "\n")
    _flush(part)
    os.replace(part, path)


def save(folder: Path, name: str, objects: dict[str, dict], state: dict) -> Path:
    """Write one checkpoint as a unit.

    Args:
        folder: RUN_DIR/checkpoints.
        name: of the new folder in it; an older one of that name is replaced.
        objects: file name -> what `paddle.save` is to write.
        state: JSON; `files` is added: name -> SHA-256.

    Returns:
        the checkpoint's path.
    """
    part = folder / f".{name}.{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file, value in objects.items():
        paddle.save(value, str(part / file))
        _flush(part / file)
    hashes = {file: weights.sha256(part / file) for file in objects}
    write_json(part / STATE, {**state, "files": hashes})
    _flush(part)
    final = folder / name
    if final.exists():  # only after a resume that repeats an epoch
        shutil.rmtree(final)
    os.replace(part, final)
    _flush(folder)
    return final


def save_weights(path: Path, state_dict: dict, facts: dict) -> None:
    """Write weights alone, with a JSON file beside them, each replaced in one step.

    Args:
        path: .../NAME.pdparams; NAME.json gets `facts` and the SHA-256.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    paddle.save(state_dict, str(part))
    _flush(part)
    digest = weights.sha256(part)
    os.replace(part, path)
    write_json(path.with_suffix(".json"), {**facts, "sha256": digest})


def read_state(path: Path) -> dict:
    """State of a checkpoint whose files are all as they were written.

    Raises:
        UserError: incomplete or damaged, and which file.
    """
    try:
        state = json.loads((path / STATE).read_text())
        hashes = state["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: {STATE} is missing or damaged") from None
    for file, digest in hashes.items():
        if not (path / file).is_file():
            raise UserError(f"{path}: {file} is missing")
        if weights.sha256(path / file) != digest:
            raise UserError(f"{path}: {file} is damaged (its SHA-256 differs)")
    return state


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and what a killed save left behind."""
    names = sorted(p for p in folder.iterdir() if p.name.isdigit())
    for path in names[: len(names) - keep] if keep > 0 else []:
        shutil.rmtree(path)
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint and why newer ones were rejected.

    Args:
        folder: RUN_DIR/checkpoints; need not exist.
    """
    rejected = []
    found = sorted((p for p in folder.glob("*") if p.name.isdigit()), reverse=True)
    for path in found:
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
    file = weights.resolve(str(path))
    for note in (file.with_suffix(".json"), file.with_name(STATE)):
        try:
            return json.loads(note.read_text())["class_names"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
