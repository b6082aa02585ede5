"""Options for speed on cards: on the CPU they must not change any number."""

import numpy as np
import paddle
import pytest
from paddle.regularizer import L2Decay

from fcos_recipe.config import load_config
from fcos_recipe.training.trainer import Trainer


def weights_after(tiny, steps, *overrides, compiled=False) -> tuple[list, list]:
    """Losses of each step and the parameters after the last."""
    config = load_config(tiny, ["OptimizerBuilder.clip_grad_by_norm=1.0", *overrides])
    trainer = Trainer(config, "cpu")
    if compiled:
        trainer.compile()
    trainer.model.train()
    losses = []
    for _, batch in zip(range(steps), trainer.loader, strict=False):
        losses.append(float(trainer._backward(trainer.model, batch, synchronise=True)["loss"]))
        trainer.optimizer.step()
        trainer.optimizer.clear_grad()
    return losses, [p.numpy() for p in trainer.model.parameters()]


@pytest.mark.matrix
def test_autotune_changes_nothing_on_a_cpu(tiny):
    plain = weights_after(tiny, 2)
    try:
        tuned = weights_after(tiny, 2, "autotune.kernel=true", "autotune.layout=true")
    finally:
        off = {kind: {"enable": False} for kind in ("kernel", "layout")}
        paddle.incubate.autotune.set_config(off)
    assert plain[0] == tuned[0]
    assert all((a == b).all() for a, b in zip(plain[1], tuned[1], strict=True))


@pytest.mark.matrix
def test_a_compiled_model_learns_the_same(tiny):
    plain, compiled = weights_after(tiny, 2), weights_after(tiny, 2, compiled=True)
    np.testing.assert_allclose(compiled[0], plain[0], rtol=1e-5)
    # all together: AdamW blows up the rounding noise of gradients that are zero
    whole = [np.concatenate([p.ravel() for p in side[1]]) for side in (plain, compiled)]
    assert np.linalg.norm(whole[1] - whole[0]) <= 1e-4 * np.linalg.norm(whole[0])


@pytest.mark.matrix
@pytest.mark.parametrize("clip", [None, 1.0])
def test_multi_tensor_momentum_is_bitwise_the_plain_one(tmp_path, clip):
    """With rates and decays of their own per parameter, as in FCOS, and over a resumption."""
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((4, 3, 10, 10)).astype("float32") for _ in range(6)]

    def build(rate, multi):
        paddle.utils.unique_name.switch()
        paddle.seed(0)
        free = paddle.ParamAttr(regularizer=L2Decay(0.0))
        twice = paddle.ParamAttr(learning_rate=2.0)
        model = paddle.nn.Sequential(
            paddle.nn.Conv2D(3, 8, 3, bias_attr=twice),
            paddle.nn.GroupNorm(4, 8, weight_attr=free, bias_attr=free),
            paddle.nn.Conv2D(8, 4, 3),
        )
        optimizer = paddle.optimizer.Momentum(
            rate, 0.9, model.parameters(), weight_decay=L2Decay(1e-2),
            grad_clip=clip and paddle.nn.ClipGradByGlobalNorm(clip), use_multi_tensor=multi,
        )  # fmt: skip
        return model, optimizer

    def train(multi, resume_at=None, before=True):
        """`before`: `use_multi_tensor` of the run whose checkpoint is resumed."""
        rate = paddle.optimizer.lr.PiecewiseDecay([2, 4], [0.1, 0.01, 0.001])
        model, optimizer = build(rate, multi if resume_at is None else before)
        for step, batch in enumerate(batches):
            if step == resume_at:
                state = {k: v.numpy() for k, v in model.state_dict().items()}
                paddle.save(optimizer.state_dict(), str(tmp_path / "o.pdopt"))
                model, optimizer = build(rate, multi)
                model.set_state_dict(state)
                optimizer.set_state_dict(paddle.load(str(tmp_path / "o.pdopt")))
            (model(paddle.to_tensor(batch)) ** 2).mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            rate.step()
        return [p.numpy() for p in model.parameters()]

    start = [p.numpy() for p in build(0.1, False)[0].parameters()]
    plain = train(False)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(plain, start, strict=True))
    resumed = [train(True, 3), train(True, 3, before=False), train(False, 3, before=True)]
    for other in (train(True), *resumed):
        assert all((a == b).all() for a, b in zip(plain, other, strict=True))
