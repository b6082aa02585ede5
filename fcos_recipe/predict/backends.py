"""What runs a model: a batch of the reader in, detections out. One class per engine."""

import functools
import os
import threading
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from fcos_recipe.checkpoint.zoo import MOST_BYTES
from fcos_recipe.errors import RunFailure, UserError
from fcos_recipe.files.download import digest
from fcos_recipe.files.reading import decode_json, open_regular, read_text
from fcos_recipe.system.device import card_index

METADATA = "fcos_export.json"


PRECISIONS = ("fp32", "bf16")
NEEDS_EXPORT = "--precision {}: {}: only exports have it; run tools/export_model.py first"


def counted(bbox: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An engine's output without the rows that belong to no image of the batch.

    The counts decide: Paddle's inference engine leaves its buffer as it was when nothing is found,
    with the detections of an earlier batch or, in the first one, in another shape.

    Args:
        bbox: float [M or more, 6]; any shape where nothing was found.
        counts: int [N], rows of each image; they sum to M.

    Returns:
        `bbox`, float32 [M, 6], and `counts`, int32 [N].

    Raises:
        RunFailure: there are fewer rows than the counts say.
    """
    counts = np.asarray(counts, np.int32).reshape(-1)
    total = int(counts.sum())
    rows = np.asarray(bbox, np.float32).reshape(-1, 6)[:total] if total else np.empty((0, 6), "f4")
    if len(rows) < total:
        raise RunFailure(f"the engine gave {len(rows)} detections and counts of {total}")
    return rows, counts


def by_image(bbox: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """The rows of each image, N arrays [n, 6], of what `Predictor.run` returns."""
    return np.split(bbox, np.cumsum(counts))[:-1]


class Eager:
    """The model as it is trained, layer by layer, in Paddle. Calls from several threads queue.

    Args:
        weights: checkpoint, .pdparams, zoo file or URL.
        config: resolved config.
        device: cpu, gpu or iluvatar_gpu.

    Raises:
        UserError: weights and config that do not fit.
    """

    name = "eager"

    def __init__(self, weights: str, config, device: str):
        from fcos_recipe.checkpoint import weights as weights_file
        from fcos_recipe.model.build import build_model, registry
        from fcos_recipe.system import device as devices

        devices.set_device(device)
        self.model = build_model(registry(config))
        self.report = weights_file.load(self.model, weights, exact=True)
        self.model.eval()
        self._lock = threading.Lock()

    def run(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `Predictor.run`."""
        import paddle

        with self._lock, paddle.no_grad():
            found = self.model({k: paddle.to_tensor(v) for k, v in batch.items()})
            return counted(found["bbox"].numpy(), found["bbox_num"].numpy())


class PaddleInference:
    """An export of `--format paddle` by Paddle's inference engine, with oneDNN on the CPU.

    Calls from several threads queue.

    Args:
        folder: of the export.
        facts: its metadata.
        device: cpu, gpu or iluvatar_gpu; cards are not verified on hardware.
        precision: fp32; or bf16, which rounds weights and activations to 8 bits of mantissa: it is
            faster and its scores are others.

    Raises:
        UserError: bf16 on a card, or on a processor that has it not.
    """

    name = "paddle"

    def __init__(self, folder: Path, facts: dict, device: str, precision: str = "fp32"):
        from fcos_recipe.compat import import_paddle
        from fcos_recipe.system import cpu_math

        inference = import_paddle().inference

        if precision == "bf16" and not (device == "cpu" and cpu_math.has_bfloat16()):
            raise UserError(
                f"--precision bf16: {device} cannot: it needs a processor with AVX512_BF16 or "
                "AMX_BF16; leave it out"
            )
        program = next(p for p in (folder / "model.json", folder / "model.pdmodel") if p.is_file())
        settings = inference.Config(str(program), str(folder / "model.pdiparams"))
        if device == "cpu":
            settings.disable_gpu()
            settings.set_cpu_math_library_num_threads(cpu_math.cores())
            settings.enable_mkldnn()
            settings.set_mkldnn_cache_capacity(0)  # shapes change from image to image
            if precision == "bf16":
                settings.enable_mkldnn_bfloat16()
                # where the time is; Paddle 2.6 also rounds the arithmetic of boxes, and fails there
                settings.set_bfloat16_op({"conv2d", "fused_conv2d"})
        elif device == "gpu":
            settings.enable_use_gpu(256, card_index(device))
        else:
            settings.enable_custom_device(device, card_index(device))
        settings.disable_glog_info()
        self._facts, self._predictor = facts, inference.create_predictor(settings)
        self._lock = threading.Lock()

    def run(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `Predictor.run`."""
        with self._lock:
            for name in self._predictor.get_input_names():
                self._predictor.get_input_handle(name).copy_from_cpu(batch[name])
            self._predictor.run()
            names = self._predictor.get_output_names()
            outputs = [_fetched(self._predictor.get_output_handle(name)) for name in names]
        end = counted if self._facts["nms"] else functools.partial(_finish, batch, self._facts)
        return end(*outputs)


def _fetched(handle) -> np.ndarray:
    """An output's values. Paddle 3.3 cannot copy an output without any."""
    shape = handle.shape()
    return handle.copy_to_cpu() if all(shape) else np.zeros(shape, np.float32)


class OnnxRuntime:
    """An export of `--format onnx` by ONNX Runtime. Safe to call from several threads.

    Args:
        file: the model.
        facts: its metadata.

    Raises:
        UserError: ONNX Runtime is missing.
    """

    name = "onnx"

    def __init__(self, file: Path, facts: dict):
        self._session = _session(file)
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._facts = facts

    def run(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """See `Predictor.run`."""
        outputs = self._session.run(None, {name: batch[name] for name in self._inputs})
        if not self._facts["nms"]:
            return _finish(batch, self._facts, *outputs)
        rows, counts = outputs  # [N, keep, 6], of which the first `counts` are detections
        kept = np.arange(rows.shape[1]) < counts[:, None]
        return rows[kept], counts.astype(np.int32)


def _session(file: Path, optimise: bool = True) -> Any:
    """ONNX Runtime's session of a model.

    Raises:
        UserError: ONNX Runtime is missing, or the file is damaged.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{file}: needs ONNX Runtime: pip install onnxruntime") from None
    from fcos_recipe.system import cpu_math

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_math.cores()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    usable = onnxruntime.get_available_providers()
    wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in usable]
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=wanted)
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime has classes of its own
        raise _damaged(file, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    why = " ".join(str(error).split())[-200:]
    return UserError(f"{path}: damaged, export the model again ({why})")


class _Metadata(msgspec.Struct):
    """The entries of an export's metadata that prediction needs."""

    version: Literal[1]
    format: Literal["paddle", "onnx"]
    class_names: list[str]
    category_ids: list[int]
    num_classes: int
    limits: dict[str, float]
    clip: bool
    nms: bool
    TestReader: dict[str, Any]
    config: str
    files: dict[str, str] = {}  # name -> SHA-256


def export_facts(weights: str) -> dict | None:
    """Metadata of an export; None if `weights` is something else.

    An .onnx file has its own. For files of earlier releases, which have only a part of it, the
    metadata of the folder completes it.

    Raises:
        UserError: an export whose metadata is missing or damaged.
    """
    path = Path(weights)
    folder, model = path, path / "model.onnx"
    if path.suffix == ".onnx":
        folder, model = path.parent, path
        os.close(open_regular(model, MOST_BYTES))
    described = os.path.lexists(folder / METADATA)
    if not (described or model.is_file()):
        return None
    named = folder / METADATA if described else model
    try:
        facts = decode_json(read_text(named)) if described else {}
        if model == path or not described:
            facts |= _stored_in(model, model.stat().st_mtime_ns)
        msgspec.convert(facts, _Metadata)  # checked; other entries are kept
        return facts
    except ValueError:
        raise UserError(
            f"{named}: its metadata is missing, damaged or of another version; export the model "
            "again"
        ) from None


@functools.lru_cache(4)
def _stored_in(file: Path, _changed: int) -> dict:
    """The metadata inside an .onnx file.

    Raises:
        UserError: ONNX Runtime is missing.
        ValueError: not an ONNX file.
    """
    session = _session(file, optimise=False)
    try:
        return {
            k: decode_json(v, Any) for k, v in session.get_modelmeta().custom_metadata_map.items()
        }
    except ValueError:
        return {}  # a model of somebody else


def open_export(weights: str, facts: dict, device: str, precision: str = "fp32"):
    """The engine of an export, see `export_facts`.

    Raises:
        UserError: the engine or the processor has no such precision, or a file is missing or
            damaged.
    """
    path, onnx = Path(weights), facts["format"] == "onnx"
    if onnx and precision != "fp32":
        raise UserError(f"--precision {precision}: {weights} is ONNX; export it as paddle")
    if onnx:
        path = path if path.suffix == ".onnx" else path / "model.onnx"
        needed = [path]
    else:
        new = path / "model.json"
        needed = [new if os.path.lexists(new) else path / "model.pdmodel", path / "model.pdiparams"]
    for file in needed:
        os.close(open_regular(file, MOST_BYTES))  # the engines open it by its name
        # exports of earlier releases have no hashes
        wanted = facts.get("files", {}).get(file.name)
        if wanted and digest(file, "sha256") != wanted:
            raise UserError(f"{file}: not the file that {METADATA} belongs to, or damaged (its "
                            "SHA-256 is another); export the model again")  # fmt: skip
    try:
        return OnnxRuntime(path, facts) if onnx else PaddleInference(path, facts, device, precision)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each engine has its own classes
        raise _damaged(path, error) from None


def _finish(batch: dict, facts: dict, boxes: np.ndarray, scores: np.ndarray):
    """NMS and clipping for an export that ends before them, by the operators of training."""
    import paddle
    from ppdet.modeling.layers import MultiClassNMS

    from fcos_recipe.model.postprocess import nms_and_clip

    found = nms_and_clip(
        paddle.to_tensor(boxes), paddle.to_tensor(scores), paddle.to_tensor(batch["im_shape"]),
        paddle.to_tensor(batch["scale_factor"]), MultiClassNMS(**facts["limits"]), facts["clip"],
    )  # fmt: skip
    return counted(*(value.numpy() for value in found))
