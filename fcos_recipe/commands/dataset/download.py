"""`fcos dataset download` and datasets/download_coco.py: download COCO 2017."""

import sys
from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.commands.options import parser
from fcos_recipe.datasets import coco2017
from fcos_recipe.errors import UserError
from fcos_recipe.files.download import DownloadError
from fcos_recipe.places import DATA

_HELP = """\
examples:
  python datasets/download_coco.py                        # both splits into datasets/coco
  python datasets/download_coco.py --dir /data/coco --splits val
  python datasets/download_coco.py --from-zips /mnt/usb   # a machine without network
Run the same command again to continue an interrupted download. Your own files are never changed or
removed.
"""
DEFAULT = DATA / "coco"
_CODES = {
    exit_codes.OK: "complete and counted",
    exit_codes.FAILED: "not completed; run again to continue",
    exit_codes.BAD_INPUT: "wrong arguments, or a directory that can't be written",
    exit_codes.DAMAGED: "checksums or counts don't match",
    exit_codes.DISK_FULL: "the disk is too small",
    exit_codes.INTERRUPTED: "interrupted",
}


def main(argv: list[str]) -> int:
    """See `fcos dataset download --help`."""
    text = "Download COCO 2017, check it, unpack it and count it."
    ask = parser("dataset download", text, _HELP, _CODES)
    add = ask.add_argument
    add("--dir", type=Path, default=DEFAULT, metavar="DIR",
        help="folder for train2017/ val2017/ annotations/ (default: %(default)s)")  # fmt: skip
    add("--splits", default="train,val", metavar="A,B", help="default: %(default)s")
    add("--annotations-only", action="store_true", help="don't download images")
    add("--mirror", metavar="URL", help="server with the same zips/ and annotations/ as COCO's")
    add("--from-zips", type=Path, metavar="DIR", help="use these zip files; no network")
    add("--keep-zips", action="store_true", help=f"keep the zip files in DIR/{coco2017.OURS}")
    add("--connections", type=int, default=4, metavar="N",
        help="parallel connections, 1 to 16 (default: %(default)s)")  # fmt: skip
    add("--verify", action="store_true", help="also compare every file's checksum")
    add("--dry-run", action="store_true", help="print what would be done; no network")
    args = ask.parse_args(argv)
    splits = args.splits.split(",")
    if unknown := sorted(set(splits) - set(coco2017.COCO_2017.splits)):
        ask.error(f"--splits: {', '.join(unknown)}: choose from train,val")
    if not 1 <= args.connections <= 16:
        ask.error("--connections: from 1 to 16")
    options = coco2017.Options(
        splits, args.annotations_only, args.mirror, args.from_zips, args.keep_zips,
        args.connections, args.verify,
    )  # fmt: skip
    try:
        lines = (coco2017.planned_steps if args.dry_run else coco2017.get)(
            args.dir, coco2017.COCO_2017, options
        )
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        raise UserError(f"{error.filename or args.dir}: {error.strerror}") from None
    print("\n".join(lines))
    if not args.dry_run and args.dir.resolve() != DEFAULT.resolve():
        sections = ("TrainDataset", "EvalDataset", "TestDataset")
        print("to use it with a config, add: -o "
              + " ".join(f"{name}.dataset_dir={args.dir}" for name in sections))  # fmt: skip
    return 0
