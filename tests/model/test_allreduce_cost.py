"""The model of all-reduce cost, compared with a simulated ring."""

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.model.allreduce_cost import BACKWARD, Load
from tests.conftest import ROOT


def all_reduce(values: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Ring all-reduce, step by step: the sums, bytes through each link, rounds.

    Args:
        values: [ranks, chunks, n], as many chunks as ranks.
    """
    ranks = len(values)
    values, sent, rounds = values.copy(), np.zeros(ranks, int), 0
    for phase in ("reduce-scatter", "all-gather"):
        for step in range(ranks - 1):
            before = values.copy()
            for rank in range(ranks):
                chunk = (rank - step + (phase == "all-gather")) % ranks
                target = (rank + 1) % ranks
                sent[rank] += before[rank, chunk].nbytes
                if phase == "all-gather":
                    values[target, chunk] = before[rank, chunk]
                else:
                    values[target, chunk] += before[rank, chunk]
            rounds += 1
    assert len(set(sent.tolist())) == 1
    return values, int(sent[0]), rounds


@pytest.mark.parametrize("cards", [2, 3, 4, 8])
def test_a_ring_sends_what_the_formula_says(cards):
    values = np.random.default_rng(cards).random((cards, cards, 30))
    sums, sent, rounds = all_reduce(values)
    np.testing.assert_allclose(sums, np.broadcast_to(values.sum(0), sums.shape))
    load = Load(values[0].nbytes, messages=1, step=1.0, latency=0.25)
    # a byte per second, and 0.25 s for each round
    assert load.exchange(cards, 1.0) == pytest.approx(sent + 0.25 * rounds)


def test_bounds():
    load = Load(gradient_bytes=1000, messages=2, step=3.0, latency=0.0)
    assert load.efficiency(2, 1000.0) == pytest.approx((3 / 4, 1.0))  # 1 s hides behind backward
    low, high = load.efficiency(2, 100.0)
    assert low == pytest.approx(3 / 13) and high == pytest.approx(3 / (3 + 10 - BACKWARD * 3))
    need = load.bandwidth_for(0.5)
    assert load.efficiency(10**9, need)[0] == pytest.approx(0.5)
    assert load.most_cards(need * 1.01) == 4096
    slow = Load(1000, 2, 3.0, latency=0.05)
    assert load.most_cards(300.0) == 1
    most = slow.most_cards(need * 2)
    assert slow.efficiency(most, need * 2)[0] >= 0.5 > slow.efficiency(2 * most, need * 2)[0]


def test_the_command(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = ["-c", "configs/fcos/fcos_r18_fpn_demo.yml", "-o", "device=cpu", "--scaling"]
    assert run("analyze_model", config) == 2
    assert "needs --step-ms" in capsys.readouterr().err
    assert run("analyze_model", [*config, "--step-ms", "100", "--network", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fcos_r18_fpn_demo, calculated, not measured"
    assert lines[-1].split()[0] == "10" and "cards" in lines[-1]
