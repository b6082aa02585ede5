"""What runs a model: a batch of the reader in, detections out. One class per engine."""

import threading

import numpy as np


class Eager:
    """The model as it is trained, layer by layer, in Paddle. Calls from several threads queue.

    Args:
        weights: checkpoint, .pdparams, zoo file or URL.
        config: resolved config.
        device: an answer of `runtime.device.resolve`.

    Raises:
        UserError: weights and config that do not fit.
    """

    name = "eager"

    def __init__(self, weights: str, config, device: str):
        from fcos_recipe import compat
        from fcos_recipe.engine import weights as weights_file
        from fcos_recipe.runtime import device as devices

        devices.set_device(device)
        cfg = compat.workspace(config.stock_data())
        self.model = compat.create(cfg["architecture"])
        self.model.load_meanstd(cfg["TestReader"]["sample_transforms"])
        self.report = weights_file.load(self.model, weights, exact=True)
        self.model.eval()
        self._lock = threading.Lock()

    def run(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `Predictor.run`."""
        import paddle

        with self._lock, paddle.no_grad():
            found = self.model({k: paddle.to_tensor(v) for k, v in batch.items()})
            return found["bbox"].numpy(), found["bbox_num"].numpy()
