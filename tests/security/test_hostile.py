"""Hostile files and names: each is refused, and none creates its canary file."""

import collections
import contextlib
import copyreg
import importlib.util
import json
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from fcos_recipe.checkpoint import convert, storage, weights, zoo
from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.console import log, to_console
from fcos_recipe.data.images import BadImage, read_image
from fcos_recipe.errors import UserError, printable
from fcos_recipe.files import archives
from fcos_recipe.files.download import Damaged
from tests.conftest import ROOT


@pytest.fixture
def canary(tmp_path):
    """A file that is made when one of the attacks has an effect."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


# ---- YAML ---------------------------------------------------------------------------------------

YAML = {
    "apply": "epoch: !!python/object/apply:os.system ['touch {canary}']",
    "new": "epoch: !!python/object/new:os.system ['touch {canary}']",
    "name": "epoch: !!python/name:os.system",
    "module": "epoch: !!python/module:os",
    "tuple of state": "epoch: !!python/object:subprocess.Popen {{args: 'touch {canary}'}}",
    "class": "architecture: os.system",
    "operator": "TrainReader: {{sample_transforms: [{{__import__: {{name: os}}}}]}}",
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
    "deep": "epoch: " + "[" * 5000,
    "circle": "epoch: &a [*a]",
    "itself": "_BASE_: ['hostile.yml']",
    "device": "_BASE_: ['/dev/zero']",
    "pipe": "_BASE_: ['{pipe}']",
    "binary": "_BASE_: ['/bin/ls']",
    "digits": "epoch: " + "9" * 5000,
    "expression": "epoch: __import__('os').system('touch {canary}')",
    "shell": "worker_num: $(touch {canary})",
}  # fmt: skip


@pytest.mark.parametrize("name", YAML)
def test_yaml(tmp_path, canary, name, capfd):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "hostile.yml"
    path.write_text(YAML[name].format(canary=canary, pipe=tmp_path / "pipe"))
    with pytest.raises(UserError, match="hostile.yml|/dev/zero"):
        load_config(path)
    assert run("config", ["validate", str(path)]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error and len(error) < 20_000


# ---- pickles ------------------------------------------------------------------------------------


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def of_names(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that calls something by name, as an attacker writes it by hand."""
    text = "".join(f"S{a!r}\n" for a in arguments)
    return f"c{module}\n{name}\n({text}tR.".encode()


def shared(times: int, depth: int):
    value = {"x": 1}
    for _ in range(depth):
        value = {str(i): value for i in range(times)}
    return value


def again(data: bytes, call: bytes, times: int) -> bytes:
    """One large object in the memo, copied again and again: data, call and arguments by hand."""
    return data + b"q\x00" + b"}" + (b"U\x01k" + call + b"h\x00\x85Rs") * times + b"."


def _texts(length: int, times: int) -> bytes:
    """Arrays written by Python 2, all from one text, which becomes bytes again for each of them."""
    text = b"X" + struct.pack("<I", length) + b"a" * length + b"q\x000"
    kind = b"cnumpy\ndtype\n(U\x02u1tRq\x010"
    array = (b"U\x01kcnumpy.core.multiarray\n_frombuffer\n(h\x00h\x01(J"
             + struct.pack("<i", length) + b"tU\x01CtRs")  # fmt: skip
    return b"\x80\x02" + text + kind + b"}" + array * times + b"."


def pickles(canary) -> dict[str, bytes]:
    touch = f"touch {canary}"
    encode = b"c_codecs\nencode\n"
    return {
        "system": pickle.dumps({"w": Calls(os.system, touch)}),
        "popen": pickle.dumps({"w": Calls(subprocess.Popen, ["touch", str(canary)])}),
        "eval": pickle.dumps({"w": Calls(eval, f"open({str(canary)!r}, 'w')")}),
        "exec by old name": of_names("__builtin__", "exec", f"open({str(canary)!r}, 'w')"),
        "posix": of_names("posix", "system", touch),
        "getattr": of_names("__builtin__", "getattr", "os", "system"),
        "numpy load": of_names("numpy", "load", str(canary)),
        "numpy's tools": of_names("numpy.testing._private.utils", "runstring", touch, "{}"),
        "dots": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x02U\x04evilQ.",
        "a class of its own": b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\nI0\nS'b'\ntR.",
        "ndarray of a terabyte": pickle.dumps({"w": Calls(np.ndarray, (10**12,))}),
        "state that is too small": pickle.dumps({"w": np.zeros(4)}).replace(
            pickle.dumps(4)[2:-1] + b"\x85", pickle.dumps(10**9)[2:-1] + b"\x85"),
        "objects": pickle.dumps({"w": np.array([{}, None], object)}),
        "structure": pickle.dumps({"w": np.zeros(2, [("a", "f4")])}),
        "codec": of_names("_codecs", "encode", "x", "rot13"),
        "list": pickle.dumps([np.zeros(3)]),
        "deep": pickle.dumps(shared(1, 60)),
        "laughs": pickle.dumps(shared(10, 30)),
        "copies": again(b"X" + struct.pack("<I", 10**6) + b"a" * 10**6, encode, 10**5).replace(
            b"h\x00\x85R", b"h\x00U\x06latin1\x86R"),
        "memo": b"\x80\x02}r\0\0\0\x04.",
        "key of shared tuples": b"\x80\x02})" + b"".join(
            b"q%ch%c\x86" % (i, i) for i in range(25)) + b"K\x01s.",
        "key of deep tuples": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
        "key of deep tuples, ordered": b"ccollections\nOrderedDict\n]](e)" + b"\x85" * 30
            + b"K\x01\x86a\x85R.",
        "keys that collide": pickle.dumps({i * (2**61 - 1) % 2**64: 0 for i in range(999)}),
        "set": pickle.dumps({"w": {(1, 2)}}),
        "long integer": pickle.dumps({"w": 10**400}),
        "dicts of one dict": pickle.dumps(
            {str(i): value for value in [dict.fromkeys(map(str, range(3000)))]
             for i in range(3000)}),
        "arrays of one text": _texts(10**6, 3000),
        "deep list": b"\x80\x02}U\x01k" + b"]" * 1000 + b"a" * 999 + b"s.",
        "empty": b"", "cut": pickle.dumps({"w": np.zeros(9)})[:-20], "text": b"weights",
        "long": b"\x80\x02\x8b\xff\xff\xff\x7f.", "frame": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
        "strides": pickle.dumps({"w": Calls(np.lib.stride_tricks.as_strided, np.ones(1), (9,))}),
    }  # fmt: skip


@pytest.mark.parametrize("name", pickles(Path("x")))
def test_pickles(tmp_path, canary, name):
    copyreg.add_extension("os", "system", 1)
    try:
        path = tmp_path / "model.pdparams"
        path.write_bytes(pickles(canary)[name])
        with pytest.raises(UserError, match="model.pdparams: not a readable weights file"):
            weights.read(path)
    finally:
        copyreg.remove_extension("os", "system", 1)
        copyreg.clear_extension_cache()


def test_a_bomb_costs_no_memory(tmp_path):
    """In a process that may not have more than 3 GB."""
    program = """
import resource, sys, pathlib
from fcos_recipe.checkpoint import weights
from tests.security.test_hostile import pickles
base = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (base + (1 << 29),) * 2)
for name in ("laughs", "copies", "memo", "dicts of one dict", "arrays of one text", "long",
             "ndarray of a terabyte", "state that is too small"):
    path = pathlib.Path(sys.argv[1]) / "bomb.pdparams"
    path.write_bytes(pickles(path)[name])
    try:
        weights.read(path)
    except weights.UserError as error:
        assert "MemoryError" not in str(error), (name, error)
    else:
        raise SystemExit(name)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, timeout=60,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.filterwarnings("ignore:invalid escape")
def test_pickles_with_changed_bytes_are_read_or_refused(tmp_path):
    honest = pickle.dumps({"a": np.arange(6.0), "n": {"w": np.ones(2, ">f4")}}, 2)
    chance = np.random.default_rng(3)
    path = tmp_path / "w.pdparams"
    for _ in range(2000):
        data = bytearray(honest)
        for place in chance.integers(0, len(data), chance.integers(1, 4)):
            data[place] = chance.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(UserError):
            weights.read(path)


def test_other_formats_are_named_with_the_conversion(tmp_path):
    arrays = {"w": np.arange(3.0)}
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(UserError, match="a NumPy archive") as refused:
        weights.read(tmp_path / "w.npz")
    if importlib.util.find_spec("safetensors"):  # then the command of the message works
        program = re.search(r"python -c '(.+?)';", str(refused.value))[1]
        subprocess.run([sys.executable, "-c", program.replace("FILE", str(tmp_path / "w.npz"))],
                       check=True, timeout=60)  # fmt: skip
        assert weights.read(tmp_path / "w.npz.safetensors")["w"].tolist() == [0, 1, 2]
    for first in ("archive/data.pkl", "x/y"):
        with zipfile.ZipFile(tmp_path / "w.pdparams", "w") as file:
            file.writestr(first, "x")
        with pytest.raises(UserError, match="PyTorch" if "pkl" in first else "a zip archive"):
            weights.read(tmp_path / "w.pdparams")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_honest_pickles_are_read(tmp_path, protocol):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.eye(3, dtype=">f4")),
              "0": np.ones((), "int64"), "s": np.float32(2.5),
              "nested": collections.OrderedDict(w=("name", np.ones(2, bool)))}  # fmt: skip
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps(arrays, protocol))
    read = weights.read(path)
    arrays["nested"] = {"w": np.ones(2, bool)}
    assert read["nested"]["w"].tolist() == [True, True]
    for name in ("a", "f", "0", "s"):
        np.testing.assert_array_equal(read[name], arrays[name])
        assert read[name].dtype == arrays[name].dtype


def test_weights_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.pdparams")
    for path in ("/dev/zero", tmp_path, tmp_path / "pipe.pdparams"):
        with pytest.raises(UserError, match="not a file"):
            weights.read(path)
    (tmp_path / "huge.pdparams").touch()
    os.truncate(tmp_path / "huge.pdparams", 1 << 40)  # of holes
    with pytest.raises(UserError, match="larger than"):
        weights.read(tmp_path / "huge.pdparams")


# ---- exchange -----------------------------------------------------------------------------------


def test_exchange_round_trip(tmp_path):
    pytest.importorskip("safetensors")  # Paddle brings it since 3.0
    layer = paddle.nn.Linear(3, 2)
    momentum = paddle.optimizer.Momentum(parameters=layer.parameters())
    layer(paddle.ones([1, 3])).sum().backward()
    momentum.step()
    (tmp_path / "checkpoints").mkdir()
    objects = {"model.pdparams": layer.state_dict(),
               "model.pdopt": {**momentum.state_dict(), "last_epoch": 3}}  # fmt: skip
    saved = storage.save(tmp_path / "checkpoints", "0003",
                            {k: storage.host(v) for k, v in objects.items()},
                            {"class_names": ["a"], "config": "c"})  # fmt: skip
    assert run("weights", ["convert", str(saved), str(tmp_path / "x.safetensors")]) == 0
    (saved / "model.pdema").write_bytes(b"nobody has verified this")  # nor is it copied
    (saved / "model.pdx").symlink_to("/etc/hostname")
    more = [str(tmp_path / "x"), "--format", "paddledet"]
    assert run("weights", ["convert", str(saved), *more]) == 0
    assert sorted(p.suffix for p in tmp_path.glob("x.pd*")) == [".pdopt", ".pdparams"]
    stock = paddle.load(str(tmp_path / "x.pdparams"))
    optimizer = paddle.load(str(tmp_path / "x.pdopt"))
    assert optimizer["last_epoch"] == 3 and len(optimizer) >= 3
    convert.convert(str(tmp_path / "x.safetensors"), tmp_path / "back.pdparams")
    for name, value in layer.state_dict().items():
        for found in (stock[name], weights.read(tmp_path / "x.safetensors")[name],
                      weights.read(tmp_path / "back.pdparams")[name]):  # fmt: skip
            np.testing.assert_array_equal(np.asarray(found), value.numpy())
    assert storage.class_names(tmp_path / "back.pdparams") == ["a"]
    with pytest.raises(UserError, match="exists"):
        convert.convert(str(saved), tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 8]}}).encode()
    for bad in (content[:-4], b"\xff" * 8, struct.pack("<Q", len(header)) + header + bytes(8)):
        (tmp_path / "bad.safetensors").write_bytes(bad)
        with pytest.raises(UserError, match="bad.safetensors: not a readable"):
            weights.read(tmp_path / "bad.safetensors")


# ---- archives -----------------------------------------------------------------------------------


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "entries",
    [
        [("../canary", "x")],
        [("val/../../canary", "x")],
        [("/{canary}", "x")],
        [("val\\..\\..\\canary", "x")],
        [("C:/canary", "x")],
        [("other/canary", "x")],
        [("val/link", "{folder}", stat.S_IFLNK | 0o777), ("val/link/canary", "x")],
        [("val/device", "x", stat.S_IFCHR | 0o666)],
        [("val/pipe", "x", stat.S_IFIFO | 0o666)],
        [("val/twice", "x"), ("val/twice", "y")],
        [("val/bomb", "\0" * 5_000_000)],
        [(f"val/{i}", "\0" * 50_000) for i in range(300)],
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips(tmp_path, canary, entries):
    archive, final = tmp_path / "a.zip", tmp_path / "final"
    final.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content, *mode in entries:
            info = entry(name.format(canary=canary), *mode)
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content.format(folder=tmp_path))
    with pytest.raises(Damaged):
        archives.unpack(archive, "val", tmp_path / "staging", final)
    assert list(final.iterdir()) == [] and not (tmp_path / "staging").exists()


# ---- images -------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b""))  # fmt: skip


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp(width: int, height: int) -> bytes:
    return (b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0))  # fmt: skip


def ppm(width: int, height: int) -> bytes:
    return f"P6\n{width} {height}\n255\n".encode() + bytes(100)


def test_images_with_too_many_pixels(tmp_path):
    """In a process of its own: OpenCV reads the limit when it is imported."""
    files = []
    for make in (png, jpeg, bmp, ppm):
        for side in (60_000, 11_586):
            files.append(tmp_path / f"{side}.{make.__name__}")
            files[-1].write_bytes(make(side, side))
    program = """
import sys
from fcos_recipe.data.images import BadImage, read_image
for path in sys.argv[1:]:
    try:
        print(read_image(path).shape)
    except BadImage as error:
        print(error)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", program, *map(str, files)], cwd=ROOT, timeout=60,
                          capture_output=True, text=True)  # fmt: skip
    *lines, mebibytes = done.stdout.splitlines()
    assert len(lines) == 8, done.stderr
    for path, line in zip(files, lines):
        assert line.startswith(f"{path}: more than 134217728 pixels (the limit in")
    assert int(mebibytes) < 200


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", png(4, 4)[:40],
                                     b"GIF89a\xff\xff\xff\xff", b"<svg onload=x/>",
                                     b"#!/bin/sh\ntouch canary\n"])  # fmt: skip
def test_files_that_are_no_images(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(BadImage, match="x.jpg: "):
        read_image(str(tmp_path / "x.jpg"))


def test_devices_and_pipes_are_not_read_as_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in ("/dev/zero", tmp_path / "pipe.jpg", tmp_path):
        with pytest.raises(BadImage, match="not a file"):
            read_image(str(path))


# ---- names and secrets --------------------------------------------------------------------------

NAMES = {
    "clear": "\x1b[2J\x1b[Hok", "title": "\x1b]0;owned\x07", "8 bit": "\x9b2J",
    "back": "no\x08\x08", "overwrite": "loss nan\rloss 0.1",
    "right to left": "gnp\u202egpj.exe", "null": "a\0b",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_cannot_take_over_a_terminal(name, capfd, tmp_path):
    to_console(0)
    log.info("class %s", NAMES[name])
    assert run("config", ["validate", str(tmp_path / NAMES[name].replace("\0", "\x01"))]) == 2
    shown = capfd.readouterr()
    for text in (shown.out, shown.err, printable(NAMES[name])):
        assert text and not any(ord(c) < 32 and c not in "\t\n" for c in text)
        assert not set(text) & set("\x7f\x9b\u202e")
    log.handlers.clear()


@pytest.mark.e2e
def test_secrets_stay_out_of_the_run_directory(tiny, tmp_path, monkeypatch, capfd):
    """A password in a URL is used, but not told; nor is the environment kept."""
    monkeypatch.setenv("FCOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SOME_TOKEN", "hunter2-env")
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    layer = {"fcos_head.fcos_head_centerness.bias": paddle.ones([1])}
    url = "https://me:hunter2-a@hunter2-c@example.invalid/net.pdparams?sig=hunter2-b&pwd=hunter2-d"
    paddle.save(layer, str(zoo.place(url)))
    argv = ["-c", str(tiny), "--output", str(tmp_path / "run"), "-o", f"pretrain_weights={url}",
            "epoch=1"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    assert run("train", argv) == 0
    shown = capfd.readouterr()
    assert "hunter2" not in shown.out + shown.err and "sig=***" in shown.err
    kept = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert len(kept) > 5
    assert not [p for p in kept if b"hunter2" in p.read_bytes()]
