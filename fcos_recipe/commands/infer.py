"""`fcos infer`: images, videos and streams in; drawings, COCO results and CSV out."""

import argparse
import sys
from pathlib import Path
from typing import Any

from fcos_recipe import api, exit_codes
from fcos_recipe.commands import options
from fcos_recipe.commands.elsewhere import add_refusals
from fcos_recipe.commands.train import yes
from fcos_recipe.config import Config, load_config
from fcos_recipe.console import plural, say, to_console
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import given_path
from fcos_recipe.predict.backends import PRECISIONS, export_facts
from fcos_recipe.predict.files import PREDICTIONS, best_f1_threshold
from fcos_recipe.predict.labels import FORMATS
from fcos_recipe.predict.predictor import run_config

_EXAMPLE = """\
examples:
  python tools/infer.py --weights output/fcos_r18_fpn_demo/best_model.pdparams \\
      --input datasets/demo/val --output output/drawn
  python tools/infer.py -c configs/fcos/fcos_r50_fpn_1x_coco.yml \\
      -o weights=fcos_r50_fpn_1x_coco.pdparams --infer_img cat.jpg --draw_threshold 0.4
  python tools/infer.py --weights output/fcos_r18_fpn_demo/best_model.pdparams --input drive.mp4
  python tools/infer.py --weights output/fcos_r18_fpn_demo --input rtsp://HOST/live --stream
"""
_OUTPUT = "output/infer"
_CODES = {exit_codes.FAILED: "some images could not be read, or a stream ended; each is named"}


def main(argv: list[str]) -> int:
    """Predict on images."""
    args = _parse(argv)
    config, weights = config_and_weights(args)
    to_console(0, sys.stderr if args.stream else sys.stdout)
    threshold, said = args.draw_threshold, ""
    if threshold is None:
        threshold, said = best_f1_threshold(weights)
    output = args.output or _OUTPUT
    written = api.predict_files(
        weights, args.input, output, config=config, score_threshold=args.score_threshold,
        draw_threshold=threshold, batch_size=args.batch_size, precision=args.precision,
        as_csv=args.csv, progress=args.show_progress, classes=args.classes,
        agnostic_nms=args.agnostic_nms, max_dets=args.max_dets, save_crops=args.save_crops,
        save_labels=args.save_labels, lines=sys.stdout if args.stream else None,
    )  # fmt: skip
    if args.stream:
        say(f"{plural(written.images, 'image')}, {plural(written.detections, 'detection')}")
    else:
        print(
            f"{plural(written.images, 'image')}, {plural(written.detections, 'detection')} "
            f"({written.drawn} drawn, score >= {written.draw_threshold:g}"
            f"{f', the best F1 of {said}' if said else ''}) "
            f"-> {output}"
            + (f"; {plural(written.videos, 'video')} as VP8 in WebM" if written.videos else "")
        )
    for message in written.bad:
        print(f"error: {message}; skipped", file=sys.stderr)
    return exit_codes.FAILED if written.bad else exit_codes.OK


def add_weights(parser: argparse.ArgumentParser) -> None:
    """-c, -o and --weights of a command that finds the config beside the weights."""
    options.add_config(parser, "YAML file (default: config.yml of the weights' run directory)")
    options.add_overrides(parser, "override config values")
    parser.add_argument(
        "--weights",
        metavar="W",
        help="run directory, checkpoint, .pdparams or URL (default: config's `weights`)",
    )


def config_and_weights(args: argparse.Namespace) -> tuple[Config | None, str]:
    """What the options of `add_weights` mean.

    Raises:
        UserError: no weights, no config for -o, or a wrong config.
    """
    strict = getattr(args, "strict", None)
    path = args.config
    if args.opt and not path:
        if not args.weights:
            raise UserError("-o: name the config with -c CONFIG, or the weights of a run")
        if export_facts(args.weights):
            raise UserError(f"-o: {args.weights} is an exported model, which takes no values")
        path = run_config(args.weights)
    config = load_config(path, args.opt, strict=strict) if path else None
    weights = args.weights or (config.data.get("weights") if config else None)
    if not weights:
        raise UserError("--weights: missing; name a weights file (or -o weights=FILE with -c)")
    if "://" not in weights:
        given_path(weights)  # refuse what no file can be called
    return config, weights


def _parse(argv: list[str]) -> argparse.Namespace:
    text = "Draw boxes on images and videos, write COCO results."
    parser = options.parser("infer", text, _EXAMPLE, _CODES)
    add = parser.add_argument
    add_weights(parser)
    add("--strict", action="store_true", default=None, help=argparse.SUPPRESS)
    add(
        "--input",
        "--infer_img",
        "--infer_dir",
        "--infer_list",
        nargs="+",
        action="extend",
        required=True,
        metavar="IMAGE|DIR|GLOB|VIDEO|LIST.txt|ADDRESS|CAMERA",
        help="a directory is searched for images and videos to any depth, a list has a path per "
        "line; of a stream (rtsp://..., http://...) or camera (0, 1, ...) the newest frame is next",
    )
    add("--output", "--output_dir", type=Path, metavar="DIR",
        help=f"for the drawings and {PREDICTIONS} (default: {_OUTPUT})")  # fmt: skip
    add("--stream", action="store_true",
        help="write nothing but a line of JSON to standard output for each image or frame, as soon "
        "as it is done")  # fmt: skip
    add("--show-progress", action="store_true", default=None,
        help="show progress also where standard error is no terminal")  # fmt: skip
    add("--draw_threshold", "--draw-threshold", type=options.finite, metavar="SCORE",
        help="lowest score that is drawn (default: that of the best F1 in the analysis.json of the "
        "weights' run, else 0.5)")  # fmt: skip
    add("--score_threshold", "--score-threshold", type=options.finite, default=0.0, metavar="SCORE",
        help=f"lowest score in {PREDICTIONS} (default: all that NMS keeps)")  # fmt: skip
    add("--batch-size", type=int, default=1, metavar="N",
        help="images that run together, padded to the largest, which changes scores a little "
        "(default: %(default)s; evaluation has EvalReader's)")  # fmt: skip
    add("--precision", choices=PRECISIONS, default="fp32",
        help="bf16: faster, other scores; exports of --format paddle")  # fmt: skip
    add("--classes", type=options.listed, metavar="A,B",
        help="only these classes, by name or number from 0")  # fmt: skip
    add("--agnostic-nms", action="store_true",
        help="of overlapping boxes keep the best, whatever their classes")  # fmt: skip
    add("--max-dets", type=int, metavar="N", help="at most N detections per image")
    add("--save-crops", action="store_true", help="also write each drawn box's part of the image")
    add("--save-labels", choices=FORMATS,
        help="also write the drawn boxes of images as labels, to correct in a tool")  # fmt: skip
    add("--csv", action="store_true", help="also write predictions.csv")
    # PaddleDetection's; results are always saved, and there is nothing to log here
    ignored: dict[str, Any] = dict(nargs="?", type=yes, const=True, default=False, metavar="BOOL")
    add("--save_results", **ignored, help="accepted; they are always saved")
    add("--use_vdl", **ignored, help="accepted, without effect")
    add("--vdl_log_dir", metavar="DIR", help="accepted, without effect")
    add_refusals(parser, "infer")
    args = parser.parse_args(argv)
    for name in ("use_vdl", "vdl_log_dir"):
        if getattr(args, name):
            print(f"warning: --{name}: no effect; drawings are files in --output", file=sys.stderr)
    if args.batch_size < 1:
        parser.error("--batch-size: at least 1")
    for name in ("output", "csv", "save_crops", "save_labels", "draw_threshold"):
        if args.stream and getattr(args, name):
            raise UserError(f"--stream: writes no file; leave out --{name.replace('_', '-')}")
    return args
