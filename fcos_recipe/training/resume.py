"""Collect, compare and restore the state with which an interrupted run continues exactly.

A resumed run equals the uninterrupted one because each step depends only on known values: order and
augmentation of the images are determined by (seed, epoch, index), Paddle's random generators are
seeded at every step, and everything that changes during a run is in the checkpoint.
"""

import json
import os
import random
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, TypedDict

import msgspec
import numpy as np

from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.config import Config
from fcos_recipe.config.effects import changes, effect
from fcos_recipe.console import log
from fcos_recipe.errors import UserError, UserErrors, without_secrets
from fcos_recipe.evaluation.collectives import everywhere, gather
from fcos_recipe.files.reading import given_path, read_json
from fcos_recipe.runs.environment import versions

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Judged(TypedDict):
    AP: float
    epoch: _Count


@dataclass
class Progress:
    """Progress of a run, stored in a checkpoint's state.json.

    Args:
        epoch: finished epochs.
        step: optimizer steps done in the current epoch.
        steps_done: optimizer steps of the run.
        images_seen: images of the run, on all ranks.
        history: {"epoch", "AP"} of each evaluation.
        best: the evaluation with the best AP.
        pending_eval: the evaluation after `epoch` is not yet done.
        results: files and folders of the run directory that the finished run made from its last
            evaluation; None: it has not made them yet.
        bad_steps: steps that were skipped or rolled back.
        lr_factor: factor on the LR, lowered by rollbacks.
    """

    epoch: _Count = 0
    step: _Count = 0
    steps_done: _Count = 0
    images_seen: _Count = 0
    history: list[_Judged] = field(default_factory=list)
    best: _Judged = field(default_factory=lambda: _Judged(AP=-1.0, epoch=0))
    pending_eval: bool = False
    results: list[str] | None = None
    bad_steps: _Count = 0
    lr_factor: Annotated[float, msgspec.Meta(gt=0)] = 1.0

    def evaluate_again(self, min_delta: float) -> None:
        """Take back the evaluation after `epoch`, so that it is done once more.

        Args:
            min_delta: by how much an AP must exceed the best one, as in `early_stop.min_delta`.
        """
        self.history = [row for row in self.history if row["epoch"] < self.epoch]
        self.best, self.pending_eval = Progress().best, True
        for row in self.history:
            if row["AP"] > self.best["AP"] + min_delta:
                self.best = {"AP": row["AP"], "epoch": row["epoch"]}


class _Sampler(TypedDict):
    batch: _Count
    images: _Count
    batch_size: _Count
    ranks: _Count


class _Settings(TypedDict):
    accumulate: _Count


class _Window(TypedDict):
    seconds: float
    batches: _Count
    images: _Count
    data_time: float
    names: list[str]
    losses: list[list[float]]


class _Average(TypedDict):
    step: _Count
    decay: float | None


class _Old(TypedDict, total=False):
    """What a resumed run reads of a checkpoint's state, of version 0.1 as well."""

    best: _Judged
    history: list[_Judged]
    steps_per_epoch: _Count
    plugins: list[dict[str, str]]
    threads: _Count
    scaler: dict[str, float | int | bool | None]
    ema: _Average | None
    window: _Window | None


class _State(_Old):
    """What is in it since version 0.2."""

    progress: Progress
    sampler: _Sampler
    settings: _Settings


class _Rank(TypedDict):
    numpy: tuple[str, list[int], int, int, float]
    random: tuple[int, list[int], float | None]
    bad_images: dict[str, int]


class _Ranks(TypedDict):
    ranks: list[_Rank]


def _usable(state: dict) -> None:
    """Raise msgspec.ValidationError or ValueError if a run cannot continue from this state."""
    msgspec.convert(state, _State if "progress" in state else _Old)
    where = {"epoch", "step", "steps_done"}  # a run without them would begin again
    if "progress" in state and (missing := sorted(where - set(state["progress"]))):
        raise ValueError(f"progress lacks {', '.join(missing)}")
    window = state.get("window") or {"losses": [], "names": []}
    if any(len(row) != len(window["names"]) for row in window["losses"]):
        raise ValueError("window.losses and window.names differ in length")


# ---- gather -------------------------------------------------------------------------------------


def of_ranks(loader) -> list[dict]:
    """Gather the state that differs between ranks; every rank must call this.

    Args:
        loader: the training reader.
    """
    kind, keys, *rest = np.random.get_state()
    return gather(
        {
            "numpy": [kind, keys.tolist(), *rest],
            "random": random.getstate(),
            "bad_images": loader.bad_images,
        }
    )


def collect(trainer, ranks: list[dict], window=None) -> tuple[dict, dict]:
    """Collect the content of a checkpoint for `storage.save`, copied to host memory.

    Args:
        trainer: the Trainer, between two steps.
        ranks: from `of_ranks`.
        window: measurements since the last log line, if there are any.
    """
    at = trainer.progress
    model, optimizer = trainer.model.state_dict(), trainer.optimizer.state_dict()
    objects = {"model.pdparams": model, "model.pdopt": {**optimizer, "last_epoch": at.epoch}}
    if trainer.ema:
        objects["model.pdema"], objects["model.pdparams"] = model, trainer.ema.apply()
        objects["average.pdema"] = trainer.ema.state_dict  # before bias correction
    sampler = trainer.loader.sampler
    state = {
        **trainer.weights_description(),
        "versions": versions(),
        "threads": threads(trainer.device),
        "plugins": hashes(trainer.config),
        "settings": json.loads(without_secrets(json.dumps(trainer.config.data))),
        "progress": asdict(at),
        "sampler": {
            "epoch": at.epoch, "batch": at.step * trainer.accumulate, "images": sampler.length,
            "batch_size": sampler.batch_size, "ranks": sampler.ranks, "seed": sampler.seed,
        },
        "schedule": trainer.schedule(),
        "scaler": scaler_state(trainer.scaler),
        "ema": trainer.ema.counters() if trainer.ema else None,
        "window": window.state() if window else None,
    }  # fmt: skip
    objects = {file: storage.host(value) for file, value in objects.items()}
    return {**objects, "ranks.json": {"ranks": ranks}}, json.loads(json.dumps(state))


def hashes(config: Config) -> list[dict[str, str]]:
    """Path and SHA-256 of each of the user's files, in their order."""
    return [{"path": plugin.path, "sha256": plugin.sha256} for plugin in config.plugins]


def threads(device: str) -> int:
    """Math threads of this process on the CPU, which affect the last bits of sums; else 0."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) if device == "cpu" else 0


def scaler_state(scaler) -> dict:
    """State of a GradScaler in plain numbers; {} if it is not in use."""
    return {
        key: np.asarray(value).item() if isinstance(value, np.ndarray) else value
        for key, value in scaler.state_dict().items()
    }


# ---- compare ------------------------------------------------------------------------------------


def compare(state: dict, config: Config, force: bool) -> list[str]:
    """Compare a config, and the user's files that it names, with those of a checkpoint.

    Args:
        state: the checkpoint's; it has `settings`, the resolved config.
        config: the current config.
        force: allow all differences.

    Returns:
        one line for each allowed difference.

    Raises:
        UserErrors: keys differ that change what the steps compute, one line each.
    """
    now = json.loads(without_secrets(json.dumps(config.data)))
    allowed: list[str] = []
    refused: list[str] = []
    before, after = ([(os.path.basename(p["path"]), p["sha256"]) for p in files]
                     for files in (state.get("plugins", []), hashes(config)))  # fmt: skip
    for old, new in zip_longest(before, after):
        if old != new and (old and new and old[1]) != (new and new[1]):
            shown = " -> ".join(f"{x[0]} ({x[1][:12]})" if x else "none" for x in (old, new))
            text = f"plugins: the code changed since the checkpoint: {shown}"
            (allowed if force else refused).append(text)
    for key, old, new in changes(state["settings"], now):
        if force or effect(key).resumable:
            allowed.append(f"changed since the checkpoint: {key}: {old} -> {new}")
        else:
            refused.append(f"{config.origin(key)}: {key}: {new}, in the checkpoint {old}")
    if refused:
        remedy = "--resume: this changes what the steps compute: undo it, or add --force"
        raise UserErrors([*refused, remedy])
    return allowed


# ---- restore ------------------------------------------------------------------------------------


def automatic(path: Path) -> str | None:
    """Source for `--resume auto`, the same on every rank; None: start from the beginning.

    Args:
        path: the run directory.
    """
    if gather(bool(storage.found(path / "checkpoints")))[0]:
        return str(path)
    log.info("resume: no checkpoint in %s: starting from the beginning", path)
    return None


def find(source: str) -> tuple[Path, dict]:
    """Find and verify the checkpoint for `--resume SOURCE`; every rank must call this.

    Args:
        source: run directory, checkpoint folder, or a file's path with or without its ending.

    Returns:
        its folder and state; for PaddleDetection's files the path of the .pdparams and {}.

    Raises:
        UserError: there is no intact checkpoint.
    """
    path = given_path(source)
    if gather((path / "checkpoints").is_dir())[0]:  # other hosts may not see rank 0's files
        chosen, rejected = gather(storage.newest(path / "checkpoints", _usable))[0]
        for line in rejected:
            log.warning("rejected: %s", line)
        if chosen is None:
            raise UserError(
                f"--resume {source}: it has no intact checkpoint; start again without --resume"
            )
        path = chosen
    if gather((path / storage.STATE).is_file())[0]:
        everywhere(path, storage.STATE)
        return path, storage.read_state(path, _usable)
    return weights.resolve(source), {}


def restore(trainer, path: Path, state: dict) -> None:
    """Restore a checkpoint into a trainer.

    Args:
        trainer: the Trainer; its schedule is that for the current cards and images.
        path, state: from `find`.

    Raises:
        UserError: files are missing, damaged, or belong to another model.
    """
    at = trainer.progress = _progress(trainer, state)
    folder, stem = (path, "model") if state else (path.parent, path.stem)
    hashes = state.get("files", {})

    def read(file: str) -> dict:
        return weights.read(folder / file, hashes.get(file))

    params = f"{stem}.pdparams"
    if trainer.ema and (folder / f"{stem}.pdema").is_file():
        average = "average.pdema" if (folder / "average.pdema").is_file() and state else params
        averaged, params = read(average), f"{stem}.pdema"
    weights.fit(trainer.model, read(params), folder / params, exact=True)
    if not (folder / f"{stem}.pdopt").is_file():
        raise UserError(
            f"--resume {folder / stem}: {stem}.pdopt, which has the optimizer and the epoch, is "
            f"missing; to start a new run from these weights use -o pretrain_weights={path}"
        )
    saved = read(f"{stem}.pdopt")
    last = saved.pop("last_epoch", 0)
    if not isinstance(last, int) or not isinstance(saved.get("master_weights", {}), dict):
        raise UserError(f"{folder / stem}.pdopt: not the state of an optimizer")
    if "progress" not in state:  # from PaddleDetection or version 0.1: only whole epochs
        at.epoch = last
        at.steps_done = trainer.steps_before(last)
        at.images_seen = last * trainer.loader.sampler.length
    trainer.set_schedule(at.lr_factor)
    optimizer = trainer.optimizer
    for name, value in optimizer.state_dict().items():
        saved.setdefault(name, value)
    if "master_weights" in saved:
        masters = saved["master_weights"].items()
        saved["master_weights"] = {k: weights.tensor(v) for k, v in masters}
    try:
        optimizer.set_state_dict(saved)
    except Exception as error:  # Paddle raises many classes
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / stem}.pdopt: not the state of this optimizer: {why}") from None
    if state.get("schedule") != trainer.schedule():
        trainer.lr.step(at.steps_done)  # otherwise the saved LR was restored to the bit
    if trainer.ema and params.endswith(".pdema"):
        trainer.ema.restore(averaged, state.get("ema") or {"step": at.steps_done})
    if state.get("scaler"):
        trainer.scaler.load_state_dict(state["scaler"])
    if "ranks.json" in hashes:
        path = folder / "ranks.json"
        try:
            _restore_ranks(trainer, read_json(path, _Ranks)["ranks"])
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{path}: not the states of random generators: {error}") from None


def _restore_ranks(trainer, ranks: list[dict]) -> None:
    for rank in ranks:
        for message, times in rank["bad_images"].items():
            trainer.loader.bad_images.setdefault(message, times)
    if len(ranks) != trainer._nranks:
        return
    own = ranks[trainer.rank]
    kind, keys, *rest = own["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    version, numbers, gauss = own["random"]
    random.setstate((version, tuple(numbers), gauss))


def _progress(trainer, state: dict) -> Progress:
    """Convert the saved progress to steps of the current size."""
    if "progress" not in state:
        known = {key: state[key] for key in ("best", "history") if key in state}
        old = state.get("steps_per_epoch", trainer.steps_per_epoch)
        if old != trainer.steps_per_epoch:
            log.warning("resume: steps per epoch changed from %d to %d; the LR follows the epochs",
                        old, trainer.steps_per_epoch)  # fmt: skip
        return Progress(**known)
    at, old = msgspec.convert(state["progress"], Progress), state["sampler"]
    sampler, plan = trainer.loader.sampler, trainer.plan
    if old["images"] != sampler.length:
        log.warning("resume: training images changed from %d to %d", old["images"], sampler.length)
    before = (old["ranks"], old["batch_size"], state["settings"]["accumulate"])
    now = (sampler.ranks, sampler.batch_size, trainer.accumulate)
    if before == now and old["images"] == sampler.length:
        return at
    into = old["batch"] * old["batch_size"] * old["ranks"]  # images into the epoch
    at.step = into // plan.total_batch
    if at.step >= trainer.steps_in(at.epoch):
        at.epoch, at.step, at.pending_eval = at.epoch + 1, 0, True
        into = 0
    again = into - at.step * plan.total_batch
    at.steps_done = trainer.steps_before(at.epoch) + at.step
    log.warning(
        "resume: %d cards x %d images x %d accumulated changed to %d x %d x %d: continues in epoch "
        "%d at step %d of %d%s; the LR follows the epochs",
        *before, *now, at.epoch + 1, at.step, trainer.steps_in(at.epoch),
        f", {again} images of the epoch are repeated" if again else "",
    )  # fmt: skip
    if into and (sampler.log_aspect is not None or before[0] != now[0]):
        log.warning("resume: the rest of epoch %d is divided again among the ranks: a few of its "
                    "images may be used twice or not at all", at.epoch + 1)  # fmt: skip
    return at
