"""The FCOS model: from a batch of images to losses or detections."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from ppdet.core.workspace import create

from fcos_recipe.errors import UserError
from fcos_recipe.model.constants import constant, count_up
from fcos_recipe.model.loss import as_float32
from fcos_recipe.model.postprocess import level_size


class FCOS(nn.Layer):
    """FCOS (https://arxiv.org/abs/1904.01355): backbone, neck and head.

    Args:
        backbone: a `ResNet`; its input is {"image": float32 [N, 3, H, W]}.
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
        # index 0: padding; index 1 + 256 c + b: normalised value of byte b in channel c
        self.register_buffer("pixel_values", paddle.zeros([769]), persistable=False)
        self.load_meanstd([{"NormalizeImage": {}}])

    @classmethod
    def from_config(cls, cfg: dict) -> dict[str, nn.Layer]:
        """Build the parts; each gets the output shapes of the part before it."""
        with _explained(cfg, "backbone"):
            backbone = create(cfg["backbone"])
            shapes = _shapes(backbone)
        with _explained(cfg, "neck"):
            neck = create(cfg["neck"], input_shape=shapes)
            shapes = neck.out_shape
        with _explained(cfg, "fcos_head"):
            head = create(cfg["fcos_head"], input_shape=shapes)
        return {"backbone": backbone, "neck": neck, "fcos_head": head}

    def load_meanstd(self, transforms: list[dict]) -> None:
        """Read the normalisation of uint8 images from a reader's `NormalizeImage`.

        Args:
            transforms: sample_transforms as in YAML; the default is ImageNet's mean and standard
                deviation.
        """
        found: Any = next((t["NormalizeImage"] for t in transforms if "NormalizeImage" in t), {})
        found = found or {}
        # PaddleDetection's dtypes and order of operations, so that all values are equal to the bit
        values = np.arange(256, dtype=np.float32).repeat(3).reshape(256, 3)
        if found.get("is_scale", True):
            values *= 1 / 255
        if found.get("norm_type", "mean_std") == "mean_std":
            values -= np.array(found.get("mean", [0.485, 0.456, 0.406]))
            values /= np.array(found.get("std", [0.229, 0.224, 0.225]))
        self.pixel_values.set_value(np.append(np.float32(0), values.T.ravel()))

    @paddle.jit.not_to_static  # branches stay Python code in a static graph
    def normalize(self, image: Tensor, im_shape: Tensor) -> Tensor:
        """Normalise pixels and set the padding to zero.

        Args:
            image: uint8 [N, H, W, 3]; a float image [N, 3, H, W] is returned unchanged.
            im_shape: [N, 2], height and width of each image without padding, pixels.

        Returns:
            float32 [N, 3, H, W].
        """
        if image.dtype != paddle.uint8:
            return image
        h, w = im_shape.unsqueeze([1, 3]).split(2, axis=2)  # [N, 1, 1, 1]
        if not paddle.in_dynamic_mode():  # arithmetic is faster in inference engines; 1e-6 error
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
        index = index.transpose([0, 3, 1, 2])  # Paddle 2.5 cannot transpose the uint8 image
        return paddle.gather(self.pixel_values, index.flatten()).reshape(index.shape)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute losses in training mode, detections in evaluation mode.

        Args:
            batch: `image` (see `normalize`), `im_shape` [N, 2], `scale_factor` [N, 2] (y, x), and
                in training the sparse targets of `FCOSHead.forward`.

        Returns:
            In training: loss_cls, loss_box, loss_quality and their sum, loss. In evaluation:
            bbox, float32 [M, 6]: class, score, x1, y1, x2, y2 in pixels of the original image; and
            bbox_num, int32 [N]: number of rows of each image.
        """
        feats = self._features(batch)
        if self.training:
            return self.fcos_head(feats, batch)
        bbox, bbox_num = self.fcos_head.post_process(
            self.fcos_head(feats), batch["im_shape"], batch["scale_factor"]
        )
        return {"bbox": bbox, "bbox_num": bbox_num}

    def candidates(self, batch: dict[str, Tensor], nms_pre: int | None = None) -> tuple:
        """Compute the input of NMS, see `FCOSHead.candidates`; needs evaluation mode."""
        outputs = self.fcos_head(self._features(batch))
        return self.fcos_head.candidates(outputs, batch["scale_factor"], nms_pre)

    def _features(self, batch: dict[str, Tensor]) -> list[Tensor]:
        image = self.normalize(batch["image"], batch["im_shape"])
        return self.neck(self.backbone({"image": image}))


# What ppdet's classes raise for arguments that they do not check; full memory is something else.
WRONG_ARGUMENTS = (
    TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError,
    NotImplementedError,
)  # fmt: skip


@contextmanager
def _explained(cfg: dict, role: str) -> Iterator[None]:
    """Build one part of the model inside.

    Raises:
        UserError: the class does not accept its arguments, or is not for this role.
    """
    try:
        yield
    except WRONG_ARGUMENTS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"FCOS.{role}: {cfg[role]} cannot be built with its arguments, or cannot be a "
            f"{role.removeprefix('fcos_')}: {reason}"
        ) from None


def _shapes(backbone: nn.Layer) -> list:
    """`out_shape` of a backbone, with measured strides where ppdet's class gives none."""
    shapes = backbone.out_shape
    if any(shape.stride is None for shape in shapes):
        side = 256
        with paddle.no_grad():
            maps = backbone({"image": paddle.zeros([1, 3, side, side])})
        shapes = [s._replace(stride=side // m.shape[2]) for s, m in zip(shapes, maps, strict=True)]
    return shapes


def _inside(height: int | Tensor, width: int | Tensor, h: Tensor, w: Tensor) -> Tensor:
    """bool [N, 1, height, width]: whether row < h and column < w, both [N, 1, 1, 1]."""
    return paddle.logical_and(_range(height).unsqueeze(1) < h, _range(width) < w)


def _range(count: int | Tensor) -> Tensor:
    """Return 0 .. count - 1, float32; in a static graph `count` is a tensor."""
    if isinstance(count, int) and paddle.in_dynamic_mode():
        return count_up(count, "float32")
    return paddle.arange(count, dtype="float32")
