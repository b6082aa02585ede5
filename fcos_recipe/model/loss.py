"""FCOS loss, computed from the positive locations only."""

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import Tensor, nn

from fcos_recipe.model.constants import constant, count_up


def as_float32(x: Tensor) -> Tensor:
    """Cast to float32; return `x` itself if it is float32, because a cast would copy it."""
    return x if x.dtype == paddle.float32 else x.astype("float32")


class FCOSLoss(nn.Layer):
    """Focal, IoU and quality loss of FCOS (https://arxiv.org/abs/1904.01355, section 3).

    Focal loss: https://arxiv.org/abs/1708.02002; GIoU: https://arxiv.org/abs/1902.09630.

    Args:
        loss_alpha: weight of positives in the focal loss; negatives have 1 - loss_alpha.
        loss_gamma: exponent of the focal loss.
        iou_loss_type: giou, linear_iou or iou (negative logarithm).
        reg_weights: factor of the box loss.
        quality: target of the quality branch: centerness, or the iou of box and ground truth.
        reduce_positives: divide by the mean over all cards of the number of positives and the sum
            of centre-ness, so that N cards give the same gradient as one card with N times the
            batch. False: each card uses its own values, as in the published runs.

    Raises:
        ValueError: iou_loss_type or quality has another value.
    """

    def __init__(
        self,
        loss_alpha: float = 0.25,
        loss_gamma: float = 2.0,
        iou_loss_type: str = "giou",
        reg_weights: float = 1.0,
        quality: str = "centerness",
        reduce_positives: bool = False,
    ):
        super().__init__()
        self.loss_alpha = loss_alpha
        self.loss_gamma = loss_gamma
        self.iou_loss_type = iou_loss_type.lower()
        self.reg_weights = reg_weights
        self.quality = quality
        self.reduce_positives = reduce_positives
        if self.iou_loss_type not in ("giou", "linear_iou", "iou"):
            raise ValueError(f"iou_loss_type: {iou_loss_type!r} is not giou, linear_iou or iou")
        if quality not in ("centerness", "iou"):
            raise ValueError(f"quality: {quality!r} is neither centerness nor iou")

    def forward(
        self,
        logits: Tensor,
        pos_logits: Tensor,
        pos_boxes: Tensor,
        pos_quality: Tensor,
        reg_targets: Tensor,
        centerness_targets: Tensor,
        num_pos: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of one batch, in float32 for any dtype of the inputs.

        Args:
            logits: class logits of every location and class, any shape.
            pos_logits: [P], those of `logits` at each positive location for its own class.
            pos_boxes: [P, 4], predicted distances l, t, r, b at the positive locations.
            pos_quality: [P], quality logits at the positive locations.
            reg_targets: float32 [P, 4], distances in the unit of `pos_boxes`.
            centerness_targets: float32 [P].
            num_pos: int64 [1], number of positives; later rows are padding and are ignored.

        Returns:
            loss_cls, loss_box, loss_quality: float32, finite even without positives.
        """
        # AMP level O2 would compute the loss in half precision
        with paddle.amp.auto_cast(enable=False):
            logits, pos_logits = as_float32(logits), as_float32(pos_logits)
            pos_boxes, pos_quality = as_float32(pos_boxes), as_float32(pos_quality)
            row = count_up(pos_logits.shape[0], "int64")
            mask = as_float32(row < num_pos)
            weight = centerness_targets * mask
            positives, total_weight = self._normalizers(num_pos, weight)

            box_loss, iou = self._box_loss(pos_boxes, reg_targets)
            if self.quality == "centerness":
                loss_box = (box_loss * weight).sum() / total_weight
                quality_target = centerness_targets
            else:
                loss_box = (box_loss * mask).sum() / positives
                quality_target = iou.detach()
            if self.reg_weights != 1.0:
                loss_box = loss_box * self.reg_weights
            loss_quality = F.binary_cross_entropy_with_logits(
                pos_quality, quality_target, weight=mask, reduction="sum"
            )
            return {
                "loss_cls": self._focal_loss(logits, pos_logits, mask) / positives,
                "loss_box": loss_box,
                "loss_quality": loss_quality / positives,
            }

    def _normalizers(self, num_pos: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Number of positives (at least 1) and sum of centre-ness (at least 1e-6), float32 []."""
        sums = paddle.stack([num_pos.astype("float32").squeeze(), weight.sum()])
        cards = dist.get_world_size() if self.reduce_positives else 1
        if cards > 1:
            dist.all_reduce(sums)
        sums = paddle.maximum(sums, constant((1.0, 1e-6), "float32"))
        if cards > 1:  # after the limits, which apply to the sums over all cards
            sums = sums / cards
        return sums.unbind()

    def _focal_loss(self, logits: Tensor, pos_logits: Tensor, mask: Tensor) -> Tensor:
        """Sum of the focal loss (https://arxiv.org/abs/1708.02002) over all logits.

        With f(x) = p^gamma softplus(x), p = sigmoid(x), the loss of a negative is (1 - alpha) f(x)
        and that of a positive alpha f(-x). All logits are first counted as negatives; then the
        difference is added for the positives. This needs no dense one-hot targets.
        """
        alpha = self.loss_alpha

        def f(x: Tensor) -> Tensor:
            return F.sigmoid(x) ** self.loss_gamma * F.softplus(x)

        factors = constant(((alpha,), (alpha - 1.0,)), "float32")
        difference = f(paddle.stack([-pos_logits, pos_logits])) * (factors * mask)
        return f(logits).sum() * (1.0 - alpha) + difference.sum()

    def _box_loss(self, boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Box loss and IoU, each [P], of distances l, t, r, b [P, 4].

        The + 1 in the IoU and the 1e-7 in the enclosing area are as in the published runs.
        """
        inner, outer = paddle.minimum(boxes, targets), paddle.maximum(boxes, targets)
        distances = paddle.stack([boxes, targets, inner, outer])
        width, height = distances.reshape([4, -1, 2, 2]).sum(axis=2).unbind(axis=2)
        # the gradient of prod() would be NaN for a side of zero
        area, target_area, intersection, enclosing = (width * height).unbind()
        union = area + target_area - intersection
        iou = (intersection + 1.0) / (union + 1.0)
        if self.iou_loss_type == "linear_iou":
            return 1.0 - iou, iou
        if self.iou_loss_type == "iou":
            return -paddle.log(iou), iou
        enclosing = enclosing + 1e-7
        return 1.0 - (iou - (enclosing - union) / enclosing), iou
