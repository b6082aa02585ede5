"""Every tool has --help with an example, and only calls the package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fcos_recipe import exit_codes
from fcos_recipe.cli import COMMANDS, run
from fcos_recipe.commands.dataset import COMMANDS as OF_DATASETS

TOOLS = sorted(Path(__file__).resolve().parents[1].glob("tools/*.py"))


def test_one_tool_per_command():
    assert {tool.stem for tool in TOOLS} == set(COMMANDS)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_help(tool, root):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(tool), "--help"],
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": str(root), "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert "usage:" in done.stdout and "example" in done.stdout.lower()
    assert "| paddle\n" not in done.stderr, "--help must not wait for Paddle"
    assert len(tool.read_text().splitlines()) < 40


@pytest.mark.parametrize(
    "command",
    [*([name] for name in COMMANDS if name != "dataset"), *(["dataset", x] for x in OF_DATASETS)],
    ids=" ".join,
)
def test_exit_codes_in_help_are_in_the_table(command, capsys):
    with pytest.raises(SystemExit):
        run(command[0], [*command[1:], "--help"])
    text = " ".join(capsys.readouterr().out.partition("exit codes: ")[2].split())
    codes = [int(code) for code in re.findall(r"(?:^|[,;] |and )(\d+) ", text)]
    assert {exit_codes.OK, exit_codes.BAD_INPUT} <= set(codes) <= exit_codes.MEANINGS.keys(), text


def test_documented_exit_codes_are_the_table(root):
    page = (root / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert [(int(code), text) for code, text in rows] == sorted(exit_codes.MEANINGS.items())
