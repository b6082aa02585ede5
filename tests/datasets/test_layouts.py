"""Data sets as tools leave them: from the folder to boxes in a config's data, nothing moved."""

import json

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.config.load import load_config
from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.data.images import read_image
from fcos_recipe.datasets.recognise import recognise
from tests.helpers import layouts

BASE = "fcos_r18_fpn_demo"


def dataset(*argv):
    return run("dataset", [str(a) for a in argv])


def new(root, config, *argv):
    return run("config", ["new", "--data", str(root), "-o", str(config), "--base", BASE,
                          "--cards", "1", "--batch-size", "1", *map(str, argv)])  # fmt: skip


def boxes(section):
    """Sorted boxes of each image as training reads them, and class names; every image decodes."""
    data = COCODataSet(section["dataset_dir"], section["image_dir"], section["anno_path"],
                       ["image", "gt_bbox", "gt_class"], allow_empty=True)  # fmt: skip
    data.parse_dataset()
    found = []
    for i in range(len(data)):
        record = data.record(i)
        assert read_image(record["im_file"]).shape[:2] == layouts.SIZE
        names = [data.class_names[k] for k in record["gt_class"].ravel()]
        found.append(sorted((n, *box) for n, box in zip(names, record["gt_bbox"].tolist())))
    return sorted(found)


@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.__name__)
def test_from_the_folder_to_the_boxes_of_a_config(layout, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "数据 set"
    root.mkdir()
    kind, options = layout(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert recognise(root).kind == kind
    config = tmp_path / "my.yml"
    assert new(root, config, *options) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    found = load_config(config).data
    splits = {"train": "TrainDataset", "val": "EvalDataset"}
    if layout not in layouts.SPLIT:
        assert found["EvalDataset"] is None and "fcos dataset split" in told
        del splits["val"]
    for split, section in splits.items():
        have = boxes(found[section])
        want = layouts.wanted(layout, split)
        assert [[box[0] for box in image] for image in have] == [
            [box[0] for box in image] for image in want
        ]
        for mine, theirs in zip(have, want):
            assert np.allclose([b[1:] for b in mine], [b[1:] for b in theirs], atol=2e-3)
    # the data set itself is as it was, but for indexes of COCO files
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if ".fcos_index" not in p.parts} == before
    if not options:
        assert dataset("stats", root) == 0
        names = capsys.readouterr().out
        assert all(name in names for name in layouts.CLASSES)
    out = tmp_path / "out"
    assert dataset("convert", root, "-o", out, *options) == 0, capsys.readouterr().err
    total = [len(json.loads(path.read_text())["images"]) for path in out.glob("*.json")]
    assert sum(total) == sum(len(layouts.wanted(layout, split)) for split in splits)
    # the image folder is remembered wherever the file lies
    first = sorted(out.glob("*.json"))[0]
    assert dataset("verify", first, "--allow", "nothing_to_train") == 0, capsys.readouterr().out
