"""Parameters frozen by a pattern keep every bit, and the others are trained."""

import numpy as np
import pytest

from fcos_recipe import api
from fcos_recipe.checkpoint import weights
from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.training.trainer import Trainer


@pytest.mark.e2e
@pytest.mark.parametrize("ema", [False, True])
def test_frozen_parameters_and_statistics_keep_their_bits(tiny, tmp_path, ema, capfd):
    chosen = [f"use_ema={ema}".lower(), "freeze=['backbone.*', '*.fpn_res*.weight']",
              "epoch=1", "log_iter=9"]  # fmt: skip
    trainer = Trainer(load_config(tiny, chosen), "cpu")
    first = {name: value.numpy() for name, value in trainer.model.state_dict().items()}
    assert run("train", ["-c", str(tiny), "--output", str(tmp_path / "run"), "-o", *chosen]) == 0
    final = weights.read(tmp_path / "run" / "model_final.pdparams")
    kept = {name for name, value in first.items() if np.array_equal(value, final[name])}
    frozen = {n for n in first if n.startswith("backbone.") or "fpn_res" in n and "weight" in n}
    assert any(name.endswith("._mean") for name in frozen)
    assert frozen <= kept
    parameters = {name for name, _ in trainer.model.named_parameters()
                  if not name.endswith(("._mean", "._variance"))}  # fmt: skip
    assert not (kept - frozen) & parameters
    still = len(frozen & parameters)
    line = f"freeze: {still} of {len(parameters)} parameters are not trained ("
    assert line in capfd.readouterr().out
    assert len(trainer.optimizer._parameter_list) == len(parameters) - still


def test_a_norm_with_one_trained_parameter_tracks_its_statistics(tiny):
    norm = "backbone.conv1.conv1.norm"
    trainer = Trainer(load_config(tiny, [f"freeze=[{norm}.weight]"]), "cpu")
    trainer.model.train()
    trainer.frozen.keep_statistics(trainer.model)
    layers = dict(trainer.model.named_sublayers())
    assert norm not in trainer.frozen._norms and all(x.training for x in layers.values())


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        ("['bakbone.*']", "command line: freeze: 'bakbone.*' matches no parameter; the nearest: "
                          "backbone.*"),
        ("['neck.*', 'fcos_head.cls']", "freeze: 'fcos_head.cls' matches no parameter"),
        ("['*']", "freeze: every parameter is frozen; leave some to train"),
        ("[3]", "freeze: expected a list of texts, found 3"),
    ],
)  # fmt: skip
def test_patterns_that_cannot_be_meant(tiny, patterns, reason):
    with pytest.raises(UserError) as caught:
        api.build(tiny, overrides=[f"freeze={patterns}"])
    assert reason in str(caught.value)
