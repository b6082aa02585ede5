"""Timing of data preparation on one core, without worker processes."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def timed(work: Callable[[], object], repeat: int) -> list[float]:
    """Seconds of each of `repeat` calls."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


class Batches:
    """Measures an input pipeline one batch at a time, as a data worker runs it.

    Args:
        sample: returns the sample of an image number.
        collate: returns the model's input arrays for a list of samples.
        epoch: returns the batches of an epoch number, lists of image numbers.
        sizes: int [images, 2], height and width of the image files, pixels.
        reader: the config's TrainReader.
    """

    def __init__(self, sample: Callable, collate: Callable, epoch: Callable, sizes, reader: dict):
        self.sample, self.collate, self.epoch = sample, collate, epoch
        self.batches = epoch(0)
        self.sizes = np.asarray(sizes, np.float64)
        self.target = argument(reader["sample_transforms"], "Resize", "target_size")
        self.stride = argument(reader["batch_transforms"], "PadBatch", "pad_to_stride")

    def __call__(self, do: str, **details) -> dict:
        return getattr(self, do)(**details)

    def prepare(self, batch: int) -> dict:
        """Seconds, images and bytes of batch number `batch`."""
        indices = self.batches[batch % len(self.batches)]
        start = time.perf_counter()
        ready = self.collate([self.sample(i) for i in indices])
        seconds = time.perf_counter() - start
        arrays = [np.asarray(value) for value in ready.values()]
        return {
            "seconds": seconds,
            "images": len(indices),
            "bytes": sum(array.nbytes for array in arrays),
        }

    def padding(self, epochs: int) -> dict:
        """Padded pixels per image pixel over the first epochs, from the image sizes."""
        scale = np.minimum(
            min(self.target) / self.sizes.min(axis=1), max(self.target) / self.sizes.max(axis=1)
        )
        resized = np.rint(self.sizes * scale[:, None])
        real = padded = 0.0
        for number in range(epochs):
            for batch in self.epoch(number):
                shapes = resized[batch]
                real += shapes.prod(axis=1).sum()
                grid = np.ceil(shapes.max(axis=0) / self.stride) * self.stride
                padded += grid.prod() * len(batch)
        return {"ratio": padded / real}


def argument(transforms: list[dict], name: str, key: str):
    """An argument of the first transform of that name in a reader's list."""
    return next(t[name] for t in transforms if name in t)[key]


def proportional_mib() -> float:
    """Proportional set size of this process in MiB: shared pages count in part."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("Pss:")) / 1024
