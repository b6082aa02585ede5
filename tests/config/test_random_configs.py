"""A random config is refused in one line, or trains, evaluates and decodes as it was trained.

"As it was trained" is checked from both ends: outputs that the loss calls perfect for known boxes,
which the config's own assignment turned into targets, are those very boxes after decoding.
"""

import itertools
import json
import random

import numpy as np
import paddle
import pytest

from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation.loop import build_evaluation_set, evaluate
from fcos_recipe.training.trainer import Trainer

# Strides of the feature maps that paddledet's backbones give with their default arguments.
FINE, MIDDLE = [4, 8, 16, 32], [8, 16, 32]
BACKBONES = {
    "MobileNet": MIDDLE, "MobileNetV3": MIDDLE, "GhostNet": MIDDLE, "ShuffleNetV2": MIDDLE,
    "LCNet": MIDDLE, "ESNet": MIDDLE, "CSPResNet": MIDDLE, "CSPDarkNet": MIDDLE,
    "HRNet": FINE, "Res2Net": FINE, "SwinTransformer": FINE, "DLA": [1, 2, 4, 8, 16, 32],
    "BlazeNet": [8, 16],
}  # fmt: skip
CLASSES = (1, 3, 9)  # of the fixture's annotation files
MEAN = "{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], is_scale: true}"
SIZE = "[64, 96]"  # of the images that are trained on


@pytest.fixture(scope="session")
def classes(shapes):
    """Annotation files of `shapes` with other numbers of classes, train_9.json and so on."""
    for split in ("train", "val"):
        content = json.loads((shapes / f"annotations/instances_{split}.json").read_text())
        for count in CLASSES:
            content["categories"] = [{"id": k, "name": f"class {k}"} for k in range(1, count + 1)]
            for row in content["annotations"]:
                row["category_id"] = row["id"] % count + 1
            path = shapes / "annotations" / f"{split}_{count}.json"
            path.write_text(json.dumps(content))


def transforms(rng: random.Random) -> tuple[str, list[str]]:
    """Sample transforms of TrainReader, and the arguments that belong to them."""
    mixing = rng.choice([None, None, "Mosaic", "Mixup", "Cutmix"])
    arguments = f"{{input_dim: {SIZE}}}" if mixing == "Mosaic" else "{}"
    last = rng.choice([1, 1, 1, -1])
    more = [f"TrainReader.{mixing.lower()}_epoch={last}"] if mixing else []
    others = ["RandomDistort: {}", "RandomCrop: {}", "RandomFlip: {}", "GridMask: {}",
              "RandomExpand: {fill_value: [123.7, 116.3, 103.5]}",
              "AutoAugment: {autoaug_type: v1}"]  # fmt: skip
    size = rng.choice([
        f"Resize: {{target_size: {SIZE}, keep_ratio: true, interp: 1}}",
        "RandomResize: {target_size: [[64, 96], [96, 96]], keep_ratio: false, interp: 1}",
    ])  # fmt: skip
    chosen = [other for other in others if rng.random() < 0.25]
    listed = ["Decode: {}", *([f"{mixing}: {arguments}"] if mixing else []), *chosen, size,
              f"NormalizeImage: {MEAN}"]  # fmt: skip
    return "[" + ", ".join(f"{{{one}}}" for one in listed) + "]", more


def backbone(number: int, rng: random.Random, usually) -> tuple[list[str], list[int]]:
    """Overrides that choose a backbone, and the strides of its feature maps; odd: each in turn."""
    if number % 2:
        name = [*BACKBONES][number // 2 % len(BACKBONES)]
        return [f"FCOS.backbone={name}"], BACKBONES[name]
    indices = usually(rng.choice([[1, 2], [0, 1], [2], [1, 2, 3], [0, 1, 2, 3]]), [0, 2], [3, 4])
    depth, groups = rng.choice([(18, 1), (18, 1), (34, 1), (50, 1), (50, 32)])
    return [
        f"ResNet.return_idx={indices}", "ResNet.num_stages=4", f"ResNet.depth={usually(depth, 26)}",
        f"ResNet.groups={groups}", f"ResNet.base_width={4 if groups > 1 else 64}",
        f"ResNet.variant={rng.choice('abcd')}",
    ], [4 * 2**i for i in indices]  # fmt: skip


def drawn(seed: int) -> list[str]:
    """Overrides of a small model; with even seeds one of its parts may contradict the others."""
    rng, parts = random.Random(seed), itertools.count()
    wrong = None if seed % 2 else seed // 2 % 16

    def usually(value, *others):
        others = [other for other in others if other != value] or [value]
        return rng.choice(others) if next(parts) == wrong else value

    norm, multiply = rng.choice(["true", "false"]), rng.choice(["true", "false", "false"])
    shift = rng.choice([0.5, 0.5, 0.0, 0.25])
    target_norm, target_multiply = (usually(flag, "true", "false") for flag in (norm, multiply))
    target_shift, factor = usually(shift, 0.0, 0.5), usually(1, 2)
    chosen, strides = backbone(seed, rng, usually)
    extra = rng.choice([0, 0, 1, 2])
    strides = strides + [strides[-1] * 2**k for k in range(1, extra + 1)]
    given = usually(strides, [4, 8], [16], [8, 16, 32, 64])
    first = rng.choice([16, 32, 50.5])
    bounds = [first * rng.choice([1, 1.5]) * 2**k for k in range(len(given) - 1)]
    bounds = usually(bounds, [*bounds, 1e4], [1e4, *bounds][: len(bounds)])
    width, count = rng.choice([32, 64, 48]), rng.choice(CLASSES)
    listed, more = transforms(rng)
    if usually(False, True):
        more = ["TrainReader.mosaic_epoch=1", "TrainReader.mixup_epoch=1"]  # at most one is listed
    target = (
        f"{{object_sizes_boundary: {bounds}, center_sampling_radius: {rng.choice([0, -1, 1.5])}, "
        f"downsample_ratios: {[factor * s for s in given]}, norm_reg_targets: {target_norm}, "
        f"multiply_strides_reg_targets: {target_multiply}, num_shift: {target_shift}}}"
    )
    pad = usually(max(32, *strides), 16, 8)
    convolutions = str(extra > 1 or rng.random() < 0.7).lower()
    feat = (
        f"{{name: FCOSFeat, feat_in: {usually(width, 96)}, feat_out: {usually(32, 48)}, "
        f"num_convs: {rng.choice([1, 2])}, norm_type: {rng.choice(['gn', 'bn'])}}}"
    )
    return [
        *chosen, *more, f"FPN.extra_stage={extra}", f"FPN.out_channel={width}",
        f"FPN.has_extra_convs={usually(convolutions, 'false')}",
        f"FPN.use_c5={str(rng.random() < 0.5).lower()}",
        f"FPN.spatial_scales={[1 / s for s in strides[: len(strides) - extra]]}",
        f"num_classes={usually(count, 4)}", f"FCOSHead.fcos_feat={feat}",
        f"TrainDataset.anno_path=annotations/train_{count}.json",
        f"EvalDataset.anno_path=annotations/val_{count}.json", "TrainDataset.sample_num=4",
        f"FCOSHead.fpn_stride={given}", f"FCOSHead.norm_reg_targets={norm}",
        f"FCOSHead.multiply_strides_reg_targets={multiply}",
        f"FCOSHead.num_shift={shift}", f"FCOSHead.sqrt_score={rng.choice(['true', 'false'])}",
        f"FCOSHead.centerness_on_reg={rng.choice(['true', 'false'])}",
        f"FCOSHead.fcos_loss.quality={rng.choice(['centerness', 'iou'])}",
        f"FCOSHead.fcos_loss.iou_loss_type={rng.choice(['giou', 'linear_iou', 'iou'])}",
        f"TrainReader.sample_transforms={listed}",
        f"TrainReader.batch_transforms=[{{Permute: {{}}}}, {{PadBatch: {{pad_to_stride: {pad}}}}}, "
        f"{{Gt2FCOSTarget: {target}}}]",
        f"EvalReader.batch_transforms=[{{PadBatch: {{pad_to_stride: {pad}}}}}]", "epoch=1",
    ]  # fmt: skip


def decode_targets(trainer: Trainer) -> int:
    """Assign boxes, let the head predict the targets, and find the boxes again; return how many."""
    head, target, model = trainer.model.fcos_head, trainer.loader.target, trainer.model
    head.nms.nms_top_k = -1  # fine levels have thousands of locations in a box, all equally good
    height, width, scale = 256, 384, np.float32([0.5, 0.8])
    boxes = np.float32([
        [6, 5, 31.5, 33], [42, 10, 90.25, 99], [130, 20, 330, 241], [10, 130, 70, 200],
        [75, 121, 112, 250.5], [341, 30, 349, 37],
    ])  # fmt: skip
    labels = np.arange(len(boxes)) % head.num_classes
    model.eval()
    with paddle.no_grad():
        image = paddle.zeros([1, 3, height, width])
        logits, regression, sizes = head(model.neck(model.backbone({"image": image})))
        found = target([boxes], [labels], height, width)
        assert found["num_pos"][0] > 0, "no box has a location: draw larger ranges"
        at = found["pos_index"]
        level = np.repeat(np.arange(len(sizes)), [h * w for h, w in sizes])[at]
        scales = np.float32([layer.scale_reg.item() for layer in head.scales_regs])[level, None]
        reg = found["pos_reg"]
        if head.norm_reg_targets:
            unit = head.multiply_strides_reg_targets
            raw = reg / (np.float32(head.fpn_stride)[level, None] if unit else 1)
        else:
            raw = np.log(reg)
        outputs = [np.full(part.shape, -12, np.float32) for part in (logits, regression)]
        outputs[0][0, found["pos_label"], at] = outputs[1][0, 4, at] = 12
        outputs[1][0, :4, at] = raw / scales
        outputs = [paddle.to_tensor(part) for part in outputs]
        losses = head._loss(*outputs, sizes, {k: paddle.to_tensor(v) for k, v in found.items()})
        assert float(losses["loss_box"]) < 1e-3, "the loss does not call this perfect"
        sizes_and_scales = np.float32([[height, width]]), scale[None]
        detections, _ = head.post_process(
            (*outputs, sizes), *map(paddle.to_tensor, sizes_and_scales)
        )
    expected = sorted(
        (int(label), *(box / scale[[1, 0, 1, 0]]))
        for box, label in zip(boxes, labels)
        if target([box[None]], [label[None]], height, width)["num_pos"][0]
    )
    rows = sorted((int(row[0]), *row[2:]) for row in detections.numpy().tolist())
    np.testing.assert_allclose(rows, expected, rtol=0, atol=0.1)
    return len(expected)


def refused_or_right(seed: int, tiny, train: bool) -> bool:
    """Whether the config of this seed is accepted; then with `train` it also trains a step."""
    try:
        config = load_config(tiny, drawn(seed))
        trainer = Trainer(config, "cpu")
    except UserError as error:
        assert all(str(line).strip() for line in str(error).splitlines())
        assert len(str(error).splitlines()) == len(getattr(error, "messages", [0]))
        return False
    if train:
        (batch,) = trainer.loader  # of the four images
        trainer.model.train()
        losses = trainer._backward(trainer.model, batch, synchronise=True)
        trainer.optimizer.step()
        assert np.isfinite(losses["loss"].item())
        data = build_evaluation_set(trainer.cfg, 0, 1)
        assert evaluate(trainer.model, data, trainer.autocast)["images"] == 8
    assert decode_targets(trainer) > 0
    return True


@pytest.mark.parametrize("seed", range(12))
def test_what_is_accepted_decodes_its_own_targets(seed, tiny, classes):
    refused_or_right(seed, tiny, train=False)


@pytest.mark.e2e
@pytest.mark.slow
def test_what_is_accepted_trains_a_step_and_is_evaluated(tiny, classes):
    accepted = [refused_or_right(seed, tiny, train=True) for seed in range(28)]
    assert 14 <= sum(accepted) <= 24
