"""What a terminal shows: log lines beside a progress bar, and bars at every width."""

import io

import pytest
from tqdm import tqdm

from fcos_recipe import console


def test_a_line_never_stands_in_a_progress_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console.sys, "stdout", screen)
    with console.messages():
        console.to_console(0)
        with tqdm(total=9, desc="epoch 1/2", ncols=60, file=screen, mininterval=0) as bar:
            bar.update(3)
            console.log.info("saved output/demo/run/checkpoints/0001")
    shown = screen.getvalue()
    (line,) = [row for row in shown.split("\n") if "saved" in row]
    assert line.endswith("\rsaved output/demo/run/checkpoints/0001")
    assert line.split("\r")[-2].strip() == ""  # the bar was wiped before
    assert "3/9" in shown.split("saved")[1]  # and is drawn again


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_half_of_the_terminal_is_the_bars(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    parts = ["ETA 1:00:00", "loss 1.234", "10.2 images/s", "lr 0.0012"]
    text = console.bar_text(parts)
    assert text.startswith("ETA 1:00:00") and len(text) <= width // 2
    assert (text.count("  ") == 3) == (width == 120)


@pytest.mark.parametrize(("count", "noun", "text"), [
    (1, "image", "1 image"), (0, "image", "0 images"), (2, "class", "2 classes"),
    (1, "box", "1 box"), (3, "box", "3 boxes"),
])  # fmt: skip
def test_one_of_a_kind_is_singular(count, noun, text):
    assert console.plural(count, noun) == text
