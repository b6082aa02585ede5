"""A training step copies its batch to the card and one value back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.card.plugin import environment

pytestmark = pytest.mark.card
PROGRAM = Path(__file__).with_name("steps.py")


@pytest.mark.parametrize(
    "more", [(), ("use_ema=true",), ("TrainReader.batch_size=2", "accumulate=2")]
)
def test_a_step_copies_its_batch_to_the_card_and_one_value_back(tiny, tmp_path, more):
    options = ["device=iluvatar_gpu", "log_iter=100", "epoch=1", *more]
    command = [sys.executable, PROGRAM, tiny, *options]
    env = environment(trace=tmp_path / "trace")
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    # the first step makes the constants of the model; the last one is followed by a log line
    steps = steps[2:-1]
    assert all(step["asked"]["d2h"]["calls"] == 1 for step in steps)
    copied = [step["asked"].get("h2d", {"calls": 0, "bytes": 0}) for step in steps]
    batches = [batch for step in steps for batch in step["batches"]]
    # batches are copied ahead: one more may fall into these steps than they have used
    assert sum(c["calls"] for c in copied) <= sum(map(len, batches)) + len(batches[0])
    assert sum(c["bytes"] for c in copied) <= sum(map(sum, batches)) + 2 * max(map(sum, batches))
    # the data loader's thread waits twice for each batch that it has copied
    synchronised = sum(step["asked"]["sync-stream"]["calls"] for step in steps)
    assert synchronised <= sum(c["calls"] for c in copied) + len(steps) + 2 * (len(batches) + 1)
