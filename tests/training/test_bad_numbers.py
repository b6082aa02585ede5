"""Steps with NaN or infinity: skipped, recorded, handled as the config says."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.cli import run
from fcos_recipe.training import bad_numbers
from fcos_recipe.training.trainer import Trainer


@pytest.fixture
def bad_at(monkeypatch):
    """Make one weight's gradient NaN when the run has done so many steps, each once."""
    backward, left = Trainer._backward, set()

    def spoil(trainer, *args, **kwargs):
        losses = backward(trainer, *args, **kwargs)
        if trainer.progress.steps_done in left:
            left.remove(trainer.progress.steps_done)
            gradient = trainer.model.parameters()[-1].grad
            gradient.set_value(np.full(gradient.shape, np.nan, "float32"))
        return losses

    monkeypatch.setattr(Trainer, "_backward", spoil)
    return left.update


def train(tiny, output, *overrides):
    code = run("train", ["-c", str(tiny), "--output", str(output), "-o", *overrides])
    path = output / "metrics.jsonl"
    return code, [json.loads(line) for line in path.read_text().splitlines()]


def assert_finite(path):
    for value in weights.read(path).values():
        assert np.isfinite(value).all()


@pytest.mark.e2e
def test_stop_applies_and_saves_nothing(tiny, tmp_path, bad_at, capfd):
    bad_at([4])
    code, rows = train(tiny, tmp_path / "run", "snapshot_steps=2")
    error = capfd.readouterr().err.strip()
    assert code == 1 and len(error.splitlines()) == 1
    assert "epoch 1 step 5: the gradients are not finite; the step was not applied" in error
    dump = json.loads((tmp_path / "run" / "bad_steps" / "0000-000005.json").read_text())
    assert (dump["epoch"], dump["step"], dump["what"]) == (1, 5, "gradients")
    assert len(dump["image_ids"][0][0]) == 4 and dump["lr"] == pytest.approx(0.005)
    assert np.isfinite(dump["losses"][0][0]["loss"])
    spoiled = [k for k, v in dump["layers"].items() if v.get("gradient", {}).get("not_finite")]
    assert len(spoiled) == 1 and dump["layers"][spoiled[0]]["weight"]["not_finite"] == 0
    path, _ = storage.newest(tmp_path / "run" / "checkpoints")
    assert path.name == "0000-000004" and [r["step"] for r in rows] == [1, 2, 3, 4]


@pytest.mark.matrix
@pytest.mark.e2e
def test_skip_goes_on_without_the_step_up_to_a_limit(tiny, tmp_path, bad_at, capfd):
    bad_at([3, 7])
    keys = ["bad_numbers.policy=skip", "bad_numbers.max_skips=2"]
    code, rows = train(tiny, tmp_path / "run", *keys)
    assert code == 0 and "skipped (2 of 2)" in capfd.readouterr().out
    assert [r["step"] for r in rows if r["kind"] == "bad_step"] == [3, 7]
    assert [r["step"] for r in rows if r["kind"] == "train"][-1] == 12
    assert_finite(tmp_path / "run" / "model_final.pdparams")
    bad_at([1, 2, 8])
    code, _ = train(tiny, tmp_path / "again", *keys)
    assert code == 1 and "2 earlier steps were not finite" in capfd.readouterr().err


@pytest.mark.matrix
@pytest.mark.e2e
def test_rollback_goes_on_from_the_checkpoint_with_a_lower_lr(tiny, tmp_path, bad_at, capfd):
    bad_at([9])
    keys = ["bad_numbers.policy=rollback", "bad_numbers.lr_factor=0.5", "snapshot_steps=4"]
    code, rows = train(tiny, tmp_path / "run", *keys)
    assert code == 0 and "back to epoch 2 step 2 with LR x 0.5 (1 of" in capfd.readouterr().out
    steps = [r["step"] for r in rows if r["kind"] == "train"]
    assert steps == list(range(1, 13))  # none twice
    rates = [r["lr"] for r in rows if r["kind"] == "train"]
    assert rates[7] == pytest.approx(0.0005) and rates[8:] == pytest.approx([0.00025] * 4)
    assert_finite(tmp_path / "run" / "model_final.pdparams")
    state = storage.read_state(storage.newest(tmp_path / "run" / "checkpoints")[0])
    assert (state["progress"]["lr_factor"], state["progress"]["bad_steps"]) == (0.5, 1)


def test_divergence_is_told_once(monkeypatch):
    class Run:  # the two things that `logged` looks at
        config = SimpleNamespace(data={"bad_numbers": {"diverged": 3.0}})
        scaler = SimpleNamespace(is_enable=lambda: False)

    told = []
    monkeypatch.setattr(bad_numbers.log, "warning", lambda *words: told.append(words[1]))
    guard = bad_numbers.Guard(Run)
    for loss in [1.0] * 6 + [2.9, 3.1, 9.0]:
        guard.logged({"loss": loss})
    assert told == [3.1]
