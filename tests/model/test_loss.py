"""The loss: equal to stock's where that is correct, finite where stock's is not."""

import contextlib

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from fcos_recipe import compat
from fcos_recipe.model.loss import FCOSLoss

LOCATIONS, CLASSES = 400, 6


def case(positives=30, dtype="float32", scale=1.0):
    """Predictions of LOCATIONS locations and targets at `positives` of them."""
    rng = np.random.default_rng(0)
    logits = paddle.to_tensor(
        (rng.normal(-3, 2, (LOCATIONS, CLASSES)) * scale).astype("float32")
    ).astype(dtype)
    boxes = paddle.to_tensor(rng.uniform(0, 8, (LOCATIONS, 4)).astype("float32")).astype(dtype)
    quality = paddle.to_tensor(rng.normal(0, 1, LOCATIONS).astype("float32")).astype(dtype)
    for x in (logits, boxes, quality):
        x.stop_gradient = False
    rows = max(positives, 1)
    at = np.sort(rng.choice(LOCATIONS, rows, replace=False))
    label = rng.integers(0, CLASSES, rows)
    reg = rng.uniform(0.1, 8, (rows, 4)).astype("float32")
    ctn = rng.uniform(0.1, 1, rows).astype("float32")
    return (logits, boxes, quality), (at, label, reg, ctn, positives)


def run(loss, predictions, targets):
    """Our loss of a case."""
    logits, (at, label, reg, ctn, positives) = predictions[0], targets
    at, label = paddle.to_tensor(at), paddle.to_tensor(label)
    dtype = logits.dtype
    wide = [x.astype("float32") for x in predictions]  # Paddle has no half-precision gather on CPU
    return loss(
        logits,
        paddle.gather_nd(wide[0], paddle.stack([at, label], axis=1)).astype(dtype),
        paddle.gather(wide[1], at).astype(dtype),
        paddle.gather(wide[2], at).astype(dtype),
        paddle.to_tensor(reg),
        paddle.to_tensor(ctn),
        paddle.to_tensor(np.int64([positives])),
    )


def run_stock(loss, predictions, targets):
    """Stock's loss of a case, as one level of one image of LOCATIONS x 1."""
    (logits, boxes, quality), (at, label, reg, ctn, _) = predictions, targets
    maps = np.zeros(LOCATIONS, np.int64), np.zeros((LOCATIONS, 4), "f4"), np.zeros(LOCATIONS, "f4")
    maps[0][at], maps[1][at], maps[2][at] = label + 1, reg, ctn
    dense = [[paddle.to_tensor(m.reshape(1, LOCATIONS, 1, -1))] for m in maps]
    outputs = [
        [x.reshape([1, LOCATIONS, 1, -1]).transpose([0, 3, 1, 2])] for x in (logits, boxes, quality)
    ]
    return loss(*outputs, *dense)


def gradients(losses, predictions):
    sum(losses.values()).backward()
    taken = [x.grad.numpy() for x in predictions]
    for x in predictions:
        x.clear_gradient(False)
    return taken


@pytest.mark.stock
@pytest.mark.parametrize("quality", ["centerness", "iou"])
@pytest.mark.parametrize("iou_loss_type", ["giou", "linear_iou"])
def test_losses_and_gradients_are_stocks(quality, iou_loss_type):
    predictions, targets = case()
    arguments = {"quality": quality, "iou_loss_type": iou_loss_type}
    got = run(FCOSLoss(**arguments), predictions, targets)
    expected = run_stock(compat.stock("FCOSLoss")(**arguments), predictions, targets)
    for name in expected:
        np.testing.assert_allclose(float(got[name]), float(expected[name]), rtol=2e-6)
    for a, b in zip(gradients(got, predictions), gradients(expected, predictions), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("iou_loss_type", ["giou", "linear_iou", "iou"])
@pytest.mark.parametrize("quality", ["centerness", "iou"])
def test_without_a_positive_all_is_finite_and_only_negatives_count(iou_loss_type, quality):
    predictions, targets = case(positives=0)
    losses = run(FCOSLoss(iou_loss_type=iou_loss_type, quality=quality), predictions, targets)
    x = predictions[0].numpy().astype("f8")
    p = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(
        float(losses["loss_cls"]), (0.75 * p**2 * -np.log(1 - p)).sum(), rtol=1e-5
    )
    assert float(losses["loss_box"]) == 0 and float(losses["loss_quality"]) == 0
    taken = gradients(losses, predictions)
    assert np.isfinite(taken[0]).all() and not taken[1].any() and not taken[2].any()


def test_padding_rows_change_nothing():
    predictions, targets = case()
    expected = run(FCOSLoss(), predictions, targets)
    at, label, reg, ctn, positives = targets
    padded = [np.concatenate([x, x[:5]]) for x in (at, label, reg, ctn)]
    got = run(FCOSLoss(), predictions, (*padded, positives))
    for name in expected:
        np.testing.assert_allclose(float(got[name]), float(expected[name]), rtol=1e-6)


def test_alpha_gamma_and_weight_are_obeyed():
    predictions, targets = case()
    x = predictions[0].detach()
    label = np.zeros((LOCATIONS, CLASSES), "f4")
    label[targets[0], targets[1]] = 1
    expected = F.sigmoid_focal_loss(x, paddle.to_tensor(label), alpha=0.4, gamma=1.5) / 30
    got = run(FCOSLoss(loss_alpha=0.4, loss_gamma=1.5, reg_weights=3.0), predictions, targets)
    np.testing.assert_allclose(float(got["loss_cls"]), float(expected), rtol=1e-5)
    plain = run(FCOSLoss(), predictions, targets)
    np.testing.assert_allclose(float(got["loss_box"]), 3 * float(plain["loss_box"]), rtol=1e-6)


def test_iou_loss_is_the_mean_negative_logarithm():
    predictions, targets = case()
    at, _, reg, ctn, _ = targets
    got = run(FCOSLoss(iou_loss_type="iou"), predictions, targets)
    p, t = predictions[1].numpy()[at].astype("f8"), reg.astype("f8")

    def area(d):
        return (d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3])

    inner = area(np.minimum(p, t))
    iou = (inner + 1) / (area(p) + area(t) - inner + 1)
    expected = (-np.log(iou) * ctn).sum() / ctn.sum()
    np.testing.assert_allclose(float(got["loss_box"]), expected, rtol=1e-5)


@pytest.mark.parametrize("iou_loss_type", ["giou", "linear_iou", "iou"])
def test_gradient_is_finite_where_a_predicted_side_is_zero(iou_loss_type):
    predictions, targets = case()
    predictions[1].set_value(paddle.zeros_like(predictions[1]))
    losses = run(FCOSLoss(iou_loss_type=iou_loss_type), predictions, targets)
    assert all(np.isfinite(g).all() for g in gradients(losses, predictions))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs_are_summed_in_float32(dtype):
    predictions, targets = case(dtype=dtype, scale=4.0)
    losses = run(FCOSLoss(), predictions, targets)
    assert all(x.dtype == paddle.float32 for x in losses.values())
    exact = [x.detach().astype("float32") for x in predictions]
    expected = run(FCOSLoss(), exact, targets)
    for name in expected:  # same rounded inputs, so equal: nothing was computed in half precision
        np.testing.assert_allclose(float(losses[name]), float(expected[name]), rtol=1e-6)
    sum(losses.values()).backward()
    for x in predictions:  # the network behind goes on in its own dtype
        assert x.grad.dtype == x.dtype
        assert bool(paddle.isfinite(x.grad.astype("float32")).all())


def test_reduced_positives_are_means_over_cards(monkeypatch):
    from fcos_recipe.model import loss as module

    predictions, targets = case()
    plain = run(FCOSLoss(), predictions, targets)
    others = np.float32([10, 4.0])  # a second card's positives and centre-ness sum
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        module.dist, "all_reduce", lambda x: paddle.assign(x + paddle.to_tensor(others), x)
    )
    got = run(FCOSLoss(reduce_positives=True), predictions, targets)
    weight = targets[3].sum()
    factors = {"loss_cls": 30 / 20, "loss_quality": 30 / 20}
    factors["loss_box"] = weight / ((weight + 4) / 2)
    for name, factor in factors.items():
        np.testing.assert_allclose(float(got[name]), factor * float(plain[name]), rtol=1e-5)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="diou"):
        FCOSLoss(iou_loss_type="diou")
    with pytest.raises(ValueError, match="quality"):
        FCOSLoss(quality="area")


@contextlib.contextmanager
def host_reads(monkeypatch):
    """Counts every way in which Python reads a tensor's value."""
    seen = []
    tensor = type(paddle.zeros([1]))
    for name in ("numpy", "item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        if hasattr(tensor, name):
            original = getattr(tensor, name)

            def counted(self, *args, _name=name, _original=original, **kwargs):
                seen.append(_name)
                return _original(self, *args, **kwargs)

            monkeypatch.setattr(tensor, name, counted)
    nonzero = paddle.nonzero
    monkeypatch.setattr(
        paddle, "nonzero", lambda *a, **k: seen.append("nonzero") or nonzero(*a, **k)
    )
    yield seen
    monkeypatch.undo()


def test_a_training_step_reads_nothing_back(batch, monkeypatch):
    from tests.model.conftest import model

    ours, data = model("ours"), batch().ours
    ours.train()
    with host_reads(monkeypatch) as seen:
        ours(data)["loss"].backward()
        assert seen == []
        float(paddle.ones([]))  # the counter counts
        assert seen
