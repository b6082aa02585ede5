"""Files are replaced atomically, and a failed attempt leaves no file."""

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fcos_recipe.data.index import open_index
from fcos_recipe.datasets import coco2017
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation.plots import draw_plots
from fcos_recipe.files import atomic
from fcos_recipe.files.atomic import (
    draft,
    draft_folder,
    open_own,
    own_folder,
    remove_drafts,
    replace_file,
    write_json,
    write_named,
)
from fcos_recipe.files.download import locked
from fcos_recipe.launch.plan import Plan
from fcos_recipe.launch.supervise import set_aside, supervise
from fcos_recipe.runs import loggers
from fcos_recipe.runs.directory import RunDir
from fcos_recipe.training import bad_numbers
from tests.conftest import ROOT


def test_a_file_is_replaced_whole_and_gets_a_usual_mode(tmp_path):
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        for content in ("ä\udcff", b"bytes", lambda file: file.writelines([b"one ", b"two"])):
            replace_file(path, content)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"one two" and os.listdir(tmp_path) == ["a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_failed_attempt_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1]})
    assert path.read_text() == '{\n "a": [\n  1\n ]\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(KeyboardInterrupt), draft(path, durable=True) as part:
        part.write_text("half of it")
        assert part.parent == tmp_path and json.loads(path.read_text()) == {"a": [1]}
        raise KeyboardInterrupt
    with pytest.raises(OSError):
        replace_file(tmp_path / "none" / "a", "text")
    assert os.listdir(tmp_path) == ["a.json"] and json.loads(path.read_text()) == {"a": [1]}


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with draft(path) as one, draft(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["a"]


def test_drafts_of_killed_writers_can_be_removed(tmp_path):
    end = ".0123456789abcdef"
    for name in (f".a[1]{end}", f".a1{end}", f"a[1]{end}", ".a[1].old", f".a[1]{end}.png"):
        (tmp_path / name).touch()
    (tmp_path / f".b{end}").mkdir()
    (tmp_path / f".b{end}" / "inside").touch()
    remove_drafts(tmp_path, "a[1]")
    kept = {f".a1{end}", f"a[1]{end}", ".a[1].old", f".b{end}"}
    assert set(os.listdir(tmp_path)) == kept
    remove_drafts(tmp_path)
    assert set(os.listdir(tmp_path)) == {f"a[1]{end}", ".a[1].old"}
    remove_drafts(tmp_path / "missing")


@pytest.mark.parametrize("make", [draft, draft_folder])
def test_drafts_of_another_process_stay_until_it_is_killed(tmp_path, make):
    target = tmp_path / "a"
    program = f"""
from pathlib import Path
from fcos_recipe.files.atomic import {make.__name__}
with {make.__name__}(Path({str(target)!r})) as part:
    print(part, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    ) as other:  # fmt: skip
        part = Path(other.stdout.readline().strip())
        remove_drafts(tmp_path)
        assert part.exists()
        atomic._left_in.cache_clear()
        with make(target):  # a writer of the same file or folder
            assert part.exists()
        other.kill()
    atomic._left_in.cache_clear()
    with make(target) as own:
        assert not part.exists() and os.listdir(tmp_path).count(own.name) == 1
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_is_replaced_in_one_step_or_in_two(tmp_path, monkeypatch):
    target = tmp_path / "a"
    for _ in range(2):
        for content in "xy":
            with draft_folder(target) as part:
                (part / content).touch()
            assert os.listdir(tmp_path) == ["a"] and os.listdir(target) == [content]
        monkeypatch.setattr(atomic, "_exchange", lambda *_: -1)


WRITERS = {
    "append": lambda path: open_own(path, os.O_WRONLY | os.O_APPEND).write(b"x"),
    "lock": lambda path: open_own(path, os.O_RDWR).close(),
    "file": lambda path: replace_file(path, "x"),
    "json": lambda path: write_json(path, {}),
    "run": lambda path: RunDir(path.parent, writer=True, resume=True).__enter__().__exit__(),
    "index": lambda path: open_index(path.parent.parent / "instances.json"),
    "zoo": lambda path: locked(path).__enter__(),
}


@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "pipe"])
@pytest.mark.parametrize("name", ["a", ".lock", "metrics.jsonl", "log.txt", "instances.json.lock",
                                  "instances.json.idx"])  # fmt: skip
def test_no_writer_follows_a_link_under_a_name_of_ours(tmp_path, name, kind):
    outside, folder = tmp_path / "outside", tmp_path / ".fcos_index"
    for made in (outside, folder, outside / "folder"):
        made.mkdir()
    (outside / "file").write_text("precious")
    (tmp_path / "instances.json").write_text(
        '{"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": []}')  # fmt: skip
    for write in WRITERS.values():
        path = folder / name
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(outside / kind)
        with contextlib.suppress(OSError, UserError):
            write(path)
        assert os.listdir(outside / "folder") == [] and len(os.listdir(outside)) == 2
        assert (outside / "file").read_text() == "precious"
        shutil.rmtree(folder)
        folder.mkdir()


def test_a_folder_of_the_user_may_be_a_link_and_a_named_output_a_device(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with RunDir(tmp_path / "link", writer=True, resume=True) as run:
        run.record(kind="train", step=1)
    assert (tmp_path / "real" / "metrics.jsonl").is_file()
    (tmp_path / "out").symlink_to(tmp_path / "real" / "target")
    write_named(tmp_path / "out", "x")
    write_named(Path("/dev/null"), "x")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "real" / "target").read_text() == "x"
    assert not Path("/dev/null").is_file()


def bad_step(path: Path) -> None:
    """Write the figures of a bad step into the folder `path`."""
    run = SimpleNamespace(path=path.parent, writer=True)
    trainer = SimpleNamespace(
        run=run, progress=SimpleNamespace(epoch=0, step=0, steps_done=0),
        scaler=SimpleNamespace(state_dict=dict),
        optimizer=SimpleNamespace(get_lr=lambda: 0.1),
        model=SimpleNamespace(named_parameters=lambda: []),
    )  # fmt: skip
    window = SimpleNamespace(last_losses=lambda: [])
    rules = bad_numbers.Guard.__new__(bad_numbers.Guard)
    rules.trainer = trainer
    assert rules._dump(window, [1], "loss") == "", "refused, with a warning"


METRIC = SimpleNamespace(coco_eval=None, categories=[])
RECORD = {"kind": "train", "step": 1, "epoch": 1, "loss": 1.0}
# Each folder whose name is of this project, and what makes it or writes into it.
FOLDERS = {
    "checkpoints": lambda path: RunDir(path.parent, writer=True, resume=True),
    "csv": lambda path: loggers.Csv(path, path.parent / "metrics.jsonl")(RECORD),
    "tensorboard": lambda path: loggers.TensorBoard(path)(RECORD),
    "vdl": lambda path: loggers.VisualDL(path, own=True)(RECORD),
    "wandb": lambda path: loggers.WandB(path.parent, SimpleNamespace(data={}))(RECORD),
    "plots": lambda path: draw_plots(METRIC, {}, path),
    "bad_steps": bad_step,
    ".fcos_index": lambda path: open_index(path.parent / "instances.json"),
    ".download": lambda path: coco2017.get(path.parent),
    "launch": lambda path: supervise(
        Plan(["false"], {}, 2, path / "a", [], logs_below=path.parent)
    ),
    "attempt-1": lambda path: set_aside(path.parent),
    "crops": lambda path: own_folder(path / "a" / "b", path.parent),
}


@pytest.mark.parametrize("kind", ["link", "file", "circle"])
@pytest.mark.parametrize("name", FOLDERS)
def test_no_folder_of_ours_is_a_link(tmp_path, monkeypatch, name, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    outside, run = tmp_path / "outside", tmp_path / "run"
    for made in (outside, run):
        made.mkdir()
    for file in ("a.csv", "train.csv", "scores.png", "lock", "run_id", "0001-000001.json"):
        (outside / file).write_text("precious")
    (run / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    (run / "instances.json").write_text(
        '{"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": []}')  # fmt: skip
    if kind == "file":
        (run / name).write_text("precious")
    else:
        (run / name).symlink_to(outside if kind == "link" else run / name)
    if name in (".fcos_index", "bad_steps", "attempt-1"):  # another place, or there is a warning
        FOLDERS[name](run / name)
    else:
        with pytest.raises((OSError, UserError), match="remove it|a file where|is a file"):
            FOLDERS[name](run / name)
    assert len(os.listdir(outside)) == 6
    assert {path.read_text() for path in outside.iterdir()} == {"precious"}


# Inside a draft folder or a temporary folder of their own, or (watchdog) to the console.
ELSEWHERE = {"drawn_shapes.py": 3, "onnx_graph.py": 1, "export.py": 1, "collectives.py": 1,
             "watchdog.py": 1, "storage.py": 1, "contact_sheet.py": 2, "examples.py": 1,
             "plots.py": 1, "stats_plot.py": 1, "new_config.py": 1,
             "archives.py": 1, "convert.py": 1, "stats.py": 1, "trainer.py": 1}  # fmt: skip


def test_every_writer_uses_this_module():
    writing = re.compile(
        r"""\.write_(text|bytes)\(|\bopen\([^)]*["'](w|a|x|r\+)b?["']|imwrite\(|savefig\(|"""
        r"""\.save\(|O_CREAT|copyfile\(|\.touch\("""
    )
    found = Counter()
    for path in (ROOT / "fcos_recipe").rglob("*.py"):
        if "lab" not in path.parts and path.name != "atomic.py":
            lines = path.read_text().splitlines()
            found[path.name] += sum(
                bool(writing.search(line)) and "draft" not in line for line in lines
            )
    assert {name: n for name, n in found.items() if n and n != ELSEWHERE.get(name)} == {}
