"""The generated data set: proportions, boxes, determinism, repair."""

import json

import cv2
import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.commands.draw_shapes import main
from fcos_recipe.datasets.drawn_shapes import CLASSES, MANIFEST, make_shapes
from fcos_recipe.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    assert make_shapes(root, train=150, val=60)
    return root


def annotations(root, split):
    return json.loads((root / f"annotations/instances_{split}.json").read_text())


@pytest.mark.parametrize(("split", "count"), [("train", 150), ("val", 60)])
def test_shares(made, split, count):
    content = annotations(made, split)
    objects = content["annotations"]
    assert len(content["images"]) == len(list((made / split).glob("*.jpg"))) == count
    assert [c["name"] for c in content["categories"]] == CLASSES and len(CLASSES) >= 3
    assert {entry["category_id"] for entry in objects} == {1, 2, 3, 4}
    small = [entry["area"] < 32 * 32 for entry in objects]
    assert 0.25 <= np.mean(small) <= 0.6
    assert any(entry["area"] > 64 * 64 for entry in objects)
    with_objects = {entry["image_id"] for entry in objects}
    assert 0 < 1 - len(with_objects) / count < 0.2

    boxes = np.array([entry["bbox"] for entry in objects])
    images = np.array([entry["image_id"] for entry in objects])
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    assert (low >= 0).all() and (high <= [224, 160]).all() and (boxes[:, 2:] >= 4).all()
    extent = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    shared = extent.clip(0).prod(-1) * (images[:, None] == images)
    np.fill_diagonal(shared, 0)
    size = boxes[:, 2:].prod(1)
    iou = shared / (size[:, None] + size - shared)
    assert np.mean(iou.max(1) > 0.05) >= 0.2


def test_the_demos_data_has_no_finding(made, capsys):
    assert run("dataset", ["verify", str(made)]) == 0
    assert "errors: 0, warnings: 0" in capsys.readouterr().out


def test_boxes_lie_on_objects(made):
    """Inside a box the picture differs from the ground around it; texture alone would not."""
    content = annotations(made, "val")
    contrasts = []
    for entry in content["annotations"]:
        image = cv2.imread(str(made / f"val/{entry['image_id']:06d}.jpg")).astype(np.float32)
        assert image.shape == (160, 224, 3)
        x, y, w, h = entry["bbox"]
        assert 0.1 * w * h < entry["area"] <= w * h
        ring = np.ones(image.shape[:2], bool)
        ring[y : y + h, x : x + w] = False
        ring[: max(y - 8, 0)] = ring[y + h + 8 :] = False
        ring[:, : max(x - 8, 0)] = ring[:, x + w + 8 :] = False
        core = image[y + h // 3 : y + h - h // 3, x + w // 3 : x + w - w // 3]
        contrasts.append(np.linalg.norm(core.mean((0, 1)) - image[ring].mean(0)))
    assert np.mean(np.array(contrasts) > 40) > 0.75


def test_same_bytes_and_other_seed(made, tmp_path):
    make_shapes(tmp_path / "again", train=150, val=60)
    make_shapes(tmp_path / "other", train=150, val=60, seed=1)
    digest = {
        name: json.loads((root / MANIFEST).read_text())["sha256"]
        for name, root in [("a", made), ("b", tmp_path / "again"), ("c", tmp_path / "other")]
    }
    assert digest["a"] == digest["b"] != digest["c"]
    first = [(made / split / "000001.jpg").read_bytes() for split in ("train", "val")]
    assert first[0] != first[1]


def test_skips_repairs_refuses(tmp_path, capsys):
    root = tmp_path / "set"
    args = ["--output", str(root), "--train", "4", "--val", "2"]
    assert main(args) == 0
    (root / "annotations/.fcos_index").mkdir()  # the data set's cache
    (root / "annotations/.fcos_index/instances_val.json.idx").write_bytes(b"")
    assert main(args) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "drawn",
        "exists already, unchanged",
    ]
    (root / "train/000002.jpg").write_bytes(b"cut")
    assert make_shapes(root, train=4, val=2)
    assert not make_shapes(root, train=4, val=2)
    assert make_shapes(root, train=3, val=2) and len(list((root / "train").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="holds other files"):
        make_shapes(tmp_path / "mine")
