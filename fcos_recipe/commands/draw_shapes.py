"""`python -m fcos_recipe.commands.draw_shapes`: draw the data set of the demo."""

from fcos_recipe.commands.options import parser
from fcos_recipe.datasets import drawn_shapes


def main(argv: list[str] | None = None) -> int:
    """Draw the data set unless it exists."""
    program = "python -m fcos_recipe.commands.draw_shapes"
    ask = parser(
        "", drawn_shapes.__doc__, f"example: {program} --output dataset/shapes", prog=program
    )
    add = ask.add_argument
    add("--output", required=True, metavar="DIR", help="output directory")
    add("--train", type=int, default=1000, help="training images (default: %(default)s)")
    add("--val", type=int, default=100, help="validation images (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    args = ask.parse_args(argv)
    return draw(args.output, args.train, args.val, args.seed)


def draw(output: str, train: int = 1000, val: int = 100, seed: int = 0) -> int:
    """Call `make_shapes` and print what it did."""
    drawn = drawn_shapes.make_shapes(output, train, val, seed)
    print(f"{output}: {'drawn' if drawn else 'exists already, unchanged'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
