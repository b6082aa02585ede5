"""What `fcos infer` is given: images and videos, found and decoded."""

import glob
import itertools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import given_path, open_regular, read_text

VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def real(path: Path) -> Path:
    """The path without links; other than `Path.resolve`, also of a link that leads to itself."""
    return Path(os.path.realpath(path))


def find_inputs(inputs: list[str], skip: Path | None = None) -> dict[Path, Path]:
    """Files named by files, directories (images, at any depth), globs and lists (.txt).

    Args:
        inputs: as on the command line. A list has one path per line, relative to the list.
        skip: nothing below this directory is taken from a directory: an earlier run's drawings.

    Returns:
        file -> relative path for its drawing, unique, in sorted order of each input.

    Raises:
        UserError: an input that names nothing.
    """
    from fcos_recipe.data.image_files import files_below, is_image

    found: dict[Path, Path] = {}
    for text in inputs:
        path = given_path(text)
        if path.is_dir():
            every = [p for p in files_below(path) if is_image(p)]
            skipped = real(skip) if skip and real(skip) != real(path) else None
            new = {p: p.relative_to(path) for p in every if skipped not in real(p).parents}
        elif path.suffix == ".txt" and path.is_file():
            lines = read_text(path).splitlines()
            listed = [given_path(line.strip(), path.parent) for line in lines if line.strip()]
            new = {p: Path(p.name) for p in listed}
        elif path.is_file():
            new = {path: Path(path.name)}
        else:
            new = {Path(p): Path(p).name for p in sorted(glob.glob(text, recursive=True))}
        if not new:
            raise UserError(f"--input {text}: no image found that OpenCV can read, and no video")
        found.update({p: Path(name) for p, name in new.items() if p not in found})
    taken: set[Path] = set()
    for path, name in found.items():  # two folders may hold images of the same name
        if is_video(path):
            name = name.with_suffix(".mp4")
        number = 1
        while name in taken:
            number += 1
            name = found[path].with_stem(f"{found[path].stem}_{number}")
        taken.add(name)
        found[path] = name
    return found


def decoded(files: list[Path], ahead: int = 4) -> Iterator[tuple[Path, np.ndarray | Exception]]:
    """Images in order, decoded by threads while the caller works on earlier ones.

    Args:
        files: images.
        ahead: how many may wait.

    Yields:
        the file and uint8 [H, W, 3], RGB, or the `BadImage` that reading it raised.
    """
    from fcos_recipe.data.images import BadImage, read_image

    def read(file: Path):
        try:
            return read_image(str(file))
        except BadImage as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        waiting: deque = deque()
        rest = iter(files)
        for file in itertools.islice(rest, ahead):
            waiting.append((file, pool.submit(read, file)))
        while waiting:
            file, image = waiting.popleft()
            for more in itertools.islice(rest, 1):
                waiting.append((more, pool.submit(read, more)))
            yield file, image.result()


class Video:
    """Frames of a video file.

    Args:
        path: what OpenCV can open.

    Attributes:
        rate: frames per second, 25 where the file does not say.
        count: frames by the file's own count, 0 where it does not say.

    Raises:
        BadImage (data.images): it cannot be opened or has no frame.
    """

    def __init__(self, path: Path):
        import cv2

        from fcos_recipe.data.images import BadImage

        self.path = path
        try:
            os.close(open_regular(path))
        except UserError as error:
            raise BadImage(str(error)) from None
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise BadImage(f"{path}: not a video that OpenCV can read")
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames, uint8 [H, W, 3], RGB.

        Raises:
            BadImage: at the end, if the file promised more frames than could be read.
        """
        from fcos_recipe.data.images import BadImage

        read = 0
        while True:
            good, frame = self._capture.read()
            if not good:
                break
            read += 1
            yield np.ascontiguousarray(frame[:, :, ::-1])
        self._capture.release()
        if not read or read < self.count:
            raise BadImage(f"{self.path}: only {read} of {self.count} frames could be read")
