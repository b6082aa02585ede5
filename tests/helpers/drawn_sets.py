"""Annotations and detections drawn from a seed, with everything that evaluators disagree about."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np

AREAS = [0.0, 1.0, 1023.999, 1024.0, 1024.001, 9215.999, 9216.0, 9216.001, 1e5, 1e10, 1.1e10]
SCORES = [0.0, 5e-324, 1e-7, 0.05, 0.5, 0.5 + 2**-24, 1 - 2**-53, 1.0, 1.5, -0.25, 1e300]
#: number k of n ids in rising order, as they are written
IDS = [
    lambda k, n: k,
    lambda k, n: k - n // 2,
    lambda k, n: 7 + 13 * k,
    lambda k, n: 2**53 - 1 + k,
    lambda k, n: 1_700_000_000_000_000_001 + 3 * k,
    lambda k, n: 2**63 - n + k,
    lambda k, n: -(2**63) + k,
    lambda k, n: f"{k:05d}",
    lambda k, n: float(3 * k),
]


def draw(seed: int, folder: Path) -> tuple[Path, Path, dict, list[dict]]:
    """A set with crowds, ties, images without objects and without detections, ids of every kind.

    Returns:
        annotation file and results file, with ids as some tool may write them; content and
        detections for pycocotools: the same with whole numbers, and annotation ids from 1.
    """
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    kind = IDS[rng.integers(len(IDS))]
    image_ids = [kind(k, images) for k in range(images)]
    kind = IDS[rng.integers(len(IDS))]
    class_ids = [kind(k, classes) for k in range(classes)]
    annotations: list[dict] = []
    results: list[dict] = []

    def found(image: int, label: int, box, score: float) -> None:
        results.append({"image_id": image_ids[image], "category_id": class_ids[label],
                        "bbox": [float(v) for v in box], "score": float(score)})  # fmt: skip

    def score() -> float:
        return rng.choice(SCORES) if rng.random() < 0.4 else np.float32(rng.random())

    for image in range(images):
        for _ in range(rng.integers(0, 7)):
            label = int(rng.integers(classes))
            size = rng.choice([2, 8, 32, 96, 200], 2) * rng.choice([1, 1, 0.9, 1.1])
            box = np.array([*rng.integers(0, 40, 2), *size], float)
            entry = {"image_id": image_ids[image], "category_id": class_ids[label],
                     "bbox": box.tolist()}  # fmt: skip
            if rng.random() < 0.7:
                entry["area"] = float(rng.choice(AREAS) if rng.random() < 0.5 else size.prod())
            if rng.random() < 0.8:
                entry["iscrowd"] = int(rng.random() < 0.2)
            annotations.append(entry)
            for _ in range(rng.integers(0, 4)):
                # exactly on some threshold of IoU, the same box again, or near
                share = rng.choice([1, 0.5, 0.55, 0.75, 0.95, rng.uniform(0.4, 1)])
                moved = box * [1, 1, share, 1] + rng.choice([0, 1]) * rng.normal(0, 0.5, 4)
                other = int(rng.integers(classes)) if rng.random() < 0.2 else label
                found(image, other, np.maximum(moved, [-50, -50, 0.1, 0.1]), score())
        for _ in range(rng.choice([0, 0, 1, 30, 120]) if rng.random() < 0.7 else 0):
            found(image, int(rng.integers(classes)),
                  [*rng.uniform(0, 200, 2), *rng.uniform(0.5, 120, 2)], score())  # fmt: skip
    own = rng.choice([0, 1, 2])  # of annotations: from 0, from 1, or all the same
    written = [{**a, "id": 5 if own == 2 else k} for k, a in enumerate(annotations, own)]
    content = {
        "images": [{"id": i, "width": 300, "height": 300, "file_name": f"{k}.jpg"}
                   for k, i in enumerate(image_ids)],
        "categories": [{"id": i, "name": f"c{k}"} for k, i in enumerate(class_ids)],
        "annotations": written,
    }  # fmt: skip
    for part in ("images", "categories"):
        content[part] = [content[part][k] for k in rng.permutation(len(content[part]))]
    paths = folder / "annotations.json", folder / "results.json"
    paths[0].write_text(json.dumps(content))
    paths[1].write_text(json.dumps(results))

    def whole(entry: dict) -> dict:
        keys = ("id", "image_id", "category_id")
        return {k: int(v) if k in keys else v for k, v in entry.items()}

    plain = {part: [whole(entry) for entry in entries] for part, entries in content.items()}
    for k, entry in enumerate(plain["annotations"], 1):
        entry["id"] = k
        entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
        entry.setdefault("iscrowd", 0)
    return *paths, plain, [whole(entry) for entry in results]


def reference(content: dict, results: list[dict], limit: int = 100):
    """pycocotools' COCOeval of a set, accumulated."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = [
        {**r, "id": k, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0}
        for k, r in enumerate(results, 1)
    ]
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (content["annotations"], found):
            sides.append(COCO())
            sides[-1].dataset = {**content, "annotations": [dict(a) for a in annotations]}
            sides[-1].createIndex()
        judge = COCOeval(*sides, "bbox")
        judge.params.maxDets = [1, 10, limit]
        judge.evaluate()
        judge.accumulate()
        if limit == 100:
            judge.summarize()
    return judge
