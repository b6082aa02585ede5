"""`python -m fcos_recipe.commands.draw_shapes`: the demonstration's data set."""

from fcos_recipe.commands.options import parser
from fcos_recipe.datasets import drawn_shapes


def main(argv: list[str] | None = None) -> int:
    """Draw it, unless it is there already."""
    program = "python -m fcos_recipe.commands.draw_shapes"
    ask = parser(
        "", drawn_shapes.__doc__, f"example: {program} --output dataset/shapes", prog=program
    )
    add = ask.add_argument
    add("--output", required=True, help="directory to make")
    add("--train", type=int, default=1000, help="images (default %(default)s)")
    add("--val", type=int, default=100, help="images (default %(default)s)")
    add("--seed", type=int, default=0)
    args = ask.parse_args(argv)
    return draw(args.output, args.train, args.val, args.seed)


def draw(output: str, train: int = 1000, val: int = 100, seed: int = 0) -> int:
    """`make_shapes`, and a line that says what it did."""
    drawn = drawn_shapes.make_shapes(output, train, val, seed)
    print(f"{output}: {'drawn' if drawn else 'already there, intact'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
