"""Fetch and look at data sets: the same as `fcos dataset`; see `--help`."""

import sys

from fcos_recipe.cli import run

if __name__ == "__main__":
    sys.exit(run("dataset"))
