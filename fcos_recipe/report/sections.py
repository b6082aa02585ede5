"""Build the sections of a report from a run directory."""

import re
import shlex
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fcos_recipe.console import plural
from fcos_recipe.report import headline, named_sets
from fcos_recipe.report.blocks import (
    Cell,
    Charts,
    Code,
    Fold,
    Items,
    Pair,
    Report,
    Section,
    Table,
    Text,
    chart,
)
from fcos_recipe.report.headline import percent
from fcos_recipe.report.svg import Series, number
from fcos_recipe.runs.contents import MOST_PICTURES, Run, value
from fcos_recipe.runs.throughput import steady

MOST_CLASSES = 20  #: largest confusion matrix that is legible
MOST_ROWS = 400  #: rows in a table of classes
MOST_WARNINGS = 30


def build(run: Run, others: Sequence[Run] = (), comparison: list | None = None) -> Report:
    """Build a report with all sections.

    Args:
        run: the run.
        others: runs whose curves are drawn next to it.
        comparison: blocks of `compare.blocks`, shown after the verdict.
    """
    parts = [("Verdict", "verdict", headline.blocks(run))]
    if comparison is not None:
        parts.append(("Comparison", "comparison", comparison))
    parts += [
        ("Curves", "curves", curves(run, others)),
        ("AP per class", "classes", classes(run)),
        ("Precision and recall", "precision", precision(run)),
        ("Errors and confusions", "errors", [*errors(run), *confusion(run)]),
        ("Best and worst images", "images", images(run)),
        ("Data", "data", data(run)),
        ("Config", "config", config(run)),
        ("Environment", "environment", environment(run)),
        ("Reproduce it", "repeat", repeat(run)),
    ]
    if sets := named_sets.blocks(run):
        after = [anchor for _, anchor, _ in parts].index("classes") + 1
        parts.insert(after, ("AP of the named data sets", "sets", sets))
    if run.notes or run.warnings:
        parts.append(("Missing files and warnings", "missing", missing(run)))
    name = run.config_name
    shown = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return Report(
        f"{run.name}: FCOS run report",
        (f"Config {name}. " if name else "") + f"Directory {run.path}. Written {shown}.",
        [Section(*part) for part in parts],
    )


def curves(run: Run, others: Sequence[Run]) -> list:
    """Charts of loss, LR, throughput, memory and AP."""
    runs = [run, *others]
    if not any(r.train or r.evals for r in runs):
        return [Text("No step was logged, so there are no curves.")]

    def of(key: str, scale: float = 1.0, kind: str = "train") -> list[Series]:
        result = []
        for r, label in zip(runs, labels(runs)):
            rows = [(value(x, "epoch" if kind == "evals" else "step"), value(x, key))
                    for x in getattr(r, kind)]  # fmt: skip
            rows = [(x, y) for x, y in rows if x is not None]
            result.append(Series(label, [x for x, _ in rows],
                                 [None if y is None else y * scale for _, y in rows]))  # fmt: skip
        return result

    def add(title: str, series: list[Series], unit: str, words, x_name="step", **options):
        points = series[0].points()
        summary = words([y for _, y in points]) if points else f"{run.name}: nothing was logged."
        if found := chart(title, series, x_name, unit, summary, **options):
            charts.append(found)

    def ends(ys):
        return f"From {number(ys[0])} to {number(ys[-1])}, minimum {number(min(ys))}."

    def usual(form):
        return lambda ys: (f"Median {format(steady(ys), form)} without the first, "
                           f"{number(min(ys))} to {number(max(ys))}.")  # fmt: skip

    charts = []
    add("Loss", of("loss"), "loss", ends, y_range=(0, None))
    if not others:
        parts = [k for k in (run.train[-1] if run.train else {}) if k.startswith("loss_")]
        xs: list[Any] = [value(r, "step") for r in run.train]
        series = [Series(k, xs, [value(r, k) for r in run.train]) for k in parts[:6]]
        if series and None not in xs:
            last = ", ".join(f"{s.label} {number(s.y[-1])}" for s in series if s.y[-1] is not None)
            if found := chart("Loss components", series, "step", "loss", f"Last: {last}.",
                              y_range=(0, None)):  # fmt: skip
                charts.append(found)
    ap = of("AP", 100, "evals")
    for s in ap:
        s.y = [None if y is None or y < 0 else y for y in s.y]
    if not others:
        ap = [Series(k, s.x, [None if y is None or y < 0 else y for y in s.y])
              for k in ("AP", "AP50", "AP75") for s in of(k, 100, "evals")]  # fmt: skip
    add("AP over epochs", ap, "AP, percent", lambda ys: f"AP from {ys[0]:.1f} to {ys[-1]:.1f}, "
        f"best {max(ys):.1f}.", "epoch", y_range=(0, None), markers=True)  # fmt: skip
    add(
        "Learning rate",
        of("lr"),
        "LR",
        lambda ys: f"Maximum {number(max(ys))}, last {number(ys[-1])}.",
        y_range=(0, None),
    )
    add("Throughput", of("images_per_second_per_card"), "images/s per card", usual(".2f"),
        y_range=(0, None))  # fmt: skip
    add("Peak memory", of("memory_mib"), "MiB", lambda ys: f"Maximum {max(ys):.0f} MiB"
        + (" resident memory of the process." if run.environment and run.environment.device == "cpu"
           else "."), y_range=(0, None))  # fmt: skip
    add("Waiting for data", of("data_time"), "seconds per batch", usual(".3g"), y_range=(0, None))
    return [Charts(charts)]


def labels(runs: list[Run]) -> list[str]:
    """Short names that distinguish the runs."""
    names = [r.name for r in runs]
    if len(set(names)) == len(names):
        return names
    return ["/".join(r.path.resolve().parts[-2:]) + f" ({k})" for k, r in enumerate(runs, 1)]


def classes(run: Run) -> list:
    """AP and counts of each class."""
    e = run.evaluation
    if e is None:
        return [Text(_no_evaluation(run))]
    figures = Table(
        "COCO's twelve metrics, percent",
        ["", *e.names],
        [["all classes", *(percent(v) for v in e.stats)]],
    )
    best = {row.name: row for row in run.analysis.per_class} if run.analysis else {}
    rows = []
    for row in e.per_class[:MOST_ROWS]:
        curve = best.get(row.name)
        score = curve.score if curve else None
        rows.append([
            row.name, Cell(percent(row.AP), bar=max(row.AP, 0)), percent(row.AP50),
            *(percent(v) for v in (row.AP_small, row.AP_medium, row.AP_large)),
            str(row.instances), str(row.detections),
            "-" if score is None else f"{score:.2f}",
        ])  # fmt: skip
    table = Table(
        f"{len(e.per_class)} classes, best first; {e.instances} objects on {e.images} images",
        ["class", "AP", "AP50", "small", "medium", "large", "objects", "detections",
         "score of best F1"],
        rows,
    )  # fmt: skip
    found: list = [figures, table]
    if len(e.per_class) > MOST_ROWS:
        found.append(Text(f"{len(e.per_class) - MOST_ROWS} more classes are in eval.json.", "note"))
    return found


def _no_evaluation(run: Run) -> str:
    if run.state == "running":
        return "Not evaluated yet."
    return "There is no evaluation. Train with --eval, or see `fcos eval --help`."


def _no_analysis(run: Run) -> list:
    if run.evaluation is None:
        return [Text(_no_evaluation(run))]
    if not run.evaluation.detections:
        return [Text("The model found nothing, so there is nothing to analyse.")]
    return [Text("There is no analysis.json. It is written at the end of a run with evaluation if "
                 "hotcoco is installed.")]  # fmt: skip


def _absent(run: Run, part: str) -> list:
    """Why a part of the analysis is missing, if it is."""
    why = run.analysis.absent.get(part) if run.analysis else None
    return [Text(f"analysis.json has no {part}: {why}", "note")] if why else []


def precision(run: Run) -> list:
    """Precision-recall curves and calibration."""
    a = run.analysis
    if a is None:
        return _no_analysis(run)
    if a.pr is None:
        return _absent(run, "pr")
    series = [Series(f"IoU {iou}", a.pr.recall, ys) for iou, ys in a.pr.precision.items()]
    charts = [
        chart("Precision over recall, mean over classes", series, "recall", "precision",
              "The area under a curve is the AP at that IoU.", x_range=(0, 1), y_range=(0, 1))
    ]  # fmt: skip
    shown = sorted((c for c in a.per_class if c.pr50), key=lambda c: -sum(c.pr50 or ()))
    if 1 < len(shown):
        few = shown if len(shown) <= 6 else shown[:3] + shown[-3:]
        which = "each class" if len(few) == len(shown) else "the three best and worst classes"
        charts.append(chart(
            "Precision over recall at IoU 0.50",
            [Series(c.name, a.pr.recall, c.pr50 or ()) for c in few],
            "recall", "precision", f"{which[0].upper()}{which[1:]}.", x_range=(0, 1),
            y_range=(0, 1),
        ))  # fmt: skip
    bins = [b for b in a.calibration.get("bins", []) if isinstance(b, dict) and b.get("count")]
    xs: list[Any] = [value(b, "avg_confidence") for b in bins]
    ys = [value(b, "avg_accuracy") for b in bins]
    ece = value(a.calibration, "ece")
    if bins and None not in xs:
        charts.append(chart(
            "Calibration", [Series("correct boxes", xs, ys)], "score", "fraction of correct boxes",
            "On the dotted line, 7 of 10 boxes with score 0.7 are correct"
            + (f"; expected calibration error {ece:.3f}." if ece is not None else "."),
            x_range=(0, 1), y_range=(0, 1), diagonal=True, markers=True,
        ))  # fmt: skip
    return [Charts([c for c in charts if c]), *_absent(run, "calibration")]


def errors(run: Run) -> list:
    """How much AP50 each kind of error costs (TIDE, Bolya et al., ECCV 2020)."""
    a = run.analysis
    if a is None:
        return _no_analysis(run)
    rows = [
        (kind, row, value(row, "cost") or 0.0) for kind, row in a.errors.items()
        if isinstance(row, dict)
    ]  # fmt: skip
    if not rows:
        return _absent(run, "errors")
    rows.sort(key=lambda row: -row[2])
    most = max((cost for *_, cost in rows), default=0) or 1
    base = value(a.errors, "AP50")
    return [
        Table(
            "Gain in AP50 if only errors of one kind were corrected (TIDE)"
            + (f"; AP50 is {percent(base)}" if base is not None else ""),
            ["kind", "gain, AP50 points", "count", "meaning"],
            [
                [kind, Cell(f"{100 * cost:.1f}", bar=cost / most), str(row.get("count", "-")),
                 str(row.get("means", ""))]
                for kind, row, cost in rows
            ],
            {0, 3},
        )
    ]  # fmt: skip


def confusion(run: Run) -> list:
    """Which classes are confused with which."""
    if run.analysis is None or run.analysis.confusion is None:
        return _absent(run, "confusion")
    c, threshold = run.analysis.confusion, run.analysis.score_threshold
    about = f"IoU 0.50, score at least {threshold:.2f} (best F1)"
    pairs = sorted(
        ((n, a, b) for a, row in enumerate(c.matrix) for b, n in enumerate(row) if a != b and n),
        reverse=True,
    )
    rows = [[c.names[a], c.names[b], str(n)] for n, a, b in pairs[:25]]
    top = Table(f"Most frequent confusions at {about}", ["object", "detected as", "times"], rows,
                {0, 1})  # fmt: skip
    if len(c.names) > MOST_CLASSES:
        return [top if rows else Text("No class was confused with another.")]
    body = []
    for name, row in zip(c.names, c.matrix):
        total = sum(row) or 1
        body.append([name, *(Cell(str(n), heat=n / total) for n in row)])
    matrix = Table(f"Confusion matrix: rows are objects, columns detections; {about}",
                   ["object", *c.names], body)  # fmt: skip
    return [matrix, Text("The last column counts missed objects, the last row detections on "
                         "background.", "note")]  # fmt: skip


def images(run: Run) -> list:
    """The images on which the model did worst and best."""
    if run.examples is None or not run.examples.images:
        found: list = _no_analysis(run)
        if run.analysis:
            found = [Text("No example images were saved: the images were not available, or "
                          "pictures were turned off.")]  # fmt: skip
        return found
    found = [
        Text(f"Annotations next to detections with a score of at least "
             f"{run.examples.score_threshold:.2f}. Blue: correct. Orange, dashed: missed objects "
             "on the annotations, false detections on the other picture.")
    ]  # fmt: skip
    folder = run.path / "examples"
    safe = re.compile(r"[a-z]+_\d+_(truth|found)\.jpg").fullmatch
    room = MOST_PICTURES
    for kind, rows in groupby(run.examples.images[:20], key=lambda row: row.kind):
        title = {"worst": "Worst: most missed and false boxes", "best": "Best"}.get(kind, kind)
        found.append(Text(title, "heading"))
        for row in rows:
            if not (safe(row.truth) and safe(row.found)):  # nothing outside this folder
                continue
            files = [folder / row.truth, folder / row.found]
            room -= sum(file.stat().st_size for file in files if file.is_file())
            if room < 0:
                found.append(Text("More images would make the page too large; they are in "
                                  f"{folder}.", "note"))  # fmt: skip
                return found
            counts = f"{row.right} correct, {row.false} false, {row.missed} missed"
            found.append(Pair(
                files[0], files[1], (row.width, row.height),
                f"{row.file} (image {row.image_id}): {counts}",
                (f"{row.file} with its annotations, {row.missed} of them missed",
                 f"{row.file} with detections, {row.right} correct and {row.false} false"),
            ))  # fmt: skip
    return found


def data(run: Run) -> list:
    """The training and validation data."""
    if run.facts is None or not run.facts.data:
        e = run.evaluation
        judged = f" It was evaluated on {e.images} images with {e.instances} objects." if e else ""
        return [Text(f"There is no facts.json, which describes the data.{judged}")]
    splits = run.facts.data
    rows: list[tuple] = [
        ("annotations", lambda d: d.annotations),
        ("images", lambda d: str(d.images)),
        ("used", lambda d: str(d.used)),
        ("without boxes", lambda d: str(d.without_boxes)),
        ("boxes", lambda d: str(d.boxes)),
        ("crowds", lambda d: str(d.crowd)),
        ("left out", lambda d: ", ".join(f"{n} {k}" for k, n in d.left_out.items()) or "nothing"),
        ("boxes per image", lambda d: "mean {:.1f}, at most {:.0f}".format(
            d.boxes_per_image.get("mean") or 0, d.boxes_per_image.get("max") or 0)),
        ("box sizes", lambda d: ", ".join(
            f"{k} {100 * n / max(d.boxes, 1):.0f} %" for k, n in d.by_size.items())),
        ("image sizes", lambda d: ", ".join(f"{w}x{h} ({n})" for w, h, n in d.width_height)
            + (f" and {d.sizes - 3} more" if d.sizes > 3 else "")),
    ]  # fmt: skip
    table = Table(
        "Small: boxes below 32 x 32 pixels of the original image; large: at least 96 x 96",
        ["", *splits],
        [[name, *(tell(d) for d in splits.values())] for name, tell in rows],
        set(range(len(splits) + 1)),
    )
    names = [c.name for c in next(iter(splits.values())).classes]
    counts = {
        name: [next((d.classes[k].boxes for k in [i] if k < len(d.classes)), 0)
               for d in splits.values()]
        for i, name in enumerate(names[:MOST_ROWS])
    }  # fmt: skip
    most = max((max(v) for v in counts.values()), default=0) or 1
    rows_of = sorted(counts.items(), key=lambda item: -item[1][0])
    per_class = Table(
        f"Boxes per class, {len(names)} classes",
        ["class", *(f"{name} boxes" for name in splits), *(f"{name} images" for name in splits)],
        [
            [name, *(Cell(str(n), bar=n / most) for n in values),
             *(str(next((c.images for c in d.classes if c.name == name), 0))
               for d in splits.values())]
            for name, values in rows_of
        ],
    )  # fmt: skip
    few = len(names) <= 30
    return [table, per_class if few else Fold(f"Boxes of {len(names)} classes", [per_class])]


def config(run: Run) -> list:
    """The config: its changes to the base configs, and all resolved values."""
    found = []
    f = run.facts.config if run.facts else None
    marked: set[str] = {"command line"}
    if f and f.based:
        origins = {where for *_, where in f.changes if where}
        marked |= origins
        found.append(Table(
            f"What {f.name} changes in the configs it is based on",
            ["key", "base", "here", "written in"],
            [[key, base, here, where or "(removed)"] for key, base, here, where in f.changes],
            {0, 1, 2, 3},
        ) if f.changes else Text(f"{f.name} changes nothing in its base configs."))  # fmt: skip
    elif f:
        found.append(Text(f"{f.path} is not based on another config, so no value is marked as "
                          "changed."))  # fmt: skip
    else:
        found.append(Text("Without facts.json only values from the command line are marked."))
    if not run.config:
        return [*found, Text("There is no config.yml.")]
    lines = []
    for line in run.config.splitlines():
        origin = line.rpartition("  # ")[2] if "  # " in line else None
        lines.append((line, origin in marked))
    code = Code(lines, "resolved config")
    return [*found, Fold(f"The resolved config, {len(lines)} lines, with the origin of each value; "
                         "changed lines are marked", [code])]  # fmt: skip


def environment(run: Run) -> list:
    """Versions and hardware."""
    env = run.environment
    if env is None:
        return [Text("There is no environment.json.")]
    git = env.git or "unknown: not a git checkout"
    if git.endswith("-dirty"):
        git += " (with uncommitted changes)"
    cards = ", ".join(f"{len(list(same))} x {name}" for name, same in groupby(sorted(env.cards)))
    rows = [
        ("fcos_recipe", env.fcos_recipe), ("commit", git), ("Python", env.python),
        *env.packages.items(), ("platform", env.platform), ("device", env.device),
        ("cards found", cards or "none"), ("CPU", f"{env.cpu}, {env.cores or '?'} cores used"),
        ("last started", env.started),
    ]  # fmt: skip
    if f := run.facts:
        parameters = f"{f.parameters / 1e6:.2f} M" if f.parameters else "-"
        rows += [("parameters", parameters), ("seed", str(f.seed)),
                 ("mixed precision", f.amp or "off"), ("averaged weights (EMA)",
                 "on" if f.ema else "off")]  # fmt: skip
    return [Table("Environment", ["what", "value"], [list(map(str, r)) for r in rows], {0, 1})]


def repeat(run: Run) -> list:
    """The command of the run, and what else is needed to reproduce it."""
    env = run.environment
    if env is None or not env.command:
        return [Text("There is no environment.json, which holds the command.")]
    found = [Code([(command_line(run), False)], "command")]
    steps = []
    if env.git:
        steps.append(f"use the checkout of commit {env.git.removesuffix('-dirty')}"
                     + (" with local changes" if env.git.endswith("-dirty") else ""))  # fmt: skip
    if run.facts and run.facts.seed is not None:
        steps.append(f"the config holds seed {run.facts.seed}; the same device and versions give "
                     "the same steps")  # fmt: skip
    resolved = shlex.quote(str(run.path / "config.yml"))
    steps.append("or use only the resolved config: python tools/train.py -c "
                 f"{resolved} --eval --output NEW_DIR")  # fmt: skip
    if run.facts and run.facts.cards > 1:
        steps.append(f"start the resolved config on {run.facts.cards} cards as well: "
                     "bash scripts/train.sh --gpus N CONFIG ...")  # fmt: skip
    return [*found, Items(steps)]


def command_line(run: Run) -> str:
    """The command of environment.json as typed in the checkout; it must exist."""
    assert run.environment is not None
    program, *arguments = run.environment.command
    cards = run.facts.cards if run.facts else 1
    if program == "demo.py":
        for k, word in enumerate(arguments):
            if word == "--started":  # time of day of the original run
                arguments = arguments[:k] + arguments[k + 2 :]
                break
        words = ["python", "-m", "fcos_recipe.commands.demo", *arguments]
    elif program.endswith(".py"):
        words = ["python", f"tools/{program}", *arguments]
        if cards > 1:  # the arguments of one process
            words = ["bash", "scripts/train.sh", "--gpus", str(cards), *arguments]
            if run.environment.device == "cpu":
                if arguments[-1:] == ["device=cpu"]:  # train.sh's own addition
                    words.pop()
                return f"DEVICE=cpu {shlex.join(words)}"
    else:
        words = [program, *arguments]
    return shlex.join(words)


def missing(run: Run) -> list:
    """Missing files, and warnings from the log."""
    found: list = []
    if run.notes:
        found.append(Items(run.notes))
    if run.warnings:
        found.append(Text(f"{plural(len(run.warnings), 'warning')} in the log:"))
        found.append(Items(run.warnings[:MOST_WARNINGS]))
        if len(run.warnings) > MOST_WARNINGS:
            found.append(Text(f"{len(run.warnings) - MOST_WARNINGS} more are in log.txt.", "note"))
    return found
