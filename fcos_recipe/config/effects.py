"""In which keys two configs differ, and what each key affects.

`--resume` asks whether a run may continue with another value; `fcos verify_result`, the report and
the loss band ask whether two runs, or two evaluations of weights, are the same experiment. All of
them ask `TABLE`.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from fcos_recipe.config.load import yaml_text
from fcos_recipe.config.schema import RECIPE, UNSET, keys


class Effect(NamedTuple):
    """What a change of some keys does."""

    about: str  #: what they affect, and where needed why they are treated in this way
    resumable: bool = True  #: a run may continue from its checkpoint with another value
    run: bool = False  #: runs that differ in it are different experiments: no AP is compared
    weights: bool = False  #: the same for evaluations of weights


STEPS = Effect("the training steps and the figures", resumable=False, run=True, weights=True)
# The first row with a pattern that matches decides. A key that no row names affects STEPS: so do
# EvalDataset and EvalReader, because the AP history and best_model of a run need one measure.
TABLE: dict[Effect, str] = {
    # The model takes its mean and standard deviation from here, for training as well.
    STEPS: "TestReader.sample_transforms.*NormalizeImage*",
    Effect("nothing that is computed: where files lie, what is written and shown, prediction"): """
        *.dataset_dir save_dir output_eval weights log_iter loggers logger_images use_vdl
        vdl_log_dir classwise print_* snapshot_* keep_checkpoints max_failed_saves eval_interval
        TestReader.* TestDataset.* export.*""",
    Effect("only what happens after a fault, which the log reports"):
        "bad_numbers.* max_bad_images watchdog.*",
    Effect("speed and memory"): """
        device use_gpu use_xpu use_mlu use_npu worker_num to_static autotune.* comm_buffer_mb
        find_unused_parameters TrainReader.use_shared_memory TrainReader.collate_batch
        EvalReader.use_shared_memory EvalReader.collate_batch""",
    Effect("the size of a run: a resumed run is converted to it, and comparisons look at epochs "
           "and images per step instead"): "launch.* accumulate TrainReader.batch_size epoch",
    Effect("random draws: a resumed run would not continue the same ones, and the tolerance of a "
           "published figure covers them", resumable=False): "seed",
    Effect("how a run starts, and whether it ends early", run=True):
        "pretrain_weights early_stop.*",
    Effect("the figures of an evaluation, so little (GroupNorm sees other padding) or so evidently "
           "(there are none) that a run may continue", run=True, weights=True):
        "EvalReader.batch_size save_prediction_only",
    Effect("the training steps alone: an evaluation of weights does not read it",
           resumable=False, run=True): """
        TrainReader.* TrainDataset.* LearningRate.* OptimizerBuilder.* use_ema ema_* cycle_epoch
        scale_lr init_loss_scaling""",
}  # fmt: skip


def effect(key: str) -> Effect:
    """What a change of a dotted key affects."""
    matching = (row for row, patterns in TABLE.items()
                if any(fnmatchcase(key, pattern) for pattern in patterns.split()))  # fmt: skip
    return next(matching, STEPS)


def differences(a: dict, b: dict) -> list[tuple[str, str, str]]:
    """(key, value in a, value in b) for every key in which two resolved configs' data differ.

    Keys are dotted, values are YAML; "-" where a key is absent.
    """
    left, right = dict(_leaves(a)), dict(_leaves(b))
    rows = [(key, left.get(key, "-"), right.get(key, "-")) for key in {**left, **right}]
    return [row for row in rows if row[1] != row[2]]


def changes(saved: dict, now: dict) -> list[tuple[str, str, str]]:
    """`differences` of an earlier run's config and a present one.

    Without keys that the version of the earlier run did not know and that have their default now.
    """
    defaults = ((name, key.default) for name, key in keys(RECIPE) if key.default is not UNSET)
    new = {(name, "-", yaml_text(default)) for name, default in defaults}
    return [row for row in differences(saved, now) if row not in new]


def is_block(value: Any) -> bool:
    """Whether a value takes lines of its own in YAML: a dict, or a list of dicts, with content."""
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(v and isinstance(v, dict) for v in value)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if is_block(value):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, yaml_text(value)
