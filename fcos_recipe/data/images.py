"""Decode, resize, clip and flip one image with its boxes, as PaddleDetection computes it."""

import os
from typing import Any

import cv2
import numpy as np

from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import MOST_IMAGE, read_bytes

Sample = dict[str, Any]


# OpenCV before 4.11 has no flag for RGB.
DECODE_RGB = getattr(cv2, "IMREAD_COLOR_RGB", None)


class BadImage(Exception):
    """An image cannot be read; the message has its path and the reason."""


def read_image(path: str) -> np.ndarray:
    """Decode an image and rotate it as its EXIF tag says.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        BadImage: the file is missing, empty or cannot be decoded, or its header states more pixels
            than the environment variable OPENCV_IO_MAX_IMAGE_PIXELS (`compat.MOST_PIXELS`).
    """
    try:
        return decode_image(read_bytes(path, MOST_IMAGE), path)
    except UserError as error:
        raise BadImage(str(error)) from None


def decode_image(content: bytes, path: str) -> np.ndarray:
    """`read_image` of a file's content; `path` names it in errors."""
    data = np.frombuffer(content, np.uint8)
    if not len(data):
        raise BadImage(f"{path}: empty file")
    try:
        if DECODE_RGB is not None:
            image = cv2.imdecode(data, DECODE_RGB)
        else:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)
            image = image if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    except cv2.error as error:
        why = error.err
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"{path}: {why}") from None
        if "MAX_IMAGE" in why:
            key = "OPENCV_IO_MAX_IMAGE_PIXELS"
            why = f"more than {os.environ[key]} pixels (the limit in the variable {key})"
        raise BadImage(f"{path}: {why}") from None
    if image is None:
        raise BadImage(f"{path}: not an image that OpenCV can decode")
    return image


def decode(record: Sample) -> Sample:
    """Replace `im_file` by the decoded `image`, unless that exists, and add the size in pixels.

    Raises:
        BadImage: see `read_image`.
    """
    path = record.pop("im_file", None)
    if "image" not in record:
        record["image"] = read_image(path)
    record["h"], record["w"] = record["image"].shape[:2]
    record["im_shape"] = np.array(record["image"].shape[:2], np.float32)
    record["scale_factor"] = np.ones(2, np.float32)
    return record


def resize(
    sample: Sample, target_size: int | list[int], keep_ratio: bool = True, interp: int = 1
) -> None:
    """Resize image and boxes as PaddleDetection's Resize does, and clip the boxes to the image.

    Args:
        sample: `image` uint8 [H, W, 3] and, optionally, `gt_bbox` float32 [G, 4]; `im_shape` and
            `scale_factor`, float32 [2] (y, x), are added.
        target_size: with `keep_ratio` the largest short and long side, else [height, width];
            pixels.
        keep_ratio: use one scale for both sides, the largest with which both limits hold.
        interp: OpenCV's interpolation flag.
    """
    image = sample["image"]
    height, width = image.shape[:2]
    target = [target_size] * 2 if isinstance(target_size, int) else target_size
    if keep_ratio:
        # np.float64 and not a Python float, so that NumPy 2 scales the boxes in double precision
        scale_x = scale_y = np.float64(
            min(min(target) / min(height, width), max(target) / max(height, width))
        )
        new_height, new_width = scale_y * height, scale_x * width
    else:
        new_height, new_width = target
        scale_x, scale_y = new_width / width, new_height / height
    image = cv2.resize(image, None, None, fx=scale_x, fy=scale_y, interpolation=interp)
    # OpenCV rounds the size, so the computed one may be larger than the image
    sample["image"] = image
    sample["im_shape"] = np.minimum([new_height, new_width], image.shape[:2]).astype(np.float32)
    sample["scale_factor"] = np.asarray([scale_y, scale_x], np.float32)
    if "gt_bbox" in sample:
        box = sample["gt_bbox"]
        box[:, 0::2] *= scale_x
        box[:, 1::2] *= scale_y
        clip(box, new_height, new_width)


def clip(box: np.ndarray, height: float, width: float) -> None:
    """Clip boxes, float32 [G, 4], in place to an image size in pixels."""
    box[:, 0::2] = np.clip(box[:, 0::2], 0, width)
    box[:, 1::2] = np.clip(box[:, 1::2], 0, height)


def random_resize(
    sample: Sample,
    rng: np.random.Generator,
    target_size: list,
    keep_ratio: bool = True,
    interp: int = 1,
    random_range: bool = False,
    random_size: bool = True,
) -> None:
    """`resize` to a random one of several sizes, or to a random short side from a range."""
    if random_range:
        (low, long_low), (high, long_high) = target_size
        size = [int(rng.integers(low, high + 1)), max(long_low, long_high + 1)]
    else:
        size = target_size[rng.integers(len(target_size))] if random_size else target_size
    resize(sample, size, keep_ratio, interp)


def flip(sample: Sample) -> None:
    """Flip image and boxes horizontally."""
    image = sample["image"]
    sample["image"] = cv2.flip(image, 1)
    if "gt_bbox" in sample:
        box = sample["gt_bbox"]
        box[:, [0, 2]] = image.shape[1] - box[:, [2, 0]]
