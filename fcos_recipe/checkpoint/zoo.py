"""Published weights: their URLs, and a download cache that is used without network access."""

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from fcos_recipe.checkpoint.safe_pickle import loads
from fcos_recipe.console import say
from fcos_recipe.errors import RunFailure, UserError
from fcos_recipe.files import download
from fcos_recipe.files.atomic import replace_file
from fcos_recipe.files.reading import given_path, parse_json, read_bytes, read_text

MOST_BYTES = 4 << 30  # largest accepted file; twice the largest detector with its optimizer
BASE = "https://paddledet.bj.bcebos.com/models"


class Entry(NamedTuple):
    """One file of the zoo."""

    path: str  #: below `BASE`
    text: str

    @property
    def url(self) -> str:
        return f"{BASE}/{self.path}.pdparams"


# AP on val2017 as in PaddleDetection's model zoo.
ZOO = {
    path.rsplit("/", 1)[-1]: Entry(path, text)
    for path, text in (
        ("pretrained/ResNet50_cos_pretrained", "ImageNet backbone, used by all R50 configs"),
        ("pretrained/ResNet50_vd_ssld_v2_pretrained", "distilled ImageNet backbone"),
        ("fcos_r50_fpn_1x_coco", "FCOS, AP 39.6"),
        ("fcos_r50_fpn_iou_1x_coco", "FCOS with IoU branch, AP 40.0"),
        ("fcos_dcn_r50_fpn_1x_coco", "FCOS with deformable convolutions, AP 44.3"),
        ("fcos_r50_fpn_multiscale_2x_coco", "FCOS, multi-scale, AP 41.8"),
        ("fcos_r50_fpn_iou_multiscale_2x_coco", "FCOS with IoU branch, multi-scale, AP 42.6"),
    )
}


def cache_dir() -> Path:
    """Folder of downloaded weights: in FCOS_CACHE, else in ~/.cache/fcos_recipe."""
    return given_path(os.environ.get("FCOS_CACHE", "~/.cache/fcos_recipe")) / "weights"


def place(url: str) -> Path:
    """Path of a URL's file in the cache; URLs outside the zoo get a hash in the name."""
    name = urlsplit(url).path.rsplit("/", 1)[-1]
    if url != (ZOO[stem].url if (stem := name.removesuffix(".pdparams")) in ZOO else None):
        key = hashlib.sha256(url.encode()).hexdigest()[:16]
        name = f"{key}-{re.sub('[^A-Za-z0-9_.-]', '_', name)[-80:]}"
    return cache_dir() / name


def cached(url: str) -> Path:
    """Return the local copy of a weights file; download it if it is not in the cache.

    Its SHA-256 is recorded at the first download and checked at every later use without network
    access. Files in PaddleDetection's own cache are used for PaddleDetection's URLs. Several
    processes may call this at the same time. A download that is not a weights file, such as a login
    page, is not kept.

    Raises:
        UserError: the download failed, the file is not a weights file, or it does not match its
            recorded SHA-256.
    """
    path = place(url)
    if found := _recorded(path):
        return found
    if url.startswith(f"{BASE}/") and (found := of_paddle(url.rsplit("/", 1)[-1])):
        return found
    try:
        download.prepare(path.parent)
        with download.locked(path.with_name(path.name + ".lock")):
            if found := _recorded(path):  # downloaded by another process meanwhile
                return found
            if path.is_file():  # copied there by the user
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
            f"pretrain_weights: {error}; download the file elsewhere and copy it to {path}, or set "
            "pretrain_weights to a local path ('' trains from scratch)"
        ) from error
    say(f"{url} -> {path} (SHA-256 {found}, recorded, not pinned)")
    return path


def _check(path: Path, source: str) -> None:
    """Raise UserError if a file is neither a pickle of arrays nor safetensors."""
    data = read_bytes(path, MOST_BYTES)
    try:
        if path.suffix == ".safetensors":
            parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        else:
            loads(data)
    except Exception:  # a damaged pickle can raise any exception
        raise UserError(f"{source}: not a weights file, it begins with {data[:20]!r}") from None


def note(path: Path) -> Path:
    """Path of the file with a cached file's SHA-256."""
    return path.with_name(path.name + ".sha256")


def recorded_hash(path: Path) -> str:
    """The SHA-256 of a cached file that was recorded at its download.

    Raises:
        UserError: it is not recorded, or not readable.
    """
    return read_text(note(path), 1 << 10).strip()


def _recorded(path: Path) -> Path | None:
    if not path.is_file() or not note(path).is_file():
        return None
    if download.digest(path, "sha256") == recorded_hash(path):
        return path
    raise UserError(f"{path}: does not match its recorded SHA-256; delete it to download it again")


def of_paddle(name: str) -> Path | None:
    """Return the file of this name in PaddleDetection's own cache, or None."""
    path = Path("~/.cache/paddle/weights").expanduser() / name
    return path if path.is_file() else None
