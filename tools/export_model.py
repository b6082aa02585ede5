"""Export weights and check the export: the same as `fcos export_model`; see `--help`."""

from fcos_recipe.cli import leave, run

if __name__ == "__main__":
    leave(run("export_model"))
