"""With `reduce_positives` the number of cards does not change the gradient of the same images."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
SCRIPT = ROOT / "tests" / "evaluation" / "gradients_of_ranks.py"


def gradients(tmp_path, config, ranks: int, batch: int, indices: list[int], reduce: bool) -> dict:
    """Gradients that `ranks` processes agree on; rank r takes batch number `indices[r]`."""
    name = f"{ranks}_{reduce}"
    text = f"""\
_BASE_: ['{config}']
TrainReader: {{batch_size: {batch}}}
FCOSHead: {{fcos_loss: {{reduce_positives: {str(reduce).lower()}}}}}
"""
    path, out = tmp_path / f"{name}.yml", tmp_path / f"{name}.npz"
    path.write_text(text)
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
        command += ["--log_dir", str(tmp_path / "log")]
    command += [str(SCRIPT), str(path), str(out), *map(str, indices)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return dict(np.load(out))


def distance(a: dict, b: dict) -> float:
    assert a.keys() == b.keys() and a
    whole = [np.concatenate([side[k].ravel() for k in sorted(a)]) for side in (a, b)]
    return float(np.linalg.norm(whole[0] - whole[1]) / np.linalg.norm(whole[1]))


def test_two_ranks_of_batch_4_are_one_of_8(tiny, tmp_path):
    """Images of one size: padding cannot differ."""
    one = gradients(tmp_path, tiny, 1, 8, [0], True)
    assert distance(gradients(tmp_path, tiny, 2, 4, [0, 1], True), one) <= 1e-5
    # without it each rank divides by its own positives: another gradient
    assert distance(gradients(tmp_path, tiny, 2, 4, [0, 1], False), one) > 1e-4
