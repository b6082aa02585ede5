"""The fault test itself: it detects the failures that it is meant to detect."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fcos_recipe.checkpoint import storage
from fcos_recipe.lab.faults import fault_test, tools
from tests.conftest import ROOT


def finished(path, weight=1.0, moment=2.0, rows=((1, 0.5), (2, 0.25))):
    """What a run leaves, as far as it is compared."""
    (path / "checkpoints").mkdir(parents=True)
    model, optimizer = {"w": np.full(3, weight)}, {"m": np.full(3, moment)}
    objects = {"model.pdparams": model, "model.pdopt": optimizer}
    storage.save(path / "checkpoints", "0001", objects, {})
    storage.save_weights(path / "model_final.pdparams", objects["model.pdparams"], {})
    lines = [json.dumps({"time": id(path), "step": s, "loss": loss}) for s, loss in rows]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "changed, said",
    [
        ({}, ""),
        ({"weight": 1.0 + 1e-12}, "model_final.pdparams: w differs by 1e-12"),
        ({"moment": 2.1}, "model.pdopt: m differs by 0.1"),
        ({"rows": ((1, 0.5),)}, "metrics.jsonl: 2 and 1 records"),
        ({"rows": ((1, 0.5), (2, 0.26))}, "metrics.jsonl: loss at step 2: 0.25 and 0.26"),
        ({"rows": ((1, 0.5), (1, 0.5), (2, 0.25))}, "metrics.jsonl: 2 and 3 records"),
    ],
)
def test_differences(tmp_path, changed, said):
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", **changed)
    found = tools.differences(one, two)
    assert found.startswith(said) and bool(found) == bool(said)


def test_two_ranks_may_differ_by_a_millionth(tmp_path):
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", weight=1.0 + 5e-7)
    assert tools.differences(one, two, fault_test.TOLERANCE) == ""
    three = finished(tmp_path / "three", weight=1.0 + 2e-6)
    assert "w differs" in tools.differences(one, three, fault_test.TOLERANCE)


def test_what_is_lost_is_counted_and_named(tmp_path, monkeypatch, capsys):
    """A reader of checkpoints that checks nothing loses every damaged one."""
    test = object.__new__(fault_test.Faults)
    test.work, test.seed, test.quick = tmp_path, 0, True
    test.rng = np.random.default_rng(0)
    test.survived, test.lost, test.skipped, test.inside, test.slowest = 0, [], [], 0, 0
    folder = finished(tmp_path / "whole") / "checkpoints"
    storage.save(folder, "0002", {"model.pdparams": {"w": np.ones(9)}}, {})
    test.reference = lambda *_: 1.0
    monkeypatch.setattr(fault_test, "COUNTS", {"damage": (6, 6)})
    assert test.run_all() == 0
    assert capsys.readouterr().out.endswith("faults tried 6, survived 6, lost 0\n")
    monkeypatch.setattr(storage, "newest", lambda path: (storage.found(path)[-1], []))
    assert test.run_all() == 1
    out = capsys.readouterr().out
    assert "not noticed" in out and out.endswith("faults tried 12, survived 6, lost 6\n")


def test_processes_that_are_left_are_seen(tmp_path, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(fault_test.time, "monotonic", lambda: next(clock))
    with pytest.raises(tools.Lost, match=f"left behind: processes .{child.pid}"):
        fault_test.Faults.leaks(None, {child.pid})
    child.kill()
    child.wait()


SLEEPS = "import signal, sys, time; {}; print('up', flush=True); time.sleep(60)"
HANDLES = {
    "pass": False,
    "signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))": True,
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})": True,
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))": False,
}


@pytest.mark.parametrize("does", HANDLES)
def test_a_process_that_handles_a_signal_is_known(does):
    """So that death by SIGHUP counts as lost as soon as training promises to handle it."""
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPS.format(does)], stdout=subprocess.PIPE
    ) as child:  # fmt: skip
        assert child.stdout.readline() == b"up\n"
        assert tools.handles(child.pid, signal.SIGHUP) == HANDLES[does]
        child.kill()
    assert not tools.handles(child.pid, signal.SIGHUP)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_full_disk_from_the_command_line():
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "fault_test.sh"), "--quick", "--only", "disk"],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0 and last.endswith("lost 0"), done.stdout + done.stderr
    assert "tried 1, survived 1" in last or "cannot be mounted" in done.stdout
