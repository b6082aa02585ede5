"""fcos_recipe.api: results, errors, and no global state left behind."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import paddle
import psutil
import pytest

from fcos_recipe import api
from fcos_recipe.checkpoint import weights
from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.data.images import BadImage
from fcos_recipe.errors import RunFailure, Stopped, UserError
from fcos_recipe.evaluation.options import Options
from fcos_recipe.predict import Predictor
from tests.conftest import ROOT

pytestmark = pytest.mark.e2e


class Fewer(frozenset):
    """Threads or processes: equal to those before if none of them is new and still alive."""

    def __eq__(self, before):
        for new in self - before:
            if isinstance(new, threading.Thread):
                new.join(5)  # its end was asked for
        return not any(
            new.is_alive() if isinstance(new, threading.Thread) else new.is_running()
            for new in self - before
        )

    __hash__ = frozenset.__hash__


def state_of_the_process() -> dict:
    """What a function of the API must leave as it found it."""
    log = logging.getLogger("fcos")
    random = paddle.get_rng_state()
    drawn = paddle.rand([3]).tolist()
    paddle.set_rng_state(random)
    return {
        "environment": sorted(os.environ.items()),
        "folder": os.getcwd(),
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "logger": (log.level, log.propagate, log.handlers[:]),
        "warnings": warnings.filters[:],
        "children": Fewer(psutil.Process().children(recursive=True)),
        "threads": Fewer(t for t in threading.enumerate() if "tqdm" not in t.name),
        "device": paddle.get_device(),
        "random": (drawn, str(np.random.get_state()[1])),
        "names": paddle.utils.unique_name.generate("probe_of_this_test").split("_")[:-1],
        "gradients": paddle.is_grad_enabled(),
    }


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> api.TrainResult:
    output = tmp_path_factory.mktemp("api") / "run"
    return api.train(tiny, output=output, evaluate=True, overrides={"worker_num": 1})


def same_weights(one: Path, two: Path) -> bool:
    one, two = weights.read(one), weights.read(two)
    return set(one) == set(two) and all(
        np.array_equal(value, two[name]) for name, value in one.items()
    )


def test_a_run_equals_the_command_s_and_leaves_no_trace(trained, tiny, tmp_path, capfd):
    assert run("train", ["-c", str(tiny), "--eval", "--output", str(tmp_path / "command")]) == 0
    assert same_weights(trained.final_weights, tmp_path / "command" / "model_final.pdparams")
    capfd.readouterr()
    logging.getLogger("fcos").handlers.clear()  # the command's

    before = state_of_the_process()
    lines: list[str] = []
    records: list[dict] = []
    again = api.train(tiny, output=tmp_path / "again", evaluate=True, log_to=lines.append,
                      on_record=records.append)  # fmt: skip
    assert state_of_the_process() == before
    assert capfd.readouterr() == ("", "")
    assert same_weights(again.final_weights, trained.final_weights)
    assert (again.epochs, again.steps) == (2, 12) and again.records() == records
    assert again.evaluation.figures["AP"] == again.evaluation.ap == records[-1]["AP"]
    assert again.best_ap == max(r["AP"] for r in records if r["kind"] == "eval")
    assert again.best_weights.is_file() and len(again.evaluation.per_class) == 4
    said = (tmp_path / "again" / "log.txt").read_text()
    begin = next(k for k, line in enumerate(lines) if line.startswith("run directory"))
    assert len(lines) - begin > 15 and all(line in said for line in lines[begin:])
    assert any(line.startswith("epoch 1/2 step 1/6") for line in lines)


def test_messages_go_to_the_logger_of_the_caller(trained, tiny, caplog, capfd):
    mine = logging.getLogger("mine")
    with caplog.at_level(logging.INFO, "mine"):
        api.evaluate(tiny, trained.final_weights, log_to=mine)
    assert any(r.message.startswith("weights: ") for r in caplog.records)
    # where nothing is configured, only warnings are shown, as Python's own default is
    assert capfd.readouterr() == ("", "")


def test_evaluation_equals_the_run_s_last(trained, tiny):
    before = state_of_the_process()
    found = api.evaluate(tiny, trained.final_weights)
    assert state_of_the_process() == before
    assert found.figures == trained.evaluation.figures
    strict = api.evaluate(tiny, trained.directory / "checkpoints" / "0002",
                          options=Options(max_dets=11))  # fmt: skip
    assert strict.figures["AP"] <= found.ap and strict.result["max_dets"] == 11


def test_two_models_side_by_side(trained, tiny, tmp_path):
    """A model of other widths and classes is built and used in the middle of a training run."""
    photos = sorted((tiny.parent / "val").glob("*.jpg"))[:4]
    one = Predictor(trained.final_weights, device="cpu")
    alone = [one([photo])[0] for photo in photos]
    headline = ROOT / "configs/fcos/fcos_r18_fpn_bccd.yml"
    other = load_config(headline, ["pretrain_weights=null"])
    seen: list[list] = []

    def on_record(record: dict) -> None:
        if record["step"] == 3:
            from fcos_recipe import compat

            compat.create(compat.workspace(other.stock_data())["architecture"])
        seen.append(one(photos[:1]))

    result = api.train(tiny, output=tmp_path / "run", evaluate=True, on_record=on_record)
    assert same_weights(result.final_weights, trained.final_weights)
    assert result.evaluation.figures == trained.evaluation.figures
    for found in [
        [one([photo])[0] for photo in photos],
        api.predict(trained.final_weights, photos),
    ]:
        for a, b in zip(found, alone, strict=True):
            np.testing.assert_array_equal(a.boxes, b.boxes)
            np.testing.assert_array_equal(a.scores, b.scores)
    for found in seen:
        np.testing.assert_array_equal(found[0].scores, alone[0].scores)


def test_an_interrupted_run_is_continued(trained, tiny, tmp_path):
    class Enough(Exception):
        pass

    def stop(record: dict) -> None:
        if record["kind"] == "train" and record["step"] == 8:
            raise Enough

    before = state_of_the_process()
    with pytest.raises(Enough):
        api.train(tiny, output=tmp_path / "run", evaluate=True, on_record=stop)
    assert state_of_the_process() == before
    with pytest.raises(Stopped, match="resume"):
        api.train(tiny, output=tmp_path / "run", evaluate=True, resume="auto",
                  on_record=lambda record: signal.raise_signal(signal.SIGTERM))  # fmt: skip
    assert signal.getsignal(signal.SIGTERM) == before["signals"][1]
    with pytest.raises(KeyboardInterrupt, match="saved"):
        api.train(tiny, output=tmp_path / "run", evaluate=True, resume="auto",
                  on_record=lambda record: signal.raise_signal(signal.SIGINT))  # fmt: skip
    done = api.train(tiny, output=tmp_path / "run", evaluate=True, resume="auto")
    assert same_weights(done.final_weights, trained.final_weights)
    assert done.steps == 12 and done.evaluation.figures == trained.evaluation.figures
    assert state_of_the_process() == before


def test_a_second_interrupt_ends_the_call_and_not_the_process(tiny, tmp_path):
    def twice(record: dict) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="before a checkpoint"):
        api.train(tiny, output=tmp_path / "run", on_record=twice)


@pytest.mark.parametrize("kind", ["paddle", "onnx"])
def test_an_export_predicts_as_the_model(trained, tiny, tmp_path, kind):
    pytest.importorskip("paddle2onnx") if kind == "onnx" else None
    config = api.resolve_config(tiny)
    before = state_of_the_process()
    done = api.export(trained.final_weights, tmp_path, format=kind, config=config)
    assert state_of_the_process() == before
    assert done.folder == tmp_path / f"tiny-{kind}" and done.images >= 9 and done.score < 1e-4
    photos = sorted((tiny.parent / "val").glob("*.jpg"))[:2]
    ours = api.predict(trained.final_weights, photos, config=config)
    for a, b in zip(api.predict(done.folder, photos), ours, strict=True):
        assert len(a) == len(b) > 0
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    written = api.predict_files(done.folder, photos, tmp_path / "drawn", as_csv=True)
    assert written.images == 2 and len(written.rows) == sum(map(len, ours))
    assert json.loads((tmp_path / "drawn/predictions.json").read_text()) == written.rows
    assert state_of_the_process() == before


def test_a_data_set_is_verified(shapes, tmp_path):
    good = api.verify(shapes)
    assert (good.errors, set(good.report["splits"])) == (0, {"train", "val"})
    path = shapes / "annotations" / "train.json"
    path = path if path.is_file() else next((shapes / "annotations").glob("*train*.json"))
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = -5
    (tmp_path / "broken.json").write_text(json.dumps(content))
    bad = api.verify(tmp_path / "broken.json", read_images=False, fix=tmp_path / "clean.json")
    assert bad.errors == 1
    assert api.verify(tmp_path / "clean.json", read_images=False).errors == 0


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda t, w, p: api.train(t, overrides={"epochs": 3}), UserError, "epoch"),
        (lambda t, w, p: api.train(p / "none.yml"), UserError, "none.yml"),
        (lambda t, w, p: api.train(t, output=p, resume=p / "none"), UserError, "none"),
        (lambda t, w, p: api.train(t, device="npu"), UserError, "npu"),
        (lambda t, w, p: api.evaluate(t, p / "none.pdparams"), UserError, "none.pdparams"),
        (lambda t, w, p: api.evaluate(load_config(t), w, overrides=["epoch=1"]), UserError, "over"),
        (lambda t, w, p: api.predict(w, np.zeros((4, 4), int), strict=True), UserError, "uint8"),
        (lambda t, w, p: api.predict(w, p / "none.jpg", strict=True), BadImage, "none.jpg"),
        (lambda t, w, p: api.predict_files(w, [p / "no"], p), UserError, "no"),
        (lambda t, w, p: api.export(w, p, format="tflite"), UserError, "tflite"),
        (lambda t, w, p: api.verify(p / "none"), UserError, "none"),
        (lambda t, w, p: api.train(t, output=p / "nan", overrides={"bad_numbers.max_skips": 0,
            "LearningRate.base_lr": 1e30}), RunFailure, "finite"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_an_exception(trained, tiny, tmp_path, call, error, says):
    before = state_of_the_process()
    with pytest.raises(error, match=says):
        call(tiny, trained.final_weights, tmp_path)
    assert state_of_the_process() == before


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path):
    """docs/python.md from top to bottom, as one program in an empty folder."""
    page = (ROOT / "docs" / "python.md").read_text()
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    assert program.count("\n") > 40
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=550,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DEVICE": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    for wanted in re.findall(r"^ *print\(.*#: (.*)$", program, re.MULTILINE):
        pattern = re.escape(wanted).replace(re.escape("..."), ".+")
        assert any(re.search(f"(^|: ){pattern}$", line) for line in said), (wanted, said)
    assert "semaphore" not in done.stderr and "Traceback" not in done.stderr, done.stderr
