"""The warning about an unusual loss early in a run."""

import json

import pytest
import yaml

from fcos_recipe.cli import run
from fcos_recipe.runs import loss_band, published_results
from fcos_recipe.runs.published_results import Band, Results


def test_the_mean_is_weighted_by_steps_in_the_window():
    stretches = [(0, 30, 9.0), (30, 60, 3.0), (60, 110, 1.0)]
    # steps 51 to 100: ten of the second stretch, forty of the third
    assert loss_band.mean_before(100, stretches) == pytest.approx((10 * 3 + 40 * 1) / 50)
    assert loss_band.mean_before(100, stretches[2:]) is None, "ten steps are unknown"


def test_a_band_of_runs(root, tmp_path, capsys):
    from tests.commands.test_verify_result import make_run

    folders = [make_run(tmp_path / f"run{k}", root, 50.0, f"seed={k}") for k in (0, 1)]
    for folder, loss in zip(folders, (1.0, 1.4)):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
                if line.endswith("}")]  # fmt: skip
        for row in rows[:4]:
            row.update(step=row["step"] * 5, loss=loss, images_seen=row["images_seen"] * 5)
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert loss_band.main([str(folder) for folder in folders]) == 0
    (band,) = yaml.safe_load(capsys.readouterr().out)
    # step 500 was not reached; twice the range of 0.4 around the mean of 1.2
    assert band["steps"] == {100: [pytest.approx(0.4), pytest.approx(2.0)]}
    assert (band["config"], band["total_batch"]) == ("fcos_r18_fpn_bccd", 4)
    assert loss_band.band_of([1.0, 1.01]) == (0.804, 1.206)


def feed(sink, losses: dict, every=25, start=0):
    for step in range(start + every, max(losses) + 1, every):
        loss = losses[min(s for s in losses if s >= step)]
        sink({"kind": "train", "epoch": 1, "step": step, "loss": loss})


@pytest.mark.parametrize("loss,warned", [(1.2, False), (2.5, True), (0.2, True)])
def test_outside_is_told_once(loss, warned, caplog):
    band = Band("mine", 4, {100: (1.0, 1.5), 500: (0.5, 1.0)}, "three seeds")
    with caplog.at_level("WARNING", "fcos"):
        import logging

        logging.getLogger("fcos").propagate = True
        feed(loss_band.LossBand(band), {50: 9.0, 450: loss, 500: 0.7})
    assert len(caplog.messages) == warned
    if warned:
        assert f"loss {loss:.3f} around step 100" in caplog.messages[0]
        assert "1.000 to 1.500" in caplog.messages[0] and "three seeds" in caplog.messages[0]


@pytest.fixture
def banded(monkeypatch):
    """results.yml with an impossible band for a config of the project."""

    def put(**band):
        found = Results(published_results.load().rows, (Band(**{"source": "a test", **band}),))
        monkeypatch.setattr(loss_band, "load", lambda: found)

    return put


class Sinks(list):
    add_sink = list.append


@pytest.mark.parametrize(
    "overrides,batch,watched",
    [([], 4, True), (["seed=9", "EvalDataset.dataset_dir=/data"], 4, True), ([], 8, False),
     (["LearningRate.base_lr=0.5", "LearningRate.base_batch=4"], 4, False)],
)  # fmt: skip
def test_only_the_same_training_is_watched(overrides, batch, watched, banded, root):
    from fcos_recipe.config import load_config

    banded(config="fcos_r18_fpn_demo", total_batch=4, steps={100: (0.1, 0.2)})
    sinks = Sinks()
    config = load_config(root / "configs/fcos/fcos_r18_fpn_demo.yml", overrides)
    loss_band.watch(sinks, config, batch)
    assert bool(sinks) == watched


@pytest.mark.e2e
def test_a_run_warns_and_goes_on(tiny, tmp_path, banded, monkeypatch):
    monkeypatch.setattr(loss_band, "WINDOW", 2)
    monkeypatch.setattr("fcos_recipe.runs.judgement.differing", lambda *_: [])
    banded(config="tiny", total_batch=4, steps={4: (0.001, 0.002)})
    path = tmp_path / "run"
    assert run("train", ["-c", str(tiny), "--output", str(path), "-o", "epoch=1"]) == 0
    assert (path / "log.txt").read_text().count("around step 4; runs of tiny had 0.001") == 1
    steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 7))
