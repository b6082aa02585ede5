"""Unusual exports of tools: the right boxes, or one line; no loss is left unsaid."""

import base64
import json
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from fcos_recipe.cli import run
from tests.helpers import layouts
from tests.helpers.layouts import save


def convert(root, capsys, *argv, code=0):
    """All boxes of the converted files, what was printed, and the account's reasons."""
    out, told = root.parent / "out", root.parent / "told.json"
    argv = ["convert", str(root), "-o", str(out), "--force", "--json", str(told), *argv]
    assert run("dataset", argv) == code
    printed = capsys.readouterr()
    if code:
        return printed.err
    found = {}
    for path in out.glob("*.json"):
        data = json.loads(path.read_text())
        names = {i["id"]: i["file_name"] for i in data["images"]}
        found |= {name: [] for name in names.values()}
        for a in data["annotations"]:
            found[names[a["image_id"]]].append(a["bbox"])
    rows = json.loads(told.read_text())["account"]
    assert all(r["seen"] == r["written"] + sum(r["left_out"].values()) for r in rows)
    return found, printed.out, {why: n for r in rows for why, n in r["left_out"].items()}


def test_cvat_video_has_tracks_and_frames_without_an_object(tmp_path, capsys):
    root = tmp_path / "data"
    for frame in range(3):
        layouts.picture(root / "images" / f"frame_{frame:06d}.png")
    box = '<box frame="{}" keyframe="1" outside="{}" xtl="1" ytl="2" xbr="11" ybr="12">{}</box>'
    red = '<attribute name="color">red</attribute>'
    bone = '<skeleton frame="0" outside="0"><points label="x" points="1,1"/></skeleton>'
    text = "".join(box.format(frame, outside, red) for frame, outside in ((0, 0), (1, 0), (2, 1)))
    tracks = f'<track id="0" label="a">{text}</track><track id="1" label="a">{bone}</track>'
    save(root / "annotations.xml", f"<annotations><version>1.1</version>{tracks}</annotations>")
    found, _, left = convert(root, capsys)
    assert found == {f"frame_{frame:06d}.png": [[1, 2, 10, 10]] for frame in range(2)}
    assert left == {"points and lines, which have no area": 1, "in no annotation": 1}


def test_label_studio_cancelled_further_and_predicted(tmp_path, capsys):
    root = tmp_path / "data"
    for name in "abcd":
        layouts.picture(root / "img" / f"{name}.jpg")
    one, two = (layouts._regions([("cat", 1, 2, x, 12)]) for x in (11, 21))
    made = [
        ("a", [(True, two), (False, one), (False, two)], two), ("b", [(True, one)], []),
        ("c", [], one), ("d", [(False, [])], []),
    ]  # fmt: skip
    save(root / "export.json", [
        {"data": {"image": f"s3://bucket/{name}.jpg"}, "predictions": [{"result": guess}],
         "annotations": [{"was_cancelled": off, "result": result} for off, result in every]}
        for name, every, guess in made
    ])  # fmt: skip
    found, _, left = convert(root, capsys)
    assert {k: np.round(v).tolist() for k, v in found.items()} == {
        "a.jpg": [[1, 2, 10, 10]], "d.jpg": [],
    }  # fmt: skip
    assert left == {
        "of annotations that were cancelled": 1, "of further annotations of the same image": 1,
        "of such images": 1, "not annotated": 2,
    }  # fmt: skip


def test_shapes_of_supervisely(tmp_path, capsys):
    """A mask's box is its origin and the size of its picture."""
    root = tmp_path / "data"
    layouts.picture(root / "ds" / "img" / "a.png")
    packed = zlib.compress(cv2.imencode(".png", np.ones((7, 5), np.uint8))[1].tobytes())
    masks = [base64.b64encode(data).decode() for data in (packed, b"damaged")]
    triangle = {"exterior": [[1, 1], [9, 1], [9, 8]], "interior": [[[2, 2], [3, 3], [3, 2]]]}
    objects = [
        ("bitmap", {"bitmap": {"data": masks[0], "origin": [3, 4]}}),
        ("polygon", {"points": triangle}), ("point", {"points": {"exterior": [[1, 1]]}}),
        ("bitmap", {"bitmap": {"data": masks[1], "origin": [3, 4]}}),
    ]  # fmt: skip
    save(root / "ds" / "ann" / "a.png.json", {"size": {"height": 48, "width": 64}, "objects": [
        {"classTitle": "b", "geometryType": kind, **more} for kind, more in objects
    ]})  # fmt: skip
    save(root / "meta.json", {"classes": [{"title": "a"}, {"title": "b"}]})
    assert "a.png.json: ../img/a.png: object 3: " in convert(root, capsys, code=2)
    found, _, left = convert(root, capsys, "--skip-bad")
    assert found == {"a.png": [[3, 4, 5, 7], [1, 1, 8, 7]]}
    assert left["points and lines, which have no area"] == left["not readable"] == 1


def test_shapes_and_videos_of_via_3(tmp_path, capsys):
    root = tmp_path / "data"
    layouts.picture(root / "a.jpg")
    shapes = [
        ("1", [7, 1, 1, 9, 1, 9, 9]), ("1", [3, 20, 20, 5]), ("1", [4, 30, 20, 5, 3]),
        ("1", [1, 2, 2]), ("1", []), ("2", [2, 1, 1, 5, 5]), ("1", [8, 5, 0, 9, 4, 5, 9, 1, 4]),
    ]  # fmt: skip
    files = {"1": {"fname": "a.jpg", "type": 2}, "2": {"fname": "v.mp4", "type": 4}}
    attribute = {"1": {"aname": "text", "type": 1, "options": {}}}
    save(root / "v.json", {
        "project": {}, "attribute": attribute, "file": files,
        "view": {key: {"fid_list": [key]} for key in files},
        "metadata": {str(n): {"vid": view, "z": [], "xy": xy, "av": {"1": "dog"}}
                     for n, (view, xy) in enumerate(shapes)},
    })  # fmt: skip
    found, _, left = convert(root, capsys)
    assert found == {"a.jpg": [[1, 1, 8, 8], [15, 15, 10, 10], [25, 17, 10, 6], [1, 0, 8, 9]]}
    assert left == {
        "points and lines, which have no area": 1, "of such images": 1,
        "videos and sounds, which are not images": 1,
    }  # fmt: skip


def test_difficult_objects_groups_and_regions_without_labels(tmp_path, capsys):
    """DOTA, Open Images and Cityscapes say what training skips; KITTI where nothing is labelled."""
    for name in ("dota", "open", "city", "kitti"):
        layouts.picture(tmp_path / name / "data" / "a.png")
    save(
        tmp_path / "dota/data/a.txt", "1 1 9 1 9 9 1 9 x 1\n1 1 9 1 9 9 1 9 x\n5 1 9 5 5 9 1 5 x 0"
    )
    save(tmp_path / "open/data/b.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
         "a,/m/01,0,.5,0,.5,1\na,/m/01,0,.5,0,.5,0")  # fmt: skip
    polygon = [[1, 1], [9, 1], [9, 9]]
    save(tmp_path / "city/data/a.json", {"imgHeight": 48, "imgWidth": 64, "objects": [
        {"label": label, "polygon": polygon} for label in ("cargroup", "car")
    ]})  # fmt: skip
    numbers = "0 0 0 1 1 9 9 1 1 1 1 1 1 1"
    save(tmp_path / "kitti/data/a.txt", f"Car {numbers}\nDontCare {numbers}\nCar {numbers} 0.9")
    wanted = {"dota": [1, 0, 0], "open": [1, 0], "city": [1, 0], "kitti": [0, 0]}
    for name, crowds in wanted.items():
        _, told, left = convert(tmp_path / name / "data", capsys)
        data = json.loads((tmp_path / name / "out" / "instances_all.json").read_text())
        assert [a["iscrowd"] for a in data["annotations"]] == crowds
        assert len(data["categories"]) == 1
        assert ("1 objects are marked difficult or as a group" in told) == (1 in crowds)
        assert left.get("lost: upright boxes around them are used", 0) == (name == "dota")
        assert left.get("of regions in which nothing is labelled", 0) == (name == "kitti")


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_split_without_an_image_is_told(split, tmp_path, capsys):
    """Roboflow leaves the folders of a split that has no image."""
    root = tmp_path / "data"
    layouts.yolo_roboflow(root)
    for name in ("images", "labels"):
        for file in (root / split / name).glob("*"):
            file.unlink()
        (root / split / name).mkdir(parents=True, exist_ok=True)
    found, told, _ = convert(root, capsys)
    assert "images: empty, so there is no split" in told
    assert len(found) == len(layouts.TRAIN if split == "valid" else layouts.ALL)


TEXTS = {
    "b.csv": "filename,class,xmin,ymin,xmax,ymax\r\na.jpg,斑马,1,2,11,12\r\n",
    "b.json": json.dumps(layouts.coco({"a.jpg": [("cat", 1, 2, 11, 12)]}), ensure_ascii=False),
    "data.yaml": "train: .\r\nnames: [斑马]\r\n",
    "a.txt": "斑马 0 0 0 1 2 11 12 1 1 1 1 1 1 1\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_text_of_windows_is_read_or_refused_in_one_line(name, tmp_path, capsys):
    root = tmp_path / "data"
    layouts.picture(root / "a.jpg")
    if name == "data.yaml":
        save(root / "a.txt", f"0 {6 / 64} {7 / 48} {10 / 64} {10 / 48}")
    (root / name).write_bytes(TEXTS[name].encode("utf-8-sig"))
    found, _, _ = convert(root, capsys)
    assert np.allclose(found["a.jpg"], [[1, 2, 10, 10]])
    for code in ("utf-16", "gb18030"):
        (root / name).write_bytes(TEXTS[name].encode(code))
        error = convert(root, capsys, code=2)
        assert name in error and "save it as UTF-8" in error


def test_boxes_of_turned_images_in_every_format(tmp_path, capsys):
    """The boxes are those of the image as it is shown: orientations 5 to 8 exchange the sides."""
    box = ("cat", 2, 30, 20, 58)
    for orientation in range(5, 9):
        for kind in (layouts.labelme, layouts.kitti, layouts.dota, layouts.supervisely, layouts.via,
                     layouts.voc, layouts.yolo_roboflow, layouts.cvat, layouts.csv_retinanet,
                     layouts.create_ml, layouts.via3, layouts.label_studio):  # fmt: skip
            root = tmp_path / kind.__name__ / str(orientation) / "data"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(layouts, "SIZE", (60, 30))
                patch.setattr(layouts, "TRAIN", {"a.jpg": [box]})
                patch.setattr(layouts, "VAL", {"b.jpg": [box]})
                patch.setattr(layouts, "ALL", {"a.jpg": [box], "b.jpg": [box]})
                root.mkdir(parents=True)
                kind(root)
            for path in root.rglob("*.jpg"):
                tags = Image.Exif()
                tags[0x112] = orientation
                Image.new("RGB", (60, 30)).save(path, exif=tags)  # stored lying, shown upright
            found, _, _ = convert(root, capsys)
            assert len(found) == 2
            for boxes in found.values():
                assert np.allclose(boxes, [[2, 30, 18, 28]], atol=2e-3), (kind, orientation)
