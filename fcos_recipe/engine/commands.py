"""`fcos train` and `fcos eval`: arguments in, exit code out."""

import argparse
import json
import os
from pathlib import Path

from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError, UserErrors
from fcos_recipe.runtime.device import requested

_TRAIN_EXAMPLE = """\
examples:
  python tools/train.py -c configs/fcos/fcos_r18_fpn_demo.yml --eval
  python tools/train.py -c configs/fcos/fcos_r50_fpn_1x_coco.yml --eval -o TrainReader.batch_size=4
  python -m paddle.distributed.launch --gpus 0,1,2,3,4,5,6,7 tools/train.py \\
      -c configs/fcos/fcos_r50_fpn_1x_coco.yml --eval
exit codes: 0 done, 1 failed, 2 bad input (one line says what), 130 interrupted
"""
_EVAL_EXAMPLE = """\
examples:
  python tools/eval.py -c configs/fcos/fcos_r18_fpn_demo.yml \\
      --weights output/fcos_r18_fpn_demo/best_model.pdparams
  python tools/eval.py --predictions dets.json --annotations instances_val2017.json --json out.json
exit codes: 0 done, 1 failed, 2 bad input
"""


def yes(text: str) -> bool:
    """A boolean option's value; PaddleDetection's `type=bool` took "False" for True."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def _parser(name: str, text: str, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"fcos {name}", description=text, epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("-c", "--config", help="YAML file")
    add("-o", "--opt", nargs="*", action="extend", default=[], metavar="KEY=VALUE",
        help="override config values, e.g. LearningRate.base_lr=0.005")  # fmt: skip
    add("--output", metavar="DIR", help="run directory (default: save_dir/CONFIG_NAME)")
    add("--strict", action="store_true", default=None,
        help="unknown keys are errors in PaddleDetection's own YAML too")  # fmt: skip
    return parser


def _load(args, parser, overrides: list[str]):
    if not args.config:
        parser.error("-c CONFIG is required")
    config = load_config(args.config, [*args.opt, *overrides], strict=args.strict)
    return config, Path(args.output or Path(config.data["save_dir"]) / config.name)


def start(requested: str) -> str:
    """Settings that must precede Paddle's import, then the device this process runs on.

    Args:
        requested: auto, cpu, gpu or iluvatar_gpu.

    Returns:
        cpu, gpu or iluvatar_gpu.
    """
    from fcos_recipe.runtime import cpu_math, device

    cpu_math.ensure(requested)
    found = device.resolve(requested)
    device.set_device(found)
    return found


def train(argv: list[str]) -> int:
    """Train a model."""
    parser = _parser("train", "Train a model.", _TRAIN_EXAMPLE)
    add = parser.add_argument
    add("--eval", action="store_true", help="evaluate during training, keep the best weights")
    add("-r", "--resume", metavar="PATH|auto",
        help="go on from a checkpoint; auto: the run directory's newest intact one")  # fmt: skip
    add("--amp", action="store_true", help="automatic mixed precision (cards only)")
    add("--seed", type=int, help="seed of weights, order and augmentation")
    add("--use_vdl", type=yes, nargs="?", const=True, default=False, metavar="BOOL",
        help="write scalars for VisualDL")  # fmt: skip
    add("--vdl_log_dir", metavar="DIR", help="default: RUN_DIR/vdl")
    add("--to_static", action="store_true", help="compile the model to a static graph")
    add("--enable_ce", type=yes, nargs="?", const=True, default=False, metavar="BOOL",
        help="PaddleDetection's switch for repeatable runs: seed 0")  # fmt: skip
    args = parser.parse_args(argv)
    overrides = ["amp=true"] if args.amp else []
    if args.seed is not None or args.enable_ce:
        overrides.append(f"seed={args.seed or 0}")
    config, path = _load(args, parser, overrides)
    sections = ["TrainDataset", *(["EvalDataset"] if args.eval else [])]
    if not args.resume:
        sections.append("pretrain_weights")
    if missing := config.missing_files(*sections):
        raise UserErrors(missing)
    device = start(requested(config.data))

    from fcos_recipe.engine.run_dir import RunDir, visualdl_sink
    from fcos_recipe.engine.trainer import Trainer
    from fcos_recipe.runtime.watchdog import Watchdog, rank

    with Watchdog(config.data["watchdog"], rank()) as watchdog:
        trainer = Trainer(config, "train", device, watchdog)
        resume = args.resume
        if resume == "auto":
            resume = str(path) if (path / "checkpoints").is_dir() else None
        ours = resume is not None and path.resolve() in (Path(resume) / "_").resolve().parents
        if resume:
            trainer.resume_weights(resume)
        elif source := config.data["pretrain_weights"]:
            trainer.load_weights(source)
        if args.to_static or config.data["to_static"]:
            trainer.compile()
        run = RunDir(path, writer=trainer.rank == 0, resume=ours)
        if args.use_vdl or config.data["use_vdl"]:
            folder = args.vdl_log_dir or config.data["vdl_log_dir"] or path / "vdl"
            run.add_sink(visualdl_sink(folder))
        trainer.train(run, args.eval)
    return 0


def evaluate(argv: list[str]) -> int:
    """Evaluate weights, or a file of detections."""
    parser = _parser("eval", "COCO figures of a weights file or of a detections file.",
                     _EVAL_EXAMPLE)  # fmt: skip
    add = parser.add_argument
    add("--weights", metavar="W", help="weights file, checkpoint folder or URL")
    add("--predictions", metavar="DETS.json", help="COCO results file to judge without a model")
    add("--annotations", metavar="GT.json", help="annotations that --predictions belong to")
    add("--json", metavar="FILE", help="also write the result here")
    add("--save-predictions", metavar="FILE", help="write all detections as COCO results")
    add("--classwise", action="store_true", help="accepted; AP per class is always shown")
    add("--amp", action="store_true", help="automatic mixed precision (cards only)")
    add("--output_eval", metavar="DIR", help="PaddleDetection's name of --output")
    args = parser.parse_args(argv)
    args.output = args.output or args.output_eval
    if args.predictions:
        return _evaluate_file(args, parser)
    config, path = _load(args, parser, ["amp=true"] if args.amp else [])
    weights = args.weights or config.data.get("weights")
    if not weights:
        parser.error("--weights W is required (or -o weights=W)")
    if missing := config.missing_files("EvalDataset"):
        raise UserErrors(missing)
    device = start(requested(config.data))

    from fcos_recipe.engine import checkpoint
    from fcos_recipe.engine.coco_metric import table
    from fcos_recipe.engine.trainer import Trainer
    from fcos_recipe.runtime.watchdog import Watchdog, rank

    with Watchdog(config.data["watchdog"], rank()) as watchdog:
        trainer = Trainer(config, "eval", device, watchdog)
        trainer.load_weights(weights, exact=True)
        result = trainer.evaluate()
    if trainer.rank == 0:
        print(table(result))
        print(f"{result['images']} images, {result['images_per_second']:.2f} images/s, "
              f"{result['seconds']:.1f} s with the matching")  # fmt: skip
        targets = [args.json] if args.json else []
        for target in [*targets, *([path / "eval.json"] if args.output else [])]:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(Path(target), {"weights": str(weights), **result})
        if args.save_predictions:
            trainer.metric.write_predictions(args.save_predictions)
    return 0


def _evaluate_file(args, parser) -> int:
    if not args.annotations:
        parser.error("--predictions needs --annotations GT.json")
    from fcos_recipe.engine.coco_metric import CocoMetric, table

    metric = CocoMetric(args.annotations)
    metric.load_result_json(args.predictions)
    result = metric.result()
    print(table(result))
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(result, indent=1) + os.linesep)
        except OSError as error:
            raise UserError(f"--json {args.json}: {error.strerror}") from None
    return 0
