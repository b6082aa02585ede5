"""A trained model as a function from images to typed detections."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcos_recipe.config import Config, load_config
from fcos_recipe.errors import UserError

log = logging.getLogger("fcos")


@dataclass(frozen=True)
class Detections:
    """What was found on one image, best first.

    Args:
        boxes: float32 [n, 4], x1, y1, x2, y2 in pixels of the original image.
        scores: float32 [n].
        labels: int64 [n], rows of `names`.
        names: of all classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.scores)


class Predictor:
    """A model with its weights, pre-processing and class names.

    Pre-processing is that of the config's TestReader. Not thread-safe, and PaddleDetection's
    registry is one per process: make a Predictor per process.

    Args:
        weights: checkpoint of this recipe, run directory's .pdparams, zoo file, or URL.
        config: YAML file or loaded config; default the config.yml of the weights' run directory.
        device: auto, cpu, gpu or iluvatar_gpu; default the config's. A process that is to predict
            on the CPU at full speed calls `runtime.cpu_math.ensure()` before importing Paddle.
        score_threshold: detections that score less are left out; the NMS in the config has a
            threshold of its own.

    Attributes:
        names: class names: those stored with the weights, else those of the annotation file that
            the config names, else "class 0", "class 1", ... with a warning.
        category_ids: the annotations' id of each class, else class index + 1.
        image_ids: file name -> id of the images in the annotation file that the config names.

    Raises:
        UserError: weights and config that do not fit, or no config.
    """

    def __init__(
        self,
        weights: str | os.PathLike,
        config: str | os.PathLike | Config | None = None,
        device: str | None = None,
        score_threshold: float = 0.0,
    ):
        from fcos_recipe.runtime import device as devices

        weights = str(weights)
        if not isinstance(config, Config):
            config = load_config(config or _run_config(weights))
        self.config = config
        self.score_threshold = score_threshold
        data = config.data
        self.device = devices.resolve(device or data["device"])
        devices.set_device(self.device)

        from fcos_recipe import compat
        from fcos_recipe.engine import weights as weights_file

        cfg = compat.workspace(config.stock_data())
        self.model = compat.create(cfg["architecture"])
        self.model.load_meanstd(cfg["TestReader"]["sample_transforms"])
        self.report = weights_file.load(self.model, weights, exact=True)
        self.model.eval()
        self._chain = compat.create("TestReader").chain
        self.names, self.category_ids, self.image_ids = _names(weights, data)

    def __call__(self, images: Sequence[str | os.PathLike]) -> list[Detections]:
        """Detections of each image.

        The images make one batch: padded to the largest, which GroupNorm sees. Images that shall
        not influence each other's scores go in one by one.

        Args:
            images: files.

        Raises:
            BadImage (data.reader): a file that cannot be decoded.
        """
        import paddle

        from fcos_recipe.data.reader import Pipeline

        if not len(images):
            return []
        rng = np.random.default_rng(0)
        records = [{"im_file": os.fspath(p), "im_id": np.zeros(1, np.int64)} for p in images]
        samples = [(self._chain.sample(record, rng), []) for record in records]
        batch = Pipeline(samples, self._chain, None, 0, False, 0).collate(samples)
        batch = {k: paddle.to_tensor(v) for k, v in batch.items() if isinstance(v, np.ndarray)}
        with paddle.no_grad():
            found = self.model(batch)
        ends = found["bbox_num"].numpy().cumsum()
        return [self._detections(rows) for rows in np.split(found["bbox"].numpy(), ends[:-1])]

    def _detections(self, rows: np.ndarray) -> Detections:
        rows = rows[rows[:, 1] >= self.score_threshold]
        rows = rows[np.argsort(-rows[:, 1], kind="stable")]
        return Detections(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int64), self.names)


def _run_config(weights: str) -> Path:
    """config.yml of the run directory that a weights file or checkpoint lies in."""
    if "://" not in weights:
        start = Path(weights).resolve()
        for folder in [start, *start.parents][:4]:  # RUN_DIR/checkpoints/0003/model.pdparams
            if (folder / "config.yml").is_file():
                return folder / "config.yml"
    raise UserError(f"{weights}: no config.yml of its run beside it; name the config (-c CONFIG)")


def _names(weights: str, data: dict) -> tuple[list[str], list[int], dict[str, int]]:
    """Class names, category ids and known image ids, see `Predictor`."""
    from fcos_recipe.data.index import open_index
    from fcos_recipe.engine.checkpoint import class_names

    classes = data["num_classes"]
    stored = class_names(weights)
    if stored is not None and len(stored) != classes:
        raise UserError(
            f"{weights}: stores {len(stored)} class names, the config's num_classes is {classes}"
        )
    for section in ("TestDataset", "EvalDataset"):
        dataset = data.get(section) or {}
        path = os.path.join(dataset.get("dataset_dir") or "", dataset.get("anno_path") or "")
        if not path.endswith(".json") or not os.path.isfile(path):
            continue
        index = open_index(path)
        if len(index.class_names) == classes and stored in (None, index.class_names):
            if stored is None:
                log.info("class names: from %s", path)
            ids = {index.file_name(row): int(i) for row, i in enumerate(index.image_id)}
            return index.class_names, index.category_id.tolist(), ids
    if stored is None:
        stored = [f"class {k}" for k in range(classes)]
        log.warning(
            "class names: unknown: none are stored with %s, and TestDataset.anno_path names no "
            "annotation file with %d classes; set it to have names", weights, classes,
        )  # fmt: skip
    return stored, list(range(1, classes + 1)), {}
