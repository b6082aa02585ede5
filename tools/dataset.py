"""Download, check and view data sets: the same as `fcos dataset`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("dataset"))
