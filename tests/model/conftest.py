"""Our model and stock's with the same weights, and one batch in both forms."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from fcos_recipe import compat

compat.import_ppdet()

from ppdet.modeling.backbones.resnet import ResNet  # noqa: E402
from ppdet.modeling.heads.fcos_head import FCOSFeat  # noqa: E402
from ppdet.modeling.layers import MultiClassNMS  # noqa: E402
from ppdet.modeling.necks.fpn import FPN  # noqa: E402

from fcos_recipe.data.targets import Gt2FCOSTarget  # noqa: E402
from fcos_recipe.model.fcos import FCOS  # noqa: E402
from fcos_recipe.model.head import FCOSHead  # noqa: E402
from fcos_recipe.model.loss import FCOSLoss  # noqa: E402

STRIDES = [8, 16, 32, 64, 128]
CLASSES = 7
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def nms(**limits):
    """The published configs' NMS."""
    return MultiClassNMS(
        **{"score_threshold": 0.025, "nms_top_k": 1000, "keep_top_k": 100, "nms_threshold": 0.6}
        | limits
    )


def head(side, feat=None, loss=None, **arguments):
    """`FCOSHead` of one side, "ours" or "stock"."""
    loss_class = FCOSLoss if side == "ours" else compat.stock("FCOSLoss")
    head_class = FCOSHead if side == "ours" else compat.stock("FCOSHead")
    return head_class(
        num_classes=CLASSES,
        fcos_feat=FCOSFeat(**{"num_convs": 2, "norm_type": "gn"} | (feat or {})),
        fcos_loss=loss_class(**loss or {}),
        nms=nms(),
        **arguments,
    )


def model(side, **arguments):
    """A whole FCOS with an R18 of one side; `arguments` as of `head`."""
    backbone = ResNet(depth=18, freeze_at=0, return_idx=[1, 2, 3])
    neck = FPN(
        **FPN.from_config({}, backbone.out_shape),
        out_channel=256,
        extra_stage=2,
        has_extra_convs=True,
        use_c5=False,
    )
    parts = {"backbone": backbone, "neck": neck, "fcos_head": head(side, **arguments)}
    return FCOS(**parts) if side == "ours" else compat.stock("FCOS")(**parts, ssod_loss=None)


def normalized(pixels):
    """Stock's NormalizeImage and Permute of one uint8 [H, W, 3]."""
    transform = compat.stock("NormalizeImage")(mean=MEAN, std=STD, is_scale=True)
    return transform.apply({"image": pixels})["image"].transpose(2, 0, 1)


@pytest.fixture(scope="session")
def batch():
    """Two images of different size, one with overlapping boxes: ours, stock's, numpy's."""

    def make(norm_reg_targets=True, multiply_strides=False, boxes=None):
        rng = np.random.default_rng(0)
        sizes, height, width = [(224, 320), (256, 200)], 256, 320
        image = np.zeros((2, height, width, 3), np.uint8)
        dense = np.zeros((2, 3, height, width), np.float32)
        for i, (h, w) in enumerate(sizes):
            image[i, :h, :w] = rng.integers(0, 256, (h, w, 3))
            dense[i, :, :h, :w] = normalized(image[i, :h, :w])
        if boxes is None:
            boxes = [
                [[10, 20, 60, 80], [30, 40, 300, 200], [100.5, 7.25, 140, 50]],
                [[0, 0, 190, 250], [5, 5, 25, 40]],
            ]
        assign = Gt2FCOSTarget(
            object_sizes_boundary=[64, 128, 256, 512],
            center_sampling_radius=1.5,
            downsample_ratios=STRIDES,
            norm_reg_targets=norm_reg_targets,
            multiply_strides_reg_targets=multiply_strides,
        )
        sparse = assign(
            [np.float32(b).reshape(-1, 4) for b in boxes],
            [np.arange(len(b), dtype=np.int32) % CLASSES for b in boxes],
            height,
            width,
        )
        sparse = {k: v for k, v in sparse.items() if k.startswith(("pos_", "num_pos"))}
        ours = {
            "image": image,
            "im_shape": np.float32(sizes),
            "scale_factor": np.ones((2, 2), np.float32),
            **sparse,
        }
        stock = {"image": dense, **dense_targets(sparse, 2, height, width)}
        return SimpleNamespace(
            ours={k: paddle.to_tensor(v) for k, v in ours.items()},
            stock={k: paddle.to_tensor(v) for k, v in stock.items()},
            dense_image=dense,
        )

    return make


def dense_targets(sparse, images, height, width):
    """Stock's maps of the sparse targets; what it leaves at negatives is arbitrary, so is ours."""
    sizes = [(-(-height // s), -(-width // s)) for s in STRIDES]
    total = images * sum(h * w for h, w in sizes)
    count = int(sparse["num_pos"][0])
    at = sparse["pos_index"][:count]
    labels, ctn = np.zeros(total, np.int32), np.zeros(total, np.float32)
    reg = np.random.default_rng(1).uniform(-3, 9, (total, 4)).astype(np.float32)
    labels[at] = sparse["pos_label"][:count] + 1
    ctn[at], reg[at] = sparse["pos_centerness"][:count], sparse["pos_reg"][:count]
    maps, begin = {}, 0
    for i, (h, w) in enumerate(sizes):
        rows = slice(begin, begin + images * h * w)
        for name, values in (("labels", labels), ("reg_target", reg), ("centerness", ctn)):
            maps[f"{name}{i}"] = values[rows].reshape(images, h, w, -1)
        begin = rows.stop
    return maps
