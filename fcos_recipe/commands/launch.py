"""`scripts/train*.sh`: start a training run on several cards or hosts, and watch it until it ends.

One card needs no launcher: the training process replaces this one (but for `--max-restarts`), so
that the progress bar, Ctrl-C and a debugger work as in any program.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.commands import options
from fcos_recipe.config.find import find_config
from fcos_recipe.config.load import load_config
from fcos_recipe.console import run_program
from fcos_recipe.errors import UserError
from fcos_recipe.launch.hosts import find_cluster
from fcos_recipe.launch.plan import Plan, choose_cards, plan_launch
from fcos_recipe.launch.restart import until_done
from fcos_recipe.launch.supervise import one_process, stop_signals_to, supervise
from fcos_recipe.system import compute, device, stop_signals

HEADLINE = "configs/fcos/fcos_r50_fpn_1x_coco.yml"
_TEXT = "Start a training run on several cards and see it through."
_EXAMPLE = """\
examples:
  DEVICE=cpu bash scripts/train.sh configs/fcos/fcos_r18_fpn_demo.yml --gpus 2 --eval
  bash scripts/train.sh configs/fcos/fcos_r50_fpn_1x_coco.yml --eval --nnodes 2 \\
    --master node0:29500 --node-rank 0    # on the other host: 1
"""
_CODES = {
    exit_codes.FAILED: "a rank failed: the last lines name it",
    exit_codes.SAVED: "SIGTERM or SIGHUP, after a checkpoint was saved",
    exit_codes.HUNG: "a rank hung",
    exit_codes.INTERRUPTED: "Ctrl-C",
}


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the scripts, and what is passed on to tools/train.py."""
    ask = options.parser(
        "", _TEXT, _EXAMPLE, _CODES, prog="scripts/train.sh",
        usage="bash scripts/train.sh [CONFIG] [options] [options of tools/train.py]",
        allow_abbrev=False,
    )  # fmt: skip
    add = ask.add_argument
    options.add_config(ask, f"default: {HEADLINE}")
    options.add_overrides(ask, None)
    add(
        "--gpus",
        "--devices",
        metavar="N|LIST",
        help="number of cards, or their labels: 0,1,2 (one: `3,`), on each host; default: "
        "launch.cards of the config, else all visible ones",
    )
    add("--nnodes", metavar="N", help="number of hosts that train together (default: 1)")
    add("--master", metavar="HOST:PORT",
        help="host 0 and a free port of it (TCP and UDP), the same on all hosts")  # fmt: skip
    add("--node-rank", type=int, metavar="R", help="number of this host, 0 to N-1")
    add("--host", metavar="ADDRESS", help="IPv4 address of this host for the others (default: that "
        "of the route to --master)")  # fmt: skip
    add("--wait", type=float, default=600, metavar="SECONDS",
        help="how long to wait for all hosts at a start (default: %(default)s)")  # fmt: skip
    add("--log_dir", type=Path, help="rank logs; default: launch/ beside the run")
    add("--output", help="passed on to tools/train.py")
    add(
        "--max-restarts", type=int, default=0, metavar="N",
        help="start again from the newest checkpoint when a rank dies or hangs, at most N times",
    )  # fmt: skip
    add("--dry-run", action="store_true", help="print command and environment")
    args, rest = ask.parse_known_args(argv)
    if rest and not rest[0].startswith("-"):
        args.config = rest.pop(0)
    return args, rest


def prepare(argv: list[str]) -> tuple[Plan, bool]:
    """From command line and environment (DEVICE) to a plan, and whether it is a dry run."""
    args, rest = parse(argv)
    path = str(find_config(args.config or HEADLINE))
    overrides = list(args.opt)
    if os.environ.get("DEVICE") and not any(text.startswith("device=") for text in overrides):
        overrides.append(f"device={os.environ['DEVICE']}")
    config = load_config(path, overrides)
    found = compute.decide(compute.requested(config), device.ask_paddle_outside)
    visible = list(found.cards)
    cards = config.data["launch"]["cards"]
    on_cpu = found.device == "cpu"
    labels = choose_cards(args.gpus, cards, None if on_cpu else visible)
    if on_cpu and found.requested != "cpu" and (len(labels) > 1 or "," in (args.gpus or "")):
        source = f"--gpus {args.gpus}" if args.gpus else f"launch.cards: {cards}"
        raise UserError(
            f"{source}: no card was found on this machine; DEVICE=cpu runs {len(labels)} "
            "process(es) on the CPU, and `--gpus 1` runs one"
        )
    train = ["-c", path, *rest]
    if args.output:
        train += ["--output", args.output]
    if overrides:
        train += ["-o", *overrides]
    # beside the run directories, not in one: a new run moves an older directory of its name away
    output = Path(args.output).parent if args.output else Path(config.data["save_dir"])
    stamp = f"{Path(path).stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    log_dir = args.log_dir or output / "launch" / stamp
    hosts = find_cluster(args.nnodes, args.master, args.node_rank, args.host, args.wait)
    if hosts:  # they may share a file system
        log_dir /= f"host-{hosts.node}"
    run = plan_launch(
        found.device, labels, visible, train, log_dir, hosts=hosts, every=list(found.every)
    )
    run.logs_below = args.log_dir or output
    if not args.log_dir:
        run.earlier_logs = [p for p in (output / "launch").glob("**") if not p.is_symlink()]
    run.notes.insert(0, found.line())
    run.restarts = args.max_restarts
    run.run_dir = Path(args.output or output / config.name)
    return run, args.dry_run


def main(argv: list[str]) -> int:
    """See `scripts/train.sh --help`. Returns an exit code; one card never returns."""
    run, dry = prepare(argv)
    for note in run.notes:
        print(f"launch: {note}", file=sys.stderr if dry else sys.stdout, flush=True)
    if dry:
        print(run.shell())
        return exit_codes.OK
    several = run.ranks > 1 or run.cluster
    once = supervise if several else one_process
    if several or run.restarts > 0:
        return until_done(run, once, run.restarts, run.run_dir)
    os.execve(run.command[0], run.command, run.environment())


if __name__ == "__main__":
    with stop_signals_to(stop_signals.end):
        run_program(lambda: main(sys.argv[1:]))
