"""FCOS from an image batch to losses or detections."""

import numpy as np
import paddle
from paddle import Tensor, nn
from ppdet.core.workspace import create


class FCOS(nn.Layer):
    """FCOS (https://arxiv.org/abs/1904.01355): backbone, neck and head in a row.

    Args:
        backbone: a `ResNet`, which takes {"image": float32 [N, 3, H, W]}.
        neck: an `FPN`.
        fcos_head: an `FCOSHead`.
    """

    __category__ = "architecture"

    def __init__(
        self,
        backbone: nn.Layer = "ResNet",
        neck: nn.Layer = "FPN",
        fcos_head: nn.Layer = "FCOSHead",
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.fcos_head = fcos_head
        for name in ("pixel_scale", "pixel_bias"):
            self.register_buffer(name, paddle.zeros([1, 3, 1, 1]), persistable=False)
        self.load_meanstd([{"NormalizeImage": {}}])

    @classmethod
    def from_config(cls, cfg: dict) -> dict[str, nn.Layer]:
        """Build the parts, each with the shapes of the one before."""
        backbone = create(cfg["backbone"])
        neck = create(cfg["neck"], input_shape=backbone.out_shape)
        head = create(cfg["fcos_head"], input_shape=neck.out_shape)
        return {"backbone": backbone, "neck": neck, "fcos_head": head}

    def load_meanstd(self, transforms: list[dict]) -> None:
        """Take the normalisation of uint8 images from a reader's `NormalizeImage`.

        Args:
            transforms: sample_transforms as in YAML; ImageNet's figures where they have none.
        """
        found = next((t["NormalizeImage"] for t in transforms if "NormalizeImage" in t), {})
        found = found or {}
        mean = np.float64(found.get("mean", [0.485, 0.456, 0.406]))
        std = np.float64(found.get("std", [0.229, 0.224, 0.225]))
        scale = (1 / 255 if found.get("is_scale", True) else 1.0) / std
        for buffer, value in ((self.pixel_scale, scale), (self.pixel_bias, -mean / std)):
            buffer.set_value(value.astype("float32").reshape(1, 3, 1, 1))

    def normalize(self, image: Tensor, im_shape: Tensor) -> Tensor:
        """Normalise pixels, zero outside the image as if it had been padded afterwards.

        Args:
            image: uint8 [N, H, W, 3], zero outside the image; float [N, 3, H, W] is returned.
            im_shape: [N, 2], height and width of the image inside.

        Returns:
            float32 [N, 3, H, W].
        """
        if image.dtype != paddle.uint8:
            return image
        height, width = paddle.shape(image)[1], paddle.shape(image)[2]
        rows = paddle.arange(height, dtype="float32").reshape([1, 1, -1, 1])
        columns = paddle.arange(width, dtype="float32").reshape([1, 1, 1, -1])
        h, w = im_shape.astype("float32").reshape([-1, 2, 1, 1]).split(2, axis=1)
        inside = paddle.logical_and(rows < h, columns < w).astype("float32")
        pixels = image.transpose([0, 3, 1, 2]).astype("float32")
        return pixels * self.pixel_scale + self.pixel_bias * inside

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses in training, detections in evaluation.

        Args:
            batch: `image` (see `normalize`), `im_shape` [N, 2], `scale_factor` [N, 2] (y, x), and
                in training the sparse targets of `FCOSHead.forward`.

        Returns:
            In training loss_cls, loss_box, loss_quality and their sum, loss. In evaluation
            bbox, float32 [M, 6]: class, score, x1, y1, x2, y2 in original pixels; and
            bbox_num, int32 [N]: rows of each image.
        """
        image = self.normalize(batch["image"], batch["im_shape"])
        feats = self.neck(self.backbone({"image": image}))
        if self.training:
            return self.fcos_head(feats, batch)
        bbox, bbox_num = self.fcos_head.post_process(
            self.fcos_head(feats), batch["im_shape"], batch["scale_factor"]
        )
        return {"bbox": bbox, "bbox_num": bbox_num}
