"""A trained model as a function from images to typed detections."""

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.config import Config, load_config
from fcos_recipe.config.load import data_paths
from fcos_recipe.console import log
from fcos_recipe.errors import UserError
from fcos_recipe.plugins import fault
from fcos_recipe.predict import backends, inputs
from fcos_recipe.predict.results import Detections

INPUTS = ("image", "im_shape", "scale_factor")


class Predictor:
    """A model with its weights, pre-processing and class names.

    Pre-processing is that of the config's TestReader. May be called from several threads: an
    engine that does not allow it takes one batch at a time. PaddleDetection's registry is one per
    process, so make Predictors one after the other.

    Args:
        weights: run directory, checkpoint, weights file, zoo file, URL, or an exported model: its
            folder or its .onnx file.
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
        nms_threshold: IoU above which the worse of two boxes of a class is left out.
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
        self.score_threshold, self._process = score_threshold, os.getpid()
        if facts := backends.export_facts(weights):
            self.config: Any = config  # Config; an export may go without
            said = config if isinstance(config, Config) else None
            self.device = compute.decide(device or compute.requested(said)).device
            self.backend = backends.open_export(weights, facts, self.device, precision)
            self.chain = _chain(facts)
            self.names, self.category_ids = facts["class_names"], facts["category_ids"]
            self.image_ids: dict[str, int] = {}
            self.nms_threshold = float(facts["limits"]["nms_threshold"])
            return
        if precision != "fp32":
            raise UserError(backends.NEEDS_EXPORT.format(precision, weights))
        self.config = config_of(weights, config)
        self.device = compute.decide(device or compute.requested(self.config)).device
        self.backend = backends.Eager(weights, self.config, self.device)
        self.nms_threshold = float(self.backend.model.fcos_head.nms.nms_threshold)
        self.chain = _chain(self.config.data)
        self.names, self.category_ids, self.image_ids = _names(weights, self.config.data)

    def __call__(
        self, images: Any, batch_size: int = 1, *, strict: bool = False, order: str = "rgb"
    ) -> list[Detections]:
        """Detections of each image, in their order; see `stream`."""
        return list(self.stream(images, batch_size, strict=strict, order=order))

    def stream(
        self, images: Any, batch_size: int = 1, *, strict: bool = False, order: str = "rgb"
    ) -> Iterator[Detections]:
        """Detections of each image as they are found. No more than a batch is read ahead.

        Args:
            images: one or any number of images, see `inputs.each`: files, folders, globs, videos,
                bytes, PIL images, arrays, streams, cameras, or something that yields these.
            batch_size: images that run together. They are padded to the largest, which GroupNorm
                sees: with more than 1 they change each other's scores.
            strict: raise the error of an unreadable image; False: its `Detections.error` says it.
            order: of the channels of arrays: rgb or bgr.

        Raises:
            UserError: a wrong argument, or (`strict`) an array of another kind.
            BadImage (data.images): (`strict`) an image that cannot be read or prepared.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size: {batch_size!r} is not a whole number of at least 1")
        if order not in ("rgb", "bgr"):
            raise UserError(f"order: {order!r} is unknown; choose rgb or bgr")
        return self._stream(inputs.each(images), batch_size, strict, order)

    def _stream(
        self, items: Iterator[tuple[str, Any]], batch_size: int, strict: bool, order: str
    ) -> Iterator[Detections]:
        while batch := list(itertools.islice(items, batch_size)):
            yield from self.named(batch, strict, order)

    def named(
        self, items: list[tuple[str, Any]], strict: bool = False, order: str = "rgb"
    ) -> list[Detections]:
        """Detections of one batch, as `inputs.each` yields its images."""
        from fcos_recipe.data.images import BadImage

        results, samples, places = [], [], []
        begin = time.perf_counter()
        for place, (name, item) in enumerate(items):
            nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
            result = Detections(*nothing, self.names, name, category_ids=self.category_ids)
            if isinstance(item, inputs.Frame):
                result = replace(result, frame=item.number, at=item.at)
            try:
                image = inputs.pixels(name, item, order)
                samples.append(self._sample(name, image))
                places.append(place)
                again = partial(inputs.pixels, name, item, order)
                result = replace(result, size=image.shape[:2], pixels=again)
            except (BadImage, UserError) as error:
                if strict:
                    raise
                result = replace(result, error=str(error))
            results.append(result)
        if not samples:
            return results
        prepared = time.perf_counter()
        found = backends.by_image(*self.run(self._collated(samples)))
        seconds = {
            "prepare": (prepared - begin) / len(samples),
            "run": (time.perf_counter() - prepared) / len(samples),
        }
        for place, rows in zip(places, found, strict=True):
            rows = rows[rows[:, 1] >= self.score_threshold]
            rows = rows[np.argsort(-rows[:, 1], kind="stable")]
            results[place] = replace(
                results[place], boxes=rows[:, 2:], scores=rows[:, 1],
                labels=rows[:, 0].astype(np.int64), seconds=seconds,
            )  # fmt: skip
        return results

    def warmup(self, height: int = 480, width: int = 640, batch_size: int = 1) -> float:
        """Predict on a black image, so that the next call is not the slow first; its seconds."""
        begin = time.perf_counter()
        self([np.zeros((height, width, 3), np.uint8)] * batch_size, batch_size, strict=True)
        return time.perf_counter() - begin

    def batch(self, images: Any) -> dict[str, np.ndarray]:
        """Images as `run` takes them; errors as of a strict call."""
        every = inputs.each(images)
        return self._collated([self._sample(n, inputs.pixels(n, item)) for n, item in every])

    def _sample(self, name: str, image: np.ndarray) -> dict[str, Any]:
        from fcos_recipe.data.transforms import transformed

        record = {"im_file": name, "image": image, "im_id": np.zeros(1, np.int64)}
        try:
            return transformed(self.chain, record, np.random.default_rng(0))
        except Exception as error:
            if text := fault(error):
                raise UserError(text) from error
            raise

    def _collated(self, samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        from fcos_recipe.data.reader import Pipeline, raise_fault

        batch = Pipeline((), self.chain, None, 0, False, 0).collate([(s, []) for s in samples])
        raise_fault(batch)
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
        if os.getpid() != self._process:
            raise UserError(
                "this Predictor was made before the process was forked, and its engine does not "
                "work in the copy; make one in each process"
            )
        return self.backend.run({key: batch[key] for key in INPUTS})


def _chain(data: dict) -> Any:
    """TestReader's transforms."""
    from fcos_recipe.data.reader import TestReader

    arguments = {"num_classes": data["num_classes"], **(data.get("TestReader") or {})}
    return TestReader(**arguments).chain


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
