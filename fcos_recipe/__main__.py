"""`python -m fcos_recipe`: the same as the command `fcos`."""

from fcos_recipe.cli import main

if __name__ == "__main__":
    main()
