"""Paddle program to ONNX, with NMS for any batch put behind it."""

import inspect
import json
import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fcos_recipe.compat import quietly
from fcos_recipe.errors import UserError

OPSET = 16
OPSETS = range(13, 20)  #: that the converter and `_add_nms` can write


def tool(option: str, name: str, packages: str):
    """Import a module that an option needs.

    Raises:
        UserError: it, or what it imports, is missing; pip installs `packages`.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"{option}: {error.name} is missing; run: pip install --no-deps {packages}"
        ) from None


def converter():
    """The modules onnx and paddle2onnx, if they fit the Paddle that is installed.

    paddle2onnx 1 reads the programs of Paddle 2, paddle2onnx 2 those of Paddle 3. The wrong one
    ends in a traceback, and releases before 1.2.5 end the process.

    Raises:
        UserError: the converter is missing or does not fit.
    """
    import paddle

    fits = "1.3.1" if paddle.__version__.startswith("2.") else "2.1.0"
    # without dependencies, which could replace the NumPy and the protobuf of a vendor's Paddle
    needs = f"paddle2onnx=={fits} onnx==1.17.0 onnxruntime flatbuffers"
    needs += " polygraphy onnxoptimizer==0.3.13" * fits.startswith("2.")
    remedy = f"run: pip install --no-deps {needs}"
    if sys.version_info >= (3, 13):
        remedy = "there is none for Python 3.13: export with Python 3.10, 3.11 or 3.12"
    # its constant folding would otherwise run pip for what it finds missing
    os.environ["POLYGRAPHY_AUTOINSTALL_DEPS"] = "0"
    try:
        found = version("paddle2onnx")
        if found.split(".")[0] != fits[0] or found.startswith(("1.0.", "1.1.", "1.2.")):
            raise UserError(
                f"--format onnx: paddle2onnx {found} does not fit Paddle {paddle.__version__}; "
                f"{remedy}"
            )
        import onnx
        import paddle2onnx
    except (ImportError, PackageNotFoundError) as error:
        raise UserError(f"--format onnx: {error.name} is missing; {remedy}") from None
    return onnx, paddle2onnx


def convert(folder: Path, facts: dict, opset: int = OPSET) -> None:
    """Turn folder/model.json or model.pdmodel, which ends with candidates, into folder/model.onnx.

    Args:
        folder: of the Paddle program; it goes, model.onnx stays.
        facts: metadata, stored in the file as well: the file alone is enough to predict with.
        opset: version of ONNX's operators.

    Raises:
        UserError: see `converter`.
    """
    onnx, paddle2onnx = converter()
    program = next(p for p in (folder / "model.json", folder / "model.pdmodel") if p.is_file())
    wanted = {"opset_version": opset, "optimize_tool": "None", "enable_onnx_checker": True,
              "verbose": False}  # fmt: skip
    known = inspect.signature(paddle2onnx.export).parameters
    target = folder / "model.onnx"
    with quietly(native=True):
        paddle2onnx.export(
            str(program), str(folder / "model.pdiparams"), str(target),
            **{key: value for key, value in wanted.items() if key in known},
        )  # fmt: skip
    model = onnx.load(str(target))
    _set_epsilon(model, facts["group_norm_epsilon"])
    if facts["nms"]:
        _add_nms(model, facts)
    _remove_unused(model.graph)
    _add_names(model.graph)
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
    for path in folder.glob("model.*"):
        if path != target:
            path.unlink()


def _set_epsilon(model, values: list[float]) -> None:
    """GroupNorm's epsilon where the converter put it: 2.1.0 reads Paddle 3.3's doubles as noise."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "InstanceNormalization" and attribute.name == "epsilon":
                (attribute.f,) = values  # one value for all of them, or the check would fail anyway


def _remove_unused(graph) -> None:
    """Remove constants that no node reads, of which ONNX Runtime warns."""
    used = {value.name for value in graph.output}
    graphs = [graph]
    while graphs:
        for node in graphs.pop().node:
            used.update(node.input)
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    kept = [value for value in graph.initializer if value.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _add_names(graph) -> None:
    """Name every node, which converters to fp16 and int8 need, and the axes of in- and outputs."""
    for number, node in enumerate(graph.node):
        node.name = node.name or f"fcos.{node.op_type}.{number}"
    axes = {
        "image": ("batch", "height", "width", 3), "im_shape": ("batch", 2),
        "scale_factor": ("batch", 2), "bbox": ("batch", "keep_top_k", 6), "bbox_num": ("batch",),
    }  # fmt: skip
    outputs = [value.name for value in graph.output]
    if "bbox" not in outputs:
        axes |= dict(zip(outputs, (("batch", "candidates", 4), ("batch", "classes", "candidates"))))
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for axis in axes[value.name]:
            shape.dim.add(**{"dim_value" if isinstance(axis, int) else "dim_param": axis})


def _add_nms(model, facts: dict) -> None:
    """Boxes [N, K, 4] and scores [N, C, K] become `bbox` [N, keep, 6] and `bbox_num` [N].

    NonMaxSuppression names what stays as (image, class, box). Its scores are scattered into zeros
    of the scores' shape, and one TopK per image picks the best `keep_top_k`: all of it for any
    batch. Rows beyond `bbox_num` are padding.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph, limits = model.graph, facts["limits"]
    boxes, scores = (value.name for value in graph.output)
    keep = limits["keep_top_k"]

    def constant(name: str, value, dtype) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def node(kind: str, inputs: list[str], *outputs: str, **attributes) -> str:
        graph.node.append(helper.make_node(kind, inputs, list(outputs), **attributes))
        return outputs[0]

    per_class = constant("nms_per_class", [max(limits["nms_top_k"], keep)], np.int64)
    overlap = constant("nms_overlap", [limits["nms_threshold"]], np.float32)
    lowest = constant("nms_lowest", [limits["score_threshold"]], np.float32)
    zero = constant("nms_zero", [0], np.int64)
    one = constant("nms_one", [1], np.int64)
    two = constant("nms_two", [2], np.int64)
    minus = constant("nms_minus", [-1], np.int64)
    chosen = node("NonMaxSuppression", [boxes, scores, per_class, overlap, lowest], "nms_chosen")
    shape = node("Shape", [scores], "nms_shape")
    blank = node(
        "ConstantOfShape", [shape], "nms_blank", value=helper.make_tensor("z", 1, [1], [0.0])
    )
    values = node("GatherND", [scores, chosen], "nms_values")
    table = node("ScatterND", [blank, chosen, values], "nms_table")
    batch = node("Slice", [shape, zero, one], "nms_batch")
    flat_shape = node("Concat", [batch, minus], "nms_flat_shape", axis=0)
    flat = node("Reshape", [table, flat_shape], "nms_flat")
    width = node("Slice", [node("Shape", [flat], "nms_flat_size"), one, two], "nms_width")
    count = node("Min", [constant("nms_keep", [keep], np.int64), width], "nms_count")
    node("TopK", [flat, count], "nms_best", "nms_at", axis=1)
    three = constant("nms_three", [3], np.int64)
    places = node("Slice", [shape, two, three], "nms_places")
    label = node("Cast", [node("Div", ["nms_at", places], "nms_label")], "nms_label_f", to=1)
    at = node("Mod", ["nms_at", places], "nms_box_at")
    last = constant("nms_last", [2], np.int64)
    at = node("Unsqueeze", [at, last], "nms_box_at3")
    four = constant("nms_repeat", [1, 1, 4], np.int64)
    at = node("Tile", [at, four], "nms_box_at4")
    corners = node("GatherElements", [boxes, at], "nms_corners", axis=1)
    if facts["clip"]:
        size = node("Div", ["im_shape", "scale_factor"], "clip_size")
        half = constant("clip_half", [0.5], np.float32)
        size = node("Floor", [node("Add", [size, half], "clip_more")], "clip_whole")
        order = constant("clip_order", [1, 0, 1, 0], np.int64)  # y, x to x, y, x, y
        limit = node("Gather", [size, order], "clip_limit", axis=1)
        limit = node("Unsqueeze", [limit, one], "clip_limit3")
        corners = node("Relu", [corners], "clip_low")
        corners = node("Min", [corners, limit], "clip_high")
    columns = [node("Unsqueeze", [name, last], f"{name}_column") for name in (label, "nms_best")]
    node("Concat", [*columns, corners], "bbox", axis=2)
    positive = node("Greater", ["nms_best", constant("nms_none", [0], np.float32)], "nms_positive")
    whole = node("Cast", [positive], "nms_whole", to=TensorProto.INT32)
    node("ReduceSum", [whole, one], "bbox_num", keepdims=0)
    del graph.output[:]
    graph.output.extend([
        helper.make_tensor_value_info("bbox", TensorProto.FLOAT, ["N", "keep", 6]),
        helper.make_tensor_value_info("bbox_num", TensorProto.INT32, ["N"]),
    ])  # fmt: skip


def fold_constants(graph) -> None:
    """Make constants initializers and leave out Identity nodes.

    Weights that reach a convolution through other nodes would not be stored with fewer bits.
    """
    outputs = {value.name for value in graph.output}
    source: dict[str, str] = {}
    kept = []
    for node in graph.node:  # in the order of calculation
        node.input[:] = [source.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            source[node.output[0]] = node.input[0]
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            graph.initializer.add().CopyFrom(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(type(node).FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(kept)
