"""Transforms of samples and batches: `UsualChain` or `StockChain`.

The usual transforms (Decode, Resize or RandomResize, RandomFlip, NormalizeImage, Permute; PadBatch,
Gt2FCOSTarget) are done here: pixels stay uint8 and the model normalises them. Any other list of
transforms uses PaddleDetection's own operators and gives float images.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from fcos_recipe.config.schema import MIXING
from fcos_recipe.data.images import BadImage, Sample, clip, decode, flip, random_resize, resize
from fcos_recipe.errors import RunFailure, Stopped, UserError, one_line
from fcos_recipe.plugins import fault

# Names of sample and batch transforms, joined, for which `UsualChain` can be used. Only one resize:
# a second one would resize rounded pixels.
USUAL = re.compile(
    "Decode (RandomFlip )?((Resize|RandomResize) )?(RandomFlip )?NormalizeImage (RandomFlip )?"
    "Permute PadBatch( Gt2FCOSTarget)?"
)


def named(transforms: Sequence[dict]) -> list[tuple[str, dict]]:
    """Convert YAML's list of {name: arguments} to (name, arguments) pairs."""
    return [(name, arguments or {}) for entry in transforms for name, arguments in entry.items()]


@dataclass(frozen=True)
class UsualChain:
    """The usual transforms, reduced to those that change pixels and boxes."""

    steps: list[tuple[str, dict]]
    pad_to_stride: int
    resizes: bool  # has a resize, which also clips the boxes

    @classmethod
    def of(
        cls, sample_transforms: Sequence[dict], batch_transforms: Sequence[dict]
    ) -> "UsualChain | None":
        """Build the chain for these transforms; None if they are not the usual ones."""
        steps = named(sample_transforms) + named(batch_transforms)
        options = {name: arguments for name, arguments in steps}
        if (
            not USUAL.fullmatch(" ".join(name for name, _ in steps))
            or options["NormalizeImage"].get("norm_type", "mean_std") != "mean_std"
            or options.get("RandomResize", {}).get("random_interp")
        ):
            return None
        kept = [step for step in steps if step[0] in ("Resize", "RandomResize", "RandomFlip")]
        resizes = any(name != "RandomFlip" for name, _ in kept)
        return cls(kept, options["PadBatch"].get("pad_to_stride", 0), resizes)

    def sample(self, record: Sample, rng: np.random.Generator) -> Sample:
        """Decode and transform one record."""
        decode(record)
        if "gt_bbox" in record and not self.resizes:
            clip(record["gt_bbox"], *record["image"].shape[:2])
        for name, arguments in self.steps:
            if name == "Resize":
                resize(record, **arguments)
            elif name == "RandomResize":
                random_resize(record, rng, **arguments)
            elif rng.uniform() < arguments.get("prob", 0.5):
                flip(record)
        return record

    def batch(self, samples: list[Sample]) -> dict[str, np.ndarray]:
        """Return `image`, uint8 [N, H, W, 3], padded with zeros."""
        shapes = np.array([s["image"].shape[:2] for s in samples])
        height, width = padded(shapes.max(axis=0), self.pad_to_stride)
        images = np.zeros((len(samples), height, width, 3), np.uint8)
        for out, sample, (h, w) in zip(images, samples, shapes, strict=True):
            out[:h, :w] = sample["image"]
        return {"image": images}

    def size(self, images: np.ndarray) -> tuple[int, int]:
        """Height and width of a batch's images."""
        return images.shape[1:3]


def padded(shape: np.ndarray, stride: int) -> tuple[int, int]:
    """Round height and width up to multiples of the stride; no change if it is 0 or less."""
    height, width = (int(x) if stride <= 0 else -(-int(x) // stride) * stride for x in shape)
    return height, width


def others_needed(epochs: dict[str, int], epoch: int) -> int:
    """Number of samples to mix into each sample of an epoch, as in PaddleDetection's data sets.

    Args:
        epochs: transform of `MIXING` -> epochs in which it is used, from the first; 0: all.
        epoch: counted from 0.
    """
    return next((MIXING[name][1] for name, last in epochs.items() if last == 0 or epoch < last), 0)


class StockChain:
    """Any list of PaddleDetection's transforms, with a random seed for each sample."""

    def __init__(
        self, sample_transforms: Sequence[dict], batch_transforms: Sequence[dict], classes: int
    ):
        # imported here because the usual chain does not need ppdet
        from fcos_recipe.compat import is_users, stock

        def build(transforms: Sequence[dict]) -> list[Callable]:
            operators = []
            for name, arguments in named(transforms):
                if name == "Gt2FCOSTarget":  # ours runs after all others
                    continue
                # PaddleDetection's Decode returns bytes for an image that it cannot decode
                operators.append(decode if name == "Decode" else stock(name)(**arguments))
                if hasattr(operators[-1], "num_classes"):
                    operators[-1].num_classes = classes
            return operators

        self.sample_operators = build(sample_transforms)
        self.batch_operators = build(batch_transforms)
        both = [*self.sample_operators, *self.batch_operators]
        self.users = [operator for operator in both if is_users(operator)]
        self.running = ""  # name of the transform that runs, for messages

    def sample(
        self, record: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()
    ) -> Sample:
        """Transform one record, mixed with others by Mosaic, Mixup or Cutmix."""
        self._seed(rng)
        mixed: Any = [record, *others] if others else record
        for operator in self.sample_operators:
            self.running = f"{type(operator).__name__}: "
            if operator is decode and others:
                mixed = [decode(each) for each in mixed]
            else:
                mixed = operator(mixed)
        record = mixed
        record["batch_seed"] = int(rng.integers(2**32))
        return record

    def batch(self, samples: list[Sample]) -> dict[str, np.ndarray]:
        """Return `image`, float32 [N, 3, H, W], after PaddleDetection's batch transforms."""
        self._seed(np.random.default_rng([s.pop("batch_seed") for s in samples]))
        for operator in self.batch_operators:
            samples[:] = operator(samples)
        return {"image": np.stack([s["image"] for s in samples])}

    def _seed(self, rng: np.random.Generator) -> None:
        """Let all random numbers of a sample, or of a batch, depend on this generator alone."""
        seed_stock(rng)
        for operator in self.users:
            operator.rng = rng  # type: ignore[attr-defined]

    def size(self, images: np.ndarray) -> tuple[int, int]:
        """Height and width of a batch's images."""
        return images.shape[2:4]


def transformed(
    chain: UsualChain | StockChain, record: Sample, rng: np.random.Generator, *others: list[Sample]
) -> Sample:
    """`chain.sample`, with every error of a transform as an error of its image.

    An image can be readable and still be one that a transform refuses: one of 3000 x 2 pixels has
    no height left when it is made smaller.

    Raises:
        BadImage: the image cannot be read, or a transform failed on it; the message names both.
        Exception: of a transform in a file of the user's, see `plugins.fault`.
    """
    name = record.get("im_file")
    try:
        return chain.sample(record, rng, *others)
    except (BadImage, UserError, RunFailure, Stopped, MemoryError):
        raise
    except Exception as error:
        if fault(error):
            raise
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"{name}: {error}") from None
        size = "x".join(map(str, np.shape(record.get("image"))[1::-1]))  # width x height
        why = one_line(" ".join(str(getattr(error, "err", "") or error).split())[-200:])
        raise BadImage(
            f"{name or 'an image'}: a transform fails on its {size or 'unknown number of'} pixels "
            f"({getattr(chain, 'running', '')}{type(error).__name__}: {why})"
        ) from error


def seed_stock(rng: np.random.Generator) -> None:
    """Seed the two global random generators that PaddleDetection's transforms use."""
    np.random.seed(int(rng.integers(2**32)))
    random.seed(int(rng.integers(2**32)))
