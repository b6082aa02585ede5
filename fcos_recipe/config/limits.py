"""Numbers and words that the classes of a config accept; others would crash, or be silently wrong.

The types of arguments come from constructors (`schema`); what is here, constructors do not say.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value must be, in words and as a function."""

    words: str
    holds: Callable[[Any], bool]


def _rule(words: str, holds: Callable[[Any], bool]) -> Rule:
    return Rule(words, lambda value: _is_number(value) and holds(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _words(*allowed: Any) -> Rule:
    shown = ["null" if word is None else str(word) for word in allowed]
    return Rule(
        " or ".join([", ".join(shown[:-1]), shown[-1]]),
        lambda value: not isinstance(value, bool) and value in allowed,
    )


def _list_of(rule: Rule, words: str, lengths: tuple[int, ...]) -> Rule:
    return Rule(
        words, lambda v: isinstance(v, list) and len(v) in lengths and all(map(rule.holds, v))
    )


def _is_size(value: Any) -> bool:
    return POSITIVE.holds(value) or PAIR.holds(value)


COUNT = _rule("at least 1", lambda v: v >= 1)
COUNT_OR_ALL = _rule("at least 1, or -1 for all", lambda v: v >= 1 or v == -1)
POSITIVE = _rule("more than 0", lambda v: v > 0)
NOT_NEGATIVE = _rule("at least 0", lambda v: v >= 0)
SHARE = _rule("a number from 0 to 1", lambda v: 0 <= v <= 1)
BELOW_ONE = _rule("at least 0 and less than 1", lambda v: 0 <= v < 1)
INSIDE = _rule("more than 0 and less than 1", lambda v: 0 < v < 1)
PAIR = _list_of(POSITIVE, "two numbers of more than 0", (2,))
SIZE = Rule("a number of pixels, or [height, width]", _is_size)
SIZES = Rule(
    "a list of [height, width]",
    lambda v: _is_size(v) or (isinstance(v, list) and bool(v) and all(map(_is_size, v))),
)
FACTORS = Rule(
    "more than 0, or a list of such numbers",
    lambda v: all(map(POSITIVE.holds, v)) if isinstance(v, list) else POSITIVE.holds(v),
)
NUMBERS = Rule(
    "a list of numbers of more than 0",
    lambda v: isinstance(v, list) and all(map(POSITIVE.holds, v)),
)
INDICES = Rule(
    "a list of whole numbers",
    lambda v: isinstance(v, list) and all(isinstance(x, int) and _is_number(x) for x in v),
)
PATHS = Rule(
    "a path, or a list of paths",
    lambda v: all(isinstance(x, str) for x in (v if isinstance(v, list) else [v])),
)
NAMES = Rule(
    "a list of names",
    lambda v: v is None or (isinstance(v, list) and all(isinstance(x, str) for x in v)),
)
EPOCHS = Rule(
    "a list of epochs in increasing order",
    lambda v: (
        isinstance(v, list) and all(map(POSITIVE.holds, v)) and all(a < b for a, b in zip(v, v[1:]))
    ),
)
NORM = _words("bn", "sync_bn")
# "Class.argument"; for a key outside of classes only its name. null passes where it is the default.
LIMITS: dict[Rule, str] = {
    COUNT: """
        TrainReader.batch_size EvalReader.batch_size TestReader.batch_size COCODataSet.repeat
        LinearWarmup.steps ExpWarmup.steps CosineDecay.max_epochs FPN.out_channel FCOSFeat.feat_in
        FCOSFeat.feat_out""",
    COUNT_OR_ALL: "MultiClassNMS.nms_top_k MultiClassNMS.keep_top_k",
    POSITIVE: """
        LearningRate.base_lr LearningRate.base_batch LinearWarmup.epochs
        OptimizerBuilder.clip_grad_by_norm OptimizerBuilder.clip_grad_by_value
        bad_numbers.lr_factor init_loss_scaling""",
    NOT_NEGATIVE: """
        FPN.extra_stage FCOSFeat.num_convs FCOSLoss.loss_gamma FCOSLoss.reg_weights
        COCODataSet.empty_ratio PadBatch.pad_to_stride""",
    SHARE: """
        MultiClassNMS.score_threshold MultiClassNMS.nms_threshold FCOSLoss.loss_alpha
        LinearWarmup.start_factor CosineDecay.min_lr_ratio RandomFlip.prob ema_decay""",
    BELOW_ONE: "FCOSHead.num_shift Gt2FCOSTarget.num_shift Momentum.momentum",
    INSIDE: "FCOSHead.prior_prob",
    SIZE: "Resize.target_size",
    SIZES: "RandomResize.target_size",
    _list_of(_rule("", lambda v: True), "three numbers, one per channel", (1, 3)):
        "NormalizeImage.mean",
    _list_of(POSITIVE, "three numbers of more than 0, one per channel", (1, 3)):
        "NormalizeImage.std",
    NUMBERS: """
        FPN.spatial_scales FCOSHead.fpn_stride Gt2FCOSTarget.downsample_ratios
        Gt2FCOSTarget.object_sizes_boundary""",
    INDICES: "ResNet.return_idx ResNet.dcn_v2_stages",
    PATHS: """
        COCODataSet.image_dir COCODataSet.anno_path COCODataSet.dataset_dir ImageFolder.image_dir
        ImageFolder.anno_path ImageFolder.dataset_dir""",
    NAMES: "COCODataSet.data_fields",
    EPOCHS: "PiecewiseDecay.milestones",
    FACTORS: "PiecewiseDecay.gamma",
    NORM: "ResNet.norm_type",
    _words("bn", "sync_bn", "gn", None): "FPN.norm_type FCOSFeat.norm_type",
    _words("a", "b", "c", "d"): "ResNet.variant",
    _words(1, 2, 3, 4): "ResNet.num_stages",
    Rule("giou, linear_iou or iou", lambda v: str(v).lower() in ("giou", "linear_iou", "iou")):
        "FCOSLoss.iou_loss_type",
    _words("centerness", "iou"): "FCOSLoss.quality",
}  # fmt: skip
_RULES = {key: rule for rule, keys in LIMITS.items() for key in keys.split()}


def wrong(key: str, value: Any, default: Any = None) -> str:
    """Say what a value must be; "" if it is right or no rule is known.

    Args:
        key: as in `LIMITS`.
        value: of the config.
        default: of the constructor; it is always right.
    """
    rule = _RULES.get(key)
    return "" if rule is None or value == default or rule.holds(value) else rule.words
