"""Card faults end as documented in docs/reliability.md: rank, reason and exit code."""

import pytest

from fcos_recipe import exit_codes
from fcos_recipe.launch.supervise import ALL_WAIT
from tests.card.runs import records, script, tool

pytestmark = [pytest.mark.card, pytest.mark.e2e]
LIMITS = ["watchdog.step=8", "watchdog.save=8", "watchdog.eval=8"]


def test_a_full_card_is_one_line_with_advice(tiny, tmp_path):
    said = tool("train", "-c", tiny, "--output", "run", "-o", "device=auto", cwd=tmp_path,
                fault="memory:bytes=8000000", code=exit_codes.FAILED)  # fmt: skip
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "Traceback" not in said
    for words in ("card iluvatar_gpu:0: out of memory", "4 images per card in float32",
                  "lower TrainReader.batch_size", "use --amp"):  # fmt: skip
        assert words in told[0]


@pytest.mark.slow
def test_the_rank_whose_card_is_full_is_named(tiny, tmp_path):
    said = script("train", tiny, "--gpus", 2, "--output", "run", "-o", "device=auto",
                  cwd=tmp_path, cards=2, fault="memory:rank=1:bytes=30000000",
                  code=exit_codes.FAILED)  # fmt: skip
    (line,) = [x for x in said.splitlines() if "failed first" in x]
    assert "rank 1 of 2 failed first" in line and "card iluvatar_gpu:1 of rank 1" in line


@pytest.mark.slow
def test_an_error_of_a_collective_names_its_rank(tiny, tmp_path):
    said = script("train", tiny, "--gpus", 2, "--output", "run", "-o", "device=auto",
                  cwd=tmp_path, cards=2, fault="error:rank=1:collective=111",
                  code=exit_codes.FAILED)  # fmt: skip
    assert "rank 1 of 2 failed first: exit code 1: OSError" in said
    assert "CustomDevice error, the error code is : 4" in said


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again_by_itself(tiny, tmp_path):
    said = script("train", tiny, "--gpus", 2, "--output", "run", "--max-restarts", 1, "-o",
                  "device=auto", "epoch=2", "snapshot_steps=1", cwd=tmp_path, cards=2,
                  fault="death:rank=1:collective=126", fault_once=tmp_path / "died")  # fmt: skip
    assert "rank 1 of 2 failed first: exit code 9" in said and "restart 1 of 1" in said
    assert [row["step"] for row in records(tmp_path / "run", "train")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_collective_that_hangs_ends_the_run(tiny, tmp_path):
    """Both ranks wait in the same collective, so the hanging one can't be identified."""
    said = script("train", tiny, "--gpus", 2, "--output", "run", "-o", "device=auto", *LIMITS,
                  cwd=tmp_path, cards=2, fault="hang:rank=1:collective=111",
                  code=exit_codes.HUNG)  # fmt: skip
    assert f"launch: {ALL_WAIT}" in said and "failed first" not in said
    told = [line for line in said.splitlines() if line.startswith("launch: rank ")]
    assert sorted(line.split()[2].strip(":") for line in told) == ["0", "1"]
    for line in told:
        assert "phase step at step 1" in line and "main thread in backward" in line
