"""A trained model as a function from images to typed detections."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.config import Config, load_config
from fcos_recipe.config.load import data_paths
from fcos_recipe.console import log
from fcos_recipe.errors import UserError
from fcos_recipe.predict import backends

INPUTS = ("image", "im_shape", "scale_factor")


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

    Pre-processing is that of the config's TestReader. May be called from several threads: an
    engine that does not allow it takes one batch at a time. PaddleDetection's registry is one per
    process, so make Predictors one after the other.

    Args:
        weights: checkpoint of this recipe, run directory's .pdparams, zoo file, URL, or an exported
            model: its folder or its .onnx file.
        config: YAML file or loaded config; default the config.yml of the weights' run directory.
            An export needs none: it has its pre-processing with it.
        device: auto, cpu, gpu or iluvatar_gpu; default the config's. A process that is to predict
            on the CPU at full speed calls `system.cpu_math.ensure()` before importing Paddle.
        score_threshold: detections that score less are left out; the NMS in the config has a
            threshold of its own.
        precision: fp32, or bf16 for an export of `--format paddle`, see `PaddleInference`.

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
        precision: str = "fp32",
    ):
        from fcos_recipe.system import compute

        weights = str(weights)
        self.score_threshold = score_threshold
        if facts := backends.export_facts(weights):
            self.config: Any = config  # Config; an export may go without
            said = config if isinstance(config, Config) else None
            self.device = compute.decide(device or compute.requested(said)).device
            self.backend = backends.open_export(weights, facts, self.device, precision)
            self.chain = _chain(facts)
            self.names, self.category_ids = facts["class_names"], facts["category_ids"]
            self.image_ids: dict[str, int] = {}
            return
        if precision != "fp32":
            raise UserError(backends.NEEDS_EXPORT.format(precision, weights))
        self.config = config_of(weights, config)
        self.device = compute.decide(device or compute.requested(self.config)).device
        self.backend = backends.Eager(weights, self.config, self.device)
        self.chain = _chain(self.config.data)
        self.names, self.category_ids, self.image_ids = _names(weights, self.config.data)

    def __call__(
        self, images: Sequence[str | os.PathLike | np.ndarray], batch_size: int = 1
    ) -> list[Detections]:
        """Detections of each image, in their order.

        Args:
            images: files, or uint8 [H, W, 3] arrays in RGB.
            batch_size: images that run together. They are padded to the largest, which GroupNorm
                sees: with more than 1 they change each other's scores a little.

        Raises:
            BadImage (data.images): a file that cannot be decoded.
            UserError: an array of another kind.
        """
        found = []
        for begin in range(0, len(images), batch_size):
            found += backends.by_image(*self.run(self.batch(images[begin : begin + batch_size])))
        return [self._detections(rows) for rows in found]

    def batch(self, images: Sequence[str | os.PathLike | np.ndarray]) -> dict[str, np.ndarray]:
        """Images as `run` takes them; errors as of a call."""
        from fcos_recipe.data.reader import Pipeline
        from fcos_recipe.data.transforms import transformed

        rng = np.random.default_rng(0)
        samples: list[tuple[dict[str, Any] | None, list[str]]] = [
            (transformed(self.chain, _record(image), rng), []) for image in images
        ]
        batch = Pipeline(samples, self.chain, None, 0, False, 0).collate(samples)
        batch.pop("bad")
        return batch

    def run(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Detections of a batch as EvalReader and TestReader make it.

        Args:
            batch: `image` uint8 [N, H, W, 3], zero outside each image; `im_shape` float32 [N, 2],
                height and width of the resized image inside; `scale_factor` float32 [N, 2],
                resized over original, y then x. Other entries are ignored.

        Returns:
            float32 [M, 6]: class, score, x1, y1, x2, y2 in pixels of the original image, image
            by image; int32 [N]: rows of each image.
        """
        return self.backend.run({key: batch[key] for key in INPUTS})

    def _detections(self, rows: np.ndarray) -> Detections:
        rows = rows[rows[:, 1] >= self.score_threshold]
        rows = rows[np.argsort(-rows[:, 1], kind="stable")]
        return Detections(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int64), self.names)


def _chain(data: dict) -> Any:
    """TestReader's transforms."""
    from fcos_recipe.data.reader import TestReader

    arguments = {"num_classes": data["num_classes"], **(data.get("TestReader") or {})}
    return TestReader(**arguments).chain


def _record(image: str | os.PathLike | np.ndarray) -> dict:
    """An image as the reader's transforms take it."""
    identity = np.zeros(1, np.int64)
    if not isinstance(image, np.ndarray):
        return {"im_file": os.fspath(image), "im_id": identity}
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        kind = f"{image.dtype} {list(image.shape)}"
        raise UserError(f"an image array is {kind}; give uint8 [H, W, 3], RGB")
    return {"image": image, "im_id": identity}


def config_of(weights: str, config: str | os.PathLike | Config | None) -> Config | None:
    """The config that a Predictor of these weights takes; an export needs none.

    Args:
        weights: see `Predictor`.
        config: YAML file or loaded config; default the config.yml of the weights' run directory.

    Raises:
        UserError: there is none, or it is wrong.
    """
    if isinstance(config, Config) or (config is None and backends.export_facts(weights)):
        return config
    return load_config(config or run_config(weights))


def run_config(weights: str) -> Path:
    """config.yml of the run directory that a weights file or checkpoint lies in.

    Raises:
        UserError: the weights do not exist, or lie in no run directory.
    """
    from fcos_recipe.checkpoint.weights import resolve

    if "://" not in weights:
        resolve(weights)  # a missing file is named as missing
        start = Path(os.path.realpath(weights))
        for folder in [start, *start.parents][:4]:  # RUN_DIR/checkpoints/0003/model.pdparams
            if (folder / "config.yml").is_file():
                return folder / "config.yml"
    raise UserError(f"{weights}: no config.yml of its run beside it; name the config (-c CONFIG)")


def _names(weights: str, data: dict) -> tuple[list[str], list[int], dict[str, int]]:
    """Class names, category ids and known image ids, see `Predictor`."""
    from fcos_recipe.checkpoint.storage import class_names
    from fcos_recipe.data.index import open_index

    classes = data["num_classes"]
    stored = class_names(weights)
    if stored is not None and len(stored) != classes:
        raise UserError(
            f"{weights}: stores {len(stored)} class names, the config's num_classes is {classes}"
        )
    for section in ("TestDataset", "EvalDataset"):
        files = data_paths(data.get(section) or {}, "anno_path")
        if not files or not all(p.endswith(".json") and os.path.isfile(p) for p in files):
            continue
        path, *more = files
        index = open_index(path)
        if len(index.class_names) == classes and stored in (None, index.class_names):
            if stored is None:
                log.info("class names: from %s", path)
            ids = {
                name: int(i)
                for one in [index, *map(open_index, more)]
                for name, i in zip(one.file_names(), one.image_id)
            }
            return index.class_names, index.category_id.tolist(), ids
    if stored is None:
        stored = [f"class {k}" for k in range(classes)]
        log.warning(
            "class names: unknown: none are stored with %s, and TestDataset.anno_path names no "
            "annotation file with %d classes; set it to have names", weights, classes,
        )  # fmt: skip
    return stored, list(range(1, classes + 1)), {}
