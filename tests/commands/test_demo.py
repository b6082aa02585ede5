"""The demo prints exactly what its run measured."""

import json
import subprocess

import pytest

from fcos_recipe.commands import demo
from fcos_recipe.errors import UserError


def test_summary_reads_the_run(tmp_path):
    names = ["AP", "AP50", "AP75"]
    evaluation = {"stats": [0.25, 0.5, 0.2], "names": names, "images_per_second": 9.0}
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    records = [
        {"kind": "train", "images_per_second": v, "images_per_second_per_card": v / 2}
        for v in (2.0, 12.0, 10.0)  # the first stretch, a cold start, does not count
    ]
    records.append({"kind": "eval", "images_per_second": 99.0})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    found = demo.summary(tmp_path)
    assert (found["AP"], found["AP50"]) == (0.25, 0.5)
    assert found["images_per_second"] == 11.0 and found["evaluation_images_per_second"] == 9.0
    with pytest.raises(UserError):
        demo.summary(tmp_path / "none")


def test_help(root):
    done = subprocess.run(
        ["bash", root / "scripts/demo.sh", "--help"], capture_output=True, text=True, check=True
    )
    assert "example: bash scripts/demo.sh" in done.stdout


def test_every_override_reaches_training(monkeypatch):
    class Trained(Exception):
        pass

    def train(config, *, overrides, **more):
        assert overrides == ["epoch=1", "seed=2", "log_iter=1"] and more["evaluate"]
        raise Trained

    monkeypatch.setattr(demo, "draw", lambda output: 0)
    monkeypatch.setattr(demo.api, "train", train)
    with pytest.raises(Trained):
        demo.main(["-o", "epoch=1", "seed=2", "-o", "log_iter=1"])


@pytest.mark.e2e
@pytest.mark.slow
def test_small_demo(root, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    config = root / "configs/fcos/fcos_r18_fpn_demo.yml"
    settings = ["epoch=1", "eval_interval=1", "log_iter=1", "TrainDataset.sample_num=16"]
    assert demo.main(["-c", str(config), "--output", "out", "-o", *settings]) == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert len(result["stats"]) == 12 and result["images"] == 100
    assert sum(row["instances"] for row in result["per_class"]) == result["instances"] > 250
    assert set(result["steps"]) == {"install", "data", "train", "predict"}
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == (
        f"RESULT AP={result['AP']:.3f} AP50={result['AP50']:.3f} images_per_second="
        f"{result['images_per_second']:.2f} seconds={result['seconds']:.0f}"
    )
    assert len(list((tmp_path / "out/drawn").glob("*.jpg"))) == 9
    # a run that fails ends the demonstration
    with pytest.raises(UserError, match="epochs"):
        demo.main(["-c", str(config), "-o", "epochs=1"])
