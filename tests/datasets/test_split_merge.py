"""Subset, split, merge: unchanged entries, class proportions, no image in two parts."""

import base64
import json
from collections import Counter

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.datasets.split_merge.annotations import Annotations
from fcos_recipe.datasets.split_merge.split import stratify
from tests.helpers import layouts
from tests.helpers.coco_folders import coco, write

REAL = ["coco_mini/annotations/instances_train2017.json", "bccd/annotations/instances_train.json"]


def dataset(*argv):
    return run("dataset", [str(a) for a in argv])


def read(path):
    """An annotation file; where its images are is a test of its own."""
    data = json.loads(path.read_text())
    if "image_dir" in data.get("info", {}):
        del data["info"]["image_dir"]
        if not data["info"]:
            del data["info"]
    return data


def entries(data, section):
    """Entries by their id, each with all its fields."""
    found = {entry["id"]: entry for entry in data[section]}
    assert len(found) == len(data[section])
    return found


def images_per_class(data):
    pairs = {(a["image_id"], a["category_id"]) for a in data["annotations"]}
    return Counter(category for _, category in pairs)


def is_part(part, whole):
    """Every field of every entry as in the whole; annotations are those of the images."""
    assert {k: v for k, v in part.items() if k not in ("images", "annotations")} == {
        k: v for k, v in whole.items() if k not in ("images", "annotations")
    }
    images = entries(part, "images")
    assert images.items() <= entries(whole, "images").items()
    wanted = {k: a for k, a in entries(whole, "annotations").items() if a["image_id"] in images}
    assert entries(part, "annotations") == wanted


@pytest.mark.parametrize("source", REAL)
def test_split_covers_is_disjoint_and_merges_to_the_whole(shared, source, tmp_path, capsys):
    path = shared / "data" / source
    whole = read(path)
    assert dataset("split", path, "-o", tmp_path, "--shares", "0.7,0.2,0.1", "--names",
                   "train,val,test") == 0  # fmt: skip
    files = [tmp_path / f"instances_{name}.json" for name in ("train", "val", "test")]
    parts = [read(file) for file in files]
    for part, share in zip(parts, (0.7, 0.2, 0.1)):
        is_part(part, whole)
        assert abs(len(part["images"]) - share * len(whole["images"])) < 1
    ids = [i["id"] for part in parts for i in part["images"]]
    assert sorted(ids) == sorted(i["id"] for i in whole["images"])  # none twice, none lost
    count = images_per_class(whole)
    shares = [images_per_class(part) for part in parts]
    for category, n in count.items():
        assert shares[0][category] >= 1
        assert n < 15 or abs(shares[0][category] / n - 0.7) < 0.2
    assert dataset("merge", *files, "-o", tmp_path / "all.json") == 0
    merged = read(tmp_path / "all.json")
    for section in ("images", "annotations", "categories"):
        assert entries(merged, section) == entries(whole, section)
    assert set(merged) == set(whole) and "renumbered" not in capsys.readouterr().out


@pytest.mark.parametrize("source", REAL)
def test_subset_keeps_rare_classes_and_is_seeded(shared, source, tmp_path, capsys):
    path = shared / "data" / source
    whole = read(path)
    outs = [tmp_path / f"{k}.json" for k in range(4)]
    for out, seed in zip(outs[:3], (0, 0, 1)):
        assert dataset("subset", path, "--count", 90, "--seed", seed, "-o", out) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes() != outs[2].read_bytes()
    part = read(outs[0])
    is_part(part, whole)
    assert len(part["images"]) == 90 and set(images_per_class(part)) == set(images_per_class(whole))
    assert dataset("subset", outs[0], "--share", 0.5, "-o", outs[3]) == 0
    assert len(read(outs[3])["images"]) == 45
    is_part(read(outs[3]), whole)
    assert dataset("subset", path, "--share", 1, "-o", outs[0], "--force") == 0
    is_part(read(outs[0]), whole)
    assert len(read(outs[0])["images"]) == len(whole["images"])


def test_stratify_exact_counts_and_proportions():
    rng = np.random.default_rng(0)
    images, classes = 3000, 30
    chance = np.linspace(0.001, 0.4, classes)
    labels = np.argwhere(rng.random((images, classes)) < chance)
    labels = labels[labels[:, 0] >= 300]  # the first have no boxes
    part = stratify(labels, np.arange(images), [0.8, 0.2], 0)
    assert np.bincount(part).tolist() == [2400, 600]
    for k in range(classes):
        on = part[labels[labels[:, 1] == k, 0]]
        assert abs((on == 0).mean() - 0.8) < max(0.03, 1 / len(on))
    empty = np.setdiff1d(np.arange(images), labels[:, 0])
    assert len(empty) >= 300 and abs((part[empty] == 0).mean() - 0.8) < 0.03
    # ten images a video: none is torn apart
    video = np.arange(images) // 10
    part = stratify(labels, video, [0.8, 0.2], 0)
    assert (part.reshape(-1, 10) == part[::10, None]).all() and np.bincount(part)[0] == 2400


def test_one_file_and_one_group_never_go_to_two_parts(tmp_path, capsys):
    data = coco(images=40, boxes=1)
    for k, image in enumerate(data["images"]):
        image["file_name"] = f"video{k // 4}/{k % 4 // 2}.jpg"  # each file is listed twice
    path = write(tmp_path, data, images=False)
    for extra in ([], ["--group-by", r"^(video\d+)/"]):
        assert dataset("split", path, "-o", tmp_path, "--shares", "0.5,0.5", "--force", *extra) == 0
        names = [
            {i["file_name"].split("/")[0] if extra else i["file_name"] for i in read(f)["images"]}
            for f in (tmp_path / "instances_train.json", tmp_path / "instances_val.json")
        ]
        assert names[0] and names[1] and not names[0] & names[1]
    for pattern in ("(", "clip"):
        assert dataset("split", path, "-o", tmp_path / "x", "--group-by", pattern) == 2


def test_bytes_are_carried_over(tmp_path):
    """Numbers keep their digits, unknown keys stay, ids may be strings; orphans are told."""
    image = '{"id": "007", "file_name": "a.jpg", "mine": {"x": 1.10}, "height": 4, "width": 4}'
    box = '{"image_id": 7, "category_id": 2, "id": "q", "bbox": [0.10, 1e0, 2, 3.0000001]}'
    lost = '{"image_id": 8, "category_id": 2, "id": 5, "bbox": [0, 1, 2, 3]}'
    path, out = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(f'{{"images": [{image}], "x": [1.50], "annotations": [{box}, {lost}], '
                    '"categories": [{"id": 2, "name": "k", "keypoints": []}]}')  # fmt: skip
    assert dataset("subset", path, "--count", 1, "-o", out) == 0
    text = out.read_text()
    assert image in text and box in text and lost not in text and "[1.50]" in text


def test_merge_by_name_renumbers_only_what_clashes(tmp_path, capsys):
    one = coco(images=2, boxes=1, classes=(1, 2))
    two = coco(images=3, boxes=2, classes=(2, 1))
    names = {1: "dog", 2: "cat"}
    one["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cow"}]
    two["categories"] = [{"id": k, "name": names[k]} for k in (2, 1)]
    two["images"][2]["id"] = 99
    for a in two["annotations"][-2:]:
        a["image_id"] = 99
        a["id"] += 1000
    one["licenses"] = [{"id": 1, "name": "A", "url": "x"}]
    two["licenses"] = [{"id": 1, "name": "B", "url": "y"}, {"id": 2, "name": "A", "url": "x"}]
    for data, number in ((one, 1), (two, 1)):
        for image in data["images"]:
            image["license"] = number
    paths = []
    for name, data in (("one", one), ("two", two)):
        paths.append(write(tmp_path / name, data))
    out = tmp_path / "all.json"
    assert dataset("merge", *paths, "-o", out) == 0
    told = capsys.readouterr().out
    assert "class cat: id 2 becomes 3" in told and "2 image ids were taken" in told
    assert "2 annotation ids were taken" in told and f"relative to {tmp_path}" in told
    new = read(out)
    assert {c["name"]: c["id"] for c in new["categories"]} == {"dog": 1, "cow": 2, "cat": 3}
    images = entries(new, "images")
    assert len(images) == 5 and 99 in images
    license_name = {x["id"]: x["name"] for x in new["licenses"]}
    name = {c["id"]: c["name"] for c in new["categories"]}
    for data, folder in ((one, "one"), (two, "two")):
        old_class = {c["id"]: c["name"] for c in data["categories"]}
        old_image = {i["id"]: f"{folder}/{i['file_name']}" for i in data["images"]}
        for image in images.values():
            if image["file_name"].startswith(folder):
                assert (tmp_path / image["file_name"]).is_file()
                assert license_name[image["license"]] == {"one": "A", "two": "B"}[folder]
        wanted = sorted(
            (old_image[a["image_id"]], old_class[a["category_id"]], a["bbox"], a["area"])
            for a in data["annotations"]
        )
        found = sorted(
            (images[a["image_id"]]["file_name"], name[a["category_id"]], a["bbox"], a["area"])
            for a in entries(new, "annotations").values()
        )
        assert [row for row in found if row[0].startswith(folder)] == wanted


def test_merge_of_two_labellings_of_the_same_images(tmp_path, capsys):
    data = coco(images=3, boxes=2, classes=(1, 2))
    write(tmp_path, data)
    paths = []
    for name, keep in (("a", (1,)), ("b", (1, 2))):
        rows = [a for a in data["annotations"] if a["category_id"] in keep]
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({**data, "annotations": rows}))
    assert dataset("merge", *paths, "-o", tmp_path / "all.json", "--images", tmp_path) == 0
    new = read(tmp_path / "all.json")
    for section in ("images", "annotations", "categories"):
        assert entries(new, section) == entries(data, section)
    told = capsys.readouterr().out
    assert "3 images exist already" in told and "3 annotations exist already" in told


def test_parts_are_found_and_read_by_training(shapes, tmp_path):
    from fcos_recipe.data.index import open_index

    source = shapes / "annotations" / "instances_train.json"
    assert dataset("split", source, "-o", tmp_path) == 0
    whole = open_index(source)
    parts = [open_index(tmp_path / f"instances_{name}.json") for name in ("train", "val")]
    assert sum(len(p) for p in parts) == len(whole)
    assert sum(len(p.box) for p in parts) == len(whole.box)
    assert {tuple(p.class_names) for p in parts} == {tuple(whole.class_names)}
    assert Annotations.read(source).orphans == 0


@pytest.mark.parametrize(
    "argv, message",
    [
        (["subset", "gone.json", "--count", "1", "-o", "o.json"], "gone.json: no such"),
        (["subset", "a.json", "--count", "99", "-o", "o.json"], "--count 99: it has 4 images"),
        (["subset", "a.json", "--count", "1", "-o", "a.json"], "a.json: exists; choose"),
        (["subset", "a.json", "--count", "1", "-o", "a.json/x"], "a.json"),
        (["split", "cut.json", "-o", "."], "cut.json: not a complete JSON file"),
        (["split", "list.json", "-o", "."], "list.json: Expected"),
        (["split", "class.json", "-o", "."], "annotations[0].category_id: 5 is not among"),
        (["split", "twice.json", "-o", "."], "images: id 10 occurs twice"),
        (["merge", "a.json", "class.json", "-o", "o.json"], "category_id"),
        (["merge", "a.json", "b/b.json", "-o", "o.json"], "b/b.json: none of its "),
        (["merge", "a.json", "-o", "o.json", "--images", "x"], "x: --images: no such folder"),
    ],
)
def test_bad_input_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    data = coco()
    write(tmp_path, data).rename(tmp_path / "a.json")
    (tmp_path / "cut.json").write_text('{"images": [')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "class.json").write_text(
        json.dumps({**data, "annotations": [{**data["annotations"][0], "category_id": 5}]})
    )
    twice = {**data, "images": data["images"][:1] * 2}
    (tmp_path / "twice.json").write_text(json.dumps(twice))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.json").write_text(json.dumps(data).replace(".jpg", ".png"))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert dataset(*argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1
    assert captured.err.startswith("error: ") and sorted(tmp_path.rglob("*")) == before


def boxes_of(path):
    """File name -> sorted [class, x1, y1, x2, y2], and the account's rows beside the file."""
    data = json.loads(path.read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    found = {i["id"]: (i["file_name"], []) for i in data["images"]}
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        found[a["image_id"]][1].append((names[a["category_id"]], x, y, x + w, y + h))
    return {name: sorted(rows) for name, rows in found.values()}


def closed(path):
    """The account of a file: item -> (seen, written), after the check that nothing is missing."""
    rows = json.loads(path.read_text())["account"]
    for row in rows:
        assert row["seen"] == row["written"] + sum(row["left_out"].values()), row
    return {row["item"]: (row["seen"], row["written"]) for row in rows}


WHOLE = [layout for layout in layouts.LAYOUTS if layout not in layouts.WITHOUT_NEGATIVES]


@pytest.mark.parametrize("layout", WHOLE, ids=lambda layout: layout.__name__)
def test_folders_of_any_layout_are_merged_and_split(layout, tmp_path, capsys):
    """What merge and split make of a folder, and of two, is what lies in it; accounts close."""
    root, told = tmp_path / "数据", tmp_path / "told.json"
    root.mkdir()
    _, options = layout(root)
    argv = [*options, "--json", told]
    every = [row for row in layouts.wanted(layout, "train")]
    every += layouts.wanted(layout, "val") if layout in layouts.SPLIT else []
    boxes = sum(map(len, every))
    assert dataset("merge", root, "-o", tmp_path / "all.json", *argv) == 0, capsys.readouterr().err
    made = boxes_of(tmp_path / "all.json")
    rounded = [[(n, *np.round(b).tolist()) for n, *b in rows] for rows in made.values()]
    assert sorted(rounded) == sorted([[(n, *map(float, b)) for n, *b in r] for r in every])
    rows = closed(told)
    assert rows["images"][1] == len(every) and rows["annotations"][1] == boxes
    assert "boxes" not in rows
    assert dataset("verify", tmp_path / "all.json", "--allow", "nothing_to_train") == 0
    if layout in layouts.SPLIT:
        capsys.readouterr()
        assert dataset("split", root, "-o", tmp_path / "no", *options) == 2
        assert "it has train, val; name one with --split" in capsys.readouterr().err
        options += ["--split", "train"]
    assert dataset("split", root, "-o", tmp_path / "new", "--json", told, *options) == 0
    rows, count = closed(told), len(layouts.wanted(layout, "train"))
    parts = [boxes_of(tmp_path / "new" / f"instances_{name}.json") for name in ("train", "val")]
    assert not parts[0].keys() & parts[1].keys() and sum(map(len, parts)) == count
    assert rows["images"][1] == count
    if "--classes" not in options:  # with a folder of another layout, whose names are the same
        other = tmp_path / "other"
        layouts.yolo_roboflow(other)
        assert dataset("merge", root, other, "-o", tmp_path / "two.json", "--json", told) == 0
        assert closed(told)["images"][1] == len(every) + len(layouts.ALL)


def test_a_split_or_merge_leaves_out_only_what_is_said(tmp_path, capsys):
    layouts.labelme(tmp_path / "a")
    (tmp_path / "a" / "a b.json").write_text("{")
    out, told = tmp_path / "new", tmp_path / "told.json"
    for command in (["split"], ["merge"], ["subset", "--count", "2"]):
        assert dataset(*command, tmp_path / "a", "-o", out / "x.json") == 2
        assert "a b.json: not complete JSON" in capsys.readouterr().err and not out.exists()
    assert dataset("split", tmp_path / "a", "-o", out, "--skip-bad", "--json", told) == 0
    assert "left out: " in capsys.readouterr().out
    assert closed(told)["label files"] == (1, 0)
    archive = tmp_path / "z.zip"
    archive.write_text("x")
    for command in ("split", "merge"):
        assert dataset(command, archive, "-o", out / "x.json") == 2
        assert "z.zip: an archive; unpack it first" in capsys.readouterr().err


def test_images_inside_annotation_files_of_two_folders_stay_two(tmp_path):
    for name in "ab":
        root = tmp_path / name / "x"
        root.mkdir(parents=True)
        layouts.labelme_embedded(root)
        for path in (root.parent / "elsewhere").iterdir():
            layouts.picture(path, seed=ord(name))
        for file, boxes in layouts.ALL.items():
            content = base64.b64encode((root.parent / "elsewhere" / file).read_bytes()).decode()
            layouts.labelme_json(root, file, boxes, f"C:/{file}", content)
    out = tmp_path / "out" / "all.json"
    assert dataset("merge", tmp_path / "a" / "x", tmp_path / "b" / "x", "-o", out) == 0
    data = json.loads(out.read_text())
    assert len({i["file_name"] for i in data["images"]}) == 2 * len(layouts.ALL)
    assert dataset("verify", out) == 0


def test_splits_with_the_same_image_names_are_merged(tmp_path):
    """As in many COCO folders: train/1.jpg and val/1.jpg are two pictures."""
    for split in ("train", "val"):
        layouts.picture(tmp_path / split / "1.jpg", seed=len(split))
        layouts.save(tmp_path / "annotations" / f"instances_{split}.json",
                     layouts.coco({"1.jpg": [("cat", 1, 2, 9, len(split) * 4)]}))  # fmt: skip
    assert dataset("merge", tmp_path, "-o", tmp_path / "out" / "all.json") == 0
    assert boxes_of(tmp_path / "out" / "all.json") == {
        "train/1.jpg": [("cat", 1, 2, 9, 20)], "val/1.jpg": [("cat", 1, 2, 9, 12)],
    }  # fmt: skip
    argv = ["split", tmp_path, "--split", "val", "--shares", "0.5,0.5"]
    assert dataset(*argv, "-o", tmp_path / "new" / "x") == 0
    assert dataset("verify", tmp_path / "new" / "x" / "instances_train.json") == 0
