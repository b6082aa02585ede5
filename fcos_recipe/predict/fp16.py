"""ONNX models whose layers of images calculate in float16, for cards."""

from pathlib import Path

from fcos_recipe.compat import quietly
from fcos_recipe.files.atomic import replace_file
from fcos_recipe.predict.onnx_graph import fold_constants, tool

#: Operators with nearly all of the arithmetic. All others stay in float32: coordinates of a large
#: image have steps of a whole pixel in float16.
HALF = {"Conv", "BatchNormalization", "Relu", "MaxPool", "Resize"}


def converter():
    """The module onnxruntime.transformers.float16.

    Raises:
        UserError: it, or what it imports, is missing.
    """
    return tool("--fp16", "onnxruntime.transformers.float16", "onnxruntime")


def halve(file: Path) -> None:
    """Store the weights of `HALF` operators in float16 and calculate there in float16.

    Inputs and outputs of the model stay as they are; the file is replaced.

    Args:
        file: ONNX model of `onnx_graph.convert`.
    """
    import onnx

    model = onnx.load(str(file))
    fold_constants(model.graph)
    others = {node.op_type for node in model.graph.node} - HALF
    with quietly(native=True):
        model = converter().convert_float_to_float16(
            model, keep_io_types=True, op_block_list=sorted(others)
        )
    replace_file(file, model.SerializeToString())
