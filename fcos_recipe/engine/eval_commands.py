"""`fcos eval`: COCO figures of weights, of an exported model, or of a file of detections."""

import json
import os
from pathlib import Path

from fcos_recipe.engine.commands import common_parser, load, start
from fcos_recipe.errors import UserError, UserErrors
from fcos_recipe.runtime.device import requested

_EVAL_EXAMPLE = """\
examples:
  python tools/eval.py -c configs/fcos/fcos_r18_fpn_demo.yml \\
      --weights output/fcos_r18_fpn_demo/best_model.pdparams
  python tools/eval.py --predictions dets.json --annotations instances_val2017.json --json out.json
exit codes: 0 done, 1 failed, 2 bad input
"""


def evaluate(argv: list[str]) -> int:
    """Evaluate weights, or a file of detections."""
    parser = common_parser(
        "eval", "COCO figures of a weights file or of a detections file.", _EVAL_EXAMPLE
    )  # fmt: skip
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
    config, path = load(args, parser, ["amp=true"] if args.amp else [])
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
