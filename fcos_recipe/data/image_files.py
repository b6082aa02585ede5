"""Which files are images, and how large they are, as the decoder of training sees them."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from fcos_recipe.compat import MOST_PIXELS
from fcos_recipe.data.images import BadImage, read_image
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import MOST_IMAGE, open_regular

# Pillow's name of a format: endings of its files
FORMATS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"), "MPO": ("jpg", "jpeg", "mpo"), "PNG": ("png", "apng"),
    "BMP": ("bmp", "dib"), "DIB": ("bmp", "dib"), "GIF": ("gif",), "TIFF": ("tif", "tiff"),
    "WEBP": ("webp",), "AVIF": ("avif", "avifs"), "JPEG2000": ("jp2", "j2k", "jpx", "jpf"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"), "HEIF": ("heic", "heif"), "JXL": ("jxl",),
}  # fmt: skip
ENDINGS = {f".{ending}" for known in FORMATS.values() for ending in known}
# of images that no decoder here reads, and that no data set consists of
OTHER_ENDINGS = {
    ".svg", ".svgz", ".ico", ".icns", ".tga", ".psd", ".xcf", ".eps", ".pcx", ".dds", ".qoi",
    ".exr", ".hif", ".heics", ".jxr", ".wdp", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
    ".rw2", ".raf",
}  # fmt: skip


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file is meant as an image: by its ending, or by content that OpenCV can read.

    A link that leads nowhere counts if its ending says so. Hidden files never count: `._a.jpg` is
    what macOS stores beside `a.jpg`.
    """
    name = os.path.basename(path)
    if name.startswith(".") or os.path.isdir(path):
        return False
    if os.path.splitext(name)[1].lower() in ENDINGS:
        return os.path.lexists(path)
    return os.path.isfile(path) and cv2.haveImageReader(os.fspath(path))


def files_below(folder: str | os.PathLike) -> list[Path]:
    """All files below a folder, sorted by path, through links to folders as well; none: no folder.

    Hidden folders and the `__MACOSX` folders of zip files are left out, and a folder that several
    links lead to is listed once.

    Raises:
        UserError: a folder can't be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}")

    seen, found = set(), []
    if not os.path.isdir(folder):
        return []
    for here, folders, files in os.walk(str(folder), onerror=refuse, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__MACOSX")
        found += [Path(here, name) for name in files]
    return sorted(found)


_TINY = cv2.imencode(".jpg", np.zeros((1, 2, 3), np.uint8))[1].tobytes()
# Chunks of a PNG file that do not change its size; others, such as eXIf, may rotate it.
_PLAIN_CHUNKS = {
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT",
    b"pHYs", b"bKGD", b"hIST", b"tIME",
}  # fmt: skip


def image_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """Height and width in pixels of the image that `images.read_image` returns.

    JPEG and PNG files are not decoded: the size is in the header. Which EXIF tags turn an image
    differs between readers and versions of OpenCV, so OpenCV itself is asked: it decodes an image
    of 2 x 1 pixels with the file's own EXIF segments. A file with anything unusual is decoded.

    Returns:
        None: the file is missing or can't be decoded. The pixels of most JPEG and PNG files are not
        looked at, so a file that ends too early may have a size.
    """
    try:
        with open(open_regular(path, MOST_IMAGE), "rb") as file:
            size = _jpeg_size(file) or _png_size(file)
    except (UserError, OSError, struct.error):
        size = None
    if size is None or size[0] * size[1] > MOST_PIXELS:
        try:
            size = read_image(os.fspath(path)).shape[:2]
        except BadImage:
            return None
    return size


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Size of an ordinary JPEG file after rotation; None: another format, or decode it."""
    file.seek(0)
    if file.read(2) != b"\xff\xd8":
        return None
    segments, size = b"", None
    while True:
        mark, kind, length = struct.unpack(">BBH", file.read(4))
        if mark != 0xFF or length < 2:
            return None
        body = file.read(length - 2)
        if kind in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            bits, height, width, parts = struct.unpack(">BHHB", body[:6])
            if bits != 8 or not height or not width or parts not in (1, 3) or size:
                return None
            size = height, width
        elif kind == 0xDA:  # the pixels begin
            break
        elif kind == 0xE1:
            segments += bytes((mark, kind)) + struct.pack(">H", length) + body
        elif not (0xE0 <= kind <= 0xEF or kind in (0xC4, 0xDB, 0xDD, 0xFE)):
            return None
    if not segments or size is None:
        return size
    small = cv2.imdecode(
        np.frombuffer(_TINY[:2] + segments + _TINY[2:], np.uint8), cv2.IMREAD_COLOR
    )
    if small is None:
        return None
    return size[::-1] if small.shape[0] > small.shape[1] else size


def _png_size(file: BinaryIO) -> tuple[int, int] | None:
    """Size of an ordinary PNG file; None: another format, or decode it."""
    file.seek(0)
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return None
    size = None
    while True:
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IHDR":
            width, height = struct.unpack(">II", file.read(8))
            size = height, width
            length -= 8
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):  # may hold what ImageMagick makes of EXIF
            key = file.read(length)
            if key.startswith(b"Raw profile") or key.startswith(b"XML:com.adobe"):
                return None
            length = 0
        elif kind not in _PLAIN_CHUNKS:
            return None
        if kind == b"IEND":
            return size if size and all(size) else None
        file.seek(length + 4, os.SEEK_CUR)
