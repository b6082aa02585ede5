"""What a run needs to go on as if nothing had happened: gathered, compared, put back.

A resumed run equals the uninterrupted one because nothing else decides about a step: the order of
the images and each one's augmentation follow from (seed, epoch, index), Paddle's generators are
seeded anew at every step, and everything that grows is in the checkpoint.
"""

import json
import os
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.config import Config
from fcos_recipe.config.effects import changes, effect
from fcos_recipe.console import log
from fcos_recipe.errors import UserError, UserErrors, without_secrets
from fcos_recipe.evaluation.collectives import everywhere, gather
from fcos_recipe.runs.environment import versions


@dataclass
class Progress:
    """How far a run has come. All of it is in a checkpoint's state.json.

    Args:
        epoch: whole epochs done.
        step: optimizer steps done in the next one.
        steps_done: in all.
        images_seen: in all, on all ranks.
        history: {"epoch", "AP"} of each evaluation.
        best: the one with the best AP.
        pending_eval: the evaluation after `epoch` is still to come.
        bad_steps: steps that were skipped or rolled back.
        lr_factor: on the LR, lowered by rollbacks.
    """

    epoch: int = 0
    step: int = 0
    steps_done: int = 0
    images_seen: int = 0
    history: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=lambda: {"AP": -1.0, "epoch": 0})
    pending_eval: bool = False
    bad_steps: int = 0
    lr_factor: float = 1.0


# ---- gather -------------------------------------------------------------------------------------


def of_ranks(loader) -> list[dict]:
    """What differs between ranks; every rank must call it.

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
    """What `checkpoint.save` is to write, copied to host memory.

    Args:
        trainer: the Trainer, between two steps.
        ranks: from `of_ranks`.
        window: the stretch since the last log line, if one is open.
    """
    at = trainer.progress
    model, optimizer = trainer.model.state_dict(), trainer.optimizer.state_dict()
    objects = {"model.pdparams": model, "model.pdopt": {**optimizer, "last_epoch": at.epoch}}
    if trainer.ema:
        objects["model.pdema"], objects["model.pdparams"] = model, trainer.ema.apply()
        objects["average.pdema"] = trainer.ema.state_dict  # before bias correction
    sampler = trainer.loader.sampler
    state = {
        **trainer.facts(),
        "versions": versions(),
        "threads": threads(trainer.device),
        "settings": json.loads(without_secrets(json.dumps(trainer.config.data))),
        "progress": asdict(at),
        "sampler": {
            "epoch": at.epoch, "batch": at.step * trainer.accumulate, "images": sampler.length,
            "batch_size": sampler.batch_size, "ranks": sampler.ranks, "seed": sampler.seed,
        },
        "schedule": trainer.schedule(),
        "scaler": scaler_state(trainer.scaler),
        "ema": trainer.ema.facts() if trainer.ema else None,
        "window": window.state() if window else None,
    }  # fmt: skip
    objects = {file: storage.host(value) for file, value in objects.items()}
    return {**objects, "ranks.json": {"ranks": ranks}}, json.loads(json.dumps(state))


def threads(device: str) -> int:
    """Math threads of this process on the CPU, whose number decides the last bits of sums; or 0."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) if device == "cpu" else 0


def scaler_state(scaler) -> dict:
    """State of a GradScaler in plain numbers; {} when it is off."""
    return {
        key: np.asarray(value).item() if isinstance(value, np.ndarray) else value
        for key, value in scaler.state_dict().items()
    }


# ---- compare ------------------------------------------------------------------------------------


def compare(saved: dict, config: Config, force: bool) -> list[str]:
    """Tell how a config differs from that of a checkpoint.

    Args:
        saved: the checkpoint's resolved config.
        config: the present one.
        force: accept differences that matter.

    Returns:
        lines about differences.

    Raises:
        UserErrors: keys differ that change what the steps compute, one line each.
    """
    now = json.loads(json.dumps(config.data))
    told, refused = [], []
    for key, old, new in changes(saved, now):
        if force or effect(key).resumable:
            told.append(f"changed since the checkpoint: {key}: {old} -> {new}")
        else:
            refused.append(f"{config.origin(key)}: {key}: {new}, in the checkpoint {old}")
    if refused:
        remedy = "--resume: this changes what the steps compute: undo it, or add --force"
        raise UserErrors([*refused, remedy])
    return told


# ---- put back -----------------------------------------------------------------------------------


def automatic(path: Path) -> str | None:
    """What `--resume auto` means, alike on every rank; None: start from the beginning.

    Args:
        path: the run directory.
    """
    if gather(bool(storage.found(path / "checkpoints")))[0]:
        return str(path)
    log.info("resume: no checkpoint in %s yet: from the beginning", path)
    return None


def find(source: str) -> tuple[Path, dict]:
    """The checkpoint that `--resume SOURCE` means, checked; every rank must call it.

    Args:
        source: run directory, checkpoint folder, or a file's path with or without its ending.

    Returns:
        its folder and state; for PaddleDetection's files the path of the .pdparams and {}.

    Raises:
        UserError: nothing there, or nothing intact.
    """
    path = Path(source)
    if gather((path / "checkpoints").is_dir())[0]:  # hosts may have file systems of their own
        chosen, rejected = gather(storage.newest(path / "checkpoints"))[0]
        for line in rejected:
            log.warning("rejected: %s", line)
        if chosen is None:
            raise UserError(
                f"--resume {source}: no intact checkpoint in it; start anew without --resume"
            )
        path = chosen
    if gather((path / storage.STATE).is_file())[0]:
        everywhere(path, storage.STATE)
        return path, storage.read_state(path)
    return weights.resolve(source), {}


def restore(trainer, path: Path, state: dict) -> None:
    """Put a checkpoint back into a trainer.

    Args:
        trainer: the Trainer; its schedule is made for the present cards and images.
        path, state: from `find`.

    Raises:
        UserError: files missing, damaged, or of another model.
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
            f"--resume {folder / stem}: {stem}.pdopt is missing beside the weights, so there is no "
            f"epoch to go on from; to start from these weights use -o pretrain_weights={path}"
        )
    saved = read(f"{stem}.pdopt")
    last = int(saved.pop("last_epoch", 0))
    if "progress" not in state:  # PaddleDetection's, or of version 0.1: whole epochs
        at.epoch = last
        at.steps_done, at.images_seen = trainer.steps_before(last), last * len(trainer.dataset)
    trainer.set_schedule(at.lr_factor)
    optimizer = trainer.optimizer
    for name, value in optimizer.state_dict().items():
        saved.setdefault(name, value)
    if "master_weights" in saved:
        masters = saved["master_weights"].items()
        saved["master_weights"] = {k: weights.tensor(v) for k, v in masters}
    optimizer.set_state_dict(saved)
    if state.get("schedule") != trainer.schedule():
        trainer.lr.step(at.steps_done)  # else it is restored to the last bit
    if trainer.ema and params.endswith(".pdema"):
        trainer.ema.restore(averaged, state.get("ema") or {"step": at.steps_done})
    if state.get("scaler"):
        trainer.scaler.load_state_dict(state["scaler"])
    if "ranks.json" in hashes:
        _restore_ranks(trainer, json.loads((folder / "ranks.json").read_text())["ranks"])


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
    """Where to go on, in steps of the present size."""
    if "progress" not in state:
        known = {key: state[key] for key in ("best", "history") if key in state}
        old = state.get("steps_per_epoch", trainer.steps_per_epoch)
        if old != trainer.steps_per_epoch:
            log.warning("resume: %d steps per epoch became %d; LR follows the epochs",
                        old, trainer.steps_per_epoch)  # fmt: skip
        return Progress(**known)
    at, old = Progress(**state["progress"]), state["sampler"]
    sampler, plan = trainer.loader.sampler, trainer.plan
    if old["images"] != sampler.length:
        log.warning("resume: %d training images became %d", old["images"], sampler.length)
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
        "resume: %d cards x %d images x %d accumulated became %d x %d x %d: goes on in epoch %d at "
        "step %d of %d%s; LR follows the epochs",
        *before, *now, at.epoch + 1, at.step, trainer.steps_in(at.epoch),
        f", {again} images of it are seen again" if again else "",
    )  # fmt: skip
    if into and (sampler.log_aspect is not None or before[0] != now[0]):
        log.warning("resume: the rest of epoch %d is dealt out anew: a few of its images may come "
                    "twice or not at all", at.epoch + 1)  # fmt: skip
    return at
