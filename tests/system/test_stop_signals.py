"""Every command ends at once with one line on SIGTERM and SIGHUP; training is in test_resume.py."""

import os
import signal
import subprocess
import sys

import pytest

from fcos_recipe.cli import COMMANDS
from tests.conftest import ROOT

PROGRAM = """
import os, sys, time
def stop(*_, **__):
    assert {module!r}.startswith("fcos_recipe.evaluation") == ("paddle" in sys.modules)
    print("here", flush=True)
    time.sleep(1000)
class Stop:
    def find_spec(self, name, *_):
        return stop() if name == {module!r} else None
sys.meta_path.insert(0, Stop())
from fcos_recipe.cli import leave, run
leave(run({name!r}, {arguments!r}))
"""


def ended(number: int, **values) -> str:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(**values)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert "here\n" in iter(process.stdout.readline, "")
    os.killpg(process.pid, number)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, rest
    return rest


@pytest.mark.parametrize("name", COMMANDS)
def test_while_its_module_is_imported(name):
    number = (signal.SIGTERM, signal.SIGHUP)[sorted(COMMANDS).index(name) % 2]
    module = COMMANDS[name][0].split(":")[0]
    rest = ended(number, module=module, name=name, arguments=[])
    words = "outside of training" if name == "train" else f"{name}: ended before it was done"
    assert rest.count("\n") == 1 and number.name in rest and words in rest


def test_after_paddle_has_installed_its_own_handlers(tiny):
    """They print a C++ stack."""
    arguments = ["-c", str(tiny), "-o", "device=cpu"]
    module = "fcos_recipe.evaluation.evaluate"
    rest = ended(signal.SIGTERM, module=module, name="eval", arguments=arguments)
    assert rest.splitlines()[-1] == "SIGTERM: eval: ended before it was done" and "C++" not in rest


def test_a_child_process_accepts_them_again():
    """Pools of processes end theirs with SIGTERM, which the parent's main thread blocks."""
    program = """
import multiprocessing, time
from fcos_recipe.system.stop_signals import ending_at_once
with ending_at_once():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=[1000])
    child.start()
    child.terminate()
    child.join(30)
print(child.exitcode)
child.kill()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"{-signal.SIGTERM}\n", done.stderr
