"""Which files are images, and how large they are, as the decoder of training sees them."""

import os
from pathlib import Path

import cv2

# Pillow's name of a format: endings of its files
FORMATS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"), "MPO": ("jpg", "jpeg", "mpo"), "PNG": ("png", "apng"),
    "BMP": ("bmp", "dib"), "DIB": ("bmp", "dib"), "GIF": ("gif",), "TIFF": ("tif", "tiff"),
    "WEBP": ("webp",), "AVIF": ("avif", "avifs"), "JPEG2000": ("jp2", "j2k", "jpx", "jpf"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
}  # fmt: skip
ENDINGS = {f".{ending}" for known in FORMATS.values() for ending in known}


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file is meant as an image: by its ending, or by content that OpenCV can read."""
    if os.path.splitext(path)[1].lower() in ENDINGS:
        return os.path.isfile(path)
    return os.path.isfile(path) and cv2.haveImageReader(os.fspath(path))


def files_below(folder: str | os.PathLike) -> list[Path]:
    """All files below a folder, sorted by path, through links to folders as well.

    Hidden files and folders, and the `__MACOSX` folders of zip files, are left out.
    """
    seen, found = set(), []
    for here, folders, files in os.walk(str(folder), followlinks=True):
        if (real := os.path.realpath(here)) in seen:  # a link to a folder that was seen already
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        found += [Path(here, name) for name in files if not _hidden(name)]
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
