"""Values out of range are refused by `validate`, before a run crashes or is silently wrong."""

import re

import pytest

from fcos_recipe.config import limits, load_config, schema
from fcos_recipe.errors import UserErrors
from tests.conftest import ROOT

BCCD = ROOT / "configs/fcos/fcos_r18_fpn_bccd.yml"
NORMALIZE = "{NormalizeImage: {mean: [0.5, 0.5, 0.5], std: [1, 1, 1], is_scale: true}}"


def test_every_rule_belongs_to_an_argument_and_refuses_something():
    recipe = {name for name, _ in schema.keys(schema.RECIPE)}
    keys = " ".join(limits.LIMITS.values()).split()
    assert len(keys) == len(set(keys)) > 40
    for key in keys:
        name, _, argument = key.rpartition(".")
        args = schema.optimizer_signature(name) if name == "Momentum" else schema.signature(name)
        assert key in recipe or argument in args.args, key
        assert limits.wrong(key, -2) and limits.wrong(key, float("nan")), key
        assert limits.wrong(key, True) and not limits.wrong(key, -2, default=-2), key


@pytest.mark.parametrize("given, says", [
    ("TrainReader.batch_size=0", "expected at least 1, found 0"),
    ("EvalReader.batch_size=-1", "expected at least 1, found -1"),
    ("LearningRate.base_lr=-0.01", "expected more than 0"),
    ("LearningRate.base_lr=.nan", "expected more than 0, found nan"),
    ("FCOSHead.nms.nms_threshold=60", "expected a number from 0 to 1, found 60"),
    ("FCOSHead.nms.keep_top_k=0", "expected at least 1, or -1 for all, found 0"),
    ("FCOSHead.prior_prob=0", "expected more than 0 and less than 1"),
    ("FCOSHead.fcos_loss.quality=iuo", "expected centerness or iou, found 'iuo'"),
    ("FCOSHead.fcos_loss.iou_loss_type=ciou", "expected giou, linear_iou or iou"),
    ("FCOSHead.fcos_feat.norm_type=ln", "expected bn, sync_bn, gn or null, found 'ln'"),
    ("ResNet.variant=z", "expected a, b, c or d, found 'z'"),
    ("OptimizerBuilder.clip_grad_by_norm=0", "expected more than 0, found 0"),
    ("OptimizerBuilder.regularizer={factor: 0.1}", "regularizer.type: missing"),
    ("OptimizerBuilder.regularizer={type: L2, factor: -1}", "expected at least 0, found -1"),
    ("OptimizerBuilder.optimizer={type: Momentum, momentum: 1.5}", "less than 1, found 1.5"),
    ("OptimizerBuilder.optimizer.momentum=0.9", "unknown argument of AdamW$"),
    ("LearningRate.schedulers=[!PiecewiseDecay {milestones: [8, 4]}, !LinearWarmup {}]",
     "milestones: expected a list of epochs in increasing order"),
    ("snapshot_minutes=-0.5", "expected at least 0, found -0.5"),
    ("watchdog.step=-1", "expected at least 0"), ("ema_decay=5", "from 0 to 1, found 5"),
    ("TrainReader.sample_transforms=[{Decode: {}}, {Resize: {target_size: [-96, 128], "
     "keep_ratio: true}}]", "a number of pixels, or .height, width., found .-96, 128."),
    ("TrainReader.sample_transforms=[{Decode: {}}, {NormalizeImage: {std: [0, 0, 0]}}]",
     "std: expected three numbers of more than 0"),
    (f"TrainReader.sample_transforms=[{NORMALIZE}, {{Decode: {{}}}}]", "Decode comes first, not N"),
    (f"TrainReader.sample_transforms=[{{Decode: {{}}}}, {NORMALIZE}, {{Permute: {{}}}}]",
     "Permute is in its lists twice"),
    ("TrainReader.batch_transforms=[{Permute: {}}]", "no Gt2FCOSTarget"),
    ("FCOS.neck=null", "FCOS.neck: expected the name of a class, such as FPN, found None$"),
    ("FCOSHead.fcos_loss=null", "the name of a class, such as FCOSLoss"),
    ("LearningRate.schedulers=null", "expected a list of a decay and a warm-up, found None"),
    ("LearningRate.schedulers=PiecewiseDecay", "expected a list of a decay and a warm-up"),
    ("TrainReader.sample_transforms=null", "expected a list of transforms, found None"),
    ("TrainReader.batch_transforms={Permute: {}}", "expected a list of transforms, found ."),
    ("TrainReader.sample_transforms=[Decode]", "expected `Name: .*; write `Decode: {}`$"),
    ("FPN.spatial_scales=[1/8, 1/16]", "a list of numbers of more than 0, found .'1/8'"),
    ("TrainDataset.anno_path=3", "expected a path, or a list of paths, found 3"),
    ("worker_num=-1", "expected at least 0, found -1"),
    ("TrainReader.sample_transforms.1.Resize.target_size=[8, 8]",
     "expected a list of transforms, found .* a list can only be replaced as a whole$"),
    ("OptimizerBuilder.optimizer=SGD", "expected a mapping with its type, found 'SGD'"),
    ("TrainDataset.name=VOCDataSet", "TrainDataset.name: VOCDataSet, but this recipe reads COCO"),
    ("TrainDataset.data_fields=null", "data_fields: add gt_bbox, gt_class, image$"),
    ("TrainDataset.data_fields=[image]", "data_fields: add gt_bbox, gt_class$"),
])  # fmt: skip
def test_values_out_of_range_are_named(given, says):
    with pytest.raises(UserErrors, match=says) as error:
        load_config(BCCD, [given])
    (line,) = error.value.messages
    key = re.sub(r"\.\d.*", "", given.split("=")[0])  # up to the list that holds it
    assert line.startswith(f"command line: {key.rpartition('.')[0]}")
