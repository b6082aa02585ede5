"""Every tool answers --help with an example, and is nothing but a call into the package."""

import subprocess
import sys
from pathlib import Path

import pytest

from fcos_recipe.cli import COMMANDS

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
