"""Whatever is named on the command line, or stands in a file that is read, ends in one line.

The property: every path option and every file that is read, with every kind of bad path and bad
content, gives exit code 2 and one line, in bounded time and memory, and changes nothing outside.
"""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.errors import cell, one_line
from fcos_recipe.files.reading import decode_json, read_bytes, read_json, read_text
from tests.conftest import ROOT

SECONDS, MEBIBYTES = 20, 400  # each call; the slowest imports ppdet
DEMO = str(ROOT / "configs/fcos/fcos_r18_fpn_demo.yml")

# Command -> its arguments with X for what is bad; the kind of file that X is.
COMMANDS = {
    "config validate": (["config", "validate", "X"], "yml"),
    "config print": (["config", "print", "X"], "yml"),
    "config diff": (["config", "diff", DEMO, "X"], "yml"),
    "weights": (["weights", "convert", "X", "OUT.safetensors"], "pdparams"),
    "train -c": (["train", "-c", "X", "--output", "OUT"], "yml"),
    "doctor -c": (["doctor", "-c", "X", "--no-comm"], "yml"),
    "analyze_model": (["analyze_model", "-c", "X"], "yml"),
    "infer --weights": (["infer", "-c", DEMO, "--weights", "X", "--input", "PNG",
                         "--output", "OUT"], "pdparams"),
    "predictions": (["eval", "--predictions", "X", "--annotations", "GOOD.json"], "json"),
    "annotations": (["eval", "--predictions", "DETS.json", "--annotations", "X"], "json"),
    "stats": (["dataset", "stats", "X"], "json"),
    "subset": (["dataset", "subset", "X", "--count", "1", "-o", "OUT.json"], "json"),
    "convert": (["dataset", "convert", "coco", "X", "-o", "OUT.json"], "json"),
    "report": (["report", "X"], "run"),
    "compare": (["report", "RUN", "--bootstrap", "0", "--output", "OUT", "--compare", "X"], "run"),
}  # fmt: skip
QUICK = ("config validate", "weights", "predictions", "report")

PATHS = {
    "nul": lambda folder, _: "a\0b",
    "surrogate": lambda folder, _: "a\udcffb",
    "long": lambda folder, _: "a" * 5000,
    "long part": lambda folder, _: "a" * 300 + "/b",
    "no user": lambda folder, _: "~no_such_user_x/file",
    "pipe": lambda folder, end: made(folder, end, os.mkfifo),
    "folder": lambda folder, end: made(folder, end, os.mkdir),
    "circle": lambda folder, end: made(folder, end, lambda path: path.symlink_to(path)),
    "device": lambda folder, end: made(folder, end, lambda path: path.symlink_to("/dev/zero")),
    "endless": lambda folder, _: "/dev/zero",
    "proc": lambda folder, end: made(folder, end, lambda p: p.symlink_to("/proc/self/maps")),
    "sparse": lambda folder, end: made(
        folder, end, lambda p: (p.touch(), os.truncate(p, 20 << 30))),
}  # fmt: skip
CONTENTS = {
    "deep": b"[" * 200_000, "deeper": b'{"a":' * 200_000, "list": b"[1]", "text": b'"x"',
    "null": b"null", "digits": b"9" * 400, "more digits": b'{"images": [{"id": ' + b"9" * 5000,
    "utf-16": '{"epoch": 1}'.encode("utf-16"), "latin": b'{"a": "\xe9\xff"}', "zeros": bytes(4096),
    "types": b'{"images": 1, "annotations": "x", "categories": {"a": null}, "epoch": {"b": 1}}',
}  # fmt: skip


def made(folder: Path, end: str, make) -> str:
    path = folder / f"bad.{end}"
    make(path)
    return str(path)


def state_of(folder: Path) -> str:
    """Hash of the names, kinds and contents below a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(f"{path} {path.lstat().st_mode} {path.lstat().st_mtime_ns}".encode())
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()


def peak() -> int:
    """Highest resident memory of this process since the last `clear_refs`, MiB."""
    found = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(found["VmHWM"].split()[0]) >> 10


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Working directory with good files beside the bad ones, and a canary outside."""
    for name in ("canary", "work", "work/RUN"):
        (tmp_path / name).mkdir()
    (tmp_path / "canary" / "file").write_text("precious")
    work = tmp_path / "work"
    data = {"images": [{"id": 1, "file_name": "PNG", "width": 8, "height": 8}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4],
                             "area": 16, "iscrowd": 0}]}  # fmt: skip
    (work / "GOOD.json").write_text(json.dumps(data))
    (work / "DETS.json").write_text(
        '[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.5}]')  # fmt: skip
    (work / "PNG").write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    (work / "RUN" / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    monkeypatch.chdir(work)
    return work


def refused(argv: list[str], capfd, place: Path) -> str:
    """Run a command that must end with exit code 2 and one line; return the line."""
    canary = state_of(place.parent / "canary")
    Path("/proc/self/clear_refs").write_text("5")
    before, start = peak(), time.monotonic()
    # an alarm, not a limit on the time measured, ends what would hang
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"{argv}: not over after {SECONDS} s"))
    signal.alarm(SECONDS)
    try:
        code = run(argv[0], argv[1:])
    except SystemExit as error:  # argparse
        code = error.code
    finally:
        signal.alarm(0)
    shown = capfd.readouterr()
    errors = [line for line in shown.err.splitlines() if "error: " in line]
    assert code == 2, (argv, code, shown.err[-500:], time.monotonic() - start)
    most = 3 if any(a.endswith(".yml") for a in argv) else 1  # all faults of a config are listed
    assert 0 < len(errors) <= most and max(map(len, errors)) < 1000, (argv, errors)
    assert "Traceback" not in shown.err + shown.out
    assert not any(ord(c) < 32 and c not in "\t\n" for c in shown.err + shown.out)
    assert peak() - before < MEBIBYTES, (argv, peak() - before)
    assert state_of(place.parent / "canary") == canary
    return errors[0]


def marked(names):
    """Every command; those that are not in `QUICK` belong to the slow tier."""
    return [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("command", marked(COMMANDS))
def test_bad_paths(command, place, capfd):
    argv, end = COMMANDS[command]
    for kind, make in PATHS.items():
        if kind == "folder" and end == "run":
            end = "txt"  # an empty folder is no run either
        bad = make(place, end)
        refused([bad if a == "X" else a for a in argv], capfd, place)
        path = Path(bad)
        if path.parent == place:
            path.rmdir() if kind == "folder" else path.unlink()


@pytest.mark.parametrize("command", marked(c for c, (_, end) in COMMANDS.items() if end != "run"))
def test_bad_contents(command, place, capfd):
    argv, end = COMMANDS[command]
    for kind, content in CONTENTS.items():
        if (kind, end) == ("null", "yml"):
            continue  # a config without keys
        path = place / f"bad.{end}"
        path.write_bytes(content)
        refused([str(path) if a == "X" else a for a in argv], capfd, place)


NUMBERS = {
    "train --seed": ["train", "-c", DEMO, "--seed"],
    "eval --score-threshold": ["eval", "--score-threshold"],
    "eval --max-dets": ["eval", "--max-dets"],
    "infer --batch-size": ["infer", "--input", "x", "--batch-size"],
    "report --bootstrap": ["report", "RUN", "--bootstrap"],
    "report --serve": ["report", "RUN", "--serve"],
    "analyze_model --batch": ["analyze_model", "-c", DEMO, "--batch"],
    "subset --count": ["dataset", "subset", "GOOD.json", "-o", "x.json", "--count"],
    "subset --share": ["dataset", "subset", "GOOD.json", "-o", "x.json", "--share"],
}


@pytest.mark.parametrize("option", NUMBERS)
def test_bad_numbers(option, place, capfd):
    for number in ("1" + "0" * 400, "nan", "inf", "1e400", "x", "", "\u0663\u0663e", "0x10"):
        refused([*NUMBERS[option], number], capfd, place)


# ---- the door itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PATHS)
def test_readers_read_only_files(kind, place):
    from fcos_recipe.errors import UserError
    from fcos_recipe.files.reading import given_path

    bad = PATHS[kind](place, "json")
    for read in (read_bytes, read_text, read_json):
        with pytest.raises(UserError) as error:
            read(given_path(bad))
        assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("kind", CONTENTS)
def test_json_is_decoded_into_its_type_or_refused(kind):
    with pytest.raises(ValueError):
        decode_json(CONTENTS[kind], dict[str, float])
    assert np.isnan(decode_json('{"a": NaN}')["a"])


def test_csv_cells_are_no_formulas():
    for text in ("=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\x1b[2J=1", "\r=1", "\n=1"):
        safe = cell(text)
        assert safe[0] not in "=+-@\t\r\n" and safe.isprintable() and one_line(text) in safe
    assert cell("person") == "person"


@pytest.mark.parametrize("name", ["b\nepoch: 99 #.yml", "b\x1b[2J.yml"])
def test_the_name_of_a_base_file_puts_nothing_into_a_config(name, place, capfd):
    (place / name).write_text("log_iter: 7\n")
    (place / "c.yml").write_text(json.dumps({"_BASE_": [DEMO, name]}))
    assert run("config", ["print", "c.yml"]) == 0
    shown = capfd.readouterr().out
    assert "log_iter: 7" in shown and "epoch: 99\n" not in shown and "\x1b" not in shown
    assert not [line for line in shown.splitlines() if line.startswith("epoch: 99")]


YAML = {
    "tag": "x: !!float '_'", "integer": "epoch: !!int ''", "sexagesimal": "epoch: !!float ':'",
    "hexadecimal": "epoch: 0x" + "f" * 400, "base": "_BASE_: ['a\\0b.yml']",
    "null base": '_BASE_: ["a\\0b.yml"]', "user": "_BASE_: ['~no_such_user_x/a.yml']",
    "long": "_BASE_: ['" + "a" * 5000 + "']", "escape": '"\\e]0;owned\\a\\e[2J": 1',
    "surrogate": '_BASE_: ["\\ud800.yml"]', "flat": "a: [" + "1," * 200_000 + "1]",
    "kernel": "_BASE_: ['/proc/kmsg']", "self": "_BASE_: ['/proc/self/mem']",
}  # fmt: skip


@pytest.mark.parametrize("kind", YAML)
def test_bad_yaml(kind, place, capfd):
    (place / "c.yml").write_text(YAML[kind])
    if kind == "escape":  # an unknown key is a warning in a file of one's own
        run("config", ["validate", "c.yml"])
        shown = capfd.readouterr()
        assert "\x1b" not in shown.out + shown.err
        return
    code = run("config", ["print", "c.yml"])
    shown = capfd.readouterr().err
    assert code == 2 and "Traceback" not in shown and all(len(n) < 1000 for n in shown.splitlines())
