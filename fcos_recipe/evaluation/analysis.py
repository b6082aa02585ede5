"""What the twelve figures don't say: curves, confusions, what each kind of error costs.

All of it is hotcoco's and from the matching that the figures come from: the two can't disagree.
Written to a folder as analysis.json and, if matplotlib can, as pictures.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.console import log
from fcos_recipe.evaluation.detections_file import JUDGED, save
from fcos_recipe.evaluation.examples import draw_examples, outcomes, ranked
from fcos_recipe.evaluation.metric import CocoMetric
from fcos_recipe.files.atomic import write_json

ANALYSIS, PLOTS = "analysis.json", "plots"
# TIDE (Bolya et al., 2020): why a detection is wrong, and what was missed
ERRORS = {
    "Cls": "right place, wrong class",
    "Loc": "right class, box too far off (IoU 0.1 to 0.5)",
    "Both": "wrong class and box too far off",
    "Dupe": "second box on an object already found",
    "Bkg": "box on background",
    "Miss": "object without any box",
}


def analyse(metric: CocoMetric) -> dict | None:
    """Curves, confusions and errors of the metric's last `result()`.

    Args:
        metric: its `coco_eval` is read.

    Returns:
        JSON-ready dict, None without hotcoco's matching or where nothing can be matched:

        - `pr`: `recall` [101] and mean `precision` [101] at IoU 0.50, 0.75 and 0.50:0.95.
        - `per_class`: id, name, `pr50` [101] precision at IoU 0.50, `best_f1` and the `score`
          threshold that gives it: a starting point for --draw-threshold.
        - `score_threshold`: the median of those, weighted by instances; used for `confusion`.
        - `confusion`: `names` (classes, then "background") and `matrix`, [K+1][K+1] counts, rows
          are annotations, columns detections, at IoU 0.50.
        - `errors`: kind (see `ERRORS`) -> `count`, `cost` in AP50 (what AP50 would gain if errors
          of this kind alone were mended), with `AP50`.
        - `calibration`: bins of score with the share of right boxes; `ece`, the mean gap.
        - `worst_images`: image ids with most missed and false boxes at that score threshold; boxes
          that score less do not count.
        - `absent`: part -> why it could not be made; each part is made on its own.
    """
    coco_eval = metric.coco_eval
    if coco_eval is None or not len(metric.judged["found"]["score"]):
        return None
    if not any(metric.instances().values()):
        return None
    found: dict = {}
    absent: dict[str, str] = {}

    def part(name: str, make: Callable[[], Any]) -> None:
        try:
            found[name] = make()
        except Exception as error:  # of hotcoco, of any kind
            absent[name] = str(error) or type(error).__name__
            log.warning("analysis: %s: not made: %s", name, absent[name])

    part("pr", lambda: _curves(coco_eval.eval["precision"][:, :, :, 0, 2]))
    part("per_class", lambda: _classes(metric))
    threshold = _weighted_median(found.get("per_class", []), metric.instances())
    part("score_threshold", lambda: threshold)
    part("confusion", lambda: _confusion(metric, threshold))
    part("errors", lambda: _errors(coco_eval.tide_errors()))
    part("calibration", lambda: _calibration(coco_eval.calibration()))
    part("worst_images", lambda: _worst(outcomes(metric, threshold)))
    return {**found, "absent": absent}


def _classes(metric: CocoMetric) -> list[dict]:
    tables = metric.coco_eval.eval
    precision, scores = (tables[name][0, :, :, 0, 2] for name in ("precision", "scores"))
    recall = np.linspace(0, 1, len(precision))
    return [
        {"id": i, "name": metric.categories[i], **_best_f1(recall, precision[:, k], scores[:, k])}
        for k, i in enumerate(sorted(metric.categories))
    ]


def _curves(precision: np.ndarray) -> dict:
    return {
        "recall": np.linspace(0, 1, precision.shape[1]).round(2).tolist(),
        "precision": {
            "0.50": _curve(precision[0]),
            "0.75": _curve(precision[5]),
            "0.50:0.95": _curve(precision),
        },
    }


def _confusion(metric: CocoMetric, threshold: float) -> dict:
    names = [metric.categories[i] for i in sorted(metric.categories)]
    matrix = metric.coco_eval.confusion_matrix(iou_thr=0.5, min_score=threshold)["matrix"]
    return {"names": [*names, "background"], "matrix": matrix.tolist()}


def _errors(errors: dict) -> dict:
    return {
        "AP50": errors["ap_base"],
        **{
            kind: {
                "count": errors["counts"][kind],
                "cost": errors["delta_ap"][kind],
                "means": ERRORS[kind],
            }
            for kind in ERRORS
        },
    }


def _calibration(calibration: dict) -> dict:
    return {k: calibration[k] for k in ("bins", "ece", "num_detections")}


def _worst(images: dict[int, dict]) -> list[dict]:
    """Of `outcomes`; hotcoco's own summary counts boxes of any score."""
    return [
        {"image_id": i, **{key: len(images[i][key]) for key in ("false", "missed", "right")}}
        for i in ranked(images)[0][:50]
    ]


def lines(analysis: dict | None) -> list[str]:
    """The gist of an analysis for the console."""
    if analysis is None:
        return []
    result = []
    if errors := analysis.get("errors"):
        kinds = sorted(ERRORS, key=lambda kind: -errors[kind]["cost"])
        found = [
            f"{100 * errors[kind]['cost']:.1f} {ERRORS[kind]}"
            for kind in kinds
            if errors[kind]["cost"] >= 0.0005
        ]
        result.append(f"what errors cost, in points of AP50: {'; '.join(found) or 'nothing'}")
    if confusion := analysis.get("confusion"):
        matrix, names = np.array(confusion["matrix"])[:-1, :-1], confusion["names"]
        np.fill_diagonal(matrix, 0)
        order = np.argsort(-matrix, axis=None, kind="stable")[:3]
        pairs = [np.unravel_index(k, matrix.shape) for k in order]
        mixed = [f"{names[a]} as {names[b]} ({matrix[a, b]})" for a, b in pairs if matrix[a, b]]
        if mixed:
            result.append(f"most confused: {', '.join(mixed)}")
    error = analysis.get("calibration", {}).get("ece")
    result.append(f"best F1 at a score of about {analysis['score_threshold']:.2f}"
                  + (f"; calibration error {error:.3f}" if error is not None else ""))  # fmt: skip
    return result


def finish_evaluation(
    metric: CocoMetric, folder: Path, missing: dict[str, Exception], pictures: bool = True
) -> list[str]:
    """Write analysis.json, detections.npz and pictures of the last `result()` into a folder.

    None is lost because of another: what goes wrong is one line of the log.

    Args:
        metric: on the rank that has all detections.
        folder: run directory.
        missing: gets what was not made, and why; see `errors.refuse_incomplete`.
        pictures: also draw them, in folder/plots; the best and worst images in folder/examples.

    Returns:
        lines for the console.
    """

    def attempt(what: str, make: Callable[[], object]) -> None:
        try:
            make()
        except Exception as error:  # matplotlib's are of any kind, and so are broken images
            missing[what] = error
            log.warning("%s: not %s: %s: %s", what, "written" if "." in what else "drawn",
                        type(error).__name__, error)  # fmt: skip

    if metric.judged and len(metric.judged["found"]["score"]):
        attempt(JUDGED, lambda: save(metric, folder / JUDGED))
    analysis = analyse(metric)
    if analysis is None:
        if metric.coco_eval is None:
            log.warning("analysis: curves, confusions and errors need hotcoco: pip install hotcoco")
        return []
    attempt(ANALYSIS, lambda: write_json(folder / ANALYSIS, analysis))
    if pictures:
        attempt("pictures", lambda: _draw_plots(metric, analysis, folder / PLOTS))
        threshold = analysis["score_threshold"]
        attempt("examples", lambda: draw_examples(metric, threshold, folder))
    return lines(analysis)


def _draw_plots(*args) -> None:
    from fcos_recipe.evaluation.plots import draw_plots

    draw_plots(*args)


def _curve(precision: np.ndarray) -> list[float]:
    """Mean over all axes but recall of what is defined, [..., 101, K] -> [101]."""
    values = np.where(precision > -1, precision, np.nan)
    axes = tuple(k for k in range(values.ndim) if k != values.ndim - 2)
    with np.errstate(all="ignore"):
        count = (~np.isnan(values)).sum(axis=axes)
        mean = np.nansum(values, axis=axes) / np.maximum(count, 1)
    return mean.round(4).tolist()


def _best_f1(recall: np.ndarray, precision: np.ndarray, scores: np.ndarray) -> dict:
    if (precision < 0).all():  # no instance of this class
        return {"pr50": None, "best_f1": None, "score": None}
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1.argmax())
    return {
        "pr50": precision.round(4).tolist(),
        "best_f1": round(float(f1[best]), 4),
        "score": round(float(scores[best]), 4),
    }


def _weighted_median(classes: list[dict], instances: dict[int, int]) -> float:
    rows = [(c["score"], instances[c["id"]]) for c in classes if c["best_f1"]]
    if not rows:
        return 0.5
    scores, weights = np.array(sorted(rows)).T
    middle = np.searchsorted(weights.cumsum(), weights.sum() / 2)
    return float(scores[middle])
