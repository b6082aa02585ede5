"""The watchdog: time limits per phase, and real processes that hang."""

import subprocess
import sys
import time

import pytest

from fcos_recipe import exit_codes
from fcos_recipe.system.watchdog import Watchdog

START = """
import sys, time
from fcos_recipe.system.watchdog import Watchdog
def stuck():
    time.sleep(120)
"""


def run(body, **environment):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", START + body],
        capture_output=True, text=True, timeout=60, env=environment or None,
    )  # fmt: skip
    return done.returncode, done.stderr, time.monotonic() - began


@pytest.mark.parametrize("phase", ["startup", "eval", "save"])
def test_each_phase_has_its_own_limit(phase):
    body = {
        "startup": "stuck()",
        "eval": "w.beat()\n    with w.phase('eval'): stuck()",
        "save": "w.beat()\n    with w.phase('save'): stuck()",
    }[phase]
    limits = {"startup": 100, "step": 100, "eval": 100, "save": 100, phase: 1}
    code, err, seconds = run(f"with Watchdog({limits}, 3, grace=0.1) as w:\n    {body}\n")
    assert code == exit_codes.HUNG and seconds < 15
    lines = err.strip().splitlines()
    assert lines[0].startswith("rank 3 hung: nothing done for") and lines[-1] == lines[0]
    assert f"in phase {phase}" in lines[0] and f"`watchdog.{phase}`" in lines[0]
    assert "main thread in stuck (<string>" in lines[0]
    assert any("in stuck" in line for line in lines[1:-1])  # the stacks


def test_on_hang_is_told_and_cannot_hold_up_the_end():
    body = """
def told(message):
    print("told:", message[:11], file=sys.stderr, flush=True)
with Watchdog({"startup": 1}, 0, told, grace=0) as w:
    stuck()
"""
    code, err, _ = run(body)
    assert code == exit_codes.HUNG and "told: rank 0 hung" in err


def test_beats_and_the_end_of_a_phase_keep_it_quiet():
    body = """
with Watchdog({"startup": 2, "step": 2, "eval": 2}, 0, grace=0) as w:
    for i in range(8):
        time.sleep(0.5)
        w.beat()
    with w.phase("eval"):
        for i in range(6):
            time.sleep(0.5)
            w.beat()
    time.sleep(1.2)
time.sleep(2.5)
print(w.step, file=sys.stderr)
"""
    code, err, _ = run(body)
    assert (code, err.strip()) == (0, "8")


def test_a_hang_that_holds_the_interpreter_lock_is_ended_too():
    """No Python thread runs there; only among several ranks, where a collective can do that."""
    body = """
import faulthandler, os
os.environ["PADDLE_TRAINERS_NUM"] = "2"
later = faulthandler.dump_traceback_later
faulthandler.dump_traceback_later = lambda s, **k: later(s - 29, **k)  # 1 s after the limit
def native():
    import ctypes
    ctypes.PyDLL(None).sleep(60)  # PyDLL does not release the lock
with Watchdog({"startup": 1.5}, 0) as w:
    time.sleep(1.2)
    native()
"""
    code, err, seconds = run(body)
    assert code == 1 and seconds < 20
    assert "in native" in err


def test_limit_of_a_step_follows_the_median(monkeypatch):
    watchdog = Watchdog()
    assert watchdog.limit("step") == 120
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watchdog.beat()
    for seconds in (30, 30, 30, 500):
        clock[0] += seconds
        watchdog.beat()
    assert watchdog.limit("step") == 300
    with watchdog.phase("eval"):
        clock[0] += 10_000
    clock[0] += 30
    watchdog.beat()
    assert watchdog.limit("step") == 300  # time in another phase is no step
    assert Watchdog({"step": 7}).limit("step") == 7 and Watchdog({"step": 0}).limit("step") == 120
