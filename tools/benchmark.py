"""Measure this recipe and stock paddledet side by side: as `fcos benchmark`; see `--help`."""

import sys

from fcos_recipe.cli import run

if __name__ == "__main__":
    sys.exit(run("benchmark"))
