"""Train a model: the same as `fcos train`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("train"))
