"""Files from elsewhere whose readers are outside files/reading.py: each is read through it."""

import csv
import errno
import json
import os
import zipfile

import numpy as np
import pytest

from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.console import exit_code
from fcos_recipe.data.images import BadImage, read_image
from fcos_recipe.data.index import open_index
from fcos_recipe.datasets.convert.coco_repair import _boxes
from fcos_recipe.errors import UserError
from fcos_recipe.files import archives, atomic, download
from fcos_recipe.files.reading import read_json, read_records, read_yaml
from fcos_recipe.predict.backends import open_export
from fcos_recipe.predict.video import Video
from fcos_recipe.runs.directory import METRICS, RunDir
from fcos_recipe.runs.loggers import Csv
from fcos_recipe.training import resume

GOOD = b'{"kind": "train", "step": 1, "loss": 1.0}\n'
BAD_LINES = (b"\xff\xfe\x80", bytes(4096), b"[" * 100_000, b'{"step": ' + b"9" * 400 + b"}",
             b'{"kind": "train", "st', b"[1]", b"null", b'{"kind": 1, "step": "x"}')  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_resumed_run_removes_damaged_records(tmp_path, bad):
    (tmp_path / METRICS).write_bytes(GOOD + bad + b"\n" + GOOD)
    with RunDir(tmp_path, writer=True, resume=True) as run:
        run.forget_after(5, 5)
    assert (tmp_path / METRICS).read_bytes() == GOOD * 2
    (tmp_path / METRICS).write_bytes(GOOD + bad + b"\n")
    if b'"step": "x"' not in bad:
        with pytest.raises(UserError, match="record 2 is not a JSON object"):
            read_records(tmp_path / METRICS)


STATE = {
    "progress": {"epoch": 1, "step": 0, "steps_done": 6, "history": [{"epoch": 1, "AP": 0.5}]},
    "sampler": {"batch": 0, "images": 24, "batch_size": 4, "ranks": 1},
    "settings": {"accumulate": 1},
    "window": None, "ema": None, "scaler": {},
}  # fmt: skip
BAD_STATES = {
    "epoch": {"progress": {"epoch": "1"}}, "negative": {"progress": {"epoch": -1}},
    "history": {"progress": {"history": [5]}}, "no AP": {"progress": {"history": [{"epoch": 1}]}},
    "best": {"progress": {"best": None}}, "factor": {"progress": {"lr_factor": 0}},
    "list": {"progress": [1]}, "sampler": {"sampler": None}, "images": {"sampler": {"images": "x"}},
    "settings": {"settings": {}}, "window": {"window": 5}, "ema": {"ema": {"step": "x"}},
    "ragged": {"window": {"seconds": 1.0, "batches": 1, "images": 4, "data_time": 0.0,
                          "names": ["loss"], "losses": [[1.0], []]}},
    "scaler": {"scaler": {"scale": []}}, "digits": {"progress": {"epoch": 2**64}},
    "foreign": {"progress": {"zz": 1}},
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_checkpoint_with_a_state_of_wrong_types_is_passed_over(tmp_path, kind):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    older = storage.save(folder, "0001", {}, STATE)
    assert resume.find(str(tmp_path))[0] == older
    changed = BAD_STATES[kind]
    if kind not in ("list", "foreign") and "progress" in changed:
        changed = {"progress": {**STATE["progress"], **changed["progress"]}}
    bad = storage.save(folder, "0002", {}, {**STATE, **changed})
    assert resume.find(str(tmp_path))[0] == older
    with pytest.raises(UserError, match="state.json") as error:
        resume.find(str(bad))
    assert "\n" not in str(error.value)


def test_progress_with_an_unknown_entry_is_read(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    state = {**STATE, "progress": {**STATE["progress"], "zz": 1}}  # of a newer version
    storage.save(tmp_path / "checkpoints", "0001", {}, state)
    assert resume.find(str(tmp_path))[1]["progress"]["zz"] == 1


def test_links_under_our_names_are_not_followed(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / ".precious").write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(target)
    with pytest.raises(UserError, match="checkpoints is a link"):
        RunDir(run, writer=True, resume=True)
    (tmp_path / ".fcos_index").symlink_to(target)
    content = {"images": [{"id": 1, "file_name": "a", "width": 9, "height": 9}],
               "annotations": [], "categories": [{"id": 1, "name": "a"}]}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert len(open_index(tmp_path / "a.json")) == 1
    storage.prune(target, 1)
    assert os.listdir(target) == [".precious"]


@pytest.mark.parametrize("number, code, says", [
    (errno.ENOSPC, 4, "make room"), (errno.EDQUOT, 4, "make room"), (errno.EIO, 1, "check the"),
    (errno.ESTALE, 1, "check the"), (errno.EREMOTEIO, 1, "check the"),
])  # fmt: skip
def test_a_disk_that_is_full_or_fails_is_one_line_that_names_the_file(
    tmp_path, monkeypatch, capfd, number, code, says
):
    def full(_):
        raise OSError(number, os.strerror(number))  # as write() has it: no file name

    monkeypatch.setattr(atomic, "flush", full)
    assert exit_code(lambda: atomic.write_json(tmp_path / "environment.json", {})) == code
    said = capfd.readouterr().err
    place = f"error: {tmp_path / 'environment.json'}: {os.strerror(number)}; {says}"
    assert said.startswith(place) and "\n" == said[-1]
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_csv_logger_writes_no_formulas_and_only_its_own_files(tmp_path):
    text = "=HYPERLINK(1)"
    (tmp_path / METRICS).write_text(
        json.dumps({"kind": "train", "step": -1, text: text, "list": ["+1"]}) + "\n"
    )
    sink = Csv(tmp_path / "csv", tmp_path / METRICS)
    sink(read_records(tmp_path / METRICS)[0])
    rows = list(csv.reader((tmp_path / "csv" / "train.csv").open()))
    assert rows == [["step", f"'{text}", "list"], ["-1", f"'{text}", "['+1']"]]
    sink({"kind": "../outside", "step": 1})
    assert not (tmp_path / "outside.csv").exists()


NOTES = {
    "wrong": {"done": "x"}, "text": {"piece": "8"}, "negative": {"done": [-1]},
    "pieces": {"piece": 2, "done": [2]}, "more": {"done": [999]}, "unknown": {"zz": 1},
    "etag": {"etag": 5}, "bool": {"done": [True]},
}  # fmt: skip


@pytest.mark.parametrize("kind", NOTES)
def test_the_record_of_a_download_is_checked_and_keeps_no_address(tmp_path, kind):
    url = "https://user:hunter2@example.invalid/x?sig=hunter2"
    transfer = download._Transfer(url, tmp_path / "x", None, 1, 8, "")
    good = {"url": transfer.key, "length": 8, "piece": 0, "etag": None, "modified": None,
            "md5": None, "done": [3]}  # fmt: skip
    (tmp_path / "x.part").write_bytes(bytes(8))
    transfer.note_path.write_text(json.dumps(good))
    assert transfer._load().done == [3] and "hunter2" not in transfer.key
    transfer.note_path.write_text(json.dumps({**good, **NOTES[kind]}))
    assert transfer._load() is None
    for content in (b"[" * 100_000, b"\xff", b"null", b'{"url": ' + b"9" * 5000 + b"}"):
        transfer.note_path.write_bytes(content)
        assert transfer._load() is None
    transfer.note_path.unlink()
    os.mkfifo(transfer.note_path)
    assert transfer._load() is None


def test_an_archive_with_folders_within_folders_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("val/" + "a/" * 2000 + "b", "x")
    with pytest.raises(download.Damaged, match="2002 folders deep") as error:
        archives.unpack(tmp_path / "a.zip", "val", tmp_path / "staging", tmp_path)
    assert len(str(error.value)) < 1000


def test_notes_of_wrong_types_in_safetensors_are_told(tmp_path, caplog):
    made = pytest.importorskip("safetensors.numpy")  # Paddle brings it since 3.0
    notes = {"class_names": '["a"]', "category_ids": '"x"', "AP": "}{", "config": "[" * 100_000,
             "format": "pt"}  # fmt: skip
    path = tmp_path / "w.safetensors"
    made.save_file({"w": np.ones(2)}, path, metadata=notes)
    assert weights.description(path) == {"class_names": ["a"]}
    assert sum("is not used" in one.message for one in caplog.records) == 3
    assert weights.read(path)["w"].tolist() == [1, 1]


def test_pipes_as_videos_and_images_of_holes_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.mp4")
    with pytest.raises(BadImage, match="not a file"):
        Video(tmp_path / "x.mp4")
    (tmp_path / "x.jpg").touch()
    os.truncate(tmp_path / "x.jpg", 20 << 30)
    with pytest.raises(BadImage, match="larger than"):
        read_image(str(tmp_path / "x.jpg"))


@pytest.mark.parametrize("format", ["onnx", "paddle"])
def test_a_damaged_export_is_one_line(tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    facts = {"format": format, "nms": True}
    model = tmp_path / ("model.onnx" if format == "onnx" else "model.json")
    (tmp_path / "model.pdiparams").write_bytes(b"x")
    os.mkfifo(model)
    with pytest.raises(UserError, match="not a file"):
        open_export(str(tmp_path), facts, "cpu")
    model.unlink()
    with pytest.raises(UserError, match="No such file"):
        open_export(str(tmp_path), facts, "cpu")
    if format == "onnx":
        model.write_bytes(b"damaged")
        with pytest.raises(UserError, match="export the model again") as error:
            open_export(str(tmp_path), facts, "cpu")
        assert "\n" not in str(error.value)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize("text", [BOMB + "names: *i", "a: &a [*a]", "[" * 5000, "a: !!int ''",
                                  "a: !!bool x", "a: !!timestamp x", "a: !!python/name:os.system",
                                  "a: " + "9" * 5000, "a: \x1b", "? [a]\n: b"])  # fmt: skip
def test_yaml_of_plain_values_or_one_line(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match="data.yaml: not YAML") as error:
        read_yaml(tmp_path / "data.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: [{k: 1, 'k': 2}]", "1: x\n0x1: y"])
def test_a_key_that_occurs_twice_is_refused(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=r"data.yaml:[1-3]: the key [ak1] occurs twice; remove one"):
        read_yaml(tmp_path / "data.yaml")
    (tmp_path / "a.json").write_text('{"a": [{"b": 1, "c": 2, "b": 3}]}')
    with pytest.raises(UserError, match="a.json: not usable JSON: the key 'b' occurs twice"):
        read_json(tmp_path / "a.json")


def test_an_area_of_400_digits_is_no_area():
    boxes, areas = _boxes([{"bbox": [1, 1, 2, 10**400], "area": 10**400}, {"bbox": [1, 1, 2, 2]}])
    assert np.isnan(boxes[0]).all() and np.isnan(areas).all() and boxes[1].tolist() == [1, 1, 2, 2]
