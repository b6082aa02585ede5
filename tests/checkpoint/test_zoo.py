"""Published weights are downloaded once, also by concurrent processes, then used offline."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from fcos_recipe import cli
from fcos_recipe.checkpoint import zoo
from fcos_recipe.errors import UserError
from fcos_recipe.files import download
from tests.helpers.fault_server import FaultServer

WEIGHTS = pickle.dumps({"w": np.arange(125_000, dtype=np.float32)})


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("FCOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    with FaultServer({f"/{entry.path}.pdparams": WEIGHTS for entry in zoo.ZOO.values()}) as running:
        monkeypatch.setattr(zoo, "BASE", running.url)
        yield running


def test_list_get_verify(server, capsys):
    assert cli.run("weights", ["list"]) == 0
    assert capsys.readouterr().out.count("not downloaded, hash unknown") == len(zoo.ZOO)
    server.faults = ["cut", "503"]
    assert cli.run("weights", ["get", "fcos_r50_fpn_1x_coco"]) == 0
    path = zoo.cache_dir() / "fcos_r50_fpn_1x_coco.pdparams"
    told = capsys.readouterr()
    assert told.out == f"{path}\n" and "recorded, not pinned" in told.err
    assert path.read_bytes() == WEIGHTS
    cli.run("weights", ["list"])
    assert f"500.2 kB, SHA-256 {hashlib.sha256(WEIGHTS).hexdigest()}" in capsys.readouterr().out
    server.requests.clear()
    assert cli.run("weights", ["get", "fcos_r50_fpn_1x_coco"]) == 0
    assert cli.run("weights", ["verify"]) == 0 and server.requests == []
    path.write_bytes(WEIGHTS[:-1])
    assert cli.run("weights", ["verify"]) == 3
    assert cli.run("weights", ["get", "fcos_r50_fpn_1x_coco"]) == 2
    assert cli.run("weights", ["get", "resnet"]) == 2
    assert cli.run("weights", ["get", f"{server.url}/gone.pdparams"]) == 1
    assert server.requests == [("/gone.pdparams", "bytes=0-")]


def test_a_file_brought_by_hand_is_recorded_and_used_offline(server):
    entry = zoo.ZOO["fcos_r50_fpn_1x_coco"]
    path = zoo.cache_dir() / "fcos_r50_fpn_1x_coco.pdparams"
    path.parent.mkdir(parents=True)
    path.write_bytes(WEIGHTS)
    assert zoo.cached(entry.url) == path and server.requests == []
    assert path.with_name(path.name + ".sha256").is_file()


def test_each_url_has_its_own_file_and_a_page_is_not_kept(server, capsys):
    """Also names that a path cannot have, and those of the zoo on another server."""
    pages = (b"<!DOCTYPE html><title>log in</title>", b'{"error": 401}', pickle.dumps("text"),
             WEIGHTS[:-9])  # fmt: skip
    paths = (
        "/a/best_model.pdparams",
        "/b/best_model.pdparams",
        "/b/best_model.pdparams?v=2",
        "/b/fcos_r50_fpn_1x_coco.pdparams",
        "/b/%2e%2e",
        "/b/",
    )
    for k, path in enumerate(paths):
        server.files[path] = pickle.dumps({"w": np.full(3, k)})
    found = [zoo.cached(server.url + path) for path in paths]
    assert len(set(found)) == len(paths) and {p.parent for p in found} == {zoo.cache_dir()}
    for k, path in enumerate(found):
        assert pickle.loads(path.read_bytes())["w"].tolist() == [k] * 3
    assert [zoo.cached(server.url + path) for path in paths] == found
    assert len(server.requests) == len(paths)
    assert cli.run("weights", ["verify"]) == 0 and f"{len(paths)} files" in capsys.readouterr().out
    before = sorted(zoo.cache_dir().iterdir())
    for page in pages:
        server.files["/login.pdparams"] = page
        with pytest.raises(UserError, match="login.pdparams: not a weights file, it begins with"):
            zoo.cached(f"{server.url}/login.pdparams")
        assert sorted(zoo.cache_dir().iterdir()) == before
    server.files["/login.pdparams"] = WEIGHTS
    assert zoo.cached(f"{server.url}/login.pdparams").read_bytes() == WEIGHTS


def test_eight_ranks_fetch_once(server, root):
    server.delay = 0.02
    url = zoo.ZOO["ResNet50_cos_pretrained"].url
    code = f"from fcos_recipe.checkpoint import zoo; print(zoo.cached({url!r}))"
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=-1, stderr=-1, text=True)
        for _ in range(8)
    ]
    results = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 8, results
    assert len(server.requests) == 1 and len({out for out, _ in results}) == 1
    assert len(list(zoo.cache_dir().iterdir())) == 2
