"""The demonstration: draw a data set, train on it, evaluate, draw predictions, tell the figures."""

import argparse
import json
import time
from pathlib import Path

from fcos_recipe.cli import run
from fcos_recipe.commands.report import HTML

CONFIG = "configs/fcos/fcos_r18_fpn_demo.yml"
DATA = "datasets/demo"


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration by the commands that a user would type; the first failure ends it.

    All figures are read from what the training run left in its directory.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fcos_recipe.commands.demo", description=__doc__
    )
    parser.add_argument("--config", "-c", default=CONFIG, help="default: %(default)s")
    parser.add_argument("--output", default="output/demo", help="default: %(default)s")
    parser.add_argument(
        "--started", type=float, default=time.time(), metavar="T",
        help="seconds since 1970 at which the demonstration began, default now",
    )  # fmt: skip
    parser.add_argument("-o", "--opt", nargs="*", default=[], help="config overrides for training")
    args = parser.parse_args(argv)
    output = Path(args.output)
    trained, drawn = output / "run", output / "drawn"
    weights = trained / "model_final.pdparams"
    seconds = {"install": time.time() - args.started}
    steps = {
        "data": _draw_data,
        "train": lambda: run(
            "train", ["-c", args.config, "--eval", "--output", str(trained), "-o", *args.opt]
        ),
        "predict": lambda: run(
            "infer",
            ["--weights", str(weights), "--input", f"{DATA}/val/00000*.jpg"]
            + ["--output", str(drawn), "--draw_threshold", "0.4"],
        ),
    }
    for name, step in steps.items():
        start = time.time()
        print(f"\n== {name}", flush=True)
        if code := step():
            return code
        seconds[name] = time.time() - start

    result = summary(trained)
    result.update(
        seconds=round(time.time() - args.started, 1),
        steps={name: round(value, 1) for name, value in seconds.items()},
        weights=str(weights),
        drawings=str(drawn),
    )
    (output / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

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

    evaluation = json.loads((trained / "eval.json").read_text(encoding="utf-8"))
    lines = (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    figures = dict(zip(evaluation["names"], evaluation["stats"], strict=True))
    return {
        "AP": figures["AP"],
        "AP50": figures["AP50"],
        **evaluation,
        "images_per_second": throughput(records)["images_per_second"],
        "evaluation_images_per_second": evaluation["images_per_second"],
    }


def _draw_data() -> int:
    from fcos_recipe.datasets.drawn_shapes import main as shapes

    return shapes(["--output", DATA])


if __name__ == "__main__":
    raise SystemExit(main())
