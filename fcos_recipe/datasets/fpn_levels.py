"""Which FPN levels FCOS trains each box on, for a whole data set and without reading images.

The locations are those of `targets.assign`, the function that training calls; here it runs over
thousands of images at once. The padding of a batch does not matter: boxes end at their image.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fcos_recipe.config.load import Config
from fcos_recipe.data.targets import Assignment, Gt2FCOSTarget, assign
from fcos_recipe.data.transforms import UsualChain, named
from fcos_recipe.errors import UserError
from fcos_recipe.places import display

ROWS = 1_000_000  # candidate locations of a level that are processed together: 100 MB
SIZES = ("small", "medium", "large")  # of boxes, COCO's
WHY = {  # why a box has no positive location
    "covered": "smaller boxes take every location",
    "range": "no location inside it on the level for its size",
    "small": "no location of any level inside it",
}
REASONS = tuple(WHY)


@dataclass
class Rules:
    """How a config resizes images and assigns boxes.

    Args:
        targets: the rules of the operator Gt2FCOSTarget, as `assign` takes them.
        resize: arguments of the operator Resize; None leaves images as they are.
        text: one line for people that says how images are resized.
    """

    targets: Assignment
    resize: dict[str, Any] | None
    text: str

    @classmethod
    def of(cls, config: Config) -> "Rules":
        """The rules of a config: its training resize, or the evaluation's if that is random.

        Raises:
            UserError: the config has no Gt2FCOSTarget.
        """
        chains = []
        for section in ("TrainReader", "EvalReader"):
            reader = config.data.get(section) or {}
            chains.append([reader.get(f"{k}_transforms") or [] for k in ("sample", "batch")])
        arguments = dict(named(chains[0][1])).get("Gt2FCOSTarget")
        if arguments is None:
            raise UserError(
                f"{display(config.path)}: TrainReader.batch_transforms: no Gt2FCOSTarget; FPN "
                "levels are only known for an FCOS config"
            )
        steps = [dict(named(sample)) for sample, _ in chains]
        fixed = UsualChain.of(*chains[0]) is not None and "RandomResize" not in steps[0]
        resize = steps[0 if fixed else 1].get("Resize")
        text = f"{display(config.path)}: "
        if resize is None:
            text += "images are not resized"
        else:
            size = resize["target_size"]
            bounds = [size, size] if isinstance(size, int) else size
            keep = "" if resize.get("keep_ratio", True) else ", stretched"
            text += f"images resized to {bounds[0]}x{bounds[1]}{keep}"
        if not fixed:
            text += " as in evaluation; training draws sizes or crops at random"
        return cls(Gt2FCOSTarget(**arguments).rules, resize, text)

    def resized(self, box: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes after `images.resize`, clipped to the resized image.

        Args:
            box: float32 [M, 4], pixels of the original images.
            size: int [M, 2], height and width of each box's image.

        Returns:
            boxes float32 [M, 4] and sizes float64 [M, 2], pixels of the resized images.
        """
        scale, kind = np.ones((len(box), 2)), np.dtype(np.float32)
        if self.resize is not None:
            target = self.resize["target_size"]
            target = [target] * 2 if isinstance(target, int) else target
            if self.resize.get("keep_ratio", True):
                bound = np.minimum(min(target) / size.min(axis=1), max(target) / size.max(axis=1))
                scale = np.stack([bound, bound], axis=1)
                # Same type as in `images.resize`: NumPy 2 makes float64 of a float64 scalar
                # times a float32 array.
                kind = np.result_type(np.ones(1, np.float32) * np.float64(1))
            else:
                scale = np.asarray(target) / size
        new = scale * size
        wide = box.astype(kind) * scale[:, [1, 0, 1, 0]].astype(kind)
        cut = np.clip(wide.astype(np.float32), 0, new[:, [1, 0, 1, 0]])
        return cut.astype(np.float32), new


def positives(
    rules: Assignment, box: np.ndarray, size: np.ndarray, image: np.ndarray
) -> np.ndarray:
    """Number of positive locations of each box on each FPN level.

    Args:
        rules: as `assign` takes them.
        box: float32 [M, 4], clipped boxes in pixels of the resized images.
        size: float [M, 2], height and width of the resized images.
        image: int [M], ascending; boxes with the same number compete for locations.

    Returns:
        int64 [M, levels].
    """
    levels, radius = len(rules.strides), rules.radius
    counts = np.zeros((len(box), levels), np.int64)
    if not len(box):
        return counts
    if radius > 0:
        rows = np.full(len(box), (2 * radius + 1) ** 2)
    else:
        rows = (box[:, 2:] - box[:, :2] + 1).prod(axis=1, dtype=np.float64)
        rows = rows / min(rules.strides) ** 2 + 1
    begins = np.flatnonzero(np.diff(image, prepend=image[0] - 1))
    part = np.cumsum(rows)[begins] // ROWS
    cuts = [*begins[np.flatnonzero(np.diff(part, prepend=-1))], len(box)]
    for first, last in zip(cuts[:-1], cuts[1:]):
        use = slice(first, last)
        height, width = np.ceil(size[use].max(axis=0)).astype(int)
        found = assign(
            box[use], np.arange(last - first), height, width,
            rules, image[use] - image[first],
        )  # fmt: skip
        cell = found.label * levels + found.level
        counts[use] = np.bincount(cell, minlength=(last - first) * levels).reshape(-1, levels)
    return counts


def reasons(rules: Assignment, box: np.ndarray, size: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Why boxes have no positive location.

    Args:
        rules, box, size: as for `positives`.
        counts: what `positives` returned.

    Returns:
        int64 [M]: -1 for a box with locations, otherwise an index into `REASONS`: "covered": alone
        on its image it would have some; "range": locations lie inside it, but not on a level whose
        range includes its size; "small": no location of any level lies inside it.
    """
    why = np.full(len(box), -1)
    lost = np.flatnonzero(counts.sum(axis=1) == 0)
    why[lost] = REASONS.index("small")
    anywhere = replace(rules, ranges=[(-1, np.inf)] * len(rules.ranges))
    for name, rule in (("range", anywhere), ("covered", rules)):
        alone = positives(rule, box[lost], size[lost], np.arange(len(lost)))
        why[lost[alone.any(axis=1)]] = REASONS.index(name)
    return why
