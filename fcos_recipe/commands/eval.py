"""`fcos eval`: COCO figures of weights, of an exported model, or of a file of detections."""

import argparse
import json
from pathlib import Path

from fcos_recipe.commands.options import add_json, finite, write
from fcos_recipe.commands.train import common_parser, load
from fcos_recipe.config.load import data_paths
from fcos_recipe.errors import UserError, UserErrors, printable
from fcos_recipe.evaluation.metric import MAX_DETS, CocoMetric, table
from fcos_recipe.predict.backends import NEEDS_EXPORT, PRECISIONS
from fcos_recipe.system import compute

_EXAMPLE = """\
examples:
  python tools/eval.py -c configs/fcos/fcos_r18_fpn_demo.yml \\
      --weights output/fcos_r18_fpn_demo/best_model.pdparams
  python -m paddle.distributed.launch --gpus 0,1,2,3,4,5,6,7 tools/eval.py \\
      -c configs/fcos/fcos_r50_fpn_1x_coco.yml --weights fcos_r50_fpn_1x_coco.pdparams
  python tools/eval.py --predictions dets.json --annotations instances_val2017.json --json out.json
writes eval.json, analysis.json and plots/ into --output, for --predictions only if it is given
exit codes: 0 done, 1 failed, 2 bad input
"""


def evaluate(argv: list[str]) -> int:
    """Evaluate weights, or a file of detections."""
    parser = common_parser("eval", "COCO figures of weights or of a file of detections.", _EXAMPLE)
    add = parser.add_argument
    add("--weights", metavar="W", help="weights file, checkpoint folder, exported model or URL")
    add("--predictions", metavar="DETS.json", help="COCO results file to judge without a model")
    add("--annotations", metavar="GT.json", help="annotations that --predictions belong to")
    add_json(parser)
    add("--save-predictions", metavar="FILE", help="write all detections as COCO results")
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
    add("--no-plots", action="store_true", help="no pictures")
    add("--precision", choices=PRECISIONS, default="fp32",
        help="bf16: faster, other scores; exports of --format paddle")  # fmt: skip
    add("--amp", action="store_true", help="automatic mixed precision (cards only)")
    add("--output_eval", metavar="DIR", help="PaddleDetection's name of --output")
    args = parser.parse_args(argv)
    args.output = args.output or args.output_eval
    tta = {"sizes": args.tta_sizes or (), "flip": args.tta_flip}
    if not any(tta.values()):
        tta = {}
    if args.predictions:
        given = {"-c": args.config, "-o": args.opt, "--weights": args.weights, "--tta-*": tta,
                 "--padding-effect": args.padding_effect, "--amp": args.amp,
                 "--precision": args.precision != "fp32"}  # fmt: skip
        if needless := [name for name, value in given.items() if value]:
            parser.error(f"--predictions is judged without a model: leave out {needless[0]}")
        if not args.annotations:
            parser.error("--predictions needs --annotations GT.json")
        metric = CocoMetric(args.annotations, **_judging(args))
        metric.load_result_json(args.predictions)
        _report(args, metric, metric.result(), args.output, args.predictions)
        return 0
    if args.annotations:
        parser.error("--annotations belongs to --predictions; else the config names them")
    config, path = load(args, parser, ["amp=true"] if args.amp else [])
    weights = args.weights or config.data.get("weights")
    if not weights:
        parser.error("--weights W is required (or -o weights=W)")
    if missing := config.missing_files("EvalDataset"):
        raise UserErrors(missing)
    device = compute.start(compute.requested(config)).device

    from fcos_recipe.evaluation.loop import REFERENCE_BATCHES
    from fcos_recipe.predict.backends import export_facts
    from fcos_recipe.system import out_of_memory
    from fcos_recipe.system.watchdog import Watchdog, rank
    from fcos_recipe.training.trainer import Trainer

    advice = out_of_memory.evaluation(config.data)
    with (
        Watchdog(config.data["watchdog"], rank()) as watchdog,
        out_of_memory.explained(device, advice),
    ):
        trainer = Trainer(config, "eval", device, watchdog)
        if facts := export_facts(str(weights)):
            if tta:
                raise UserError(f"{weights}: --tta-*: not for exports; evaluate a checkpoint")
            trainer.model = _exported(str(weights), facts, config, device, args.precision)
        elif args.precision != "fp32":
            raise UserError(NEEDS_EXPORT.format(args.precision, weights))
        else:
            trainer.load_weights(weights, exact=True)
        reference = None
        if args.padding_effect:
            reference = trainer.evaluate(reader=REFERENCE_BATCHES, **tta, **_judging(args))
        result = trainer.evaluate(**tta, **_judging(args))
    result["config"] = config.name
    if tta:
        result["tta"] = tta
    if args.precision != "fp32":
        result["precision"] = args.precision
    if reference is not None:
        result["reference_ap"] = reference["stats"][0]
    if trainer.rank == 0:
        _report(args, trainer.metric, result, args.output or path / "eval", weights)
    return 0


def _exported(weights: str, facts: dict, config, device: str, precision: str):
    """An exported model in the place of the trained one: same reader, same evaluator.

    Raises:
        UserError: it was made for other classes.
    """
    import paddle

    from fcos_recipe.data.index import open_index
    from fcos_recipe.predict.backends import open_export

    annotations = data_paths(config.data["EvalDataset"], "anno_path")[0]
    names = open_index(annotations).class_names
    if names != facts["class_names"]:
        raise UserError(
            f"{weights}: class_names: made for {facts['class_names'][:3]}..., but {annotations} "
            f"has {names[:3]}...; evaluate it on the data set that it was trained on"
        )
    engine = open_export(weights, facts, device, precision)

    class Exported:
        def eval(self) -> None:
            pass

        def __call__(self, batch: dict) -> dict:
            arrays = {key: batch[key].numpy() for key in ("image", "im_shape", "scale_factor")}
            bbox, counts = engine.run(arrays)
            return {"bbox": paddle.to_tensor(bbox), "bbox_num": paddle.to_tensor(counts)}

    return Exported()


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if min(sizes) < 32:
        raise ValueError("less than a cell of the network")
    return sizes


def _judging(args: argparse.Namespace) -> dict:
    return {"score_threshold": args.score_threshold, "max_dets": args.max_dets}


def _report(
    args: argparse.Namespace,
    metric: CocoMetric,
    result: dict,
    output: str | Path | None,
    source: str,
) -> None:
    """Show the figures and write them wherever they were asked for."""
    from fcos_recipe.evaluation.analysis import finish_evaluation

    print(printable(table(result, args.classwise)))
    kind = "predictions" if args.predictions else "weights"
    content = json.dumps({kind: str(source), **result}, indent=1)
    try:
        if output:
            folder = Path(output)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "eval.json").write_text(content + "\n")
        if args.json:
            write(args.json, content + "\n")
        if args.save_predictions:
            metric.write_predictions(args.save_predictions)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from None
    if output:  # last: the figures are safe by now
        for line in finish_evaluation(metric, folder, pictures=not args.no_plots):
            print(line)
    if "tta" in result:
        print(f"test-time augmentation, not to be compared with plain figures: {result['tta']}")
    if "reference_ap" in result:
        ap, reference = result["stats"][0], result["reference_ap"]
        change = f"{reference:.4f} ({ap - reference:+.4f})"
        print(f"AP {ap:.4f}; one image at a time padded to 128: {change}")
    if "images_per_second" in result:
        whole = result["images"] / result["seconds"]
        print(
            f"{result['images']} images, {result['images_per_second']:.2f} images/s up to the "
            f"detections, {whole:.2f} with the matching ({result['seconds']:.1f} s)"
        )
    if output:
        print(f"figures: {output}")
