"""Statistics: compared with counts by hand, and per level with the real TrainReader."""

import json
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.config.load import load_config
from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.data.images import resize
from fcos_recipe.data.reader import Pipeline, TrainReader
from fcos_recipe.data.targets import Gt2FCOSTarget, grid_shapes
from fcos_recipe.datasets.fpn_levels import REASONS, Rules, positives, reasons
from fcos_recipe.datasets.locate import RULES, Source
from fcos_recipe.datasets.look.stats import image_sizes, statistics
from tests.helpers.coco_folders import coco, write

BASE = Gt2FCOSTarget([64, 128, 256, 512], 1.5, [8, 16, 32, 64, 128]).rules
BOXES = {  # image: [category, x, y, w, h, crowd, area]
    10: [[7, 0, 0, 31, 32, 0, None], [3, 10, 10, 64, 16, 0, 900], [3, 0, 0, 100, 100, 0, 9000]],
    20: [[7, 5, 5, 20, 40, 1, None]],
    30: [[7, 5, 5, 32, 32, 0, 1023], [7, 0, 0, 0, 12, 0, None]],
    40: [],
}


def counted(folder):
    """Four images of 120x160, six boxes: one crowd, one without an area."""
    data = coco(images=4, boxes=0, size=(120, 160))
    for image, rows in BOXES.items():
        for category, x, y, w, h, crowd, area in rows:
            data["annotations"].append(
                {"id": len(data["annotations"]) + 1, "image_id": image, "category_id": category,
                 "bbox": [x, y, w, h], "iscrowd": crowd} | ({"area": area} if area else {})
            )  # fmt: skip
    return data, write(folder, data, images=False)


def of(path, images=None, rules=None, **options):
    return statistics(Source("x", str(path), images, options), rules or Rules(BASE, None, "as is"))


def test_hand_counted(tmp_path):
    found = of(counted(tmp_path)[1])
    assert found["images"] == {
        "count": 4, "without_boxes": 2, "without_boxes_ids": [20, 40], "size_unknown": 0,
        "width_height": [[160, 120, 4]],
    }  # fmt: skip
    boxes = found["boxes"]
    assert (boxes["count"], boxes["crowd"]) == (4, 1)
    assert boxes["left_out"] == {"degenerate boxes": 1}
    assert boxes["by_size"] == {"small": 1, "medium": 2, "large": 1}
    assert boxes["by_size_of_coco_ap"] == {"small": 3 + 1, "medium": 1, "large": 0}
    assert boxes["aspect_ratio"]["max"] == 4 and boxes["aspect_ratio"]["median"] == 1
    assert boxes["width"] == {
        "min": 31, "p5": 31.15, "median": 48, "p95": 94.6, "max": 100, "mean": 56.75
    }  # fmt: skip
    for key in ("aspect_ratio", "sqrt_area"):
        histogram = boxes[key]
        assert sum(histogram["counts"]) == 4
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    middle = np.sqrt(
        np.array(boxes["aspect_ratio"]["edges"][:-1]) * boxes["aspect_ratio"]["edges"][1:]
    )
    assert middle[np.argmax(boxes["aspect_ratio"]["counts"])] == pytest.approx(1, abs=1e-3)
    edges = np.array(boxes["sqrt_area"]["edges"])
    at = np.flatnonzero(boxes["sqrt_area"]["counts"])
    assert [(edges[i], edges[i + 1]) for i in at] == [
        (pytest.approx(22.6, abs=0.1), 32), (32, pytest.approx(45.3, abs=0.1)),
        (pytest.approx(90.5, abs=0.1), 128),
    ]  # fmt: skip
    assert found["boxes_per_image"]["images_with"] == [2, 1, 0, 1]
    assert found["boxes_per_image"]["most_id"] == 10
    rows = {row["name"]: row for row in found["classes"]}
    assert rows["class 7"] == {
        "id": 7, "name": "class 7", "boxes": 2, "images": 2, "crowd": 1, "small": 1, "medium": 1,
        "large": 0, "without_location": 0,
    }  # fmt: skip
    assert (rows["class 3"]["boxes"], rows["class 3"]["images"]) == (2, 1)
    json.dumps(found)


def test_crowds_count_where_the_config_trains_on_them(tmp_path):
    found = of(counted(tmp_path)[1], load_crowd=True)
    assert found["boxes"]["count"] == 5 and found["images"]["without_boxes"] == 1


def test_reasons_by_hand():
    box = np.array(
        [
            [40, 40, 56, 56],  # 0: owns locations
            [4.5, 40, 11.5, 56],  # 1: between the columns 4 and 12 of stride 8
            [90, 10, 390, 14],  # 2: 150 to its sides, so stride 32, whose rows are 16, 48, ...
            [200, 200, 216, 216],  # 3 and 4: one owns all
            [200, 200, 216, 216],
        ],
        np.float32,
    )
    size, image = np.full((5, 2), 400.0), np.zeros(5, int)
    counts = positives(BASE, box, size, image)
    why = reasons(BASE, box, size, counts)
    assert [REASONS[i] if i >= 0 else "" for i in why] == ["", "small", "range", "", "covered"]
    assert counts[0].tolist() == [4, 0, 0, 0, 0]
    # On images of their own all but the small ones are trained on.
    alone = positives(BASE, box, size, np.arange(5))
    assert alone.any(axis=1).tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("keep_ratio", [True, False])
def test_boxes_are_resized_as_by_the_reader_bit_for_bit(keep_ratio):
    rng = np.random.default_rng(5)
    arguments = {"target_size": [80, 133], "keep_ratio": keep_ratio, "interp": 1}
    for _ in range(200):
        height, width = rng.integers(20, 300, 2).tolist()
        box = np.sort(rng.uniform(-20, 320, (6, 2, 2)), axis=1).reshape(6, 4).astype(np.float32)
        sample = {"image": np.zeros((height, width, 3), np.uint8), "gt_bbox": box.copy()}
        resize(sample, **arguments)
        ours, new = Rules(BASE, arguments, "").resized(box, np.tile([height, width], (6, 1)))
        np.testing.assert_array_equal(ours, sample["gt_bbox"])
        assert abs(new[0] - sample["image"].shape[:2]).max() < 1


def read(config, folder, image_dir, anno_path):
    """Positives and their owners per level, from batches of the real reader without flips."""
    section = {k: v for k, v in config.data["TrainReader"].items() if k != "group_by_aspect"}
    section["sample_transforms"] = [
        step for step in section["sample_transforms"] if "RandomFlip" not in step
    ]
    reader = TrainReader(**section, num_classes=config.data["num_classes"])
    dataset = COCODataSet(
        str(folder), image_dir, anno_path, ["image", "gt_bbox", "gt_class"], allow_empty=True
    )
    dataset.parse_dataset()
    pipeline = Pipeline(dataset, reader.chain, reader.target, 0, False, 0)
    strides, rules = reader.target.strides, reader.target.rules
    locations, owners = np.zeros(len(strides), int), [set() for _ in strides]
    for first in range(0, len(dataset), 3):
        items = [pipeline[i] for i in range(first, min(first + 3, len(dataset)))]
        batch = pipeline.collate(items)
        images = len(items)
        grids = grid_shapes(*batch["image"].shape[1:3], strides)
        start = np.cumsum([0] + [images * h * w for h, w in grids])
        index = batch["pos_index"][: batch["num_pos"][0]]
        level = np.searchsorted(start, index, side="right") - 1
        locations += np.bincount(level, minlength=len(strides))
        for row, lvl in enumerate(level):
            height, width = grids[lvl]
            n, cell = divmod(index[row] - start[lvl], height * width)
            y, x = divmod(cell, width)
            point = np.array([x, y, x, y]) * strides[lvl] + strides[lvl] * 0.5
            scale = strides[lvl] if rules.norm_by_stride else 1
            box = point + batch["pos_reg"][row] * scale * [-1, -1, 1, 1]
            sample = items[n][0]
            # the first of equals, as there; another class with the same box is another object
            far = abs(sample["gt_bbox"] - box).max(axis=1)
            far[sample["gt_class"].ravel() != batch["pos_label"][row]] = np.inf
            assert far.min() < 0.01
            owners[lvl].add((first + n, int(far.argmin())))
    return locations, owners


@pytest.mark.parametrize(
    "config, changes, data, image_dir, anno_path",
    [
        (RULES, [], "coco_mini", "train2017", "annotations/instances_train2017.json"),
        ("fcos_r50_fpn_1x_coco_fast.yml", [], "coco_mini", "val2017",
         "annotations/instances_val2017.json"),
        ("fcos_r18_fpn_bccd.yml", [], "bccd", "val", "annotations/instances_val.json"),
    ],
    ids=["coco train", "coco val, padding 32", "bccd, two levels"],
)  # fmt: skip
def test_levels_are_those_of_the_readers_batches(
    config, changes, data, image_dir, anno_path, shared
):
    config = load_config(RULES.parent / config, changes)
    folder = shared / "data" / data
    found = of(folder / anno_path, rules=Rules.of(config))["levels"]
    locations, owners = read(config, folder, image_dir, anno_path)
    assert [row["locations"] for row in found["levels"]] == locations.tolist()
    assert [row["objects"] for row in found["levels"]] == [len(own) for own in owners]
    assert found["objects"] - found["without_location"]["count"] == len(set().union(*owners))
    assert locations.sum() > 1000 and len(found["without_location"]["examples"]) > 0


def test_parts_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 300, (500, 2))
    box = np.concatenate([start, start + rng.uniform(4, 100, (500, 2))], 1).astype(np.float32)
    size, image = np.full((500, 2), 400.0), np.sort(rng.integers(0, 60, 500))
    for radius in (1.5, 0):
        rules = replace(BASE, radius=radius)
        whole = positives(rules, box, size, image)
        monkeypatch.setattr("fcos_recipe.datasets.fpn_levels.ROWS", 50)
        np.testing.assert_array_equal(positives(rules, box, size, image), whole)
        monkeypatch.undo()


def test_rules_say_what_they_leave_out(root):
    text = Rules.of(load_config(RULES)).text
    assert text.endswith("images resized to 800x1333")
    multi = Rules.of(load_config(root / "configs/fcos/fcos_r50_fpn_multiscale_2x_coco.yml"))
    assert "at random" in multi.text and multi.resize["target_size"] == [800, 1333]


def test_sizes_that_the_annotations_lack_come_from_the_files(tmp_path):
    data = coco(images=3, boxes=1, size=(40, 60))
    path = write(tmp_path, data)
    for image in data["images"]:
        del image["height"], image["width"]
    path.write_text(json.dumps(data))
    pixels = cv2.imread(str(tmp_path / "0.jpg"))
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels).save(tmp_path / "1.jpg", exif=exif)
    (tmp_path / "2.jpg").write_bytes(b"no image")
    index = Source("x", str(path), None).index()
    assert image_sizes(index, str(tmp_path)).tolist() == [[40, 60], [60, 40], [0, 0]]
    found = of(path, str(tmp_path))
    assert found["images"]["size_unknown"] == 1
    assert (found["boxes"]["count"], found["levels"]["objects"]) == (3, 2)
    assert of(path)["levels"]["objects"] == 0


@pytest.mark.parametrize("what", ["images", "annotations", "categories"])
def test_empty_sections(tmp_path, what, capsys):
    data = coco()
    data[what] = []
    if what == "categories":
        data["annotations"] = []
    path = write(tmp_path, data, images=False)
    assert run("dataset", ["stats", str(path), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "stats_annotations.png").stat().st_size > 10_000


def test_command(tmp_path, root):
    """Table, JSON and picture of a folder with two splits; names can't reach the terminal raw."""
    data = coco(images=5, boxes=3)
    data["categories"][0]["name"] = "\x1b[31m$x_{$ 红"
    for split in ("train", "val"):
        write(tmp_path / split, data)
        folder = tmp_path / "annotations"
        folder.mkdir(exist_ok=True)
        (tmp_path / split / "annotations.json").rename(folder / f"instances_{split}.json")
        (folder / f"captions_{split}.json").write_text("{}")
    code = "import sys; from fcos_recipe.cli import run; c = run('dataset')\n" \
           "assert 'paddle' not in sys.modules; sys.exit(c)"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, "stats", str(tmp_path), "--json", "a/x.json", "--output", "b"],
        cwd=tmp_path, env={"PYTHONPATH": str(root), "HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "\x1b" not in done.stdout and r"\x1b[31m$x_{$ 红" in done.stdout
    assert "stride 128" in done.stdout and "images     5, 0 without boxes" in done.stdout
    found = json.loads((tmp_path / "a" / "x.json").read_text())["splits"]
    assert list(found) == ["train", "val"] and found["val"]["boxes"]["count"] == 15
    assert (tmp_path / "b" / "stats.json").read_text() == (tmp_path / "a" / "x.json").read_text()
    picture = cv2.imread(str(tmp_path / "b" / "stats_val.png"))
    assert picture.shape[1] > 1500 and picture.std() > 10


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "no data given"),
        (["nowhere"], "nowhere: no such folder or annotation file"),
        (["my.yml"], "my.yml: a YAML file; a config is named with -c, as in -c my.yml"),
        (["."], "no annotations of a known format"),
        (["a.json", "--images", "gone"], "gone: --images: no such folder"),
        (["a.json", "-c", "none.yml"], "none.yml"),
        (["a.json", "-o", "TrainReader.batch_transforms=[]"], "no Gt2FCOSTarget"),
        (["a.json", "--output", "a.json"], "a.json: "),
        (["broken.json"], "broken.json: not a complete JSON file"),
        (["-c", str(RULES), "-o", "TrainDataset.dataset_dir=gone", "EvalDataset.dataset_dir=gone"],
         "gone/annotations/instances_train2017.json does not exist"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    write(tmp_path / "x", coco(), images=False).rename(tmp_path / "a.json")
    (tmp_path / "broken.json").write_text('{"images": [')
    (tmp_path / "x" / "readme.txt").write_text("")
    monkeypatch.chdir(tmp_path if argv != ["."] else tmp_path / "x")
    assert run("dataset", ["stats", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert all(line.startswith("error: ") for line in captured.err.splitlines())
