"""Scaling of LR, warm-up and steps by cards, batch size and images."""

import pytest

from fcos_recipe.config import load_config
from fcos_recipe.config.scaling import decay_factors, plan_scaling
from fcos_recipe.errors import UserError

HEADLINE = "configs/fcos/fcos_r50_fpn_1x_coco.yml"
COCO = 117_266  # images of train2017 with objects


def make(root, *overrides, cards=8, images=COCO, config=HEADLINE):
    return plan_scaling(load_config(root / config, overrides), cards, images)


@pytest.mark.parametrize(
    "cards, batch, accumulate, lr, warmup, steps",
    [
        (8, 2, 1, 0.01, 500, 7329),  # the published run
        (1, 2, 1, 0.00125, 4000, 58633),
        (2, 2, 1, 0.0025, 2000, 29316),
        (16, 2, 1, 0.02, 250, 3665),
        (16, 4, 1, 0.04, 125, 1832),
        (1, 2, 8, 0.01, 500, 7329),
        (3, 2, 1, 0.00375, 1333, 19544),
    ],
)
def test_lr_and_warmup_follow_the_images_per_step(
    root, cards, batch, accumulate, lr, warmup, steps
):
    p = make(root, f"TrainReader.batch_size={batch}", f"accumulate={accumulate}", cards=cards)
    assert p.total_batch == cards * batch * accumulate
    assert (p.scaled, p.base_batch, p.steps_per_epoch, p.max_steps) == (True, 16, steps, steps * 12)
    assert p.lr == pytest.approx(lr, rel=1e-12)
    assert p.warmup_steps == warmup
    assert p.learning_rate["base_lr"] == p.lr
    assert p.learning_rate["schedulers"][0]["milestones"] == [8, 11]  # epochs: never scaled
    assert p.warnings == []
    assert f"{cards} card" in p.lines[0] and ("cards" in p.lines[0]) == (cards > 1)
    assert f" x {batch} images x {accumulate} accumulated" in p.lines[0]
    assert f"= {p.total_batch} per step" in p.lines[0]
    assert f"LR       {lr:g} = 0.01 x {p.total_batch} / 16" in p.lines[1]


def test_the_published_arithmetic_is_untouched(root):
    cfg = load_config(root / HEADLINE)
    p = plan_scaling(cfg, 8, COCO)
    rate = cfg.stock_data()["LearningRate"]
    assert p.learning_rate == rate and "base_batch" not in rate


def test_a_base_lr_set_alone_is_used_as_written(root, tmp_path):
    p = make(root, "LearningRate.base_lr=2e-3", cards=1)
    assert (p.lr, p.scaled, p.warmup_steps, p.base_batch) == (0.002, False, 500, None)
    assert "not scaled" in p.lines[1] and "command line" in p.lines[1]
    mine = tmp_path / "mine.yml"
    mine.write_text(f"_BASE_: [{root / HEADLINE}]\nLearningRate: {{base_lr: 0.002}}\n")
    cfg = load_config(mine)
    assert "not scaled" in cfg.warnings[0] and f"{mine}:2" in cfg.warnings[0]
    assert plan_scaling(cfg, 1, COCO).lr == 0.002
    # With its own batch beside it, in the same place, it scales again.
    pair = "{base_lr: 0.002, base_batch: 4}"
    mine.write_text(f"_BASE_: [{root / HEADLINE}]\nLearningRate: {pair}\n")
    assert plan_scaling(load_config(mine), 1, COCO).lr == pytest.approx(0.001)
    p = make(root, "LearningRate.base_lr=2e-3", "LearningRate.base_batch=4", cards=1)
    assert p.scaled and p.lr == pytest.approx(0.001) and p.warmup_steps == 1000


def test_scaling_can_be_switched_off(root):
    p = make(root, "scale_lr=false", cards=1)
    assert (p.lr, p.scaled, p.warmup_steps) == (0.01, False, 500)
    assert "scale_lr is false" in p.lines[1] and "tuned for 16" in p.warnings[0]


def test_a_foreign_tree_is_used_as_written(root):
    p = make(root, config="tests/fixtures/paddledet_tree/configs/fcos/fcos_r50_fpn_1x_coco.yml")
    assert (p.lr, p.scaled, p.warmup_steps) == (0.01, False, 500)


def test_a_warmup_that_outlasts_the_plateau_is_shortened_and_said(root):
    p = make(root, cards=2, images=900)  # 225 steps per epoch, first milestone at 1800
    assert p.warmup_steps == 900 == p.learning_rate["schedulers"][1]["steps"]
    assert "warm-up of 2000 steps" in p.warnings[0] and "first milestone" in p.warnings[0]
    p = make(root, "epoch=2", cards=1, images=600)
    assert p.warmup_steps == 300 and "the run (step 600)" in p.warnings[0]
    assert "milestones [8, 11] are never reached: the run has 2 epochs" in p.warnings[1]
    p = make(root, "epoch=1", cards=1, images=2)  # a single step: no room for any warm-up
    assert p.warmup_steps == 0
    assert p.learning_rate["schedulers"] == [
        {"name": "PiecewiseDecay", "gamma": 0.1, "milestones": [8, 11], "use_warmup": False}
    ]


def test_warmup_in_epochs_counts_images_already(root, tmp_path):
    mine = tmp_path / "mine.yml"
    mine.write_text(
        f"_BASE_: [{root / HEADLINE}]\nepoch: 10\nLearningRate:\n  schedulers:\n"
        "  - !CosineDecay {max_epochs: 12}\n  - !ExpWarmup {epochs: 1}\n"
    )
    p = plan_scaling(load_config(mine), 1, 2000)
    assert p.warmup_steps == 1000 and p.lr == pytest.approx(0.00125)
    assert p.learning_rate["schedulers"][1] == {"name": "ExpWarmup", "steps": 1000}
    assert p.warnings == ["CosineDecay ends at epoch 12, but the run has 10 epochs"]


def test_a_single_gamma_means_what_stock_makes_of_it():
    decay = {"name": "PiecewiseDecay", "gamma": 0.5, "milestones": [1, 2, 3]}
    assert decay_factors(decay) == pytest.approx([0.5, 0.05, 0.005])
    assert decay_factors({**decay, "gamma": [0.5, 0.25, 0.1]}) == [0.5, 0.25, 0.1]


@pytest.mark.parametrize(
    "override, part",
    [
        ("TrainReader.batch_size=20", "100 images do not fill one step of 160"),
        ("accumulate=8", "100 images do not fill one step of 128"),
    ],
)
def test_impossible_numbers_are_refused(root, override, part):
    with pytest.raises(UserError, match=part):
        make(root, override, images=100)
