"""`fcos infer` and Predictor: correct boxes and names, all input forms, bad images reported."""

import csv
import json
import os
import shutil

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.datasets.drawn_shapes import CLASSES
from fcos_recipe.errors import UserError
from fcos_recipe.predict.inputs import find_inputs


@pytest.mark.matrix
def test_equals_evaluation(predictor, data):
    """The same boxes as a loader built from EvalReader gives the model."""
    import paddle
    from ppdet.core.workspace import create

    dataset = create("EvalDataset")()
    expected = []
    for batch in create("EvalReader")(dataset, 0):
        with paddle.no_grad():
            found = predictor.backend.model(batch)
        ends = found["bbox_num"].numpy().cumsum()
        expected += np.split(found["bbox"].numpy(), ends[:-1])
    files = [data / f"val/{i:06d}.jpg" for i in range(1, 7)]
    results = predictor(files[:2]) + predictor(files[2:])
    order = [dataset.image_info(i)["im_file"] for i in range(6)]
    for file, result in zip(files, results, strict=True):
        rows = expected[order.index(str(file))]
        rows = rows[np.argsort(-rows[:, 1], kind="stable")]
        assert len(result) == len(rows) > 0
        assert result.boxes.dtype == np.float32 and result.labels.dtype == np.int64
        np.testing.assert_allclose(result.scores, rows[:, 1], atol=1e-5)
        np.testing.assert_allclose(result.boxes, rows[:, 2:], atol=1e-2)
        assert (result.boxes >= 0).all() and (result.boxes <= [224, 160, 224, 160]).all()
    assert predictor([]) == []


def test_names(trained, predictor, data, tmp_path, caplog):
    from fcos_recipe.config import load_config
    from fcos_recipe.predict import Predictor

    weights, names = trained
    assert predictor.names == names and predictor.category_ids == [1, 2, 3, 4]
    copy = tmp_path / "zoo.pdparams"  # without the JSON beside it, as a zoo file
    shutil.copy(weights, copy)
    config = weights.parent / "config.yml"
    from_annotations = Predictor(copy, config, device="cpu")
    assert from_annotations.names == CLASSES
    assert from_annotations.image_ids["000003.jpg"] == 3
    with pytest.raises(UserError, match="no config.yml"):
        Predictor(copy)
    nowhere = load_config(
        config, ["TestDataset.anno_path=none.json", "EvalDataset.anno_path=none.json"]
    )
    caplog.clear()
    import logging

    logging.getLogger("fcos").propagate = True
    unknown = Predictor(copy, nowhere, device="cpu")
    assert unknown.names == ["class 0", "class 1", "class 2", "class 3"]
    assert "class names: unknown" in caplog.text
    note = weights.with_suffix(".json")
    (tmp_path / "zoo.json").write_text(note.read_text().replace('"Kreis",', ""))
    with pytest.raises(UserError, match="stores 3 class names, the config's num_classes is 4"):
        Predictor(copy, config, device="cpu")


@pytest.mark.matrix
def test_command(trained, data, tmp_path, capfd):
    weights, names = trained
    pictures = tmp_path / "in"
    (pictures / "deep/er").mkdir(parents=True)
    shutil.copy(data / "val/000001.jpg", pictures / "one.jpg")
    shutil.copy(data / "val/000002.jpg", pictures / "deep/er/two.JPG")
    (pictures / "deep/cut.jpg").write_bytes((data / "val/000003.jpg").read_bytes()[:90])
    (pictures / "notes.md").write_text("no image")
    foreign = os.fsdecode(os.fsencode(pictures) + b"/caf\xe9.jpg")  # Latin-1, not UTF-8
    shutil.copy(data / "val/000004.jpg", foreign)
    output = pictures / "drawn"
    args = ["--weights", str(weights), "--infer_dir", str(pictures), "--output_dir", str(output)]
    for _ in range(2):  # the second time the folder holds the first one's drawings
        assert run("infer", [*args, "--draw_threshold", "0.2", "--csv", "--save_results"]) == 1
    told = capfd.readouterr()
    assert "cut.jpg: not an image" in told.err and "3 images," in told.out
    rows = json.loads((output / "predictions.json").read_text())
    assert {row["file_name"] for row in rows} == {
        str(pictures / "one.jpg"),
        str(pictures / "deep/er/two.JPG"),
        foreign,
    }
    assert os.path.isfile(output / os.path.basename(foreign))
    for row in rows:
        assert row["category_name"] == names[row["category_id"] - 1]
        assert len(row["bbox"]) == 4 and 0 < row["score"] < 1
    with open(output / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    import cv2

    drawn = cv2.imread(str(output / "deep/er/two.JPG")).astype(int)
    assert drawn.shape == (160, 224, 3)
    assert np.abs(drawn - cv2.imread(str(data / "val/000002.jpg"))).max() > 80


def test_predictions_can_be_evaluated(trained, data, tmp_path):
    from fcos_recipe.evaluation.metric import CocoMetric

    code = run(
        "infer",
        ["--weights", str(trained[0]), "--input", str(data / "val"), "--output", str(tmp_path)],
    )
    metric = CocoMetric(data / "annotations/instances_val.json")
    metric.load_result_json(tmp_path / "predictions.json")
    assert code == 0 and metric.result()["detections"] > 0


def test_bad_input(trained, data, tmp_path, capsys):
    # -o changes the config of the weights' own run
    weights = str(trained[0])
    image = str(data / "val/000001.jpg")
    for args, words in [
        (["--weights", weights, "--input", str(tmp_path)], "no image found"),
        (["--weights", "none.pdparams", "--input", image], "no such weights file"),
        (
            ["--weights", weights, "--input", image, "-o", "num_classes=3"],
            "does not match the model: 110 loaded; 2 with another shape",
        ),
        (
            ["--weights", weights, "--input", image, "-o", "keep_top=3"],
            "keep_top: unknown key; did you mean 'FCOSHead.nms.keep_top_k'",
        ),
        (["--weights", weights, "--input", image, "--output", str(data / "val")], "overwrite"),
        (["--input", image], "--weights: missing"),
    ]:
        assert run("infer", args) == 2
        assert words in capsys.readouterr().err


def test_find_inputs(data, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{data}/val/000002.jpg\n\n{data}/val/000001.jpg\n")
    assert [p.name for p in find_inputs([str(listed)])] == ["000002.jpg", "000001.jpg"]
    assert len(find_inputs([str(data / "val/*.jpg")])) == 6
    both = find_inputs([str(data / "train/000001.jpg"), str(data / "val/000001.jpg")])
    assert [str(p) for p in both.values()] == ["000001.jpg", "000001_2.jpg"]
    assert len(find_inputs([str(data)])) == 8
    for name in ("a.jfif", "b", "c.v2"):  # known by their content
        shutil.copy(data / "val/000001.jpg", tmp_path / name)
    assert [p.name for p in find_inputs([str(tmp_path)])] == ["a.jfif", "b", "c.v2"]


def write_video(path, frames: int = 7, size=(96, 64)):
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, size)
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write a video")
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 255, (size[1], size[0], 3), np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("size", ["1", "3"])
def test_video(trained, tmp_path, size, capsys):
    import cv2

    video = write_video(tmp_path / "clip.avi")
    out = tmp_path / "out"
    assert run("infer", ["--weights", str(trained[0]), "--input", str(video), "--output", str(out),
                         "--csv", "--batch-size", size]) == 0  # fmt: skip
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["frame"] for row in rows} == set(range(7))
    assert {row["seconds"] for row in rows if row["frame"] == 6} == {0.6}
    assert {row["category_name"] for row in rows} <= set(trained[1])
    capture = cv2.VideoCapture(str(out / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 7 and capture.get(cv2.CAP_PROP_FPS) == 10
    assert capture.read()[1].shape == (64, 96, 3)
    assert "7 images" in capsys.readouterr().out
    with open(out / "predictions.csv", newline="") as file:
        assert [row["frame"] for row in csv.DictReader(file)][-1] == "6"


def test_a_broken_video_is_named_and_the_rest_is_done(trained, data, tmp_path, capsys):
    whole = write_video(tmp_path / "whole.avi", frames=30)
    broken, empty = tmp_path / "broken.avi", tmp_path / "empty.mp4"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    empty.write_bytes(b"")
    out = tmp_path / "out"
    code = run("infer", ["--weights", str(trained[0]), "--output", str(out), "--input",
                         str(empty), str(broken), str(data / "val/000001.jpg")])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 1
    errors = [x for x in captured.err.splitlines() if x.startswith("error: ")]
    assert any("empty.mp4: not a video" in x for x in errors)
    assert any("broken.avi" in x for x in errors) and len(errors) == 2
    assert (out / "000001.jpg").is_file()


def test_batches_find_what_single_images_find(trained, data, tmp_path):
    """Images of one size share no padding, so a batch has the scores of its images."""
    found = []
    for size in ("1", "4"):
        out = tmp_path / size
        assert run("infer", ["--weights", str(trained[0]), "--input", str(data / "val"),
                             "--output", str(out), "--batch-size", size]) == 0  # fmt: skip
        rows = json.loads((out / "predictions.json").read_text())
        found.append(sorted((r["file_name"], round(r["score"], 4), r["category_id"]) for r in rows))
    assert found[0] and len(found[0]) == len(found[1])
    for one, two in zip(*found, strict=True):
        assert one[0] == two[0] and one[1] == pytest.approx(two[1], abs=2e-4)
