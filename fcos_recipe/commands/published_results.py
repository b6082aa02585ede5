"""`python -m fcos_recipe.commands.published_results`: the README's table of results."""

import sys
from pathlib import Path

from fcos_recipe.commands.options import parser, write
from fcos_recipe.console import run_program
from fcos_recipe.exit_codes import FAILED
from fcos_recipe.files.reading import read_text
from fcos_recipe.places import RESULTS
from fcos_recipe.runs.published_results import BEGIN, END, WORDS, insert, table

_EXAMPLE = """\
examples:
  python -m fcos_recipe.commands.published_results                      # the table
  python -m fcos_recipe.commands.published_results --write README.md README_zh.md
  python -m fcos_recipe.commands.published_results --check README.md
"""


def main(argv: list[str] | None = None) -> int:
    """`python -m fcos_recipe.commands.published_results`: see `--help`."""
    ask = parser(
        "", "The table of results, from configs/results.yml.", _EXAMPLE,
        {FAILED: "--check found an outdated table"},
        prog="python -m fcos_recipe.commands.published_results",
    )  # fmt: skip
    add = ask.add_argument
    add("--language", choices=WORDS, default="en", help="language of the printed table")
    add("--write", nargs="+", type=Path, default=[], metavar="FILE",
        help=f"write the table between {BEGIN} and {END}")  # fmt: skip
    add("--check", nargs="+", type=Path, default=[], metavar="FILE",
        help="exit with code 1 if a file has another table")  # fmt: skip
    args = ask.parse_args(argv)
    for path in args.write:
        text = insert(path)
        write(path, text)
    if stale := [str(path) for path in args.check if insert(path) != read_text(path)]:
        print(f"{', '.join(stale)}: differs from {RESULTS.name}; run --write", file=sys.stderr)
        return FAILED
    if not args.write and not args.check:
        print(table(args.language), end="")
    return 0


if __name__ == "__main__":
    run_program(main)
