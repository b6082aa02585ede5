"""Measurements between two log lines: losses, images, seconds, memory.

`runs.throughput` defines throughput.
"""

import resource
import time

import numpy as np
import paddle

from fcos_recipe.system.device import card_index


class Window:
    """Measurements since the last log line; losses stay on the device until they are needed.

    Args:
        state: from a checkpoint that was saved between two log lines.
    """

    def __init__(self, state: dict | None = None):
        self.start, self.batches, self.images, self.data_time = time.perf_counter(), 0, 0, 0.0
        self.names: list[str] = []
        self._losses: list = []
        self._ids: list = []
        self._read = np.zeros((0, 0), np.float32)
        self.finite = None
        if state:
            self.start -= state["seconds"]
            self.batches, self.images = state["batches"], state["images"]
            self.data_time, self.names = state["data_time"], state["names"]
            self._read = np.array(state["losses"], np.float32)

    def add(self, losses: dict, batch: dict, data_time: float) -> None:
        """Add one batch: its losses (tensors) and the seconds spent waiting for it."""
        self.names = list(losses)
        self._losses.append([value.detach() for value in losses.values()])
        self._ids.append(batch["im_id"])
        finite = paddle.isfinite(losses["loss"].detach())
        self.finite = finite if self.finite is None else paddle.logical_and(self.finite, finite)
        self.batches += 1
        self.images += batch["image"].shape[0]
        self.data_time += data_time

    def end_step(self, applied: bool = True) -> None:
        """End the step of the latest batches; remove their losses if it was not applied."""
        if not applied:
            del self._losses[-len(self._ids) :]
        self._ids, self.finite = [], None

    def ids(self) -> list[list[int]]:
        """Image ids of the current step's batches."""
        return [ids.numpy().reshape(-1).tolist() for ids in self._ids]

    def last_losses(self) -> list[dict[str, float]]:
        """Losses of the current step's batches."""
        rows = self._losses[-len(self._ids) :]
        return [{k: float(v) for k, v in zip(self.names, row)} for row in rows]

    def _rows(self) -> np.ndarray:
        """All losses, float32 [batches, losses], in one copy from the device."""
        flat = [value.reshape([1]).astype("float32") for row in self._losses for value in row]
        if flat:
            rows = paddle.concat(flat).numpy().reshape(len(self._losses), -1)
            self._read = np.concatenate([self._read, rows]) if len(self._read) else rows
            self._losses = []
        return self._read

    def means(self) -> dict[str, float]:
        """Mean of each loss; {} if no step was applied."""
        rows = self._rows()
        if not len(rows):
            return {}
        return {k: round(float(v), 6) for k, v in zip(self.names, rows.mean(axis=0))}

    def each(self) -> dict[str, np.ndarray]:
        """Each loss of every batch of the applied steps, float32 [batches]."""
        return dict(zip(self.names, self._rows().T))

    def state(self) -> dict:
        """State with which a resumed run writes the same log line; JSON."""
        return {
            "seconds": time.perf_counter() - self.start, "batches": self.batches,
            "images": self.images, "data_time": self.data_time, "names": self.names,
            "losses": self._rows().tolist(),
        }  # fmt: skip


def timed(loader):
    """Yield (seconds waited, batch) for each batch."""
    before = time.perf_counter()
    for batch in loader:
        yield time.perf_counter() - before, batch
        before = time.perf_counter()


def card_memory_mib(device: str) -> int | None:
    """Peak memory in MiB that Paddle allocated on this process's card.

    None on the CPU, and on a plugin's card with Paddle before 3.1, which does not count it.
    """
    if device == "gpu":
        return paddle.device.cuda.max_memory_allocated() >> 20
    if device != "cpu" and hasattr(paddle.device, "max_memory_allocated"):
        # without a name, Paddle returns the value of card 0
        return paddle.device.max_memory_allocated(f"{device}:{card_index(device)}") >> 20
    return None


def memory_mib(device: str) -> int:
    """Peak memory in MiB: `card_memory_mib`, or the process's peak resident size if it is None."""
    on_card = card_memory_mib(device)
    if on_card is not None:
        return on_card
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def hms(seconds: float) -> str:
    """Format seconds as 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
