"""COCO figures from arrays of detections, on one rank or gathered from many.

The matching is hotcoco's (Rust; columns in, precision table out); pycocotools, whose figures are
the definition, takes over where hotcoco has no wheel. The twelve figures are formed here from
either one's precision and recall tables as in pycocotools' COCOeval.summarize.
"""

import contextlib
import io
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fcos_recipe.errors import UserError

NAMES = [
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
]  # fmt: skip
# (IoU, area range, largest number of detections) of each figure, in COCO's order
_DEFINITIONS = [
    ("0.50:0.95", "all", 100), ("0.50", "all", 100), ("0.75", "all", 100),
    ("0.50:0.95", "small", 100), ("0.50:0.95", "medium", 100), ("0.50:0.95", "large", 100),
    ("0.50:0.95", "all", 1), ("0.50:0.95", "all", 10), ("0.50:0.95", "all", 100),
    ("0.50:0.95", "small", 100), ("0.50:0.95", "medium", 100), ("0.50:0.95", "large", 100),
]  # fmt: skip
_AREAS = ["all", "small", "medium", "large"]
_MAX_DETECTIONS = [1, 10, 100]
_IOUS = {"0.50:0.95": slice(None), "0.50": slice(0, 1), "0.75": slice(5, 6)}
_COLUMNS = {"image_id": np.int64, "category_id": np.int64, "bbox": np.float64, "score": np.float64}


class CocoMetric:
    """Collects detections and turns them into COCO's twelve figures.

    Args:
        annotations: COCO annotation file, or its content. `area` and `iscrowd` may be missing:
            the box's area and 0 stand in.
        category_ids: category id of each class index; default the order of the file's
            `categories`, which is also the order in which the data set numbers its classes.
        engine: "hotcoco" or "pycocotools"; default the first that can be imported.

    Raises:
        UserError: what is wrong with the annotations, with file and field.
    """

    def __init__(
        self,
        annotations: str | Path | dict,
        category_ids: list[int] | None = None,
        engine: str | None = None,
    ):
        self.source = "annotations" if isinstance(annotations, dict) else str(annotations)
        content = annotations if isinstance(annotations, dict) else _read_json(annotations)
        self.images, self.categories, self._truth = _ground_truth(content, self.source)
        self.category_ids = np.array(category_ids or list(self.categories), np.int64)
        self.engine = engine or _engine()
        self.reset()

    def reset(self) -> None:
        """Forget the detections; the annotations stay."""
        self._seen: list[np.ndarray] = []
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        self.notes: list[str] = []

    def update(self, image_ids: np.ndarray, boxes: np.ndarray, counts: np.ndarray) -> None:
        """Add the model's output for a batch.

        Args:
            image_ids: int [N] or [N, 1].
            boxes: float [M, 6]: class index, score, x1, y1, x2, y2 in original image pixels; the
                rows of the first image come first.
            counts: int [N], rows of each image; they sum to M.
        """
        image_ids = np.asarray(image_ids, np.int64).reshape(-1)
        counts = np.asarray(counts, np.int64).reshape(-1)
        # float64 before subtracting, as pycocotools would see the numbers
        boxes = np.asarray(boxes, np.float64).reshape(-1, 6)[: counts.sum()]
        classes = boxes[:, 0].astype(np.int64)
        if classes.size and not 0 <= classes.min() <= classes.max() < len(self.category_ids):
            raise UserError(
                f"{self.source}: categories: {len(self.category_ids)} classes, but the model found "
                f"class {classes.max()}; set num_classes to the data set's number of classes"
            )
        xywh = np.concatenate([boxes[:, 2:4], boxes[:, 4:6] - boxes[:, 2:4]], axis=1)
        self.add(np.repeat(image_ids, counts), self.category_ids[classes], xywh, boxes[:, 1])
        self._seen.append(image_ids)

    def add(
        self, image_id: np.ndarray, category_id: np.ndarray, bbox: np.ndarray, score: np.ndarray
    ) -> None:
        """Add M detections in COCO's terms: ids int [M], x, y, w, h float [M, 4], score [M]."""
        columns = dict(image_id=image_id, category_id=category_id, bbox=bbox, score=score)
        if not (np.isfinite(bbox).all() and np.isfinite(score).all()):
            raise UserError(f"{self.source}: a detection has a box or score that is not finite")
        for name, dtype in _COLUMNS.items():
            self._parts[name].append(np.asarray(columns[name], dtype))

    @property
    def seen(self) -> np.ndarray:
        """Ids of the images that `update` was given, int64 [K], sorted."""
        return np.sort(np.concatenate(self._seen or [np.empty(0, np.int64)]))

    def state(self) -> dict[str, np.ndarray]:
        """What this rank has collected, as plain arrays to be sent to another.

        Returns:
            `seen` int64 [K], `image_id` and `category_id` int64 [M], `bbox` float64 [M, 4]
            (x, y, w, h), `score` float64 [M].
        """
        empty = {name: np.empty((0, 4) if name == "bbox" else 0, t) for name, t in _COLUMNS.items()}
        joined = {name: np.concatenate([empty[name], *self._parts[name]]) for name in _COLUMNS}
        return {"seen": self.seen, **joined}

    def merge(self, states: Iterable[dict[str, np.ndarray]]) -> None:
        """Replace what was collected by the union of all ranks' `state()`, this rank's included."""
        states = list(states)
        self.reset()
        for state in states:
            self._seen.append(state["seen"])
            self.add(*(state[name] for name in _COLUMNS))

    def detections(self) -> dict[str, np.ndarray]:
        """All detections sorted by image, each image's in the order in which they came.

        The order of arrival differs with the number of ranks and would decide between equal
        scores; this one does not. Columns as in `state()`, without `seen`.

        Raises:
            ValueError: an image was evaluated twice; its boxes would count twice.
        """
        state = self.state()
        ids, times = np.unique(state.pop("seen"), return_counts=True)
        if (times > 1).any():
            raise ValueError(f"image id {ids[times > 1][0]} was evaluated more than once")
        order = np.argsort(state["image_id"], kind="stable")
        return {name: column[order] for name, column in state.items()}

    def result(self, img_ids: Iterable[int] | None = None) -> dict:
        """The figures.

        Args:
            img_ids: images to judge on; default all in the annotations. `metric.seen` for those
                that were really evaluated.

        Returns:
            JSON-ready dict: `stats` (12 floats in COCO's order, -1 where a size range has no
            annotation) and their `names`; `per_class`, best first (id, name, AP, AP50,
            instances, detections); `images`, `instances` (without crowds), `crowds`,
            `detections`; `reason` why AP is 0 or undefined, else None; `notes`; `engine`;
            `seconds`.
        """
        start = time.perf_counter()
        chosen = np.array(sorted(self.images if img_ids is None else set(map(int, img_ids))))
        if missing := [i for i in chosen.tolist() if i not in self.images]:
            raise UserError(f"{self.source}: images: no image with id {missing[0]}")
        detections = self.detections()
        ids = sorted(self.categories)
        unknown = ~np.isin(detections["category_id"], ids)
        truth = _rows(self._truth, np.isin(self._truth["image_id"], chosen))
        known = _rows(detections, np.isin(detections["image_id"], chosen) & ~unknown)
        images = [self.images[i] for i in chosen.tolist()]
        categories = [{"id": i, "name": self.categories[i]} for i in ids]

        precision, recall = _ENGINES[self.engine](images, categories, truth, known)
        stats = []
        for k, (iou, area, limit) in enumerate(_DEFINITIONS):
            at = _AREAS.index(area), _MAX_DETECTIONS.index(limit)
            table = precision[..., at[0], at[1]] if k < 6 else recall[..., at[0], at[1]]
            stats.append(_mean(table[_IOUS[iou]]))
        crowd = truth["iscrowd"] > 0
        per_class = [
            {
                "id": i,
                "name": self.categories[i],
                "AP": _mean(precision[:, :, k, 0, 2]),
                "AP50": _mean(precision[:1, :, k, 0, 2]),
                "instances": int((truth["category_id"][~crowd] == i).sum()),
                "detections": int((known["category_id"] == i).sum()),
            }
            for k, i in enumerate(ids)
        ]
        reason = None
        if stats[1] <= 0:
            reason = self._reason(images, truth, known, int(unknown.sum()))
        return {
            "stats": stats,
            "names": NAMES,
            "per_class": sorted(per_class, key=lambda row: (-row["AP"], row["id"])),
            "images": len(images),
            "instances": int((~crowd).sum()),
            "crowds": int(crowd.sum()),
            "detections": len(known["score"]),
            "reason": reason,
            "notes": self.notes + _unknown_note(detections["category_id"][unknown], ids),
            "engine": self.engine,
            "seconds": round(time.perf_counter() - start, 3),
        }

    def _reason(self, images: list, truth: dict, found: dict, unknown: int) -> str:
        """One line on why nothing was matched."""
        if not (truth["iscrowd"] == 0).any():
            return f"no annotation on the {len(images)} images judged"
        if not len(found["score"]):
            if unknown:
                return (
                    f"class ids disagree: none of the {unknown} detections has a category id of "
                    f"{self.source}"
                )
            return f"no detection on {len(images)} images: no box above the score threshold"
        scores = f"scores {found['score'].min():.3g} to {found['score'].max():.3g}"
        one = {"category_id": np.ones_like}
        truth, found_any = (
            {k: one.get(k, np.asarray)(v) for k, v in table.items()} for table in (truth, found)
        )
        _, recall = _ENGINES[self.engine](images, [{"id": 1, "name": "any"}], truth, found_any)
        if _mean(recall[:1, :, 0, 2]) > 0:
            return (
                f"class ids disagree: of {len(found['score'])} detections ({scores}) some lie on "
                "annotations, none on one of its own class"
            )
        return (
            f"no annotation matched: none of {len(found['score'])} detections ({scores}) overlaps "
            "an annotation by IoU 0.5"
        )

    def write_predictions(self, path: str | Path) -> None:
        """Write all detections as a COCO results file (a list of one dict per box).

        Boxes keep 3 decimals of a pixel; scores keep the 9 digits that tell float32 apart, so
        that no ties arise.
        """
        columns = self.detections()
        rows = [
            {"image_id": i, "category_id": c, "bbox": b, "score": float(f"{s:.9g}")}
            for i, c, b, s in zip(
                columns["image_id"].tolist(),
                columns["category_id"].tolist(),
                columns["bbox"].round(3).tolist(),
                columns["score"].tolist(),
                strict=True,
            )
        ]
        Path(path).write_text(json.dumps(rows), encoding="utf-8")

    def load_result_json(self, path: str | Path) -> None:
        """Add the detections of a COCO results file.

        Image ids written as text ("000000000139", "000000000139.jpg") are mapped to the
        annotations' ids and a line in `notes` says so.

        Raises:
            UserError: an entry is malformed, or its image is not in the annotations.
        """
        entries = _read_json(path)
        if not isinstance(entries, list):
            raise UserError(f"{path}: a COCO results file is a list of detections")
        ids, texts = [], 0
        for k, entry in enumerate(entries):
            missing = [n for n in _COLUMNS if not isinstance(entry, dict) or n not in entry]
            if missing or len(entry["bbox"]) != 4:
                field = missing[0] if missing else "bbox"
                raise UserError(f"{path}: [{k}].{field}: missing or malformed; want {[*_COLUMNS]}")
            texts += isinstance(entry["image_id"], str)
            ids.append(self._image_id(entry["image_id"], f"{path}: [{k}].image_id"))
        if texts:
            self.notes.append(f"{path}: {texts} image ids written as text were read as numbers")
        self.add(
            np.array(ids, np.int64),
            np.array([entry["category_id"] for entry in entries], np.int64),
            np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
            np.array([entry["score"] for entry in entries], np.float64),
        )

    def _image_id(self, value: int | str, where: str) -> int:
        if isinstance(value, str):
            stem = Path(value).stem
            if not stem.isdigit():
                raise UserError(f"{where}: {value!r} is not a number; want the annotations' id")
            value = int(stem)
        if value not in self.images:
            raise UserError(f"{where}: image {value} is not in {self.source}; another split?")
        return value


def table(result: dict) -> str:
    """The twelve figures in pycocotools' wording and AP per class, as console text."""
    lines = []
    for k, ((iou, area, limit), value) in enumerate(
        zip(_DEFINITIONS, result["stats"], strict=True)
    ):
        kind = "Average Precision (AP)" if k < 6 else "Average Recall    (AR)"
        lines.append(
            f" {kind} @[ IoU={iou:<9} | area={area:>6} | maxDets={limit:>3} ] = {value:.3f}"
        )
    width = max([len(row["name"]) for row in result["per_class"]] + [5])
    lines.append(f"\n {'class':<{width}}     AP   AP50  instances  detections")
    for row in result["per_class"]:
        lines.append(
            f" {row['name']:<{width}} {row['AP']:6.3f} {row['AP50']:6.3f}"
            f" {row['instances']:10d} {row['detections']:11d}"
        )
    if result["reason"]:
        lines.append(f"\n {result['reason']}")
    return "\n".join(lines + [f" {note}" for note in result["notes"]])


def _engine() -> str:
    try:
        import hotcoco  # noqa: F401
    except ImportError:
        return "pycocotools"
    return "hotcoco"


def _hotcoco(images: list, categories: list, truth: dict, found: dict):
    """Precision [10 IoU, 101 recall, K, 4 areas, 3 limits] and recall [10, K, 4, 3] by hotcoco."""
    import hotcoco

    annotations = hotcoco.COCO.from_arrays(
        images,
        categories,
        truth["image_id"],
        truth["category_id"],
        truth["bbox"],
        area=truth["area"],
        iscrowd=truth["iscrowd"],
    )
    # ids pass through float64 in this form: exact below 2**53
    results = annotations.load_res(
        np.column_stack([found[n] for n in ("image_id", "bbox", "score", "category_id")])
    )
    judge = hotcoco.COCOeval(annotations, results, "bbox")
    judge.evaluate()
    judge.accumulate()
    return judge.eval["precision"], judge.eval["recall"]


def _pycocotools(images: list, categories: list, truth: dict, found: dict):
    """The same tables by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = {**found, "area": found["bbox"][:, 2] * found["bbox"][:, 3]}
    found["iscrowd"] = np.zeros(len(found["area"]), np.int64)
    tables = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for columns in (truth, found):
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            annotations = [
                {"id": k, **dict(zip(columns, row, strict=True))}
                for k, row in enumerate(rows, start=1)  # its matching takes id 0 for "none"
            ]
            tables.append(COCO())
            tables[-1].dataset = dict(images=images, categories=categories, annotations=annotations)
            tables[-1].createIndex()
        judge = COCOeval(*tables, "bbox")
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"], judge.eval["recall"]


_ENGINES = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}


def _mean(values: np.ndarray) -> float:
    """Mean of the defined entries; -1 when there is none."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _rows(columns: dict[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[keep] for name, column in columns.items()}


def _unknown_note(category_ids: np.ndarray, known: list[int]) -> list[str]:
    if not len(category_ids):
        return []
    listed = ", ".join(map(str, np.unique(category_ids)[:5]))
    return [
        f"{len(category_ids)} detections of categories that the annotations do not have "
        f"({listed}) were left out; theirs are {known[0]} to {known[-1]}"
    ]


def _read_json(path: str | Path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def _ground_truth(content: dict, source: str) -> tuple[dict, dict, dict[str, np.ndarray]]:
    """Annotations as columns.

    Returns:
        images: id -> {id, width, height}; categories: id -> name, in the file's order; columns
        `image_id`, `category_id`, `iscrowd` int64 [G], `bbox` float64 [G, 4], `area` float64 [G].
        Annotations of images that are not listed are left out, as pycocotools does.
    """
    for key in ("images", "categories", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{source}: {key}: missing; want a COCO annotation file")
    for key in ("images", "categories"):
        for k, entry in enumerate(content[key]):
            if not isinstance(entry.get("id"), int):
                raise UserError(
                    f"{source}: {key}[{k}].id: {entry.get('id')!r} is not a whole number, which "
                    "COCO's ids are; number them and use the same numbers in `annotations`"
                )
    images = {
        entry["id"]: {k: entry.get(k, 0) for k in ("id", "width", "height")}
        for entry in content["images"]
    }
    categories = {
        entry["id"]: str(entry.get("name", entry["id"])) for entry in content["categories"]
    }
    for key, found in (("images", images), ("categories", categories)):
        if len(found) != len(content[key]):
            raise UserError(f"{source}: {key}: two entries have the same id")
    kept = []
    for k, entry in enumerate(content["annotations"]):
        if entry.get("image_id") not in images:
            if isinstance(entry.get("image_id"), int):
                continue
            raise UserError(f"{source}: annotations[{k}].image_id: want a whole number")
        if entry.get("category_id") not in categories:
            raise UserError(
                f"{source}: annotations[{k}].category_id: {entry.get('category_id')!r} is not "
                "among `categories`"
            )
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            raise UserError(f"{source}: annotations[{k}].bbox: want [x, y, width, height]")
        kept.append(entry)
    boxes = np.array([entry["bbox"] for entry in kept], np.float64).reshape(-1, 4)
    columns = {
        "image_id": np.array([entry["image_id"] for entry in kept], np.int64),
        "category_id": np.array([entry["category_id"] for entry in kept], np.int64),
        "bbox": boxes,
        "area": np.array(
            [e.get("area", w * h) for e, (_, _, w, h) in zip(kept, boxes.tolist(), strict=True)],
            np.float64,
        ),
        "iscrowd": np.array([int(entry.get("iscrowd", 0)) for entry in kept], np.int64),
    }
    return images, categories, columns
