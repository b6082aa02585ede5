"""One judgement of a run, or of evaluated weights, beside the published figures of its config.

`fcos verify_result`, the report and scripts/run_and_time.sh ask it and only differ in how they
word it. It compares the resolved config with the project's config of the same name, so that a
value counts the same whether a file or the command line has set it.
"""

from dataclasses import dataclass, field

from fcos_recipe.config import load_config
from fcos_recipe.config.effects import changes, effect
from fcos_recipe.config.load import plain_values
from fcos_recipe.config.schema import ROOT
from fcos_recipe.errors import UserError
from fcos_recipe.report.results import Row, published
from fcos_recipe.report.run import Run

REPRODUCED, OUTSIDE, NOT_COMPARABLE = "reproduced", "outside", "not comparable"
ROUNDING = 0.005  #: AP points: a figure on the edge of the band is shown with two decimals


@dataclass
class Found:
    """A result to compare with published figures.

    Args:
        name: of the config.
        ap: box AP in percent; None where there is none.
        images: evaluated images; None where that is not known.
        total_batch, epochs: images per optimizer step and epochs of the run; None for weights.
        speed: `Run.speed` by name; {} for weights.
        differences: in words, why this is another experiment than the project's config of that
            name; [] where it is the same.
    """

    name: str
    ap: float | None
    images: int | None
    total_batch: int | None = None
    epochs: int | None = None
    speed: dict = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """A result beside one published row.

    Args:
        row: the row.
        reasons: why the two cannot be compared; [] where they can.
        side: "inside", "below" or "above" the row's band; "" where they cannot be compared.
    """

    row: Row
    reasons: list[str]
    side: str

    @property
    def band(self) -> tuple[float, float]:
        """Lowest and highest AP in percent that is the same result."""
        return self.row.ap - self.row.tolerance, self.row.ap + self.row.tolerance

    def miss(self, ap: float) -> float:
        """AP points by which `ap` is outside of the band; negative inside."""
        return abs(ap - self.row.ap) - self.row.tolerance


@dataclass
class Verdict:
    """The judgement.

    Args:
        word: REPRODUCED: inside the band of a published row; OUTSIDE of all that can be compared;
            NOT_COMPARABLE with any.
        found: what was judged.
        rows: the comparison with each published row; [] where nothing is published.
    """

    word: str
    found: Found
    rows: list[Comparison]

    @property
    def nearest(self) -> Comparison:
        """The comparison that decided."""
        rows = [row for row in self.rows if not row.reasons] or self.rows[:1]
        return min(rows, key=lambda row: row.miss(self.found.ap or 0))


def judge(found: Found) -> Verdict:
    """Compare a result with every published row of its config."""
    rows = [_compare(found, row) for row in published(found.name)]
    sides = {row.side for row in rows if not row.reasons}
    word = REPRODUCED if "inside" in sides else OUTSIDE if sides else NOT_COMPARABLE
    return Verdict(word, found, rows)


def _compare(found: Found, row: Row) -> Comparison:
    of_run = found.epochs is not None or found.total_batch is not None
    pairs = {
        "epochs": (found.epochs, row.epochs),
        "images per step": (found.total_batch, row.total_batch),
    } if of_run else {}  # fmt: skip
    pairs[f"images judged ({row.dataset})"] = (found.images, row.images)
    reasons = [f"{name}: {'unknown' if here is None else here}, not {there}"
               for name, (here, there) in pairs.items() if here != there]  # fmt: skip
    compared = Comparison(row, reasons + found.differences, "")
    if not compared.reasons and found.ap is not None:
        inside = compared.miss(found.ap) <= ROUNDING
        compared.side = "inside" if inside else "below" if found.ap < row.ap else "above"
    return compared


def found_in(run: Run) -> Found:
    """What a run directory holds for the judgement.

    Raises:
        UserError: nothing names the run's config.
    """
    name, e = run.config_name, run.evaluation
    if name is None:
        raise UserError(f"{run.path}: neither facts.json nor environment.json names the config")
    differences = [] if run.ap is not None else ["there is no AP"]
    if e and (e.max_dets != 100 or e.score_threshold > 0 or e.tta):
        differences.append("it was evaluated in another way")
    if run.state == "evaluation":
        differences.append("how these weights were trained and evaluated is not known here; "
                           "verify_result --weights judges them")  # fmt: skip
    else:
        if run.evaluated is not None and run.epochs and run.evaluated < run.epochs:
            differences.append(
                f"{run.evaluated} of {run.epochs} epochs are evaluated: not finished"
            )
        differences += _of_config(run, name)
    for split, data in run.facts.data.items() if run.facts else ():
        if data.used < data.images - data.without_boxes:
            differences.append(f"only {data.used} of the {data.images} {split} images")
    return Found(
        name, None if run.ap is None else 100 * run.ap, e.images if e else None,
        run.total_batch, run.epochs,
        dict(zip(("images_per_second_per_card", "images_per_second"), run.speed or ())),
        differences,
    )  # fmt: skip


def _of_config(run: Run, name: str) -> list[str]:
    if not run.config:
        return ["config.yml is missing, which says how it was trained"]
    try:
        return differing(name, plain_values(run.config, "config.yml"))
    except UserError as error:
        return [str(error)]


def differing(name: str, data: dict, weights: bool = False) -> list[str]:
    """In words, the settings in which a config is another experiment than the project's.

    Args:
        name: of the config.
        data: its values, resolved.
        weights: only weights are evaluated: how to train does not matter.

    Raises:
        UserError: the project has no config of that name.
    """
    known = {path.stem: path for path in (ROOT / "configs" / "fcos").glob("*.yml")}
    if name not in known:
        raise UserError(f"{name}: no config of that name in configs/fcos to compare with")
    return [
        f"{key}: {here}, not {there}"
        for key, here, there in changes(data, load_config(known[name]).data)
        if (effect(key).weights if weights else effect(key).run)
    ]
