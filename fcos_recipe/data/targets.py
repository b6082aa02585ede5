"""FCOS target assignment that visits only the locations inside boxes, not locations x boxes.

Location (y, x) of a level of stride s corresponds to the pixel (s * x + s * num_shift,
s * y + s * num_shift) of the padded image; a level's locations are numbered row by row. The rules
are those of Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection" (ICCV 2019,
sections 3.1-3.3), with centre sampling as in the authors' later code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Targets(NamedTuple):
    """The P positive locations of one image, ordered by level, row and column."""

    level: np.ndarray  #: int64 [P], index into the strides
    cell: np.ndarray  #: int64 [P], y * W_l + x in that level's grid
    label: np.ndarray  #: int64 [P], 0-based class
    reg: np.ndarray  #: float32 [P, 4], distances to left, top, right, bottom; pixels or strides
    centerness: np.ndarray  #: float32 [P], in [0, 1]


@dataclass(frozen=True)
class Assignment:
    """Rules that match locations to boxes.

    Args:
        strides: of the levels in pixels, finest first.
        ranges: per level, exclusive bounds of the largest distance, pixels.
        radius: of centre sampling, in strides; <= 0: the whole box.
        num_shift: offset of a location inside its cell, in strides.
        norm_by_stride: divide the distances by the level's stride.
    """

    strides: Sequence[int]
    ranges: Sequence[tuple[float, float]]
    radius: float
    num_shift: float = 0.5
    norm_by_stride: bool = True


def grid_shapes(height: int, width: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """(H_l, W_l) of every level for a padded image of this size in pixels."""
    return [(-(-height // s), -(-width // s)) for s in strides]


def assign(
    gt_bbox: np.ndarray,
    gt_class: np.ndarray,
    height: int,
    width: int,
    rules: Assignment,
    image: np.ndarray | None = None,
) -> Targets:
    """Assign boxes to locations.

    A location matches a box if it lies strictly inside the box (and, with `radius` > 0, strictly
    within `radius` strides of its centre) and its largest distance to a side lies strictly inside
    the level's range. If several boxes match, the one with the smallest area is taken; if areas are
    equal, the first.

    All comparisons use the types of paddledet 2.6.0 (float32 for points, distances, clipped boxes
    and areas; float64 for the ranges), so that equal values are decided in the same way.

    Args:
        gt_bbox: float32 [G, 4], x1, y1, x2, y2 in pixels of the padded image.
        gt_class: int [G] or [G, 1], 0-based.
        height: of the padded image, pixels.
        width: of the padded image, pixels.
        rules: see `Assignment`.
        image: int [G], the image of each box, to assign boxes of several images in one call; `cell`
            then counts on from one image to the next. Default: one image.
    """
    image = np.zeros(len(gt_bbox), np.int64) if image is None else image
    x1, y1, x2, y2 = (gt_bbox[:, i] for i in range(4))
    area = (x2 - x1) * (y2 - y1)
    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    strides, radius, shift = rules.strides, rules.radius, rules.num_shift
    levels = []
    for stride, (low, high), (grid_h, grid_w) in zip(
        strides, rules.ranges, grid_shapes(height, width, strides), strict=True
    ):
        xs = np.arange(0, grid_w * stride, stride).astype(np.float32) + stride * shift
        ys = np.arange(0, grid_h * stride, stride).astype(np.float32) + stride * shift
        if radius > 0:
            reach = radius * stride
            first_x = _first_above(xs, np.maximum(x1, center_x - reach))
            first_y = _first_above(ys, np.maximum(y1, center_y - reach))
            count_x = xs.searchsorted(np.minimum(x2, center_x + reach)) - first_x
            count_y = ys.searchsorted(np.minimum(y2, center_y + reach)) - first_y
        else:
            first_x, first_y = _first_above(xs, x1), _first_above(ys, y1)
            count_x, count_y = xs.searchsorted(x2) - first_x, ys.searchsorted(y2) - first_y
        # one row per (box, location inside it), box after box
        count_x = np.maximum(count_x, 0)
        count = count_x * np.maximum(count_y, 0)
        box = np.repeat(np.arange(len(gt_bbox)), count)
        within = np.arange(len(box)) - np.repeat(np.cumsum(count) - count, count)
        row, column = np.divmod(within, count_x[box])
        row += first_y[box]
        column += first_x[box]
        owner = gt_bbox[box]
        point_x, point_y = xs[column], ys[row]
        reg = np.stack(
            [
                point_x - owner[:, 0],
                point_y - owner[:, 1],
                owner[:, 2] - point_x,
                owner[:, 3] - point_y,
            ],
            axis=1,
        )
        largest = reg.max(axis=1).astype(np.float64)
        keep = np.flatnonzero((largest > low) & (largest < high))
        box = box[keep]
        cell = (image[box] * grid_h + row[keep]) * grid_w + column[keep]
        # smallest area first within a cell; lexsort is stable, so equal areas keep the box order
        order = np.lexsort((area[box], cell))
        cell = cell[order]
        first = np.ones(len(order), bool)
        np.not_equal(cell[1:], cell[:-1], out=first[1:])
        chosen = order[first]
        levels.append((cell[first], box[chosen], reg[keep[chosen]]))
    cell, box, reg = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    level = np.repeat(np.arange(len(strides)), [len(part[0]) for part in levels])
    horizontal, vertical = reg[:, [0, 2]], reg[:, [1, 3]]
    centerness = np.sqrt(
        (horizontal.min(axis=1) / horizontal.max(axis=1))
        * (vertical.min(axis=1) / vertical.max(axis=1))
    )
    if rules.norm_by_stride:
        reg = reg / np.asarray(strides, reg.dtype)[level, None]
    return Targets(
        level,
        cell,
        np.asarray(gt_class).reshape(-1)[box].astype(np.int64),
        reg.astype(np.float32),
        centerness.astype(np.float32),
    )


def _first_above(points: np.ndarray, bound: np.ndarray) -> np.ndarray:
    return points.searchsorted(bound, side="right")


def collate(targets: list[Targets], grids: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Join the targets of a batch's N images into the arrays that the model needs.

    Returns:
        `pos_index` int64 [P], index into the levels' [N, H_l, W_l] grids, flattened and
        concatenated; `pos_label` int64 [P]; `pos_reg` float32 [P, 4]; `pos_centerness` float32 [P];
        `num_pos` int64 [1], the number of positives. P is at least 1: without positives, there is
        one row of zeros and `num_pos` is 0.
    """
    cells = np.array([h * w for h, w in grids])
    start = (np.cumsum(cells) - cells) * len(targets)
    index = [start[t.level] + n * cells[t.level] + t.cell for n, t in enumerate(targets)]
    count = sum(map(len, index))
    size = max(count, 1)
    batch = {
        "pos_index": np.zeros(size, np.int64),
        "pos_label": np.zeros(size, np.int64),
        "pos_reg": np.zeros((size, 4), np.float32),
        "pos_centerness": np.zeros(size, np.float32),
        "num_pos": np.array([count], np.int64),
    }
    if count:
        np.concatenate(index, out=batch["pos_index"])
        np.concatenate([t.label for t in targets], out=batch["pos_label"])
        np.concatenate([t.reg for t in targets], out=batch["pos_reg"])
        np.concatenate([t.centerness for t in targets], out=batch["pos_centerness"])
    return batch


class Gt2FCOSTarget:
    """Compute sparse FCOS targets from a batch's ground truth boxes.

    The arguments are those of paddledet's operator of the same name.

    Args:
        object_sizes_boundary: bounds between the levels' ranges, pixels; one fewer than levels.
        center_sampling_radius: in strides; <= 0: no centre sampling.
        downsample_ratios: strides of the levels, pixels.
        num_shift: offset of a location inside its cell, in strides.
        multiply_strides_reg_targets: keep distances in pixels even if `norm_reg_targets` is set.
        norm_reg_targets: divide distances by the stride.

    Raises:
        ValueError: the number of bounds does not match the number of levels.
    """

    def __init__(
        self,
        object_sizes_boundary: list[float],
        center_sampling_radius: float,
        downsample_ratios: list[int],
        num_shift: float = 0.5,
        multiply_strides_reg_targets: bool = False,
        norm_reg_targets: bool = True,
    ):
        bounds = [-1, *object_sizes_boundary, np.inf]
        if len(bounds) - 1 != len(downsample_ratios):
            raise ValueError(
                f"Gt2FCOSTarget: {len(downsample_ratios)} downsample_ratios need "
                f"{len(downsample_ratios) - 1} object_sizes_boundary, not {len(bounds) - 2}"
            )
        self.strides = list(downsample_ratios)
        self.rules = Assignment(
            self.strides, list(zip(bounds[:-1], bounds[1:], strict=True)), center_sampling_radius,
            num_shift, norm_reg_targets and not multiply_strides_reg_targets,
        )  # fmt: skip

    def __call__(
        self, boxes: list[np.ndarray], classes: list[np.ndarray], height: int, width: int
    ) -> dict[str, np.ndarray]:
        """Compute the targets of a batch; see `collate`.

        Args:
            boxes: per image float32 [G, 4], pixels; G may be 0.
            classes: per image int [G] or [G, 1].
            height: of the padded batch, pixels.
            width: of the padded batch, pixels.
        """
        targets = [
            assign(box, label, height, width, self.rules)
            for box, label in zip(boxes, classes, strict=True)
        ]
        return collate(targets, grid_shapes(height, width, self.strides))
