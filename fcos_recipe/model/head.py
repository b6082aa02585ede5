"""FCOS head: two towers shared by all levels, with PaddleDetection's parameter names."""

import math
from dataclasses import replace
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Constant, Normal
from ppdet.modeling.heads.fcos_head import ScaleReg

from fcos_recipe.model.constants import constant
from fcos_recipe.model.loss import as_float32
from fcos_recipe.model.postprocess import Decoding, candidates, level_size, postprocess
from fcos_recipe.model.towers import predict, run_towers


class FCOSHead(nn.Layer):
    """Predict class, box and quality at every location of every level.

    Args:
        num_classes: number of classes, without background.
        fcos_feat: the towers, an `FCOSFeat`; its `feat_out` is the number of channels.
        fpn_stride: stride of each level in pixels.
        prior_prob: score of every class at the start of training.
        multiply_strides_reg_targets: compute the loss in pixels although distances are predicted
            in strides.
        norm_reg_targets: predict distances in strides with a ReLU; False: in pixels with an
            exponential function.
        centerness_on_reg: predict quality from the box tower, not from the class tower.
        num_shift: offset of a location inside its cell, in strides.
        sqrt_score: use the square root of class score times quality as the score.
        fcos_loss: an `FCOSLoss`.
        nms: a `MultiClassNMS`, whose thresholds and limits are used.
        trt: accepted for compatibility with PaddleDetection; no effect.
        nms_pre: candidates per level and image that NMS gets, see `postprocess`.
        clip: clip detections to the image.
    """

    __inject__ = ["fcos_feat", "fcos_loss", "nms"]
    __shared__ = ["num_classes", "trt"]

    def __init__(
        self,
        num_classes: int = 80,
        fcos_feat: nn.Layer = "FCOSFeat",
        fpn_stride: list = [8, 16, 32, 64, 128],  # noqa: B006 (ppdet's registry reads the default)
        prior_prob: float = 0.01,
        multiply_strides_reg_targets: bool = False,
        norm_reg_targets: bool = True,
        centerness_on_reg: bool = True,
        num_shift: float = 0.5,
        sqrt_score: bool = False,
        fcos_loss: nn.Layer = "FCOSLoss",
        nms: Any = "MultiClassNMS",
        trt: bool = False,
        nms_pre: int = 1000,
        clip: bool = True,
    ):
        super().__init__()
        self.fcos_feat = fcos_feat
        self.fcos_loss = fcos_loss
        self.num_classes = num_classes
        self.fpn_stride = fpn_stride
        self.multiply_strides_reg_targets = multiply_strides_reg_targets
        self.norm_reg_targets = norm_reg_targets
        self.centerness_on_reg = centerness_on_reg
        self.num_shift = num_shift
        self.sqrt_score = sqrt_score
        self.nms = nms
        self.nms_pre = nms_pre
        self.clip = clip

        def predictor(channels: int, bias: float) -> nn.Conv2D:
            return nn.Conv2D(
                fcos_feat.feat_out,
                channels,
                3,
                padding=1,
                weight_attr=ParamAttr(initializer=Normal(0.0, 0.01)),
                bias_attr=ParamAttr(initializer=Constant(bias)),
            )

        self.fcos_head_cls = predictor(num_classes, -math.log((1 - prior_prob) / prior_prob))
        self.fcos_head_reg = predictor(4, 0.0)
        self.fcos_head_centerness = predictor(1, 0.0)
        self.scales_regs = [
            self.add_sublayer(f"p{int(math.log2(stride))}_feat", ScaleReg())
            for stride in fpn_stride
        ]

    def forward(self, fpn_feats: list[Tensor], targets: dict | None = None):
        """Compute losses, or raw outputs if there are no targets.

        Args:
            fpn_feats: one [N, C, H_l, W_l] per level.
            targets: sparse targets of the batch, see `data.targets.collate`; None to predict.

        Returns:
            With targets: losses loss_cls, loss_box, loss_quality and their sum, loss.
            Without: logits [N, num_classes, S] of all S locations, level by level; regression
            [N, 5, S]: l, t, r, b before scale and activation, then the quality logit; and
            (H_l, W_l) of each level.
        """
        cls_feats, reg_feats = run_towers(self.fcos_feat, fpn_feats)
        logits = predict(cls_feats, self.fcos_head_cls)
        reg, ctn = self.fcos_head_reg, self.fcos_head_centerness
        if self.centerness_on_reg:
            regression = predict(reg_feats, reg, ctn)
        else:
            regression = paddle.concat([predict(reg_feats, reg), predict(cls_feats, ctn)], axis=1)
        sizes = [level_size(feat) for feat in fpn_feats]
        if targets is None:
            return logits, regression, sizes
        return self._loss(logits, regression, sizes, targets)

    def distances(self, raw: Tensor, scale: Tensor) -> Tensor:
        """Distances l, t, r, b from the last convolution's output, strides or pixels."""
        raw = raw * scale
        return F.relu(raw) if self.norm_reg_targets else paddle.exp(raw)

    def _loss(
        self, logits: Tensor, regression: Tensor, sizes: list, targets: dict
    ) -> dict[str, Tensor]:
        """Gather the outputs at the positive locations and compute their losses."""
        areas = [height * width for height, width in sizes]
        begins = [sum(areas[:i]) for i in range(len(areas))]
        images = logits.shape[0]
        rows = tuple((images * b, a, b) for a, b in zip(areas, begins, strict=True))
        table = constant(rows, "int64")
        starts = constant(tuple(images * b for b in begins[1:]), "int64")
        index = targets["pos_index"]
        level = paddle.searchsorted(starts, index, right=True)
        start, area, begin = paddle.gather(table, level).unbind(axis=1)
        offset = index - start
        image, place = offset // area, offset % area + begin

        # before gathering: in half precision, sums of gradients would be rounded
        logits, regression = as_float32(logits), as_float32(regression)
        at = paddle.stack([image, targets["pos_label"], place], axis=1)
        pos_logits = paddle.gather_nd(logits, at)
        at = paddle.stack([image, place], axis=1)
        raw, quality = paddle.gather_nd(regression.transpose([0, 2, 1]), at).split([4, 1], axis=1)
        scales = paddle.stack([layer.scale_reg for layer in self.scales_regs])
        boxes = self.distances(raw, paddle.gather(scales, level))
        if self.norm_reg_targets and self.multiply_strides_reg_targets:
            strides = constant(tuple(self.fpn_stride), "float32")
            boxes = boxes * paddle.gather(strides, level).unsqueeze(1)
        losses = self.fcos_loss(
            logits,
            pos_logits,
            boxes,
            quality.squeeze(1),
            targets["pos_reg"],
            targets["pos_centerness"],
            targets["num_pos"],
        )
        losses["loss"] = paddle.add_n(list(losses.values()))
        return losses

    def _decoding(self) -> Decoding:
        def decoder(stride: int, layer: ScaleReg):
            unit = stride if self.norm_reg_targets else 1
            return lambda raw: self.distances(raw, layer.scale_reg) * unit

        pairs = zip(self.fpn_stride, self.scales_regs, strict=True)
        return Decoding(
            [decoder(*pair) for pair in pairs], self.fpn_stride, self.nms, self.nms_pre,
            self.num_shift, self.sqrt_score, self.clip,
        )  # fmt: skip

    @paddle.jit.not_to_static
    def post_process(
        self, outputs: tuple[Tensor, Tensor, list], im_shape: Tensor, scale_factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute detections from `forward`'s outputs, see `postprocess`."""
        return postprocess(outputs, im_shape, scale_factor, self._decoding())

    @paddle.jit.not_to_static
    def candidates(
        self, outputs: tuple[Tensor, Tensor, list], scale_factor: Tensor, nms_pre: int | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Compute the input of NMS, see `postprocess.candidates`; default `nms_pre`: the head's."""
        decoding = self._decoding()
        return candidates(
            outputs, scale_factor, replace(decoding, nms_pre=nms_pre or decoding.nms_pre)
        )
