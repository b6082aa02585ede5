"""`fcos benchmark`: parse the arguments, print a table, write JSON."""

import argparse
import json
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import yaml

from fcos_recipe.commands import options
from fcos_recipe.errors import UserError
from fcos_recipe.lab.benchmark import comparisons, detection
from fcos_recipe.places import CONFIGS, ROOT
from fcos_recipe.system import cpu_math
from fcos_recipe.system.device import DEVICES

_EXAMPLE = """\
tasks:
  train    images/s of whole training steps: ours, stock as installed, stock with our CPU settings
           (7 GB of memory per side at 800x1333, batch 2)
  data     images/s that one core prepares, cost per box, bytes per image, padding
  startup  seconds to the first batch of a data set of train2017's size; memory of 8 ranks
           (draws the annotations once, 400 MB, into ~/.cache/fcos_recipe/benchmark)
  targets  seconds of target assignment at 1, 7, 30 and 90 boxes
  infer    seconds from the start of a process to its first image, latency of one image, images/s,
           prepared images to detections: eager, Paddle Inference, ONNX Runtime, OpenVINO if it is
           installed, bfloat16 where the processor has it; stock; torchvision if it is installed
           or named by --torch-python (3 GB of memory per side)
  nms      seconds from the head's outputs to detections, few and many candidates
  eval     seconds from files of 500,000 detections and 36,781 annotations to COCO's metrics
examples:
  python tools/benchmark.py targets --against stock
  python tools/benchmark.py train --against stock --data /data/coco_mini --profile --json t.json
  python tools/benchmark.py infer --batch-size 4 --torch-python /opt/torch/bin/python
  python tools/benchmark.py train --against torchvision --torch-python /opt/torch/bin/python
"""
# task -> what it can be compared with, the default first
TASKS = {
    "train": ("stock", "torchvision"),
    "data": ("stock",),
    "startup": ("stock",),
    "targets": ("stock",),
    "infer": ("stock",),
    "nms": ("stock",),
    "eval": ("pycocotools",),
}


def main(argv: list[str]) -> int:
    """Run one comparison; see `fcos benchmark --help`."""
    text = "Measure this recipe and stock paddledet side by side."
    ask = options.parser("benchmark", text, _EXAMPLE, {})
    add = ask.add_argument
    add("task", choices=list(TASKS))
    others = sorted({name for names in TASKS.values() for name in names})
    add("--against", choices=others, help="compare with (default: stock; eval: pycocotools)")
    options.add_json(ask, "also write all measurements to this file")
    add("--data", metavar="DIR", type=Path,
        help="data set with train2017/ and annotations/ (default: drawn like COCO)")  # fmt: skip
    add("--profile", action="store_true",
        help="train: profile one more step with Paddle's profiler")  # fmt: skip
    fast = str(CONFIGS / "fcos/fcos_r50_fpn_1x_coco_fast.yml")
    options.add_config(ask, "our config (default: the fast config)", default=fast)
    add(
        "--stock-config",
        metavar="FILE",
        help="PaddleDetection's config (default: its FCOS-R50 1x)",
        default=str(ROOT / "tests/fixtures/paddledet_tree/configs/fcos/fcos_r50_fpn_1x_coco.yml"),
    )
    options.add_overrides(ask, "config values for both sides, e.g. TrainReader.batch_size=1")
    add("--rounds", type=int, default=8, help="measurements of each side (default: %(default)s)")
    add("--batch-size", type=int, default=8, metavar="N",
        help="infer: images per batch (default: %(default)s)")  # fmt: skip
    add("--limit", type=float, default=420, metavar="SECONDS",
        help="start no new round after this time (default: %(default)s)")  # fmt: skip
    add("--device", choices=DEVICES[1:], default="cpu")
    add("--to-static", action="store_true", help="train: compile our model")
    add("--torch-python", metavar="PYTHON", help="Python interpreter that has torchvision")
    args = ask.parse_args(argv)
    args.against = args.against or TASKS[args.task][0]
    if args.against not in TASKS[args.task]:
        allowed = ", ".join(TASKS[args.task])
        ask.error(f"{args.task} is measured against {allowed}, not {args.against}")
    if min(args.rounds, args.batch_size) < 1:
        ask.error("--rounds and --batch-size must be at least 1")
    annotations = "annotations/instances_train2017.json"
    if args.data and not (args.data / annotations).is_file():
        raise UserError(f"--data {args.data}: {annotations} not found in it")
    if args.against == "torchvision" and (reason := _no_torchvision(args.torch_python)):
        print(f"skipped: {reason}")
        return 0
    asked = comparisons.Options(
        config=args.config,
        stock_config=args.stock_config,
        overrides=[_override(text) for text in args.opt],
        data=args.data and args.data.resolve(),
        rounds=args.rounds,
        limit=args.limit,
        device=args.device,
        profile=args.profile,
        to_static=args.to_static,
        batch=args.batch_size,
        **({"torch_python": args.torch_python} if args.torch_python else {}),
    )
    task = (
        comparisons.train_torchvision
        if args.against == "torchvision"
        else getattr(detection if args.task in ("infer", "nms") else comparisons, args.task)
    )
    with comparisons.Bench(asked) as bench:
        found = task(bench)
    result = {"task": args.task, **found, "settings": _settings(args), "machine": machine()}
    report(result)
    if args.json:
        options.write(args.json, json.dumps(result, indent=1) + "\n")
    return 0


def _override(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"-o {text}: expected KEY=VALUE")
    return key, yaml.safe_load(value)


def _no_torchvision(python: str | None) -> str:
    """Why the comparison with torchvision can't run; "" if it can."""
    if python:
        if not os.access(python, os.X_OK):
            raise UserError(f"--torch-python {python}: not an interpreter")
        return ""
    if find_spec("torchvision") is None:
        return "torchvision is not installed (pip install torchvision, or --torch-python PYTHON)"
    return ""


def machine() -> dict:
    """Processor, cores, memory and versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""

    def entry(name: str) -> str:
        match = re.search(rf"^{name}\s*:\s*(.*)$", cpuinfo, re.M)
        return match[1] if match else ""

    flags = set(entry("flags").split())
    packages = {}
    for name in ("paddlepaddle", "paddlepaddle-gpu", "paddledet", "numpy",
                 "opencv-python-headless", "hotcoco", "pycocotools", "torch",
                 "torchvision", "onnxruntime", "openvino"):  # fmt: skip
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": entry("model name") or platform.processor(),
        "vendor": entry("vendor_id"),
        "flags": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "fma"}),
        "cores": cpu_math.cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "packages": packages,
    }


def _settings(args: argparse.Namespace) -> dict[str, str]:
    """Descriptions of the settings of each side."""
    tuned = " ".join(f"{k}={v}" for k, v in cpu_math.settings(cpu_math.cores()).items())
    if args.device != "cpu":
        tuned = "none"
    common = f"; -o {' '.join(args.opt)}" if args.opt else ""
    stock = (
        f"{Path(args.stock_config).name}, paddledet's own Trainer and readers{common}; "
        "np.reshape(newshape=) restored if NumPy lacks it"
    )
    if args.task == "eval":
        return {"both": "one process each, imports not timed, files in the page cache"}
    settings = {"ours": f"{Path(args.config).name}{common}; CPU settings: {tuned}"}
    if args.task == "infer":
        settings |= {
            "stock": f"{stock}; environment: {tuned}",
            "ours_paddle": "export of --format paddle by Paddle Inference with oneDNN",
            "ours_onnx": "export of --format onnx by ONNX Runtime",
            "ours_openvino": "the ONNX export by OpenVINO in float32",
            "ours_bf16": "ours_paddle with --precision bf16",
            "torchvision": "fcos_resnet50_fpn, its own resize and normalisation inside",
        }
    if args.against == "torchvision":
        settings["torchvision"] = (
            "fcos_resnet50_fpn, FrozenBatchNorm2d, stem and layer1 frozen, images in memory; "
            f"environment: {tuned}"
        )
        return settings
    as_installed = f"{stock}; environment as installed (Paddle sets OMP_NUM_THREADS=1)"
    settings.setdefault("stock", as_installed)
    if args.task in ("train", "nms"):
        settings["stock_tuned"] = f"{stock}; environment: {tuned}"
    return settings


def report(result: dict) -> None:
    """Print the measurements."""
    machine = result["machine"]
    print(f"{result['task']}: {result['unit']}")
    print(f"machine: {machine['cpu']} ({machine['vendor']}; {' '.join(machine['flags'])}), "
          f"{machine['cores']} cores; {machine['packages']}")  # fmt: skip
    print(f"{'':<14}{'median':>10}{'low':>10}{'high':>10}   ours is faster by")
    for name, side in result["sides"].items():
        ratio = result["ratios"].get(name)
        print(f"{name:<14}{side['median']:>10.4g}{side['low']:>10.4g}{side['high']:>10.4g}"
              + (f"   {ratio:.2f}x" if ratio and not name.startswith("ours") else ""))  # fmt: skip
    if result["task"] == "infer":
        _print_latency(result["sides"])
    for name, side in result["sides"].items():
        for key, value in side.items():
            if key in ("median", "low", "high", "samples", "profile"):
                continue
            print(f"  {name}: {key.replace('_', ' ')}: {_shown(value)}")
    for key in ("ratio_by_boxes", "bytes_ratio", "match_ratio", "largest_difference", "speedup"):
        if key in result:
            print(f"  {key.replace('_', ' ')}: {_shown(result[key])}")
    for name, side in result["sides"].items():
        if "profile" in side:
            _print_profile(name, side["profile"])
    for name, text in result["settings"].items():
        print(f"settings of {name}: {text}")


def _print_latency(sides: dict[str, dict]) -> None:
    """The table of `infer`: each figure, and in brackets stock's time divided by it."""
    columns = {"first_image": "first image, s", "latency_p50": "p50, s", "latency_p99": "p99, s"}
    print(f"{'':<14}" + "".join(f"{title:>18}" for title in columns.values()))
    for name, side in sides.items():
        cells = [f"{side[key]:.3f} ({sides['stock'][key] / side[key]:.2f}x)" for key in columns]
        print(f"{name:<14}" + "".join(f"{cell:>18}" for cell in cells))


def _shown(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_profile(name: str, profile: dict) -> None:
    reads = _shown(profile["host_reads"]) or "none"
    print(f"profile of one step of {name}: {profile['operators']} operators, host reads: {reads}")
    if profile.get("device") is None:
        print("  copies and synchronisations are only counted on the stand-in card of tests/card")
    else:
        for what, row in sorted(profile["device"].items()):
            print(f"  {row['calls']:>5} x {what}, {row['bytes']:,} bytes")
    if profile.get("peak_memory_mib") is not None:
        print(f"  peak memory of the card: {profile['peak_memory_mib']} MiB")
    for row in profile["top"]:
        print(f"  {row['seconds']:>8.3f} s {row['calls']:>5} x {row['name']}")
