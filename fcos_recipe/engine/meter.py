"""What a stretch of training measured: losses, images, seconds, memory."""

import resource
import time

import paddle


class Window:
    """What happened since the last log line, kept on the device until the line is due."""

    def __init__(self):
        self.start, self.batches, self.images, self.data_time = time.perf_counter(), 0, 0, 0.0
        self.losses, self.finite = [], None

    def add(self, losses: dict, batch: dict, data_time: float) -> None:
        """Take in one batch: its losses (tensors) and the seconds spent waiting for it."""
        self.names = list(losses)
        self.losses.append([value.detach() for value in losses.values()])
        finite = paddle.isfinite(losses["loss"].detach())
        self.finite = finite if self.finite is None else paddle.logical_and(self.finite, finite)
        self.batches += 1
        self.images += batch["image"].shape[0]
        self.data_time += data_time

    def means(self) -> dict[str, float]:
        """Mean of each loss over the window; the one read of the device in it."""
        flat = [value.reshape([1]).astype("float32") for row in self.losses for value in row]
        rows = paddle.concat(flat).numpy().reshape(len(self.losses), -1)
        return {k: round(float(v), 6) for k, v in zip(self.names, rows.mean(axis=0))}


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
