"""The estimate of a card's memory, beside what was measured on the stand-in card."""

import pytest

from fcos_recipe.model.memory import Training

R50 = 32_228_622  # numbers in the state of fcos_r50_fpn_1x_coco with 4 classes
# `python tests/card/memory.py CONFIG BATCH`, Paddle 3.3.1, 2026-11-26: size, batch, bytes
MEASURED = [
    ("fcos_r50_fpn_1x_coco", 896 * 1408, 1, 2_271_041_792),
    ("fcos_r50_fpn_1x_coco", 896 * 1408, 2, 4_271_509_504),
    ("fcos_r50_fpn_1x_coco", 896 * 1408, 4, 8_272_445_952),
    ("fcos_r50_fpn_1x_coco_fast", 800 * 1344, 2, 3_681_698_560),
]


@pytest.mark.parametrize(("name", "pixels", "batch", "measured"), MEASURED)
def test_the_estimate_is_within_15_percent(name, pixels, batch, measured):
    assert Training(R50, pixels).bytes(batch) == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("gib", [16, 32])
def test_the_batch_that_fits_is_the_largest_one(gib):
    need = Training(R50, 896 * 1408)
    count = need.images(gib << 30)
    assert need.bytes(count) <= gib << 30 < need.bytes(count + 1)


def test_nothing_fits_where_the_weights_do_not():
    assert Training(R50, 896 * 1408).images(1 << 28) == 0
