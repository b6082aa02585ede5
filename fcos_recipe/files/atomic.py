"""Replace files atomically: readers see either the old or the new content."""

import contextlib
import glob
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


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
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}{ending}")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield part
        if durable:
            flush(part)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def remove_drafts(path: Path) -> None:
    """Remove drafts of `path` left by killed processes; no other process may be writing it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*"):
        part.unlink(missing_ok=True)


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
            file.write(content.encode() if isinstance(content, str) else content)


def replace_folder(part: Path, final: Path) -> None:
    """Rename a finished folder to `final` and remove the previous folder of that name, if any.

    For a moment a reader may find no folder, but never a mixture of the two.
    """
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    part.rename(final)
    shutil.rmtree(old, ignore_errors=True)


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
