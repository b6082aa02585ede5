"""Videos, streams and cameras as frames with their times, and drawn frames as a video."""

import array
import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.console import native_stderr
from fcos_recipe.data.images import BadImage
from fcos_recipe.errors import RunFailure, UserError, printable, without_secrets
from fcos_recipe.files.atomic import draft
from fcos_recipe.files.reading import open_regular

VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
WRITTEN = ".webm"  # ending of a video that `film` writes
PATIENCE = 15.0  # seconds that a stream may send nothing, at its begin and later
Source = Path | str | int  # a file, the address of a stream, or the number of a camera


@dataclass(frozen=True)
class Frame:
    """A frame of a video or stream: pixels, uint8 [H, W, 3] in RGB, its number from 0, and its time
    in seconds from the start."""

    pixels: np.ndarray
    number: int
    at: float


def is_video(source: Source) -> bool:
    """Whether it gives frames; of files, the ending decides."""
    return not isinstance(source, Path) or source.suffix.lower() in VIDEOS


def is_stream(text: object) -> bool:
    """Whether an input is the address of a stream."""
    return isinstance(text, str) and "://" in text


def source_name(source: Source) -> str:
    """A source as results name it: a file's path, "camera 0", an address without passwords."""
    if isinstance(source, Path):
        return str(source)
    return f"camera {source}" if isinstance(source, int) else printable(source)


def drawing_name(source: str | int) -> str:
    """Name of the file with a stream's or camera's drawn frames."""
    text = f"camera_{source}" if isinstance(source, int) else without_secrets(source)
    plain = re.sub(r"[^\w.-]+", "_", text.rpartition("://")[2].removeprefix("***@"))
    return (plain.strip("._")[:80] or "stream") + WRITTEN


class Video:
    """Frames of a video file, a stream or a camera, turned as the file says.

    Args:
        source: file, address of a stream (rtsp://, http://, ...), or number of a camera.

    Attributes:
        name: for messages, without the passwords of an address.
        rate: mean frames per second, 25 where the source does not say.
        count: frames by the source's own count, 0 where it does not say, as of a live stream.

    Raises:
        BadImage (data.images): it cannot be opened, or a stream does not answer for `PATIENCE`.
    """

    def __init__(self, source: Source):
        import cv2

        self.name = printable(source_name(source))
        kind, more = "a camera or stream", []
        if isinstance(source, Path):
            kind = "a video"
            try:
                os.close(open_regular(source))
            except UserError as error:
                raise BadImage(str(error)) from None
        elif isinstance(source, str):
            wait = int(PATIENCE * 1000)
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, wait, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait]
            more = [cv2.CAP_FFMPEG, limits]
        began = time.monotonic()
        with _quiet():
            given = source if isinstance(source, int) else str(source)
            self._capture: Any = cv2.VideoCapture(given, *more)
        if not self._capture.isOpened():
            waited = more and time.monotonic() - began > 0.9 * PATIENCE
            why = f"no answer in {PATIENCE:g} s" if waited else f"not {kind} that OpenCV can read"
            raise BadImage(f"{self.name}: {why}")
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order; each has the time that the source states, which need not be regular.

        Of a live source, which states no count, a thread reads on while the caller works: the next
        frame is the newest, and those between are left out.

        Raises:
            BadImage: at the end, if there was no frame or fewer than the source promised, or if it
                is live: such a source has no end but a failure.
        """
        return self._frames() if self.count else self._newest()

    def _frames(self) -> Iterator[Frame]:
        import cv2

        read, began, last, longest = 0, None, -1.0, 1 / self.rate
        try:
            while self._grab():
                stated = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                good, frame = self._capture.retrieve()
                if not good:
                    break
                began = stated if began is None else began
                at = stated - began
                if read and at <= last:  # the source states no times
                    at = last + 1 / self.rate
                if read:
                    longest = max(longest, at - last)
                last = at
                yield Frame(np.ascontiguousarray(frame[:, :, ::-1]), read, at)
                read += 1
        finally:
            self._capture.release()
        if not self.count:
            silent = f": nothing came for {PATIENCE:g} s" if self._waited > 0.9 * PATIENCE else ""
            raise BadImage(f"{self.name}: the stream ended after {read} frames{silent}")
        # the count of frames of unequal length is only an estimate from the file's whole length
        if not read or (read < self.count and last + 1.5 * longest < self.count / self.rate):
            raise BadImage(f"{self.name}: only {read} of {self.count} frames could be read")

    def _grab(self) -> bool:
        began = time.monotonic()
        with _quiet():
            good = self._capture.grab()
        self._waited = time.monotonic() - began
        return good

    def _newest(self) -> Iterator[Frame]:
        waiting: queue.Queue = queue.Queue(1)
        stop = threading.Event()

        def read() -> None:
            end = None
            try:
                for frame in self._frames():
                    if stop.is_set():
                        return
                    with contextlib.suppress(queue.Empty):
                        waiting.get_nowait()
                    waiting.put(frame)
            except Exception as error:
                end = error
            waiting.put(end)

        threading.Thread(target=read, daemon=True).start()
        try:
            while isinstance(item := waiting.get(), Frame):
                yield item
            if item is not None:
                raise item
        finally:
            stop.set()
            with contextlib.suppress(queue.Empty):  # lets the thread end
                waiting.get_nowait()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without OpenCV's warnings: of an error there is one line, by us."""
    import cv2

    levels = cv2.utils.logging
    level = levels.getLogLevel()
    levels.setLogLevel(levels.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        if level != levels.LOG_LEVEL_SILENT:  # which another thread restores
            levels.setLogLevel(level)


class Film:
    """Takes the frames of a video that `film` writes; all become as large as the first."""

    def __init__(self, target: Path, part: Path, rate: float):
        self._target, self._part = target, part
        self._writer: Any = None
        self._rate = rate if 1 <= rate <= 120 else 25.0
        self.times = array.array("d")

    def add(self, pixels: np.ndarray, at: float) -> None:
        """Append a frame, uint8 [H, W, 3] in RGB, that is shown from `at` on, in seconds."""
        import cv2

        if self._writer is None:
            self._size = pixels.shape[1::-1]
            self._writer = self._encoder(self._part, self._rate)
        if pixels.shape[1::-1] != self._size:  # a camera may change it
            pixels = cv2.resize(pixels, self._size)
        self._writer.write(pixels[:, :, ::-1])
        self.times.append(at)

    def finish(self) -> None:
        """Give the frames their own times; the encoder took them for regular.

        Raises:
            RunFailure: some were not written.
        """
        import cv2

        self._writer.release()
        steps = [round(1000 * (at - self.times[0])) for at in self.times]
        even = all(abs(ms - 1000 * k / self._rate) < 250 / self._rate for k, ms in enumerate(steps))
        packets: Any = cv2.VideoCapture(str(self._part), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
        written, copy = 0, None
        with contextlib.ExitStack() as opened:
            if not even:
                timed = opened.enter_context(draft(self._part, ending=WRITTEN))
                copy = self._encoder(timed, 1000.0, [cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1])
                opened.callback(copy.release)
            while written < len(steps) and packets.grab():
                if copy is not None:
                    key = packets.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME)
                    copy.set(cv2.VIDEOWRITER_PROP_PTS, steps[written])
                    copy.set(cv2.VIDEOWRITER_PROP_KEY_FLAG, key)
                    copy.write(packets.retrieve()[1])
                written += 1
        if written < len(steps):
            raise RunFailure(f"{self._target}: only {written} of {len(steps)} frames could be "
                             "written; make room on the disk and try again")  # fmt: skip

    def _encoder(self, path: Path, rate: float, options: list[int] | None = None) -> Any:
        import cv2

        with native_stderr():  # says that WebM has no code for VP8, which it needs not
            code = cv2.VideoWriter_fourcc(*"VP80")
            made = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, self._size, options or [])
        if not made.isOpened():
            raise UserError(f"{self._target}: cannot be written, or this OpenCV has no VP8 encoder")
        return made


@contextlib.contextmanager
def film(target: Path, rate: float) -> Iterator[Film]:
    """Write a video as VP8 in WebM, which browsers play, with each frame's own time.

    After an interruption the video is complete up to there.

    Args:
        target: the new file; its folder must exist. It is not written if there is no frame.
        rate: mean frames per second.
    """
    stopped = None
    with contextlib.suppress(_Empty), draft(target, ending=WRITTEN) as part:
        made = Film(target, part, rate)
        try:
            yield made
        except KeyboardInterrupt as error:
            stopped = error
        if not made.times:
            raise _Empty
        made.finish()
    if stopped:
        raise stopped


class _Empty(Exception):
    """There was no frame."""
