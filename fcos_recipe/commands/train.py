"""`fcos train`: arguments in, exit code out; and what `fcos eval` shares with it."""

import argparse
from pathlib import Path

from fcos_recipe import api, exit_codes
from fcos_recipe.commands import options
from fcos_recipe.commands.elsewhere import add_refusals
from fcos_recipe.config import load_config
from fcos_recipe.console import to_console
from fcos_recipe.system.watchdog import rank

_TRAIN_EXAMPLE = """\
examples:
  python tools/train.py -c configs/fcos/fcos_r18_fpn_demo.yml --eval
  python tools/train.py -c configs/fcos/fcos_r50_fpn_1x_coco.yml --eval -o TrainReader.batch_size=4
  python -m paddle.distributed.launch --gpus 0,1,2,3,4,5,6,7 tools/train.py \\
      -c configs/fcos/fcos_r50_fpn_1x_coco.yml --eval
"""
_CODES = {
    exit_codes.FAILED: "failed",
    exit_codes.SAVED: "SIGTERM or SIGHUP, after a checkpoint was saved",
    exit_codes.INTERRUPTED: "Ctrl-C, after a checkpoint was saved",
}


def yes(text: str) -> bool:
    """A boolean option's value; PaddleDetection's `type=bool` took "False" for True."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def common_parser(
    name: str, text: str, example: str, codes: dict[int, str]
) -> argparse.ArgumentParser:
    """The parser of a command that takes a config and an output directory."""
    parser = options.parser(name, text, example, codes)
    options.add_config(parser)
    options.add_overrides(parser, "override config values, e.g. LearningRate.base_lr=0.005")
    add = parser.add_argument
    add("--output", type=Path, metavar="DIR", help="run directory (default: save_dir/CONFIG_NAME)")
    add("--strict", action="store_true", default=None,
        help="unknown keys are errors in PaddleDetection's own YAML too")  # fmt: skip
    return parser


def load(args, parser, overrides: list[str]):
    if not args.config:
        parser.error("-c CONFIG is required")
    config = load_config(args.config, [*args.opt, *overrides], strict=args.strict)
    return config, Path(args.output or Path(config.data["save_dir"]) / config.name)


def train(argv: list[str]) -> int:
    """Train a model."""
    parser = common_parser("train", "Train a model.", _TRAIN_EXAMPLE, _CODES)
    add = parser.add_argument
    add("--eval", action="store_true", help="evaluate during training, keep the best weights")
    add("-r", "--resume", metavar="PATH|auto",
        help="go on from a checkpoint; auto: the run directory's newest intact one")  # fmt: skip
    add("--force", action="store_true",
        help="resume also with a config that changes what the steps compute")  # fmt: skip
    add("--amp", action="store_true", help="automatic mixed precision (cards only)")
    add("--seed", type=int, help="seed of weights, order and augmentation")
    add("--logger", nargs="+", action="extend", default=[], metavar="NAME",
        help="also write metrics for these, see `loggers` in `fcos config keys`; or for a "
             "class of yours, MODULE:CLASS (docs/training.md)")  # fmt: skip
    add("--use_vdl", type=yes, nargs="?", const=True, default=False, metavar="BOOL",
        help="PaddleDetection's name of --logger visualdl")  # fmt: skip
    add("--vdl_log_dir", type=Path, metavar="DIR", help="default: RUN_DIR/vdl")
    add("--to_static", action="store_true", help="compile the model to a static graph")
    add("--enable_ce", type=yes, nargs="?", const=True, default=False, metavar="BOOL",
        help="PaddleDetection's switch for repeatable runs: seed 0")  # fmt: skip
    add_refusals(parser, "train")
    args = parser.parse_args(argv)
    overrides = [f"{name}=true" for name in ("amp", "to_static") if getattr(args, name)]
    if args.seed is not None or args.enable_ce:
        overrides.append(f"seed={args.seed or 0}")
    config, path = load(args, parser, overrides)
    to_console(rank())
    api.train(
        config, output=path, evaluate=args.eval, resume=args.resume, force=args.force,
        loggers=[*args.logger, *["visualdl"] * args.use_vdl], vdl_folder=args.vdl_log_dir,
        own_process=True,
    )  # fmt: skip
    return exit_codes.OK
