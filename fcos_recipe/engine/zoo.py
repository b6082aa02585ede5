"""Published weights: where they are, fetched once, then used from the cache without network."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from fcos_recipe.data import download
from fcos_recipe.errors import RunFailure, UserError

BASE = "https://paddledet.bj.bcebos.com/models"
_EXAMPLE = """\
examples:
  fcos weights list
  fcos weights get fcos_r50_fpn_1x_coco ResNet50_cos_pretrained
  fcos weights verify
  fcos weights convert output/run/checkpoints/0012 fcos.safetensors
  fcos weights convert output/run/checkpoints/0012 fcos --format paddledet
The publisher gives no hashes. The SHA-256 of a file is recorded when it is first fetched and
compared at every later use: that shows damage since then, not whether the first download was
genuine. A file copied into the cache from elsewhere gets its record from `get` or at its first use.
exit codes: 0 done; 1 not completed, call again to go on; 2 bad input; 3 a file isn't the one
recorded; 4 the disk is full
"""


class Entry(NamedTuple):
    """One file of the zoo."""

    path: str  #: below `BASE`
    text: str

    @property
    def url(self) -> str:
        return f"{BASE}/{self.path}.pdparams"


# AP on val2017 by PaddleDetection's table.
ZOO = {
    path.rsplit("/", 1)[-1]: Entry(path, text)
    for path, text in (
        ("pretrained/ResNet50_cos_pretrained", "backbone on ImageNet, start of all R50 configs"),
        ("pretrained/ResNet50_vd_ssld_v2_pretrained", "distilled backbone on ImageNet"),
        ("fcos_r50_fpn_1x_coco", "FCOS, AP 39.6"),
        ("fcos_r50_fpn_iou_1x_coco", "FCOS with IoU branch, AP 40.0"),
        ("fcos_dcn_r50_fpn_1x_coco", "FCOS with deformable convolutions, AP 44.3"),
        ("fcos_r50_fpn_multiscale_2x_coco", "FCOS, multi-scale, AP 41.8"),
        ("fcos_r50_fpn_iou_multiscale_2x_coco", "FCOS with IoU branch, multi-scale, AP 42.6"),
    )
}


def cache_dir() -> Path:
    """Where downloaded weights are kept: FCOS_CACHE, else ~/.cache/fcos_recipe."""
    return Path(os.environ.get("FCOS_CACHE", "~/.cache/fcos_recipe")).expanduser() / "weights"


def cached(url: str) -> Path:
    """The local copy of a weights file, fetched if it isn't in the cache.

    Its SHA-256 is written beside it at the first download and compared at every later use, without
    any network call. PaddleDetection's own cache serves as well. Several processes may ask at once.

    Raises:
        UserError: it can't be fetched, or no longer is the file that was recorded.
    """
    path = cache_dir() / url.rsplit("/", 1)[-1]
    if (found := _recorded(path)) or (found := _of_paddle(path.name)):
        return found
    try:
        download.prepare(path.parent)
        with download.locked(path.with_name(path.name + ".lock")):
            if found := _recorded(path):  # by another process, in the meantime
                return found
            if not path.is_file():
                download.fetch(url, path)
            found = download.digest(path, "sha256")
            _note(path).write_text(found + "\n")
    except (RunFailure, UserError, OSError) as error:
        raise UserError(
            f"pretrain_weights: {error}; fetch the file elsewhere and put it at {path}, or set "
            "pretrain_weights to a local path ('' trains from scratch)"
        ) from error
    download.say(f"{url} -> {path} (SHA-256 {found}, recorded, not pinned)")
    return path


def main(argv: list[str]) -> int:
    """`fcos weights list|get|verify|convert`."""
    parser = argparse.ArgumentParser(
        prog="fcos weights", epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is published and what is in the cache")
    get = commands.add_parser("get", help="fetch into the cache")
    get.add_argument("name", nargs="+", help="a name from the list, `all`, or a URL")
    commands.add_parser("verify", help="compare every cached file with its record")
    convert = commands.add_parser("convert", help="to safetensors, or to PaddleDetection's files")
    convert.add_argument("source", help="checkpoint, .pdparams, .safetensors, name or URL")
    convert.add_argument("target", type=Path, help="new file; --format adds a missing ending")
    convert.add_argument("--format", choices=("safetensors", "paddledet"),
                         help="default: by the target's ending")  # fmt: skip
    args = parser.parse_args(argv)
    if args.command == "convert":
        from fcos_recipe.engine.exchange import convert as to

        source = ZOO[args.source].url if args.source in ZOO else args.source
        for path in to(source, args.target, args.format):
            print(path)
        return 0
    if args.command == "list":
        return _list()
    return _get(args.name) if args.command == "get" else _verify()


def _list() -> int:
    for name, entry in ZOO.items():
        path = cache_dir() / f"{name}.pdparams"
        note = _note(path)
        state = "not fetched, hash not known"
        if path.is_file():
            known = f"SHA-256 {note.read_text().strip()}" if note.is_file() else "no hash recorded"
            state = f"{download.amount(path.stat().st_size)}, {known}"
        elif found := _of_paddle(path.name):
            state = f"{download.amount(found.stat().st_size)} in PaddleDetection's cache"
        print(f"{name}: {entry.text}\n  {entry.url}\n  {state}")
    print(f"cache: {cache_dir()}")
    return 0


def _get(names: list[str]) -> int:
    names = list(ZOO) if "all" in names else names
    if unknown := [n for n in names if n not in ZOO and not re.match("https?://", n)]:
        raise UserError(f"weights: no {', '.join(unknown)}; `fcos weights list` shows the names")
    for name in names:
        try:
            print(cached(ZOO[name].url if name in ZOO else name))
        except UserError as error:
            if not isinstance(error.__cause__, download.DownloadError):
                raise
            print(f"error: {error.__cause__}", file=sys.stderr)
            return error.__cause__.code
    return 0


def _verify() -> int:
    files = sorted(cache_dir().glob("*.pdparams"))
    worst = 0
    for path in files:
        if not _note(path).is_file():
            print(f"{path.name}: no hash recorded; `fcos weights get {path.stem}` records it")
        elif download.digest(path, "sha256", path.name) == _note(path).read_text().strip():
            print(f"{path.name}: ok")
        else:
            print(f"{path.name}: not the file that was recorded; delete it to fetch it again")
            worst = download.Damaged.code
    print(f"{len(files)} files in {cache_dir()}")
    return worst


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _recorded(path: Path) -> Path | None:
    if not path.is_file() or not _note(path).is_file():
        return None
    if download.digest(path, "sha256") == _note(path).read_text().strip():
        return path
    raise UserError(f"{path}: does not match its recorded SHA-256; delete it to fetch it again")


def _of_paddle(name: str) -> Path | None:
    path = Path("~/.cache/paddle/weights").expanduser() / name
    return path if path.is_file() else None
