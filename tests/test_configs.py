"""Every YAML of the project trains and evaluates, with small images."""

import json

import pytest

from tests.conftest import ROOT, run_tool

CONFIGS = sorted(ROOT.glob("configs/fcos/*.yml"))
NORMALIZE = (
    "{NormalizeImage: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], is_scale: true}}"
)


def small(config, shapes) -> list[str]:
    """Overrides that put `shapes` and 96x128 pictures under a config; the rest stays its own."""
    multiscale = "multiscale" in config.name
    resize = (
        "{RandomResize: {target_size: [[64, 128], [96, 128]], keep_ratio: true, interp: 1}}"
        if multiscale
        else "{Resize: {target_size: [96, 128], keep_ratio: true, interp: 1}}"
    )
    fixed = "{Resize: {target_size: [96, 128], keep_ratio: true, interp: 1}}"
    return [
        "device=cpu", "num_classes=4", "epoch=1", "log_iter=1", "worker_num=0",
        "pretrain_weights=", "TrainReader.batch_size=2",
        f"TrainReader.sample_transforms=[{{Decode: {{}}}}, {resize}, {NORMALIZE}, "
        "{RandomFlip: {}}]",
        f"EvalReader.sample_transforms=[{{Decode: {{}}}}, {fixed}, {NORMALIZE}, {{Permute: {{}}}}]",
        *(
            f"{part}Dataset.{key}={value}"
            for part, split in (("Train", "train"), ("Eval", "val"))
            for key, value in (
                ("dataset_dir", shapes), ("image_dir", split), ("sample_num", 4),
                ("anno_path", f"annotations/instances_{split}.json"),
            )
        ),
    ]  # fmt: skip


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_trains_and_evaluates(config, shapes, tmp_path):
    done = run_tool("train", "-c", config, "--eval", "--output", tmp_path / "run", "-o",
                    *small(config, shapes), cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["train", "train", "eval"]


@pytest.mark.e2e
@pytest.mark.slow
def test_the_headline_takes_two_real_steps_at_its_own_size(shared, tmp_path):
    data = shared / "data" / "coco_mini"
    done = run_tool(
        "train", "-c", ROOT / "configs/fcos/fcos_r50_fpn_1x_coco.yml", "--eval",
        "--output", tmp_path / "run", "-o", "device=cpu", "epoch=1", "log_iter=1",
        "pretrain_weights=", f"TrainDataset.dataset_dir={data}", "TrainDataset.sample_num=4",
        f"EvalDataset.dataset_dir={data}", "EvalDataset.sample_num=3",
        cwd=tmp_path, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["train", "train", "eval"]
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["images"] == 3
