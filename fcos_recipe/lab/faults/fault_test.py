"""`scripts/fault_test.sh`: disturb training runs, resume them, and compare the results.

Every fault is real (SIGKILL, a full file system, a hanging process, changed bytes) and hits a real
run of the demo's network on a small generated data set. A fault is survived if the run, resumed to
its end, equals an undisturbed run: weights and optimizer states bit for bit with one process,
within 1e-6 with two; the same records in metrics.jsonl; no process or shared memory left behind.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from fcos_recipe import exit_codes
from fcos_recipe.commands import options
from fcos_recipe.console import run_program
from fcos_recipe.datasets.drawn_shapes import make_shapes
from fcos_recipe.errors import UserError
from fcos_recipe.lab.faults.tools import (
    Lost,
    NotPossible,
    differences,
    handles,
    left_by,
    parts,
    ranks_of,
    remove,
    running,
    tmpfs,
    tree,
)
from fcos_recipe.places import ROOT

# Number of faults of each kind: in the whole test, and with --quick.
COUNTS = {
    "kill": (60, 7), "rank": (6, 1), "hang": (5, 1), "disk": (2, 1), "saves": (2, 1),
    "report": (8, 1), "worker": (4, 1), "hangup": (8, 1), "damage": (200, 40),
}  # fmt: skip
TOLERANCE = 1e-6  # absolute, for weights and optimizer states with two processes
CONFIG = """\
_BASE_: ['{root}/configs/fcos/fcos_r18_fpn_demo.yml']
device: cpu
worker_num: 0
log_iter: 3
epoch: 3
snapshot_steps: 2
TrainDataset: {{dataset_dir: {data}}}
EvalDataset: {{dataset_dir: {data}}}
TestDataset: {{dataset_dir: {data}}}
max_failed_saves: 3
use_ema: true
"""
WORKERS = ["worker_num=2", "TrainReader.use_shared_memory=true"]

# Code that makes a rank hang or fail: rank 1 in training, rank 0 (which writes) in a save.
HANGS = {
    "a rank stays away from a collective": "Trainer._seed_step = at_step_4(stand_still)",
    "a data worker hangs": "images.read_image = four_times(images.read_image)",
    "a rank raises": "Trainer._seed_step = at_step_4(lambda: 1 / 0)",
    "a save hangs": "storage.save = lambda *_: stand_still()",
    "a rank hangs with the interpreter's lock":
        "Trainer._seed_step = at_step_4(lambda: ctypes.PyDLL(None).sleep(1000000))",
}  # fmt: skip
DRIVER = """
import ctypes, os, sys, time
from fcos_recipe.cli import leave, run
from fcos_recipe.compat import import_ppdet
from fcos_recipe.system import cpu_math
cpu_math.ensure("cpu")
import_ppdet()
from fcos_recipe.data import images
from fcos_recipe.checkpoint import storage
from fcos_recipe.training.trainer import Trainer
seed = Trainer._seed_step
def stand_still():
    time.sleep(1e6)
def at_step_4(fault):
    return lambda trainer: fault() if trainer.progress.steps_done == 4 else seed(trainer)
def four_times(read):
    left = [1] * 4
    return lambda path: read(path) if left and left.pop() else stand_still()
if os.environ["PADDLE_TRAINER_ID"] == "{rank}":
    {fault}
leave(run("train"))
"""
SUPERVISE = """
import sys
from pathlib import Path
from fcos_recipe.launch.plan import plan_launch
from fcos_recipe.launch.supervise import supervise
log, script, *arguments = sys.argv[1:]
sys.exit(supervise(plan_launch("cpu", ["0", "1"], [], arguments, Path(log), Path(script))))
"""


class Faults:
    """Makes faults in training runs.

    Args:
        work: scratch directory.
        seed: of the random generator.
        quick: make fewer faults.
    """

    def __init__(self, work: Path, seed: int, quick: bool):
        self.work, self.seed, self.quick = work, seed, quick
        self.rng = np.random.default_rng(seed)
        self.survived = 0
        self.lost: list = []
        self.skipped: list = []
        self.inside = 0
        self.slowest = 0.0
        make_shapes(work / "data", train=24, val=8, seed=3, size=(96, 128))
        self.config = work / "fault.yml"
        self.config.write_text(CONFIG.format(root=ROOT, data=work / "data"))

    # ---- runs ------------------------------------------------------------------------------

    def start(self, command: list, console: Path) -> subprocess.Popen:
        """Start a command in a new session, with its output appended to a file."""
        with console.open("ab") as file:
            return subprocess.Popen(
                list(map(str, command)), stdout=file, stderr=file, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "DEVICE": "cpu",
                     "PYTHON": sys.executable}, cwd=self.work,
            )  # fmt: skip

    def train(self, run: Path, *more) -> subprocess.Popen:
        tool = ROOT / "tools" / "train.py"
        return self.start([sys.executable, tool, "-c", self.config, "--eval", "--output", run,
                           "--resume", "auto", *more], run.with_suffix(".console"))  # fmt: skip

    def train_two(self, run: Path, *more) -> subprocess.Popen:
        script = ROOT / "scripts" / "train.sh"
        return self.start(["bash", script, self.config, "--gpus", "2", "--eval", "--output", run,
                           "--log_dir", run.with_suffix(".logs"), "--resume", "auto", *more],
                          run.with_suffix(".console"))  # fmt: skip

    def ended(self, process: subprocess.Popen, run: Path, seconds: float = 240) -> int:
        """Exit code of a run.

        Raises:
            Lost: it takes longer than `seconds`.
        """
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Lost(f"still running after {seconds:.0f} s: {self.console(run)}") from None

    def console(self, run: Path) -> str:
        lines = run.with_suffix(".console").read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:])

    def reference(self, name: str, start: Callable[[Path], subprocess.Popen]) -> float:
        """Run undisturbed; returns the seconds it took."""
        began = time.monotonic()
        if code := self.ended(start(self.work / name), self.work / name):
            raise Lost(f"the undisturbed run ended with {code}: {self.console(self.work / name)}")
        return time.monotonic() - began

    def finish(self, run: Path, reference: str, ranks: int = 1) -> None:
        """Resume a run to its end and compare it.

        Raises:
            Lost: the run fails, or differs from the reference.
        """
        start = self.train if ranks == 1 else self.train_two
        if code := self.ended(start(run), run):
            raise Lost(f"the resumed run ended with {code}: {self.console(run)}")
        self.compare(run, reference, ranks)

    def compare(self, run: Path, reference: str, ranks: int = 1) -> None:
        tolerance = TOLERANCE if ranks > 1 else 0
        if said := differences(self.work / reference, run, tolerance):
            raise Lost(f"the resumed run differs: {said}")

    # ---- faults ----------------------------------------------------------------------------

    def kill(self, run: Path, number: int) -> str:
        """Send SIGKILL at a random moment; every second time after a save has begun."""
        aimed, workers = number % 2 == 1, WORKERS if number % 3 == 1 else []
        while True:
            process = self.train(run, *(["-o", *workers] if workers else []))
            began = time.monotonic()
            moment = self.rng.uniform(0.15, 0.95) * self.seconds
            into = self.rng.uniform(0, 0.06)
            self.sleep(process, moment)
            family = tree(process)
            if aimed:
                while process.poll() is None and not parts(run):
                    time.sleep(0.0005)
                time.sleep(into)
                family |= tree(process)
            process.kill()
            if process.wait() == -signal.SIGKILL:
                break
            remove(run)  # the run ended before it was killed
        hit = len(parts(run)) > 0
        self.inside += hit
        where = f"{time.monotonic() - began:.2f} s after the start{', inside a save' * hit}"
        self.leaks(family)
        self.finish(run, "whole")
        return where

    def rank(self, run: Path, number: int) -> str:
        """Send SIGKILL to one of two ranks; train.sh must restart the run."""
        process = self.train_two(run, "--max-restarts", "2")
        victim = int(self.rng.integers(2))
        moment = self.rng.uniform(0.3, 0.9) * self.seconds_two
        self.sleep(process, moment)
        while process.poll() is None and victim not in (found := ranks_of(process)):
            time.sleep(0.05)
        if process.poll() is not None:
            raise Lost(f"ended before it was killed: {self.console(run)}")
        family = tree(process)
        os.kill(found[victim], signal.SIGKILL)
        killed = time.monotonic()
        said = f"rank {victim} of 2 failed first: killed by SIGKILL"
        while said not in run.with_suffix(".console").read_text():
            if time.monotonic() - killed > 60:
                raise Lost(f"no message within 60 s: {said}")
            time.sleep(0.1)
        seconds = time.monotonic() - killed
        self.slowest = max(self.slowest, seconds)
        if code := self.ended(process, run):
            raise Lost(f"train.sh --max-restarts ended with {code}: {self.console(run)}")
        self.leaks(family)
        self.compare(run, "whole2", 2)
        return f"rank {victim} {moment:.1f} s after the start; reported after {seconds:.1f} s"

    def hang(self, run: Path, number: int) -> str:
        """Make one of two ranks hang as in `HANGS`: it must be named, ended and resumed."""
        kind = list(HANGS)[number]
        rank = 0 if "save" in kind else 1
        driver = run.with_suffix(".py")
        driver.write_text(DRIVER.format(rank=rank, fault=HANGS[kind]))
        began = time.monotonic()
        process = self.start(
            [sys.executable, "-c", SUPERVISE, run.with_suffix(".logs"), driver, "-c", self.config,
             "--eval", "--output", run, "-o", "watchdog.startup=30", "watchdog.step=6",
             "watchdog.save=6", *(WORKERS if "worker" in kind else [])],
            run.with_suffix(".console"),
        )  # fmt: skip
        while process.poll() is None and len(ranks_of(process)) < 2:
            time.sleep(0.1)
        code = self.ended(process, run, 30 + 6 + 30 + 60)
        seconds = time.monotonic() - began
        text = run.with_suffix(".console").read_text()
        if f"rank {rank} of 2 failed first" not in text or code == exit_codes.OK:
            raise Lost(f"{kind}: exit {code}, and rank {rank} is not named: {self.console(run)}")
        self.leaks(set(psutil.pids()) & set(self.mentions(run)))
        self.finish(run, "whole2", 2)
        return f"{kind}: rank {rank} named, exit {code} after {seconds:.0f} s"

    def report(self, run: Path, number: int) -> str:
        """SIGKILL between the final weights and the end: all that a finished run leaves is made."""
        while True:
            process = self.train(run)
            while process.poll() is None and not (run / "model_final.pdparams").is_file():
                time.sleep(0.0005)
            moment = self.rng.uniform(0, 1.0)
            self.sleep(process, moment)
            family = tree(process)
            process.kill()
            if process.wait() == -signal.SIGKILL:
                break
            remove(run)  # it was faster
        self.leaks(family)
        self.finish(run, "whole")
        if missing := sorted(left_by(self.work / "whole") - left_by(run)):
            raise Lost(f"the resumed run did not make {', '.join(missing)}")
        return f"{moment:.2f} s after the final weights"

    def worker(self, run: Path, number: int) -> str:
        """SIGKILL to a data worker: one line, and `--max-restarts` goes on."""
        script = ROOT / "scripts" / "train.sh"
        process = self.start(
            ["bash", script, self.config, "--gpus", "1", "--eval", "--output", run,
             "--max-restarts", "2", "-o", *WORKERS], run.with_suffix(".console"),
        )  # fmt: skip
        self.wait_for_checkpoint(process, run)
        children = [child for p in psutil.Process(process.pid).children() for child in p.children()]
        if not children:
            raise Lost(f"ended before a worker was killed: {self.console(run)}")
        victim, family = children[number % len(children)], tree(process)
        victim.kill()
        if code := self.ended(process, run):
            raise Lost(f"train.sh --max-restarts ended with {code}: {self.console(run)}")
        text = run.with_suffix(".console").read_text()
        said = f"data worker (process {victim.pid}"
        if text.count(said) != 1 or "Traceback" in text:
            raise Lost(f"not one line with {said!r}: {self.console(run)}")
        self.leaks(family)
        self.compare(run, "whole")
        return f"worker {number % len(children)} named, gone on with"

    def hangup(self, run: Path, number: int) -> str:
        """SIGHUP at a random moment: a checkpoint, or one line where nothing is trained."""
        while True:
            process = self.train(run)
            moment = self.rng.uniform(0.02, 0.9) * self.seconds
            self.sleep(process, moment)
            if process.poll() is None:
                break
            remove(run)  # the run ended before
        promised = handles(process.pid, signal.SIGHUP)  # else Python has not begun
        process.send_signal(signal.SIGHUP)
        code = self.ended(process, run)
        text = run.with_suffix(".console").read_text()
        codes = [exit_codes.SAVED, exit_codes.HUNG_UP, exit_codes.OK]
        if not promised or "\nreport: " in text:  # all was written: nothing is left to handle
            codes.append(-signal.SIGHUP)
        if code not in codes or "Traceback" in text or (code > 0 and "SIGHUP: " not in text):
            raise Lost(f"exit {code} after SIGHUP: {self.console(run)}")
        self.finish(run, "whole")
        return f"{moment:.2f} s after the start: {exit_codes.describe(code)}"

    def saves(self, run: Path, number: int) -> str:
        """Only checkpoints fail, the last ones or too many: never exit code 0."""
        limit = ("max_failed_saves=9", "max_failed_saves=2")[number]
        process = self.train(run, "-o", "snapshot_steps=0", limit)
        self.wait_for_checkpoint(process, run)
        aside = run.with_suffix(".gone")
        (run / "checkpoints").rename(aside)
        words = ("these are not on disk", "2 checkpoints in a row were not saved")[number]
        return self.refused(process, run, words, lambda: aside.rename(run / "checkpoints"))

    def disk(self, run: Path, number: int) -> str:
        """Fill the disk or remove the checkpoint folder until the run gives up saving."""
        if number == 1:
            return self.gone(run)
        with tmpfs(run, "600m"):
            process = self.train(run)
            self.wait_for_checkpoint(process, run)
            filler = run / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while process.poll() is None:
                        file.write(bytes(1 << 20))
                except OSError:
                    pass
            return self.refused(process, run, "the disk is full", filler.unlink)

    def gone(self, run: Path) -> str:
        process = self.train(run)
        self.wait_for_checkpoint(process, run)
        aside = run.with_suffix(".gone")
        (run / "checkpoints").rename(aside)
        return self.refused(process, run, "the folder has gone",
                            lambda: aside.rename(run / "checkpoints"))  # fmt: skip

    def refused(self, process, run: Path, words: str, undo: Callable) -> str:
        """Saves fail: the run must report it, stop at the limit, and keep earlier checkpoints."""
        from fcos_recipe.checkpoint import storage

        code = self.ended(process, run)
        text = run.with_suffix(".console").read_text()
        if code != exit_codes.FAILED or "Traceback" in text or words not in text:
            raise Lost(f"exit {code}, not 1 with {words!r}: {self.console(run)}")
        undo()
        if not storage.newest(run / "checkpoints")[0]:
            raise Lost("no intact checkpoint is left")
        self.finish(run, "whole")
        return f"{words}: given up with one line, earlier checkpoints intact"

    def damage(self, run: Path, number: int) -> str:
        """Change a bit of a checkpoint or cut it off: it must not be used again."""
        from fcos_recipe.checkpoint import storage

        folder = storage.found(self.work / "whole" / "checkpoints")[-1]
        files = sorted(p for p in folder.iterdir() if p.stat().st_size)
        file = files[number % len(files)]
        size, cut = file.stat().st_size, bool(self.rng.integers(2))
        place = int(self.rng.integers(size))
        with file.open("r+b") as handle:
            handle.seek(place)
            tail = handle.read() if cut else handle.read(1)
            handle.seek(place)
            if cut:
                handle.truncate()
            else:
                handle.write(bytes([tail[0] ^ 1 << int(self.rng.integers(8))]))
        try:
            what = f"{file.name} {'cut at' if cut else 'with a flipped bit in'} byte {place}"
            path, rejected = storage.newest(folder.parent)
            if path == folder:
                raise Lost(f"{what} of {size}: not noticed")
            if path is None or file.name not in rejected[0]:
                raise Lost(f"{what}: {rejected}")
            return what
        finally:
            with file.open("r+b") as handle:
                handle.seek(place)
                handle.write(tail)

    # ---- helpers ---------------------------------------------------------------------------

    def sleep(self, process: subprocess.Popen, seconds: float) -> None:
        end = time.monotonic() + seconds
        while process.poll() is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))

    def wait_for_checkpoint(self, process: subprocess.Popen, run: Path) -> None:
        from fcos_recipe.checkpoint import storage

        while process.poll() is None and not storage.found(run / "checkpoints"):
            time.sleep(0.002)

    def mentions(self, run: Path) -> list[int]:
        """Ids of processes whose command line names this run."""
        found = psutil.process_iter(["pid", "cmdline"])
        return [p.pid for p in found if str(run) in " ".join(p.info["cmdline"] or [])]

    def leaks(self, family: set[int]) -> None:
        """Wait until the processes have ended.

        Raises:
            Lost: after 20 s a process or its shared memory is left.
        """
        end = time.monotonic() + 20
        began = psutil.Process().create_time()  # what is older only had a process of that number
        while True:
            alive = [pid for pid in family if psutil.pid_exists(pid) and running(pid)]
            numbers = {str(pid) for pid in family}
            shared = [p.name for p in Path("/dev/shm").glob("paddle_*")
                      if numbers & set(re.findall(r"\d+", p.name))
                      and os.path.exists(p) and p.stat().st_mtime > began]  # fmt: skip
            if not alive and not shared:
                return
            if time.monotonic() > end:
                raise Lost(f"left behind: processes {alive}, shared memory {shared}")
            time.sleep(0.1)

    def run_all(self) -> int:
        """Make all faults, print a line for each and totals; returns an exit code."""
        from fcos_recipe.system import cpu_math

        cpu_math.ensure("cpu")
        self.seconds = self.reference("whole", self.train)
        self.seconds_two = self.reference("whole2", self.train_two)
        print(f"seed {self.seed}; undisturbed: one process {self.seconds:.1f} s, two "
              f"{self.seconds_two:.1f} s", flush=True)  # fmt: skip
        for kind, counts in COUNTS.items():
            count = counts[self.quick]
            for number in range(count):
                self.one(kind, number, count)
        for words in dict.fromkeys(self.skipped):
            print(f"not tried: {words}")
        for words in self.lost:
            print(f"lost: {words}")
        print(f"{self.inside} kills were during a save; a dead rank was reported after at most "
              f"{self.slowest:.1f} s")  # fmt: skip
        tried = self.survived + len(self.lost)
        print(f"faults tried {tried}, survived {self.survived}, lost {len(self.lost)}")
        return exit_codes.FAILED if self.lost else exit_codes.OK

    def one(self, kind: str, number: int, count: int) -> None:
        run, began = self.work / f"{kind}-{number + 1}", time.monotonic()
        name = f"{kind} {number + 1}/{count}"
        try:
            where = getattr(self, kind)(run, number)
        except NotPossible as error:
            self.skipped.append(f"{kind}: {error}")
            return
        except Lost as error:
            self.lost.append(f"{name}: {error}")
            print(f"{name}: LOST: {error}", flush=True)
        else:
            self.survived += 1
            print(f"{name}: {where}: survived ({time.monotonic() - began:.1f} s)", flush=True)
            remove(run)
        finally:
            for pid in self.mentions(run):
                os.kill(pid, signal.SIGKILL)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line; exit code 1 if a fault was not survived."""
    ask = options.parser(
        "", __doc__.split("\n")[0], "example: bash scripts/fault_test.sh --quick\n",
        {exit_codes.FAILED: "a fault was not survived"}, prog="bash scripts/fault_test.sh",
    )  # fmt: skip
    add = ask.add_argument
    add("--quick", action="store_true", help="fewer faults, at most 5 minutes on two cores")
    add("--seed", type=int, default=0, help="of the random faults (default: %(default)s)")
    add("--only", choices=COUNTS, help="only this kind of fault")
    add(
        "--soak",
        type=float,
        metavar="MINUTES",
        help="instead kill the demo at random; memory etc. go to DIR/soak.csv and soak.png",
    )
    add("--keep", type=Path, metavar="DIR", help="work in DIR and keep everything")
    args = ask.parse_args(argv)
    if args.only:
        for kind in set(COUNTS) - {args.only}:
            COUNTS[kind] = (0, 0)
    if args.keep and args.keep.exists():
        raise UserError(f"--keep {args.keep}: exists; choose a new directory")
    if args.soak and not args.keep:
        raise UserError("--soak: needs --keep DIR for its table and plot")
    work = args.keep or Path(tempfile.mkdtemp(prefix="fcos-faults-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        if args.soak:
            from fcos_recipe.lab.faults.soak import soak

            return soak(work.resolve(), args.soak, args.seed)
        return Faults(work.resolve(), args.seed, args.quick).run_all()
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    run_program(main)
