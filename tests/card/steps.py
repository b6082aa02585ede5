"""python steps.py CONFIG [KEY=VALUE ...]: print the card requests of each step as JSON."""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

from fcos_recipe.config import load_config
from fcos_recipe.system import compute


class Steps:
    """Replaces the watchdog, which is notified of every step."""

    def __init__(self, trainer):
        from fcos_recipe.lab.benchmark.measured_step import TRACE, requests

        self.path, self.requests = TRACE, requests
        self.begin, self.batches = os.path.getsize(TRACE), []
        trainer.model.register_forward_pre_hook(self.see)

    def see(self, _layer, inputs) -> None:
        self.batches.append([t.size * t.element_size() for t in inputs[0].values()])

    def beat(self, _step: int = 0) -> None:
        print(json.dumps({"asked": self.requests(self.path, self.begin), "batches": self.batches}))
        self.begin, self.batches = os.path.getsize(self.path), []

    def phase(self, _name: str):
        return contextlib.nullcontext()


def main(path: str, *overrides: str) -> None:
    config = load_config(path, list(overrides))
    device = compute.start(compute.requested(config)).device
    from fcos_recipe.runs.directory import RunDir
    from fcos_recipe.training.trainer import Trainer

    trainer = Trainer(config, device)
    trainer.watchdog = Steps(trainer)
    with tempfile.TemporaryDirectory() as folder:
        with RunDir(Path(folder) / "run", writer=True, resume=False) as run:
            trainer.train(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
