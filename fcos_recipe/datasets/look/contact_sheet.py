"""Pictures with captions as one contact sheet, or as one self-contained HTML page."""

import base64
import hashlib
import io
from bisect import bisect_right
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from fcos_recipe.drawing import Font, readable
from fcos_recipe.errors import UserError, printable
from fcos_recipe.files.atomic import write_named
from fcos_recipe.files.reading import read_text

PAGE_WIDTH, SHEET_WIDTH, LEAST_WIDTH = 1000, 520, 480  # long side of a picture, pixels
HERE = Path(__file__).parent
ACROSS = 2200  # width of a sheet, pixels
MOST_SIDE = 65_000  # pixels; JPEG allows 65,535


@dataclass
class Tile:
    """One image of the data set."""

    title: str  #: its file name
    notes: list[str]  #: lines below the title
    pictures: list[tuple[str, np.ndarray]]  #: heading and uint8 [H, W, 3], RGB
    classes: list[str] = field(default_factory=list)  #: class names on the image
    missed: bool = False  #: whether a box has no positive location


@dataclass
class Key:
    """An entry of the legend: a disc of this RGB colour and radius, or without colour a note."""

    text: str
    color: tuple[int, int, int] | None = None
    radius: int = 5


def scaled(image: np.ndarray, most: int) -> tuple[np.ndarray, float]:
    """Scale a uint8 image [H, W, 3] to a size to draw on; returns it and the factor.

    A small image is enlarged by an integer factor, which keeps its pixels visible as squares.
    """
    long = max(image.shape[:2])
    if long > most:
        factor = most / long
        return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), factor
    factor = min(-(-min(LEAST_WIDTH, most) // long), max(most // long, 1))
    image = np.ascontiguousarray(image.repeat(factor, axis=0).repeat(factor, axis=1))
    return image, float(factor)


def save(tiles: list[Tile], legend: list[Key], title: str, path: Path) -> None:
    """Write a page (.html) or a contact sheet (.png, .jpg).

    Raises:
        UserError: more pictures than fit on a sheet.
        OSError: the file can't be written.
    """
    if path.suffix == ".html":
        return write_named(path, page(tiles, legend, title))
    sheet = contact_sheet(tiles, legend, title)
    file = io.BytesIO()
    sheet.save(file, Image.registered_extensions()[path.suffix.lower()], quality=92)
    write_named(path, file.getvalue())


def contact_sheet(tiles: list[Tile], legend: list[Key], title: str) -> Image.Image:
    """Draw all tiles in rows below a title and a legend.

    Raises:
        UserError: the sheet would be higher than `MOST_SIDE`.
    """
    margin, line = 14, 20
    cell = max(sum(p.shape[1] + 4 for _, p in tile.pictures) for tile in tiles)
    columns = max(1, min(len(tiles), ACROSS // (cell + margin)))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]

    def height(tile: Tile) -> int:
        heading = line if any(text for text, _ in tile.pictures) else 0
        return heading + max(p.shape[0] for _, p in tile.pictures) + line * (1 + len(tile.notes))

    high = [max(map(height, row)) + margin for row in rows]
    width = max(columns * (cell + margin) + margin, 700)
    entries: list[tuple] = []
    x: float = margin
    y = 3 * margin + 12
    for key in legend:  # wrapped like words
        text, font = _shown(key.text, 15)
        wide = 28 + font.getlength(text)
        if x + wide > width - margin and x > margin:
            x, y = margin, y + 24
        entries.append((x, y, key, text, font))
        x += wide + 18
    top = y + (36 if legend else 8)
    if top + sum(high) > MOST_SIDE:
        raise UserError(
            f"--limit: {len(tiles)} images make a sheet {top + sum(high)} pixels high; show fewer "
            "or write an .html page"
        )
    sheet = Image.new("RGB", (width, top + sum(high)), "white")
    pen = ImageDraw.Draw(sheet)
    _text(pen, margin, margin, title, width - 2 * margin, 20, "black")
    for x, y, key, text, font in entries:
        if key.color:
            middle, r = y + 10, key.radius + 2
            pen.ellipse([x + 9 - r, middle - r, x + 9 + r, middle + r], key.color, "black")
        pen.text((x + (24 if key.color else 0), y), text, "black", font)
    y = top
    for row, step in zip(rows, high):
        for column, tile in enumerate(row):
            left = margin + column * (cell + margin)
            _place(sheet, pen, tile, left, y, cell, line)
        y += step
    return sheet


def _place(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int, y: int, cell: int,
    line: int,
) -> None:  # fmt: skip
    if any(text for text, _ in tile.pictures):
        x = left
        for text, picture in tile.pictures:
            _text(pen, x, y, text, picture.shape[1], 14, "black")
            x += picture.shape[1] + 4
        y += line
    x = left
    for _, picture in tile.pictures:
        sheet.paste(Image.fromarray(picture), (x, y))
        x += picture.shape[1] + 4
    y += max(p.shape[0] for _, p in tile.pictures) + 3
    _text(pen, left, y, tile.title, cell, 15, "black")
    for n, note in enumerate(tile.notes, start=1):
        _text(pen, left, y + n * line, note, cell, 14, "#444444")


def _text(
    pen: ImageDraw.ImageDraw, x: int, y: int, text: str, width: int, size: int, fill: str
) -> None:
    """Draw one line of text, shortened if it is wider than `width` pixels."""
    text, font = _shown(text, size)
    if font.getlength(text) > width:

        def pixels(length: int) -> Any:
            return font.getlength(text[:length] + "...")

        fits = bisect_right(range(len(text)), width, key=pixels)
        text = text[: max(fits - 1, 0)] + "..."
    pen.text((x, y), text, fill, font)


def _shown(text: str, size: int) -> tuple[str, Font]:
    """Text without control characters, with escapes for characters that no font has."""
    text = " ".join(printable(text).split())
    name, font = readable(text, 0, size)
    return (text if name == text else text.encode("ascii", "backslashreplace").decode()), font


def page(tiles: list[Tile], legend: list[Key], title: str) -> str:
    """HTML with pictures, style and script embedded; it loads nothing from a server."""
    names = sorted({name for tile in tiles for name in tile.classes})
    options = "".join(f'<option value="{i}">{_safe(name)}</option>' for i, name in enumerate(names))
    script = read_text(HERE / "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rows = "".join(
        f"<li>{_disc(key)}{_safe(key.text)}</li>" if key.color else f"<li>{_safe(key.text)}</li>"
        for key in legend
    )
    width = 420 * max(len(tile.pictures) for tile in tiles)
    missed = ""
    if any(tile.missed for tile in tiles):
        missed = "<label><input type=checkbox id=missed> only with a box without a location</label>"
    return Template(read_text(HERE / "page.html")).substitute(
        title=_safe(title),
        digest=digest,
        width=width,
        legend=f'<ul class="legend" aria-label="Legend">{rows}</ul>' if legend else "",
        options=options,
        missed=missed,
        count=len(tiles),
        tiles="\n".join(_figure(tile, names) for tile in tiles),
        script=script,
    )


def _safe(text: str) -> str:
    return escape(printable(text))


def _disc(key: Key) -> str:
    side = 2 * key.radius + 4
    return (
        f'<svg width="{side}" height="{side}" aria-hidden="true"><circle cx="50%" cy="50%" '
        f'r="{key.radius}" fill="rgb{key.color}" stroke="black"/></svg>'
    )


def _figure(tile: Tile, names: list[str]) -> str:
    listed = ", ".join(tile.classes) or "no box"
    pictures = "".join(
        f"<div>{f'<p>{_safe(text)}</p>' if text else ''}"
        f'<img src="data:image/jpeg;base64,{_jpeg(picture)}" loading="lazy" '
        f'width="{picture.shape[1]}" height="{picture.shape[0]}" '
        f'alt="{_safe(f"{tile.title} {text}: {listed}")}"></div>'
        for text, picture in tile.pictures
    )
    notes = "".join(f"<li>{_safe(note)}</li>" for note in tile.notes)
    classes = " ".join(str(names.index(name)) for name in tile.classes)
    missed = " data-missed" if tile.missed else ""
    return (
        f'<figure data-classes="{classes}"{missed}><div class="pictures">{pictures}</div>'
        f"<figcaption><b>{_safe(tile.title)}</b><ul>{notes}</ul></figcaption></figure>"
    )


def _jpeg(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=88)
    return base64.b64encode(file.getvalue()).decode()
