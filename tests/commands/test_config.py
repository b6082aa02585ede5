"""`fcos config`: its output loads again, and it works without importing Paddle."""

import resource
import subprocess
import sys

import pytest

from fcos_recipe.cli import run
from fcos_recipe.config import load_config

HEADLINE = "configs/fcos/fcos_r50_fpn_1x_coco.yml"
IOU = "configs/fcos/fcos_r50_fpn_iou_1x_coco.yml"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["LearningRate.base_lr=1e-3"],
        ["weights='it''s: # odd'", "save_dir=nul", "FCOSHead.nms.nms_eta=0.9"],
        ["launch.cards=2", "vdl_log_dir='1e3'", 'output_eval="a\\nb"', "seed=0"],
    ],
)
def test_print_is_yaml_that_loads_to_the_same_config(root, tmp_path, capsys, overrides):
    options = ["-o", *overrides] if overrides else []
    assert run("config", ["print", str(root / HEADLINE), *options]) == 0
    text = capsys.readouterr().out
    again = tmp_path / "again.yml"
    again.write_text(text)
    cfg = load_config(again, strict=True)
    assert cfg.data == load_config(root / HEADLINE, overrides).data
    assert cfg.warnings == []
    assert "depth: 50  # " in text and "fcos_r50_fpn.yml:11" in text


def test_diff_names_each_key_with_both_values(root, capsys):
    assert run("config", ["diff", str(root / HEADLINE), str(root / IOU)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert ["FCOSHead.fcos_loss.quality", "-", "iou"] in rows
    assert ["EvalReader.batch_transforms.0.PadBatch.pad_to_stride", "128", "32"] in rows
    assert len(rows) == 5
    assert run("config", ["diff", "-c", str(root / IOU), str(root / IOU)]) == 0
    assert capsys.readouterr().out == ""
    assert run("config", ["diff", str(root / IOU)]) == 2
    assert "diff: name two configs, as in diff A B; given: " in capsys.readouterr().err


def test_validate_checks_all_and_tells_all(root, tmp_path, capsys):
    assert run("config", ["validate"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("ok  ") == len(list((root / "configs").rglob("*.yml"))) - 1
    assert "results.yml" not in shown  # figures, no config
    bad, worse = tmp_path / "bad.yml", tmp_path / "worse.yml"
    bad.write_text(f"_BASE_: [{root / HEADLINE}]\nepochs: 3\n")
    worse.write_text("epoch: [\n")
    assert run("config", ["validate", str(bad), str(worse), str(root / IOU)]) == 2
    out, err = capsys.readouterr()
    assert "ok  " in out and f"{bad}:2: epochs" in err and str(worse) in err
    assert "Traceback" not in err and len(err.splitlines()) == 2
    missing = ["validate", str(root / HEADLINE), "--files", "-o", "EvalDataset.dataset_dir=/no"]
    assert run("config", missing) == 2
    assert "EvalDataset.anno_path: /no/annotations" in capsys.readouterr().err


def test_it_answers_in_a_second_without_importing_paddle(root):
    code = (
        "import sys; from fcos_recipe.cli import run; run('config', ['validate']); "
        "sys.exit(any(m in sys.modules for m in ('paddle', 'ppdet', 'numpy')))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time: what a clock shows depends on what else the machine is doing.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_keys_lists_every_recipe_key_with_its_default(capsys):
    assert run("config", ["keys"]) == 0
    rows = {line[2:].split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {"epoch", "launch.cards", "early_stop.patience", "export.nms"} <= set(rows)
    assert rows["max_bad_images"].split()[1:5] == ["a", "whole", "number", "10"]
    assert rows["epoch"].startswith("*") and not rows["accumulate"].startswith("*")
