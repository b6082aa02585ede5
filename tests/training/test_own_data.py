"""User data: folders as found in practice train, or fail with a one-line error."""

import json
import shutil
import socket

import numpy as np
import pytest

from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.datasets.drawn_shapes import CLASSES
from tests.data.test_dataset import split_in_two

pytestmark = pytest.mark.e2e


def train(config, output, *options) -> int:
    return run("train", ["-c", str(config), "--eval", "--output", str(output), "-o", "epoch=1",
                         *map(str, options)])  # fmt: skip


def copied(shapes, folder, change, splits=("train", "val")):
    """The generated data set with its annotation files changed; options that point there."""
    shutil.copytree(shapes, folder, ignore=shutil.ignore_patterns("*.yml", ".fcos_index"))
    for split in splits:
        path = folder / "annotations" / f"instances_{split}.json"
        data = json.loads(path.read_text())
        change(split, data, folder / split)
        path.write_text(json.dumps(data))
    sections = ("TrainDataset", "EvalDataset", "TestDataset")
    return [f"{section}.dataset_dir={folder}" for section in sections]


def awkward(split, data, images):
    """One class with an id far out; nothing that can be left away; names beyond ASCII."""
    data["categories"] = [{"id": 90_001, "name": "Zelle ☃ 細胞"}]
    for k, image in enumerate(data["images"]):
        del image["width"], image["height"]
        name = f"ä ö/{k} 画像.jpg"
        (images / "ä ö").mkdir(exist_ok=True)
        (images / image["file_name"]).rename(images / name)
        image["file_name"] = name
    for annotation in data["annotations"]:
        annotation["category_id"] = 90_001
        annotation.pop("area", None)
        annotation.pop("iscrowd", None)
    if split == "train":  # beyond the picture, of no size, and one image that is none
        first, second = data["annotations"][:2]
        first["bbox"] = [-40, -40, 900, 900]
        second["bbox"][2] = 0
        (images / data["images"][5]["file_name"]).write_bytes(b"\xff\xd8\xff cut")
    else:
        (images / data["images"][2]["file_name"]).write_bytes(b"")


def test_awkward_data_train_and_evaluate(shapes, tiny, tmp_path, capfd):
    here = copied(shapes, tmp_path / "dätä 1", awkward)
    assert train(tiny, tmp_path / "run", "num_classes=1", "TrainReader.group_by_aspect=true",
                 *here) == 0  # fmt: skip
    said = capfd.readouterr().out
    assert "classes: 1 (Zelle ☃ 細胞)" in said and "left out: 1 degenerate boxes" in said
    told = said.split("2 images could not be read and were skipped: ")[1]
    assert "train/ä ö/5 画像.jpg: not an image" in told and "val/ä ö/2 画像.jpg: empty" in told
    assert "step" not in told  # at the end
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert [(row["id"], row["name"]) for row in result["per_class"]] == [(90_001, "Zelle ☃ 細胞")]
    assert result["instances"] > 10 and 0 <= result["stats"][0] <= 1
    records = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert len(losses) == 6 and np.isfinite(losses).all()  # as many steps as with all images


def test_two_files_train_and_evaluate_as_one(shapes, tiny, tmp_path, capfd):
    """Same weights and figures; a class without an instance (and with none in AP) included."""

    def empty_class(split, data, images):
        data["annotations"] = [a for a in data["annotations"] if a["category_id"] != 2]

    here = copied(shapes, tmp_path / "one", empty_class)
    two = []
    for split, section in (("train", "TrainDataset"), ("val", "EvalDataset")):
        data = json.loads((tmp_path / "one/annotations" / f"instances_{split}.json").read_text())
        parts = split_in_two(tmp_path / split, data)
        for image in data["images"]:
            for part in "ab":
                if (tmp_path / split / part / image["file_name"]).exists():
                    shutil.copy(tmp_path / "one" / split / image["file_name"],
                                tmp_path / split / part)  # fmt: skip
        two += [f"{section}.dataset_dir={tmp_path / split}",
                f"{section}.image_dir={parts['image_dir']}",
                f"{section}.anno_path={parts['anno_path']}"]  # fmt: skip
    assert train(tiny, tmp_path / "run1", *here) == 0
    assert train(tiny, tmp_path / "run2", *two) == 0
    one, other = (weights.read(tmp_path / p / "model_final.pdparams") for p in ("run1", "run2"))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    one, other = (json.loads((tmp_path / p / "eval.json").read_text()) for p in ("run1", "run2"))
    assert one["stats"] == other["stats"] and one["per_class"] == other["per_class"]
    assert {row["name"]: row["instances"] for row in one["per_class"]}[CLASSES[1]] == 0
    assert {row["name"]: row["AP"] for row in one["per_class"]}[CLASSES[1]] == -1
    # all that reads the config's data knows lists
    options = ["-o", *two]
    assert run("config", ["validate", "--files", str(tiny), *options]) == 0
    assert run("dataset", ["stats", "-c", str(tiny), *options, "--split", "val"]) == 0
    capfd.readouterr()
    # ids that clash could not be told apart in the figures
    path = tmp_path / "val" / "b.json"
    data = json.loads(path.read_text())
    (first,) = json.loads((tmp_path / "val" / "a.json").read_text())["images"][:1]
    for annotation in data["annotations"]:
        if annotation["image_id"] == data["images"][0]["id"]:
            annotation["image_id"] = first["id"]
    data["images"][0]["id"] = first["id"]
    path.write_text(json.dumps(data))
    assert train(tiny, tmp_path / "run3", *two) == 2
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 1 and f"b.json: images: id {first['id']} is also in an earlier" in error[0]


def two_classes(split, data, images):
    data["categories"] = data["categories"][2:]
    kept = {c["id"] for c in data["categories"]}
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] in kept]


def test_fine_tuning_onto_two_classes(shapes, tiny, tmp_path, capfd):
    """The classifier starts anew, all else is loaded, both are said; names go with the weights."""
    assert train(tiny, tmp_path / "four") == 0
    start = tmp_path / "four" / "model_final.pdparams"
    assert storage.class_names(start) == CLASSES
    here = [*copied(shapes, tmp_path / "data", two_classes), "num_classes=2"]
    capfd.readouterr()

    from fcos_recipe.training.trainer import Trainer

    trainer = Trainer(load_config(tiny, here), "cpu")
    before = {k: v.numpy().copy() for k, v in trainer.model.state_dict().items()}
    trainer.load_weights(str(start))
    after = {k: v.numpy() for k, v in trainer.model.state_dict().items()}
    classifier = {"fcos_head.fcos_head_cls.weight", "fcos_head.fcos_head_cls.bias"}
    source = weights.read(start)
    assert set(after) == set(source) > classifier
    for name, value in after.items():
        wanted = before[name] if name in classifier else source[name]
        np.testing.assert_array_equal(value, wanted, err_msg=name)
    # the prior of a new classifier (Lin et al. 2017): 1 in 100
    np.testing.assert_allclose(after["fcos_head.fcos_head_cls.bias"], -np.log(99), rtol=1e-5)
    capfd.readouterr()

    assert train(tiny, tmp_path / "two", f"pretrain_weights={start}", *here) == 0
    said = capfd.readouterr().out
    assert f"{len(source) - 2} loaded; 2 with another shape, not loaded " \
        "(fcos_head.fcos_head_cls.bias, fcos_head.fcos_head_cls.weight)" in said  # fmt: skip
    assert "trained on 4 (circle, square, triangle, star); this data set has 2 (triangle, star): " \
        "the classifier is trained from scratch" in said  # fmt: skip
    run_dir = tmp_path / "two"
    for path in ("model_final.pdparams", "best_model.pdparams", "checkpoints/0001"):
        assert storage.class_names(run_dir / path) == CLASSES[2:]
    assert run("weights", ["convert", str(run_dir / "model_final.pdparams"),
                           str(tmp_path / "moved.safetensors")]) == 0  # fmt: skip
    assert storage.class_names(tmp_path / "moved.safetensors") == CLASSES[2:]
    from fcos_recipe.predict import Predictor

    found = Predictor(run_dir / "model_final.pdparams", device="cpu")
    assert found.names == CLASSES[2:]
    # weights whose classes are others, and as many: numbers decide, and a line says so
    assert run("eval", ["-c", str(tiny), "--weights", str(start), "--no-plots", "--output",
                        str(tmp_path / "e"), "-o", *copied(shapes, tmp_path / "data2", renamed)]
               ) == 0  # fmt: skip
    assert "classes are matched by index, not by name" in capfd.readouterr().out


def renamed(split, data, images):
    data["categories"][0]["name"] = "ring"


def test_training_on_a_part_of_coco_asks_no_network(tiny, tmp_path, root, monkeypatch, capfd):
    """No download by itself, neither of data nor for them: what is missing, and the command."""

    def refuse(*args):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text("{}")
    here = [f"{section}.dataset_dir={tmp_path / 'coco'}" for section in
            ("TrainDataset", "EvalDataset")]  # fmt: skip
    assert train(root / "configs/fcos/fcos_r50_fpn_1x_coco.yml", tmp_path / "run", *here) == 2
    error = capfd.readouterr().err.splitlines()
    assert all("download COCO: python datasets/download_coco.py" in line for line in error)
    assert [line.split("coco/")[1].split(" does")[0] for line in error if "coco/" in line] == [
        "train2017", "val2017", "annotations/instances_val2017.json",
    ]  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_without_data_to_evaluate_on(tiny, tmp_path, capfd):
    here = ["-c", str(tiny), "--output", str(tmp_path / "run"), "-o", "EvalDataset=null", "epoch=1"]
    assert run("train", here) == 0
    assert (tmp_path / "run" / "model_final.pdparams").is_file()
    assert load_config(tmp_path / "run" / "config.yml").data["EvalDataset"] is None
    capfd.readouterr()
    assert run("eval", [*here, "--weights", str(tmp_path / "run" / "model_final.pdparams")]) == 2
    assert "EvalDataset: null, no data to evaluate on" in capfd.readouterr().err
