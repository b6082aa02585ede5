"""`fcos dataset NAME ...`: download, check, convert and view data sets before training."""

from importlib import import_module

from fcos_recipe.errors import UserError
from fcos_recipe.exit_codes import BAD_INPUT, OK

# name: (module:function in this folder, one line for `fcos dataset --help`)
COMMANDS = {
    "download": ("download:main", "download COCO 2017, or the missing parts of it"),
    "verify": ("verify:main", "find data problems; write cleaned copies"),
    "stats": ("stats:main", "count classes and sizes, and boxes per FPN level"),
    "convert": ("convert:main", "convert VOC, YOLO, LabelMe and other formats to COCO"),
    "subset": ("split_merge:subset", "choose some images, keeping class proportions"),
    "split": ("split_merge:split", "split into training and validation data"),
    "merge": ("split_merge:merge", "merge annotation files or data sets into one"),
    "browse": ("browse:main", "view boxes on images, or the network's input"),
}


def main(argv: list[str]) -> int:
    """Choose the subcommand; see `fcos dataset --help`."""
    rows = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: fcos dataset COMMAND [options]\n\n{rows}\n\n"
              "`fcos dataset COMMAND --help` shows the options.\n"
              "example: fcos dataset download --dry-run")  # fmt: skip
        return OK if argv else BAD_INPUT
    if argv[0] not in COMMANDS:
        raise UserError(f"no command {argv[0]!r} in dataset; choose from {', '.join(COMMANDS)}")
    module, function = COMMANDS[argv[0]][0].split(":")
    return getattr(import_module(f"{__name__}.{module}"), function)(argv[1:])
