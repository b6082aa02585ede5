"""Confusions, errors and curves, compared with cases counted by hand and with COCO's metrics."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fcos_recipe.evaluation.analysis import ERRORS, analyse, finish_evaluation, lines
from fcos_recipe.evaluation.metric import CocoMetric
from tests.conftest import ROOT

pytest.importorskip("hotcoco")
CATEGORIES = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]


def metric_of(truth: list, found: list) -> CocoMetric:
    """truth: (image, category, box); found: (image, category, box, score)."""
    content = {
        "images": [{"id": i, "width": 200, "height": 200} for i in (1, 2, 3)],
        "categories": CATEGORIES,
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": box, "area": 900, "iscrowd": 0}
            for k, (i, c, box) in enumerate(truth, 1)
        ],
    }
    metric = CocoMetric(content, engine="hotcoco")
    if found:
        images, classes, boxes, scores = (np.array(x) for x in zip(*found, strict=True))
        metric.add(images, classes, boxes.astype(float), scores.astype(float))
    metric.result()
    return metric


def test_each_kind_of_error_is_found_where_it_was_made():
    box, off, far = [10, 10, 30, 30], [22, 10, 30, 30], [150, 150, 20, 20]
    truth = [(1, 4, box), (1, 9, [100, 10, 30, 30]), (2, 4, box), (2, 9, [100, 100, 30, 30]),
             (3, 4, box)]  # fmt: skip
    found = [
        (1, 4, box, 0.99),                     # right
        (1, 4, [11, 10, 30, 30], 0.9),         # duplicate
        (1, 4, [100, 10, 30, 30], 0.95),       # a dog called cat
        (2, 4, off, 0.97),                     # right class, IoU 0.43
        (3, 9, off, 0.96),                     # wrong class and IoU 0.43
        (3, 4, far, 0.94),                     # background
    ]  # fmt: skip
    analysis = analyse(metric_of(truth, found))
    counts = {kind: analysis["errors"][kind]["count"] for kind in ERRORS}
    # missed: the dog of image 2 and, as TIDE has it, the cat of image 3, which only "Both" touches
    assert counts == {"Cls": 1, "Loc": 1, "Both": 1, "Dupe": 1, "Bkg": 1, "Miss": 2}
    costs = {kind: analysis["errors"][kind]["cost"] for kind in ERRORS}
    assert costs["Cls"] > 0 and costs["Loc"] > 0 and all(cost >= 0 for cost in costs.values())
    text = "\n".join(lines(analysis))
    assert ERRORS["Cls"] in text and "points of AP50" in text


def test_confusions_counted_by_hand():
    box, other = [10, 10, 30, 30], [100, 10, 30, 30]
    truth = [(1, 4, box), (1, 9, other), (2, 4, box), (3, 9, box)]
    found = [(1, 4, box, 0.9), (1, 4, other, 0.95), (2, 4, box, 0.9), (3, 9, other, 0.9)]
    analysis = analyse(metric_of(truth, found))
    assert analysis["confusion"]["names"] == ["cat", "dog", "background"]
    # rows are annotations: 2 cats right; a dog called cat, one not found; background called dog
    assert analysis["confusion"]["matrix"] == [[2, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert "dog as cat (1)" in "\n".join(lines(analysis))
    assert analysis["worst_images"] == [
        {"image_id": i, "false": 1, "missed": 1, "right": right} for i, right in ((1, 1), (3, 0))
    ]


def test_agrees_with_the_published_fixture(shared, tmp_path):
    folder = shared / "data/cocoapi_val2014_100"
    metric = CocoMetric(folder / "instances_val2014_100.json", engine="hotcoco")
    metric.load_result_json(folder / "instances_val2014_fakebbox100_results.json")
    result = metric.result()
    assert finish_evaluation(metric, tmp_path)
    analysis = json.loads((tmp_path / "analysis.json").read_text())
    curves = analysis["pr"]["precision"]
    # COCO's AP is the mean of precision over 101 recalls and the classes
    for name, k in (("0.50:0.95", 0), ("0.50", 1), ("0.75", 2)):
        assert np.mean(curves[name]) == pytest.approx(result["stats"][k], abs=1e-4)
    assert analysis["errors"]["AP50"] == pytest.approx(result["stats"][1], abs=1e-12)
    for row in analysis["per_class"]:
        ap50 = next(r["AP50"] for r in result["per_class"] if r["id"] == row["id"])
        assert (row["pr50"] is None) == (ap50 == -1)
        if row["pr50"]:
            assert np.mean(row["pr50"]) == pytest.approx(ap50, abs=1e-4)
            assert 0 <= row["best_f1"] <= 1
    matrix = np.array(analysis["confusion"]["matrix"])
    assert matrix.shape == (81, 81) and matrix.min() >= 0
    # each annotation that is no crowd stands in one cell of its row
    instances = {row["id"]: row["instances"] for row in result["per_class"]}
    assert matrix[:-1].sum(axis=1).tolist() == [instances[i] for i in sorted(instances)]
    counted = sum(row["count"] for row in analysis["calibration"]["bins"])
    assert counted == analysis["calibration"]["num_detections"] <= 734
    pictures = {path.stem: path for path in (tmp_path / "plots").glob("*.png")}
    assert set(pictures) == {"pr_curve", "errors", "calibration", "ap_per_class", "scores",
                             "confusion"}  # fmt: skip
    from PIL import Image

    for path in pictures.values():
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 300 and len(picture.convert("L").getcolors()) > 10


def test_nothing_to_analyse_is_no_failure(tmp_path):
    metric = metric_of([(1, 4, [10, 10, 30, 30])], [])
    assert analyse(metric) is None and finish_evaluation(metric, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_picture_that_fails_costs_one_line(tmp_path, monkeypatch, caplog):
    from fcos_recipe.evaluation import plots

    def broken(*_):
        raise ImportError("no module named matplotlib")

    monkeypatch.setattr(plots, "draw_plots", broken)
    metric = metric_of([(1, 4, [10, 10, 30, 30])], [(1, 4, [10, 10, 30, 30], 0.9)])
    with caplog.at_level("WARNING", logger="fcos"):
        import logging

        logging.getLogger("fcos").propagate = True
        assert finish_evaluation(metric, tmp_path)
    assert (tmp_path / "analysis.json").is_file()
    assert "pictures: not drawn: ImportError" in caplog.text


def test_a_file_of_detections_is_judged_without_paddle(shared, tmp_path):
    folder = shared / "data/cocoapi_val2014_100"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "tools/eval.py"),
         "--predictions", str(folder / "instances_val2014_fakebbox100_results.json"),
         "--annotations", str(folder / "instances_val2014_100.json"), "--classwise",
         "--json", str(tmp_path / "deep" / "out.json"), "--output", str(tmp_path / "out"),
         "--save-predictions", str(tmp_path / "again.json")],
        capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| paddle\n" not in done.stderr and "AP_small" in done.stdout
    result = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert len(result["stats"]) == 12 and round(result["stats"][0], 3) == 0.505
    assert (tmp_path / "out" / "plots" / "errors.png").is_file()
    assert len(json.loads((tmp_path / "again.json").read_text())) == 734
