"""The stand-in card itself: properties that the other tests rely on."""

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.card.plugin import PADDLE_LAUNCHER, environment
from tests.card.runs import of_processes

pytestmark = pytest.mark.card
PROGRAM = Path(__file__).with_name("checks.py")
LAUNCH = ["-m", "paddle.distributed.launch", "--nproc_per_node", "3", "--log_dir", "log"]


def check(name: str, tmp_path, *, launch=(), code: int = 0, **options) -> str:
    """Run a check of checks.py; returns its output."""
    env = environment(trace=tmp_path / "trace", **options)
    if launch:
        env |= PADDLE_LAUNCHER
    done = subprocess.run(
        [sys.executable, *launch, PROGRAM, name], cwd=tmp_path, capture_output=True, text=True,
        env=env, timeout=300,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said[-4000:]
    return said


def test_copies_views_memory_and_their_trace(tmp_path):
    """1000 numbers of each dtype to card 2, from there to card 1, and back from both of them."""
    check("copies", tmp_path, cards=3)
    lines = [line.split() for line in (tmp_path / "trace").read_text().splitlines()]
    found = Counter((what, int(card), int(size)) for _, card, what, size in lines)
    tensors = {1000: 2, 2000: 1, 4000: 3, 8000: 2}  # bytes: how many dtypes; bfloat16 as float32
    expected = {("h2d", 2, size): count for size, count in tensors.items()}
    expected |= {("p2p", 1, size): count for size, count in tensors.items()}
    assert {key: n for key, n in found.items() if key[:2] in (("h2d", 2), ("p2p", 1))} == expected
    # Paddle copies whole allocations back, which are larger than the tensors
    back = Counter(int(card) for _, card, what, _ in lines if what == "d2h")
    assert back == {1: 8, 2: 8}


@pytest.mark.parametrize("protect", [0, 1])
def test_the_host_cannot_touch_protected_memory(tmp_path, protect):
    said = check("touch", tmp_path, protect=protect, code=-signal.SIGSEGV if protect else 0)
    assert "computed" in said


@pytest.mark.parametrize("late", [0, 1])
def test_a_late_copy_shows_a_missing_synchronisation(tmp_path, late):
    said = check("late", tmp_path, late=late)
    assert f"at once: {not late}" in said and "waited for: True" in said


@pytest.mark.parametrize(
    "options, allocations",
    [
        ({"memory": 4_000_000}, 3),
        ({"fault": "memory:bytes=3000000"}, 2),
        ({"fault": "allocation:count=2"}, 1),
    ],
)
def test_a_card_is_full(tmp_path, options, allocations):
    said = check("fill", tmp_path, code=1, **options)
    assert said.count("allocated\n") == allocations and "CustomDevice error" in said
    assert (tmp_path / "trace").read_text().splitlines()[-1].endswith(f" 0 full {1 << 20}")


def test_collectives_of_every_dtype(tmp_path):
    check("collectives", tmp_path, cards=3, launch=LAUNCH)
    ranks = of_processes(tmp_path / "trace", "all_reduce")
    assert sorted(map(sorted, ranks.values())) == [[0], [1], [2]]
