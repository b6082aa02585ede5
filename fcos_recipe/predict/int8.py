"""ONNX models with int8 convolutions: ONNX Runtime's static quantisation, and the check of it."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from fcos_recipe.compat import quietly
from fcos_recipe.errors import UserError
from fcos_recipe.predict.backends import by_image
from fcos_recipe.predict.inputs import find_inputs, is_video
from fcos_recipe.predict.onnx_graph import fold_constants
from fcos_recipe.predict.parity import Agreement
from fcos_recipe.predict.results import iou

MOST = 100  #: calibration images that are used; more are thinned out evenly
#: Least IoU and largest difference of scores at which two detections are the same, and the largest
#: share of confident detections that only one of the two models may have.
OVERLAP, SCORE, SHARE = 0.5, 0.1, 0.1


def quantiser():
    """The module onnxruntime.quantization.

    Raises:
        UserError: it, or what it imports, is missing.
    """
    try:
        import onnxruntime.quantization as module
    except ImportError as error:
        raise UserError(
            f"--int8: {error.name} is missing; run: pip install --no-deps onnxruntime ml_dtypes"
        ) from None
    return module


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


def compare(reference, other, batches: list[dict[str, np.ndarray]]) -> Agreement:
    """Whether a model of int8 or float16 finds nearly what the trained one finds.

    Compared are the confident detections of both, those with at least half of the trained model's
    highest score. One that the other model does not have, with `OVERLAP` and `SCORE`, is counted as
    `exempt`; if they are more than `SHARE` of all, they are the verdict's failures.

    Args:
        reference, other: `Predictor.run`.
        batches: of the reader.
    """
    pairs = [
        pair for batch in batches
        for pair in zip(*(by_image(*run(batch)) for run in (reference, other)), strict=True)
    ]  # fmt: skip
    verdict = Agreement(len(pairs), empty=sum(not len(wanted) for wanted, _ in pairs))
    confident = max((float(rows[:, 1].max()) for rows, _ in pairs if len(rows)), default=0) / 2
    lost = []
    for number, (wanted, found) in enumerate(pairs):
        for name, rows, others in (("the export", wanted, found), ("the model", found, wanted)):
            for row in rows[rows[:, 1] >= confident]:
                verdict.detections += 1
                same = others[others[:, 0] == row[0]]
                same = same[iou(row[2:], same[:, 2:]) >= OVERLAP]
                scores = np.abs(same[:, 1] - row[1])
                if not len(same) or scores.min() > SCORE:
                    lost.append(
                        f"image {number}: class {row[0]:.0f} at {row[2:].round(1).tolist()}, score "
                        f"{row[1]:.3f}: not in {name}"
                    )
                    continue
                pixels = np.abs(same[scores.argmin(), 2:] - row[2:]).max()
                verdict.score = max(verdict.score, float(scores.min()))
                verdict.pixels = max(verdict.pixels, float(pixels))
    if len(lost) > SHARE * verdict.detections:
        verdict.failures = lost
    else:
        verdict.exempt = len(lost)
    return verdict
