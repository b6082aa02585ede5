"""Named evaluation sets: figures of their own, without any effect on the run beside them."""

import csv
import json
import re

import numpy as np
import pytest

from fcos_recipe import api
from fcos_recipe.checkpoint import weights
from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserErrors
from fcos_recipe.evaluation.metric import CocoMetric
from fcos_recipe.evaluation.options import Options
from tests.conftest import ROOT, run_tool

BCCD = ROOT / "configs/fcos/fcos_r18_fpn_bccd.yml"
TIMES = {"time", "seconds", "images_per_second", "images_per_second_per_card", "data_time",
         "memory_mib"}  # fmt: skip


@pytest.mark.parametrize("overrides, says", [
    (["eval_sets=[night]"], "eval_sets: expected a mapping or null"),
    (["eval_sets={night: val.json}"], r"eval_sets.night: expected a mapping of arguments"),
    (["eval_sets={a/b: {anno_path: x}}"], "eval_sets.a/b: a name consists of letters"),
    (["eval_sets.EvalDataset.anno_path=x"], "EvalDataset: a name consists"),
    (["eval_sets.night.anno_pth=x"], "eval_sets.night.anno_pth: .*did you mean"),
    (["eval_sets.night.sample_num=many"], "eval_sets.night.sample_num: expected a whole number"),
    (["eval_sets.night.name=ImageFolder"], "night.name: ImageFolder, but EvalDataset is a COCO"),
    (["eval_sets.night.image_dir=val"], "eval_sets.night: the same data as EvalDataset"),
    (["eval_sets.night.anno_path=x", "EvalDataset=null"], "eval_sets.night: needs EvalDataset"),
])  # fmt: skip
def test_what_is_wrong_with_a_set_is_one_line(overrides, says):
    with pytest.raises(UserErrors, match=says) as error:
        load_config(BCCD, overrides)
    (line,) = error.value.messages
    assert line.startswith("command line: eval_sets") and "\n" not in line


def test_a_set_takes_from_evaldataset_what_it_leaves_out(tmp_path):
    (tmp_path / "base.yml").write_text(
        f"_BASE_: ['{BCCD}']\nEvalDataset: {{dataset_dir: {tmp_path}}}\n"
        "eval_sets:\n  night: !COCODataSet\n    anno_path: night.json\n  day: {anno_path: d.json}\n"
    )
    (tmp_path / "top.yml").write_text("_BASE_: ['base.yml']\neval_sets: {day: null}\n")
    config = load_config(tmp_path / "top.yml")
    main, night = config.data["EvalDataset"], config.data["eval_sets"]["night"]
    assert night == {**main, "anno_path": "night.json"}
    missing = config.missing_files("eval_sets.night")
    assert len(missing) == 2 and "eval_sets.night.anno_path: " in missing[1]
    assert not [line for line in config.missing_files() if "eval_sets.day" in line]
    assert load_config(tmp_path / "top.yml", ["eval_sets=null"]).data["eval_sets"] is None


@pytest.fixture(scope="module")
def halves(shapes):
    """Overrides for sets of the first and the last four images of the validation set."""
    content = json.loads((shapes / "annotations/instances_val.json").read_text())
    options = []
    for name, part in (("night", slice(0, 4)), ("day", slice(4, 8))):
        images = content["images"][part]
        ids = {image["id"] for image in images}
        boxes = [a for a in content["annotations"] if a["image_id"] in ids]
        text = json.dumps({**content, "images": images, "annotations": boxes})
        (shapes / "annotations" / f"{name}.json").write_text(text)
        options.append(f"eval_sets.{name}.anno_path=annotations/{name}.json")
    # a network after twelve steps finds little: let its low scores count
    return [*options, "FCOSHead.nms.score_threshold=0.005"]


def train(tiny, output, *options):
    return run("train", ["-c", str(tiny), "--eval", "--output", str(output), "--logger", "csv",
                         "-o", *options])  # fmt: skip


def records(path, *kinds) -> list[dict]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows
            if not kinds or row["kind"] in kinds]  # fmt: skip


@pytest.fixture(scope="module")
def judged(tiny, halves, tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "run"
    assert train(tiny, path, *halves) == 0
    return path


@pytest.mark.e2e
def test_sets_leave_the_run_as_it_is_and_are_judged_alone(judged, tiny, halves, tmp_path, capfd):
    plain = tmp_path / "plain"
    assert train(tiny, plain, halves[-1]) == 0
    assert records(judged, "train", "eval") == records(plain)
    for name in ("model_final.pdparams", "best_model.pdparams"):
        one, two = (weights.read(path / name) for path in (judged, plain))
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], err_msg=key)
    whole, alone = (json.loads((path / "eval.json").read_text()) for path in (judged, plain))
    sets = whole.pop("sets")
    assert {k: v for k, v in whole.items() if k not in TIMES} == {
        k: v for k, v in alone.items() if k not in TIMES
    }
    assert whole["stats"][0] > 0 and sets["night"]["stats"] != sets["day"]["stats"]
    rows = records(judged, "eval_set")
    assert [(r["epoch"], r["set"]) for r in rows] == [
        (1, "night"), (1, "day"), (2, "night"), (2, "day"),
    ]  # fmt: skip
    with open(judged / "csv" / "eval_set.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["set"] for row in table] == ["night", "day"] * 2
    assert float(table[3]["AP"]) == rows[3]["AP"] == sets["day"]["stats"][0]
    # the same images as EvalDataset itself
    final = str(judged / "model_final.pdparams")
    found = api.evaluate(tiny, final, overrides=[
        "EvalDataset.anno_path=annotations/day.json", halves[-1],
    ])  # fmt: skip
    assert found.sets == {} and found.result["stats"] == sets["day"]["stats"]
    found = api.evaluate(tiny, final, overrides=halves, options=Options(eval_set="day"))
    assert found.result["stats"] == sets["day"]["stats"] and found.result["eval_set"] == "day"
    found = api.evaluate(tiny, final, overrides=halves)
    assert found.result["stats"] == whole["stats"]
    assert {k: v.figures for k, v in found.sets.items()} == {
        k: dict(zip(v["names"], v["stats"])) for k, v in sets.items()
    }
    assert run("report", [str(judged), "--output", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "report.md").read_text()
    figures = f"{100 * sets['night']['stats'][0]:.1f}"
    assert re.search(rf"\| night \| 4 \| \d+ \| {figures} \|", text)
    command = ["-c", str(tiny), "--weights", final, "-o", *halves]
    capfd.readouterr()
    assert run("eval", [*command, "--save-predictions", str(tmp_path / "d.json")]) == 2
    assert run("eval", [*command, "--eval-set", "dusk"]) == 2
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 2 and "of which data set? Add --eval-set NAME" in error[0]
    assert "--eval-set dusk: the config has EvalDataset, night, day" in error[1]


@pytest.mark.e2e
def test_a_resumed_run_carries_on_with_its_sets(judged, tiny, halves, tmp_path):
    path = tmp_path / "cut"
    assert train(tiny, path, "epoch=1", *halves) == 0
    with open(path / "metrics.jsonl", "a") as file:  # of an evaluation that is to be repeated
        file.write('{"kind": "eval_set", "set": "night", "epoch": 2, "step": 6, "AP": 0.5}\n')
    assert run("train", ["-c", str(tiny), "--eval", "--output", str(path), "--resume", "auto",
                         "-o", *halves]) == 0  # fmt: skip
    assert records(path, "eval", "eval_set") == records(judged, "eval", "eval_set")
    # other sets are no other run
    assert run("train", ["-c", str(tiny), "--eval", "--output", str(path), "--resume", "auto",
                         "-o", "epoch=3", halves[0], halves[-1]]) == 0  # fmt: skip
    assert [r["set"] for r in records(path, "eval_set") if r["epoch"] == 3] == ["night"]


@pytest.mark.e2e
def test_two_ranks_find_the_same_figures(judged, tiny, halves, tmp_path):
    done = run_tool(
        "eval", "-c", tiny, "--weights", judged / "model_final.pdparams", "--no-plots", "--json",
        tmp_path / "two.json", "--output", tmp_path, "-o", *halves, cwd=tmp_path, launch=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    one = json.loads((judged / "eval.json").read_text())
    assert two["stats"] == one["stats"] and two["images"] == 8
    for name, figures in one["sets"].items():
        assert two["sets"][name]["stats"] == figures["stats"]
        assert two["sets"][name]["per_class"] == figures["per_class"]


@pytest.mark.e2e
def test_other_classes_are_refused(tiny, halves, shapes, tmp_path, capfd):
    content = json.loads((shapes / "annotations/night.json").read_text())
    content["categories"].reverse()
    (tmp_path / "night.json").write_text(json.dumps(content))
    other = f"eval_sets.night.anno_path={tmp_path}/night.json"
    assert train(tiny, tmp_path / "run", *halves, other) == 2
    content["categories"].append({"id": 99, "name": "moon"})
    (tmp_path / "night.json").write_text(json.dumps(content))
    assert train(tiny, tmp_path / "run", *halves, other) == 2
    assert train(tiny, tmp_path / "run", *halves, f"{other}.gone") == 2
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 3
    assert "night.json: categories: not the same, in the same order, as in" in error[0]
    assert "night.json: categories: the file has 5 classes, but" in error[1]
    assert "eval_sets.night.anno_path: " in error[2] and "does not exist" in error[2]


@pytest.mark.e2e
@pytest.mark.slow
def test_real_images_are_judged_as_a_part_of_the_whole(shared, tmp_path):
    """A set's figures are those of the same detections judged on its images alone."""
    data = shared / "data" / "bccd"
    content = json.loads((data / "annotations/instances_val.json").read_text())
    images = content["images"][:24]
    pick = {image["id"] for image in images[::3]}
    for name, ids in (("whole", {image["id"] for image in images}), ("night", pick)):
        rows = {key: [row for row in content[key] if row[column] in ids]
                for key, column in (("images", "id"), ("annotations", "image_id"))}  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, **rows}))
    overrides = [
        f"TrainDataset.dataset_dir={data}", f"EvalDataset.dataset_dir={data}", "worker_num=0",
        f"EvalDataset.anno_path={tmp_path}/whole.json", "EvalReader.batch_size=1",
        f"eval_sets.night.anno_path={tmp_path}/night.json", "epoch=1", "device=cpu",
        "TrainDataset.sample_num=24", "FCOSHead.nms.score_threshold=0.001",
    ]  # fmt: skip
    api.train(BCCD, output=tmp_path / "run", evaluate=True, overrides=overrides)
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    found = tmp_path / "found.json"
    assert run("eval", [
        "-c", str(BCCD), "--weights", str(tmp_path / "run/model_final"), "--no-plots",
        "--eval-set", "EvalDataset", "--save-predictions", str(found),
        "--output", str(tmp_path / "eval"), "-o", *overrides,
    ]) == 0  # fmt: skip
    metric = CocoMetric(str(tmp_path / "whole.json"))
    metric.load_result_json(found)
    assert metric.result()["stats"] == result["stats"] and result["stats"][1] > 0
    assert metric.result(pick)["stats"] == result["sets"]["night"]["stats"] != result["stats"]
