"""Every file that the project writes: replaced atomically, appended to, or locked.

Readers see either the old or the new content. Folders that a user names may be links, but a link is
never followed where this project chose the file's name: a folder from elsewhere may contain one
that leads to any file of the user. Temporary files have random names and are never opened if they
exist. Their writers hold a lock on them, by which `remove_drafts` knows those of killed processes.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# of the C library since 2018; AT_FDCWD is -100
_exchange = getattr(ctypes.CDLL(None), "renameat2", lambda *_: -1)
_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{16}(\.\w+)?")  # name of a draft


def _draft_name(path: Path, ending: str = "") -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{ending}")


def own_folder(path: Path, below: Path | None = None, mode: int = 0o777) -> None:
    """Create a folder whose name this project chose, if it is missing.

    Args:
        path: the folder; if it is a link, it is not followed. The folder that contains it must
            exist and may be one.
        below: folder that a user named, which may be a link and is created with its parents; all
            folders from it to `path` are this project's.
        mode: of `path` if it is created.

    Raises:
        OSError: a link, not a folder, or it cannot be created.
    """
    if path == below:
        return path.mkdir(mode, parents=True, exist_ok=True)
    if below is not None:
        own_folder(path.parent, below)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode)
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, f"{path.name} is a link; remove it", str(path))
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, f"{path.name} is not a folder; remove it", str(path))


def open_own(path: Path, flags: int) -> BinaryIO:
    """Open a file whose name this project chose, creating it if it is missing.

    Args:
        path: the file; if it is a link, it is not followed. Its folder may be one.
        flags: os.O_RDWR (for a lock: the content is kept) or os.O_WRONLY | os.O_APPEND.

    Raises:
        OSError: a link, not a regular file, or it cannot be opened.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, f"{path.name} is a link; remove it", str(path)) from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, f"{path.name} is not a file; remove it", str(path))
    return open(file, "ab" if flags & os.O_APPEND else "r+b", buffering=0)


@contextlib.contextmanager
def _locked_draft(path: Path, ending: str = "", folder: bool = False) -> Iterator[Path]:
    """Create an empty file or folder next to `path` and hold a lock on it, if the system has locks.

    What killed processes left of earlier drafts of `path` is removed.
    """
    for left in _left_in(path.parent).pop(path.name, ()):
        _remove_unless_locked(left)
    while True:
        part = _draft_name(path, ending)
        if folder:
            part.mkdir()
            handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW)
        else:
            handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if part.exists():  # else another process removed it before it was locked
            break
        os.close(handle)
    try:
        yield part
    finally:
        os.close(handle)


@contextlib.contextmanager
def draft(path: Path, durable: bool = False, ending: str = "") -> Iterator[Path]:
    """Create an empty file next to `path`, which replaces it when the `with` block ends.

    If the block or the replacement fails, the new file is removed and `path` is not changed.

    Args:
        path: the file to replace or create; its folder must exist.
        durable: flush the new content to disk before it replaces the old, so that a power cut
            cannot lose both.
        ending: of the new file's name.
    """
    with _locked_draft(path, ending) as part:
        try:
            yield part
            if durable:
                flush(part)
            os.replace(part, path)
        except BaseException as error:
            if isinstance(error, OSError) and not error.filename:  # as of a full disk
                error.filename = str(path)
            with contextlib.suppress(OSError):
                part.unlink()
            raise


@contextlib.contextmanager
def draft_folder(final: Path) -> Iterator[Path]:
    """Create an empty folder next to `final`, which replaces it when the `with` block ends.

    If the block fails, the new folder is removed and `final` is not changed. If the block itself
    renames the folder, `final` is not replaced.
    """
    with _locked_draft(final, folder=True) as part:
        try:
            yield part
            if part.is_dir():
                replace_folder(part, final)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def remove_drafts(path: Path, name: str | None = None) -> None:
    """Remove drafts left by killed processes; those that a process is writing stay.

    Args:
        path: folder that contains the drafts; a missing folder contains none.
        name: of the file or folder to be replaced; None: all.
    """
    for found, parts in _drafts(path).items():
        if name in (None, found):
            for part in parts:
                _remove_unless_locked(part)


def _drafts(folder: Path) -> dict[str, list[Path]]:
    """Drafts in a folder by the name of the file or folder to be replaced."""
    drafts: dict[str, list[Path]] = {}
    with contextlib.suppress(OSError):
        for part in os.scandir(folder):
            if found := _DRAFT.fullmatch(part.name):
                drafts.setdefault(found[1], []).append(Path(part.path))
    return drafts


# once in a process: a command may write thousands of files to a folder
_left_in = functools.lru_cache(64)(_drafts)


def _remove_unless_locked(part: Path) -> None:
    if part.is_symlink():
        return part.unlink(missing_ok=True)
    folder = part.is_dir()
    # NFS locks only files that are open for writing, and no folders: these are then kept
    access = os.O_RDONLY if folder else os.O_RDWR
    with contextlib.suppress(OSError):
        handle = os.open(part, access | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder:
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink()
        finally:
            os.close(handle)


def write_named(path: Path, content: str | bytes) -> None:
    """Write to the place that a user named, which may be a link, a device or a pipe.

    The folder is created. Regular files are replaced, see `replace_file`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        # a pipe that nobody reads is an error instead of a wait without end
        file = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        os.set_blocking(file, True)
        with open(file, "wb") as opened:
            opened.write(_bytes(content))
    else:
        replace_file(Path(os.path.realpath(path)), content)


def replace_file(
    path: Path, content: str | bytes | Callable[[BinaryIO], object], durable: bool = False
) -> None:
    """Write a file atomically.

    Args:
        path, durable: see `draft`.
        content: text (written as UTF-8), bytes, or a function that writes to the opened file.
    """
    with draft(path, durable) as part, open(part, "wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(_bytes(content))


def _bytes(content: str | bytes) -> bytes:
    """UTF-8; bytes of file names that are not UTF-8 become escapes, which JSON reads back."""
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


def replace_folder(part: Path, final: Path) -> None:
    """Rename a finished folder to `final` and remove the previous folder of that name, if any.

    The two are exchanged in one step; where the file system cannot do this, readers find no folder
    for a moment.
    """
    old = part
    if not os.path.lexists(final):
        part.rename(final)
    elif _exchange(-100, os.fsencode(part), -100, os.fsencode(final), 2):  # RENAME_EXCHANGE
        old = _draft_name(final)
        final.rename(old)
        part.rename(final)
    if old.is_symlink():  # what it leads to is not ours
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a file or folder to the first free name of PATH.1, PATH.2, ...; return that name."""
    number = 1
    while os.path.lexists(old := path.with_name(f"{path.name}.{number}")):
        number += 1
    return path.rename(old)


def write_json(path: Path, value: Any, compact: bool = False) -> None:
    """Replace a JSON file atomically and durably; `compact`: without line breaks."""
    if compact:
        text = json.dumps(value, separators=(",", ":"))
    else:
        text = json.dumps(value, indent=1) + "\n"
    replace_file(path, text, durable=True)


def flush(path: Path) -> None:
    """Write a file or folder to disk, so that it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
