"""doctor on this machine, on broken ones (with fake tools), and without Paddle."""

import json
import os
import re
import subprocess
import sys

import pytest

from fcos_recipe import api
from fcos_recipe.commands import doctor
from fcos_recipe.errors import UserError
from fcos_recipe.launch import measured_steps
from fcos_recipe.system import device
from fcos_recipe.system.machine_check import GREEN, RED, YELLOW, Finding
from tests.system.test_device import NVIDIA, ixsmi

CPU = device.PaddleFacts("3.3.1", False, (), 0)
CUDA = device.PaddleFacts("2.5.2+corex", True, (), 2)
PLUGGED = device.PaddleFacts("3.3.0", False, (device.PLUGIN,), 2)


@pytest.fixture
def examine(tmp_path, monkeypatch):
    """Examine with a stand-in `tool` that runs `script`, and Paddle's answer `facts`."""

    def run(facts, script="exit 0", tool="ixsmi", config=None, overrides=(), **environment):
        path = tmp_path / tool
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        for name in (*device.VISIBILITY, "DEVICE"):
            if name not in environment:
                monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        def answer(seconds):
            if isinstance(facts, Exception):
                raise facts
            return facts

        monkeypatch.setattr(device, "ask_paddle_outside", answer)
        found = doctor.examine(config, list(overrides), communication=False)
        return {item.name: item for item in found}

    return run


def show(text):
    return f"cat <<'END'\n{text}END\n"


def test_healthy_cards(examine):
    found = examine(CUDA, show(ixsmi("4.3.0", "BI-V150", 2)))
    assert found["card 1"].text == "Iluvatar BI-V150, 64 of 32768 MiB used"
    assert "IXUCA 4.3.0: Paddle 3.0.0+corex.4.3.0 on Python 3.10" in found["SDK"].text
    assert not any(item.level == RED for item in found.values())


@pytest.mark.parametrize("facts", [CUDA, PLUGGED], ids=["gpu", "plugin"])
def test_a_faulty_card_is_named_with_the_ones_to_use(examine, facts):
    """The CUDA runtime counts the cards in either case, and reads this one variable."""
    card = examine(facts, show(NVIDIA), "nvidia-smi")["card 1"]
    assert card.level == RED and card.remedy.endswith("export CUDA_VISIBLE_DEVICES=0")
    hidden = examine(facts, show(NVIDIA), "nvidia-smi", CUDA_VISIBLE_DEVICES="0")["card 1"]
    assert (hidden.level, hidden.remedy) == (YELLOW, "")
    on_cpu = examine(facts, show(NVIDIA), "nvidia-smi", DEVICE="cpu")["card 1"]
    assert on_cpu.level == YELLOW


def test_the_only_card_is_faulty(examine):
    alone = ixsmi("4.3.0", "BI-V150", 1).replace("64MiB", "").replace("32768MiB", "")
    card = examine(CUDA, show(alone))["card 0"]
    assert card.level == RED
    assert "no healthy card is left" in card.remedy and "CUDA_VISIBLE" not in card.remedy


def test_releases(examine):
    old = examine(CUDA, show(ixsmi("3.0.1", "BI-V100", 2)))["SDK"]
    assert old.level == RED and "Python >= 3.10" in old.remedy
    assert examine(CUDA, show(ixsmi("3.1.0", "BI-V100", 2)))["SDK"].level == YELLOW
    newer = examine(CUDA, show(ixsmi("4.4.0", "BI-V150", 2)))["SDK"]
    assert newer.level == YELLOW and "nearest row" in newer.remedy


def test_broken_driver_idle_cards_and_no_paddle(examine):
    broken = examine(CPU, "echo 'cannot open /dev/iluvatar0' >&2; exit 9")["driver"]
    assert broken.level == RED
    assert broken.text == "ixsmi: exit code 9: cannot open /dev/iluvatar0"
    idle = examine(CPU, show(ixsmi("4.3.8", "BI-V150", 2)))["device"]
    assert idle.level == RED and "but Paddle 3.3.1 can use none" in idle.text
    chosen = examine(CPU, show(ixsmi("4.3.8", "BI-V150", 2)), DEVICE="cpu")
    assert not [item for item in chosen.values() if item.level == RED]
    gone = UserError("Paddle cannot be imported: No module named 'paddle'; install it: xyz")
    absent = examine(gone)["Paddle"]
    assert absent == Finding(
        RED, "Paddle", "cannot be imported: No module named 'paddle'", "install it: xyz"
    )


def test_cards_that_only_paddle_sees(examine, monkeypatch, root):
    """A plugin without the driver's tool: the report does not contradict itself."""
    monkeypatch.setattr(device, "TOOLS", ())
    monkeypatch.setattr(device, "_nodes", lambda: [])
    found = examine(PLUGGED)
    assert "2 card(s) visible" in found["Paddle"].text and "cards" not in found
    assert found["device"].text == "iluvatar_gpu; cards: Paddle 3.3.0 can use 2"
    assert found["driver"].level == YELLOW and "Paddle counts 2" in found["driver"].text
    none = examine(CPU, config=root / "configs/fcos/fcos_r50_fpn_1x_coco.yml")
    assert none["cards"].text.startswith("none")
    assert none["launch.cards"].text == "8, but no card here"


COCO = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(80)],
    "annotations": [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [1, 1, 50, 50]} for i in range(64)
    ],
    "categories": [{"id": 1, "name": "thing"}],
}


def test_a_planned_run(examine, tmp_path, root):
    (tmp_path / "a.json").write_text(json.dumps(COCO))
    data = [
        f"{section}.{key}={value}"
        for section in ("TrainDataset", "EvalDataset")
        for key, value in (
            ("dataset_dir", tmp_path),
            ("image_dir", "."),
            ("anno_path", "a.json"),
        )
    ]
    config = str(root / "configs/fcos/fcos_r50_fpn_1x_coco.yml")
    cards = show(ixsmi("3.1.0", "BI-V100", 2))
    found = examine(CUDA, cards, config=config, overrides=[*data, "launch.cards=2"])
    # 64 images with objects, 12 epochs, 2 cards x 2 images
    assert "64 images x 12 epochs = 192 steps on 2" in found["time"].text
    hours = 64 * 12 / (8.24 * 2) / 3600
    assert f"{hours:.1f} h at the published 8.24 images/s per BI-V100" in found["time"].text
    # 32,350,490 parameters and the BatchNorm statistics: 32.4 M; 5 x 2 + 2 times 4 bytes
    assert "32.4 M parameters; disk 1.6 GB" in found["size"].text
    assert found["card memory"].level == GREEN
    assert "in the 32 GiB here" in found["card memory"].text
    much = [*data, "launch.cards=2", "TrainReader.batch_size=30"]
    full = examine(CUDA, cards, config=config, overrides=much)["card memory"]
    assert found["model"].level == GREEN
    # what only a built model shows, in the words of `config validate --build`
    strides = r"FCOSHead.fpn_stride: .* strides \[4, 8, 16"
    built = "FCOS.backbone: DarkNet cannot be built"
    dark = "FCOS.backbone=DarkNet DarkNet.depth=7"
    for override, says in (("FCOS.backbone=HRNet", strides), (dark, built)):
        wrong = examine(CUDA, cards, config=config, overrides=[*data, *override.split()])["model"]
        assert wrong.level == RED and re.match(says, wrong.text)
        with pytest.raises(UserError) as error:
            api.build(config, overrides=[*data, *override.split()], device="cpu")
        assert wrong.text == str(error.value)
    assert full.level == RED and "lower it: TrainReader.batch_size: " in full.remedy
    few = examine(CUDA, cards, config=config, overrides=data)["launch.cards"]
    assert few.level == RED and few.remedy == "--gpus 2, or launch.cards: 2"
    on_cpu = examine(CPU, "exit 1", config=config, overrides=[*data, "amp=true", "device=gpu"])
    assert on_cpu["device"].level == RED and "supports cpu" in on_cpu["device"].text


def test_images_that_fit_follow_from_two_peaks():
    gib = 1 << 30
    found = measured_steps.Measured((8, 4), (5 * gib, 3 * gib), 0.1)  # 1 GiB and 0.5 per image
    assert [found.images(n * gib) for n in (5, 3, 11, 1, 0)] == [8, 4, 20, 0, 0]
    flat = measured_steps.Measured((2, 1), (gib, gib), 0.1)
    assert flat.images(gib) == 2


@pytest.mark.e2e
def test_measured_steps_of_a_run(examine, tiny, capsys):
    found = {}
    for item in doctor.examine(str(tiny), ["device=cpu"], communication=False, measure=True):
        found[item.name] = item
    numbers = re.search(
        r"GiB at batch \d+; images per card that fit: (\d+) in", found["step memory"].text
    )
    assert numbers and int(numbers[1]) > 0 and "an estimate" in found["step memory"].text
    assert re.search(
        r"images/s per card in 2 steps: .* per epoch of \d+ images", found["step time"].text
    )
    assert "not verified" not in found["step memory"].text + found["step time"].text
    # a training that fails is told in its own words
    wrong = doctor.examine(str(tiny), ["device=cpu", "pretrain_weights=/no.pdparams"], False, True)
    (told,) = [item for item in wrong if item.name == "measured"]
    assert told.level == RED and "/no.pdparams" in told.text
    with pytest.raises(UserError, match="--measure: name the config"):
        doctor.main(["--measure"])


def test_the_command_on_this_machine(root, tmp_path):
    """For real, with the two processes; then a data set that is not there."""
    command = [sys.executable, str(root / "tools" / "doctor.py"), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["ok"], done.stdout + done.stderr
    found = {item["name"]: item for item in report["findings"]}
    assert found["communication"]["level"] == "green"
    assert "OMP_NUM_THREADS" in found["CPU settings"]["text"]
    config = root / "configs" / "fcos" / "fcos_r50_fpn_1x_coco.yml"
    done = subprocess.run(
        [*command, "--no-comm", "-c", str(config), "-o", f"TrainDataset.dataset_dir={tmp_path}"],
        capture_output=True, text=True, env=environment, timeout=150,
    )  # fmt: skip
    wrong = [item for item in json.loads(done.stdout)["findings"] if item["level"] == "red"]
    assert done.returncode == 1 and wrong[0]["name"] == "data"
    assert str(tmp_path / "train2017") in wrong[0]["text"]


def test_without_paddle(root, tmp_path):
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text("raise ImportError('libgomp.so.1 is gone')")
    done = subprocess.run(
        [sys.executable, str(root / "tools" / "doctor.py")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "FAIL Paddle         cannot be imported: ImportError: libgomp.so.1 is gone" in done.stdout
    )
    assert "bash scripts/install.sh" in done.stdout
