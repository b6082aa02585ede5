"""`fcos dataset browse`: images with their boxes, to be looked at."""

from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.commands.dataset.shared import add_source, find_sources
from fcos_recipe.commands.options import listed, parser
from fcos_recipe.datasets.fpn_levels import SIZES
from fcos_recipe.datasets.look.browse import ENDINGS, Choice, Drawing, browse

_HELP = """\
examples:
  fcos dataset browse datasets/coco --split val --classes dog,cat --size small
  fcos dataset browse -c my.yml --network-input --output output/seen.png
  fcos dataset browse my.json --predictions output/infer/predictions.json
  fcos dataset browse -c my.yml --network-input --ids 139,802 --epoch 3 -o seed=1

The .html page holds everything itself: no server, nothing fetched; .png and .jpg are contact
sheets. An image that can't be read is named and skipped. Sizes are areas of boxes as annotated:
below 32 x 32, below 96 x 96, and above.
--network-input shows the training batches themselves: the images after augmentation, resizing and
padding, the boxes after all that, and the locations that are trained to find each, one colour per
FPN level. Without --ids, --classes or --size they are the first batches of the epoch, as one card
gets them.
"""
_CODES = {exit_codes.BAD_INPUT: "wrong arguments, data that can't be read, or nothing to show"}


def main(argv: list[str]) -> int:
    """See `fcos dataset browse --help`."""
    text = "Draw boxes on images, as one page or contact sheet to look at."
    ask = parser("dataset browse", text, _HELP, _CODES)
    add_source(ask)
    add = ask.add_argument
    add("--output", type=Path, default=Path("output", "browse.html"), metavar="FILE",
        help=f"{', '.join(ENDINGS)} (default: %(default)s)")  # fmt: skip
    add("--classes", type=listed, metavar="A,B", help="only these boxes")
    add("--size", choices=SIZES, help="only these boxes")
    add("--ids", type=_ids, metavar="1,2", help="only these images, in this order")
    add("--limit", type=int, default=24, metavar="N",
        help="images of each split (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="which images are drawn (default: %(default)s)")
    add("--predictions", type=Path, metavar="DETS.json",
        help="COCO results, drawn beside the ground truth (of val)")  # fmt: skip
    add("--threshold", type=float, default=0.5, metavar="SCORE",
        help="lowest score that is drawn (default: %(default)s)")  # fmt: skip
    add("--network-input", action="store_true",
        help="what training feeds to the network, with the positives of each FPN level (of "
        "train, unless --split)")  # fmt: skip
    add("--epoch", type=int, default=0, metavar="N",
        help="with --network-input: whose augmentation, from 0 (default: %(default)s)")  # fmt: skip
    args = ask.parse_args(argv)
    if args.output.suffix.lower() not in ENDINGS:
        ask.error(f"--output: {args.output}: choose one of {', '.join(ENDINGS)}")
    if args.limit < 1 or args.epoch < 0 or args.seed < 0:
        ask.error("--limit is at least 1, --epoch and --seed at least 0")
    if args.network_input and args.predictions:
        ask.error("--predictions are in the pixels of the files: not with --network-input")
    found, config = find_sources(args)
    if args.network_input and args.split is None:
        found = found[:1]  # training comes first
    if args.predictions and len(found) > 1:
        found = [source for source in found if source.name == "val"]
    ids = args.ids
    choice = Choice(args.classes, args.size, ids, len(ids) if ids else args.limit, args.seed)
    epoch = args.epoch if args.network_input else None
    drawing = Drawing(args.predictions, args.threshold, epoch)
    count = browse(found, config, choice, drawing, args.output)
    print(f"{count} images: {args.output}")
    return 0


def _ids(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
