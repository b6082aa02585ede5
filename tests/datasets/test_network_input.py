"""`browse --network-input` shows exactly what training's loader gives the model."""

import json

import numpy as np
import pytest

from fcos_recipe.config.load import load_config
from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.data.reader import TrainReader
from fcos_recipe.datasets.locate import RULES, Source
from fcos_recipe.datasets.look.network_input import FIELDS, NetworkInput, Pixels

COCO, BCCD = ("coco_mini", "train2017"), ("bccd", "train")
CROPS = [  # a chain that stock's transforms run
    {"Decode": {}},
    {"RandomExpand": {"fill_value": [124, 116, 104], "prob": 1.0}},
    {"RandomCrop": {}},
    {"Resize": {"target_size": [320, 480], "keep_ratio": True, "interp": 1}},
    {"RandomFlip": {}},
    {"NormalizeImage": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "is_scale": True}},
    {"Permute": {}},
]
EPOCH = 3
GROUPED = {"group_by_aspect": True, "batch_size": 3}


def setting(shared, config, data, changes):
    config = load_config(RULES.parent / config)
    if changes:  # the batch transforms of a usual config permute, too
        config.data["TrainReader"] |= changes
        if "sample_transforms" in changes:
            steps = config.data["TrainReader"]["batch_transforms"]
            config.data["TrainReader"]["batch_transforms"] = [
                step for step in steps if "Permute" not in step
            ]
    folder, images = shared / "data" / data[0], data[1]
    path = folder / "annotations" / f"instances_{images}.json"
    return config, Source("train", str(path), str(folder / images), {})


@pytest.mark.parametrize(
    "config, data, changes",
    [
        (RULES.name, COCO, {}),
        ("fcos_r50_fpn_multiscale_2x_coco.yml", COCO, GROUPED),
        ("fcos_r18_fpn_bccd.yml", BCCD, {}),
        ("fcos_r18_fpn_bccd.yml", BCCD, {"sample_transforms": CROPS}),
    ],
    ids=["coco", "multiscale, grouped", "bccd", "stock's crops"],
)
def test_batches_and_positives_are_those_of_training(shared, config, data, changes):
    config, source = setting(shared, config, data, changes)
    shown = NetworkInput(config, source)
    # All of ours first: the loader's thread would draw from the same global generators.
    ours = [shown.batch(EPOCH, batch) for batch in shown.order(EPOCH)[:3]]
    reader = TrainReader(
        **config.data["TrainReader"] | {"use_shared_memory": False},
        num_classes=config.data["num_classes"], seed=config.data["seed"],
    )  # fmt: skip
    loader = reader(COCODataSet("", source.images, source.path, FIELDS), 0)
    loader.set_epoch(EPOCH)
    strides = reader.target.strides
    model = _model(config)
    for (arrays, images), trained in zip(ours, loader):
        assert set(arrays) - {"bad"} == set(trained)
        for key, value in trained.items():
            np.testing.assert_array_equal(arrays[key], value.numpy(), err_msg=key)

        # the pixels that are shown, normalised, are what the network computes with
        network = model.normalize(trained["image"], trained["im_shape"]).numpy()
        for pixels, values in zip(_normalized(config, images), network):
            # half a grey level where stock's transforms interpolate floats
            assert abs(pixels - values).max() < 0.5 / 255 / 0.2 + 1e-4

        count = int(trained["num_pos"].numpy()[0])
        assert count == sum(len(seen.point) for seen in images) > 0
        assert count == sum(seen.positives.sum() for seen in images)
        reg = trained["pos_reg"].numpy()[:count]
        label = trained["pos_label"].numpy()[:count]
        for row, (n, level, point) in enumerate(_owners(shown, arrays, images)):
            seen = images[n]
            box = np.concatenate([point, point]) + reg[row] * strides[level] * [-1, -1, 1, 1]
            far = abs(seen.box - box).max(axis=1)
            far[seen.label != label[row]] = np.inf
            assert far.min() < 0.02 and seen.positives[far.argmin(), level] > 0
        for seen in images:
            np.testing.assert_array_equal(seen.positives.sum(axis=1) == 0, seen.why >= 0)


def _owners(shown, arrays, images):
    """Image, level and place of each row of the batch, taken from what is shown."""
    places = {}
    size = shown.reader.chain.size(arrays["image"])
    strides = shown.reader.target.strides
    start = 0
    for level, stride in enumerate(strides):
        height, width = (-(-s // stride) for s in size)
        for n, seen in enumerate(images):
            for point in seen.point[seen.level == level]:
                x, y = (point / stride - 0.5).astype(int)
                places[start + (n * height + y) * width + x] = (n, level, point)
        start += len(images) * height * width
    index = arrays["pos_index"][: int(arrays["num_pos"][0])]
    assert sorted(index) == sorted(places)
    return [places[i] for i in index.tolist()]


def _model(config):
    compat = pytest.importorskip("fcos_recipe.compat")
    compat.import_ppdet()
    from paddle import nn

    from fcos_recipe.model.fcos import FCOS

    model = FCOS(nn.Identity(), nn.Identity(), nn.Identity())
    model.load_meanstd(config.data["TrainReader"]["sample_transforms"])
    return model


def _normalized(config, images):
    steps = config.data["TrainReader"]["sample_transforms"]
    options = next(step["NormalizeImage"] for step in steps if "NormalizeImage" in step)
    for seen in images:
        yield ((seen.pixels / 255 - options["mean"]) / options["std"]).transpose(2, 0, 1)


def test_pixels_come_back_exactly():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 10, 3)).astype(np.uint8)
    options = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True}
    values = ((image / 255 - options["mean"]) / options["std"]).astype(np.float32)
    back = Pixels(options)
    np.testing.assert_array_equal(back(values.transpose(2, 0, 1), (8, 10)), image)
    got = back(image, np.array([6.4, 9.0]))  # the last row is 6: it is left of 6.4
    np.testing.assert_array_equal(got[:7, :9], image[:7, :9])
    assert (got[7:] == [124, 116, 104]).all() and (got[:, 9:] == [124, 116, 104]).all()
    raw = rng.integers(0, 256, (3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(Pixels(None)(raw, (4, 5)), raw.transpose(1, 2, 0))


def test_the_configs_data_options_hold(tiny, shapes, tmp_path):
    """Images without a box are trained on only where the config says so; crowds never are."""
    path = shapes / "annotations" / "instances_train.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["iscrowd"] = 1
    changed = tmp_path / "train.json"
    changed.write_text(json.dumps(data))
    empty = {i["id"] for i in data["images"]} - {
        a["image_id"] for a in data["annotations"] if not a["iscrowd"]
    }
    for allow in (False, True):
        config = load_config(tiny, [f"TrainDataset.allow_empty={str(allow).lower()}"])
        shown = NetworkInput(config, Source("x", str(changed), str(shapes / "train"), {}))
        ids = set(shown.dataset.index.image_id[shown.dataset.rows].tolist())
        assert bool(ids & empty) is allow and empty
    first = data["annotations"][0]["image_id"]
    row = np.flatnonzero(shown.dataset.index.image_id == first)
    _, (seen,) = shown.batch(0, shown.positions(row).tolist())
    count = sum(a["image_id"] == first for a in data["annotations"])
    assert len(seen.box) == count - 1
