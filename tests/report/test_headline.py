"""What is claimed beside a published figure, and what is not."""

from dataclasses import dataclass

import pytest

from fcos_recipe.report import headline
from fcos_recipe.report.blocks import Items, Table, Text
from fcos_recipe.runs.contents import ConfigFacts, Dataset, Environment, Evaluation, Facts, Run


@dataclass
class Row:
    """As runs.published_results.Row."""

    config: str = "fcos_r50"
    dataset: str = "COCO val2017"
    device: str | None = "BI-V100"
    cards: int = 8
    total_batch: int = 16
    epochs: int = 12
    ap: float = 39.7
    images_per_second: float | None = 8.24
    throughput_of: str = "unstated"
    source: str = "the first page"
    reproduced: bool = False
    tolerance: float = 0.4


def run_of(tmp_path, ap=0.395, images=5000, **changed) -> Run:
    train = [{"kind": "train", "images_per_second_per_card": 4.12, "images_per_second": 32.96}]
    data = {"train": Dataset("a.json", images=100, used=90, boxes=1, without_boxes=10)}
    facts = {"config": ConfigFacts("fcos_r50"), "device": "iluvatar_gpu", "cards": 8,
             "total_batch": 16, "epochs": 12, "data": data}  # fmt: skip
    return Run(
        tmp_path, train=train, state=changed.pop("state", "finished"),
        facts=Facts(**{**facts, **changed}),
        environment=Environment(device="iluvatar_gpu", cards=["Iluvatar BI-V100"] * 8),
        evaluation=Evaluation([ap, ap], ["AP", "AP50"], images=images),
    )  # fmt: skip


@pytest.fixture
def told(monkeypatch, tmp_path):
    """told(row, **run): the judgement, the table's row and the words on speed."""

    def tell(row=None, **changed):
        monkeypatch.setattr(headline, "published", lambda name: [row or Row()])
        judgement, table, speed = headline.against_published(run_of(tmp_path, **changed))
        assert isinstance(judgement, Text) and isinstance(table, Table) and isinstance(speed, Items)
        return judgement, table.rows[0], speed.items

    return tell


def test_the_same_run_is_judged_by_the_tolerance(told):
    judgement, row, speed = told()
    assert judgement.kind == "good" and judgement.text == (
        "AP 39.5 is 0.2 below the published 39.7 (8 cards, BI-V100): within the tolerance of 0.4."
    )
    assert row[-1] == "not reproduced here" and row[4] == "8.24, of what: unstated"
    # 4.12 per card, 32.96 in total beside 8.24
    assert "50 % or 400 %" in speed[0] and "does not state which" in speed[0]
    assert told(Row(throughput_of="card"))[2][0].endswith("this run is at 50 % of its images/s")
    judgement, *_ = told(ap=0.391)
    assert judgement.kind == "bad" and "0.6 below" in judgement.text
    assert "outside the tolerance" in judgement.text
    assert told(ap=0.45)[0].kind == "good"
    assert told(Row(reproduced=True))[1][-1] == "yes"


@pytest.mark.parametrize(("changed", "reason"), [
    ({"state": "stopped"}, "not finished"),
    ({"ap": -1.0}, "no AP"),
    ({"images": 206}, "evaluated on 206 images, not on COCO val2017"),
    ({"epochs": 2}, "2 epochs, not 12"),
    ({"total_batch": 4}, "4 images per step, not 16"),
    ({"config": ConfigFacts("fcos_r50", command_line=["LearningRate.base_lr", "log_iter"])},
     "changed on the command line: LearningRate.base_lr."),
    ({"data": {"train": Dataset("a.json", images=100, used=20, boxes=1)}}, "only 20 of the 100"),
])  # fmt: skip
def test_another_run_claims_nothing(told, changed, reason):
    judgement, *_ = told(**changed)
    assert judgement.kind == "" and judgement.text.startswith("Not to be compared with the publi")
    assert reason in judgement.text and "tolerance" not in judgement.text


def test_what_does_not_change_the_result_may_be_changed(told):
    keys = ["TrainDataset.dataset_dir", "snapshot_epoch", "worker_num", "device"]
    judgement, *_ = told(config=ConfigFacts("fcos_r50", command_line=keys))
    assert judgement.text.startswith("AP 39.5 is 0.2 below")


@pytest.mark.parametrize(("row", "cards"), [
    (Row(device="A100"), 8), (Row(device=None), 8), (Row(cards=4), 8), (Row(device="cpu"), 8),
])  # fmt: skip
def test_speed_of_other_hardware_is_not_compared(told, row, cards):
    assert "of other hardware" in told(row)[2][0]


def test_nothing_published(monkeypatch, tmp_path):
    monkeypatch.setattr(headline, "published", lambda name: [])
    (text,) = headline.against_published(run_of(tmp_path))
    assert text.text == "There is no published figure of the config fcos_r50."


def test_words():
    assert [headline.duration(h) for h in (0.01, 0.5, 7.44)] == ["36 s", "30 min", "7.4 h"]
    assert [headline.percent(v) for v in (None, -1, 0.3971)] == ["-", "-", "39.7"]
