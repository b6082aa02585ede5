"""Parsing of the driver tools' card tables, and its effect on a run."""

import os
import re

import pytest

from fcos_recipe import compat
from fcos_recipe.commands.launch import HEADLINE, prepare
from fcos_recipe.errors import UserError
from fcos_recipe.launch.plan import TRAIN
from fcos_recipe.system import compute, device
from fcos_recipe.system.device import PaddleFacts

HEAD = """Timestamp    Mon Jan  5 10:00:00 2026
+------------------------------------------------------------------------+
|  IX-ML: {version}     Driver Version: {version}     CUDA Version: 10.2  |
|-------------------------------+------------------+---------------------|
| GPU  Name                     | Bus-Id           | Clock-SM  Clock-Mem |
| Fan  Temp  Perf  Pwr:Usage/Cap|   Memory-Usage   | GPU-Util  Compute M.|
|===============================+==================+=====================|
"""
ROW = """| {index}    Iluvatar {name}    | 00000000:{index:02X}:00.0 | 1500MHz  1200MHz |
| N/A  40C  P0   {power} | {used}MiB / 32768MiB | 0%    Default |
+-------------------------------+------------------+---------------------+
"""
PROCESSES = """
+------------------------------------------------------------------------+
| Processes:                                                  GPU Memory |
|  GPU        PID      Process name                           Usage(MiB) |
|========================================================================|
|    0       4242      python3                                       64  |
+------------------------------------------------------------------------+
"""


def ixsmi(version, name, count, power="50W / 250W"):
    rows = [ROW.format(index=i, name=name, power=power, used=64) for i in range(count)]
    return HEAD.format(version=version) + "".join(rows) + PROCESSES


NVIDIA = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.15              Driver Version: 550.54.15      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
|=========================================+========================+======================|
|   0  NVIDIA A100-SXM4-40GB          On  |   00000000:07:00.0 Off |                    0 |
| N/A   30C    P0             55W /  400W |       5MiB /  40960MiB |      0%      Default |
|                                         |                        |             Disabled |
+-----------------------------------------+------------------------+----------------------+
|   1  NVIDIA A100-SXM4-40GB          Off |   00000000:0F:00.0 Off |                  ERR! |
|ERR!  ERR! ERR!           ERR! / ERR!    |      5MiB / 40960MiB   |    ERR!      Default |
+-----------------------------------------+------------------------+----------------------+
|  Processes:                                                                              |
|    0   N/A  N/A      1234      C   python                                      12000MiB |
+------------------------------------------------------------------------------------------+
"""


def test_parse_ixsmi_and_its_process_table():
    driver = device.parse_smi(ixsmi("4.3.0", "BI-V150", 16))
    assert (driver.version, driver.driver, driver.cuda) == ("4.3.0", "4.3.0", "10.2")
    assert [card.index for card in driver.cards] == list(range(16))
    assert driver.cards[3] == device.Card(3, "Iluvatar BI-V150", 32768, 64, "")


def test_parse_nvidia_smi_with_a_broken_card():
    driver = device.parse_smi(NVIDIA, "nvidia-smi")
    assert driver.version == "550.54.15"
    good, broken = driver.cards
    assert good == device.Card(0, "NVIDIA A100-SXM4-40GB", 40960, 5, "")
    assert broken.index == 1 and "error" in broken.fault


@pytest.mark.parametrize("lost", [" | 64MiB / 32768MiB", "MiB / 32768MiB"])
def test_a_card_without_memory_or_sensors_is_faulty_not_a_crash(lost):
    text = ixsmi("3.0.1", "BI-V100", 2).replace(lost, "", 1)
    assert [bool(card.fault) for card in device.parse_smi(text).cards] == [True, False]
    overflow = device.parse_smi(ixsmi("3.0.1", "BI-V100", 1, power="65535W / 250"))
    assert "65535 W" in overflow.cards[0].fault


@pytest.mark.parametrize("text", ["", "no devices were found\n", "| 0 |\n+--+\n"])
def test_parse_of_nothing(text):
    assert device.parse_smi(text).cards == ()


def test_samples_of_real_cards(shared):
    cards = {
        path.stem: device.parse_smi(path.read_text()).cards
        for path in (shared / "reference" / "ixsmi").glob("*.txt")
    }
    names = {stem: [(c.index, c.name, bool(c.fault)) for c in row] for stem, row in cards.items()}
    assert names == {
        "bi_v100_faulty_card": [(5, "Iluvatar BI-V100", True)],
        "bi_v100_two_cards": [(0, "Iluvatar BI-V100", False), (1, "Iluvatar BI-V100", False)],
        "bi_v150_one_board": [(0, "Iluvatar BI-V150", False), (1, "Iluvatar BI-V150", False)],
        "mr_v100_wide_columns": [(0, "Iluvatar MR-V100 DUO", False)],
    }
    assert all(card.memory_total == 32768 for row in cards.values() for card in row)


def test_sdk_table_is_the_reference(shared):
    """Every row of ixuca.md, in its order: release, device, certainty."""
    text = (shared / "reference" / "ixuca.md").read_text()
    rows = re.findall(
        r"^\| (\d[\d.]*)[^|]*\| ([^|]*) \| ([^|]*) \| `(\w+)` \| (\w) \|$", text, re.M
    )
    ours = [(s.version, s.python, s.device, s.sure) for s in device.SDKS]
    assert ours == [(v, python, kind, sure) for v, _, python, kind, sure in rows]
    for (_, paddle, *_rest), row in zip(rows, device.SDKS):
        version = re.search(r"\d\.\d\.\d", paddle)
        assert not version or version.group() in row.paddle


@pytest.mark.parametrize(
    "version, releases, runs",
    [
        ("3.0.1", {"3.0.0"}, {"no"}),
        ("4.2.0", {"4.2.0"}, {"yes"}),
        ("4.3.0", {"4.3.0"}, {"yes"}),
        ("4.4.0", {"4.3.8"}, {"yes"}),
        ("2.9", set(), set()),
    ],
)
def test_sdk_rows(version, releases, runs):
    rows = device.sdk_rows(version)
    assert {row.version for row in rows} == releases and {row.runs for row in rows} == runs


@pytest.fixture
def machine(tmp_path, monkeypatch, root):
    """Makes a stand-in `ixsmi` on PATH and stubs Paddle's answer."""
    monkeypatch.chdir(root)

    def make(sdk, cards=8, environment=()):
        name = "BI-V100" if sdk.version < "4" else "BI-V150"
        tool = tmp_path / "ixsmi"
        tool.write_text(f"#!/bin/sh\ncat <<'END'\n{ixsmi(sdk.version, name, cards)}END\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        for variable in ("DEVICE", "CUDA_VISIBLE_DEVICES", "ILUVATAR_GPU_VISIBLE_DEVICES"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in dict(environment).items():
            monkeypatch.setenv(variable, value)
        plugin = sdk.device == device.PLUGIN
        facts = PaddleFacts(sdk.paddle, not plugin, (device.PLUGIN,) if plugin else (), cards)
        monkeypatch.setattr(device, "ask_paddle_outside", lambda: facts)

    return make


def words(command):
    """The launcher's part of a command: what precedes the training script."""
    return command[1 : next(i for i, word in enumerate(command) if word.endswith("train.py"))]


@pytest.mark.parametrize("sdk", device.SDKS, ids=lambda s: f"{s.version}-{s.device}")
def test_every_row_of_the_table(sdk, machine):
    """Device, environment, launch command and AMP choice on a machine with this SDK."""
    machine(sdk, cards=16)
    driver = device.read_driver()
    assert (driver.tool, driver.version, len(driver.cards)) == ("ixsmi", sdk.version, 16)
    assert device.may_have_cards()
    found = compute.decide("auto", device.ask_paddle_outside)
    assert found.device == sdk.device
    assert f"ixsmi lists 16, Paddle {sdk.paddle} can use 16" in found.line()
    run, dry = prepare(["--gpus", "8", "--dry-run", "--eval"])
    assert dry and run.ranks == 8
    cards = "0,1,2,3,4,5,6,7"
    launcher = ["-m", "paddle.distributed.launch", "--log_dir", str(run.log_dir), "--gpus", cards]
    assert words(run.command) == launcher
    assert run.command[7:] == [str(TRAIN), "-c", HEADLINE, "--eval"]
    expected = {"FCOS_DEVICE": sdk.device}
    if sdk.device == device.PLUGIN:
        expected["PADDLE_XCCL_BACKEND"] = "iluvatar_gpu"
    assert {k: v for k, v in run.env.items() if k != "PYTHONPATH"} == expected
    assert "visible but idle: cards 8,9,10,11,12,13,14,15" in run.notes


@pytest.mark.parametrize("kind", ["gpu", device.PLUGIN])
def test_one_card_is_a_plain_process_on_the_chosen_card(kind, machine):
    sdk = next(s for s in device.SDKS if s.device == kind)
    machine(sdk, cards=2, environment={"CUDA_VISIBLE_DEVICES": "4,5"})
    run, _ = prepare(["configs/fcos/fcos_r18_fpn_demo.yml", "--gpus", "5,"])
    assert words(run.command) == [] and run.ranks == 1
    assert run.env[f"FLAGS_selected_{kind}s"] == "1"


@pytest.mark.parametrize(
    "environment, gpus, numbers, labels",
    [
        ({}, "2", "0,1", "0,1"),
        ({}, "2,3", "2,3", "2,3"),
        ({"ILUVATAR_GPU_VISIBLE_DEVICES": "2,3"}, "2", "2,3", "2,3"),
        ({"ILUVATAR_GPU_VISIBLE_DEVICES": "3,12"}, "2", "3,12", "3,12"),
        ({"CUDA_VISIBLE_DEVICES": "9,8,4,5"}, "4,5", "2,3", "4,5"),
        ({"CUDA_VISIBLE_DEVICES": "9,8,4,5", "ILUVATAR_GPU_VISIBLE_DEVICES": "8,5"},
         "2", "1,3", "8,5"),
    ],
)  # fmt: skip
def test_the_plugins_ranks_get_the_numbers_that_the_driver_uses(
    environment, gpus, numbers, labels, machine
):
    """The driver renumbers by CUDA_VISIBLE_DEVICES and does not read the plugin's variable."""
    shown = environment.get("CUDA_VISIBLE_DEVICES", "").count(",") + 1
    machine(device.SDKS[-1], cards=shown if shown > 1 else 16, environment=environment)
    run, _ = prepare(["configs/fcos/fcos_r18_fpn_demo.yml", "--gpus", gpus])
    assert words(run.command)[-2:] == ["--gpus", numbers]
    assert run.notes[1] == f"2 x iluvatar_gpu: cards {labels}"
    assert "ILUVATAR_GPU_VISIBLE_DEVICES" not in run.environment()


def test_a_card_that_is_not_there_is_refused(machine):
    machine(device.SDKS[-1], cards=4, environment={"ILUVATAR_GPU_VISIBLE_DEVICES": "2,9"})
    with pytest.raises(UserError, match="no card 9: Paddle can use 0,1,2,3; choose from these"):
        prepare([])


@pytest.mark.parametrize(
    "environment, number",
    [
        ({}, 0),
        ({"FLAGS_selected_iluvatar_gpus": "12"}, 12),
        ({"ILUVATAR_GPU_VISIBLE_DEVICES": "2,3"}, 2),
        ({"ILUVATAR_GPU_VISIBLE_DEVICES": "2,3", "FLAGS_selected_iluvatar_gpus": "1"}, 3),
        ({"ILUVATAR_GPU_VISIBLE_DEVICES": "5,4", "CUDA_VISIBLE_DEVICES": "4,5"}, 1),
        ({"ILUVATAR_GPU_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "4,5"}, "2,3: not all"),
    ],
)  # fmt: skip
def test_a_process_finds_its_card(environment, number, monkeypatch):
    """Also under Paddle's own launcher, which deals out positions in the plugin's variable."""
    for name in (*device.VISIBILITY, "FLAGS_selected_iluvatar_gpus"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(number, str):
        with pytest.raises(UserError, match=number):
            device.select_card()
        return
    for _ in range(2):  # the second time changes nothing
        device.select_card()
        assert device.card_index(device.PLUGIN) == number


def test_nvidia_with_eight_cards(machine):
    machine(device.Sdk("4.3.0", "3.3.1", "3.11", "gpu", "H", "yes"), cards=8)
    run, _ = prepare([])
    assert words(run.command)[-2:] == ["--gpus", "0,1,2,3,4,5,6,7"]
    assert set(run.env) == {"PYTHONPATH", "FCOS_DEVICE"}


def test_more_cards_than_exist(machine):
    machine(device.SDKS[-1], cards=2)
    with pytest.raises(UserError, match=r"launch.cards: 8: 2 visible \(0,1\); choose fewer"):
        prepare([])


def test_cpu_on_a_machine_with_cards_hides_them(machine, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # Paddle, imported earlier, sets it
    given = {"DEVICE": "cpu", "ILUVATAR_GPU_VISIBLE_DEVICES": "2,3"}
    machine(device.SDKS[2], cards=8, environment=given)
    run, _ = prepare(["--gpus", "2"])
    assert words(run.command)[-2:] == ["--nproc_per_node", "2"]
    assert run.env["CUDA_VISIBLE_DEVICES"] == "-1,-1" and run.env["CUSTOM_DEVICE_ROOT"] == ""
    assert "ILUVATAR_GPU_VISIBLE_DEVICES" not in run.environment()
    assert run.env["PADDLE_DISTRI_BACKEND"] == "gloo"
    assert int(run.env["OMP_NUM_THREADS"]) >= 1
    assert run.command[-2:] == ["-o", "device=cpu"]


def test_paddle_of_this_environment_answers():
    facts = device.ask_paddle_outside()
    assert facts == device.ask_paddle()
    place = device.set_device("cpu")
    assert not device.amp_supported("cpu") and not compat.autocasts("bfloat16")
    assert place == "cpu" and os.environ.pop("PADDLE_DISTRI_BACKEND") == "gloo"
