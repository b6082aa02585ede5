"""The blocks of a report before rendering to HTML or Markdown. No text is escaped yet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcos_recipe.report.svg import Series, line_chart


@dataclass
class Text:
    """A paragraph or heading; `kind` is "", "verdict", "good", "bad", "note" or "heading"."""

    text: str
    kind: str = ""


@dataclass
class Items:
    """A list of short texts."""

    items: list[str]


@dataclass
class Tiles:
    """Key figures: (name, value, remark)."""

    tiles: list[tuple[str, str, str]]


@dataclass
class Cell:
    """A table cell with a bar or a coloured background; both range from 0 to 1."""

    text: str
    bar: float | None = None
    heat: float | None = None


@dataclass
class Table:
    """Rows of text or `Cell`; the first cell is the row's header. `left`: text columns."""

    caption: str
    head: list[str]
    rows: Sequence[Sequence[Any]]
    left: set[int] = field(default_factory=lambda: {0})


@dataclass
class Chart:
    """Curves; `summary` describes them in words."""

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
    """Preformatted lines: (line, whether it is marked)."""

    lines: list[tuple[str, bool]]
    label: str = ""


@dataclass
class Fold:
    """Blocks that the reader can unfold."""

    summary: str
    blocks: list


@dataclass
class Section:
    """A part with a heading and an anchor for links."""

    title: str
    anchor: str
    blocks: list


@dataclass
class Report:
    """A report: title, subtitle and sections."""

    title: str
    subtitle: str
    sections: list[Section]


def chart(title: str, series: list[Series], x_name: str, y_name: str, summary: str, **options):
    """Make a `Chart` of up to six series; None if there is nothing to draw."""
    series = [s for s in series if s.points()][:6]
    svg = line_chart(series, f"{title}: {summary}", x_name, y_name, **options)
    return Chart(title, svg, [s.label for s in series], summary) if svg else None
