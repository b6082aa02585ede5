"""Mixed precision, which Paddle disables on the CPU: half kernels, master weights, loss scale."""

import json
import math

import paddle
import pytest

from tests.card.runs import records, tool

pytestmark = [pytest.mark.card, pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_amp_trains_evaluates_and_skips_steps_that_overflow(tiny, tmp_path, level, dtype):
    """A loss scale of 2^40 overflows in float16 until the scaler has lowered it."""
    said = tool("train", "-c", tiny, "--amp", "--output", "run", "--eval", "-o", "device=auto",
                "epoch=1", f"amp_level={level}", f"amp_dtype={dtype}",
                f"init_loss_scaling={2**40}", cwd=tmp_path)  # fmt: skip
    if dtype == "bfloat16" and paddle.__version__.startswith("3.0."):
        assert "amp: off" in said  # auto_cast knows no bfloat16 on a plugin's device there
        return
    assert "amp: off" not in said
    rows = records(tmp_path / "run", "train")
    assert len(rows) == 6 and all(math.isfinite(row["loss"]) for row in rows)
    # of the same images and weights in float32 it is 2.762817 (to be seen in test_train's runs)
    assert rows[0]["loss"] == pytest.approx(2.7628, rel=0.02) and rows[0]["loss"] != 2.762817
    state = json.loads((tmp_path / "run" / "checkpoints" / "0001" / "state.json").read_text())
    if dtype == "float16":
        assert state["scaler"]["scale"] == 2.0**34  # every one of the six steps overflowed
    else:
        assert state["scaler"] == {}


def test_deformable_convolution_without_a_half_kernel_is_refused(tiny, tmp_path):
    said = tool("train", "-c", tiny, "--amp", "-o", "device=auto", "amp_level=O2",
                "ResNet.dcn_v2_stages=[1]", cwd=tmp_path, code=2)  # fmt: skip
    assert "Traceback" not in said
    assert "deformable_conv in float16" in said and said.rstrip().endswith("set amp_level: O1")


def test_the_doctor_names_kernels_that_the_card_lacks(tiny, tmp_path):
    check = ["doctor", "--no-comm", "-c", tiny, "-o", "device=auto", "amp=true"]
    assert "ok   amp            no kernel is missing" in tool(*check, cwd=tmp_path, code=0)
    dcn = ["amp_level=O2", "ResNet.dcn_v2_stages=[1]"]
    said = tool(*check, *dcn, cwd=tmp_path, code=1)
    assert "FAIL amp" in said and "deformable_conv in float16" in said
    assert "-> set amp_level: O1" in said
