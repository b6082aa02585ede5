"""What a `Predictor` and `fcos infer` are given: images, videos and streams, found and decoded."""

import glob
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.errors import UserError, one_line, printable
from fcos_recipe.files.reading import given_path, read_text
from fcos_recipe.predict.video import (
    Frame,
    Source,
    Video,
    drawing_name,
    is_stream,
    is_video,
    source_name,
)

DEEPEST = 50  # lists inside of lists


def real(path: Path) -> Path:
    """The path without links; other than `Path.resolve`, also of a link that leads to itself."""
    return Path(os.path.realpath(path))


def find_inputs(inputs: list[str], skip: Path | None = None) -> dict[Source, Path]:
    """Files named by files, directories (images and videos, at any depth), globs and lists (.txt);
    addresses of streams and numbers of cameras as they are.

    Files whose ending is that of an image are found also if they cannot be decoded, to be named.

    Args:
        inputs: as on the command line. A list has one path per line, relative to the list.
        skip: nothing below this directory is taken from a directory: an earlier run's drawings.

    Returns:
        source -> what its outputs are named by, in sorted order of each input: its path below the
        directory, or its name. Where inputs of several folders have a name in common, apart from
        the ending, files are named by their path below the folder that all of them lie in.

    Raises:
        UserError: an input that names nothing.
    """
    from fcos_recipe.data.image_files import OTHER_ENDINGS, files_below, is_image

    def meant(path: Path) -> bool:
        other = path.suffix.lower() in OTHER_ENDINGS or is_video(path)
        return is_image(path) or (other and not path.name.startswith("."))

    found: dict[Source, Path] = {}
    files: dict[Path, Path] = {}  # absolute path of a file -> its name in `found`
    for text in inputs:
        if is_stream(text):
            found.setdefault(text, Path(drawing_name(text)))
            continue
        path = given_path(text)
        if text.isdecimal() and not path.exists():
            found.setdefault(int(text), Path(drawing_name(int(text))))
            continue
        if path.is_dir():
            every = [p for p in files_below(path) if meant(p)]
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
            raise UserError(f"{text}: no image found that OpenCV can read, and no video")
        for file, name in new.items():
            whole = Path(os.path.abspath(file))
            if whole not in files:
                found[file] = files[whole] = Path(name)
    roots: dict[str, set[Path]] = {}  # a name without its ending -> where it begins
    for whole, name in files.items():
        key = str(name.with_name(name.stem)).casefold()
        roots.setdefault(key, set()).add(whole.parents[len(name.parts) - 1])
    if any(len(places) > 1 for places in roots.values()):
        top = os.path.commonpath([whole.parent for whole in files])
        for file in (file for file in found if isinstance(file, Path)):
            found[file] = Path(os.path.abspath(file)).relative_to(top)
    return found


def decoded(files: Iterable[Path], ahead: int = 4) -> Iterator[tuple[Path, np.ndarray | Exception]]:
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


def each(images: Any) -> Iterator[tuple[str, Any]]:
    """Name and content of each image that a `Predictor` is given, one after the other.

    Args:
        images: one image or anything that can be iterated over: files, folders, globs, lists (.txt)
            and videos as text or Path; opened files, and content as bytes; PIL images; arrays, see
            `pixels`, and arrays [N, H, W, C] of several, also as tensors of other libraries;
            numbers of cameras and addresses of streams.

    Yields:
        the content is what `pixels` takes, a `Frame`, or why there is none: BadImage, UserError.
    """
    from fcos_recipe.data.images import BadImage

    number = itertools.count(1)

    def walk(item: Any, around: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
        kind, around = type(item).__name__, (*around, id(item))  # of what it is nested in, too
        if around[-1] in around[:-1]:
            item = UserError(f"a {kind} that contains itself")
        elif len(around) > DEEPEST:
            item = UserError(f"a {kind} nested {DEEPEST} deep; give the images in one list")
        read = getattr(item, "read", None)
        if callable(read):  # an opened file, which Python splits into lines
            item = read()
            if isinstance(item, str):
                item = UserError(f"a {kind} gives text, not the bytes of an image; open it with rb")
        if callable(getattr(item, "__array__", None)) and not _is_pil(item):  # also a tensor
            try:
                item = np.asarray(item)
            except Exception as error:  # each library has its own classes
                item = UserError(f"a {kind} gives no array: {one_line(error)}")
            else:
                item = item.tolist() if item.dtype.kind in "OTU" else item  # of files or images
        if isinstance(item, UserError):
            yield f"{kind} {next(number)}", item
        elif isinstance(item, bool) or item is None or isinstance(item, dict):
            yield f"{kind} {next(number)}", UserError(f"a {kind} is not an image")
        elif isinstance(item, int) or is_stream(item):
            yield from frames(item)
        elif isinstance(item, (str, os.PathLike)):
            text = os.fspath(item)
            try:
                path = given_path(text)
                several = path.is_dir() or path.suffix == ".txt"
                several |= glob.has_magic(text) and not path.exists()
                files: Iterable[Any] = find_inputs([text]) if several else [path]
            except UserError as error:
                yield printable(text), error
                return
            for file in files:
                if is_video(file):
                    yield from frames(file)
                else:
                    yield str(file), file
        elif isinstance(item, np.ndarray) and item.ndim == 4:
            for one in item:
                yield from walk(one, around)
        elif isinstance(item, (bytes, bytearray, memoryview, np.ndarray)) or _is_pil(item):
            yield f"{kind} {next(number)}", item
        else:
            try:
                every = iter(item)
            except TypeError:
                yield f"{kind} {next(number)}", UserError(f"a {kind} is not an image")
                return
            for one in every:
                yield from walk(one, around)

    def frames(source: Source) -> Iterator[tuple[str, Any]]:
        name = source_name(source)
        try:
            for frame in Video(source):
                yield name, frame
        except BadImage as error:
            yield name, error

    yield from walk(images)


def _is_pil(item: Any) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


def pixels(name: str, item: Any, order: str = "rgb") -> np.ndarray:
    """An image as training would have it, uint8 [H, W, 3] in RGB, turned by its EXIF tag.

    Args:
        name: of the image, for errors.
        item: file, its content as bytes, `Frame`, PIL image, or array [H, W], [H, W, 1], [H, W, 3]
            or [H, W, 4], uint8, or float from 0 to 1. Grey becomes RGB, alpha is dropped.
        order: of an array's channels: rgb or bgr.

    Raises:
        BadImage (data.images): it cannot be read.
        UserError: an array of another kind.
    """
    from fcos_recipe.data.images import decode_image, read_image

    if isinstance(item, Exception):
        raise item
    if isinstance(item, Frame):
        return item.pixels
    if isinstance(item, (str, os.PathLike)):
        return read_image(os.fspath(item))
    if isinstance(item, (bytes, bytearray, memoryview)):
        return decode_image(bytes(item), name)
    if not isinstance(item, np.ndarray):
        item, order = _of_pil(name, item), "rgb"
    kind = f"{item.dtype} [{', '.join(map(str, item.shape))}]"
    fits = item.ndim == 2 or (item.ndim == 3 and item.shape[2] in (1, 3, 4))
    if not fits or not item.size or not (item.dtype == np.uint8 or item.dtype.kind == "f"):
        raise UserError(
            f"{name}: the array is {kind}; give [height, width], or with 1, 3 or 4 channels last, "
            "uint8 or float from 0 to 1"
        )
    if item.dtype.kind == "f":
        if not (np.isfinite(item).all() and item.min() >= 0 and item.max() <= 1):
            raise UserError(f"{name}: the array is {kind} with values outside 0 to 1; scale it, or "
                            "give uint8 from 0 to 255")  # fmt: skip
        item = np.rint(item * 255).astype(np.uint8)
    item = item.reshape(*item.shape[:2], -1)
    if item.shape[2] == 1:
        return np.repeat(item, 3, axis=2)
    item = item[:, :, :3]
    return np.ascontiguousarray(item[:, :, ::-1] if order == "bgr" else item)


def _of_pil(name: str, image: Any) -> np.ndarray:
    """A PIL image as an array of `pixels`; 16-bit grey loses its lower 8 bits, as in training."""
    from PIL import ImageOps

    from fcos_recipe.data.images import BadImage

    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return (np.asarray(image) >> 8).astype(np.uint8)
        if image.mode in ("I", "F"):
            raise UserError(f"{name}: a PIL image of mode {image.mode}, whose range is unknown; "
                            "convert it to L or RGB")  # fmt: skip
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # files are read only now
        raise BadImage(f"{name}: {error}") from None
