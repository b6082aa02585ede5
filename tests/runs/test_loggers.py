"""Loggers: their output is read back, and they must not disturb training."""

import csv
import io
import json
import logging
import re
import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image

from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.runs import loggers
from fcos_recipe.runs.directory import RunDir

SECRET = "hunter2"


def record_a_run(path, tiny, *names):
    """Three steps, an evaluation with a picture, then the third step again, as after a rollback."""
    config = load_config(tiny, [f"pretrain_weights=https://me:{SECRET}@host/w.pdparams"])
    with RunDir(path, writer=True, resume=False) as run_dir:
        loggers.attach(run_dir, list(names), config)
        for step in (1, 2, 3):
            run_dir.record(kind="train", epoch=1, step=step, lr=0.1, loss=4.0 - step)
        run_dir.record(kind="eval", epoch=1, step=3, AP=0.25)
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[:, :30] = (250, 0, 0)
        run_dir.show(3, [("17", picture)])
        run_dir.forget_after(2, 0)
        run_dir.record(kind="train", epoch=1, step=3, lr=0.1, loss=0.5)
    return path


def is_the_picture(data: bytes) -> bool:
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return image.shape == (40, 60, 3) and image[20, 10, 0] > 240 and image[20, 50].max() < 10


def test_csv(tmp_path, tiny):
    path = record_a_run(tmp_path / "run", tiny, "csv")
    with open(path / "csv" / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [(int(r["step"]), float(r["loss"])) for r in rows] == [(1, 3.0), (2, 2.0), (3, 0.5)]
    assert [(r["step"], r["loss"]) for r in kept] == [(1, 3.0), (2, 2.0), (3, 0.5)]
    assert not (path / "csv" / "eval.csv").exists(), "that evaluation was taken back"


def test_csv_deletes_only_its_own_files_and_leaves_out_unknown_kinds(tmp_path, tiny, caplog):
    for step in (0, 1):  # a resumed run's logger begins anew
        with RunDir(tmp_path / "run", writer=True, resume=True) as run_dir:
            loggers.attach(run_dir, ["csv"], load_config(tiny))
            for kind in ("mine", "../evil", None, "train"):
                run_dir.record(kind=kind, epoch=1, step=step)
        folder = tmp_path / "run" / "csv"
        (folder / "notes.csv").write_text("precious")
    assert sorted(p.name for p in folder.iterdir()) == ["notes.csv", "train.csv"]
    assert len((folder / "train.csv").read_text().splitlines()) == 3
    warnings = [r.getMessage() for r in caplog.records if "unknown kind" in r.getMessage()]
    assert len(warnings) == 6 and all(w.count("\n") == 0 for w in warnings)


def tensorboard_events(folder):
    """Events of all files, oldest first: records of length, CRC, protobuf, CRC."""
    from tensorboardX.proto import event_pb2

    for file in sorted(folder.glob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard(tmp_path, tiny):
    pytest.importorskip("tensorboardX")
    path = record_a_run(tmp_path / "run", tiny, "tensorboard")
    events = list(tensorboard_events(path / "tensorboard"))
    scalars = [(v.tag, e.step, v.simple_value) for e in events for v in e.summary.value]
    assert [s for s in scalars if s[0] == "train/loss"] == [
        ("train/loss", 1, 3.0), ("train/loss", 2, 2.0), ("train/loss", 3, 1.0),
        ("train/loss", 3, 0.5),
    ]  # fmt: skip
    assert ("eval/AP", 3, 0.25) in scalars
    images = [v.image for e in events for v in e.summary.value if v.tag == "eval/17"]
    assert len(images) == 1 and is_the_picture(images[0].encoded_image_string)
    # the second file tells TensorBoard to hide the first's step 3
    starts = [e.step for e in events if e.session_log.status == e.session_log.START]
    assert starts[-1] == 3


def test_visualdl(tmp_path, tiny):
    pytest.importorskip("visualdl")
    from visualdl import LogReader

    path = record_a_run(tmp_path / "run", tiny, "visualdl")
    (file,) = (path / "vdl").glob("vdlrecords.*.log")
    reader = LogReader(file_path=str(file))
    losses = [(row.id, row.value) for row in reader.get_data("scalar", "train/loss")]
    assert losses == [(1, 3.0), (2, 2.0), (3, 1.0), (3, 0.5)]
    assert [row.value for row in reader.get_data("scalar", "eval/AP")] == [0.25]
    (image,) = reader.get_data("image", "eval/17")
    assert is_the_picture(image.image.encoded_image_string)


def wandb_records(file):
    """Records of a .wandb file: 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_offline_keeps_secrets(tmp_path, tiny, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET * 6)
    monkeypatch.setattr("sys.argv", ["train.py", f"--token={SECRET}"])
    path = record_a_run(tmp_path / "run", tiny, "wandb")
    wandb.teardown()
    (file,) = path.glob("wandb/offline-run-*/run-*.wandb")
    history, config = [], ""
    for record in wandb_records(file):
        config += str(record.run.config)
        items = {i.key or ".".join(i.nested_key): json.loads(i.value_json)
                 for i in record.history.item}  # fmt: skip
        if items:
            history.append(items)
    losses = [(row["step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert losses == [(1, 3.0), (2, 2.0), (3, 1.0), (3, 0.5)]
    assert [row["eval/AP"] for row in history if "eval/AP" in row] == [0.25]
    assert "num_classes" in config
    (picture,) = path.glob("wandb/offline-run-*/files/media/images/eval/*.png")
    assert is_the_picture(picture.read_bytes())
    for written in (p for p in path.rglob("*") if p.is_file()):
        assert SECRET.encode() not in written.read_bytes(), written


def test_a_missing_package_is_told_before_anything_starts(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "tensorboardX" else 1)
    argv = ["-c", str(tiny), "--output", str(tmp_path / "run")]
    assert run("train", [*argv, "-o", "loggers=[csv,tensorboard]"]) == 2
    assert "pip install tensorboardX tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run("train", [*argv, "-o", "loggers=[tensorbord]"]) == 2
    assert "'tensorbord'" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["__call__", "show", "forget", "close"])
def test_a_logger_that_fails_is_dropped(method, tmp_path, caplog):
    class Bad:
        def __str__(self):
            return "bad"

        def __call__(self, record):
            if method == "__call__":
                raise OSError("no space")

        def show(self, step, images):
            if method == "show":
                raise RuntimeError("no space")

        def forget(self):
            if method == "forget":
                raise ValueError("no space")

        def close(self):
            if method == "close":
                raise OSError("no space")

    logging.getLogger("fcos").propagate = True
    seen = []
    with caplog.at_level("WARNING", "fcos"), RunDir(tmp_path / "r", True, False) as run_dir:
        run_dir.add_sink(Bad())
        run_dir.add_sink(seen.append)
        run_dir.record(kind="train", epoch=1, step=1, loss=1.0)
        run_dir.show(1, [("1", np.zeros((4, 4, 3), np.uint8))])
        run_dir.forget_after(1, 1)
        run_dir.record(kind="train", epoch=1, step=2, loss=1.0)
    assert [line for line in caplog.messages if "bad stopped: no space" in line]
    assert [record["step"] for record in seen] == [1, 2], "the others go on"


def test_pictures_that_cannot_be_made_do_not_stop_a_run(tmp_path):
    def broken():
        raise OSError("image file is truncated")
        yield

    shown = []

    class Shows:
        def __call__(self, record):
            shown.append(record)

        def show(self, step, images):
            shown.append(images)

    with RunDir(tmp_path / "r", True, False) as run_dir:
        run_dir.add_sink(Shows())
        run_dir.show(1, broken())
        run_dir.record(kind="train", epoch=1, step=1)
    assert len(shown) == 1


def test_nothing_is_installed_without_being_asked(tiny):
    data = load_config(tiny).data
    assert loggers.chosen([], data) == []
    with pytest.raises(UserError, match="expected some of visualdl"):
        load_config(tiny, ["loggers=[papyrus]"])


@pytest.mark.e2e
def test_a_run_draws_its_evaluations(tiny, tmp_path, monkeypatch):
    shown, attach = [], loggers.attach

    class Shows:
        def __call__(self, record):
            pass

        def show(self, step, images):
            shown.append((step, [name for name, _ in images], images[0][1]))

    def and_one_more(run_dir, *arguments):
        attach(run_dir, *arguments)
        run_dir.add_sink(Shows())

    monkeypatch.setattr(loggers, "attach", and_one_more)
    path = tmp_path / "run"
    argv = ["-c", str(tiny), "--output", str(path), "--eval", "--logger", "csv"]
    assert run("train", [*argv, "-o", "logger_images=2"]) == 0
    assert [(step, names) for step, names, _ in shown] == [(6, ["1", "2"]), (12, ["1", "2"])]
    assert shown[0][2].shape == (96, 128, 3) and shown[0][2].dtype == np.uint8
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    with open(path / "csv" / "eval.csv", newline="") as file:
        assert [float(row["AP"]) for row in csv.DictReader(file)] == [
            line["AP"] for line in lines if line["kind"] == "eval"
        ]


class Recorded(types.ModuleType):
    """A stand-in of a package: calls of any function are kept, and return the module."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments, **named):
            self.calls.append((name, arguments, named))
            return self

        return call


@pytest.mark.parametrize(("package", "name", "start", "values", "picture", "end"), [
    ("swanlab", "SwanLab", "init", "log", "Image", "finish"),
    ("mlflow", "MLflow", "start_run", "log_metrics", "log_image", "end_run"),
])  # fmt: skip
def test_the_loggers_of_the_page(
    package, name, start, values, picture, end, tmp_path, tiny, root, monkeypatch
):
    code = re.findall(r"```python\n(.*?)```", (root / "docs/training.md").read_text(), re.S)
    module = f"my_{package}"
    (tmp_path / f"{module}.py").write_text(next(text for text in code if f"class {name}" in text))
    stand_in = Recorded(package)
    monkeypatch.setitem(sys.modules, package, stand_in)
    monkeypatch.syspath_prepend(tmp_path)
    data = load_config(tiny).data
    assert loggers.chosen([f"{module}:{name}"], data) == [f"{module}:{name}"]
    record_a_run(tmp_path / "run", tiny, f"{module}:{name}")
    called = [one[0] for one in stand_in.calls]
    assert start in called and picture in called and called[-1] == end
    steps = [(a[0].get("train/loss"), n["step"]) for f, a, n in stand_in.calls if f == values]
    assert {(3.0, 1), (2.0, 2), (1.0, 3), (0.5, 3)} <= set(steps)
    assert SECRET not in repr(stand_in.calls)


@pytest.mark.parametrize(("name", "says"), [
    ("tensorbord", "choose from visualdl"),
    ("no_such_module:A", "ModuleNotFoundError"),
    ("json:no_such_class", "AttributeError"),
    ("json:loads", "not a class"),
    ("json:JSONDecoder", "has no __call__, show, close"),
])  # fmt: skip
def test_a_wrong_logger_is_one_line(name, says, tiny):
    with pytest.raises(UserError, match=says):
        loggers.chosen([name], load_config(tiny).data)
