"""Convert head outputs to detections in pixels of the original image.

NMS gets only the best candidates of each level, not all locations and classes. Because NMS is
greedy by score, an omitted candidate can only change detections with a lower score: the result is
exact above the highest omitted score. If it needs detections below that score, more candidates are
selected, so that the result always equals NMS over all candidates. An exported graph cannot repeat
the selection; its detections are exact above the highest omitted score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from fcos_recipe.model.loss import as_float32


@dataclass(frozen=True)
class Decoding:
    """How a head's outputs are converted to detections.

    Args:
        decoders: for each level, a function from raw l, t, r, b to distances in input pixels.
        strides: of each level, in pixels.
        nms: thresholds and limits, a ppdet `MultiClassNMS`.
        nms_pre: candidates (pairs of location and class) per level and image.
        num_shift: offset of a location inside its cell, in strides.
        sqrt_score: use the square root of class score times quality as the score.
        clip: clip boxes to the original image after NMS.
    """

    decoders: Sequence[Callable[[Tensor], Tensor]]
    strides: Sequence[int]
    nms: Any
    nms_pre: int = 1000
    num_shift: float = 0.5
    sqrt_score: bool = False
    clip: bool = True


@paddle.jit.not_to_static
def level_size(feat: Tensor) -> tuple:
    """Height and width of [N, C, H, W]; tensors if they are unknown during export."""
    if paddle.in_dynamic_mode() or min(feat.shape[2:]) >= 0:
        return feat.shape[2], feat.shape[3]
    shape = paddle.shape(feat)
    return shape[2], shape[3]


@paddle.jit.not_to_static  # branches stay Python code in a static graph
def postprocess(
    outputs: tuple[Tensor, Tensor, list[tuple]],
    im_shape: Tensor,
    scale_factor: Tensor,
    decoding: Decoding,
) -> tuple[Tensor, Tensor]:
    """Compute the detections of a batch.

    Args:
        outputs, scale_factor: see `candidates`.
        im_shape: [N, 2], height and width of the resized image, pixels.
        decoding: how to convert the outputs.

    Returns:
        float32 [M, 6]: class, score, x1, y1, x2, y2 in pixels of the original image, sorted by
        image, class and score; int32 [N]: number of rows of each image.
    """
    nms, clip = decoding.nms, decoding.clip
    while True:
        boxes, scores, cuts = candidates(outputs, scale_factor, decoding)
        bbox, bbox_num = _nms(nms, boxes, scores)
        if not paddle.in_dynamic_mode() or _complete(bbox, bbox_num, cuts, nms):
            break
        decoding = replace(decoding, nms_pre=8 * decoding.nms_pre)
    return (_clip(bbox, bbox_num, im_shape, scale_factor) if clip else bbox), bbox_num


@paddle.jit.not_to_static  # branches stay Python code in a static graph
def candidates(
    outputs: tuple[Tensor, Tensor, list[tuple]], scale_factor: Tensor, decoding: Decoding
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Select the input of NMS: the best `nms_pre` pairs of location and class of each level.

    Args:
        outputs: the head's: class logits [N, num_classes, S] of the S locations of all levels;
            [N, 5, S], raw l, t, r, b and quality logit; (H_l, W_l) of each level, in the order of
            the locations.
        scale_factor: [N, 2], resized size / original size, y then x.
        decoding: how to convert the outputs. Locations whose score is not above its NMS's threshold
            may be left out.

    Returns:
        boxes, float32 [N, K, 4]: x1, y1, x2, y2 in pixels of the original image, of K locations;
        scores, float32 [N, num_classes, K], -1 for pairs that were not selected; and for each level
        the lowest score selected, [N, 1, 1], or None if it selected all.
    """
    logits, regression = map(as_float32, outputs[:2])
    nms_pre, sqrt_score = decoding.nms_pre, decoding.sqrt_score
    distance, quality = regression[:, :4], F.sigmoid(regression[:, 4:])
    best = F.sigmoid(logits.max(axis=1)) * quality.squeeze(1)
    best = best.sqrt() if sqrt_score else best
    scale_y, scale_x = as_float32(scale_factor).split(2, axis=1)
    scale = paddle.concat([scale_x, scale_y, scale_x, scale_y], axis=1).unsqueeze(1)
    levels, begin = [], 0
    for (height, width), decode, stride in zip(
        outputs[2], decoding.decoders, decoding.strides, strict=True
    ):
        end = begin + height * width
        score = best[:, begin:end]
        count = height * width
        if paddle.in_dynamic_mode():  # no more than pass the threshold
            count = max(1, int((score > decoding.nms.score_threshold).sum(axis=1).max()))
        _, index = paddle.topk(score, _at_most(nms_pre, count), axis=1)
        index = index.sort(axis=1)  # PaddleDetection's order, which matters for equal scores
        center = paddle.stack([index % width, index // width], axis=2).astype("float32")
        center = (center + decoding.num_shift) * stride

        at = (index + begin).unsqueeze(1)
        scores = F.sigmoid(_take(logits, at)) * _take(quality, at)
        distances = decode(_take(distance, at).transpose([0, 2, 1]))
        corners = [center - distances[:, :, :2], center + distances[:, :, 2:]]
        scores, cut = _best_pairs(scores.sqrt() if sqrt_score else scores, nms_pre)
        levels.append((scores, paddle.concat(corners, axis=2), cut))
        begin = end
    scores, boxes, cuts = [list(part) for part in zip(*levels, strict=True)]
    return paddle.concat(boxes, axis=1) / scale, paddle.concat(scores, axis=2), cuts


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Return values [N, C, S] at each image's index [N, 1, K], as [N, C, K].

    take_along_axis would be slower: it first copies all values to the broadcast shape.
    """
    images, channels, locations = (
        values.shape if paddle.in_dynamic_mode() else paddle.shape(values).unbind()
    )
    row = paddle.arange(images * channels, dtype="int64").reshape([-1, values.shape[1], 1])
    at = row * locations + index
    taken = paddle.gather(values.flatten(), at.flatten())
    return taken.reshape(at.shape if paddle.in_dynamic_mode() else paddle.shape(at))


def _best_pairs(scores: Tensor, nms_pre: int) -> tuple[Tensor, Tensor | None]:
    """Keep the best `nms_pre` of each image's scores [N, C, K] on one level; set others to -1.

    They are the best of the level, because each of them is at one of the `nms_pre` locations with
    the highest scores.

    Returns:
        the scores; the lowest score kept, [N, 1, 1], None if all are kept.
    """
    pairs = scores.flatten(1)
    if 0 <= pairs.shape[1] < nms_pre:
        return scores, None
    count = pairs.shape[1] if pairs.shape[1] >= 0 else paddle.shape(pairs)[1]
    cut = paddle.topk(pairs, _at_most(nms_pre, count), axis=1)[0][:, -1:].unsqueeze(2)
    return paddle.where(scores >= cut, scores, paddle.full_like(scores, -1.0)), cut


def _at_most(limit: int, count: int | Tensor) -> int | Tensor:
    """Return the smaller value; `count` is a tensor if it is unknown during export."""
    if isinstance(count, int):
        return min(limit, count)
    return paddle.minimum(count, paddle.full([], limit, dtype=count.dtype))


def _nms(nms: Any, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Run NMS for each class of each image."""
    if getattr(paddle.framework, "in_pir_mode", lambda: False)():  # ppdet does not support PIR
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


def _complete(bbox: Tensor, bbox_num: Tensor, cuts: list, nms: Any) -> bool:
    """Whether the result is exact, that is, no omitted candidate could change it."""
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


@paddle.jit.not_to_static  # branches stay Python code in a static graph
def _clip(bbox: Tensor, bbox_num: Tensor, im_shape: Tensor, scale_factor: Tensor) -> Tensor:
    """Clip each box to its original image."""

    def clipped() -> Tensor:
        size = paddle.floor(im_shape / scale_factor + 0.5).flip(axis=1)  # x, y
        limit = paddle.concat([size, size], axis=1)
        image = paddle.repeat_interleave(paddle.arange(paddle.shape(bbox_num)[0]), bbox_num)
        boxes = paddle.minimum(bbox[:, 2:].clip(min=0.0), paddle.gather(limit, image))
        return paddle.concat([bbox[:, :2], boxes], axis=1)

    if not paddle.in_dynamic_mode():  # inference engines fail on tensors without rows
        return paddle.static.nn.cond(bbox_num.sum() > 0, clipped, lambda: bbox)
    return clipped() if bbox.shape[0] else bbox  # Paddle before 3.1 cannot concatenate 0 rows


def nms_and_clip(
    boxes: Tensor, scores: Tensor, im_shape: Tensor, scale_factor: Tensor, nms: Any, clip: bool
) -> tuple[Tensor, Tensor]:
    """Finish `postprocess` for `candidates` that were computed elsewhere.

    Args:
        boxes, scores: see `candidates`.
        im_shape, scale_factor: see `postprocess`.
        nms, clip: see `Decoding`.

    Returns:
        see `postprocess`.
    """
    bbox, bbox_num = _nms(nms, boxes, scores)
    return (_clip(bbox, bbox_num, im_shape, scale_factor) if clip else bbox), bbox_num
