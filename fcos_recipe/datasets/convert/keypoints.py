"""Tell keypoints from polygons in YOLO label files, whose lines look alike.

A line of YOLO-pose is a class, cx, cy, w, h and n keypoints of 2 or 3 numbers, which data.yaml
states as `kpt_shape: [n, 2 or 3]`. A line of YOLO-seg or YOLO-OBB is a class and the corners of a
polygon. https://docs.ultralytics.com/datasets/pose
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from fcos_recipe.errors import UserError

MANY = 8  # lines after which a coincidence is unlikely
NONE = "none"  # value of the option --keypoints: there are no keypoints


def stated(value: Any, place: Any) -> tuple[int, int] | None:
    """The value of kpt_shape as two numbers; None: not stated.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return None
    good = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
    if not good or value[0] < 1 or value[1] not in (2, 3):
        raise UserError(f"{place}: {value!r}: it must be the number of keypoints, and 2 or 3")
    return value[0], value[1]


def refuse_unstated(lines: Iterable[tuple[str, str]]) -> None:
    """Check that long lines are polygons.

    They are taken for keypoints if all of them have the same length and, read as polygons, half of
    them cross themselves; if the numbers where a keypoint's visibility would be are all 0, 1 or 2;
    or if there are many lines and all points are inside the box that their first four numbers give.

    Args:
        lines: place and text of each line.

    Raises:
        UserError: they may be keypoints.
    """
    rows: list[list[str]] = []
    first = ""
    for place, line in lines:
        words = line.split()
        if len(words) <= 6:
            continue
        if rows and len(words) != len(rows[0]):
            return
        first = first or place
        rows.append(words)
    if not rows:
        return
    try:
        values = np.array([row[1:] for row in rows], float)
    except ValueError:
        return  # such lines are reported when they are read
    length = len(rows[0])
    flags = values[:, 6::3] if length % 3 == 2 else np.full((1, 1), -1)
    size = 3 if np.isin(flags, (0, 1, 2)).all() else 2
    crossing = 0
    if size == 2 and length % 2:
        crossing = sum(map(_crosses, values.reshape(len(rows), -1, 2)))
    if size == 3 or 2 * crossing >= len(rows) or (length % 2 and _inside(values)):
        count = (length - 5) // size
        raise UserError(
            f"{first}: the {len(rows)} lines of {length} numbers look like boxes with {count} "
            f"keypoints of {size} numbers; if they are, add kpt_shape: [{count}, {size}] to "
            f"data.yaml or --keypoints {count},{size}; if they are polygons, add --keypoints {NONE}"
        )


def _inside(values: np.ndarray) -> bool:
    """Whether many lines have a box within the image that holds all their further points."""
    low, high = values[:, :2] - values[:, 2:4] / 2, values[:, :2] + values[:, 2:4] / 2
    points = values[:, 4:].reshape(len(values), -1, 2)
    held = (points >= low[:, None] - 0.01) & (points <= high[:, None] + 0.01)
    held |= (points == 0).all(axis=2, keepdims=True)  # a keypoint that is not labelled
    return len(values) >= MANY and bool((low > -0.01).all() and (high < 1.01).all() and held.all())


def _crosses(points: np.ndarray) -> bool:
    """Whether two sides of a polygon [n, 2] cross, or all corners are on a line."""
    start, end = points, np.roll(points, -1, axis=0)

    def side(p: np.ndarray) -> np.ndarray:
        """Sign of the side of line i on which point j is, [n, n]."""
        a, b = (end - start)[:, None], p[None] - start[:, None]
        return np.sign(np.round(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0], 12))

    apart = side(start) * side(end) < 0
    return bool((apart & apart.T).any() or not side(points).any())
