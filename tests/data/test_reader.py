"""Batches equal stock's and are reproducible; bad images are reported and skipped."""

import logging
import os
from itertools import islice

import cv2
import numpy as np
import pytest

from fcos_recipe.data import reader as module
from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.data.images import BadImage, read_image
from fcos_recipe.data.reader import (
    EvalReader,
    TrainReader,
    shared_memory_fits,
    worker_count,
)
from fcos_recipe.data.transforms import StockChain, UsualChain, transformed
from fcos_recipe.errors import UserError
from tests.data.test_targets import check_same, stock_target
from tests.helpers.coco_folders import coco, write

FIELDS = ["image", "gt_bbox", "gt_class", "is_crowd"]
NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True}
TARGET = {
    "object_sizes_boundary": [64, 128, 256, 512],
    "center_sampling_radius": 1.5,
    "downsample_ratios": [8, 16, 32, 64, 128],
    "norm_reg_targets": True,
}


def chain(size=(64, 96), flip=0.5, pad=32, targets=True):
    sample = [
        {"Decode": {}},
        {"Resize": {"target_size": list(size), "keep_ratio": True, "interp": 1}},
        {"NormalizeImage": NORMALIZE},
    ]
    batch = [{"Permute": {}}, {"PadBatch": {"pad_to_stride": pad}}]
    if flip is not None:
        sample.append({"RandomFlip": {"prob": flip}})
    if targets:
        batch.append({"Gt2FCOSTarget": TARGET})
    return {"sample_transforms": sample, "batch_transforms": batch}


def mini(shared, split="train"):
    return COCODataSet(
        str(shared / "data/coco_mini"), f"{split}2017", f"annotations/instances_{split}2017.json",
        FIELDS,
    )  # fmt: skip


def folder(path, **arguments):
    return COCODataSet(str(path), "", "annotations.json", FIELDS, **arguments)


def arrays(batches):
    return [{key: value.numpy() for key, value in batch.items()} for batch in batches]


def check_equal(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert list(a) == list(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def normalized(batch):
    """What the model makes of a uint8 batch: normalised inside im_shape, zero outside."""
    pixels = batch["image"].astype(np.float64)
    rows, columns = np.arange(pixels.shape[1]), np.arange(pixels.shape[2])
    inside = (rows[None, :, None] < batch["im_shape"][:, :1, None]) & (
        columns[None, None, :] < batch["im_shape"][:, 1:, None]
    )
    result = (pixels / 255 - NORMALIZE["mean"]) / NORMALIZE["std"] * inside[..., None]
    return result.transpose(0, 3, 1, 2)


@pytest.mark.stock
@pytest.mark.parametrize(
    ("size", "flip", "pad"),
    [([800, 1333], 0.0, 128), ([800, 1333], 1.0, 32), ([333, 500], 1.0, 32), ([240, 320], 0.0, 1)],
)
def test_pixels_and_targets_are_stocks(shared, size, flip, pad):
    compat = pytest.importorskip("fcos_recipe.compat")
    dataset = mini(shared)
    transforms = chain(size, flip, pad)
    reader = TrainReader(**transforms, batch_size=3, shuffle=False)(dataset)
    assert isinstance(reader.chain, UsualChain)
    stock_dataset = compat.stock("COCODataSet")(
        dataset.dataset_dir, dataset.image_dir, dataset.anno_path, data_fields=FIELDS
    )
    stock_dataset.parse_dataset()
    operators = [
        compat.stock(name)(**arguments)
        for entry in transforms["sample_transforms"] + transforms["batch_transforms"][:2]
        for name, arguments in entry.items()
    ]
    stock_targets = stock_target(**TARGET)
    for number, batch in enumerate(arrays(islice(reader, 3 if size[0] == 800 else 15))):
        samples = [dict(r) for r in stock_dataset.roidbs[3 * number : 3 * number + 3]]
        for sample in samples:
            sample["gt_bbox"] = sample["gt_bbox"].copy()
        for operator in operators:
            samples = operator(samples)
        stock = np.stack([s["image"] for s in samples])
        np.testing.assert_allclose(normalized(batch), stock, rtol=0, atol=1e-6)
        for key in ("scale_factor", "im_id"):
            np.testing.assert_array_equal(batch[key], np.stack([s[key] for s in samples]))
        np.testing.assert_allclose(batch["im_shape"], [s["im_shape"] for s in samples], atol=0.5)
        if number % 10 == 0:
            boxes = [s["gt_bbox"] for s in samples]
            classes = [s["gt_class"] for s in samples]
            check_same(stock_targets, TARGET, boxes, classes, *stock.shape[2:])
            expected = reader.target(boxes, classes, *stock.shape[2:])
            for key, value in expected.items():
                np.testing.assert_array_equal(batch[key], value)


@pytest.mark.stock
def test_generic_path_is_stock_and_agrees_with_the_lean_one(shared):
    transforms = chain([240, 320], 1.0)
    dataset = mini(shared)
    dataset.check_or_download_dataset()
    dataset.parse_dataset()
    lean = UsualChain.of(**transforms)
    generic = StockChain(**transforms, classes=80)
    rng = np.random.default_rng
    for i in (0, 5, 9):
        one = lean.sample(dataset.record(i), rng(0))
        two = generic.sample(dataset.record(i), rng(0))
        np.testing.assert_array_equal(one["gt_bbox"], two["gt_bbox"])
        pixels = {**lean.batch([one]), "im_shape": one["im_shape"][None]}
        image = generic.batch([two])["image"]
        np.testing.assert_allclose(normalized(pixels), image, rtol=0, atol=1e-6)
        assert tuple(lean.size(pixels["image"])) == tuple(generic.size(image)) == image.shape[2:]


@pytest.mark.stock
def test_any_stock_transform_trains_and_repeats(shared):
    transforms = chain([120, 160])
    transforms["sample_transforms"].insert(1, {"RandomDistort": {}})
    transforms["sample_transforms"].insert(2, {"RandomCrop": {}})
    runs = []
    for workers in (0, 2):
        reader = TrainReader(**transforms, batch_size=4)(mini(shared), workers)
        assert isinstance(reader.chain, StockChain)
        reader.set_epoch(1)
        runs.append(arrays(islice(reader, 4)))
    check_equal(*runs)
    assert runs[0][0]["image"].dtype == np.float32 and runs[0][0]["image"].shape[:2] == (4, 3)
    assert "pos_index" in runs[0][0]


@pytest.mark.parametrize(
    ("change", "lean"),
    [
        (lambda s, b: None, True),
        (lambda s, b: s.insert(1, s.pop()), True),  # flip first
        (lambda s, b: s.append(b.pop(0)), True),  # Permute as a sample transform
        (lambda s, b: s.pop(1), True),  # no resize
        (lambda s, b: s[1].update({"RandomResize": {"target_size": [[1, 2]]}}), False),  # two
        (lambda s, b: s.insert(1, s.pop(2)), False),  # resize after normalising
        (lambda s, b: s.insert(1, {"RandomDistort": {}}), False),
        (lambda s, b: s.pop(2), False),  # not normalised
        (lambda s, b: b.pop(1), False),  # not padded
        (lambda s, b: s[2]["NormalizeImage"].update(norm_type="none"), False),
    ],
)
def test_which_chains_are_lean(change, lean):
    transforms = chain()
    sample, batch = ([{k: dict(v) for k, v in t.items()} for t in x] for x in transforms.values())
    change(sample, batch)
    assert (UsualChain.of(sample, batch) is not None) == lean


def test_random_resize_draws_per_image(tmp_path):
    write(tmp_path, coco(images=40))
    for option, shorts in (
        ({"target_size": [[32, 64], [48, 96], [40, 80]]}, {32, 40, 48}),
        ({"target_size": [[30, 80], [36, 80]], "random_range": True, "random_size": False},
         set(range(30, 37))),
    ):  # fmt: skip
        transforms = chain(flip=None)
        transforms["sample_transforms"][1] = {"RandomResize": {"keep_ratio": True, **option}}
        reader = TrainReader(**transforms, num_classes=2, batch_size=4)(folder(tmp_path))
        seen = {int(h) for b in arrays(iter(reader)) for h in b["im_shape"][:, 0]}
        assert seen <= shorts and len(seen) >= 3


def test_same_batches_from_any_number_of_workers(tmp_path):
    """And each epoch of its own, although workers start before the second one begins."""
    write(tmp_path, coco(images=9))
    runs = []
    for workers in (0, 1, 2):
        reader = TrainReader(**chain(), num_classes=2, batch_size=2, seed=4)(
            folder(tmp_path), workers
        )
        run = []
        for epoch in range(3):
            reader.set_epoch(epoch)
            run.append(arrays(iter(reader)))
            assert len(run[-1]) == len(reader) == 4
        runs.append(run)
    for epoch in range(3):
        check_equal(runs[0][epoch], runs[1][epoch])
        check_equal(runs[0][epoch], runs[2][epoch])
    by_image = [
        {
            int(i): image
            for b in epoch
            for i, image in zip(b["im_id"][:, 0], b["image"], strict=True)
        }
        for epoch in runs[0]
    ]
    common = set.intersection(*map(set, by_image))
    mirrored = [(by_image[0][i] != by_image[1][i]).any() for i in common]
    assert any(mirrored) and not all(mirrored)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_in_the_middle(tmp_path, workers):
    write(tmp_path, coco(images=12))

    def new():
        return TrainReader(**chain(), num_classes=2, batch_size=2, seed=1)(
            folder(tmp_path), workers
        )

    reader = new()
    whole = [arrays(iter(reader)) for _ in range(3)]  # the epoch counts itself
    reader = new()
    reader.set_epoch(1, step=4)
    check_equal(arrays(iter(reader)), whole[1][4:])
    check_equal(arrays(iter(reader)), whole[2])
    # A pass that is left early, and another epoch out of order.
    reader.set_epoch(0)
    check_equal(arrays(islice(reader, 2)), whole[0][:2])
    reader.set_epoch(2)
    check_equal(arrays(iter(reader)), whole[2])


def spoil(path):
    (path / "1.jpg").write_bytes(b"")
    (path / "3.jpg").write_bytes(b"not a picture")
    (path / "4.jpg").write_bytes((path / "4.jpg").read_bytes()[:30])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_in_training(tmp_path, workers, caplog):
    write(tmp_path, coco(images=8))
    spoil(tmp_path)
    reader = TrainReader(**chain(), num_classes=2, batch_size=2)(folder(tmp_path), workers)
    with caplog.at_level(logging.WARNING):
        batches = [batch for epoch in range(2) for batch in arrays(iter(reader))]
    assert [len(b["im_id"]) for b in batches] == [2] * 8
    assert not {20, 40, 50} & {int(i) for b in batches for i in b["im_id"][:, 0]}
    assert len(reader.bad_images) == 3
    for name, reason in (("1.jpg", "empty file"), ("3.jpg", "not an image"), ("4.jpg", "")):
        assert caplog.text.count(f"{tmp_path}/{name}: {reason}") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_images_stop_the_run(tmp_path, workers):
    write(tmp_path, coco(images=8))
    spoil(tmp_path)
    reader = TrainReader(**chain(), num_classes=2, batch_size=2, max_bad_images=2)(
        folder(tmp_path), workers
    )
    with pytest.raises(UserError, match="3 unreadable images .max_bad_images: 2") as error:
        list(reader)
    assert all(name in str(error.value) for name in ("1.jpg", "3.jpg", "4.jpg"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [TrainReader, EvalReader])
def test_an_image_too_thin_to_resize_is_skipped_by_name(tmp_path, workers, kind, caplog):
    write(tmp_path, coco(images=4))
    cv2.imwrite(str(tmp_path / "2.jpg"), np.zeros((2, 3000, 3), np.uint8))
    targets = kind is TrainReader
    reader = kind(**chain((64, 64), flip=None, targets=targets), num_classes=2, batch_size=2)(
        folder(tmp_path), workers
    )
    with caplog.at_level(logging.WARNING):
        ids = {int(i) for batch in arrays(iter(reader)) for i in batch["im_id"][:, 0]}
    assert ids <= {10, 20, 40} and (targets or ids == {10, 20, 40})
    assert len(reader.bad_images) == 1
    assert f"{tmp_path}/2.jpg: a transform fails on its 3000x2 pixels (error: " in caplog.text


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), IndexError(3), AssertionError(), ZeroDivisionError("x" * 900),
              cv2.error("native"), RuntimeError("é"), KeyError("gt_bbox")],
)  # fmt: skip
def test_any_error_of_a_transform_is_that_of_its_image(error):
    class Fails:
        def sample(self, record, rng):
            raise error

    with pytest.raises(BadImage) as told:
        transformed(Fails(), {"im_file": "a.jpg"}, np.random.default_rng(0))
    text = str(told.value)
    assert text.startswith("a.jpg: ") and type(error).__name__ in text
    assert len(text.splitlines()) == 1 and len(text) < 400
    error = UserError("says where it is")
    with pytest.raises(UserError, match="says where"):
        transformed(Fails(), {"im_file": "a.jpg"}, np.random.default_rng(0))


def test_no_readable_image_at_all(tmp_path):
    write(tmp_path, coco(images=4))
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    reader = TrainReader(**chain(), num_classes=2, batch_size=2)(folder(tmp_path))
    with pytest.raises(UserError, match="4 unreadable images"):
        list(reader)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("without", ["Decode", "PadBatch"])
def test_a_batch_that_cannot_be_made_ends_the_run_in_one_line(tmp_path, workers, without):
    write(tmp_path, coco(images=4))
    lists = {
        name: [item for item in items if without not in item] for name, items in chain().items()
    }
    lists["sample_transforms"] = [x for x in lists["sample_transforms"] if "Resize" not in x]
    for image in tmp_path.glob("*.jpg"):  # of different sizes
        cv2.imwrite(str(image), np.zeros((20 + int(image.stem), 30, 3), np.uint8))
    reader = TrainReader(**lists, num_classes=2, batch_size=2)(folder(tmp_path), workers)
    with pytest.raises(UserError, match="Error|sample_transforms, of which Decode") as error:
        list(reader)
    assert len(str(error.value).splitlines()) == 1
    reader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_leaves_bad_images_out(tmp_path, workers, caplog):
    write(tmp_path, coco(images=7))
    spoil(tmp_path)
    (tmp_path / "2.jpg").write_bytes(b"")
    reader = EvalReader(**chain(flip=None, targets=False), num_classes=2)(
        folder(tmp_path), workers, batch_sampler=[[0, 1], [2, 3], [4, 5, 6]]
    )
    for _ in range(2):
        ids = [batch["im_id"][:, 0].tolist() for batch in arrays(iter(reader))]
        assert ids == [[10], [60, 70]]
    assert len(reader) == 3 and len(reader.bad_images) == 4


@pytest.mark.stock
def test_test_reader_takes_stocks_image_folder(shared):
    compat = pytest.importorskip("fcos_recipe.compat")
    images = sorted((shared / "data/coco_mini/val2017").glob("*.jpg"))[:3]
    dataset = compat.stock("ImageFolder")()
    dataset.set_images([str(image) for image in images])
    reader = module.TestReader(**chain(flip=None, targets=False), fuse_normalize=True)(dataset, 0)
    batches = arrays(iter(reader))
    assert [int(batch["im_id"][0, 0]) for batch in batches] == [0, 1, 2]
    assert batches[0]["image"].dtype == np.uint8


def test_images_without_boxes_train(tmp_path):
    data = coco(images=4)
    data["annotations"] = []
    write(tmp_path, data)
    reader = TrainReader(**chain(), num_classes=2, batch_size=2)(folder(tmp_path, allow_empty=True))
    for batch in arrays(iter(reader)):
        assert batch["num_pos"].tolist() == [0] and batch["pos_reg"].shape == (1, 4)


def test_boxes_are_clipped_also_without_a_resize(tmp_path):
    data = coco(images=1, boxes=1)
    data["annotations"][0]["bbox"] = [-20, -10, 300, 200]
    write(tmp_path, data)
    transforms = chain(flip=None)
    del transforms["sample_transforms"][1]
    dataset = folder(tmp_path)
    dataset.parse_dataset()
    sample = UsualChain.of(**transforms).sample(dataset.record(0), np.random.default_rng(0))
    assert sample["gt_bbox"].tolist() == [[0, 0, 64, 48]]


def test_exif_and_grey_images_decode_as_in_opencv(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name, shape in (("turned.jpg", (30, 20, 3)), ("grey.png", (20, 30, 3)),
                        ("cmyk.jpg", (20, 30, 3))):  # fmt: skip
        image = read_image(str(tmp_path / name))
        expected = cv2.cvtColor(cv2.imread(str(tmp_path / name)), cv2.COLOR_BGR2RGB)
        assert image.shape == shape
        np.testing.assert_array_equal(image, expected)


def test_number_of_classes_must_agree(tmp_path):
    write(tmp_path, coco())
    with pytest.raises(UserError, match="has 2 classes.*num_classes: 80; set num_classes: 2"):
        TrainReader(**chain())(folder(tmp_path))


def test_groups_from_yaml_key(tmp_path):
    data = coco(images=24)
    for i, image in enumerate(data["images"]):
        image["height"], image["width"] = [(48, 64), (64, 48)][i % 2]
    write(tmp_path, data)
    reader = TrainReader(**chain(), num_classes=2, batch_size=4, group_by_aspect=True)(
        folder(tmp_path)
    )
    for batch in arrays(iter(reader)):
        assert len({h > w for h, w in batch["im_shape"].tolist()}) == 1


def test_ranks_share_an_epoch(tmp_path, monkeypatch):
    write(tmp_path, coco(images=8))
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    seen = []
    for rank in range(2):
        monkeypatch.setenv("PADDLE_TRAINER_ID", str(rank))
        reader = TrainReader(**chain(), num_classes=2, batch_size=2)(folder(tmp_path))
        assert len(reader) == 2
        seen += [int(i) for b in arrays(iter(reader)) for i in b["im_id"][:, 0]]
    assert sorted(seen) == [10 * (i + 1) for i in range(8)]


def test_worker_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    counts = [worker_count("auto", cards) for cards in (1, 2, 4, 8, 16, 32)]
    assert counts == [8, 7, 3, 1, 0, 0]
    assert worker_count(5, 8) == 5 and worker_count("3", 1) == 3


def test_small_shared_memory_is_told_once(caplog, tmp_path):
    class Small:
        f_bavail, f_frsize = 64, 1 << 20

    original = os.statvfs
    assert shared_memory_fits(1, 0, 1) is False and not caplog.text  # no workers, no need
    try:
        os.statvfs = lambda path: Small
        with caplog.at_level(logging.WARNING):
            assert not shared_memory_fits(16, 8, 1)
    finally:
        os.statvfs = original
    assert len(caplog.records) == 1 and "64 MB free" in caplog.text
    assert shared_memory_fits(2, 1, 1, str(tmp_path))


def test_training_on_a_file_of_images_only_is_refused_in_words(tmp_path):
    data = coco()
    del data["annotations"]
    write(tmp_path, data)
    with pytest.raises(UserError, match="annotations.json: no annotations"):
        TrainReader(**chain(), num_classes=2)(folder(tmp_path))


@pytest.mark.parametrize("where", ["resize", "imdecode", "stack"])
def test_full_memory_is_neither_a_bad_image_nor_a_bad_transform(where, tmp_path, monkeypatch):
    """OpenCV has an error of its own for it, and threads of DataLoader only pass text on."""

    def full(*_, **__):
        error = cv2.error("Insufficient memory") if where != "stack" else MemoryError()
        error.code, error.err = cv2.Error.StsNoMem, "Failed to allocate 9 bytes"
        raise error

    write(tmp_path, coco(images=2))
    reader = EvalReader(**chain(flip=None, targets=False), num_classes=2)(
        folder(tmp_path), 0, batch_sampler=[[0, 1]]
    )
    monkeypatch.setattr(cv2 if where != "stack" else np, where, full)
    with pytest.raises(MemoryError):
        list(reader)
    reader.close()
