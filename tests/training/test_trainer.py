"""Training in this process: the loop, its errors, its output files."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.files import atomic
from fcos_recipe.runs import directory
from fcos_recipe.runs.directory import METRICS
from fcos_recipe.system.watchdog import Watchdog
from fcos_recipe.training import resume, trainer

pytestmark = pytest.mark.e2e


def train(tiny, output, *extra) -> int:
    return run("train", ["-c", str(tiny), "--output", str(output), *extra])


def records(path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run of two epochs with evaluation."""
    path = tmp_path_factory.mktemp("run") / "whole"
    assert train(tiny, path, "--eval") == 0
    return path


@pytest.mark.matrix
def test_a_run_leaves_all_that_repeats_it(finished, tiny):
    names = {p.name for p in finished.iterdir()}
    assert {"config.yml", "environment.json", "log.txt", "metrics.jsonl", "eval.json",
            "model_final.pdparams", "checkpoints"} <= names  # fmt: skip
    steps = [r for r in records(finished) if r["kind"] == "train"]
    assert [r["step"] for r in steps] == list(range(1, 13))  # 24 images in batches of 4, twice
    first = steps[0]
    assert {
        "lr",
        "loss",
        "loss_cls",
        "loss_box",
        "loss_quality",
        "images_per_second",
        "images_per_second_per_card",
        "data_time",
        "memory_mib",
        "epoch",
    } <= set(first)
    assert first["loss"] == pytest.approx(
        first["loss_cls"] + first["loss_box"] + first["loss_quality"], rel=1e-5
    )
    evals = [r for r in records(finished) if r["kind"] == "eval"]
    assert [r["epoch"] for r in evals] == [1, 2]
    assert evals[-1]["AP"] == json.loads((finished / "eval.json").read_text())["stats"][0]
    # the resolved config is a config: it loads, and to the same values
    again, first = load_config(finished / "config.yml"), load_config(tiny)
    assert again.data["LearningRate"] == first.data["LearningRate"]
    assert again.data["TrainReader"] == first.data["TrainReader"]


@pytest.mark.matrix
def test_resume_equals_the_uninterrupted_run(finished, tiny, tmp_path):
    path = tmp_path / "cut"
    assert train(tiny, path, "--eval", "-o", "epoch=1") == 0
    # the kill leaves half a line and steps of an epoch that is to be repeated
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"time": 1, "kind": "train", "epoch": 2, "step": 7}\n{"time": 1, "kin')
    assert train(tiny, path, "--eval", "--resume", "auto") == 0
    one, two = (weights.read(p / "model_final.pdparams") for p in (finished, path))
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    timeless = [
        [(r["kind"], r["epoch"], r["step"], r.get("loss"), r.get("AP")) for r in records(p)]
        for p in (finished, path)
    ]
    assert timeless[0] == timeless[1]


def test_ema_best_and_early_stop(tiny, tmp_path):
    path = tmp_path / "ema"
    assert train(tiny, path, "--eval", "-o", "use_ema=true", "epoch=4", "early_stop.patience=1",
                 "early_stop.min_delta=2.0", "keep_checkpoints=1") == 0  # fmt: skip
    # no AP can gain 2.0 on -1 twice: the first evaluation is an improvement, the second is not
    assert [r["epoch"] for r in records(path) if r["kind"] == "eval"] in ([1], [1, 2])
    kept = sorted(p.name for p in (path / "checkpoints").iterdir())
    assert len(kept) == 1
    last = path / "checkpoints" / kept[0]
    averaged, trained = (weights.read(last / f) for f in ("model.pdparams", "model.pdema"))
    final = weights.read(path / "model_final.pdparams")
    name = "fcos_head.fcos_head_cls.weight"
    np.testing.assert_array_equal(final[name], averaged[name])
    assert not np.array_equal(averaged[name], trained[name])
    assert train(tiny, path, "--resume", "auto", "-o", "use_ema=true",
                 f"epoch={int(kept[0]) + 1}") == 0  # fmt: skip


def test_a_loss_that_is_not_finite_ends_the_run(tiny, tmp_path, capfd):
    path = tmp_path / "nan"
    code = train(tiny, path, "-o", "LearningRate.base_lr=1e30",
                 "OptimizerBuilder.clip_grad_by_norm=null")  # fmt: skip
    error = capfd.readouterr().err
    assert code == 1
    assert "the loss is not finite" in error and "image ids" in error and "LR" in error
    assert not (path / "model_final.pdparams").exists()
    for folder in (path / "checkpoints").iterdir():
        state = weights.read(folder / "model.pdparams")
        assert all(np.isfinite(v).all() for v in state.values() if hasattr(v, "shape"))


@pytest.mark.matrix
def test_accumulated_gradients_are_the_mean(tiny):
    from fcos_recipe.training.trainer import Trainer

    trainer = Trainer(load_config(tiny), "cpu")
    trainer.model.eval()  # BatchNorm frozen
    trainer.model.training = True
    trainer.model.fcos_head.training = True
    batches = [batch for batch, _ in zip(trainer.loader, range(2))]

    def gradients(chosen, accumulate):
        trainer.accumulate = accumulate
        trainer.optimizer.clear_grad()
        for batch in chosen:
            trainer._backward(trainer.model, batch, synchronise=True)
        return {n: p.grad.numpy() for n, p in trainer.model.named_parameters()
                if p.grad is not None}  # fmt: skip

    alone = [gradients([batch], 1) for batch in batches]
    both = gradients(batches, 2)
    assert len(both) > 50
    for name, value in both.items():
        mean = (alone[0][name] + alone[1][name]) / 2
        scale = max(np.abs(mean).max(), 1e-8)
        np.testing.assert_allclose(value / scale, mean / scale, atol=1e-5, err_msg=name)


def test_stock_checkpoint_resumes_and_missing_optimizer_is_refused(finished, tiny, tmp_path, capfd):
    epoch = finished / "checkpoints" / "0001"
    for ending in ("pdparams", "pdopt"):
        (tmp_path / f"0.{ending}").write_bytes((epoch / f"model.{ending}").read_bytes())
    assert train(tiny, tmp_path / "on", "-r", str(tmp_path / "0")) == 0
    assert [r["epoch"] for r in records(tmp_path / "on")] == [2] * 6
    (tmp_path / "0.pdopt").unlink()
    capfd.readouterr()
    assert train(tiny, tmp_path / "off", "-r", str(tmp_path / "0")) == 2
    assert "pretrain_weights" in capfd.readouterr().err


@pytest.mark.matrix
def test_eval_of_the_saved_weights_gives_the_run_s_figures(finished, tiny, tmp_path):
    out = tmp_path / "out.json"
    assert run("eval", ["-c", str(tiny), "--weights", str(finished / "model_final"), "--json",
                        str(out)]) == 0  # fmt: skip
    assert (
        json.loads(out.read_text())["stats"]
        == json.loads((finished / "eval.json").read_text())["stats"]
    )


def test_a_second_run_keeps_the_first(finished, tiny, tmp_path):
    for _ in range(2):
        assert train(tiny, tmp_path / "x", "-o", "epoch=1") == 0
    assert (tmp_path / "x.1" / "model_final.pdparams").is_file()
    assert storage.newest(tmp_path / "x" / "checkpoints")[0].name == "0001"


@pytest.mark.parametrize(
    "extra, words",
    [
        (["-o", "TrainDataset.anno_path=nowhere.json"], "nowhere.json does not exist"),
        (["-o", "num_classes=5"], "num_classes"),
        (["-o", "TrainReader.batch_size=100"], "batch_size"),
        (["-o", "accumulate=100"], "accumulate"),
        (["-o", "pretrain_weights=/nowhere/w"], "does not exist"),
        (["--resume", "/nowhere"], "no such weights file"),
        (["-o", "TrainReader.batch_sizes=3"], "batch_size"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, capfd, extra, words):
    assert train(tiny, tmp_path / "bad", *extra) == 2
    error = capfd.readouterr().err
    assert words in error and "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_paddle_says_amp_is_off_on_the_cpu(tiny, tmp_path, capfd):
    assert train(tiny, tmp_path / "amp", "--amp", "-o", "epoch=1") == 0
    assert "amp: off" in capfd.readouterr().out
    assert paddle.get_device() == "cpu"


def test_unreadable_images_are_skipped_up_to_a_limit(shapes, tiny, tmp_path, capfd):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for number in (3, 7):
        (data / "train" / f"{number:06d}.jpg").write_bytes(b"\xff\xd8 no picture")
    here = ["-o", f"TrainDataset.dataset_dir={data}", "epoch=1"]
    assert train(tiny, tmp_path / "two", *here) == 0
    assert "2 images could not be read" in capfd.readouterr().out
    assert len(records(tmp_path / "two")) == 6  # as many steps as without them
    assert train(tiny, tmp_path / "none", *here, "max_bad_images=1") == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "max_bad_images" in error[0] and "000003.jpg" in error[0]


def test_a_terminal_gets_a_progress_bar(tiny, tmp_path):
    """`script` gives the process a terminal of its own."""
    if not shutil.which("script"):
        pytest.skip("the command `script` (util-linux) is not here")
    tool = Path(__file__).parents[2] / "tools" / "train.py"
    command = f"stty cols 140 rows 40; {sys.executable} {tool} -c {tiny} -o epoch=1"
    command += f" --output {tmp_path / 'tty'}"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, timeout=200,
        stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(tool.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " 6/6, ETA " in done.stdout and " images/s" in done.stdout
    assert "step 6/6" not in done.stdout
    assert "step 6/6" in (tmp_path / "tty" / "log.txt").read_text()


def test_other_class_order_or_normalisation_is_refused(shapes, tiny, tmp_path, capfd):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"].reverse()
    file.write_text(json.dumps(content))
    assert train(tiny, tmp_path / "a", "--eval", "-o", f"EvalDataset.dataset_dir={data}") == 2
    assert "instances_val.json: categories" in capfd.readouterr().err
    other = (
        "TestReader.sample_transforms=[{Decode: {}}, {NormalizeImage: {mean: [0, 0, 0], "
        "std: [1, 1, 1], is_scale: true}}, {Permute: {}}]"
    )
    assert train(tiny, tmp_path / "b", "-o", other) == 2
    assert "NormalizeImage" in capfd.readouterr().err


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(tiny, tmp_path, monkeypatch,
                                                                  capfd):  # fmt: skip
    """For each save ranks exchange their states under the limit of a step, not of a save."""
    write, calls, phases = storage.save, [], []
    enter, exchange = Watchdog.phase, resume.of_ranks

    @contextmanager
    def phase(self, name):
        with enter(self, name):
            phases.append(name)
            yield
        phases.append("step")

    def of_ranks(loader):
        assert not phases or phases[-1] == "step"
        phases.append("exchange")
        return exchange(loader)

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(*args)

    monkeypatch.setattr(storage, "save", full)
    monkeypatch.setattr(Watchdog, "phase", phase)
    monkeypatch.setattr(resume, "of_ranks", of_ranks)
    assert train(tiny, tmp_path / "full", "-o", "epoch=3") == 0
    assert phases.count("exchange") == 3
    assert "0002 was not saved: the disk is full" in capfd.readouterr().out
    names = sorted(p.name for p in (tmp_path / "full" / "checkpoints").iterdir())
    assert names == ["0001", "0003"]


@pytest.mark.parametrize("kept", [True, False])
def test_best_weights_that_were_not_saved_are_made_again(
    finished, tiny, tmp_path, monkeypatch, capfd, kept
):
    """From the checkpoint of their epoch; without it the next evaluation gives them."""
    run, write = tmp_path / "run", storage.save_weights
    judged = [record for record in records(finished) if "AP" in record]
    best = max(judged, key=lambda record: record["AP"])  # which epoch it is depends on the machine
    assert len(judged) > 1 and storage.ap_of(finished / trainer.BEST, 0) == best["AP"]

    def full(path, *rest, **more):
        if path.name == trainer.BEST:
            raise OSError(28, "No space left on device", str(path))
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "save_weights", full)
        assert train(tiny, run, "--eval") == 1
        assert "best_model.pdparams: the disk is full" in capfd.readouterr().err
        if not kept:
            (run / "checkpoints" / f"{best['epoch']:04}").rename(run / "gone")
        assert train(tiny, run, "--eval", "--resume", "auto") == 1
        assert not (run / trainer.BEST).exists()
    for _ in range(2):
        assert train(tiny, run, "--eval", "--resume", "auto") == 0
        out = capfd.readouterr().out
        expected = storage.ap_of(finished / trainer.BEST, 0) if kept else records(run)[-1]["AP"]
        assert storage.ap_of(run / trainer.BEST, 0) == expected
        if kept:
            one, two = (weights.read(p / trainer.BEST) for p in (finished, run))
            assert set(one) == set(two) and all((one[k] == two[k]).all() for k in one
                                                if isinstance(one[k], np.ndarray))  # fmt: skip
    assert "written again" not in out and "not on disk" not in out  # the second resume


LOST = ["checkpoints/000[23]", "model_final.pdparams", "eval.json", "analysis.json", "plots/*.png",
        "report.html", METRICS]  # fmt: skip


@pytest.mark.parametrize("lost", LOST)
def test_a_run_whose_last_files_are_not_on_disk_fails_and_is_completed(
    tiny, tmp_path, monkeypatch, capfd, lost
):
    """A disk with room for eval.json alone keeps one checkpoint: the case behind this test."""
    run, options = tmp_path / "run", ["--eval", "-o", "epoch=3", "max_failed_saves=9"]
    draft, opened = atomic._locked_draft, directory.open_own

    def refuse(path):
        raise OSError(28, "No space left on device", str(path))

    def full(path, *rest, **more):
        return refuse(path) if path.match(lost) and lost != METRICS else draft(path, *rest, **more)

    def full_later(path, flags):
        file = opened(path, flags)
        gone = SimpleNamespace(write=lambda _: refuse(path), close=file.close)
        return gone if path.match(lost) and lost == METRICS else file

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_locked_draft", full)
        patch.setattr(directory, "open_own", full_later)
        assert train(tiny, run, *options) == 1
    error = capfd.readouterr().err
    assert "these are not on disk" in error and error.count("error: ") == 1, error
    assert "the disk is full" in error or "No space left on device" in error, error
    assert train(tiny, run, "--resume", "auto", *options) == 0
    assert (run / "model_final.pdparams").is_file() and (run / "examples" / "index.json").is_file()
    assert storage.newest(run / "checkpoints")[0].name == "0003"
    names = (*trainer.RESULTS, "report.html", "plots/scores.png")
    assert all((run / name).exists() for name in names)
    judged = [r["epoch"] for r in records(run) if r["kind"] == "eval"]
    assert judged == ([1, 2, 3] if lost != METRICS else [])
