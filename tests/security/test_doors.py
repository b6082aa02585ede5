"""Whatever is named on the command line, or stands in a file that is read, ends in one line.

The property: every path option and every file that is read, with every kind of bad path and bad
content, gives exit code 2 and one line, in bounded time and memory, and changes nothing outside.
"""

import argparse
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import time
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest

from fcos_recipe import compat
from fcos_recipe.checkpoint import storage
from fcos_recipe.cli import COMMANDS, run
from fcos_recipe.commands import options
from fcos_recipe.commands.dataset import COMMANDS as DATASET
from fcos_recipe.config import load_config
from fcos_recipe.errors import Escaped, cell, one_line
from fcos_recipe.files.reading import decode_json, read_bytes, read_json, read_text
from tests.conftest import ROOT

SECONDS, MEBIBYTES = 20, 400  # each call; the slowest imports ppdet
DEMO = str(ROOT / "configs/fcos/fcos_r18_fpn_demo.yml")

# Command -> good arguments; a bad value replaces one of them or is added to them.
GOOD: dict[str, dict[str, str]] = {
    "train": {"--config": "CONFIG.yml", "--output": "OUT"},
    "eval": {"--predictions": "DETS.json", "--annotations": "GOOD.json"},
    "infer": {
        "--config": "CONFIG.yml",
        "--weights": "W.pdparams",
        "--input": "PNG",
        "--output": "OUT",
    },
    "export_model": {"--config": "CONFIG.yml", "--weights": "W.pdparams", "--output": "OUT"},
    "dataset download": {"--dry-run": "", "--dir": "OUT"},
    "dataset verify": {"target": "GOOD.json"},
    "dataset stats": {"target": "GOOD.json"},
    "dataset browse": {"target": "GOOD.json", "--output": "OUT.html"},
    "dataset subset": {"file": "GOOD.json", "--count": "1", "--output": "OUT.json"},
    "dataset split": {"file": "GOOD.json", "--output": "OUT"},
    "dataset merge": {"files": "GOOD.json", "--output": "OUT.json"},
    "dataset convert": {"--from": "coco", "source": "GOOD.json", "--output": "OUT.json"},
    "weights get": {"name": "none"},
    "weights convert": {"source": "W.pdparams", "target": "OUT.safetensors"},
    "config copy": {"name": "fcos_r50_fpn_1x_coco", "--output": "COPY.yml"},
    "config print": {"config": DEMO},
    "config validate": {"config": DEMO},
    "config diff": {"a": DEMO, "b": DEMO},
    "config new": {
        "--data": ".",
        "--train": "GOOD.json",
        "--output": "OUT.yml",
        "--batch-size": "1",
    },
    "analyze_model": {"--config": DEMO, "--size": "64x64", "--repeat": "0"},
    "benchmark": {"task": "targets"},
    "report": {"run": "RUN", "--output": "OUT", "--bootstrap": "0"},
    "verify_result": {"run": "RUN"},
    "doctor": {"--config": DEMO, "--no-comm": ""},
}
# The same for options that do not go together with these.
INSTEAD = {
    "eval --config": {"--weights": "W.pdparams"},
    "eval --opt": {"--config": "CONFIG.yml", "--weights": "W.pdparams"},
    "eval --weights": {"--config": "CONFIG.yml"},
    "dataset browse --config": {"--output": "OUT.html"},
    "dataset stats --config": {},
    "dataset verify --config": {},
    "verify_result --config": {"--weights": "W.pdparams"},
    "verify_result --opt": {"--config": "CONFIG.yml", "--weights": "W.pdparams"},
    "verify_result --weights": {"--config": "CONFIG.yml"},
}
QUICK = {"config validate", "dataset subset", "report", "weights convert"}
# Options that name no file that is read: a bad value may be accepted, but never crashes.
OUTPUTS = {"--output", "--output_dir", "--output_eval", "--vdl_log_dir", "--json", "target",
           "--fix", "--save-predictions", "--dir"}  # fmt: skip
TEXTS = {"--allow-code", "--classes", "--group-by", "--names", "--splits", "--split", "--mirror",
         "--images", "--save_results", "--use_vdl", "--list", "--keypoints"}  # fmt: skip
ENDINGS = {"--config": "yml", "config": "yml", "a": "yml", "b": "yml", "--base": "yml",
           "--weights": "pdparams", "source": "pdparams", "--resume": "pdparams"}  # fmt: skip


class _Found(Exception):
    pass


def options_of_all_commands() -> dict[str, dict[str, argparse.Action]]:
    """Command -> name of an option that takes a value -> its action, from the real parsers."""

    def stop(parser, *_):
        raise _Found(parser)

    def walk(name, parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for key, below in action.choices.items():
                    walk(f"{name} {key}", below)
            elif action.nargs != 0 and action.help != argparse.SUPPRESS and not action.choices:
                taking = (action.option_strings or [action.dest])[-1]
                found.setdefault(name, {})[taking] = action

    found: dict[str, dict[str, argparse.Action]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options._Parser, "parse_args", stop)
        patch.setattr(options._Parser, "parse_known_args", stop)
        for name, (place, _) in COMMANDS.items():
            module, function = place.split(":")
            for sub in DATASET if name == "dataset" else [None]:
                with pytest.raises(_Found) as parser:
                    getattr(import_module(module), function)([sub] if sub else [])
                walk(f"{name} {sub}" if sub else name, parser.value.args[0])
    return found


OPTIONS = options_of_all_commands()


def arguments(command: str, option: str, value: str) -> list[str]:
    """A command line that is good but for the value of one option."""
    action = OPTIONS[command][option]
    good = dict(INSTEAD.get(f"{command} {option}", GOOD[command]))
    for name in (option, action.dest, *action.option_strings):
        good.pop(name, None)
    argv = command.split()
    if action.dest in ("count", "share"):
        good.pop("--count", None)
    order = list(OPTIONS[command])  # which matters for positional arguments
    given = {**good, option: value}
    for name in sorted(given, key=lambda n: order.index(n) if n in order else 0):
        text = given[name]
        argv += ([name] if name.startswith("-") else []) + (
            [text] if text or name == option else []
        )
    return argv


def is_number(action: argparse.Action) -> bool:
    listed = ("_count", "numbers", "_sizes", "_shares", "_ids")
    return action.type in (int, float, options.finite) or (
        getattr(action.type, "__name__", "") in listed
    )


def test_every_command_has_good_arguments():
    assert OPTIONS.keys() == GOOD.keys()
    assert sum(map(len, OPTIONS.values())) > 100


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


@pytest.fixture(scope="session")
def detector(tmp_path_factory) -> Path:
    """Random weights of the demo's model with one class, 120 MB."""
    config = load_config(DEMO, ["num_classes=1"])
    compat.workspace(config.stock_data())
    path = tmp_path_factory.mktemp("detector") / "W.pdparams"
    state = compat.create(config.data["architecture"]).state_dict()
    storage.save_weights(path, storage.host(state), {"class_names": ["a"]})
    return path


@pytest.fixture
def weights(request, place, command):
    """For commands that build a model: the weights in `place` are those of a detector."""
    if command in ("eval", "infer", "export_model", "verify_result"):
        (place / "W.pdparams").unlink()
        (place / "W.pdparams").symlink_to(request.getfixturevalue("detector"))


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
    (work / "W.pdparams").write_bytes(pickle.dumps({"w": np.zeros(2, np.float32)}, 4))
    dataset = "{dataset_dir: '', image_dir: ., anno_path: GOOD.json}"
    (work / "CONFIG.yml").write_text(
        f"_BASE_: ['{DEMO}']\nnum_classes: 1\nworker_num: 0\nTrainDataset: {dataset}\n"
        f"EvalDataset: {dataset}\nTestDataset: {dataset}\nTrainReader: {{batch_size: 1}}\n"
    )
    (work / "RUN" / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    monkeypatch.chdir(work)
    return work


def ends(argv: list[str], capfd, place: Path, codes=(2,)) -> str:
    """Run a command that must end with one of these exit codes, with 2 in one line; return its
    lines of errors."""
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
    told = [a[:200] for a in argv]
    assert code in codes, (told, code, shown.err[-500:], time.monotonic() - start)
    most = 4 if any(".yml" in a for a in argv) else 1  # all faults of a config are listed
    if code == 2:
        assert 0 < len(errors) <= most and max(map(len, errors)) < 6000, (told, errors)
    assert "Traceback" not in shown.err + shown.out
    assert not any(ord(c) < 32 and c not in "\t\n" for c in shown.err + shown.out)
    assert peak() - before < MEBIBYTES, (told, peak() - before)
    assert state_of(place.parent / "canary") == canary
    return "\n".join(errors)


def marked(wanted):
    """All options that `wanted` accepts; those of commands outside `QUICK` are in the slow tier."""
    return [
        pytest.param(c, o, id=f"{c} {o}", marks=[] if c in QUICK else pytest.mark.slow)
        for c, of_command in OPTIONS.items() for o, action in of_command.items()
        if wanted(action) and (is_number(action) or c != "benchmark")  # it measures for minutes
    ]  # fmt: skip


def called(command: str, option: str, value: str, capfd, place: Path) -> None:
    """Call a command with one bad value: it is refused, or, for `OUTPUTS` and `TEXTS`, may work."""
    free = option in OUTPUTS | TEXTS or f"{command} {option}" == "config new --weights"
    argv = arguments(command, option, value)
    codes = (0, 1, 2, 3) if free else (1, 2) if option == "--infer_list" else (2,)
    said = ends(argv, capfd, place, codes)
    unpublished = f"{command} {option}" == "verify_result --weights"  # which is told first
    if not free and value and not unpublished:  # refused for this value, not for another reason
        assert Path(value).name[:9] in said or repr(value[:9])[1:-1] in said or option in said


@pytest.mark.parametrize("command, option", marked(lambda action: not is_number(action)))
@pytest.mark.usefixtures("weights")
def test_bad_paths(command, option, place, capfd):
    for kind, make in PATHS.items():
        if kind == "folder" and option in ("run", "--compare", "--data"):
            continue  # folders are what they take
        value = make(place, ENDINGS.get(option, "json"))
        called(command, option, value, capfd, place)
        if Path(value).parent == place and os.path.lexists(value):
            shutil.rmtree(value) if Path(value).is_dir() else os.unlink(value)


def is_read(command: str, option: str) -> bool:
    return option not in OUTPUTS | TEXTS | {"--opt", "name", "--val", "--size", "--data", "run",
                                            "--compare", "--torch-python"}  # fmt: skip


@pytest.mark.parametrize("command, option", [
    p for p in marked(lambda action: not is_number(action)) if is_read(*p.values)])  # fmt: skip
@pytest.mark.usefixtures("weights")
def test_bad_contents(command, option, place, capfd):
    end = ENDINGS.get(option, "json")
    for kind, content in CONTENTS.items():
        if (kind, end) == ("null", "yml"):
            continue  # a config without keys
        path = place / f"bad.{end}"
        path.write_bytes(content)
        called(command, option, str(path), capfd, place)


@pytest.mark.parametrize("command, option", marked(is_number))
def test_bad_numbers(command, option, place, capfd):
    for number in ("1" + "0" * 400, "nan", "inf", "1e400", "x", "", "\u0663\u0663e", "0x10"):
        called(command, option, number, capfd, place)


# ---- files inside folders ------------------------------------------------------------------------

# Arguments, files of which each is bad in turn, exit codes.
INSIDE = {
    "report": (["report", "RUN", "--output", "OUT"],
               [f"RUN/{name}" for name in (
                   "metrics.jsonl", "config.yml", "facts.json", "environment.json", "eval.json",
                   "analysis.json", "examples/index.json", "log.txt", ".lock")], (0, 2)),
    "verify_result": (["verify_result", "RUN"], ["RUN/eval.json", "RUN/environment.json"], (0, 2)),
    "compare": (["report", "RUN", "--compare", "RUN2", "--output", "OUT"],
                ["RUN/detections.npz", "RUN2/eval.json", "RUN2/metrics.jsonl"], (0, 2)),
    "note": (["weights", "convert", "W.pdparams", "OUT.safetensors"], ["W.json"], (2,)),
    "checkpoint": (["weights", "convert", "RUN/checkpoints/0001", "OUT.safetensors"],
                   ["RUN/checkpoints/0001/state.json", "RUN/checkpoints/0001/model.pdparams"],
                   (2,)),
    "export": (["infer", "--weights", "EXPORT", "--input", "PNG", "--output", "OUT"],
               ["EXPORT/fcos_export.json"], (2,)),
    "index": (["dataset", "stats", "GOOD.json"],
              [".fcos_index/GOOD.json.idx", ".fcos_index/GOOD.json.lock", ".fcos_index"], (0,)),
    "image": (["dataset", "verify", "GOOD.json", "--images", "."], ["PNG"], (0, 1)),
    "list": (["infer", "-c", DEMO, "--weights", "W.pdparams", "--input", "list.txt"],
             ["list.txt"], (2,)),
    "hash": (["weights", "list"], ["cache/weights/ResNet50_cos_pretrained.pdparams.sha256"],
             (0, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_bad_files_inside_folders(name, place, capfd, monkeypatch):
    monkeypatch.setenv("FCOS_CACHE", str(place / "cache"))
    argv, files, codes = INSIDE[name]
    for file in ["RUN2/metrics.jsonl", "RUN2/eval.json", "cache/weights/x", "EXPORT/model.onnx"]:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(b"{}")
    (place / "cache/weights/ResNet50_cos_pretrained.pdparams").write_bytes(b"x")
    (place / "RUN/checkpoints").mkdir()
    arrays = {"model.pdparams": {"w": np.zeros(2, np.float32)}}
    for file in files:
        path = place / file
        made_of = [lambda p, c=c: p.write_bytes(c) for c in CONTENTS.values()]
        made_of += [
            lambda p: os.mkfifo(p), lambda p: p.mkdir(), lambda p: p.symlink_to(p),
            lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to("/proc/self/maps"),
            lambda p: p.symlink_to(place.parent / "canary"),
            lambda p: (p.touch(), os.truncate(p, 20 << 30)),
        ]  # fmt: skip
        if name in ("note", "checkpoint"):
            made_of.pop(list(CONTENTS).index("types"))  # entries that a note does not have
        for make in made_of:
            if name == "checkpoint":
                storage.save(place / "RUN/checkpoints", "0001", arrays, {})
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            make(path)
            ends(argv, capfd, place, codes)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            (place / "OUT.safetensors").unlink(missing_ok=True)
        if file in ("PNG", "RUN2/eval.json", "RUN2/metrics.jsonl"):
            path.write_bytes(b"{}")


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


def test_names_of_files_do_not_reach_the_terminal_raw(place, capfd):
    name = "x\x1b[2J\u202e"
    for old, new in (("GOOD.json", ".json"), ("DETS.json", "d.json"), ("W.pdparams", ".pdparams")):
        shutil.copy(old, f"{name}{new}")
    shutil.copytree("RUN", name)
    good = f"{name}.json"
    for argv in (
        ["dataset", "stats", good], ["dataset", "verify", good],
        ["dataset", "subset", good, "--count", "1", "-o", f"{name}1.json"],
        ["dataset", "split", good, "-o", f"{name}2"],
        ["dataset", "merge", good, "-o", f"{name}3.json"],
        ["eval", "--predictions", f"{name}d.json", "--annotations", good],
        ["weights", "convert", f"{name}.pdparams", f"{name}.safetensors"],
        ["report", name], ["config", "print", f"{name}.yml"],
    ):  # fmt: skip
        run(argv[0], argv[1:])
        shown = capfd.readouterr()
        assert shown.out + shown.err and not set(shown.out + shown.err) & {"\x1b", "\u202e"}, argv


HUGE_NAME = "n\n\x1b[2J" + "x" * 10**6
LONGEST = 2100  # characters of a line: a prefix, and what errors.MOST allows


@pytest.mark.parametrize("field", ["name", "file_name", "id", "image_id", "category_id", "area"])
def test_huge_names_and_numbers_do_not_fill_the_terminal(field, place, capfd):
    data = json.loads((place / "GOOD.json").read_text())
    for file, bad in (("NAME.json", HUGE_NAME), ("DIGITS.json", 10**400)):
        for entry in [*data["images"], *data["annotations"], *data["categories"]]:
            entry.update({field: bad} if field in entry else {})
        (place / file).write_text(json.dumps(data))
        for argv in (
            ["dataset", "stats", file], ["dataset", "verify", file, "--fix", "FIX.json"],
            ["dataset", "subset", file, "--count", "1", "-o", "OUT.json", "--force"],
            ["dataset", "split", file, "-o", "OUT", "--force"],
            ["dataset", "merge", file, "-o", "OUT.json", "--force"],
            ["dataset", "browse", file, "-o", "OUT.html"],
            ["dataset", "convert", "--from", "coco", file, "-o", "OUT.json", "--force"],
            ["eval", "--predictions", "DETS.json", "--annotations", file],
            ["config", "validate", "CONFIG.yml", "--files", "-o", f"TrainDataset.anno_path={file}"],
        ):  # fmt: skip
            code = run(argv[0], argv[1:])
            shown = capfd.readouterr()
            lines = [*shown.out.splitlines(), *shown.err.splitlines()]
            assert code in (0, 1, 2) and lines, argv
            assert max(map(len, lines)) < LONGEST and "Traceback" not in shown.err, argv
            if code == 2:
                each = 1 + (argv[1] == "convert")  # and a last line with the remedy
                assert len([line for line in lines if "error: " in line]) <= each, argv


@pytest.mark.parametrize("text", [f"{'k' * 10**5}: 1", f"epoch: {'v' * 10**5}",
                                  f"TrainReader: {{batch_size: '{'v' * 10**5}'}}"],
                         ids=["key", "value", "inner"])  # fmt: skip
def test_huge_keys_and_values_of_a_config_do_not_fill_the_terminal(text, place, capfd):
    (place / "bad.yml").write_text(f"_BASE_: ['{DEMO}']\n{text}\n")
    for argv in (["config", "validate", "bad.yml"], ["config", "diff", DEMO, "bad.yml", "--strict"],
                 ["train", "-c", "bad.yml"]):  # fmt: skip
        run(argv[0], argv[1:])
        shown = capfd.readouterr()
        lines = (shown.out + shown.err).splitlines()
        assert lines and max(map(len, lines)) < LONGEST, argv


def test_characters_that_the_terminal_does_not_have_are_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    out = Escaped(stream)
    print("\rname \udcff \u540d \x1b[2J a\rb", file=out, end="\r")
    out.flush()
    assert stream.buffer.getvalue() == b"\rname \\udcff \\u540d \\x1b[2J a\\rb\r"


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
