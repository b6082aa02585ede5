"""`fcos verify_result`: whether a run, or weights, have the AP published for their config."""

import json
from dataclasses import asdict
from pathlib import Path

from fcos_recipe import api, exit_codes
from fcos_recipe.commands import options
from fcos_recipe.config import load_config
from fcos_recipe.config.eval_sets import MAIN
from fcos_recipe.console import to_console
from fcos_recipe.errors import UserError, printable
from fcos_recipe.evaluation.metric import table
from fcos_recipe.evaluation.options import Options
from fcos_recipe.predict.backends import export_facts
from fcos_recipe.runs import judgement
from fcos_recipe.runs.contents import read_run
from fcos_recipe.runs.judgement import Found, Verdict
from fcos_recipe.runs.published_results import load, published

_RESULT_CODES = {judgement.REPRODUCED: 0, judgement.OUTSIDE: 1, judgement.NOT_COMPARABLE: 2}
_CODES = {
    exit_codes.OK: "inside the noise band of a published row",
    exit_codes.FAILED: "outside of all",
    exit_codes.BAD_INPUT: "could not be judged",
}
_EXAMPLE = """\
examples:
  python tools/verify_result.py output/fcos_r50_fpn_1x_coco
  python tools/verify_result.py -c configs/fcos/fcos_r50_fpn_1x_coco.yml \\
      --weights https://paddledet.bj.bcebos.com/models/fcos_r50_fpn_1x_coco.pdparams
Compares with configs/results.yml. A run with another schedule, batch, data set or setting than the
published one is told so and not judged. AP alone decides; throughput is shown beside it.
"""


def measure(weights: str, config_path: str, overrides: list[str]) -> Found:
    """Evaluate weights on the config's EvalDataset.

    Raises:
        UserError: a config without published row, or weights of another one.
    """
    from fcos_recipe.checkpoint.weights import description, resolve  # imports Paddle

    config = load_config(config_path, overrides)
    _check_published(config.name)  # before minutes of evaluation
    facts = export_facts(weights) or description(resolve(weights))
    other = facts.get("config")
    if other and other != config.name:
        raise UserError(f"{weights}: weights of {other}, not of {config.name}")
    to_console(0)
    result = api.evaluate(config, weights, options=Options(eval_set=MAIN), own_process=True).result
    print(printable(table(result)))
    differences = judgement.differing(config.name, config.data, only_weights=True)
    ap, images = 100 * result["stats"][0], result["images"]
    return Found(config.name, ap, images, differences=differences)


def _check_published(name: str) -> None:
    if published(name):
        return
    known = ", ".join(dict.fromkeys(row.config for row in load().rows))
    raise UserError(f"{name}: nothing is published for this config; there is for {known}")


def lines_of(verdict: Verdict) -> list[str]:
    """The judgement in words: what was found, each published row, the verdict."""
    found = verdict.found
    ap = "-" if found.ap is None else f"{found.ap:.2f}"
    images, batch = ("unknown" if n is None else n for n in (found.images, found.total_batch))
    at = f"{images} images"
    if found.epochs:
        at += f", after {found.epochs} epochs of {batch} images per step"
    lines = [f"{found.name}: box AP {ap} on {at}"]
    if found.speed:
        lines.append("throughput {images_per_second:.2f} images/s in all, "
                     "{images_per_second_per_card:.2f} per card".format(**found.speed))  # fmt: skip
    for compared in verdict.rows:
        row, (low, high) = compared.row, compared.row.band
        name = f"{row.ap:.1f} +- {row.tolerance:.1f} ({row.source.en}"
        name += f", {row.device} x {row.cards})" if row.device not in (None, "cpu") else ")"
        if compared.reasons:
            lines.append(f"{name}: not judged: {'; '.join(compared.reasons)}")
            continue
        text = f"{name}: {compared.side} {low:.1f} to {high:.1f}; the band: {row.tolerance_from.en}"
        if not row.reproduced:
            text += "; this figure was not reproduced by this project"
        lines.append(text)
        if row.images_per_second is not None and found.speed:
            of = {"total": "in all", "card": "per card", "unstated": "per card, most likely"}
            lines.append(f"  published throughput: {row.images_per_second:g} images/s "
                         f"{of[row.throughput_of]}; not judged")  # fmt: skip
    ending = {
        judgement.REPRODUCED: f"AP {ap} is inside the noise band of a published row",
        judgement.OUTSIDE: f"AP {ap} is outside the noise band of every published row",
        judgement.NOT_COMPARABLE: "this is not what was published",
    }
    return [*lines, f"verdict: {verdict.word}: {ending[verdict.word]}"]


def main(argv: list[str]) -> int:
    """`fcos verify_result`: see `--help`."""
    text = "Compare a run, or weights, with the published figure of their config."
    parser = options.parser("verify_result", text, _EXAMPLE, _CODES)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN_DIR",
                        help="a finished run with --eval")  # fmt: skip
    parser.add_argument("--weights", metavar="W",
                        help="evaluate these instead of reading a run; needs -c")  # fmt: skip
    options.add_config(parser)
    options.add_overrides(parser, "override config values for --weights")
    options.add_json(parser, "also write the verdict here")
    args = parser.parse_args(argv)
    if (args.run is None) == (args.weights is None) or (args.weights and not args.config):
        parser.error("give RUN_DIR, or --weights W with -c CONFIG")
    run = read_run(args.run) if args.run else None
    found = judgement.found_in(run) if run else measure(args.weights, args.config, args.opt)
    _check_published(found.name)
    verdict = judgement.judge(found)
    lines = lines_of(verdict)
    print("\n".join(map(printable, lines)))
    if args.json:
        content = {"word": verdict.word, "found": asdict(found), "lines": lines}
        options.write(args.json, json.dumps(content, indent=1) + "\n")
    return _RESULT_CODES[verdict.word]
