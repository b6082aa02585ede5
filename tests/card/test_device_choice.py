"""Device choice with stand-in cards: the device of a run and the cards of its ranks."""

import json
import re
import subprocess
import sys

import pytest

from tests.card.plugin import environment
from tests.conftest import ROOT


@pytest.fixture
def auto(tiny, tmp_path):
    """The small config with `device: auto` and without the driver's tool."""
    config = tmp_path / "auto.yml"
    config.write_text(f"_BASE_: ['{tiny}']\ndevice: auto\nepoch: 1\n")
    return config


def run(*command, cards=2, more=(), **options):
    """Run a command with stand-in cards; `more`: environment variables."""
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**environment(cards, **options), **dict(more)},
    )  # fmt: skip


def used(trace) -> set[int]:
    """The cards on which memory was allocated."""
    rows = [line.split() for line in trace.read_text().splitlines()]
    return {int(row[1]) for row in rows if row[2].endswith("allocate")}


def test_every_command_takes_the_cards_that_only_paddle_sees(auto):
    """Without driver tool and device nodes the launcher, its ranks and doctor agree."""
    dry = run("bash", "scripts/train.sh", auto, "--gpus", "2", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert re.search(r"launch: device: iluvatar_gpu; cards: Paddle \S+ can use 2\n", dry.stderr)
    assert "launch: 2 x iluvatar_gpu: cards 0,1" in dry.stderr
    assert "OMP_NUM_THREADS" not in dry.stdout and "gloo" not in dry.stdout
    eight = run("bash", "scripts/train_8gpu.sh", auto, "--dry-run")
    assert eight.returncode == 2 and "--gpus 8: 2 visible (0,1)" in eight.stderr
    doctor = run(sys.executable, "tools/doctor.py", "--no-comm", "--json")
    found = {item["name"]: item["text"] for item in json.loads(doctor.stdout)["findings"]}
    assert found["device"].startswith("iluvatar_gpu; cards: Paddle")
    assert "cards" not in found and "Paddle counts 2" in found["driver"]


@pytest.mark.slow
@pytest.mark.e2e
def test_ranks_compute_on_the_cards_that_the_launcher_names(auto, tmp_path):
    trace, output = tmp_path / "trace", tmp_path / "run"
    done = run(
        "bash", "scripts/train.sh", auto, "--gpus", "2", "--eval", "--output", output,
        cards=16, trace=trace, more={"ILUVATAR_GPU_VISIBLE_DEVICES": "2,13"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "launch: 2 x iluvatar_gpu: cards 2,13" in done.stdout
    assert used(trace) == {2, 13}
    trace.unlink()
    weights = output / "model_final.pdparams"
    done = run(
        sys.executable, "tools/eval.py", "-c", auto, "--weights", weights, "--no-plots",
        "--output", tmp_path / "eval", cards=16, trace=trace,
        more={"ILUVATAR_GPU_VISIBLE_DEVICES": "13"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("device: iluvatar_gpu; cards: Paddle")
    assert used(trace) == {13}


RANK = """
from fcos_recipe.compat import before_paddle
before_paddle()
from fcos_recipe.system import compute, device
kind = compute.start(compute.requested(None)).device
import paddle
print("on", paddle.ones([4]).place, paddle.distributed.ParallelEnv().device_id)
for dtype in ("float16", "bfloat16"):
    with paddle.amp.auto_cast(dtype=dtype):
        image, kernel = paddle.ones([1, 1, 4, 4]), paddle.ones([1, 1, 3, 3])
        out = paddle.nn.functional.conv2d(image, kernel).dtype
    assert device.amp_supported(kind, dtype) == (str(out).endswith("." + dtype)), (dtype, out)
"""


def test_paddles_own_launcher_uses_the_named_cards(tmp_path):
    """It numbers cards by position in the plugin's variable; ranks translate this.

    AMP is reported as available exactly if auto_cast changes the dtype of a result.
    """
    script, trace = tmp_path / "rank.py", tmp_path / "trace"
    script.write_text(RANK)
    done = run(
        sys.executable, "-m", "paddle.distributed.launch", "--log_dir", tmp_path / "log",
        "--gpus", "2,13", script, cards=16, trace=trace,
        more={"ILUVATAR_GPU_VISIBLE_DEVICES": "2,13", "PADDLE_XCCL_BACKEND": "iluvatar_gpu"},
    )  # fmt: skip
    logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    assert done.returncode == 0, "\n".join(logs)
    said = [re.search(r"on Place\(iluvatar_gpu:(\d+)\) (\d+)", log).groups() for log in logs]
    assert said == [("2", "2"), ("13", "13")] and used(trace) == {2, 13}


@pytest.mark.slow
@pytest.mark.e2e
def test_the_cpu_by_name_leaves_the_cards_alone(auto, tmp_path):
    """Two CPU ranks and one card: the second rank has no card with its number."""
    trace = tmp_path / "trace"
    done = run(
        "bash", "scripts/train.sh", auto, "--gpus", "2", "--output", tmp_path / "run",
        cards=1, trace=trace, more={"DEVICE": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "launch: device: cpu, as requested" in done.stdout
    assert not trace.exists() or not used(trace)
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["device"] == "cpu"


SESSION = """
from fcos_recipe import compat
compat.before_paddle()
import paddle
from fcos_recipe.system.session import session
paddle.set_device("cpu")
paddle.seed(7)
wanted = paddle.rand([3]).tolist()
paddle.seed(7)
with session("iluvatar_gpu") as found:
    assert (found.device, paddle.get_device()) == ("iluvatar_gpu", "iluvatar_gpu:0")
    paddle.seed(1)
    assert str(paddle.rand([3]).place) == "Place(iluvatar_gpu:0)"
assert paddle.get_device() == "cpu" and paddle.rand([3]).tolist() == wanted
"""


@pytest.mark.card
def test_a_session_on_a_card_leaves_device_and_random_numbers_as_they_were():
    done = run(sys.executable, "-c", SESSION)
    assert done.returncode == 0, done.stderr
