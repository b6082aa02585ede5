"""What a report consists of, before it becomes HTML or Markdown. All text is raw: not escaped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcos_recipe.report.svg import Series, line_chart


@dataclass
class Text:
    """A paragraph, or a heading; `kind`: "", "verdict", "good", "bad", "note" or "heading"."""

    text: str
    kind: str = ""


@dataclass
class Items:
    """A list of short texts."""

    items: list[str]


@dataclass
class Tiles:
    """Figures at a glance: (name, value, remark)."""

    tiles: list[tuple[str, str, str]]


@dataclass
class Cell:
    """A table's cell with a bar of this share of its width, or a background of this strength."""

    text: str
    bar: float | None = None
    heat: float | None = None


@dataclass
class Table:
    """Rows of text or `Cell`; the first cell of a row names it. `left`: columns of words."""

    caption: str
    head: list[str]
    rows: Sequence[Sequence[Any]]
    left: set[int] = field(default_factory=lambda: {0})


@dataclass
class Chart:
    """Curves; `summary` says in words what they show."""

    title: str
    svg: str
    series: list[str]
    summary: str


@dataclass
class Charts:
    charts: list[Chart]


@dataclass
class Pair:
    """Two pictures of the same size, ground truth and detections, with one caption."""

    truth: Path
    found: Path
    size: tuple[int, int]
    caption: str
    alts: tuple[str, str]


@dataclass
class Code:
    """Lines as they are; (line, whether it is marked)."""

    lines: list[tuple[str, bool]]
    label: str = ""


@dataclass
class Fold:
    """What is shown on demand."""

    summary: str
    blocks: list


@dataclass
class Section:
    """A part with a heading and an address."""

    title: str
    anchor: str
    blocks: list


@dataclass
class Report:
    """The whole: a title, a line below it and sections."""

    title: str
    subtitle: str
    sections: list[Section]


def chart(title: str, series: list[Series], x_name: str, y_name: str, summary: str, **options):
    """A `Chart`, or None where there is nothing to draw."""
    series = [s for s in series if s.points()][:6]
    svg = line_chart(series, f"{title}: {summary}", x_name, y_name, **options)
    return Chart(title, svg, [s.label for s in series], summary) if svg else None
