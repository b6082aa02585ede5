"""Int8 exports: small, near the trained model, refused where they are not."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.predict import parity
from tests.conftest import ROOT


def found(*rows):
    """A model that finds (class, score, x) in one image, boxes of 20 x 20."""
    table = np.array([[c, s, x, 0, x + 20, 20] for c, s, x in rows], np.float32).reshape(-1, 6)
    return lambda _batch: (table, np.array([len(rows)]))


MANY = [(k % 3, 0.9 - k / 100, 50 * k) for k in range(20)]


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda rows: rows, 0),
        (lambda rows: [(c, s - 0.05, x + 3) for c, s, x in rows], 0),
        (lambda rows: rows[1:], 1),
        (lambda rows: [*rows, (0, 0.1, 3000)], 0),  # not confident
        (lambda rows: rows[6:], None),
        (lambda rows: [(c, s - 0.2, x) for c, s, x in rows], None),
        (lambda rows: [(c, s, x + 15) for c, s, x in rows], None),
        (lambda rows: [((c + 1) % 3, s, x) for c, s, x in rows], None),
        (lambda rows: [*rows, *((0, 0.9, 3000 + 50 * k) for k in range(6))], None),
        (lambda rows: [], None),
    ],
)
def test_gate_takes_what_is_near_and_refuses_the_rest(change, lost):
    verdict = parity.compare_nearly(found(*MANY), found(*change(MANY)), [{}])
    assert verdict.passed == (lost is not None) and verdict.exempt == (lost or 0)
    assert not parity.compare_nearly(found(), found(), [{}]).passed, "nothing to compare"


@pytest.mark.matrix
@pytest.mark.slow
def test_an_int8_export_is_small_and_near_and_runs_alone(trained, data, tmp_path, capfd):
    for name in ("paddle2onnx", "onnx", "onnxruntime.quantization"):
        pytest.importorskip(name)
    import onnx

    images = data / "train"
    argv = ["--weights", str(trained[0]), "--output", str(tmp_path), "--format", "onnx"]
    assert run("export_model", argv) == 0
    assert run("export_model", [*argv, "--int8", str(images)]) == 0
    assert capfd.readouterr().err == ""
    plain, small = (
        next(tmp_path.glob(pattern)) / "model.onnx" for pattern in ("*-onnx", "*-onnx-int8")
    )
    assert small.stat().st_size < 0.4 * plain.stat().st_size
    facts = json.loads((small.parent / "fcos_export.json").read_text())
    assert facts["precision"] == "int8" and facts["calibration_images"] == 2
    assert facts["files"].keys() == {"model.onnx"} and facts["check"]["detections"] > 0
    graph = onnx.load(small).graph
    weights = {value.name: value.data_type for value in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    # the last layers put their weights together in the graph; all others are stored
    stored = [weights.get(makers[node.input[1]].input[0]) for node in convolutions]
    assert len(convolutions) > 20 and stored.count(onnx.TensorProto.INT8) >= len(stored) - 2
    # the program of the page runs it without this package
    page = (ROOT / "docs/deploy.md").read_text()
    (program,) = [
        text for text in re.findall(r"```python\n(.*?)```", page, re.S)
        if re.search("^import onnxruntime", text, re.M)
    ]  # fmt: skip
    (tmp_path / "detect.py").write_text(
        "import sys\nsys.modules.update(fcos_recipe=None, ppdet=None, paddle=None)\n" + program
    )
    photo = sorted((data / "val").iterdir())[0]
    done = subprocess.run(
        [sys.executable, tmp_path / "detect.py", small, photo], capture_output=True, text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x != str(ROOT))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    (timing,) = re.findall(r"```python\n((?:(?!```).)*percentile.*?)```", page, re.S)
    argv = [sys.executable, "-c", timing, plain.parent, small.parent, photo, photo]
    timed = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert timed.returncode == 0 and timed.stderr == "", timed.stderr[-2000:]
    figures = [line.partition("in ms:")[2].split() for line in timed.stdout.splitlines()]
    assert len(figures) == 2 and all(0 < float(a) <= float(b) for a, b in figures)
    from fcos_recipe.predict import Predictor

    (wanted,) = Predictor(small, device="cpu")([photo])
    scores = sorted((score for _, score, _ in rows), reverse=True)
    np.testing.assert_allclose(scores, wanted.scores, atol=1e-4)


@pytest.mark.matrix
@pytest.mark.slow
def test_an_fp16_export_is_half_as_large_and_near(trained, data, tmp_path, capfd):
    for name in ("paddle2onnx", "onnx", "onnxruntime.transformers.float16"):
        pytest.importorskip(name)
    import onnx

    from fcos_recipe.predict import Predictor

    argv = ["--weights", str(trained[0]), "--output", str(tmp_path), "--format", "onnx", "--fp16"]
    assert run("export_model", argv) == 0
    assert capfd.readouterr().err == ""
    (file,) = tmp_path.glob("*-onnx-fp16/model.onnx")
    assert json.loads((file.parent / "fcos_export.json").read_text())["precision"] == "fp16"
    graph = onnx.load(file).graph
    half = onnx.TensorProto.FLOAT16
    assert all(x.type.tensor_type.elem_type != half for x in [*graph.input, *graph.output])
    stored = {value.name: value.data_type for value in graph.initializer}
    weights = [stored.get(node.input[1]) for node in graph.node if node.op_type == "Conv"]
    assert weights.count(half) >= len(weights) - 2
    assert file.stat().st_size < 0.6 * 4 * sum(
        int(np.prod(p.shape))
        for p in Predictor(trained[0], device="cpu").backend.model.parameters()
    )
    photos = sorted((data / "val").iterdir())[:3]
    whole, halved = (Predictor(x, device="cpu")(photos) for x in (trained[0], file))
    for one, other in zip(whole, halved, strict=True):
        np.testing.assert_allclose(one.scores[:20], other.scores[:20], atol=0.01)
    with pytest.raises(SystemExit):
        run("export_model", [*argv[:4], "--fp16"])
    assert "--fp16 belongs to --format onnx" in capfd.readouterr().err
    assert run("export_model", [*argv, "--int8", str(data / "train")]) == 2
    assert "choose one" in capfd.readouterr().err


def test_what_cannot_be_quantised_is_said_in_one_line(trained, tmp_path, capsys, monkeypatch):
    pytest.importorskip("paddle2onnx")
    (tmp_path / "empty").mkdir()
    argv = ["--weights", str(trained[0]), "--output", str(tmp_path), "--format", "onnx", "--int8"]

    def refused(*more, given=argv):
        assert run("export_model", [*given, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not list(tmp_path.glob("*-onnx*"))
        return line

    assert "no image found" in refused(str(tmp_path / "empty"))
    assert "no image found" in refused(str(tmp_path / "absent"))
    with pytest.raises(SystemExit) as end:
        run("export_model", ["--weights", str(trained[0]), "--int8", str(tmp_path)])
    assert end.value.code == 2 and "--int8 belongs to --format onnx" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("export_model", [*argv, str(tmp_path / "empty"), "--opset", "12x"])
    capsys.readouterr()
    assert "choose 13 to 19" in refused(str(tmp_path / "empty"), "--opset", "12")
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    line = refused(str(tmp_path / "empty"))
    assert "is missing" in line and "pip install" in line


@pytest.mark.slow
def test_an_unreadable_calibration_image_is_named(trained, tmp_path, capsys):
    pytest.importorskip("paddle2onnx")
    pytest.importorskip("onnxruntime.quantization")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    argv = ["--weights", str(trained[0]), "--output", str(tmp_path), "--format", "onnx",
            "--int8", str(tmp_path / "photos")]  # fmt: skip
    assert run("export_model", argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken.jpg" in line and "remove it" in line and not list(tmp_path.glob("*onnx*"))
