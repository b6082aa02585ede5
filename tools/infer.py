"""Predict on images: the same as `fcos infer`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("infer"))
