"""The arithmetic between a config and a run: total batch, learning rate, warm-up, steps.

LR follows the linear scaling rule (Goyal et al. 2017, arXiv 1706.02677): it grows with the images
per step; warm-up keeps its number of images; milestones are epochs and stay.
"""

import math
from dataclasses import dataclass
from typing import Any

from fcos_recipe.config.load import Config
from fcos_recipe.errors import UserError


@dataclass(frozen=True)
class ScalePlan:
    """What a run on this many cards and images does.

    Args:
        cards: processes.
        batch: images per card and forward pass.
        accumulate: forward passes per step.
        total_batch: images per step = cards x batch x accumulate.
        base_batch: images per step that the config's LR belongs to; None where it names none.
        lr: the peak LR.
        scaled: whether LR and warm-up follow the total batch (also true where nothing changes).
        warmup_steps: steps until the peak; 0 without warm-up.
        steps_per_epoch: optimizer steps; passes that do not fill a step at an epoch's end are left
            out, as `drop_last` leaves out images that do not fill a batch.
        max_steps: of the whole run.
        learning_rate: arguments for stock's LearningRate; called with `steps_per_epoch`.
        lines: the block to print at start.
        warnings: what looks wrong or was mended.
    """

    cards: int
    batch: int
    accumulate: int
    total_batch: int
    base_batch: int | None
    lr: float
    scaled: bool
    warmup_steps: int
    steps_per_epoch: int
    max_steps: int
    learning_rate: dict[str, Any]
    lines: list[str]
    warnings: list[str]


def plan(cfg: Config, cards: int, images: int) -> ScalePlan:
    """Work out a run's steps and learning rate.

    Args:
        cfg: the config.
        cards: processes that train together.
        images: images of the training set, after filtering.

    Raises:
        UserError: a number that must be positive is not, or the images do not fill one step.
    """
    reader, rate = cfg.data.get("TrainReader", {}), cfg.data.get("LearningRate", {})
    batch, accumulate = reader.get("batch_size", 1), cfg.data["accumulate"]
    base_lr, base_batch = rate.get("base_lr", 0.01), rate.get("base_batch")
    for key, value in {
        "TrainReader.batch_size": batch, "LearningRate.base_lr": base_lr,
        "LearningRate.base_batch": 1 if base_batch is None else base_batch,
    }.items():  # fmt: skip
        if value <= 0:
            raise UserError(f"{cfg.origin(key)}: {key}: {value} must be positive")
    total = cards * batch * accumulate
    rounding = math.floor if reader.get("drop_last", True) else math.ceil
    steps = rounding(math.ceil(images / cards) / batch) // accumulate
    if steps == 0:
        raise UserError(
            f"{cfg.origin('TrainReader.batch_size')}: TrainReader.batch_size: {images} images do "
            f"not fill one step of {total} ({cards} cards x {batch} x {accumulate}); use fewer "
            "cards or a smaller batch"
        )
    max_steps = cfg.data["epoch"] * steps
    decay, warmup = _schedulers(rate)
    why_not = _why_not_scaled(cfg, decay)
    factor = 1.0 if why_not else total / base_batch
    lr = base_lr * factor
    warnings = []
    if why_not and base_batch and total != base_batch:
        warnings.append(
            f"LR {lr:g} is used as written with {total} images per step, made for {base_batch}"
        )

    written = _warmup_steps(warmup, steps) if decay.get("use_warmup", True) else 0
    # `epochs` already counts images, so only `steps` is scaled.
    warm = written if warmup.get("epochs") is not None else max(1, round(written / factor))
    warm = warm if written else 0
    scaled_from = ""
    limit, until = _plateau_end(decay, steps, max_steps)
    if warm >= limit and written:
        warnings.append(
            f"warm-up of {warm} steps would outlast {until} (step {limit}): shortened to "
            f"{limit // 2}"
        )
        warm = limit // 2
    elif factor != 1 and warm != written:
        scaled_from = f" = {written} x {base_batch} / {total}"
    warnings += _schedule_warnings(decay, cfg.data["epoch"])

    schedulers = [{**decay, "use_warmup": False}]
    if warm:
        kept = {k: v for k, v in warmup.items() if k != "epochs"}
        schedulers = [decay, {**kept, "steps": warm}]
    lines = [
        f"batch    {cards} card{'s'[: cards - 1]} x {batch} images x {accumulate} accumulated"
        f" = {total} per step",
        f"LR       {lr:g} "
        + (f"(not scaled: {why_not})" if why_not else f"= {base_lr:g} x {total} / {base_batch}")
        + f"  [{cfg.origin('LearningRate.base_lr')}]",
        f"warm-up  {warm} steps{scaled_from}",
        f"decay    {_decay_words(decay, lr)}",
        f"steps    {steps} per epoch x {cfg.data['epoch']} epochs = {max_steps} ({images} images)",
    ]
    learning_rate = {"base_lr": lr, "schedulers": schedulers}
    return ScalePlan(cards, batch, accumulate, total, base_batch, lr, not why_not, warm, steps,
                     max_steps, learning_rate, lines, warnings)  # fmt: skip


def decay_factors(decay: dict[str, Any]) -> list[float]:
    """Factors on the peak LR after each milestone.

    A list `gamma` is taken as written. A single number g means g, g/10, g/100, ...: what stock's
    PiecewiseDecay does with it, and equal to g**i only for g = 0.1.
    """
    gamma, milestones = decay.get("gamma", [0.1, 0.01]), decay.get("milestones", [8, 11])
    if isinstance(gamma, list):
        return gamma
    return [gamma / 10**i for i in range(len(milestones))]


def _schedulers(rate: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decay and warm-up, as stock reads them: first and second; its defaults where none stand."""
    given = rate.get("schedulers", [{"name": "PiecewiseDecay"}, {"name": "LinearWarmup"}])
    return given[0], given[1] if len(given) > 1 else {}


def _why_not_scaled(cfg: Config, decay: dict[str, Any]) -> str:
    if not cfg.data["scale_lr"]:
        return "scale_lr is false"
    if decay.get("values") is not None:
        return "PiecewiseDecay.values gives the LRs themselves"
    if "base_batch" not in cfg.data.get("LearningRate", {}):
        return "no LearningRate.base_batch beside base_lr"
    return ""


def _warmup_steps(warmup: dict[str, Any], steps_per_epoch: int) -> int:
    """Steps as stock counts them: `epochs` before `steps`, at least one; 0 without a warm-up."""
    if not warmup:
        return 0
    if warmup.get("epochs") is not None:
        return max(1, round(warmup["epochs"] * steps_per_epoch))
    return max(1, warmup.get("steps", 1000 if warmup["name"] == "ExpWarmup" else 500))


def _plateau_end(decay: dict[str, Any], steps_per_epoch: int, max_steps: int) -> tuple[int, str]:
    """The step by which the warm-up must have ended, and what comes there."""
    if decay["name"] == "PiecewiseDecay":
        first = min(decay.get("milestones", [8, 11]), default=math.inf) * steps_per_epoch
        if first <= max_steps:
            return int(first), "the first milestone"
    return max_steps, "the run"


def _schedule_warnings(decay: dict[str, Any], epochs: int) -> list[str]:
    if decay["name"] == "CosineDecay":
        end = decay.get("max_epochs", 1000)
        return [f"CosineDecay ends at epoch {end}, the run at {epochs}"] if end != epochs else []
    late = [m for m in decay.get("milestones", [8, 11]) if m >= epochs]
    return [f"milestones {late} lie beyond the run's {epochs} epochs"] if late else []


def _decay_words(decay: dict[str, Any], lr: float) -> str:
    if decay["name"] == "CosineDecay":
        low, end = lr * decay.get("min_lr_ratio", 0.0), decay.get("max_epochs", 1000)
        return f"cosine to {low:g} at epoch {end}"
    milestones = decay.get("milestones", [8, 11])
    if decay.get("values") is not None:
        return f"{decay['values']} around epochs {milestones}"
    pairs = zip(decay_factors(decay), milestones, strict=True)
    return ", ".join(f"{lr * f:g} from epoch {m}" for f, m in pairs) or "none"
