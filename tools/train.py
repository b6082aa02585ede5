"""Train a model: the same as `fcos train`; see `--help`."""

import sys

from fcos_recipe.cli import run

if __name__ == "__main__":
    sys.exit(run("train"))
