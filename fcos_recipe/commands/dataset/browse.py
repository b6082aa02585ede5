"""`fcos dataset browse`: draw images with their boxes into one file."""

from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.commands.dataset.shared import add_source, find_sources
from fcos_recipe.commands.options import listed, parser, whole
from fcos_recipe.console import plural
from fcos_recipe.datasets.fpn_levels import SIZES
from fcos_recipe.datasets.look.browse import ENDINGS, Choice, Drawing, browse

_HELP = """\
examples:
  fcos dataset browse datasets/coco --split val --classes dog,cat --size small
  fcos dataset browse -c my.yml --network-input --output output/seen.png
  fcos dataset browse my.json --predictions output/infer/predictions.json
  fcos dataset browse -c my.yml --network-input --ids 139,802 --epoch 3 -o seed=1

An .html page contains all images and needs no server; .png and .jpg are contact sheets. Images that
can't be read are reported and skipped. Small boxes have an area below 32 x 32 pixels, medium ones
below 96 x 96, and large ones are larger.
--network-input shows the training batches: images and boxes after augmentation, resizing and
padding, and the positive locations of each box, with one colour per FPN level. Without --ids,
--classes or --size it shows the first batches of the epoch on one card.
"""
_CODES = {exit_codes.BAD_INPUT: "wrong arguments, unreadable data, or nothing to show"}


def main(argv: list[str]) -> int:
    """See `fcos dataset browse --help`."""
    text = "Draw images with their boxes into one page or contact sheet."
    ask = parser("dataset browse", text, _HELP, _CODES)
    add_source(ask)
    add = ask.add_argument
    add("--output", type=Path, default=Path("output", "browse.html"), metavar="FILE",
        help=f"{', '.join(ENDINGS)} (default: %(default)s)")  # fmt: skip
    add("--classes", type=listed, metavar="A,B", help="only boxes of these classes")
    add("--size", choices=SIZES, help="only boxes of this size")
    add("--ids", type=_ids, metavar="1,2", help="only these images, in this order")
    add("--limit", type=int, default=24, metavar="N",
        help="images per split (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the random choice of images (default: %(default)s)")
    add("--predictions", type=Path, metavar="DETS.json",
        help="COCO results to draw next to the ground truth (of val)")  # fmt: skip
    add("--threshold", type=float, default=0.5, metavar="SCORE",
        help="lowest score to draw (default: %(default)s)")  # fmt: skip
    add("--network-input", action="store_true",
        help="show the network's input in training and the positives of each FPN level "
        "(of train, unless --split is given)")  # fmt: skip
    add("--epoch", type=int, default=0, metavar="N",
        help="with --network-input: epoch, counted from 0 (default: %(default)s)")  # fmt: skip
    args = ask.parse_args(argv)
    if args.output.suffix.lower() not in ENDINGS:
        ask.error(f"--output: {args.output}: choose one of {', '.join(ENDINGS)}")
    if args.limit < 1 or args.epoch < 0 or args.seed < 0:
        ask.error("--limit must be at least 1, --epoch and --seed at least 0")
    if args.network_input and args.predictions:
        ask.error("--predictions refer to the original images, so --network-input can't show them")
    found, config = find_sources(args)
    if args.network_input and args.split is None:
        found = found[:1]  # the training split
    if args.predictions and len(found) > 1:
        found = [source for source in found if source.name == "val"]
    ids = args.ids
    choice = Choice(args.classes, args.size, ids, len(ids) if ids else args.limit, args.seed)
    epoch = args.epoch if args.network_input else None
    drawing = Drawing(args.predictions, args.threshold, epoch)
    count = browse(found, config, choice, drawing, args.output)
    print(f"{plural(count, 'image')}: {args.output}")
    return 0


def _ids(text: str) -> list[int]:
    return [whole(part) for part in text.split(",")]
