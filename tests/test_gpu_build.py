"""Code that only a CUDA build of Paddle runs, as far as possible without a card."""

import paddle
import pytest
from paddle import inference

from fcos_recipe.predict.backends import PaddleInference
from fcos_recipe.training.window import card_memory_mib

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(not paddle.is_compiled_with_cuda(), reason="not a CUDA build of Paddle"),
]


def test_paddle_inference_is_asked_for_the_rank_s_card(tmp_path, monkeypatch):
    for name in ("model.pdmodel", "model.pdiparams"):
        (tmp_path / name).touch()
    monkeypatch.setenv("FLAGS_selected_gpus", "3")
    made: list = []
    monkeypatch.setattr(inference, "create_predictor", made.append)
    PaddleInference(tmp_path, {}, "gpu")
    assert (made[0].use_gpu(), made[0].gpu_device_id()) == (True, 3)


@pytest.mark.skipif(paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0,
                    reason="there is a card")  # fmt: skip
def test_the_memory_of_a_card_is_asked_of_its_driver():
    with pytest.raises(OSError, match="CUDA error"):
        card_memory_mib("gpu")
