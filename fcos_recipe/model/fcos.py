"""FCOS from an image batch to losses or detections."""

from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from ppdet.core.workspace import create

from fcos_recipe.model.constants import constant, count_up
from fcos_recipe.model.loss import as_float32
from fcos_recipe.model.postprocess import level_size


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
        # the value of padding, then that of byte b in channel c at 1 + 256 c + b
        self.register_buffer("pixel_values", paddle.zeros([769]), persistable=False)
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
        found: Any = next((t["NormalizeImage"] for t in transforms if "NormalizeImage" in t), {})
        found = found or {}
        # in stock's dtypes and order of operations, so that every value is stock's to the last bit
        values = np.arange(256, dtype=np.float32).repeat(3).reshape(256, 3)
        if found.get("is_scale", True):
            values *= 1 / 255
        if found.get("norm_type", "mean_std") == "mean_std":
            values -= np.array(found.get("mean", [0.485, 0.456, 0.406]))
            values /= np.array(found.get("std", [0.229, 0.224, 0.225]))
        self.pixel_values.set_value(np.append(np.float32(0), values.T.ravel()))

    @paddle.jit.not_to_static  # its branches are Python's, also in a graph
    def normalize(self, image: Tensor, im_shape: Tensor) -> Tensor:
        """Normalise pixels, zero outside the image as if it had been padded afterwards.

        Args:
            image: uint8 [N, H, W, 3]; float [N, 3, H, W] is returned.
            im_shape: [N, 2], height and width of the image inside.

        Returns:
            float32 [N, 3, H, W].
        """
        if image.dtype != paddle.uint8:
            return image
        h, w = im_shape.unsqueeze([1, 3]).split(2, axis=2)  # [N, 1, 1, 1]
        if not paddle.in_dynamic_mode():  # inference engines are faster at arithmetic: 1e-6 off
            image = image.astype("float32").transpose([0, 3, 1, 2])
            values = self.pixel_values[1:].reshape([1, 3, 256, 1])
            slope = (values[:, :, 255:] - values[:, :, :1]) / 255.0
            height, width = level_size(image)
            inside = as_float32(_inside(height, width, h, w))
            return (image * slope + values[:, :, :1]) * inside
        height, width = image.shape[1:3]
        inside = _inside(height, width, h, w).reshape([-1, height, width, 1])
        channel = constant((1, 257, 513), "int32")
        index = (image.astype("int32") + channel) * inside.astype("int32")
        index = index.transpose([0, 3, 1, 2])  # not the image: Paddle 2.5 transposes no uint8
        return paddle.gather(self.pixel_values, index.flatten()).reshape(index.shape)

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
        feats = self._features(batch)
        if self.training:
            return self.fcos_head(feats, batch)
        bbox, bbox_num = self.fcos_head.post_process(
            self.fcos_head(feats), batch["im_shape"], batch["scale_factor"]
        )
        return {"bbox": bbox, "bbox_num": bbox_num}

    def candidates(self, batch: dict[str, Tensor], nms_pre: int | None = None) -> tuple:
        """What NMS starts with, see `FCOSHead.candidates`; in evaluation mode."""
        outputs = self.fcos_head(self._features(batch))
        return self.fcos_head.candidates(outputs, batch["scale_factor"], nms_pre)

    def _features(self, batch: dict[str, Tensor]) -> list[Tensor]:
        image = self.normalize(batch["image"], batch["im_shape"])
        return self.neck(self.backbone({"image": image}))


def _inside(height: int | Tensor, width: int | Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Whether pixels are above h and left of w, both [N, 1, 1, 1]: bool [N, 1, height, width]."""
    return paddle.logical_and(_range(height).unsqueeze(1) < h, _range(width) < w)


def _range(count: int | Tensor) -> Tensor:
    """float32 0 .. count - 1; of a traced program `count` is a tensor."""
    if isinstance(count, int) and paddle.in_dynamic_mode():
        return count_up(count, "float32")
    return paddle.arange(count, dtype="float32")
