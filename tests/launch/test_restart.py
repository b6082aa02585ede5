"""`--max-restarts`: real processes that die, and the arguments of their restart."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcos_recipe import exit_codes
from fcos_recipe.console import amount
from fcos_recipe.launch.plan import Plan, plan_launch
from fcos_recipe.launch.restart import until_done
from fcos_recipe.launch.supervise import one_process, supervise
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


# In its first start, rank `rank` may take little more memory from its third step on. Evaluation,
# whose images are larger than those of training, needs more.
LITTLE_MEMORY = """
import os, pathlib, resource, sys
from fcos_recipe.cli import leave, run
from fcos_recipe.training.trainer import Trainer
first, seed = pathlib.Path({first!r}), Trainer._seed_step
def limited(trainer):
    if trainer.progress.steps_done == 2 and trainer.rank == {rank} and not first.exists():
        first.touch()
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
    seed(trainer)
Trainer._seed_step = limited
leave(run("train"))
"""


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_process_with_little_memory_is_one_line_and_the_run_goes_on(tiny, tmp_path, ranks, capfd):
    training, evaluation = tiny.read_text().split("EvalReader:")
    large = evaluation.replace("[64, 96]", "[640, 960]")
    (tmp_path / "large.yml").write_text(f"{training}EvalReader:{large}")
    driver = tmp_path / "driver.py"
    driver.write_text(LITTLE_MEMORY.format(first=str(tmp_path / "first"), rank=ranks - 1))
    words = ["-c", str(tmp_path / "large.yml"), "--eval", "--output", str(tmp_path / "run"), "-o",
             "epoch=1"]  # fmt: skip
    log = tmp_path / "log"
    run = plan_launch("cpu", [str(i) for i in range(ranks)], [], words, log, driver)
    code = until_done(run, supervise if ranks > 1 else one_process, 1, tmp_path / "run")
    shown = capfd.readouterr()
    assert code == exit_codes.OK, shown.err
    start = "launch: rank 1 of 2 failed first: exit code 1: " if ranks > 1 else "error: "
    lines = [line for line in shown.err.splitlines() if line.startswith(start)]
    assert len(lines) == 1 and shown.err.count("restart 1 of 1") == 1, shown.err
    again = f"--eval --output {tmp_path / 'run'} --resume auto -o epoch=1`"
    for words in ("host memory is full", "worker_num is 0", "batch_size 4", "are free now",
                  "(`ulimit -v`)", again):  # fmt: skip
        assert words in lines[0], lines
    assert ("of rank 1: " in lines[0]) == (ranks > 1)
    assert (tmp_path / "run" / "model_final.pdparams").is_file()


@pytest.mark.e2e
@pytest.mark.parametrize("kib", [300_000, 450_000, 600_000, 700_000])
def test_memory_that_does_not_suffice_for_the_imports_is_one_line(tiny, tmp_path, kib):
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "-c", str(tiny)]
    done = subprocess.run(
        ["bash", "-c", f'ulimit -v {kib}; exec "$@"', "-", *command], cwd=tmp_path, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == exit_codes.FAILED and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: host memory is full: ")
    assert amount(1024 * kib) in done.stderr
