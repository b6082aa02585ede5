"""Compare a run, or evaluated weights, with the published figures of its config.

`fcos verify_result`, the report and scripts/run_and_time.sh all use this. The run's resolved config
is compared with the project's config of the same name, so that it makes no difference whether a
value was set in a file or on the command line.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from fcos_recipe.config import load_config
from fcos_recipe.config.effects import changes, effect
from fcos_recipe.config.load import plain_values
from fcos_recipe.errors import UserError
from fcos_recipe.places import CONFIGS
from fcos_recipe.runs.contents import Run, value
from fcos_recipe.runs.published_results import Row, published

REPRODUCED, OUTSIDE, NOT_COMPARABLE = "reproduced", "outside", "not comparable"
ROUNDING = 0.005  #: AP points by which a result may exceed the band: figures have two decimals


@dataclass
class Found:
    """A result to compare with published figures."""

    name: str  #: of the config
    ap: float | None  #: box AP in percent, if there is one
    images: int | None  #: number of evaluated images, if known
    total_batch: int | None = None  #: images per optimizer step; None for weights
    epochs: int | None = None  #: of the run; None for weights
    speed: dict = field(default_factory=dict)  #: `Run.speed` by name; {} for weights
    differences: list[str] = field(default_factory=list)  #: why it is not comparable


class Comparison(NamedTuple):
    """A result compared with one published row."""

    row: Row
    reasons: list[str]  #: why they are not comparable; [] if they are
    miss: float  #: AP points between the row's band and the result; at most 0 inside the band
    side: str  #: "inside", "below" or "above" the band


class Verdict(NamedTuple):
    """Result of the comparison with all published rows."""

    word: str  #: REPRODUCED: inside a row's band; OUTSIDE all bands; NOT_COMPARABLE with any row
    found: Found
    rows: list[Comparison]  #: one per published row; [] if nothing is published

    @property
    def nearest(self) -> Comparison:
        """The comparable row with the nearest figure."""
        return min(self.rows, key=lambda row: (bool(row.reasons), row.miss))


def judge(found: Found) -> Verdict:
    """Compare a result with every published row of its config."""
    rows = [_compare(found, row) for row in published(found.name)]
    sides = {row.side for row in rows if not row.reasons}
    word = REPRODUCED if "inside" in sides else OUTSIDE if sides else NOT_COMPARABLE
    return Verdict(word, found, rows)


def _compare(found: Found, row: Row) -> Comparison:
    pairs = {f"evaluated images ({row.dataset})": (found.images, row.images)}
    if found.epochs is not None:
        pairs["epochs"] = found.epochs, row.epochs
        pairs["images per step"] = found.total_batch, row.total_batch
    reasons = [f"{name}: {'unknown' if here is None else here}, not {there}"
               for name, (here, there) in pairs.items() if here != there]  # fmt: skip
    off = (found.ap or 0) - row.ap
    miss = abs(off) - row.tolerance
    side = "inside" if miss <= ROUNDING else "below" if off < 0 else "above"
    return Comparison(row, reasons + found.differences, miss, side)


def found_in(run: Run) -> Found:
    """Collect the result in a run directory.

    Raises:
        UserError: no file names the config, or config.yml is damaged.
    """
    name, e = run.config_name, run.evaluation
    if name is None:
        raise UserError(f"{run.path}: neither facts.json nor environment.json names the config")
    differences = [] if run.ap is not None else ["there is no AP (train with --eval)"]
    if e and (e.max_dets != 100 or e.score_threshold > 0 or e.tta):
        differences.append("evaluated with other settings (limits or test-time augmentation)")
    if run.state == "evaluation":
        differences.append("this directory does not record how the weights were trained; use "
                           "verify_result --weights")  # fmt: skip
    elif not run.config:
        differences.append("config.yml, which records the training settings, is missing")
    else:
        if e and (e.epoch or 0) < (run.epochs or 0):
            differences.append(f"not finished: evaluated after epoch {e.epoch} of {run.epochs}")
        differences += differing(name, plain_values(run.config, str(run.path / "config.yml")))
    for split, data in run.facts.data.items() if run.facts else ():
        if split in ("train", "val") and data.used < data.images - data.without_boxes:
            differences.append(f"only {data.used} of the {data.images} {split} images")
    last = run.train[-1] if run.train else {}
    images, steps = value(last, "images_seen"), value(last, "step")
    return Found(
        name, None if run.ap is None else 100 * run.ap, e.images if e else None,
        round(images / steps) if images and steps else None, run.epochs,
        dict(zip(("images_per_second_per_card", "images_per_second"), run.speed or ())),
        differences,
    )  # fmt: skip


def differing(name: str, data: dict, only_weights: bool = False) -> list[str]:
    """List the settings that make a config not comparable with the project's config.

    Args:
        name: of the config.
        data: its resolved values.
        only_weights: only weights are evaluated; training settings do not matter.
    """
    known = {path.stem: path for path in (CONFIGS / "fcos").glob("*.yml")}
    if name not in known:
        return [f"{name}: configs/fcos has no config of that name to compare with"]
    return [
        f"{key}: {here}, not {there}"
        for key, here, there in changes(data, load_config(known[name]).data)
        if (effect(key).weights if only_weights else effect(key).run)
    ]
