"""Print, validate or compare configs: the same as `fcos config`; see `--help`."""

import sys

from fcos_recipe.cli import run

if __name__ == "__main__":
    sys.exit(run("config"))
