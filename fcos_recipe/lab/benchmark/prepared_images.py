"""Helpers for detection on prepared images, shared by the sides of `infer` and `nms`."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

STRIDE = 32  #: all sides pad to multiples of it, because torchvision always does


def batch_of(path: str | Path, count: int) -> dict[str, np.ndarray]:
    """Make a batch, as our readers do, from decoded images of one size.

    Args:
        path: .npz with `images`, uint8 [K, H, W, 3].
        count: number of images; those of the file are repeated if there are fewer.

    Returns:
        `image` uint8 [count, H', W', 3], `im_shape` and `scale_factor` float32 [count, 2].
    """
    pictures = np.load(path)["images"]
    pictures = pictures[np.arange(count) % len(pictures)]
    height, width = pictures.shape[1:3]
    padded = [-(-side // STRIDE) * STRIDE for side in (height, width)]
    image = np.zeros((count, *padded, 3), np.uint8)
    image[:, :height, :width] = pictures
    shape = np.tile(np.array([[height, width]], np.float32), (count, 1))
    return {"image": image, "im_shape": shape, "scale_factor": np.ones_like(shape)}


def timed(work: Callable[[], int]) -> dict:
    """Measure one call.

    Args:
        work: runs detection and returns the number of detections.

    Returns:
        `seconds`, `cpu_seconds` of all threads, `detections`, and `peak_mib` of the process.
    """
    start, cpu = time.perf_counter(), time.process_time()
    found = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": cpu, "detections": int(found), "peak_mib": peak}
