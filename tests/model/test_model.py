"""The whole model: with the same weights it gives the same numbers as stock."""

import numpy as np
import paddle
import pytest

from fcos_recipe.model.fcos import FCOS
from tests.model.conftest import CLASSES, MEAN, STD, head, model


@pytest.mark.stock
@pytest.mark.parametrize("feat", [{}, {"use_dcn": True}, {"norm_type": "bn"}])
def test_parameters_are_stocks(feat):
    ours, stock = (head(side, feat=feat).state_dict() for side in ("ours", "stock"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in stock.items()}


@pytest.mark.stock
def test_state_of_the_whole_model_loads_both_ways():
    ours, stock = model("ours"), model("stock")
    for a, b in ((ours, stock), (stock, ours)):
        missing, unexpected = a.set_state_dict(b.state_dict())
        assert not missing and not unexpected


def test_width_follows_the_towers(batch):
    ours = head("ours", feat={"feat_in": 64, "feat_out": 64})
    ours.eval()
    feats = [paddle.randn([1, 64, 8 >> i, 8 >> i]) for i in range(4)] + [
        paddle.randn([1, 64, 1, 1])
    ]
    logits, regression, sizes = ours(feats)
    assert logits.shape == [1, CLASSES, 86] and regression.shape == [1, 5, 86]
    assert sizes[:2] == [(8, 8), (4, 4)]


@pytest.mark.stock
@pytest.mark.matrix
def test_normalized_image_is_stocks_to_the_last_bit(batch):
    b = batch()
    ours = model("ours")
    image = ours.normalize(b.ours["image"], b.ours["im_shape"])
    np.testing.assert_array_equal(image.numpy(), b.dense_image)
    # whatever stands in the padding, it becomes zero
    pixels = b.ours["image"].numpy()
    pixels[0, 224:] = 200
    image = ours.normalize(paddle.to_tensor(pixels), b.ours["im_shape"])
    np.testing.assert_array_equal(image.numpy(), b.dense_image)
    dense = paddle.to_tensor(b.dense_image)
    assert ours.normalize(dense, b.ours["im_shape"]) is dense


def test_mean_and_std_of_the_reader_are_used(batch):
    b = batch()
    ours = model("ours")
    ours.load_meanstd(
        [
            {"Decode": {}},
            {"NormalizeImage": {"mean": [1, 2, 3], "std": [2, 4, 8], "is_scale": False}},
        ]
    )
    got = ours.normalize(b.ours["image"], b.ours["im_shape"])[0, :, 5, 7].numpy()
    pixel = b.ours["image"][0, 5, 7].numpy().astype(np.float64)
    np.testing.assert_array_equal(got, ((pixel - [1, 2, 3]) / [2, 4, 8]).astype(np.float32))


@pytest.mark.stock
@pytest.mark.parametrize(
    ("arguments", "loss"),
    [
        ({}, {}),
        ({}, {"quality": "iou"}),
        ({}, {"iou_loss_type": "linear_iou"}),
        ({"centerness_on_reg": False}, {}),
        ({"norm_reg_targets": False}, {}),
        ({"multiply_strides_reg_targets": True}, {}),
        ({"feat": {"norm_type": "bn"}}, {}),
    ],
)
def test_losses_and_gradients_are_stocks(batch, arguments, loss):
    b = batch(
        arguments.get("norm_reg_targets", True),
        arguments.get("multiply_strides_reg_targets", False),
    )
    ours, stock = model("ours", loss=loss, **arguments), model("stock", loss=loss, **arguments)
    ours.set_state_dict(stock.state_dict())
    ours.load_meanstd([{"NormalizeImage": {"mean": MEAN, "std": STD}}])
    ours.train(), stock.train()
    got, expected = ours(b.ours), stock(b.stock)
    assert set(got) == set(expected)
    for name in expected:
        np.testing.assert_allclose(float(got[name]), float(expected[name]), rtol=1e-6)
    got["loss"].backward(), expected["loss"].backward()
    largest = max(float(p.grad.norm()) for p in stock.parameters() if p.grad is not None)
    for (name, p), q in zip(stock.named_parameters(), ours.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            # the floor is for biases in front of a norm, whose gradient is zero but for rounding
            size = float(p.grad.norm()) + 1e-3 * largest
            assert float((p.grad - q.grad).norm()) <= 1e-5 * size, name


def test_nothing_frozen_gets_a_gradient(batch):
    ours = model("ours")
    ours.train()
    ours(batch().ours)["loss"].backward()
    frozen = [n for n, p in ours.backbone.named_parameters() if n.startswith(("conv1", "res2"))]
    parameters = dict(ours.backbone.named_parameters())
    assert frozen and all(parameters[n].grad is None for n in frozen)
    image = ours.normalize(batch().ours["image"], batch().ours["im_shape"])
    assert ours.backbone.res_layers[0](ours.backbone.conv1(image)).stop_gradient


def test_registry_builds_ours():
    from fcos_recipe.compat import workspace

    workspace({"FCOS": {"backbone": "ResNet"}, "FPN": {"out_channel": 256}, "num_classes": 5})
    from ppdet.core.workspace import create

    built = create("FCOS")
    assert type(built) is FCOS and built.fcos_head.num_classes == 5
