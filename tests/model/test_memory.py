"""The estimate of card memory, compared with measurements on the stand-in card."""

import json
import subprocess
import sys

import pytest

from fcos_recipe.model.memory import Training
from tests.conftest import ROOT

# `python -m fcos_recipe.model.size CONFIG num_classes=4`: numbers, kept_per_pixel
R50 = {"numbers": 32_175_310, "kept_per_pixel": 1546.62}
R18 = {"numbers": 3_043_595, "kept_per_pixel": 489.36, "optimizer": "AdamW"}
# `python tests/card/memory.py CONFIG BATCH`, Paddle 3.3.1, 2026-11-26: model, pixels, batch, bytes
MEASURED = {
    "1 of fcos_r50_fpn_1x_coco": (R50, 896 * 1408, 1, 2_271_041_792),
    "2 of fcos_r50_fpn_1x_coco": (R50, 896 * 1408, 2, 4_271_509_504),
    "4 of fcos_r50_fpn_1x_coco": (R50, 896 * 1408, 4, 8_272_445_952),
    "2 of fcos_r50_fpn_1x_coco_fast": (R50, 800 * 1344, 2, 3_681_698_560),
    "4 of fcos_r18_fpn_demo": (R18, 160 * 224, 4, 109_298_432),
    "16 of fcos_r18_fpn_demo": (R18, 160 * 224, 16, 326_562_304),
}


@pytest.mark.parametrize(("facts", "pixels", "batch", "measured"), MEASURED.values(), ids=MEASURED)
def test_the_estimate_is_within_5_percent(facts, pixels, batch, measured):
    assert Training(**facts, pixels=pixels).bytes(batch) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("name", "facts"), [("fcos_r50_fpn_1x_coco", R50), ("fcos_r18_fpn_demo", R18)]
)
def test_what_a_forward_pass_keeps_is_measured_for_each_config(name, facts):
    config = ROOT / f"configs/fcos/{name}.yml"
    command = [sys.executable, "-m", "fcos_recipe.model.size", config, "num_classes=4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["numbers"] == facts["numbers"]
    assert found["kept_per_pixel"] == pytest.approx(facts["kept_per_pixel"], rel=0.05)


@pytest.mark.parametrize("gib", [16, 32])
def test_the_batch_that_fits_is_the_largest_one(gib):
    need = Training(**R50, pixels=896 * 1408)
    count = need.images(gib << 30)
    assert need.bytes(count) <= gib << 30 < need.bytes(count + 1)


def test_nothing_fits_where_the_weights_do_not():
    assert Training(**R50, pixels=896 * 1408).images(1 << 28) == 0
