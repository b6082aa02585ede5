"""Test-time augmentation: the candidates of flipped and resized views share one NMS."""

from collections.abc import Iterator

import numpy as np
import paddle

from fcos_recipe.errors import UserError
from fcos_recipe.model.postprocess import nms_and_clip


def resized(transforms: list[dict], size: int) -> list[dict]:
    """sample_transforms with another short side.

    Args:
        transforms: of an EvalReader, as in YAML.
        size: short side in pixels; the limit of the long side grows by the same factor.

    Raises:
        UserError: there is no `Resize` whose target_size could be replaced.
    """
    if not any("Resize" in transform for transform in transforms):
        raise UserError("EvalReader.sample_transforms: no Resize, so --tta-sizes cannot apply")
    changed = []
    for transform in transforms:
        if "Resize" in transform:
            target = transform["Resize"]["target_size"]
            short, long = (target, target) if isinstance(target, int) else sorted(target)
            target = [size, round(long * size / short)]
            transform = {"Resize": {**transform["Resize"], "target_size": target}}
        changed.append(transform)
    return changed


class Views:
    """Loaders of the same batches in several sizes as one loader.

    Args:
        loaders: one per size; all leave out the same unreadable images.
    """

    def __init__(self, loaders: list):
        self.loaders = loaders

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[dict]:
        """Batches of the first size, all sizes' under `views`."""
        for views in zip(*self.loaders, strict=True):
            yield {**views[0], "views": views}


class Augmented:
    """A detector that looks at each image in several views.

    Args:
        model: an `FCOS`.
        flip: look at each size mirrored too.
    """

    def __init__(self, model, flip: bool):
        self.model, self.flip = model, flip
        self.fcos_head, self.eval, self.state_dict = model.fcos_head, model.eval, model.state_dict

    def __call__(self, batch: dict) -> dict:
        """Detections of a batch of `Views`, as `FCOS.forward` gives them."""
        found = []
        for view in batch["views"]:
            found.append(self.model.candidates(view)[:2])
            if self.flip:
                boxes, scores = self.model.candidates({**view, "image": mirrored(view)})[:2]
                # the mirrored frame ends where the resized image does, in original pixels
                width = (view["im_shape"] / view["scale_factor"])[:, 1:].unsqueeze(2)
                x1, y1, x2, y2 = boxes.split(4, axis=2)
                found.append((paddle.concat([width - x2, y1, width - x1, y2], axis=2), scores))
        boxes, scores = zip(*found, strict=True)
        head = self.fcos_head
        bbox, bbox_num = nms_and_clip(
            paddle.concat(boxes, axis=1), paddle.concat(scores, axis=2),
            batch["im_shape"], batch["scale_factor"], head.nms, head.clip,
        )  # fmt: skip
        return {"bbox": bbox, "bbox_num": bbox_num}


def mirrored(batch: dict) -> paddle.Tensor:
    """The images mirrored where they are: padding stays at the right.

    Args:
        batch: `image`, uint8 [N, H, W, 3] or float [N, 3, H, W]; `im_shape` [N, 2].
    """
    image = batch["image"].numpy().copy()
    rows = image if image.dtype == np.uint8 else image.transpose(0, 2, 3, 1)
    for row, width in zip(rows, batch["im_shape"].numpy()[:, 1].astype(int), strict=True):
        row[:, :width] = row[:, :width][:, ::-1].copy()
    return paddle.to_tensor(image)
