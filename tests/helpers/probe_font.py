"""A font that has a Chinese character, whatever fonts the machine has."""

from pathlib import Path

from fontTools.ttLib import TTFont
from matplotlib import get_data_path


def write_font(path: Path, character: str) -> None:
    """Write a font called `Probe Hei`, in which a character looks like an A."""
    font = TTFont(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    for table in font["cmap"].tables:
        table.cmap[ord(character)] = "A"
    for record in font["name"].names:
        record.string = str(record).replace("DejaVu Sans", "Probe Hei")
    path.parent.mkdir(parents=True, exist_ok=True)
    font.save(path)
