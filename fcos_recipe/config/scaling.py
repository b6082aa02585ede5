"""Compute a run's total batch, learning rate, warm-up and steps from its config.

The LR follows the linear scaling rule (Goyal et al. 2017, arXiv 1706.02677): it is proportional to
the images per step. Warm-up keeps its number of images. Milestones are epochs and do not change.
"""

import math
from dataclasses import dataclass
from typing import Any

from fcos_recipe.config.load import Config
from fcos_recipe.console import plural
from fcos_recipe.errors import UserError


@dataclass(frozen=True)
class ScalePlan:
    """Schedule of a run with a given number of cards and images.

    Args:
        cards: world size.
        batch: images per card and forward pass.
        accumulate: forward passes per step.
        total_batch: images per step = cards x batch x accumulate.
        base_batch: images per step for which the config's LR was tuned; None if it is not given.
        lr: the peak LR.
        scaled: whether LR and warm-up are scaled with the total batch, also by a factor of 1.
        warmup_steps: steps until the peak LR; 0 without warm-up.
        steps_per_epoch: optimizer steps; batches at an epoch's end that do not fill a step are
            dropped, as `drop_last` drops images that do not fill a batch.
        max_steps: steps of the whole run.
        learning_rate: arguments of PaddleDetection's LearningRate.
        lines: text to print at start.
        warnings: what looks wrong or was corrected.
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


def plan_scaling(cfg: Config, cards: int, images: int) -> ScalePlan:
    """Compute a run's steps and learning rate.

    Args:
        cfg: the config.
        cards: world size.
        images: images of the training set after filtering.

    Raises:
        UserError: the images do not fill one step.
    """
    reader, rate = cfg.data.get("TrainReader", {}), cfg.data.get("LearningRate", {})
    batch, accumulate = reader.get("batch_size", 1), cfg.data["accumulate"]
    base_lr, base_batch = rate.get("base_lr", 0.01), rate.get("base_batch")
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
            f"LR {lr:g} is not scaled: it was tuned for {base_batch} images per step, this run has "
            f"{total}"
        )

    written = _warmup_steps(warmup, steps) if decay.get("use_warmup", True) else 0
    # A warm-up in epochs already keeps its number of images, so only `steps` is scaled.
    warm = written if warmup.get("epochs") is not None else max(1, round(written / factor))
    warm = warm if written else 0
    scaled_from = ""
    limit, until = _plateau_end(decay, steps, max_steps)
    if warm >= limit and written:
        warnings.append(
            f"warm-up of {warm} steps would last beyond {until} (step {limit}); shortened to "
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
        f"steps    {steps} per epoch x {plural(cfg.data['epoch'], 'epoch')} = {max_steps} "
        f"({plural(images, 'image')})",
    ]
    learning_rate = {"base_lr": lr, "schedulers": schedulers}
    return ScalePlan(cards, batch, accumulate, total, base_batch, lr, not why_not, warm, steps,
                     max_steps, learning_rate, lines, warnings)  # fmt: skip


def decay_factors(decay: dict[str, Any]) -> list[float]:
    """Factors on the peak LR after each milestone.

    A list `gamma` is used as it is. A single number g means g, g/10, g/100, ..., as in
    PaddleDetection's PiecewiseDecay; this equals g**i only for g = 0.1.
    """
    gamma, milestones = decay.get("gamma", [0.1, 0.01]), decay.get("milestones", [8, 11])
    if isinstance(gamma, list):
        return gamma
    return [gamma / 10**i for i in range(len(milestones))]


def _schedulers(rate: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return decay and warm-up, the first and second scheduler, or PaddleDetection's defaults."""
    given = rate.get("schedulers", [{"name": "PiecewiseDecay"}, {"name": "LinearWarmup"}])
    return given[0], given[1] if len(given) > 1 else {}


def _why_not_scaled(cfg: Config, decay: dict[str, Any]) -> str:
    if not cfg.data["scale_lr"]:
        return "scale_lr is false"
    if decay.get("values") is not None:
        return "PiecewiseDecay.values gives absolute LRs"
    if "base_batch" not in cfg.data.get("LearningRate", {}):
        return "no LearningRate.base_batch next to base_lr"
    return ""


def _warmup_steps(warmup: dict[str, Any], steps_per_epoch: int) -> int:
    """Warm-up steps as in PaddleDetection: `epochs` overrides `steps`; 0 without a warm-up."""
    if not warmup:
        return 0
    if warmup.get("epochs") is not None:
        return max(1, round(warmup["epochs"] * steps_per_epoch))
    return max(1, warmup.get("steps", 1000 if warmup["name"] == "ExpWarmup" else 500))


def _plateau_end(decay: dict[str, Any], steps_per_epoch: int, max_steps: int) -> tuple[int, str]:
    """Return the step before which the warm-up must end, and what happens at that step."""
    if decay["name"] == "PiecewiseDecay":
        first = min(decay.get("milestones", [8, 11]), default=math.inf) * steps_per_epoch
        if first <= max_steps:
            return int(first), "the first milestone"
    return max_steps, "the run"


def _schedule_warnings(decay: dict[str, Any], epochs: int) -> list[str]:
    if decay["name"] == "CosineDecay":
        end = decay.get("max_epochs", 1000)
        text = f"CosineDecay ends at epoch {end}, but the run has {epochs} epochs"
        return [text] if end != epochs else []
    late = [m for m in decay.get("milestones", [8, 11]) if m >= epochs]
    return [f"milestones {late} are never reached: the run has {epochs} epochs"] if late else []


def _decay_words(decay: dict[str, Any], lr: float) -> str:
    if decay["name"] == "CosineDecay":
        low, end = lr * decay.get("min_lr_ratio", 0.0), decay.get("max_epochs", 1000)
        return f"cosine to {low:g} at epoch {end}"
    milestones = decay.get("milestones", [8, 11])
    if decay.get("values") is not None:
        return f"{decay['values']} around epochs {milestones}"
    pairs = zip(decay_factors(decay), milestones, strict=True)
    return ", ".join(f"{lr * f:g} from epoch {m}" for f, m in pairs) or "none"
