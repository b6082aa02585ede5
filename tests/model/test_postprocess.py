"""Post-processing equals stock's on maps with peaks like a trained model's."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from fcos_recipe.model import postprocess
from tests.model.conftest import CLASSES, STRIDES, head, nms


def outputs(images=2, height=256, width=320, background=-6.0, peaks=10, seed=0):
    """Raw class and regression maps: peaks of agreeing boxes round objects, noise elsewhere."""
    rng = np.random.default_rng(seed)
    logits, regression = [], []
    for stride in STRIDES:
        h, w = -(-height // stride), -(-width // stride)
        y, x = np.mgrid[:h, :w]
        cls = rng.normal(background, 1.0, (images, CLASSES, h, w))
        reg = rng.uniform(0.5, 4, (images, 5, h, w))
        reg[:, 4] = rng.normal(0.5, 1.0, (images, h, w))
        for n in range(images):
            for _ in range(peaks):
                k, cy, cx = rng.integers(CLASSES), rng.uniform(0, h), rng.uniform(0, w)
                near = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / rng.uniform(2, 8))
                cls[n, k] += (3 - background) * near
                size = rng.uniform(2, 5, 4)
                box = [size[0] + x - cx, size[1] + y - cy, size[2] + cx - x, size[3] + cy - y]
                reg[n, :4] = np.where(near > 0.3, box, reg[n, :4])
        logits.append(cls.astype("float32"))
        regression.append(reg.astype("float32"))
    return logits, regression


def both(logits, regression, limits=None, sqrt_score=False, **options):
    """(ours, stock's) bbox and bbox_num for the same maps."""
    ours = head("ours", sqrt_score=sqrt_score, clip=False, **options)
    stock = head("stock", sqrt_score=sqrt_score)
    ours.eval(), stock.eval()
    ours.nms, stock.nms = nms(**limits or {}), nms(**limits or {})
    images = logits[0].shape[0]
    im_shape = paddle.to_tensor(np.float32([[250, 300]] * images))
    scale_factor = paddle.to_tensor(np.float32([[1.25, 1.6]] * images))
    cls, reg = ([paddle.to_tensor(x) for x in maps] for maps in (logits, regression))
    locations = [
        stock._compute_locations_by_level(s, c, 0.5) for s, c in zip(STRIDES, cls, strict=True)
    ]
    boxes = [F.relu(r[:, :4]) * s for r, s in zip(reg, STRIDES, strict=True)]
    expected = stock.post_process([locations, cls, boxes, [r[:, 4:] for r in reg]], scale_factor)

    sizes = [tuple(c.shape[2:]) for c in cls]
    flat = [paddle.concat([x.flatten(2) for x in maps], axis=2) for maps in (cls, reg)]
    with paddle.no_grad():
        got = ours.post_process((*flat, sizes), im_shape, scale_factor)
    return [[x.numpy() for x in side] for side in (got, expected)]


def assert_same(got, expected):
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(got[0][:, 0], expected[0][:, 0])
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6, atol=1e-4)


@pytest.mark.stock
@pytest.mark.parametrize("background", [-8.0, -4.0, -1.0])
@pytest.mark.parametrize("nms_pre", [20, 1000])
def test_detections_are_stocks(background, nms_pre):
    got, expected = both(*outputs(background=background), nms_pre=nms_pre)
    assert expected[1].min() > 5
    assert_same(got, expected)


@pytest.mark.stock
def test_a_cut_that_matters_is_widened(monkeypatch):
    """Few detections out of many candidates: 20 per level do not find all of them."""
    logits, regression = outputs(background=-1.0, peaks=3)
    for reg in regression:  # large boxes, most of which suppress each other
        reg[:, :4] = reg.shape[2] / 2
    got, expected = both(logits, regression, limits={"keep_top_k": 400}, nms_pre=20)
    assert_same(got, expected)
    monkeypatch.setattr(postprocess, "_complete", lambda *_: True)
    narrow, _ = both(logits, regression, limits={"keep_top_k": 400}, nms_pre=20)
    assert (narrow[1] < expected[1]).all() and (expected[1] < 400).all()


@pytest.mark.stock
def test_stocks_limits_hold():
    limits = {"keep_top_k": 15, "nms_top_k": 10, "score_threshold": 0.1, "nms_threshold": 0.3}
    got, expected = both(*outputs(background=-3.0), limits=limits, sqrt_score=True, nms_pre=50)
    assert expected[1].tolist() == [15, 15]
    assert_same(got, expected)


@pytest.mark.parametrize(
    ("sqrt_score", "kept"), [(False, [0.0625, 0.25]), (True, [0.1, 0.25, 0.5])]
)
def test_the_score_is_class_times_centreness_and_the_threshold_is_on_it(sqrt_score, kept):
    """Class scores of 0.5 and above, of which the authors' code would drop none."""
    ours = head("ours", sqrt_score=sqrt_score)
    ours.eval()
    ours.nms = nms(score_threshold=0.05)
    logits, regression = paddle.full([1, CLASSES, 5], -20.0), paddle.full([1, 5, 5], 1.0)
    for k, (score, quality) in enumerate(((0.5, 0.02), (0.625, 0.1), (0.5, 0.5))):
        logits[0, k, k] = float(np.log(score / (1 - score)))
        regression[0, 4, k] = float(np.log(quality / (1 - quality)))
    ones = paddle.ones([1, 2]) * 500
    bbox, _ = ours.post_process((logits, regression, [(1, 1)] * 5), ones, ones / 500)
    np.testing.assert_allclose(sorted(bbox[:, 1].numpy()), kept, rtol=1e-5)


def test_no_detection_in_one_or_all_images():
    logits, regression = outputs(background=-8.0)
    for cls in logits:
        cls[0] = -20.0
    got, expected = both(logits, regression)
    assert expected[1][0] == 0 and expected[1][1] > 0
    assert_same(got, expected)
    ours = head("ours")
    ours.eval()
    flat = [paddle.full([2, channels, 5], -20.0) for channels in (CLASSES, 5)]
    ones = paddle.ones([2, 2])
    bbox, bbox_num = ours.post_process((*flat, [(1, 1)] * 5), ones, ones)
    assert bbox_num.tolist() == [0, 0] and bbox.shape[0] == 0


def test_boxes_are_cut_to_their_own_image():
    ours = head("ours")
    ours.eval()
    logits = paddle.full([2, CLASSES, 5], -20.0)
    logits[0, 3, 4], logits[1, 2, 3] = 5.0, 5.0  # one location at stride 128, one at 64
    regression = paddle.full([2, 5, 5], 3.0)
    im_shape = paddle.to_tensor(np.float32([[100, 120], [60, 40]]))
    scale_factor = paddle.to_tensor(np.float32([[2, 3], [0.5, 0.5]]))
    bbox, bbox_num = ours.post_process((logits, regression, [(1, 1)] * 5), im_shape, scale_factor)
    assert bbox_num.tolist() == [1, 1]
    # (64 +- 384) / (3, 2) and (32 +- 192) / 0.5, in images of 40 x 50 and 80 x 120
    np.testing.assert_allclose(bbox[:, 2:].numpy(), [[0, 0, 40, 50], [0, 0, 80, 120]])
    np.testing.assert_allclose(bbox[:, 0].numpy(), [3, 2])
