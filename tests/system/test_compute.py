"""The choice of the device: the same for every command, never silently the CPU."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.system import compute, device
from fcos_recipe.system.device import PLUGIN, Card, Driver, PaddleFacts

CPU = PaddleFacts("3.3.1", False, (), 0)
CUDA = PaddleFacts("2.5.2+corex", True, (), 8)
BLIND = PaddleFacts("2.5.2+corex", True, (), 0)
PLUGGED = PaddleFacts("3.3.0", False, (PLUGIN,), 8)
EMPTY = PaddleFacts("3.3.0", False, (PLUGIN,), 0)
OTHER = PaddleFacts("3.3.0", False, ("npu",), 2)
IXSMI = Driver("ixsmi", "4.3.8", "4.3.8", "10.2", (Card(0, "Iluvatar BI-V150", 32768, 64, ""),))
NODES = Driver("/dev", "", "", "", (Card(0, "/dev/iluvatar0", None, None, ""),))
BARE = Driver("nvidia-smi", "550", "550", "12.4", ())
BROKEN = "ixsmi: exit code 9: cannot open /dev/iluvatar0"


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in (*device.VISIBILITY, "DEVICE", compute.DECIDED):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "requested, facts, driver, trouble, answer",
    [
        # nothing but a CPU
        ("auto", CPU, None, "", "cpu"),
        ("auto", BLIND, None, "", "cpu"),
        ("auto", EMPTY, None, "", "cpu"),
        ("auto", CPU, BARE, "", "cpu"),
        ("cpu", CUDA, IXSMI, "", "cpu"),
        ("cpu", CPU, IXSMI, BROKEN, "cpu"),
        # cards, with or without the driver's tool
        ("auto", CUDA, IXSMI, "", "gpu"),
        ("auto", CUDA, None, BROKEN, "gpu"),
        ("auto", PLUGGED, None, "", PLUGIN),
        ("card", PLUGGED, None, "", PLUGIN),
        ("gpu", CUDA, None, "", "gpu"),
        (PLUGIN, PLUGGED, NODES, "", PLUGIN),
        # cards of the driver that Paddle cannot use
        ("auto", CPU, IXSMI, "", r"^device: auto: ixsmi lists 1 .*Iluvatar BI-V150.*, "
         "but Paddle 3.3.1 can use none: .* no plugin .*; install .*device=cpu"),
        ("auto", CPU, NODES, "", "/dev lists 1 card.*device=cpu"),
        ("auto", CPU, None, BROKEN, "cannot open /dev/iluvatar0, and Paddle 3.3.1.*device=cpu"),
        ("auto", BLIND, IXSMI, "", "doctor.py.*device=cpu"),
        ("auto", EMPTY, IXSMI, "", "can use none; run .*doctor.py"),
        ("auto", OTHER, None, "", "only devices of type npu.*device=cpu"),
        # a card was asked for
        ("card", CPU, None, "", "^use_gpu: true: Paddle 3.3.1 finds no card"),
        ("gpu", CPU, None, "", "the installed Paddle 3.3.1 supports cpu"),
        ("gpu", PLUGGED, IXSMI, "", "supports iluvatar_gpu and cpu"),
        (PLUGIN, CUDA, IXSMI, "", "supports gpu and cpu"),
        ("gpu", BLIND, None, "", "finds no card"),
        ("npu", CPU, None, "", "'npu' is unknown"),
    ],
)  # fmt: skip
def test_choose(requested, facts, driver, trouble, answer):
    found = compute.Found(driver, trouble, facts)
    if " " in answer or "." in answer:
        with pytest.raises(UserError, match=answer) as error:
            compute.choose(requested, found)
        assert "\n" not in str(error.value)
    else:
        assert compute.choose(requested, found).device == answer


def test_hidden_cards_are_named_as_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES='' may hide them; unset it, or "):
        compute.choose("auto", compute.Found(IXSMI, "", BLIND))


def test_the_line_says_what_driver_and_paddle_count():
    both = compute.choose("auto", compute.Found(IXSMI, "", PLUGGED))
    assert both.line() == "device: iluvatar_gpu; cards: ixsmi lists 1, Paddle 3.3.0 can use 8"
    alone = compute.choose("auto", compute.Found(None, "", CUDA))
    assert alone.line() == "device: gpu; cards: Paddle 2.5.2+corex can use 8"
    idle = compute.choose("cpu", compute.Found(IXSMI, "", CPU))
    assert idle.line() == "device: cpu, as requested; ixsmi lists 1, which are not used"
    assert compute.Compute("cpu").line().startswith("device: cpu; no card on this machine")


@pytest.mark.parametrize(
    "facts, environment, way",
    [
        (PLUGGED, {"PADDLE_LOCAL_SIZE": "2"}, "set PADDLE_XCCL_BACKEND=iluvatar_gpu for "),
        (CUDA, {"PADDLE_LOCAL_SIZE": "8"}, "start with `bash scripts/train.sh`"),
        (CUDA, {"PADDLE_LOCAL_SIZE": "8", "FLAGS_selected_gpus": "3"}, None),
        (PLUGGED, {"PADDLE_LOCAL_SIZE": "1"}, None),
        (PLUGGED, {}, None),
        # a launcher of the user's own shows each rank one card
        (PaddleFacts("3.3.1", True, (), 1), {"PADDLE_LOCAL_SIZE": "8"}, None),
        (CPU, {"PADDLE_LOCAL_SIZE": "8"}, None),
    ],
)
def test_ranks_without_a_card_of_their_own_are_refused(facts, environment, way, monkeypatch):
    for name in (f"FLAGS_selected_{kind}s" for kind in ("gpu", PLUGIN)):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    decided = compute.choose("auto", compute.Found(None, "", facts))
    monkeypatch.setattr(compute, "decide", lambda requested: decided)
    monkeypatch.setattr(compute.cpu_math, "ensure", lambda kind: None)
    monkeypatch.setattr(compute.device, "set_device", lambda kind: None)
    if way is None:
        assert compute.start("auto") is decided
    else:
        with pytest.raises(UserError, match=f"processes would share card 0 of 8, .*{way}"):
            compute.start("auto")


@pytest.mark.parametrize(
    "overrides, environment, answer",
    [
        ([], {}, "auto"),
        ([], {"DEVICE": "gpu"}, "gpu"),
        (["device=cpu"], {"DEVICE": "gpu"}, "cpu"),
        (["device=gpu"], {"FCOS_DEVICE": "cpu"}, "cpu"),  # the launcher has decided
        (["use_gpu=False"], {}, "cpu"),
        (["use_gpu=True"], {}, "card"),
        (["use_gpu=True", "device=gpu"], {}, "gpu"),
        (["use_gpu=True"], {"DEVICE": "cpu"}, "use_gpu: true and device: cpu contradict"),
        (["use_gpu=False", "device=gpu"], {}, "use_gpu: false and device: gpu contradict"),
        (["use_npu=True"], {}, "use_npu: true: .*; remove it"),
    ],
)
def test_requested(overrides, environment, answer, root, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load_config(root / "configs/fcos/fcos_r18_fpn_demo.yml", overrides)
    if " " in answer:
        with pytest.raises(UserError, match=answer):
            compute.requested(config)
    else:
        assert compute.requested(config) == answer


def test_hints_of_cards(monkeypatch, tmp_path):
    """A CPU build without a plugin on a machine without a driver need not be asked."""
    package = tmp_path / "paddle" / "version"
    package.mkdir(parents=True)
    init = package.parent / "__init__.py"
    init.touch()
    (package / "__init__.py").write_text("cuda_version     = 'False'\n")
    spec = SimpleNamespace(origin=str(init))
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(device, "_nodes", lambda: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUSTOM_DEVICE_ROOT", raising=False)
    assert not device.may_have_cards()
    monkeypatch.setattr(device, "_nodes", lambda: [("iluvatar0", 0)])
    assert device.may_have_cards() and device.find_driver()[0].cards[0].name == "/dev/iluvatar0"
    monkeypatch.setattr(device, "_nodes", lambda: [])
    monkeypatch.setenv("CUSTOM_DEVICE_ROOT", str(tmp_path))
    assert device.may_have_cards()
    monkeypatch.setenv("CUSTOM_DEVICE_ROOT", "")  # as Paddle's import leaves it
    assert not device.may_have_cards()
    (tmp_path / "paddle_custom_device").mkdir()
    assert device.may_have_cards()
    (tmp_path / "paddle_custom_device").rmdir()
    (package / "__init__.py").write_text("cuda_version     = '11.8'\n")
    assert device.may_have_cards()


@pytest.fixture
def idle(tmp_path, monkeypatch, root):
    """Runs a command of the checkout where `ixsmi` lists two cards that this Paddle cannot use."""
    from tests.system.test_device import ixsmi

    (tmp_path / "ixsmi").write_text(f"#!/bin/sh\ncat <<'END'\n{ixsmi('4.3.8', 'BI-V150', 2)}END\n")
    (tmp_path / "ixsmi").chmod(0o755)
    if device.ask_paddle_outside().count:
        pytest.skip("this Paddle can use cards")

    def run(*command, **environment):
        return subprocess.run(
            [str(word) for word in command], cwd=root, capture_output=True, text=True, timeout=120,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}",
                 "PYTHON": sys.executable, "PYTHONPATH": str(root), **environment},
        )  # fmt: skip

    return run


def test_every_command_refuses_to_leave_cards_idle(idle, tiny, tmp_path):
    """One line, exit code 2, no traceback, nothing written; the doctor says no, too."""
    config = tmp_path / "auto.yml"
    config.write_text(f"_BASE_: ['{tiny}']\ndevice: auto\n")
    weights = tmp_path / "model.pdparams"
    weights.touch()
    export = tmp_path / "export"
    export.mkdir()
    facts = {"version": 1, "class_names": ["a"], "category_ids": [1], "format": "onnx", "nms": True,
             "num_classes": 1, "config": "a", "clip": True, "group_norm_epsilon": [],
             "TestReader": {}, "limits": {"score_threshold": 0.1, "nms_top_k": 10,
                                          "keep_top_k": 10, "nms_threshold": 0.6}}  # fmt: skip
    (export / "fcos_export.json").write_text(json.dumps(facts))
    image = next((tiny.parent / "val").iterdir())
    output = ["--output", tmp_path / "out"]
    of_weights = ["-c", config, "--weights", weights]
    train = ["bash", "scripts/train.sh", config, "--gpus", "2", *output]
    commands = {
        "train.sh": train,
        "train.sh --dry-run": [*train, "--dry-run"],
        "hw_check": ["bash", "scripts/hw_check.sh", "--quick", "--minutes", "3", *output],
        "train": [sys.executable, "tools/train.py", "-c", config, *output],
        "eval": [sys.executable, "tools/eval.py", *of_weights, *output],
        "infer": [sys.executable, "tools/infer.py", *of_weights, "--input", image, *output],
        "infer, an export": [sys.executable, "tools/infer.py", "--weights", export,
                             "--input", image, *output],
        "export": [sys.executable, "tools/export_model.py", *of_weights, *output],
    }  # fmt: skip
    said = {}
    for name, command in commands.items():
        done = idle(*command)
        said[name] = (done.returncode, done.stderr.count("\n"), done.stderr)
    line = "error: device: auto: ixsmi lists 2 card(s) (Iluvatar BI-V150), but Paddle"
    wrong = {k: v for k, v in said.items() if v[:2] != (2, 1) or not v[2].startswith(line)}
    assert not wrong and all("device=cpu" in text for *_, text in said.values())
    assert not (tmp_path / "out").exists()
    doctor = [sys.executable, "tools/doctor.py", "--no-comm", "--json"]
    done = idle(*doctor)
    found = {item["name"]: item for item in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1 and found["device"]["level"] == "red"
    assert "device=cpu" in found["device"]["remedy"]


def test_the_cpu_chosen_by_name_is_the_way_around(idle, tiny):
    doctor = [sys.executable, "tools/doctor.py", "--no-comm"]
    done = idle(*doctor, DEVICE="cpu")
    assert done.returncode == 0 and "ixsmi lists 2, which are not used" in done.stdout
    done = idle("bash", "scripts/train.sh", tiny, "--gpus", "2", "--dry-run")  # device: cpu
    assert done.returncode == 0 and "FCOS_DEVICE=cpu" in done.stdout


def test_several_processes_on_a_machine_without_cards(root, tmp_path):
    """`--gpus 8` without a card is a mistake, unless the CPU was chosen by name."""
    if device.may_have_cards():
        pytest.skip("this machine may have cards")

    def dry(script, *words, **environment):
        return subprocess.run(
            ["bash", root / "scripts" / script, *words, "--dry-run"], cwd=tmp_path,
            env={**os.environ, "PYTHON": sys.executable, **environment},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    done = dry("train_8gpu.sh")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: --gpus 8: no card was found on this machine; DEVICE=cpu" in done.stderr
    assert "launch.cards: 8: no card" in dry("train.sh").stderr
    assert "--nproc_per_node 8" in dry("train_8gpu.sh", DEVICE="cpu").stdout
    one = dry("train_1gpu.sh")
    assert one.returncode == 0 and "launch: device: cpu; no card on this machine" in one.stderr
