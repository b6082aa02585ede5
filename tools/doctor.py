"""Check this machine: the same as `fcos doctor`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("doctor"))
