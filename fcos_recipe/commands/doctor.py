"""`fcos doctor`: check whether training would work on this machine."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from fcos_recipe.commands import options
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.exit_codes import FAILED, OK
from fcos_recipe.launch import run_check
from fcos_recipe.system import compute, machine_check
from fcos_recipe.system.machine_check import GREEN, RED, YELLOW, Finding

_COLOURS = {GREEN: "32", YELLOW: "33", RED: "31"}
_MARKS = {GREEN: "ok  ", YELLOW: "warn", RED: "FAIL"}

_EXAMPLE = "example: python tools/doctor.py -c configs/fcos/fcos_r18_fpn_demo.yml\n"
_CODES = {OK: "ready to train", FAILED: "training would fail"}


def examine(
    config_path: str | None, overrides: list[str], communication: bool, measure: bool = False
) -> list[Finding]:
    """All findings, in the order of the report; `measure`: a planned run's also from real steps.

    Raises:
        UserError: the config can't be loaded.
    """
    config = load_config(config_path, overrides) if config_path else None
    paddle, found = machine_check.look_at_paddle()
    lines = [machine_check.python(), paddle]
    asked, chosen = compute.requested(config), None
    if found.facts:
        decision, chosen = machine_check.decision(asked, found)
        lines.append(decision)
    lines += [*machine_check.cards(found, chosen), *machine_check.sdk(found.driver)]
    lines += machine_check.resources(Path(config.data["save_dir"] if config else ".").absolute())
    lines += machine_check.libraries()
    if communication and found.facts:
        lines.append(run_check.communication())
    if config:
        lines += run_check.planned_run(config, overrides, chosen, measure)
    return lines


def _show(found: list[Finding]) -> str:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = []
    for item in found:
        mark = _MARKS[item.level]
        if colour:
            mark = f"\033[{_COLOURS[item.level]}m{mark}\033[0m"
        lines.append(f"{mark} {item.name:<14} {item.text}")
        if item.remedy:
            lines.append(f"{'':<19} -> {item.remedy}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run `fcos doctor`; returns 1 if training would fail, else 0."""
    text = "Check this machine, and with -c a planned run on it."
    ask = options.parser("doctor", text, _EXAMPLE, _CODES)
    options.add_config(ask, "also check this run: data, memory, disk space, duration")
    options.add_overrides(ask, None)
    ask.add_argument("--json", action="store_true", help="print the findings as JSON")
    ask.add_argument(
        "--no-comm", action="store_true", help="skip the communication check (some seconds)"
    )
    ask.add_argument(
        "--measure", action="store_true",
        help="with -c: train a few steps; tells images per card that fit and time per epoch",
    )  # fmt: skip
    args = ask.parse_args(argv)
    if args.measure and not args.config:
        raise UserError("--measure: name the config of the run with -c")
    found = examine(args.config, args.opt, not args.no_comm, args.measure)
    failed = any(item.level == RED for item in found)
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(f) for f in found]}, indent=1))
    else:
        print(_show(found))
        print("training would fail" if failed else "ready to train")
    return FAILED if failed else OK
