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


def test_sync_batch_norm_is_batch_norm_over_all_images(tmp_path):
    command = [sys.executable, "-m", "paddle.distributed.launch", "--devices", "0,1", "--log_dir",
               tmp_path, Path(__file__).with_name("sync_bn.py")]  # fmt: skip
    done = subprocess.run(
        command, env=environment(2) | PADDLE_LAUNCHER, capture_output=True, text=True,
        timeout=200, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        said = (tmp_path / f"workerlog.{rank}").read_text().splitlines()
        differences = next(line for line in said if line.startswith("differences")).split()[1:]
        assert np.array(differences, float).max() < 1e-5
