"""Comparison of runs: figures, AP differences with an interval, differing config keys.

The interval is a paired bootstrap over the images of one validation set: images are drawn with
replacement, both runs are evaluated on the same draw, and the 2.5 and 97.5 percentiles of the
differences are reported. It covers these two models on similar images; it does not cover how much
trainings with different seeds would differ.
"""

import math

import numpy as np

from fcos_recipe.config.effects import differences
from fcos_recipe.config.load import plain_values
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation.bootstrap import FIGURES, Matched, figures, intervals
from fcos_recipe.evaluation.detections_file import JUDGED, read, same_truth
from fcos_recipe.report.blocks import Cell, Fold, Table, Text
from fcos_recipe.report.headline import duration, percent
from fcos_recipe.report.sections import labels
from fcos_recipe.runs.contents import Run

SAMPLES = 1000  #: draws; they give the interval's ends to about a twentieth of its width
_APART = 0.002  # tolerance in AP: the stored boxes are float32


def blocks(run: Run, others: list[Run], samples: int = SAMPLES) -> list:
    """The section "Comparison".

    Args:
        run: the run of the report; differences are its figures minus the other run's.
        others: the runs to compare it with.
        samples: bootstrap draws; 0: no intervals.
    """
    names = labels([run, *others])
    found: list = [_figures([run, *others], names)]
    for other, name in zip(others, names[1:]):
        found += _pair(run, other, names[0], name, samples)
        found.append(_configs(run, other, names[0], name))
    return found


def _figures(runs: list[Run], names: list[str]) -> Table:
    rows = []
    for run, name in zip(runs, names):
        best, e = run.best, run.evaluation
        rows.append([
            name, run.state, percent(run.ap), percent(e.figure("AP50") if e else None),
            percent(best[0]) if best else "-",
            f"{run.speed[0]:.2f}" if run.speed else "-",
            f"{run.speed[1]:.2f}" if run.speed else "-",
            duration(run.hours[0]) if run.hours else "-",
            str(run.cards or "-"), run.device or "-",
        ])  # fmt: skip
    return Table(
        "The runs",
        ["run", "state", "AP", "AP50", "best AP", "images/s per card", "in total", "time to train",
         "cards", "device"],
        rows, {0, 1, 9},
    )  # fmt: skip


def _pair(run: Run, other: Run, name: str, other_name: str, samples: int) -> list:
    title = f"{name} minus {other_name}"
    try:
        found = compared(run, other, samples)
    except UserError as error:
        if run.ap is None or other.ap is None:
            return [Text(f"{title}: no AP difference, because {error}.")]
        return [Text(f"{title}: AP {_signed(run.ap - other.ap)} points. No interval, because "
                     f"{error}.")]  # fmt: skip
    rows = []
    for shown in FIGURES:
        a, b = (side[shown] for side in found["figures"])
        if math.isnan(a) or math.isnan(b):
            continue
        bounds = found["intervals"].get(shown)
        rows.append([
            shown, percent(a), percent(b), _signed(b - a),
            f"{_signed(bounds[0])} to {_signed(bounds[1])}" if bounds else "-",
        ])  # fmt: skip
    table = Table(
        f"{title}, points; 95 % interval from {samples} paired draws of {found['images']} images",
        ["", other_name, name, "difference", "95 % interval"], rows,
    )  # fmt: skip
    classes = [c for c in found["classes"] if not math.isnan(c[1])]
    classes.sort(key=lambda c: -abs(c[2] - c[1]))
    most = max((abs(b - a) for _, a, b in classes), default=0) or 1
    per_class = Table(
        "AP per class, largest differences first (no intervals: classes have too few objects)",
        ["class", other_name, name, "difference"],
        [
            [label, percent(a), percent(b), Cell(_signed(b - a), bar=abs(b - a) / most)]
            for label, a, b in classes[:100]
        ],
    )  # fmt: skip
    made: list = [table, Fold("Differences per class", [per_class])]
    if bounds := found["intervals"].get("AP"):
        a, b = (side["AP"] for side in found["figures"])
        made.insert(0, Text(_words(b - a, bounds, title)))
    return made


def _words(difference: float, bounds: tuple[float, float], title: str) -> str:
    low, high = bounds
    if low > 0 or high < 0:
        verdict = "the choice of validation images does not explain the difference"
    else:
        verdict = "the choice of validation images alone can explain the difference"
    return (
        f"{title}: AP {_signed(difference)} points, {_signed(low)} to {_signed(high)} in 95 % of "
        f"the draws: {verdict}. "
        "This does not include the variation between training seeds."
    )


def compared(run: Run, other: Run, samples: int) -> dict:
    """Evaluate the detections kept by both runs, and resample their images.

    Returns:
        `images`, their number; `figures`, those of `bootstrap.FIGURES` of `other` and of `run`, NaN
        where there is no annotation; `intervals` of their differences, {} without samples;
        `classes`: name, AP of `other` and of `run`.

    Raises:
        UserError: the runs can't be compared; the message gives the reason.
    """
    arrays = []
    for r in (other, run):
        if not (r.path / JUDGED).is_file():
            raise UserError(f"{r.name} has not kept its detections ({JUDGED}, written with the "
                            "analysis at the end)")  # fmt: skip
        arrays.append(read(r.path / JUDGED))
    if different := same_truth(*arrays):
        raise UserError(different)
    sides = [Matched(part) for part in arrays]
    images = sides[0].images
    tables = [side.precision(np.ones((1, images), np.int32)) for side in sides]
    told = [{key: float(value[0]) for key, value in figures(t).items()} for t in tables]
    for r, side in zip((other, run), told):
        if r.ap is not None and abs(np.nan_to_num(side["AP"], nan=-1) - r.ap) > _APART:
            raise UserError(f"{r.name}'s {JUDGED} does not match its last evaluation")
    per_class = [t[0, 0].mean(axis=0).tolist() for t in tables]
    return {
        "images": images,
        "figures": told,
        "intervals": intervals(sides[0], sides[1], samples),
        "classes": list(zip(arrays[0]["names"].tolist(), *per_class)),
    }


def _configs(run: Run, other: Run, name: str, other_name: str) -> Table | Text:
    if not (run.config and other.config):
        return Text(f"{other_name}: config.yml is missing in one of the two runs, so their "
                    "configs can't be compared.")  # fmt: skip
    try:
        rows = differences(*(plain_values(r.config, str(r.path / "config.yml"))
                             for r in (other, run)))  # fmt: skip
    except UserError as error:
        return Text(f"The configs cannot be compared: {error}")
    if not rows:
        return Text(f"The configs of {name} and {other_name} are the same.")
    return Table(f"Config keys that differ: {len(rows)}", ["key", other_name, name],
                 [list(row) for row in rows], {0, 1, 2})  # fmt: skip


def _signed(points: float) -> str:
    return f"{100 * points:+.2f}"
