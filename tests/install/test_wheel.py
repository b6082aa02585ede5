"""A wheel, installed in another folder: everything is found, and nothing is written beside it."""

import shutil
import subprocess
import sys
import sysconfig
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Path, Path]:
    """An environment with the wheel and, from this one, its dependencies; its Python and package.

    The dependencies' folder comes last on the path. A .pth file in it would add the checkout, if
    this environment has an editable installation, so it is put there without reading those.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # pip leaves a folder build/ in it
    for name in ("fcos_recipe", "configs", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source],
                   check=True, cwd=folder)  # fmt: skip
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    site = next((folder / "env").glob("lib/python*/site-packages"))
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin" / "python", site


@pytest.fixture
def fcos(installed, tmp_path):
    def run(*words, code=0) -> str:
        done = subprocess.run([installed[0], *map(str, words)], cwd=tmp_path, text=True,
                              capture_output=True, env={"PATH": "/usr/bin:/bin", "DEVICE": "cpu",
                                                        "HOME": str(tmp_path)})  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_metadata(installed):
    (file,) = installed[1].glob("fcos_recipe-*.dist-info/METADATA")
    found = HeaderParser().parsestr(file.read_text())
    assert found["Requires-Python"] == ">=3.10" and found["License"] == "Apache-2.0"
    assert "Programming Language :: Python :: 3.12" in found.get_all("Classifier")
    assert found["Summary"] and found.get_all("Project-URL") and "demo" in found.get_payload()


def test_a_newcomers_path(installed, fcos, tmp_path):
    """Configs are found, a copy is trained and evaluated; site-packages stays as it was."""

    def content() -> set[Path]:
        return {p for p in (installed[1] / "fcos_recipe").rglob("*") if p.suffix != ".pyc"}

    before, module = content(), ("-m", "fcos_recipe")
    assert fcos("-c", "import fcos_recipe; print(fcos_recipe.__file__)").startswith(
        str(installed[1])
    )
    project = len(list((ROOT / "configs" / "fcos").glob("*.yml")))
    assert fcos(*module, "config", "validate").count("ok  ") >= project
    assert "datasets/coco" in fcos(*module, "dataset", "download", "--dry-run")
    assert str(installed[1]) not in fcos(*module, "dataset", "download", "--dry-run")
    draws = fcos(*module, "train", "-c", "fcos_r18_fpn_demo", "-o", "device=cpu", code=2)
    remedy = "-m fcos_recipe.commands.draw_shapes --output datasets/demo"
    assert remedy in draws
    fcos(*remedy.split(), "--train", 16, "--val", 4)
    assert "edit it" in fcos(*module, "config", "copy", "fcos_r18_fpn_demo", "-o", "my.yml")
    small = ("-o", "epoch=1", "device=cpu")
    fcos(*module, "train", "-c", "my.yml", "--eval", *small)
    fcos("-m", "fcos_recipe.commands.launch", "fcos_r18_fpn_demo", "--gpus", 2, *small)
    assert (tmp_path / "output" / "my" / "report.html").is_file()
    assert (tmp_path / "output" / "fcos_r18_fpn_demo" / "model_final.pdparams").is_file()
    judged = fcos(*module, "verify_result", "output/fcos_r18_fpn_demo", code=2)
    assert "epoch" in judged
    fcos(*module, "config", "new", "--data", "datasets/demo", "-o", "new.yml", "--from-scratch")
    assert "configs/fcos/fcos_r50_fpn_1x_coco.yml" in (tmp_path / "new.yml").read_text()
    assert "ok  new.yml" in fcos(*module, "config", "validate", "new.yml")
    assert content() == before
