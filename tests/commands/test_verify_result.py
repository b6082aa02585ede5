"""`fcos verify_result`: verdicts on runs and weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fcos_recipe.cli import run
from fcos_recipe.commands import verify_result
from fcos_recipe.commands.config import resolved
from fcos_recipe.config import load_config
from fcos_recipe.runs import judgement
from fcos_recipe.runs.facts import config_facts
from fcos_recipe.runs.published_results import published

BCCD = "fcos_r18_fpn_bccd"


def make_run(folder: Path, root: Path, ap: float, *overrides: str, batch=4, images=87) -> Path:
    """What a run of the BCCD config leaves, with an AP of `ap` percent."""
    folder.mkdir()
    config = load_config(root / f"configs/fcos/{BCCD}.yml", overrides)
    (folder / "config.yml").write_text(resolved(config))
    (folder / "environment.json").write_text(json.dumps({"config": BCCD, "ranks": 2}))
    epochs = config.data["epoch"]
    facts = {"config": {**config_facts(config), "name": BCCD}, "device": "cpu", "cards": 2,
             "total_batch": batch, "epochs": epochs}  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(facts))
    result = {"epoch": epochs, "images": images, "stats": [ap / 100], "names": ["AP"]}
    (folder / "eval.json").write_text(json.dumps(result))
    (folder / "model_final.pdparams").write_bytes(b"")
    speeds = [3.0, 8.0, 8.2, 8.1]  # the first one is of a cold start
    records = [
        {"kind": "train", "epoch": k + 1, "step": 10 * (k + 1), "images_seen": 10 * batch * (k + 1),
         "images_per_second": speed, "images_per_second_per_card": speed / 2}
        for k, speed in enumerate(speeds)
    ]  # fmt: skip
    records.append({"kind": "eval", "epoch": epochs, "step": 40, "AP": ap / 100})
    lines = [json.dumps(record) for record in records] + ['{"kind": "tra']  # cut by a kill
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def band():
    (row,) = published(BCCD)
    return row.ap - row.tolerance, row.ap, row.ap + row.tolerance


@pytest.mark.parametrize("place,code", [("low", 0), ("at", 0), ("below", 1), ("above", 1)])
def test_the_band_decides(place, code, band, root, tmp_path, capsys):
    low, at, high = band
    ap = {"low": low, "at": at, "below": low - 0.1, "above": high + 0.1}[place]
    folder = make_run(tmp_path / "run", root, ap, "seed=7", "EvalDataset.dataset_dir=elsewhere")
    assert run("verify_result", [str(folder), "--json", str(tmp_path / "v.json")]) == code
    out = capsys.readouterr().out
    assert f"{low:.1f} to {high:.1f}" in out and "8.10 images/s in all, 4.05 per card" in out
    word = json.loads((tmp_path / "v.json").read_text())["word"]
    assert word == ("outside" if code else "reproduced") and f"verdict: {word}" in out
    assert (place in out) == (place in ("below", "above"))


@pytest.mark.parametrize(
    "overrides,other,told",
    [
        (["epoch=3"], {}, "epochs: 3, not 10"),
        ([], {"batch": 16}, "images per step: 16, not 4"),
        ([], {"images": 20}, "evaluated images (BCCD val): 20, not 87"),
        (["LearningRate.base_lr=0.1", "LearningRate.base_batch=4"], {}, "LearningRate.base_lr"),
        (["EvalReader.batch_size=1"], {}, "EvalReader.batch_size: 1, not 4"),
        (["pretrain_weights=mine.pdparams"], {}, "pretrain_weights: mine.pdparams"),
        (["TrainDataset.anno_path=x.json"], {}, "TrainDataset.anno_path: x.json"),
    ],
)
def test_another_run_is_told_and_not_judged(overrides, other, told, band, root, tmp_path, capsys):
    folder = make_run(tmp_path / "run", root, band[1], *overrides, **other)
    assert run("verify_result", [str(folder)]) == 2
    out = capsys.readouterr().out
    assert told in out and "verdict: not comparable" in out and "inside" not in out


def test_what_is_no_finished_run(root, tmp_path, capsys):
    assert run("verify_result", [str(tmp_path)]) == 2
    folder = make_run(tmp_path / "run", root, 50)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    result = (folder / "eval.json").read_text()
    (folder / "eval.json").write_text(result.replace('"epoch": 10', '"epoch": 8'))
    assert run("verify_result", [str(folder)]) == 2
    (folder / "eval.json").unlink()  # its AP is in metrics.jsonl as well
    assert run("verify_result", [str(folder)]) == 2
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    assert run("verify_result", [str(folder)]) == 2
    out, err = capsys.readouterr()
    assert "not finished: evaluated after epoch 8 of 10" in out
    assert "evaluated images (BCCD val): unknown, not 87" in out and "reproduced" not in out
    assert "there is no AP (train with --eval)" in out
    assert "not a run: it has no metrics.jsonl, config.yml" in err


def test_a_figure_that_was_not_reproduced_is_shown_as_such(root):
    speed = {"images_per_second": 60.0, "images_per_second_per_card": 7.5}
    found = judgement.Found("fcos_r50_fpn_1x_coco", 39.35, 5000, 16, 12, speed)
    verdict = judgement.judge(found)
    text = "\n".join(verify_result.lines_of(verdict))
    assert verdict.word == judgement.REPRODUCED  # of the two rows one is near enough
    assert judgement.judge(replace(found, ap=39.25)).nearest.row.ap == 39.6  # 39.7 - 0.4 is missed
    assert text.count("not reproduced by this project") == 2
    assert "BI-V100 x 8" in text and "8.24 images/s per card, most likely" in text


@pytest.mark.e2e
def test_weights_are_measured(tiny, shapes, tmp_path, monkeypatch, capsys):
    """The demo's config, on other data: measured, and told that it is not the published set."""
    assert run("train", ["-c", str(tiny), "--output", str(tmp_path / "run"), "-o", "epoch=1"]) == 0
    weights = tmp_path / "run" / "model_final.pdparams"
    demo = tmp_path / "fcos_r18_fpn_demo.yml"
    demo.write_text(tiny.read_text())
    capsys.readouterr()
    assert run("verify_result", ["--weights", str(weights), "-c", str(demo)]) == 2
    assert "weights of tiny, not of fcos_r18_fpn_demo" in capsys.readouterr().err
    weights.with_suffix(".json").unlink()
    assert run("verify_result", ["--weights", str(weights), "-c", str(demo)]) == 2
    out = capsys.readouterr().out
    assert "evaluated images (generated shapes): 8, not 100" in out
    assert "TrainReader" not in out, "how weights were trained is not the evaluation's business"
    assert run("verify_result", ["--weights", str(weights), "-c", str(tiny)]) == 2
    assert "nothing is published for this config" in capsys.readouterr().err
