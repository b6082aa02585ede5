"""Unpack zip archives safely: only into one folder, without overwriting files, resumable."""

import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from fcos_recipe.console import Progress, amount
from fcos_recipe.errors import UserError
from fcos_recipe.files.atomic import draft, open_own
from fcos_recipe.files.download import Damaged, NoSpace, free_bytes, local_failure
from fcos_recipe.files.reading import open_regular

DEPTH = 64  # folders within each other in an archive
RATIO = 100  # unpacked : packed size above which an archive is refused as a zip bomb; JSON has 5
_BLOCK = 1 << 20


def members(archive: str | Path, top: str) -> list[zipfile.ZipInfo]:
    """Check all entries of an archive and return its files.

    Args:
        archive: a zip file.
        top: the folder that must contain all entries.

    Raises:
        Damaged: the file is not a zip archive; an entry is absolute, is outside `top`, is more than
            `DEPTH` folders deep, is a link or a device, is encrypted, or occurs twice;
            or the archive would unpack to more than `RATIO` times its size.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = opened.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise Damaged(f"{archive}: not a readable zip file ({error})") from None
    seen: set[str] = set()
    for info in infos:
        if reason := _unsafe(info, top) or ("occurs twice" if info.filename in seen else ""):
            shown = info.orig_filename[:200]
            raise Damaged(f"{archive}: {shown!r} {reason}; nothing was unpacked")
        seen.add(info.filename)
    total = sum(info.file_size for info in infos)
    if total > RATIO * max(os.path.getsize(archive), 1):
        raise Damaged(
            f"{archive}: would unpack to {total} bytes, over {RATIO} times its size; a zip bomb?"
        )
    return [info for info in infos if not info.is_dir()]


def _unsafe(info: zipfile.ZipInfo, top: str) -> str:
    name, parts = info.orig_filename, PurePosixPath(info.orig_filename).parts
    if name.startswith("/") or ".." in parts or re.search(r"[\\\0]|^\w:", name):
        return "points outside the folder"
    if len(parts) > DEPTH:
        return f"is {len(parts)} folders deep"
    if not parts or parts[0] != top or (len(parts) == 1 and not info.is_dir()):
        return f"is not in {top}/"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    return "is encrypted" if info.flag_bits & 1 else ""


def checksum(path: str | Path) -> int:
    """CRC-32 of a file, as in zip archives.

    Raises:
        UserError: not a regular file, or not readable.
    """
    crc = 0
    with open(open_regular(path), "rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def unpack(archive: Path, top: str, staging: Path, final: Path) -> tuple[dict, list[str]]:
    """Unpack into `staging`, then move missing files to `final`.

    A new folder is moved to `final` atomically; if the folder exists, only missing files are added.
    After an interruption, files with correct length and CRC-32 are not unpacked again.

    Args:
        archive: a zip file whose entries are all in the folder `top`.
        top: that folder's name.
        staging: temporary directory on `final`'s file system; removed at the end.
        final: directory to put the folder in.

    Returns:
        each file's path below `final` with its CRC-32, and the paths of existing files with other
        content, which were not changed.

    Raises:
        Damaged: the archive is unsafe (see `members`), or a file does not match its CRC-32.
        NoSpace, DownloadError: a file cannot be written.
    """
    infos = members(archive, top)
    fresh = not os.path.lexists(final / top)
    there = (staging,) if fresh else (staging, final)
    new = (i for i in infos if not any((folder / i.filename).exists() for folder in there))
    if (needed := sum(info.file_size for info in new)) > (free := free_bytes(final)):
        raise NoSpace(
            f"{final}: {amount(needed)} to unpack, {amount(free)} free; free space and run again"
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
        os.sync()  # before the caller records that all files exist
    except OSError as error:
        raise local_failure(error, final / top) from None
    return crcs, kept


def _matches(path: Path, info: zipfile.ZipInfo) -> bool:
    try:
        return path.stat().st_size == info.file_size and checksum(path) == info.CRC
    except (OSError, UserError):
        return False


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, open_own(target, os.O_RDWR) as file:
            file.truncate()
            shutil.copyfileobj(source, file, _BLOCK)
        if target.stat().st_size != info.file_size:
            raise zipfile.BadZipFile("shorter than its recorded size")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Damaged(f"{opened.filename}: {info.filename}: {error}") from None
    except OSError as error:
        raise local_failure(error, target) from None


def _move(source: Path, target: Path) -> None:
    """Rename a file, or copy it if `target`'s folder is a link to another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError:
        with draft(target) as part:
            shutil.copyfile(source, part)
