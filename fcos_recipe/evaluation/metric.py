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
from typing import Any

import numpy as np

from fcos_recipe.data.coco_json import rows_of
from fcos_recipe.errors import UserError, one_line
from fcos_recipe.evaluation.options import MAX_DETS
from fcos_recipe.evaluation.results_file import COLUMNS, read_annotations, read_results
from fcos_recipe.files.atomic import write_named

NAMES = [
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
]  # fmt: skip
# (IoU, area range, row of the limits on detections per image) of each figure, in COCO's order
_DEFINITIONS = [
    ("0.50:0.95", "all", 2), ("0.50", "all", 2), ("0.75", "all", 2),
    ("0.50:0.95", "small", 2), ("0.50:0.95", "medium", 2), ("0.50:0.95", "large", 2),
    ("0.50:0.95", "all", 0), ("0.50:0.95", "all", 1), ("0.50:0.95", "all", 2),
    ("0.50:0.95", "small", 2), ("0.50:0.95", "medium", 2), ("0.50:0.95", "large", 2),
]  # fmt: skip
_AREAS = ["all", "small", "medium", "large"]
_IOUS = {"0.50:0.95": slice(None), "0.50": slice(0, 1), "0.75": slice(5, 6)}
_BINS = np.array([0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *np.arange(0.1, 1.05, 0.1)])


class CocoMetric:
    """Collects detections and turns them into COCO's twelve figures.

    Args:
        annotations: COCO annotation file, its content, or a list of files that are judged as one.
            `area` and `iscrowd` may be missing: the box's area and 0 stand in.
        category_ids: category id of each class index; default the order of the file's
            `categories`, which is also the order in which the data set numbers its classes.
        engine: "hotcoco" or "pycocotools"; default the first that can be imported.
        score_threshold: detections that score less are left out, which can only lower the figures.
        max_dets: detections per image that are judged; COCO's figures are those with 100.

    Attributes:
        last: the last `result()`; None before.
        coco_eval: hotcoco's COCOeval behind it; None where pycocotools judged.
        judged: what the last `result()` was made of: `image_id` int64 [N], and as dicts of columns
            `truth` and `found`; their rows, counted from 1, are the ids that hotcoco gives them.
        dataset: the `COCODataSet` that the images came from, where one is known.

    Raises:
        UserError: what is wrong with the annotations, with file and field.
    """

    def __init__(
        self,
        annotations: str | Path | dict | list[str | Path],
        category_ids: list[int] | None = None,
        engine: str | None = None,
        score_threshold: float = 0.0,
        max_dets: int = MAX_DETS,
    ):
        files = annotations if isinstance(annotations, list) else [annotations]
        self.source = " + ".join("annotations" if isinstance(x, dict) else str(x) for x in files)
        self.images, self.categories, self._truth, self._remarks = read_annotations(annotations)
        self.score_threshold, self.limits = score_threshold, sorted({1, 10, max_dets})
        if not np.isfinite(score_threshold):
            raise UserError(f"score threshold: {score_threshold} is no number to compare with")
        if len(self.limits) != 3 or max_dets < 10:
            raise UserError(f"--max-dets {max_dets}: want more than 10, as AR1 and AR10 stay")
        self.coco_eval: Any = None  # hotcoco's; None with pycocotools, and before compute()
        self.last: Any = None  # dict of figures
        self.judged: Any = None  # dict of columns
        self.dataset: Any = None
        self.category_ids = np.array(category_ids or list(self.categories), np.int64)
        self.engine = engine or _engine()
        self.reset()

    def reset(self) -> None:
        """Forget the detections; the annotations stay."""
        self._seen: list[np.ndarray] = []
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
        self.low_scores = np.zeros(len(_BINS) - 1, np.int64)
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
        if self.score_threshold > 0:
            low = score < self.score_threshold
            self.count_low(score[low])
            columns = _rows(columns, ~low)
        for name, dtype in COLUMNS.items():
            self._parts[name].append(np.asarray(columns[name], dtype))

    def count_low(self, scores: np.ndarray) -> None:
        """Count scores, float [K], that are too low to be judged: they explain an AP of 0."""
        self.low_scores += np.histogram(np.clip(scores, 0, 1), _BINS)[0]

    @property
    def seen(self) -> np.ndarray:
        """Ids of the images that `update` was given, int64 [K], sorted."""
        return np.sort(np.concatenate(self._seen or [np.empty(0, np.int64)]))

    def state(self) -> dict[str, np.ndarray]:
        """What this rank has collected, as plain arrays to be sent to another.

        Returns:
            `seen` int64 [K], `image_id` and `category_id` int64 [M], `bbox` float64 [M, 4]
            (x, y, w, h), `score` float64 [M]; `low_scores` int64, a histogram.
        """
        empty = {name: np.empty((0, 4) if name == "bbox" else 0, t) for name, t in COLUMNS.items()}
        joined = {name: np.concatenate([empty[name], *self._parts[name]]) for name in COLUMNS}
        return {"seen": self.seen, "low_scores": self.low_scores, **joined}

    def merge(self, states: Iterable[dict[str, np.ndarray]]) -> None:
        """Replace what was collected by the union of all ranks' `state()`, this rank's included."""
        states = list(states)
        self.reset()
        for state in states:
            self._seen.append(state["seen"])
            self.add(*(state[name] for name in COLUMNS))
            self.low_scores = self.low_scores + state["low_scores"]

    def detections(self) -> dict[str, np.ndarray]:
        """All detections sorted by image, each image's in the order in which they came.

        The order of arrival differs with the number of ranks and would decide between equal
        scores; this one does not. Columns as in `state()`, without `seen`.

        Raises:
            ValueError: an image was evaluated twice; its boxes would count twice.
        """
        state = self.state()
        del state["low_scores"]
        ids, times = np.unique(state.pop("seen"), return_counts=True)
        if (times > 1).any():
            raise ValueError(f"image id {ids[times > 1][0]} was evaluated more than once")
        order = np.argsort(state["image_id"], kind="stable")
        return {name: column[order] for name, column in state.items()}

    def result(self, img_ids: Iterable[int] | None = None) -> dict:
        """The figures.

        Args:
            img_ids: images to evaluate on; default all in the annotations. `metric.seen` for those
                that were really evaluated.

        Returns:
            JSON-ready dict: `stats` (12 floats in COCO's order, -1 where a size range has no
            annotation) and their `names`; `per_class`, best first (id, name, AP, AP50, AP75,
            AP by size, AR, instances, detections); `images`, `instances` (without crowds),
            `crowds`, `detections`; `max_dets`, `score_threshold`; `reason` why AP is 0 or
            undefined, else None; `notes`; `engine`; `seconds`.
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

        tables = match(self.engine, images, categories, truth, known, self.limits)
        precision, recall, self.coco_eval = tables
        self.judged = {"image_id": chosen, "truth": truth, "found": known}
        stats = []
        for k, (iou, area, limit) in enumerate(_DEFINITIONS):
            at = _AREAS.index(area), limit
            table = precision[..., at[0], at[1]] if k < 6 else recall[..., at[0], at[1]]
            stats.append(_mean(table[_IOUS[iou]]))
        crowd = truth["iscrowd"] > 0
        per_class = [
            {
                "id": i,
                "name": self.categories[i],
                "AP": _mean(precision[:, :, k, 0, 2]),
                "AP50": _mean(precision[:1, :, k, 0, 2]),
                "AP75": _mean(precision[5:6, :, k, 0, 2]),
                **{f"AP_{_AREAS[a]}": _mean(precision[:, :, k, a, 2]) for a in (1, 2, 3)},
                "AR": _mean(recall[:, k, 0, 2]),
                "instances": int((truth["category_id"][~crowd] == i).sum()),
                "detections": int((known["category_id"] == i).sum()),
            }
            for k, i in enumerate(ids)
        ]
        reason = None
        if stats[1] <= 0:
            reason = self._reason(images, truth, known, int(unknown.sum()))
        self.last = {
            "stats": stats,
            "names": [name.replace("100", str(self.limits[2])) for name in NAMES],
            "per_class": sorted(per_class, key=lambda row: (-row["AP"], row["id"])),
            "images": len(images),
            "instances": int((~crowd).sum()),
            "crowds": int(crowd.sum()),
            "detections": len(known["score"]),
            "max_dets": self.limits[2],
            "score_threshold": self.score_threshold,
            "reason": reason,
            "notes": self._remarks
            + self.notes
            + _unknown_note(detections["category_id"][unknown], ids)
            + self._deviations(),
            "engine": self.engine,
            "seconds": round(time.perf_counter() - start, 3),
        }
        return dict(self.last)

    def instances(self) -> dict[int, int]:
        """Annotations of each category id on all images, without crowds."""
        ids, counts = np.unique(
            self._truth["category_id"][self._truth["iscrowd"] == 0], return_counts=True
        )
        return dict.fromkeys(self.categories, 0) | dict(zip(ids.tolist(), counts.tolist()))

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
            above = f" {self.score_threshold:g}" if self.score_threshold else ""
            text = f"no detection on {len(images)} images: no box above the score threshold{above}"
            return text + (f"; scores below it: {_bars(self.low_scores)}" if any(self.low_scores)
                           else "")  # fmt: skip
        scores = f"scores {found['score'].min():.3g} to {found['score'].max():.3g}"
        one = {"category_id": np.ones_like}
        truth, found_any = (
            {k: one.get(k, np.asarray)(v) for k, v in table.items()} for table in (truth, found)
        )
        any_class = [{"id": 1, "name": "any"}]
        _, recall, _ = match(self.engine, images, any_class, truth, found_any, self.limits)
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

        Numbers are written so that they read back exactly: judged again, the file gives the same
        figures.
        """
        columns = self.detections()
        values = zip(*(columns[name].tolist() for name in COLUMNS), strict=True)
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in values]
        write_named(Path(path), json.dumps(rows))

    def load_result_json(self, path: str | Path) -> None:
        """Add the detections of a COCO results file, see `coco_files.read_results`.

        Raises:
            UserError: an entry is malformed, or its image is not in the annotations.
        """
        columns, notes = read_results(path)
        strange = ~np.isin(columns["image_id"], list(self.images))
        if strange.any():
            first = int(np.flatnonzero(strange)[0])
            raise UserError(
                f"{path}: [{first}].image_id: image {columns['image_id'][first]} is not in "
                f"{self.source}; another split?"
            )
        self.notes += notes
        self.add(**columns)

    def _deviations(self) -> list[str]:
        """What keeps the figures from being comparable with published ones."""
        notes = []
        if self.limits[2] != MAX_DETS:
            notes.append(
                f"not COCO's figures: {self.limits[2]} detections per image, not {MAX_DETS}"
            )
        if self.score_threshold > 0:
            notes.append(
                f"not COCO's figures: detections that score less than {self.score_threshold:g} "
                f"({self.low_scores.sum()}) were left out"
            )
        return notes


def table(result: dict, classwise: bool = False) -> str:
    """The twelve figures in pycocotools' wording and AP per class, as console text.

    Without any annotation the figures are all -1, as in pycocotools; then there is only the reason.

    Args:
        result: `CocoMetric.result()`.
        classwise: more columns for each class.
    """
    notes = [f" {note}" for note in result["notes"]]
    if result["stats"][0] < 0:
        why = result["reason"] or "no annotation on the images judged"
        return "\n".join([f" no figures: there is nothing to compare with, {why}", *notes])
    lines = []
    limits = [1, 10, result["max_dets"]]
    for k, ((iou, area, limit), value) in enumerate(
        zip(_DEFINITIONS, result["stats"], strict=True)
    ):
        kind = "Average Precision (AP)" if k < 6 else "Average Recall    (AR)"
        lines.append(
            f" {kind} @[ IoU={iou:<9} | area={area:>6} | maxDets={limits[limit]:>3} ] = {value:.3f}"
        )
    more = ["AP75", "AP_small", "AP_medium", "AP_large", "AR"] if classwise else []
    names = [one_line(row["name"], 60) for row in result["per_class"]]
    width = max(map(len, [*names, "class"]))
    titles = "".join(f"{name:>10}" for name in more)
    lines.append(f"\n {'class':<{width}}     AP   AP50{titles}  instances  detections")
    for name, row in zip(names, result["per_class"], strict=True):
        figures = "".join(f"{row[name]:10.3f}" for name in more)
        lines.append(
            f" {name:<{width}} {row['AP']:6.3f} {row['AP50']:6.3f}{figures}"
            f" {row['instances']:10d} {row['detections']:11d}"
        )
    if result["reason"]:
        lines.append(f"\n {result['reason']}")
    return "\n".join(lines + notes)


def _bars(counts: np.ndarray) -> str:
    """A histogram over `_BINS` in words."""
    rows = zip(_BINS, _BINS[1:], counts.tolist(), strict=False)
    return ", ".join(f"{count} in {low:g}-{high:g}" for low, high, count in rows if count)


def _engine() -> str:
    try:
        import hotcoco  # noqa: F401
    except ImportError:
        return "pycocotools"
    return "hotcoco"


def match(
    engine: str,
    images: list[dict],
    categories: list[dict],
    truth: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    limits: list[int],
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Match detections with annotations by an engine.

    The engine is given positions in the lists, counted from 1, instead of ids: hotcoco keeps ids
    as float64, which is exact to 2^53, and takes none below 0; pycocotools takes 0 for none.

    Args:
        engine: hotcoco or pycocotools.
        images: dicts with `id`, in the order in which equal scores are to be ranked.
        categories: dicts with `id` and `name`.
        truth, found: columns of annotations and detections, all of listed images and categories.
        limits: three limits on detections per image.

    Returns:
        precision [10 IoU, 101 recall, K, 4 areas, 3 limits]; recall [10, K, 4, 3]; hotcoco's
        COCOeval, None of pycocotools. Annotations and detections have their rows, counted from 1,
        as their ids.
    """
    lists = {"image_id": images, "category_id": categories}
    ids = {key: np.array([x["id"] for x in entries], np.int64) for key, entries in lists.items()}
    tables = [
        {**table, **{key: rows_of(ids[key], table[key]) + 1 for key in ids}}
        for table in (truth, found)
    ]
    numbered = [[{**x, "id": k} for k, x in enumerate(entries, 1)] for entries in lists.values()]
    return _ENGINES[engine](numbered[0], numbered[1], tables[0], tables[1], limits)


def _hotcoco(images: list, categories: list, truth: dict, found: dict, limits: list[int]):
    """See `match`."""
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
    results = annotations.load_res(
        np.column_stack([found[n] for n in ("image_id", "bbox", "score", "category_id")])
    )
    coco_eval = hotcoco.COCOeval(annotations, results, "bbox")
    coco_eval.params.max_dets = limits
    coco_eval.evaluate()
    coco_eval.accumulate()
    return coco_eval.eval["precision"], coco_eval.eval["recall"], coco_eval


def _pycocotools(images: list, categories: list, truth: dict, found: dict, limits: list[int]):
    """See `match`."""
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
                for k, row in enumerate(rows, start=1)
            ]
            tables.append(COCO())
            tables[-1].dataset = dict(images=images, categories=categories, annotations=annotations)
            tables[-1].createIndex()
        coco_eval = COCOeval(*tables, "bbox")
        coco_eval.params.maxDets = limits
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval.eval["precision"], coco_eval.eval["recall"], None


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
    theirs = f"theirs are {known[0]} to {known[-1]}" if known else "they have none"
    return [
        f"{len(category_ids)} detections of categories that the annotations do not have "
        f"({listed}) were left out; {theirs}"
    ]
