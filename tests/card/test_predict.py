"""Evaluation, prediction and exports on stand-in cards find what the CPU finds."""

import json

import pytest

from tests.card.runs import of_processes, tool

pytestmark = [pytest.mark.card, pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    tool("train", "-c", tiny, "--output", "run", "-o", "device=cpu", cwd=folder, cards=0)
    return folder / "run" / "model_final.pdparams"


def figures(tiny, weights, folder, *more, **how) -> list[float]:
    tool("eval", "-c", tiny, "--weights", weights, "--json", "eval.json", "--no-plots", *more,
         cwd=folder, **how)  # fmt: skip
    return json.loads((folder / "eval.json").read_text())["stats"]


def test_evaluation_and_inference_equal_the_cpu(tiny, trained, tmp_path):
    cpu = figures(tiny, trained, tmp_path, cards=0)
    card = ["-o", "device=auto"]
    assert figures(tiny, trained, tmp_path, *card, cards=1) == cpu
    assert figures(tiny, trained, tmp_path, *card, cards=2, launch=2) == cpu
    found = []
    for cards in (0, 1):
        tool("infer", "-c", tiny, "--weights", trained, "--input", tiny.parent / "val", "--output",
             "drawn", "-o", f"device={'auto' if cards else 'cpu'}", cwd=tmp_path,
             cards=cards)  # fmt: skip
        found.append(json.loads((tmp_path / "drawn" / "predictions.json").read_text()))
    assert found[0] == found[1] and found[0]


def test_an_export_is_checked_on_the_card_and_every_rank_runs_it_on_its_own(
    tiny, trained, tmp_path
):
    said = tool("export_model", "-c", tiny, "--weights", trained, "--output", "out", "-o",
                "device=auto", cwd=tmp_path)  # fmt: skip
    assert "checked on 18 images" in said
    (folder,) = (tmp_path / "out").iterdir()
    figures(tiny, folder, tmp_path, "-o", "device=auto", cards=2, launch=2,
            trace=tmp_path / "trace")  # fmt: skip
    for what in ("allocate", "h2d", "d2h"):
        used = of_processes(tmp_path / "trace", what)
        assert sorted(map(sorted, used.values())) == [[0], [1]], what
