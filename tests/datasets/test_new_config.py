"""`fcos config new` writes a config that validates and trains, with correct numbers."""

import json
import re
import shutil
import socket

import numpy as np
import pytest
import yaml

from fcos_recipe.cli import run
from fcos_recipe.config import scaling
from fcos_recipe.config.load import load_config
from fcos_recipe.data.transforms import named
from fcos_recipe.datasets import new_config as module
from fcos_recipe.datasets.new_config import ChosenSplit, Request
from tests.helpers.coco_folders import coco, write

SMALL = "fcos_r18_fpn_demo"


def folder(path, splits=("train", "val"), roboflow=False, **changes):
    """A COCO folder: splits of 4 images with the same file names and colours of their own."""
    for number, split in enumerate(splits):
        data = coco(images=4, **changes)
        for image in data["images"]:
            image["id"] += 1000 * number
        for annotation in data["annotations"]:
            annotation["image_id"] += 1000 * number
        made = write(path / split, data)
        where = path / split / "_annotations.coco.json"
        if not roboflow:
            where = path / "annotations" / f"instances_{split}2017.json"
            where.parent.mkdir(exist_ok=True)
        made.rename(where)
    return path


def new(tmp_path, *options, data=None, base=SMALL):
    """Exit code of the command, and what it wrote; the config passes `validate --files`."""
    out = tmp_path / "my.yml"
    code = run("config", ["new", "--data", str(data or tmp_path / "data"), "-o", str(out),
                          "--base", base, *map(str, options)])  # fmt: skip
    if code == 0:
        assert run("config", ["validate", "--strict", "--files", str(out)]) == 0
    return code, load_config(out).data if out.exists() else None


def paths(section):
    return section["image_dir"], section["anno_path"]


@pytest.mark.parametrize("layout", ["coco", "images below images/", "flat", "roboflow", "one file"])
def test_layouts(tmp_path, layout, capsys):
    data = tmp_path / "dätä 細胞"
    splits = ("train", "valid" if layout == "roboflow" else "val")
    folder(data, splits, roboflow=layout == "roboflow")
    train, val = (
        (split, f"annotations/instances_{split}2017.json") for split in ("train", splits[1])
    )
    if layout == "coco":  # COCO's own folder has more in it
        for name in ("captions_train2017", "person_keypoints_val2017"):
            (data / "annotations" / f"{name}.json").write_text("{}")
    elif layout == "images below images/":
        (data / "images").mkdir()
        for split in splits:
            (data / split).rename(data / "images" / split)
        train, val = (("images/" + where, anno) for where, anno in (train, val))
    elif layout == "flat":
        for split in splits:
            (data / f"annotations/instances_{split}2017.json").rename(data / f"{split}.json")
        train, val = ((where, f"{where}.json") for where, _ in (train, val))
    elif layout == "roboflow":
        train, val = ((where, f"{where}/_annotations.coco.json") for where, _ in (train, val))
    else:
        shutil.rmtree(data / "val")
        (data / "annotations/instances_train2017.json").rename(data / "train" / "labels.json")
        shutil.rmtree(data / "annotations")
        data, train, val = data / "train", ("", "labels.json"), None
    code, found = new(tmp_path, data=data)
    assert code == 0 and found["num_classes"] == 2
    assert "dätä 細胞" in (tmp_path / "my.yml").read_text(encoding="utf-8")
    assert found["TrainDataset"]["dataset_dir"] == str(data)
    assert paths(found["TrainDataset"]) == train
    said = capsys.readouterr().out
    if val:
        assert paths(found["EvalDataset"]) == val
        assert "my.yml --eval" in said
    else:
        assert found["EvalDataset"] is None and "does not evaluate" in said and "--eval" not in said
        assert found["TestDataset"]["anno_path"] == "labels.json"


def fake(images, empty=0, classes=3):
    boxes = {f"class {i}": 2 * images for i in range(classes)}
    return ChosenSplit("/d/train.json", "/d/train", set(), images, empty, boxes, (480, 640))


@pytest.mark.parametrize("base", ["fcos_r50_fpn_1x_coco", "fcos_r50_fpn_iou_multiscale_2x_coco",
                                  "fcos_r18_fpn_bccd"])  # fmt: skip
@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("cards", [1, 8])
def test_schedules_add_up_for_every_size(tmp_path, base, scratch, cards):
    """The plan has no warning: warm-up, milestones and cosine fit; from 16 images to COCO's."""
    base = module._base(base)
    seen = []
    for images in (16, 205, 3_000, 118_287):
        out = tmp_path / "my.yml"
        args = Request(data=tmp_path, output=out, cards=cards, from_scratch=scratch)
        out.write_text(module._text(args, tmp_path, base, fake(images), fake(8)))
        config = load_config(out, strict=True)
        plan = scaling.plan_scaling(config, cards, images)
        assert plan.warnings == [] and plan.scaled and config.warnings == []
        assert plan.lr == pytest.approx(base.data["LearningRate"]["base_lr"] * plan.total_batch
                                        / base.data["LearningRate"]["base_batch"])  # fmt: skip
        assert plan.warmup_steps <= max(plan.max_steps / 8, plan.total_batch)
        assert config.data["epoch"] >= base.data["epoch"]
        assert config.data["epoch"] // config.data["eval_interval"] <= 20
        decay = plan.learning_rate["schedulers"][0]
        if "milestones" in decay:
            parts = np.array(decay["milestones"]) / config.data["epoch"]
            old = np.array(base.data["LearningRate"]["schedulers"][0]["milestones"])
            np.testing.assert_allclose(parts, old / base.data["epoch"], atol=0.06)
        seen.append(config.data["epoch"])
        # what a comment says is what the numbers are
        (text,) = re.findall(r"epoch: .* # (.*) seen", out.read_text())
        assert text == f"{images} images x {seen[-1]} = {images * seen[-1]}"
    assert seen == sorted(seen, reverse=True) and seen[0] <= module.MOST_EPOCHS * 1.01
    weights = config.data["pretrain_weights"]
    if scratch or "r18" in base.name:
        assert weights == "" and config.data["ResNet"]["freeze_at"] == -1
        assert config.data["ResNet"]["freeze_norm"] is False
    else:
        assert weights.endswith(f"/models/{base.name}.pdparams")


@pytest.mark.parametrize("base", ["fcos_r50_fpn_1x_coco", "fcos_r50_fpn_iou_multiscale_2x_coco"])
def test_enlargement_is_said_and_size_avoids_it(tmp_path, base):
    """Each reader gets the size, and nothing else of it changes."""
    out, like = tmp_path / "my.yml", module._base(base)
    train = fake(100)._replace(size=(160, 224))
    args = Request(data=tmp_path, output=out)
    (note,) = module._enlarged(args, like, train)
    assert "224 x 160" in note and "1120 x 800" in note and "--size 160 224" in note
    assert module._enlarged(args, like, fake(100)) == []
    args = Request(data=tmp_path, output=out, size=(160, 224), batch_size=3)
    assert module._enlarged(args, like, train) == []
    out.write_text(module._text(args, tmp_path, like, train, fake(8)))
    config = load_config(out, strict=True)
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        names, sizes, before = [], [], named(like.data[reader]["sample_transforms"])
        for (name, new), (_, old) in zip(named(config.data[reader]["sample_transforms"]), before):
            names.append(name)
            if "Resize" in name:
                sizes.append(np.atleast_2d(new.pop("target_size")).max(0).tolist())
                assert new == {key: value for key, value in old.items() if key != "target_size"}
            else:
                assert new == old
        assert sizes == [[160, 224]] and names == [name for name, _ in before]
    assert config.data["TrainReader"]["batch_size"] == 3


def test_negatives_names_and_numbers(tmp_path, capsys):
    """Half of an epoch at most is negative; what names say cannot become YAML."""
    odd = 'a\nnum_classes: 9 # "\u2028red\x1b[0m'
    data = coco(images=9, classes=(7, 3, 5))
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] <= 30]
    data["categories"][0]["name"] = odd
    data["images"].append({"id": 5000, "file_name": "gone.jpg"})
    data["annotations"].append({**data["annotations"][0], "image_id": 5000})
    write(tmp_path / "data" / "train", data).rename(tmp_path / "data" / "train" / "train.json")
    (tmp_path / "data" / "train" / "gone.jpg").unlink()
    code, found = new(tmp_path, "--val", "none", "--cards", "2", "--batch-size", "1")
    assert code == 0 and found["num_classes"] == 3 and found["EvalDataset"] is None
    assert (found["TrainDataset"]["allow_empty"], found["TrainDataset"]["empty_ratio"]) == (
        True, 0.5,
    )  # fmt: skip
    assert (found["launch"]["cards"], found["TrainReader"]["batch_size"]) == (2, 1)
    text = (tmp_path / "my.yml").read_text()
    assert "# train    9 images, 6 of them without a box, 6 boxes" in text
    assert "6 of 9 images have no box" in text and "at most half of an epoch: 3 of 6" in text
    assert "\x1b" not in text and "# no boxes 1: class 5" in text
    assert "EvalDataset: null" in text
    plain = re.sub(r"!\w+ ", "", text)
    assert set(yaml.safe_load(plain)) == {
        "_BASE_", "num_classes", "TrainDataset", "EvalDataset", "TestDataset", "pretrain_weights",
        "epoch", "eval_interval", "snapshot_epoch", "launch", "TrainReader", "LearningRate",
    }  # fmt: skip
    from fcos_recipe.data.dataset import COCODataSet

    section = {k: v for k, v in found["TrainDataset"].items() if k != "name"}
    dataset = COCODataSet(**section)
    dataset.parse_dataset()
    assert len(dataset) == 6  # as the config's comment counts
    capsys.readouterr()
    assert run("train", ["-c", str(tmp_path / "my.yml"), "--eval"]) == 2
    error = capsys.readouterr().err
    assert "EvalDataset: null, no data to evaluate on; omit --eval" in error
    assert len(error.splitlines()) == 1


def test_it_never_overwrites_unless_told(tmp_path, capsys):
    folder(tmp_path / "data")
    (tmp_path / "my.yml").write_text("epoch: 3\n")
    assert new(tmp_path)[0] == 2
    assert (tmp_path / "my.yml").read_text() == "epoch: 3\n"
    assert "my.yml: exists" in capsys.readouterr().err
    assert new(tmp_path, "--force")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "my.yml"]


def second(data):
    shutil.copy(data / "annotations/instances_train2017.json",
                data / "annotations/instances_train2014.json")  # fmt: skip


def other_classes(data):
    file = data / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"].reverse()
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (second, [], "several files could be the annotations for train.*--train JSON"),
        (other_classes, [], "val2017.json: categories: 2: class 3, class 7; .*same order"),
        (lambda d: shutil.rmtree(d / "annotations"), [], "no annotations of a known format"),
        (lambda d: shutil.rmtree(d / "train"), [], "none of its 4 images was found.*--images DIR"),
        (None, ["--images", "nowhere"], "--images nowhere: no such folder"),
        (None, ["--train", "gone.json"], "--train gone.json: no such file"),
        (None, ["--val", "annotations/instances_train2017.json"], "are the same file"),
        (None, ["--base", "fcos_r50_1x"], "fcos_r50_1x"),
        (None, ["--base", "configs/runtime.yml"], "LearningRate.base_lr is not set"),
        (None, ["--batch-size", "9"], "4 images do not fill one step of 9"),
        (None, ["--weights", "gone.pdparams"], "pretrain_weights: gone.pdparams does not exist"),
    ],
)  # fmt: skip
def test_refusals_are_one_line_and_leave_nothing(tmp_path, capsys, change, options, told, root,
                                                 monkeypatch):  # fmt: skip
    monkeypatch.chdir(root)
    folder(tmp_path / "data")
    if change:
        change(tmp_path / "data")
    code, found = new(tmp_path, *options)
    error = capsys.readouterr().err
    assert code == 2 and found is None and re.search(told, error), error
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_named_files_and_images_decide(tmp_path, capsys):
    data = folder(tmp_path / "data")
    second(data)
    (data / "train").rename(tmp_path / "pictures")
    annotations = "annotations/instances_train2014.json"
    code, found = new(tmp_path, "--train", annotations, "--val", "none", "--images", tmp_path)
    assert code == 0
    assert paths(found["TrainDataset"]) == (str(tmp_path / "pictures"), annotations)
    # the same pictures in both: told
    same = data / "annotations/instances_train2017.json"
    code, found = new(tmp_path, "--train", annotations, "--images", tmp_path / "pictures",
                      "--val", same, "--force")  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0 and "4 of 4 images for evaluation are also trained on" in said


@pytest.mark.e2e
def test_from_folder_to_training_in_two_commands(shared, tmp_path, capfd, monkeypatch):
    def refuse(*args):
        raise AssertionError("a config of one's own asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    code, _ = new(tmp_path, data=shared / "data" / "bccd")
    assert code == 0
    few = ["TrainDataset.sample_num=8", "EvalDataset.sample_num=4", "worker_num=0", "log_iter=1",
           "epoch=1", "device=cpu"]  # fmt: skip
    assert run("train", ["-c", str(tmp_path / "my.yml"), "--eval",
                         "--output", str(tmp_path / "run"), "-o", *few]) == 0  # fmt: skip
    said = capfd.readouterr().out
    assert "classes: 3 (WBC, RBC, Platelets)" in said
    assert "Average Precision" in said and "step 2/2" in said
    assert len(json.loads((tmp_path / "run" / "eval.json").read_text())["per_class"]) == 3
