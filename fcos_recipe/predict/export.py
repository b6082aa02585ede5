"""Exports trained weights to a model that runs without this recipe's classes."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from fcos_recipe import __version__
from fcos_recipe.config.load import data_paths
from fcos_recipe.console import log
from fcos_recipe.errors import RunFailure, UserError
from fcos_recipe.files.atomic import draft_folder, replace_file, replace_folder, set_aside
from fcos_recipe.files.download import digest
from fcos_recipe.predict.backends import METADATA, export_facts
from fcos_recipe.predict.onnx_graph import OPSET, convert


def export(
    predictor,
    target: Path,
    kind: str,
    nms: bool = True,
    opset: int = OPSET,
    calibration: list[Path] | None = None,
    fp16: bool = False,
):
    """Export a predictor's model into a folder, if it proves equal.

    Args:
        predictor: a `Predictor` of trained weights.
        target: the folder. Only an export that passed takes this name: it replaces an earlier
            export of the same model, and one of another model is renamed to TARGET.1, TARGET.2, ...
        kind: paddle or onnx.
        nms: whether NMS is inside.
        opset: version of ONNX's operators.
        calibration: images for int8 convolutions, see `int8.quantise`; for onnx.
        fp16: see `fp16.halve`; for onnx.

    Returns:
        the gate's `Agreement`.

    Raises:
        RunFailure: the export differs; it is kept beside the target as NAME.rejected.
        UserError: the ONNX converter is missing or made for another Paddle, or TestReader has a
            transform of the user's, or a calibration image cannot be read.
    """
    from fcos_recipe.predict import int8, parity
    from fcos_recipe.predict.fp16 import halve
    from fcos_recipe.predict.predictor import Predictor

    if users := getattr(predictor.chain, "users", ()):
        raise UserError(
            f"TestReader: {type(users[0]).__name__} is a transform of yours (plugins), which an "
            "export cannot contain; remove it from TestReader"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = _facts(predictor, kind, nms)
    if fp16:
        facts["precision"] = "fp16"
    if calibration:
        facts |= {"precision": "int8", "calibration_images": len(calibration)}
    stride = predictor.chain.pad_to_stride or 1
    with draft_folder(target) as part:
        _save_program(predictor.backend.model, part, nms and kind == "paddle", stride)
        if kind == "onnx":
            convert(part, facts, opset)
        if calibration:
            int8.quantise(part / "model.onnx", predictor, calibration)
        if fp16:
            halve(part / "model.onnx")
        facts["files"] = {path.name: digest(path, "sha256") for path in part.iterdir()}
        _write_facts(part, facts)
        batches = _batches(predictor, stride, calibration or [])
        model, engine = (
            lambda batch: predictor.run(_padded(batch, stride)),
            Predictor(part, device=predictor.device).run,
        )
        if calibration or fp16:
            verdict = parity.compare_nearly(model, engine, batches)
        else:
            verdict = parity.compare(model, engine, batches, facts["limits"])
        _write_facts(part, {**facts, "check": verdict.as_json()})
        if not verdict.passed:
            rejected = target.with_name(f"{target.name}.rejected")
            replace_folder(part, rejected)
            worst = verdict.failures[0] if verdict.failures else "the trained model finds nothing"
            raise RunFailure(
                f"{target}: not written: on {verdict.images} images {len(verdict.failures)} "
                f"detections differ; {worst} (kept as {rejected})"
            )
        if os.path.lexists(target) and not _same_model(target, facts):
            log.info("%s: of another model, renamed to %s", target, set_aside(target))
        return verdict


def _same_model(folder: Path, facts: dict) -> bool:
    """Whether an export differs in nothing but the versions that made it."""
    try:
        earlier = export_facts(str(folder)) or {}
    except UserError:
        return False
    changing = ("check", "files", "made_by")
    return all(earlier.get(key) == value for key, value in facts.items() if key not in changing)


def _facts(predictor, kind: str, nms: bool) -> dict:
    import paddle

    head = predictor.backend.model.fcos_head
    norms = [x for x in head.sublayers() if isinstance(x, paddle.nn.GroupNorm)]
    names = ("score_threshold", "nms_top_k", "keep_top_k", "nms_threshold")
    data = predictor.config.data
    weights = hashlib.sha256()
    for name, tensor in sorted(predictor.backend.model.state_dict().items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    return {
        "version": 1,
        "format": kind,
        "nms": nms,
        "config": predictor.config.name,
        "weights_sha256": weights.hexdigest(),
        "class_names": list(predictor.names),
        "category_ids": [int(i) for i in predictor.category_ids],
        "num_classes": data["num_classes"],
        "limits": {name: getattr(head.nms, name) for name in names},
        "clip": bool(head.clip),
        "group_norm_epsilon": sorted({x._epsilon for x in norms}),
        "TestReader": data["TestReader"],
        "made_by": {"fcos_recipe": __version__, "paddle": paddle.__version__},
    }


def _write_facts(folder: Path, facts: dict) -> None:
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    replace_file(folder / METADATA, text + "\n")


def _save_program(model, folder: Path, inside: bool, stride: int = 1) -> None:
    """The model as a Paddle program, up to detections or up to the candidates of NMS.

    The program takes images of any size: it pads them to multiples of `stride`, as the reader does.
    """
    import paddle

    from fcos_recipe import compat

    class Graph(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            # 2.6 does not see variables around the class
            self.model, self.inside, self.stride = model, inside, stride
            # Paddle 2 has neither shape nor gather of uint8
            self.whole = "int32" if paddle.__version__.startswith("2.") else "uint8"

        def forward(self, image, im_shape, scale_factor):
            image = image.astype(self.whole)
            for axis in (1, 2):
                size = paddle.shape(image)[axis].astype("int64")
                end = (size + self.stride - 1) // self.stride * self.stride
                index = paddle.arange(end, dtype="int64")
                # the last row or column again: the model zeroes all outside of im_shape
                image = paddle.gather(image, paddle.minimum(index, size - 1), axis=axis)
            image = image.astype("uint8")
            batch = {"image": image, "im_shape": im_shape, "scale_factor": scale_factor}
            if self.inside:
                found = self.model(batch)
                return found["bbox"], found["bbox_num"]
            boxes, scores, _ = self.model.candidates(batch)
            return boxes, scores

    graph = Graph()
    graph.eval()
    spec = paddle.static.InputSpec
    inputs = [
        spec([None, None, None, 3], "uint8", "image"),
        spec([None, 2], "float32", "im_shape"),
        spec([None, 2], "float32", "scale_factor"),
    ]
    static = paddle.jit.to_static(graph, input_spec=inputs, full_graph=True)
    with compat.doubling_without_interpolate(), compat.quietly(native=True):
        paddle.jit.save(static, str(folder / "model"))
    (folder / "model.pdiparams.info").unlink(missing_ok=True)  # of Paddle 2, and read by no engine


def _padded(batch: dict[str, np.ndarray], stride: int) -> dict[str, np.ndarray]:
    """The batch with zeros below and right of its images, up to multiples of `stride`."""
    more = [(0, -side % stride) for side in batch["image"].shape[1:3]]
    return {**batch, "image": np.pad(batch["image"], [(0, 0), *more, (0, 0)])}


def _batches(
    predictor, stride: int, calibration: list[Path], images: int = 8
) -> list[dict[str, np.ndarray]]:
    """Single images of different shapes, batches, and blank images among them, for the check.

    The last one is an image that ends without padding at sides that are no multiples of `stride`.

    Real images of the config's evaluation or test set where they exist, else calibration images,
    cut to different shapes; else noise with rectangles, in which a trained model finds something
    as well. The blank image, of the first of a few colours in which the model finds nothing, is
    alone at the start and after other images, and is the first, a middle and the last one of a
    batch.
    """
    from fcos_recipe.data.images import BadImage, read_image

    found = []
    for file in (_files(predictor.config.data) or calibration)[: 4 * images]:
        try:
            found.append(read_image(str(file)))
        except BadImage:
            continue
        if len(found) == images:
            break
    rng = np.random.default_rng(0)
    while len(found) < images:
        picture = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((32, 32, 1)))
        found.append((picture + rng.integers(-20, 20, picture.shape)).clip(0, 255).astype(np.uint8))
    cut = [
        np.ascontiguousarray(x[: x.shape[0] * (16 - k) // 16, : x.shape[1] * (9 + k) // 16])
        for k, x in enumerate(found)
    ]
    blanks = [np.full_like(cut[0], colour) for colour in (0, 255, (124, 116, 104), (200, 40, 90))]
    blank = next((x for x in blanks if not len(predictor([x])[0])), blanks[0])
    groups = [[blank], *([x] for x in cut), cut[:2], [blank], [blank, cut[0], blank, cut[1], blank]]
    batches = [predictor.batch(group) for group in groups]
    odd = predictor.batch(cut[:1])
    height, width = (int(side) - (side % stride == 0) for side in odd["im_shape"][0])
    odd["image"] = odd["image"][:, :height, :width]
    odd["im_shape"] = np.array([[height, width]], np.float32)
    return [*batches, odd]


def _files(data: dict) -> list[Path]:
    from fcos_recipe.data.index import open_index

    for section in ("EvalDataset", "TestDataset", "TrainDataset"):
        dataset = data.get(section) or {}
        folders, annotations = (data_paths(dataset, key) for key in ("image_dir", "anno_path"))
        if not folders or not annotations or not Path(annotations[0]).is_file():
            continue
        files = [Path(folders[0], name) for name in open_index(annotations[0]).file_names()]
        present = [file for file in files if file.is_file()]
        if present:
            return present[:: max(1, len(present) // 32)]
    return []
