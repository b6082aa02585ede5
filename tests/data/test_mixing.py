"""Mosaic, Mixup and Cutmix: PaddleDetection's operators on samples drawn from the sample's seed."""

import copy

import numpy as np
import pytest

from fcos_recipe.compat import stock
from fcos_recipe.config.schema import MIXING
from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.data.images import decode
from fcos_recipe.data.reader import TrainReader
from fcos_recipe.data.transforms import seed_stock

ARGUMENTS = {"Mosaic": {"input_dim": [96, 128], "prob": 1.0}, "Mixup": {}, "Cutmix": {}}
REST = [{"Resize": {"target_size": [96, 128], "keep_ratio": False}}, {"NormalizeImage": {}},
        {"Permute": {}}]  # fmt: skip


def pipeline(shapes, name: str, last: int):
    dataset = COCODataSet(
        str(shapes),
        "train",
        "annotations/instances_train.json",
        data_fields=["image", "gt_bbox", "gt_class", "is_crowd"],
    )
    argument, _ = MIXING[name]
    reader = TrainReader([{"Decode": {}}, {name: ARGUMENTS[name]}, *copy.deepcopy(REST)],
                         [{"PadBatch": {"pad_to_stride": 32}}], num_classes=4, seed=5,
                         **{argument: last})  # fmt: skip
    reader(dataset)
    made = reader._load([[(0, 0)]]).dataset
    return made, dataset


@pytest.mark.parametrize("name", MIXING)
def test_pixels_and_boxes_are_those_of_the_operators(name, shapes):
    made, dataset = pipeline(shapes, name, 2)
    operators = [
        stock(name)(**ARGUMENTS[name]),
        *(stock(n)(**a) for x in REST for n, a in x.items()),
    ]
    for epoch, i in ((0, 0), (0, 3), (1, 3), (2, 3)):
        rng = np.random.default_rng([5, epoch, i])
        count = MIXING[name][1] if epoch < 2 else 0
        drawn = [int(k) for k in rng.integers(len(dataset), size=count)] if count else []
        seed_stock(rng)
        sample = [decode(dataset.record(k)) for k in (i, *drawn)]
        sample = sample if drawn else sample[0]
        for operator in operators:
            sample = operator(sample)
        found, bad = made[(epoch, i)]
        assert not bad
        np.testing.assert_array_equal(found["image"], sample["image"])
        np.testing.assert_array_equal(found["gt_bbox"], sample["gt_bbox"])
        np.testing.assert_array_equal(found["gt_class"], sample["gt_class"])


@pytest.mark.parametrize("name", MIXING)
def test_mixing_depends_on_seed_epoch_and_image_alone(name, shapes):
    made, _ = pipeline(shapes, name, 0)
    first = made[(0, 1)][0]["image"]
    np.random.seed(0)
    assert (made[(7, 1)][0]["image"] != first).any()
    np.testing.assert_array_equal(made[(0, 1)][0]["image"], first)


def test_gridmask_masks_more_often_from_epoch_to_epoch(shapes):
    """Its probability grows with the images read: those of all earlier epochs, also if resumed."""

    def made(prob: float):
        dataset = COCODataSet(str(shapes), "train", "annotations/instances_train.json",
                              data_fields=["image", "gt_bbox", "gt_class"])  # fmt: skip
        grid = {"GridMask": {"prob": prob, "upper_iter": 240}}  # ten epochs of 24 images
        reader = TrainReader([{"Decode": {}}, grid, *copy.deepcopy(REST)],
                             [{"PadBatch": {"pad_to_stride": 32}}], num_classes=4)  # fmt: skip
        return reader(dataset)._load([[(0, 0)]]).dataset

    never, growing = made(0.0), made(1.0)
    masked = [
        sum((growing[(epoch, i)][0]["image"] != never[(epoch, i)][0]["image"]).any()
            for i in range(24))
        for epoch in (0, 5, 10)
    ]  # fmt: skip
    assert masked[0] == 0 < masked[1] < 20 < masked[2]  # some masks hide nothing
