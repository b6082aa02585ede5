"""scripts/run_and_time.sh: from a config to a RESULT line."""

import json
import os
import subprocess

import pytest

from fcos_recipe.commands.run_and_time import main
from fcos_recipe.errors import UserErrors


def test_missing_data_are_told_before_the_clock_runs(root, tmp_path):
    config = root / "configs/fcos/fcos_r18_fpn_bccd.yml"
    with pytest.raises(UserErrors, match="TrainDataset.dataset_dir"):
        main([str(config), "--output", str(tmp_path / "run"),
              "-o", "TrainDataset.dataset_dir=/nowhere"])  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
def test_a_run_ends_with_its_result(root, tiny, tmp_path):
    run = tmp_path / "run"
    command = ["bash", str(root / "scripts/run_and_time.sh"), str(tiny), "--output", str(run)]
    done = subprocess.run(
        [*command, "--seed", "5"], env={**os.environ, "DEVICE": "cpu"}, capture_output=True,
        text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    word, *pairs = done.stdout.splitlines()[-1].split(" ")
    told = dict(pair.split("=", 1) for pair in pairs)
    found = json.loads((run / "result.json").read_text())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert word == "RESULT" and told["verdict"] == "nothing_published"
    assert float(told["AP"]) == pytest.approx(100 * records[-1]["AP"], abs=0.005)
    spent = records[-1]["time"] - records[0]["time"]
    assert spent < float(told["time_to_train_s"]) < spent + 200, "imports and set-up count"
    assert found["epochs"] == 2 and found["total_batch"] == 4 and found["ranks"] == 1
    assert "seed: 5" in (run / "config.yml").read_text()
