"""A config whose parts contradict each other is refused; one that is accepted can be built."""

import re

import pytest

from fcos_recipe import api
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError, UserErrors
from tests.conftest import ROOT

BCCD = ROOT / "configs/fcos/fcos_r18_fpn_bccd.yml"
HEADLINE = ROOT / "configs/fcos/fcos_r50_fpn_1x_coco.yml"


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["FCOSHead.fpn_stride=[16,32]"], r"FCOSHead.fpn_stride: \[16, 32\], but .* is \[8, 16\]"),
        (["FCOSHead.fpn_stride=[8]"], "FCOSHead.fpn_stride: .*downsample_ratios"),
        (["FCOSHead.fpn_stride=[16,8]"], "fpn_stride: .* increasing"),
        (["FCOSHead.norm_reg_targets=false"], "FCOSHead.norm_reg_targets: .*pixels.*strides"),
        (["FCOSHead.multiply_strides_reg_targets=true"], "norm_reg_targets: "),
        (["FCOSHead.num_shift=0"], "FCOSHead.num_shift: 0, but "),
        (["TrainReader.repeat_threshold=2"], "repeat_threshold: 2: must lie in 0 to 1"),
        (["EvalReader.repeat_threshold=0.5"], "0.5: only TrainReader has it"),
        (["FPN.extra_stage=2"], "FPN.extra_stage: 2, but without convolutions FPN adds one"),
        (["FPN.extra_stage=1"], r"fpn_stride: \[8, 16\], but the levels of FPN"),
        (["FPN.spatial_scales=[0.25,0.125]"], "FPN.spatial_scales: .* strides are"),
        (["FPN.out_channel=128"], "fcos_feat.feat_in: 64, but FPN.out_channel is 128"),
        (["FCOSHead.fcos_feat.feat_out=48"], "feat_out: 48 is not a multiple of 32"),
        (["ResNet.return_idx=[2,3]"], "ResNet.return_idx: .*num_stages 3"),
        (["ResNet.return_idx=[2,1]"], "ResNet.return_idx: .*consecutive"),
        (["ResNet.depth=26"], "ResNet.depth: no ResNet has 26 layers"),
        (["FCOSHead.num_classes=7"], "FCOSHead.num_classes: 7, but num_classes of the config is 3"),
        (["architecture=FasterRCNN"], "architecture: this recipe trains FCOS, not FasterRCNN"),
        (["architecture=ARSL_FCOS"], "architecture: this recipe trains FCOS, not ARSL_FCOS"),
        (
            ["TrainReader.mosaic_epoch=3"],
            "TrainReader.mosaic_epoch: sample_transforms has no Mosaic",
        ),
        (["TrainReader.pre_img_epoch=3"], "pre_img_epoch: not supported: it serves CenterTrack"),
        (["FCOS.ssod_loss=SSODFCOSLoss"], "FCOS.ssod_loss: not supported: semi-supervised"),
        (["FCOS.fcos_post_process=FCOSPostProcess"], "not supported: as in PaddleDetection 2.6"),
    ],
)
def test_contradictions_are_named(overrides, says):
    with pytest.raises(UserErrors, match=says) as error:
        load_config(BCCD, overrides)
    for line in error.value.messages:
        assert re.match(r"command line: |\S+\.yml:\d+: ", line) and len(line.splitlines()) == 1


@pytest.mark.parametrize("backbone, fits", [
    ("MobileNetV3", True), ("DarkNet", True), ("ConvNeXt", True), ("Res2Net", False),
    ("HRNet", False),
])  # fmt: skip
@pytest.mark.slow
def test_other_backbones_are_built_or_refused_by_their_real_strides(backbone, fits):
    overrides = [f"FCOS.backbone={backbone}"]
    if fits:
        api.build(HEADLINE, overrides=overrides, device="cpu")
    else:
        with pytest.raises(UserError, match=r"FCOSHead.fpn_stride: .*levels .*\[4, 8, 16"):
            api.build(HEADLINE, overrides=overrides, device="cpu")


def test_padding_must_fit_the_real_strides_of_a_backbone():
    pad = "EvalReader.batch_transforms=[{PadBatch: {pad_to_stride: 16}}]"
    with pytest.raises(UserError, match="EvalReader.*: 16 is not a multiple of 32, .* of LCNet"):
        api.build(HEADLINE, overrides=["FCOS.backbone=LCNet", pad], device="cpu")


@pytest.mark.parametrize("override, says", [
    ("ResNet.variant=d", None),
    ("ResNet.groups=7", "ResNet"),
    ("FCOS.backbone=TransEncoder", "FCOS.backbone: TransEncoder .*cannot be a backbone: "),
    ("FCOS.neck=YOLOv3FPN", "FCOS"),
    ("FCOS.backbone={name: ResNet, depth: 18}", "write backbone: ResNet, and its arguments in a"),
])  # fmt: skip
def test_what_cannot_be_built_is_one_line(override, says):
    if says is None:
        return api.build(BCCD, overrides=[override], device="cpu")
    with pytest.raises(UserError, match=says) as error:
        api.build(BCCD, overrides=[override], device="cpu")
    assert "\n" not in str(error.value)


def test_data_set_tags_mean_the_name_of_a_class(tmp_path):
    path = tmp_path / "tagged.yml"
    sections = "".join(
        f"{name}Dataset:\n  !COCODataSet\n    image_dir: {name}\n    anno_path: {name}.json\n"
        f"    dataset_dir: {tmp_path}\n" for name in ("Train", "Eval")
    )  # fmt: skip
    path.write_text(f"_BASE_: ['{BCCD}']\n{sections}TestDataset:\n  !ImageFolder\n"
                    f"    anno_path: {tmp_path}/Eval.json\n")  # fmt: skip
    data = load_config(path).data
    assert (
        data["TrainDataset"]["name"] == "COCODataSet"
        and data["TestDataset"]["name"] == "ImageFolder"
    )
    path.write_text(f"_BASE_: ['{BCCD}']\nTrainDataset: !COCODataset {{image_dir: a}}\n")
    with pytest.raises(UserErrors, match="tag !COCODataset: no registered .* 'COCODataSet'"):
        load_config(path)
    path.write_text(f"_BASE_: ['{BCCD}']\nTrainDataset: !!python/object:os.system {{a: b}}\n")
    with pytest.raises(UserErrors, match="is not allowed"):
        load_config(path)


@pytest.mark.parametrize("given, meant", [
    ("batch_size=2", "TrainReader.batch_size"), ("base_lr=1", "LearningRate.base_lr"),
    ("lr=1", "LearningRate.base_lr"), ("epochs=3", "epoch"), ("depth=18", "ResNet.depth"),
    ("score_threshold=0", "FCOSHead.nms.score_threshold"), ("patience=3", "early_stop.patience"),
    ("milestones=[1]", "LearningRate.schedulers"), ("gamma=2", "LearningRate.schedulers"),
    ("target_size=3", "TrainReader.sample_transforms"),
    ("anno_path=x", "TrainDataset.anno_path"), ("TrainReader.epoch=3", "epoch"),
    ("worker_nums=1", "worker_num"), ("TrainReader.bach_size=1", "batch_size"),
])  # fmt: skip
def test_a_misplaced_key_is_found_wherever_it_belongs(given, meant):
    with pytest.raises(UserErrors, match=f"did you mean '{meant}'"):
        load_config(HEADLINE, [given])
