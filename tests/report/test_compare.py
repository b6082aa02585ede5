"""AP differences and their intervals."""

import json

import numpy as np
import pytest

from fcos_recipe.evaluation import detections_file
from fcos_recipe.evaluation.bootstrap import Matched, figures
from fcos_recipe.report import html
from fcos_recipe.report.blocks import Table, Text
from fcos_recipe.report.compare import blocks, compared
from fcos_recipe.report.write import make
from fcos_recipe.runs.contents import read_run
from tests.helpers.made_runs import judged, write_run

pytest.importorskip("hotcoco")


@pytest.fixture
def pair(tiny, validation, tmp_path):
    """Two runs, of which the first finds boxes more exactly."""
    return [write_run(tmp_path / name, tiny, judged(validation[0], None, seed, noise))
            for name, seed, noise in (("good", 1, 0.5), ("poor", 2, 9.0))]  # fmt: skip


def test_the_difference_and_its_interval(pair):
    good, poor = map(read_run, pair)
    found = compared(good, poor, 200)
    difference = found["figures"][1]["AP"] - found["figures"][0]["AP"]
    assert difference == pytest.approx(good.ap - poor.ap, abs=1e-4) and good.ap > poor.ap
    low, high = found["intervals"]["AP"]
    assert 0 < low < difference < high
    assert compared(poor, good, 200)["intervals"]["AP"] == pytest.approx((-high, -low))
    assert compared(good, good, 50)["intervals"]["AP"] == (0, 0)
    assert compared(good, good, 0)["intervals"] == {}
    text = next(b for b in blocks(good, [poor], 200) if isinstance(b, Text)).text
    assert "choice of validation images does not explain" in text and "training seeds" in text
    text = next(b for b in blocks(good, [good], 50) if isinstance(b, Text)).text
    assert "alone can explain" in text


def test_detections_are_kept_as_they_were_judged(validation, tmp_path):
    metric = judged(*validation)
    detections_file.save(metric, tmp_path / "d.npz")
    matched = Matched(detections_file.read(tmp_path / "d.npz"))
    again = figures(matched.precision(np.ones((1, matched.images), int)))
    assert again["AP"][0] == pytest.approx(metric.last["stats"][0], abs=1e-4)
    assert (tmp_path / "d.npz").stat().st_size < 60 * metric.last["detections"] + 4000


def test_why_no_interval_can_be_given(pair, tiny, validation, tmp_path):
    def words(other) -> str:
        return html.page(make(pair[0], [other], 10))

    content = json.loads(validation[0].read_text())
    content["annotations"][0]["bbox"][0] += 1
    (tmp_path / "moved.json").write_text(json.dumps(content))
    moved = write_run(tmp_path / "moved", tiny, judged(tmp_path / "moved.json", None))
    assert "No interval, because their annotations differ" in words(moved)
    content["images"] = content["images"][1:]
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    keep = {i["id"] for i in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in keep]
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    fewer = write_run(tmp_path / "fewer", tiny, judged(tmp_path / "fewer.json", None))
    assert "judged on different images (7 and 8)" in words(fewer)
    result = json.loads((pair[1] / "eval.json").read_text())
    result["stats"][0] += 0.01
    (pair[1] / "eval.json").write_text(json.dumps(result))
    assert "does not match its last evaluation" in words(pair[1])
    (pair[1] / detections_file.JUDGED).write_bytes(b"PK\x03\x04 no more")
    assert "not an evaluation&#x27;s detections" in words(pair[1])
    (pair[1] / detections_file.JUDGED).unlink()
    assert "has not kept its detections" in words(pair[1])
    (pair[1] / "eval.json").unlink()
    (pair[1] / "metrics.jsonl").unlink()
    assert "no AP difference" in words(pair[1])


def test_no_pickle_is_loaded(pair):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    np.savez(pair[1] / "x.npz", images=np.array([Evil()], object))
    (pair[1] / "x.npz").rename(pair[1] / detections_file.JUDGED)
    assert "not an evaluation&#x27;s detections" in html.page(make(pair[0], [pair[1]], 10))


def test_config_differences(pair):
    text = (pair[1] / "config.yml").read_text()
    assert "\nepoch: 2 " in text
    (pair[1] / "config.yml").write_text(text.replace("\nepoch: 2 ", "\nepoch: 3 "))
    good, poor = map(read_run, pair)
    table = blocks(good, [poor], 0)[-1]
    assert isinstance(table, Table) and table.rows == [["epoch", "3", "2"]]
    assert blocks(good, [good], 0)[-1].text.endswith("are the same.")
    (pair[1] / "config.yml").write_text("a: [" * 50)
    assert "cannot be compared" in blocks(good, [read_run(pair[1])], 0)[-1].text
