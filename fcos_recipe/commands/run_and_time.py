"""scripts/run_and_time.sh: prepare, train, evaluate, and print a `RESULT` line.

The time to train is measured as benchmark suites do: from the start of the training command to the
end of the last evaluation. It includes imports, data workers, evaluations and saves, but not the
preparation of data and backbone weights.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.commands.options import add_overrides, parser
from fcos_recipe.commands.verify_result import lines_of
from fcos_recipe.config import Config, eval_sets, load_config
from fcos_recipe.console import run_program
from fcos_recipe.errors import UserErrors, printable
from fcos_recipe.files.atomic import write_json
from fcos_recipe.files.reading import read_json
from fcos_recipe.runs.contents import Run, read_run
from fcos_recipe.runs.judgement import OUTSIDE, Verdict, found_in, judge
from fcos_recipe.system import device

DEMO = "fcos_r18_fpn_demo"
RESULT = "result.json"
_EXAMPLE = """\
examples:
  bash scripts/run_and_time.sh configs/fcos/fcos_r50_fpn_1x_coco.yml
  DEVICE=cpu bash scripts/run_and_time.sh configs/fcos/fcos_r18_fpn_demo.yml --seed 1
Other options go to scripts/train.sh (--gpus N, -o KEY=VALUE, --seed N ...).
The last line is RESULT with key=value pairs; RUN_DIR/result.json has the same and more.
If training fails, this command returns its exit code.
"""
_CODES = {
    exit_codes.OK: "trained; AP is inside the published noise band, or there is nothing comparable",
    exit_codes.FAILED: "AP is outside the published noise band",
}


def prepare(config: Config) -> None:
    """Check the data, draw those of the demo, and download the backbone weights.

    Raises:
        UserError: data or weights are missing.
    """
    if config.name == DEMO:
        from fcos_recipe.datasets.drawn_shapes import make_shapes

        make_shapes(config.data["TrainDataset"]["dataset_dir"])
    judged = eval_sets.sections(config.data).values()
    if missing := config.missing_files("TrainDataset", *judged, "pretrain_weights"):
        raise UserErrors(missing)
    if "://" in (config.data["pretrain_weights"] or ""):
        from fcos_recipe.checkpoint.zoo import cached

        cached(config.data["pretrain_weights"])


def result(run: Run, verdict: Verdict, started: float) -> dict:
    """The content of result.json for a finished run.

    Args:
        run: the run.
        verdict: its comparison with the published rows.
        started: time at which the training command began, seconds since 1970.

    Returns:
        JSON-ready dict; times in seconds, AP in percent. `time_to_target_s` is the time to the
        first evaluation that reached the lower end of the published band, None if none did.
    """
    found = verdict.found
    goal = min((compared.row.band[0] for compared in verdict.rows), default=None)
    reached = [r["time"] for r in run.evals if goal is not None and 100 * r["AP"] >= goal]
    environment = read_json(run.path / "environment.json")
    return {
        "config": found.name,
        "AP": None if found.ap is None else round(found.ap, 2),
        "time_to_train_s": round(run.evals[-1]["time"] - started, 1),
        "time_to_target_s": round(reached[0] - started, 1) if reached else None,
        "images_per_second": round(found.speed["images_per_second"], 2),
        "images_per_second_per_card": round(found.speed["images_per_second_per_card"], 2),
        "ranks": environment["ranks"],
        "device": environment["device"],
        "total_batch": found.total_batch,
        "epochs": found.epochs,
        "verdict": verdict.word if verdict.rows else "nothing published",
        "differences": found.differences if verdict.rows else [],
        "environment": environment,
    }


def main(argv: list[str] | None = None) -> int:
    """`python -m fcos_recipe.commands.run_and_time`: see `--help`."""
    ask = parser(
        "", "Prepare, train, evaluate; print AP, throughput and time to train.", _EXAMPLE, _CODES,
        prog="scripts/run_and_time.sh", allow_abbrev=False,
    )  # fmt: skip
    add = ask.add_argument
    add("config", metavar="CONFIG", help="YAML file")
    add("--output", type=Path, metavar="DIR", help="run directory (default: save_dir/CONFIG_NAME)")
    add_overrides(ask)
    args, rest = ask.parse_known_args(argv)
    config = load_config(args.config, args.opt)
    folder = args.output or Path(config.data["save_dir"]) / config.name
    prepare(config)
    command = [sys.executable, "-m", "fcos_recipe.commands.launch", args.config, "--eval", *rest]
    command += ["--output", str(folder), *(["-o", *args.opt] if args.opt else [])]
    started = time.time()
    code = subprocess.run(command, env={**os.environ, **device.child_environment()}).returncode
    if code:
        return exit_codes.of_shell(code)
    run = read_run(folder)
    verdict = judge(found_in(run))
    found = result(run, verdict, started)
    write_json(folder / RESULT, found)
    if verdict.rows:
        print("\n".join(map(printable, lines_of(verdict))))
    shown = {k: v for k, v in found.items() if k not in ("environment", "differences")}
    print("RESULT", " ".join(f"{k}={str(v).replace(' ', '_')}" for k, v in shown.items()),
          f"run={folder}")  # fmt: skip
    return exit_codes.FAILED if verdict.word == OUTSIDE else exit_codes.OK


if __name__ == "__main__":
    run_program(main)
