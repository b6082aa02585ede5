"""What a stretch of training measured: losses, images, seconds, memory.

Throughput means the same wherever this project prints or records it:

- `images_per_second_per_card` of a stretch between two log lines: the images that one rank (one
  card, one process) trained on / the wall time of the stretch. That time has the wait for data,
  forward, backward, the exchange of gradients and the optimizer in it; evaluations, the writing of
  log lines and the part of saving that training waits for are not. The wait for data is also
  recorded on its own: `data_time`, seconds per batch.
- `images_per_second` of a stretch: that times the ranks, as all take the same step.
- A run's throughput (`throughput`): the median over its stretches without the first one, in which
  workers start and caches fill.

`images_per_second` of an evaluation is of all ranks together, from files to detections, without
COCO's matching (`engine.evaluate`). `fcos benchmark train` takes the median over single steps, wait
for data included, without the first ones.

PaddleDetection 2.6's `ips` is the images per step of one card / rank 0's time per step with the
wait for data, smoothed: the same quantity per card. The published "FPS 8.24" of eight BI-V100 is
most likely that: 8.24 images/s per card, 66 in all, 6 hours for 12 epochs. If it were of all eight
cards, 12 epochs would take 47 hours. No log was published that would tell.
"""

import resource
import statistics
import time

import numpy as np
import paddle


class Window:
    """What happened since the last log line, kept on the device until the line is due.

    Args:
        state: of a window that a checkpoint cut in two.
    """

    def __init__(self, state: dict | None = None):
        self.start, self.batches, self.images, self.data_time = time.perf_counter(), 0, 0, 0.0
        self.names: list[str] = []
        self._losses, self._ids, self._read = [], [], np.zeros((0, 0), np.float32)
        self.finite = None
        if state:
            self.start -= state["seconds"]
            self.batches, self.images = state["batches"], state["images"]
            self.data_time, self.names = state["data_time"], state["names"]
            self._read = np.array(state["losses"], np.float32)

    def add(self, losses: dict, batch: dict, data_time: float) -> None:
        """Take in one batch: its losses (tensors) and the seconds spent waiting for it."""
        self.names = list(losses)
        self._losses.append([value.detach() for value in losses.values()])
        self._ids.append(batch["im_id"])
        finite = paddle.isfinite(losses["loss"].detach())
        self.finite = finite if self.finite is None else paddle.logical_and(self.finite, finite)
        self.batches += 1
        self.images += batch["image"].shape[0]
        self.data_time += data_time

    def end_step(self, applied: bool = True) -> None:
        """The batches since the last call made a step; what was not applied leaves the means."""
        if not applied:
            del self._losses[-len(self._ids) :]
        self._ids, self.finite = [], None

    def ids(self) -> list[list[int]]:
        """Image ids of the present step's batches."""
        return [ids.numpy().reshape(-1).tolist() for ids in self._ids]

    def last_losses(self) -> list[dict[str, float]]:
        """Losses of the present step's batches."""
        rows = self._losses[-len(self._ids) :]
        return [{k: float(v) for k, v in zip(self.names, row)} for row in rows]

    def _rows(self) -> np.ndarray:
        """float32 [batches, losses]; reads the device once."""
        flat = [value.reshape([1]).astype("float32") for row in self._losses for value in row]
        if not flat:
            return self._read
        rows = paddle.concat(flat).numpy().reshape(len(self._losses), -1)
        return np.concatenate([self._read, rows]) if len(self._read) else rows

    def means(self) -> dict[str, float]:
        """Mean of each loss over the window; {} where no step was applied."""
        rows = self._rows()
        if not len(rows):
            return {}
        return {k: round(float(v), 6) for k, v in zip(self.names, rows.mean(axis=0))}

    def state(self) -> dict:
        """What a resumed run needs for a log line as if nothing had happened; JSON."""
        return {
            "seconds": time.perf_counter() - self.start, "batches": self.batches,
            "images": self.images, "data_time": self.data_time, "names": self.names,
            "losses": self._rows().tolist(),
        }  # fmt: skip


def throughput(records: list[dict]) -> dict[str, float]:
    """A run's throughput, as defined above.

    Args:
        records: of its metrics.jsonl.

    Returns:
        `images_per_second_per_card` and `images_per_second`; {} where nothing was logged.
    """
    stretches = [record for record in records if record["kind"] == "train"]
    stretches = stretches[1:] or stretches
    if not stretches:
        return {}
    names = ("images_per_second_per_card", "images_per_second")
    return {name: statistics.median(record[name] for record in stretches) for name in names}


def timed(loader):
    """Yield (seconds waited, batch) for each batch."""
    before = time.perf_counter()
    for batch in loader:
        yield time.perf_counter() - before, batch
        before = time.perf_counter()


def memory_mib(device: str) -> int:
    """Peak memory: allocated on a CUDA device, resident in the process otherwise."""
    if device == "gpu":
        return paddle.device.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def hms(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
