"""Drawings are legible and do not change the rest of the image."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fcos_recipe.drawing import color, draw, readable
from tests.conftest import ROOT
from tests.helpers.probe_font import write_font


def changed(before, after):
    rows, columns = np.nonzero((before != after).any(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("size", [(160, 224), (1080, 1920)])
@pytest.mark.parametrize("place", [(0.4, 0.4), (0.0, 0.0), (0.7, 0.75)])
def test_box_and_label(size, place):
    image = np.full((*size, 3), 90, np.uint8)
    scale = np.array([size[1], size[0]] * 2)
    box = np.array([*place, place[0] + 0.25, place[1] + 0.25]) * scale
    drawn = draw(image, box[None], np.array([0.9]), np.array([0]), ["red blood cell"])
    assert drawn.shape == image.shape and drawn.dtype == np.uint8 and (image == 90).all()
    x1, y1, x2, y2 = changed(image, drawn)
    assert abs(x2 - box[2]) <= 2 or x2 >= box[2]  # a label may be wider than its box
    assert abs(y2 - box[3]) <= 2 and x1 >= 0 and y1 >= 0
    centre = drawn[int(box[1:4:2].mean()), int(box[0:3:2].mean())]
    assert (centre == 90).all()
    ink = (np.abs(drawn.astype(int) - color(0)).max(-1) < 60).any(1).sum()
    assert ink >= 10  # the label's height, in pixels


def test_threshold_and_text_grow():
    image = np.zeros((400, 400, 3), np.uint8)
    boxes, scores = np.array([[10, 50, 100, 90], [200, 200, 390, 390]]), np.array([0.3, 0.8])
    assert changed(image, draw(image, boxes, scores, [0, 1], ["a", "b"], 0.5))[0] > 190
    assert (draw(image, boxes, scores, [0, 1], ["a", "b"], 0.9) == 0).all()
    big = np.zeros((1600, 1600, 3), np.uint8)
    heights = [
        readable("cell", 0, max(10, round(min(x.shape[:2]) / 35)))[1].getbbox("cell")[3]
        for x in (image, big)
    ]
    assert heights[1] > 3 * heights[0]


def test_names_beyond_ascii():
    name, _ = readable("Blutkörperchen", 0, 20)
    assert name == "Blutkörperchen"
    name, font = readable("\ue123", 7, 20)  # private area: no font has it
    assert name == "class 7" and font.getbbox(name)[2] > 0


def test_colours_differ():
    colours = np.array([color(k) for k in range(80)])
    distance = np.abs(colours[:, None] - colours).sum(-1) + 999 * np.eye(80)
    assert distance.min() > 8
    assert np.diag(distance, 1).min() > 100


def test_ground_truth_has_no_score_and_crowds_are_dashed():
    image = np.full((200, 300, 3), 90, np.uint8)
    box = np.array([[20.0, 40.0, 280.0, 180.0]])
    whole, dashed = (
        draw(image, box, None, [0], ["cell"], dashed=np.array([d])) for d in (False, True)
    )
    lower = np.s_[178:182, 20:280]
    inked = [(drawn[lower] != 90).any(-1).any(0).mean() for drawn in (whole, dashed)]
    assert inked[0] == 1 and 0.3 < inked[1] < 0.7
    scored = draw(image, box, np.array([0.9]), [0], ["cell"])
    assert changed(whole, scored)[1] < 40  # the score is what the label has more


def test_a_font_that_was_installed_later_is_used_in_plots_as_well(tmp_path):
    """Matplotlib keeps a list of the fonts that it found once; a Chinese one often comes later."""
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot as plt\n"
        "from fcos_recipe.drawing import plot_fonts, plot_name, readable\n"
        "plt.rcParams['font.family'] = plot_fonts(); plt.title(plot_name('圆', 3))\n"
        "plt.savefig('a.png'); print(ascii(plot_name('圆', 3) + readable('圆', 3, 12)[0]))"
    )
    env = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "cache"), "XDG_DATA_DIRS": str(tmp_path),
           "PYTHONPATH": str(ROOT)}  # fmt: skip

    def drawn():
        done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, check=True,
                              capture_output=True, text=True)  # fmt: skip
        return done.stdout.strip()

    assert drawn() == ascii("class 3class 3")
    write_font(tmp_path / "fonts" / "wqy-zenhei.ttc", "圆")
    assert drawn() == ascii("圆圆")
