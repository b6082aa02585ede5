"""Data sets as tools leave them: from the folder to boxes in a config's data, nothing moved."""

import json
import random
import unicodedata
from urllib.parse import quote

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.config.load import load_config
from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.data.images import read_image
from fcos_recipe.datasets.find_images import ImageFinder
from fcos_recipe.datasets.recognise import recognise
from tests.helpers import layouts

BASE = "fcos_r18_fpn_demo"


def dataset(*argv):
    return run("dataset", [str(a) for a in argv])


def new(root, config, *argv):
    return run("config", ["new", "--data", str(root), "-o", str(config), "--base", BASE,
                          "--cards", "1", "--batch-size", "1", *map(str, argv)])  # fmt: skip


def boxes(section):
    """Sorted boxes of each image as training reads them, and class names; every image decodes."""
    data = COCODataSet(section["dataset_dir"], section["image_dir"], section["anno_path"],
                       ["image", "gt_bbox", "gt_class"], allow_empty=True)  # fmt: skip
    data.parse_dataset()
    found = []
    for i in range(len(data)):
        record = data.record(i)
        assert read_image(record["im_file"]).shape[:2] == layouts.SIZE
        names = [data.class_names[k] for k in record["gt_class"].ravel()]
        found.append(sorted((n, *box) for n, box in zip(names, record["gt_bbox"].tolist())))
    return sorted(found)


@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.__name__)
def test_from_the_folder_to_the_boxes_of_a_config(layout, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "数据 set"
    root.mkdir()
    kind, options = layout(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert recognise(root).kind == kind
    config = tmp_path / "my.yml"
    assert new(root, config, *options) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    found = load_config(config).data
    splits = {"train": "TrainDataset", "val": "EvalDataset"}
    if layout not in layouts.SPLIT:
        assert found["EvalDataset"] is None and "fcos dataset split" in told
        del splits["val"]
    for split, section in splits.items():
        have = boxes(found[section])
        want = layouts.wanted(layout, split)
        assert [[box[0] for box in image] for image in have] == [
            [box[0] for box in image] for image in want
        ]
        for mine, theirs in zip(have, want):
            assert np.allclose([b[1:] for b in mine], [b[1:] for b in theirs], atol=2e-3)
    # the data set itself is as it was, but for indexes of COCO files
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if ".fcos_index" not in p.parts} == before
    if not options:
        assert dataset("stats", root) == 0
        names = capsys.readouterr().out
        assert all(layouts.CALLED.get(layout, str)(name) in names for name in layouts.CLASSES)
    out = tmp_path / "out"
    assert dataset("convert", root, "-o", out, *options) == 0, capsys.readouterr().err
    total = [len(json.loads(path.read_text())["images"]) for path in out.glob("*.json")]
    assert sum(total) == sum(len(layouts.wanted(layout, split)) for split in splits)
    # the image folder is remembered wherever the file lies
    first = sorted(out.glob("*.json"))[0]
    assert dataset("verify", first, "--allow", "nothing_to_train") == 0, capsys.readouterr().out


def content(folder, capsys, *argv):
    """The converted file of a folder, and what was printed."""
    out = folder / "out.json"
    assert dataset("convert", folder, "-o", out, "--force", *argv) == 0, capsys.readouterr().err
    found = json.loads(out.read_text())
    out.unlink()
    return found, capsys.readouterr().out


def test_shapes_of_labelme_and_what_has_no_area(tmp_path, capsys):
    layouts.picture(tmp_path / "a.jpg")
    shapes = [
        ("rectangle", [[30, 28], [10, 8]], [10, 8, 20, 20]),
        ("rectangle", [[1, 2], [5, 2], [5, 9], [1, 9]], [1, 2, 4, 7]),  # X-AnyLabeling
        ("polygon", [[4, 4], [20, 6], [12, 18]], [4, 4, 16, 14]),
        ("circle", [[30, 20], [33, 24]], [25, 15, 10, 10]),
        ("mask", [[2, 3], [7, 9]], [2, 3, 6, 7]),
        ("point", [[4, 4]], None), ("linestrip", [[1, 1], [9, 9], [9, 1]], None),
    ]  # fmt: skip
    data = {"version": "5", "imagePath": "D:\\x\\a.jpg", "shapes": [
        {"label": "x", "shape_type": kind, "points": points} for kind, points, _ in shapes
    ]}  # fmt: skip
    layouts.save(tmp_path / "a.json", data)
    found, told = content(tmp_path, capsys)
    assert [a["bbox"] for a in found["annotations"]] == [box for _, _, box in shapes if box]
    assert found["annotations"][2]["segmentation"] == [[4, 4, 20, 6, 12, 18]]
    assert "2 points and lines, which have no area" in told
    data["shapes"][0]["points"] = [["x", 1], [2, 3]]
    layouts.save(tmp_path / "a.json", data)
    assert dataset("convert", tmp_path, "-o", tmp_path / "o.json") == 2
    assert "a.json: a.jpg: object 0: 'x' is not a number" in capsys.readouterr().err.replace(
        "D:\\x\\", ""
    )


def test_rotated_and_round_shapes_of_cvat_and_label_studio(tmp_path, capsys):
    """A quarter turn exchanges the sides: CVAT turns about the middle, Label Studio a corner."""
    layouts.picture(tmp_path / "cvat" / "a.jpg")
    box = '<box label="x" xtl="20" ytl="10" xbr="40" ybr="20" rotation="90"/>'
    ellipse = '<ellipse label="x" cx="20" cy="20" rx="8" ry="4"/><points label="x" points="1,1"/>'
    mask = '<mask label="x" left="3" top="4" width="5" height="6" rle="1, 29"/>'
    save = f'<annotations><image name="a.jpg">{box}{ellipse}{mask}</image></annotations>'
    layouts.save(tmp_path / "cvat" / "annotations.xml", save)
    found, _ = content(tmp_path / "cvat", capsys)
    boxes = [a["bbox"] for a in found["annotations"]]
    assert np.allclose(boxes, [[25, 5, 10, 20], [12, 16, 16, 8], [3, 4, 5, 6]])
    layouts.picture(tmp_path / "ls" / "a.jpg")
    (region,) = layouts._regions([("x", 30, 10, 50, 20)])
    region["value"]["rotation"] = 90
    region["id"] = "r"
    labels = {"id": "r", "type": "labels", "value": {"labels": ["red"]}}
    del region["value"]["rectanglelabels"]
    task = {"data": {"img": "https://host/a.jpg?token=1"},
            "annotations": [{"result": [region, labels]}, {"result": [region]}]}  # fmt: skip
    layouts.save(tmp_path / "ls" / "export.json", [task])
    found, told = content(tmp_path / "ls", capsys)
    assert np.allclose([a["bbox"] for a in found["annotations"]], [[20, 10, 10, 20]])
    assert found["categories"] == [{"id": 1, "name": "red"}]
    assert "1 of further annotations of the same image" in told


def test_two_formats_in_a_folder_are_told_with_the_option(tmp_path, capsys):
    layouts.voc_roboflow(tmp_path)
    layouts.labelme_json(tmp_path / "train", "a b.JPG", layouts.TRAIN["a b.JPG"], "a b.JPG")
    argv = ["convert", tmp_path, "-o", tmp_path / "out"]
    assert dataset(*argv) == 2
    line = capsys.readouterr().err
    assert "--from labelme or --from voc" in line and len(line.splitlines()) == 1
    assert dataset(*argv, "--from", "voc") == 0 and "instances_val.json" in capsys.readouterr().out
    # what was converted is COCO now, and never stands for the data that it was made from
    assert dataset("stats", tmp_path, "--from", "labelme") == 0
    (tmp_path / "train" / "a b.json").unlink()
    capsys.readouterr()
    assert dataset("stats", tmp_path) == 0
    told = capsys.readouterr().out
    assert "an earlier conversion, not used" in told and "Pascal VOC, converted" in told
    assert dataset("convert", tmp_path, "--from", "cvat", "-o", tmp_path / "x.json") == 2
    assert "no annotations of CVAT XML" in capsys.readouterr().err
    for empty, message in ((tmp_path / "none", "it is empty"), (tmp_path / "pics", "1 .jpg")):
        empty.mkdir()
        if empty.name == "pics":
            layouts.picture(empty / "a.jpg")
        assert dataset("verify", empty) == 2
        assert message in capsys.readouterr().err


def test_what_is_not_read_is_told_with_the_remedy(tmp_path, capsys):
    """Packed data and binary records by one line; a data.yaml with a repeated key as well."""
    names = ["z.zip", "z.tar.GZ", "z.7z", "train.tfrecord", "coco_train.record-00001-of-00010",
             "a.tfrecord-00000-of-00001", "data.parquet"]  # fmt: skip
    for number, name in enumerate(names):
        file = tmp_path / str(number) / name
        layouts.save(file, "x")
        remedy = "unpack it first" if name.startswith("z") else "export the data again as COCO"
        out = tmp_path / "o.json"
        for argv in (["convert", file, "-o", out], ["convert", file.parent, "-o", out],
                     ["convert", file, "--from", "voc", "-o", out], ["stats", file]):  # fmt: skip
            assert dataset(*argv) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"{file}: " in line and remedy in line
    root = tmp_path / "yolo"
    layouts.yolo_roboflow(root)
    with open(root / "data.yaml", "a") as file:
        file.write("train: ../other/images\n")
    for argv in (["verify", root], ["convert", root / "data.yaml", "-o", out]):
        assert dataset(*argv) == 2
        assert "data.yaml:7: the key train occurs twice; remove one" in capsys.readouterr().err


def test_a_name_that_fits_several_images_is_asked_about(tmp_path, capsys):
    """Equal names never make one picture of two, in no command."""
    for folder in "AB":
        layouts.picture(tmp_path / "pics" / folder / "1.jpg", seed=ord(folder))
        one = layouts.coco({"1.jpg": [("cat", 5, 5, 25, 25)]})
        layouts.save(tmp_path / "j" / f"{folder}.json", one)
    files = [tmp_path / "j" / f"{folder}.json" for folder in "AB"]
    out = tmp_path / "all.json"
    assert dataset("merge", *files, "-o", out) == 2
    assert "A.json: none of its 1 images was found" in capsys.readouterr().err
    assert dataset("merge", *files, "-o", out, "--images", tmp_path / "pics") == 2
    assert "1.jpg could be" in capsys.readouterr().err and not out.exists()
    for argv in (["convert", files[0], "-o", out], ["convert", files[0], "-o", out, "--images",
                                                    tmp_path / "pics"]):  # fmt: skip
        assert dataset(*argv) == 2 and "--images DIR" in capsys.readouterr().err
    folders = [tmp_path / "pics" / folder for folder in "AB"]
    assert dataset("verify", files[0], "--images", folders[0]) == 0
    assert "1 image (1 read" in capsys.readouterr().out
    assert dataset("merge", *files, "-o", out, "--images", *folders) == 0
    merged = json.loads(out.read_text())
    assert [i["file_name"] for i in merged["images"]] == ["A/1.jpg", "B/1.jpg"]
    # wherever the merged file and its parts go, their images are found
    assert dataset("split", out, "--shares", "0.5,0.5", "-o", tmp_path / "x" / "y") == 0
    capsys.readouterr()
    assert dataset("verify", tmp_path / "x" / "y" / "instances_val.json") == 0
    assert "1 image (1 read" in capsys.readouterr().out


def test_a_split_stays_when_the_images_are_named(tmp_path, capsys):
    layouts.yolo_roboflow(tmp_path)
    argv = ["convert", tmp_path / "data.yaml", "--split", "val", "--images", tmp_path]
    assert dataset(*argv, "-o", tmp_path / "v.json") == 0
    found = json.loads((tmp_path / "v.json").read_text())
    assert [i["file_name"] for i in found["images"]] == [
        "valid/images/v.jpg", "valid/images/w.jpg",
    ]  # fmt: skip


def test_masks_corners_and_odd_ids_of_coco(tmp_path, capsys):
    """Boxes from polygons and both kinds of RLE; corners known by their areas; --fix as well."""
    from hotcoco import mask as masks

    pixels = np.zeros((48, 64), np.uint8)
    pixels[5:15, 8:20] = 1
    pixels[20:48, 30:32] = 1  # touches the lower edge: runs go on in the next column
    packed = masks.encode(np.asfortranarray(pixels))
    counts = packed["counts"]
    flat = pixels.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    box = [8, 5, 24, 43]
    texts = [counts if isinstance(counts, str) else counts.decode(), runs]
    shapes = [{"size": [48, 64], "counts": c} for c in texts] + [[[8, 5, 32, 5, 32, 48]]]
    data = layouts.coco({"a.jpg": []})
    layouts.picture(tmp_path / "a.jpg")
    data["categories"][0]["id"] = "cat"
    data["annotations"] = [
        {"id": n, "image_id": 0.0, "category_id": "cat", "segmentation": s, "iscrowd": 0}
        for n, s in enumerate(shapes)
    ]
    layouts.save(tmp_path / "a.json", data)
    found, _ = content(tmp_path, capsys)
    assert [a["bbox"] for a in found["annotations"]] == [box] * 3
    fixed = tmp_path / "fixed.json"
    assert dataset("verify", tmp_path / "a.json", "--fix", fixed) == 1
    assert [a["bbox"] for a in json.loads(fixed.read_text())["annotations"]] == [box]  # one twice
    names = {**layouts.TRAIN, "corner.jpg": [("cat", 0, 0, 9, 9)]}
    data = layouts.coco(names)
    layouts.pictures(tmp_path / "corners", names)
    wanted = [a["bbox"] for a in data["annotations"]]
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w, y + h]
    layouts.save(tmp_path / "corners" / "all.json", data)
    found, told = content(tmp_path / "corners", capsys)
    assert [a["bbox"] for a in found["annotations"]] == wanted and "boxes were corners" in told
    fixed = tmp_path / "corners_fixed.json"
    assert dataset("verify", tmp_path / "corners" / "all.json", "--fix", fixed) == 1
    assert [a["bbox"] for a in json.loads(fixed.read_text())["annotations"]] == wanted
    assert new(tmp_path / "corners", tmp_path / "my.yml") == 0
    section = load_config(tmp_path / "my.yml").data["TrainDataset"]
    assert sum(map(len, boxes(section))) == len(wanted)
    assert max(b[3] for image in boxes(section) for b in image) <= 64


@pytest.mark.slow
@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_trains_a_step(layout, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, config = tmp_path / "data", tmp_path / "my.yml"
    root.mkdir()
    _, options = layout(root)
    argv = ["new", "--data", str(root), "-o", str(config), "--base", str(tiny), *options]
    assert run("config", [*argv, "--from-scratch", "--batch-size", "2"]) == 0
    assert run("train", ["-c", str(config), "-o", "epoch=1"]) == 0


def test_spellings_of_a_path_lead_to_its_image(tmp_path):
    """Whatever a tool makes of a path, the same file is found, or none: never another one."""
    rng = random.Random(1)
    names = ["a.jpg", "图 2.JPG", "c%20d.png", "e+f#.jpeg", "x.y.jpg", "ab12cd34-g.jpg"]
    files = [tmp_path / "my set" / "部 1" / "s" / name for name in names]
    files += [tmp_path / "my set" / "部 2" / name for name in names]  # the same names again
    files.append(tmp_path / "my set" / "deep" / "er" / "only.jpg")
    for number, file in enumerate(files):
        layouts.picture(file, seed=number)
    steps = [
        lambda p: p.replace("/", "\\"), lambda p: f"D:\\data\\{p}", lambda p: f"/home/x/{p}",
        lambda p: f"../../{p}", lambda p: f"file:///mnt/{p}", lambda p: quote(p),
        lambda p: f"https://host:8080/{quote(p)}?token=a/b", lambda p: f"./{p}",
        lambda p: f"/data/local-files/?d={quote(p)}",
        lambda p: p.rpartition("/")[0] + "/0123abcd-" + p.rpartition("/")[2],
        lambda p: unicodedata.normalize("NFD", p), str.upper,
    ]  # fmt: skip
    found = 0
    for file in files:
        finder = ImageFinder([], [tmp_path / "my set"])
        for step in steps:
            name = step(file.relative_to(tmp_path / "my set").as_posix())
            image = finder.find(name)
            assert image in (None, file), (name, image)
            assert image is not None, name
            found += 1
        ends = file.name, rng.choice(["", "other/"]) + file.name
        several = names.count(file.name)
        assert all((finder.find(end) is None) == bool(several) for end in ends)
        assert bool(finder.unclear) == bool(several)
    assert found == len(files) * len(steps)


def test_label_studio_exports_yolo_labels_without_images(tmp_path, capsys):
    names = {f"0123abcd-{name}": boxes for name, boxes in layouts.VAL.items()}
    layouts.yolo_labels(tmp_path / "export" / "labels", names)
    layouts.save(tmp_path / "export" / "classes.txt", "\n".join(layouts.CLASSES))
    layouts.pictures(tmp_path / "pictures", layouts.VAL)
    argv = ["convert", tmp_path / "export", "-o", tmp_path / "o.json"]
    assert dataset(*argv) == 2 and "no images in it" in capsys.readouterr().err
    assert dataset(*argv, "--images", tmp_path / "pictures") == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert [a["bbox"] for a in found["annotations"]] == [[8, 8, 16, 16], [16, 12, 32, 24]]


def darknet(root):
    """A folder per split with its own list of classes, and no data.yaml."""
    for split, names in (("train", layouts.TRAIN), ("valid", layouts.VAL)):
        layouts.pictures(root / split, names)
        layouts.yolo_labels(root / split, names)
        layouts.save(root / split / "_darknet.labels", "\n".join(layouts.CLASSES))


def yolo_lists_of_windows(root):
    layouts.yolo_ultralytics(root)
    for split, names in (("train", layouts.TRAIN), ("val", layouts.VAL)):
        lines = (f"D:\\dogs\\images\\{split}\\{name}" for name in names)
        layouts.save(root / f"{split}.txt", "\r\n".join(lines))
    names = json.dumps(layouts.CLASSES)
    layouts.save(root / "dogs.yaml", f"train: train.txt\nval: val.txt\nnames: {names}")


def voc_devkit(root):
    layouts.voc(root / "VOCdevkit" / "VOC2007")


def csv_per_split(root):
    """TensorFlow's raccoons: train and test by the names of the CSV files."""
    layouts.pictures(root / "images", layouts.ALL)
    for split, names in (("train", layouts.TRAIN), ("test", layouts.VAL)):
        rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        rows += [f"{n},64,48,{','.join(map(str, b))}" for n, bs in names.items() for b in bs]
        layouts.save(root / "data" / f"{split}_labels.csv", "\n".join(rows))


@pytest.mark.parametrize("layout", [darknet, yolo_lists_of_windows, voc_devkit, csv_per_split])
def test_other_places_of_lists_and_names(layout, tmp_path, capsys):
    root = tmp_path / "data"
    layout(root)
    assert new(root, tmp_path / "my.yml") == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    found = load_config(tmp_path / "my.yml").data
    assert ("test is used for evaluation" in told) == (layout is csv_per_split)
    for split, section in (("train", "TrainDataset"), ("val", "EvalDataset")):
        want = [image for image in layouts.wanted(layouts.voc, split) if image or
                layout is not csv_per_split]  # fmt: skip
        have = boxes(found[section])
        assert [[b[0] for b in image] for image in have] == [[b[0] for b in i] for i in want]
        assert all(np.allclose([b[1:] for b in mine], [b[1:] for b in theirs], atol=2e-3)
                   for mine, theirs in zip(have, want))  # fmt: skip


def test_a_missing_image_is_not_replaced_by_its_thumbnail(tmp_path, capsys, monkeypatch):
    """Images in two folders are found; a folder with the same names again is not looked into."""
    data = layouts.coco(layouts.ALL)
    layouts.pictures(tmp_path / "part1", layouts.TRAIN)
    layouts.pictures(tmp_path / "part2", layouts.VAL)
    layouts.pictures(tmp_path / "thumbs", layouts.TRAIN)
    layouts.save(tmp_path / "all.json", data)
    # the folders part1 and thumbs fit equally well
    assert dataset("verify", tmp_path / "all.json") == 1
    assert "could be" in capsys.readouterr().out
    (tmp_path / "part1").rename(tmp_path / "images")
    assert new(tmp_path, tmp_path / "my.yml") == 0
    have = boxes(load_config(tmp_path / "my.yml").data["TrainDataset"])
    assert len(have) == len(layouts.ALL)
    (tmp_path / "images" / "e.jpeg").unlink()
    (tmp_path / "images" / "a b.JPG").rename(tmp_path / "images" / "a b.jpg")
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert dataset("verify", tmp_path / "all.json") == 1
    told = capsys.readouterr().out
    assert "file_missing: 1" in told and "thumbs/e.jpeg" not in told
    assert "a b.JPG: it is images/a b.jpg" in told


def test_class_names_of_a_list_and_names_that_occur_twice(tmp_path, capsys):
    layouts.picture(tmp_path / "voc/JPEGImages/a.jpg")
    layouts.voc_xml(tmp_path / "voc/Annotations", "a.jpg", [("ant", 1, 2, 9, 9)], "a.jpg")
    (tmp_path / "voc/label_list.txt").write_text("zebra\nant\n")
    found, _ = content(tmp_path / "voc", capsys)
    assert [c["name"] for c in found["categories"]] == ["zebra", "ant"]
    assert [a["category_id"] for a in found["annotations"]] == [2]
    (tmp_path / "voc/label_list.txt").write_text("zebra\n")
    assert dataset("convert", tmp_path / "voc", "-o", tmp_path / "v.json") == 2
    assert "class 'ant' is not among the 1 class names" in capsys.readouterr().err
    layouts.picture(tmp_path / "yolo/images/a.jpg")
    layouts.yolo_labels(tmp_path / "yolo/labels", {"a.jpg": []})
    (tmp_path / "yolo/data.yaml").write_text("train: images\nnames: [x, y, x]\n")
    assert dataset("convert", tmp_path / "yolo", "-o", tmp_path / "y.json") == 2
    assert "data.yaml: names: 'x' occurs twice" in capsys.readouterr().err


@pytest.mark.parametrize("apart", [True, False], ids=["file per split", "column"])
def test_an_image_in_two_splits_of_a_table_is_refused(apart, tmp_path, capsys):
    head = "filename,width,height,class,xmin,ymin,xmax,ymax"
    rows = {"train": ["a.jpg", "b.jpg"], "val": ["a.jpg"]}
    for name in rows["train"]:
        layouts.picture(tmp_path / name)
    lines = {s: [f"{name},64,48,x,1,1,9,9" for name in names] for s, names in rows.items()}
    if apart:
        for split, rest in lines.items():
            (tmp_path / f"{split}.csv").write_text("\n".join([head, *rest]))
    else:
        rest = [f"{line},{split}" for split, part in lines.items() for line in part]
        (tmp_path / "all.csv").write_text("\n".join([f"{head},split", *rest]))
    out = tmp_path / "out"
    assert dataset("convert", tmp_path, "-o", out) == 2
    assert "a.jpg: it is in train and in val; choose one" in capsys.readouterr().err
    assert not out.exists()
    assert dataset("convert", tmp_path, "-o", out, "--skip-bad") == 0
    assert "1 in two splits" in capsys.readouterr().out
    assert len(json.loads((out / "instances_train.json").read_text())["images"]) == 2
