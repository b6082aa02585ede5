"""scripts/install.sh: its decision for every kind of machine, and one real offline installation."""

import ast
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

TOOLS = (
    "bash cat cut dirname find flock grep head mkdir mktemp realpath rm sed sha256sum sort tail "
    "timeout tr"
).split()
PADDLE_AND_ITS_LIBRARIES = r"paddlepaddle|numpy|opencv|protobuf|networkx|pillow"
BASE_PYTHON = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def module(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)


def fake_paddle(folder: Path, version: str, cuda: bool, custom: tuple[str, ...] = ()) -> None:
    """Stand-ins for a Paddle, with NumPy and OpenCV, that answer the installer's questions."""
    module(folder, "paddle", f"__version__ = '{version}'\nis_compiled_with_cuda = lambda: {cuda}\n")
    device = f"get_all_custom_device_type = lambda: {list(custom)}\n"
    (folder / "paddle/device.py").write_text(device)
    with open(folder / "paddle/__init__.py", "a") as text:
        text.write("from paddle import device\n")
    module(folder, "numpy", "__version__ = '1.23.5'\n")
    module(folder, "cv2", "__version__ = '4.6.0'\n")


class Machine:
    """A PATH of its own with stand-ins, an empty /dev and /usr/local, and modules for Python."""

    def __init__(self, root: Path, tmp: Path):
        self.root, self.bin, self.sysroot, self.site = root, tmp / "bin", tmp / "sys", tmp / "site"
        for folder in (self.bin, self.sysroot / "dev", self.site):
            folder.mkdir(parents=True)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        # -S: what this computer has installed stays out
        self.command("python3", f'exec {BASE_PYTHON} -S "$@"')
        self.venv = tmp / "venv"

    def command(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def install(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = {
            "PATH": str(self.bin),
            "FCOS_SYSROOT": str(self.sysroot),
            "PYTHONPATH": str(self.site),
        }
        script = str(self.root / "scripts/install.sh")
        command = ["bash", script, "--dry-run", "--venv", str(self.venv), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stdout + done.stderr
        return done


@pytest.fixture
def machine(root, tmp_path) -> Machine:
    return Machine(root, tmp_path)


# The rows of the vendor's table: SDK, Paddle or None, built with CUDA, custom devices, device.
ILUVATAR = [
    ("3.1.0", "2.4.1+corex.3.1.0", True, (), "gpu"),
    ("4.1", "2.5.2+corex", True, (), "gpu"),
    ("4.3.0", "3.0.0+corex.4.3.0", True, (), "gpu"),
    ("4.3.0", "3.1.0", False, ("iluvatar_gpu",), "iluvatar_gpu"),
    ("4.3.8", "3.3.0", False, ("iluvatar_gpu",), "iluvatar_gpu"),
]


@pytest.mark.parametrize("sdk, paddle, cuda, custom, device", ILUVATAR)
def test_iluvatar_keeps_the_vendors_paddle(machine, sdk, paddle, cuda, custom, device):
    machine.command("ixsmi", f"echo '|  IX-ML: {sdk}  Driver Version: {sdk}  CUDA Version: 10.2 |'")
    fake_paddle(machine.site, paddle, cuda, custom)
    done = machine.install("--dev")
    assert done.returncode == 0, done.stderr
    assert f"Paddle {paddle} (device {device}), NumPy 1.23.5, OpenCV 4.6.0" in done.stdout
    assert ("older than 2.5" in done.stdout) == paddle.startswith("2.4")
    commands = [line for line in done.stdout.splitlines() if line.startswith("+")]
    assert "--system-site-packages" in commands[0]
    installs = [line for line in commands if "pip install" in line]
    assert len(installs) == 3 and all("--no-deps" in line for line in installs)
    assert not re.search(PADDLE_AND_ITS_LIBRARIES, "".join(installs), re.IGNORECASE)
    assert "requirements/base.txt" in installs[0] and "paddledet==2.6.0" in installs[0]
    # with the ONNX converter that reads the programs of the Paddle that is there
    tools = "requirements/lock-dev-2.6.2.txt" if paddle[0] == "2" else "requirements/lock-dev.txt"
    assert installs[2].endswith(tools)


def test_base_requirements_never_touch_what_a_vendor_brings(root):
    lines = (root / "requirements/base.txt").read_text().splitlines()
    named = [line for line in lines if line and not line.startswith("#")]
    assert named and not any(re.match(PADDLE_AND_ITS_LIBRARIES, n, re.IGNORECASE) for n in named)


@pytest.mark.parametrize("sdk", ["4.2.0", "4.3.8"])
def test_iluvatar_without_paddle_names_the_vendors_page(machine, sdk):
    machine.command("ixsmi", f"echo '|  IX-ML: {sdk} |'")
    done = machine.install()
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "https://support.iluvatar.com" in done.stderr


def test_old_python_of_sdk_3_is_refused_in_one_line(machine):
    machine.command("ixsmi", "echo '|  IX-ML: 3.0.1 |'")
    machine.command("python3", "echo '3.7|/usr/bin/python3.7|/usr|-'")
    done = machine.install()
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "python3 is 3.7" in done.stderr and "3.10" in done.stderr


@pytest.mark.parametrize(("version", "taken"), [("3.9", 0), ("3.10", 1), ("3.13", 1), ("3.14", 0)])
def test_only_pythons_with_wheels_are_taken(machine, version, taken):
    machine.command("python3", f"echo '{version}|/usr/bin/python{version}|/usr|-'")
    done = machine.install("--python", "python3")
    if taken:
        assert done.returncode == 0 and f"Python {version} " in done.stdout
    else:
        assert done.returncode == 2 and f"python3 is {version}" in done.stderr
        assert "Python 3.10, 3.11, 3.12 or 3.13 is needed" in done.stderr


def test_iluvatar_with_a_cpu_build_is_refused(machine):
    (machine.sysroot / "dev/iluvatar0").touch()  # container without ixsmi
    fake_paddle(machine.site, "3.3.1", cuda=False)
    done = machine.install()
    assert done.returncode == 2 and "CPU build" in done.stderr


def test_paddle_that_does_not_import(machine):
    (machine.sysroot / "usr/local/corex").mkdir(parents=True)
    module(machine.site, "paddle", "raise ImportError('libcuda.so.1: cannot open')")
    done = machine.install()
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "libcuda.so.1: cannot open" in done.stderr


def test_vendor_without_opencv_gets_one_that_fits_its_numpy(machine):
    fake_paddle(machine.site, "2.5.2+corex", cuda=True)
    shutil.rmtree(machine.site / "cv2")
    assert "opencv-python-headless\\<4.12" in machine.install().stdout


@pytest.mark.parametrize(
    "cuda, folder", [("12.4", "cu118"), ("12.6", "cu126"), ("13.0", "cu126"), ("11.8", "cu118")]
)
def test_nvidia(machine, cuda, folder):
    table = f"| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: {cuda}     |"
    machine.command("nvidia-smi", f'[ "$1" = -L ] && echo "GPU 0: NVIDIA A100" || echo "{table}"')
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert f"stable/{folder}/" in done.stdout and "requirements/gpu.txt" in done.stdout
    machine.command("ixsmi", "true")  # an Iluvatar image may carry an nvidia-smi
    assert machine.install().returncode == 2


def test_driver_tool_without_a_card_is_a_cpu_machine(machine):
    machine.command("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    done = machine.install("--dev")
    assert "mode: cpu" in done.stdout and "accelerator: none" in done.stdout
    locked = [line for line in done.stdout.splitlines() if "--require-hashes" in line]
    assert [re.search(r"requirements/\S+", line)[0] for line in locked] == [
        "requirements/lock-cpu.txt",
        "requirements/lock-dev.txt",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mode", "tpu"], "choose cpu, gpu or vendor"),
        (["--paddle", "2.4.0"], "choose 3.3.1, 3.0.0 or 2.6.2"),
        (["--mode", "vendor"], "no Paddle in"),
        (["--mode", "gpu", "--paddle", "2.6.2"], "--paddle goes with cpu mode"),
        (["--wheels", "/nowhere"], "no such directory"),
        (["--pyton", "x"], "unknown option --pyton"),
        (["--venv"], "--venv needs a value"),
        (["--python", "/nowhere/python"], "Python 3.10, 3.11, 3.12 or 3.13 is needed"),
    ],
)
def test_bad_arguments_are_one_line(machine, arguments, message):
    done = machine.install(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_directories_of_the_users_own(machine):
    """An environment with a Paddle is added to, never made anew; other files are never touched."""
    machine.venv.mkdir()
    (machine.venv / "thesis.tex").touch()
    done = machine.install()
    assert done.returncode == 2 and "no virtual environment" in done.stderr

    (machine.venv / "thesis.tex").rename(machine.venv / "pyvenv.cfg")
    fake_paddle(machine.site, "3.0.0", cuda=False)
    facts = f"3.10|{machine.venv}/bin/python|{machine.venv}|{machine.site}"
    (machine.venv / "bin").mkdir()
    (machine.venv / "bin/python").symlink_to(BASE_PYTHON)
    machine.command("python3", f"echo '{facts}'")
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert "-m venv" not in done.stdout and "-delete" not in done.stdout
    assert "requirements/base.txt" in done.stdout


def direct_requirements(root: Path) -> set[str]:
    paths = root / "requirements.txt", root / "requirements/base.txt"
    text = "".join(path.read_text() for path in paths)
    return {name.lower() for name in re.findall(r"^([A-Za-z][\w-]*)", text, re.MULTILINE)}


def test_lock_files_are_complete_and_from_pypi(root):
    """Every locked line is exact and hashed, and no index or file of one computer is in them."""
    direct = direct_requirements(root)
    for lock in root.glob("requirements/lock-*.txt"):
        text = lock.read_text()
        assert not re.search(r"file:|https?:|--index|--find-links", text), lock
        packages = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
        for package in packages:
            assert re.match(r"[\w.-]+==[\w.]+", package) and "--hash=sha256:" in package, package
        if "cpu" in lock.name:
            assert direct <= {package.split("==")[0] for package in packages}, lock


def test_every_import_is_a_stated_dependency(root):
    """What the package imports is the standard library's or listed in the requirements."""
    # Logs on request; compared with in benchmarks; requirements/onnx.txt; Paddle's own since 3.0.
    optional = {"visualdl", "tensorboardX", "wandb"}
    optional |= {"torch", "torchvision", "onnx", "onnxruntime", "paddle2onnx", "openvino"}
    optional |= {"safetensors"}
    modules = set()
    for path in root.glob("fcos_recipe/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.partition(".")[0])
    modules -= set(sys.stdlib_module_names) | optional | {"fcos_recipe"}
    direct = direct_requirements(root) | {"paddledet", "pillow"}  # Pillow: Paddle itself needs it
    distributions = packages_distributions()
    missing = {m for m in modules if not {d.lower() for d in distributions.get(m, [])} & direct}
    assert modules and not missing


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in files)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def test_real_installation_offline_into_an_activated_environment(root, tmp_path):
    """Fails clearly without packages; of two at once one waits; Paddle is never touched."""
    if int(distribution("setuptools").version.split(".")[0]) < 71:
        pytest.skip("setuptools of this environment is too old to build the package")
    clone, wheels, own = tmp_path / "clone", tmp_path / "wheels", tmp_path / "own"
    for folder in ("scripts", "fcos_recipe", "requirements"):
        shutil.copytree(root / folder, clone / folder)
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(root / name, clone)
    wheels.mkdir()
    venv.create(own, with_pip=False, symlinks=True)
    site = next(own.glob("lib/python*/site-packages"))
    fake_paddle(site, "2.5.2+corex", cuda=True)
    before = {path: path.read_bytes() for path in site.rglob("*.py")}

    command = ["bash", str(clone / "scripts/install.sh"), "--wheels", str(wheels)]
    environment = dict(os.environ, PATH=f"{own}/bin:{os.environ['PATH']}", VIRTUAL_ENV=str(own))
    environment.pop("PYTHONPATH", None)
    run = dict(env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    failed = subprocess.run(command, **run)
    assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1
    assert "installing around Paddle failed" in failed.stderr

    modules = "yaml pycocotools hotcoco msgspec tqdm psutil six matplotlib ppdet".split()
    names = "PyYAML pycocotools hotcoco msgspec tqdm psutil six matplotlib paddledet".split()
    for name in "contourpy cycler fonttools kiwisolver packaging pyparsing python-dateutil".split():
        modules, names = [*modules, name.replace("-", "_")], [*names, name]
    for name, inside in zip(names, modules, strict=True):
        version = "2.6.0" if name == "paddledet" else "9.0"
        wheel(wheels, name, version, {f"{inside}/__init__.py": ""})
    pack_installed("setuptools", wheels)

    both = [subprocess.Popen(command, **run) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    first, second = sorted((out for out, _ in outputs), key=lambda out: "waiting" in out)
    assert "ready: Paddle 2.5.2+corex (device gpu), NumPy 1.23.5, OpenCV 4.6.0" in first
    assert "waiting" in second and "up to date (vendor mode)" in second and "ready" not in second

    code = "import paddle, cv2, ppdet, fcos_recipe; print(paddle.__file__, ppdet.__file__)"
    python = str(clone / ".venv/bin/python")
    files = subprocess.run([python, "-c", code], cwd=tmp_path, **run).stdout.split()
    assert files[0].startswith(str(site)) and files[1].startswith(str(clone / ".venv"))
    assert before == {path: path.read_bytes() for path in site.rglob("*.py")}
    usage = subprocess.run([str(clone / ".venv/bin/fcos"), "--help"], **run)
    assert usage.returncode == 0 and "example" in usage.stdout

    # the project's own environment activated on top: the Python it was made from still counts
    environment["PATH"] = f"{clone}/.venv/bin:{environment['PATH']}"
    assert "up to date" in subprocess.run(command, **run).stdout
    # damaged: made anew
    shutil.rmtree(next((clone / ".venv").glob("lib/python*/site-packages/ppdet")))
    assert "ready" in subprocess.run(command, **run).stdout


def pack_installed(name: str, folder: Path) -> None:
    """Make the wheel of an installed pure-Python package again."""
    found = distribution(name)
    with zipfile.ZipFile(folder / f"{name}-{found.version}-py3-none-any.whl", "w") as archive:
        for path in found.files:
            if path.suffix != ".pyc" and ".." not in path.parts:
                archive.write(path.locate(), str(path))
