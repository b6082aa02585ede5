"""Steps with NaN or infinity: skipped, recorded, handled as the config says."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fcos_recipe import api
from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.training import bad_numbers
from fcos_recipe.training.trainer import Trainer
from tests.conftest import ROOT


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


@pytest.fixture
def guard(monkeypatch):
    """A guard of a run that only has what `logged` looks at, and the warnings that it gave."""
    rules = {"policy": "stop", "diverged": 3.0}
    run = SimpleNamespace(
        config=SimpleNamespace(data={"bad_numbers": rules}, path="my.yml"), loader=range(30),
        scaler=SimpleNamespace(is_enable=lambda: False), dataset=SimpleNamespace(box_count=1),
        progress=SimpleNamespace(epoch=0, step=20),
    )  # fmt: skip
    told = []
    monkeypatch.setattr(bad_numbers.log, "warning", lambda text, *words: told.append(text % words))
    return bad_numbers.Guard(run), told


def log_line(guard, losses, box=1.0):
    each = np.array(losses, np.float32)
    parts = {"loss": each, "loss_box": np.full_like(each, box), "loss_quality": each * 0}
    guard.logged({"loss": float(each.mean())}, parts, 0.01)


def test_divergence_is_told_once(guard):
    guard, told = guard
    for loss in [1.0] * 6 + [2.9, 3.1, 9.0]:
        log_line(guard, [loss])
    assert len(told) == 1 and "the loss is 3.1; over 3 times its running median of 1" in told[0]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([2.5, 40.0, 900.0], "314.2; usual is 2 to 5 in the first steps, and it was 2.5 in the"),
        ([6.7e6, 6.7e6], "6.7e+06; usual is 2 to 5 in the first steps: the run is diverging at LR"),
        ([9.0, 30.0, 80.0], ""),  # below ten times the start
        ([500.0, 700.0], ""),  # a loss of the user's that starts higher
    ],
)
def test_a_loss_that_explodes_before_the_first_log_line_is_told(guard, losses, says):
    guard, told = guard
    log_line(guard, losses)
    log_line(guard, losses)
    assert len(told) == bool(says) and says in "".join(told)


def test_steps_without_a_box_are_told(guard):
    guard, told = guard
    for _ in range(3):
        log_line(guard, [1.0] * 20, box=0.0)
        log_line(guard, [1.0] * 9)
    assert not told
    for _ in range(2):  # an epoch has 30 batches
        log_line(guard, [1.0] * 15, box=0.0)
    (line,) = told
    assert line.startswith("warning: epoch 1 step 20: no box was trained on in the last 30 batches")


@pytest.mark.e2e
def test_warnings_of_a_run(tiny, shapes, tmp_path, capfd):
    train(tiny, tmp_path / "hot", "LearningRate.base_lr=50", "epoch=1", "log_iter=3",
                    "OptimizerBuilder={optimizer: {type: Momentum, momentum: 0.9}}")  # fmt: skip
    out = capfd.readouterr().out
    assert out.count("the run is diverging at LR 50") == 1
    content = json.loads((shapes / "annotations" / "instances_train.json").read_text())
    content["annotations"] = []
    (tmp_path / "none.json").write_text(json.dumps(content))
    train(tiny, tmp_path / "none", f"TrainDataset.anno_path={tmp_path / 'none.json'}", "epoch=1")
    assert "none of the 24 training images has a box" in capfd.readouterr().out


def test_skip_restores_the_statistics_of_batch_norm(tiny):
    trainer = Trainer(load_config(tiny, ["bad_numbers.policy=skip"]), "cpu")
    guard = bad_numbers.Guard(trainer)
    trainer.model.train()
    guard.before_step()
    before = [copy.numpy() for _, copy in guard._buffers]
    assert before
    trainer._backward(trainer.model, next(iter(trainer.loader)), synchronise=True)
    trainer.loader.close()
    assert not np.array_equal(before[0], guard._buffers[0][0].numpy())
    for (_, copy), value in zip(guard._buffers, before):
        np.testing.assert_array_equal(copy.numpy(), value)


REAL = {  # config: its data among the shared ones, and overrides for a test of seconds
    "fcos_r18_fpn_demo": ("", []),
    "fcos_r18_fpn_bccd": ("bccd", ["TrainDataset.sample_num=40"]),
    # a network without pretrained weights needs norms that learn
    "fcos_r50_fpn_1x_coco": ("coco_mini", [
        "TrainDataset.sample_num=12", "TrainReader.batch_size=2", "pretrain_weights=''",
        "ResNet.freeze_norm=false", "ResNet.freeze_at=-1",
        "TrainReader.sample_transforms=[{Decode: {}}, {Resize: {target_size: [160, 256], "
        "keep_ratio: true, interp: 1}}, {NormalizeImage: {}}, {RandomFlip: {}}]",
    ]),
}  # fmt: skip


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_normal_first_steps_give_no_warning(name, shapes, shared, tmp_path):
    """Logged after every step, so that one image that is far off would count most."""
    data, overrides = REAL[name]
    folder = shared / "data" / data if data else shapes
    told: list[str] = []
    result = api.train(
        ROOT / "configs/fcos" / f"{name}.yml", output=tmp_path / name, log_to=told.append,
        device="cpu", overrides=[f"TrainDataset.dataset_dir={folder}", "epoch=1", "log_iter=1",
                                 "worker_num=0", *overrides],
    )  # fmt: skip
    losses = [record["loss"] for record in result.records()]
    assert 6 <= len(losses) == result.steps and 1 < losses[0] < 10
    assert not [line for line in told if "diverging" in line or "box was trained" in line
                or "has a box" in line]  # fmt: skip
