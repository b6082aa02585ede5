"""The comparisons of detection, `infer` and `nms`; the others are in `comparisons`."""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from fcos_recipe.lab.benchmark.comparisons import (
    OURS,
    STOCK,
    TORCH,
    Bench,
    alternate,
    compared,
    export_images,
    initial_weights,
    summary,
)
from fcos_recipe.lab.benchmark.side_process import Child
from fcos_recipe.system import cpu_math

OPENVINO = "fcos_recipe.lab.benchmark.openvino_side"
#: bias of the class logits of random weights: with the first hardly any box passes the threshold,
#: so an export has no ties to break; with the second a few thousand pairs pass
CLASS_BIAS = {"infer": -5.5, "nms": -4.1}


def infer(bench: Bench) -> dict:
    """First image, latency of one image and images per second, prepared images to detections.

    The images have 800x1333 pixels. NMS has almost no candidates here; `nms` measures it.
    """
    options = bench.options
    starts = _sides(bench)
    first, sides = _first_images(starts, min(options.rounds, 3))
    alternate(sides, 1, 0, lambda child, _: child.ask(batch=1))
    one = alternate(
        sides, 3 * options.rounds, options.limit / 2, lambda child, _: child.ask(batch=1)
    )
    alternate(sides, 1, 0, lambda child, _: child.ask(batch=options.batch))
    many = alternate(
        sides, options.rounds, options.limit / 2, lambda child, _: child.ask(batch=options.batch)
    )
    found: dict = {"unit": f"images/s in batches of {options.batch}", "sides": {}}
    for name, rows in many.items():
        latency = [row["seconds"] for row in one[name]]
        found["sides"][name] = {
            **summary([options.batch / row["seconds"] for row in rows]),
            "first_image": statistics.median(first[name]),
            "latency_p50": float(np.percentile(latency, 50)),
            "latency_p99": float(np.percentile(latency, 99)),
            "latency_samples": len(latency),
            "cpu_seconds_per_image": statistics.median(
                row["cpu_seconds"] / options.batch for row in rows
            ),
            "detections_per_image": rows[-1]["detections"] / options.batch,
            "peak_mib": {"1": one[name][-1]["peak_mib"], str(options.batch): rows[-1]["peak_mib"]},
        }
    speed = {name: side["median"] for name, side in found["sides"].items()}
    latency = {name: side["latency_p50"] for name, side in found["sides"].items()}
    mine = [name for name in speed if name.startswith("ours")]
    found["speedup"] = {
        other: {
            name: {"images/s": speed[name] / speed[other], "p50": latency[other] / latency[name]}
            for name in mine
        }
        for other in speed if other not in mine
    }  # fmt: skip
    return compared(found, faster=lambda ours, other: ours / other)


def _sides(bench: Bench) -> dict[str, Callable[[], Child]]:
    """Write weights and exports; for each side that can run here, what starts its process."""
    options = bench.options
    root = bench.data(8, size=(1333, 800))
    overrides = bench.overrides(root)
    path = initial_weights(bench, overrides, class_bias=CLASS_BIAS["infer"])
    images = str(export_images(root, bench.folder / "batches.npz"))
    setup: dict[str, Any] = {"overrides": overrides, "weights": path, "images": images}
    sides: dict[str, tuple] = {"ours": (OURS, "plain", setup)}
    exports = ["paddle"]
    if find_spec("onnxruntime") and find_spec("paddle2onnx"):
        exports.append("onnx")
    else:
        print("ONNX skipped: pip install -r requirements/onnx.txt", file=sys.stderr)
    for kind in exports:
        more = {**setup, "export": str(bench.folder / kind)}
        _prepare(bench, OURS, "export", format=kind, target=more["export"], **setup)
        sides[f"ours_{kind}"] = (OURS, "plain", {**more, "precision": "fp32"})
        if kind == "paddle" and cpu_math.has_bfloat16() and options.device == "cpu":
            sides["ours_bf16"] = (OURS, "plain", {**more, "precision": "bf16"})
        if kind == "onnx" and options.device == "cpu":
            if find_spec("openvino"):
                sides["ours_openvino"] = (OPENVINO, "plain", more)
            else:
                print("OpenVINO skipped: pip install openvino", file=sys.stderr)
    # only with our CPU settings: as installed, a batch can take minutes
    sides["stock"] = (STOCK, "tuned", setup)
    if options.torch_python != sys.executable or find_spec("torchvision"):
        torch = {"batches": images, "batch": 1, "weights": str(bench.folder / "torch.pt")}
        python = options.torch_python
        _prepare(bench, TORCH, "weights", python, class_bias=CLASS_BIAS["infer"], **torch)
        sides["torchvision"] = (TORCH, "tuned", {"python": python, **torch})
    return {
        name: partial(bench.start, module, "infer", kind, **more)
        for name, (module, kind, more) in sides.items()
    }


def _prepare(bench: Bench, module: str, task: str, python: str = sys.executable, **setup) -> None:
    """Run a task that writes a file for the sides."""
    child = bench.start(module, task, "plain", python, **setup)
    child.receive()
    child.close()


def _first_images(
    starts: dict[str, Callable[[], Child]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Child]]:
    """Seconds from the start of a process to the detections of its first image, sides in turns.

    Returns:
        name -> seconds of each round, and name -> the process of the last round, which goes on.
    """
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    sides: dict[str, Child] = {}
    for _ in range(rounds):
        for name, start in starts.items():
            if name in sides:
                sides[name].close()
            sides[name] = child = start()
            child.receive()
            child.ask(batch=1)
            seconds[name].append(time.perf_counter() - child.started)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds, sides


def nms(bench: Bench) -> dict:
    """Seconds from the head's outputs of one 800x1333 image to detections.

    Shifting all class logits makes from none to almost all of the 1.8 million pairs of location and
    class pass the threshold.
    """
    root = bench.data(8, size=(1333, 800))
    overrides = bench.overrides(root)
    path = initial_weights(bench, overrides, class_bias=CLASS_BIAS["nms"])
    images_file = str(export_images(root, bench.folder / "batches.npz"))
    setup: dict[str, Any] = {"overrides": overrides, "weights": path, "images": images_file}
    sides = {
        "ours": bench.start(OURS, "nms", "plain", **setup),
        "stock": bench.start(STOCK, "nms", "plain", **setup),
        "stock_tuned": bench.start(STOCK, "nms", "tuned", **setup),
    }
    for child in sides.values():
        child.receive()
    shifts = {"none": -2.0, "few": 0.0, "some": 0.5, "many": 3.0}
    by_candidates, detections = {}, {}
    for label, shift in shifts.items():  # ignored: mypy infers no lambda with a default
        alternate(sides, 1, 0, lambda child, _, shift=shift: child.ask(shift=shift))  # type: ignore[misc]
        answers = alternate(
            sides, bench.options.rounds, bench.options.limit / len(shifts),
            lambda child, _, shift=shift: child.ask(shift=shift),  # type: ignore[misc]
        )  # fmt: skip
        by_candidates[label] = {
            name: summary([row["seconds"] for row in rows]) for name, rows in answers.items()
        }
        detections[label] = {name: rows[-1]["detections"] for name, rows in answers.items()}
    found: dict = {"unit": "s per image, head's outputs to detections", "sides": {}}
    for name in sides:
        found["sides"][name] = {
            **by_candidates["many"][name],
            "by_candidates": {label: row[name]["median"] for label, row in by_candidates.items()},
            "detections": {label: row[name] for label, row in detections.items()},
        }
    found["speedup"] = {
        other: {
            label: row[other]["median"] / row["ours"]["median"]
            for label, row in by_candidates.items()
        }
        for other in ("stock", "stock_tuned")
    }
    return compared(found, faster=lambda ours, other: other / ours)
