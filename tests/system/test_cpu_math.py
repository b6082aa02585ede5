"""CPU settings: values by processor, precedence of the user's values, effect on the process."""

import os
import subprocess
import sys

import pytest

from fcos_recipe.system import cpu_math

AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu sse2 avx2"


@pytest.mark.parametrize(
    "cpuinfo, kind",
    [(AMD, "5"), (AMD + " avx512f", "7"), ("vendor_id : GenuineIntel\nflags : avx512f", None)],
)
def test_settings_by_processor(cpuinfo, kind):
    values = cpu_math.settings(3, cpuinfo)
    assert values.get("MKL_DEBUG_CPU_TYPE") == kind
    assert values["OMP_NUM_THREADS"] == "3" and "MALLOC_TRIM_THRESHOLD_" in values


def test_cores_follow_the_affinity():
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        ["taskset", "-c", str(core), sys.executable, "-c",
         "from fcos_recipe.system import cpu_math; print(cpu_math.cores())"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "1", done.stderr


PROBE = """
import os, resource, sys
from fcos_recipe.system import cpu_math
cpu_math.ensure("cpu", {processes})
def step():
    held = [b"x" * (32 << 20) for _ in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(os.environ["OMP_NUM_THREADS"], faults)
"""


def probe(processes=1, **environment):
    keep = {k: v for k, v in os.environ.items() if k not in cpu_math.NAMES}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(processes=processes)],
        env={**keep, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    threads, faults = done.stdout.split()
    return int(threads), int(faults)


def test_a_process_gets_its_share_of_the_cores_and_keeps_its_pages():
    threads, faults = probe()
    assert threads == cpu_math.cores()
    assert faults < 1000  # 256 MB are 65,536 pages
    assert probe(processes=100)[0] == 1


def test_the_users_values_stay():
    threads, faults = probe(OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="131072")
    assert threads == 1 and faults > 10_000


@pytest.mark.parametrize("own, expected", [(None, "share"), ("1", "1")])
def test_the_launchers_thread_count_is_not_the_users(own, expected):
    """Paddle's launcher writes OMP_NUM_THREADS=1 for its ranks; only a user's 1 counts."""
    rank = (
        "from fcos_recipe.system import cpu_math; import os;"
        "print(cpu_math.ensure('cpu', 1).get('OMP_NUM_THREADS'), os.environ['OMP_NUM_THREADS'])"
    )
    launcher = (
        "import os, subprocess, sys; os.environ['OMP_NUM_THREADS'] = '1';"
        "os.environ['PADDLE_TRAINER_ID'] = '0';"
        f"sys.exit(subprocess.call([sys.executable, '-c', {rank!r}]))"
    )
    keep = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    if own:
        keep["OMP_NUM_THREADS"] = own
    done = subprocess.run(
        [sys.executable, "-c", launcher], env=keep, capture_output=True, text=True
    )
    share = str(cpu_math.cores())
    wanted = f"{share} {share}" if expected == "share" else "None 1"
    assert done.stdout.strip() == wanted, done.stderr
