"""The plot of `fcos dataset stats`: one PNG per split, legible with 80 classes."""

from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fcos_recipe.datasets.fpn_levels import SIZES, WHY
from fcos_recipe.drawing import plot_fonts, plot_name
from fcos_recipe.files.atomic import draft

MOST_CLASSES, LEAST_ROWS = 120, 12  # rows of the class panel
COLORS = ("#9ecae1", "#4292c6", "#084594")  # small, medium, large
OTHER = "#4292c6"
LOST = "#c0392b"


def save(found: dict[str, Any], title: str, path: Path) -> None:
    """Plot the statistics of one split.

    Args:
        found: result of `stats.statistics`.
        title: title of the plot.
        path: PNG to write.

    Raises:
        OSError: the file can't be written.
    """
    numbered = [{**row, "number": number} for number, row in enumerate(found["classes"])]
    classes = sorted(numbered, key=lambda row: -row["boxes"])
    rows = min(len(classes), MOST_CLASSES)
    figure = Figure(figsize=(15, max(8.5, 1.2 + 0.15 * rows)), dpi=110, layout="constrained")
    title = "".join(c if plot_name(c, 0) == c else "?" for c in title)
    figure.suptitle(title, fontsize=12, parse_math=False, fontfamily=plot_fonts())
    left, right = figure.subfigures(1, 2, width_ratios=(5, 10))
    sides = left.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    _classes(sides[0], sides[1], classes[:rows], len(classes))
    panels = right.subplots(3, 2)
    boxes = found["boxes"]
    _bins(panels[0, 0], boxes["sqrt_area"], "square root of the box area, pixels", [32, 96])
    panels[0, 0].set_title("box sizes; lines: COCO's small, medium, large")
    _bins(panels[0, 1], boxes["aspect_ratio"], "width / height", [1])
    panels[0, 1].set_title("aspect ratios")
    _per_image(panels[1, 0], found["boxes_per_image"])
    _image_sizes(panels[1, 1], found["images"]["width_height"])
    _levels(panels[2, 0], found["levels"])
    _lost(panels[2, 1], found["levels"]["without_location"])
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.title.set_fontsize(10)
    with draft(path, ending=".png") as part:
        figure.savefig(part)


def _classes(counts: Axes, shares: Axes, classes: list[dict[str, Any]], total: int) -> None:
    where = np.arange(len(classes))
    boxes = np.array([row["boxes"] for row in classes], float)
    counts.barh(where, boxes, color=OTHER)
    for y, number in enumerate(boxes):
        counts.text(max(number, 0.1), y, f" {number:.0f}", va="center", fontsize=6.5)
    names = [plot_name(_short(row["name"]), row["number"]) for row in classes]
    counts.set_yticks(where, names, fontsize=7)
    for text in counts.get_yticklabels():
        text.set(parse_math=False, fontfamily=plot_fonts())  # "$x$" is a name, not a formula
    more = f", the {len(classes)} largest of {total}" if total > len(classes) else ""
    counts.set_title(f"boxes per class{more}", fontsize=10)
    counts.set_xscale("symlog", linthresh=10)
    counts.set_xlim(0, 3 * boxes.max(initial=1))
    counts.set_ylim(max(len(classes), LEAST_ROWS) - 0.4, -0.6)
    # A separate axis: parts of a bar are meaningless on a logarithmic one.
    start = np.zeros(len(classes))
    for size, color in zip(SIZES, COLORS):
        width = 100 * np.array([row[size] for row in classes]) / np.maximum(boxes, 1)
        shares.barh(where, width, left=start, color=color, label=size)
        start += width
    shares.set_title("sizes, %", fontsize=10)
    shares.set_xlim(0, 100)
    shares.tick_params(axis="y", left=False, labelleft=False)
    if classes:
        shares.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02), frameon=False)
    for axes in (counts, shares):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _bins(axes: Axes, row: dict[str, Any], label: str, lines: list[float]) -> None:
    edges, counts = row["edges"], row["counts"]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=OTHER, edgecolor="white")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for line in lines:
        axes.axvline(line, color="black", linewidth=1, linestyle=":")
    axes.set(xlabel=label, ylabel="boxes")


def _per_image(axes: Axes, row: dict[str, Any]) -> None:
    counts = np.array(row["images_with"])
    step = max(1, -(-len(counts) // 60))
    counts = np.add.reduceat(counts, np.arange(0, len(counts), step)) if len(counts) else counts
    axes.bar(np.arange(len(counts)) * step, counts, step, align="edge", color=OTHER,
             edgecolor="white", linewidth=0.3)  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="boxes per image", ylabel="images", title="boxes per image")


def _image_sizes(axes: Axes, sizes: list[list[int]]) -> None:
    axes.set_title("image sizes; disc area: number of images")
    axes.set(xlabel="width, pixels", ylabel="height, pixels")
    if not sizes:
        axes.text(0.5, 0.5, "unknown", ha="center", transform=axes.transAxes)
        return
    width, height, count = np.array(sizes).T
    axes.scatter(width, height, 8 + 500 * count / count.max(), color=OTHER, alpha=0.5, linewidth=0)
    axes.set_xlim(0, 1.12 * width.max())
    axes.set_ylim(0, 1.12 * height.max())


def _levels(axes: Axes, levels: dict[str, Any]) -> None:
    rows = levels["levels"]
    where = np.arange(len(rows))
    for shift, key, color in ((-0.2, "objects", COLORS[2]), (0.2, "locations", COLORS[0])):
        share = [100 * row[f"{key}_share"] for row in rows]
        bars = axes.bar(where + shift, share, 0.38, color=color, label=key)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    names = [
        f"stride {row['stride']}\n"
        + (f"{row['larger_than']:g}-{row['smaller_than']:g}" if row["smaller_than"]
           else f"> {row['larger_than']:g}")
        for row in rows
    ]  # fmt: skip
    axes.set_xticks(where, names)
    axes.set(ylabel="%", title="FPN levels: shares of objects and locations")
    axes.margins(y=0.15)
    axes.legend(fontsize=8, frameon=False)


def _lost(axes: Axes, lost: dict[str, Any]) -> None:
    count = [lost[reason] for reason in WHY]
    bars = axes.barh(
        [fill(text, 20) for text in WHY.values()], count, color=LOST, height=0.5
    )  # fmt: skip
    axes.bar_label(bars, fontsize=8, padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlim(0, None if any(count) else 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{lost['count']} objects without a location ({100 * lost['share']:.2f} %)")
