"""Peak memory of training steps on the stand-in card.

example: python tests/card/memory.py configs/fcos/fcos_r50_fpn_1x_coco.yml 2
prints   [2, 896, 1408, 3] 4271509504

The second argument is the batch size. Images of 600x1000 with 4 classes are drawn; 4 of them take
minutes and 15 GB with ResNet-50.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.card.plugin import environment  # noqa: E402


class Peak:
    """Replaces the watchdog, which is notified of every step; ends after two steps."""

    steps = 0

    def beat(self, _step: int = 0) -> None:
        import paddle

        self.steps += 1
        if self.steps == 2:
            print(self.shape, paddle.device.max_memory_allocated("iluvatar_gpu:0"), flush=True)
            os._exit(0)

    def phase(self, _name: str):
        return contextlib.nullcontext()


def main(path: str, batch: str) -> None:
    from fcos_recipe.config import load_config
    from fcos_recipe.datasets.drawn_shapes import make_shapes
    from fcos_recipe.system import compute

    with tempfile.TemporaryDirectory() as folder:
        make_shapes(Path(folder), train=2 * int(batch), val=1, seed=3, size=(600, 1000))
        values = {
            "num_classes": 4, "worker_num": 0, "pretrain_weights": "null", "EvalDataset": "null",
            "device": "iluvatar_gpu", "TrainReader.batch_size": batch,
            "TrainDataset.dataset_dir": folder, "TrainDataset.image_dir": "train",
            "TrainDataset.anno_path": "annotations/instances_train.json",
        }  # fmt: skip
        config = load_config(path, [f"{key}={value}" for key, value in values.items()])
        device = compute.start(compute.requested(config)).device
        from fcos_recipe.runs.directory import RunDir
        from fcos_recipe.training.trainer import Trainer

        trainer, peak = Trainer(config, device), Peak()
        trainer.watchdog = peak  # type: ignore[assignment]

        def see(_layer, inputs) -> None:
            peak.shape = inputs[0]["image"].shape

        trainer.model.register_forward_pre_hook(see)
        trainer.train(RunDir(Path(folder) / "run", writer=True, resume=False))


if __name__ == "__main__":
    if "FAKE_CARDS" not in os.environ:  # Paddle looks for cards as it is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], environment())
    main(*sys.argv[1:])
