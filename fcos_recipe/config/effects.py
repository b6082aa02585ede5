"""Find the keys in which two configs differ, and what each key affects.

`--resume` needs to know whether a run may continue with another value; `fcos verify_result`, the
report and the loss band need to know whether two runs, or two evaluations of weights, are
comparable. All of them use `TABLE`.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from fcos_recipe.config.load import yaml_text
from fcos_recipe.config.schema import RECIPE, UNSET, keys


class Effect(NamedTuple):
    """What changing a key affects."""

    about: str  #: what it affects and, where needed, why it is treated in this way
    resumable: bool = True  #: a run may continue from its checkpoint with another value
    run: bool = False  #: the AP of runs with different values is not comparable
    weights: bool = False  #: the same for evaluations of given weights


STEPS = Effect("the training steps and the figures", resumable=False, run=True, weights=True)
# The first row with a matching pattern applies. A key without a row affects STEPS; this includes
# EvalDataset and EvalReader, because all evaluations of a run must be comparable.
TABLE: dict[Effect, str] = {
    # The model reads the mean and standard deviation from here, also for training.
    STEPS: "TestReader.sample_transforms.*NormalizeImage*",
    Effect("no result of a run: paths, what is written and printed, prediction, export"): """
        *.dataset_dir save_dir output_eval weights log_iter loggers logger_images use_vdl
        vdl_log_dir classwise print_* snapshot_* keep_checkpoints max_failed_saves eval_interval
        TestReader.* TestDataset.* export.*""",
    Effect("only the figures that stand under the names of these sets"): "eval_sets*",
    Effect("only what happens after a fault, which is reported in the log"):
        "bad_numbers.* max_bad_images watchdog.*",
    Effect("speed and memory"): """
        device use_gpu use_xpu use_mlu use_npu worker_num to_static autotune.* comm_buffer_mb
        find_unused_parameters TrainReader.use_shared_memory TrainReader.collate_batch
        EvalReader.use_shared_memory EvalReader.collate_batch""",
    Effect("the size of a run: --resume converts the run to it, and comparisons use epochs and "
           "images per step instead"): "launch.* accumulate TrainReader.batch_size epoch",
    Effect("random numbers: a resumed run could not continue the same sequence; the tolerance of a "
           "published figure includes different seeds", resumable=False): "seed",
    Effect("what the steps compute, but --resume compares the files' content, not their place",
           run=True, weights=True): "plugins",
    Effect("how a run starts, and whether it ends early", run=True):
        "pretrain_weights early_stop.*",
    Effect("the figures of an evaluation, but a run may continue: the batch size changes them very "
           "little (GroupNorm sees other padding), and without AP there are none to compare",
           run=True, weights=True): "EvalReader.batch_size save_prediction_only",
    Effect("only the training steps, not an evaluation of weights", resumable=False, run=True): """
        TrainReader.* TrainDataset.* LearningRate.* OptimizerBuilder.* use_ema ema_* cycle_epoch
        scale_lr init_loss_scaling""",
}  # fmt: skip


def effect(key: str) -> Effect:
    """Return what a change of a dotted key affects."""
    matching = (row for row, patterns in TABLE.items()
                if any(fnmatchcase(key, pattern) for pattern in patterns.split()))  # fmt: skip
    return next(matching, STEPS)


def differences(a: dict, b: dict) -> list[tuple[str, str, str]]:
    """List (key, value in a, value in b) for each key in which two configs' data differ.

    Keys are dotted; values are YAML text, "-" where the key is absent.
    """
    left, right = dict(_leaves(a)), dict(_leaves(b))
    rows = [(key, left.get(key, "-"), right.get(key, "-")) for key in {**left, **right}]
    return [row for row in rows if row[1] != row[2]]


def changes(saved: dict, now: dict) -> list[tuple[str, str, str]]:
    """List the `differences` between an earlier run's config and a present one.

    A key that the earlier version did not have and that has its default now is no difference.
    """
    defaults = ((name, key.default) for name, key in keys(RECIPE) if key.default is not UNSET)
    new = {(name, "-", yaml_text(default)) for name, default in defaults}
    return [row for row in differences(saved, now) if row not in new]


def is_block(value: Any) -> bool:
    """Whether YAML writes a value on its own lines: a non-empty dict or list of dicts."""
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(v and isinstance(v, dict) for v in value)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if is_block(value):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, yaml_text(value)
