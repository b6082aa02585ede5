"""README's commands from top to bottom in a fresh clone: each finds what earlier ones have left."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
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


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s+#.*", "", line).split()) for line in lines if line.strip()]


def test_both_languages_have_the_same_commands():
    english, chinese = map(commands, READMES)
    assert english == chinese


@pytest.mark.slow
@pytest.mark.e2e
def test_the_path_from_the_first_command_to_the_last(tmp_path):
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT,
                           check=True, capture_output=True, text=True).stdout  # fmt: skip
    for name in filter(None, names.split("\0")):
        if not (ROOT / name).is_symlink() and not name.startswith("tests/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path), "DEVICE": "cpu"}

    def shell(command: str, code: int = 0) -> str:
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, text=True,
                              capture_output=True)  # fmt: skip
        assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

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
