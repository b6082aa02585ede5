"""ONNX models with int8 convolutions: ONNX Runtime's static quantisation."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from fcos_recipe.compat import quietly
from fcos_recipe.errors import UserError
from fcos_recipe.predict.inputs import find_inputs, is_video
from fcos_recipe.predict.onnx_graph import fold_constants, tool

MOST = 100  #: calibration images that are used; more are thinned out evenly


def quantiser():
    """The module onnxruntime.quantization.

    Raises:
        UserError: it, or what it imports, is missing.
    """
    return tool("--int8", "onnxruntime.quantization", "onnxruntime ml_dtypes")


def calibration_files(images: str) -> list[Path]:
    """At most `MOST` images of a folder, a glob or a list (.txt), in sorted order.

    Raises:
        UserError: there is none.
    """
    found = find_inputs([images])
    files = [path for path in found if isinstance(path, Path) and not is_video(path)]
    if not files:
        raise UserError(f"--int8 {images}: no image found, from which value ranges can be measured")
    return files[:: -(-len(files) // MOST)]


def quantise(file: Path, predictor, images: list[Path]) -> None:
    """Give a model int8 weights and activations in its convolutions, which have nearly all of the
    arithmetic; the file is replaced.

    Weights are scaled per channel, activations per tensor by the smallest and largest value that
    they have on the calibration images. All other operators stay in float32.

    Args:
        file: ONNX model of `onnx_graph.convert`.
        predictor: prepares the images as for prediction.
        images: of `calibration_files`.

    Raises:
        UserError: an image that cannot be read or prepared.
    """
    import onnx

    module = quantiser()

    model = onnx.load(str(file))
    fold_constants(model.graph)
    batches = _batches(predictor, images, [value.name for value in model.graph.input])
    reader = SimpleNamespace(get_next=lambda: next(batches, None))
    with quietly(native=True):
        module.quantize_static(
            model, str(file), reader, quant_format=module.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"], per_channel=True,
            activation_type=module.QuantType.QUInt8, weight_type=module.QuantType.QInt8,
        )  # fmt: skip


def _batches(predictor, images: list[Path], names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    from fcos_recipe.data.images import BadImage

    for image in images:
        try:
            batch = predictor.batch([image])
        except BadImage as error:
            raise UserError(f"--int8: {error}; remove it from the calibration images") from None
        yield {name: batch[name] for name in names}
