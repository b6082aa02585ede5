"""Checkpoints are written atomically, and damage is detected."""

import json
import os
from pathlib import Path

import numpy as np
import paddle
import pytest

from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.errors import RunFailure, UserError


def write(folder, epoch):
    objects = {"model.pdparams": {"w": paddle.full([64], float(epoch))}}
    return storage.save(folder, f"{epoch:04d}", objects, {"epoch": epoch, "class_names": ["é"]})


def test_newest_intact_one_is_found_and_the_damaged_named(tmp_path):
    for epoch in (1, 2, 3):
        write(tmp_path, epoch)
    (tmp_path / "0003" / "state.json").write_text("{")
    file = tmp_path / "0002" / "model.pdparams"
    file.write_bytes(file.read_bytes()[:-1])
    path, rejected = storage.newest(tmp_path)
    assert path.name == "0001"
    assert ["0003" in rejected[0], "0002" in rejected[1]] == [True, True]
    assert "model.pdparams is damaged" in rejected[1]


@pytest.mark.parametrize("seed", range(20))
def test_every_flipped_bit_is_seen(tmp_path, seed):
    path = write(tmp_path, 1)
    rng = np.random.default_rng(seed)
    file = path / "model.pdparams"
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        storage.read_state(path)


def test_prune_keeps_the_newest_and_clears_what_a_kill_left(tmp_path):
    for epoch in range(1, 5):
        write(tmp_path, epoch)
    (tmp_path / ".0005.0123456789abcdef").mkdir()
    storage.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0003", "0004"]
    storage.prune(tmp_path, keep=0)
    assert len(list(tmp_path.iterdir())) == 2


def test_class_names_travel(tmp_path):
    path = write(tmp_path, 7)
    assert storage.class_names(path) == ["é"]
    storage.save_weights(tmp_path / "best.pdparams", {"w": paddle.ones([1])},
                            {"class_names": ["a", "b"]})  # fmt: skip
    assert storage.class_names(tmp_path / "best") == ["a", "b"]
    assert json.loads((tmp_path / "best.json").read_text())["sha256"]
    paddle.save({"w": paddle.ones([1])}, str(tmp_path / "zoo.pdparams"))
    assert storage.class_names(tmp_path / "zoo.pdparams") is None


def test_a_kill_between_weights_and_their_note_spoils_neither(tmp_path, monkeypatch):
    path = tmp_path / "best_model.pdparams"

    def save(value):
        storage.save_weights(path, {"w": paddle.full([4], value)}, {})

    def kill(target):
        if Path(target).name == left[0]:
            raise KeyboardInterrupt

    save(1.0)
    real = os.replace
    left = ["best_model.json", "best_model.pdparams"]  # in the order of their replacement
    while left:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", lambda a, b: kill(b) or real(a, b))
            save(2.0)
        assert weights.read(path)["w"].tolist() == [1.0] * 4
        left.pop(0)
    left.append("")
    save(3.0)
    assert weights.read(path)["w"].tolist() == [3.0] * 4
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="SHA-256"):
        weights.read(path)


@pytest.mark.parametrize("seed", range(30))
def test_only_checkpoints_count_as_failed_saves(seed):
    """Whatever else is saved in between, `limit` lost checkpoints in a row end the run."""
    rng, saver = np.random.default_rng(seed), storage.Saver(3)

    def full():
        raise OSError(28, "No space left on device", "x")

    lost, last = 0, {}
    try:
        for _ in range(30):
            kind, fails = ["", storage.CHECKPOINT][rng.integers(2)], bool(rng.integers(2))
            saver.submit("eval.json", full if fails else lambda: None, kind=kind)
            saver._job.result()
            if kind:
                lost = lost + 1 if fails else 0
            last[kind or "eval.json"] = fails
            assert saver.failures == lost
            assert set(saver.unsaved) == {kind for kind, failed in last.items() if failed}
            if lost == 3:
                with pytest.raises(RunFailure, match="3 checkpoints in a row .* the disk is full"):
                    saver.wait()
                return
    finally:
        saver._pool.shutdown()
