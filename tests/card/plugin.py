"""Builds the stand-in card for the installed Paddle, and the environment for its users."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent
LIBRARIES = ("libphi_core.so", "libphi.so")
# Before 3.1 Paddle's own launcher recognises a plugin's cards by this variable alone.
PADDLE_LAUNCHER = {"PADDLE_XCCL_BACKEND": "iluvatar_gpu"}


def plugin() -> Path:
    """The folder for CUSTOM_DEVICE_ROOT; compiles once per Paddle version and source text.

    A plugin compiled for another Paddle version loads without an error and fails in its first
    collective, so the version is part of the folder's name.
    """
    if not (compiler := shutil.which("g++")):
        pytest.skip("no g++ to compile the stand-in card with")
    import paddle

    package = Path(paddle.__file__).parent
    files = sorted([*SOURCES.glob("*.cc"), *SOURCES.glob("*.h")])
    text = b"".join(f.read_bytes() for f in files) + paddle.__version__.encode()
    folder = Path(sysconfig.get_path("purelib")).parents[2] / "stand-in-card"
    folder /= hashlib.sha256(text + str(package).encode()).hexdigest()[:16]
    library = folder / "libcard.so"
    if library.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{os.getpid()}.o"
    command = [
        compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-DPADDLE_WITH_CUSTOM_DEVICE",
        "-I", package / "include", "-I", package / "include" / "third_party", "-o", part,
        *SOURCES.glob("*.cc"), "-L", package / "libs",
        *(f"-l:{name}" for name in LIBRARIES if (package / "libs" / name).is_file()),
        "-lpthread", "-lrt", "-ldl",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    os.replace(part, library)
    return folder


def environment(cards: int = 1, **options) -> dict[str, str]:
    """Environment variables of a process that shall find cards.

    Args:
        cards: number of cards.
        options: those of README.md in lower case and without FAKE_CARD_, such as trace="file".
    """
    values = {f"FAKE_CARD_{name.upper()}": str(value) for name, value in options.items()}
    return {
        **{k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "DEVICE")},
        "PYTHONPATH": str(SOURCES.parents[1]),
        "PYTHON": sys.executable,
        "CUSTOM_DEVICE_ROOT": str(plugin()),
        "FAKE_CARDS": str(cards),
        **values,
    }
