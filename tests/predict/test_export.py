"""An export detects the same as the trained model; a differing export is not kept."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcos_recipe import compat
from fcos_recipe.cli import run
from fcos_recipe.errors import RunFailure, UserError
from fcos_recipe.model.postprocess import nms_and_clip
from fcos_recipe.predict import backends, onnx_graph, parity
from fcos_recipe.system.cpu_math import has_bfloat16
from tests.conftest import ROOT, run_tool

compat.import_ppdet()
pytestmark = pytest.mark.matrix
VARIANTS = [("paddle", []), ("paddle", ["--no-nms"]), ("onnx", []), ("onnx", ["--no-nms"])]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Weights trained for two epochs: enough to find something."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_tool("train", "-c", tiny, "--eval", "--output", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "run" / "model_final.pdparams"


def skip_without_converter(kind: str) -> None:
    if kind == "onnx":
        for name in ("paddle2onnx", "onnx", "onnxruntime"):
            pytest.importorskip(name)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=lambda x: str(x))
def test_export_is_equal_and_complete(trained, tiny, tmp_path, kind, options):
    skip_without_converter(kind)
    canary = tmp_path / "pip-was-called"
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("pip", "pip3"):
        (tools / name).write_text(f"#!/bin/sh\ntouch '{canary}'\nexit 1\n")
        (tools / name).chmod(0o755)
    done = run_tool("export_model", "-c", tiny, "--weights", trained, "--format", kind, *options,
                    "--output", tmp_path / "out", cwd=tmp_path,
                    env={"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"})  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not canary.exists() and "checked on 18 images" in done.stdout
    (folder,) = (tmp_path / "out").iterdir()
    facts = json.loads((folder / "fcos_export.json").read_text())
    assert facts["class_names"] == ["circle", "square", "triangle", "star"]
    check = facts["check"]
    assert check["failures"] == [] and check["detections"] > 20
    assert check["score"] <= parity.SCORE and check["pixels"] <= parity.PIXELS
    # the same predictor runs it: no config, names with it
    out = tmp_path / "drawn"
    weights = folder / "model.onnx" if kind == "onnx" else folder
    done = run_tool("infer", "--weights", weights, "--input", trained.parents[2] / "none.jpg",
                    "--output", out, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2 and "no image found" in done.stderr
    stats = []
    for source in (trained, folder):
        target = tmp_path / "eval.json"
        done = run_tool("eval", "-c", tiny, "--weights", source, "--json", target, "--no-plots",
                        "--output", tmp_path / "evaluated", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        stats.append(json.loads(target.read_text())["stats"])
    np.testing.assert_allclose(stats[0], stats[1], atol=2e-3)


@pytest.fixture(scope="module")
def exported(trained, tiny, tmp_path_factory):
    """The trained predictor, and its export in each format that can be written here."""
    from fcos_recipe.predict.export import export
    from fcos_recipe.predict.predictor import Predictor

    predictor = Predictor(trained, tiny, device="cpu")
    folder = tmp_path_factory.mktemp("exported")
    kinds = ["paddle", *["onnx"] * all(map(find_spec, ("paddle2onnx", "onnx", "onnxruntime")))]
    for kind in kinds:
        assert export(predictor, folder / kind, kind).passed
    return predictor, {kind: folder / kind for kind in kinds}


def same_detections(found, wanted) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(
        np.array_equal(f.labels, w.labels)
        and np.allclose(f.scores, w.scores, atol=parity.SCORE)
        and np.allclose(f.boxes, w.boxes, atol=parity.PIXELS)
        for f, w in pairs
    )


@pytest.mark.slow
def test_any_other_file_in_an_export_is_refused(exported, tmp_path):
    from fcos_recipe.predict.predictor import Predictor

    changes = {
        "absent": lambda path: path.unlink(),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "one bit": lambda path: path.write_bytes(
            bytes([*(old := path.read_bytes())[:-9], old[-9] ^ 1, *old[-8:]])
        ),
        "of another model": lambda path: path.write_bytes(b"x" * path.stat().st_size),
    }
    for kind, folder in exported[1].items():
        files = [path.name for path in folder.iterdir() if path.name != "fcos_export.json"]
        assert sorted(json.loads((folder / "fcos_export.json").read_text())["files"]) == sorted(
            files
        )
        for name, (word, change) in itertools.product(files, changes.items()):
            copy = Path(shutil.copytree(folder, tmp_path / kind / name / word))
            change(copy / name)
            with pytest.raises(UserError, match=re.escape(name)) as error:
                Predictor(copy, device="cpu")
            assert "\n" not in str(error.value)
        old = Path(shutil.copytree(folder, tmp_path / "old" / kind))  # without hashes: still read
        facts = json.loads((old / "fcos_export.json").read_text())
        del facts["files"]
        (old / "fcos_export.json").write_text(json.dumps(facts))
        assert Predictor(old, device="cpu").names == exported[0].names


@pytest.mark.slow
def test_an_onnx_file_is_enough(exported, tmp_path, capsys, tiny):
    from fcos_recipe.predict.predictor import Predictor

    skip_without_converter("onnx")
    predictor, folders = exported
    photos = sorted(tiny.parent.glob("val/*"))[:3]
    alone = Path(shutil.copy(folders["onnx"] / "model.onnx", tmp_path / "my detector.onnx"))
    (tmp_path / "folder").mkdir()
    shutil.copy(alone, tmp_path / "folder" / "model.onnx")
    for weights in (alone, tmp_path / "folder"):
        found = Predictor(weights, device="cpu")
        assert (found.names, found.category_ids) == (predictor.names, predictor.category_ids)
        assert same_detections(found(photos), predictor(photos))
    assert run("infer", ["--weights", str(alone), "--input", str(photos[0]), "--output",
                         str(tmp_path / "drawn")]) == 0  # fmt: skip
    json_file = tmp_path / "eval.json"
    assert run("eval", ["-c", str(tiny), "--weights", str(alone), "--json", str(json_file),
                        "--no-plots", "--output", str(tmp_path / "evaluated")]) == 0  # fmt: skip
    (tmp_path / "damaged.onnx").write_bytes(alone.read_bytes()[:-500])
    import onnx

    model = onnx.load(alone)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    for name, message in (("damaged", "damaged"), ("foreign", "metadata"), ("absent", "No such")):
        capsys.readouterr()
        path = tmp_path / f"{name}.onnx"
        assert run("infer", ["--weights", str(path), "--input", str(photos[0])]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line and path.name in line


@pytest.mark.slow
def test_sides_of_any_length_give_the_boxes_of_the_padded_image(exported):
    from fcos_recipe.predict.predictor import Predictor

    predictor, folders = exported
    rng = np.random.default_rng(0)
    for kind, folder in folders.items():
        engine = Predictor(folder, device="cpu")
        for height, width in ((97, 131), (64, 96), (33, 32), (1, 200)):
            image = np.kron(rng.integers(0, 255, (7, 9, 3)), np.ones((29, 23, 1))).astype(np.uint8)
            small = {"image": np.stack([image[:height, :width]] * 2),
                     "im_shape": np.full((2, 2), (height, width), np.float32),
                     "scale_factor": np.ones((2, 2), np.float32)}  # fmt: skip
            padded = np.zeros((2, height + -height % 32, width + -width % 32, 3), np.uint8)
            padded[:, :height, :width] = small["image"]
            limits = json.loads((folder / "fcos_export.json").read_text())["limits"]
            verdict = parity.compare(
                lambda batch, padded=padded: predictor.run({**batch, "image": padded}),
                engine.run, [small], limits,
            )  # fmt: skip
            assert verdict.passed and verdict.detections > 2, (kind, height, width)


PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/deploy.md").read_text(), re.S)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "paddle"])
def test_programs_of_the_page_find_what_the_trained_model_finds(exported, tiny, tmp_path, engine):
    """Each in a process that can import neither this package nor paddledet."""
    kind = "paddle" if engine == "paddle" else "onnx"
    pytest.importorskip(engine, reason="see requirements/deploy.txt")
    skip_without_converter(kind)
    predictor, folders = exported
    (program,) = [x for x in PROGRAMS if re.search(rf"^(import|from) {engine}\b", x, re.M)]
    assert len(program.splitlines()) <= 30
    if not (folders["paddle"] / "model.json").exists():
        program = program.replace("model.json", "model.pdmodel")
    (tmp_path / "detect.py").write_text(
        "import sys\nsys.modules.update(fcos_recipe=None, ppdet=None)\n" + program
    )
    export = folders[kind] if kind == "paddle" else folders[kind] / "model.onnx"
    limits = json.loads((folders[kind] / "fcos_export.json").read_text())["limits"]
    path = os.pathsep.join(folder for folder in sys.path if folder != str(ROOT))
    for photo in sorted(tiny.parent.glob("val/*"))[:3]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", tmp_path / "detect.py", export, photo], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        rows = np.array([[predictor.names.index(n), s, *box] for n, s, box in found], "f4")
        batch = predictor.batch([photo])
        verdict = parity.compare(
            predictor.run, lambda _, rows=rows: (rows, [len(rows)]), [batch], limits
        )
        assert verdict.passed and verdict.detections > 2, (photo, verdict)


@pytest.mark.slow
def test_onnx_nodes_and_axes_have_names(exported, tmp_path):
    skip_without_converter("onnx")
    import onnx

    for opset in (13, 19):
        part = tmp_path / str(opset)
        part.mkdir()
        from fcos_recipe.predict import export

        export._save_program(exported[0].backend.model, part, False, 32)
        facts = json.loads((exported[1]["onnx"] / "fcos_export.json").read_text())
        onnx_graph.convert(part, facts, opset)
        model = onnx.load(part / "model.onnx")
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
        used = {name for node in model.graph.node for name in node.input}
        assert {value.name for value in model.graph.initializer} <= used
        names = [node.name for node in model.graph.node]
        assert all(names) and len(set(names)) == len(names)
        axes = {value.name: [axis.dim_param or axis.dim_value for axis in
                             value.type.tensor_type.shape.dim]
                for value in (*model.graph.input, *model.graph.output)}  # fmt: skip
        assert axes == {
            "image": ["batch", "height", "width", 3], "im_shape": ["batch", 2],
            "scale_factor": ["batch", 2], "bbox": ["batch", "keep_top_k", 6], "bbox_num": ["batch"],
        }  # fmt: skip
        engine = backends.open_export(str(part), {**facts, "files": {}}, "cpu")
        assert len(engine.run(exported[0].batch([np.full((60, 90, 3), 99, np.uint8)]))[1]) == 1


@pytest.mark.slow
def test_an_export_of_another_model_is_renamed(trained, tmp_path, capsys):
    """It is named by the config of the run, whose config.yml lies beside the weights."""
    run_dir = Path(shutil.copytree(trained.parent, tmp_path / "run"))
    argv = [
        "export_model",
        "--weights",
        str(run_dir / trained.name),
        "--output",
        str(tmp_path / "out"),
    ]
    assert run(*argv[:1], argv[1:]) == 0
    folder = tmp_path / "out" / "tiny-paddle"
    assert run(*argv[:1], argv[1:]) == 0  # the same again takes its place
    first = json.loads((folder / "fcos_export.json").read_text())
    assert first["config"] == "tiny"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny-paddle"]
    state = paddle.load(str(run_dir / trained.name))
    name = next(key for key in state if key.endswith("weight"))
    state[name] = state[name] * 1.001
    paddle.save(state, str(run_dir / "other.pdparams"))
    argv[2] = str(run_dir / "other.pdparams")
    assert run(*argv[:1], argv[1:]) == 0
    assert json.loads((tmp_path / "out" / "tiny-paddle.1/fcos_export.json").read_text()) == first
    second = json.loads((folder / "fcos_export.json").read_text())
    assert second["weights_sha256"] != first["weights_sha256"]


class Peaks(paddle.nn.Layer):
    """A detector whose scores of 16 fixed boxes are the pixels of [N, 4, 4, 3].

    Its one weight is there because Paddle 2.5 cannot load a program without any.
    """

    def __init__(self, threshold: float):
        super().__init__()
        from ppdet.modeling.layers import MultiClassNMS

        self.limits = {"score_threshold": threshold, "nms_top_k": 100, "keep_top_k": 100,
                       "nms_threshold": 0.6}  # fmt: skip
        self.nms = MultiClassNMS(**self.limits)
        self.white = self.create_parameter(
            [1], default_initializer=paddle.nn.initializer.Constant(255.0)
        )

    def candidates(self, batch):
        scores = batch["image"].astype("float32").flatten(1, 2).transpose([0, 2, 1]) / self.white
        left = paddle.arange(16, dtype="float32").reshape([1, 16, 1]) * 10
        corners = paddle.concat([left, left * 0, left + 8, left * 0 + 8], axis=2)
        size = batch["im_shape"] / batch["scale_factor"]  # every input of an export must be used
        return paddle.minimum(corners, size.max(axis=1).reshape([-1, 1, 1])), scores, None

    def forward(self, batch):
        found = nms_and_clip(*self.candidates(batch)[:2], batch["im_shape"],
                             batch["scale_factor"], self.nms, True)  # fmt: skip
        return dict(zip(("bbox", "bbox_num"), found))


def engines(threshold: float, folder):
    """The detector as it is trained and in every exported form."""
    from fcos_recipe.predict import export

    model = Peaks(threshold)
    model.eval()
    eager = backends.Eager.__new__(backends.Eager)
    eager.model, eager._lock = model, threading.Lock()
    found = {"eager": eager}
    for kind, nms in itertools.product(("paddle", "onnx"), (True, False)):
        if kind == "onnx" and not all(map(find_spec, ("paddle2onnx", "onnx", "onnxruntime"))):
            continue
        facts = {"version": 1, "format": kind, "nms": nms, "limits": model.limits, "clip": True,
                 "group_norm_epsilon": [], "config": "", "class_names": ["a", "b", "c"],
                 "category_ids": [1, 2, 3], "TestReader": {}}  # fmt: skip
        part = folder / f"{kind}-{nms}-{threshold}"
        part.mkdir()
        export._save_program(model, part, inside=nms and kind == "paddle")
        if kind == "onnx":
            onnx_graph.convert(part, facts)
        found[f"{kind}, nms={nms}"] = backends.open_export(str(part), facts, "cpu")
    return found


def test_every_engine_reports_each_image_its_own_detections(tmp_path):
    """Batches with images on which nothing is found, in every place, one after the other."""
    made = {threshold: engines(threshold, tmp_path) for threshold in (0.05, 0.3, 0.38)}
    peak = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.integers(1, 255))
    image = st.one_of(st.just([]), st.lists(peak, min_size=1, max_size=6))

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.sampled_from(sorted(made)), st.lists(st.lists(image, min_size=1, max_size=4),
                                                   min_size=1, max_size=4))  # fmt: skip
    @example(0.3, [[[]], [[(0, 0, 1, 200)]], [[]], [[], [(0, 0, 1, 200)], [], [(1, 0, 2, 90)], []]])
    def check(threshold, batches):
        for images in batches:
            pixels = np.zeros((len(images), 4, 4, 3), np.uint8)
            for n, peaks in enumerate(images):
                for y, x, label, value in peaks:
                    pixels[n, y, x, label] = value
            batch = {"image": pixels, "im_shape": np.full((len(images), 2), 500, np.float32),
                     "scale_factor": np.ones((len(images), 2), np.float32)}  # fmt: skip
            for name, engine in made[threshold].items():
                bbox, counts = engine.run(batch)
                assert len(bbox) == counts.sum() and len(counts) == len(images)
                for n, rows in enumerate(backends.by_image(bbox, counts)):
                    found = {(int(r[0]), int(r[2]) // 10, round(255 * r[1])) for r in rows}
                    wanted = {(c, 4 * y + x, int(pixels[n, y, x, c]))
                              for y, x, c in np.argwhere(pixels[n] / 255 > threshold)}  # fmt: skip
                    assert found == wanted and len(rows) == len(wanted), (name, n)

    check()
    with pytest.raises(RunFailure, match="2 detections and counts of 3"):
        backends.counted(np.zeros((2, 6)), np.array([1, 2]))


def perturbed(run_model, change):
    def run_other(batch):
        bbox, counts = run_model(batch)
        return change(np.array(bbox, np.float32)), counts

    return run_other


def reference(batch):
    rng = np.random.default_rng(int(batch["seed"]))
    corner = rng.uniform(0, 300, (20, 2))
    box = np.concatenate([corner, corner + rng.uniform(10, 90, (20, 2))], axis=1)
    label = rng.integers(0, 3, (20, 1))
    return np.concatenate([label, rng.uniform(0.1, 0.9, (20, 1)), box], axis=1), np.array([12, 8])


LIMITS = {"score_threshold": 0.05, "nms_threshold": 0.6, "keep_top_k": 100}
BATCHES = [{"seed": np.array(k)} for k in range(4)]


def test_gate_accepts_what_is_equal():
    shuffled = perturbed(reference, lambda b: np.concatenate([b[:12][::-1], b[12:][::-1]]))
    verdict = parity.compare(reference, shuffled, BATCHES, LIMITS)
    assert verdict.passed and verdict.detections == 80 and verdict.images == 8
    assert not parity.compare(
        lambda b: (np.zeros((0, 6)), np.array([0])),
        lambda b: (np.zeros((0, 6)), np.array([0])),
        BATCHES,
        LIMITS,
    ).passed


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b + np.array([0, 3e-4, 0, 0, 0, 0], np.float32),
        lambda b: b + np.array([0, 0, 0.2, 0, 0, 0], np.float32),
        lambda b: b + np.array([0, 0, 1.5, 0, 1.5, 0], np.float32),
        lambda b: np.concatenate([(b[:1] + [1, 0, 0, 0, 0, 0]) % 3 * [1, 1, 1, 1, 1, 1], b[1:]]),
        lambda b: np.concatenate([b[:11], b[12:13] * [1, 0.5, 1, 1, 1, 1], b[12:]]),
    ],
    ids=["score", "box", "shifted", "class", "another"],
)
def test_gate_refuses_what_differs(change):
    verdict = parity.compare(reference, perturbed(reference, change), BATCHES, LIMITS)
    assert not verdict.passed and verdict.failures


def test_gate_exempts_only_what_rounding_decides():
    rows = np.array([[0, 0.9, 0, 0, 10, 10], [0, 0.05005, 50, 50, 60, 60]], float)
    both, one = (lambda b: (rows, np.array([2]))), (lambda b: (rows[:1], np.array([1])))
    verdict = parity.compare(both, one, BATCHES[:1], LIMITS)
    assert verdict.passed and verdict.exempt == 1
    # two boxes that score alike: NMS keeps the one that comes first
    boxes = np.array([[0, 0.9, 0, 0, 10, 10], [0, 0.90001, 0, 2, 10, 12]], float)
    first, second = ((lambda b, k=k: (boxes[k:][:1], np.array([1]))) for k in (0, 1))
    verdict = parity.compare(first, second, BATCHES[:1], LIMITS)
    assert verdict.passed and verdict.exempt == 2
    # but not many times over: then the boxes are elsewhere
    assert not parity.compare(first, second, BATCHES, LIMITS).passed
    rows[1, 1] = 0.06
    assert not parity.compare(both, one, BATCHES[:1], LIMITS).passed


@pytest.mark.e2e
@pytest.mark.slow
def test_a_wrong_export_is_not_kept_and_the_earlier_one_stays(trained, tiny, tmp_path, monkeypatch):
    from fcos_recipe.predict import export as module
    from fcos_recipe.predict.predictor import Predictor

    predictor = Predictor(trained, tiny, device="cpu")
    target = tmp_path / "model-paddle"
    assert module.export(predictor, target, "paddle").passed
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    normal = module._save_program

    def wrong(model, folder, *rest):
        import paddle

        values = model.pixel_values.clone()
        model.pixel_values.set_value(values * 1.01)  # another normalisation
        try:
            normal(model, folder, *rest)
        finally:
            model.pixel_values.set_value(values)
        assert paddle is sys.modules["paddle"]

    monkeypatch.setattr(module, "_save_program", wrong)
    with pytest.raises(RunFailure, match="detections differ"):
        module.export(predictor, target, "paddle")
    assert before == {p.name: p.read_bytes() for p in target.iterdir()}
    assert (tmp_path / "model-paddle.rejected" / "fcos_export.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model-paddle", "model-paddle.rejected"]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paddle", "onnx"])
def test_a_blank_image_after_a_photo_has_no_detections(trained, tiny, tmp_path, kind):
    """At a score threshold above what the model finds on black."""
    from fcos_recipe.config import load_config
    from fcos_recipe.predict import export
    from fcos_recipe.predict.predictor import Predictor

    skip_without_converter(kind)
    config = load_config(tiny, ["FCOSHead.nms.score_threshold=0.2"])
    verdict = export.export(Predictor(trained, config, device="cpu"), tmp_path / kind, kind)
    assert verdict.passed and verdict.empty >= 5
    exported = Predictor(tmp_path / kind, device="cpu")
    blank = np.zeros((96, 128, 3), np.uint8)
    # a photo on which the model finds something: which one it is depends on Paddle's last bits
    photos = sorted(tiny.parent.glob("val/*"))
    photo = max(photos, key=lambda path: len(exported([path])[0]))
    assert [len(found) > 0 for found in exported([blank, photo, blank])] == [False, True, False]
    assert len(exported([photo])[0]) and not len(exported([blank])[0])


def test_damaged_metadata_is_refused(tmp_path):
    from fcos_recipe.predict.backends import export_facts

    (tmp_path / "fcos_export.json").write_text("{")
    with pytest.raises(UserError, match="export the model again"):
        export_facts(str(tmp_path))
    with pytest.raises(UserError, match="No such file"):
        export_facts(str(tmp_path / "deep" / "model.onnx"))
    assert export_facts(str(tmp_path / "weights.pdparams")) is None


def test_a_converter_that_cannot_serve_is_refused_before_any_work(monkeypatch, capsys):
    fits = "1.3.1" if paddle.__version__.startswith("2.") else "2.1.0"
    argv = ["--format", "onnx", "--weights", "absent.pdparams"]  # never looked at
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    found = {"1.3.1": "2.1.0", "2.1.0": "1.3.1"}[fits]
    remedy = f"pip install --no-deps paddle2onnx=={fits} "
    if sys.version_info >= (3, 13):
        remedy = "there is none for Python 3.13"
    for version, message in (
        (fits, "onnx is missing"),
        (found, f"paddle2onnx {found} does not fit Paddle {paddle.__version__}"),
        ("1.0.8", "paddle2onnx 1.0.8 does not fit"),
    ):
        monkeypatch.setattr(onnx_graph, "version", lambda _name, version=version: version)
        assert run("export_model", argv) == 2
        error = capsys.readouterr().err
        assert message in error and remedy in error
        assert len(error.splitlines()) == 1


def test_weights_are_needed(capsys):
    assert run("export_model", ["--format", "onnx"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paddle", "onnx"])
def test_an_image_without_any_detection_is_no_end(tiny, tmp_path, kind):
    """In a process of its own: what went wrong ended the process."""
    skip_without_converter(kind)
    code = f"""
from pathlib import Path
from fcos_recipe.system.compute import start
start("cpu")
from fcos_recipe import compat
compat.before_paddle()
import paddle
from fcos_recipe.config import load_config
config = load_config({str(tiny)!r})
model = compat.create(compat.workspace(config.stock_data())["architecture"])
bias = model.fcos_head.fcos_head_cls.bias
bias.set_value(paddle.full_like(bias, -20.0))
paddle.save(model.state_dict(), "nothing.pdparams")
from fcos_recipe.errors import RunFailure
from fcos_recipe.predict import Predictor
from fcos_recipe.predict.export import export
try:
    export(Predictor("nothing.pdparams", config), Path("out"), {kind!r})
except RunFailure as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0 detections differ; the trained model finds nothing" in done.stdout


@pytest.mark.slow
@pytest.mark.e2e
def test_bfloat16_is_near_and_refused_where_it_is_not(trained, tiny, tmp_path, capfd):
    done = run_tool("export_model", "-c", tiny, "--weights", trained, "--output", tmp_path / "out",
                    cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (tmp_path / "out").iterdir()
    argv = ["-c", str(tiny), "--json", str(tmp_path / "eval.json"), "--no-plots"]
    assert run("eval", [*argv, "--weights", str(trained), "--precision", "bf16"]) == 2
    assert "only exports have it" in capfd.readouterr().err
    results = {}
    for precision in ("fp32", "bf16"):
        code = run("eval", [*argv, "--weights", str(folder), "--precision", precision])
        if precision == "bf16" and not has_bfloat16():
            assert code == 2 and "AVX512_BF16" in capfd.readouterr().err
            return
        assert code == 0
        results[precision] = json.loads((tmp_path / "eval.json").read_text())
    assert results["bf16"]["precision"] == "bf16"
    difference = results["bf16"]["stats"][1] - results["fp32"]["stats"][1]
    assert difference != 0 and abs(difference) < 0.05
