"""Average precision of resampled images: how far the choice of images moves a figure.

Images are drawn with replacement, so that an image counts as often as it was drawn (Efron, 1979).
What a detection was matched with does not depend on the other images: everything is matched once,
and a draw weights each image's annotations and detections. The matching follows pycocotools'
COCOeval; with weights of one the figures are its own.
"""

from typing import NamedTuple

import numpy as np

from fcos_recipe.data.coco_json import rows_of

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  #: all, small, ...
#: (rows of IOUS, row of AREAS) of each figure
FIGURES = {
    "AP": (slice(None), 0), "AP50": (slice(0, 1), 0), "AP75": (slice(5, 6), 0),
    "AP small": (slice(None), 1), "AP medium": (slice(None), 2), "AP large": (slice(None), 3),
}  # fmt: skip
_DRAWS = 200  # weighted at a time
_ELEMENTS = 4_000_000  # of the largest array that a part of them makes


class _Class(NamedTuple):
    """One class: its D detections, best first, of which M overlap an annotation by IoU 0.5.

    Args:
        image: int [D], position of each detection's image.
        outside: bool [D, 4], area outside each of `AREAS`.
        near: int [M], the detections that overlap.
        right, ignored: bool [M, 4, 10], matched with an annotation that counts, or left out, for
            each of `AREAS` and `IOUS`.
    """

    image: np.ndarray
    outside: np.ndarray
    near: np.ndarray
    right: np.ndarray
    ignored: np.ndarray


class Matched:
    """Detections matched with annotations, ready to be judged on any multiset of the images.

    Args:
        arrays: as `detections_file.read` gives them.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.images, classes = len(arrays["images"]), len(arrays["categories"])
        truth, found = (
            {
                "image": rows_of(arrays["images"], arrays[f"{part}_image_id"]),
                "label": rows_of(arrays["categories"], arrays[f"{part}_category_id"]),
                "box": arrays[f"{part}_bbox"].astype(np.float64),
            }
            for part in ("truth", "found")
        )
        crowd, score = arrays["truth_iscrowd"].astype(bool), arrays["found_score"]
        ignored = crowd[:, None] | _outside(arrays["truth_area"].astype(np.float64))
        #: int32 [N, 4 * classes], annotations that count, by image, area and class
        self.counted = np.zeros((self.images, len(AREAS), classes), np.int32)
        for area in range(len(AREAS)):
            use = ~ignored[:, area]
            np.add.at(self.counted[:, area], (truth["image"][use], truth["label"][use]), 1)

        order = np.lexsort((-score, found["label"], found["image"]))
        group = (found["image"] * classes + found["label"])[order]
        start = np.searchsorted(group, group)
        order = order[np.arange(len(order)) - start < arrays["limits"].max()]
        found = {key: column[order] for key, column in found.items()}
        score, outside = score[order], _outside(found["box"][:, 2] * found["box"][:, 3])
        near, right, left_out = _match(truth, crowd, ignored, found, outside, classes)
        self.classes = []
        rank = np.empty(len(order), np.int64)
        for label in range(classes):
            rows = np.flatnonzero(found["label"] == label)
            rows = rows[np.argsort(-score[rows], kind="stable")]
            rank[rows] = np.arange(len(rows))
            use = found["label"][near] == label
            use = np.flatnonzero(use)[np.argsort(rank[near[use]], kind="stable")]
            self.classes.append(
                _Class(
                    found["image"][rows], outside[rows], rank[near[use]], right[use], left_out[use]
                )
            )

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """Average precision of weighted images.

        Args:
            weights: int [B, N], how often each image counts in each of B draws.

        Returns:
            float64 [B, 4 areas, 10 IoUs, K classes], NaN where no annotation counts.
        """
        largest = max((len(one.image) for one in self.classes), default=0)
        size = max(1, _ELEMENTS // max(largest, self.images, 1))
        parts = [self._batch(weights[k : k + size]) for k in range(0, len(weights), size)]
        return np.concatenate(parts)

    def _batch(self, weights: np.ndarray) -> np.ndarray:
        weights = weights.astype(np.int32)
        flat = self.counted.reshape(self.images, -1).astype(np.float64)
        positives = (weights @ flat).astype(np.int64).reshape(-1, *self.counted.shape[1:])
        shape = (len(weights), len(AREAS), len(IOUS), len(self.classes))
        result = np.where(positives[:, :, None] > 0, 0.0, np.nan) * np.ones(shape)
        for label, one in enumerate(self.classes):
            drawn = weights[:, one.image]
            near = drawn[:, one.near]
            others = np.ones(len(one.image), bool)
            others[one.near] = False
            for area in range(len(AREAS)):
                if not one.right[:, area].any():
                    continue
                step = _recalls_reached(positives[:, area, label])
                false = np.flatnonzero(others & ~one.outside[:, area])
                before = np.searchsorted(false, one.near)
                false = _sums(drawn[:, false[: before[-1]]])[:, before]
                for iou in range(len(IOUS)):
                    right = one.right[:, area, iou]
                    if not right.any():
                        continue
                    use = ~one.ignored[:, area, iou]
                    hits = np.cumsum(near[:, right], axis=1)
                    every = _sums(near[:, use])[:, 1:][:, right[use]] + false[:, right]
                    best = np.maximum.accumulate((hits / np.maximum(every, 1))[:, ::-1], axis=1)
                    reached = np.take_along_axis(step, hits, axis=1)
                    gained = np.diff(reached, axis=1, prepend=0)
                    area_under = np.einsum("ij,ij->i", best[:, ::-1], gained) / len(RECALLS)
                    result[:, area, iou, label] += area_under  # NaN stays
        return result


def figures(precision: np.ndarray) -> dict[str, np.ndarray]:
    """`FIGURES` [B] of `Matched.precision`, NaN where nothing is defined."""
    found = {}
    for name, (ious, area) in FIGURES.items():
        values = precision[:, area, ious].reshape(len(precision), -1)
        count = (~np.isnan(values)).sum(axis=1)
        found[name] = np.where(count, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)
    return found


def draws(images: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [samples, images]: how often each image was drawn, with replacement."""
    drawn = [np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(samples)]
    return np.array(drawn, np.int32).reshape(samples, images)


def intervals(a: Matched, b: Matched, samples: int) -> dict[str, tuple[float, float]]:
    """95 % interval of `FIGURES` of b minus those of a, both on the same draws.

    Returns:
        2.5 % and 97.5 % quantile of the differences; figures that no draw defines are left out.
    """
    rng, found = np.random.default_rng(0), {}
    differences: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
    for start in range(0, samples if a.images else 0, _DRAWS):
        weights = draws(a.images, min(_DRAWS, samples - start), rng)
        sides = [figures(side.precision(weights)) for side in (a, b)]
        for name in FIGURES:
            differences[name].append(sides[1][name] - sides[0][name])
    for name, parts in differences.items():
        difference = np.concatenate([np.empty(0), *parts])
        if not np.isnan(difference).all():
            # of n draws the k-th largest is exceeded with probability k / (n + 1)
            low, high = np.nanquantile(difference, [0.025, 0.975], method="weibull")
            found[name] = (float(low), float(high))
    return found


def _outside(area: np.ndarray) -> np.ndarray:
    """bool [M, 4]: whether areas, pixels, lie outside each of `AREAS`, whose ends belong to it."""
    return (area[:, None] < AREAS[:, 0]) | (area[:, None] > AREAS[:, 1])


def _sums(values: np.ndarray) -> np.ndarray:
    """Running sums of [B, n] from 0: [B, n + 1]."""
    result = np.zeros((len(values), values.shape[1] + 1), np.int32)
    np.cumsum(values, axis=1, out=result[:, 1:])
    return result


def _recalls_reached(positives: np.ndarray) -> np.ndarray:
    """int64 [B, most + 1]: how many of `RECALLS` are reached with 0, 1, ... of `positives` [B]."""
    recall = np.arange(positives.max() + 1) / np.maximum(positives, 1)[:, None]
    below = np.minimum(recall * 100 + 1e-9, 100).astype(np.int64)
    reached = below + (RECALLS[below] <= recall)
    reached[:, 0] = 0  # with the first hit, recall 0 is reached, too
    return reached


def _match(
    truth: dict,
    crowd: np.ndarray,
    ignored: np.ndarray,
    found: dict,
    outside: np.ndarray,
    classes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match as COCOeval.evaluateImg does.

    A detection, best first, takes the annotation of its image and class with the largest IoU that
    is left and reaches the threshold; one that counts goes before one that is ignored, a crowd may
    be taken many times.

    Returns:
        `near`, `right`, `ignored` of `_Class`, for detections of all classes.
    """
    of_truth = truth["image"] * classes + truth["label"]
    order = np.argsort(of_truth, kind="stable")
    of_found = found["image"] * classes + found["label"]  # sorted
    thresholds = np.minimum(IOUS, 1 - 1e-10)[None, :, None]
    near, right, left_out = [], [], []
    groups = np.intersect1d(of_truth, of_found)
    ends = [np.searchsorted(of_truth[order], groups, side) for side in ("left", "right")]
    found_ends = [np.searchsorted(of_found, groups, side) for side in ("left", "right")]
    for begin, end, first, last in zip(*(e.tolist() for e in (*ends, *found_ends)), strict=True):
        rows = order[begin:end]
        iou = _iou(found["box"][first:last], truth["box"][rows], crowd[rows])
        gone = np.zeros((len(AREAS), len(IOUS), len(rows)), bool)
        skip, many = ignored[rows].T[:, None], crowd[rows]
        for k in np.flatnonzero((iou >= IOUS[0]).any(axis=1)).tolist():
            free = (iou[k] >= thresholds) & (~gone | many)
            counting = free & ~skip
            free = np.where(counting.any(axis=2, keepdims=True), counting, free)
            at = len(rows) - 1 - np.where(free, iou[k], -1.0)[..., ::-1].argmax(axis=2)
            taken = np.take_along_axis(free, at[..., None], axis=2)[..., 0]
            np.put_along_axis(
                gone,
                at[..., None],
                taken[..., None] | np.take_along_axis(gone, at[..., None], axis=2),
                axis=2,
            )
            of_ignored = ignored[rows[at], np.arange(len(AREAS))[:, None]]
            near.append(first + k)
            right.append(taken & ~of_ignored)
            left_out.append(np.where(taken, of_ignored, outside[first + k][:, None]))
    shape = (-1, len(AREAS), len(IOUS))
    return (np.array(near, np.int64), np.array(right, bool).reshape(shape),
            np.array(left_out, bool).reshape(shape))  # fmt: skip


def _iou(found: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[D, G] of boxes x, y, width, height [D, 4] and [G, 4]; of a crowd, the share of the box."""
    low = np.maximum(found[:, None, :2], truth[:, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], truth[:, :2] + truth[:, 2:])
    common = np.where((high > low).all(axis=2), (high - low).prod(axis=2), 0)
    area, of_truth = found[:, 2:].prod(axis=1)[:, None], truth[:, 2:].prod(axis=1)
    with np.errstate(all="ignore"):
        return np.nan_to_num(common / np.where(crowd, area, area + of_truth - common))
