"""Nothing is lost: random data sets through convert, verify, merge and split.

Each data set is written with faults that are counted while they are made. Accounts must close, name
every loss, and agree with these counts; boxes must be those that were written.
"""

import json
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.data.images import BadImage, read_image
from fcos_recipe.datasets.account import Account
from fcos_recipe.datasets.verify import images as image_checks
from fcos_recipe.errors import UserError
from tests.helpers.any_image import any_image
from tests.helpers.tool_exports import CALLED, CLASSES, WRITERS

NAMES = ["a", "Ä b", "图像", "x.y", "100%", "IMG_0001", "a'b", "-c", "ü" * 40]
TIMES = 30


@dataclass
class Made:
    """What was written for one split, and how to convert it."""

    argv: list = field(default_factory=list)
    boxes: dict = field(default_factory=dict)  #: path of image -> [class, x1, y1, x2, y2]
    seen: Counter = field(default_factory=Counter)
    lost: Counter = field(default_factory=Counter)
    bad: bool = False  #: whether something is lost that --skip-bad must allow


def new_image(rng, folder, number, good=True):
    """Write an image of any kind; returns its path, name without ending, and decoded size."""
    while True:
        kind, data, _ = any_image(rng)
        ending = rng.choice([f".{kind}", f".{kind.upper()}", "", ".jfif"])
        stem = f"{rng.choice(NAMES)}{number}"
        path = folder / f"{stem}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if good else b"no image")
        if not good and not ending:  # else it is not meant as one
            path = path.rename(folder / f"{stem}.png")
        try:
            return path, stem, read_image(str(path)).shape[:2]
        except BadImage:
            if not good:
                return path, stem, (9, 9)
            path.unlink()


def new_boxes(rng, size, whole):
    """Boxes x1, y1, x2, y2 in an image; `whole`: with integer corners."""
    found = []
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        corners = []
        for side in (size[1], size[0]):
            low = rng.uniform(0, side - 1.5)
            high = rng.uniform(low + 1, side)
            corners.append((int(low), max(int(high), int(low) + 1)) if whole else (low, high))
        (x1, x2), (y1, y2) = corners
        found.append((rng.choice(CLASSES), x1, y1, x2, y2))
    return found


def yolo(rng, root, split):
    made = Made(["--from", "yolo", root / f"{split}.yaml", "--split", split])
    beside = rng.random() < 0.3  # labels beside the images
    images = root / split / ("pictures" if beside else "images")
    (root / split / "labels").mkdir(parents=True)
    text = f"{split}: ../{split}/images\n"  # as Roboflow writes it
    text = f"path: {root / split}\n{split}: pictures\n" if beside else text
    (root / f"{split}.yaml").write_text(f"{text}names: {json.dumps(CLASSES)}\n")
    for number in range(rng.randrange(1, 6)):
        folder = images / rng.choice(["", "", "s", "s/t"])
        good = rng.random() < 0.9 or not number
        path, stem, (height, width) = new_image(rng, folder, number, good)
        made.seen["images"] += 1
        rows = new_boxes(rng, (height, width), False) if good else []
        lines = []
        for name, x1, y1, x2, y2 in rows:
            values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height,
                      (x2 - x1) / width, (y2 - y1) / height]  # fmt: skip
            gap = rng.choice([" ", "\t", "  "])
            lines.append(gap.join([str(CLASSES.index(name)), *map(repr, values)]))
        bad = rng.choice([[], [], ["9 .5 .5 .1 .1"], ["0 nan .5 .1 .1", "0 .5 .5 0 0"], ["x"]])
        lines += bad if good else ["0 .5 .5 .1 .1"]
        made.seen["boxes"] += len(lines)
        made.lost["boxes"] += len(lines) - len(rows)
        made.bad |= len(lines) > len(rows) or not good
        made.lost["images"] += not good
        if good:
            made.boxes[path] = rows
        if lines or rng.random() < 0.5 or not number:
            made.seen["label files"] += 1
            made.lost["label files"] += not good
            place = folder if beside else root / split / "labels" / folder.relative_to(images)
            place.mkdir(parents=True, exist_ok=True)
            end = rng.choice(["\n", "\r\n", "\r"])
            text = rng.choice(["", "\ufeff"]) + rng.choice(["", end]) + end.join(lines)
            (place / f"{stem}.txt").write_bytes((text + rng.choice(["", end * 2])).encode())
    for number in range(rng.choice([0, 0, 2])):
        (root / split / "labels" / f"alone{number}.txt").write_text("0 .5 .5 .1 .1\n" * number)
        if not beside:
            for counter in (made.seen, made.lost):
                counter.update({"label files": 1, "boxes": number})
            made.bad |= number > 0
    return made


def voc(rng, root, split):
    """Annotations/ and JPEGImages/ nested or XML beside images; a list of names or none."""
    made = Made(["--from", "voc", root / split])
    root.mkdir(exist_ok=True)
    state = root / "origin"
    if not state.exists():
        state.write_text(rng.choice("01"))
    origin = int(state.read_text())
    whole = origin == 1 or rng.random() < 0.5
    if whole:
        made.argv += ["--origin", str(origin)]
    root /= split  # the origin is that of both
    beside, listed = rng.random() < 0.3, [] if rng.random() < 0.3 else None
    images, labels = (root / ("x" if beside else n) for n in ("JPEGImages", "Annotations"))
    images.mkdir(parents=True)
    for number in range(rng.randrange(1, 6)):
        good = rng.random() < 0.9
        folder = rng.choice(["", "", "s", "s/t"])
        path, stem, size = new_image(rng, images / folder, number, good)
        rows = new_boxes(rng, size, whole) if good else []
        items = "".join(item(name, box, origin, rng) for name, *box in rows)
        lone = "<object><name>dog</name></object>"
        bad = rng.choice(["", "", item("dog", (5, 5, 2, 2), 0, rng), lone])
        bad = bad if good else item("dog", (1, 1, 2, 2), 0, rng) * 2
        count = bad.count("<object>")
        made.seen.update({"label files": 1, "images": 1, "boxes": len(rows) + count})
        made.lost.update({"images": not good, "label files": not good, "boxes": count})
        made.bad |= count > 0
        text = (f"<annotation><filename>{rng.choice(['C:/x/', ''])}{path.name}</filename>"
                f"{items}<!--<object>-->{bad}</annotation>")  # fmt: skip
        (labels / folder).mkdir(parents=True, exist_ok=True)
        (labels / folder / f"{stem}.xml").write_text(text, rng.choice(["utf-8", "utf-16"]))
        if good and listed and rng.random() < 0.2:  # in no list
            made.lost.update({"images": 1, "boxes": len(rows)})
            continue
        if listed is not None and good:
            name, pair = os.path.join(folder, stem), f"./{images.name}/{folder}/{path.name} a.xml"
            forms = [name, f"{name} 1"] + [pair] * (path.name != stem)
            listed.append(rng.choice(forms))
        if good:
            made.boxes[path] = rows
    for number in range(rng.choice([0, 0, 2])):  # without an XML file
        new_image(rng, images / "more", f"lone{number}")
        made.seen["images"] += 1
        made.lost["images"] += 1
    if listed:
        made.argv += ["--split", split]
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        (lists / f"{split}.txt").write_text("\n".join(listed))
        made.seen["names in lists"] = len(listed)
    return made


def item(name, box, origin, rng):
    name = name.replace("&", "&amp;").replace("<", "&lt;")
    x1, y1, x2, y2 = box
    keys = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + origin, y1 + origin, x2, y2))
    inner = "".join(f"<{key}>{value!r}</{key}>" for key, value in keys)
    more = rng.choice(["", "<truncated>1</truncated>", "<difficult>1</difficult>"])
    return f"<object>\n<name>{name}</name>{more}<bndbox>{inner}</bndbox></object>"


def coco(rng, root, split):
    path, images = root / f"{split}.json", root / split
    made = Made(["--from", "coco", path, "--images", images])
    data = {"images": [], "annotations": [], "categories": []}
    data["categories"] = [{"id": f"c{k}", "name": name} for k, name in enumerate(CLASSES)]
    for number in range(rng.randrange(1, 6)):
        good = rng.random() < 0.9
        file, _, size = new_image(rng, images / rng.choice(["", "s"]), number, good)
        id = rng.choice([f"i{number}", number])
        entry = {"id": id, "file_name": str(file.relative_to(images))}
        data["images"].append(entry)
        rows = new_boxes(rng, size, False) if good else [("dog", 0, 0, 1, 1)]
        for name, x1, y1, x2, y2 in rows:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            corners = {"segmentation": [[x1, y1, x2, y1, x2, y2]]}
            data["annotations"].append({"image_id": entry["id"], **rng.choice([box, corners]),
                                        "category_id": f"c{CLASSES.index(name)}"})  # fmt: skip
        lone = rng.choice(
            [
                [],
                [],
                [{"image_id": "none", "category_id": "c0"}],
                [{"image_id": entry["id"], "category_id": "c0", "bbox": [1, 1, 0, 2]}],
            ]
        )
        data["annotations"] += lone
        made.seen.update({"images": 1, "boxes": len(rows) + len(lone)})
        made.lost.update({"images": not good, "boxes": len(lone) + (0 if good else len(rows))})
        made.bad |= bool(lone) or not good
        if good:
            made.boxes[file] = rows
    for number in range(rng.choice([0, 0, 2]) if made.boxes else 0):  # not in the file
        new_image(rng, next(iter(made.boxes)).parent, f"lone{number}")
        made.seen["images"] += 1
        made.lost["images"] += 1
    path.write_text(json.dumps(data))
    return made


def of_a_tool(kind):
    """What makes a data set of one of `WRITERS`, with images that have no annotations."""

    def make(rng, root, split):
        folder = root / split
        made = Made(["--from", kind.removesuffix("3"), folder, "--images", folder])
        rows = []
        for number in range(rng.randrange(1, 6)):
            good = rng.random() < 0.9 or not number
            place = folder / rng.choice(["", "", "s", "s/t"])
            path, _, size = new_image(rng, place, number, good)
            lone = good and number and rng.random() < 0.2
            boxes = new_boxes(rng, size, False) if good else [("dog", 0.5, 0.5, 1, 1)] * 2
            boxes = [(CALLED.get(kind, str)(name), *box) for name, *box in boxes]
            made.seen.update({"images": 1, "boxes": 0 if lone else len(boxes)})
            made.lost.update({"images": bool(lone or not good)})
            if lone:
                continue
            rows.append((path, size, boxes))
            made.bad |= not good
            if good:
                made.boxes[path] = boxes
            else:
                made.lost["boxes"] += len(boxes)
        if not any(boxes for *_, boxes in rows):  # no object tells what the text files are
            path, _, size = new_image(rng, folder, 9)
            made.boxes[path] = [(CALLED.get(kind, str)("dog"), 0, 0, 2, 2)]
            rows.append((path, size, made.boxes[path]))
            made.seen.update({"images": 1, "boxes": 1})
        if kind == "dota":
            for counter in (made.seen, made.lost):
                counter["rotations"] += sum(map(len, made.boxes.values()))
        WRITERS[kind](folder, rows)
        return made

    return make


def dataset(*argv):
    return run("dataset", [str(a) for a in argv])


def account(path):
    """item -> (seen, written, number left out), which must add up."""
    rows = json.loads(path.read_text())["account"]
    for row in rows:
        assert row["seen"] == row["written"] + sum(row["left_out"].values()), row
        assert all(why and n > 0 for why, n in row["left_out"].items()), row
    return {r["item"]: (r["seen"], r["written"], sum(r["left_out"].values())) for r in rows}


def read(path, folder):
    """Absolute path of the image -> sorted [class, x1, y1, x2, y2], without our code."""
    data = json.loads(path.read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    files = {i["id"]: os.path.realpath(folder / i["file_name"]) for i in data["images"]}
    found = {file: [] for file in files.values()}
    assert len(found) == len(data["images"])
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        found[files[a["image_id"]]].append((names[a["category_id"]], x, y, x + w, y + h))
    return found


def same(found, wanted):
    assert set(found) == {os.path.realpath(path) for path in wanted}
    for path, rows in wanted.items():
        rows, mine = sorted(rows), sorted(found[os.path.realpath(path)])
        assert [row[0] for row in mine] == [row[0] for row in rows]
        assert np.allclose([r[1:] for r in mine], [r[1:] for r in rows], atol=1e-3), path


MAKERS = {"yolo": yolo, "voc": voc, "coco": coco, **{kind: of_a_tool(kind) for kind in WRITERS}}


@pytest.mark.parametrize("kind", MAKERS)
def test_random_data_sets_lose_nothing(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        image_checks, "inspect_all", lambda paths, *_: [image_checks.inspect(p) for p in paths]
    )
    total = 0
    for seed in range(TIMES if kind in ("yolo", "voc", "coco") else TIMES // 3):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        outs, folders, wanted = [], [], {}
        parts = {split: MAKERS[kind](rng, root, split) for split in ("train", "val")}
        for split, made in parts.items():
            out, told = root / f"{split}.out.json", root / "told.json"
            argv = [*made.argv, "-o", out, "--json", told, "--force"]
            code = dataset("convert", *argv)
            text = capsys.readouterr().err
            assert code == (2 if made.bad else 0), (seed, text)
            assert "please report" not in text and "Traceback" not in text
            assert dataset("convert", *argv, "--skip-bad") == 0, (seed, capsys.readouterr().err)
            rows = account(told)
            for name in made.seen:
                numbers = (made.seen[name], made.seen[name] - made.lost[name], made.lost[name])
                assert rows.get(name, (0, 0, 0)) == numbers, (seed, name, rows, capsys.readouterr())
            said = capsys.readouterr().out
            folder = Path(said.split("relative to it): ")[1].strip())
            same(read(out, folder), made.boxes)
            wanted |= made.boxes
            outs.append(out)
            folders.append(folder)
            code = dataset("verify", out, "--images", folder, "--allow", "nothing_to_train")
            assert code == (0 if made.boxes else 1), capsys.readouterr().out
        whole, told = root / "all.json", root / "told.json"
        if kind in WRITERS:  # both splits by one command
            argv = [root, "--from", kind.removesuffix("3"), "--skip-bad"]
            assert dataset("convert", *argv, "-o", root / "both", "--json", told) == 0
            rows = account(told)
            for name in parts["train"].seen:
                seen, lost = (sum(getattr(made, key)[name] for made in parts.values())
                              for key in ("seen", "lost"))  # fmt: skip
                assert rows.get(name, (0, 0, 0)) == (seen, seen - lost, lost), (seed, name)
            capsys.readouterr()
            split = {name: read(root / "both" / f"instances_{name}.json", root)
                     for name in ("train", "val")}  # fmt: skip
            for name, made in parts.items():
                same(split[name], made.boxes)
        assert dataset("merge", *outs, "-o", whole, "--images", *folders, "--json", told) == 0
        rows = account(told)
        boxes = sum(map(len, wanted.values()))
        assert rows["images"] == (len(wanted), len(wanted), 0)
        assert rows.get("annotations", (0, 0, 0)) == (boxes, boxes, 0)
        base = Path(os.path.commonpath(folders))
        same(read(whole, base), wanted)
        assert dataset("split", whole, "-o", root / "new", "--json", told) == 0
        account(told)
        parts = [read(root / "new" / f"instances_{name}.json", base) for name in ("train", "val")]
        assert not parts[0].keys() & parts[1].keys()
        same({**parts[0], **parts[1]}, wanted)
        capsys.readouterr()
        total += boxes
    assert total > TIMES // 2


def test_an_account_that_does_not_close_is_refused():
    one = Account()
    one.seen["boxes"] = 3
    one.written["boxes"] = 1
    one.leave_out("boxes", "too small")
    with pytest.raises(UserError, match="3 boxes came in, but 1 would be written and 1 left out"):
        one.check("x")
    one.leave_out("boxes", "too large")
    one.check("x")
    assert one.lines()[1].split(maxsplit=3) == ["boxes", "3", "1", "2 (1 too small; 1 too large)"]
