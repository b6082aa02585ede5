"""Boxes with class names, drawn so that they can be read on any image."""

import colorsys
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Where Pillow's own font has no glyph (Chinese, say), the first of these that is installed and has
# them all is taken; Pillow looks through the system's font directories.
_FONTS = (
    "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "Arial Unicode.ttf", "msyh.ttc", "simhei.ttf",
)  # fmt: skip


def color(label: int) -> tuple[int, int, int]:
    """RGB of a class; neighbours differ in hue by the golden angle, every third in lightness."""
    value, saturation = ((1.0, 0.85), (0.75, 1.0), (1.0, 0.5))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    threshold: float = 0.5,
    colors: list[tuple[int, int, int]] | None = None,
    captions: list[str] | None = None,
) -> np.ndarray:
    """Draw detections on a copy of an image.

    Line width and text grow with the image; the best detection is drawn last and so on top. A name
    for which no installed font has the characters is drawn as "class 3".

    Args:
        image: uint8 [H, W, 3], RGB.
        boxes: float [n, 4], x1, y1, x2, y2 in pixels.
        scores: float [n].
        labels: integers [n], rows of `names`.
        names: of the classes.
        threshold: detections that score less are left out.
        colors: RGB of each detection; default its class's.
        captions: of each detection, {} for the class's name, "" for none; default name and score.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    short = min(image.shape[:2])
    width, size = max(1, round(short / 250)), max(10, round(short / 35))
    shown = [k for k in np.argsort(scores, kind="stable") if scores[k] >= threshold]
    for k in shown:
        x1, y1, x2, y2 = (float(v) for v in boxes[k])
        corners = [x1, y1, max(x1, x2), max(y1, y2)]
        pen.rectangle(corners, outline=colors[k] if colors else color(int(labels[k])), width=width)
    for k in shown:  # after all boxes, so that no line crosses a label
        label = int(labels[k])
        if captions and not captions[k]:
            continue
        name, font = _printable(names[label], label, size)
        fill = colors[k] if colors else color(label)
        text = captions[k].format(name) if captions else f"{name} {scores[k]:.2f}"
        _, top, right, bottom = font.getbbox(text)
        high = bottom - top + 4
        x1, y1 = (float(v) for v in boxes[k][:2])
        left = max(0.0, min(x1, picture.width - right - 4))
        above = y1 - high if y1 >= high else min(max(y1, 0), picture.height - high)
        pen.rectangle([left, above, left + right + 4, above + high], fill=fill)
        light = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2] > 140
        pen.text((left + 2, above + 2 - top), text, fill="black" if light else "white", font=font)
    return np.asarray(picture)


@lru_cache(maxsize=4096)
def _printable(name: str, label: int, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    default = ImageFont.load_default(size)
    if _has_glyphs(default, name):
        return name, default
    for file in _FONTS:
        try:
            font = ImageFont.truetype(file, size)
        except OSError:
            continue
        if _has_glyphs(font, name):
            return name, font
    return f"class {label}", default


def _has_glyphs(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """A missing character looks like one that no font has (the last of the private area)."""
    absent = bytes(font.getmask("\U0010fffd"))
    return all(c.isspace() or bytes(font.getmask(c)) != absent for c in set(text))
