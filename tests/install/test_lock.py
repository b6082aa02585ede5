"""The lock files' hashes are enforced, and the installed files match them."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement

from tests.install.test_install import wheel


def locked(path) -> dict[str, str]:
    """Package -> version of a lock file, for this Python and system."""
    lines = re.findall(r"^([a-z].*?)\s*\\?$", path.read_text(), re.MULTILINE)
    wanted = [Requirement(line) for line in lines]
    return {r.name: str(r.specifier)[2:] for r in wanted if not r.marker or r.marker.evaluate()}


def test_another_wheel_of_the_same_name_and_version_is_refused(root, tmp_path):
    """A canary inside the wheel shows that nothing of it was unpacked."""
    clone, wheels = tmp_path / "clone", tmp_path / "wheels"
    for folder in ("scripts", "fcos_recipe", "requirements"):
        shutil.copytree(root / folder, clone / folder)
    for name in ("setup.py", "pyproject.toml", "requirements.txt"):
        shutil.copy(root / name, clone)
    wheels.mkdir()
    wheel(wheels, "innocent", "1.0", {"innocent/__init__.py": ""})
    (honest,) = wheels.iterdir()
    digest = hashlib.sha256(honest.read_bytes()).hexdigest()
    lock = clone / "requirements/lock-cpu.txt"
    lock.write_text(f"innocent==1.0 \\\n    --hash=sha256:{digest}\n")
    wheel(wheels, "innocent", "1.0", {"innocent/__init__.py": "", "canary.py": ""})
    command = ["bash", str(clone / "scripts/install.sh"), "--mode", "cpu", "--wheels", str(wheels),
               "--python", sys.executable]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "CPU Paddle failed" in done.stderr and "DO NOT MATCH THE HASHES" in done.stderr
    assert not list((clone / ".venv").rglob("canary.py"))
    assert not list((clone / ".venv").rglob("innocent*"))


@pytest.mark.slow
def test_what_is_installed_is_what_is_locked(root):
    """Version by version, and file by file against the hashes of each package's RECORD."""
    try:
        paddle = distribution("paddlepaddle").version
    except PackageNotFoundError:
        pytest.skip("this environment has a Paddle of its own, not a locked one")
    lock = root / ("requirements/lock-cpu.txt" if paddle.startswith("3.3") else
                   f"requirements/lock-cpu-{paddle}.txt")  # fmt: skip
    if not lock.is_file():
        pytest.skip(f"no lock file for Paddle {paddle}")
    packages, changed, files = locked(lock), [], 0
    for name, version in packages.items():
        found = distribution(name)
        assert found.version == version, f"{name} {found.version}, locked is {version}"
        for path in found.files or []:
            if path.hash is None or path.suffix == ".pyc":
                continue
            digest = hashlib.new(path.hash.mode, path.locate().read_bytes()).digest()
            files += 1
            if base64.urlsafe_b64encode(digest).decode().rstrip("=") != path.hash.value:
                changed.append(f"{name}: {path}")
    assert len(packages) > 20 and files > 5000
    assert not changed, changed[:5]
