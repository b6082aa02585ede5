"""Images of any container with any orientation tag, for property tests."""

import io
import struct
import zlib

from PIL import Image

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
        # before or after the JFIF segment, or as the last one
        at = rng.choice([2, 20, data.index(b"\xff\xda")])
        data = data[:at] + b"".join(put) + data[at:]
    elif kind == "png" and rng.random() < 0.3:
        chunk = b"tEXt" + rng.choice([b"Raw profile type exif\0\nexif\n", b"Software\0x"])
        size, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
        data = data[:33] + size + chunk + check + data[33:]
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data))]
    return kind, data, image.size
