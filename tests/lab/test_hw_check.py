"""scripts/hw_check.sh without cards: its records, and a complete small run."""

import json
import os
import subprocess

import pytest
import yaml

from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.lab import hw_check
from fcos_recipe.lab.hw_check import Check, counts


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(hw_check, "GRACE", 1)
    check = Check(tmp_path, 60, {"format": 1})
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    assert check.run("good", ["-c", "print(6 * 7)"], 20, lambda out: {"answer": int(out)})
    assert not check.run("bad", ["-c", "print('why'); raise SystemExit(3)"], 20)
    assert not check.run("hangs", ["-c", f"{stubborn}; time.sleep(60)"], 2)
    assert not check.run("lies", ["-c", "print('done')"], 20, lambda out: {"answer": int(out)})
    assert check.run("warns", ["-c", "raise SystemExit(1)"], 20, good=(0, 1))
    assert not check.run("late", ["-c", "pass"], 20, reserve=55)
    steps = json.loads((tmp_path / "hw_check.json").read_text())["steps"]
    assert [(s["name"], s["status"]) for s in steps] == [
        ("good", "ok"), ("bad", "failed"), ("hangs", "timeout"), ("lies", "failed"),
        ("warns", "ok"), ("late", "skipped"),
    ]  # fmt: skip
    assert steps[0]["answer"] == 42
    assert steps[1]["output"] == ["why"] and "3" in steps[1]["reason"]
    assert steps[2]["seconds"] < 20


def test_a_run_that_did_not_train_is_a_failure(tmp_path):
    row = {"kind": "train", "epoch": 1, "step": 3, "loss": 1.0, "images_per_second": 2.0,
           "images_per_second_per_card": 1.0, "data_time": 0.1, "memory_mib": 7}  # fmt: skip
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert hw_check.read_training(tmp_path, 3)["images_per_second"] == 2.0
    with pytest.raises(ValueError, match="expected 200 steps"):
        hw_check.read_training(tmp_path, 200)
    path.write_text(json.dumps({**row, "loss": float("nan")}) + "\n")
    with pytest.raises(ValueError, match="not finite"):
        hw_check.read_training(tmp_path, 3)


def test_numbers_of_cards():
    assert counts(8, None) == [1, 2, 4, 8] and counts(3, None) == [1, 2] and counts(1, None) == [1]
    assert counts(8, [8, 1]) == [1, 8]
    with pytest.raises(UserError, match="2 are visible"):
        counts(2, [4])


def test_the_full_size_is_the_headline_config(tmp_path):
    """On cards nothing of the published training is changed but the data (NMS is not training)."""
    path = tmp_path / "hw.yml"
    hw_check.write_config(path, tmp_path, (800, 1333), backbone=True, log=20)
    assert set(yaml.safe_load(path.read_text())) == {
        "_BASE_", "num_classes", "epoch", "log_iter", "snapshot_minutes", "TrainDataset",
        "EvalDataset", "TestDataset", "FCOSHead",
    }  # fmt: skip
    config = load_config(path)
    assert set(yaml.safe_load(path.read_text())["FCOSHead"]) == {"nms"}
    assert config.data["TrainReader"]["batch_size"] == 2 and config.warnings == []
    hw_check.write_config(path, tmp_path, (800, 1333), backbone=False, log=20)
    assert load_config(path).data["ResNet"]["freeze_norm"] is False


@pytest.mark.parametrize(
    "steps, words, good",
    [
        ("train-1-fp32=ok train-1-amp=skipped export=ok", "2 done, 0 failed, 1 skipped (tr", True),
        ("train-1-fp32=ok export=timeout", "1 done, 1 failed (export), 0 skipped", False),
        ("doctor=ok train-1-fp32=skipped", "nothing was measured", False),
        ("doctor=skipped train-1-fp32=skipped", "0 done, 0 failed, 2 skipped", False),
    ],
)
def test_a_check_that_measured_nothing_has_not_succeeded(steps, words, good):
    rows = [dict(zip(("name", "status"), word.split("="))) for word in steps.split()]
    line, measured = hw_check.summary(rows)
    assert words in line and measured is good


@pytest.mark.slow
@pytest.mark.e2e
def test_the_whole_check_in_miniature(root, tmp_path):
    done = subprocess.run(
        ["bash", str(root / "scripts/hw_check.sh"), "--quick", "--cards", "1", "--output",
         str(tmp_path / "hw"), "--steps", "2"],
        env={**os.environ, "DEVICE": "cpu"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "hw" / "hw_check.json").read_text())
    steps = {step["name"]: step for step in found["steps"]}
    assert list(steps) == ["doctor", "train-1-fp32", "train-1-amp", "evaluate", "export", "resume"]
    assert steps["train-1-amp"]["reason"] == "AMP is not measured on a CPU"
    assert steps["train-1-fp32"]["images_per_second"] > 0 and steps["resume"]["steps"] == 2
    assert found["device"] == "cpu" and found["environment"]["packages"]["paddledet"] == "2.6.0"
