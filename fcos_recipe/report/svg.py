"""Line charts as inline SVG that follow the page's light or dark theme.

Colours are CSS variables (--s0, --s1, ...) and `currentColor`. Series also differ in their dashes,
for print and for colour-blind readers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 38
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2")
MOST_POINTS = 240  # per curve; more are not visible and make the page large


@dataclass
class Series:
    """One curve; points whose y is None are skipped."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]

    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.x, self.y) if y is not None and math.isfinite(y)]


def line_chart(
    series: list[Series],
    label: str,
    x_name: str,
    y_name: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float | None, float | None] = (None, None),
    diagonal: bool = False,
    markers: bool = False,
) -> str:
    """Draw an SVG element; "" if there are no points.

    Args:
        series: up to six curves.
        label: description for screen readers.
        x_name, y_name: axis labels.
        x_range, y_range: of the axes; None: the range of the values.
        diagonal: draw the line y = x.
        markers: mark each point.
    """
    lines = [thin(s.points()) for s in series]
    every = [p for line in lines for p in line[0]]
    if not every:
        return ""
    xs, ys = zip(*every)
    low, high = x_range or (min(xs), max(xs))
    bands = [b for _, band in lines for b in band]
    bottom = y_range[0] if y_range[0] is not None else min([*ys, *(b[1] for b in bands)])
    top = y_range[1] if y_range[1] is not None else max([*ys, *(b[2] for b in bands)])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    if top <= bottom:
        top = bottom + (abs(bottom) or 1) * 0.1
    x_ticks, y_ticks = ticks(low, high), ticks(bottom, top)
    if all(float(x).is_integer() for x in xs):  # steps and epochs are integers
        x_ticks = [x for x in x_ticks if float(x).is_integer()]
    top = max(top, y_ticks[-1])
    across = (WIDTH - LEFT - RIGHT) / (high - low)
    up = (HEIGHT - TOP - BOTTOM) / (top - bottom)

    def at(x: float, y: float) -> str:
        y = min(max(y, bottom), top)
        return f"{LEFT + (x - low) * across:.1f},{HEIGHT - BOTTOM - (y - bottom) * up:.1f}"

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">'
    ]
    for y in y_ticks:
        height = at(low, y).split(",")[1]
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>'
            f'<text x="{LEFT - 6}" y="{height}" dy="4" text-anchor="end">{number(y)}</text>'
        )
    for x in x_ticks:
        place = at(x, bottom).split(",")[0]
        parts.append(
            f'<text x="{place}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(x)}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" '
        f'y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 5}" '
        f'text-anchor="middle">{escape(x_name)}</text>'
        f'<text class="name" transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) '
        f'rotate(-90)" text-anchor="middle">{escape(y_name)}</text>'
    )
    if diagonal:
        parts.append(f'<polyline class="diagonal" points="{at(low, low)} {at(high, high)}"/>')
    for k, (_, band) in enumerate(lines):
        if band:
            edge = [at(x, b) for x, _, b in band] + [at(x, a) for x, a, _ in reversed(band)]
            parts.append(f'<polygon class="band" style="fill:var(--s{k})" '
                         f'points="{" ".join(edge)}"/>')  # fmt: skip
    for k, (points, _) in enumerate(lines):
        if len(points) > 1:
            dash = f' stroke-dasharray="{DASHES[k]}"' if DASHES[k] else ""
            parts.append(f'<polyline class="line" style="stroke:var(--s{k})"{dash} '
                         f'points="{" ".join(at(*p) for p in points)}"/>')  # fmt: skip
        if markers or len(points) == 1:
            for p in points:
                x, y = at(*p).split(",")
                parts.append(f'<circle style="fill:var(--s{k})" cx="{x}" cy="{y}" r="3.2"/>')
    return "".join(parts) + "</svg>"


def swatch(k: int) -> str:
    """The line sample of series k for a legend."""
    dash = f' stroke-dasharray="{DASHES[k]}"' if DASHES[k] else ""
    return (
        '<svg class="swatch" viewBox="0 0 30 10" aria-hidden="true"><line class="line" x1="1" '
        f'x2="29" y1="5" y2="5" style="stroke:var(--s{k})"{dash}/></svg>'
    )


def thin(points: list[tuple[float, float]]):
    """Reduce a curve to at most `MOST_POINTS` means of neighbouring points.

    Returns:
        points [(x, mean y)], and ranges [(x, lowest y, highest y)], empty if nothing was averaged.
    """
    if len(points) <= MOST_POINTS:
        return points, []
    mean, band = [], []
    for k in range(MOST_POINTS):
        part = points[k * len(points) // MOST_POINTS : (k + 1) * len(points) // MOST_POINTS]
        x, ys = part[-1][0], [y for _, y in part]
        mean.append((x, sum(ys) / len(ys)))
        band.append((x, min(ys), max(ys)))
    return mean, band


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Up to `most` + 1 round numbers in a range, for the marks of an axis."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (step * f) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)] or [low]


def number(v: float) -> str:
    """A number as short text: 0.00025, 0.5, 12, 34k."""
    if abs(v) >= 10_000:
        return f"{v / 1000:g}k"
    return f"{v:.4g}"
