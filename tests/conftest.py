"""Fixtures for all tests."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest_plugins = ["tests.helpers.made_runs"]

_DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
for _number, _default in _DEFAULTS.items():
    if signal.getsignal(_number) == signal.SIG_IGN:  # below `nohup`, or with `&`
        signal.signal(_number, _default)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache directory, so that no test reads or fills the user's."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_log():
    """Remove log handlers that a run in this process left on a stream that pytest closes."""
    yield
    log = logging.getLogger("fcos")
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.NOTSET)
    log.propagate = True


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and reference figures outside the checkout; skips if they are absent."""
    path = Path(os.environ.get("FCOS_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"shared data not found at {path} (set FCOS_SHARED)")
    return path


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A small generated COCO-format data set: 24 training and 8 validation images of 96x128."""
    from fcos_recipe.datasets.drawn_shapes import make_shapes

    path = tmp_path_factory.mktemp("shapes")
    make_shapes(path, train=24, val=8, seed=3, size=(96, 128))
    return path


@pytest.fixture(scope="session")
def tiny(shapes) -> Path:
    """A config that trains on `shapes` in seconds: the demo's, with smaller images."""
    path = shapes / "tiny.yml"
    path.write_text(f"""\
_BASE_: ['{ROOT}/configs/fcos/fcos_r18_fpn_demo.yml']
device: cpu
worker_num: 0
log_iter: 1
epoch: 2
eval_interval: 1
snapshot_epoch: 1
use_ema: false
TrainDataset: {{dataset_dir: {shapes}}}
EvalDataset: {{dataset_dir: {shapes}}}
TestDataset: {{dataset_dir: {shapes}}}
LearningRate:
  base_lr: 0.005
  base_batch: 4
  schedulers:
  - !PiecewiseDecay {{gamma: 0.1, milestones: [1]}}
  - !LinearWarmup {{start_factor: 0.1, steps: 2}}
FPN: {{out_channel: 32}}
FCOSHead: {{fcos_feat: {{feat_in: 32, feat_out: 32, num_convs: 1}}}}
TrainReader:
  sample_transforms:
  - Decode: {{}}
  - Resize: {{target_size: [64, 96], keep_ratio: true, interp: 1}}
  - NormalizeImage: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], is_scale: true}}
  - RandomFlip: {{}}
  batch_size: 4
EvalReader:
  sample_transforms:
  - Decode: {{}}
  - Resize: {{target_size: [64, 96], keep_ratio: true, interp: 1}}
  - NormalizeImage: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], is_scale: true}}
  - Permute: {{}}
  batch_size: 2
""")
    return path


def run_tool(name: str, *argv, cwd=None, env=None, timeout=560, launch: int = 0):
    """Run tools/NAME.py in a separate process; with `launch` > 0 as that many ranks."""
    command = [sys.executable]
    if launch:
        command += ["-m", "paddle.distributed.launch", "--nproc_per_node", str(launch)]
        command += ["--log_dir", str(Path(cwd) / "launch_log")]
    command += [str(ROOT / "tools" / f"{name}.py"), *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
