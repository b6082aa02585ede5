"""The benchmark runs and writes plausible figures; measured times decide no test."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from fcos_recipe.errors import RunFailure
from fcos_recipe.lab.benchmark import commands, comparisons, detection, drawn_data, side_process
from fcos_recipe.lab.benchmark.data_timing import Batches
from fcos_recipe.system.cpu_math import has_bfloat16
from tests.conftest import run_tool

TINY = [
    "ResNet.depth=18",
    "TrainReader.sample_transforms=[{Decode: {}}, {Resize: {target_size: [64, 96], "
    "keep_ratio: true, interp: 1}}, {NormalizeImage: {mean: [0.485, 0.456, 0.406], "
    "std: [0.229, 0.224, 0.225], is_scale: true}}, {RandomFlip: {}}]",
]


def benchmark(tmp_path, *argv) -> tuple[dict, str]:
    """Run the tool with tiny settings: its JSON and what it printed."""
    target = tmp_path / "result.json"
    done = run_tool("benchmark", *argv, "--json", target, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(target.read_text())
    assert result["task"] == argv[0]
    assert result["ours"] > 0 and result["stock"] > 0 and result["ratio"] > 0
    assert result["machine"]["cores"] >= 1 and result["machine"]["packages"]["paddledet"]
    for name, side in result["sides"].items():
        assert side["low"] <= side["median"] <= side["high"], name
        assert name.removesuffix("_warm") in result["settings"]
    return result, done.stdout


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Twelve images in COCO's layout."""
    root = tmp_path_factory.mktemp("drawn")
    drawn_data.make_images(root, 12, seed=1)
    return root


@pytest.fixture(scope="module")
def same_size(tmp_path_factory):
    root = tmp_path_factory.mktemp("same") / "data"
    drawn_data.make_images(root, 4, size=(320, 256))
    return root


@pytest.mark.stock
def test_targets(tmp_path):
    result, out = benchmark(tmp_path, "targets", "--against", "stock", "--rounds", "1")
    assert result["ratio"] == pytest.approx(result["stock"] / result["ours"])
    assert set(result["ratio_by_boxes"]) == {"1", "7", "30", "90"}
    assert "ours is faster by" in out and "newshape" in out


@pytest.mark.slow
@pytest.mark.stock
def test_train_with_profile(tmp_path, drawn):
    result, out = benchmark(
        tmp_path, "train", "--data", drawn, "--rounds", "1", "--profile", "-o", *TINY
    )
    assert result["ratio"] == pytest.approx(result["ours"] / result["stock"])
    assert set(result["ratios"]) == {"stock", "stock_tuned"}
    profile = {name: side["profile"] for name, side in result["sides"].items()}
    assert 0 < profile["ours"]["operators"] < profile["stock"]["operators"]
    # stock reads each of its four losses in every step, ours reads whether the sum is finite
    assert sum(profile["stock"]["host_reads"].values()) >= 4
    assert sum(profile["ours"]["host_reads"].values()) <= 1
    assert "conv2d" in out
    # padding is exact arithmetic on what the model was handed
    assert result["sides"]["ours"]["padded_per_real"] < result["sides"]["stock"]["padded_per_real"]


@pytest.mark.slow
@pytest.mark.stock
def test_data(tmp_path, drawn):
    result, _ = benchmark(tmp_path, "data", "--data", drawn, "--rounds", "1")
    assert result["ratio"] == pytest.approx(result["ours"] / result["stock"])
    assert 0 < result["bytes_ratio"] < 1
    ours, stock = result["sides"]["ours"], result["sides"]["stock"]
    assert set(ours["by_boxes"]) == {"1", "7", "30", "100"}
    assert 1 <= ours["padded_per_real"]["8"] < stock["padded_per_real"]["8"]


@pytest.mark.slow
@pytest.mark.stock
def test_startup(tmp_path, drawn):
    result, _ = benchmark(tmp_path, "startup", "--data", drawn, "--rounds", "1")
    assert result["ratio"] == pytest.approx(result["stock"] / result["ours"])
    assert {"ours", "ours_warm", "stock"} == set(result["sides"])
    assert result["sides"]["ours"]["imports"] > 0


@pytest.mark.slow
@pytest.mark.stock
def test_inference(tmp_path, same_size, monkeypatch, capsys):
    monkeypatch.setitem(detection.CLASS_BIAS, "infer", -4.8)  # small images have fewer locations
    # the exports are checked on images of this size
    small = (
        "TestReader.sample_transforms=[{Decode: {}}, {Resize: {target_size: [256, 320], "
        "keep_ratio: true, interp: 1}}, {NormalizeImage: {mean: [0.485, 0.456, 0.406], "
        "std: [0.229, 0.224, 0.225], is_scale: true}}, {Permute: {}}]"
    )
    argv = ["--data", same_size, "--rounds", 1, "--batch-size", 2, "--json", tmp_path / "r.json"]
    assert commands.main(["infer", *map(str, argv), "-o", small]) == 0
    result, out = json.loads((tmp_path / "r.json").read_text()), capsys.readouterr().out
    sides = result["sides"]
    assert {"ours", "ours_paddle", "stock"} <= set(sides)
    assert ("ours_bf16" in sides) == has_bfloat16()
    assert ("ours_openvino" in sides) == bool(find_spec("openvino") and "ours_onnx" in sides)
    for side in sides.values():
        assert 0 < side["latency_p50"] <= side["latency_p99"] and side["latency_samples"] == 3
        assert side["first_image"] > side["latency_p50"]  # it has the imports and the loading
        assert side["peak_mib"]["2"] >= side["peak_mib"]["1"] > 100
    exact = sides.keys() - {"ours_bf16", "torchvision"}
    found = {sides[name]["detections_per_image"] for name in exact}
    assert len(found) == 1 and found != {0}  # all look at the same
    assert result["speedup"]["stock"]["ours"]["images/s"] == pytest.approx(result["ratio"])
    assert "first image, s" in out and out.count("(1.00x)") == 3  # stock beside itself


@pytest.mark.slow
@pytest.mark.stock
def test_nms(tmp_path, same_size):
    result, out = benchmark(tmp_path, "nms", "--data", str(same_size), "--rounds", "1")
    for label in ("none", "few", "some", "many"):
        found = {side["detections"][label] for side in result["sides"].values()}
        assert len(found) == 1, label
    assert result["sides"]["ours"]["detections"]["many"] == 100
    assert result["speedup"]["stock"]["many"] == pytest.approx(result["ratio"])


def test_the_evaluators_agree_on_the_set_that_is_timed(tmp_path):
    """`comparisons.eval` itself refuses to report times of figures that differ."""
    options = comparisons.Options(config="", stock_config="", rounds=1, images=60)
    with comparisons.Bench(options) as bench:
        found = comparisons.eval(bench)
    assert 0.05 < found["stats"][0] < 0.95 and found["largest_difference"] <= 1e-12
    assert found["ratio"] == pytest.approx(found["pycocotools"] / found["ours"])
    assert found["match_ratio"] > 0 and set(found["sides"]) == {"ours", "pycocotools"}


def test_torchvision_is_skipped_with_a_reason(capsys, monkeypatch):
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    assert commands.main(["train", "--against", "torchvision"]) == 0
    assert "torchvision is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--data", "/nowhere"], "/nowhere: annotations"),
        (["train", "-o", "x"], "expected KEY=VALUE"),
        (["train", "--against", "torchvision", "--torch-python", "/nowhere"], "not an interpreter"),
        (["eval", "--data", "/nowhere"], "/nowhere: annotations"),
    ],
)
def test_bad_input_is_one_line(tmp_path, argv, words):
    done = run_tool("benchmark", *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_side_that_ends_is_told_with_the_end_of_its_log():
    with side_process.Child(
        "fcos_recipe.lab.benchmark.stock", {"task": "no such task"}, {}
    ) as child:
        with pytest.raises(RunFailure, match="no such task"):
            child.receive()
    assert child.process.returncode is not None


def test_a_side_that_is_killed_is_told_although_its_workers_hold_the_line(tmp_path):
    script = tmp_path / "side.py"
    script.write_text("import os, time\nif os.fork() == 0: time.sleep(60)\nos.kill(os.getpid(), 9)")
    where = {"PYTHONPATH": str(tmp_path)}
    child = side_process.Child("side", {}, where)
    with pytest.raises(RunFailure, match="killed, perhaps because memory ran out"):
        child.receive()
    child.close()  # harmless the second time


def test_train2017_like_file_has_the_size_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = drawn_data.train2017(images=200, boxes=1500)
    content = json.loads((root / "annotations/instances_train2017.json").read_text())
    assert (len(content["images"]), len(content["annotations"])) == (200, 1500)
    assert {a["image_id"] for a in content["annotations"]} == {i["id"] for i in content["images"]}
    assert all((root / "train2017" / image["file_name"]).is_file() for image in content["images"])
    # 396 MB for 860,001 boxes
    size = (root / "annotations/instances_train2017.json").stat().st_size
    assert size / 1500 == pytest.approx(460, rel=0.2)
    before = (root / "complete").stat().st_mtime_ns
    assert drawn_data.train2017(images=200, boxes=1500) == root
    assert (root / "complete").stat().st_mtime_ns == before


def test_drawn_images_are_like_coco():
    rng = np.random.default_rng(0)
    sizes = drawn_data.draw_sizes(rng, 20_000)
    assert (sizes.max(axis=1) <= 640).all() and (sizes[:, 0] > sizes[:, 1]).mean() > 0.6
    counts = drawn_data.draw_counts(rng, 20_000, drawn_data.BOXES_PER_IMAGE)
    assert counts.min() >= 1 and counts.mean() == pytest.approx(
        drawn_data.BOXES_PER_IMAGE, rel=0.05
    )
    boxes = drawn_data.draw_boxes(rng, 640, 480, 1000)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 4).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [640, 480]).all()


def test_padding_is_the_area_of_the_batch_over_that_of_its_images():
    reader = {
        "sample_transforms": [{"Resize": {"target_size": [100, 200]}}],
        "batch_transforms": [{"PadBatch": {"pad_to_stride": 32}}],
    }
    # resized to 100x100, 100x200 (the long side decides) and 50x200
    sizes = [(50, 50), (100, 200), (25, 100)]
    batches = Batches(None, None, lambda epoch: [[0, 1], [2]], sizes, reader)
    expected = (2 * 128 * 224 + 64 * 224) / (100 * 100 + 100 * 200 + 50 * 200)
    assert batches.padding(epochs=3)["ratio"] == pytest.approx(expected)
