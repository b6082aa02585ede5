"""Does an exported model find what the trained one finds?"""

from dataclasses import asdict, dataclass, field

import numpy as np

from fcos_recipe.predict.backends import by_image
from fcos_recipe.predict.results import iou

SCORE, PIXELS = 1e-4, 0.05  #: largest differences of a score and of a box's corner
TIES = 100  #: one in so many detections may be a tie that NMS decided the other way
#: Least IoU and largest difference of scores at which two detections are nearly the same, and the
#: largest share of confident detections that only one of the two models may have.
NEAR_OVERLAP, NEAR_SCORE, NEAR_SHARE = 0.5, 0.1, 0.1


@dataclass
class Agreement:
    """Outcome of a comparison.

    Args:
        images, detections: compared; detections of the reference.
        empty: images on which the reference finds nothing.
        exempt: detections that only one side has, within `SCORE` of a threshold or limit.
        score, pixels: largest differences of matched detections.
        failures: one line per detection that differs, worst first.
    """

    images: int = 0
    detections: int = 0
    empty: int = 0
    exempt: int = 0
    score: float = 0.0
    pixels: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures and self.detections > 0

    def as_json(self) -> dict:
        """JSON-ready."""
        return asdict(self)


def compare(reference, other, batches: list[dict[str, np.ndarray]], limits: dict) -> Agreement:
    """Run both on the same batches and match their detections.

    Args:
        reference, other: `Predictor.run`.
        batches: of the reader.
        limits: `score_threshold`, `nms_threshold`, `keep_top_k` of the model.

    Returns:
        the verdict; it fails when there is nothing to compare, too.
    """
    verdict, ties = Agreement(), list[str]()
    for number, batch in enumerate(batches):
        sides = [by_image(*run(batch)) for run in (reference, other)]
        for image, (wanted, found) in enumerate(zip(*sides, strict=True)):
            verdict.images += 1
            verdict.empty += not len(wanted)
            verdict.detections += len(wanted)
            place = f"image {number}" + (f".{image}" if len(sides[0]) > 1 else "")
            ties += _match(verdict, wanted, found, limits, place)
    if len(ties) > 1 + verdict.detections // TIES:
        verdict.failures += ties
    else:
        verdict.exempt += 2 * len(ties)
    return verdict


def compare_nearly(reference, other, batches: list[dict[str, np.ndarray]]) -> Agreement:
    """Whether a model of int8 or float16 finds nearly what the trained one finds.

    Compared are the confident detections of both, those with at least half of the trained model's
    highest score. One that the other model does not have, with `NEAR_OVERLAP` and `NEAR_SCORE`, is
    counted as `exempt`; if they are more than `NEAR_SHARE` of all, they are the verdict's failures.

    Args:
        reference, other: `Predictor.run`.
        batches: of the reader.
    """
    pairs = [
        pair for batch in batches
        for pair in zip(*(by_image(*run(batch)) for run in (reference, other)), strict=True)
    ]  # fmt: skip
    verdict = Agreement(len(pairs), empty=sum(not len(wanted) for wanted, _ in pairs))
    confident = max((float(rows[:, 1].max()) for rows, _ in pairs if len(rows)), default=0) / 2
    lost = []
    for number, (wanted, found) in enumerate(pairs):
        for name, rows, others in (("the export", wanted, found), ("the model", found, wanted)):
            for row in rows[rows[:, 1] >= confident]:
                verdict.detections += 1
                same = others[others[:, 0] == row[0]]
                same = same[iou(row[2:], same[:, 2:]) >= NEAR_OVERLAP]
                scores = np.abs(same[:, 1] - row[1])
                if not len(same) or scores.min() > NEAR_SCORE:
                    lost.append(
                        f"image {number}: class {row[0]:.0f} at {row[2:].round(1).tolist()}, score "
                        f"{row[1]:.3f}: not in {name}"
                    )
                    continue
                pixels = np.abs(same[scores.argmin(), 2:] - row[2:]).max()
                verdict.score = max(verdict.score, float(scores.min()))
                verdict.pixels = max(verdict.pixels, float(pixels))
    if len(lost) > NEAR_SHARE * verdict.detections:
        verdict.failures = lost
    else:
        verdict.exempt = len(lost)
    return verdict


def _match(verdict: Agreement, wanted, found, limits: dict, place: str) -> list[str]:
    """Pair each wanted detection with the nearest one of its class.

    Returns:
        a line for each tie: two boxes that score alike and overlap so far that NMS keeps only the
        one that comes first. Rounding decides it, but many ties are boxes in other places.
    """
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    free = np.ones(len(found), bool)
    lost = []
    for row in wanted[np.argsort(-wanted[:, 1], kind="stable")]:
        same = np.flatnonzero(free & (found[:, 0] == row[0]))
        distance = np.abs(found[same, 2:] - row[2:]).max(axis=1) if len(same) else np.array([])
        if not len(same) or distance.min() > max(1.0, 20 * PIXELS):
            lost.append(row)
            continue
        # equal boxes with other scores exist: the nearer score of those at hand
        near = same[distance <= distance.min() + PIXELS]
        best = near[np.abs(found[near, 1] - row[1]).argmin()]
        free[best] = False
        score = abs(found[best, 1] - row[1])
        pixels = np.abs(found[best, 2:] - row[2:]).max()
        verdict.score, verdict.pixels = max(verdict.score, score), max(verdict.pixels, pixels)
        if score > SCORE or pixels > PIXELS:
            verdict.failures.append(
                f"{place}: class {row[0]:.0f} at {row[2:].round(1).tolist()}: score {row[1]:.5f} "
                f"differs by {score:.1e}, box by {pixels:.3f} pixels"
            )
    ties, more = [], list(found[free])
    for row in lost[:]:
        for k, other in enumerate(more):
            overlap = iou(row[2:], other[None, 2:])[0]
            alike = row[0] == other[0] and abs(row[1] - other[1]) < SCORE
            if alike and overlap > limits["nms_threshold"] - 1e-3:
                ties.append(
                    f"{place}: class {row[0]:.0f} at {row[2:].round(1).tolist()}, score "
                    f"{row[1]:.5f}: in the export at {other[2:].round(1).tolist()}"
                )
                lost = [x for x in lost if x is not row]
                del more[k]
                break
    for row, side in [(r, wanted) for r in lost] + [(r, found) for r in more]:
        if _at_a_limit(row, side, wanted, found, limits):
            verdict.exempt += 1
        else:
            name = "is missing in the export" if side is wanted else "only the export has it"
            verdict.failures.append(
                f"{place}: class {row[0]:.0f} at {row[2:].round(1).tolist()}, score {row[1]:.5f}: "
                f"{name}"
            )
    return ties


def _at_a_limit(row, side, wanted, found, limits: dict) -> bool:
    """Whether rounding alone can decide if this detection is kept."""
    if row[1] - limits["score_threshold"] < SCORE:
        return True
    other = found if side is wanted else wanted
    if len(other) >= limits["keep_top_k"] and row[1] - other[:, 1].min() < SCORE:
        return True
    same = np.concatenate([wanted, found])
    same = same[(same[:, 0] == row[0]) & (same[:, 1] >= row[1] - SCORE)]
    return bool((np.abs(iou(row[2:], same[:, 2:]) - limits["nms_threshold"]) < 1e-3).any())
