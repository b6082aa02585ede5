"""Outcomes per image, compared with cases counted by hand, and their pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.evaluation.examples import (
    EXAMPLES,
    RIGHT,
    SIDE,
    WRONG,
    draw_examples,
    outcomes,
    ranked,
)
from fcos_recipe.evaluation.metric import CocoMetric

pytest.importorskip("hotcoco")


@pytest.fixture
def metric(tmp_path) -> CocoMetric:
    """Image 1: all right; 2: a false and a missed box, a weak one; 3: nothing; 4: a crowd."""
    boxes = [(1, 7, [10, 10, 40, 30], 0), (1, 9, [60, 50, 30, 30], 0), (2, 7, [5, 5, 50, 50], 0),
             (2, 9, [60, 60, 30, 30], 0), (4, 7, [0, 0, 90, 90], 1)]  # fmt: skip
    content = {
        "images": [{"id": i, "width": 120, "height": 100, "file_name": f"{i}.png"}
                   for i in (1, 2, 3, 4)],
        "categories": [{"id": 7, "name": "a"}, {"id": 9, "name": "{b}"}],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3],
             "iscrowd": crowd}
            for k, (i, c, b, crowd) in enumerate(boxes, 100)
        ],
    }  # fmt: skip
    for i in (1, 2, 3, 4):
        Image.fromarray(np.full((100, 120, 3), 90, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "a.json").write_text(json.dumps(content))
    metric = CocoMetric(tmp_path / "a.json", engine="hotcoco")
    found = [(2, 7, [5, 5, 50, 50], 0.1), (1, 9, [60, 50, 30, 30], 0.8),
             (1, 7, [10, 10, 40, 30], 0.9), (2, 7, [80, 5, 20, 20], 0.95),
             (2, 9, [60, 60, 30, 30], 0.7)]  # fmt: skip
    images, classes, xywh, scores = map(np.array, zip(*found))
    metric.add(images, classes, xywh.astype(float), scores)
    metric.dataset = COCODataSet(str(tmp_path), "", "a.json", allow_empty=True)
    metric.dataset.parse_dataset()
    metric.result()
    return metric


def test_outcomes_count_only_boxes_above_the_score(metric):
    def counts(threshold):
        rows = outcomes(metric, threshold)
        return {i: [len(row[k]) for k in ("right", "false", "missed", "objects")]
                for i, row in rows.items()}  # fmt: skip

    nothing = [0, 0, 0, 0]
    assert counts(0.5) == {1: [2, 0, 0, 2], 2: [1, 1, 1, 1], 3: nothing, 4: nothing}
    assert counts(0.0) == {1: [2, 0, 0, 2], 2: [2, 1, 0, 2], 3: nothing, 4: nothing}
    assert counts(0.99) == {1: [0, 0, 2, 0], 2: [0, 0, 2, 0], 3: nothing, 4: nothing}
    rows = outcomes(metric, 0.5)
    missed = metric.judged["truth"]["bbox"][rows[2]["missed"]]
    false = metric.judged["found"]["bbox"][rows[2]["false"]]
    assert missed.tolist() == [[5, 5, 50, 50]] and false.tolist() == [[80, 5, 20, 20]]
    assert ranked(rows) == ([2], [1])


def near(picture: np.ndarray, color) -> np.ndarray:
    return np.abs(picture.astype(int) - color).max(axis=2) < 60  # JPEG


def test_pictures_show_what_was_right_and_wrong(metric, tmp_path):
    (tmp_path / EXAMPLES).mkdir()
    (tmp_path / EXAMPLES / "worst_9_truth.jpg").write_bytes(b"of an earlier evaluation")
    assert draw_examples(metric, 0.5, tmp_path) == 2
    told = json.loads((tmp_path / EXAMPLES / "index.json").read_text())
    assert [(r["kind"], r["image_id"], r["file"], r["right"], r["false"], r["missed"])
            for r in told["images"]] == [("worst", 2, "2.png", 1, 1, 1),
                                         ("best", 1, "1.png", 2, 0, 0)]  # fmt: skip
    names = {row[part] for row in told["images"] for part in ("truth", "found")}
    assert {p.name for p in (tmp_path / EXAMPLES).iterdir()} == names | {"index.json"}
    pictures = {}
    for row in told["images"]:
        for part in ("truth", "found"):
            with Image.open(tmp_path / EXAMPLES / row[part]) as image:
                assert image.size == (row["width"], row["height"]) and max(image.size) <= SIDE
                pictures[row["image_id"], part] = np.asarray(image)
    for (image, part), picture in pictures.items():
        assert near(picture, RIGHT).any(), (image, part)
        assert near(picture, WRONG).any() == (image == 2), (image, part)
    # the missed box's lower edge, on a picture three times as large
    rows = np.flatnonzero(near(pictures[2, "truth"], WRONG)[:, 20:160].any(axis=1))
    assert abs(rows.max() - 3 * 55) <= 3


def test_an_image_that_is_gone_costs_the_pictures_only(metric, tmp_path, caplog):
    import logging

    from fcos_recipe.evaluation.analysis import finish_evaluation

    (tmp_path / "2.png").unlink()
    logging.getLogger("fcos").propagate = True
    with caplog.at_level("WARNING", logger="fcos"):
        assert finish_evaluation(metric, tmp_path, {})
    assert "examples: not drawn: BadImage" in caplog.text
    assert (tmp_path / "analysis.json").is_file() and (tmp_path / "detections.npz").is_file()


def test_without_a_data_set_nothing_is_drawn(metric, tmp_path):
    metric.dataset = None
    assert draw_examples(metric, 0.5, tmp_path) == 0 and not (tmp_path / EXAMPLES).exists()
