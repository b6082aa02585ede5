"""Real launches of tiny ranks that fail in every way: messages, exit codes, leftovers."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from fcos_recipe import exit_codes
from fcos_recipe.errors import UserError
from fcos_recipe.launch import supervise
from fcos_recipe.launch.plan import choose_cards, plan_launch
from fcos_recipe.system.watchdog import WAITS
from tests.helpers.ranks import RANK_1_HANGS

START = "import os, sys, time, signal\nrank = int(os.environ['PADDLE_TRAINER_ID'])\n"


def run_ranks(tmp_path, body, ranks=2, earlier=()):
    """Supervise `ranks` real processes of Paddle's launcher; returns exit code and seconds."""
    script = tmp_path / "rank.py"
    script.write_text(START + body)
    labels = [str(i) for i in range(ranks)]
    began = time.monotonic()
    plan = plan_launch("cpu", labels, [], [], tmp_path / "log", script)
    plan.earlier_logs = earlier
    code = supervise.supervise(plan)
    return code, time.monotonic() - began


def leftovers(tmp_path):
    return [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]


def test_success_streams_rank_0_only(tmp_path, capfd):
    code, _ = run_ranks(tmp_path, "print('hello from', rank, flush=True)\n")
    out, err = capfd.readouterr()
    assert code == exit_codes.OK
    assert out == "hello from 0\n" and err == ""
    assert (tmp_path / "log" / "workerlog.1").read_text() == "hello from 1\n"


def test_the_environment_is_not_left_in_the_logs(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FCOS_TEST_TOKEN", "hunter2")
    killed = [tmp_path / "log", tmp_path / "log" / "attempt-1", tmp_path / "earlier"]
    for folder in killed:  # what launches left that were killed with SIGKILL
        folder.mkdir(mode=0o700)
        for name in ("envlog.0", "backup_env.0.json", "default.abc.log", "workerlog.0"):
            (folder / name).write_text("hunter2" * (name != "workerlog.0"))
    seen = f"import glob; print(len(glob.glob({str(tmp_path / 'log' / '*env*')!r})), flush=True)\n"
    code, _ = run_ranks(tmp_path, seen, earlier=killed[2:])
    logs = tmp_path / "log"
    assert code == 0 and (logs / "workerlog.1").is_file()
    assert int((logs / "workerlog.1").read_text().split()[-1]) > 0, "Paddle no longer writes it"
    assert logs.stat().st_mode & 0o077 == 0
    assert (logs / "attempt-1" / "workerlog.0").is_file()
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]


def test_the_rank_that_raised_is_named_not_the_one_that_lost_its_peer(tmp_path, capfd):
    # Rank 0 dies 100 ms after rank 1: within one look of Paddle's launcher, which names rank 0.
    # A child of rank 1 in a session of its own stands for a data worker.
    body = f"""
flag = {str(tmp_path / "dying")!r}
if rank == 1:
    import subprocess
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", flag],
                     start_new_session=True)
    for i in range(30):
        print("line", i)
    time.sleep(1)
    open(flag, "w").close()
    raise ValueError("the picture is upside down")
while not os.path.exists(flag):
    time.sleep(0.01)
time.sleep(0.1)
sys.exit("connection closed by peer")
"""
    code, seconds = run_ranks(tmp_path, body)
    err = capfd.readouterr().err
    assert code == exit_codes.FAILED and seconds < 40
    assert "rank 1 of 2 failed first: exit code 1: ValueError: the picture is upside down" in err
    shown = [line.strip() for line in err.splitlines()]
    assert "line 29" in shown and "line 1" not in shown
    assert "workerlog.1" in err and not leftovers(tmp_path)


def test_a_killed_rank_ends_the_others_even_deaf_ones(tmp_path, capfd):
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 1:
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(300)
"""
    code, seconds = run_ranks(tmp_path, body)
    err = capfd.readouterr().err
    assert code == 128 + signal.SIGKILL and seconds < 40
    assert "rank 1 of 2 failed first: killed by SIGKILL (out of memory?" in err
    assert not leftovers(tmp_path)


def test_bad_input_is_told_once(tmp_path, capfd):
    body = "print('error: x.yml: epoch: must be a number', file=sys.stderr)\nsys.exit(2)\n"
    code, _ = run_ranks(tmp_path, body, ranks=3)
    out, err = capfd.readouterr()
    assert code == exit_codes.BAD_INPUT
    assert (out + err).splitlines() == ["error: x.yml: epoch: must be a number"]


def test_a_hung_rank_is_named_not_the_one_that_waited_for_it(tmp_path, capfd):
    """Real collectives over Gloo: rank 0 hangs too, in all_reduce."""
    code, seconds = run_ranks(tmp_path, RANK_1_HANGS)
    err = capfd.readouterr().err
    assert code == exit_codes.HUNG and seconds < 60
    assert "rank 1 of 2 failed first: hung, ended by its watchdog: nothing done for" in err
    assert "in phase step at step 3 (limit 3 s" in err and "in read_next_batch" in err
    assert "then rank 0: hung" in err and "all_reduce" in err
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "states, blamed",
    [
        (((5, WAITS), (5, WAITS)), None),
        (((6, WAITS), (5, WAITS)), 1),
        (((5, WAITS), (5, "")), 1),
        (((6, WAITS), (6, WAITS), (5, WAITS)), 2),
        (((4, WAITS), (9, WAITS), (9, "")), 2),
        (((5, WAITS), None), 1),
    ],
    ids=["same", "behind", "elsewhere", "one of three", "elsewhere, not behind", "silent"],
)
def test_the_rank_that_hangs_is_named_where_the_evidence_tells(
    states, blamed, first, tmp_path, capfd
):
    """Whoever speaks first. A state: steps done, and whether the rank may wait; None: no word."""
    run = plan_launch("cpu", [str(i) for i in range(len(states))], [], [], tmp_path)
    failed = {}
    for rank in range(len(states))[:: -1 if first else 1]:
        state, text = states[rank], ""
        if state:
            text = (
                f"rank {rank} hung: nothing done for 9 s in phase step at step {state[0]} "
                f"(limit 8 s, `watchdog.step`); main thread in work (w.py:{rank}){state[1]}"
            )
            failed[rank] = exit_codes.HUNG
        (tmp_path / f"workerlog.{rank}").write_text(text)
    failed |= {r: -signal.SIGKILL for r, state in enumerate(states) if state is None}
    assert supervise._report(run, SimpleNamespace(name=int), failed) == exit_codes.HUNG
    err = capfd.readouterr().err
    if blamed is None:
        assert supervise.ALL_WAIT in err and "failed first" not in err
        assert all(f"rank {rank}" in err for rank in range(len(states)))
    else:
        assert f"launch: rank {blamed} of {len(states)} failed first: " in err
        assert supervise.ALL_WAIT not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_run(tmp_path, number):
    program = f"""
import sys; from pathlib import Path
from tests.launch.test_supervise import run_ranks
sys.exit(run_ranks(Path({str(tmp_path)!r}), "print('up', flush=True)\\ntime.sleep(300)\\n")[0])
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "up\n"
    child.send_signal(number)
    assert child.wait(30) == 128 + number
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("kind", ["RunFailure", "UserError"])
def test_a_bare_launcher_shows_the_failing_rank_on_its_console(kind, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(
        START
        + """
from fcos_recipe import cli, errors
def fail(argv):
    raise getattr(errors, argv[0])("no such picture")
cli.COMMANDS["fail"] = (f"{__name__}:fail", "")
if rank == 1:
    sys.exit(cli.run("fail", [KIND]))
time.sleep(300)
""".replace("KIND", repr(kind))
    )
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "--log_dir", str(tmp_path / "log"), str(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert f"rank 1 failed: {kind}: no such picture" in done.stderr.splitlines()
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    "asked, configured, visible, expected",
    [
        ("2", 8, ["0", "1", "2"], ["0", "1"]),
        ("4,5", 8, ["4", "5", "6"], ["4", "5"]),
        ("3,", 8, ["2", "3"], ["3"]),
        (None, 2, ["0", "1", "2"], ["0", "1"]),
        (None, 0, ["0", "1", "2"], ["0", "1", "2"]),
        ("3", 0, None, ["0", "1", "2"]),
        (None, 0, None, ["0"]),
    ],
)
def test_choose_cards(asked, configured, visible, expected):
    assert choose_cards(asked, configured, visible) == expected


@pytest.mark.parametrize(
    "asked, words",
    [
        ("8", "2 visible"),
        ("0,7", "no card 7"),
        ("0", "`--gpus 0,`"),
        ("x", "neither"),
        (",", "not"),
    ],
)
def test_choose_cards_refuses(asked, words):
    with pytest.raises(UserError, match=words):
        choose_cards(asked, 8, ["0", "1"])


def test_scripts_work_from_any_directory(tmp_path, root):
    environment = {**os.environ, "DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "0"}
    environment["PYTHON"] = sys.executable

    def dry(*words):
        done = subprocess.run(
            ["bash", *words, "--dry-run", "--eval"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done

    eight = dry(str(root / "scripts" / "train_8gpu.sh"))
    assert eight.returncode == 0, eight.stderr
    assert "-m paddle.distributed.launch --log_dir" in eight.stdout
    assert "-u CUDA_VISIBLE_DEVICES" in eight.stdout and "--nproc_per_node 8" in eight.stdout
    assert f"-c {root}/configs/fcos/fcos_r50_fpn_1x_coco.yml --eval" in eight.stdout
    one = dry(str(root / "scripts" / "train_1gpu.sh"), "configs/fcos/fcos_r18_fpn_demo.yml")
    assert one.returncode == 0 and "launch --" not in one.stdout
    assert f"tools/train.py -c {root}/configs/fcos/fcos_r18_fpn_demo.yml --eval" in one.stdout
    wrong = dry(str(root / "scripts" / "train.sh"), "--gpus", "0")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --gpus 0: ")
    assert len(wrong.stderr.splitlines()) == 1
