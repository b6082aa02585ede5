"""Measure this recipe and stock paddledet side by side: as `fcos benchmark`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("benchmark"))
