"""Numbers equal stock's: both trainers get the same weights and real images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fcos_recipe.system import cpu_math
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.stock, pytest.mark.e2e]

STEPS = 30
CONFIGS = {
    "ours": ROOT / "configs/fcos/fcos_r50_fpn_1x_coco.yml",
    "stock": ROOT / "tests/fixtures/paddledet_tree/configs/fcos/fcos_r50_fpn_1x_coco.yml",
}


@pytest.fixture(scope="module")
def run(shared, tmp_path_factory):
    """Run one side: run(side, steps, ...) -> its results; same images, threads and settings."""
    folder = tmp_path_factory.mktemp("parity")
    overrides = [
        ("TrainDataset.dataset_dir", str(shared / "data" / "coco_mini")),
        ("TrainDataset.sample_num", 2 * STEPS),  # an epoch at batch 2
        ("save_dir", str(folder / "output")),
        ("worker_num", 0),
        ("ResNet.depth", 18),
        ("OptimizerBuilder.clip_grad_by_norm", 10.0),  # no pretrained backbone
        # 500 steps of warm-up would outlast these epochs: stock's LR then collapses, ours does not
        ("LearningRate.schedulers", [
            {"name": "PiecewiseDecay", "gamma": 0.1, "milestones": [8, 11]},
            {"name": "LinearWarmup", "start_factor": 0.3, "steps": 200},
        ]),
        # no flip: the two sides draw from different generators
        ("TrainReader.sample_transforms", [
            {"Decode": {}},
            {"Resize": {"target_size": [128, 224], "keep_ratio": True, "interp": 1}},
            {"NormalizeImage": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                                "is_scale": True}},
        ]),
    ]  # fmt: skip
    count = iter(range(100))

    def work(side, steps, more=(), start=None, resume=None, save=None, gradients=False):
        setup_file = folder / f"setup{next(count)}.json"
        out = setup_file.with_suffix(".npz")
        more = [("LearningRate.base_lr", 0.001), *more]
        more += [("scale_lr", False)] if side == "ours" else []
        setup_file.write_text(
            json.dumps(
                {
                    "config": str(CONFIGS[side]), "overrides": overrides + more,
                    "steps": steps, "out": str(out), "gradients": gradients,
                    "start": start and str(start), "resume": resume and str(resume),
                    "save": save and str(save),
                }
            )
        )  # fmt: skip
        environment = {**os.environ, **cpu_math.settings(2), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("side.py"), side, setup_file],
            env=environment, cwd=folder, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(np.load(out))

    work.folder = folder
    return work


@pytest.fixture(scope="module")
def trained(run):
    """Weights to start from, trained a little: frozen norms over random weights prove little."""
    warm = [
        ("ResNet.freeze_norm", False),
        ("ResNet.freeze_at", -1),
        ("LearningRate.base_lr", 0.005),
    ]
    results = run("ours", STEPS, warm, save=run.folder / "trained")
    boxes = results["losses"][:, 1]
    assert boxes[-10:].mean() < boxes[:10].mean()
    return run.folder / "trained" / "checkpoints" / "0001" / "model"


@pytest.fixture(scope="module")
def thirty_steps(run, trained):
    """Results of both sides over 30 steps; each leaves a checkpoint."""
    return {
        side: run(side, STEPS, start=trained, gradients=True, save=run.folder / f"{side}_end")
        for side in ("stock", "ours")
    }


def parts(results: dict, kind: str) -> dict:
    return {k: v for k, v in results.items() if k.startswith(kind + "/")}


def check_close(ours: dict, stock: dict, kind: str, tolerance: float) -> None:
    """Every tensor of a kind, relative to that tensor's norm in stock."""
    expected, found = parts(stock, kind), parts(ours, kind)
    assert expected.keys() == found.keys() and expected
    for name, value in expected.items():
        difference, size = np.linalg.norm(found[name] - value), np.linalg.norm(value)
        assert difference <= tolerance * size, (name, difference, size)


def test_loss_and_gradients_of_a_batch(thirty_steps):
    ours, stock = thirty_steps["ours"], thirty_steps["stock"]
    np.testing.assert_array_equal(ours["im_id"], stock["im_id"])
    np.testing.assert_allclose(ours["losses"][0], stock["losses"][0], rtol=1e-5)
    check_close(ours, stock, "gradient", 1e-5)
    # the boxes' branch is alive
    assert np.abs(stock["gradient/fcos_head.fcos_head_reg.weight"]).max() > 1e-4


def test_thirty_steps(thirty_steps):
    ours, stock = thirty_steps["ours"]["losses"], thirty_steps["stock"]["losses"]
    assert ours.shape == (STEPS, 4)
    assert np.ptp(stock[:, 3]) > 1e-3  # it trains, and on different images
    np.testing.assert_allclose(ours, stock, rtol=1e-4)


@pytest.mark.parametrize("writer", ["stock", "ours"])
def test_checkpoints_load_both_ways(run, thirty_steps, writer):
    """Each side goes on from either's checkpoint to the same losses, weights and velocities."""
    path = run.folder / f"{writer}_end"
    if writer == "ours":
        path = path / "checkpoints" / "0001" / "model"
    ours, stock = (run(side, 3, resume=path) for side in ("ours", "stock"))
    assert ours["epoch"] == stock["epoch"] == 1
    np.testing.assert_allclose(ours["losses"], stock["losses"], rtol=1e-4)
    check_close(ours, stock, "velocity", 1e-2)  # lost ones would be off by all of it
    check_close(ours, stock, "weight", 1e-3)
