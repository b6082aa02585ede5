"""Read the operators that a run launches from Paddle's log, with the line that calls each."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.conftest import ROOT
from tests.operators.run import MARK

# "conv2d API kernel key: [CPU, NCHW, float32]"; "kernel name: momentum | kernel key: (CPU, ...)"
KEY = re.compile(
    r"^I\d+ \S+ +(\d+) \S+\] (?:Dynamic mode PrepareImpl - kernel name: )?(\w+) "
    r"(?:API |\| )kernel key: [\[(]\w+, [^,]+, (\w+)[\])]"
)
# The real backbone, neck and head, on pictures of 128x160 instead of 800x1333.
CONFIG = """\
_BASE_: ['{root}/configs/fcos/{name}.yml']
num_classes: 4
pretrain_weights: ''
worker_num: 0
log_iter: 1
epoch: 1
accumulate: 2
use_ema: true
bad_numbers: {{policy: skip}}
TrainDataset:
  dataset_dir: {shapes}
  image_dir: train
  anno_path: annotations/instances_train.json
EvalDataset:
  dataset_dir: {shapes}
  image_dir: val
  anno_path: annotations/instances_val.json
OptimizerBuilder: {{clip_grad_by_norm: 35.0}}
TrainReader:
  sample_transforms:
  - Decode: {{}}
  - Resize: {{target_size: [96, 128], keep_ratio: true, interp: 1}}
  - NormalizeImage: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], is_scale: true}}
  - RandomFlip: {{}}
  batch_size: 1
EvalReader:
  sample_transforms:
  - Decode: {{}}
  - Resize: {{target_size: [96, 128], keep_ratio: true, interp: 1}}
  - NormalizeImage: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], is_scale: true}}
  - Permute: {{}}
  batch_size: 2
"""
Launched = dict[tuple[str, str], set[str]]


def record(name: str, folder: Path, *overrides: str, env: dict | None = None) -> Launched:
    """Train, evaluate and refuse a step with a config, on few and small pictures.

    Args:
        name: of a file in configs/fcos.
        folder: for the data set.
        overrides: KEY=VALUE.
        env: the run's environment, for instance one with a stand-in card.

    Returns:
        (operator, dtype) -> the lines of the package that ask for it. For a gradient these are
        the lines of its forward operator.
    """
    from fcos_recipe.datasets.drawn_shapes import make_shapes

    make_shapes(folder, train=6, val=2, seed=3, size=(96, 128))
    config = folder / f"{name}.yml"
    config.write_text(CONFIG.format(root=ROOT, name=name, shapes=folder))
    logging = {"GLOG_v": "6", "GLOG_minloglevel": "0"}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("run.py")), str(config), *overrides],
        env={**(env or os.environ), "PYTHONPATH": str(ROOT), **logging},
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    found, tail = parse(process.stderr)
    said = process.communicate()[0]
    assert process.returncode == 0, said[-2000:] + tail
    return found


def parse(log) -> tuple[Launched, str]:
    """What a run's log says was launched, and what else it said last."""
    found: Launched = defaultdict(set)
    at: dict[str, str] = {}
    other: list[str] = []
    for line in log:
        if line.startswith(MARK):
            _, thread, where = line.split()
            at[thread] = where
        elif match := KEY.match(line):
            thread, operator, dtype = match.groups()
            found[operator.rstrip("_"), dtype].add(at.get(thread, "?"))
        elif not line.startswith(("I1", "I0")):
            other = [*other[-60:], line]
    lines: dict[str, set[str]] = defaultdict(set)
    for (operator, _), where in found.items():
        lines[operator] |= where
    for (operator, _), where in found.items():
        if operator.endswith("_grad") and (forward := lines.get(operator.removesuffix("_grad"))):
            where.clear()
            where |= forward
    return dict(found), "".join(other)
