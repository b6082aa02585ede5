"""Show a run in one file: the same as `fcos report`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("report"))
