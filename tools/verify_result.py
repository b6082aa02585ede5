"""Compare a run or weights with the published AP: as `fcos verify_result`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("verify_result"))
