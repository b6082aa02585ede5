"""Draw boxes with class names that stay readable on any image."""

import colorsys
from contextlib import suppress
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Used in this order where the own font of Pillow or matplotlib lacks a character, for example a
# Chinese one. Pillow searches the system's font directories.
_FONTS = (
    "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "Arial Unicode.ttf", "msyh.ttc", "simhei.ttf",
    "NotoSansCJKsc-Regular.otf", "SourceHanSansSC-Regular.otf",
)  # fmt: skip

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def color(label: int) -> tuple[int, int, int]:
    """RGB colour (0-255) of a class; successive labels differ clearly in hue and lightness."""
    value, saturation = ((1.0, 0.85), (0.75, 1.0), (1.0, 0.5))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray | None,
    labels: np.ndarray,
    names: list[str],
    threshold: float = 0.5,
    dashed: np.ndarray | None = None,
) -> np.ndarray:
    """Draw detections or ground truth on a copy of an image.

    Line width and text size grow with the image. The best detection, or the smallest ground truth
    box, is drawn on top. If no installed font has the characters of a class name, "class 3" is
    drawn instead.

    Args:
        image: uint8 [H, W, 3], RGB.
        boxes: float [n, 4], x1, y1, x2, y2 in pixels.
        scores: float [n]; None for ground truth, which is drawn completely.
        labels: int [n], indices into `names`.
        names: class names.
        threshold: detections with a lower score are not drawn.
        dashed: bool [n], which boxes get a dashed outline; None: none.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    width, size = pen_sizes(image)
    if scores is None:
        sides = np.reshape(boxes, (-1, 4))
        shown = np.argsort(-(sides[:, 2:] - sides[:, :2]).prod(axis=1), kind="stable")
    else:
        shown = [k for k in np.argsort(scores, kind="stable") if scores[k] >= threshold]
    for k in shown:
        dash = dashed is not None and bool(dashed[k])
        outline(pen, boxes[k], color(int(labels[k])), width, dash)
    for k in shown:  # after all boxes, so that no outline crosses a label
        label = int(labels[k])
        name, font = readable(names[label], label, size)
        text = name if scores is None else f"{name} {scores[k]:.2f}"
        tag(pen, boxes[k], text, color(label), font)
    return np.asarray(picture)


def pen_sizes(image: np.ndarray) -> tuple[int, int]:
    """Line width and text height in pixels for an image [H, W, 3]."""
    short = min(image.shape[:2])
    return max(1, round(short / 250)), max(10, round(short / 35))


def outline(
    pen: ImageDraw.ImageDraw, box: np.ndarray, fill: tuple, width: int, dashed: bool = False
) -> None:
    """Draw the outline of a box (x1, y1, x2, y2 in pixels)."""
    x1, y1, x2, y2 = (float(v) for v in box)
    x2, y2 = max(x1, x2), max(y1, y2)
    if not dashed:
        pen.rectangle([x1, y1, x2, y2], outline=fill, width=width)
        return
    step = 4 * width + 2
    for corner in ((x1, y1, x2, y1), (x1, y2, x2, y2), (x1, y1, x1, y2), (x2, y1, x2, y2)):
        start, end = np.array(corner[:2]), np.array(corner[2:])
        length = max(np.linalg.norm(end - start), 1)
        for at in np.arange(0, length, 2 * step):
            dash = [start + (end - start) * min(t, length) / length for t in (at, at + step)]
            pen.line([tuple(point) for point in dash], fill=fill, width=width)


def tag(pen: ImageDraw.ImageDraw, box: np.ndarray, text: str, fill: tuple, font: Font) -> None:
    """Draw a label at the upper left corner of a box, moved where needed to stay in the image."""
    picture = pen.im.size
    _, top, right, bottom = font.getbbox(text)
    high = bottom - top + 4
    x1, y1 = (float(v) for v in box[:2])
    left = max(0.0, min(x1, picture[0] - right - 4))
    above = y1 - high if y1 >= high else min(max(y1, 0), picture[1] - high)
    pen.rectangle([left, above, left + right + 4, above + high], fill=fill)
    light = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2] > 140
    pen.text((left + 2, above + 2 - top), text, fill="black" if light else "white", font=font)


@lru_cache(maxsize=4096)
def readable(name: str, label: int, size: int) -> tuple[str, Font]:
    """Return a class name with a font that has its characters, or "class LABEL" and a font."""
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


def _has_glyphs(font: Font, text: str) -> bool:
    """Whether the font has all characters: a missing one looks like U+10FFFD, which none has."""
    absent = bytes(font.getmask("\U0010fffd"))
    return all(c.isspace() or bytes(font.getmask(c)) != absent for c in set(text))


@lru_cache(maxsize=1)
def plot_fonts() -> list[str]:
    """Matplotlib's own font, then installed fonts with characters that it lacks.

    Matplotlib lists the system's fonts once and keeps the list in a cache, so it is told of those
    that were installed later.
    """
    from matplotlib.font_manager import FontProperties, fontManager

    found = ["DejaVu Sans"]
    for file in _FONTS:
        with suppress(OSError, RuntimeError):  # not there, or damaged
            path = ImageFont.truetype(file).path
            fontManager.addfont(path)
            found.append(FontProperties(fname=path).get_name())
    return list(dict.fromkeys(found))


@lru_cache(maxsize=1)
def _plot_characters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = [findfont(FontProperties(family=name)) for name in plot_fonts()]
    return frozenset(code for file in files for code in get_font(file).get_charmap())


def plot_name(name: str, label: int) -> str:
    """A class name as matplotlib can draw it, or "class LABEL" if no font has its characters."""
    return name if all(ord(c) in _plot_characters() for c in name) else f"class {label}"
