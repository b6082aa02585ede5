"""`fcos eval`: COCO figures of weights, of an exported model, or of a file of detections."""

import argparse
import json
from pathlib import Path

from fcos_recipe import api, exit_codes
from fcos_recipe.commands.elsewhere import add_refusals
from fcos_recipe.commands.options import add_json, finite, whole, write
from fcos_recipe.commands.train import common_parser, load
from fcos_recipe.config import eval_sets
from fcos_recipe.console import plural, to_console
from fcos_recipe.errors import UserError, not_written, path_reason, printable, refuse_incomplete
from fcos_recipe.evaluation.metric import CocoMetric, table
from fcos_recipe.evaluation.options import MAX_DETS, Options
from fcos_recipe.files.atomic import replace_file
from fcos_recipe.predict.backends import PRECISIONS
from fcos_recipe.system.watchdog import rank

_EXAMPLE = """\
examples:
  python tools/eval.py -c configs/fcos/fcos_r18_fpn_demo.yml \\
      --weights output/fcos_r18_fpn_demo/best_model.pdparams
  python -m paddle.distributed.launch --gpus 0,1,2,3,4,5,6,7 tools/eval.py \\
      -c configs/fcos/fcos_r50_fpn_1x_coco.yml --weights fcos_r50_fpn_1x_coco.pdparams
  python tools/eval.py --predictions dets.json --annotations instances_val2017.json --json out.json
writes eval.json, analysis.json and plots/ into --output, for --predictions only if it is given
"""
_CODES = {exit_codes.FAILED: "failed"}


def evaluate(argv: list[str]) -> int:
    """Evaluate weights, or a file of detections."""
    text = "COCO figures of weights or of a file of detections."
    parser = common_parser("eval", text, _EXAMPLE, _CODES)
    add = parser.add_argument
    add(
        "--weights",
        metavar="W",
        help="run directory, checkpoint, weights file, exported model or URL",
    )
    add("--predictions", metavar="DETS.json", help="COCO results file to judge without a model")
    add("--annotations", metavar="GT.json", help="annotations that --predictions belong to")
    add_json(parser)
    add("--save-predictions", type=Path, metavar="FILE",
        help="write all detections as COCO results")  # fmt: skip
    add("--classwise", action="store_true", help="more figures for each class")
    add("--score-threshold", type=finite, default=0.0, metavar="S",
        help="leave out detections that score less; figures are then not COCO's")  # fmt: skip
    add("--max-dets", type=int, default=MAX_DETS, metavar="N",
        help="detections judged per image; other than %(default)s is not COCO's")  # fmt: skip
    add("--tta-flip", action="store_true",
        help="also look at mirrored images; one NMS over all views")  # fmt: skip
    add("--tta-sizes", type=_sizes, metavar="S,...",
        help="look at these short sides, e.g. 640,800,960; one NMS over all")  # fmt: skip
    add("--padding-effect", action="store_true",
        help="also evaluate as PaddleDetection: one image at a time, padded to 128")  # fmt: skip
    add("--eval-set", metavar="NAME",
        help="only this data set: a name of the config's `eval_sets`, or EvalDataset")  # fmt: skip
    add("--no-plots", action="store_true", help="no pictures")
    add("--precision", choices=PRECISIONS, default="fp32",
        help="bf16: faster, other scores; exports of --format paddle")  # fmt: skip
    add("--amp", action="store_true", help="automatic mixed precision (cards only)")
    add("--output_eval", type=Path, metavar="DIR", help="PaddleDetection's name of --output")
    add_refusals(parser, "eval")
    args = parser.parse_args(argv)
    args.output = args.output or args.output_eval
    judging = {"score_threshold": args.score_threshold, "max_dets": args.max_dets}
    if args.predictions:
        given = {"-c": args.config, "-o": args.opt, "--weights": args.weights,
                 "--tta-*": args.tta_sizes or args.tta_flip, "--amp": args.amp,
                 "--padding-effect": args.padding_effect, "--eval-set": args.eval_set,
                 "--precision": args.precision != "fp32"}  # fmt: skip
        if needless := [name for name, value in given.items() if value]:
            parser.error(f"--predictions is judged without a model: leave out {needless[0]}")
        if not args.annotations:
            parser.error("--predictions needs --annotations GT.json")
        metric = CocoMetric(args.annotations, **judging)
        metric.load_result_json(args.predictions)
        _report(args, metric, metric.result(), args.output, args.predictions)
        return exit_codes.OK
    if args.annotations:
        parser.error("--annotations belongs to --predictions; else the config names them")
    config, path = load(args, parser, ["amp=true"] if args.amp else [])
    weights = args.weights or config.data.get("weights")
    if not weights:
        parser.error("--weights W is required (or -o weights=W)")
    to_console(rank())
    options = Options(
        sizes=args.tta_sizes or (), flip=args.tta_flip, precision=args.precision,
        padding_effect=args.padding_effect, eval_set=args.eval_set, **judging,
    )  # fmt: skip
    sets = eval_sets.sections(config.data, args.eval_set)
    if args.save_predictions and len(sets) > 1:
        raise UserError(f"--save-predictions {args.save_predictions}: of which data set? Add "
                        f"--eval-set NAME with one of {', '.join(sets)}")  # fmt: skip
    args.classwise |= config.data["classwise"]
    args.output = args.output or config.data["output_eval"]
    evaluation = api.evaluate(config, weights, options=options, own_process=True)
    if rank() == 0:
        assert evaluation.metric is not None
        folder = args.output or path / ("eval" + f"-{args.eval_set}" * bool(args.eval_set))
        _report(args, evaluation.metric, evaluation.result, folder, weights)
    return exit_codes.OK


def _sizes(text: str) -> list[int]:
    sizes = [whole(part) for part in text.split(",")]
    if min(sizes) < 32:
        raise ValueError("less than a cell of the network")
    return sizes


def _report(
    args: argparse.Namespace,
    metric: CocoMetric,
    result: dict,
    output: str | Path | None,
    source: str,
) -> None:
    """Show the figures and write them wherever they were asked for."""
    from fcos_recipe.evaluation.analysis import finish_evaluation

    kind = "predictions" if args.predictions else "weights"
    content = json.dumps({kind: str(source), **result}, indent=1)
    try:
        if output:
            folder = Path(output)
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / "eval.json", content + "\n")
        if args.json:
            write(args.json, content + "\n")
        if args.save_predictions:
            metric.write_predictions(args.save_predictions)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {path_reason(error)}") from None
    others = result.get("sets", {})
    if args.eval_set or others:
        print(f"{args.eval_set or eval_sets.MAIN}:")
    print(printable(table(result, args.classwise)))
    if output:  # last: the figures are safe by now
        missing: dict[str, Exception] = {}
        for line in finish_evaluation(metric, folder, missing, pictures=not args.no_plots):
            print(line)
    if "tta" in result:
        print(f"test-time augmentation, not to be compared with plain figures: {result['tta']}")
    _show_costs(result)
    for name, one in others.items():
        print(f"\n{name}:\n{printable(table(one, args.classwise))}")
        _show_costs(one)
    if output:
        refuse_incomplete(folder, not_written(missing), "mend that and evaluate again")
        print(f"figures: {output}")


def _show_costs(result: dict) -> None:
    """The AP with PaddleDetection's batches and the speed, if they were measured."""
    if "reference_ap" in result:
        ap, reference = result["stats"][0], result["reference_ap"]
        change = f"{reference:.4f} ({ap - reference:+.4f})"
        print(f"AP {ap:.4f}; one image at a time padded to 128: {change}")
    if "images_per_second" in result:
        whole = result["images"] / result["seconds"]
        print(
            f"{plural(result['images'], 'image')}, {result['images_per_second']:.2f} images/s "
            f"up to the detections, {whole:.2f} with the matching ({result['seconds']:.1f} s)"
        )
