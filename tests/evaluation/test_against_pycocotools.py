"""Drawn sets: all figures, curves and draws against pycocotools, whose figures are the norm."""

import numpy as np
import pytest

from fcos_recipe.evaluation.analysis import analyse
from fcos_recipe.evaluation.bootstrap import Matched, figures, intervals
from fcos_recipe.evaluation.metric import CocoMetric
from tests.helpers.drawn_sets import draw, reference

QUICK, MANY = 40, 400  #: sets in the fast and in the slow tier


def mean(values: np.ndarray) -> float:
    return float(values[values > -1].mean()) if (values > -1).any() else -1.0


def arrays_of(metric: CocoMetric) -> dict[str, np.ndarray]:
    """What `detections_file` keeps, without rounding to float32."""
    judged = metric.judged
    columns = {f"{part}_{name}": column for part in ("truth", "found")
               for name, column in judged[part].items()}  # fmt: skip
    return {"images": judged["image_id"], "categories": np.array(sorted(metric.categories)),
            "limits": np.array(metric.limits), **columns}  # fmt: skip


def check(seed: int, folder) -> None:
    annotations, results, content, found = draw(seed, folder)
    limit = 100 if seed % 4 else 20
    wanted = reference(content, found, limit)
    precision, recall = wanted.eval["precision"], wanted.eval["recall"]
    ids = sorted(c["id"] for c in content["categories"])
    for engine in ("hotcoco", "pycocotools"):
        metric = CocoMetric(annotations, engine=engine, max_dets=limit)
        metric.load_result_json(results)
        result = metric.result()
        if limit == 100:
            np.testing.assert_allclose(result["stats"], wanted.stats, rtol=0, atol=1e-12)
        assert result["stats"][0] == pytest.approx(mean(precision[..., 0, 2]), abs=1e-12)
        rows = {row["id"]: row for row in result["per_class"]}
        assert sorted(rows) == ids
        for k, i in enumerate(ids):
            figures_of = {"AP": precision[:, :, k, 0, 2], "AP50": precision[0, :, k, 0, 2],
                          "AP75": precision[5, :, k, 0, 2], "AP_small": precision[:, :, k, 1, 2],
                          "AP_medium": precision[:, :, k, 2, 2], "AR": recall[:, k, 0, 2],
                          "AP_large": precision[:, :, k, 3, 2]}  # fmt: skip
            for name, values in figures_of.items():
                assert rows[i][name] == pytest.approx(mean(values), abs=1e-12), (name, i)
        metric.write_predictions(folder / "again.json")
        again = CocoMetric(annotations, engine=engine, max_dets=limit)
        again.load_result_json(folder / "again.json")
        assert again.result()["stats"] == result["stats"]
        if metric.coco_eval is not None:
            check_curves(metric, wanted)
    ours = Matched(arrays_of(metric)).precision(np.ones((1, len(content["images"])), int))[0]
    theirs = np.where(precision > -1, precision, np.nan)[..., 2].mean(axis=1).transpose(2, 0, 1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def check_curves(metric: CocoMetric, wanted) -> None:
    """Precision-recall curves and the best F1 from pycocotools' own tables."""
    analysis = analyse(metric)
    if analysis is None or "pr" not in analysis:
        return
    table = wanted.eval["precision"][:, :, :, 0, 2]
    table = np.where(table > -1, table, np.nan)
    defined = ~np.isnan(table[0, 0])
    for name, rows in (("0.50", table[:1]), ("0.75", table[5:6]), ("0.50:0.95", table)):
        curve = rows[:, :, defined].mean(axis=(0, 2)) if defined.any() else np.zeros(101)
        np.testing.assert_allclose(analysis["pr"]["precision"][name], curve, atol=5.1e-5)
    recalls = np.linspace(0, 1, 101)
    for k, row in enumerate(analysis["per_class"]):
        if not defined[k]:
            assert row["pr50"] is None
            continue
        curve = table[0, :, k]
        np.testing.assert_allclose(row["pr50"], curve, atol=5.1e-5)
        f1 = [2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(curve, recalls)]
        assert row["best_f1"] == pytest.approx(max(f1), abs=5.1e-5)
        score = wanted.eval["scores"][0, int(np.argmax(f1)), k, 0, 2]
        assert row["score"] == pytest.approx(score, rel=1e-3, abs=5.1e-5)


@pytest.mark.parametrize("seed", range(QUICK))
def test_figures_are_pycocotools(seed, tmp_path):
    pytest.importorskip("hotcoco")
    check(seed, tmp_path)


@pytest.mark.slow
def test_figures_of_many_sets_are_pycocotools(tmp_path):
    pytest.importorskip("hotcoco")
    for seed in range(QUICK, QUICK + MANY):
        try:
            check(seed, tmp_path)
        except Exception as error:
            raise AssertionError(f"set of seed {seed}") from error


@pytest.mark.parametrize("seed", range(8))
def test_a_draw_is_judged_as_the_images_written_out(seed, tmp_path):
    """Each image as often as it was drawn, under an id of its own, and pycocotools again."""
    _, _, content, found = draw(seed, tmp_path)
    rng = np.random.default_rng(seed)
    for k, row in zip(rng.permutation(len(found)).tolist(), found):
        row["score"] = (k + 1) / (len(found) + 1)  # no ties: their order would decide
    metric = CocoMetric(content, engine="pycocotools")
    if found:
        columns = {key: [row[key] for row in found] for key in found[0]}
        metric.add(*(np.array(columns[k]) for k in ("image_id", "category_id", "bbox", "score")))
    metric.result()
    matched = Matched(arrays_of(metric))
    ids = metric.judged["image_id"].tolist()
    for _ in range(4):
        weights = np.bincount(rng.integers(0, len(ids), len(ids)), minlength=len(ids))
        copies = [(i, n) for i, w in zip(ids, weights.tolist()) for n in range(w)]
        number = {pair: k for k, pair in enumerate(copies, 1)}

        def again(rows: list[dict], number=number) -> list[dict]:
            return [{**row, "image_id": k, "id": 0} for (i, _), k in number.items()
                    for row in rows if row["image_id"] == i]  # fmt: skip

        truth = [{**row, "id": k} for k, row in enumerate(again(content["annotations"]), 1)]
        images = [{"id": k} for k in number.values()]
        wanted = reference({**content, "images": images, "annotations": truth}, again(found))
        table = figures(matched.precision(weights[None]))
        for name, value in zip(table, wanted.stats[:6]):
            assert np.nan_to_num(table[name][0], nan=-1) == pytest.approx(value, abs=1e-9), name


def hits(rng: np.random.Generator, images: int) -> list[list[tuple]]:
    """Of two models of one quality on images of varying difficulty: found, scores, false boxes."""
    rows = []
    for _ in range(images):
        easy = rng.beta(1, 1)
        one = []
        for share in (easy, 0.9 * easy + 0.1 * rng.random() + rng.normal(0, 0.15)):
            found = rng.random(5) < np.clip(share, 0.02, 0.98)
            one.append((found, rng.random(5) * 0.5 + 0.5, rng.random(rng.poisson(2)) * 0.8))
        rows.append(one)
    return rows


def matched_hits(rows: list, model: int) -> Matched:
    """Five objects of one class per image; false boxes lie elsewhere."""
    boxes = np.array([[30 * k, 0, 20, 20] for k in range(5)], float)
    images = np.arange(len(rows))
    columns: dict[str, list] = {"image_id": [], "bbox": [], "score": []}
    for image, row in enumerate(rows):
        found, scores, false = row[model]
        columns["image_id"] += [image] * (found.sum() + len(false))
        columns["bbox"] += [*boxes[found], *([[0.0, 500, 20, 20]] * len(false))]
        columns["score"] += [*scores[found], *false]
    found = {
        f"found_{k}": np.array(v, float if k != "image_id" else int) for k, v in columns.items()
    }
    size = 5 * len(rows)
    return Matched({
        "images": images, "categories": np.array([1]), "limits": np.array([1, 10, 100]),
        "truth_image_id": np.repeat(images, 5), "truth_category_id": np.ones(size, int),
        "truth_bbox": np.tile(boxes, (len(rows), 1)), "truth_area": np.full(size, 400.0),
        "truth_iscrowd": np.zeros(size, int), **found,
        "found_category_id": np.ones(len(columns["score"]), int),
    })  # fmt: skip


@pytest.mark.slow
def test_the_interval_covers_and_is_as_wide_as_it_should_be():
    """250 validation sets of 40 images: the share of intervals with the true difference in them.

    A percentile bootstrap of so few images covers a little less than 95 %; counting each image at
    most once, as hotcoco's does, covers 85 % and is 0.77 times as wide.
    """
    rng = np.random.default_rng(5)

    def ap50(rows: list, model: int) -> float:
        matched = matched_hits(rows, model)
        return figures(matched.precision(np.ones((1, len(rows)), int)))["AP50"][0]

    many = hits(rng, 6000)
    true = ap50(many, 1) - ap50(many, 0)
    covered, widths, points = [], [], []
    for _ in range(250):
        rows = hits(rng, 40)
        low, high = intervals(matched_hits(rows, 0), matched_hits(rows, 1), 300)["AP50"]
        covered.append(low <= true <= high)
        widths.append(high - low)
        points.append(ap50(rows, 1) - ap50(rows, 0))
    coverage, width = np.mean(covered), np.mean(widths) / (3.92 * np.std(points))
    print(f"coverage {coverage:.3f}, width {width:.3f} of what the sets themselves spread")
    assert 0.90 <= coverage <= 0.98
    assert 0.90 <= width <= 1.10
