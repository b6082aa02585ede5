"""Watch the ranks of a run on this host, and end everything when one of them fails.

Several ranks run under `python -m paddle.distributed.launch`, which this module starts in a
session of its own and watches. Rank 0's output goes to the console. When a rank dies, the console
says which one, why, and shows its last lines; everything else is ended, on all hosts
(`heartbeats`); the exit code is one of `exit_codes`.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil

from fcos_recipe import exit_codes
from fcos_recipe.errors import printable
from fcos_recipe.files.atomic import open_own, own_folder
from fcos_recipe.launch.heartbeats import SHORT_SILENCE, Failure, Heartbeats
from fcos_recipe.launch.plan import Plan
from fcos_recipe.launch.ranks import Ranks
from fcos_recipe.system.stop_signals import requests
from fcos_recipe.system.watchdog import WAITS

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


def supervise(run: Plan) -> int:
    """Run the launcher of `run`, stream rank 0, and end everything when a rank fails.

    Returns:
        An exit code of `exit_codes`.
    """
    own_folder(run.log_dir, run.logs_below or run.log_dir, 0o700)
    attempts = [path for path in run.log_dir.glob("attempt-*") if not path.is_symlink()]
    for folder in (run.log_dir, *attempts, *run.earlier_logs):
        remove_environments(folder)  # of a launch that was killed
    set_aside(run.log_dir)
    if run.cluster:
        run.heartbeats = run.heartbeats or Heartbeats(
            run.cluster.node, run.cluster.nodes, (run.cluster.master, run.cluster.port),
            run.cluster.name,
        )  # fmt: skip
        run.heartbeats.begin()
    stops: list[int] = []
    try:
        with stop_signals_to(stops.append), no_process_left():
            log = run.log_dir / "launcher.log"
            return _watch(run, start_process(run, log), log, stops)
    finally:
        remove_environments(run.log_dir)


def remove_environments(logs: Path) -> None:
    """Remove the files of a folder in which Paddle's launcher has written the environment."""
    for path in (path for pattern in ENVIRONMENTS for path in logs.glob(pattern)):
        with suppress(OSError):  # another start may do the same, or the folder may be another's
            path.unlink()


def one_process(run: Plan) -> int:
    """Run a plan of one rank, on this console; signals are passed on. Returns an exit code."""
    child = start_process(run)
    with stop_signals_to(child.send_signal):
        return exit_codes.of_shell(child.wait())


def set_aside(logs: Path) -> None:
    """Move ranks' logs of an earlier attempt into a folder of their own, attempt-1, attempt-2, ...

    The launcher appends, so that old words would be read as this run's.
    """
    files = [path for path in logs.glob("*") if path.is_file() or path.is_symlink()]
    if not files:
        return
    folder = logs / f"attempt-{len(list(logs.glob('attempt-*'))) + 1}"
    folder.mkdir()  # an error if it is there, also as a link
    for path in files:
        path.rename(folder / path.name)
    print(f"launch: the logs of the attempt before: {folder}", file=sys.stderr)


def start_process(run: Plan, log: Path | None = None) -> subprocess.Popen:
    """Start the command of `run` in a session of its own.

    Ctrl-C then reaches this process alone, which passes it on; and when this process is killed,
    the kernel sends SIGTERM to the launcher, which ends the ranks.

    Args:
        run: what to start.
        log: file that gets its output; None: the console of this process.
    """
    with open_own(log, os.O_WRONLY | os.O_APPEND) if log else nullcontext() as file:
        return subprocess.Popen(
            run.command,
            env=run.environment(),
            stdin=subprocess.DEVNULL if log else None,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: _LIBC.prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG
        )


@contextmanager
def stop_signals_to(handle: Callable[[int], object]) -> Iterator[None]:
    """Inside, SIGINT and the signals of `stop_signals.requests` go to a function."""
    numbers = {signal.SIGINT, *requests()}
    old = {number: signal.signal(number, lambda n, _: handle(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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
        if run.heartbeats and not stops:
            if _other_host_failed(run, ranks) and deadline is None:
                deadline = time.monotonic() + LAST_WORDS
            if not ranks.complete and time.monotonic() > patience:
                return _report_missing_hosts(run)
    console.pump()
    if stops:
        print(f"launch: stopped by {signal.Signals(stops[0]).name}", file=sys.stderr)
        saved = set(ranks.failed().values()) == {exit_codes.SAVED}
        return exit_codes.SAVED if saved and stops[0] != signal.SIGINT else 128 + stops[0]
    failed = ranks.failed() or _from_launcher(launcher_log)
    if run.heartbeats and set(failed.values()) == {exit_codes.SAVED}:
        print("launch: SIGTERM on another host: a checkpoint was saved", file=sys.stderr)
        return exit_codes.SAVED
    if run.heartbeats and (code := _report_other_host(run, ranks, failed)) is not None:
        return code
    if failed:
        return _report(run, ranks, failed)
    if launcher.returncode:
        print("\n".join(_lines(launcher_log)[-TAIL:]), file=sys.stderr)
        print(f"launch: Paddle's launcher failed; its log: {launcher_log}", file=sys.stderr)
        return exit_codes.FAILED
    return exit_codes.OK


def _other_host_failed(run: Plan, ranks: Ranks) -> bool:
    """Tell the other hosts how it stands here; whether one of them has failed."""
    assert run.heartbeats is not None
    failed = ranks.failed()
    if ranks.complete:
        run.heartbeats.met()
    if silent := run.heartbeats.never_heard():
        assert run.cluster is not None
        hosts = ", ".join(map(str, silent))
        print(
            f"launch: warning: no word from the supervisors of hosts {hosts}: "
            f"is UDP port {run.cluster.port} of {run.cluster.master} open? Without it a host that "
            "is lost shows late, and not by name",
            file=sys.stderr,
        )
    if failed and set(failed.values()) != {exit_codes.SAVED}:
        run.heartbeats.report(_failure(run, ranks, failed))
    return not ranks.finished and bool(run.heartbeats.failures())


def _failure(run: Plan, ranks: Ranks, failed: Mapping[int, int]) -> Failure:
    """What failed first on this host, for the others."""
    order, failed, waited = _order(run, failed)
    rank = order[0]
    why = _reason(_lines(run.log_dir / f"workerlog.{rank}"), failed[rank])
    return Failure(ranks.name(rank), failed[rank], why, rank in waited, waited.get(rank, 0))


def _report_missing_hosts(run: Plan) -> int:
    assert run.heartbeats is not None and run.cluster is not None
    missing = ", ".join(map(str, run.heartbeats.unheard())) or "none by word of their supervisors"
    print(
        f"launch: waited {run.cluster.wait:g} s (--wait) for all {run.cluster.nodes} hosts; "
        f"missing: {missing}. Are --master and --nnodes the same everywhere, does each host have "
        f"its --node-rank, and is port {run.cluster.port} of {run.cluster.master} open (TCP, UDP)?",
        file=sys.stderr,
    )
    return exit_codes.FAILED


def _report_other_host(run: Plan, ranks: Ranks, failed: Mapping[int, int]) -> int | None:
    """Where another host failed first, tell which one and why; returns the exit code, else None."""
    assert run.heartbeats is not None
    found = run.heartbeats.failures()
    if failed:
        # a rank that only lost its connection: the word of the host that died is on its way, or
        # its silence begins to show
        run.heartbeats.report(_failure(run, ranks, failed))
        end = time.monotonic() + SHORT_SILENCE + 1
        while time.monotonic() < end:
            time.sleep(0.1)
        found = run.heartbeats.failures(SHORT_SILENCE)
        own = run.heartbeats.own_failure()
        if not found or (own and own.key() < found[0][1].key()):
            return None
    if not found:
        return None
    own = run.heartbeats.own_failure() if failed else None
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
    return exit_codes.of_shell(found[0][1].code)


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
    others = run.heartbeats.failures() if run.heartbeats else []
    unknown = rank in waited and not any(found.step > waited[rank] for _, found in others)
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
    return exit_codes.of_shell(code)


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
