"""Published weights: the same as `fcos weights`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("weights"))
