"""Target assignment equals that of stock paddledet at every location."""

import json
import sys

import numpy as np
import pytest

from fcos_recipe.data.targets import Assignment, Gt2FCOSTarget, assign, collate, grid_shapes

STRIDES = [8, 16, 32, 64, 128]
BOUNDARY = [64, 128, 256, 512]


def stock_target(**arguments):
    """Stock's operator, with the reshape keyword that NumPy 2.4 no longer has put back."""
    # Through compat: ppdet alone asks for packages that FCOS does not need.
    operator = pytest.importorskip("fcos_recipe.compat").stock("Gt2FCOSTarget")(**arguments)
    operators = sys.modules[type(operator).__module__]

    def call(samples, reshape=np.reshape):
        class Numpy:  # only this module's view of NumPy, only while stock runs
            def __getattr__(self, name):
                return getattr(np, name)

            @staticmethod
            def reshape(array, newshape):
                return reshape(array, newshape)

        saved, operators.np = operators.np, Numpy()
        try:
            with np.errstate(all="ignore"):
                return operator(samples)
        finally:
            operators.np = saved

    return call


def check_same(stock, arguments, boxes, classes, height, width):
    """All locations of a batch of images against stock's dense maps."""
    samples = [
        {
            "image": np.broadcast_to(np.float32(0), (3, height, width)),
            "gt_bbox": box.copy(),
            "gt_class": label.reshape(-1, 1),
        }
        for box, label in zip(boxes, classes)
    ]
    stock(samples)
    ours = Gt2FCOSTarget(**arguments)(boxes, classes, height, width)
    levels = range(len(arguments["downsample_ratios"]))

    def flat(name, channels):
        return np.concatenate(
            [np.stack([s[f"{name}{lvl}"] for s in samples]).reshape(-1, channels) for lvl in levels]
        )

    label, reg, centerness = flat("labels", 1)[:, 0], flat("reg_target", 4), flat("centerness", 1)
    count = int(ours["num_pos"][0])
    index = ours["pos_index"][:count]
    dense = np.zeros(len(label), np.int64)
    dense[index] = ours["pos_label"][:count] + 1
    assert len(np.unique(index)) == count
    np.testing.assert_array_equal(dense, label)
    np.testing.assert_array_equal(ours["pos_reg"][:count], reg[index].astype(np.float32))
    np.testing.assert_array_equal(ours["pos_centerness"][:count], centerness[index, 0])
    return count


@pytest.mark.stock
def test_identical_on_all_of_coco_mini(shared):
    arguments = dict(
        object_sizes_boundary=BOUNDARY, center_sampling_radius=1.5, downsample_ratios=STRIDES
    )
    stock = stock_target(**arguments)
    positives = 0
    for split in ("train", "val"):
        path = shared / f"data/coco_mini/annotations/instances_{split}2017.json"
        data = json.loads(path.read_text())
        by_image = {}
        for annotation in data["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        for number, image in enumerate(data["images"]):
            annotations = by_image.get(image["id"], [])
            if not annotations:
                continue
            xywh = np.array([a["bbox"] for a in annotations])
            box = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1).astype(np.float32)
            label = np.array([a["category_id"] for a in annotations])
            # Stock takes 0.1 s per image at 800.
            short = 800 if number % 16 == 0 else (384, 320, 256, 192)[number % 4]
            scale = short / min(image["height"], image["width"])
            box *= scale
            flipped = box.copy()
            flipped[:, [0, 2]] = image["width"] * scale - box[:, [2, 0]]
            height = int(np.ceil(image["height"] * scale / 32)) * 32
            width = int(np.ceil(image["width"] * scale / 32)) * 32
            positives += check_same(stock, arguments, [box, flipped], [label] * 2, height, width)
    assert positives > 9_000


@pytest.mark.stock
@pytest.mark.parametrize("radius", [1.5, 2.5, 0.25, 0, -1])
@pytest.mark.parametrize(
    "extra",
    [{}, {"multiply_strides_reg_targets": True}, {"norm_reg_targets": False}, {"num_shift": 0.3}],
)
def test_identical_on_ties_and_edges(radius, extra):
    """Random boxes on a grid of whole and half pixels, so that points hit sides, centres coincide
    and areas tie; some reach outside, some are degenerate."""
    arguments = dict(
        object_sizes_boundary=BOUNDARY,
        center_sampling_radius=radius,
        downsample_ratios=STRIDES,
        **extra,
    )
    stock = stock_target(**arguments)
    rng = np.random.default_rng(7)
    for trial in range(6):
        count = int(rng.integers(1, 30))
        start = rng.integers(-16, 150, (count, 2)) * 2.0
        size = rng.choice([0, 4, 8, 16, 31.5, 64, 100, 128, 256, 512], (count, 2))
        box = np.concatenate([start, start + size], axis=1).astype(np.float32)
        box = np.concatenate([box, box[: count // 2]])  # the same box under another class
        label = rng.integers(0, 80, len(box))
        check_same(stock, arguments, [box], [label], 256 + 32 * trial, 300)


def test_range_bounds_are_exclusive():
    """The largest distance of the location at (100, 100) is exactly the first bound."""
    box = np.array([[36, 36, 164, 164]], np.float32)
    for bound, owned in ((64, []), (65, [12 * 25 + 12])):
        targets = assign(box, np.array([5]), 200, 200, Assignment([8], [(-1, bound)], radius=0.25))
        assert targets.cell.tolist() == owned


def test_no_box_and_padding_row():
    empty, label = np.zeros((0, 4), np.float32), np.zeros((0, 1), np.int32)
    operator = Gt2FCOSTarget(BOUNDARY, 1.5, STRIDES)
    batch = operator([empty, empty], [label, label], 256, 320)
    assert batch["num_pos"].tolist() == [0]
    assert {k: v.shape for k, v in batch.items()} == {
        "pos_index": (1,),
        "pos_label": (1,),
        "pos_reg": (1, 4),
        "pos_centerness": (1,),
        "num_pos": (1,),
    }
    one = np.array([[10, 10, 40, 40]], np.float32)
    both = operator([empty, one], [label, np.array([[3]])], 256, 320)
    assert both["num_pos"][0] > 0 and (both["pos_label"] == 3).all()
    assert (both["pos_index"] >= 32 * 40).all()  # the second image's raster


def test_dtypes_and_positions():
    grids = grid_shapes(100, 130, [8, 16])
    assert grids == [(13, 17), (7, 9)]
    box = np.array([[0, 0, 130, 100]], np.float32)
    targets = assign(
        box, np.array([1]), 100, 130, Assignment([8, 16], [(-1, 64), (64, np.inf)], radius=0)
    )
    batch = collate([targets], grids)
    assert [batch[k].dtype for k in ("pos_reg", "pos_centerness")] == [np.float32] * 2
    level1 = batch["pos_index"] >= 13 * 17
    np.testing.assert_array_equal(batch["pos_index"][~level1], targets.cell[targets.level == 0])
    np.testing.assert_array_equal(
        batch["pos_index"][level1] - 13 * 17, targets.cell[targets.level == 1]
    )


def test_wrong_number_of_levels_is_told():
    with pytest.raises(ValueError, match="4 object_sizes_boundary"):
        Gt2FCOSTarget([64, 128], 1.5, STRIDES)


def test_images_at_once_are_the_images_one_by_one():
    rng = np.random.default_rng(7)
    rules = Assignment([8, 16], [(-1, 64), (64, np.inf)], radius=1.5)
    start = rng.uniform(0, 150, (60, 2))
    boxes = np.concatenate([start, start + rng.uniform(2, 160, (60, 2))], 1).astype(np.float32)
    image = np.sort(rng.integers(0, 5, 60))
    together = assign(boxes, np.arange(60), 320, 320, rules, image)
    cells = np.array([h * w for h, w in grid_shapes(320, 320, rules.strides)])[together.level]
    for i in range(5):
        own = np.flatnonzero(image == i)
        alone = assign(boxes[own], own, 320, 320, rules)
        mine = together.cell // cells == i
        assert len(alone.level) == mine.sum() > 0
        np.testing.assert_array_equal(together.cell[mine] % cells[mine], alone.cell)
        for name in ("level", "label", "reg", "centerness"):
            np.testing.assert_array_equal(getattr(together, name)[mine], getattr(alone, name))
