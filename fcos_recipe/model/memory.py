"""Estimate the device memory of a training step without running it on the device."""

from dataclasses import dataclass

# Optimizer states per weight.
STATES = {"SGD": 0, "Momentum": 1}  # others, such as AdamW, have two
# Peak memory of the backward pass relative to what the forward pass keeps, measured on the stand-in
# card (tests/card/memory.py): 2.6 % more for ResNet-50, 3.2 % more for the demo's ResNet-18.
BACKWARD = 1.03


@dataclass(frozen=True)
class Training:
    """A training step in float32, without the workspaces that cuDNN adds on a real card.

    The peak is at the start of the backward pass, which then frees the activations of the forward
    pass while it computes the gradients.

    Args:
        numbers: count of the model's parameters and statistics.
        kept_per_pixel: bytes that the forward pass keeps per pixel, see `model.size`.
        pixels: of the largest image, including padding.
        optimizer: `OptimizerBuilder.optimizer.type`.
        ema: whether there is an exponential moving average of the weights.
    """

    numbers: int
    kept_per_pixel: float
    pixels: int
    optimizer: str = "Momentum"
    ema: bool = False

    def bytes(self, batch: int) -> int:
        """Peak of allocated bytes at this batch size."""
        return self._weights() + max(round(batch * self._image()), 4 * self.numbers)

    def images(self, memory: int) -> int:
        """The largest batch size that fits into this many bytes; may be 0."""
        batch = max(0, int((memory - self._weights()) / self._image()))
        return batch if self.bytes(batch) <= memory else 0

    def _image(self) -> float:
        return self.pixels * self.kept_per_pixel * BACKWARD

    def _weights(self) -> int:
        """Bytes of weights, optimizer states and, if used, the moving average."""
        return 4 * self.numbers * (1 + STATES.get(self.optimizer, 2) + self.ema)
