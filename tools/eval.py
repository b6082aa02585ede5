"""Evaluate a weights file: the same as `fcos eval`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("eval"))
