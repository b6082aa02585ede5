"""Download a file over HTTP, resuming after a broken connection, a kill or a reboot.

During a transfer, `NAME.part` has the bytes, and `NAME.part.json` records which of them are on disk
and to which version of the server's file they belong. `NAME` itself is created only when its length
and, if known, its MD5 are correct.
"""

import base64
import binascii
import contextlib
import errno
import fcntl
import hashlib
import http.client
import math
import os
import queue
import random
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fcos_recipe import __version__, exit_codes
from fcos_recipe.console import Progress, amount, say
from fcos_recipe.errors import RunFailure, UserError, path_reason
from fcos_recipe.files.atomic import open_own, remove_drafts, write_json
from fcos_recipe.files.reading import open_regular, parse_json, read_bytes

TIMEOUT = 30.0  # seconds without data after which a connection counts as broken
PIECE = 64 << 20  # bytes per request when several connections share a file
BLOCK = 256 << 10  # bytes per read
SAVE_EVERY = 3.0  # seconds between two records of the bytes on disk
FIRST_TRIES = 5  # failures in a row before any data has arrived: fails within 20 s
LATER_TRIES = 40  # failures in a row afterwards: half an hour without network
RESTARTS = 5  # restarts from byte 0, if the server's file changes or the server cannot resume
BACKOFF = 1.0  # seconds before the second try; doubled each time
LONGEST_PAUSE = 60.0  # seconds


class DownloadError(RunFailure):
    """The transfer could not be completed; the data received so far are kept."""

    code = exit_codes.FAILED


class Damaged(DownloadError):
    """The data are not as expected: checksum, length, count, or an unsafe archive."""

    code = exit_codes.DAMAGED


class NoSpace(DownloadError):
    """The disk is full or has too little space."""

    code = exit_codes.DISK_FULL


class _Broken(Exception):
    """The reply was wrong; another request may succeed."""


class _Changed(Exception):
    """The partial download cannot be continued."""


class _Stopped(Exception):
    """Another connection of the same transfer has failed."""


def fetch(
    url: str,
    path: str | Path,
    md5: str | None = None,
    connections: int = 1,
    piece: int = 0,
    remedy: str = "",
) -> None:
    """Download `url` to `path`, continuing an earlier partial download.

    Two processes must not use the same path at the same time: use `locked`.

    Args:
        url: http or https; redirects and the usual proxy variables are followed.
        path: the file to create; its directory is created as well.
        md5: expected hex digest. Default: a Content-MD5 sent with the whole file; without one only
            the length is checked.
        connections: number of parallel connections, for servers that limit the speed of each.
        piece: bytes per request if `connections` > 1; default `PIECE`.
        remedy: ends the message of an error that is the server's, such as "; try another server".

    Raises:
        UserError: the URL is not http or https, or the directory cannot be written.
        Damaged: the data do not match `md5`, also after a second download.
        NoSpace: the disk has too little space.
        DownloadError: the server refuses the request, or fails too often in a row.
    """
    path = Path(path)
    if not re.match(r"https?://[^/\s]+", url):
        raise UserError(f"{url}: not an http or https address")
    prepare(path.parent)
    mismatches = 0
    for _ in range(RESTARTS + 1):
        transfer = _Transfer(url, path, md5, connections, piece or PIECE, remedy)
        try:
            expected = transfer.run()
        except _Changed as reason:
            say(f"{path.name}: {reason}: restarting the download")
            transfer.discard()
            continue
        if expected and digest(transfer.part, "md5", f"{path.name}: checking") != expected:
            transfer.discard()
            mismatches += 1
            if mismatches == 2:
                raise Damaged(f"{url}: the MD5 is not {expected} in two downloads{remedy}")
            say(f"{path.name}: the MD5 is not {expected}: restarting the download")
            continue
        os.replace(transfer.part, path)
        transfer.discard()
        return
    raise DownloadError(f"{url}: restarted {RESTARTS + 1} times without success{remedy}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; wait, with a message, while another process holds it.

    The kernel releases the lock of a killed process. The file is removed at the end.
    """
    while True:
        try:
            handle = open_own(path, os.O_RDWR)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        with handle:
            file, ghost = handle.fileno(), True
            _lock(file, path)
            # the previous owner may have removed this file after we opened it: then lock a new one
            with contextlib.suppress(FileNotFoundError):
                ghost = not os.path.samestat(os.fstat(file), os.stat(path))
            if not ghost:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _lock(file: int, path: Path) -> None:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process, which holds the lock {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be locked ({error.strerror}); use a directory on another file system"
        ) from None


def digest(path: str | Path, algorithm: str, label: str = "") -> str:
    """Return a file's hex digest; with a label, show progress.

    Raises:
        UserError: not a regular file, or not readable.
    """
    summed = hashlib.new(algorithm)
    with (
        open(open_regular(path), "rb") as file,
        Progress(label, os.path.getsize(path)) as progress,
    ):
        while block := file.read(4 << 20):
            summed.update(block)
            progress.add(len(block))
    return summed.hexdigest()


def prepare(folder: Path) -> None:
    """Create a directory and check that it can be written.

    Raises:
        UserError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created: {path_reason(error)}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: not writable")


def free_bytes(folder: Path) -> int:
    """Free bytes on the file system of `folder`, which need not exist."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def local_failure(error: OSError, path: Path) -> DownloadError:
    """Build the exception for a failed write."""
    kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else DownloadError
    return kind(f"{path}: {error.strerror}; existing data are kept for the next call")


@dataclass
class _Note:
    """Contents of `NAME.part.json`."""

    url: str  # SHA-256 of it: the address itself may contain a password or a token
    length: int | None  # None: not stated by the server
    piece: int  # bytes per request; 0: the whole file in one request
    etag: str | None
    modified: str | None  # Last-Modified
    md5: str | None  # Content-MD5 of the whole, hex
    done: list[int] = field(default_factory=list)  # bytes from the start of each piece

    def check(self) -> None:
        """Raise TypeError or ValueError if the record, which is read from a file, is not usable."""
        texts, numbers = (self.url, self.etag, self.modified, self.md5), [self.piece, *self.done]
        if self.length is not None:
            numbers.append(self.length)
        if not all(isinstance(one, str | None) for one in texts):
            raise TypeError("not a text")
        if any(type(one) is not int or one < 0 for one in numbers):
            raise TypeError("not a number of bytes")
        pieces = math.ceil((self.length or 0) / self.piece) if self.piece else 1
        if len(self.done) != pieces or (self.piece and self.length is None):
            raise ValueError("another number of pieces")
        for index, done in enumerate(self.done):
            start, end = self.span(index)
            if end is not None and start + done > end:
                raise ValueError("more bytes than there are")

    def span(self, index: int) -> tuple[int, int | None]:
        """First byte and end of a piece."""
        if not self.piece:
            return 0, self.length
        end = (index + 1) * self.piece
        return index * self.piece, end if self.length is None else min(end, self.length)

    def complete(self, index: int) -> bool:
        start, end = self.span(index)
        return end is not None and start + self.done[index] >= end


class _Transfer:
    """One attempt to download a file, with a thread per connection; `guard` protects its state."""

    def __init__(
        self, url: str, path: Path, md5: str | None, connections: int, piece: int, remedy: str
    ):
        self.via = _proxy(url)
        self.remedy = "" if self.via else remedy
        self.url, self.md5, self.connections, self.piece = url, md5, connections, piece
        self.key = hashlib.sha256(url.encode()).hexdigest()
        self.name = path.name
        self.part = path.with_name(path.name + ".part")
        self.note_path = path.with_name(path.name + ".part.json")
        self.guard = threading.Lock()
        self.stop = threading.Event()
        self.received = 0
        self.saved = time.monotonic()
        self.note: Any = self._load()  # _Note; None before the first reply
        self.progress: Progress = None  # type: ignore[assignment]  # until _begin

    def _load(self) -> _Note | None:
        """Read the record of an earlier call, if the partial file matches it."""
        try:
            note = _Note(**parse_json(read_bytes(self.note_path, 1 << 24)))
            note.check()
            spans = [note.span(i)[0] + done for i, done in enumerate(note.done) if done]
            if self.part.stat().st_size < max(spans, default=0):
                return None
        except (OSError, UserError, ValueError, TypeError):
            return None
        if note.url != self.key:
            if not self.md5:  # without MD5 we cannot know whether both servers have the same file
                return None
            note.url, note.etag, note.modified = self.key, None, None
        return note

    def discard(self) -> None:
        """Remove the partial file and its record."""
        self.note_path.unlink(missing_ok=True)
        remove_drafts(self.note_path.parent, self.note_path.name)
        self.part.unlink(missing_ok=True)

    def run(self) -> str | None:
        """Download the missing parts; return the expected MD5, if known."""
        try:
            with open_own(self.part, os.O_RDWR) as opened:
                self.file = os.dup(opened.fileno())
            if not self.note:
                os.truncate(self.file, 0)
        except OSError as error:
            raise UserError(f"{self.part}: {error.strerror}") from None
        try:
            if self.note:
                self._begin()
                if self.progress.done:
                    say(f"{self.name}: continuing at {amount(self.progress.done)}")
            else:
                self._fetch(0)  # the reply shows whether the file can be split into pieces
            self._fetch_rest()
        finally:
            with self.guard:  # afterwards no thread writes any more
                self.stop.set()
                with contextlib.suppress(OSError):
                    self._save()
                os.close(self.file)
                if self.progress:
                    self.progress.__exit__()
                if not self.note:  # there was no reply
                    self.discard()
        return self.md5 or self.note.md5

    def _begin(self) -> None:
        done = sum(self.note.done)
        self.progress = Progress(self.name, self.note.length, done)
        missing = (self.note.length or 0) - done
        if (free := free_bytes(self.part.parent)) < missing:
            raise NoSpace(
                f"{self.part.parent}: {amount(missing)} to download, {amount(free)} free; "
                "free space or choose another directory"
            )

    def _fetch_rest(self) -> None:
        pieces: queue.SimpleQueue = queue.SimpleQueue()
        rest = [i for i in range(len(self.note.done)) if not self.note.complete(i)]
        for index in rest:
            pieces.put(index)
        ends: queue.SimpleQueue = queue.SimpleQueue()

        def work() -> None:
            try:
                with contextlib.suppress(queue.Empty):
                    while True:
                        self._fetch(pieces.get_nowait())
                ends.put(None)
            except BaseException as error:
                ends.put(error)

        threads = min(self.connections, len(rest))
        for _ in range(threads):
            threading.Thread(target=work, daemon=True).start()
        for _ in range(threads):
            if error := ends.get():
                raise error

    def _fetch(self, index: int) -> None:
        """Download one piece, retrying after failures."""
        failures = 0
        while not (self.note and self.note.complete(index)):
            before, pause = self.received, 0.0
            try:
                self._request(index)
                continue
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                error.close()
                if error.code == 416 and self.note:
                    raise _Changed("the server's file is shorter than the partial one") from None
                if error.code < 500 and error.code not in (408, 425, 429):
                    raise DownloadError(f"{self.url}: {reason}{self.via}{self.remedy}") from None
                with contextlib.suppress(TypeError, ValueError):
                    pause = min(float(error.headers.get("Retry-After") or ""), 2 * LONGEST_PAUSE)
            except (_Broken, http.client.HTTPException, urllib.error.URLError, OSError) as error:
                reason = str(getattr(error, "reason", None) or error) or type(error).__name__
            failures = 1 if self.received > before else failures + 1
            if failures >= (LATER_TRIES if self.received else FIRST_TRIES):
                raise DownloadError(
                    f"{self.url}: {reason} ({failures} failures in a row); run the same command "
                    f"again to continue the download{self.remedy}"
                )
            pause = max(pause, min(BACKOFF * 2 ** (failures - 1), LONGEST_PAUSE))
            say(f"{self.name}: {reason}; next try in {pause:.0f} s")
            if self.stop.wait(pause * random.uniform(0.5, 1) if pause < LONGEST_PAUSE else pause):
                raise _Stopped

    def _request(self, index: int) -> None:
        start, end = self.note.span(index) if self.note else (0, None)
        position = start + (self.note.done[index] if self.note else 0)
        headers = {
            "User-Agent": f"fcos_recipe/{__version__}",
            "Accept-Encoding": "identity",
            "Range": f"bytes={position}-{end - 1 if end else ''}",
        }
        if self.note and position:
            strong = self.note.etag if (self.note.etag or "").startswith('"') else None
            if validator := strong or self.note.modified:
                headers["If-Range"] = validator
        request = urllib.request.Request(self.url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            self._check(reply, position)
            end = self.note.span(index)[1]
            while end is None or position < end:
                block = reply.read1(BLOCK if end is None else min(BLOCK, end - position))
                if not block and end is None and position:
                    self.note.length = position  # the last chunk has arrived
                    return
                if not block:
                    raise _Broken("the connection ended early")
                self._write(index, position, block)
                position += len(block)

    def _check(self, reply: http.client.HTTPResponse, position: int) -> None:
        """Record the file's description from the first reply; compare later replies with it."""
        headers = reply.headers
        if headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{self.url}: the server sends the file compressed")
        whole = reply.status == 200
        length: Any  # int; None if the server does not state it
        if whole:
            length = reply.length
        elif reply.status == 206:
            match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
            if not match or int(match[1]) != position:
                raise _Broken(f"sent another range: {headers.get('Content-Range')}")
            length = int(match[3])
        else:
            raise _Broken(f"HTTP {reply.status} instead of a file")
        etag, modified = headers.get("ETag"), headers.get("Last-Modified")
        note = self.note
        if note is None:
            chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
            if length is None and not chunked and not self.md5:
                raise DownloadError(f"{self.url}: the server does not state the length")
            if length == 0:
                raise Damaged(f"{self.url}: the server's file is empty")
            share = not whole and self.connections > 1 and length > self.piece
            md5 = _content_md5(headers) if whole or int(match[2]) == length - 1 else None
            note = _Note(self.key, length, self.piece if share else 0, etag, modified, md5)
            note.done = [0] * (math.ceil(length / self.piece) if share else 1)
            self.note = note
            self._begin()
            return
        same = length == note.length and (not etag or not note.etag or etag == note.etag)
        if not note.etag and modified and note.modified:
            same = same and modified == note.modified
        if not same:
            raise _Changed("the server's file has changed")
        if whole and position:
            raise _Changed("the server cannot resume")
        note.etag, note.modified = note.etag or etag, note.modified or modified

    def _write(self, index: int, position: int, block: bytes) -> None:
        with self.guard:
            if self.stop.is_set():
                raise _Stopped
            try:
                view = memoryview(block)
                while view:
                    count = os.pwrite(self.file, view, position)
                    view, position = view[count:], position + count
                self.note.done[index] += len(block)
                if time.monotonic() - self.saved > SAVE_EVERY:
                    self._save()
            except OSError as error:
                raise local_failure(error, self.part) from None
            self.received += len(block)
            self.progress.add(len(block))

    def _save(self) -> None:
        """Flush the data, then write the record, which never lists data that are not on disk."""
        if self.note:
            os.fdatasync(self.file)
            write_json(self.note_path, asdict(self.note), compact=True)
        self.saved = time.monotonic()


def _proxy(url: str) -> str:
    """Words that name the proxy which requests to this address use, and its variable, if any."""
    scheme = url.partition(":")[0]
    proxy = urllib.request.getproxies().get(scheme, "").rpartition("@")[2]  # without a password
    if not proxy or urllib.request.proxy_bypass(urllib.request.Request(url).host):
        return ""
    variable = f"{scheme}_proxy"
    variable = variable if variable in os.environ else variable.upper()
    return f" (through the proxy {proxy} of the variable {variable})"


def _content_md5(headers: http.client.HTTPMessage) -> str | None:
    try:
        value = base64.b64decode(headers.get("Content-MD5", ""), validate=True).hex()
    except binascii.Error:
        return None
    return value if len(value) == 32 else None
