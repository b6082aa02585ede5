"""`fcos dataset NAME ...`: data sets fetched and looked at before training."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from fcos_recipe.errors import UserError
from fcos_recipe.places import ROOT

# name: (module:function, one line for `fcos dataset --help`); function(argv) -> exit code
COMMANDS = {
    "download": (
        "fcos_recipe.commands.dataset:download",
        "get COCO 2017, or what is missing of it",
    ),
    "verify": (
        "fcos_recipe.datasets.verify.run:main",
        "find what is wrong before training; clean copies",
    ),
    "stats": (
        "fcos_recipe.datasets.look.stats:main",
        "classes, sizes, and the FPN levels that see them",
    ),
    "convert": ("fcos_recipe.datasets.convert:main", "VOC, YOLO or incomplete COCO into COCO"),
    "subset": (
        "fcos_recipe.datasets.reshape:subset",
        "some of the images, each class in proportion",
    ),
    "split": ("fcos_recipe.datasets.reshape:split", "into training and validation"),
    "merge": ("fcos_recipe.datasets.reshape:merge_command", "several annotation files into one"),
    "browse": (
        "fcos_recipe.datasets.look.browse:main",
        "boxes on images; what the network really sees",
    ),
}

_DOWNLOAD = """\
examples:
  python datasets/download_coco.py                        # both splits into datasets/coco
  python datasets/download_coco.py --dir /data/coco --splits val
  python datasets/download_coco.py --from-zips /mnt/usb   # a machine without network
An interrupted download goes on where it was when the same command is given again; files of yours
are never changed or removed.
exit codes: 0 complete and counted; 1 not completed, call again to go on; 2 wrong arguments, or a
directory that can't be written; 3 checksums or counts don't match; 4 the disk is too small;
130 interrupted
"""


def main(argv: list[str]) -> int:
    """Choose the subcommand; see `fcos dataset --help`."""
    rows = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: fcos dataset COMMAND [options]\n\n{rows}\n\n"
              "`fcos dataset COMMAND --help` has the options.\n"
              "example: fcos dataset download --dry-run")  # fmt: skip
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise UserError(f"no command {argv[0]!r} in dataset; choose from {', '.join(COMMANDS)}")
    module, function = COMMANDS[argv[0]][0].split(":")
    return getattr(import_module(module), function)(argv[1:])


def download(argv: list[str]) -> int:
    """`fcos dataset download` and datasets/download_coco.py."""
    from fcos_recipe.datasets import coco2017
    from fcos_recipe.files.download import DownloadError

    parser = argparse.ArgumentParser(
        prog="fcos dataset download", epilog=_DOWNLOAD,
        description="Fetch COCO 2017, check it, unpack it and count it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--dir", type=Path, default=ROOT / "datasets" / "coco",
        help="gets train2017/ val2017/ annotations/ (default: %(default)s)")  # fmt: skip
    add("--splits", default="train,val", metavar="A,B", help="default: %(default)s")
    add("--annotations-only", action="store_true", help="no images")
    add("--mirror", metavar="URL", help="server with zips/ and annotations/ as COCO's has them")
    add("--from-zips", type=Path, metavar="DIR", help="use these zip files; no network")
    add("--keep-zips", action="store_true", help=f"leave the zip files in DIR/{coco2017.OURS}")
    add("--connections", type=int, default=4, metavar="N",
        help="at once, for servers that slow each one down (default: %(default)s)")  # fmt: skip
    add("--verify", action="store_true", help="also compare every file's checksum")
    add("--dry-run", action="store_true", help="say what would be done; no network")
    args = parser.parse_args(argv)
    splits = args.splits.split(",")
    if unknown := sorted(set(splits) - set(coco2017.COCO_2017.splits)):
        parser.error(f"--splits: {', '.join(unknown)}: choose from train,val")
    if not 1 <= args.connections <= 16:
        parser.error("--connections: from 1 to 16")
    options = coco2017.Options(
        splits, args.annotations_only, args.mirror, args.from_zips, args.keep_zips,
        args.connections, args.verify,
    )  # fmt: skip
    try:
        lines = (coco2017.plan if args.dry_run else coco2017.get)(
            args.dir, coco2017.COCO_2017, options
        )
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        raise UserError(f"{error.filename or args.dir}: {error.strerror}") from None
    print("\n".join(lines))
    if not args.dry_run and args.dir.resolve() != (ROOT / "datasets" / "coco").resolve():
        sections = ("TrainDataset", "EvalDataset", "TestDataset")
        print("for the configs add: -o "
              + " ".join(f"{name}.dataset_dir={args.dir}" for name in sections))  # fmt: skip
    return 0
