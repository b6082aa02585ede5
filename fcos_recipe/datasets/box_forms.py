"""Boxes that are not written as x, y, width, height: as corners, or only as a mask or polygons."""

import math
from typing import Any

import numpy as np

HUGE = 1e9  # pixels; a larger coordinate is a fault
RLE_BASE = 48  # ASCII code that COCO's compressed run lengths start from


def are_corners(box: np.ndarray, area: np.ndarray) -> bool:
    """Whether boxes are x1, y1, x2, y2, which the stated areas show.

    Args:
        box: float64 [M, 4], as in the file, pixels.
        area: float64 [M], square pixels as in the file; NaN: not stated.
    """
    use = np.isfinite(box).all(axis=1) & (np.abs(box) < HUGE).all(axis=1) & (area > 0)
    box, area = box[use], area[use]
    if not len(box):
        return False
    side = box[:, 2:] - box[:, :2]
    slack = 0.01 * area + 1e-6

    def fits(sides: np.ndarray) -> np.ndarray:
        return (sides > 0).all(axis=1) & (np.abs(sides.prod(axis=1) - area) <= slack)

    as_corners, as_sizes = fits(side), fits(box[:, 2:])
    differ = as_corners != as_sizes  # a box from 0, 0 is the same in both
    return bool(differ.any() and as_corners.all() and not as_sizes[differ].any())


def bounds(segmentation: Any) -> list[float] | None:
    """The box x, y, width, height around polygons or a run-length encoded mask, in pixels.

    Returns:
        None: it is neither, or it is empty.
    """
    try:
        if isinstance(segmentation, dict):
            height, width = (int(v) for v in segmentation["size"])
            return _of_runs(segmentation["counts"], height, width)
        xs, ys = ([float(v) for p in segmentation for v in p[k::2]] for k in (0, 1))
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        return box if all(map(math.isfinite, box)) and min(box[2:]) > 0 else None
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None


def turned(
    x: float, y: float, w: float, h: float, radians: float, about: tuple[float, float]
) -> list[tuple[float, float]]:  # fmt: skip
    """The corners of a box that is turned clockwise about a point, in pixels."""
    sine, cosine = math.sin(radians), math.cos(radians)
    ax, ay = about
    return [
        (ax + (px - ax) * cosine - (py - ay) * sine, ay + (px - ax) * sine + (py - ay) * cosine)
        for px, py in ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
    ]


def _of_runs(counts: Any, height: int, width: int) -> list[float] | None:
    """Bounds of COCO's mask: runs of 0, 1, 0, ... from top to bottom, column after column."""
    runs = np.array(_unpacked(counts) if isinstance(counts, str) else counts, np.int64)
    ends = np.cumsum(runs)
    first, last = ends[:-1:2], ends[1::2] - 1  # of each run of ones, as positions
    first, last = first[: len(last)], last[: len(first)]
    first, last = first[last >= first], last[last >= first]
    if not len(first) or (runs < 0).any() or ends[-1] > height * width:
        return None
    left, right = first // height, last // height
    several = right > left  # such a run reaches the bottom of a column and the top of the next
    top = np.where(several, 0, first % height).min()
    bottom = np.where(several, height - 1, last % height).max()
    box = (left.min(), top, right.max() - left.min() + 1, bottom - top + 1)
    return [float(v) for v in box]


def _unpacked(text: str) -> list[int]:
    """Run lengths from COCO's compressed text: 5 bits per letter, differences from the third on."""
    runs: list[int] = []
    at = 0
    while at < len(text):
        value, shift = 0, 0
        while True:
            letter = ord(text[at]) - RLE_BASE
            value |= (letter & 0x1F) << shift
            at, shift = at + 1, shift + 5
            if not letter & 0x20:
                break
        if letter & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
