"""When a run is compared with a published figure, and when not."""

from dataclasses import dataclass

import pytest

from fcos_recipe.commands.config import resolved
from fcos_recipe.config import load_config
from fcos_recipe.report import headline
from fcos_recipe.report.blocks import Items, Table, Text
from fcos_recipe.runs import judgement
from fcos_recipe.runs.contents import ConfigFacts, Dataset, Environment, Evaluation, Facts, Run
from tests.conftest import ROOT

NAME = "fcos_r50_fpn_1x_coco"


@dataclass
class Row:
    """As runs.published_results.Row."""

    config: str = NAME
    dataset: str = "COCO val2017"
    device: str | None = "BI-V100"
    cards: int = 8
    total_batch: int = 16
    epochs: int = 12
    ap: float = 39.7
    images: int = 5000
    images_per_second: float | None = 8.24
    throughput_of: str = "unstated"
    source: str = "the first page"
    reproduced: bool = False
    tolerance: float = 0.4


def run_of(tmp_path, ap=0.395, images=5000, after=12, overrides=(), **changed) -> Run:
    train = [{"kind": "train", "images_per_second_per_card": 4.12, "images_per_second": 32.96,
              "images_seen": 10 * changed.get("total_batch", 16), "step": 10}]  # fmt: skip
    data = {"train": Dataset("a.json", images=100, used=90, boxes=1, without_boxes=10)}
    facts = {"config": ConfigFacts(NAME), "device": "iluvatar_gpu", "cards": 8,
             "total_batch": 16, "epochs": 12, "data": data}  # fmt: skip
    return Run(
        tmp_path, train=train, state=changed.pop("state", "finished"),
        config=resolved(load_config(ROOT / f"configs/fcos/{NAME}.yml", overrides)),
        facts=Facts(**{**facts, **changed}),
        environment=Environment(device="iluvatar_gpu", cards=["Iluvatar BI-V100"] * 8),
        evaluation=Evaluation([ap, ap], ["AP", "AP50"], images=images, epoch=after),
    )  # fmt: skip


@pytest.fixture
def told(monkeypatch, tmp_path):
    """told(row, **run): the judgement, the table's row and the words on speed."""

    def tell(row=None, **changed):
        monkeypatch.setattr(judgement, "published", lambda name: [row or Row()])
        said, table, speed = headline.against_published(run_of(tmp_path, **changed))
        assert isinstance(said, Text) and isinstance(table, Table) and isinstance(speed, Items)
        return said, table.rows[0], speed.items

    return tell


def test_the_same_run_is_judged_by_the_tolerance(told):
    said, row, speed = told()
    assert said.kind == "good" and said.text == (
        "AP 39.5 is 0.2 below the published 39.7 (8 cards, BI-V100): within the tolerance of 0.4."
    )
    assert row[-1] == "not reproduced here" and row[4] == "8.24 (per card or total?)"
    # 4.12 per card, 32.96 in total beside 8.24
    assert "50 % or 400 %" in speed[0] and "does not state which" in speed[0]
    assert told(Row(throughput_of="card"))[2][0].endswith("this run reaches 50 % of its images/s")
    said, *_ = told(ap=0.391)
    assert said.kind == "bad" and "0.6 below" in said.text and "outside the tolerance" in said.text
    above, *_ = told(ap=0.45)
    assert above.kind == "" and "outside the tolerance" in above.text
    assert told(Row(reproduced=True))[1][-1] == "yes"


@pytest.mark.parametrize(("changed", "reason"), [
    ({"after": 11}, "not finished: evaluated after epoch 11 of 12"),
    ({"state": "evaluation"}, "this directory does not record how the weights were trained"),
    ({"ap": -1.0}, "no AP"),
    ({"images": 206}, "evaluated images (COCO val2017): 206, not 5000"),
    ({"epochs": 2}, "epochs: 2, not 12"),
    ({"total_batch": 4}, "images per step: 4, not 16"),
    ({"overrides": ["LearningRate.base_lr=0.1", "log_iter=5"]}, "LearningRate.base_lr: 0.1, not"),
    ({"overrides": [f"EvalReader.{key}=1" for key in ("batch_size", "drop_last", "shuffle")]
      + [f"OptimizerBuilder.clip_grad_by_{key}=1" for key in ("norm", "value")]
      + ["LearningRate.base_lr=0.1", "use_ema=true", "amp=true"]}, "more."),
    ({"data": {"train": Dataset("a.json", images=100, used=20, boxes=1)}}, "only 20 of the 100"),
])  # fmt: skip
def test_another_run_claims_nothing(told, changed, reason):
    said, *_ = told(**changed)
    assert said.kind == "" and said.text.startswith("Not comparable with the published 39.7")
    assert reason in said.text and "tolerance" not in said.text


def test_what_does_not_change_the_result_may_be_changed(told):
    keys = ["TrainDataset.dataset_dir=/data", "snapshot_epoch=2", "worker_num=3", "device=cpu"]
    assert told(overrides=[*keys, "seed=4"])[0].text.startswith("AP 39.5 is 0.2 below")


@pytest.mark.parametrize(("row", "cards"), [
    (Row(device="A100"), 8), (Row(device=None), 8), (Row(cards=4), 8), (Row(device="cpu"), 8),
])  # fmt: skip
def test_speed_of_other_hardware_is_not_compared(told, row, cards):
    assert "on other hardware" in told(row)[2][0]


def test_nothing_published(monkeypatch, tmp_path):
    monkeypatch.setattr(judgement, "published", lambda name: [])
    (text,) = headline.against_published(run_of(tmp_path))
    assert text.text == "There is no published figure of the config fcos_r50_fpn_1x_coco."


def test_words():
    assert [headline.duration(h) for h in (0.01, 0.5, 7.44)] == ["36 s", "30 min", "7.4 h"]
    assert [headline.percent(v) for v in (None, -1, 0.3971)] == ["-", "-", "39.7"]
