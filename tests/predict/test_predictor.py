"""Predictor: every kind of input gives what its file gives; results and their forms."""

import functools
import io
import json
import os
import sys
import threading
import time
import types

import cv2
import numpy as np
import pytest
from PIL import Image

from fcos_recipe.data.images import BadImage, read_image
from fcos_recipe.errors import UserError
from fcos_recipe.predict import Detections, Predictor
from fcos_recipe.predict.results import suppressed


@pytest.fixture(scope="module")
def file(data, tmp_path_factory):
    """A lossless file, so that every form of it has the same pixels."""
    path = tmp_path_factory.mktemp("lossless") / "one.png"
    cv2.imwrite(str(path), cv2.imread(str(data / "val/000001.jpg")))
    return path


def same(one, other):
    assert not one.error and not other.error
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)


FORMS = {
    "str": lambda file, rgb: str(file),
    "Path": lambda file, rgb: file,
    "list": lambda file, rgb: [file],
    "glob": lambda file, rgb: str(file.parent / "o*.png"),
    "generator": lambda file, rgb: (x for x in [file]),
    "map": lambda file, rgb: map(str, [file]),
    "bytes": lambda file, rgb: file.read_bytes(),
    "opened file": lambda file, rgb: open(file, "rb"),
    "BytesIO": lambda file, rgb: [io.BytesIO(file.read_bytes())],
    "memoryview": lambda file, rgb: memoryview(file.read_bytes()),
    "PIL": lambda file, rgb: Image.open(file),
    "PIL with alpha": lambda file, rgb: Image.open(file).convert("RGBA"),
    "array of files": lambda file, rgb: np.array([file], dtype=object),
    "array of text": lambda file, rgb: np.array([str(file)]),
    "tensor": lambda file, rgb: pytest.importorskip("paddle").to_tensor(rgb),
    "uint8": lambda file, rgb: rgb,
    "not contiguous": lambda file, rgb: np.asfortranarray(rgb),
    "batch": lambda file, rgb: rgb[None],
    "RGBA": lambda file, rgb: np.dstack([rgb, rgb[:, :, 0]]),
    "float32": lambda file, rgb: rgb.astype(np.float32) / 255,
    "float64": lambda file, rgb: rgb / 255,
    "float16": lambda file, rgb: (rgb / 255).astype(np.float16),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same(form, predictor, file):
    rgb = read_image(str(file))
    (wanted,) = predictor([str(file)])
    assert len(wanted) and wanted.size == rgb.shape[:2] and wanted.error is None
    (found,) = predictor(FORMS[form](file, rgb), strict=True)
    same(found, wanted)
    np.testing.assert_array_equal(found.image(), rgb)
    if isinstance(FORMS[form](file, rgb), np.ndarray) and form[:5] not in ("batch", "array"):
        flipped = FORMS[form](file, rgb)[:, :, [2, 1, 0]]
        same(predictor(flipped, order="bgr")[0], wanted)


def test_grey_and_turned_images_are_as_in_training(predictor, tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (60, 90), np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    (wanted,) = predictor(tmp_path / "grey.png", strict=True)
    for form in (grey, grey[:, :, None], Image.fromarray(grey), grey / 255):
        same(predictor(form, strict=True)[0], wanted)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).convert("RGB").save(tmp_path / "turned.png", exif=exif)
    (wanted,) = predictor(tmp_path / "turned.png", strict=True)
    assert wanted.size == read_image(str(tmp_path / "turned.png")).shape[:2] == (90, 60)
    for form in (Image.open(tmp_path / "turned.png"), (tmp_path / "turned.png").read_bytes()):
        same(predictor(form, strict=True)[0], wanted)


def test_a_folder_and_a_list_are_all_their_images(predictor, data, tmp_path):
    found = predictor(data / "val", batch_size=3)
    assert [x.source for x in found] == [str(data / f"val/00000{i}.jpg") for i in range(1, 7)]
    (tmp_path / "list.txt").write_text(f"{data}/val/000002.jpg\n")
    assert [x.source for x in predictor(tmp_path / "list.txt")] == [str(data / "val/000002.jpg")]


def test_a_generator_is_read_a_batch_at_a_time(predictor, file):
    taken = []

    def images():
        for k in range(100):
            taken.append(k)
            yield file

    stream = predictor.stream(images(), batch_size=2)
    assert not taken
    assert len(next(stream)) and len(taken) == 2
    assert next(stream).seconds["run"] > 0 and len(taken) == 2


BAD = {
    "none.jpg": "none.jpg",
    "no/*.jpg": "no image found",
    b"": "empty file",
    b"\x00raw\xff": "not an image that OpenCV",
    None: "not an image",
    3.5: "a float is not an image",
    "text file": "a StringIO gives text",
    "tensor elsewhere": "a Elsewhere gives no array: copy it first",
    "thin": "a transform fails on its 3000x2 pixels",
    "int64": "int64 [4, 4]",
    "channels first": "uint8 [3, 8, 8]",
    "empty": "uint8 [0, 4, 3]",
    "beyond 1": "values outside 0 to 1",
    "nan": "values outside 0 to 1",
    "PIL of F": "mode F",
    "itself": "a list that contains itself",
    "itself as array": "a ndarray that contains itself",
    "deep": "a tuple nested 50 deep",
}


class Elsewhere:
    """A tensor on a card, as other libraries have it."""

    def __array__(self, *_, **__):
        raise TypeError("copy it first")


ARRAYS = {
    "tensor elsewhere": Elsewhere(),
    "text file": io.StringIO("pixels"),
    "thin": np.zeros((2, 3000, 3), np.uint8),
    "int64": np.zeros((4, 4), np.int64),
    "channels first": np.zeros((3, 8, 8), np.uint8),
    "empty": np.zeros((0, 4, 3), np.uint8),
    "beyond 1": np.full((4, 4), 2.0),
    "nan": np.full((4, 4), np.nan),
    "PIL of F": Image.new("F", (4, 4)),
}


ARRAYS["itself"] = itself = []
itself.append(itself)
ARRAYS["itself as array"] = array = np.empty(1, object)
array[0] = array
ARRAYS["deep"] = functools.reduce(lambda inner, _: (inner,), range(5000), ())


def test_what_cannot_be_read_says_so_and_the_rest_goes_on(predictor, file):
    items = [ARRAYS.get(x, x) if isinstance(x, str) else x for x in BAD]
    found = predictor([file, *items, file], batch_size=4)
    assert len(found) == len(BAD) + 2
    same(found[0], predictor(file)[0])
    same(found[0], found[-1])
    for result, (key, says), item in zip(found[1:-1], BAD.items(), items, strict=True):
        assert result.error and says in result.error, key
        assert (
            len(result) == 0 and len(result.error.splitlines()) == 1 and "\x00" not in str(result)
        )
        assert result.error in repr(result)
        with pytest.raises((BadImage, UserError)) as raised:
            predictor([item], strict=True)
        assert says in str(raised.value)
        with pytest.raises(UserError):
            result.plot()


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None, "2"])
def test_a_wrong_batch_size_is_refused(predictor, file, size):
    with pytest.raises(UserError, match="batch_size"):
        predictor([file], batch_size=size)
    with pytest.raises(UserError, match="order"):
        predictor([file], order="hsv")


def test_a_run_directory_is_accepted(trained, predictor, file):
    same(Predictor(trained[0].parent, device="cpu")(file)[0], predictor(file)[0])


def test_threads_share_and_a_fork_is_refused(predictor, data, monkeypatch):
    files = sorted((data / "val").glob("*.jpg"))
    alone = [predictor(file)[0] for file in files]
    together, inside, most = {}, [], []
    model = predictor.backend.model

    def slow(batch):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        found = model(batch)
        inside.pop()
        return found

    monkeypatch.setattr(predictor.backend, "model", slow)
    threads = [
        threading.Thread(target=lambda k=k: together.update({k: predictor(files[k])[0]}))
        for k in range(len(files))
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == [1] * len(files), "the model is not safe to enter twice"
    for k, wanted in enumerate(alone):
        same(together[k], wanted)
        assert min(together[k].seconds["prepare"], together[k].seconds["run"]) > 0
    assert predictor.warmup(64, 64) > 0 and len(most) == len(files) + 1
    child = os.fork()
    if not child:
        try:
            predictor.run({})
        except UserError as error:
            os._exit(7 if "forked" in str(error) else 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def made(**more):
    boxes = np.array([[10, 20, 30, 60], [10, 20, 30, 58], [0, 0, 4.5, 2.2]], np.float32)
    return Detections(
        boxes, np.array([0.9, 0.6, 0.3], np.float32), np.array([1, 0, 1]), ["a", "<b>"],
        source="x.jpg", size=(100, 50), category_ids=[7, 9],
        pixels=lambda: np.arange(100 * 50 * 3, dtype=np.uint8).reshape(100, 50, 3), **more,
    )  # fmt: skip


def test_forms_of_a_result(monkeypatch):
    found = made()
    np.testing.assert_allclose(found.xywh[0], [10, 20, 20, 40])
    np.testing.assert_allclose(found.normalized[0], [0.2, 0.2, 0.6, 0.6])
    assert found.class_names == ["<b>", "a", "<b>"]
    assert repr(found) == "<Detections: x.jpg, 50x100: 2 <b>, 1 a; best 0.90>"
    text = found._repr_html_()
    assert "<b>" not in text and "&lt;b&gt;" in text and text.count("<tr>") == 4
    rows = found.to_coco("im")
    assert rows[1] == {"image_id": "im", "category_id": 7, "bbox": pytest.approx([10, 20, 20, 38]),
                       "score": pytest.approx(0.6)}  # fmt: skip
    json.dumps(rows)
    assert [c.shape for c in found.crops()] == [(40, 20, 3), (38, 20, 3), (3, 5, 3)]
    np.testing.assert_array_equal(found.crops()[0], found.image()[20:60, 10:30])
    assert (found.plot() != found.image()).any() and (found.plot(1.1) == found.image()).all()
    seen = types.SimpleNamespace(Detections=lambda **given: given)
    monkeypatch.setitem(sys.modules, "supervision", seen)
    given = found.to_supervision()
    assert given["xyxy"].tolist() == found.boxes.tolist()
    assert given["data"]["class_name"].tolist()[1] == "a"
    for library in ("pandas", "supervision"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UserError, match=f"pip install {library}"):
            getattr(found, f"to_{library}")()


@pytest.mark.parametrize("count", [3, 0])
def test_pandas(count):
    pandas = pytest.importorskip("pandas")
    found = made().filter(most=count)
    frame = found.to_pandas()
    assert list(frame) == ["x1", "y1", "x2", "y2", "score", "label", "name"]
    assert [str(kind) for kind in frame.dtypes[:-1]] == ["float32"] * 5 + ["int64"]
    assert frame.dtypes["name"] == pandas.Series(["text"], dtype=str).dtype
    assert frame["name"].tolist() == ["<b>", "a", "<b>"][:count]
    np.testing.assert_array_equal(frame[["x1", "y1", "x2", "y2"]], found.boxes)
    np.testing.assert_array_equal(frame["score"], found.scores)
    np.testing.assert_array_equal(frame["label"], found.labels)


@pytest.mark.parametrize("count", [3, 0])
def test_supervision(count):
    supervision = pytest.importorskip("supervision")
    found = made().filter(most=count)
    given = found.to_supervision()
    assert len(given) == count and given.is_empty() == (count == 0)
    np.testing.assert_array_equal(given.xyxy, found.boxes)
    np.testing.assert_array_equal(given.confidence, found.scores)
    np.testing.assert_array_equal(given.class_id, found.labels)
    assert given["class_name"].tolist() == found.class_names
    assert given[given.confidence > 0.5]["class_name"].tolist() == ["<b>", "a"][:count]
    supervision.BoxAnnotator().annotate(image := found.image().copy(), given)
    assert (image != found.image()).any() == (count > 0)
    given.xyxy += 1  # does not move the original's
    np.testing.assert_array_equal(found.boxes, made().boxes[:count])


def test_filter():
    found = made()
    assert found.filter(classes=["a"]).labels.tolist() == [0]
    assert (
        found.filter(classes=[1, "a"], min_score=0.5).scores.tolist() == found.scores[:2].tolist()
    )
    assert found.filter(classes=[]).scores.tolist() == []
    assert len(found.filter(most=2)) == 2 and found.filter().source == "x.jpg"
    assert found.filter(agnostic_nms=0.6).labels.tolist() == [1, 1]
    assert found.filter(agnostic_nms=0.96).labels.tolist() == [1, 0, 1]
    with pytest.raises(UserError, match="'c' is unknown; the model has a, <b>"):
        found.filter(classes=["c"])


def test_suppression_leaves_no_pair_above_the_limit_and_removes_no_other():
    rng = np.random.default_rng(0)

    def iou(a, b):
        side = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        both = max(side[0], 0) * max(side[1], 0)
        return both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)

    for limit in (0.0, 0.3, 0.7):
        low = rng.uniform(0, 50, (40, 2))
        boxes = np.concatenate([low, low + rng.uniform(5, 30, (40, 2))], axis=1)
        kept = suppressed(boxes, limit)
        for k in range(40):
            better = [j for j in kept if j < k and iou(boxes[j], boxes[k]) > limit]
            assert (k in kept) == (not better)


def test_bytes_are_never_printed(predictor):
    (found,) = predictor(io.BytesIO(b"\x89PNG" + bytes(range(256))).getvalue())
    assert found.error == "bytes 1: not an image that OpenCV can decode"
