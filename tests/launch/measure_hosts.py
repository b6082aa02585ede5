"""Measure the time of a training step on two hosts at several network speeds.

`python -m tests.launch.measure_hosts`: the network of the demo, one CPU rank per host, both hosts
on this machine. Needs root, iproute2 with tc, and network namespaces.
"""

import json
import statistics
import tempfile
from pathlib import Path

from fcos_recipe.datasets.drawn_shapes import make_shapes
from tests.conftest import ROOT
from tests.helpers.hosts import Hosts, train

BATCH = 4


def seconds(folder: Path, megabits: float | None) -> float:
    """Median time of a step, the first two left out."""
    parts = ("TrainDataset", "EvalDataset", "TestDataset")
    words = ["-o", "epoch=2", "snapshot_epoch=9", "log_iter=1", "worker_num=0",
             *(f"{part}.dataset_dir={folder / 'data'}" for part in parts)]  # fmt: skip
    run = folder / str(megabits)
    run.mkdir()
    hosts = Hosts()
    try:
        if megabits:
            hosts.slow_down(megabits)
        config = ROOT / "configs/fcos/fcos_r18_fpn_demo.yml"
        runs = [train(hosts, node, config, run, *words) for node in (0, 1)]
        said = [one.communicate(timeout=600)[0] for one in runs]
        assert [one.returncode for one in runs] == [0, 0], said
    finally:
        hosts.remove()
    lines = map(json.loads, (run / "run" / "metrics.jsonl").read_text().splitlines())
    return statistics.median([BATCH / x["images_per_second_per_card"] for x in lines][2:])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shapes(folder / "data", train=56, val=8, seed=0)
        for megabits in (None, 400, 200, 100):
            print(f"{megabits or 'no limit':>8} Mbit/s: {seconds(folder, megabits):.3f} s per step")


if __name__ == "__main__":
    main()
