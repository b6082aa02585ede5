"""COCODataSet: stock's choice and order of images, and what is missing told in words."""

import logging
import shutil

import numpy as np
import pytest

from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.errors import UserError
from tests.data.conftest import coco, write

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
    assert "1 of 6 images are not in" in caplog.text
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
    with pytest.raises(UserError, match="no image to use: 4 listed, 4 of them missing"):
        opened(tmp_path)
