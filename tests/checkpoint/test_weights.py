"""Weights files are read safely and matched by name, and differences are reported."""

import http.server
import os
import pickle
import threading

import numpy as np
import paddle
import pytest

from fcos_recipe.checkpoint import weights, zoo
from fcos_recipe.errors import UserError


class Net(paddle.nn.Layer):
    def __init__(self, classes=3):
        super().__init__()
        self.backbone = paddle.nn.Sequential(paddle.nn.Linear(2, 2))
        self.head = paddle.nn.Linear(2, classes)


def test_round_trip_of_a_file_written_by_paddle(tmp_path):
    paddle.save(Net().state_dict(), str(tmp_path / "a.pdparams"))
    model = Net()
    report = weights.load(model, str(tmp_path / "a"), exact=True)
    assert len(report.loaded) == 4 and not (report.missing or report.reshaped or report.unused)
    saved = paddle.load(str(tmp_path / "a.pdparams"))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), saved[name].numpy())


def test_backbone_file_and_other_number_of_classes(tmp_path):
    state = {"0.weight": np.eye(2, dtype="float32"), "head.weight": np.zeros((2, 9), "float32")}
    with open(tmp_path / "b.pdparams", "wb") as file:
        pickle.dump(state, file, protocol=2)
    model = Net()
    report = weights.load(model, str(tmp_path / "b.pdparams"))
    assert report.loaded == ["backbone.0.weight"] and report.reshaped == ["head.weight"]
    np.testing.assert_array_equal(model.backbone[0].weight.numpy(), np.eye(2))
    with pytest.raises(UserError, match="does not match the model"):
        weights.load(model, str(tmp_path / "b.pdparams"), exact=True)


def test_a_file_that_fits_nothing_is_an_error(tmp_path):
    with open(tmp_path / "c.pdparams", "wb") as file:
        pickle.dump({"other": np.zeros(3)}, file)
    with pytest.raises(UserError, match="none of its 1 entries"):
        weights.load(Net(), str(tmp_path / "c.pdparams"))


class Canary:
    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", "cut", "canary"])
def test_damaged_and_hostile_files_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "d.pdparams"
    if content == "cut":
        paddle.save(Net().state_dict(), str(path))
        content = path.read_bytes()[:-40]
    elif content == "canary":
        content = pickle.dumps({"weight": Canary()})
    path.write_bytes(content)
    with pytest.raises(UserError, match="d.pdparams: not a readable weights file"):
        weights.load(Net(), str(path))
    assert not (tmp_path / "canary").exists()


@pytest.fixture
def server(tmp_path):
    """A local web server; `.requests` lists the paths asked for."""
    folder = tmp_path / "www"
    folder.mkdir()
    paddle.save(Net().state_dict(), str(folder / "net.pdparams"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            running.requests.append(self.path)
            super().do_GET()

        def log_message(self, *_args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.requests = []
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()


def test_url_is_fetched_once_and_checked(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FCOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    url = f"http://127.0.0.1:{server.server_port}/net.pdparams"
    weights.load(Net(), url, exact=True)
    weights.load(Net(), url, exact=True)
    assert server.requests == ["/net.pdparams"]
    cached = zoo.place(url)
    cached.write_bytes(cached.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="SHA-256"):
        weights.load(Net(), url)
    with pytest.raises(UserError, match="pretrain_weights: .*404"):
        weights.load(Net(), url.replace("net", "gone"))
    assert sorted(p.name for p in zoo.cache_dir().iterdir()) == [
        cached.name, f"{cached.name}.sha256",
    ]  # fmt: skip
