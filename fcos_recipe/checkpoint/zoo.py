"""Published weights: where they are, fetched once, then used from the cache without network."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from fcos_recipe.checkpoint.safe_pickle import loads
from fcos_recipe.errors import RunFailure, UserError
from fcos_recipe.files import download
from fcos_recipe.files.atomic import replace_file

BASE = "https://paddledet.bj.bcebos.com/models"


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


def place(url: str) -> Path:
    """Where the cache keeps the file of a URL: by its name for the zoo, else by the whole URL."""
    name = urlsplit(url).path.rsplit("/", 1)[-1]
    if url != (ZOO[stem].url if (stem := name.removesuffix(".pdparams")) in ZOO else None):
        key = hashlib.sha256(url.encode()).hexdigest()[:16]
        name = f"{key}-{re.sub('[^A-Za-z0-9_.-]', '_', name)[-80:]}"
    return cache_dir() / name


def cached(url: str) -> Path:
    """The local copy of a weights file, fetched if it isn't in the cache.

    Its SHA-256 is written beside it at the first download and compared at every later use, without
    any network call. PaddleDetection's own cache serves its own URLs as well. Several processes may
    ask at once. What turns out to be no weights file, such as a page to log in, is not kept.

    Raises:
        UserError: it can't be fetched, is no weights file, or no longer is the file that was
            recorded.
    """
    path = place(url)
    if found := _recorded(path):
        return found
    if url.startswith(f"{BASE}/") and (found := of_paddle(url.rsplit("/", 1)[-1])):
        return found
    try:
        download.prepare(path.parent)
        with download.locked(path.with_name(path.name + ".lock")):
            if found := _recorded(path):  # by another process, in the meantime
                return found
            if path.is_file():  # brought by hand
                _check(path, str(path))
            else:
                fresh = path.with_name(f"new-{path.name}")
                try:
                    download.fetch(url, fresh)
                    _check(fresh, url)
                    fresh.replace(path)
                finally:
                    fresh.unlink(missing_ok=True)
            found = download.digest(path, "sha256")
            replace_file(note(path), found + "\n")  # other processes may be reading it
    except (RunFailure, UserError, OSError) as error:
        raise UserError(
            f"pretrain_weights: {error}; fetch the file elsewhere and put it at {path}, or set "
            "pretrain_weights to a local path ('' trains from scratch)"
        ) from error
    download.say(f"{url} -> {path} (SHA-256 {found}, recorded, not pinned)")
    return path


def _check(path: Path, source: str) -> None:
    """Raise UserError if a file is no weights file: neither a pickle of arrays nor safetensors."""
    data = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        else:
            loads(data)
    except Exception:  # a damaged pickle raises almost anything
        raise UserError(f"{source}: not a weights file, it begins with {data[:20]!r}") from None


def note(path: Path) -> Path:
    """Where the SHA-256 of a cached file is recorded."""
    return path.with_name(path.name + ".sha256")


def _recorded(path: Path) -> Path | None:
    if not path.is_file() or not note(path).is_file():
        return None
    if download.digest(path, "sha256") == note(path).read_text().strip():
        return path
    raise UserError(f"{path}: does not match its recorded SHA-256; delete it to fetch it again")


def of_paddle(name: str) -> Path | None:
    """A weights file of this name in PaddleDetection's own cache."""
    path = Path("~/.cache/paddle/weights").expanduser() / name
    return path if path.is_file() else None
