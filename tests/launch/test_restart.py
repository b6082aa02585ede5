"""`--max-restarts`: real processes that die, and the arguments of their restart."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcos_recipe import exit_codes
from fcos_recipe.launch.plan import Plan
from fcos_recipe.launch.restart import until_done
from fcos_recipe.launch.supervise import one_process
from tests.conftest import ROOT

# Writes down its arguments, makes the run directory on its second start, dies as told.
PROGRAM = """
import os, pathlib, signal, sys
here = pathlib.Path(sys.argv[1])
with open(here / "calls", "a") as file:
    file.write(" ".join(sys.argv[2:]) + "\\n")
call = len((here / "calls").read_text().splitlines())
if call == 2:
    (here / "run").rename(here / "run.1")
    (here / "run").mkdir()
if call < 4:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[2]))
"""


def start(tmp_path, restarts, last=0):
    (tmp_path / "run").mkdir()  # of an earlier run
    run = Plan([sys.executable, "-c", PROGRAM, str(tmp_path), str(last)], {}, 1,
                      tmp_path / "log", [])  # fmt: skip
    code = until_done(run, one_process, restarts, tmp_path / "run")
    return code, (tmp_path / "calls").read_text().splitlines()


def test_it_goes_on_once_there_is_something_of_its_own(tmp_path, capfd):
    code, calls = start(tmp_path, 5)
    assert code == exit_codes.OK
    # after the first death the directory is still the earlier run's
    assert calls == ["0", "0", "0 --resume auto", "0 --resume auto"]
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("launch: killed by SIGKILL") and "restart 1 of 5" in said[0]
    assert len(said) == 3


def test_it_gives_up_after_so_many_and_at_once_when_hopeless(tmp_path):
    code, calls = start(tmp_path, 1)
    assert code == 128 + signal.SIGKILL and len(calls) == 2
    (tmp_path / "b").mkdir()
    code, calls = start(tmp_path / "b", 9, exit_codes.BAD_INPUT)
    assert code == exit_codes.BAD_INPUT and len(calls) == 4


def test_a_crash_while_the_process_ends_is_no_failure(tmp_path):
    program = """
import atexit, ctypes, sys
sys.modules["paddle"] = sys
from fcos_recipe.cli import leave
print("results", end="")
atexit.register(ctypes.string_at, 0)
leave(int(sys.argv[1]))
"""
    for code in (0, 1):
        done = subprocess.run([sys.executable, "-c", program, str(code)], capture_output=True,
                              text=True, cwd=ROOT)  # fmt: skip
        assert (done.returncode, done.stdout) == (code, "results")


# ---- training -----------------------------------------------------------------------------------


def train(tiny, tmp_path, *words, gpus="2"):
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "train.sh"), str(tiny), "--gpus", gpus,
         "--output", str(tmp_path / "run"), "--log_dir", str(tmp_path / "log"), *words],
        env={**os.environ, "DEVICE": "cpu", "PYTHON": sys.executable}, cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def children(pid) -> dict[str, int]:
    """Ranks below a supervisor: number -> process."""
    import psutil

    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "train.py" in " ".join(process.cmdline()):
                if (rank := process.environ().get("PADDLE_TRAINER_ID")) is not None:
                    found.setdefault(rank, process.pid)
        except psutil.Error:
            continue
    return found


def wait_for(process, words) -> list[str]:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    pytest.fail(f"ended without {words!r}: {''.join(lines)}")


@pytest.mark.matrix
@pytest.mark.e2e
@pytest.mark.slow
def test_two_ranks_one_killed_twice_goes_on_by_itself(tiny, tmp_path):
    process = train(tiny, tmp_path, "--max-restarts", "3", "-o", "epoch=4", "snapshot_steps=1")
    for place in ("epoch 1/4 step 2/3", "epoch 3/4 step 2/3"):
        wait_for(process, place)
        os.kill(children(process.pid)["1"], signal.SIGKILL)
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 0, rest
    assert "rank 1 of 2 failed first: killed by SIGKILL" in rest and "restart 2 of 3" in rest
    assert (tmp_path / "run" / "model_final.pdparams").is_file()
    assert (tmp_path / "log" / "attempt-1" / "workerlog.1").is_file()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 12  # every step once


@pytest.mark.e2e
@pytest.mark.slow
def test_sigterm_to_the_script_saves_on_all_ranks(tiny, tmp_path):
    process = train(tiny, tmp_path, "--max-restarts", "3", "-o", "epoch=500")
    wait_for(process, "epoch 2/500 step 2/3")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == exit_codes.SAVED, rest
    assert time.monotonic() - began < 30 and "Traceback" not in rest
    from fcos_recipe.checkpoint import storage

    path, rejected = storage.newest(Path(tmp_path / "run" / "checkpoints"))
    assert path and not rejected and f"saved {path}" in rest
