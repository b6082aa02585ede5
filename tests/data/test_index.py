"""The annotation index: its content, and that a stale, damaged or partial cache is not used."""

import json
import os
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

from fcos_recipe.data import index as module
from fcos_recipe.data.index import ARRAYS, open_index, parse
from fcos_recipe.errors import UserError
from tests.helpers.coco_folders import coco, write


def place(path):
    return path.parent / ".fcos_index" / f"{path.name}.idx"


def forbid_parsing(monkeypatch):
    def refuse(path):
        raise AssertionError(f"{path} is parsed although its index is good")

    monkeypatch.setattr(module, "parse", refuse)


def same(one, two):
    assert (one.class_names, one.counts) == (two.class_names, two.counts)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_content_order_and_rounding(tmp_path):
    data = coco(images=3, classes=(7, 3))
    data["images"].reverse()
    data["annotations"].reverse()
    data["annotations"][0].update(bbox=[0.0005, 1.00049999, 12.3456, 9.9995], iscrowd=1)
    index = open_index(write(tmp_path, data, images=False))
    assert index.image_id.tolist() == [10, 20, 30]
    assert index.file_names() == ["0.jpg", "1.jpg", "2.jpg"] and index.file_name(1) == "1.jpg"
    assert index.size.tolist() == [[48, 64]] * 3
    assert index.category_id.tolist() == [7, 3] and index.class_names == ["class 7", "class 3"]
    assert index.box_start.tolist() == [0, 2, 4, 6]
    assert index.label.tolist() == [1, 0] * 3  # file order within an image
    assert index.crowd.tolist() == [0, 0, 0, 0, 1, 0]
    rounded = [round(x, 3) for x in (0.0005, 1.00049999, 0.0005 + 12.3456, 1.00049999 + 9.9995)]
    assert index.box[4].tolist() == np.float32(rounded).tolist()
    assert index.box.dtype == np.float32 and not index.counts


def test_rounding_is_pythons():
    rng = np.random.default_rng(1)
    values = np.concatenate(
        [rng.uniform(0, 700, 20_000), rng.integers(0, 700_000, 20_000) / 1000 + 0.0005]
    )
    expected = [round(x, 3) for x in values.tolist()]
    assert module._round3(values).tolist() == expected
    assert np.round(values, 3).tolist() != expected  # what it is there for


def test_what_is_left_out_is_counted(tmp_path):
    data = coco(images=1, boxes=1)
    good = data["annotations"][0]
    del good["area"], good["iscrowd"]
    for change in (
        {"bbox": [5, 5, 0, 9]},
        {"bbox": [5, 5, -4, 9]},
        {"area": 0},
        {"bbox": [0, 0, 0, 0]},
        {"bbox": None},
        {"ignore": 1},
        {"image_id": 999},
    ):
        data["annotations"].append({**good, "area": 1.0, **change})
    data["images"] += [dict(data["images"][0]), {"id": 5, "file_name": "b", "width": -1}]
    index = open_index(write(tmp_path, data, images=False))
    assert index.box.tolist() == [[2.5, 3.25, 12.5, 11.25]] and len(index) == 1
    assert index.counts == {
        "repeated image entries": 1,
        "images with a negative or absurd size": 1,
        "annotations of images that are not listed": 1,
        "annotations marked ignore": 1,
        "annotations without a box": 2,
        "degenerate boxes": 3,
    }


def test_ids_may_be_strings_of_digits_and_sizes_absent(tmp_path):
    data = coco(images=2, boxes=1)
    for image in data["images"]:
        image["id"] = f"{image['id']:012d}"
        del image["height"], image["width"]
    for annotation in data["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    data["images"][0]["id"] = 10
    index = open_index(write(tmp_path, data, images=False))
    assert index.image_id.tolist() == [10, 20] and index.size.tolist() == [[0, 0]] * 2
    assert len(index.box) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d["annotations"][1].update(category_id=99), "annotation 101 .*category_id 99"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), r"annotations\[1\]\.bbox"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, None, 4]), r"annotations\[1\]\.bbox"),
        (lambda d: d["annotations"][0].pop("image_id"), "image_id"),
        (lambda d: d["images"][1].update(id="left"), r"images\[1\]\.id: 'left'"),
        (lambda d: d["images"][1].update(id=2**70), r"images\[1\]\.id"),
        (lambda d: d["images"][1].update(id=10), "id 10 belongs to 0.jpg and to 1.jpg"),
        (lambda d: d["images"][1].pop("file_name"), "file_name"),
        (lambda d: d["categories"][1].update(id=7), "categories: an id occurs twice"),
        (lambda d: d.pop("images"), "images"),
        (lambda d: d.update(images={}), "images"),
    ],
)
def test_bad_files_are_refused_in_words(tmp_path, change, told):
    data = coco()
    change(data)
    path = write(tmp_path, data, images=False)
    with pytest.raises(UserError, match=told) as error:
        open_index(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "nonsense", '{"images": [NaN]}', "[" * 10_000])
def test_what_is_no_coco_json(tmp_path, text):
    path = write(tmp_path, text, images=False)
    with pytest.raises(UserError, match="annotations.json"):
        open_index(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such annotation file"):
        open_index(tmp_path / "gone.json")


def test_second_opening_maps_the_index(tmp_path, monkeypatch):
    path = write(tmp_path, coco(), images=False)
    first = open_index(path)
    forbid_parsing(monkeypatch)
    second = open_index(path)
    same(first, second)
    assert not second.box.flags.writeable


def test_a_touched_or_changed_file_is_parsed_again(tmp_path):
    path = write(tmp_path, coco(), images=False)
    first, written = open_index(path), place(path).read_bytes()
    os.utime(path, (1, 1))
    same(first, open_index(path))
    assert place(path).read_bytes() != written
    # Same length, same modification time, other content: only the time of change tells.
    stat = os.stat(path)
    path.write_text(path.read_text().replace("class 7", "class 8"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(path).st_size == stat.st_size
    assert open_index(path).class_names == ["class 8", "class 3"]


def lies(header: dict, arrays: dict[str, np.ndarray]):
    """Indexes with a right checksum whose header or arrays are not what the format promises."""
    for field, values in {"stat": [None, "x", [1], [10**400]], "meta": [None, [], {}],
                          "arrays": [None, [], {}, {"box": 1}]}.items():  # fmt: skip
        yield from ({**header, field: value} for value in values)
    for field, values in {"counts": [[1], {"a": "b"}], "class_names": [None, ["one"], [1, 2], "ab"],
                          "has_annotations": ["yes", None]}.items():  # fmt: skip
        yield from ({**header, "meta": {**header["meta"], field: value}} for value in values)
    for name, (dtype, shape, start) in header["arrays"].items():
        for other in (["|O", shape, start], ["<f8", shape, start], [dtype, [10**12], start],
                      [dtype, [-1], start], [dtype, shape, 10**12], [dtype, [1], start], [1, 2, 3],
                      [dtype, shape, -64], ["x" * 999, shape, start]):  # fmt: skip
            yield {**header, "arrays": {**header["arrays"], name: other}}
    for name, values in {"label": [-1, 2, 10**6], "crowd": [2], "box": [np.nan, np.inf, 1e30],
                         "box_start": [-1, 10**9], "name_start": [-1, 10**9], "size": [-1],
                         "name_bytes": [255]}.items():  # fmt: skip
        for value in values:
            changed = arrays[name].copy()
            changed.flat[len(changed.flat) // 2] = value
            yield {**arrays, name: changed}


def test_an_index_from_elsewhere_is_not_believed(tmp_path):
    path = write(tmp_path, coco(), images=False)
    first, content = open_index(path), place(path).read_bytes()
    length = int.from_bytes(content[16:24], "little")
    header, body = json.loads(content[24 : 24 + length]), content[module._aligned(24 + length) :]
    arrays = {name: getattr(first, name) for name in ARRAYS}
    tried = 0
    for lie in lies(header, arrays):
        place(path).unlink()
        if "label" in lie:
            module._write(place(path), header["stat"], header["meta"], lie)
        else:
            text = json.dumps(lie).encode()
            rest = len(text).to_bytes(8, "little") + text
            rest += bytes(module._aligned(16 + len(rest)) - 16 - len(rest)) + body
            place(path).write_bytes(module.FORMAT + zlib.crc32(rest).to_bytes(8, "little") + rest)
        assert place(path).read_bytes() != content
        same(first, open_index(path))
        assert place(path).read_bytes() == content, lie
        tried += 1
    assert tried > 100
    for kind in (os.mkfifo, os.mkdir):  # then the next place is used
        place(path).unlink(missing_ok=True)
        kind(place(path))
        same(first, open_index(path))


def test_damaged_indices_are_rebuilt(tmp_path):
    path = write(tmp_path, coco(), images=False)
    first = open_index(path)
    good = place(path).read_bytes()
    rng = np.random.default_rng(3)
    for trial in range(200):
        bad = bytearray(good)
        if trial % 4 == 0:
            bad = bad[: int(rng.integers(0, len(bad)))]
        else:
            bad[int(rng.integers(0, len(bad)))] ^= 1 << int(rng.integers(0, 8))
        place(path).unlink()  # `first` maps the old file
        place(path).write_bytes(bad)
        same(first, open_index(path))
        assert place(path).read_bytes() == good


def test_read_only_data_directory(tmp_path, cache, monkeypatch):
    folder = tmp_path / "data"
    path = write(folder, coco(), images=False)
    folder.chmod(0o555)
    try:
        first = open_index(path)
        assert not place(path).exists()
        assert len(list(cache.rglob("*.idx"))) == 1
        with monkeypatch.context() as patch:
            forbid_parsing(patch)
            same(first, open_index(path))
        # No cache directory either: the temporary directory; nothing at all: memory.
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
        monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
        same(first, open_index(path))
        assert len(list((tmp_path / "temporary").rglob("*.idx"))) == 1
        monkeypatch.setattr(module.tempfile, "gettempdir", lambda: "/proc/nowhere")
        same(first, open_index(path))
    finally:
        folder.chmod(0o755)


def test_concurrent_starts_parse_once(tmp_path):
    path = write(tmp_path, coco(images=3000, boxes=5), images=False)
    code = (
        "import sys, fcos_recipe.data.index as m\n"
        "parse = m.parse\n"
        "def told(path):\n    print('parsed', flush=True)\n    return parse(path)\n"
        "m.parse = told\n"
        "print(len(m.open_index(sys.argv[1]).box))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    out = "".join(process.communicate(timeout=60)[0] for process in running)
    assert out.count("15000") == 6 and out.count("parsed") == 1


def test_killed_builder_leaves_no_lock_and_no_half_index(tmp_path):
    path = write(tmp_path, coco(), images=False)
    code = (
        "import sys, time, fcos_recipe.data.index as m\n"
        "def hang(path):\n    print('building', flush=True)\n    time.sleep(60)\n"
        "m.parse = hang\n"
        "m.open_index(sys.argv[1])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "building\n"
    process.kill()
    process.communicate()
    start = time.monotonic()
    assert len(open_index(path)) == 4
    assert time.monotonic() - start < 5


@pytest.mark.stock
def test_boxes_are_stocks_on_coco_mini(shared):
    """Image order, classes and float32 boxes against pycocotools and stock's own rounding."""
    coco_api = pytest.importorskip("pycocotools.coco")
    for split in ("train", "val"):
        path = shared / f"data/coco_mini/annotations/instances_{split}2017.json"
        arrays, meta = parse(str(path))
        api = coco_api.COCO(str(path))
        assert arrays["image_id"].tolist() == sorted(api.getImgIds())
        assert arrays["category_id"].tolist() == api.getCatIds()
        assert meta["class_names"] == [c["name"] for c in api.loadCats(api.getCatIds())]
        for row, image_id in enumerate(arrays["image_id"].tolist()):
            annotations = api.loadAnns(api.getAnnIds(imgIds=[image_id]))
            use = slice(*arrays["box_start"][row : row + 2])
            box = [a["bbox"] for a in annotations]
            box = [[round(v, 3) for v in (x, y, x + w, y + h)] for x, y, w, h in box]
            assert arrays["box"][use].tolist() == np.float32(box).reshape(-1, 4).tolist()
            classes = arrays["category_id"][arrays["label"][use]].tolist()
            assert classes == [a["category_id"] for a in annotations]
            assert arrays["crowd"][use].tolist() == [a["iscrowd"] for a in annotations]


def test_random_files_end_in_arrays_or_in_words(tmp_path):
    """Mutated annotation files: never a traceback."""
    rng = np.random.default_rng(11)
    odd = [None, -1, 0, 1e308, "x", [], {}, True, 2**64, "é", 1.5]
    refused = 0
    for trial in range(400):
        data = coco()
        for _ in range(int(rng.integers(1, 4))):
            section = data[str(rng.choice(list(data)))]
            entry = section[int(rng.integers(len(section)))]
            key = str(rng.choice(list(entry)))
            entry[key] = odd[int(rng.integers(len(odd)))]
        path = write(tmp_path / str(trial), json.dumps(data), images=False)
        try:
            index = open_index(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert np.isfinite(index.box).all()
            assert (index.label < len(index.class_names)).all()
    assert 100 < refused < 400
