"""Memory of a card that a training step takes, before anything is run on the card."""

from dataclasses import dataclass

# Copies of the weights that optimizers keep beside them.
STATES = {"SGD": 0, "Momentum": 1}  # others, such as AdamW, keep two
# What the backward pass needs beyond what the forward pass kept, measured on the stand-in card
# (tests/card/memory.py): 2.6 % for ResNet-50, 3.2 % for the demo's ResNet-18.
BACKWARD = 1.03


@dataclass(frozen=True)
class Training:
    """A training step in float32. The workspaces of cuDNN come on top of it on a real card.

    Memory is fullest as the backward pass begins. From there on it frees what the forward pass
    kept, while the gradients of the weights come.

    Args:
        numbers: of the model's parameters and statistics.
        kept_per_pixel: bytes that the forward pass keeps per pixel, see `model.size`.
        pixels: of the largest image, padding included.
        optimizer: its type in the config.
        ema: whether an average of the weights is kept beside them.
    """

    numbers: int
    kept_per_pixel: float
    pixels: int
    optimizer: str = "Momentum"
    ema: bool = False

    def bytes(self, batch: int) -> int:
        """Peak of what the allocator hands out at this batch size."""
        return self._weights() + max(round(batch * self._image()), 4 * self.numbers)

    def images(self, memory: int) -> int:
        """The largest batch that fits in this many bytes; may be 0."""
        batch = max(0, int((memory - self._weights()) / self._image()))
        return batch if self.bytes(batch) <= memory else 0

    def _image(self) -> float:
        return self.pixels * self.kept_per_pixel * BACKWARD

    def _weights(self) -> int:
        """Weights, the optimizer's states, and the average where there is one."""
        return 4 * self.numbers * (1 + STATES.get(self.optimizer, 2) + self.ema)
