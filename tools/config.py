"""Print, validate or compare configs: the same as `fcos config`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("config"))
