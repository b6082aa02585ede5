"""COCODataSet: same images and order as stock; missing files give clear errors."""

import json
import logging
import shutil

import numpy as np
import pytest

from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.errors import UserError
from tests.helpers.coco_folders import coco, write

FIELDS = ["image", "gt_bbox", "gt_class", "is_crowd"]


def opened(folder, **arguments):
    dataset = COCODataSet(str(folder), "", "annotations.json", FIELDS, **arguments)
    dataset.check_or_download_dataset()
    dataset.parse_dataset()
    return dataset


def image_ids(dataset):
    return [dataset.image_info(i)["im_id"] for i in range(len(dataset))]


@pytest.fixture
def mixed(tmp_path):
    """Images 10 to 60: 20 has no box, 30 only a crowd, 40's file is missing, 50 only bad boxes."""
    data = coco(images=6, boxes=1)
    boxes = data["annotations"]
    boxes[2]["iscrowd"] = 1
    boxes[4]["bbox"] = [3, 3, 0, 3]
    del boxes[1]
    write(tmp_path, data)
    (tmp_path / "3.jpg").unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [10, 60]),
        ({"load_crowd": True}, [10, 30, 60]),
        ({"allow_empty": True}, [10, 60, 20, 30, 50]),
        ({"allow_empty": True, "empty_ratio": 0.0}, [10, 60]),
        ({"allow_empty": True, "sample_num": 3}, [10, 20, 30]),
        ({"sample_num": 1}, [10]),
        ({"sample_num": 1, "repeat": 3}, [10, 10, 10]),
    ],
)
@pytest.mark.stock
def test_images_and_their_order_are_stocks(mixed, arguments, expected, caplog):
    compat = pytest.importorskip("fcos_recipe.compat")
    dataset = opened(mixed, **arguments)
    assert image_ids(dataset) == expected
    stock = compat.stock("COCODataSet")(
        str(mixed), "", "annotations.json", data_fields=FIELDS, **arguments
    )
    stock.parse_dataset()
    stock_ids = [int(r["im_id"][0]) for r in stock.roidbs] * arguments.get("repeat", 1)
    assert image_ids(dataset) == stock_ids
    assert dataset.catid2clsid == stock.catid2clsid and dataset.cname2cid == stock.cname2cid
    for i, theirs in enumerate(stock.roidbs):
        ours = dataset.record(i)
        for key in ("gt_bbox", "gt_class", "is_crowd", "im_id"):
            assert ours[key].shape == theirs[key].shape
            np.testing.assert_array_equal(ours[key], theirs[key])
        assert ours["gt_bbox"].dtype == theirs["gt_bbox"].dtype
        assert ours["im_file"] == theirs["im_file"]


def test_empty_ratio_draws_by_seed(tmp_path):
    data = coco(images=60, boxes=1)
    data["annotations"] = data["annotations"][:20]
    write(tmp_path, data)
    draws = [
        image_ids(opened(tmp_path, allow_empty=True, empty_ratio=0.5, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert all(len(ids) == 40 for ids in draws)
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.stock
def test_coco_mini_is_stocks(shared):
    compat = pytest.importorskip("fcos_recipe.compat")
    for split in ("train", "val"):
        arguments = dict(
            dataset_dir=str(shared / "data/coco_mini"),
            image_dir=f"{split}2017",
            anno_path=f"annotations/instances_{split}2017.json",
            data_fields=FIELDS,
        )
        ours, stock = COCODataSet(**arguments), compat.stock("COCODataSet")(**arguments)
        ours.check_or_download_dataset()
        ours.parse_dataset()
        stock.parse_dataset()
        assert len(ours) == len(stock.roidbs)
        for i, theirs in enumerate(stock.roidbs):
            record = ours.record(i)
            assert record["im_file"] == theirs["im_file"]
            for key in ("gt_bbox", "gt_class", "is_crowd", "im_id"):
                np.testing.assert_array_equal(record[key], theirs[key])
            assert ours.image_sizes()[i].tolist() == [theirs["h"], theirs["w"]]


def test_records_are_fresh(mixed):
    dataset = opened(mixed)
    dataset.record(0)["gt_bbox"][:] = -1
    assert dataset.record(0)["gt_bbox"].min() > 0


def test_images_without_annotations(tmp_path):
    data = coco(images=3)
    del data["annotations"]
    write(tmp_path, data)
    dataset = opened(tmp_path)
    assert image_ids(dataset) == [10, 20, 30]
    assert set(dataset.record(0)) == {"im_file", "im_id"}
    assert image_ids(opened(tmp_path, sample_num=2)) == [10, 20]


def test_missing_and_dropped_are_told(mixed, caplog):
    with caplog.at_level(logging.WARNING):
        opened(mixed)
    assert "1 of 6 image files do not exist in" in caplog.text
    assert "1 degenerate boxes" in caplog.text


def test_names_in_subfolders_and_in_unicode(tmp_path):
    data = coco(images=3)
    for image, name in zip(data["images"], ("a/b/é 1.jpg", "./2.jpg", "日/3.jpg"), strict=True):
        image["file_name"] = name
    write(tmp_path, data)
    assert image_ids(opened(tmp_path)) == [10, 20, 30]
    shutil.rmtree(tmp_path / "日")
    assert image_ids(opened(tmp_path)) == [10, 20]


@pytest.mark.parametrize(
    ("image_dir", "anno_path", "told"),
    [
        ("train2017", "instances_train2017.json", "annotation file not found.*download_coco.py"),
        ("train2017", "annotations.json", "train2017: image directory.*download_coco.py"),
        ("", "mine.json", "mine.json: annotation file not found; set dataset_dir"),
        ("", None, "anno_path is not set"),
    ],
)
def test_missing_data_names_the_remedy(tmp_path, image_dir, anno_path, told):
    write(tmp_path, coco())
    with pytest.raises(UserError, match=told):
        COCODataSet(str(tmp_path), image_dir, anno_path).check_or_download_dataset()


def test_no_image_left(tmp_path):
    write(tmp_path, coco(), images=False)
    with pytest.raises(UserError, match="no usable images: of 4 listed images, 4 are missing"):
        opened(tmp_path)


def split_in_two(folder, data, rename=True):
    """Write a.json and b.json with half of the images each, in a/ and b/; paths as YAML has them.

    b's categories are in another order and, with `rename`, have other ids.
    """
    ids = [image["id"] for image in data["images"]]
    for name, chosen in (("a", set(ids[: len(ids) // 2])), ("b", set(ids[len(ids) // 2 :]))):
        part = {
            "images": [i for i in data["images"] if i["id"] in chosen],
            "annotations": [dict(a) for a in data["annotations"] if a["image_id"] in chosen],
            "categories": [dict(c) for c in data["categories"]],
        }
        if name == "b" and rename:
            part["categories"].reverse()
            for entry in part["categories"]:
                entry["id"] += 1000
            for annotation in part["annotations"]:
                annotation["category_id"] += 1000
        write(folder / name, part).rename(folder / f"{name}.json")
    return {"image_dir": ["a", "b"], "anno_path": ["a.json", "b.json"]}


def test_two_files_are_the_one_that_they_were(tmp_path):
    """Same order, boxes and classes; classes by name although ids and order differ."""
    data = coco(images=7, boxes=3)
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] not in (20, 60)]
    data["annotations"][-1]["bbox"] = [3, 3, 0, 3]
    write(tmp_path / "one", data)
    sections = split_in_two(tmp_path, data)
    options = {"data_fields": FIELDS, "allow_empty": True}
    one = opened(tmp_path / "one", allow_empty=True)
    two = COCODataSet(str(tmp_path), **sections, **options)
    two.check_or_download_dataset()
    two.parse_dataset()
    assert two.class_names == one.class_names and two.catid2clsid == one.catid2clsid
    assert two.index.counts == one.index.counts == {"degenerate boxes": 1}
    assert image_ids(two) == image_ids(one) and len(one) == 7
    np.testing.assert_array_equal(two.image_sizes(), one.image_sizes())
    for i in range(len(one)):
        ours, theirs = two.record(i), one.record(i)
        for key in ("gt_bbox", "gt_class", "is_crowd", "im_id"):
            np.testing.assert_array_equal(ours[key], theirs[key])
        folder = "a" if ours["im_id"] <= 30 else "b"
        assert ours["im_file"] == str(tmp_path / folder / theirs["im_file"].rsplit("/", 1)[1])
    assert two.get_anno() == [str(tmp_path / "a.json"), str(tmp_path / "b.json")]


def test_ids_may_clash_between_files_that_are_trained_on(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, coco(images=2)).rename(tmp_path / f"{name}.json")
    two = COCODataSet(str(tmp_path), ["a", "b"], ["a.json", "b.json"], FIELDS)
    two.check_or_download_dataset()
    two.parse_dataset()
    assert image_ids(two) == [10, 20, 10, 20]
    assert [two.record(i)["im_file"].rsplit("/", 2)[1] for i in range(4)] == ["a", "a", "b", "b"]


def drop(data):
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] != 3]
    data["categories"].pop()


@pytest.mark.parametrize(
    ("change", "folders", "told"),
    [
        (lambda d: d["categories"][1].update(name="dog"), "ab", "b.json: categories: 'dog' is not"),
        (drop, "ab", "b.json: categories: 'class 3' is missing, .*a.json has it"),
        (lambda d: d["categories"].append({"id": 9, "name": "class 7"}), "ab", "occurs twice"),
        (lambda d: None, "aa", "0.jpg: listed in .*a.json and in .*b.json"),
        (lambda d: d.pop("annotations"), "ab", "b.json and .*a.json: only one of them has"),
        (lambda d: None, "abb", "image_dir has 3 entries, anno_path has 2"),
        (lambda d: None, "ac", "c: image directory not found"),
    ],
)
def test_files_that_do_not_go_together_are_refused(tmp_path, change, folders, told):
    for name in ("a", "b"):
        data = coco(images=2)
        if name == "b":
            change(data)
        write(tmp_path / name, data).rename(tmp_path / f"{name}.json")
    two = COCODataSet(str(tmp_path), list(folders), ["a.json", "b.json"], FIELDS)
    with pytest.raises(UserError, match=told):
        two.check_or_download_dataset()
        two.parse_dataset()


def test_a_part_of_coco_names_the_command_that_gets_the_rest(tmp_path, caplog):
    data = coco(images=3)
    write(tmp_path / "train2017", data).rename(tmp_path / "instances_train2017.json")
    (tmp_path / "train2017" / "1.jpg").unlink()
    dataset = COCODataSet(str(tmp_path), "train2017", "instances_train2017.json", FIELDS)
    dataset.check_or_download_dataset()
    with caplog.at_level(logging.WARNING):
        dataset.parse_dataset()
    assert "1 of 3 image files do not exist in" in caplog.text
    assert "python datasets/download_coco.py" in caplog.text


def test_repeat_factors_are_those_of_the_paper(shapes):
    """Gupta et al. 2019, section 4, computed from the file by definition."""
    path = shapes / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for row in content["annotations"][::5]:
        row["iscrowd"] = 1  # not trained on, so it does not count
    made = path.with_name("crowded.json")
    made.write_text(json.dumps(content))
    dataset = COCODataSet("", str(shapes / "train"), str(made), allow_empty=True, repeat=2)
    dataset.parse_dataset()
    classes = {
        dataset.image_info(i)["im_id"]: {
            row["category_id"] for row in content["annotations"]
            if row["image_id"] == dataset.image_info(i)["im_id"] and not row["iscrowd"]
        }
        for i in range(len(dataset))
    }  # fmt: skip
    assert set() in classes.values()
    found = []
    for threshold in (0.1, 0.6, 1.0):
        share = {c: sum(c in of for of in classes.values()) / len(classes)
                 for c in range(9) if any(c in of for of in classes.values())}  # fmt: skip
        expected = [
            max([1.0, *(max(1.0, (threshold / share[c]) ** 0.5)
                        for c in classes[dataset.image_info(i)["im_id"]])])
            for i in range(len(dataset))
        ]  # fmt: skip
        found.append(dataset.repeat_factors(threshold))
        np.testing.assert_allclose(found[-1], expected, rtol=1e-12)
    assert found[0].max() == 1 < found[-1].max()
