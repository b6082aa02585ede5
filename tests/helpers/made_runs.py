"""Make run directories like those of training, from real images without training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcos_recipe.config import load_config
from fcos_recipe.config.resolved import resolved
from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.evaluation.analysis import finish_evaluation
from fcos_recipe.evaluation.metric import CocoMetric
from fcos_recipe.runs.facts import config_facts, dataset_facts


def judged(annotations: Path, images: Path | None, seed: int = 0, noise: float = 3.0) -> CocoMetric:
    """An evaluation whose detections are moved annotations, some wrong and some missing."""
    content = json.loads(annotations.read_text())
    metric = CocoMetric(annotations, engine="hotcoco")
    draw = np.random.default_rng(seed)
    ids = [c["id"] for c in content["categories"]]
    for row in content["annotations"]:
        kept, wrong = draw.random(2)
        if kept < 0.15:
            continue
        box = np.array(row["bbox"], float)[None] + draw.normal(0, noise, (1, 4))
        box[:, 2:] = np.maximum(box[:, 2:], 2)
        category = ids[draw.integers(len(ids))] if wrong < 0.1 else row["category_id"]
        metric.add(np.array([row["image_id"]]), np.array([category]), box, draw.uniform(0.2, 1, 1))
    if images is not None:
        metric.dataset = COCODataSet("", str(images), str(annotations), allow_empty=True)
        metric.dataset.parse_dataset()
    metric.result()
    return metric


def records(epochs: int = 2, steps: int = 6) -> list[dict]:
    """Content of metrics.jsonl: 4 images per step at 8 images/s, in the first step at 1."""
    rows, done = [], 0
    for epoch in range(1, epochs + 1):
        for _ in range(steps):
            done += 1
            speed = 8.0 if done > 1 else 1.0
            rows.append({
                "time": 1000.0 + done, "kind": "train", "epoch": epoch, "step": done,
                "lr": 0.01 / done, "loss_cls": 1.0 / done, "loss_box": 0.5, "loss_quality": 0.6,
                "loss": 1.1 + 1.0 / done, "images_per_second_per_card": speed / 2,
                "images_per_second": speed, "data_time": 0.01, "memory_mib": 400 + done,
                "images_seen": 4 * done,
            })  # fmt: skip
        rows.append(
            {
                "time": 1000.5 + done,
                "kind": "eval",
                "epoch": epoch,
                "step": done,
                "AP": 0.1 * epoch,
                "AP50": 0.2 * epoch,
                "AP75": 0.05,
                "seconds": 9.0,
            }
        )
    return rows


def write_run(path: Path, tiny: Path, metric: CocoMetric, **facts) -> Path:
    """Write all files of a finished run."""
    path.mkdir(parents=True)
    config = load_config(tiny)
    (path / "config.yml").write_text(resolved(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records()))
    (path / "environment.json").write_text(json.dumps({
        "fcos_recipe": "0.1.0", "python": "3.11.7", "packages": {"numpy": "2.0"}, "cores": 2,
        "platform": "Linux", "cpu": "Test CPU", "device": "cpu", "cards": [], "git": "abc-dirty",
        "command": ["train.py", "-c", str(tiny), "--eval"], "started": "2026-01-02T03:04:05+0000",
    }))  # fmt: skip
    data = {"val": dataset_facts(metric.dataset)} if metric.dataset else {}
    (path / "facts.json").write_text(json.dumps({
        "config": config_facts(config), "device": "cpu", "cards": 2, "total_batch": 4, "epochs": 2,
        "steps": 12, "lr": 0.005, "seed": 0, "parameters": 2_800_000, "data": data, **facts,
    }))  # fmt: skip
    (path / "eval.json").write_text(json.dumps({"epoch": 2, **metric.last}))
    finish_evaluation(metric, path, {}, pictures=metric.dataset is not None)
    (path / "log.txt").write_text(
        "2026-01-02 03:04:05,000 INFO hello\n2026-01-02 03:04:06,000 WARNING a thing is odd\n"
    )
    (path / "model_final.pdparams").write_bytes(b"")
    return path


@pytest.fixture(scope="session")
def validation(shapes) -> tuple[Path, Path]:
    """Annotations and images of a validation set."""
    return shapes / "annotations/instances_val.json", shapes / "val"


@pytest.fixture(scope="session")
def _made(tiny, validation, tmp_path_factory) -> Path:
    pytest.importorskip("hotcoco")
    return write_run(tmp_path_factory.mktemp("runs") / "made", tiny, judged(*validation))


@pytest.fixture
def made(_made, tmp_path) -> Path:
    """A finished run that a test may modify."""
    return Path(shutil.copytree(_made, tmp_path / "made"))
