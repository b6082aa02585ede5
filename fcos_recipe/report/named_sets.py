"""The report's section on the config's `eval_sets`: their figures beside those of EvalDataset."""

from typing import Any

from fcos_recipe.config.eval_sets import MAIN
from fcos_recipe.report.blocks import Charts, Table, chart
from fcos_recipe.report.headline import percent
from fcos_recipe.report.svg import Series
from fcos_recipe.runs.contents import Run, value


def blocks(run: Run) -> list:
    """A table of the last evaluation and a chart of AP over epochs; [] without named sets."""
    found: list[Any] = []
    e = run.evaluation
    if e and e.sets:
        sets = {MAIN: e, **e.sets}
        found.append(Table(
            "COCO's twelve metrics of each data set, percent",
            ["data set", "images", "objects", *e.names],
            [[name, str(one.images), str(one.instances), *(percent(v) for v in one.stats)]
             for name, one in sets.items()],
        ))  # fmt: skip
        reasons = [[name, one.reason] for name, one in e.sets.items() if one.reason]
        if reasons:
            found.append(Table("Why AP is 0 or undefined", ["data set", "reason"], reasons, {0, 1}))
    rows = [(str(row.get("set")), row) for row in run.set_evals]
    curves = {MAIN: run.evals} if rows else {}
    curves |= {name: [row for other, row in rows if other == name] for name, _ in rows}
    series = [_ap(name, records) for name, records in curves.items()]
    drawn = chart(
        "AP of each data set over epochs", series, "epoch", "AP, percent",
        f"{MAIN} chooses the best weights.", y_range=(0, None), markers=True,
    )  # fmt: skip
    if drawn:
        found.append(Charts([drawn]))
    return found


def _ap(name: str, records: list[dict]) -> Series:
    """AP in percent over the epochs of an evaluation's records, without undefined ones."""
    points = [(value(row, "epoch"), value(row, "AP")) for row in records]
    known = [(x, 100 * y) for x, y in points if x is not None and y is not None and y >= 0]
    return Series(name, [x for x, _ in known], [y for _, y in known])
