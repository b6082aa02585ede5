"""Check this machine: the same as `fcos doctor`; see `--help`."""

import sys

from fcos_recipe.cli import run

if __name__ == "__main__":
    sys.exit(run("doctor"))
