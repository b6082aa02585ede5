"""Memory of a card that a training step takes, before anything is run."""

from dataclasses import dataclass

# R50 with FPN, measured on the stand-in card (tests/card/memory.py): what an image of a batch adds
# to the peak of Paddle's allocator is this times its pixels, to three digits, for 1, 2 and 4 images
# of 896x1408 and for 2 of 800x1344. cuDNN's workspaces come on top of it on a real card.
BYTES_PER_PIXEL = 1586


@dataclass(frozen=True)
class Training:
    """A training step in float32 of FCOS with ResNet-50; smaller backbones need less.

    Args:
        numbers: of the model's parameters and statistics.
        pixels: of the largest image, padding included.
        ema: whether an average of the weights is kept beside them.
    """

    numbers: int
    pixels: int
    ema: bool = False

    def bytes(self, batch: int) -> int:
        """Peak of what the allocator hands out at this batch size."""
        return self._fixed() + batch * self.pixels * BYTES_PER_PIXEL

    def images(self, memory: int) -> int:
        """The largest batch that fits in this many bytes; may be 0."""
        return max(0, memory - self._fixed()) // (self.pixels * BYTES_PER_PIXEL)

    def _fixed(self) -> int:
        """Weights, gradients, momenta, and the average where there is one."""
        return 4 * self.numbers * (3 + self.ema)
