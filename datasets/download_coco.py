"""Fetch COCO 2017: the same as `fcos dataset download`; see `--help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also where nothing is installed yet

from fcos_recipe.cli import leave, run  # noqa: E402

if __name__ == "__main__":
    leave(run("dataset", ["download", *sys.argv[1:]]))
