"""`fcos infer` and Predictor: correct boxes and names, all input forms, bad images reported."""

import contextlib
import csv
import errno
import functools
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fcos_recipe.cli import run
from fcos_recipe.datasets.drawn_shapes import CLASSES
from fcos_recipe.errors import UserError
from fcos_recipe.predict.files import drawings
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
    assert [str(p) for p in both.values()] == ["train/000001.jpg", "val/000001.jpg"]
    both = find_inputs([str(data / "val"), os.path.relpath(data / "val/000001.jpg")])
    assert [str(p) for p in both.values()] == [f"00000{i}.jpg" for i in range(1, 7)]
    assert len(find_inputs([str(data)])) == 8
    for name in ("a.jfif", "b", "c.v2"):  # known by their content
        shutil.copy(data / "val/000001.jpg", tmp_path / name)
    assert [p.name for p in find_inputs([str(tmp_path)])] == ["a.jfif", "b", "c.v2"]


def test_no_image_of_a_folder_is_passed_over(trained, tmp_path, capsys):
    """Each is either predicted on or named, by whatever decoders this OpenCV has."""
    folder = tmp_path / "in"
    folder.mkdir()
    picture = Image.fromarray(np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3))
    for ending in ("gif", "avif", "jp2", "tif", "webp", "bmp", "ppm", "jfif"):
        with contextlib.suppress(KeyError, OSError):  # this Pillow cannot write it
            kind = {"jp2": "JPEG2000", "jfif": "JPEG", "tif": "TIFF"}.get(ending, ending)
            picture.save(folder / f"good.{ending}", kind)
    for ending in ("gif", "heic", "jxl", "svg", "ICO", "psd", "cr3", "tga"):
        (folder / f"bad.{ending}").write_bytes(b"<svg/>")
    (folder / "._bad.svg").write_bytes(b"")  # of macOS
    write_video(folder / "film.avi", frames=2)
    assert infer(trained, tmp_path / "out", "--input", folder) == 1
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    seen = {os.path.basename(row["file_name"]) for row in rows}
    named = {os.path.basename(line.split(":")[1]) for line in capsys.readouterr().err.splitlines()}
    assert not seen & named and seen | named == {
        p.name for p in folder.iterdir() if p.name[0] != "."
    }
    assert {"good.jfif", "good.bmp", "film.avi"} <= seen
    assert named >= {p.name for p in folder.glob("bad.*")}


def write_video(path, frames: int = 7, size=(96, 64)):
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
    video = write_video(tmp_path / "clip.avi")
    out = tmp_path / "out"
    assert run("infer", ["--weights", str(trained[0]), "--input", str(video), "--output", str(out),
                         "--csv", "--batch-size", size]) == 0  # fmt: skip
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["frame"] for row in rows} == set(range(7))
    assert {row["seconds"] for row in rows if row["frame"] == 6} == {0.6}
    assert {row["category_name"] for row in rows} <= set(trained[1])
    capture = cv2.VideoCapture(str(out / "clip.webm"))
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


def infer(trained, out, *argv):
    return run("infer", ["--weights", str(trained[0]), "--output", str(out), *map(str, argv)])


def test_results_are_complete_after_each_image_and_when_interrupted(
    trained, data, tmp_path, capsys
):
    """An interruption or a full disk in any image leaves those before it."""
    from fcos_recipe.predict import files

    whole = tmp_path / "whole"
    assert infer(trained, whole, "--input", data / "val", "--csv") == 0
    rows = json.loads((whole / "predictions.json").read_text())
    normal = files._Growing.add
    for error, code in ((KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "full"), 4)):
        out, calls = tmp_path / type(error).__name__, []

        def add(self, text, error=error, calls=calls, out=out):
            calls.append(json.loads((out / "predictions.json").read_text()))
            if len(calls) == 4:
                raise error
            normal(self, text)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files._Growing, "add", add)
            assert infer(trained, out, "--input", data / "val") == code
        left = json.loads((out / "predictions.json").read_text())
        assert left == rows[: len(left)] and len({r["file_name"] for r in left}) == 3
        assert list(map(len, calls)) == sorted(map(len, calls))
        assert "Traceback" not in capsys.readouterr().err


def test_a_partial_write_is_taken_back(tmp_path, monkeypatch):
    from fcos_recipe.predict.files import _Growing

    file = _Growing(tmp_path / "a.json", "[", "]\n")
    file.add("1")
    write = os.pwrite

    def full(handle, data, place):
        if len(data) > 6:
            return write(handle, bytes(data[:4]), place)
        raise OSError(errno.ENOSPC, "No space left on device")

    failing = iter([full, full])
    monkeypatch.setattr(os, "pwrite", lambda *given: next(failing, write)(*given))
    with pytest.raises(OSError, match="a.json"):
        file.add(",2,3,4")
    assert (tmp_path / "a.json").read_text() == "[1]\n"
    file.add(",5")
    assert json.loads((tmp_path / "a.json").read_text()) == [1, 5]


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_model(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in ("/proc/1/out", tmp_path / "file" / "out", tmp_path / "file"):
        argv = ["--weights", "none.pdparams", "--input", str(data / "val"), "--output", str(out)]
        assert run("infer", argv) == 2
        error = capsys.readouterr().err
        assert "--output" in error and len(error.splitlines()) == 1, error


@pytest.mark.parametrize(
    "argv, says",
    [(["--draw_threshold", "50"], "draw_threshold: 50"), (["--score_threshold", "-1"], "-1"),
     (["--classes", "Kreis,dog"], "'dog' is unknown; the model has Kreis"),
     (["--max-dets", "0"], "max_dets")],
)  # fmt: skip
def test_wrong_options_are_refused(trained, data, tmp_path, capsys, argv, says):
    assert infer(trained, tmp_path, "--input", data / "val", *argv) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and says in error[0], error


def test_choices(trained, data, tmp_path, capsys):
    """Classes, suppression across classes, number, crops; the threshold is that of the best F1."""
    from fcos_recipe.predict.results import suppressed

    run_directory = tmp_path / "run"
    shutil.copytree(trained[0].parent, run_directory)
    (run_directory / "analysis.json").write_text('{"score_threshold": 0.3125}')
    picture = data / "val/000001.jpg"
    argv = ["--weights", str(run_directory), "--input", str(picture)]

    def rows(name, *more):
        assert run("infer", [*argv, "--output", str(tmp_path / name), *more]) == 0
        return json.loads((tmp_path / name / "predictions.json").read_text())

    every = rows("all", "--save-crops")
    said = capsys.readouterr().out
    assert f"score >= 0.3125, the best F1 of {run_directory}/analysis.json)" in said
    drawn = [row for row in every if row["score"] >= 0.3125]
    assert drawn and f"({len(drawn)} drawn," in said
    crops = sorted((tmp_path / "all/crops/000001.jpg").iterdir())
    assert [c.stem[4:] for c in crops] == [row["category_name"] for row in drawn]
    assert rows("some", "--classes", "Kreis,3") == [
        row for row in every if row["category_id"] in (1, 4)
    ]
    assert rows("few", "--max-dets", "3") == every[:3]
    boxes = np.array([row["bbox"] for row in every])
    boxes[:, 2:] += boxes[:, :2]
    kept = [every[k] for k in suppressed(boxes, 0.6)]
    assert rows("agnostic", "--agnostic-nms") == kept and len(kept) < len(every)


def test_drawings_never_share_a_name(tmp_path):
    """Whatever files are given: also in one letter's case, or a file named as another's folder."""
    names = ["a/x.png", "b/x.png", "b/X.png", "c/x.PNG", "d/x", "d/x/deep.png", "x_2.png",
             "e/predictions.json", "e/crops", "a/v.avi", "b/v.mov", "c/v.mp4"]  # fmt: skip
    rng = np.random.default_rng(0)
    for trial in range(20):
        top = tmp_path / str(trial)
        picked = [str(n) for n in rng.permutation(names) if rng.uniform() < 0.8]
        inputs = []
        for name in picked:
            path = top / name
            if path.parent.is_file() or path.is_dir():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x89PNG")
            inputs.append(str(path))
        for given in (inputs, [str(top)]):
            found = find_inputs(given)
            drawn = [str(p).casefold() for p in drawings(found, Path("")).values()]
            assert len(found) == len(set(found.values())) == len(set(drawn))
            assert len(found) == len(inputs) or given is not inputs
            assert not set(drawn) & {"predictions.json", "predictions.csv", "crops", "labels"}
            assert not set(drawn) & {str(Path(p).parent) for p in drawn}


def test_a_stream_is_read_from_a_server(predictor, tmp_path):
    """By HTTP from this machine; an address without a server is an error of its own."""
    path = write_video(tmp_path / "clip.avi")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://user:secret@127.0.0.1:{server.server_port}/clip.avi"
        found = list(predictor.stream(address, strict=True))
        server.shutdown()
    wanted = list(predictor.stream(path, strict=True))
    assert [x.frame for x in found] == [x.frame for x in wanted] == list(range(7))
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.boxes, two.boxes)
        assert one.at == two.at and "secret" not in repr(one)
    (none,) = predictor(address)
    assert "not a camera or stream" in none.error and "secret" not in none.error
    (none,) = predictor(97)
    assert none.error.startswith("camera 97: not a camera")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", ["coco", "yolo", "voc", "labelme"])
def test_labels_come_back_through_convert(trained, data, tmp_path, kind, several, capsys):
    """The boxes that `dataset convert` reads are those that were predicted, of every image: also
    where several given folders, or files of one folder, have a name in common."""
    pictures, out, back = tmp_path / "in", tmp_path / "out", tmp_path / "back.json"
    places = ["A/one.jpg", "A/a folder/one.jpg", "A/图片/形状 2.v1.jpg", "B/one.png", "B/one",
              "B/classes.jpg", "B/labels/one.jpg", "B/one.jpg.png", "B/one.JPG"]  # fmt: skip
    for number, name in enumerate(places):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        image = cv2.imread(str(data / f"val/00000{number % 6 + 1}.jpg"))
        ending = os.path.splitext(name)[1] or ".jpg"
        (pictures / name).write_bytes(cv2.imencode(ending, np.roll(image, number, 1))[1])
    cv2.imwrite(str(pictures / "A/empty.png"), np.zeros((160, 224, 3), np.uint8))
    inputs = [pictures / "A", pictures / "B"] if several else [pictures]
    assert infer(trained, out, "--input", *inputs, "--save-labels", kind, "--draw_threshold", 0.4,
                 "--max-dets", 9, "--save-crops") == 0  # fmt: skip
    tops = [x.relative_to(out).parts[0] for x in out.rglob("*") if x.is_file()]
    assert len([x for x in tops if x not in ("labels", "crops")]) == 11
    rows = json.loads((out / "predictions.json").read_text())
    wanted = sorted(
        (os.path.relpath(row["file_name"], pictures), row["category_name"], *row["bbox"])
        for row in rows if row["score"] >= 0.4
    )  # fmt: skip
    source = out / "labels" / "instances.json" if kind == "coco" else out / "labels"
    argv = ["convert", source, "--images", pictures, "-o", back]
    assert run("dataset", list(map(str, argv))) == 0, capsys.readouterr()
    content = json.loads(back.read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {
        image["id"]: os.path.relpath(pictures / image["file_name"], pictures)
        for image in content["images"]
    }
    assert set(files.values()) == {*places, "A/empty.png"}
    assert set(names.values()) <= set(trained[1])
    found = sorted(
        (files[a["image_id"]], names[a["category_id"]], *a["bbox"]) for a in content["annotations"]
    )
    assert len(found) == len(wanted) > 3 and set(places) <= {row[0] for row in found}
    for one, two in zip(found, wanted, strict=True):
        assert one[:2] == two[:2] and one[2:] == pytest.approx(two[2:], abs=2e-3)
