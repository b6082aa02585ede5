"""Pictures of an evaluation, drawn by hotcoco with matplotlib."""

import contextlib
import io
from pathlib import Path

import numpy as np

from fcos_recipe.console import log
from fcos_recipe.drawing import plot_fonts, plot_name
from fcos_recipe.evaluation.metric import CocoMetric
from fcos_recipe.files.atomic import draft, own_folder

HEATMAP = 40  #: classes up to which a confusion matrix can be read


def draw_plots(metric: CocoMetric, analysis: dict, folder: Path) -> list[Path]:
    """Draw precision-recall curves, AP per class, confusions, errors, calibration and scores.

    Args:
        metric: after `result()`, by hotcoco.
        analysis: `analysis.analyse(metric)`.
        folder: is made; pictures in it of these names are replaced.

    Returns:
        the files.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display
    import hotcoco.plot as plot
    import matplotlib.pyplot as plt
    from matplotlib.text import Text

    own_folder(folder)
    coco_eval, done = metric.coco_eval, []
    with contextlib.redirect_stdout(io.StringIO()):  # the curves want its summary, which it prints
        coco_eval.summarize()
    few = len(metric.categories) <= HEATMAP
    pictures = {
        "pr_curve": lambda: plot.pr_curve_iou_sweep(coco_eval),
        "errors": lambda: plot.tide_errors(coco_eval.tide_errors()),
        "ap_per_class": lambda: _ap_per_class(plt, analysis, metric),
        "scores": lambda: _scores(plt, metric),
    }
    if "calibration" in analysis:
        pictures["calibration"] = lambda: plot.reliability_diagram(coco_eval.calibration())
    if "confusion" in analysis:
        matrix = np.array(analysis["confusion"]["matrix"])
        if matrix.sum() and (few or matrix.sum() > np.trace(matrix)):
            draw_confusion = plot.confusion_matrix if few else plot.top_confusions
            pictures["confusion"] = lambda: draw_confusion(_confusion(coco_eval, analysis))
    unwritten: OSError | None = None
    for name, draw in pictures.items():
        path = folder / f"{name}.png"
        try:
            with plot.style():
                plt.rcParams["font.family"] = [*plt.rcParams["font.family"], *plot_fonts()]
                figure = draw()[0]
                for text in figure.findobj(Text):  # hotcoco's pictures set fonts of their own
                    text.set_fontfamily(plt.rcParams["font.family"])
                with draft(path, ending=".png") as part:
                    figure.savefig(part, dpi=100, bbox_inches="tight")
                plt.close(figure)
                done.append(path)
        except Exception as error:  # matplotlib's are of any kind; the other pictures go on
            log.warning("%s: not drawn: %s: %s", path.name, type(error).__name__, error)
            unwritten = error if isinstance(error, OSError) else unwritten
    if unwritten:
        raise unwritten
    return done


def _confusion(coco_eval, analysis: dict) -> dict:
    """hotcoco's confusion matrix, with class names that can be drawn."""
    found = coco_eval.confusion_matrix(iou_thr=0.5, min_score=analysis["score_threshold"])
    names = [plot_name(name, label) for label, name in enumerate(found["cat_names"])]
    return {**found, "cat_names": names}


def _ap_per_class(plt, analysis: dict, metric: CocoMetric):
    """All classes, best first; hotcoco's own shows 25 and marks their mean."""
    rows = [r for r in metric.last["per_class"] if r["AP"] > -1]
    number = {id: n for n, id in enumerate(sorted(metric.categories))}
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.22 * len(rows)), layout="constrained")
    names = [f"{plot_name(r['name'][:24], number[r['id']])} ({r['instances']})" for r in rows]
    axes.barh(range(len(rows)), [r["AP50"] for r in rows], color="#c9d6e8", label="AP50")
    axes.barh(range(len(rows)), [r["AP"] for r in rows], color="#24447f", label="AP")
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.5 / max(len(rows), 1))
    axes.set_xlim(0, 1)
    axes.axvline(metric.last["stats"][0], color="#b4482f", linewidth=1, label="mean AP")
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title("AP per class (instances)", fontsize=11)
    return figure, axes


def _scores(plt, metric: CocoMetric):
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.hist(metric.detections()["score"], bins=np.linspace(0, 1, 41), color="#24447f")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("score")
    axes.set_ylabel("detections")
    axes.set_title("Scores of all detections", fontsize=11)
    return figure, axes
