"""README's commands from top to bottom in a fresh clone: each finds what earlier ones have left."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers import layouts
from tests.helpers.fresh_copy import fresh_copy
from tests.test_readme import READMES

# What is not run here, by a part of the command, and why.
LEFT_OUT = {
    "scripts/test.sh": "runs the tests, this one too",
    "source .venv": "this environment is on PATH",
    "pip install": "tests/install",
    "download_coco": "40 GB",
    "fcos_r50_fpn_1x_coco": "needs COCO",
    "dets.json": "a file of the reader's",
    "output/NEW": "two runs of the reader's",
    "--serve": "runs until Ctrl-C; tests/report/test_serve.py",
}
# Shorter runs of the same commands.
SHORT = "-o epoch=1 log_iter=1 TrainDataset.sample_num=16"
INSTEAD = {
    "bash scripts/demo.sh": f"python -m fcos_recipe.commands.demo {SHORT}",
    "--data DIR": "--data datasets/demo --base fcos_r18_fpn_demo --from-scratch",
    "-c my.yml --eval": f"-c my.yml --eval {SHORT}",
    "fcos_r18_fpn_demo.yml --eval": f"fcos_r18_fpn_demo.yml --eval {SHORT}",
}


def commands(page: Path, section: str = "") -> list[str]:
    """The commands of a page, or of one section."""
    text = page.read_text().split(f"## {section}\n")[-1]
    blocks = re.findall(r"```bash\n(.*?)```", text.split("\n## ")[0] if section else text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s+#.*", "", line).split()) for line in lines if line.strip()]


def test_both_languages_have_the_same_commands():
    english, chinese = map(commands, READMES)
    assert english == chinese


@pytest.mark.slow
@pytest.mark.e2e
def test_the_path_from_the_first_command_to_the_last(tmp_path):
    shell = fresh_copy(tmp_path)
    draws = "python -m fcos_recipe.commands.draw_shapes --output datasets/demo"
    assert draws in shell("bash scripts/train_1gpu.sh configs/fcos/fcos_r18_fpn_demo.yml", 2)
    run = [c for c in commands(READMES[0]) if not any(part in c for part in LEFT_OUT)]
    assert len(run) == 7
    for command in run:
        for part, shorter in INSTEAD.items():
            command = command.replace(part, shorter)
        shown = shell(command)
        if "commands.demo" in command:  # its last two lines, as README shows them
            assert re.search(r"\nreport: output/demo/run/report.html\nRESULT AP=\S+ AP50=\S+ "
                             r"images_per_second=\S+ seconds=\d+\n$", shown)  # fmt: skip
    python = re.search(r"```python\n(.*?)```", READMES[0].read_text(), re.S)[1]
    shutil.copy(tmp_path / "datasets/demo/val/000001.jpg", tmp_path / "a.jpg")
    (tmp_path / "it.py").write_text("import cv2\nrgb_array = cv2.imread('a.jpg')\n" + python)
    shell("python it.py")


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("page, number", [("README.md", 2), ("docs/data.md", 15)])
def test_the_commands_for_own_data_work_one_after_the_other(page, number, tmp_path):
    """What stands for the reader's data has the names that the pages use."""
    shell = fresh_copy(tmp_path)
    for layout, place in ((layouts.yolo_roboflow, "DIR"), (layouts.labelme, "OTHER_DIR")):
        (tmp_path / place).mkdir()
        layout(tmp_path / place)
    names = {f"p{k}.jpg": [("cat", k, 2, 30, 40)] for k in range(4)}
    layouts.pictures(tmp_path / "A_images", names)
    for name in ("A.json", "my.json"):
        layouts.save(tmp_path / name, layouts.coco(names))
    if page == "README.md":
        run = commands(tmp_path / page, "Your own data")
    else:
        run = [c for c in commands(tmp_path / page) if "download_coco" not in c]
    assert len(run) == number
    for command in run:
        for part, shorter in INSTEAD.items():
            command = command.replace(part, shorter.replace("--data datasets/demo", "--data DIR"))
        shell(command)
    assert (tmp_path / "output/my/best_model.pdparams").is_file()
    if page != "README.md":
        both = json.loads((tmp_path / "both.json").read_text())
        assert len(both["images"]) == len(names) + len(layouts.ALL)
