"""What a reader does to each sample and each batch: `UsualChain` or `StockChain`.

The usual transforms (Decode, Resize or RandomResize, RandomFlip, NormalizeImage, Permute; PadBatch,
Gt2FCOSTarget) need little work here: pixels stay uint8 and the model normalises them. Any other
list of transforms runs stock's own operators and gives float images.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fcos_recipe.data.images import Sample, clip, decode, flip, random_resize, resize

# Sample and batch transforms in a row that `UsualChain` stands for. One resize only: the second
# of two would see pixels already rounded.
USUAL = re.compile(
    "Decode (RandomFlip )?((Resize|RandomResize) )?(RandomFlip )?NormalizeImage (RandomFlip )?"
    "Permute PadBatch( Gt2FCOSTarget)?"
)


def named(transforms: Sequence[dict]) -> list[tuple[str, dict]]:
    """YAML's list of {name: arguments} as pairs."""
    return [(name, arguments or {}) for entry in transforms for name, arguments in entry.items()]


@dataclass(frozen=True)
class UsualChain:
    """The usual chain, cut down to what changes pixels and boxes."""

    steps: list[tuple[str, dict]]
    pad_to_stride: int
    resizes: bool  # which clips the boxes

    @classmethod
    def of(
        cls, sample_transforms: Sequence[dict], batch_transforms: Sequence[dict]
    ) -> "UsualChain | None":
        """The chain of these transforms; None where they are more, or in another order."""
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
        """uint8 [N, H, W, 3], zero outside each image."""
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
    """Height and width rounded up to multiples of the stride (0 or less: as they are)."""
    height, width = (int(x) if stride <= 0 else -(-int(x) // stride) * stride for x in shape)
    return height, width


class StockChain:
    """Any chain of stock's transforms, each sample seeded by itself."""

    def __init__(
        self, sample_transforms: Sequence[dict], batch_transforms: Sequence[dict], classes: int
    ):
        # Stock's transforms pull in ppdet, which the usual chain never needs.
        from fcos_recipe.compat import stock

        def build(transforms: Sequence[dict]) -> list[Callable]:
            operators = []
            for name, arguments in named(transforms):
                if name == "Gt2FCOSTarget":  # ours comes after all others
                    continue
                # Stock's Decode passes what it cannot decode on as bytes.
                operators.append(decode if name == "Decode" else stock(name)(**arguments))
                if hasattr(operators[-1], "num_classes"):
                    operators[-1].num_classes = classes
            return operators

        self.sample_operators = build(sample_transforms)
        self.batch_operators = build(batch_transforms)

    def sample(self, record: Sample, rng: np.random.Generator) -> Sample:
        seed_stock(rng)
        for operator in self.sample_operators:
            record = operator(record)
        record["batch_seed"] = int(rng.integers(2**32))
        return record

    def batch(self, samples: list[Sample]) -> dict[str, np.ndarray]:
        """float32 [N, 3, H, W] as stock's transforms leave it."""
        seed_stock(np.random.default_rng([s.pop("batch_seed") for s in samples]))
        for operator in self.batch_operators:
            samples[:] = operator(samples)
        return {"image": np.stack([s["image"] for s in samples])}

    def size(self, images: np.ndarray) -> tuple[int, int]:
        """Height and width of a batch's images."""
        return images.shape[2:4]


def seed_stock(rng: np.random.Generator) -> None:
    """Seed the two global generators that stock's transforms draw from."""
    np.random.seed(int(rng.integers(2**32)))
    random.seed(int(rng.integers(2**32)))
