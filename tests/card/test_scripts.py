"""doctor and scripts/hw_check.sh, unchanged, with stand-in cards."""

import json

import pytest

from tests.card.runs import script, tool

pytestmark = pytest.mark.card


def test_doctor_finds_the_cards(tmp_path):
    said = tool("doctor", "--json", "--no-comm", cwd=tmp_path, cards=2, code=0)
    found = json.loads(said[said.index("{") :])["findings"]
    assert any("2" in f["text"] and "iluvatar_gpu" in f["text"] for f in found), found


@pytest.mark.e2e
@pytest.mark.slow
def test_doctor_measures_steps_on_a_card(tiny, tmp_path):
    check = ("doctor", "--json", "--no-comm", "--measure", "-c", tiny, "-o", "device=auto")
    said = tool(*check, cwd=tmp_path, cards=1, code=0)
    found = {f["name"]: f["text"] for f in json.loads(said[said.index("{") :])["findings"]}
    assert "in 16 GiB" in found["step memory"] and "not verified" in found["step memory"]
    assert "images/s per card in 2 steps" in found["step time"]


@pytest.mark.e2e
@pytest.mark.slow
def test_hw_check_does_all_its_steps(tmp_path):
    said = script("hw_check", "--quick", "--cards", 1, 2, "--output", "hw", cwd=tmp_path, cards=2)
    result = json.loads((tmp_path / "hw" / "hw_check.json").read_text())
    assert result["device"] == "iluvatar_gpu" and "0 failed" in said
    status = {step["name"]: step["status"] for step in result["steps"]}
    trained = [f"train-{n}-{kind}" for n in (1, 2) for kind in ("fp32", "amp")]
    for name in ("doctor", *trained, "evaluate", "export", "resume"):
        assert status[name] == "ok", result["steps"]
