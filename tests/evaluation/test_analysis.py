"""Confusions, errors and curves, compared with cases counted by hand and with COCO's metrics."""

import json
import subprocess
import sys
import warnings
from collections.abc import Sequence

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.evaluation.analysis import ERRORS, analyse, finish_evaluation, lines
from fcos_recipe.evaluation.metric import CocoMetric
from tests.conftest import ROOT
from tests.helpers.drawn_sets import reference
from tests.helpers.probe_font import write_font

pytest.importorskip("hotcoco")
CATEGORIES = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]


def metric_of(truth: list, found: list, crowds: Sequence[int] = ()) -> CocoMetric:
    """truth: (image, category, box); found: (image, category, box, score); images of crowds."""
    content = {
        "images": [{"id": i, "width": 200, "height": 200} for i in (1, 2, 3)],
        "categories": CATEGORIES,
        "annotations": [
            {
                "id": k,
                "image_id": i,
                "category_id": c,
                "bbox": box,
                "area": 900,
                "iscrowd": int(i in crowds),
            }
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


A, B, FAR = [10, 10, 30, 30], [100, 10, 30, 30], [150, 150, 20, 20]
OFF = [22, 10, 30, 30]  #: IoU 0.43 with A
#: name: annotations, detections, AP50, kind -> (count, AP50 once its errors are repaired)
REPAIRS = {
    "Loc is right at its score, the second on an object goes": (
        [(1, 4, A), (1, 4, B)],
        [(1, 4, OFF, 0.95), (1, 4, [-2, 10, 30, 30], 0.9), (1, 4, B, 0.8)],
        51 / 101 / 3, {"Loc": (2, 1.0)},
    ),
    "Loc goes before Cls": (
        [(1, 9, OFF), (1, 4, A)], [(1, 4, OFF, 0.9)],
        0.0, {"Loc": (1, 0.5), "Miss": (1, 0.0)},
    ),
    "Cls moves to the class of its object": (
        [(1, 9, A), (1, 4, B)], [(1, 4, A, 0.9), (1, 4, B, 0.8)],
        0.25, {"Cls": (1, 1.0)},
    ),
    "the second Cls of an object goes": (
        [(1, 9, A), (1, 4, B)], [(1, 4, A, 0.9), (1, 4, [11, 10, 30, 30], 0.85), (1, 4, B, 0.8)],
        1 / 6, {"Cls": (2, 1.0)},
    ),
    "Dupe goes": (
        [(1, 4, A), (1, 4, B)], [(1, 4, A, 0.9), (1, 4, [11, 10, 30, 30], 0.85), (1, 4, B, 0.8)],
        (51 + 50 * 2 / 3) / 101, {"Dupe": (1, 1.0)},
    ),
    "Both goes, its object is missed": (
        [(1, 9, A), (1, 4, B)], [(1, 4, OFF, 0.9), (1, 4, B, 0.8)],
        0.25, {"Both": (1, 0.5), "Miss": (1, 0.25)},
    ),
    "Bkg goes, missed objects no longer count": (
        [(1, 4, A), (1, 4, B)], [(1, 4, FAR, 0.95), (1, 4, A, 0.9)],
        51 / 101 / 2, {"Bkg": (1, 51 / 101), "Miss": (1, 0.5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPAIRS)
def test_what_the_repair_of_each_kind_gives(name):
    truth, found, base, repaired = REPAIRS[name]
    errors = analyse(metric_of(truth, found))["errors"]
    assert errors.pop("AP50") == pytest.approx(base)
    assert {kind: row["count"] for kind, row in errors.items() if row["count"]} == {
        kind: count for kind, (count, _) in repaired.items()
    }
    for kind, row in errors.items():
        after = repaired[kind][1] if kind in repaired else base
        assert base + row["cost"] == pytest.approx(after), kind


def test_error_costs_judge_as_many_detections_as_ap_does():
    """100 of each class; tidecv takes 100 of the image, here without the dog."""
    cats = [(1, 4, [k, 150, 10, 10], 0.9 - k / 1000) for k in range(100)]
    metric = metric_of([(1, 4, A), (1, 9, B)], [*cats, (1, 9, B, 0.1)])
    ap50 = metric.last["stats"][1]
    assert ap50 == pytest.approx(0.5)  # 0 of cats, 1 of dogs
    assert analyse(metric)["errors"]["AP50"] == pytest.approx(ap50)


def test_calibration_counts_all_that_ap_judges():
    """Whatever it scores; not what only a crowd explains."""
    metric = metric_of([(1, 4, A), (2, 4, A), (3, 4, A)],
                       [(1, 4, A, 0.95), (1, 4, FAR, 0.35), (2, 4, A, 0.05), (3, 4, A, 0.15)],
                       crowds=[3])  # fmt: skip
    calibration = analyse(metric)["calibration"]
    bins = {round(row["bin_lower"], 1): (row["count"], row["avg_accuracy"])
            for row in calibration["bins"] if row["count"]}  # fmt: skip
    assert bins == {0.0: (1, 1.0), 0.3: (1, 0.0), 0.9: (1, 1.0)}
    assert calibration["num_detections"] == 3
    assert calibration["ece"] == pytest.approx((0.05 + 0.35 + 0.95) / 3)


def test_a_box_on_a_crowd_is_confused_with_background():
    metric = metric_of([(1, 4, A), (2, 4, A)], [(1, 4, A, 0.9), (2, 4, A, 0.9)], crowds=[2])
    assert analyse(metric)["confusion"]["matrix"] == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


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
    assert finish_evaluation(metric, tmp_path, {})
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


def test_the_page_describes_every_key():
    page = (ROOT / "docs/evaluation.md").read_text()
    metric = metric_of([(1, 4, A)], [(1, 4, A, 0.9)])
    keys = {*metric.last, *metric.last["per_class"][0], *analyse(metric)}
    assert len(keys) > 25 and not {key for key in keys if f"`{key}`" not in page}


def test_nothing_to_analyse_is_no_failure(tmp_path):
    metric = metric_of([(1, 4, [10, 10, 30, 30])], [])
    assert analyse(metric) is None and finish_evaluation(metric, tmp_path, {}) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("score", [95.0, -0.5, 1e300])
def test_a_score_outside_0_to_1_costs_the_calibration_alone(tmp_path, caplog, score):
    """All files are written, the figures are pycocotools', the exit code is 0."""
    boxes = [(1, 1, [10, 10, 20, 20]), (2, 3, [10, 10, 40, 40]), (2, 1, [50, 50, 20, 20])]
    content = {
        "images": [{"id": i, "width": 100, "height": 100} for i in (1, 2)],
        "categories": [{"id": i, "name": n} for i, n in ((1, "a"), (3, "b"))],
        "annotations": [{"id": k, "image_id": i, "category_id": c, "bbox": box, "area": box[2] ** 2,
                         "iscrowd": 0} for k, (i, c, box) in enumerate(boxes, 1)],
    }  # fmt: skip
    found = [(1, 1, [10, 10, 20, 19], score), (2, 3, [10, 10, 41, 40], 0.8),
             (2, 1, [51, 50, 20, 20], 0.7), (2, 1, [0, 0, 9, 9], 0.95)]  # fmt: skip
    rows = [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in found]
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "dt.json").write_text(json.dumps(rows))
    argv = ["--predictions", tmp_path / "dt.json", "--annotations", tmp_path / "gt.json",
            "--output", tmp_path / "out", "--json", tmp_path / "out.json", "--save-predictions",
            tmp_path / "p.json"]  # fmt: skip
    assert run("eval", list(map(str, argv))) == 0
    (line,) = caplog.messages
    assert line.startswith("analysis: calibration: not made: calibration(): requires scores")
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert "calibration" not in analysis and "scores in [0, 1]" in analysis["absent"]["calibration"]
    assert {"pr", "per_class", "confusion", "errors", "worst_images"} <= set(analysis)
    assert {p.stem for p in (tmp_path / "out" / "plots").iterdir()} == {
        "pr_curve", "errors", "ap_per_class", "scores", "confusion"}  # fmt: skip
    assert json.loads((tmp_path / "p.json").read_text()) == rows
    result = json.loads((tmp_path / "out.json").read_text())
    wanted = reference(content, rows)
    assert result["stats"] == pytest.approx(wanted.stats.tolist(), abs=1e-12)


@pytest.mark.parametrize("part", ["eval", "confusion_matrix", "tide_errors", "calibration",
                                  "image_diagnostics"])  # fmt: skip
def test_each_part_of_the_analysis_stands_alone(tmp_path, caplog, part):
    metric = metric_of([(1, 4, [10, 10, 30, 30])], [(1, 4, [10, 10, 30, 30], 0.9)])
    real = metric.coco_eval

    class Broken:
        def __getattr__(self, name):
            if name == part:
                raise RuntimeError("out of order")
            return getattr(real, name)

    whole = analyse(metric)
    metric.coco_eval = Broken()
    with caplog.at_level("WARNING", logger="fcos"):
        assert finish_evaluation(metric, tmp_path, {})
    analysis = json.loads((tmp_path / "analysis.json").read_text())
    lost = set(analysis["absent"])
    assert 1 <= len(lost) <= 2 and set(analysis) == set(whole) - lost
    assert caplog.text.count("not made: out of order") == len(lost)


def test_an_evaluation_without_classes_or_matches_ends_well(tmp_path, capfd):
    for categories, rows in (([], [[7, 0.5]]), ([], []), ([[4, "cat"]], [])):
        content = {"images": [{"id": 1}], "annotations": [],
                   "categories": [{"id": i, "name": n} for i, n in categories]}  # fmt: skip
        found = [{"image_id": 1, "category_id": c, "bbox": [1, 1, 5, 5], "score": s}
                 for c, s in rows]  # fmt: skip
        (tmp_path / "gt.json").write_text(json.dumps(content))
        (tmp_path / "dt.json").write_text(json.dumps(found))
        argv = ["--predictions", tmp_path / "dt.json", "--annotations", tmp_path / "gt.json",
                "--output", tmp_path / "out"]  # fmt: skip
        assert run("eval", list(map(str, argv))) == 0
        shown = capfd.readouterr()
        assert "no annotation on the 1 images" in shown.out and not shown.err
        assert ("they have none" in shown.out) == bool(rows)


def test_a_picture_that_fails_costs_one_line(tmp_path, monkeypatch, caplog):
    from fcos_recipe.evaluation import plots

    def broken(*_):
        raise ImportError("no module named matplotlib")

    monkeypatch.setattr(plots, "draw_plots", broken)
    metric = metric_of([(1, 4, [10, 10, 30, 30])], [(1, 4, [10, 10, 30, 30], 0.9)])
    with caplog.at_level("WARNING", logger="fcos"):
        import logging

        logging.getLogger("fcos").propagate = True
        assert finish_evaluation(metric, tmp_path, {})
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


@pytest.mark.parametrize("name", ["\U000f0000红\U000f0001", "圆"], ids=["no font", "a font"])
def test_pictures_with_names_in_any_script(name, tmp_path, monkeypatch):
    """Class numbers stand for names that no font has, and matplotlib never misses a glyph."""
    from fcos_recipe import drawing
    from fcos_recipe.evaluation.plots import draw_plots

    write_font(tmp_path / "probe.ttf", "圆")
    monkeypatch.setattr(drawing, "_FONTS", (str(tmp_path / "probe.ttf"),))
    for cached in (drawing.plot_fonts, drawing._plot_characters):
        monkeypatch.setattr(drawing, cached.__name__, cached.__wrapped__)
    assert drawing.plot_name("cat é", 3) == "cat é"
    assert drawing.plot_name(name, 3) == (name if name == "圆" else "class 3")
    monkeypatch.setattr("fcos_recipe.evaluation.plots.plot_fonts", drawing.plot_fonts)
    monkeypatch.setitem(CATEGORIES[0], "name", name)
    metric = metric_of([(1, 4, A), (2, 9, B)], [(1, 4, A, 0.9), (2, 4, B, 0.8)])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        done = draw_plots(metric, analyse(metric), tmp_path)
    assert {path.stem for path in done} >= {"ap_per_class", "confusion", "pr_curve"}
    assert not [str(w.message) for w in said if "Glyph" in str(w.message)]
