"""Check that the parts of a config agree with each other, as far as arithmetic can tell.

A disagreement would otherwise train with a falling loss and evaluate to an AP near zero, or end in
a crash after an epoch. `model.build` compares the same values with a model that is really built.
"""

import math
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from fcos_recipe.config import eval_sets, schema
from fcos_recipe.config.schema import ANY, REQUIRED

ARCHITECTURE = "FCOS"
DEPTHS = {"ResNet": (18, 34, 50, 101, 152)}  # of ppdet/modeling/backbones/resnet.py
GROUPS = 32  # of GroupNorm in ppdet's FCOSFeat


class _Part:
    """The arguments of one class: values from the config, else the defaults of its constructor.

    Args:
        key: dotted key of its section, for messages.
        name: class name.
        nodes: argument -> node of the config.
    """

    def __init__(self, key: str, name: str, nodes: dict[str, Any]):
        self.key, self.name, self.nodes = key, name, nodes

    def __getitem__(self, argument: str) -> Any:
        if argument in self.nodes:
            return self.nodes[argument].plain()
        value = schema.signature(self.name).args.get(argument)
        return None if value in (ANY, REQUIRED) else value

    def error(self, argument: str, text: str) -> str:
        node = self.nodes.get(argument)
        place = f"{node.where}: " if node else ""
        return f"{place}{self.key}.{argument}: {text}"


def not_supported(tree) -> list[str]:
    """Say in one line that a config is for something other than supervised training of FCOS.

    Args:
        tree: the merged nodes, unchecked: other errors would only distract from this one.
    """
    node = tree.value.get("metric")
    if node and node.value == "RBOX":
        return [f"{node.where}: metric: RBOX: rotated boxes are not part of this recipe; "
                "use PaddleDetection for them"]  # fmt: skip
    node = tree.value.get("architecture")
    typo = node and get_close_matches(str(node.value), [ARCHITECTURE], cutoff=0.8)  # see `check`
    if node and not typo:
        what = f"this recipe trains {ARCHITECTURE}, not {node.value}"
        return [f"{node.where}: architecture: {what}; use PaddleDetection for other detectors"]
    node = tree.value.get("ssod_method")
    if node and node.value:
        return [f"{node.where}: ssod_method: {schema.NOT_HERE['ssod_loss']}; use PaddleDetection "
                "itself, or train the labelled images with configs/semi_det/baseline"]  # fmt: skip
    return []


def disagreements(tree) -> list[str]:
    """Find values of a config that contradict each other.

    Args:
        tree: the checked nodes. Only files that serve as a base lack the section FCOS; they are
            not compared.

    Returns:
        one line per contradiction: "file:line: key: what is wrong".
    """
    if ARCHITECTURE not in tree.value:
        return []
    roles = ("backbone", "neck", "fcos_head")
    if found := [line for role in roles for line in _in_place(tree, role)]:
        return found
    parts = {role: _part(tree, role) for role in roles}
    targets = _transform(tree, "TrainReader", "Gt2FCOSTarget")
    found = [*_backbone(parts["backbone"]), *_head(tree, parts["fcos_head"], parts["neck"])]
    if targets:
        found += _targets(targets, parts["fcos_head"])
    found += [*_readers(tree), *_datasets(tree)]
    found += _mixing(_section(tree, "TrainReader"))
    found += [*_repeats(tree), *eval_sets.disagreements(tree)]
    if not found:
        found += _levels(tree, parts)
    return found


def _has_plugins(tree) -> bool:
    """Whether classes of the user's may stand in for those of this project."""
    node = tree.value.get("plugins")
    return bool(node and node.value)


def _readers(tree) -> Iterator[str]:
    """Look for transforms without which a batch cannot be made, or is not one of images."""
    own = _has_plugins(tree)  # may do the same
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        lists = [_section(tree, reader).get(f"{kind}_transforms") for kind in ("sample", "batch")]
        sample, batch = ([n for x in node.value for n in x.value] if node else [] for node in lists)
        place = f"{lists[0].where}: " if lists[0] else ""
        if sample and sample[0] != "Decode" and not own:
            yield f"{place}{reader}.sample_transforms: Decode comes first, not {sample[0]}"
        if [*sample, *batch].count("Permute") > 1:
            yield f"{place}{reader}: Permute is in its lists twice; remove one of them"
        if reader == "TrainReader" and sample and "Gt2FCOSTarget" not in batch and not own:
            place = f"{lists[1].where}: " if lists[1] else place
            yield (
                f"{place}{reader}.batch_transforms: no Gt2FCOSTarget, which computes the targets; "
                "add it as the last one"
            )


def _datasets(tree) -> Iterator[str]:
    """PaddleDetection's data sets of other formats lack what this recipe reads."""
    own = _has_plugins(tree)
    for section in ("TrainDataset", "EvalDataset"):
        values = _section(tree, section)
        name = values.get("name")
        if name and name.value != "COCODataSet" and not own:
            yield (
                f"{name.where}: {section}.name: {name.value}, but this recipe reads COCODataSet; "
                "`fcos config new --data DIR` converts other formats"
            )
        fields = values.get("data_fields")
        given = fields.plain() if fields and isinstance(fields.value, list) else []
        missing = [one for one in ("gt_bbox", "gt_class", "image") if one not in given]
        if section == "TrainDataset" and name and missing:
            place = (fields or name).where
            yield f"{place}: {section}.data_fields: add {', '.join(missing)}"


def _in_place(tree, role: str) -> Iterator[str]:
    """PaddleDetection takes only the name of a class for the parts of a model."""
    node = tree.value[ARCHITECTURE].value.get(role)
    if node is not None and isinstance(node.value, dict):
        name = node.value["name"].value
        yield (
            f"{node.where}: {ARCHITECTURE}.{role}: expected the name of a class; write "
            f"{role}: {name}, and its arguments in a section {name}"
        )


def _part(tree, role: str) -> _Part:
    """The backbone, neck or head that the section FCOS names."""
    node = tree.value[ARCHITECTURE].value.get(role)
    return _injected(
        tree, f"{ARCHITECTURE}.{role}", node, schema.signature(ARCHITECTURE).args[role]
    )


def _injected(tree, key: str, node, default: str) -> _Part:
    """A class that an argument names or describes in place; `default` if it is not set."""
    if node is not None and isinstance(node.value, dict):
        name = node.value["name"].value
        own = {argument: value for argument, value in node.value.items() if argument != "name"}
        return _Part(key, name, {**_section(tree, name), **own})
    name = default if node is None else node.value
    return _Part(name, name, _section(tree, name))


def _section(tree, name: str) -> dict[str, Any]:
    node = tree.value.get(name)
    return node.value if node and isinstance(node.value, dict) else {}


def _transform(tree, reader: str, name: str) -> _Part | None:
    """A batch transform of a reader; None if the reader does not have it."""
    node = _section(tree, reader).get("batch_transforms")
    for i, item in enumerate(node.value if node and isinstance(node.value, list) else []):
        if name in item.value:
            key = f"{reader}.batch_transforms.{i}.{name}"
            return _Part(key, name, item.value[name].value or {})
    return None


def _backbone(part: _Part) -> Iterator[str]:
    depths = DEPTHS.get(part.name)
    if depths and part["depth"] not in depths:
        yield part.error(
            "depth",
            f"no {part.name} has {part['depth']} layers; choose from {', '.join(map(str, depths))}",
        )
    if part.name == "ResNet":
        stages, indices = part["num_stages"], part["return_idx"]
        known = isinstance(indices, list) and all(i in range(stages) for i in indices)
        if not known:
            yield part.error(
                "return_idx",
                f"{indices}: with num_stages {stages}, stages are numbered 0 to {stages - 1}",
            )
        elif not indices or indices != list(range(indices[0], indices[-1] + 1)):
            yield part.error("return_idx", f"{indices}: FPN needs consecutive stages")


def _head(tree, head: _Part, neck: _Part) -> Iterator[str]:
    strides = head["fpn_stride"]
    if not _increasing(strides):
        yield head.error("fpn_stride", f"{strides} must be increasing positive numbers")
    classes = tree.value.get("num_classes")
    if "num_classes" in head.nodes and classes and head["num_classes"] != classes.value:
        yield head.error(
            "num_classes",
            f"{head['num_classes']}, but num_classes of the config is "
            f"{classes.value}; remove it here",
        )
    feat = _injected(tree, f"{head.key}.fcos_feat", head.nodes.get("fcos_feat"), "FCOSFeat")
    if feat.name == "FCOSFeat" and neck.name == "FPN" and feat["feat_in"] != neck["out_channel"]:
        yield feat.error(
            "feat_in",
            f"{feat['feat_in']}, but {neck.key}.out_channel is "
            f"{neck['out_channel']}; make them equal",
        )
    if feat.name == "FCOSFeat" and feat["norm_type"] == "gn" and feat["feat_out"] % GROUPS:
        yield feat.error(
            "feat_out",
            f"{feat['feat_out']} is not a multiple of {GROUPS}, the groups "
            "of GroupNorm (norm_type: gn)",
        )


def _targets(targets: _Part, head: _Part) -> Iterator[str]:
    strides, ratios = head["fpn_stride"], targets["downsample_ratios"]
    if ratios != strides:
        yield head.error(
            "fpn_stride",
            f"{strides}, but {targets.key}.downsample_ratios is {ratios}; boxes would be decoded "
            "with other strides than they were trained with",
        )
    bounds = targets["object_sizes_boundary"] or []
    if not _increasing(bounds) and bounds:
        yield targets.error(
            "object_sizes_boundary", f"{bounds} must be increasing positive numbers"
        )
    elif len(bounds) != len(ratios) - 1:
        yield targets.error(
            "object_sizes_boundary",
            f"{len(bounds)} bounds for {len(ratios)} levels; there is one between each two levels",
        )
    if head["num_shift"] != targets["num_shift"]:
        yield head.error(
            "num_shift",
            f"{head['num_shift']}, but {targets.key}.num_shift is "
            f"{targets['num_shift']}; make them equal",
        )
    pixels = [
        not part["norm_reg_targets"] or part["multiply_strides_reg_targets"]
        for part in (head, targets)
    ]
    if pixels[0] != pixels[1]:
        units = ["pixels" if value else "strides" for value in pixels]
        yield head.error(
            "norm_reg_targets",
            f"the loss compares distances in {units[0]}, but those "
            f"of {targets.key} are in {units[1]}; make norm_reg_targets and "
            "multiply_strides_reg_targets equal in both",
        )


def _levels(tree, parts: dict[str, _Part]) -> Iterator[str]:
    """Compare the strides of ResNet's stages and FPN's levels with the head's."""
    backbone, neck, head = parts.values()
    if backbone.name != "ResNet" or neck.name != "FPN":
        return  # only a model that is built can tell
    strides = [4 * 2**index for index in backbone["return_idx"]]
    scales = neck["spatial_scales"]
    if "spatial_scales" in neck.nodes and not _same_scales(scales, strides):
        yield neck.error(
            "spatial_scales",
            f"{scales} do not belong to {backbone.key}.return_idx "
            f"{backbone['return_idx']}, whose strides are {strides}",
        )
        return
    if neck["extra_stage"] > 1 and not neck["has_extra_convs"]:
        yield neck.error(
            "extra_stage",
            f"{neck['extra_stage']}, but without convolutions FPN adds one level at most; "
            "set has_extra_convs: true",
        )
        return
    coarsest = strides[-1]
    strides += [coarsest * 2**k for k in range(1, neck["extra_stage"] + 1)]
    if strides != head["fpn_stride"]:
        yield head.error(
            "fpn_stride",
            f"{head['fpn_stride']}, but the levels of {neck.key} "
            f"(extra_stage: {neck['extra_stage']}) have strides {strides}",
        )
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        pad = _transform(tree, reader, "PadBatch")
        multiple = pad["pad_to_stride"] if pad else 0
        if pad and isinstance(multiple, int) and multiple > 0 and multiple % coarsest:
            yield pad.error(
                "pad_to_stride",
                f"{multiple} is not a multiple of {coarsest}, the "
                f"coarsest stride of {backbone.key}",
            )


def _mixing(reader: dict[str, Any]) -> Iterator[str]:
    """An argument for the epochs of a transform that is not in the list would be ignored."""
    node = reader.get("sample_transforms")
    listed = {name for item in node.value for name in item.value} if node else set()
    for name, (argument, _) in schema.MIXING.items():
        if argument in reader and reader[argument].value >= 0 and name not in listed:
            yield (
                f"{reader[argument].where}: TrainReader.{argument}: sample_transforms has no "
                f"{name}; add it after Decode, or remove {argument}"
            )


def _repeats(tree) -> Iterator[str]:
    """repeat_threshold is a share of the images, and evaluation looks at each image once."""
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        node = _section(tree, reader).get("repeat_threshold")
        if node and not 0 <= node.value <= (reader == "TrainReader"):
            wanted = "must lie in 0 to 1" if reader == "TrainReader" else "only TrainReader has it"
            yield f"{node.where}: {reader}.repeat_threshold: {node.value}: {wanted}"


def _increasing(values: Any) -> bool:
    numbers = isinstance(values, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    return numbers and all(a < b for a, b in zip([0, *values], values))


def _same_scales(scales: Any, strides: list[int]) -> bool:
    return len(scales) == len(strides) and all(
        math.isclose(scale * stride, 1, rel_tol=1e-3) for scale, stride in zip(scales, strides)
    )
