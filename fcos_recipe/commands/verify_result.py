"""`fcos verify_result`: whether a run, or weights, have the AP published for their config."""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from fcos_recipe.config import Config, load_config
from fcos_recipe.config.differences import differences
from fcos_recipe.errors import UserError, printable
from fcos_recipe.places import ROOT
from fcos_recipe.runs.published_results import Row, load, published

REPRODUCED, OUTSIDE, NOT_COMPARABLE = "reproduced", "outside", "not comparable"
_CODES = {REPRODUCED: 0, OUTSIDE: 1, NOT_COMPARABLE: 2}
_EXAMPLE = """\
examples:
  python tools/verify_result.py output/fcos_r50_fpn_1x_coco
  python tools/verify_result.py -c configs/fcos/fcos_r50_fpn_1x_coco.yml \\
      --weights https://paddledet.bj.bcebos.com/models/fcos_r50_fpn_1x_coco.pdparams
Compares with configs/results.yml. A run with another schedule, batch, data set or setting than the
published one is told so and not judged. AP alone decides; throughput is shown beside it.
exit codes: 0 inside the noise band of a published row, 1 outside of all, 2 could not be judged
"""
# Settings that are a run's own business: they leave what is learned and measured alone, or are
# compared on their own (images per step, epochs, images judged). `resume.FREE` says the same of
# going on with a run, where weights to start from and batches of an evaluation do not matter.
_ANY = """
    device use_gpu use_xpu use_mlu use_npu launch.* seed worker_num *.use_shared_memory
    *.collate_batch to_static autotune.* comm_buffer_mb find_unused_parameters accumulate
    TrainReader.batch_size epoch log_iter loggers logger_images use_vdl vdl_log_dir save_dir
    output_eval classwise print_* weights snapshot_* keep_checkpoints max_failed_saves bad_numbers.*
    max_bad_images watchdog.* eval_interval *.dataset_dir TestReader.* TestDataset.* export.*
""".split()
# What training alone reads: weights are judged by what they find.
_TRAINING = """
    TrainReader.* TrainDataset.* LearningRate.* OptimizerBuilder.* pretrain_weights amp* *_ema*
    ema_* cycle_epoch early_stop.* scale_lr custom_*_list init_loss_scaling
""".split()


@dataclass
class Found:
    """What there is to judge.

    Args:
        name: of the config.
        ap: box AP in percent.
        images: how many were judged on.
        total_batch, epochs: images per optimizer step and epochs done; None for weights.
        speed: `runs.throughput`; {} for weights.
        differences: settings that differ from the project's config of that name, in words.
    """

    name: str
    ap: float
    images: int
    total_batch: int | None = None
    epochs: int | None = None
    speed: dict = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)


@dataclass
class Verdict:
    """The judgement: `word` is REPRODUCED, OUTSIDE or NOT_COMPARABLE; `lines` say why."""

    word: str
    found: Found
    lines: list[str]


def differing(config: Config, free: list[str] = _ANY) -> list[str]:
    """Settings that differ from the project's config of the same name and matter.

    Args:
        config: resolved.
        free: patterns of keys that do not matter.

    Raises:
        UserError: the project has no config of that name.
    """
    path = ROOT / "configs" / "fcos" / f"{config.name}.yml"
    if not path.is_file():
        raise UserError(f"{config.name}: no config of that name in configs/fcos to compare with")
    return [
        f"{key}: {here}, not {there}"
        for key, there, here in differences(load_config(path).data, config.data)
        if not any(fnmatch(key, pattern) for pattern in free)
    ]


def read_run(folder: Path, compare: bool = True) -> Found:
    """What a finished run says of itself.

    Args:
        folder: its directory.
        compare: look for settings that differ from the project's config; that must exist then.

    Raises:
        UserError: it is no run directory, or its last epoch was not evaluated.
    """
    from fcos_recipe.runs.throughput import throughput

    records = read_metrics(folder)
    config = load_config(folder / "config.yml")
    config.path = Path(f"{_config_name(folder)}.yml")
    judged = [record for record in records if record["kind"] == "eval"]
    steps = [record for record in records if record["kind"] == "train"]
    if not judged or not steps:
        raise UserError(f"{folder}: metrics.jsonl has no evaluation; train with --eval")
    last, epochs = judged[-1], config.data["epoch"]
    if last["epoch"] < epochs:
        raise UserError(f"{folder}: {last['epoch']} of {epochs} epochs are evaluated: not finished")
    seen = steps[-1]
    try:
        result = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: eval.json cannot be read: {error}") from None
    return Found(
        config.name, 100 * last["AP"], result["images"],
        round(seen["images_seen"] / seen["step"]), epochs, throughput(records),
        differing(config) if compare else [],
    )  # fmt: skip


def read_metrics(folder: Path) -> list[dict]:
    """The records of a run's metrics.jsonl; a line cut by a kill is left out.

    Raises:
        UserError: there is none.
    """
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{folder}: no run directory: metrics.jsonl: {error.strerror}") from None
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [r for r in records if isinstance(r, dict) and {"kind", "step"} <= set(r)]


def _config_name(folder: Path) -> str:
    """The name of a run's config, from what lies beside its metrics."""
    for note in ("environment.json", "model_final.json", "best_model.json"):
        if name := _named_in(folder / note):
            return name
    raise UserError(f"{folder}: neither environment.json nor model_final.json names the config")


def _named_in(note: Path) -> str | None:
    """The config that a JSON file names, if it is there and does."""
    try:
        name = json.loads(note.read_text(encoding="utf-8")).get("config")
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def measure(weights: str, config_path: str, overrides: list[str]) -> Found:
    """Evaluate weights with the command that a user would type.

    Raises:
        UserError: a config without published row, or weights of another one.
    """
    from fcos_recipe.commands.eval import evaluate

    config = load_config(config_path, overrides)
    _rows(config.name)  # before minutes of evaluation
    other = _named_in(Path(weights).with_suffix(".json"))
    if other and other != config.name:
        raise UserError(f"{weights}: weights of {other}, not of {config.name}")
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-c", config_path, "--weights", weights, "--output", folder, "--no-plots"]
        evaluate([*arguments, "-o", *overrides] if overrides else arguments)
        result = json.loads((Path(folder) / "eval.json").read_text(encoding="utf-8"))
    return Found(config.name, 100 * result["stats"][0], result["images"],
                 differences=differing(config, _ANY + _TRAINING))  # fmt: skip


def _rows(name: str) -> list[Row]:
    if rows := published(name):
        return rows
    known = ", ".join(dict.fromkeys(row.config for row in load().rows))
    raise UserError(f"{name}: nothing is published for this config; there is for {known}")


def judge(found: Found) -> Verdict:
    """Compare with the published rows of the same config."""
    at = f"{found.images} images"
    if found.epochs:
        at += f", after {found.epochs} epochs of {found.total_batch} images per step"
    lines = [f"{found.name}: box AP {found.ap:.2f} on {at}"]
    if found.speed:
        lines.append("throughput {images_per_second:.2f} images/s in all, "
                     "{images_per_second_per_card:.2f} per card".format(**found.speed))  # fmt: skip
    inside, judged = False, False
    for row in _rows(found.name):
        low, high = row.ap - row.tolerance, row.ap + row.tolerance
        name = f"{row.ap:.1f} +- {row.tolerance:.1f} ({row.source.en}"
        name += f", {row.device} x {row.cards})" if row.device not in (None, "cpu") else ")"
        if strange := _not_the_same(found, row):
            lines.append(f"{name}: not judged: {'; '.join(strange)}")
            continue
        here = low - 0.005 <= found.ap <= high + 0.005
        side = "inside" if here else "below" if found.ap < low else "above"
        inside, judged = inside or here, True
        text = f"{name}: {side} {low:.1f} to {high:.1f}; the band: {row.tolerance_from.en}"
        if not row.reproduced:
            text += "; this figure was not reproduced by this project"
        lines.append(text)
        if row.images_per_second is not None and found.speed:
            of = {"total": "in all", "card": "per card", "unstated": "per card, most likely"}
            lines.append(f"  published throughput: {row.images_per_second:g} images/s "
                         f"{of[row.throughput_of]}; not judged")  # fmt: skip
    word = (REPRODUCED if inside else OUTSIDE) if judged else NOT_COMPARABLE
    ending = {
        REPRODUCED: f"AP {found.ap:.2f} is inside the noise band of a published row",
        OUTSIDE: f"AP {found.ap:.2f} is outside the noise band of every published row",
        NOT_COMPARABLE: "this is not what was published",
    }
    lines.append(f"verdict: {word}: {ending[word]}")
    return Verdict(word, found, lines)


def _not_the_same(found: Found, row: Row) -> list[str]:
    """Why a result is no try at a row's figure; [] if it is one."""
    pairs = {
        "epochs": (found.epochs, row.epochs),
        "images per step": (found.total_batch, row.total_batch),
        f"images judged ({row.dataset})": (found.images, row.images),
    }
    return [
        f"{name}: {here}, not {there}"
        for name, (here, there) in pairs.items()
        if here is not None and here != there
    ] + found.differences


def main(argv: list[str]) -> int:
    """`fcos verify_result`: see `--help`."""
    parser = argparse.ArgumentParser(
        prog="fcos verify_result", epilog=_EXAMPLE,
        description="Compare a run, or weights, with the published figure of their config.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("run", nargs="?", type=Path, metavar="RUN_DIR", help="a finished run with --eval")
    add("--weights", metavar="W", help="evaluate these instead of reading a run; needs -c")
    add("-c", "--config", help="YAML file")
    add("-o", "--opt", nargs="*", action="extend", default=[], metavar="KEY=VALUE",
        help="override config values for --weights")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="also write the verdict here")
    args = parser.parse_args(argv)
    if (args.run is None) == (args.weights is None) or (args.weights and not args.config):
        parser.error("give RUN_DIR, or --weights W with -c CONFIG")
    found = read_run(args.run) if args.run else measure(args.weights, args.config, args.opt)
    verdict = judge(found)
    print("\n".join(map(printable, verdict.lines)))
    if args.json:
        args.json.write_text(json.dumps(asdict(verdict), indent=1) + "\n", encoding="utf-8")
    return _CODES[verdict.word]
