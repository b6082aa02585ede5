"""The comparisons: each starts its sides, measures them in turns, and returns the figures."""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fcos_recipe.lab.benchmark import drawn_data, evaluator
from fcos_recipe.lab.benchmark.side_process import Child
from fcos_recipe.system import cpu_math

OURS, STOCK, TORCH = (
    f"fcos_recipe.lab.benchmark.{name}" for name in ("ours", "stock", "torch_step")
)
# Stock's operator with the arguments of PaddleDetection's FCOS config.
TARGET_ARGUMENTS = {
    "object_sizes_boundary": [64, 128, 256, 512],
    "center_sampling_radius": 1.5,
    "downsample_ratios": [8, 16, 32, 64, 128],
    "norm_reg_targets": True,
}


@dataclass
class Options:
    """The options of the command line.

    Args:
        config: our config.
        stock_config: PaddleDetection's config.
        overrides: (dotted key, value), applied to both sides.
        data: root of a data set in COCO's layout; None: draw one.
        rounds: measurements of each side.
        limit: seconds after which no new round starts.
        device: cpu or gpu.
        profile: profile one more step of each side.
        to_static: compile our model, see `fcos train --to_static`.
        torch_python: interpreter that has torchvision.
        images: number of images that `eval` draws.
        batch: batch size for the throughput of `infer`.
    """

    config: str
    stock_config: str
    overrides: list[tuple[str, object]] = field(default_factory=list)
    data: Path | None = None
    rounds: int = 8
    limit: float = 480.0
    device: str = "cpu"
    profile: bool = False
    to_static: bool = False
    torch_python: str = sys.executable
    images: int = evaluator.IMAGES
    batch: int = 8


def environment(kind: str) -> dict[str, str | None]:
    """Environment variables of a side: "plain" as installed, "tuned" with our CPU settings."""
    plain: dict[str, str | None] = dict.fromkeys(cpu_math.NAMES)
    return plain if kind == "plain" else {**plain, **cpu_math.settings(cpu_math.cores())}


def summary(samples: list[float]) -> dict:
    """Median and range."""
    return {
        "median": statistics.median(samples),
        "low": min(samples),
        "high": max(samples),
        "samples": samples,
    }


def alternate(
    sides: dict[str, Child], rounds: int, limit: float, ask: Callable[[Child, int], dict]
) -> dict[str, list[dict]]:
    """Measure the sides in turns.

    Args:
        sides: name -> process.
        rounds: measurements of each side.
        limit: seconds; a round that would probably exceed it is not started.
        ask: called as ask(process, round); returns the answer of the side.
    """
    answers: dict[str, list[dict]] = {name: [] for name in sides}
    start = time.perf_counter()
    for number in range(rounds):
        spent = time.perf_counter() - start
        if number > 1 and spent * (number + 1) / number > limit:
            break
        for name, child in sides.items():
            answers[name].append(ask(child, number))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return answers


class Bench:
    """Temporary files and processes of one run of the benchmark."""

    def __init__(self, options: Options):
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="fcos-benchmark-"))
        self.children: list[Child] = []

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_) -> None:
        for child in self.children:
            child.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, module: str, task: str, kind: str, python: str = sys.executable, **more):
        """Start a side; it answers when it is ready."""
        ours = module == OURS
        setup = {
            "task": task,
            "device": self.options.device,
            "config": self.options.config if ours else self.options.stock_config,
            "to_static": self.options.to_static,
            **more,
        }
        child = Child(module, setup, environment(kind), python)
        self.children.append(child)
        return child

    def data(self, count: int = 96, **drawn) -> Path:
        """The user's data set, or one drawn into the temporary folder."""
        if self.options.data:
            return self.options.data
        root = self.folder / "data"
        drawn_data.make_images(root, count, **drawn)
        return root

    def overrides(self, root: Path) -> list[tuple[str, object]]:
        """Overrides for the configs of both sides."""
        return [
            ("TrainDataset.dataset_dir", str(root)),
            ("TrainDataset.image_dir", "train2017"),
            ("TrainDataset.anno_path", "annotations/instances_train2017.json"),
            ("save_dir", str(self.folder / "output")),
            ("epoch", 10_000),  # the benchmark stops it earlier
            ("snapshot_epoch", 10_000),
            *self.options.overrides,
        ]


def train(bench: Bench) -> dict:
    """Images per second of whole training steps, including data waits."""
    options = bench.options
    overrides = bench.overrides(bench.data())
    path = initial_weights(bench, overrides)
    sides = {
        "ours": bench.start(OURS, "train", "plain", overrides=overrides, weights=path),
        "stock": bench.start(STOCK, "train", "plain", overrides=overrides, weights=path),
        "stock_tuned": bench.start(STOCK, "train", "tuned", overrides=overrides, weights=path),
    }
    return _steps(bench, sides, options)


def train_torchvision(bench: Bench) -> dict:
    """Images per second of whole training steps; torchvision has its images in memory."""
    options = bench.options
    root = bench.data(16, size=(1333, 800))
    overrides = bench.overrides(root)
    path = initial_weights(bench, overrides)
    torch = {
        "batches": str(export_images(root, bench.folder / "batches.npz")),
        "batch": _loaded(options, overrides)["TrainReader"]["batch_size"],
    }
    sides = {
        "ours": bench.start(OURS, "train", "plain", overrides=overrides, weights=path),
        "torchvision": bench.start(TORCH, "train", "tuned", options.torch_python, **torch),
    }
    return _steps(bench, sides, options)


def _loaded(options: Options, overrides: list) -> dict:
    from fcos_recipe.config import load_config

    texts = [f"{key}={json.dumps(value)}" for key, value in overrides]
    return load_config(options.config, texts, strict=False).data


def initial_weights(bench: Bench, overrides: list, **more) -> str:
    """Initial weights of both sides, see `ours.weights`; the path without extension."""
    path = bench.folder / "start"
    child = bench.start(
        OURS, "weights", "plain", overrides=overrides, path=str(path) + ".pdparams", **more
    )
    child.receive()
    child.close()
    return str(path)


def export_images(root: Path, path: Path) -> Path:
    """Save decoded images of one size and their boxes, for a side without our reader."""
    import cv2

    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    arrays: dict[str, np.ndarray] = {}
    pictures = []
    for row, image in enumerate(content["images"]):
        pictures.append(cv2.imread(str(root / "train2017" / image["file_name"]))[:, :, ::-1])
        boxes = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        corners = np.array([a["bbox"] for a in boxes], np.float32)
        corners[:, 2:] += corners[:, :2]
        arrays[f"boxes{row}"] = corners
        arrays[f"labels{row}"] = np.array([a["category_id"] - 1 for a in boxes], np.int64)
    np.savez(path, images=np.stack(pictures), **arrays)
    return path


def _steps(bench: Bench, sides: dict[str, Child], options: Options) -> dict:
    """Time steps in turns; the first two of each side fill caches and are not counted."""
    start = time.perf_counter()
    for child in sides.values():
        child.receive()
    alternate(sides, 1, 0, lambda child, _: child.ask(do="step"))
    left = options.limit - (time.perf_counter() - start)
    answers = alternate(sides, options.rounds, left, lambda child, _: child.ask(do="step"))
    found: dict = {"unit": "images/s", "sides": {}}
    for name, steps in answers.items():
        side = summary([step["images"] / step["seconds"] for step in steps])
        side["seconds_per_step"] = statistics.median(step["seconds"] for step in steps)
        # CPU time of the training process, which depends less on other load
        side["cpu_seconds_per_image"] = statistics.median(
            step["cpu_seconds"] / step["images"] for step in steps
        )
        if "padded" in steps[0]:
            padded, real = (sum(step[key] for step in steps) for key in ("padded", "real"))
            side["padded_per_real"] = padded / real
        found["sides"][name] = side
    if options.profile:
        for name, child in sides.items():
            if child.module != TORCH:
                found["sides"][name]["profile"] = child.ask(do="profile")["profile"]
    return compared(found, faster=lambda ours, other: ours / other)


def compared(found: dict, faster: Callable[[float, float], float]) -> dict:
    """Add the documented figures: ours, stock, ratio, and one ratio per other side."""
    medians = {name: side["median"] for name, side in found["sides"].items()}
    others = [name for name in medians if name != "ours"]
    found.update(medians)
    found["ratios"] = {name: faster(medians["ours"], medians[name]) for name in others}
    found["ratio"] = found["ratios"][next(n for n in others if not n.startswith("ours"))]
    return found


def data(bench: Bench) -> dict:
    """Images per second prepared by one core, cost per box, bytes and padding."""
    options = bench.options
    root = bench.data(48)
    found: dict = {"unit": "images/s per core", "sides": {}}
    variants = {"mean": root}
    for boxes in (1, 7, 30, 100):
        variants[str(boxes)] = bench.folder / f"boxes{boxes}"
        drawn_data.with_boxes(root, variants[str(boxes)], boxes)
    rates: dict = {}
    for boxes, place in variants.items():
        overrides = bench.overrides(place)
        sides = {
            name: bench.start(module, "data", "plain", overrides=overrides, core=0)
            for name, module in (("ours", OURS), ("stock", STOCK))
        }
        for child in sides.values():
            child.receive()
        alternate(sides, 2, 0, lambda child, i: child.ask(do="prepare", batch=i))
        rounds = options.rounds
        limit = options.limit / len(variants)
        answers = alternate(sides, rounds, limit, lambda child, i: child.ask(do="prepare", batch=i))
        for name, rows in answers.items():
            side = rates.setdefault(name, {})
            side[boxes] = summary([row["images"] / row["seconds"] for row in rows])
            side[boxes]["bytes_per_image"] = sum(row["bytes"] for row in rows) / sum(
                row["images"] for row in rows
            )
        for child in sides.values():
            child.close()
    for name, rate in rates.items():
        found["sides"][name] = {
            **rate["7"],
            "by_boxes": {key: value["median"] for key, value in rate.items() if key != "mean"},
            "own_boxes": rate["mean"]["median"],
            "cost_100_over_1": rate["1"]["median"] / rate["100"]["median"],
            "padded_per_real": {},
        }
    for batch in (2, 8):
        overrides = [*bench.overrides(root), ("TrainReader.batch_size", batch)]
        for name, module in (("ours", OURS), ("stock", STOCK)):
            with bench.start(module, "data", "plain", overrides=overrides) as child:
                child.receive()
                ratio = child.ask(do="padding", epochs=5)["ratio"]
            found["sides"][name]["padded_per_real"][str(batch)] = ratio
    ours, stock = (found["sides"][name]["bytes_per_image"] for name in ("ours", "stock"))
    found["bytes_ratio"] = ours / stock
    return compared(found, faster=lambda ours, other: ours / other)


def targets(bench: Bench) -> dict:
    """Seconds of target assignment for one image of 896x1152 pixels."""
    size = (896, 1152)
    rng = np.random.default_rng(0)
    sides = {
        name: bench.start(module, "targets", "plain", size=size, arguments=TARGET_ARGUMENTS, core=0)
        for name, module in (("ours", OURS), ("stock", STOCK))
    }
    for child in sides.values():
        child.receive()
    by_boxes: dict = {}
    for count in (1, 7, 30, 90):
        boxes = drawn_data.draw_boxes(rng, size[1], size[0], count)
        boxes[:, 2:] += boxes[:, :2]
        request = {
            "boxes": boxes.tolist(), "classes": rng.integers(0, 80, count).tolist(), "repeat": 5
        }  # fmt: skip
        answers = alternate(  # ignored: mypy infers no lambda with a default
            sides, bench.options.rounds, bench.options.limit / 4,
            lambda child, _, request=request: child.ask(**request),  # type: ignore[misc]
        )  # fmt: skip
        by_boxes[str(count)] = {
            name: summary([s for row in rows for s in row["samples"]])
            for name, rows in answers.items()
        }
    found: dict = {"unit": "s per image", "sides": {}}
    for name in sides:
        found["sides"][name] = {
            **by_boxes["90"][name],
            "by_boxes": {count: row[name]["median"] for count, row in by_boxes.items()},
        }
    found["ratio_by_boxes"] = {
        count: row["stock"]["median"] / row["ours"]["median"] for count, row in by_boxes.items()
    }
    return compared(found, faster=lambda ours, other: other / ours)


def startup(bench: Bench) -> dict:
    """Seconds from creating the data set to the first batch, on a data set of train2017's size.

    Cold: there is no index yet. Warm: with the index of an earlier run. In both cases the files are
    in the page cache.
    """
    options = bench.options
    root = options.data or drawn_data.train2017()
    overrides = bench.overrides(root)
    runs: dict[str, list[dict]] = {"ours": [], "ours_warm": [], "stock": []}
    begin = time.perf_counter()
    for number in range(min(options.rounds, 3)):
        if number and (time.perf_counter() - begin) * (number + 1) / number > options.limit:
            break
        for name, rows in runs.items():
            if name == "ours":
                shutil.rmtree(root / "annotations" / ".fcos_index", ignore_errors=True)
            module = STOCK if name == "stock" else OURS
            with bench.start(module, "startup", "plain", overrides=overrides) as child:
                answer = child.receive()
                answer["total"] = time.perf_counter() - child.started
            rows.append(answer)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found: dict = {"unit": "s to the first batch, imports excluded", "sides": {}}
    for name, rows in runs.items():
        found["sides"][name] = {
            **summary([row["data"] for row in rows]),
            "process_to_first_batch": statistics.median(row["total"] for row in rows),
            "imports": statistics.median(row["total"] - row["data"] for row in rows),
        }
    for name, module, processes in (("ours", OURS, 8), ("stock", STOCK, 1)):
        children = [
            bench.start(module, "memory", "plain", overrides=overrides) for _ in range(processes)
        ]
        for child in children:
            child.receive()
        used = [child.ask()["mib"] for child in children]
        for child in children:
            child.close()
        # stock's ranks share no memory, so eight need eight times as much
        found["sides"][name]["annotation_mib_8_ranks"] = sum(used) * 8 / processes
    return compared(found, faster=lambda ours, other: other / ours)


def eval(bench: Bench) -> dict:
    """Seconds from two files, of detections and of annotations, to the twelve metrics.

    Raises:
        RuntimeError: the metrics differ by more than 1e-12, which makes the times meaningless.
    """
    options = bench.options
    files = evaluator.draw(bench.folder, images=options.images)
    runs: dict[str, list[dict]] = {"ours": [], "pycocotools": []}
    begin = time.perf_counter()
    for number in range(min(options.rounds, 3)):
        if number and (time.perf_counter() - begin) * (number + 1) / number > options.limit:
            break
        for name, rows in runs.items():
            rows.append(evaluator.run_side(name, *files))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    figures = [np.array(row["stats"]) for rows in runs.values() for row in rows]
    worst = max(float(np.abs(figures[0] - other).max()) for other in figures)
    if worst > 1e-12:
        raise RuntimeError(f"our metrics and those of pycocotools differ by {worst:g}")
    found: dict = {"unit": "s from two files to twelve metrics", "sides": {}}
    for name, rows in runs.items():
        found["sides"][name] = {
            **summary([row["total"] for row in rows]),
            **{key: statistics.median(row[key] for row in rows) for key in ("read", "match")},
        }
    match = {name: side["match"] for name, side in found["sides"].items()}
    found |= {"stats": figures[0].tolist(), "largest_difference": worst}
    found["match_ratio"] = match["pycocotools"] / match["ours"]
    return compared(found, faster=lambda ours, other: other / ours)
