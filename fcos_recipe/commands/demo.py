"""The demonstration: draw a data set, train on it, evaluate, draw predictions, tell the figures."""

import time
from pathlib import Path

from fcos_recipe import api
from fcos_recipe.commands.draw_shapes import draw
from fcos_recipe.commands.options import add_config, add_overrides, parser
from fcos_recipe.console import plural, run_program, to_console
from fcos_recipe.errors import RunFailure
from fcos_recipe.files.atomic import write_json
from fcos_recipe.files.reading import read_json, read_records
from fcos_recipe.report.write import HTML

CONFIG = "configs/fcos/fcos_r18_fpn_demo.yml"
DATA = "datasets/demo"


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; all figures are read from what the training run left behind."""
    ask = parser("", __doc__, "", prog="python -m fcos_recipe.commands.demo")
    add_config(ask, "default: %(default)s", default=CONFIG)
    ask.add_argument("--output", default="output/demo", help="default: %(default)s")
    ask.add_argument(
        "--started", type=float, default=time.time(), metavar="T",
        help="seconds since 1970 at which the demonstration began, default now",
    )  # fmt: skip
    add_overrides(ask, "config overrides for training")
    args = ask.parse_args(argv)
    output = Path(args.output)
    trained, drawn = output / "run", output / "drawn"
    weights = trained / "model_final.pdparams"
    seconds = {"install": time.time() - args.started}
    to_console(0)

    def predict() -> None:
        written = api.predict_files(weights, [f"{DATA}/val/00000*.jpg"], drawn, progress=None)
        if written.bad:
            raise RunFailure(*written.bad)
        print(f"{plural(written.images, 'image')}, {plural(written.drawn, 'detection')} drawn, "
              f"score >= {written.draw_threshold:g} -> {drawn}")  # fmt: skip

    steps = {
        "data": lambda: draw(DATA),
        "train": lambda: api.train(
            args.config, output=trained, evaluate=True, overrides=args.opt, own_process=True
        ),
        "predict": predict,
    }
    for name, step in steps.items():
        start = time.time()
        print(f"\n== {name}", flush=True)
        step()
        seconds[name] = time.time() - start

    result = summary(trained)
    result.update(
        seconds=round(time.time() - args.started, 1),
        steps={name: round(value, 1) for name, value in seconds.items()},
        weights=str(weights),
        drawings=str(drawn),
    )
    write_json(output / "result.json", result)

    from fcos_recipe.evaluation.metric import table

    print(f"\n{table(result)}\n\ndrawings: {drawn}; figures: {output / 'result.json'}")
    if (trained / HTML).is_file():
        print(f"report: {trained / HTML}")
    print(
        f"RESULT AP={result['AP']:.3f} AP50={result['AP50']:.3f} "
        f"images_per_second={result['images_per_second']:.2f} seconds={result['seconds']:.0f}"
    )
    return 0


def summary(trained: Path) -> dict:
    """Figures of a run: its last evaluation and its training speed.

    Args:
        trained: run directory.

    Returns:
        the last evaluation (`stats`, `names`, `per_class`, ...), AP and AP50 out of it, and
        `images_per_second` of training on all ranks, as `runs.throughput` defines it.
    """
    from fcos_recipe.runs.throughput import throughput

    evaluation = read_json(trained / "eval.json")
    records = read_records(trained / "metrics.jsonl")
    figures = dict(zip(evaluation["names"], evaluation["stats"], strict=True))
    return {
        "AP": figures["AP"],
        "AP50": figures["AP50"],
        **evaluation,
        "images_per_second": throughput(records)["images_per_second"],
        "evaluation_images_per_second": evaluation["images_per_second"],
    }


if __name__ == "__main__":
    run_program(main)
