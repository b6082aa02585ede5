"""What was found on one image, and the forms in which it is handed on."""

import html
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fcos_recipe.errors import UserError


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """What was found on one image, best first.

    Args:
        boxes: float32 [n, 4], x1, y1, x2, y2 in pixels of the original image.
        scores: float32 [n].
        labels: int64 [n], rows of `names`.
        names: of all classes.
        source: the image's file, or what it was: "array 3".
        size: height and width of the image in pixels; 0, 0 if it could not be read.
        error: why nothing was detected: the image could not be read or prepared; else None.
        seconds: time that this image took, its share of a batch: "prepare" (decoding and
            transforms) and "run" (the model).
        category_ids: the annotations' id of each class.
        frame: number of a video's or stream's frame, from 0; None: not a frame.
        at: time of the frame in seconds from the start of its video; None: not a frame.
        pixels: gives the image, uint8 [H, W, 3] in RGB; files are read again.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    source: str = ""
    size: tuple[int, int] = (0, 0)
    error: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    category_ids: list[int] = field(default_factory=list)
    frame: int | None = None
    at: float | None = None
    pixels: Callable[[], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def xyxy(self) -> np.ndarray:
        """float32 [n, 4]: x1, y1, x2, y2 in pixels."""
        return self.boxes

    @property
    def xywh(self) -> np.ndarray:
        """float32 [n, 4]: x1, y1, width, height in pixels, as COCO has them."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)

    @property
    def normalized(self) -> np.ndarray:
        """float32 [n, 4]: x1, y1, x2, y2 as shares of the image's width and height, 0 to 1."""
        height, width = (max(1, side) for side in self.size)
        return self.boxes / np.array([width, height, width, height], np.float32)

    @property
    def class_names(self) -> list[str]:
        """The class name of each detection."""
        return [self.names[label] for label in self.labels]

    def select(self, rows: Any) -> "Detections":
        """The detections of these rows: anything that indexes an array [n]."""
        boxes, scores, labels = self.boxes[rows], self.scores[rows], self.labels[rows]
        return replace(self, boxes=boxes, scores=scores, labels=labels)

    def filter(
        self,
        classes: Collection[str | int] | None = None,
        min_score: float = 0.0,
        most: int | None = None,
        agnostic_nms: float | None = None,
    ) -> "Detections":
        """Some of the detections.

        Args:
            classes: names or row numbers of the classes to keep; None: all.
            min_score: detections that score less are left out.
            most: keep the best so many; None: all.
            agnostic_nms: IoU above which the worse of two boxes is left out although they are of
                different classes; None: the classes do not meet.

        Raises:
            UserError: a class that the model does not have.
        """
        keep = self.scores >= min_score
        if classes is not None:
            keep &= np.isin(self.labels, class_rows(classes, self.names))
        rows = np.flatnonzero(keep)
        if agnostic_nms is not None:
            rows = rows[suppressed(self.boxes[rows], agnostic_nms)]
        return self.select(rows[:most])

    def image(self) -> np.ndarray:
        """The image, uint8 [H, W, 3] in RGB.

        Raises:
            UserError: it could not be read, or is not known.
        """
        if self.error or self.pixels is None:
            raise UserError(self.error or f"{self.source or 'these detections'}: no image is known")
        return self.pixels()

    def plot(self, min_score: float = 0.0) -> np.ndarray:
        """The image with the boxes that score at least this, uint8 [H, W, 3] in RGB."""
        from fcos_recipe.drawing import draw

        return draw(self.image(), self.boxes, self.scores, self.labels, self.names, min_score)

    def crops(self) -> list[np.ndarray]:
        """The part of the image in each box, uint8 [h, w, 3] in RGB, at least a pixel wide."""
        image = self.image()
        low = np.floor(self.boxes[:, :2]).clip(0, np.array(image.shape[1::-1]) - 1).astype(int)
        high = np.maximum(np.ceil(self.boxes[:, 2:]).astype(int), low + 1)
        return [image[y1:y2, x1:x2] for (x1, y1), (x2, y2) in zip(low, high)]

    def to_coco(self, image_id: int | str = 1) -> list[dict[str, Any]]:
        """COCO results: `image_id`, `category_id`, `bbox` (x, y, width, height), `score`."""
        ids = self.category_ids or range(1, len(self.names) + 1)
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
            for box, score, label in zip(self.xywh.tolist(), self.scores.tolist(), self.labels)
        ]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each detection: x1, y1, x2, y2 (float32, pixels), score
        (float32), label (int64), name (text).

        Raises:
            UserError: pandas is not installed.
        """
        pandas = _library("pandas")
        frame = pandas.DataFrame(self.boxes, columns=["x1", "y1", "x2", "y2"])
        names = pandas.Series(self.class_names, dtype=str)  # also text where nothing was found
        return frame.assign(score=self.scores, label=self.labels, name=names)

    def to_supervision(self) -> Any:
        """A copy as `supervision.Detections`, with class names in `data["class_name"]`.

        Raises:
            UserError: supervision is not installed.
        """
        return _library("supervision").Detections(
            xyxy=self.boxes.copy(), confidence=self.scores.copy(), class_id=self.labels.copy(),
            data={"class_name": np.array(self.class_names, dtype=str)},
        )  # fmt: skip

    def __repr__(self) -> str:
        place = f"{self.source}, " if self.source else ""
        if self.error:
            return f"<Detections: {self.error}>"
        height, width = self.size
        counts = ", ".join(f"{n} {name}" for name, n in Counter(self.class_names).most_common())
        best = f"; best {self.scores.max():.2f}" if len(self) else ""
        return f"<Detections: {place}{width}x{height}: {counts or 'nothing'}{best}>"

    def _repr_html_(self) -> str:
        """The best 20 detections as a table, for notebooks."""
        from fcos_recipe.drawing import color

        title = f"<p>{html.escape(repr(self).strip('<>'))}</p>"
        rows = "".join(
            f"<tr><td style='color:rgb{color(int(label))}'>&#9632;</td>"
            f"<td>{html.escape(self.names[label])}</td><td>{score:.3f}</td>"
            + "".join(f"<td>{value:.1f}</td>" for value in box)
            + "</tr>"
            for box, score, label in list(zip(self.boxes, self.scores, self.labels))[:20]
        )
        heads = "".join(
            f"<th>{name}</th>" for name in ("", "class", "score", *"x1 y1 x2 y2".split())
        )
        more = f"<p>{len(self) - 20} more</p>" if len(self) > 20 else ""
        return f"{title}<table><tr>{heads}</tr>{rows}</table>{more}" if len(self) else title


def class_rows(classes: Collection[str | int], names: list[str]) -> list[int]:
    """Row numbers of classes that are given by name or by number, also as text.

    Raises:
        UserError: a class that is not among the names.
    """
    known = {name: row for row, name in reversed(list(enumerate(names)))}
    known |= {str(row): row for row in range(len(names)) if str(row) not in known}
    for wanted in classes:
        if str(wanted) not in known:
            some = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise UserError(f"classes: {wanted!r} is unknown; the model has {some}")
    return [known[str(wanted)] for wanted in classes]


def suppressed(boxes: np.ndarray, limit: float) -> list[int]:
    """Greedy non-maximum suppression of boxes, float [n, 4] best first; the rows that stay."""
    kept: list[int] = []
    rest = np.arange(len(boxes))
    while len(rest):
        first, rest = int(rest[0]), rest[1:]
        kept.append(first)
        rest = rest[iou(boxes[first], boxes[rest]) <= limit]
    return kept


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union, float [n], of a box [4] and others [n, 4], x1, y1, x2, y2."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = (high - low).clip(0).prod(axis=1)
    area = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - common
    return common / np.maximum(area, 1e-12)


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed; run `pip install {name}`") from None
