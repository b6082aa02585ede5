"""Measure a training step: time, shapes, operators, host reads."""

import os
import time
from collections import Counter, defaultdict
from typing import Any

import paddle
from paddle.profiler import Profiler, ProfilerTarget
from paddle.profiler.profiler import TracerEventType

from fcos_recipe.training.window import card_memory_mib

# File in which the stand-in device of tests/card logs each request as "pid card what bytes".
TRACE = os.environ.get("FAKE_CARD_TRACE", "")
READS = ("numpy", "item", "tolist", "__array__", "__bool__", "__float__", "__int__", "__index__")


class Gate:
    """Runs one training step per request and answers with its measurements.

    The time of a step runs from the request to the end of the step and includes data waits. While a
    side waits, its data workers stop once their queue is full, so a step includes the cost of the
    batch that replaces the one it takes.

    Args:
        line: a `side_process.Line`.
        model: the layer whose input batch gives the number of images and pixels.
    """

    def __init__(self, line, model: paddle.nn.Layer):
        self.line = line
        self.reads: Counter[str] = Counter()
        self.profiler: Any = None
        self.counting = False
        model.register_forward_pre_hook(self._see)
        self._begin()

    def _begin(self) -> None:
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    def _see(self, _layer, inputs) -> None:
        batch = inputs[0]
        self.shape, self.im_shape = batch["image"].shape, batch["im_shape"]

    def done(self) -> None:
        """Call at the end of every step; returns when the next step is requested."""
        if paddle.get_device() != "cpu":
            paddle.device.synchronize()
        seconds = time.perf_counter() - self.start
        cpu = time.process_time() - self.cpu_start
        profile = {"profile": self._end_count()} if self.counting else {}
        self.line.send(seconds=seconds, cpu_seconds=cpu, **self._pixels(), **profile)
        request = self.line.receive()
        if request["do"] == "profile":
            self._begin_count()
        self._begin()

    def _pixels(self) -> dict:
        images, *sides = self.shape
        height, width = sides[:2] if sides[2] == 3 else sides[1:]
        real = self.im_shape.numpy().astype("float64").prod(axis=1).sum()
        return {"images": images, "padded": images * height * width, "real": float(real)}

    def _begin_count(self) -> None:
        self.counting, self.reads = True, Counter()
        self.traced = os.path.getsize(TRACE) if TRACE else 0
        self.original = {name: getattr(paddle.Tensor, name, None) for name in READS}
        for name, method in self.original.items():
            if method is not None:
                setattr(paddle.Tensor, name, self._counted(name, method))
        self.profiler = Profiler(targets=[ProfilerTarget.CPU], on_trace_ready=lambda _: None)
        self.profiler.start()

    def _counted(self, name: str, method):
        inside = self

        def read(*args, **kwargs):
            # methods may call each other: count only the outermost call
            if inside.counting:
                inside.reads[name] += 1
                inside.counting = False
                try:
                    return method(*args, **kwargs)
                finally:
                    inside.counting = True
            return method(*args, **kwargs)

        return read

    def _end_count(self) -> dict:
        self.counting = False
        for name, method in self.original.items():
            if method is not None:
                setattr(paddle.Tensor, name, method)
        self.profiler.stop()
        count, time_of = operators(self.profiler.profiler_result.get_data())
        return {
            "operators": sum(count.values()) - count["Global_GradNodeAccumulation"],
            "host_reads": dict(self.reads),
            "device": requests(TRACE, self.traced) if TRACE else None,
            "peak_memory_mib": card_memory_mib(paddle.get_device().split(":")[0]),
            "top": [
                {"name": name, "calls": count[name], "seconds": time_of[name]}
                for name in sorted(time_of, key=time_of.__getitem__, reverse=True)[:15]
            ],
        }


def requests(path: str, start: int) -> dict[str, dict[str, int]]:
    """Requests of this process to a stand-in device, without tensor moves for CPU kernels.

    Args:
        path: the device's log.
        start: byte offset at which to begin.

    Returns:
        kind of request -> `calls` and `bytes`.
    """
    found: dict[str, dict[str, int]] = {}
    with open(path) as file:
        file.seek(start)
        for line in file:
            pid, _card, what, size = line.split()
            if int(pid) == os.getpid() and not what.startswith("fallback-"):
                row = found.setdefault(what, {"calls": 0, "bytes": 0})
                row["calls"] += 1
                row["bytes"] += int(size)
    return found


def operators(trees: dict) -> tuple[Counter, dict[str, float]]:
    """Calls and seconds of each operator in a profile.

    Args:
        trees: the profiler's result, thread -> root node.

    Returns:
        name -> number of 'Operator' events, as in the profiler's own summary; name -> seconds; an
        operator called by another counts only for its caller.
    """
    count: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    stack = [(root, False) for root in trees.values()]
    while stack:
        node, inside = stack.pop()
        here = node.type == TracerEventType.Operator
        if here:
            name = node.name.split(" ")[0]
            count[name] += 1
            if not inside:
                seconds[name] += (node.end_ns - node.start_ns) / 1e9
        stack += [(child, inside or here) for child in node.children_node]
    return count, seconds
