"""Sizes read from headers equal those of the decoder, whatever turns an image."""

import io
import os
import random
import struct
import zlib

import pytest
from PIL import Image

from fcos_recipe.data.image_files import files_below, image_size, is_image
from fcos_recipe.data.images import BadImage, read_image

XMP = (
    b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf="
    b"'http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description xmlns:tiff="
    b"'http://ns.adobe.com/tiff/1.0/' tiff:Orientation='6'/></rdf:RDF></x:xmpmeta>"
)


def exif(end, kind, count, value, extra=b"", entries=1, start=8):
    """A TIFF header with the orientation tag: byte order, type, count and four bytes of value."""
    tag = struct.pack(end + "HHI", 0x112, kind, count) + value
    head = (b"II" if end == "<" else b"MM") + struct.pack(end + "HI", 42, start)
    return head + struct.pack(end + "H", entries) + extra + tag + struct.pack(end + "I", 0)


def any_exif(rng):
    end = rng.choice("<>")
    number = rng.choice([*range(10), 255, 65536, 65537, 65542, 6 << 16, 6 << 24])
    value = struct.pack(end + "I", number) if rng.random() < 0.4 else b""
    value = value or struct.pack(end + "HH", number & 0xFFFF, rng.randrange(9))
    other = struct.pack(end + "HHII", rng.choice([0x100, 0x112, 0x8769]), 3, 1, 8)
    return exif(end, rng.choice([1, 2, 3, 3, 3, 4, 5, 7, 9, 12, 0, 99]), rng.choice([0, 1, 1, 5]),
                value, rng.choice([b"", other]), rng.choice([1, 2, 0, 65535]),
                rng.choice([8, 8, 8, 9, 0]))  # fmt: skip


def segment(data):
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data


def any_image(rng):
    """File name and bytes of an image of any container with any orientation."""
    kind = rng.choice(["jpg", "jpg", "jpg", "png", "webp", "tiff", "bmp", "gif"])
    image = Image.new(rng.choice(["RGB", "L"]), (rng.randrange(3, 60), rng.randrange(3, 60)))
    more = {}
    if kind == "jpg":
        more = {"progressive": rng.random() < 0.3}
    elif kind in ("png", "webp") and rng.random() < 0.7:
        more = {"exif": b"Exif\0\0" + any_exif(rng)}
    elif kind == "tiff":
        tags = Image.Exif()
        tags[0x112] = rng.randrange(1, 10)
        more = {"exif": tags}
    file = io.BytesIO()
    image.save(file, "JPEG" if kind == "jpg" else kind.upper(), **more)
    data = file.getvalue()
    if kind == "jpg":
        head = [b"Exif\0\0", b"Exif\0\0", b"Exif\0\xff", b"exif\0\0"]
        put = [segment(rng.choice([XMP, *(h + any_exif(rng) for h in head)]))
               for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]  # fmt: skip
        at = rng.choice([2, 20])  # before or after the JFIF segment
        data = data[:at] + b"".join(put) + data[at:]
    elif kind == "png" and rng.random() < 0.3:
        chunk = b"tEXt" + rng.choice([b"Raw profile type exif\0\nexif\n", b"Software\0x"])
        size, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
        data = data[:33] + size + chunk + check + data[33:]
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data))]
    return kind, data, image.size


def test_size_from_the_header_is_the_decoders(tmp_path):
    rng = random.Random(4)
    turned = set()
    for _ in range(1200):
        kind, data, stored = any_image(rng)
        path = tmp_path / f"a.{kind}"
        path.write_bytes(data)
        try:
            size = read_image(str(path)).shape[:2]
        except BadImage:
            size = None
        found = image_size(path)
        # a JPEG or PNG file that ends too early may have a header
        assert found == size or (size is None and sorted(found) == sorted(stored)), (kind, data)
        if size is not None and size != stored[::-1]:
            turned.add(kind)
    assert {"jpg", "png", "tiff"} <= turned


@pytest.mark.parametrize(
    "value", [exif("<", 4, 1, struct.pack("<I", 65537)), exif("<", 2, 4, b"abc\0"),
              exif(">", 5, 1, struct.pack(">I", 8)), exif("<", 3, 1, b"\xff\xff\0\0")],
)  # fmt: skip
def test_orientation_that_is_none(value, tmp_path):
    """The number 65537, text, a rational number, 65535: the image is read as it is stored."""
    file = io.BytesIO()
    Image.new("RGB", (50, 30)).save(file, "JPEG")
    data = file.getvalue()
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment(b"Exif\0\0" + value) + data[2:])
    assert image_size(tmp_path / "a.jpg") == (30, 50)


def test_images_are_known_by_content(tmp_path):
    names = {"a.jpg": "JPEG", "b": "PNG", "c.img": "BMP", "d.v2": "JPEG", "e.gif": "GIF"}
    for name, kind in names.items():
        Image.new("RGB", (4, 3)).save(tmp_path / name, kind)
    (tmp_path / "f.png").write_bytes(b"broken")  # meant as one
    for name in ("g.txt", "h.json", ".i.jpg", "__MACOSX"):
        (tmp_path / name).write_bytes(b"0 0.5 0.5 0.1 0.1")
    os.mkfifo(tmp_path / "j.jpg")
    sub = tmp_path / "sub"
    sub.mkdir()
    (sub / "up").symlink_to(tmp_path)
    (sub / "dir").mkdir()
    (tmp_path / "zz").symlink_to(sub)
    found = [path.name for path in files_below(tmp_path) if is_image(path)]
    assert found == ["a.jpg", "b", "c.img", "d.v2", "e.gif", "f.png"]
    assert image_size(tmp_path / "f.png") is image_size(tmp_path / "j.jpg") is None
