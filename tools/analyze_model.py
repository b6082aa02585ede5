"""Size, cost and time of a model: the same as `fcos analyze_model`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("analyze_model"))
