"""Every option of every command that names an output refuses what is in its way before any work."""

import pytest

from fcos_recipe.cli import run
from tests.security.test_doors import OPTIONS, arguments

OUTPUTS = {"--output", "--output_dir", "--output_eval", "--vdl_log_dir", "--json", "--fix",
           "--save-predictions", "--dir"}  # fmt: skip
NO_EFFECT = {"infer --vdl_log_dir"}
KNOWN = [(command, option) for command, options in OPTIONS.items() for option in options
         if option in OUTPUTS and f"{command} {option}" not in NO_EFFECT]  # fmt: skip


@pytest.mark.parametrize("command, option", KNOWN)
def test_what_is_in_the_way_is_named(command, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    kind = str(OPTIONS[command][option].metavar)
    blocked = ["file/below", *(["folder"] if "DIR" not in kind else []),
               *(["file"] if kind == "DIR" else [])]  # fmt: skip
    for path in blocked:
        name, *argv = arguments(command, option, path)
        assert run(name, argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: -") and path in line and line.count("file") + line.count(
            "folder") > 1  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_every_command_that_writes_is_among_them():
    assert len(KNOWN) > 25
    assert {"train", "eval", "infer", "export_model", "report", "config new", "config copy",
            "dataset convert", "dataset split", "dataset download",
            "analyze_model", "benchmark"} <= {command for command, _ in KNOWN}  # fmt: skip
