"""`fcos weights`: list, download and verify published weights, and convert formats."""

import re
import sys
from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.checkpoint import zoo
from fcos_recipe.commands.options import parser
from fcos_recipe.console import amount
from fcos_recipe.errors import UserError
from fcos_recipe.files import download

_EXAMPLE = """\
examples:
  fcos weights list
  fcos weights get fcos_r50_fpn_1x_coco ResNet50_cos_pretrained
  fcos weights verify
  fcos weights convert output/run/checkpoints/0012 fcos.safetensors
  fcos weights convert output/run/checkpoints/0012 fcos --format paddledet
The publisher provides no hashes. The SHA-256 of a file is recorded at its first download and
compared at every later use, so later damage is found, but not a wrong first download. For a file
copied into the cache, `get` or the first use records it.
"""
_CODES = {
    exit_codes.FAILED: "not completed; run again to continue",
    exit_codes.DAMAGED: "a file differs from its recorded hash",
    exit_codes.DISK_FULL: "the disk is full",
}


def main(argv: list[str]) -> int:
    """`fcos weights list|get|verify|convert`."""
    ask = parser("weights", None, _EXAMPLE, _CODES)
    commands = ask.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show published and cached weights")
    get = commands.add_parser("get", help="download into the cache")
    get.add_argument("name", nargs="+", help="a name from the list, `all`, or a URL")
    commands.add_parser("verify", help="compare every cached file with its recorded hash")
    convert = commands.add_parser("convert", help="to safetensors, or to PaddleDetection's files")
    convert.add_argument(
        "source", help="run directory, checkpoint, .pdparams, .safetensors, name or URL"
    )
    convert.add_argument("target", type=Path, help="output file; --format adds a missing extension")
    convert.add_argument("--format", choices=("safetensors", "paddledet"),
                         help="default: by the target's extension")  # fmt: skip
    args = ask.parse_args(argv)
    if args.command == "convert":
        from fcos_recipe.checkpoint.convert import convert as to  # imports Paddle

        source = zoo.ZOO[args.source].url if args.source in zoo.ZOO else args.source
        for path in to(source, args.target, args.format):
            print(path)
        return 0
    if args.command == "list":
        return _list()
    return _get(args.name) if args.command == "get" else _verify()


def _list() -> int:
    for name, entry in zoo.ZOO.items():
        path = zoo.place(entry.url)
        note = zoo.note(path)
        state = "not downloaded, hash unknown"
        if path.is_file():
            known = f"SHA-256 {zoo.recorded_hash(path)}" if note.is_file() else "no hash recorded"
            state = f"{amount(path.stat().st_size)}, {known}"
        elif found := zoo.of_paddle(path.name):
            state = f"{amount(found.stat().st_size)} in PaddleDetection's cache"
        print(f"{name}: {entry.text}\n  {entry.url}\n  {state}")
    print(f"cache: {zoo.cache_dir()}")
    return 0


def _get(names: list[str]) -> int:
    names = list(zoo.ZOO) if "all" in names else names
    if unknown := [n for n in names if n not in zoo.ZOO and not re.match("https?://", n)]:
        raise UserError(f"weights: no {', '.join(unknown)}; `fcos weights list` shows the names")
    for name in names:
        try:
            print(zoo.cached(zoo.ZOO[name].url if name in zoo.ZOO else name))
        except UserError as error:
            if not isinstance(error.__cause__, download.DownloadError):
                raise
            print(f"error: {error.__cause__}", file=sys.stderr)
            return error.__cause__.code
    return 0


def _verify() -> int:
    beside = (".sha256", ".lock", ".part", ".json")
    files = sorted(p for p in zoo.cache_dir().glob("*") if p.suffix not in beside)
    worst = 0
    for path in files:
        if not zoo.note(path).is_file():
            print(f"{path.name}: no hash recorded; `fcos weights get {path.stem}` records it")
        elif download.digest(path, "sha256", path.name) == zoo.recorded_hash(path):
            print(f"{path.name}: ok")
        else:
            print(f"{path.name}: differs from its recorded hash; delete it to download it again")
            worst = download.Damaged.code
    print(f"{len(files)} files in {zoo.cache_dir()}")
    return worst
