"""How weights are evaluated, and the figures that come of it. Imports neither Paddle nor NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_DETS = 100  # per image, as COCO's figures count them


@dataclass(frozen=True)
class Options:
    """How weights are evaluated. The defaults give COCO's figures.

    Args:
        score_threshold: detections that score less are left out.
        max_dets: detections per image that count.
        sizes: short sides in pixels for test-time augmentation; one NMS over all views.
        flip: also evaluate mirrored images; one NMS over both views.
        precision: fp32, or bf16 for an export of format paddle.
        padding_effect: also evaluate one image at a time, padded to multiples of 128 as
            PaddleDetection does, for `reference_ap`.
        eval_set: evaluate this data set alone, EvalDataset or a name of the config's `eval_sets`;
            None: all of them, the figures of EvalDataset standing for the whole.
    """

    score_threshold: float = 0.0
    max_dets: int = MAX_DETS
    sizes: Sequence[int] = ()
    flip: bool = False
    precision: str = "fp32"
    padding_effect: bool = False
    eval_set: str | None = None


COCO = Options()  #: evaluation as COCO defines it


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation.

    Args:
        result: everything that was measured, as eval.json holds it; JSON values. The keys are
            described in docs/evaluation.md.
        metric: a `CocoMetric`: the detections and their matches with the ground truth, complete on
            rank 0; None where the figures were read from a file.
    """

    result: dict[str, Any]
    metric: Any = field(default=None, repr=False)

    @property
    def figures(self) -> dict[str, float]:
        """COCO's twelve figures by name (AP, AP50, ..., AR_large), from 0 to 1; -1 is undefined."""
        return dict(zip(self.result["names"], self.result["stats"], strict=True))

    @property
    def ap(self) -> float:
        """Box AP averaged over IoU thresholds from 0.50 to 0.95, from 0 to 1; -1 is undefined."""
        return float(self.result["stats"][0])

    @property
    def sets(self) -> dict[str, "Evaluation"]:
        """The evaluations of the config's `eval_sets` by name; empty without any."""
        return {name: Evaluation(one) for name, one in self.result.get("sets", {}).items()}

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """One entry per class of the data set, in the order of its categories."""
        return list(self.result["per_class"])
