"""`fcos export_model`: exports weights for inference, and checks the export."""

from pathlib import Path

from fcos_recipe import api, exit_codes
from fcos_recipe.commands import options
from fcos_recipe.commands.elsewhere import add_refusals
from fcos_recipe.commands.infer import add_weights, config_and_weights
from fcos_recipe.console import plural, to_console
from fcos_recipe.predict.int8 import MOST
from fcos_recipe.predict.onnx_graph import OPSET, OPSETS
from fcos_recipe.predict.parity import NEAR_OVERLAP, NEAR_SCORE, NEAR_SHARE

_EXAMPLE = """\
The model takes uint8 images of any size and number, zero outside each image (`image`
[N, H, W, 3], RGB), with the height and width inside (`im_shape` [N, 2]) and resized over original
size (`scale_factor` [N, 2], y then x), all as the reader makes them; normalisation is inside.
It gives class, score, x1, y1, x2, y2 in pixels of the original image: paddle `bbox` [M, 6] and
`bbox_num` [N]; onnx `bbox` [N, keep_top_k, 6], of which the first `bbox_num` [N] count. With
--no-nms: boxes [N, K, 4] and scores [N, classes, K] of the candidates.
Before it is kept it must find what the trained model finds: on 8 images of different shapes, on a
batch of two, on blank images before, between and after them, alone and within a batch, and on an
image that ends without padding at sides of any length.
With --int8 or --fp16 detections change. There the confident ones of both models are compared, those
with at least half of the highest score: {share:.0%} may be without one of the same class in the
other with an IoU of {overlap} or more and a score within {score}. Measure what it costs with
`fcos eval`.
An export that differs stays as NAME.rejected, and an earlier export stays as it is.
examples:
  python tools/export_model.py -c configs/fcos/fcos_r18_fpn_demo.yml \\
      --weights output/fcos_r18_fpn_demo/best_model.pdparams --format onnx
  python tools/infer.py --weights output/export/fcos_r18_fpn_demo-onnx --input cat.jpg
"""
_CODES = {exit_codes.FAILED: "the check failed"}


def main(argv: list[str]) -> int:
    """Export a model and check it."""
    text = "Export weights for inference, and check the export."
    example = _EXAMPLE.format(share=NEAR_SHARE, overlap=NEAR_OVERLAP, score=NEAR_SCORE)
    parser = options.parser("export_model", text, example, _CODES)
    add_weights(parser)
    add = parser.add_argument
    add("--format", choices=["paddle", "onnx"], default="paddle", help="default: %(default)s")
    add("--no-nms", action="store_true", help="end before NMS")
    add("--opset", type=options.whole, metavar="N",
        help=f"of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]} (default: {OPSET})")  # fmt: skip
    add("--int8", metavar="IMAGES",
        help="int8 convolutions, for onnx; the ranges of their values are measured on images, at "
        f"most {MOST} of this folder, glob or list (.txt)")  # fmt: skip
    add("--fp16", action="store_true",
        help="float16 layers, for onnx on cards; speed and result there are not verified on "
        "hardware")  # fmt: skip
    add("--output", "--output_dir", type=Path, default="output/export", metavar="DIR",
        help="gets the folder CONFIG_NAME-FORMAT; one of another model is renamed to "
        "CONFIG_NAME-FORMAT.1 and so on (default: %(default)s)")  # fmt: skip
    add_refusals(parser, "export_model")
    args = parser.parse_args(argv)
    if args.opset is not None and args.format != "onnx":
        parser.error("--opset belongs to --format onnx")
    if args.int8 is not None and args.format != "onnx":
        parser.error("--int8 belongs to --format onnx")
    if args.fp16 and args.format != "onnx":
        parser.error("--fp16 belongs to --format onnx")
    config, weights = config_and_weights(args)
    to_console(0)
    done = api.export(
        weights, args.output, format=args.format, nms=not args.no_nms, config=config,
        opset=OPSET if args.opset is None else args.opset, int8=args.int8,
        fp16=args.fp16,
    )  # fmt: skip
    only = "that only one model has" if args.int8 or args.fp16 else "exempt at a limit"
    print(
        f"checked on {plural(done.images, 'image')}, {done.empty} without detections: "
        f"{plural(done.detections, 'detection')}, scores within {done.score:.1e}, boxes within "
        f"{done.pixels:.4f} pixels, {done.exempt} {only}\nexported: {done.folder}"
    )
    return exit_codes.OK
