"""docs/migrating.md has the command for each type of data that x2coco converts."""

import json
import re
import shlex
from pathlib import Path

import pytest

from fcos_recipe.cli import run
from tests.conftest import ROOT
from tests.helpers import layouts

NAMES = {f"i{k}.jpg": [("cat", 2 + k, 3, 30 + k, 40), ("dog", 5, 6, 20, 22)] for k in range(8)}


def labelme(root):
    for name, boxes in NAMES.items():
        layouts.labelme_json(root / "J", name, boxes, name)


def cityscape(root):
    for name, boxes in NAMES.items():
        objects = [{"label": label, "polygon": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}
                   for label, x1, y1, x2, y2 in boxes]  # fmt: skip
        layouts.save(root / "J" / f"{Path(name).stem}.json",
                     {"imgHeight": 48, "imgWidth": 64, "objects": objects})  # fmt: skip


def voc(root):
    for name, boxes in NAMES.items():
        layouts.voc_xml(root / "A", name, boxes, name)
    lines = [f"./I/{name} {Path(name).stem}.xml" for name in NAMES]
    layouts.save(root / "L", "\n".join(lines))
    layouts.save(root / "C", "cat\ndog")


def widerface(root):
    layouts.wider_face(root / "R")


def rows():
    """Type of data -> the commands of its row; `...` goes on with the row above."""
    text = (ROOT / "docs" / "migrating.md").read_text().split("## x2coco")[1]
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            kind, commands = line.strip("| ").split(" | ", 1)
            kind = re.match(r"`([a-z.]+)", kind)[1]
            kind = list(found)[-1] if kind == "..." else kind
            found.setdefault(kind, []).extend(
                re.findall(r"`python tools/dataset.py ([^`]*)`", commands)
            )
            if "the same two commands" in commands:
                found[kind] = list(found["labelme"])
    return found


@pytest.mark.parametrize("make", [labelme, cityscape, voc, widerface], ids=lambda f: f.__name__)
def test_the_command_of_the_row_writes_the_boxes(make, tmp_path, monkeypatch):
    """Pixel coordinates as x2coco takes them: as they are written, also VOC's, which start at 1."""
    commands = rows()[make.__name__]
    assert len(commands) == (2 if make in (labelme, cityscape) else 1)
    monkeypatch.chdir(tmp_path)
    if make is not widerface:
        layouts.pictures(tmp_path / "I", NAMES)
    make(tmp_path)
    for command in commands:
        assert run("dataset", shlex.split(command)) == 0
    files = {
        labelme: "O/all.json",
        cityscape: "O/all.json",
        voc: "O/F.json",
        widerface: "R/instances_train.json",
    }
    data = json.loads((tmp_path / files[make]).read_text())
    images = layouts.TRAIN if make is widerface else NAMES
    less = 1 if make is voc else 0  # the last pixel
    wanted = sorted([x1 + less, y1 + less, x2 - x1 - less, y2 - y1 - less]
                    for boxes in images.values() for _, x1, y1, x2, y2 in boxes)  # fmt: skip
    assert sorted(a["bbox"] for a in data["annotations"]) == wanted
    assert len(data["images"]) == len(images)
    if len(commands) == 2:
        parts = [json.loads((tmp_path / f"O/annotations/instances_{name}.json").read_text())
                 for name in ("train", "val", "test")]  # fmt: skip
        assert [len(part["images"]) for part in parts] == [5, 2, 1]
