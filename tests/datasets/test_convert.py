"""Conversion: round trips of hotcoco's and our own files; bad lines are reported."""

import json
import math
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hotcoco import COCO
from PIL import Image

from fcos_recipe.cli import run
from fcos_recipe.data.image_files import image_size
from fcos_recipe.data.index import open_index

SEED = 20


def convert(*argv):
    return run("dataset", ["convert", *map(str, argv)])


def boxes(path):
    """{file name: sorted [class, x1, y1, x2, y2]}, through the index that training reads."""
    index = open_index(path)
    found = {}
    for row in range(len(index)):
        use = slice(*index.box_start[row : row + 2].tolist())
        found[index.file_name(row)] = sorted(
            (index.class_names[k], *box.tolist())
            for k, box in zip(index.label[use], index.box[use])
        )
    return found


def same(found, wanted, within):
    assert set(found) == set(wanted)
    for name, rows in wanted.items():
        assert len(found[name]) == len(rows)
        left = list(found[name])
        for label, *box in rows:
            near = min(left, key=lambda r: (r[0] != label, np.abs(np.subtract(r[1:], box)).max()))
            assert near[0] == label and np.abs(np.subtract(near[1:], box)).max() <= within
            left.remove(near)


def real(shared, name, tmp_path):
    """An annotation file of real images without crowds, whose boxes end at their images."""
    folder, images = {
        "bccd": ("bccd", "val"), "coco": ("coco_mini", "val2017"),
    }[name]  # fmt: skip
    root = shared / "data" / folder
    data = json.loads((root / "annotations" / f"instances_{images}.json").read_text())
    data["annotations"] = [a for a in data["annotations"] if not a["iscrowd"]]
    size = {i["id"]: (i["width"], i["height"]) for i in data["images"]}
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        x, y = max(x, 0), max(y, 0)
        width, height = size[a["image_id"]]
        a["bbox"] = [x, y, min(w, width - x), min(h, height - y)]
    path = tmp_path / "whole.json"
    path.write_text(json.dumps(data))
    return path, root / images


@pytest.mark.parametrize("name", ["bccd", "coco"])
def test_yolo_round_trip(shared, name, tmp_path, capsys):
    path, images = real(shared, name, tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(images)
    COCO(str(path)).to_yolo(str(tmp_path / "set" / "labels"))
    shutil.move(tmp_path / "set" / "labels" / "data.yaml", tmp_path / "set" / "data.yaml")
    out = tmp_path / "out.json"
    assert convert("--from", "yolo", tmp_path / "set", "--images", tmp_path / "set/images",
                   "-o", out) == 0  # fmt: skip
    same(boxes(out), boxes(path), 0.02)  # six digits of a share of 640 pixels, and rounding
    assert convert("--from", "yolo", tmp_path / "set", "-o", out) == 2  # never overwritten
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bccd", "coco"])
def test_voc_round_trip(shared, name, tmp_path):
    path, images = real(shared, name, tmp_path)
    COCO(str(path)).to_voc(str(tmp_path / "voc"))
    (tmp_path / "voc" / "JPEGImages").symlink_to(images)
    out = tmp_path / "out.json"
    assert convert("--from", "voc", tmp_path / "voc", "-o", out) == 0
    same(boxes(out), boxes(path), 1.01)  # VOC has whole pixels


def test_shapes_as_yolo_by_hand(shapes, tmp_path):
    """Nested folders, negatives without a file, a polygon, names as a mapping, a list."""
    data = json.loads((shapes / "annotations" / "instances_train.json").read_text())
    rng = random.Random(SEED)
    for image in data["images"]:
        part = rng.choice(["a/x", "b"])
        folder = tmp_path / "images" / part
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / "train" / image["file_name"], folder)
        lines = []
        for a in data["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = (v / s for v, s in zip(a["bbox"], [128, 96] * 2))
                if rng.random() < 0.5:
                    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                    lines.append(f"{a['category_id'] - 1} " + " ".join(map(repr, corners)))
                else:
                    lines.append(f"{a['category_id'] - 1} {x + w / 2} {y + h / 2} {w} {h}")
        image["file_name"] = f"{part}/{image['file_name']}"
        if lines:
            label = (tmp_path / "labels" / image["file_name"]).with_suffix(".txt")
            label.write_text("\n".join(lines) + "\n\n")
    names = "".join(f"  {c['id'] - 1}: {c['name']}\n" for c in data["categories"])
    (tmp_path / "data.yaml").write_text(f"path: .\ntrain: [images/a, images/b]\nnames:\n{names}")
    path, out = tmp_path / "whole.json", tmp_path / "new" / "out.json"
    path.write_text(json.dumps(data))
    assert convert("--from", "yolo", tmp_path / "data.yaml", "-o", out) == 0
    same(boxes(out), boxes(path), 0.001)
    written = json.loads(out.read_text())
    assert any("segmentation" in a for a in written["annotations"])
    assert {(i["height"], i["width"]) for i in written["images"]} == {(96, 128)}
    (tmp_path / "list.txt").write_text("images/" + data["images"][3]["file_name"])
    assert convert("--from", "yolo", tmp_path / "data.yaml", "--list", tmp_path / "list.txt",
                   "--images", tmp_path / "images", "-o", out, "--force") == 0  # fmt: skip
    assert list(boxes(out)) == [data["images"][3]["file_name"]]
    assert convert("--from", "yolo", tmp_path / "data.yaml", "--split", "val", "-o", "x.json") == 2


def picture(path, size=(60, 40), exif=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **({"exif": exif} if exif else {}))


def test_every_bad_yolo_line_is_named(tmp_path, capsys):
    lines = {
        "0 0.5 0.5 0.2 0.2": None, "": None, "1 .5 .5 1.0005 1": None,
        "0 0.5 0.5 0.2": "4 fields", "0 0.5 0.5 0.2 0.2 0.9": "6 fields",
        "2 0.5 0.5 0.2 0.2": "not among the 2 class names", "-1 0.5 0.5 0.2 0.2": "not among",
        "0.5 0.5 0.5 0.2 0.2": "not among", "0 nan 0.5 0.2 0.2": "must be fractions",
        "0 0.5 0.5 0.2 inf": "must be fractions", "0 30 20 10 10": "must be fractions",
        "0 0.5 0.5 0 0.2": "width and height must", "0 0.5 0.5 1e-9 0.2": "too small",
        "0 0.5 0.5 a 0.2": "'a' is not a number",
    }  # fmt: skip
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes(b"none")
    (tmp_path / "a.txt").write_text("\n".join(lines))
    out = tmp_path / "out.json"
    argv = ["--from", "yolo", tmp_path, "--classes", "cat,dog", "-o", out]
    assert convert(*argv) == 2 and not out.exists()
    errors = capsys.readouterr().err
    for number, message in enumerate(lines.values(), start=1):
        told = [line for line in errors.splitlines() if f"a.txt:{number}:" in line]
        assert len(told) == (message is not None)
        assert not told or message in told[0]
    assert "b.jpg: missing, or not an image" in errors and "--skip-bad" in errors
    assert convert(*argv, "--skip-bad") == 0
    assert len(json.loads(out.read_text())["annotations"]) == 2
    assert "a.txt:4" in capsys.readouterr().out


VOC = """<annotation><filename>{file}</filename>
<size><width>60</width><height>40</height><depth>3</depth></size>
{objects}
</annotation>"""
OBJECT = """<object><name>{0}</name><difficult>{5}</difficult>
<bndbox><xmin>{1}</xmin><ymin>{2}</ymin><xmax>{3}</xmax><ymax>{4}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
</object>"""


def voc(folder, name, objects, file=None):
    picture(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "Annotations").mkdir(exist_ok=True)
    parts = "\n".join(OBJECT.format(*row) for row in objects)
    text = VOC.format(file=file or f"{name}.jpg", objects=parts)
    (folder / "Annotations" / f"{name}.xml").write_text(text)


def test_voc_by_hand(tmp_path, capsys):
    voc(tmp_path, "a", [("dog", 1, 1, 60, 40, 0), ("cat", 3, 4, 10, 12, 1)], file="C:\\x\\a.jpg")
    voc(tmp_path, "b", [], file="renamed.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 40 wide, 60 high, as training sees it
    picture(tmp_path / "JPEGImages" / "b.jpg", exif=exif)
    out = tmp_path / "out.json"
    assert convert("--from", "voc", tmp_path, "-o", out) == 0
    data = json.loads(out.read_text())
    assert [c["name"] for c in data["categories"]] == ["cat", "dog"]
    assert [(a["category_id"], a["bbox"], a["iscrowd"]) for a in data["annotations"]] == [
        (2, [0, 0, 60, 40], 0), (1, [2, 3, 8, 9], 1),
    ]  # fmt: skip
    assert [(i["file_name"], i["width"], i["height"]) for i in data["images"]] == [
        ("a.jpg", 60, 40), ("b.jpg", 40, 60),
    ]  # fmt: skip
    assert "1 XML files give width and height exchanged" in capsys.readouterr().out
    # one coordinate below 1: all count from 0
    voc(tmp_path, "c", [("dog", 0, 5, 20, 30, 0)])
    (tmp_path / "list.txt").write_text("a  1\nc -1\n")
    assert convert("--from", "voc", tmp_path, "-o", out, "--list", "list.txt", "--force") == 0
    boxes = [a["bbox"] for a in json.loads(out.read_text())["annotations"]]
    assert boxes == [[1, 1, 59, 39], [3, 4, 7, 8], [0, 5, 20, 25]]


def test_bad_voc_is_named(tmp_path, capsys):
    voc(tmp_path, "a", [("dog", 1, 1, 9, 9, 0), ("dog", 9, 1, 2, 9, 0), ("dog", "x", 1, 2, 9, 0),
                        ("cow", 1, 1, 9, 9, 0), ("dog", 70, 1, 90, 9, 0)])  # fmt: skip
    folder = tmp_path / "Annotations"
    bomb = '<!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>'
    (folder / "bomb.xml").write_text(bomb)
    (folder / "cut.xml").write_text("<annotation>\n<object>")
    (folder / "z.xml").write_text(VOC.format(file="a.jpg", objects=""))
    argv = ["--from", "voc", tmp_path, "-o", tmp_path / "o.json", "--classes", "dog"]
    assert convert(*argv) == 2
    errors = capsys.readouterr().err
    wanted = [
        "bomb.xml:1: <!DOCTYPE>", "cut.xml:2: not XML", "a.xml:7: box [8.0, 0.0, 2.0, 9.0]: width",
        "a.xml:11: 'x' is not a number", "a.xml:15: class 'cow'", "a.xml:19: box [69.0",
        "z.xml: its image",
    ]  # fmt: skip
    for text in wanted:
        assert text in errors, (text, errors)
    assert len(errors.splitlines()) == len(wanted) + 1
    assert convert(*argv, "--skip-bad") == 0
    assert len(json.loads((tmp_path / "o.json").read_text())["annotations"]) == 1


BAD_AREAS = [10**400, -(10**400), 1e300, -1, 0, "4", True, [4], math.nan]


@pytest.mark.parametrize("area", BAD_AREAS, ids=lambda area: str(area)[:9])
def test_an_unusable_area_becomes_that_of_the_box(tmp_path, capsys, area):
    picture(tmp_path / "images" / "a.jpg")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    data = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "dog"}],
            "annotations": [{**box, "area": area}, {**box, "id": 2, "area": 6e4}]}  # fmt: skip
    (tmp_path / "in.json").write_text(json.dumps(data))
    code = convert("--from", "coco", tmp_path / "in.json", "-o", tmp_path / "out.json")
    if area != area:  # NaN is not JSON
        assert code == 2
        return
    new = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert code == 0 and [a["area"] for a in new] == [12, 6e4]
    assert "1 areas were no positive numbers" in capsys.readouterr().out


@pytest.mark.parametrize("field", ["bbox", "segmentation", "width", "height", "id", "image_id",
                                   "category_id", "iscrowd", "score"])  # fmt: skip
def test_numbers_of_400_digits_in_coco_are_left_out_or_replaced(tmp_path, capsys, field):
    picture(tmp_path / "images" / "a.jpg")
    bad = [1, 2, 3, 10**400] if field == "bbox" else [[1, 2, 10**400, 3, 4, 5]]
    bad = bad if field in ("bbox", "segmentation") else 10**400
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    if field == "segmentation":
        del entry["bbox"]
    image = {"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}
    image |= {field: bad} if field in image else {}
    if field not in ("width", "height"):
        entry[field] = bad
    data = {"images": [image], "annotations": [entry], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "in.json").write_text(json.dumps(data))
    argv = ["--from", "coco", tmp_path / "in.json", "-o", tmp_path / "out.json", "--skip-bad"]
    assert convert(*argv) == 0
    text = (tmp_path / "out.json").read_text()
    assert ("0" * 300 in text) == (field == "score")  # a field of others is kept


def test_incomplete_coco(tmp_path, capsys):
    picture(tmp_path / "images" / "a.jpg")
    data = {
        "info": {"x": 1}, "licenses": [],
        "images": [{"id": "first", "file_name": "a.jpg", "mine": [1]}],
        "annotations": [
            {"image_id": "first", "category_id": "k", "bbox": [1, 2, 3, 4], "iscrowd": True},
            {"image_id": "first", "category_id": "k", "segmentation": [[1, 2, 9, 2, 9, 8]]},
        ],
        "categories": [{"id": "k", "name": "dog", "supercategory": "animal"}],
    }  # fmt: skip
    source, out = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps(data))
    assert convert("--from", "coco", source, "-o", out) == 0
    new = json.loads(out.read_text())
    assert new["info"] == {"x": 1}
    assert new["images"] == [
        {"id": 1, "file_name": "a.jpg", "mine": [1], "height": 40, "width": 60}
    ]  # fmt: skip
    assert new["categories"] == [{"id": 1, "name": "dog", "supercategory": "animal"}]
    first, second = new["annotations"]
    assert first == {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12,
                     "iscrowd": 1}  # fmt: skip
    assert second["bbox"] == [1, 2, 8, 6] and second["segmentation"] == [[1, 2, 9, 2, 9, 8]]
    assert "2 areas were missing" in capsys.readouterr().out
    turned = {**data, "images": [{**data["images"][0], "height": 60, "width": 40}]}
    source.write_text(json.dumps(turned))
    assert convert("--from", "coco", source, "-o", out, "--force") == 0
    assert json.loads(out.read_text())["images"] == new["images"]
    assert "1 image sizes differ from those of the files" in capsys.readouterr().out
    source.write_text(json.dumps(data)[:-1] + ', "annotations" :[]}')
    for argv in (["convert", source, "-o", out], ["split", source, "-o", tmp_path / "parts"]):
        assert run("dataset", [*map(str, argv), "--force"]) == 2
        assert "in.json: annotations: occurs twice" in capsys.readouterr().err
    for text in (source.read_text(), source.read_text().replace("40", "NaN", 1)):
        source.write_text(text)
        assert run("dataset", ["verify", str(source), "--no-images"]) == 1
        assert "annotations: occurs twice" in capsys.readouterr().out
    for change, message in [
        ({"bbox": [1, 2, 0, 4]}, "annotations[0]: bbox [1.0, 2.0, 0.0, 4.0]: its width"),
        ({"bbox": [1, 2, float("inf"), 4]}, ""), ({"bbox": "x"}, "annotations[0]: bbox: not four"),
        ({"image_id": 9}, "annotations[0]: image_id 9: no such image"),
        ({"category_id": None}, "annotations[0]: category_id None: no such category"),
    ]:  # fmt: skip
        source.write_text(json.dumps({**data, "annotations": [data["annotations"][0] | change]}))
        assert convert("--from", "coco", source, "-o", out, "--force") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["voc", "yolo", "coco"])
def test_mangled_input_never_ends_in_a_traceback(kind, tmp_path, capsys):
    """300 seeded changes to the files: converted or refused, with a line."""
    rng = random.Random(SEED)
    voc(tmp_path, "a", [("dog", 1, 1, 9, 9, 0)])
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    shutil.copy(tmp_path / "JPEGImages" / "a.jpg", tmp_path)
    (tmp_path / "data.yaml").write_text("names: [dog, cat]\ntrain: .\n")
    out = tmp_path / "out.json"
    assert convert("--from", "voc", tmp_path, "-o", out) == 0
    (tmp_path / "in.json").write_text(out.read_text())
    files = {"voc": ["Annotations/a.xml"], "yolo": ["a.txt", "data.yaml"], "coco": ["in.json"]}
    files = files[kind]
    source = tmp_path / "in.json" if kind == "coco" else tmp_path
    whole = {name: (tmp_path / name).read_bytes() for name in files}
    codes = set()
    for _ in range(300):
        name = rng.choice(files)
        data = bytearray(whole[name])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 3)] = rng.choice(
                [b"", b"<", b'"', b"[", b"\xff", b"-", b"9", b"nan", b"null", b"{}", b"\n", b"&x;"]
            )
        (tmp_path / name).write_bytes(data)
        code = convert("--from", kind, source, "-o", out, "--force")
        captured = capsys.readouterr()
        assert code in (0, 2) and bool(captured.err) >= (code == 2), bytes(data)
        if code == 0:
            open_index(out)
        codes.add(code)
        (tmp_path / name).write_bytes(whole[name])
    assert codes == {0, 2}


def account(path):
    """{item: (seen, written, {reason: number})} of `--json`."""
    rows = json.loads(path.read_text())["account"]
    return {row["item"]: (row["seen"], row["written"], row["left_out"]) for row in rows}


def voc_boxes(tmp_path, source, *argv):
    out = tmp_path / "out.json"
    assert convert("--from", "voc", source, "-o", out, "--force", *argv) == 0
    return {
        name: [row[1:] for row in rows] for name, rows in sorted(boxes(out).items())
    }  # x1, y1, x2, y2


def test_voc_origin_is_that_of_the_whole_set(tmp_path, capsys):
    """Fractions mean 0 (LabelMe's export), also for a part of the set that has none."""
    voc(tmp_path, "a", [("dog", 10.5, 8.25, 30.5, 28.25, 0)])
    voc(tmp_path, "b", [("dog", 10, 8, 30, 28, 0)])
    whole = {"a.jpg": [(10.5, 8.25, 30.5, 28.25)], "b.jpg": [(10.0, 8.0, 30.0, 28.0)]}
    assert voc_boxes(tmp_path, tmp_path) == whole
    assert "1 in the whole data set have fractional corners" in capsys.readouterr().out
    (tmp_path / "list.txt").write_text("b\n")
    assert voc_boxes(tmp_path, tmp_path, "--list", "list.txt") == {"b.jpg": whole["b.jpg"]}
    # one folder for each split, as Roboflow exports them
    for name, split in (("a", "train"), ("b", "valid")):
        (tmp_path / "new" / split).mkdir(parents=True)
        for file in (f"Annotations/{name}.xml", f"JPEGImages/{name}.jpg"):
            shutil.move(tmp_path / file, tmp_path / "new" / split)
    for name, split in (("a.jpg", "train"), ("b.jpg", "valid")):
        assert voc_boxes(tmp_path, tmp_path / "new" / split) == {name: whole[name]}
    # two in 300, as in VOC2012, prove nothing; a corner at 1 is evidence, none at all is told
    rows = [("dog", 10, 8, 30, 28, 0)] * 298 + [("dog", 10.5, 8.5, 30, 28, 0)] * 2
    voc(tmp_path / "many", "c", rows)
    assert voc_boxes(tmp_path, tmp_path / "many")["c.jpg"][0] == (9, 7, 30, 28)
    said = capsys.readouterr().out
    assert "although 2 have fractional corners: please check; --origin 0 or 1 sets it" in said
    voc(tmp_path / "many", "d", [("dog", 1, 8, 30, 28, 0)])
    assert voc_boxes(tmp_path, tmp_path / "many")["d.jpg"] == [(0, 7, 30, 28)]
    said = capsys.readouterr().out
    assert "1 in the whole data set start at 1" in said and "please check" not in said


def test_voc_rotated_boxes_parts_and_flags(tmp_path):
    """roLabelImg's angle is in radians; a quarter turn exchanges the sides."""
    rotated = ("<object><name>dog</name><truncated>1</truncated><robndbox><cx>30</cx><cy>20</cy>"
               "<w>20</w><h>10</h><angle>1.5707963</angle></robndbox></object>")  # fmt: skip
    two = rotated.replace("robndbox", "b").replace("</object>", "<bndbox/><bndbox/></object>")
    voc(tmp_path, "a", [("dog", 1, 1, 60, 40, 1)])
    file = tmp_path / "Annotations" / "a.xml"
    text = file.read_text()
    both = text.replace("</annotation>", f"{rotated}{two}<!-- <object> --></annotation>")
    file.write_text(both, "utf-16")
    picture(tmp_path / "JPEGImages" / "alone.jfif.jpg")
    out, told = tmp_path / "out.json", tmp_path / "told.json"
    argv = ["--from", "voc", tmp_path, "-o", out, "--json", told]
    assert convert(*argv) == 2 and not told.exists()
    assert convert(*argv, "--skip-bad") == 0
    first, second = json.loads(out.read_text())["annotations"]
    assert (first["difficult"], first["iscrowd"]) == (1, 1) and "truncated" not in first
    assert (second["truncated"], second["iscrowd"], second["bbox"]) == (1, 0, [25, 10, 10, 20])
    assert np.allclose(sorted(second["segmentation"][0]), sorted([35, 10, 35, 30, 25, 30, 25, 10]))
    assert account(told) == {
        "label files": (1, 1, {}), "images": (2, 1, {"without an XML file": 1}),
        "boxes": (3, 2, {"without a box, or with several": 1}),
        "parts": (1, 0, {"not used: boxes are": 1}),
        "rotations": (1, 0, {"lost: upright boxes around them are used": 1}),
    }  # fmt: skip


def yolo(folder, rows, names="names: [dog]\n"):
    """A folder with one image (64 x 48) and its label file of `rows`."""
    picture(folder / "images" / "train" / "a.png", (64, 48))
    (folder / "labels" / "train").mkdir(parents=True, exist_ok=True)
    (folder / "labels" / "train" / "a.txt").write_text("\n".join(rows))
    (folder / "data.yaml").write_text(f"train: images/train\n{names}")
    return folder


FOUR = "0 0.5 0.5 0.2 0.2 0.1 0.1 0.9 0.9 0.5 0.5 0.3 0.3"  # a box and four keypoints
SEEN = "0 0.5 0.5 0.2 0.2 0.1 0.1 2 0.9 0.9 1"  # two keypoints that are visible or hidden
ONE = "0 0.5 0.5 0.2 0.2 0.45 0.55"
STAR = "0 0.5 0.1 0.7 0.9 0.1 0.4 0.9 0.4 0.3 0.9"  # a polygon that crosses itself
QUAD = "0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6"  # YOLO-seg or YOLO-OBB


@pytest.mark.parametrize(
    "rows, yaml, argv, wanted",
    [
        ([FOUR], "kpt_shape: [4, 2]", [], [25.6, 19.2, 12.8, 9.6]),
        ([FOUR], "", ["--keypoints", "4,2"], [25.6, 19.2, 12.8, 9.6]),
        ([SEEN], "kpt_shape: [2, 3]", [], [25.6, 19.2, 12.8, 9.6]),
        (["0 0.5 0.5 0.2 0.2"], "kpt_shape: [2, 3]", [], [25.6, 19.2, 12.8, 9.6]),
        ([FOUR], "", ["--keypoints", "none"], [6.4, 4.8, 51.2, 38.4]),
        ([QUAD], "", [], [25.6, 19.2, 12.8, 9.6]),
        ([QUAD] * 9, "", [], "look like boxes with 2 keypoints of 2 numbers"),
        ([QUAD, QUAD + " .5 .5"] * 9, "", [], [25.6, 19.2, 12.8, 9.6]),
        ([STAR, QUAD], "", [], [6.4, 4.8, 51.2, 38.4]),
        ([FOUR], "", [], "add kpt_shape: [4, 2] to data.yaml or --keypoints 4,2"),
        ([STAR], "", [], "if they are polygons, add --keypoints none"),
        ([SEEN], "", [], "look like boxes with 2 keypoints of 3 numbers"),
        ([ONE] * 9, "", [], "look like boxes with 1 keypoints"),
        ([QUAD], "kpt_shape: [4, 2]", [], "9 fields; expected a class and cx cy w h and 4"),
        ([FOUR], "kpt_shape: [4]", [], "kpt_shape: [4]: it must be"),
        ([FOUR], "", ["--keypoints", "4,x"], "--keypoints: [4, 'x']: it must be"),
    ],
)
def test_keypoints_are_no_polygon(rows, yaml, argv, wanted, tmp_path, capsys):
    out = tmp_path / "out.json"
    yolo(tmp_path, rows, f"names: [dog]\n{yaml}\n")
    code = convert("--from", "yolo", tmp_path, "-o", out, *argv)
    captured = capsys.readouterr()
    if isinstance(wanted, str):
        assert code == 2 and wanted in captured.err and not out.exists()
        return
    assert code == 0
    found = json.loads(out.read_text())["annotations"]
    assert len(found) == len(rows) and np.allclose(found[0]["bbox"], wanted)
    many = len(rows[0].split()) > 5
    assert ("sets of keypoints" in captured.out or "bounds of polygons" in captured.out) == many


def test_odd_files_are_named(tmp_path, capsys):
    """Links that lead nowhere, label files twice, upper case, hidden, other encodings."""
    one = "0 .5 .5 .2 .2"
    yolo(tmp_path, [one, f"{one} 0 .3 .3 .1 .1", f"{one} 0.5", "0,.5,.5,.2,.2",
                    f"{one} {one} {one}", "\f"])  # fmt: skip
    images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    for name in ("b.jpg", "c.JPG", "d.png", "f.jpg", "f.png", "._a.png"):
        picture(images / name)
    (labels / "b.txt").symlink_to("/nowhere/b.txt")
    (labels / "c.TXT").write_text("0 .5 .5 .2 .2")
    (labels / "d.txt").write_text("0 .5 .5 .2 .2\n", "utf-16")
    (images / "e.jpg").symlink_to("/nowhere/e.jpg")
    (labels / "e.txt").write_text("0 .5 .5 .2 .2")
    (labels / "f.txt").write_text("0 .5 .5 .2 .2")  # of which image?
    (images / "a.txt").write_text("0 .5 .5 .1 .1")  # as well as labels/train/a.txt
    (labels / "g.txt").write_text("\n")
    (images / "Thumbs.db").write_text("")
    out, told = tmp_path / "out.json", tmp_path / "told.json"
    argv = ["--from", "yolo", tmp_path, "-o", out, "--json", told, "--keypoints", "none"]
    assert convert(*argv) == 2 and not out.exists()
    text = capsys.readouterr().err
    wanted = ["b.txt: No such file", "d.txt: not UTF-8", "e.jpg: missing", "train/a.txt: there is",
              "a.txt:2: several boxes in one line", "a.txt:3: 6 fields", "a.txt:4: 1 fields",
              "a.txt:5: several boxes in one line", "its label file"]  # fmt: skip
    assert [line for line in wanted if line not in text] == []
    assert len(text.splitlines()) == len(wanted) + 1
    assert convert(*argv, "--skip-bad") == 0
    assert account(told) == {
        "images": (7, 5, {"with another image's label file": 1, "missing, or not readable": 1}),
        "label files": (8, 3, {"not readable": 2, "of such images": 1, "without an image": 1,
                               "without an image, and empty": 1}),
        "boxes": (11, 3, {"in such files": 2, "of such images": 1,
                          "with a wrong number of fields": 4,
                          "of label files without an image": 1}),
        "other files": (2, 0, {".db": 1, "hidden": 1}),
    }  # fmt: skip
    (tmp_path / "classes.txt").write_text("dog\n\ncat\n")
    assert convert(*argv, "--force", "--classes", tmp_path / "classes.txt") == 2
    assert "classes.txt:2: empty line" in capsys.readouterr().err
    picture(Path(os.fsdecode(os.fsencode(images) + b"/h\xff.jpg")))
    assert convert(*argv, "--force", "--skip-bad") == 2
    assert "the file name 'h\\udcff.jpg' is not UTF-8; rename" in capsys.readouterr().err


def test_voc_in_other_spellings(tmp_path, capsys):
    """Namespaces, upper case, UTF-16 without a mark; what can't be parsed is counted as lost."""
    voc(tmp_path, "a", [("dog", 1, 1, 60, 40, 0)] * 2)
    file = tmp_path / "Annotations" / "a.xml"
    text = file.read_text()
    out, told = tmp_path / "out.json", tmp_path / "told.json"
    argv = ["--from", "voc", tmp_path, "-o", out, "--json", told, "--force"]
    spaced = text.replace("<object>", "<v:Object>").replace("</object>", "</v:Object>")
    head = "<?xml version='1.0' encoding='utf-16'?>"
    for data in (spaced.encode(), (head + text).encode("utf-16-le"), text.encode("utf-16")):
        file.write_bytes(data)
        assert convert(*argv) == 0
        assert account(told)["boxes"] == (2, 2, {})
    file.write_text(text[:-20])
    voc(tmp_path, "b", [("dog", 1, 1, 60, 40, 0)])
    assert convert(*argv, "--skip-bad") == 0
    assert account(told)["boxes"] == (3, 1, {"in such files": 2})


def test_what_a_tool_wrote_is_counted_whole(tmp_path, capsys):
    """Unknown shapes, objects without a class, damaged files, names in lists without an image."""
    picture(tmp_path / "cvat" / "a.png")
    box = "label='x' xtl='1' ytl='1' xbr='9' ybr='9'"
    (tmp_path / "cvat" / "annotations.xml").write_text(
        f"<annotations><version>1.1</version><image name='a.png' width='60' height='40'>"
        f"<box {box}/><points label='x' points='1,1'/><tag label='y'/><cuboid {box}/></image>"
        "</annotations>"
    )
    picture(tmp_path / "labelme" / "a.png")
    shape = {"label": "x", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
    data = {"version": "5", "imagePath": "a.png", "shapes": [shape, {**shape, "label": None}]}
    (tmp_path / "labelme" / "a.json").write_text(json.dumps(data))
    (tmp_path / "labelme" / "b.json").write_text(json.dumps(data)[:-9])
    for name in ("a 1", "b"):
        voc(tmp_path / "voc", name, [("dog", 1, 1, 60, 40, 0)])
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a 1\ngone  -1\n")
    (lists / "val.txt").write_text("b  1\n")
    out, told = tmp_path / "out.json", tmp_path / "told.json"
    for source, errors, boxes, more in [
        ("cvat", ["object 2: a cuboid"], (3, 1), {}),
        ("labelme", ["b.json: not complete JSON", "object 1: it has no class"], (2, 1), {}),
        ("voc", ["train.txt: gone: no such image"], (2, 1), {"names in lists": (2, 1)}),
    ]:
        argv = [tmp_path / source, "--split", "train", "-o", out, "--json", told, "--force"]
        argv = argv if source == "voc" else argv[:1] + argv[3:]
        assert convert(*argv) == 2
        text = capsys.readouterr().err
        assert all(error in text for error in errors)
        assert len(text.splitlines()) == len(errors) + 1
        assert convert(*argv, "--skip-bad") == 0
        rows = {item: row[:2] for item, row in account(told).items()}
        assert rows["boxes"] == boxes and rows.items() >= more.items()


def test_images_with_any_ending(tmp_path, capsys):
    """What training's decoder reads is converted; what it can't read is named, not passed over."""
    kinds = {"a.jpg": "JPEG", "b.jfif": "JPEG", "c.gif": "GIF", "d.avif": "AVIF", "e": "PNG",
             "f.img": "BMP", "g.heic": None}  # fmt: skip
    Image.init()
    for name, kind in kinds.items():
        (tmp_path / "images").mkdir(exist_ok=True)
        if kind in Image.SAVE:
            Image.new("RGB", (64, 48)).save(tmp_path / "images" / name, kind)
        else:
            (tmp_path / "images" / name).write_bytes(b"\0\0\0\x18ftypheic")
        label = tmp_path / "labels" / f"{name.split('.')[0]}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [x]\n")
    out, told = tmp_path / "out.json", tmp_path / "told.json"
    argv = ["--from", "yolo", tmp_path, "-o", out, "--json", told]
    assert convert(*argv) == 2 and "g." in capsys.readouterr().err
    assert convert(*argv, "--skip-bad") == 0
    good = {n for n in kinds if image_size(tmp_path / "images" / n)}
    assert {"a.jpg", "b.jfif", "e", "f.img"} <= good
    assert {name: len(rows) for name, rows in boxes(out).items()} == dict.fromkeys(good, 1)
    rows = account(told)
    assert rows["boxes"][:2] == (7, len(good))
