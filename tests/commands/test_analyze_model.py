"""Parameters and multiply-adds agree with independent counts."""

import json
import math

import numpy as np
import pytest

from fcos_recipe import compat
from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from tests.conftest import ROOT

CONFIG = ROOT / "configs/fcos/fcos_r50_fpn_1x_coco.yml"


def build(path, *overrides):
    config = load_config(path, list(overrides))
    compat.workspace(config.stock_data())
    return compat.create(config.data["architecture"])


def resnet50_macs(height: int, width: int) -> int:
    """ResNet-50 (He et al., 2015, table 1), no classifier, strides in the 3x3 convolutions."""
    h, w = height // 2, width // 2
    macs = 64 * 3 * 49 * h * w
    h, w, inside = h // 2, w // 2, 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        middle, outside = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            out = (h // stride) * (w // stride)
            macs += inside * middle * h * w + 9 * middle * middle * out
            macs += middle * outside * out
            if not block:
                macs += inside * outside * out
            h, w, inside = h // stride, w // stride, outside
    return macs


def test_r50_fpn_agrees_with_a_count_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run("analyze_model", ["-c", str(CONFIG), "--size", "256x320", "--repeat", "0",
                                 "--json", str(tmp_path / "facts.json")]) == 0  # fmt: skip
    facts = json.loads((tmp_path / "facts.json").read_text())
    parts = facts["parts"]
    assert parts["backbone"]["macs"] == resnet50_macs(256, 320)
    sizes = [(math.ceil(256 / s), math.ceil(320 / s)) for s in (8, 16, 32, 64, 128)]
    places = [h * w for h, w in sizes]
    lateral = sum(c * 256 * n for c, n in zip((512, 1024, 2048), places, strict=False))
    assert parts["neck"]["macs"] == lateral + 9 * 256 * 256 * sum(places)
    towers, outputs = 8 * 9 * 256 * 256, 9 * 256 * (80 + 4 + 1)
    assert parts["head"]["macs"] == (towers + outputs) * sum(places)
    # 4 + 4 convolutions and their norms, three outputs, five scales
    head = 8 * (9 * 256 * 256 + 3 * 256) + 9 * 256 * 85 + 85 + 5
    assert parts["head"]["parameters"] == head
    assert 31e6 < parts["total"]["parameters"] < 33e6
    assert parts["total"]["trained"] < parts["total"]["parameters"]  # the stem is frozen
    for key in ("parameters", "macs"):
        assert parts["total"][key] == sum(parts[p][key] for p in ("backbone", "neck", "head"))


def test_the_way_it_counts_the_head_is_what_the_head_computes():
    """Layer by layer has the outputs of the merged towers, so its counts are theirs."""
    import paddle

    model = build(CONFIG)
    head = model.fcos_head
    paddle.seed(0)
    levels = [paddle.randn([1, 256, n, n]) for n in (16, 8, 4, 2, 1)]
    with paddle.no_grad():
        logits, _, _ = head(levels)
        plain = [head.fcos_head_cls(head.fcos_feat(x)[0]).flatten(2) for x in levels]
    np.testing.assert_allclose(
        logits.numpy(), np.concatenate([x.numpy() for x in plain], axis=2), atol=1e-4
    )


def test_times_and_a_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = ["-c", "configs/fcos/fcos_r18_fpn_demo.yml", "--size", "64x96", "--repeat", "1"]
    facts = []
    for batch in ("1", "2"):
        out = tmp_path / f"{batch}.json"
        assert run("analyze_model", [*arguments, "--batch", batch, "--json", str(out)]) == 0
        facts.append(json.loads(out.read_text())["parts"])
    for part in ("backbone", "neck", "head", "total"):
        one, two = (f[part] for f in facts)
        assert two["macs"] == 2 * one["macs"] and two["parameters"] == one["parameters"]
        assert two["activation_mib"] == pytest.approx(2 * one["activation_mib"], abs=0.2)
        assert 0 < one["forward_ms"] and 0 < one["forward_backward_ms"]
    assert "GMACs" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["800", "800x", "33x64", "0x32"])
def test_bad_sizes_are_one_line(size, capsys):
    assert run("analyze_model", ["-c", str(CONFIG), "--size", size]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
