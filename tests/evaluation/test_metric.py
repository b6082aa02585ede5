"""COCO metrics, compared with published values and pycocotools, and on edge cases."""

import contextlib
import copy
import gzip
import io
import json

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.data.index import open_index
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation import detections_file
from fcos_recipe.evaluation.bootstrap import Matched, figures
from fcos_recipe.evaluation.examples import outcomes
from fcos_recipe.evaluation.metric import NAMES, CocoMetric, table

ENGINES = ["hotcoco", "pycocotools"]


@pytest.fixture(params=ENGINES)
def engine(request):
    return pytest.importorskip(request.param).__name__


@pytest.fixture
def published(shared):
    folder = shared / "data/cocoapi_val2014_100"
    text = (folder / "val2014_fake_eval_res.txt").read_text()
    return (
        folder / "instances_val2014_100.json",
        folder / "instances_val2014_fakebbox100_results.json",
        [float(line.rsplit("=", 1)[1]) for line in text.splitlines() if " = " in line],
    )


def reference(annotations: dict, results: list[dict], img_ids=None) -> np.ndarray:
    """pycocotools as its users call it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        if img_ids is not None:
            judge.params.imgIds = sorted(img_ids)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


def synthetic(seed: int, images: int = 30) -> tuple[dict, np.ndarray]:
    """Annotations with crowds, empty images, sparse ids; boxes [M, 7]: image index first."""
    rng = np.random.default_rng(seed)
    categories = [{"id": i, "name": f"c{i}"} for i in (90, 3, 41)]
    annotations, boxes = [], []
    ids = (rng.permutation(1000)[:images] + 7).tolist()
    for k, image_id in enumerate(ids):
        for _ in range(rng.integers(0, 6)):
            x, y = rng.uniform(0, 200, 2)
            w, h = rng.choice([12, 60, 150]) * rng.uniform(0.7, 1.3, 2)
            label = rng.integers(3)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[label]["id"],
                    "bbox": [x, y, w, h],
                    "area": w * h * rng.uniform(0.5, 1),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            for _ in range(rng.integers(0, 3)):
                corner = np.array([x, y, x + w, y + h]) + rng.normal(0, 0.06 * w, 4)
                # few distinct scores: ties are the rule
                boxes.append([k, label, rng.choice([0.3, 0.5, 0.9]), *corner])
        boxes += [[k, rng.integers(3), 0.4, 5, 5, 30, 40]] * rng.integers(0, 2)
    content = {
        "images": [{"id": i, "width": 400, "height": 400} for i in ids],
        "categories": categories,
        "annotations": annotations,
    }
    return content, np.array(boxes, np.float32)


def feed(metric: CocoMetric, content: dict, boxes: np.ndarray, chosen) -> CocoMetric:
    """Give `metric` the images at the positions `chosen`, in batches of 3."""
    chosen = list(chosen)
    for start in range(0, len(chosen), 3):
        batch = chosen[start : start + 3]
        rows = [boxes[boxes[:, 0] == k, 1:] for k in batch]
        ids = np.array([[content["images"][k]["id"]] for k in batch])
        metric.update(ids, np.concatenate(rows), [len(r) for r in rows])
    return metric


def test_published_figures(published, engine):
    annotations, results, figures = published
    metric = CocoMetric(annotations, engine=engine)
    metric.load_result_json(results)
    result = metric.result()
    assert len(figures) == 12 and result["names"] == NAMES
    assert [round(value, 3) for value in result["stats"]] == figures
    expected = reference(json.loads(annotations.read_text()), json.loads(results.read_text()))
    np.testing.assert_allclose(result["stats"], expected, rtol=0, atol=1e-12)
    assert (result["instances"], result["crowds"], result["detections"]) == (830, 9, 734)
    assert sum(row["instances"] for row in result["per_class"]) == 830
    defined = [row["AP"] for row in result["per_class"] if row["AP"] > -1]
    assert np.mean(defined) == pytest.approx(result["stats"][0], abs=1e-12)
    assert [row["AP"] for row in result["per_class"]] == sorted(
        [row["AP"] for row in result["per_class"]], reverse=True
    )
    text = table(result)
    assert "= 0.505" in text and "= 0.564" in text and "person" in text


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(seed, engine, tmp_path):
    content, boxes = synthetic(seed)
    metric = feed(CocoMetric(content, engine=engine), content, boxes, range(30))
    results = [
        {
            "image_id": content["images"][int(k)]["id"],
            "category_id": content["categories"][int(label)]["id"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for k, label, score, x1, y1, x2, y2 in boxes.astype(float).tolist()
    ]
    for img_ids in (None, [image["id"] for image in content["images"][5:17]]):
        result = metric.result(img_ids)
        expected = reference(content, results, img_ids)
        assert 0 < expected[0] < 1
        np.testing.assert_allclose(result["stats"], expected, rtol=0, atol=1e-12)
    metric.write_predictions(tmp_path / "bbox.json")
    again = CocoMetric(content, engine=engine)
    again.load_result_json(tmp_path / "bbox.json")
    assert again.result()["stats"] == metric.result()["stats"]
    assert {k: v.tolist() for k, v in again.detections().items()} == {
        k: v.tolist() for k, v in metric.detections().items()
    }
    written = json.loads((tmp_path / "bbox.json").read_text())
    assert {entry["category_id"] for entry in written} == {3, 41, 90}


#: the k-th of 30 ids, in rising order, as tools write them
IDS = {
    "from 0": lambda k: k,
    "negative": lambda k: k - 15,
    "above 2^53": lambda k: 2**53 + 1 + k,
    "nanoseconds": lambda k: 1_700_000_000_000_000_001 + 7 * k,
    "to 2^63 - 1": lambda k: 2**63 - 30 + k,
    "from -2^63": lambda k: -(2**63) + k,
    "text": lambda k: f"{k:012d}",
    "pandas": lambda k: float(k),
    "mixed": lambda k: [str(k - 2), float(k), 2**60 + k][k // 10],
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_are_names(kind, engine, tmp_path):
    """Other ids in the same order: the same figures, by file, over ranks and in a comparison."""
    content, boxes = synthetic(11)
    plain = feed(CocoMetric(content, engine=engine), content, boxes, range(30))
    expected = plain.result()["stats"]
    images = dict(zip(sorted(x["id"] for x in content["images"]), map(IDS[kind], range(30))))
    classes = dict(zip(sorted(x["id"] for x in content["categories"]), map(IDS[kind], (0, 7, 29))))
    named = {
        "images": [{**x, "id": images[x["id"]], "file_name": f"{k}.jpg"}
                   for k, x in enumerate(content["images"])],
        "categories": [{**x, "id": classes[x["id"]]} for x in content["categories"]],
        "annotations": [{**x, "id": IDS[kind](k % 30), "image_id": images[x["image_id"]],
                         "category_id": classes[x["category_id"]]}
                        for k, x in enumerate(content["annotations"])],
    }  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text(json.dumps(named))
    index = open_index(path)  # what training and prediction call the images
    assert index.image_id.tolist() == [int(i) for i in images.values()]
    metric = CocoMetric(path, engine=engine)
    assert sorted(metric.images) == index.image_id.tolist()
    assert list(metric.categories) == index.category_id.tolist()
    results = [
        {"image_id": images[content["images"][int(k)]["id"]],
         "category_id": classes[content["categories"][int(label)]["id"]],
         "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for k, label, score, x1, y1, x2, y2 in boxes.astype(float).tolist()
    ]  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(results))
    metric.load_result_json(tmp_path / "r.json")
    result = metric.result()
    assert result["stats"] == expected
    assert {row["id"] for row in result["per_class"]} == {int(i) for i in classes.values()}
    metric.write_predictions(tmp_path / "again.json")
    written = json.loads((tmp_path / "again.json").read_text())
    assert {row["image_id"] for row in written} <= {int(i) for i in images.values()}

    read = {**named, "images": [{"id": int(x["id"])} for x in named["images"]]}
    for ranks in (1, 2, 3, 8):
        parts = [feed(CocoMetric(path, engine=engine), read, boxes, range(r, 30, ranks))
                 for r in range(ranks)]  # fmt: skip
        parts[0].merge([part.state() for part in reversed(parts)])
        assert parts[0].result()["stats"] == expected
    if engine == "hotcoco":
        detections_file.save(metric, tmp_path / "d.npz")
        matched = Matched(detections_file.read(tmp_path / "d.npz"))
        again = figures(matched.precision(np.ones((1, 30), int)))
        assert again["AP"][0] == pytest.approx(expected[0], abs=1e-4)
        images_of = outcomes(metric, 0.4)
        was = outcomes(plain, 0.4)
        assert images_of == {int(images[i]): rows for i, rows in was.items()}


@pytest.mark.parametrize("first", [1, 9007199254740993, 1700000000000000001, -(2**63)])
def test_the_case_that_had_an_ap_of_0(first, engine, tmp_path):
    """Nanoseconds as ids: 0.8126 by pycocotools."""
    boxes = [(0, 1, [10, 10, 20, 20]), (1, 3, [10, 10, 40, 40]), (1, 1, [50, 50, 20, 20])]
    content = {
        "images": [{"id": first + k, "width": 100, "height": 100} for k in (0, 1)],
        "categories": [{"id": i, "name": n} for i, n in ((1, "a"), (3, "b"))],
        "annotations": [{"id": k, "image_id": first + i, "category_id": c, "bbox": b}
                        for k, (i, c, b) in enumerate(boxes, 1)],
    }  # fmt: skip
    found = [(0, 1, [10, 10, 20, 19], 0.9), (1, 3, [10, 10, 41, 40], 0.8),
             (1, 1, [51, 50, 20, 20], 0.7), (1, 1, [0, 0, 9, 9], 0.95)]  # fmt: skip
    rows = [{"image_id": first + i, "category_id": c, "bbox": b, "score": s}
            for i, c, b, s in found]  # fmt: skip
    (tmp_path / "dt.json").write_text(json.dumps(rows))
    metric = CocoMetric(content, engine=engine)
    metric.load_result_json(tmp_path / "dt.json")
    assert round(metric.result()["stats"][0], 4) == 0.8126


def test_what_is_no_id(tmp_path):
    """A float that may have lost digits, a fraction, and numbers beyond 64 bits are refused."""
    for section, field in (("images", "id"), ("categories", "id"), ("annotations", "image_id"),
                           ("annotations", "category_id")):  # fmt: skip
        for value in (0.5, 2.0**53 + 2, 2**63, -(2**63) - 1, 1e300, "1.5", "x", ""):
            content, _ = synthetic(5)
            content["images"] = [{**x, "file_name": "a.jpg"} for x in content["images"]]
            content[section][0][field] = value
            (tmp_path / "a.json").write_text(json.dumps(content))
            for reader in (CocoMetric, open_index):
                with pytest.raises(UserError, match=rf"{section}\[0\]\.{field}: .* not a whole"):
                    reader(tmp_path / "a.json")


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 40])
def test_merged_ranks_equal_one(ranks):
    content, boxes = synthetic(11)
    whole = feed(CocoMetric(content), content, boxes, range(30))
    parts = [feed(CocoMetric(content), content, boxes, range(r, 30, ranks)) for r in range(ranks)]
    merged = parts[0]
    merged.merge([part.state() for part in reversed(parts)])
    figures = (merged.result(), whole.result())
    for result in figures:
        result.pop("seconds")
    assert figures[0] == figures[1]
    assert merged.seen.tolist() == sorted(image["id"] for image in content["images"])
    with pytest.raises(ValueError, match="more than once"):
        merged.merge([part.state() for part in parts] + [whole.state()])
        merged.result()


def test_derived_area_and_iscrowd(engine):
    content, boxes = synthetic(2)
    for entry in content["annotations"]:
        entry["area"], entry["iscrowd"] = entry["bbox"][2] * entry["bbox"][3], 0
    bare = copy.deepcopy(content)
    for entry in bare["annotations"]:
        del entry["area"], entry["iscrowd"]
    results = [
        feed(CocoMetric(c, engine=engine), c, boxes, range(30)).result()["stats"]
        for c in (content, bare)
    ]
    assert results[0] == results[1]


def test_reasons(engine):
    content, boxes = synthetic(3)
    for entry in content["annotations"]:  # no large annotation: COCO's -1
        entry["area"] = min(entry["area"], 5000)
    nothing = feed(CocoMetric(content, engine=engine), content, boxes[:0], range(30)).result()
    assert nothing["stats"][0] == 0 and "no box above the score threshold" in nothing["reason"]
    assert nothing["stats"][5] == nothing["stats"][11] == -1
    far = boxes.copy()
    far[:, 3:] += 3000
    result = feed(CocoMetric(content, engine=engine), content, far, range(30)).result()
    assert result["stats"][0] == 0 and "no annotation matched" in result["reason"]
    result = CocoMetric({**content, "annotations": []}, engine=engine).result()
    assert result["stats"] == [-1] * 12 and "no annotation on the 30 images" in result["reason"]
    assert table(result) == (
        " no figures: there is nothing to compare with, no annotation on the 30 images judged"
    )

    one = {**content, "annotations": [a for a in content["annotations"] if a["category_id"] == 3]}
    swapped = CocoMetric(one, category_ids=[3, 90, 41], engine=engine)
    rows = boxes[boxes[:, 1] == 1]
    result = feed(swapped, one, rows, range(30)).result()
    assert "class ids disagree" in result["reason"] and "of its own class" in result["reason"]
    foreign = CocoMetric(content, category_ids=[1, 2, 4], engine=engine)
    result = feed(foreign, content, boxes, range(30)).result()
    assert result["stats"][0] == 0 and "class ids disagree" in result["reason"]
    assert "1, 2, 4" in result["notes"][0] and "class ids disagree" in table(result)


def test_text_ids(published, tmp_path):
    annotations, results, _ = published
    entries = json.loads(results.read_text())
    for k, entry in enumerate(entries):
        entry["image_id"] = f"{entry['image_id']:012d}" + (".jpg" if k % 2 else "")
    (tmp_path / "text.json").write_text(json.dumps(entries))
    metric, plain = CocoMetric(annotations), CocoMetric(annotations)
    metric.load_result_json(tmp_path / "text.json")
    plain.load_result_json(results)
    assert metric.result()["stats"] == plain.result()["stats"]
    assert "734 image ids" in metric.result()["notes"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["images"][0].update(id="a1"), "images[0].id"),
        (lambda c: c["images"][1].update(id=c["images"][0]["id"]), "same id"),
        (lambda c: c["annotations"][2].pop("bbox"), "annotations[2].bbox"),
        (lambda c: c["annotations"][2].update(category_id=5), "annotations[2].category_id: 5"),
        (lambda c: c["annotations"][1].update(image_id="x"), "annotations[1].image_id"),
        (lambda c: c.pop("categories"), "categories: missing"),
    ],
)
def test_bad_annotations(change, words, tmp_path):
    content, _ = synthetic(5)
    change(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        CocoMetric(tmp_path / "a.json")
    assert words in str(error.value) and "a.json" in str(error.value)


def test_bad_results(tmp_path):
    content, boxes = synthetic(5)
    metric = CocoMetric(content)
    path = tmp_path / "r.json"
    good = {"image_id": content["images"][0]["id"], "category_id": 3, "bbox": [1, 2, 3, 4]}
    for entries, words in [
        ([good], "[0].score"),
        ([{**good, "score": 1, "image_id": 999999}], "[0].image_id: image 999999 is not in"),
        ([{**good, "score": 1, "image_id": "cat.jpg"}], "[0].image_id: 'cat' is not a whole"),
        ([{**good, "score": float("nan")}], "NaN"),
        ([{**good, "score": 1}, {**good, "score": "high"}], "[1].score: expected `float`"),
        ([{**good, "score": 1, "bbox": [1, 2, 3]}], "[0].bbox"),
        ([{**good, "score": 1, "bbox": [1e400, 2, 3, 4]}], "r.json"),
        ({"annotations": []}, "list of detections"),
    ]:
        path.write_text(json.dumps(entries))
        with pytest.raises(UserError, match=".*") as error:
            metric.load_result_json(path)
        assert words in str(error.value)
    path.write_text("\ufeff" + json.dumps(content))  # as Windows programs write it
    assert CocoMetric(path).images == metric.images
    path.write_text("[{")
    with pytest.raises(UserError, match="not JSON"):
        metric.load_result_json(path)
    with pytest.raises(UserError, match="No such file"):
        CocoMetric(tmp_path / "none.json")
    with pytest.raises(UserError, match="3 classes, but the model found class 7"):
        metric.update([content["images"][0]["id"]], [[7, 0.5, 1, 1, 2, 2]], [1])


def test_another_limit_on_detections_is_said_and_right(published, engine):
    """Only `max_dets` differs from COCO's, and the figures are pycocotools' with that limit."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content, boxes = synthetic(4)
    crowded = np.concatenate([boxes, *[boxes + [0, 0, -0.01 * k, 0, 0, 0, 0] for k in range(9)]])
    metric = feed(CocoMetric(content, engine=engine, max_dets=20), content, crowded, range(30))
    result = metric.result()
    assert result["names"][8] == "AR20" and result["max_dets"] == 20
    assert "not COCO's figures: 20 detections" in result["notes"][0]
    assert "maxDets= 20 ]" in table(result) and "AP75" in table(result, classwise=True)
    state = metric.detections()
    results = [
        {"image_id": i, "category_id": c, "bbox": b, "score": s}
        for i, c, b, s in zip(*(state[n].tolist() for n in state), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.params.maxDets = [1, 10, 20]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 2]
    assert result["stats"][0] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    full = feed(CocoMetric(content, engine=engine), content, crowded, range(30)).result()
    assert full["stats"][0] != result["stats"][0] and full["notes"] == []
    with pytest.raises(UserError, match="more than 10"):
        CocoMetric(content, max_dets=5)


def test_score_threshold_leaves_out_and_explains(engine):
    content, boxes = synthetic(6)
    metric = feed(CocoMetric(content, engine=engine, score_threshold=0.35), content, boxes,
                  range(30))  # fmt: skip
    result = metric.result()
    kept = boxes[boxes[:, 2] >= 0.35]
    expected = feed(CocoMetric(content, engine=engine), content, kept, range(30)).result()
    assert result["stats"] == expected["stats"] and len(kept) == result["detections"]
    assert f"({len(boxes) - len(kept)}) were left out" in result["notes"][0]
    parts = [feed(CocoMetric(content, engine=engine, score_threshold=0.95), content, boxes,
                  range(k, 30, 2)) for k in (0, 1)]  # fmt: skip
    parts[0].merge([part.state() for part in parts])
    reason = parts[0].result()["reason"]
    count = int((boxes[:, 2] == np.float32(0.9)).sum())
    assert "no box above the score threshold 0.95" in reason and f"{count} in 0.8-0.9" in reason


def test_no_detection_at_all_counts_low_scores(engine):
    content, boxes = synthetic(6)
    metric = feed(CocoMetric(content, engine=engine), content, boxes[:0], range(30))
    metric.count_low(np.array([0.003, 0.004, 0.6]))
    assert "scores below it: 2 in 0.002-0.005, 1 in 0.6-0.7" in metric.result()["reason"]


def test_several_files_are_judged_as_one(tmp_path, engine):
    """The figures of two files are those of the file they were cut from; classes by name."""
    content, boxes = synthetic(8)
    whole = feed(CocoMetric(content, engine=engine), content, boxes, range(30)).result()
    files = []
    for k in (0, 1):
        part = copy.deepcopy(content)
        part["images"] = part["images"][k::2]
        ids = {image["id"] for image in part["images"]}
        part["annotations"] = [a for a in part["annotations"] if a["image_id"] in ids]
        if k:
            part["categories"].reverse()
            for entry in part["categories"]:
                entry["id"] += 500
            for annotation in part["annotations"]:
                annotation["category_id"] += 500
        files.append(str(tmp_path / f"{k}.json"))
        (tmp_path / f"{k}.json").write_text(json.dumps(part))
    metric = feed(CocoMetric(files, engine=engine), content, boxes, range(30))
    judged = metric.result()
    assert judged["stats"] == whole["stats"] and judged["stats"][0] > 0
    assert judged["per_class"] == whole["per_class"] and metric.source == " + ".join(files)
    with pytest.raises(UserError, match=r"0.json: images: id \d+ is also in an earlier one"):
        CocoMetric([files[0], files[1], files[0]])
    other = json.loads((tmp_path / "1.json").read_text())
    other["categories"][0]["name"] = "other"
    (tmp_path / "1.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="1.json: categories: 'other' is not in"):
        CocoMetric(files)


@pytest.mark.parametrize(("ids", "words"), [((0, 1), "the id 0"), ((5, 5), "ids that occur twice")])
def test_annotation_ids_by_which_pycocotools_goes_wrong(ids, words, engine):
    """Both objects are found exactly: AP is 1, less in pycocotools; a line says so."""
    boxes = [[10, 10, 20, 20], [60, 60, 30, 30]]
    content = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": b, "area": b[2] ** 2,
                         "iscrowd": 0} for i, b in zip(ids, boxes)],
    }  # fmt: skip
    found = [{"image_id": 1, "category_id": 1, "bbox": b, "score": 0.9} for b in boxes]
    metric = CocoMetric(content, engine=engine)
    metric.add(np.ones(2), np.ones(2), np.array(boxes, float), np.full(2, 0.9))
    result = metric.result()
    assert result["stats"][0] == 1 > reference(content, found)[0]
    assert words in result["notes"][0] and "pycocotools' figures may differ" in result["notes"][0]
    assert table(result).count("may differ") == 1


def test_a_command_line_that_cannot_be_meant_is_refused(tmp_path, capsys):
    content, boxes = synthetic(5)
    files = {name: tmp_path / name for name in ("gt.json", "dt.json", "mask.json", "dt.json.gz")}
    files["gt.json"].write_text(json.dumps(content))
    row = {"image_id": content["images"][0]["id"], "category_id": 3, "score": 0.5}
    files["dt.json"].write_text(json.dumps([{**row, "bbox": [1, 2, 3, 4]}]))
    files["mask.json"].write_text(json.dumps([{**row, "segmentation": {"size": [1, 1]}}]))
    files["dt.json.gz"].write_bytes(gzip.compress(files["dt.json"].read_bytes()))

    def refused(*argv, found="dt.json") -> str:
        start = ["--predictions", files[found]] if found else []
        start += ["--annotations", files["gt.json"]]
        try:
            code = run("eval", [str(x) for x in (*start, *argv)])
        except SystemExit as error:  # argparse's
            code = error.code
        assert code == 2
        return capsys.readouterr().err

    for option, value in (("-c", "x.yml"), ("--weights", "w"), ("-o", "epoch=1"), ("--amp",) * 2,
                          ("--precision", "bf16"), ("--tta-flip", "--tta-flip")):  # fmt: skip
        name = "--tta-*" if option.startswith("--tta") else option
        assert f"without a model: leave out {name}" in refused(*{option: 0, value: 0})
    for value in ("nan", "inf", "-inf", "high"):
        assert f"--score-threshold: not a number: '{value}'" in refused(
            f"--score-threshold={value}"
        )
    assert "dt.json.gz: packed (gzip or ZIP), not JSON; unpack it first" in refused(
        found="dt.json.gz"
    )
    assert "[0].bbox: missing: boxes are judged here, and results of segmentation" in refused(
        found="mask.json"
    )
    assert "--annotations belongs to --predictions" in refused("-c", "x.yml", found="")
    with pytest.raises(UserError, match="score threshold: nan"):
        CocoMetric(content, score_threshold=float("nan"))
    with pytest.raises(UserError, match="packed"):
        open_index(files["dt.json.gz"])
