"""Memory of a card that a training step takes, before anything is run."""

from dataclasses import dataclass

# Measured with Paddle's allocator on a CPU, R50, one and two images of 640x640: peak less the
# parameters, their gradients and momenta. cuDNN's workspaces come on top on a card.
BYTES_PER_PIXEL = 1600


@dataclass(frozen=True)
class Training:
    """A training step in float32.

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
