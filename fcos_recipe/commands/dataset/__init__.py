"""`fcos dataset NAME ...`: data sets fetched and looked at before training."""

from importlib import import_module

from fcos_recipe.errors import UserError
from fcos_recipe.exit_codes import BAD_INPUT, OK

# name: (module:function in this folder, one line for `fcos dataset --help`)
COMMANDS = {
    "download": ("download:main", "get COCO 2017, or what is missing of it"),
    "verify": ("verify:main", "find what is wrong before training; clean copies"),
    "stats": ("stats:main", "classes, sizes, and the FPN levels that see them"),
    "convert": ("convert:main", "VOC, YOLO or incomplete COCO into COCO"),
    "subset": ("split_merge:subset", "some of the images, each class in proportion"),
    "split": ("split_merge:split", "into training and validation"),
    "merge": ("split_merge:merge", "several annotation files into one"),
    "browse": ("browse:main", "boxes on images; what the network really sees"),
}


def main(argv: list[str]) -> int:
    """Choose the subcommand; see `fcos dataset --help`."""
    rows = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: fcos dataset COMMAND [options]\n\n{rows}\n\n"
              "`fcos dataset COMMAND --help` has the options.\n"
              "example: fcos dataset download --dry-run")  # fmt: skip
        return OK if argv else BAD_INPUT
    if argv[0] not in COMMANDS:
        raise UserError(f"no command {argv[0]!r} in dataset; choose from {', '.join(COMMANDS)}")
    module, function = COMMANDS[argv[0]][0].split(":")
    return getattr(import_module(f"{__name__}.{module}"), function)(argv[1:])
