"""Check that training can read each image, and what it would silently convert.

Training's own `read_image` decides whether an image is readable; Pillow reads the header to find
out what the file is. This runs in separate processes: a decoder that crashes ends only one of them,
and the image is reported.
"""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import unicodedata
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fcos_recipe.console import Progress, native_stderr
from fcos_recipe.datasets.verify.findings import Findings, by
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import MOST_IMAGE, read_bytes
from fcos_recipe.system.device import child_environment

CHUNK = 32  # images that a process gets at once
MODES = {
    "1": "greyscale", "L": "greyscale", "LA": "greyscale", "CMYK": "cmyk", "YCCK": "cmyk",
    "I": "sixteen_bit", "F": "sixteen_bit",
}  # fmt: skip


@dataclass
class ImageCheck:
    """What was found out about one image file."""

    size: tuple[int, int] | None = None  #: height and width as training reads it; None: unreadable
    stored: tuple[int, int] | None = None  #: height and width before EXIF rotation
    notes: list[tuple[str, str]] = field(default_factory=list)  #: (kind of finding, text)
    digest: bytes = b""  #: BLAKE2b of the file's content


def inspect(path: str) -> ImageCheck:
    """Read one image as training does; never raises because of the file's content."""
    from fcos_recipe.data.images import BadImage, read_image

    seen = ImageCheck()
    try:
        with native_stderr() as complaint:
            image = read_image(path)
        seen.size = image.shape[:2]
    except BadImage as error:
        reason = str(error).removeprefix(f"{path}: ")
    if not os.path.isfile(path):
        there = os.path.lexists(path)
        return _bad(seen, "file_unreadable" if there else "file_missing", reason if there else "")
    try:
        data = read_bytes(path, MOST_IMAGE)
    except UserError as error:
        return _bad(seen, "file_unreadable", str(error).removeprefix(f"{path}: "))
    if not data:
        return _bad(seen, "image_empty")
    seen.digest = hashlib.blake2b(data, digest_size=16).digest()
    cut = _is_cut(data)
    if seen.size is None:
        kind = "image_too_large" if reason.startswith("more than ") else "image_undecodable"
        return _bad(seen, "image_truncated" if cut else kind, reason)
    if cut:
        seen.notes.append(("image_truncated", "no end-of-image marker"))
    lines = [line for line in complaint() if "iCCP" not in line]  # a colour profile is not used
    if lines:
        seen.notes.append(("decoder_warning", lines[0][:200]))
    _describe(seen, data, os.path.splitext(path)[1].lower().lstrip("."), image)
    return seen


def _bad(seen: ImageCheck, kind: str, text: str = "") -> ImageCheck:
    seen.size = None
    seen.notes.append((kind, text))
    return seen


def _is_cut(data: bytes) -> bool:
    """Whether a JPEG lacks the end marker after its last scan; thumbnails have their own."""
    return data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def _describe(seen: ImageCheck, data: bytes, extension: str, image: Any) -> None:
    """Add what Pillow finds in the header, and whether reading the image rotated it."""
    import cv2
    import numpy as np
    from PIL import Image

    from fcos_recipe.data.image_files import FORMATS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.MAX_IMAGE_PIXELS = None  # nothing is decoded here; training applied its limit
            with Image.open(io.BytesIO(data)) as file:
                kind, mode, size = file.format, file.mode, file.size
                transparent = "transparency" in file.info
                frames = kind != "MPO" and getattr(file, "is_animated", False)
                turn = file.getexif().get(0x0112, 1)  # as Pillow understands the tag
    except Exception:  # Pillow's plugins raise any error; training uses OpenCV
        return
    seen.stored = size[::-1]
    add = seen.notes.append
    if kind in FORMATS and extension not in FORMATS[kind]:
        add(("extension", f"it is {kind}"))
    if mode in MODES or mode.startswith("I;16"):
        add((MODES.get(mode, "sixteen_bit"), f"mode {mode}"))
    elif kind == "PNG" and data[24:25] == b"\x10":  # Pillow reduces colour to 8 bits
        add(("sixteen_bit", "16 bits per channel"))
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or transparent:
        add(("alpha", f"mode {mode}"))
    if frames:
        add(("animated", ""))
    if turn != 1 or seen.size != seen.stored:
        as_stored = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        plain = cv2.imdecode(np.frombuffer(data, np.uint8), as_stored)
        if seen.size != seen.stored or not np.array_equal(plain[..., ::-1], image):
            add(("exif_turned", f"orientation {turn!r:.40}"))


class _Reader:
    """A process that inspects images, so that a decoder that crashes ends only this process.

    It is a program of its own: a process of `multiprocessing` would import the caller's script.
    """

    def __init__(self) -> None:
        # Ctrl-C is the parent's to answer, also while the child is importing
        program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        program += f"from {__name__} import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**child_environment(), "OPENCV_LOG_LEVEL": "WARNING"},
        )  # fmt: skip

    def inspect(self, paths: list[str]) -> list[ImageCheck] | None:
        """`inspect` of every path; None: the process crashed on one of them."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            pickle.dump(paths, stdin)
            stdin.flush()
            return pickle.load(stdout)
        except (EOFError, BrokenPipeError):
            return None

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """The program of `_Reader`: lists of paths on standard input, results on standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints must not come between the answers
    import cv2

    cv2.setNumThreads(1)
    while True:
        try:
            paths = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump([inspect(path) for path in paths], answers)
        answers.flush()


def inspect_all(paths: list[str], processes: int | None = None) -> list[ImageCheck]:
    """Call `inspect` for every path in parallel, with progress on standard error.

    Args:
        paths: of image files.
        processes: number of processes; default: the cores available to this process.
    """
    processes = processes or len(os.sched_getaffinity(0))
    chunks = deque(range(i, min(i + CHUNK, len(paths))) for i in range(0, len(paths), CHUNK))
    results = [ImageCheck() for _ in paths]

    def work(progress: Progress) -> None:
        """A thread with a process of its own, and with a new one after each that crashed."""
        while chunks:
            reader = _Reader()
            try:
                while chunks:
                    try:
                        chunk = chunks.popleft()
                    except IndexError:  # another thread was quicker
                        return
                    seen = reader.inspect([paths[i] for i in chunk])
                    if seen is None:
                        if len(chunk) > 1:  # which one was it?
                            chunks.extendleft(range(i, i + 1) for i in reversed(chunk))
                        else:
                            _bad(results[chunk[0]], "image_crashes")
                            progress.add(1)
                        break
                    for i, result in zip(chunk, seen):
                        results[i] = result
                    progress.add(len(chunk))
            finally:
                reader.close()

    with (
        Progress("images", len(paths), unit="image") as progress,
        ThreadPoolExecutor(processes) as threads,
    ):
        jobs = [threads.submit(work, progress) for _ in range(min(processes, len(chunks)))]
        try:
            for job in jobs:
                job.result()
        except BaseException:  # Ctrl-C: skip the remaining chunks
            chunks.clear()
            raise
    return results


def report(
    found: Findings, images: list[tuple[int, int, str, tuple[float, float]]],
    results: dict[str, ImageCheck], folder: str,
) -> None:  # fmt: skip
    """Turn results into findings.

    Args:
        found: of the split.
        images: position, id, name, and annotated (height, width) of each image; 0: unknown.
        results: by image name.
        folder: of the images.
    """
    near: dict[str, str] | None = None
    by_content: dict[bytes, str] = {}
    told = set()
    for at, id, name, given in images:
        result, place = results[name], ("images", at)
        if name not in told:  # report a file that is listed twice only once
            told.add(name)
            for kind, text in result.notes:
                if kind == "file_missing":
                    near = _alike(folder) if near is None else near
                    other = near.get(_plain(os.path.basename(name)))
                    text = f"there is {other}" if other and other != name else ""
                found.add(kind, id, name, place, text)
            other = by_content.setdefault(result.digest, name)
            if result.digest and os.path.normpath(other) != os.path.normpath(name):
                found.add("same_content", id, name, place, f"the same as {other}")
        if result.size and min(given) > 0 and tuple(map(int, given)) != tuple(result.size):
            text = f"{by(given[::-1])} in the annotations, {by(result.size[::-1])} in the file"
            turned = {k for k, _ in result.notes} & {"exif_turned"}
            if turned and tuple(map(int, given)) == result.stored:
                text += " after rotation by its EXIF tag"
            found.add("image_size_differs", id, name, place, text)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _alike(folder: str) -> dict[str, str]:
    """Files of the folder by their names without case and with composed accents."""
    try:
        return {_plain(name): name for name in os.listdir(folder or ".")}
    except OSError:
        return {}


def unlisted(folder: str, names: set[str]) -> list[str]:
    """Images in the folder, or in the folders of listed images, that are not in `names`.

    Args:
        folder: of the images.
        names: normalised, relative to the folder.
    """
    from fcos_recipe.data.image_files import is_image

    found = []
    for part in {os.path.dirname(name) for name in names} | {""}:
        if part.startswith("..") or os.path.isabs(part):
            continue
        try:
            here = os.listdir(os.path.join(folder, part) or ".")
        except (OSError, ValueError):
            continue
        found += [os.path.join(part, name) for name in here
                  if os.path.join(part, name) not in names]  # fmt: skip
    return sorted(name for name in found if is_image(os.path.join(folder, name)))
