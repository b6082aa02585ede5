"""Two cards compute what one process computes from the images of both."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.card.plugin import PADDLE_LAUNCHER, environment
from tests.card.runs import CPU, MATH
from tests.evaluation.test_collectives import assert_same, gradients

pytestmark = [pytest.mark.card, pytest.mark.slow]


def test_gradients_are_the_mean_over_the_cards(tiny, tmp_path):
    cards = {**environment(2), **PADDLE_LAUNCHER, **MATH, "DEVICE": "iluvatar_gpu"}
    one, two = (gradients(tiny, tmp_path, 1, batch, env=CPU) for batch in (0, 1))
    mean = {name: (one[name] + two[name]) / 2 for name in one}
    assert_same(gradients(tiny, tmp_path, 2, 0, 1, env=cards), mean)


def launched(program, folder):
    """Run a program of this folder on two cards with Paddle's launcher."""
    command = [sys.executable, "-m", "paddle.distributed.launch", "--devices", "0,1", "--log_dir",
               folder, Path(__file__).with_name(program)]  # fmt: skip
    done = subprocess.run(
        command, env=environment(2) | PADDLE_LAUNCHER, capture_output=True, text=True,
        timeout=200, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_sync_batch_norm_is_batch_norm_over_all_images(tmp_path):
    launched("sync_bn.py", tmp_path)
    for rank in range(2):
        said = (tmp_path / f"workerlog.{rank}").read_text().splitlines()
        differences = next(line for line in said if line.startswith("differences")).split()[1:]
        assert np.array(differences, float).max() < 1e-5


def test_a_checkpoint_reaches_hosts_with_disks_of_their_own(tmp_path):
    launched("everywhere.py", tmp_path)
    files = [{p.relative_to(host): p.read_bytes() for p in host.rglob("*") if p.is_file()}
             for host in (tmp_path / "host-0", tmp_path / "host-1")]  # fmt: skip
    assert files[0] == files[1] and len(files[0]) == 2
    assert sum(map(len, files[0].values())) == 7 + 256 * 20_000
