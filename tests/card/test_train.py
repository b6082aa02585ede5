"""Training on stand-in cards equals training on the CPU, on any card and under any memory model."""

import json
import os
import re
import signal

import pytest

from tests.card.runs import (
    assert_same_run,
    of_processes,
    records,
    script,
    start,
    tool,
    traced,
)

pytestmark = [pytest.mark.card, pytest.mark.e2e]
SHORT = ["--eval", "-o", "epoch=1", "use_ema=true"]


@pytest.fixture(scope="module")
def cpu_run(tiny, tmp_path_factory):
    """One epoch with moving averages and an evaluation, on the CPU."""
    folder = tmp_path_factory.mktemp("cpu")
    tool("train", "-c", tiny, "--output", "run", *SHORT, "device=cpu", cwd=folder, cards=0)
    return folder / "run"


def test_one_card_equals_the_cpu(tiny, cpu_run, tmp_path):
    said = tool("train", "-c", tiny, "--output", "run", *SHORT, "device=auto", cwd=tmp_path,
                cards=2, trace=tmp_path / "trace")  # fmt: skip
    assert "device: iluvatar_gpu" in said and "model: 2.84 M parameters on iluvatar_gpu" in said
    assert_same_run(cpu_run, tmp_path / "run")
    assert (cpu_run / "eval.json").is_file()
    one, two = (json.loads((p / "eval.json").read_text()) for p in (cpu_run, tmp_path / "run"))
    assert one["stats"] == two["stats"] and one["stats"][0] >= 0
    found = traced(tmp_path / "trace")
    assert set(found) == {0} and found[0]["allocate"] and found[0]["d2h"]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["device"] == (
        "iluvatar_gpu"
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["late", "protect"])
def test_no_missing_synchronisation_and_no_memory_of_the_card_read_from_the_host(
    tiny, cpu_run, tmp_path, mode
):
    """late: asynchronous copies run when waited for. protect: host access is a SIGSEGV."""
    tool("train", "-c", tiny, "--output", "run", *SHORT, "device=auto", cwd=tmp_path, **{mode: 1})
    assert_same_run(cpu_run, tmp_path / "run")


@pytest.mark.slow
def test_two_cards_equal_two_processes_on_the_cpu(tiny, tmp_path):
    for name, cards in (("card", 2), ("cpu", 0)):
        script("train", tiny, "--gpus", 2, "--output", name, "--eval", "-o",
               f"device={'auto' if cards else 'cpu'}", "epoch=1", cwd=tmp_path, cards=cards,
               **({"trace": tmp_path / "trace"} if cards else {}))  # fmt: skip
    assert_same_run(tmp_path / "cpu", tmp_path / "card")
    ranks = of_processes(tmp_path / "trace", "all_reduce")
    assert sorted(map(sorted, ranks.values())) == [[0], [1]]  # each rank on a card of its own
    assert sorted(map(sorted, of_processes(tmp_path / "trace", "h2d").values())) == [[0], [1]]


@pytest.mark.slow
def test_eight_cards_train_and_evaluate(tiny, tmp_path):
    """scripts/train_8gpu.sh, unchanged, for three steps of eight single images."""
    script("train_8gpu", tiny, "--output", "run", "--eval", "-o", "device=auto", "epoch=1",
           "TrainReader.batch_size=1", cwd=tmp_path, cards=8, trace=tmp_path / "trace")  # fmt: skip
    ranks = of_processes(tmp_path / "trace", "all_reduce")
    assert sorted(map(sorted, ranks.values())) == [[k] for k in range(8)]
    assert [row["step"] for row in records(tmp_path / "run", "train")] == [1, 2, 3]
    tool("eval", "-c", tiny, "--weights", "run/model_final.pdparams", "--json", "cpu.json",
         "--no-plots", cwd=tmp_path, cards=0)  # fmt: skip
    cpu = json.loads((tmp_path / "cpu.json").read_text())
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["stats"] == cpu["stats"]


@pytest.mark.slow
def test_a_run_that_was_killed_inside_an_epoch_resumes_to_the_same_bits(tiny, tmp_path):
    arguments = [tiny, "--gpus", 1, "-o", "device=auto", "epoch=1", "use_ema=true",
                 "snapshot_steps=2", "keep_checkpoints=9"]  # fmt: skip
    script("train", *arguments, "--output", "whole", cwd=tmp_path, cards=1)
    process = start("train", *arguments, "--output", "cut", cwd=tmp_path, cards=1)
    for line in process.stdout:
        if re.match(r"saved cut/checkpoints/0000-00000\d ", line):
            break
    os.kill(process.pid, signal.SIGKILL)  # of one card: the script has become the training
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGKILL and "done: " not in rest
    said = script("train", *arguments, "--output", "cut", "--resume", "auto", cwd=tmp_path, cards=1)
    assert re.search(r"resume: .*, 0 epochs and [24] steps done", said)
    assert_same_run(tmp_path / "whole", tmp_path / "cut", ["model_final"])
