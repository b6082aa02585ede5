"""Evaluate a weights file: the same as `fcos eval`; see `--help`."""

import sys

from fcos_recipe.cli import run

if __name__ == "__main__":
    sys.exit(run("eval"))
