"""Nothing but the project's own words is on the console of a command that works."""

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest

from fcos_recipe import compat
from fcos_recipe.cli import COMMANDS
from fcos_recipe.commands.dataset import COMMANDS as OF_DATASETS
from tests.conftest import ROOT

MARKS = ROOT / "tests" / "helpers" / "marked_console"
OWN = re.compile("\x02[^\x03]*\x03")
ONNX = all(map(find_spec, ("paddle2onnx", "onnx", "onnxruntime")))


@pytest.fixture
def console(tmp_path):
    """Runs a command; returns what it said, and what others said on its console."""
    environment = {
        **os.environ, "PYTHONPATH": f"{MARKS}{os.pathsep}{ROOT}", "DEVICE": "cpu",
        "PYTHON": sys.executable, "OMP_NUM_THREADS": "2",  # Paddle comments on each number over 1
    }  # fmt: skip

    def start(*command, code=0):
        files = [tmp_path / "stdout", tmp_path / "stderr"]
        with files[0].open("wb") as out, files[1].open("wb") as err:
            done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, stdout=out,
                                  stderr=err, timeout=300)  # fmt: skip
        text = "".join(file.read_text(errors="replace") for file in files)
        assert done.returncode == code, text
        return text, OWN.sub("", text).strip()

    return start


def tool(name: str, *arguments):
    return [sys.executable, ROOT / "tools" / f"{name}.py", *arguments]


def test_the_marks_show_whose_words_they_are(console, tmp_path):
    """A test of this file's means: a warning, a print and C's output are seen as others'."""
    (tmp_path / "program.py").write_text(
        "import os, sys, warnings\n"
        "print('print of another')\n"
        "warnings.warn('warning of another')\n"
        "os.write(2, b'from C\\n')\n"
        "from fcos_recipe import console\n"
        "console.say('of ours')\n"
    )
    text, rest = console(sys.executable, tmp_path / "program.py")
    assert "of ours" in text and "of ours" not in rest
    assert {"print of another", "from C"} <= set(rest.splitlines()) and "warning of" in rest


def test_help_is_the_projects_own(console, tmp_path):
    every = [[name] for name in COMMANDS] + [["dataset", name] for name in OF_DATASETS]
    (tmp_path / "program.py").write_text(
        "from contextlib import suppress\nfrom fcos_recipe.cli import run\n"
        f"for name, *more in {every!r}:\n"
        "    with suppress(SystemExit):\n        run(name, [*more, '--help'])\n"
    )
    text, rest = console(sys.executable, tmp_path / "program.py")
    assert text.count("usage: ") >= len(every) and not rest


@pytest.mark.slow
@pytest.mark.e2e
def test_every_command_is_quiet(console, tmp_path, tiny, shapes):
    annotations = shapes / "annotations"
    weights, train, val = "run/model_final.pdparams", annotations / "instances_train.json", (
        annotations / "instances_val.json"
    )  # fmt: skip
    commands = [
        tool("train", "-c", tiny, "--eval", "--output", "run", "-o", "epoch=1", "worker_num=1"),
        tool("eval", "-c", tiny, "--weights", weights, "--output", "evaluated"),
        tool("infer", "-c", tiny, "--weights", weights, "--input", shapes / "val"),
        tool("report", "run"),
        tool("analyze_model", "-c", tiny),
        tool("doctor", "-c", tiny, "--no-comm"),  # its ranks write to files that it reads
        tool("benchmark", "targets", "--rounds", "1"),
        tool("weights", "list"),
        tool("weights", "convert", weights, "converted.safetensors"),
        tool("dataset", "verify", shapes),
        tool("dataset", "stats", shapes, "--output", "stats"),
        tool("dataset", "convert", val, "-o", "converted.json", "--images", shapes / "val"),
        tool("dataset", "split", train, "-o", "parts"),
        tool("dataset", "subset", train, "--count", "4", "-o", "some.json"),
        tool("dataset", "merge", train, val, "-o", "all.json", "--images", shapes / "train",
             shapes / "val"),
        tool("dataset", "browse", shapes, "--output", "page.html"),
        tool("dataset", "browse", "-c", tiny, "--network-input", "--output", "input.html"),
        tool("dataset", "download", "--dir", "coco", "--dry-run"),
        tool("config", "print", tiny),
        tool("config", "validate", tiny, "--build"),
        tool("config", "keys"),
        tool("config", "copy", "fcos_r18_fpn_demo"),
        tool("config", "diff", tiny, ROOT / "configs/fcos/fcos_r18_fpn_demo.yml"),
        tool("config", "new", "--data", shapes, "-o", "new.yml"),
        ["bash", ROOT / "scripts" / "train.sh", "--gpus", "2", tiny, "--eval", "--output", "two",
         "-o", "epoch=1"],
    ]  # fmt: skip
    kinds = ["paddle", *["onnx"] * ONNX]
    for kind in kinds:
        commands.append(tool("export_model", "-c", tiny, "--weights", weights, "--format", kind))
        export = f"output/export/tiny-{kind}"
        commands.append(tool("infer", "--weights", export, "--input", shapes / "val"))
    for command in commands:
        text, rest = console(*command)
        assert text and not rest, (command, rest)
    _, rest = console(*tool("verify_result", "run"), code=2)  # no figure is published for it
    assert not rest


@pytest.mark.parametrize("native", [False, True])
def test_what_a_failing_step_said_is_shown(native, capfd):
    def step(error=None):
        print("a print")
        print("a complaint", file=sys.stderr)
        if native:
            os.write(1, b"of the library\n")
            os.write(2, b"its reason\n")
        if error:
            raise error

    with compat.quietly(native=native):
        step()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError), compat.quietly(native=native):
        step(RuntimeError("it cannot"))
    out, err = capfd.readouterr()
    assert not out and "a print" in err and "a complaint" in err
    assert ("its reason" in err) == ("of the library" in err) == native
    print("as before", flush=True)
    os.write(2, b"that, too\n")
    assert capfd.readouterr() == ("as before\n", "that, too\n")


def test_what_a_dying_process_said_is_shown(tmp_path):
    code = (
        "import os\nfrom fcos_recipe.compat import quietly\n"
        "with quietly(native=True):\n"
        "    os.write(2, b'the reason of C\\n')\n    os.abort()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)  # fmt: skip
    assert done.returncode == -signal.SIGABRT and "the reason of C" in done.stderr


@pytest.mark.parametrize("first", ["import paddle", "from paddle import inference"])
def test_any_first_import_of_paddle_is_quiet_and_its_failure_is_not(tmp_path, first):
    def run(path):
        return subprocess.run(
            [sys.executable, "-c", f"import fcos_recipe\n{first}"], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}, cwd=tmp_path,
        )  # fmt: skip

    done = run(str(ROOT))
    assert done.returncode == 0 and done.stdout + done.stderr == "", done.stderr
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text(
        "import sys\nprint('why it fails', file=sys.stderr)\nraise ImportError('broken')\n"
    )
    done = run(f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "why it fails" in done.stderr and "ImportError: broken" in done.stderr
