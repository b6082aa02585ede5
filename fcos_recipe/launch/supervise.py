"""Start a training run on several cards and see it through: what scripts/train*.sh call.

Several ranks run under `python -m paddle.distributed.launch`, which this module starts in a
session of its own and watches. Rank 0's output goes to the console. When a rank dies, the
console says which one, why, and shows its last lines; everything else is ended, on all hosts
(`peers`); the exit code is one of `exit_codes`. One card needs no launcher: the training process
replaces this one (but for `--max-restarts`), so that the progress bar, Ctrl-C and a debugger work
as in any program.
"""

import argparse
import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fcos_recipe import exit_codes
from fcos_recipe.config import load_config
from fcos_recipe.console import run_program
from fcos_recipe.errors import UserError, printable
from fcos_recipe.launch import restart
from fcos_recipe.launch.peers import SHORT_SILENCE, Cluster, Failure, Peers, cluster
from fcos_recipe.launch.ranks import Ranks
from fcos_recipe.places import ROOT
from fcos_recipe.system import compute, cpu_math, device
from fcos_recipe.system.watchdog import WAITS

HEADLINE = "configs/fcos/fcos_r50_fpn_1x_coco.yml"
TRAIN = ROOT / "tools" / "train.py"
GRACE = 15  # seconds the ranks have to end by themselves after a failure
LAST_WORDS = 5  # seconds the ranks have to end by themselves after another host failed
STOP_GRACE = 45  # seconds after Ctrl-C or SIGTERM: a rank may be writing a checkpoint
_LIBC = ctypes.CDLL(None)
# Files in which Paddle's launcher writes down the whole environment, secrets included.
ENVIRONMENTS = ("envlog.*", "backup_env.*.json", "default.*.log")
TAIL = 20  # lines of a failed rank's log on the console
ALL_WAIT = (
    "all ranks that hung were in a collective operation at the same step; their logs do not tell "
    "which of them caused it. If it happens again, check the cards with tools/doctor.py"
)


@dataclass
class Plan:
    """What will be run: `command` with `env` on top of the present environment (None: unset)."""

    command: list[str]
    env: dict[str, str | None]
    ranks: int
    log_dir: Path
    notes: list[str]
    restarts: int = 0
    run_dir: Path | None = None
    cluster: Cluster | None = None
    peers: Peers | None = None

    def environment(self) -> dict[str, str]:
        """The whole environment of the command."""
        merged = {**os.environ, **self.env}
        return {name: value for name, value in merged.items() if value is not None}

    def shell(self) -> str:
        """The plan as a command that a shell takes."""
        unset = [f"-u {k}" for k, v in self.env.items() if v is None]
        put = [f"{k}={shlex.quote(v)}" for k, v in self.env.items() if v is not None]
        lines = [" ".join(["env", *unset]), *put, shlex.join(self.command)]
        return " \\\n  ".join(lines)


def choose_cards(asked: str | None, configured: int, visible: list[str] | None) -> list[str]:
    """The labels of the cards of a run.

    Args:
        asked: `--gpus`: a number of cards, a list of labels ("0,1"; one card: "3,"), or None.
        configured: launch.cards of the config; 0: all that are visible.
        visible: labels of the visible cards; None on the CPU, where any number of ranks runs.

    Raises:
        UserError: not a number or list, or more or other cards than there are.
    """
    source = f"--gpus {asked}" if asked else f"launch.cards: {configured}"
    remedy = "choose fewer with --gpus N (or `launch.cards` in the config), or DEVICE=cpu"
    if asked and "," in asked:
        labels = [label.strip() for label in asked.split(",") if label.strip()]
        unknown = [label for label in labels if visible is not None and label not in visible]
        if unknown or not labels or len(set(labels)) < len(labels):
            raise UserError(
                f"{source}: {f'no card {unknown[0]}' if unknown else 'not a list of cards'}; "
                f"visible are {','.join(visible or []) or 'none'}"
            )
        return labels
    if asked and not re.fullmatch(r"[1-9]\d*", asked):
        raise UserError(
            f"{source}: neither a number of cards (1 or more) nor a list of them; "
            "for card 0 alone write `--gpus 0,`"
        )
    count = int(asked or configured) or len(visible or ["cpu"])
    if visible is None:
        return [str(i) for i in range(count)]
    if count > len(visible):
        raise UserError(f"{source}: {len(visible)} visible ({','.join(visible)}); {remedy}")
    return visible[:count]


def plan(
    kind: str,
    labels: list[str],
    visible: list[str],
    arguments: list[str],
    log_dir: Path,
    script: Path = TRAIN,
    hosts: Cluster | None = None,
    every: list[str] | None = None,
) -> Plan:
    """Command and environment of a run.

    Args:
        kind: cpu, gpu or iluvatar_gpu.
        labels: the chosen cards; on the CPU one entry per rank.
        visible: labels of the cards that the run may use.
        arguments: of the script.
        log_dir: where the launcher puts workerlog.N.
        script: what each rank runs.
        hosts: where this one is one of several.
        every: labels of all cards in Paddle's order; default: `visible`.
    """
    env: dict[str, str | None] = {"PYTHONPATH": device.child_environment()["PYTHONPATH"]}
    env[compute.DECIDED] = kind
    count = len(labels)
    if kind == "cpu":
        env.update(cpu_math.missing(max(1, cpu_math.cores() // count)))
        env["PADDLE_DISTRI_BACKEND"] = "gloo"
        # The launcher deals out what these name, even on a CPU build. On a machine with cards
        # it wants one entry per rank; -1 is no card.
        cards = device.may_have_cards()
        if cards or "CUDA_VISIBLE_DEVICES" in os.environ:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(["-1"] * count) if cards else None
        if cards:  # no plugin: with one, a rank's import of Paddle opens the card of its number
            env["CUSTOM_DEVICE_ROOT"] = ""
        for name in (device.PLUGIN_VISIBLE, "PADDLE_XCCL_BACKEND"):
            if name in os.environ:
                env[name] = None
    elif kind == device.PLUGIN:
        # before 3.1 Paddle and its launcher know a plugin's device by this variable alone
        env["PADDLE_XCCL_BACKEND"] = kind
        # without it the launcher's labels are the numbers that Paddle and the driver use
        if device.PLUGIN_VISIBLE in os.environ:
            env[device.PLUGIN_VISIBLE] = None
    numbers = [str((every or visible).index(label)) for label in labels] if visible else []
    idle = [label for label in visible if label not in labels]
    notes = [f"{count} x {kind}" + (f": cards {','.join(labels)}" if visible else " processes")]
    if idle:
        notes.append(f"visible but idle: cards {','.join(idle)}")
    program = [str(script), *arguments]
    if hosts:
        env.update(hosts.environment(os.environ))
        notes[0] += f" on this host, number {hosts.node} of {hosts.nodes}; 0 is {hosts.master}"
    elif count == 1:
        if visible:
            env[f"FLAGS_selected_{kind}s"] = numbers[0]
        return Plan([sys.executable, *program], env, 1, log_dir, notes)
    dealt = numbers if kind == device.PLUGIN else labels
    which = ["--gpus", ",".join(dealt)] if visible else ["--nproc_per_node", str(count)]
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--log_dir", str(log_dir)]
    if hosts:
        launcher += hosts.launcher_arguments()
    notes.append(f"the log of each rank: {log_dir}/workerlog.N")
    return Plan([*launcher, *which, *program], env, count, log_dir, notes, cluster=hosts)


def supervise(run: Plan) -> int:
    """Run the launcher of `run`, stream rank 0, and end everything when a rank fails.

    Returns:
        An exit code of `exit_codes`.
    """
    run.log_dir.parent.mkdir(parents=True, exist_ok=True)
    run.log_dir.mkdir(mode=0o700, exist_ok=True)
    restart.set_aside(run.log_dir)
    if run.cluster:
        run.peers = run.peers or Peers(
            run.cluster.node, run.cluster.nodes, (run.cluster.master, run.cluster.port),
            run.cluster.name,
        )  # fmt: skip
        run.peers.begin()
    stops: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    old = {s: signal.signal(s, lambda number, _: stops.append(number)) for s in signals}
    try:
        with no_process_left():
            log = run.log_dir / "launcher.log"
            return _watch(run, start(run, log), log, stops)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for pattern in ENVIRONMENTS:
            for path in run.log_dir.glob(pattern):
                path.unlink(missing_ok=True)


def start(run: Plan, log: Path) -> subprocess.Popen:
    """Start the command of `run` in a session of its own, its console in the file `log`.

    Ctrl-C then reaches this process alone, which passes it on; and when this process is killed,
    the kernel sends SIGTERM to the launcher, which ends the ranks.
    """
    with log.open("ab") as file:
        return subprocess.Popen(
            run.command,
            env=run.environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: _LIBC.prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG
        )


@contextmanager
def no_process_left() -> Iterator[None]:
    """End every process that was started inside, orphans included (data workers of a dead rank)."""
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    _LIBC.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become children of this process
    try:
        yield
    finally:
        _end([p for p in psutil.Process().children(recursive=True) if p.pid not in before])


def _watch(run: Plan, launcher: subprocess.Popen, launcher_log: Path, stops: list[int]) -> int:
    console = _Stream(run.log_dir / "workerlog.0")
    ranks = Ranks(launcher.pid, run.ranks)
    deadline = None
    forwarded = 0
    patience = time.monotonic() + run.cluster.wait if run.cluster else float("inf")
    while launcher.poll() is None and (deadline is None or time.monotonic() < deadline):
        ranks.wait()
        console.pump()
        if len(stops) > forwarded:
            if forwarded:  # asked twice: now
                break
            forwarded = len(stops)
            if not ranks.terminate():
                launcher.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_GRACE
        if ranks.failed() and deadline is None:
            deadline = time.monotonic() + GRACE
        if run.peers and not stops:
            if _peers_failed(run, ranks) and deadline is None:
                deadline = time.monotonic() + LAST_WORDS
            if not ranks.complete and time.monotonic() > patience:
                return _alone(run)
    console.pump()
    if stops:
        print(f"launch: stopped by {signal.Signals(stops[0]).name}", file=sys.stderr)
        saved = set(ranks.failed().values()) == {exit_codes.SAVED}
        return exit_codes.SAVED if saved and stops[0] == signal.SIGTERM else 128 + stops[0]
    failed = ranks.failed() or _from_launcher(launcher_log)
    if run.peers and set(failed.values()) == {exit_codes.SAVED}:
        print("launch: SIGTERM on another host: a checkpoint was saved", file=sys.stderr)
        return exit_codes.SAVED
    if run.peers and (code := _report_peers(run, ranks, failed)) is not None:
        return code
    if failed:
        return _report(run, ranks, failed)
    if launcher.returncode:
        print("\n".join(_lines(launcher_log)[-TAIL:]), file=sys.stderr)
        print(f"launch: Paddle's launcher failed; its log: {launcher_log}", file=sys.stderr)
        return exit_codes.FAILED
    return exit_codes.OK


def _peers_failed(run: Plan, ranks: Ranks) -> bool:
    """Tell the other hosts how it stands here; whether one of them has failed."""
    assert run.peers is not None
    failed = ranks.failed()
    if ranks.complete:
        run.peers.met()
    if silent := run.peers.never_heard():
        assert run.cluster is not None
        hosts = ", ".join(map(str, silent))
        print(
            f"launch: warning: no word from the supervisors of hosts {hosts}: "
            f"is UDP port {run.cluster.port} of {run.cluster.master} open? Without it a host that "
            "is lost shows late, and not by name",
            file=sys.stderr,
        )
    if failed and set(failed.values()) != {exit_codes.SAVED}:
        run.peers.report(_failure(run, ranks, failed))
    return not ranks.finished and bool(run.peers.failures())


def _failure(run: Plan, ranks: Ranks, failed: Mapping[int, int]) -> Failure:
    """What failed first on this host, for the others."""
    order, failed, waited = _order(run, failed)
    rank = order[0]
    why = _reason(_lines(run.log_dir / f"workerlog.{rank}"), failed[rank])
    return Failure(ranks.name(rank), failed[rank], why, rank in waited, waited.get(rank, 0))


def _alone(run: Plan) -> int:
    assert run.peers is not None and run.cluster is not None
    missing = ", ".join(map(str, run.peers.unheard())) or "none by word of their supervisors"
    print(
        f"launch: waited {run.cluster.wait:g} s (--wait) for all {run.cluster.nodes} hosts; "
        f"missing: {missing}. Are --master and --nnodes the same everywhere, does each host have "
        f"its --node-rank, and is port {run.cluster.port} of {run.cluster.master} open (TCP, UDP)?",
        file=sys.stderr,
    )
    return exit_codes.FAILED


def _report_peers(run: Plan, ranks: Ranks, failed: Mapping[int, int]) -> int | None:
    """Where another host failed first, tell which one and why; returns the exit code, else None."""
    assert run.peers is not None
    found = run.peers.failures()
    if failed:
        # a rank that only lost its connection: the word of the host that died is on its way, or
        # its silence begins to show
        run.peers.report(_failure(run, ranks, failed))
        end = time.monotonic() + SHORT_SILENCE + 1
        while time.monotonic() < end:
            time.sleep(0.1)
        found = run.peers.failures(SHORT_SILENCE)
        own = run.peers.own_failure()
        if not found or (own and own.key() < found[0][1].key()):
            return None
    if not found:
        return None
    own = run.peers.own_failure() if failed else None
    told = [failure for _, failure in found] + [own] * (own is not None)
    unknown = found[0][1].waited and len({failure.step for failure in told if failure}) == 1
    if unknown:
        print(f"launch: {ALL_WAIT}", file=sys.stderr)
    for number, (beat, failure) in enumerate(found):
        what = f"rank {failure.rank} on host " if failure.rank >= 0 else "all of host "
        when = "then too" if number or unknown else "failed first"
        print(f"launch: {what}{beat.host} {when}: {failure.why}", file=sys.stderr)
    for rank, code in failed.items():
        reason = _reason(_lines(run.log_dir / f"workerlog.{rank}"), code)
        print(f"launch: then rank {ranks.name(rank)} on this host: {reason}", file=sys.stderr)
    print(f"launch: the ranks of this host were ended; their logs: {run.log_dir}", file=sys.stderr)
    code = found[0][1].code
    return 128 - code if code < 0 else code


def _order(
    run: Plan, failed: Mapping[int, int]
) -> tuple[list[int], dict[int, int], dict[int, int]]:
    """Failed ranks of this host, causes first; their codes; those that may only have waited.

    Of ranks that all waited, those with fewer steps done than another are the cause. The third
    value maps each of the others to its number of steps.

    Args:
        failed: rank -> exit code (signals negative), in the order of death.
    """
    ended = (-signal.SIGTERM, -signal.SIGKILL)
    hung: list[int] = []
    waited: dict[int, int] = {}
    silent: list[int] = []
    for rank, code in failed.items():
        own = _own_word(_lines(run.log_dir / f"workerlog.{rank}"))
        if code == exit_codes.HUNG or (code in ended and own.startswith("hung")):
            step = re.search(r" at step (\d+) ", own)
            if step and own.endswith(WAITS):
                waited[rank] = int(step[1])
            else:
                hung.append(rank)
        elif not own and code < 0:
            silent.append(rank)
    order = list(failed)
    if order[0] in waited:
        # native code that holds the interpreter's lock stops the watchdog, too: a rank that left
        # no word while the others waited is the one that they waited for
        hung = hung or silent or [r for r, step in waited.items() if step < max(waited.values())]
        order = list(dict.fromkeys([*hung, *waited, *order]))
    failed = {**failed, **dict.fromkeys([*hung, *waited], exit_codes.HUNG)}
    return order, failed, {r: step for r, step in waited.items() if r not in hung}


def _report(run: Plan, ranks: Ranks, failed: Mapping[int, int]) -> int:
    """Tell which rank of this host failed first and why; returns the exit code.

    Args:
        failed: rank -> exit code (signals negative), in the order of death.
    """
    order, failed, waited = _order(run, failed)
    rank, code = order[0], failed[order[0]]
    peers = run.peers.failures() if run.peers else []
    unknown = rank in waited and not any(found.step > waited[rank] for _, found in peers)
    log = run.log_dir / f"workerlog.{rank}"
    said = _lines(log)
    if code == exit_codes.BAD_INPUT:
        streamed = set(_lines(run.log_dir / "workerlog.0"))
        for line in said:
            if line.startswith("error: ") and line not in streamed:
                print(line, file=sys.stderr)
        return code
    if unknown:
        print(f"launch: {ALL_WAIT}", file=sys.stderr)
    elif rank:
        print(f"launch: the last lines of rank {ranks.name(rank)}:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in said[-TAIL:]), file=sys.stderr)
    where = f"on host {run.cluster.name}" if run.cluster else f"of {run.ranks}"
    print(
        f"launch: rank {ranks.name(rank)} {where}{' failed first' * (not unknown)}: "
        f"{_reason(said, code)}",
        file=sys.stderr,
    )
    for other in order[1:]:
        other_code = failed[other]
        if other_code in (-signal.SIGTERM, -signal.SIGKILL):  # because of the first
            continue
        reason = _reason(_lines(run.log_dir / f"workerlog.{other}"), other_code)
        then = "" if unknown else "then "
        print(f"launch: {then}rank {ranks.name(other)}: {reason}", file=sys.stderr)
    print(f"launch: the other ranks were ended; whole log: {log}", file=sys.stderr)
    return 128 - code if code < 0 else code


def _own_word(lines: list[str]) -> str:
    """What `watchdog.announce` wrote last: "hung: ..." or "failed: ..."; "" if nothing."""
    own = [m.group(1) for line in lines if (m := re.match(r"rank \d+ ((failed|hung): .*)", line))]
    return own[-1] if own else ""


def _reason(lines: list[str], code: int) -> str:
    """A rank's own last word, else its last line when it raised."""
    own = _own_word(lines).partition(": ")[2]
    if code == exit_codes.HUNG and not own:
        return "stood still without a word while the others waited for it"
    last = own or (lines[-1].strip() if code == exit_codes.FAILED and lines else "")
    return ": ".join(filter(None, (exit_codes.describe(code), last)))


def _lines(path: Path) -> list[str]:
    """The lines of a log that hold anything; [] without the file."""
    text = printable(path.read_text(errors="replace")) if path.is_file() else ""
    return [line for line in text.splitlines() if line.strip()]


def _from_launcher(log: Path) -> dict[int, int]:
    """Failed ranks by the launcher's own words: for a rank that died before it was seen."""
    pattern = r"Container rank (\d+) status failed .* code (-?\d+) log "
    found = re.findall(pattern, "\n".join(_lines(log)))
    return {int(rank): int(code) for rank, code in found}


class _Stream:
    """Copies a growing file to the console."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0

    def pump(self) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _end(processes: list[psutil.Process]) -> None:
    """End processes and wait for them: SIGTERM, then SIGKILL."""
    for signal_name in ("terminate", "kill"):
        for process in processes:
            try:
                getattr(process, signal_name)()
            except psutil.NoSuchProcess:
                continue
        _, processes = psutil.wait_procs(processes, timeout=3)


_HOSTS: dict[str, dict[str, Any]] = {
    "--nnodes": {"metavar": "N", "help": "number of hosts that train together (default: 1)"},
    "--master": {
        "metavar": "HOST:PORT",
        "help": "host 0 and a free port of it (TCP and UDP), the same on all hosts",
    },
    "--node-rank": {"type": int, "metavar": "R", "help": "number of this host, 0 to N-1"},
    "--host": {
        "metavar": "ADDRESS",
        "help": "IPv4 address of this host for the others (default: that of the route to --master)",
    },
    "--wait": {
        "type": float, "default": 600, "metavar": "SECONDS",
        "help": "how long to wait for all hosts at a start (default: %(default)s)",
    },
}  # fmt: skip


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the scripts, and what is passed on to tools/train.py."""
    parser = argparse.ArgumentParser(
        prog="scripts/train.sh",
        usage="bash scripts/train.sh [CONFIG] [options] [options of tools/train.py]",
        description=__doc__.split("\n")[0],
        epilog="examples:\n  DEVICE=cpu bash scripts/train.sh configs/fcos/fcos_r18_fpn_demo.yml "
        "--gpus 2 --eval\n  bash scripts/train.sh configs/fcos/fcos_r50_fpn_1x_coco.yml --eval "
        "--nnodes 2 --master node0:29500 \\\n    --node-rank 0    # on the other host: 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", help=f"default: {HEADLINE}")
    parser.add_argument("-o", "--opt", nargs="*", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--gpus",
        "--devices",
        metavar="N|LIST",
        help="number of cards, or their labels: 0,1,2 (one: `3,`), on each host; default: "
        "launch.cards of the config, else all visible ones",
    )
    for name, more in _HOSTS.items():
        parser.add_argument(name, **more)
    parser.add_argument("--log_dir", type=Path, help="rank logs; default: launch/ beside the run")
    parser.add_argument("--output", help="passed on to tools/train.py")
    parser.add_argument(
        "--max-restarts", type=int, default=0, metavar="N",
        help="start again from the newest checkpoint when a rank dies or hangs, at most N times",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print command and environment")
    args, rest = parser.parse_known_args(argv)
    if rest and not rest[0].startswith("-"):
        args.config = rest.pop(0)
    return args, rest


def prepare(argv: list[str]) -> tuple[Plan, bool]:
    """From command line and environment (DEVICE) to a plan, and whether it is a dry run."""
    args, rest = parse(argv)
    path = args.config or HEADLINE
    if not Path(path).exists() and (ROOT / path).exists():
        path = str(ROOT / path)  # the scripts work from any directory
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
    hosts = cluster(args.nnodes, args.master, args.node_rank, args.host, args.wait)
    if hosts:  # they may share a file system
        log_dir /= f"host-{hosts.node}"
    run = plan(found.device, labels, visible, train, log_dir, hosts=hosts, every=list(found.every))
    run.notes.insert(0, found.line())
    run.restarts = args.max_restarts
    run.run_dir = Path(args.output or output / config.name)
    return run, args.dry_run


def main(argv: list[str]) -> int:
    """Entry of scripts/train.sh. Returns an exit code; one card never returns."""
    run, dry = prepare(argv)
    for note in run.notes:
        print(f"launch: {note}", file=sys.stderr if dry else sys.stdout, flush=True)
    if dry:
        print(run.shell())
        return exit_codes.OK
    several = run.ranks > 1 or run.cluster
    once = supervise if several else restart.one_process
    if several or run.restarts > 0:
        return restart.until_done(run, once, run.restarts, run.run_dir)
    os.execve(run.command[0], run.command, run.environment())


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
