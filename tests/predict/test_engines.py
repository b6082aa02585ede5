"""The same boxes from every engine, on photos of all shapes."""

import json

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.predict import Predictor, parity
from fcos_recipe.predict.backends import export_facts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(trained, shared):
    """The trained model, and 50 photos of COCO as its reader makes them."""
    files = sorted((shared / "data/coco_mini/val2017").glob("*.jpg"))[:50]
    model = Predictor(trained[0], device="cpu")
    batches = [model.batch([file]) for file in files]
    assert len({batch["image"].shape for batch in batches}) >= 5
    return model, batches


def by_openvino(file):
    openvino = pytest.importorskip("openvino", reason="see requirements/deploy.txt")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(file, "CPU", exact)
    names = [value.any_name for value in network.inputs]

    def call(batch):
        rows, counts = network({name: batch[name] for name in names}).values()
        return rows[np.arange(rows.shape[1]) < counts[:, None]], counts

    return call


@pytest.mark.parametrize("engine", ["paddle", "onnxruntime", "openvino"])
def test_50_photos(trained, photos, tmp_path, engine):
    kind = "paddle" if engine == "paddle" else "onnx"
    if kind == "onnx":
        pytest.importorskip("paddle2onnx")
    argv = ["--weights", str(trained[0]), "--output", str(tmp_path), "--format", kind]
    assert run("export_model", argv) == 0
    (folder,) = tmp_path.iterdir()
    limits = (export_facts(str(folder)) or {})["limits"]
    model, batches = photos
    if engine == "openvino":
        other = by_openvino(folder / "model.onnx")
    else:
        other = Predictor(folder, device="cpu").run
    verdict = parity.compare(model.run, other, batches, limits)
    assert verdict.passed, json.dumps(verdict.as_json())[:2000]
    assert verdict.images == 50 and verdict.detections > 1000
    rough = parity.compare(model.run, lambda batch: _shifted(*other(batch)), batches[:2], limits)
    assert not rough.passed, "a tenth of a pixel is found"


def _shifted(rows, counts):
    return rows + np.float32([0, 0, 0.1, 0.1, 0.1, 0.1]), counts
