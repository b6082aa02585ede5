"""`fcos dataset verify`: single planted faults, real data, console, --json and --fix."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, TiffTags

from fcos_recipe.cli import run
from fcos_recipe.data.index import parse
from fcos_recipe.datasets.locate import Source
from fcos_recipe.datasets.verify import images as image_checks
from fcos_recipe.datasets.verify.findings import KINDS
from fcos_recipe.datasets.verify.run import examine
from fcos_recipe.evaluation.results_file import read_annotations
from tests.conftest import ROOT
from tests.helpers.coco_folders import coco


def sound(split, images=3):
    """A split without any finding: names and pixels are its own."""
    data = coco(images=images, boxes=2)
    for image in data["images"]:
        image["file_name"] = f"{split}_{image['file_name']}"
    for annotation in data["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    return data


def save(root, split, data):
    """annotations/instances_SPLIT.json and images in SPLIT/."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.fixture
def world(tmp_path):
    """Two sound splits: train and val; returns the folder and both dictionaries."""
    splits = {"train": sound("train"), "val": sound("val")}
    for number, (split, data) in enumerate(splits.items()):
        (tmp_path / split).mkdir()
        save(tmp_path, split, data)
        rng = np.random.default_rng(number)
        for image in data["images"]:
            pixels = rng.integers(0, 255, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / image["file_name"])
    return tmp_path, splits


def verify(root, *argv):
    """Exit code and JSON report of the command."""
    path = root / f"report_{len(list(root.glob('report_*')))}.json"
    code = run("dataset", ["verify", str(root), "--json", str(path), *map(str, argv)])
    return code, json.loads(path.read_text())


def kinds(report, split="train"):
    """Kind -> items of one split, and of what is between splits."""
    rows = {**report["splits"][split]["findings"], **report["between"]}
    return {kind: row["items"] for kind, row in rows.items()}


def test_sound_data_has_no_finding(world, capsys):
    code, report = verify(world[0])
    assert code == 0 and (report["errors"], report["warnings"]) == (0, 0)
    assert not kinds(report) and not kinds(report, "val")
    totals = report["splits"]["train"]["totals"]
    assert totals["images_read"] == 3 and totals["boxes_to_train_on"] == 6
    captured = capsys.readouterr()
    assert captured.out.count("nothing found") == 2 and captured.err == ""


def box(*values, **more):
    return lambda d: d["annotations"][0].update(bbox=list(values), **more)


def again(section, i=0, **change):
    return lambda d: d[section].append({**d[section][i], **change})


# What is done to the training split's dictionary; every kind that is to be found, and the first
# item's id and place.
PLANTED = {
    "category unknown": (lambda d: d["annotations"][1].update(category_id=99),
                         {"unknown_category"}, 101, "annotations[1]"),
    "image unknown": (lambda d: d["annotations"][1].update(image_id=99),
                      {"unknown_image"}, 101, "annotations[1]"),
    "id no number": (lambda d: d["images"][2].update(id="left"),
                     {"id_not_number", "unknown_image"}, "left", "images[2]"),
    "id too large": (lambda d: d["annotations"][1].update(image_id=2**70),
                     {"id_not_number"}, 101, "annotations[1]"),
    "field missing": (lambda d: d["annotations"][1].pop("category_id"),
                      {"type"}, 101, "annotations[1]"),
    "box of text": (lambda d: d["annotations"][1].update(bbox="1,2,3,4"),
                    {"type"}, 101, "annotations[1]"),
    "box of three": (box(1, 2, 3), {"type"}, 100, "annotations[0]"),
    "width of text": (lambda d: d["images"][1].update(width="64"),
                      {"type", "unknown_image"}, 20, "images[1]"),
    "entry null": (lambda d: d["annotations"].append(None), {"type"}, None, "annotations[6]"),
    "image id twice": (lambda d: d["images"][1].update(id=10),
                       {"image_id_twice", "unknown_image"}, 10, "images[1]"),
    "image repeated": (again("images"), {"image_repeated"}, 10, "images[3]"),
    "file twice": (again("images", id=99), {"file_listed_twice"}, 99, "images[3]"),
    "file twice by another path": (again("images", id=99, file_name="./train_0.jpg"),
                                   {"file_listed_twice"}, 99, "images[3]"),
    "category id twice": (again("categories", name="other"),
                          {"category_id_twice", "category_order"}, 7,
                          "categories[2]"),
    "category name twice": (again("categories", id=8), {"category_name_twice", "category_unused",
                                                        "category_order"}, 8, "categories[2]"),
    "category without name": (lambda d: d["categories"][0].pop("name"),
                              {"category_unnamed", "category_order"}, 7, "categories[0]"),
    "category with control characters": (lambda d: d["categories"][0].update(name="\x1b[2J"),
                                         {"category_name_odd", "category_order"}, 7,
                                         "categories[0]"),
    "category unused": (lambda d: [a.update(category_id=7) for a in d["annotations"]],
                        {"category_unused"}, 3, "categories[1]"),
    "annotation id twice": (lambda d: d["annotations"][1].update(id=100),
                            {"annotation_id_twice"}, 100, "annotations[1]"),
    "annotation id missing": (lambda d: d["annotations"][1].pop("id"),
                              {"annotation_id_missing"}, None, "annotations[1]"),
    "ignored": (lambda d: d["annotations"][1].update(ignore=1), {"ignored"}, 101,
                "annotations[1]"),
    "crowd value": (lambda d: d["annotations"][1].update(iscrowd=2), {"crowd_value"}, 101,
                    "annotations[1]"),
    "only crowds": (lambda d: [a.update(iscrowd=1) for a in d["annotations"][:2]],
                    {"only_crowds"}, 10, "images[0]"),
    "no box": (lambda d: d["annotations"][0].pop("bbox"), {"box_missing"}, 100, "annotations[0]"),
    "NaN": (box(float("nan"), 1, 2, 3), {"not_json", "box_not_finite"}, 100, "annotations[0]"),
    "infinity": (box(1, 2, float("inf"), 3), {"not_json", "box_not_finite"}, 100,
                 "annotations[0]"),
    "negative": (box(20, 20, -5, 5), {"box_negative"}, 100, "annotations[0]"),
    "zero width": (box(20, 20, 0, 5), {"box_empty"}, 100, "annotations[0]"),
    "all zero": (box(0, 0, 0, 0), {"box_empty"}, 100, "annotations[0]"),
    "huge": (box(0, 0, 1e6, 1e6, area=1e12), {"box_huge"}, 100, "annotations[0]"),
    "beyond all numbers": (box(0, 0, 1e308, 1e308), {"box_huge"}, 100, "annotations[0]"),
    "outside": (box(70, 5, 10, 10), {"box_outside"}, 100, "annotations[0]"),
    "outside to the left": (box(-20, 5, 10, 10), {"box_outside"}, 100, "annotations[0]"),
    "partly outside": (box(60, 5, 10, 10, area=100), {"box_partly_outside"}, 100,
                       "annotations[0]"),
    "tiny": (box(5, 5, 0.5, 10, area=5), {"box_tiny"}, 100, "annotations[0]"),
    "box twice": (again("annotations", id=999), {"box_twice"}, 999, "annotations[6]"),
    "box of two classes": (again("annotations", id=999, category_id=3), {"box_of_two_classes"},
                           999, "annotations[6]"),
    "near duplicate": (again("annotations", id=999, bbox=[2.5, 3.25, 10, 8.1], area=81),
                       {"near_duplicate"}, 100, "annotations[0]"),
    "area zero": (lambda d: d["annotations"][0].update(area=0), {"area_not_positive"}, 100,
                  "annotations[0]"),
    "area larger": (lambda d: d["annotations"][0].update(area=500), {"area_differs"}, 100,
                    "annotations[0]"),
    "area smaller": (lambda d: d["annotations"][0].update(area=5), {"area_differs"}, 100,
                     "annotations[0]"),
    "image without size": (lambda d: d["images"][0].update(width=0), {"image_size_odd"}, 10,
                           "images[0]"),
    "negative size": (lambda d: d["images"][0].update(width=-64), {"image_size_wrong"}, 10,
                      "images[0]"),
    "another size": (lambda d: d["images"][0].update(width=65), {"image_size_differs"}, 10,
                     "images[0]"),
    "missing image": (lambda d: d["images"][0].update(file_name="gone.jpg"),
                      {"file_missing", "unlisted"}, 10, "images[0]"),
    "missing by case": (lambda d: d["images"][0].update(file_name="TRAIN_0.jpg"),
                        {"file_name_other"}, 10, "images[0]"),
    "name empty": (lambda d: d["images"][0].update(file_name=""),
                   {"file_name", "file_unreadable", "unlisted"}, 10, "images[0]"),
    "name leaves": (lambda d: d["images"][0].update(file_name="../val/val_0.jpg"),
                    {"file_name_outside", "leak", "unlisted"}, 10, "images[0]"),
    "no annotations": (lambda d: d.pop("annotations"),
                       {"structure", "nothing_to_train", "category_unused"}, None, None),
    "no images": (lambda d: d.update(images=[]), {"structure"}, None, None),
    "images no list": (lambda d: d.update(images={}), {"structure"}, None, None),
    "no categories": (lambda d: d.pop("categories"),
                      {"structure", "unknown_category", "nothing_to_train", "category_order"},
                      None, None),
    "another order": (lambda d: d["categories"].reverse(), {"category_order"}, None, None),
    "other ids": (lambda d: ([a.update(category_id=a["category_id"] + 1) for a in d["annotations"]],
                             [c.update(id=c["id"] + 1) for c in d["categories"]]),
                  {"category_ids"}, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_in_the_annotations(name, world, capsys, monkeypatch):
    """Exactly these kinds, at the right entry; a fix leaves only what cannot be mended."""
    monkeypatch.setattr(  # in this process
        image_checks, "inspect_all", lambda paths: [image_checks.inspect(path) for path in paths]
    )
    root, splits = world
    change, wanted, id, place = PLANTED[name]
    change(splits["train"])
    save(root, "train", splits["train"])
    out = root / "clean"
    code, report = verify(root, "--fix", out)
    found = kinds(report)
    assert set(found) == wanted
    assert code == int(any(KINDS[kind][0] for kind in wanted))
    assert not {k for k in kinds(report, "val") if k not in report["between"]}
    first = next(kind for kind in KINDS if kind in wanted and kind != "not_json")
    assert found[first][0].get("id") == id and found[first][0].get("at") == place
    shown = capsys.readouterr()
    assert all(f"{kind}: " in shown.out for kind in wanted) and "\x1b" not in shown.out
    fixed = report["splits"]["train"]["fix"]
    if "structure" in wanted:
        return
    left = {k for k, row in fixed["findings_left"].items() if row["severity"] == "error"}
    assert left == wanted & {"image_size_differs"}  # the user's to mend
    copy = out / "instances_train.json"
    clean = examine([Source("train", str(copy), None)], images=False)[0][0]
    assert clean.found.count(True) == 0
    _, meta = parse(str(copy))
    read_annotations(str(copy))
    assert set(meta["counts"]) <= {"annotations marked ignore"}
    if {k for k in wanted if KINDS[k][0]} - {"image_size_differs", "leak", "category_order"}:
        assert fixed["changes"] and all("text" in c and "kind" in c for c in fixed["changes"])


def encoded(kind="JPEG", mode="RGB", size=(64, 48), seed=5, **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert("I" if mode == "I;16" else mode).convert(mode).save(
        file, kind, **options
    )
    return file.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png16():
    import cv2

    return cv2.imencode(".png", np.full((48, 64, 3), 40_000, np.uint16))[1].tobytes()


def header(width, height):
    """A JPEG that promises far more pixels than it has."""
    data = bytearray(encoded())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


FILES = {  # name: (content of train_0.jpg, kinds)
    "empty": (lambda: b"", {"image_empty"}),
    "text": (lambda: b"<html>404</html>", {"image_undecodable"}),
    "truncated": (lambda: encoded()[:1500], {"image_truncated"}),
    "truncated by two bytes": (lambda: encoded()[:-2], {"image_truncated"}),
    "truncated, progressive": (lambda: encoded(progressive=True)[:-300], {"image_truncated"}),
    "zeros behind": (lambda: encoded() + bytes(400), set()),
    "truncated PNG": (lambda: encoded("PNG")[:2000], {"image_undecodable"}),
    "too many pixels": (lambda: header(60_000, 60_000), {"image_too_large"}),
    "PNG": (lambda: encoded("PNG"), {"extension"}),
    "greyscale": (lambda: encoded(mode="L"), {"greyscale"}),
    "CMYK": (lambda: encoded(mode="CMYK"), {"cmyk"}),
    "16 bit grey": (lambda: encoded("PNG", "I;16"), {"sixteen_bit", "extension"}),
    "16 bit colour": (png16, {"sixteen_bit", "extension"}),
    "alpha": (lambda: encoded("PNG", "RGBA"), {"alpha", "extension"}),
    "animated PNG": (
        lambda: encoded("PNG", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
        {"animated", "extension"},
    ),
    "animated WebP": (
        lambda: encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
        {"animated", "extension"},
    ),
    "mirrored by EXIF": (lambda: encoded(exif=exif(2)), {"exif_turned"}),
    "turned by EXIF, as stored": (lambda: encoded(exif=exif(6)),
                                  {"exif_turned", "image_size_differs"}),
    "turned by EXIF, as seen": (lambda: encoded(size=(48, 64), exif=exif(6)), {"exif_turned"}),
    "EXIF without a turn": (lambda: encoded(exif=exif(1)), set()),
    "resized": (lambda: encoded(size=(32, 24)), {"image_size_differs"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_planted_in_an_image(name, world, monkeypatch):
    """Exactly these kinds; training reads it unless one of them is an error of the file."""
    root, _ = world
    content, wanted = FILES[name]
    path = root / "train" / "train_0.jpg"
    path.write_bytes(content())
    assert {kind for kind, _ in image_checks.inspect(str(path)).notes} == (
        wanted - {"image_size_differs"}
    )
    if name in ("truncated", "turned by EXIF, as stored", "resized", "animated PNG"):
        code, report = verify(root)  # through the command, and its processes
        assert set(kinds(report)) == wanted
        assert {(i["id"], i["file"]) for items in kinds(report).values() for i in items} == {
            (10, "train_0.jpg")
        }
        assert code == int(any(KINDS[kind][0] for kind in wanted))


def own_tag():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[65000] = TiffTags.ASCII
    tags[65000] = "text"
    return tags


COMPLAINTS = {  # the decoder reads it, and prints a line
    "TIFF with a tag of its own": encoded("TIFF", tiffinfo=own_tag()),
    "JPEG with bytes too many": encoded()[:-2] + bytes(60) + encoded()[-2:],
}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_what_a_decoder_complains_of_is_reported_by_file(name, world):
    root, _ = world
    path = root / "train" / "train_0.jpg"
    path.write_bytes(COMPLAINTS[name])
    code, report = verify(root)
    (item,) = kinds(report)["decoder_warning"]
    assert code == 0 and item["file"] == "train_0.jpg"
    if name.startswith("TIFF"):  # in training and prediction, OpenCV's own line is hidden
        program = (
            "import sys; from fcos_recipe import compat; compat.before_paddle(); "
            "from fcos_recipe.data.images import read_image; print(read_image(sys.argv[1]).shape)"
        )
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
        assert done.stdout == "(48, 64, 3)\n" and done.stderr == ""


def test_a_cut_photograph_with_a_thumbnail_is_cut(shared):
    """The thumbnail's end is not the photograph's."""
    data = (shared / "data/bccd/train/BloodImage_00001.jpg").read_bytes()
    start = data.index(b"\xff\xd8", 0) + 2
    inside = b"Exif\0\0" + encoded(size=(16, 16))
    with_thumbnail = (
        data[:start] + b"\xff\xe1" + (len(inside) + 2).to_bytes(2, "big") + inside + data[start:]
    )
    assert not image_checks._is_cut(with_thumbnail)
    assert image_checks._is_cut(with_thumbnail[:-5000])


@pytest.mark.parametrize("corners", [True, False])
def test_boxes_in_another_format(corners, shared, tmp_path):
    """BCCD as x1, y1, x2, y2, and as shares of the image: told once, and in the right words."""
    path = shared / "data/bccd/annotations/instances_train.json"
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        shares = [x / 640, y / 480, w / 640, h / 480]
        annotation["bbox"] = [x, y, x + w, y + h] if corners else shares
    copy = tmp_path / "x.json"
    copy.write_text(json.dumps(data))
    found = examine([Source("x", str(copy), None)], images=False)[0][0].found
    (item,) = found.items["box_format"]
    assert ("as corners" if corners else "fractions") in item["text"]


def test_images_against_each_other(world):
    """Copies inside a split, between splits, what nobody lists, and a pipe in an image's place."""
    root, _ = world
    shutil.copy(root / "train" / "train_0.jpg", root / "train" / "train_1.jpg")
    shutil.copy(root / "train" / "train_2.jpg", root / "val" / "val_0.jpg")
    (root / "train" / "new.PNG").write_bytes(b"")
    (root / "train" / "notes.txt").write_bytes(b"")
    os.unlink(root / "val" / "val_1.jpg")
    os.mkfifo(root / "val" / "val_1.jpg")
    code, report = verify(root)
    assert code == 1
    train, val = (report["splits"][s]["findings"] for s in ("train", "val"))
    assert train["same_content"]["items"] == [
        {"id": 20, "file": "train_1.jpg", "at": "images[1]", "text": "the same as train_0.jpg"}
    ]
    assert [i["file"] for i in train["unlisted"]["items"]] == ["new.PNG"]
    assert [i["id"] for i in val["file_unreadable"]["items"]] == [20]
    assert report["between"]["leak"]["items"] == [
        {"id": 10, "file": "val_0.jpg", "text": "in val is also train_2.jpg in train"}
    ]
    assert run("dataset", ["verify", str(root), "--no-images"]) == 0


def test_one_image_folder_for_both_splits(world):
    """What the other split lists is not unlisted; the same file in both is a leak, also unread."""
    root, splits = world
    for split in splits:
        for path in list((root / split).iterdir()):
            path.rename(root / "train" / path.name)
    splits["val"]["images"][1]["file_name"] = "train_1.jpg"
    save(root, "val", splits["val"])
    for argv in ([], ["--no-images"]):
        code, report = verify(root, "--images", root / "train", *argv)
        assert code == 1 and set(report["between"]) == {"leak"}
        assert report["between"]["leak"]["items"][0]["id"] == 20
        assert not argv or not kinds(report, "val").keys() - {"leak"}
    assert [i["file"] for i in verify(root)[1]["splits"]["train"]["findings"]["unlisted"]["items"]
            ] == ["val_1.jpg"]  # fmt: skip


CRASH = """
import os
import signal
from fcos_recipe.datasets.verify import images
read = images.inspect
crash = lambda: os.kill(os.getpid(), signal.SIGSEGV)
images.inspect = lambda path: crash() if "train_1" in path else read(path)
"""


def test_a_decoder_that_crashes_costs_one_image(world, tmp_path, monkeypatch):
    root, _ = world
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    paths = [str(root / split / f"{split}_{i}.jpg") for split in ("train", "val") for i in range(3)]
    results = image_checks.inspect_all(paths)
    crashed = [path for path, v in zip(paths, results) if v.size is None]
    assert crashed == [paths[1]] and results[1].notes == [("image_crashes", "")]


@pytest.mark.parametrize("data, images, boxes, crowds, without", [
    ("coco_mini", (160, 206), (1430, 1765), (14, 21), (0, 2)),
    ("bccd", (205, 87), (2804, 1137), (0, 0), (0, 0)),
])  # fmt: skip
def test_real_data_is_clean(data, images, boxes, crowds, without, shared, tmp_path):
    """Every image decoded; counted by hand from the JSON, modes by Pillow: no false alarm."""
    out = tmp_path / "report.json"
    assert run("dataset", ["verify", str(shared / "data" / data), "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["warnings"] == 0 and not report["between"]
    for i, (split, part) in enumerate(report["splits"].items()):
        assert split == ("train", "val")[i] and part["findings"] == {}
        totals = part["totals"]
        assert (totals["images"], totals["images_read"]) == (images[i], images[i])
        assert (totals["boxes_to_train_on"], totals["crowds"]) == (boxes[i], crowds[i])
        assert totals["images_without_boxes"] == without[i]


def test_sizes_that_the_annotations_lack_come_from_the_files(world):
    """Also the turned one; unread, it is told that the boxes were not compared."""
    root, splits = world
    for image in splits["train"]["images"]:
        del image["width"], image["height"]
    splits["train"]["annotations"][0].update(bbox=[70, 5, 10, 10], area=100)
    splits["train"]["annotations"][2].update(bbox=[40, 40, 5, 20], area=100)
    (root / "train" / "train_1.jpg").write_bytes(encoded(exif=exif(6)))
    save(root, "train", splits["train"])
    _, report = verify(root)
    assert set(kinds(report)) == {"box_outside", "exif_turned"}
    code, report = verify(root, "--no-images")
    assert code == 0 and not kinds(report)
    assert report["splits"]["train"]["totals"]["images_of_unknown_size"] == 3


def test_every_evaluation_set_of_a_config_is_looked_at(world, root, capsys, tmp_path):
    folder, _ = world
    paths = [f"{s}Dataset.dataset_dir={folder}" for s in ("Train", "Eval", "Test")]
    part = json.loads((folder / "annotations/instances_val.json").read_text())
    part["images"] = part["images"][:1]  # these are also in EvalDataset, which is no leak
    ids = {image["id"] for image in part["images"]}
    part["annotations"] = [a for a in part["annotations"] if a["image_id"] in ids]
    (folder / "night.json").write_text(json.dumps(part))
    given = ["-c", str(root / "configs/fcos/fcos_r18_fpn_bccd.yml"), "-o", *paths, "num_classes=2",
             "eval_sets.night.anno_path=night.json"]  # fmt: skip
    assert run("dataset", ["verify", *given]) == 0
    assert run("dataset", ["stats", *given]) == 0
    out = capsys.readouterr().out
    assert out.count(f"eval_sets.night: {folder}/night.json") == 2
    assert run("dataset", ["browse", *given, "--output", str(tmp_path / "all.html")]) == 0
    assert "eval_sets.night" in (tmp_path / "all.html").read_text()
    part["images"][0]["width"] += 1
    (folder / "night.json").write_text(json.dumps(part))
    assert run("dataset", ["verify", *given]) == 1
    given[-1] = "eval_sets.night.anno_path=train.json"
    capsys.readouterr()
    assert run("dataset", ["verify", *given]) == 1
    assert "eval_sets.night.anno_path: " in capsys.readouterr().out
    given[-1] = "eval_sets.night.anno_path=annotations/instances_train.json"
    assert run("dataset", ["verify", *given, "eval_sets.night.image_dir=train"]) == 1
    assert "leak: " in capsys.readouterr().out


def test_config_is_compared(world, root, capsys):
    """num_classes, TestDataset's names, and what the config names but is not there."""
    folder, splits = world
    config = root / "configs/fcos/fcos_r18_fpn_bccd.yml"
    paths = [f"{s}Dataset.dataset_dir={folder}" for s in ("Train", "Eval", "Test")]
    argv = ["verify", "-c", str(config), "-o", *paths, "TestDataset.anno_path=names.txt"]
    (folder / "names.txt").write_text("class 7\nclass 3\n")
    assert run("dataset", argv) == 1
    out = capsys.readouterr().out
    assert "train: 2 categories, the config says num_classes: 3" in out and "errors: 2," in out
    assert run("dataset", [*argv, "num_classes=2"]) == 0
    picture = folder / "val" / splits["val"]["images"][1]["file_name"]
    before = picture.read_bytes()
    Image.new("RGB", (3000, 2)).save(picture)  # readable, but too thin for the config's Resize
    assert run("dataset", [*argv, "num_classes=2"]) == 1
    out = capsys.readouterr().out
    assert "transform_fails: 1: a transform" in out and picture.name in out
    picture.write_bytes(before)
    (folder / "names.txt").write_text("class 3\nclass 7\n")
    assert run("dataset", [*argv, "num_classes=2"]) == 1
    assert "class 0 is 'class 3' in TestDataset, 'class 7' in train" in capsys.readouterr().out
    (folder / "names.txt").unlink()
    (folder / "annotations" / "instances_val.json").unlink()
    assert run("dataset", [*argv, "num_classes=2"]) == 1
    assert "instances_val.json does not exist" in capsys.readouterr().out
    shutil.rmtree(folder / "train")
    assert run("dataset", [*argv, "num_classes=2", "--split", "train"]) == 1
    assert "image_folder: 1" in capsys.readouterr().out


def test_fix_copies_what_it_does_not_change(world):
    """Other sections, unknown fields and numbers as they are written stay; nothing is in place."""
    root, splits = world
    data = splits["train"]
    data["annotations"][0].update(bbox=[60, 40, 10, 20], area=200)
    data["annotations"][1].update(bbox=[1, 1, 0, 5])
    data["annotations"][2].update(segmentation=[[1.10, 2, 3, 4, 5, 6]], extra={"é": 1})
    text = json.dumps({"info": {"year": 2026}, **data, "licenses": []}, ensure_ascii=False)
    path = save(root, "train", text.replace("1.1,", "1.10,"))
    before = path.read_bytes()
    os.unlink(root / "train" / "train_2.jpg")
    out = root / "out" / "train.json"
    code, report = verify(root, "--split", "train", "--fix", out)
    assert code == 1 and path.read_bytes() == before
    changes = report["splits"]["train"]["fix"]["changes"]
    assert [(c["kind"], c.get("id"), c["text"]) for c in changes] == [
        ("box_empty", 101, "removed"),
        ("box_partly_outside", 100, "clipped to [60, 40, 4, 8]"),
        ("file_missing", 30, "removed"),
        ("unknown_image", 104, "removed"),
        ("unknown_image", 105, "removed"),
    ]
    copied = json.loads(out.read_text())
    assert b"[[1.10, 2, 3" in out.read_bytes() and list(copied)[0] == "info"
    assert copied["annotations"][1] == data["annotations"][2]
    assert (len(copied["images"]), len(copied["annotations"])) == (2, 3)
    assert copied["annotations"][0]["area"] == 32
    assert verify(root, "--split", "train", "--fix", root / "x.json")[0] == 1
    for target in (path, out):
        assert run("dataset", ["verify", str(root), "--split", "train", "--fix", str(target)]) == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize("argv, message", [
    (["nowhere"], "nowhere: no such folder or annotation file"),
    ([], "no data given"),
    ([".", "--fix", "one.json"], "one.json: --fix: 2 splits"),
    ([".", "--fix", "report_dir/x.json/y"], "x.json"),
    (["annotations/instances_val.json", "--json", "train/train_0.jpg/x.json"], "train_0.jpg"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line(argv, message, world, monkeypatch, capsys):
    monkeypatch.chdir(world[0])
    (world[0] / "report_dir").mkdir()
    (world[0] / "report_dir" / "x.json").write_text("")
    assert run("dataset", ["verify", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error


@pytest.mark.parametrize("text", ["", "{", "[1]", "nonsense", '{"images": [NaN]}', "[" * 10_000,
                                  '{"images": "x"}', "\ufeff{}", "null"])  # fmt: skip
def test_files_that_are_no_annotations_are_findings(text, world, capsys):
    """The command has run, and what it found is an error: 1, not 2."""
    root, _ = world
    save(root, "train", text)
    code, report = verify(root, "--fix", root / "clean")
    assert code == 1 and report["splits"]["train"]["findings"]
    assert report["splits"]["val"]["findings"] == {}
    assert "Traceback" not in capsys.readouterr().err


def test_allowed_kinds_are_warnings(world):
    root, splits = world
    splits["train"]["annotations"][0]["bbox"] = [9, 1, -3, 5]
    save(root, "train", splits["train"])
    assert verify(root)[0] == 1
    code, report = verify(root, "--allow", "box_negative")
    assert code == 0 and report["warnings"] == 1


def test_console_has_one_line_per_kind_unless_all_are_asked_for(world, capsys):
    root, splits = world
    for annotation in splits["train"]["annotations"]:
        annotation["area"] *= 3
    save(root, "train", splits["train"])
    assert verify(root)[0] == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "annotations[" in line]
    assert len(shown) == 1 and "area_differs: 6" in shown[0] and "e.g. id 100" in shown[0]
    assert verify(root, "--all")[0] == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "annotations[" in line]
    assert [re.findall(r"annotations\[(.)", line) for line in shown] == [[str(i)] for i in range(6)]


def test_script_in_a_pipe(world, root):
    """Plain lines, no Paddle, from a process as users start it."""
    code = ("import sys; from fcos_recipe.cli import run; c = run('dataset')\n"
            "assert 'paddle' not in sys.modules; sys.exit(c)")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", str(world[0])],
        env={"PYTHONPATH": str(root), "HOME": str(world[0])}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.splitlines()[-1].startswith("errors: 0, warnings: 0")


def test_ctrl_c_ends_it_at_once(world, root):
    """Not after the images that are still to come, and without a traceback."""
    code = ("import sys, fcos_recipe.datasets.verify.images as m; from fcos_recipe.cli import run\n"
            "m.Progress.EVERY = 0\n"
            "m.inspect_all = lambda paths, f=m.inspect_all: f(paths * 20_000)\n"
            "sys.exit(run('dataset'))")  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-c", code, "verify", str(world[0])], start_new_session=True, text=True,
        env={"PYTHONPATH": str(root), "HOME": str(world[0])}, stderr=subprocess.PIPE,
    )  # fmt: skip
    first = child.stderr.readline()
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    rest = child.communicate(timeout=60)[1]
    assert first.startswith("images: ") and child.returncode == 130
    assert "interrupted" in rest and "Traceback" not in rest
    assert len(rest.splitlines()) < 200  # of some 3,700


def test_progress_in_a_pipe_is_lines(world, monkeypatch, capsys):
    monkeypatch.setattr(image_checks.Progress, "EVERY", 0)
    image_checks.inspect_all([str(world[0] / "train" / "train_0.jpg")] * 70, 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and re.fullmatch(
        r"images: 70 of 70 \(100%\), \d+/s, 0:00:00 left", lines[-1]
    )
