"""Exports trained weights to a model that runs without this recipe's classes."""

import json
from pathlib import Path

import numpy as np

from fcos_recipe import __version__
from fcos_recipe.config.load import data_paths
from fcos_recipe.errors import RunFailure
from fcos_recipe.files.atomic import draft_folder, replace_file, replace_folder
from fcos_recipe.predict.backends import METADATA


def export(predictor, target: Path, kind: str, nms: bool = True):
    """Export a predictor's model into a folder, if it proves equal.

    Args:
        predictor: a `Predictor` of trained weights.
        target: the folder; replaced only by an export that passed.
        kind: paddle or onnx.
        nms: whether NMS is inside.

    Returns:
        the gate's `Agreement`.

    Raises:
        RunFailure: the export differs; it is kept beside the target as NAME.rejected.
        UserError: the ONNX converter is missing or made for another Paddle.
    """
    from fcos_recipe.predict import parity
    from fcos_recipe.predict.onnx_graph import convert
    from fcos_recipe.predict.predictor import Predictor

    target.parent.mkdir(parents=True, exist_ok=True)
    facts = _facts(predictor, kind, nms)
    with draft_folder(target) as part:
        _save_program(predictor.backend.model, part, inside=nms and kind == "paddle")
        if kind == "onnx":
            convert(part, facts)
        _write_facts(part, facts)
        batches = _batches(predictor)
        verdict = parity.compare(
            predictor.run, Predictor(part, device=predictor.device).run, batches, facts["limits"]
        )
        _write_facts(part, {**facts, "check": verdict.as_json()})
        if not verdict.passed:
            rejected = target.with_name(f"{target.name}.rejected")
            replace_folder(part, rejected)
            worst = verdict.failures[0] if verdict.failures else "the trained model finds nothing"
            raise RunFailure(
                f"{target}: not written: on {verdict.images} images {len(verdict.failures)} "
                f"detections differ; {worst} (kept as {rejected})"
            )
        return verdict


def _facts(predictor, kind: str, nms: bool) -> dict:
    import paddle

    head = predictor.backend.model.fcos_head
    norms = [x for x in head.sublayers() if isinstance(x, paddle.nn.GroupNorm)]
    names = ("score_threshold", "nms_top_k", "keep_top_k", "nms_threshold")
    data = predictor.config.data
    return {
        "version": 1,
        "format": kind,
        "nms": nms,
        "config": predictor.config.name,
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


def _save_program(model, folder: Path, inside: bool) -> None:
    """The model as a Paddle program, up to detections or up to the candidates of NMS."""
    import paddle

    from fcos_recipe import compat

    class Graph(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.model, self.inside = model, inside  # 2.6 does not see variables around the class

        def forward(self, image, im_shape, scale_factor):
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
    with compat.doubling_without_interpolate():
        paddle.jit.save(static, str(folder / "model"))


def _batches(predictor, images: int = 8) -> list[dict[str, np.ndarray]]:
    """Single images of different shapes, batches, and blank images among them, for the check.

    Real images of the config's evaluation or test set where they exist, cut to different shapes;
    else noise with rectangles, in which a trained model finds something as well. The blank image,
    of the first of a few colours in which the model finds nothing, is alone at the start and after
    other images, and is the first, a middle and the last one of a batch.
    """
    from fcos_recipe.data.images import BadImage, read_image

    found = []
    for file in _files(predictor.config.data)[: 4 * images]:
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
    return [predictor.batch(group) for group in groups]


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
