"""From head outputs to detections in the original image's pixels.

NMS starts from the best candidates of each level instead of from every location and class. NMS
is greedy by score, so a candidate left out can only change detections that score less than it:
the result is complete down to the best score left out. Where that does not reach the last
detection to be kept, the selection is widened, so detections are those of NMS over everything
(in an exported graph, which cannot repeat itself, they are exact from the best score left out
upwards).
"""

from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor


def postprocess(
    logits: list[Tensor],
    regression: list[Tensor],
    decoders: list[Callable[[Tensor], Tensor]],
    strides: list[int],
    im_shape: Tensor,
    scale_factor: Tensor,
    nms: object,
    nms_pre: int = 1000,
    num_shift: float = 0.5,
    sqrt_score: bool = False,
    clip: bool = True,
) -> tuple[Tensor, Tensor]:
    """Detections of a batch.

    Args:
        logits: class logits of each level, [N, num_classes, H_l, W_l].
        regression: each level's raw l, t, r, b and quality logit, [N, 5, H_l, W_l].
        decoders: for each level, raw l, t, r, b to distances in pixels of the network's input.
        strides: of each level, in pixels.
        im_shape: [N, 2], height and width of the resized image.
        scale_factor: [N, 2], resized over original, y then x.
        nms: thresholds and limits, a ppdet `MultiClassNMS`.
        nms_pre: candidates, pairs of location and class, per level and image.
        num_shift: a location's place in its cell, in strides.
        sqrt_score: score is the square root of class score times quality.
        clip: cut boxes to the original image, after NMS: selection and scores are not affected.

    Returns:
        float32 [M, 6]: class, score, x1, y1, x2, y2 in pixels of the original image, by image,
        then class, then score; int32 [N]: rows of each image.
    """
    scale_y, scale_x = scale_factor.astype("float32").split(2, axis=1)
    scale = paddle.concat([scale_x, scale_y, scale_x, scale_y], axis=1).unsqueeze(1)
    while True:
        levels = [
            _candidates(cls, reg, decode, stride, nms_pre, num_shift, sqrt_score)
            for cls, reg, decode, stride in zip(logits, regression, decoders, strides, strict=True)
        ]
        scores, boxes, cuts = (list(part) for part in zip(*levels, strict=True))
        boxes = paddle.concat(boxes, axis=1) / scale
        bbox, bbox_num = _nms(nms, boxes, paddle.concat(scores, axis=2))
        if not paddle.in_dynamic_mode() or _complete(bbox, bbox_num, cuts, nms):
            break
        nms_pre *= 8
    if clip:
        bbox = _clip(bbox, bbox_num, im_shape, scale_factor)
    return bbox, bbox_num


def _candidates(
    cls: Tensor,
    reg: Tensor,
    decode: Callable[[Tensor], Tensor],
    stride: int,
    nms_pre: int,
    num_shift: float,
    sqrt_score: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The best `nms_pre` pairs of location and class of one level.

    They all lie in the `nms_pre` locations that are best by their best class, so only those are
    looked at class by class.

    Returns:
        scores float32 [N, C, K], -1 for a pair not taken; boxes float32 [N, K, 4] in input
        pixels; the lowest score taken, [N, 1, 1], None if all were.
    """
    width = paddle.shape(cls)[3]
    logits, reg = cls.flatten(2).astype("float32"), reg.flatten(2).astype("float32")
    quality = F.sigmoid(reg[:, 4])
    _, index = paddle.topk(F.sigmoid(logits.max(axis=1)) * quality, _at_most(nms_pre, quality), 1)
    index = index.sort(axis=1)  # stock's order decides between equal scores

    logits = paddle.take_along_axis(logits, index.unsqueeze(1), axis=2)
    scores = F.sigmoid(logits) * paddle.take_along_axis(quality, index, axis=1).unsqueeze(1)
    if sqrt_score:
        scores = scores.sqrt()
    raw = paddle.take_along_axis(reg[:, :4], index.unsqueeze(1), axis=2).transpose([0, 2, 1])
    distances = decode(raw)
    center = paddle.stack([index % width, index // width], axis=2).astype("float32")
    center = center * stride + stride * num_shift
    boxes = paddle.concat([center - distances[:, :, :2], center + distances[:, :, 2:]], axis=2)

    pairs = scores.flatten(1)
    if pairs.shape[1] >= 0 and pairs.shape[1] <= nms_pre:
        return scores, boxes, None
    cut = paddle.topk(pairs, _at_most(nms_pre, pairs), 1)[0][:, -1:].unsqueeze(2)
    return paddle.where(scores >= cut, scores, paddle.full_like(scores, -1.0)), boxes, cut


def _at_most(limit: int, values: Tensor) -> int | Tensor:
    """The smaller of `limit` and the second dimension, which an export does not know yet."""
    if values.shape[1] >= 0:
        return min(limit, values.shape[1])
    return paddle.minimum(paddle.shape(values)[1], paddle.full([], limit, dtype="int32"))


def _nms(nms: object, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """NMS of each class of each image; the operator has a CPU kernel only."""
    if getattr(paddle.framework, "in_pir_mode", lambda: False)():  # ppdet's call predates PIR
        bbox, _, bbox_num = paddle._C_ops.multiclass_nms3(
            boxes,
            scores,
            None,
            nms.score_threshold,
            nms.nms_top_k,
            nms.keep_top_k,
            nms.nms_threshold,
            nms.normalized,
            nms.nms_eta,
            -1,
        )
    else:
        bbox, bbox_num, _ = nms(boxes, scores)
    return bbox, bbox_num


def _complete(bbox: Tensor, bbox_num: Tensor, cuts: list, nms: object) -> bool:
    """Whether no candidate that was left out could have changed the result."""
    cuts = [cut.flatten() for cut in cuts if cut is not None]
    if not cuts:
        return True
    cut = paddle.stack(cuts).max(axis=0).numpy()
    scores, end = bbox[:, 1].numpy(), 0
    for limit, count in zip(cut.tolist(), bbox_num.tolist(), strict=True):
        begin, end = end, end + count
        full = count == nms.keep_top_k and scores[begin:end].min() > limit
        if limit > nms.score_threshold and not full:
            return False
    return True


def _clip(bbox: Tensor, bbox_num: Tensor, im_shape: Tensor, scale_factor: Tensor) -> Tensor:
    """Cut boxes to the original image of their row."""
    if bbox.shape[0] == 0:  # Paddle before 3.1 cannot slice and concatenate nothing
        return bbox
    size = paddle.floor(im_shape / scale_factor + 0.5).flip(axis=1)  # x, y
    limit = paddle.concat([size, size], axis=1)
    image = paddle.repeat_interleave(paddle.arange(paddle.shape(bbox_num)[0]), bbox_num)
    boxes = paddle.minimum(bbox[:, 2:].clip(min=0.0), paddle.gather(limit, image))
    return paddle.concat([bbox[:, :2], boxes], axis=1)
