"""FCOS from Python: train, evaluate, predict, export and verify as functions.

The commands call these functions as well, so both give the same results. A function raises instead
of ending the process:

- `UserError`: the input is wrong; each line of the message names file, field and remedy.
- `RunFailure`: the work failed for another reason, such as a full disk.
- `Stopped` or `KeyboardInterrupt`: `train` was asked to stop, and saved a checkpoint first.

Each function restores what it changed in the process; `system.session.session` lists the rest.
Functions that compute must not run in two threads at once; a `Predictor` may be shared by threads.
"""

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fcos_recipe.config import Config, eval_sets, load_config
from fcos_recipe.console import log, messages
from fcos_recipe.errors import UserError, UserErrors, not_written, path_reason, refuse_incomplete
from fcos_recipe.evaluation.options import COCO, Evaluation, Options
from fcos_recipe.files.reading import given_path, read_json, read_records
from fcos_recipe.system import compute
from fcos_recipe.system.session import same_environment, session

if TYPE_CHECKING:
    from fcos_recipe.predict.files import Written
    from fcos_recipe.predict.predictor import Predictor
    from fcos_recipe.predict.results import Detections
    from fcos_recipe.system.watchdog import Watchdog

Source = str | os.PathLike
Overrides = Mapping[str, Any] | Sequence[str]
Log = logging.Logger | Callable[[str], None] | None


@dataclass(frozen=True)
class TrainResult:
    """What a training run left behind.

    Args:
        directory: the run directory.
        epochs, steps: epochs and optimizer steps that are done, those of earlier runs included.
        final_weights: weights after the last step.
        best_weights: weights of the best evaluation; None without one.
        best_ap: its box AP, from 0 to 1; None without one.
        evaluation: the last evaluation; None without one.
    """

    directory: Path
    epochs: int
    steps: int
    final_weights: Path
    best_weights: Path | None
    best_ap: float | None
    evaluation: Evaluation | None

    def records(self) -> list[dict[str, Any]]:
        """The run's records of losses and evaluations (metrics.jsonl), oldest first."""
        return read_records(self.directory / "metrics.jsonl")


@dataclass(frozen=True)
class Exported:
    """An exported model that passed its check against the trained one.

    Args:
        folder: the export, which `Predictor` and `evaluate` accept as weights.
        images, empty: images that were compared, and how many of them have no detection.
        detections: how many were compared.
        exempt: detections that only one side has, with a score within 1e-4 of a limit.
        score, pixels: largest difference of a score, and of a box's corner in pixels.
    """

    folder: Path
    images: int
    empty: int
    detections: int
    exempt: int
    score: float
    pixels: float


@dataclass(frozen=True)
class Verified:
    """What `verify` found in a data set.

    Args:
        errors, warnings: how many findings of each severity.
        report: all findings; JSON values, described by `fcos dataset verify --help`.
    """

    errors: int
    warnings: int
    report: dict[str, Any]


def resolve_config(
    config: Source | Config, overrides: Overrides = (), strict: bool | None = None
) -> Config:
    """Load a config and check every key.

    Args:
        config: YAML file, or a config that is loaded already.
        overrides: values by dotted key, as {"TrainReader.batch_size": 4}, or texts as
            "TrainReader.batch_size=4".
        strict: see `config.load.load_config`.

    Raises:
        UserErrors: all findings at once.
    """
    if isinstance(config, Config):
        if overrides:
            raise UserError("overrides: a loaded config takes none; give them when loading it")
        return config
    return load_config(config, _texts(overrides), strict=strict)


def _texts(overrides: Overrides) -> Sequence[str]:
    """Overrides as the command line has them; JSON is also YAML."""
    if not isinstance(overrides, Mapping):
        return overrides
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]


def build(
    config: Source | Config,
    *,
    overrides: Overrides = (),
    device: str | None = None,
    log_to: Log = None,
) -> None:
    """Build a config's model with random weights and send one image through it.

    Args:
        config, overrides: see `resolve_config`.
        device, log_to: see `train`.

    Raises:
        UserError: the parts of the model do not accept their arguments or do not fit together.
    """
    config = resolve_config(config, overrides)
    with _work(config, device, log_to) as found:
        from fcos_recipe.model.build import build_model, prepare
        from fcos_recipe.training.freeze import Frozen

        Frozen(build_model(prepare(config, found, 1, train=False)), config)


def train(
    config: Source | Config,
    *,
    output: Source | None = None,
    evaluate: bool = False,
    overrides: Overrides = (),
    resume: Source | None = None,
    force: bool = False,
    loggers: Sequence[str] = (),
    vdl_folder: Source | None = None,
    device: str | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    log_to: Log = None,
    own_process: bool = False,
) -> TrainResult:
    """Train a model. Under a launcher every rank must call it.

    Args:
        config, overrides: see `resolve_config`.
        output: run directory; default save_dir/CONFIG_NAME. An earlier run there is renamed.
        evaluate: evaluate during training, and keep the weights of the best evaluation.
        resume: checkpoint folder or run directory to continue from; "auto": the newest intact
            checkpoint of the run directory, if there is one.
        force: resume also with a config that changes what the steps compute.
        loggers: visualdl, tensorboard, wandb, csv or MODULE:CLASS, besides those of the config.
        vdl_folder: for VisualDL; default OUTPUT/vdl.
        device: auto, cpu, gpu or iluvatar_gpu; default the config's.
        on_record: called on rank 0 with each record of metrics.jsonl; an exception ends the run.
        log_to: receives the messages, see `console.messages`.
        own_process: the process exists for this run alone: it ends if the run hangs (see
            docs/reliability.md) or Ctrl-C is pressed twice, and may draw a progress bar.

    Raises:
        UserError: config, data or checkpoint are wrong.
        RunFailure: losses that are not finite, failed saves, or no memory.
        Stopped: SIGTERM came; a checkpoint is saved.
        KeyboardInterrupt: Ctrl-C came; a checkpoint is saved.
    """
    config = resolve_config(config, overrides)
    path = Path(output or Path(config.data["save_dir"]) / config.name)
    judged = eval_sets.sections(config.data).values() if evaluate else ()
    sections = ["TrainDataset", *judged]
    if not resume:
        sections.append("pretrain_weights")
    _refuse_missing(config, *sections)

    from fcos_recipe.runs import loggers as metric_loggers

    logging_to = metric_loggers.chosen(list(loggers), config.data)
    with _work(config, device, log_to) as found:
        from fcos_recipe.evaluation.collectives import gather
        from fcos_recipe.report.write import after_training
        from fcos_recipe.runs import loss_band
        from fcos_recipe.runs.directory import RunDir
        from fcos_recipe.system import out_of_memory
        from fcos_recipe.training.resume import automatic
        from fcos_recipe.training.trainer import REMEDY, Trainer

        advice = out_of_memory.training(config.data)
        again = f"python tools/train.py -c {config.path}{' --eval' * evaluate} --output {path} "
        again += shlex.join(
            ["--resume", "auto", *(["-o"] * bool(config.overrides)), *config.overrides]
        )
        readers = out_of_memory.readers(config.data, "TrainReader")
        explained = out_of_memory.explained(found, advice, again, readers)
        with _watchdog(config, own_process) as watchdog, explained:
            trainer = Trainer(config, found, watchdog)
            start = gather(resume)[0]  # a restarted host may know less than that of rank 0
            if start == "auto":
                start = automatic(path)
            ours = (
                start is not None and path.resolve() in (given_path(start) / "_").resolve().parents
            )
            if start:
                trainer.resume_weights(str(start), force)
            elif source := config.data["pretrain_weights"]:
                trainer.load_weights(source)
            if config.data["to_static"]:
                trainer.compile()
            with RunDir(path, writer=trainer.rank == 0, resume=ours) as run:
                run.on_record = on_record
                metric_loggers.attach(
                    run, logging_to, config, str(vdl_folder) if vdl_folder else None
                )
                loss_band.watch(run, config, trainer.plan.total_batch)
                try:
                    trainer.train(run, evaluate)
                finally:
                    with trainer.watchdog.phase("save"):
                        run.close_sinks()
                if trainer.rank == 0:
                    after_training(path, trainer.missing)
                    lost = not_written({**trainer.missing, **run.unwritten()})
                    refuse_incomplete(path, lost, REMEDY)
        return _train_result(path, trainer.progress)


def _train_result(path: Path, progress: Any) -> TrainResult:
    best, last = path / "best_model.pdparams", path / "eval.json"
    judged = progress.best["epoch"] > 0
    return TrainResult(
        directory=path,
        epochs=progress.epoch,
        steps=progress.steps_done,
        final_weights=path / "model_final.pdparams",
        best_weights=best if judged and best.is_file() else None,
        best_ap=progress.best["AP"] if judged else None,
        evaluation=Evaluation(read_json(last)) if last.is_file() else None,
    )


def evaluate(
    config: Source | Config,
    weights: Source,
    *,
    overrides: Overrides = (),
    options: Options = COCO,
    device: str | None = None,
    log_to: Log = None,
    own_process: bool = False,
) -> Evaluation:
    """Evaluate weights on the config's EvalDataset and the named sets of its `eval_sets`.

    Under a launcher every rank must call it.

    Args:
        config, overrides: see `resolve_config`.
        weights: run directory, checkpoint, weights file, exported model, or URL.
        options: thresholds and test-time augmentation, or one of the data sets; the default gives
            COCO's figures.
        device, log_to, own_process: see `train`.

    Raises:
        UserError: config, data or weights are wrong or do not fit together.
        RunFailure: no memory.
    """
    config = resolve_config(config, overrides)
    _refuse_missing(config, *eval_sets.sections(config.data, options.eval_set).values())
    with _work(config, device, log_to) as found:
        from fcos_recipe.evaluation.evaluate import evaluate_weights
        from fcos_recipe.system import out_of_memory

        advice = out_of_memory.evaluation(config.data)
        explained = out_of_memory.explained(
            found, advice, readers=out_of_memory.readers(config.data, "EvalReader")
        )
        with _watchdog(config, own_process) as watchdog, explained:
            return evaluate_weights(config, str(weights), found, options, watchdog)


def predict(
    weights: Source,
    images: Any,
    *,
    config: Source | Config | None = None,
    score_threshold: float = 0.0,
    batch_size: int = 1,
    strict: bool = False,
    device: str | None = None,
    log_to: Log = None,
) -> "list[Detections]":
    """Detect objects on images. To predict more than once, make a `Predictor` and call it.

    Args:
        weights: run directory, checkpoint, weights file, exported model, or URL.
        images: one or several files, folders, globs, videos, bytes, PIL images or arrays, see
            `Predictor.stream`.
        config: see `resolve_config`; default the config.yml of the weights' run directory.
        score_threshold: detections that score less are left out.
        batch_size: images per batch, padded to the largest, which changes scores a little.
        strict: raise the error of an image that cannot be read; False: `Detections.error` says it.
        device, log_to: see `train`.

    Returns:
        one `Detections` per image, in their order.

    Raises:
        UserError: weights or config, or (`strict`) an array, are wrong.
        BadImage (data.images): (`strict`) a file cannot be decoded.
    """
    with _predictor(weights, config, score_threshold, device, log_to) as predictor:
        return predictor(images, batch_size, strict=strict)


def predict_files(
    weights: Source,
    inputs: Sequence[Source],
    output: Source,
    *,
    config: Source | Config | None = None,
    score_threshold: float = 0.0,
    draw_threshold: float | None = None,
    batch_size: int = 1,
    precision: str = "fp32",
    as_csv: bool = False,
    classes: Sequence[str | int] | None = None,
    agnostic_nms: bool = False,
    max_dets: int | None = None,
    save_crops: bool = False,
    save_labels: str | None = None,
    lines: TextIO | None = None,
    device: str | None = None,
    log_to: Log = None,
    progress: bool | None = False,
) -> "Written":
    """Detect objects on files, streams and cameras; write drawings and COCO results.

    Args:
        weights, config, score_threshold, batch_size, device, log_to: see `predict`.
        inputs: files, folders, globs, lists (.txt) with a path per line, addresses of streams
            (rtsp, http and others), or numbers of cameras.
        output: folder for the drawings and predictions.json.
        draw_threshold: lowest score that is drawn, 0 to 1; default the one of the best F1 in the
            evaluation of the weights' run, or 0.5 if there is none.
        precision: fp32, or bf16 for an export of format paddle.
        as_csv: also write predictions.csv.
        classes: names or row numbers of the classes to report; None: all.
        agnostic_nms: leave out the worse of two overlapping boxes also if their classes differ.
        max_dets: most detections per image; None: as many as the model's NMS keeps.
        save_crops: also write the part of the image in each drawn box, to the folder crops.
        save_labels: also write the drawn boxes of images as coco, yolo, voc or labelme, to the
            folder labels.
        lines: write what is found on an image or frame to this, as a line of JSON and at once,
            instead of any file; see `predict.files.predict_files`.
        progress: show progress bars; None: on a terminal.

    Returns:
        what was found, and the files that could not be read.

    Raises:
        UserError: weights, config, inputs or output are wrong.
        RunFailure: no memory.
    """
    from fcos_recipe.predict import files
    from fcos_recipe.predict.inputs import find_inputs
    from fcos_recipe.predict.labels import FORMATS
    from fcos_recipe.predict.results import class_rows

    for name, value in (("score", score_threshold), ("draw", draw_threshold)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name}_threshold: {value} is not a score; give 0 to 1, such as 0.5")
    if max_dets is not None and max_dets < 1:
        raise UserError(f"max_dets: {max_dets} is less than 1")
    if save_labels is not None and save_labels not in FORMATS:
        raise UserError(
            f"save_labels: {save_labels!r} is unknown; choose from {', '.join(FORMATS)}"
        )
    folder = Path(output)
    if draw_threshold is None:
        draw_threshold = files.best_f1_threshold(str(weights))[0]
    names = find_inputs([str(item) for item in inputs], skip=folder)
    if lines is None:
        files.check_output(names, folder)
    elif as_csv or save_crops or save_labels:
        raise UserError("lines: nothing else can be written beside them: no CSV, crops or labels")
    advice = f"--batch-size {batch_size} does not fit; lower it, or use smaller images"
    with _predictor(
        weights, config, score_threshold, device, log_to, precision, advice
    ) as predictor:
        if classes is not None:
            class_rows(classes, predictor.names)  # refused before any image
        overlap = predictor.nms_threshold if agnostic_nms else None
        return files.predict_files(
            predictor, names, folder, batch_size, draw_threshold, as_csv, progress,
            lambda found: found.filter(classes, most=max_dets, agnostic_nms=overlap), save_crops,
            save_labels, lines,
        )  # fmt: skip


def export(
    weights: Source,
    output: Source,
    *,
    format: str = "paddle",
    nms: bool = True,
    opset: int = 16,
    int8: Source | None = None,
    fp16: bool = False,
    config: Source | Config | None = None,
    device: str | None = None,
    log_to: Log = None,
) -> Exported:
    """Export weights for inference, and check that the export finds what the model finds.

    Args:
        weights, config, device, log_to: see `predict`.
        output: gets the folder CONFIG_NAME-FORMAT, "-raw" added without NMS, "-int8" or
            "-fp16" with these.
        format: paddle, or onnx.
        nms: include non-maximum suppression; without it the export gives all candidates.
        opset: version of ONNX's operators, 13 to 19; for onnx.
        int8: folder, glob or list (.txt) of images like those to predict on: convolutions become
            int8, with the ranges of values that these images have; for onnx. The check is that of
            `predict.parity.compare_nearly`, since detections change.
        fp16: convolutions and the layers around them calculate in float16, for cards; for onnx. The
            check is that of int8, on the CPU. Its speed on a card is not verified on hardware.

    Raises:
        UserError: weights or config are wrong, or no converter to ONNX is installed.
        RunFailure: the export finds something else; it stays as NAME.rejected.
    """
    if format not in ("paddle", "onnx"):
        raise UserError(f"format: {format!r} is unknown; choose paddle or onnx")
    from fcos_recipe.predict import fp16 as halving
    from fcos_recipe.predict.int8 import calibration_files, quantiser
    from fcos_recipe.predict.onnx_graph import OPSETS, converter
    from fcos_recipe.predict.predictor import config_of

    if opset not in OPSETS:
        raise UserError(f"opset: {opset} cannot be written; choose {OPSETS[0]} to {OPSETS[-1]}")
    if (int8 is not None or fp16) and format != "onnx":
        raise UserError(f"int8, fp16: exports of format onnx can have them, not {format}")
    if int8 is not None and fp16:
        raise UserError("int8 and fp16: choose one of them")
    calibration = None
    if format == "onnx":
        with same_environment():
            converter()  # raises before any work is done
        if int8 is not None:
            quantiser()
            calibration = calibration_files(str(int8))
        if fp16:
            halving.converter()
    known = config_of(str(weights), config)
    advice = "the export's check does not fit; end other processes on the card, or -o device=cpu"
    with _work(known, device, log_to) as found:
        from fcos_recipe.predict import export as exporting
        from fcos_recipe.predict.predictor import Predictor
        from fcos_recipe.system import out_of_memory

        try:
            with out_of_memory.explained(found, advice):
                predictor = Predictor(weights, known, found)
                name = f"{predictor.config.name}-{format}{'' if nms else '-raw'}"
                name += "-int8" if calibration else "-fp16" if fp16 else ""
                folder = Path(output) / name
                check = exporting.export(predictor, folder, format, nms, opset, calibration, fp16)
        except OSError as error:
            if error.errno is None:  # Paddle's error about a card, not about a file
                raise
            raise UserError(f"--output {output}: {path_reason(error)}") from None
    figures = {field.name: getattr(check, field.name) for field in fields(Exported)[1:]}
    return Exported(folder, **figures)


def verify(
    data: Source | None = None,
    *,
    config: Source | None = None,
    overrides: Overrides = (),
    split: str | None = None,
    data_format: str | None = None,
    image_folder: Source | None = None,
    read_images: bool = True,
    fix: Source | None = None,
    allow: Sequence[str] = (),
) -> Verified:
    """Check the annotations and images of a data set before training on it.

    Args:
        data: a folder or an annotation file, in any format that `fcos dataset convert` reads;
            default the config's data sets.
        config, overrides: also compare the data with this config.
        split: only "train" or "val".
        data_format: of `data`, if several lie there: a value of `--from`.
        image_folder: the images, where they are not found beside the annotations.
        read_images: decode every image.
        fix: write a cleaned copy of the annotations here.
        allow: kinds of errors that count as warnings.

    Raises:
        UserError: nothing to check, or a file cannot be read or written.
    """
    from fcos_recipe.datasets import locate
    from fcos_recipe.datasets.verify.run import verify as check

    folder, file, images = (None if x is None else Path(x) for x in (data, config, image_folder))
    found, rules = locate.sources(
        folder, file, _texts(overrides), split, images, False, data_format
    )
    missing: list[str] = []
    if data is None and not split:
        named = locate.splits(rules.data)
        for name in named.keys() - {source.name for source in found}:
            missing += rules.missing_files(named[name])
    try:
        report = check(
            found, rules if config is not None else None, read_images, data is not None,
            Path(fix) if fix is not None else None, missing, allow,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"{error.filename or fix}: {path_reason(error)}") from None
    return Verified(report["errors"], report["warnings"], report)


def _refuse_missing(config: Config, *sections: str) -> None:
    if missing := config.missing_files(*sections):
        raise UserErrors(missing)


@contextmanager
def _work(config: Config | None, device: str | None, log_to: Log) -> Iterator[str]:
    """The device for a piece of work, and its messages where they are wanted."""
    with messages(log_to), session(device or compute.requested(config)) as found:
        if compute.is_shown():
            log.info("%s", found.line())
        yield found.device


@contextmanager
def _watchdog(config: Config, own_process: bool) -> "Iterator[Watchdog | None]":
    """A running watchdog for a process of our own, else None."""
    from fcos_recipe.system.watchdog import Watchdog, rank

    with ExitStack() as stack:
        yield (
            stack.enter_context(Watchdog(config.data["watchdog"], rank())) if own_process else None
        )


@contextmanager
def _predictor(
    weights: Source,
    config: Source | Config | None,
    score_threshold: float,
    device: str | None,
    log_to: Log,
    precision: str = "fp32",
    advice: str = "the batch does not fit; lower batch_size, or use smaller images",
) -> "Iterator[Predictor]":
    """A `Predictor` on the device that the caller or the config asks for."""
    from fcos_recipe.predict.predictor import config_of

    known = config_of(str(weights), config)
    with _work(known, device, log_to) as found:
        from fcos_recipe.predict.predictor import Predictor
        from fcos_recipe.system import out_of_memory

        with out_of_memory.explained(found, advice):
            yield Predictor(weights, known, found, score_threshold, precision)
