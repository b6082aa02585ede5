"""An interrupted and resumed run equals an uninterrupted one: batches, losses, weights, records."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fcos_recipe import exit_codes
from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.cli import run
from fcos_recipe.training import resume
from fcos_recipe.training.trainer import Trainer
from tests.conftest import ROOT, run_tool
from tests.launch.test_restart import children

# What a machine's clock decides about.
CLOCK = {"time", "images_per_second", "images_per_second_per_card", "data_time", "memory_mib",
         "seconds"}  # fmt: skip
COSINE = "LearningRate.schedulers=[{name: CosineDecay, max_epochs: 2, use_warmup: false}]"
MOMENTUM = "OptimizerBuilder.optimizer={type: Momentum, momentum: 0.9, weight_decay: 0.0001}"
# Options, and the steps after which the run is killed: in the first and in the second epoch.
VARIANTS = {
    "plain": (["log_iter=3", "snapshot_steps=4"], (5, 11)),
    "ema": (["use_ema=true", "snapshot_steps=4"], (5, 11)),
    "ema cycle": (
        [
            "use_ema=true",
            "cycle_epoch=1",
            "ema_black_list=[fcos_head]",
            "ema_filter_no_grad=true",
            "snapshot_steps=4",
        ],
        (5, 11),
    ),
    "accumulated": (["accumulate=2", "snapshot_steps=2"], (2, 5)),
    "grouped": (
        ["TrainReader.group_by_aspect=true", "TrainReader.batch_size=5", "snapshot_steps=2"],
        (3, 7),
    ),
    "repeated": (["TrainReader.repeat_threshold=1.0", "snapshot_steps=4"], (5, 13)),
    "cosine": ([COSINE, "log_iter=5", "snapshot_steps=4"], (5, 11)),
    "momentum": ([MOMENTUM, "LearningRate.base_lr=0.001", "snapshot_steps=4"], (5, 11)),
    "workers": (
        ["worker_num=2", "TrainReader.use_shared_memory=true", "snapshot_steps=4"],
        (5, 11),
    ),
}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def train(tiny, output, *extra) -> int:
    return run("train", ["-c", str(tiny), "--output", str(output), *map(str, extra)])


def killed_at(monkeypatch, step: int, tiny, output, *extra) -> None:
    """Train and die at the beginning of the step after `step`."""
    seed = Trainer._seed_step

    def die(trainer):
        if trainer.progress.steps_done == step:
            raise Killed
        seed(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_seed_step", die)
        with pytest.raises(Killed):
            train(tiny, output, *extra)


def records(path) -> list[dict]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in CLOCK} for x in lines]


def assert_arrays_equal(one, two) -> None:
    one, two = weights.read(one), weights.read(two)
    assert set(one) == set(two)
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, two[name], err_msg=name)
        else:
            assert value == two[name], name


def assert_same_run(one, two, files=("model_final", "best_model")) -> None:
    """Weights, optimizer, averages, history and every record are those of the other run."""
    for name in files:
        assert_arrays_equal(one / f"{name}.pdparams", two / f"{name}.pdparams")
    last = [storage.found(path / "checkpoints")[-1] for path in (one, two)]
    assert last[0].name == last[1].name
    states = [storage.read_state(path) for path in last]
    assert set(states[0]["files"]) == set(states[1]["files"])
    for name in states[0]["files"]:
        if name != "ranks.json":
            assert_arrays_equal(last[0] / name, last[1] / name)
    for key in ("progress", "schedule", "sampler", "ema", "scaler"):
        assert states[0][key] == states[1][key], key
    assert records(one) == records(two)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(v, marks=[pytest.mark.matrix] * (v in ("ema", "momentum", "workers")))
        for v in VARIANTS
    ],
)
def test_cut_in_the_middle_of_an_epoch_twice(tiny, tmp_path, monkeypatch, variant):
    overrides, cuts = VARIANTS[variant]
    options = ["--eval", "-o", *overrides, "keep_checkpoints=9"]
    assert train(tiny, tmp_path / "whole", *options) == 0
    cut = tmp_path / "cut"
    for number, step in enumerate(cuts):
        more = ["--resume", "auto"] if number else []
        killed_at(monkeypatch, step, tiny, cut, *more, *options)
        assert storage.newest(cut / "checkpoints")[0].name.count("-") == 1  # inside an epoch
    assert train(tiny, cut, "--resume", "auto", *options) == 0
    assert_same_run(tmp_path / "whole", cut)
    assert sum(r["kind"] == "train" for r in records(cut)) >= 4


@pytest.mark.e2e
def test_cut_in_an_evaluation(tiny, tmp_path, monkeypatch):
    """The checkpoint is older than the evaluation, which a resumed run makes up for."""
    options = ["--eval", "-o", "early_stop.patience=2", "early_stop.min_delta=2", "epoch=4",
               "use_ema=true", "cycle_epoch=1"]  # fmt: skip
    assert train(tiny, tmp_path / "whole", *options) == 0
    judge, times = Trainer._between_batches, []

    def die(trainer):
        times.append(0)
        if len(times) == 6:  # in the second evaluation, of 4 batches each
            raise Killed
        judge(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_between_batches", die)
        with pytest.raises(Killed):
            train(tiny, tmp_path / "cut", *options)
    state = storage.read_state(storage.newest(tmp_path / "cut" / "checkpoints")[0])
    assert state["progress"]["pending_eval"] and len(state["progress"]["history"]) == 1
    assert train(tiny, tmp_path / "cut", "--resume", "auto", *options) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut", ["model_final"])
    assert records(tmp_path / "cut")[-1]["epoch"] == 2  # stopped early, as the whole run
    # and it stays stopped: nothing is trained or judged again
    before = records(tmp_path / "cut")
    assert train(tiny, tmp_path / "cut", "--resume", "auto", *options) == 0
    assert records(tmp_path / "cut") == before


@pytest.mark.e2e
@pytest.mark.slow
def test_two_ranks_cut_inside_an_epoch(tiny, tmp_path):
    """Sums over two processes may differ in the last bits."""
    options = ["-c", tiny, "--eval", "-o", "snapshot_steps=2", "keep_checkpoints=9"]

    def launch(*more):
        done = run_tool("train", *more, *options, cwd=tmp_path, launch=2)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    launch("--output", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    known = storage.found(tmp_path / "cut" / "checkpoints")
    assert [p.name for p in known] == ["0000-000002", "0001", "0001-000001", "0002"]
    for path in (known[0], known[1], known[3]):
        shutil.rmtree(path)
    for name in ("model_final", "best_model"):
        (tmp_path / "cut" / f"{name}.pdparams").unlink()
    launch("--output", tmp_path / "cut", "--resume", "auto")
    for name in ("model_final.pdparams", "checkpoints/0002/model.pdopt"):
        one, two = weights.read(tmp_path / "whole" / name), weights.read(tmp_path / "cut" / name)
        for key, value in one.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(value, two[key], rtol=0, atol=1e-6, err_msg=key)
    whole, cut = records(tmp_path / "whole"), records(tmp_path / "cut")
    assert [(r["kind"], r["step"]) for r in whole] == [(r["kind"], r["step"]) for r in cut]
    losses = [[r["loss"] for r in rows if "loss" in r] for rows in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and len(losses[0]) == 6


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run of two epochs with a checkpoint at every second step."""
    path = tmp_path_factory.mktemp("resume") / "run"
    options = ["--eval", "-o", "snapshot_steps=2", "keep_checkpoints=9"]
    assert train(tiny, path, *options) == 0
    return path


@pytest.mark.e2e
@pytest.mark.slow
def test_killed_at_its_end_a_run_is_completed(finished, tiny, tmp_path, monkeypatch):
    """Between the final weights and the end, at each file or folder that is put in place.

    The run directory is copied as a kill would leave it, drafts included.
    """
    from fcos_recipe.training import trainer

    whole, cuts, options = tmp_path / "whole", [], ["--eval", "-o", "snapshot_steps=2",
                                                    "keep_checkpoints=9"]  # fmt: skip

    def cut_before(put):
        def put_in_place(source, target, **options):
            if (whole / "model_final.pdparams").exists() and whole in Path(target).parents:
                cuts.append((tmp_path / f"cut{len(cuts)}", Path(target).name))
                shutil.copytree(whole, cuts[-1][0])
            put(source, target, **options)

        return put_in_place

    def files(path):
        return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}

    with monkeypatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, cut_before(getattr(os, name)))
        assert train(tiny, whole, *options) == 0
    names = [name for _, name in cuts]
    assert len(cuts) == len(set(names)) >= 7 and {"report.html", "state.json"} < set(names), names
    for cut, name in cuts:
        assert train(tiny, cut, "--resume", "auto", *options) == 0, name
        assert files(cut) == files(finished) == files(whole), name
        assert_same_run(finished, cut)
    # and then it is complete: another resume evaluates nothing
    monkeypatch.setattr(trainer, "evaluate_sets", None)
    assert train(tiny, cut, "--resume", "auto", *options) == 0


@pytest.mark.e2e
def test_newest_intact_one_is_taken_and_newer_ones_step_aside(finished, tiny, tmp_path, capfd):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    names = [p.name for p in storage.found(path / "checkpoints")]
    assert names == ["0001", "0001-000002", "0001-000004", "0002"]  # two inside of an epoch
    file = path / "checkpoints" / "0002" / "model.pdopt"
    file.write_bytes(file.read_bytes()[:-1])
    (path / "checkpoints" / "0001-000004" / "state.json").unlink()
    capfd.readouterr()
    assert train(tiny, path, "--eval", "--resume", "auto", "-o", "snapshot_steps=2") == 0
    out = capfd.readouterr().out
    assert "rejected:" in out and "0002: model.pdopt is damaged" in out
    assert "0001-000004: state.json is missing or damaged" in out
    assert "0001-000002, 1 epochs and 2 steps done" in out
    assert (path / "checkpoints" / "superseded-0002").is_dir()
    assert_same_run(finished, path)


@pytest.mark.e2e
def test_nothing_intact_is_an_error_and_nothing_at_all_a_start(finished, tiny, tmp_path, capfd):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    for folder in storage.found(path / "checkpoints"):
        (folder / "state.json").write_text("{}")
    assert train(tiny, path, "--resume", "auto") == 2
    error = capfd.readouterr().err.strip()
    assert "no intact checkpoint" in error and len(error.splitlines()) == 1
    assert train(tiny, tmp_path / "new", "--resume", "auto", "-o", "epoch=1") == 0
    assert "no checkpoint in" in capfd.readouterr().out


@pytest.mark.e2e
def test_an_older_one_by_name_and_its_timeline(finished, tiny, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    older = path / "checkpoints" / "0001"
    assert train(tiny, path, "--eval", "--resume", older, "-o", "snapshot_steps=2") == 0
    assert_same_run(finished, path)
    assert (path / "checkpoints" / "superseded-0001-000004").is_dir()


@pytest.mark.e2e
def test_an_edited_config_is_shown_and_refused_where_it_matters(
    finished, tiny, tmp_path, capfd, monkeypatch
):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    edited = ["-o", "log_iter=5", "seed=3", "epoch=3", "LearningRate.base_lr=0.004",
              "LearningRate.base_batch=4"]  # fmt: skip
    assert train(tiny, path, "--resume", "auto", *edited) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and "--force" in lines[-1]
    said = [line.removeprefix("error: command line: ") for line in sorted(lines[:2])]
    assert said == ["LearningRate.base_lr: 0.004, in the checkpoint 0.005",
                    "seed: 3, in the checkpoint 0"]  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert train(tiny, path, "--resume", "auto", "--force", *edited) == 0
    out = capfd.readouterr().out
    assert "math threads changed from" in out and "to 7: results" in out
    assert "changed since the checkpoint: log_iter: 1 -> 5" in out
    assert "changed since the checkpoint: seed: 0 -> 3" in out
    assert records(path)[-1]["epoch"] == 3
    assert records(path)[-1]["lr"] == pytest.approx(0.0004)  # after the milestone


def test_a_key_that_the_old_version_did_not_know_matters_not(tiny):
    from fcos_recipe.config import load_config

    config = load_config(tiny)
    old = json.loads(json.dumps(config.data))
    del old["bad_numbers"], old["accumulate"], old["amp_dtype"]
    assert resume.compare({"settings": old}, config, force=False) == []
    old["amp_level"] = "O2"
    with pytest.raises(resume.UserErrors, match="amp_level: O1, in the checkpoint O2"):
        resume.compare({"settings": old}, config, force=False)


@pytest.mark.e2e
def test_another_total_batch_keeps_images_epoch_and_lr_rule(finished, tiny, tmp_path, capfd):
    """As for another number of cards: the sampler and the plan know only the product."""
    older = finished / "checkpoints" / "0001-000004"  # 16 images into the second epoch
    capfd.readouterr()
    assert train(tiny, tmp_path / "on", "--resume", older, "-o", "TrainReader.batch_size=2") == 0
    out = capfd.readouterr().out
    assert "1 cards x 4 images x 1 accumulated changed to 1 x 2 x 1" in out
    assert "continues in epoch 2 at step 8 of 12; the LR follows the epochs" in out
    rows = [r for r in records(tmp_path / "on") if r["kind"] == "train"]
    assert [r["step"] for r in rows] == [21, 22, 23, 24]  # in steps of two images
    assert [r["images_seen"] for r in rows] == [42, 44, 46, 48]
    # base_lr 0.005 for 4 images, a tenth after the first epoch, half of it for 2 images
    assert [r["lr"] for r in rows] == pytest.approx([0.005 * 0.1 / 2] * 4)
    # 16 images are no whole number of steps of 6: the last 4 of them are repeated
    assert train(tiny, tmp_path / "six", "--resume", older, "-o", "TrainReader.batch_size=6") == 0
    assert "at step 2 of 4, 4 images of the epoch are repeated" in capfd.readouterr().out


@pytest.mark.e2e
def test_a_checkpoint_of_version_0_1_goes_on(finished, tiny, tmp_path):
    """It has the same files but for ranks.json, no seal, and knows whole epochs only."""
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    for folder in storage.found(path / "checkpoints"):
        if folder.name != "0001":
            shutil.rmtree(folder)
    file = path / "checkpoints" / "0001" / "state.json"
    new = json.loads(file.read_text())
    del new["files"]["ranks.json"]
    old = {"config": new["config"], "class_names": new["class_names"], "epoch": 1,
           "best": new["progress"]["best"], "history": new["progress"]["history"],
           "steps_per_epoch": 6, "scaler": {}, "files": new["files"]}  # fmt: skip
    file.write_text(json.dumps(old, indent=1) + "\n")
    assert train(tiny, path, "--eval", "--resume", "auto", "-o", "snapshot_steps=2") == 0
    assert_same_run(finished, path)


# ---- signals: in a process of their own ---------------------------------------------------------


def started(tiny, output, *extra) -> subprocess.Popen:
    tool = ROOT / "tools" / "train.py"
    return subprocess.Popen(
        [sys.executable, str(tool), "-c", str(tiny), "--output", str(output), *map(str, extra)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def wait_for(process, words) -> None:
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(f"ended without {words!r}")


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_saves_and_exits(tiny, tmp_path, number):
    """The data workers get it too, as from a terminal or a batch system, and go on working."""
    options = ["-o", "epoch=200", "worker_num=2", "TrainReader.use_shared_memory=true"]
    process = started(tiny, tmp_path / "run", *options)
    wait_for(process, "step 5/6")
    os.killpg(process.pid, number)
    rest = process.communicate(timeout=60)[0]
    expected = exit_codes.INTERRUPTED if number == signal.SIGINT else exit_codes.SAVED
    assert process.returncode == expected, rest
    assert "a checkpoint is saved after this step" in rest and "Traceback" not in rest
    path, rejected = storage.newest(tmp_path / "run" / "checkpoints")
    assert not rejected and f"saved {path}: `--resume auto` continues" in rest
    done = records(tmp_path / "run")[-1]["step"]
    assert storage.read_state(path)["progress"]["steps_done"] == done


# Where a run stands still for the signal, and what makes it: imports, the data index, the model.
START_UP = {
    "imports": "sys.meta_path.insert(0, Stop())",
    "data index": "from fcos_recipe.data import dataset; dataset.open_index = stop",
    "model": "from fcos_recipe.model import build; build.build_model = stop",
    "other ranks": "os.environ.update(PADDLE_TRAINER_ID='0', PADDLE_TRAINERS_NUM='2', "
    "PADDLE_MASTER='127.0.0.1:{port}', PADDLE_TRAINER_ENDPOINTS='127.0.0.1:1,127.0.0.1:2', "
    "PADDLE_CURRENT_ENDPOINT='127.0.0.1:1', PADDLE_DISTRI_BACKEND='gloo'); "
    "from fcos_recipe.evaluation import collectives; joining = collectives.joining; "
    "collectives.joining = lambda: print('here', flush=True) or joining()",
}


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", START_UP)
def test_a_signal_during_start_up_is_one_line(tiny, tmp_path, place, number):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"""
import os, sys, time
from fcos_recipe.cli import run, leave
def stop(*_, **__):
    os.write(1, b"here\\n")  # print is quiet while Paddle is imported
    time.sleep(1000)
class Stop:
    def find_spec(self, name, *_):
        return stop() if name == "paddle.base" else None
{START_UP[place].format(port=port)}
leave(run("train", ["-c", {str(tiny)!r}, "--output", {str(tmp_path / "run")!r}]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    wait_for(process, "here")
    if place == "other ranks":
        time.sleep(1)  # into native code
    os.killpg(process.pid, number)
    rest = process.communicate(timeout=60)[0]
    # by the kernel, while native code holds the interpreter's lock: 128 + number in a shell
    assert exit_codes.of_shell(process.returncode) == 128 + number, rest
    assert "ended" in rest.splitlines()[-1] and "no checkpoint was written" in rest
    assert "Traceback" not in rest and "C++" not in rest


@pytest.mark.e2e
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_dead_data_worker_is_one_line_and_the_run_goes_on(tiny, tmp_path, ranks):
    """As the kernel kills one when host memory runs out; `--max-restarts` continues the run."""
    epochs = {1: 30, 2: 20}[ranks]
    process = subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "train.sh"), str(tiny), "--gpus", str(ranks),
         "--max-restarts", "1", "--output", str(tmp_path / "run"), "--log_dir",
         str(tmp_path / "log"), "-o", f"epoch={epochs}", "worker_num=2"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "DEVICE": "cpu", "PYTHON": sys.executable},
    )  # fmt: skip
    wait_for(process, "saved")
    if ranks > 1:
        trains = psutil.Process(children(process.pid)["1"])
    else:
        (trains,) = psutil.Process(process.pid).children()
    workers = trains.children()
    workers[-1].kill()
    rest = process.communicate(timeout=200)[0]
    start = "launch: rank 1 of 2 failed first: exit code 1: " if ranks > 1 else "error: "
    lines = [line for line in rest.splitlines() if line.startswith(start)]
    assert process.returncode == 0 and len(lines) == 1, rest
    assert (
        ranks > 1 or "Traceback" not in rest
    )  # else the last lines of the rank's log may have one
    for words in (f"data worker (process {workers[-1].pid}", "host memory", "worker_num is 2",
                  "batch_size 4", "GB of host memory are free now",
                  f"--output {tmp_path / 'run'} --resume auto"):  # fmt: skip
        assert words in lines[0], lines
    assert ("of rank 1 died" in lines[0]) == (ranks > 1)
    steps = epochs * (6 if ranks == 1 else 3)
    assert "restart 1 of 1" in rest and [r["step"] for r in records(tmp_path / "run")] == [
        *range(1, steps + 1)
    ]


@pytest.mark.e2e
def test_a_second_ctrl_c_exits_at_once(tiny, tmp_path):
    """Also out of native code: a step is made to last for ever there."""
    program = f"""
import sys, time
from fcos_recipe.cli import run, leave
from fcos_recipe.training.trainer import Trainer
def stuck(*_, **__):
    print("stuck", flush=True)
    import ctypes
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # no signal interrupts the second call
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
Trainer._backward = stuck
leave(run("train", ["-c", {str(tiny)!r}, "--output", {str(tmp_path / "run")!r}]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    wait_for(process, "stuck")
    process.send_signal(signal.SIGINT)
    wait_for(process, "press Ctrl-C again to exit at once")
    assert process.poll() is None
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == exit_codes.INTERRUPTED and time.monotonic() - start < 5
