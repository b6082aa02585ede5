"""Files are replaced atomically, and a failed attempt leaves no file."""

import json
import os
import stat

import pytest

from fcos_recipe.files.atomic import draft, remove_drafts, replace_file, write_json


def test_a_file_is_replaced_whole_and_gets_a_usual_mode(tmp_path):
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        for content in ("ä", b"bytes", lambda file: file.writelines([b"one ", b"two"])):
            replace_file(path, content)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"one two" and os.listdir(tmp_path) == ["a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_failed_attempt_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1]})
    assert path.read_text() == '{\n "a": [\n  1\n ]\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(KeyboardInterrupt), draft(path, durable=True) as part:
        part.write_text("half of it")
        assert part.parent == tmp_path and json.loads(path.read_text()) == {"a": [1]}
        raise KeyboardInterrupt
    with pytest.raises(OSError):
        replace_file(tmp_path / "none" / "a", "text")
    assert os.listdir(tmp_path) == ["a.json"] and json.loads(path.read_text()) == {"a": [1]}


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with draft(path) as one, draft(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["a"]


def test_drafts_of_killed_writers_can_be_removed(tmp_path):
    path = tmp_path / "a[1]"
    for name in (".a[1].0123", ".a1.0123", "a[1].0123"):
        (tmp_path / name).touch()
    remove_drafts(path)
    assert sorted(os.listdir(tmp_path)) == [".a1.0123", "a[1].0123"]
