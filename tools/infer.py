"""Predict on images: the same as `fcos infer`; see `--help`."""

import sys

from fcos_recipe.cli import run

if __name__ == "__main__":
    sys.exit(run("infer"))
