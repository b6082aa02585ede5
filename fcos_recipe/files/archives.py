"""Unpack zip archives: nothing outside the folder, nothing overwritten, resumable."""

import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from fcos_recipe.console import Progress, amount
from fcos_recipe.files.atomic import draft
from fcos_recipe.files.download import Damaged, NoSpace, free_bytes, local_failure

RATIO = 100  # unpacked : packed size above which an archive counts as a bomb; JSON packs 1 : 5
_BLOCK = 1 << 20


def members(archive: str | Path, top: str) -> list[zipfile.ZipInfo]:
    """The files of an archive, after a look at all of them.

    Args:
        archive: a zip file.
        top: the one folder that everything in it has to be in.

    Raises:
        Damaged: not a zip, or an entry that is absolute, climbs out of `top`, is a link or a
            device, is encrypted or occurs twice; or that all together unpack to `RATIO` times the
            archive's size.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = opened.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise Damaged(f"{archive}: not a readable zip file ({error})") from None
    seen: set[str] = set()
    for info in infos:
        if reason := _unsafe(info, top) or ("occurs twice" if info.filename in seen else ""):
            raise Damaged(f"{archive}: {info.orig_filename!r} {reason}; nothing was unpacked")
        seen.add(info.filename)
    total = sum(info.file_size for info in infos)
    if total > RATIO * max(os.path.getsize(archive), 1):
        raise Damaged(f"{archive}: would unpack to {total} bytes, {RATIO} times its size; a bomb?")
    return [info for info in infos if not info.is_dir()]


def _unsafe(info: zipfile.ZipInfo, top: str) -> str:
    name, parts = info.orig_filename, PurePosixPath(info.orig_filename).parts
    if name.startswith("/") or ".." in parts or re.search(r"[\\\0]|^\w:", name):
        return "points outside the folder"
    if not parts or parts[0] != top or (len(parts) == 1 and not info.is_dir()):
        return f"is not in {top}/"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    return "is encrypted" if info.flag_bits & 1 else ""


def checksum(path: str | Path) -> int:
    """CRC-32 of a file's bytes, as zip archives hold it."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def unpack(archive: Path, top: str, staging: Path, final: Path) -> tuple[dict, list[str]]:
    """Unpack into `staging`, then move into `final` what isn't there.

    A new folder appears in `final` in one step; in one that exists only missing files are added.
    After a kill, files whose length and CRC-32 are right are kept.

    Args:
        archive: a zip file whose entries all are in the folder `top`.
        top: that folder's name.
        staging: scratch directory on `final`'s file system; removed at the end.
        final: directory that gets the folder.

    Returns:
        each file's path below `final` with its CRC-32, and the paths of files that were there with
        another content and have been left alone.

    Raises:
        Damaged: unsafe archive (see `members`), or a file in it that doesn't match its CRC-32.
        NoSpace, DownloadError: a file can't be written.
    """
    infos = members(archive, top)
    fresh = not os.path.lexists(final / top)
    there = (staging,) if fresh else (staging, final)
    new = (i for i in infos if not any((folder / i.filename).exists() for folder in there))
    if (needed := sum(info.file_size for info in new)) > (free := free_bytes(final)):
        raise NoSpace(
            f"{final}: {amount(needed)} to unpack, {amount(free)} free; make room and call again"
        )
    crcs, kept, label = {}, [], f"{archive.name}: unpacking"
    with (
        zipfile.ZipFile(archive) as opened,
        Progress(label, sum(info.file_size for info in infos)) as progress,
    ):
        (staging / top).mkdir(parents=True, exist_ok=True)
        for info in infos:
            crcs[info.filename] = info.CRC
            present = None if fresh else final / info.filename
            if present and present.exists():
                if not _matches(present, info):
                    kept.append(info.filename)
            elif not _matches(staging / info.filename, info):
                _extract(opened, info, staging / info.filename)
            progress.add(info.file_size)
    try:
        if fresh:
            os.rename(staging / top, final / top)
        else:
            for name in crcs:
                if (staging / name).exists():
                    _move(staging / name, final / name)
        shutil.rmtree(staging)
        os.sync()  # before anyone writes down that all is there
    except OSError as error:
        raise local_failure(error, final / top) from None
    return crcs, kept


def _matches(path: Path, info: zipfile.ZipInfo) -> bool:
    try:
        return path.stat().st_size == info.file_size and checksum(path) == info.CRC
    except OSError:
        return False


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
        if target.stat().st_size != info.file_size:
            raise zipfile.BadZipFile("shorter than it says")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Damaged(f"{opened.filename}: {info.filename}: {error}") from None
    except OSError as error:
        raise local_failure(error, target) from None


def _move(source: Path, target: Path) -> None:
    """Rename, also where `target`'s folder is a link to another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError:
        with draft(target) as part:
            shutil.copyfile(source, part)
