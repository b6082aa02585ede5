"""Mutated annotation files and images: `verify` must agree with what training's loader does.

Every trial has its own seed, which a failure names: run it alone with `-k` or in `annotations`.
"""

import copy
import io
import json
import math
import os
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.data.images import BadImage, decode, read_image
from fcos_recipe.data.index import EPSILON, parse
from fcos_recipe.datasets.verify import annotations, fix
from fcos_recipe.datasets.verify.findings import KINDS, Findings
from fcos_recipe.datasets.verify.images import inspect, inspect_all
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation.results_file import read_annotations
from tests.helpers.coco_folders import coco, write

FILES, IMAGES = 2400, 700
UNFIXABLE = {"structure", "nothing_to_train", "box_format"}  # the user's to mend

ODD = [
    None, True, False, 0, 1, -1, 2, 0.5, 1.5, -0.0, 1e-6, 1e-300, 1e9, 1e20, 1e308, -1e308, 2**31,
    2**53 + 1, 2**63, 2**64, -(2**63), 10**400, math.nan, math.inf, -math.inf, "", "x", "7", " 10",
    "1e3", "0x10", "٣", "é", "e\u0301", "\0", "a\0b/c", "\ud800", "\x1b[2J", "../0.jpg",
    "/etc/passwd", "./0.jpg", "0.JPG", "a" * 5000, "d/" * 300, [], {}, [[]], [1, 2, 3],
    [1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 0, 0, 0], [5, 5, 0, 3], [5, 5, -3, 3], [-20, 3, 25, 5],
    [60, 3, 30, 5], [64, 3, 30, 5], [0, 0, 640, 480], [0, 0, 1e308, 1e308], [1e308, 0, 1e308, 3],
    [0, 0, 1e-7, 5], [1e15, 0, 1, 5], [2.0005, 3.4995, 7.1115, 8.5], [math.nan, 1, 2, 3],
    [1, 2, math.inf, 3], [1, 2, None, 4], ["1", 2, 3, 4], [True, 2, 3, 4], {"a": 1}, {"id": 1},
]  # fmt: skip
KEYS = ["id", "file_name", "width", "height", "image_id", "category_id", "bbox", "area", "iscrowd",
        "ignore", "segmentation", "name", "supercategory", "images", "annotations",
        "categories", "info"]  # fmt: skip


def mutate(dice: random.Random, data: dict) -> None:
    """One change somewhere in a COCO dictionary."""
    sections = [key for key in data if isinstance(data[key], list) and data[key]]
    kind = dice.choice(["value", "value", "value", "value", "own", "delete", "copy", "remove",
                        "replace", "top", "jitter", "jitter"])  # fmt: skip
    if kind == "top" or not sections:
        key = dice.choice(KEYS[-4:])
        if dice.random() < 0.5:
            data.pop(key, None)
        else:
            data[key] = copy.deepcopy(dice.choice(ODD))
        return
    section = data[dice.choice(sections)]
    i = dice.randrange(len(section))
    if kind == "remove":
        del section[i]
    elif kind == "replace":
        section[i] = copy.deepcopy(dice.choice(ODD))
    elif kind == "copy":
        copied = copy.deepcopy(section[i])
        if isinstance(copied, dict) and dice.random() < 0.5:
            key = dice.choice(list(copied) or ["id"])
            copied[key] = copy.deepcopy(dice.choice(ODD))
        section.insert(dice.randrange(len(section) + 1), copied)
    elif not isinstance(section[i], dict) or not section[i]:
        section[i] = copy.deepcopy(dice.choice(ODD))
    elif kind == "delete":
        del section[i][dice.choice(list(section[i]))]
    elif kind == "jitter":
        box = section[i].get("bbox")
        if isinstance(box, list) and box:
            k = dice.randrange(len(box))
            any_size = dice.gauss(0, 1) * 10 ** dice.randint(-7, 12)
            box[k] = dice.choice([dice.uniform(-30, 90), any_size])
        elif isinstance(section[i].get("id"), int):
            section[i]["id"] = dice.choice([7, 3, 10, 20, 30, 100, str(section[i]["id"])])
    else:
        known = kind == "own" or dice.random() < 0.7
        key = dice.choice(list(section[i]) if known else KEYS)
        section[i][key] = copy.deepcopy(dice.choice(ODD))


def mutated(seed: int) -> bytes:
    """The bytes of one mutated annotation file."""
    dice = random.Random(seed)
    classes = (7, 3)[: dice.randint(1, 2)]
    data = coco(images=dice.randint(1, 4), boxes=dice.randint(0, 3), classes=classes)
    for annotation in data["annotations"]:
        if dice.random() < 0.2:
            annotation["iscrowd"] = 1
        for key in ("area", "iscrowd", "id"):
            if dice.random() < 0.1:
                del annotation[key]
    for _ in range(dice.choice([0, 1, 1, 1, 2, 3, 6])):
        mutate(dice, data)
    try:
        text = json.dumps(data, ensure_ascii=dice.random() < 0.5).encode()
    except UnicodeEncodeError:  # a lone surrogate
        text = json.dumps(data).encode()
    if dice.random() < 0.2:
        text = mutated_bytes(dice, text)
    if dice.random() < 0.03:
        text = dice.choice([text.decode(errors="replace").encode("utf-16"), b"\xef\xbb\xbf" + text])
    return text


def mutated_bytes(dice: random.Random, data: bytes) -> bytes:
    """Damage to bytes."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        i = dice.randrange(len(data)) if data else 0
        kind = dice.choice(["flip", "cut", "insert", "zero", "delete", "digit"])
        if kind == "cut":
            del data[i:]
        elif kind == "insert":
            data[i:i] = dice.randbytes(dice.choice([1, 4, 40]))
        elif kind == "delete":
            del data[i : i + dice.choice([1, 2, 30])]
        elif data and kind == "flip":
            data[i] ^= 1 << dice.randrange(8)
        elif data and kind == "zero":
            end = min(i + dice.choice([1, 8, 64]), len(data))
            data[i:end] = bytes(end - i)
        elif data:
            data[i] = ord(dice.choice("0123456789-.e"))
    return bytes(data)


def stated(text: bytes) -> dict[int, Counter]:
    """Image id -> boxes (class, crowd, corners) with an area as the JSON states them."""
    data = json.loads(text.decode(errors="replace"))
    classes = [int(c["id"]) for c in data["categories"]]
    boxes = {int(image["id"]): Counter() for image in data["images"]}
    for a in data["annotations"]:
        if a.get("ignore"):
            continue
        x, y, w, h = a["bbox"]
        if min(x + w - x, y + h - y) <= EPSILON:
            continue  # box_empty, a warning: there is nothing to train on
        corners = np.float32([round(v, 3) for v in (x, y, x + w, y + h)]).tolist()
        row = (classes.index(int(a["category_id"])), int(bool(a.get("iscrowd"))), *corners)
        boxes[int(a["image_id"])][row] += 1
    return boxes


def loaded(path, folder) -> dict[int, Counter]:
    """The same as training's data set has it."""
    fields = ["image", "gt_bbox", "gt_class", "is_crowd"]
    dataset = COCODataSet(str(folder), "", path.name, fields, load_crowd=True, allow_empty=True)
    dataset.parse_dataset()
    boxes = {}
    for i in range(len(dataset)):
        record = dataset.record(i)
        if "gt_bbox" not in record:
            raise UserError("no annotations")  # as the reader says
        rows = zip(record["gt_class"].ravel(), record["is_crowd"].ravel(), record["gt_bbox"])
        boxes[int(record["im_id"][0])] = Counter(
            (int(label), int(crowd), *box.tolist()) for label, crowd, box in rows
        )
    return boxes


def refusals(path) -> list[str]:
    """What training's and evaluation's parsers say against a file."""
    said = []
    for reads in (parse, read_annotations):
        try:
            result = reads(str(path))
        except UserError as error:
            said.append(str(error))
        else:
            if reads is parse:
                warned = ("annotations marked ignore", "degenerate boxes")
                said += [k for k in result[1]["counts"] if k not in warned]
    return said


def examine(text: bytes):
    found = Findings()
    content = annotations.decode("x.json", text, found)
    if content is not None:
        annotations.check(content, found, {"allow_empty": True})
    return content, found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    write(path, coco())
    return path


def trial(seed: int, folder) -> str:
    """One mutated file; what came of it."""
    text = mutated(seed)
    path = folder / "annotations.json"
    path.write_bytes(text)
    content, found = examine(text)
    errors = found.count(True)
    said = refusals(path)
    assert errors or not said, f"training or evaluation refuses what has no error: {said}"
    json.dumps(found.items).encode()
    try:
        boxes = loaded(path, folder)
    except UserError:
        boxes = None  # as `refusals`, or not one of the images is there
    if not errors:
        names = {image.file_name for image in content.entries["images"].rows}
        if all(os.path.isfile(folder / name) for name in names):
            assert boxes == stated(text)
            return "loaded"
        return "sound"
    if content is None:
        return "refused"
    parts, changes, left = fix.fix(content, found, {"allow_empty": True})
    copy = b"".join(parts)
    again = examine(copy)[1]
    assert again.count(True) == left.count(True), (again.items, left.items)
    remaining = {kind for kind in left.items if KINDS[kind][0]}
    assert remaining <= UNFIXABLE, (changes, left.items)
    if not remaining:
        assert changes
        path.write_bytes(copy)
        assert refusals(path) == []
        return "fixed"
    return "left"


def test_annotations(folder):
    """Errors are found where training or evaluation balks; else the boxes are those of the JSON."""
    ends = Counter()
    for seed in range(FILES):
        try:
            ends[trial(seed, folder)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}\n{mutated(seed)[:2000]}") from error
    # the fuzz reaches all ends
    assert min(ends[end] for end in ("loaded", "refused", "fixed")) > FILES // 20, ends


def encodings() -> list[bytes]:
    """Small sound images of many kinds."""
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 255, (6, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    made = []
    for kind, mode, options in [
        ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"exif": exif}), ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}), ("PNG", "P", {}), ("PNG", "1", {}), ("PNG", "I;16", {}),
        ("PNG", "RGB", {"save_all": True, "append_images": [image]}), ("GIF", "P", {}),
        ("GIF", "P", {"save_all": True, "append_images": [image.convert("L")]}),
        ("BMP", "RGB", {}), ("TIFF", "RGB", {}), ("TIFF", "L", {"compression": "tiff_lzw"}),
        ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("PPM", "RGB", {}),
        ("PPM", "L", {}),
    ]:  # fmt: skip
        file = io.BytesIO()
        image.convert("I" if mode == "I;16" else mode).convert(mode).save(file, kind, **options)
        made.append(file.getvalue())
    return made


def test_images(tmp_path):
    """An error is told exactly where training would skip the image, or where it is cut off.

    First in processes of their own, as the command does it: OpenCV 4.11 crashes on some.
    """
    sound = encodings()
    paths = []
    for seed in range(IMAGES):
        dice = random.Random(seed)
        data = sound[seed] if seed < len(sound) else mutated_bytes(dice, dice.choice(sound))
        paths.append(tmp_path / f"{seed}.{dice.choice(['jpg', 'png', 'gif', 'tif'])}")
        paths[-1].write_bytes(data)
    ends = Counter()
    for seed, result in enumerate(inspect_all(list(map(str, paths)))):
        kinds = {kind for kind, _ in result.notes}
        errors = {kind for kind in kinds if KINDS[kind][0]}
        if errors == {"image_crashes"}:
            ends["crashes"] += 1
            continue
        try:
            image = decode({"im_file": str(paths[seed])})["image"]
        except BadImage as error:
            assert len(errors) == 1 and result.size is None, (seed, error, result)
            ends["skipped"] += 1
        else:
            assert errors <= {"image_truncated"}, (seed, result)
            assert result.size == image.shape[:2], (seed, result)
            ends["read"] += 1
        if seed < len(sound) and paths[seed].read_bytes()[:3] != b"GIF":  # not before OpenCV 4.12
            assert not errors, (seed, result)
    assert min(ends["read"], ends["skipped"]) > IMAGES // 10, ends
    assert ends["crashes"] < IMAGES // 50, ends


def test_images_whose_path_is_hostile(tmp_path):
    for name in ("a\0b.jpg", "x" * 5000, "d/" * 3000, "", "\ud800.jpg"):
        path = str(tmp_path / name) if name else str(tmp_path)
        assert {KINDS[kind][0] for kind, _ in inspect(path).notes} == {True}, name
        with pytest.raises(BadImage):
            read_image(path)
