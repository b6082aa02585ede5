"""Evaluate a file of detections with our evaluator and with pycocotools, and time both.

As a program it runs one side, "ours" or "pycocotools":
`python -m fcos_recipe.lab.benchmark.evaluator SIDE GT.json DETS.json`.
"""

import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

IMAGES, BOXES, CLASSES, DETECTIONS = 5000, 36_781, 80, 500_000  # val2017, 100 per image


def draw(folder: Path, seed: int = 0, images: int = IMAGES) -> tuple[Path, Path]:
    """Write random annotations and detections as many as for val2017.

    Two thirds of the annotations have a detection with a slightly different box; the other
    detections are anywhere. Sizes, classes and scores are distributed like COCO's.

    Returns:
        annotation file, results file.
    """
    rng = np.random.default_rng(seed)
    boxes, found = BOXES * images // IMAGES, DETECTIONS * images // IMAGES
    popular = 1 / np.arange(1, CLASSES + 1)
    popular /= popular.sum()

    def draw_boxes(count: int) -> np.ndarray:
        side = np.exp(rng.normal(4.0, 1.1, (count, 2))).clip(4, 400)
        corner = rng.uniform(0, 1, (count, 2)) * (np.array([640, 480]) - side).clip(1)
        return np.concatenate([corner, side], axis=1)

    truth = draw_boxes(boxes)
    image = rng.integers(1, images + 1, boxes)
    label = rng.choice(CLASSES, boxes, p=popular) + 1
    near = rng.choice(boxes, boxes * 2 // 3, replace=False)
    size = np.tile(truth[near, 2:], 2)
    moved = truth[near] + size * rng.normal(0, 0.08, (len(near), 4))
    far = found - len(near)
    results = {
        "image_id": np.concatenate([image[near], np.tile(np.arange(1, images + 1), 101)[:far]]),
        "category_id": np.concatenate(
            [label[near], rng.choice(CLASSES, far, p=popular) + 1]
        ),
        "bbox": np.concatenate([moved, draw_boxes(far)]).clip(0.01).round(2),
        "score": np.concatenate([rng.beta(4, 2, len(near)), rng.beta(1, 8, far)]),
    }  # fmt: skip
    crowd = rng.random(boxes) < 0.012
    annotations = [
        {"id": k, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": f}
        for k, (i, c, b, f) in enumerate(
            zip(image.tolist(), label.tolist(), truth.round(2).tolist(), map(int, crowd)), 1
        )
    ]
    content = {
        "images": [{"id": i, "width": 640, "height": 480, "file_name": f"{i:012d}.jpg"}
                   for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
        "annotations": annotations,
    }  # fmt: skip
    rows = zip(*(column.tolist() for column in results.values()))
    paths = folder / "annotations.json", folder / "detections.json"
    paths[0].write_text(json.dumps(content))
    paths[1].write_text(json.dumps([dict(zip(results, row)) for row in rows]))
    return paths


def score(side: str, annotations: str, detections: str) -> dict:
    """Metrics and seconds of one side: `read`, `match` (with accumulation) and `total`."""
    start = time.perf_counter()
    if side == "ours":
        from fcos_recipe.evaluation.metric import CocoMetric

        start = time.perf_counter()  # imports are not timed on either side
        metric = CocoMetric(annotations)
        metric.load_result_json(detections)
        read = time.perf_counter()
        stats = metric.result()["stats"]
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            truth = COCO(annotations)
            found = truth.loadRes(detections)
            read = time.perf_counter()
            evaluator = COCOeval(truth, found, "bbox")
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        stats = evaluator.stats.tolist()
    end = time.perf_counter()
    return {"stats": stats, "read": read - start, "match": end - read, "total": end - start}


def run_side(side: str, annotations: Path, detections: Path) -> dict:
    """Run `score` in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, side, str(annotations), str(detections)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(score(*sys.argv[1:])))
