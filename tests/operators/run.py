"""python run.py CONFIG KEY=VALUE ...: train, evaluate and skip a step while Paddle logs kernels.

With GLOG_v=6 Paddle logs each kernel that it selects to stderr. Between these lines this program
writes which line of the package is running, which tells the caller of each kernel.
"""

import os
import sys
import tempfile
import threading
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "fcos_recipe"
MARK = "@line"


def follow(frame, event, _argument):
    """A trace function: write the line of the package that runs, or is returned to."""
    if not frame.f_code.co_filename.startswith(str(PACKAGE)):
        return None
    if event == "return":
        frame = frame.f_back
        while frame and not frame.f_code.co_filename.startswith(str(PACKAGE)):
            frame = frame.f_back
    if frame:
        where = f"{Path(frame.f_code.co_filename).relative_to(PACKAGE.parent)}:{frame.f_lineno}"
        os.write(2, f"{MARK} {threading.get_native_id()} {where}\n".encode())
    return follow


def main(path: str, *overrides: str) -> None:
    from fcos_recipe.config import load_config
    from fcos_recipe.system import compute

    config = load_config(path, list(overrides))
    device = compute.start(compute.requested(config)).device
    import paddle

    from fcos_recipe.evaluation.evaluate import Options, evaluate_weights
    from fcos_recipe.runs.directory import RunDir
    from fcos_recipe.training.bad_numbers import Guard
    from fcos_recipe.training.trainer import Trainer

    finite = Guard.finite  # the first step is refused, as if its gradients were not finite

    def finite_but_once(guard, window):
        good = finite(guard, window)
        return good if guard.trainer.progress.steps_done else paddle.zeros_like(good)

    Guard.finite = finite_but_once
    with tempfile.TemporaryDirectory() as folder:
        with RunDir(Path(folder) / "run", writer=True, resume=False) as run:
            sys.settrace(follow)
            trainer = Trainer(config, device)
            trainer.train(run, validate=True)
            weights = str(run.path / "model_final.pdparams")
            evaluate_weights(config, weights, device, Options(sizes=(64,), flip=True))
            sys.settrace(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
