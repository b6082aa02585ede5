"""Pages and contact sheets: correct images and boxes, escaped names, clear errors."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.datasets.locate import Source
from fcos_recipe.datasets.look import contact_sheet
from fcos_recipe.datasets.look.browse import Choice, annotated, read_detections, seen_by_network
from fcos_recipe.errors import UserError
from tests.helpers.coco_folders import coco, write

EVIL = "<img src=x onerror=alert(1)>\"'\x1b[31m & 红"


def bccd(shared):
    folder = shared / "data" / "bccd"
    return Source("val", str(folder / "annotations/instances_val.json"), str(folder / "val"))


def content(source):
    with open(source.path) as file:
        return json.load(file)


class Page(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("size", [None, "small", "medium", "large"])
def test_filters_choose_what_a_count_by_hand_does(shared, size):
    source = bccd(shared)
    data = content(source)
    bounds = {None: (0, 9e9), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 9e9)}
    classes = ["WBC", "Platelets"]
    number = {c["name"]: c["id"] for c in data["categories"]}
    wanted = {}
    for a in data["annotations"]:
        low, high = bounds[size]
        area = a["bbox"][2] * a["bbox"][3]
        if a["category_id"] in [number[c] for c in classes] and low <= area < high:
            wanted[a["image_id"]] = wanted.get(a["image_id"], 0) + 1
    tiles = list(annotated(source, Choice(classes, size, limit=999), 100))
    found = {}
    for tile in tiles:
        image, count = re.match(r"image (\d+), .*?(\d+)( of \d+)? box", tile.notes[0]).group(1, 2)
        found[int(image)] = int(count)
        assert set(tile.classes) <= set(classes)
    assert found == wanted


def test_choice_is_seeded_limited_and_ordered(shared):
    source = bccd(shared)

    def titles(**options):
        return [tile.title for tile in annotated(source, Choice(**options), 64)]

    assert titles(limit=5) == titles(limit=5) and len(set(titles(limit=5))) == 5
    assert titles(limit=5) != titles(limit=5, seed=1)
    ids = [image["id"] for image in content(source)["images"]][3:0:-1]
    names = {image["id"]: image["file_name"] for image in content(source)["images"]}
    assert titles(ids=ids) == [names[i] for i in ids]


def test_boxes_are_where_they_belong(tmp_path):
    data = coco(images=1, boxes=1, size=(300, 400))
    data["annotations"][0]["bbox"] = [100, 60, 200, 180]
    path = write(tmp_path, data, images=False)
    cv2.imwrite(str(tmp_path / "0.png"), np.full((300, 400, 3), 128, np.uint8))
    (tmp_path / "0.png").rename(tmp_path / "0.jpg")  # lossless: every change is drawn
    source = Source("x", str(path), str(tmp_path))
    for most, factor in ((200, 0.5), (400, 1), (1000, 2)):
        (tile,) = annotated(source, Choice(), most)
        drawn = (tile.pictures[0][1] != 128).any(-1)
        assert drawn.shape == (300 * factor, 400 * factor)
        rows, columns = np.nonzero(drawn[int(70 * factor) :])  # below the label
        assert abs(columns.min() - 100 * factor) <= 2 and abs(columns.max() - 300 * factor) <= 2
        assert abs(rows.max() + int(70 * factor) - 240 * factor) <= 2


def test_corrupt_images_are_named_and_replaced(tmp_path, capsys):
    folder = tmp_path / "data"  # alone in its parent: images are also looked for beside it
    path = write(folder, coco(images=6, boxes=1))
    (folder / "2.jpg").write_bytes(b"\xff\xd8 no image")
    (folder / "4.jpg").unlink()
    tiles = list(annotated(Source("x", str(path), str(folder)), Choice(limit=4), 64))
    assert sorted(tile.title for tile in tiles) == ["0.jpg", "1.jpg", "3.jpg", "5.jpg"]
    told = list(annotated(Source("x", str(path), str(folder)), Choice(limit=6), 64))
    errors = capsys.readouterr().err
    assert len(told) == 4 and "2.jpg" in errors and "4.jpg" in errors and "skipped" in errors
    assert (
        run("dataset", ["browse", str(path), "--ids", "30", "--output", str(tmp_path / "x.png")])
        == 2
    )
    assert "no image to show" in capsys.readouterr().err


def test_corrupt_image_of_a_batch(tiny, shapes, tmp_path, capsys):
    from fcos_recipe.config.load import load_config

    path = shapes / "annotations" / "instances_train.json"
    images = json.loads(path.read_text())["images"]
    folder = tmp_path / "train"
    folder.mkdir()
    for image in images:
        (folder / image["file_name"]).symlink_to(shapes / "train" / image["file_name"])
    bad = images[0]["file_name"]
    (folder / bad).unlink()
    (folder / bad).write_bytes(b"no image")
    source = Source("train", str(path), str(folder), {"allow_empty": True})
    pairs = list(seen_by_network(load_config(tiny), source, Choice(limit=99), 200, 0))
    assert len(pairs) == len(images) - 1 and bad in capsys.readouterr().err
    assert bad not in {tile.title for tile, _ in pairs}


def test_predictions_beside_ground_truth(tmp_path, capsys):
    data = coco(images=3, boxes=2)
    path = write(tmp_path, data)
    rows = [
        {"image_id": 10, "category_id": 3, "bbox": [1, 2, 30, 20], "score": 0.9},
        {"image_id": 10, "category_id": 3, "bbox": [1, 2, 30, 20], "score": 0.1},
        {"image_id": 20, "category_id": 7, "bbox": [1, 2, 30, 20], "score": 0.6, "more": None},
        {"image_id": 11, "category_id": 7, "bbox": [1, 2, 30, 20], "score": 0.6},
    ]
    rows[0]["file_name"] = "elsewhere/0.jpg"
    rows.insert(0, {**rows[0], "file_name": "other.jpg"})  # numbered by itself
    dets = tmp_path / "dets.json"
    dets.write_text(json.dumps(rows))
    source = Source("x", str(path), str(tmp_path))
    found = read_detections(dets, source.index(), 0.5)
    assert found.score.tolist() == [0.9, 0.6] and found.box[0].tolist() == [1, 2, 31, 22]
    assert "2 of 5 detections" in capsys.readouterr().err
    tiles = {t.title: t for t in annotated(source, Choice(["class 3"]), 64, dets, 0.5)}
    assert "1 prediction" in tiles["0.jpg"].notes[0] and "0 pred" in tiles["1.jpg"].notes[0]
    for tile in tiles.values():
        assert [text[:5] for text, _ in tile.pictures] == ["groun", "predi"]
    for text, message in [
        ("{}", "COCO results"), ("[{}]", "COCO results"), ("", "COCO results"),
        (json.dumps(rows[-1:]), "no detection matches"),
    ]:  # fmt: skip
        dets.write_text(text)
        with pytest.raises(UserError, match=message):
            read_detections(dets, source.index(), 0.5)


def test_page_asks_for_nothing_and_escapes_names(tmp_path, capsys):
    data = coco(images=3, boxes=2)
    data["categories"][0]["name"] = EVIL
    for k, name in enumerate(["<b>&.jpg", "sub/ü 红.jpg"]):
        data["images"][k]["file_name"] = name
    path = write(tmp_path / "set", data)
    target = tmp_path / "new" / "page.html"
    assert run("dataset", ["browse", str(path), "--output", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.all("figure")) == len(page.all("img")) == 3
    assert all(i["src"].startswith("data:image/jpeg;base64,") and i["alt"] for i in page.all("img"))
    assert all(set(i) == {"src", "loading", "width", "height", "alt"} for i in page.all("img"))
    for name in ("script", "link", "iframe", "object"):
        assert all("src" not in attrs and name == "script" for attrs in page.all(name))
    assert not re.search(r"https?:|url\(|@import", text) and "\x1b" not in text
    shown = [t for t in page.text if "onerror" in t]
    assert shown and all(r"\x1b[31m & 红" in t for t in shown)
    assert "<b>&.jpg" in page.text and "sub/ü 红.jpg" in page.text
    first = base64.b64decode(page.all("img")[0]["src"].split(",")[1])
    pixels = cv2.imdecode(np.frombuffer(first, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape[1] == int(page.all("img")[0]["width"]) >= 480
    # the class filter's options and the figures' classes speak of the same numbers
    values = {o["value"]: o for o in page.all("option")}
    used = {c for f in page.all("figure") for c in f["data-classes"].split()}
    assert used == set(values) - {""} and len(used) == 2


def test_sheet(tmp_path):
    rng = np.random.default_rng(0)
    tiles = [
        contact_sheet.Tile(f"{k} {EVIL}.jpg", ["note", "x" * 300],
                   [("", rng.integers(0, 256, (60 + 20 * k, 200, 3)).astype(np.uint8))])
        for k in range(13)
    ]  # fmt: skip
    keys = [contact_sheet.Key(f"stride {k} " + "y" * 40, (200, 10 * k, 0)) for k in range(9)]
    drawn = np.asarray(contact_sheet.contact_sheet(tiles, keys, "title " * 100))
    for tile in tiles:  # every picture is there, whole
        picture = tile.pictures[0][1]
        corner = picture[:8, :8]
        x, y = cv2.minMaxLoc(cv2.matchTemplate(drawn, corner, cv2.TM_SQDIFF))[2]
        np.testing.assert_array_equal(drawn[y:, x:][: len(picture), :200], picture)
    assert drawn.shape[1] < 2300
    for ending in ("png", "jpg"):
        contact_sheet.save(tiles, keys, "t", tmp_path / f"x.{ending}")
        assert cv2.imread(str(tmp_path / f"x.{ending}")).shape == drawn.shape
    big = [contact_sheet.Tile("x", [], [("", np.zeros((9000, 2200, 3), np.uint8))])] * 8
    with pytest.raises(UserError, match="--limit"):
        contact_sheet.contact_sheet(big, [], "t")


def test_network_input_from_the_command_line_without_paddle(tiny, tmp_path, root):
    code = "import sys; from fcos_recipe.cli import run; c = run('dataset')\n" \
           "assert 'paddle' not in sys.modules; sys.exit(c)"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, "browse", "-c", str(tiny), "--network-input", "--limit", "3",
         "--output", "n.html"],
        cwd=tmp_path, env={"PYTHONPATH": str(root), "HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = Page((tmp_path / "n.html").read_text())
    assert len(page.all("figure")) == 3
    legend = [text for text in page.text if "positives" in text and text.startswith("stride")]
    totals = [int(re.search(r": (\d+) positives", text)[1]) for text in legend]
    notes = [int(n) for text in page.text for n in re.findall(r"boxe?s?, (\d+) positives", text)]
    assert len(totals) == 2 and sum(totals) == sum(notes) > 0


@pytest.mark.parametrize(
    "argv, message",
    [
        (["a.json", "--classes", "class 9"], "no class 'class 9'; it has class"),
        (["a.json", "--ids", "10,77"], "--ids: no image 77"),
        (["a.json", "--images", "gone"], "gone: --images"),
        (["empty/b.json"], "no images found near it; add --images DIR"),
        (["a.json", "--predictions", "none.json"], "none.json: No such file"),
        (["a.json", "--output", "a.json/x.png"], "a.json"),
        (["a.json", "--network-input", "-o", "TrainReader.batch_transforms=[]"], "Gt2FCOSTarget"),
        (["a.json", "--size", "large"], "no image to show"),
    ],
)
def test_bad_input_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    write(tmp_path, coco()).rename(tmp_path / "a.json")
    write(tmp_path / "empty", coco(images=2), images=False).rename(tmp_path / "empty" / "b.json")
    (tmp_path / "empty" / "b.json").write_text(
        (tmp_path / "empty" / "b.json").read_text().replace(".jpg", ".png")
    )
    monkeypatch.chdir(tmp_path)
    assert run("dataset", ["browse", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.parametrize(
    "argv", [["--output", "x.gif"], ["--ids", "a"], ["--limit", "0"],
             ["--network-input", "--predictions", "x"]],
)  # fmt: skip
def test_bad_arguments(argv, capsys):
    with pytest.raises(SystemExit) as error:
        run("dataset", ["browse", "x.json", *argv])
    assert error.value.code == 2
